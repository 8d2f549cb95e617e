"""What tests share: tiny captioners, a tiny captioned data set with telling features, drawn scenes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from raycap.data.features import FeatureStore, write_meta, write_shard
from raycap.models.build import lm_from_scratch
from raycap.models.clip import fill_clip, new_clip
from raycap.models.prefix import PrefixCaptioner, PrefixConfig
from raycap.models.tokenizer import HFTokenizer, Tokenizer, WordTokenizer
from raycap.recipe import ClusterRecipe
from tests.tiny_run import TinyRun, make_run

torch.set_num_threads(1)
settings.register_profile("raycap", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("raycap")

LMS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 48},
    "llama": {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48,
    },
}  # fmt: skip
COLOURS, SHAPES, PLACES = ("red", "blue", "green", "white"), ("dog", "cat", "bird"), ("left", "right")


class NumberTokenizer:
    """Ids are spelt as numbers, so that a caption shows every token (the EOS left out)."""

    pad_id, eos_id = 0, 1
    unknown_id: int | None = None

    def __init__(self, vocab_size: int = 20) -> None:
        self.vocab_size = vocab_size

    def encode(self, caption: str) -> list[int]:
        return [int(word) for word in caption.split()]

    def decode(self, ids: Sequence[int]) -> str:
        kept = list(ids)
        return " ".join(map(str, kept[: kept.index(self.eos_id)] if self.eos_id in kept else kept))

    def save(self, folder: Path) -> None:
        raise NotImplementedError


MakeCaptioner = Callable[..., PrefixCaptioner]


@pytest.fixture(scope="session")
def make_captioner() -> MakeCaptioner:
    """make_captioner(lm="gpt2", tokenizer=..., features="grid", mapping="grid", feature_dim=8, ...).

    `spread` is the standard deviation of the random weights: large, so that captions differ between images. Other
    keywords go to `PrefixConfig`, `lm_config` overrides the LM's. lm_tuning="lora" has adapters of rank 2, still zero.
    """

    def make(
        lm: str = "gpt2", *, tokenizer: Tokenizer | None = None, features: str = "grid", mapping: str = "grid",
        feature_dim: int = 8, prefix_length: int = 3, spread: float = 0.4, seed: int = 0, lm_tuning: str = "full",
        lm_config: dict[str, Any] | None = None, **config: Any,
    ) -> PrefixCaptioner:  # fmt: skip
        torch.manual_seed(seed)
        tokenizer = tokenizer or NumberTokenizer()
        if lm_tuning == "lora":
            config.setdefault("lora", {"rank": 2, "alpha": 6.0, "dropout": 0.0, "targets": None})
        asked = {**LMS[lm], "initializer_range": spread, **(lm_config or {})}
        module, complete = lm_from_scratch(asked, tokenizer)
        built = PrefixConfig(
            features=features, feature_dim=feature_dim, mapping=mapping, prefix_length=prefix_length,
            lm_config=complete, lm_tuning=lm_tuning, mapping_layers=1, mapping_heads=2, **config,
        )  # fmt: skip
        return PrefixCaptioner(built, module, tokenizer).eval()

    return make


@pytest.fixture(scope="session")
def pretrained_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained LM in miniature: a folder with weights and a tokenizer. Tests read it."""
    folder = tmp_path_factory.mktemp("lm")
    tokenizer = HFTokenizer.train_bpe(["a red dog runs", "two cats sleep there"], vocab_size=270)
    torch.manual_seed(1)
    lm, _ = lm_from_scratch(
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "initializer_range": 0.4},
        tokenizer,
    )
    lm.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.inner.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class TinyData:
    """24 images whose features name a colour, an animal and a side, and two captions each that say so.

    Attributes:
        captions: by image id; every third image is kept for `select`.
        grid: features [4, 8].
        pooled: features [8].
    """

    captions: dict[str, tuple[str, ...]]
    grid: FeatureStore
    pooled: FeatureStore
    tokenizer: WordTokenizer = field(repr=False)

    @property
    def select(self) -> dict[str, tuple[str, ...]]:
        return {i: texts for n, (i, texts) in enumerate(self.captions.items()) if n % 3 == 2}

    @property
    def train(self) -> dict[str, tuple[str, ...]]:
        return {i: texts for i, texts in self.captions.items() if i not in self.select}


def write_features(folder: Path, features: dict[str, np.ndarray], *, shard_size: int = 10) -> FeatureStore:
    """A finished extraction of float32 features in shards."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = list(features)
    cuts = range(0, len(ids), shard_size)
    for number, start in enumerate(cuts):
        part = ids[start : start + shard_size]
        write_shard(folder, number, part, np.stack([features[i] for i in part]))
    write_meta(folder, shape=next(iter(features.values())).shape, shards=len(cuts), source="test")
    return FeatureStore.open(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    draw = np.random.default_rng(0)
    captions, grids = {}, {}
    for number in range(24):
        colour, shape, place = number % 4, number // 4 % 3, number // 12
        name = f"img_{number:03d}"
        words = f"{COLOURS[colour]} {SHAPES[shape]}"
        captions[name] = (f"a {words} on the {PLACES[place]}", f"there is a {words}")
        grid = 0.05 * draw.standard_normal((4, 8)).astype(np.float32)
        grid[0, colour] += 2
        grid[1, 4 + shape] += 2
        grid[2, 7] += 2 * place - 1
        grids[name] = grid
    folder = tmp_path_factory.mktemp("features")
    words = [text for texts in captions.values() for text in texts]
    return TinyData(
        captions=captions,
        grid=write_features(folder / "grid", grids),
        pooled=write_features(folder / "pooled", {name: grid.mean(axis=0) for name, grid in grids.items()}),
        tokenizer=WordTokenizer.train(words),
    )


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raycap-scenes-reward` with random weights, as a folder that `raycap.train.clip` would write."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("clip")
    fill_clip(folder, new_clip("raycap-scenes-reward", "A photo depicts "), {"trained_on": "nothing"})
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A finished run in its storage. Tests read it; who changes it makes one with `make_run`, or copies it."""
    return make_run(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="session")
def one_thread() -> ClusterRecipe:
    """The cluster section with one torch thread for everything, as the tests run."""
    return ClusterRecipe(rollout_threads=1, learner_threads=1)


@pytest.fixture(autouse=True)
def _leave_one_thread() -> Iterator[None]:
    """The loops set the number of torch threads; the next test starts with one again."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """One Ray for all tests that need one."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
