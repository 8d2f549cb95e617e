"""The log's keys as names and tags of metrics: one kind of figure, one name, always the same tags."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raycap.cluster import exchange_link, metrics
from raycap.cluster.exchange_link import ExchangeLink
from raycap.cluster.metrics import metric_of, ray_metrics
from raycap.cluster.step_seconds import step_seconds
from raycap.models.prefix import PrefixCaptioner
from raycap.recipe import ClusterRecipe, RewardRecipe, SCSTRecipe
from raycap.train import scst
from raycap.train.group import Alone
from raycap.train.journal import FolderJournal, read_log
from raycap.train.learner import Learner
from raycap.train.prompts import PromptSchedule
from raycap.train.sinks import Sinks
from raycap.train.trackers import numbers_of
from raycap.train.validation import Validator
from raycap.types import CaptionBatch, Rollouts
from tests.conftest import TinyData

MakeCaptioner = Callable[..., PrefixCaptioner]


@pytest.mark.parametrize(
    ("key", "name", "tags"),
    [
        ("pg_loss", "raycap_pg_loss", {}),
        ("seconds", "raycap_elapsed_seconds", {}),
        ("seconds/wait", "raycap_seconds", {"part": "wait"}),
        ("seconds/reward/clip", "raycap_seconds", {"part": "reward/clip"}),
        ("idle/learner", "raycap_idle", {"who": "learner"}),
        ("queue/ready", "raycap_queue", {"state": "ready"}),
        ("workers/rollout", "raycap_workers", {"role": "rollout"}),
        ("workers/reward/clip", "raycap_workers", {"role": "reward/clip"}),
        ("reward/clip/sampled", "raycap_reward_sampled", {"component": "clip"}),
    ],
)
def test_names_and_tags(key: str, name: str, tags: dict[str, str]) -> None:
    assert metric_of(key) == (name, tags)


class Lengths:
    """A reward that any caption has."""

    def score(self, batch: CaptionBatch) -> list[float | None]:
        return [float(len(caption)) for caption in batch.captions]


@pytest.fixture(scope="module")
def logged(
    tiny: TinyData, make_captioner: MakeCaptioner, one_thread: ClusterRecipe, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the learner logs: two steps of the loop in one process, and what the cluster's loop adds to a step."""
    recipe = SCSTRecipe(steps=2, batch_size=4, lease_size=2, num_samples=2, select_every=2, collapse_share=0)
    folder, captioner = tmp_path_factory.mktemp("logged"), make_captioner(tokenizer=tiny.tokenizer)
    schedule = PromptSchedule(list(tiny.captions), batch_size=4, lease_size=2, seed=0)
    validator = Validator(tiny.select, tiny.grid, max_length=6)
    seen: list[list[Rollouts]] = []

    class Listening(Learner):
        def update(self, rollouts: Sequence[Rollouts]) -> dict[str, Any]:
            seen.append(list(rollouts))
            return super().update(rollouts)

    def answer(call: Any) -> dict[str, Any]:
        return {"states": {"ready": 2}, "workers": 2}

    whole = SimpleNamespace(scst=recipe, cluster=ClusterRecipe(), rewards={"cider": RewardRecipe()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scst, "Learner", Listening)
        scst.train_scst(captioner, schedule, tiny.grid, {"cider": Lengths()}, {"cider": 1.0}, validator, recipe,
                        one_thread, max_length=6, seed=0, journal=FolderJournal(folder))  # fmt: skip
        patch.setattr(exchange_link, "answer", answer)
        queue = ExchangeLink(None, Any, Alone(), folder, 1.0).queue()
    workers = queue.pop("workers")
    lap = (3.5, {"wait": 1.0, "learn": 2.0, "publish": 0.5})
    seconds = step_seconds(seen[-1], 1, lap, whole, Alone(), workers=workers)  # type: ignore[arg-type]
    return read_log(folder)[-1] | queue | seconds


def test_grafana_draws_what_there_is(logged: dict[str, Any]) -> None:
    """Names and tags in the dashboard's queries, against those of a log's keys (Ray puts `ray_` before a name)."""
    board = json.loads((Path(metrics.__file__).parent / "grafana.json").read_text())
    figures = {**numbers_of(logged), "step": 2.0}
    known = {f"ray_{name}": {"run", *tags} for name, tags in map(metric_of, figures)}
    targets = [target for panel in board["panels"] for target in panel["targets"]]
    assert len(targets) >= len(board["panels"]) == len({panel["id"] for panel in board["panels"]})
    for target in targets:
        (name,) = re.findall(r"ray_raycap_\w+", target["expr"])
        assert name in known, name
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= known[name], target


def test_every_figure_becomes_a_metric(logged: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Ray refuses names and tags that it does not like, and tags that change."""
    names: dict[str, set[str]] = {}
    for name, tags in map(metric_of, numbers_of(logged)):
        assert names.setdefault(name, set(tags)) == set(tags), name
    watch = Sinks([ray_metrics("tiny/seed-0/scst")])
    watch(logged)
    watch({**logged, "step": 3})
    watch.close("finished")
    assert capsys.readouterr().out == ""
    assert len(names) > 20
