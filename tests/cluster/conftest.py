"""A run in miniature: 24 drawn scenes, random grid features, an untrained captioner where MLE's best would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycap.cluster.run import STAGES
from raycap.cluster.stages import Run
from raycap.cluster.storage import write_json
from raycap.data.dataset import PreparedDataset
from raycap.data.features import write_meta, write_shard
from raycap.data.input_report import InputReport
from raycap.data.prepare import prepare
from raycap.data.scenes.dataset import draw_scenes, import_scenes
from raycap.models.build import new_captioner
from raycap.models.checkpoint import save_captioner
from raycap.recipe import Recipe
from raycap.recipe.load import validate
from tests.train.conftest import on_ranks as on_ranks

NUM_TRAIN, CELLS, WIDTH = 24, 4, 12
LM = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("prepared")
    draw_scenes(folder / "scenes", num_train=NUM_TRAIN, num_dev=4, num_test=4, seed=5)
    report = InputReport()
    return prepare(import_scenes(folder / "scenes", report=report), folder, report=report, select_size=4)


def recipe_of(storage: Path, stages: list[str], **sections: Any) -> Recipe:
    """A small recipe; sections are merged over the defaults here."""
    values: dict[str, Any] = {
        "name": "tiny",
        "stages": stages,
        "storage": str(storage),
        "data": {"format": "scenes", "scenes": {"num_train": NUM_TRAIN, "num_dev": 4, "num_test": 4, "seed": 5}},
        "features": {"encoder": "test_vit"},
        "captioner": {"lm_config": LM, "max_length": 12},
        "scst": {
            "steps": 5,
            "batch_size": 6,
            "lease_size": 2,
            "num_samples": 3,
            "lr": 1e-3,
            "select_every": 3,
            "collapse_share": 0,
            "crop": 1,
            "flip": True,
        },
        "cluster": {"rollout_cpus": 0, "learner_cpus": 0.1, "learner_threads": 1, "lease_timeout_s": 60},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section} if isinstance(values.get(name), dict) else section
    return validate(values)


@pytest.fixture
def tiny_run(tmp_path: Path, prepared: PreparedDataset) -> Any:
    """Makes runs that start at the stage `scst`: prepare, features and mle lie there as if they had run."""

    def make(name: str, **sections: Any) -> Run:
        storage = tmp_path / name
        recipe = recipe_of(storage, ["scst"], **sections)
        run = Run(recipe, STAGES)
        run.folder.mkdir(parents=True)
        (run.folder / "prepare").symlink_to(prepared.folder)
        ids = [i for split in ("train", "dev", "test") for i in prepared.ids(split)]
        features = run.path("features", 0) / "captioner"
        features.mkdir(parents=True)
        values = np.random.default_rng(0).normal(size=(2, len(ids), CELLS, WIDTH)).astype(np.float16)
        for view in range(2):
            write_shard(features, 0, ids, values[view], view)
        write_meta(features, shape=(CELLS, WIDTH), shards=1, source="random", views=1)
        captions = {i: prepared.references(i) for i in run.labelled_ids(prepared)}
        captioner = new_captioner(recipe.captioner, (CELLS, WIDTH), captions, seed=0)
        save_captioner(run.path("mle", 0) / "best", captioner, {})
        for name in ("prepare", "features", "mle"):
            folder = run.stage_folder(name, 0)
            write_json(folder.path / "stage.json", folder.made_from)
            folder.finish({})
        return run

    return make
