"""The reward contract through Ray: what a component does wrong in its actor, and what becomes of it here."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycap.cluster import reward_pool, training_stages
from raycap.cluster.reward_pool import RewardPools, RewardWorker
from raycap.cluster.run import run_recipe
from raycap.errors import RewardError
from raycap.rewards.context import ContextSpec
from raycap.rl.advantages import combine
from raycap.train.journal import read_log
from raycap.types import Generation, Lease, Prompt

from .faulty import NumberedWorker

pytestmark = pytest.mark.ray
SOURCE = "tests.cluster.faulty:Faulty"


def lease() -> Lease:
    return Lease(0, 0, (Prompt("a.jpg", 0), Prompt("b.jpg", 1)))


def generation() -> Generation:
    """Two images with two samples each, of 3, 5, 4 and 8 letters, and a greedy caption each."""
    captions = ("dog", "a dog", "cats", "two cats")
    return Generation(
        tokens=np.zeros((4, 2), np.int64),
        lengths=np.full(4, 2),
        behavior_logprobs=np.zeros((4, 2), np.float32),
        finished=np.ones(4, bool),
        captions=captions,
        greedy_captions=("dogs", "a cat"),
        greedy_finished=np.ones(2, bool),
        num_samples=2,
    )


@pytest.fixture
def pool_of(ray_session: Any, prepared: Any) -> Any:
    """Starts a pool of one component with a planted fault."""
    started: list[Any] = []

    def start(fault: str, **options: Any) -> RewardPools:
        spec = ContextSpec(
            recipe=None, prepared=str(prepared.folder), labelled="", document_frequency="",
            clip_embeddings="", trained_clip="", device="cpu",
        )  # fmt: skip
        kind = ray_session.remote(RewardWorker).options(num_cpus=0)
        actor = kind.remote("mine", spec, {"fault": fault, **options}, SOURCE, 1)
        started.append(actor)
        return RewardPools({"mine": [actor]})

    yield start
    for actor in started:
        ray_session.kill(actor)


@pytest.mark.parametrize(
    ("fault", "caption", "what"),
    [
        ("exception", "dog", "raised ValueError: planted"),
        ("exit", "dog", "raised SystemExit"),
        ("nan", "a dog", "nan"),
        ("infinity", "a dog", "inf"),
        ("short", "a cat", "5 values for 6 captions"),
        ("long", "a cat", "7 values for 6 captions"),
    ],
)
def test_a_failure_is_never_a_reward(pool_of: Any, fault: str, caption: str, what: str) -> None:
    pools = pool_of(fault)
    for _ in range(2):  # the actor lives, and says the same again
        with pytest.raises(RewardError) as failed:
            pools.score(lease(), generation())
        assert (failed.value.key, failed.value.value) == ("rewards.mine", caption)
        assert what in str(failed.value)
        assert ".jpg" in str(failed.value)


def test_none_takes_the_component_out_for_that_image_alone(pool_of: Any) -> None:
    """By hand: image a has a None among its captions; image b: 4 and 8 letters against 5, weight 0.5."""
    scores = pool_of("none", place=1).score(lease(), generation())
    np.testing.assert_array_equal(scores["mine"].rewards, np.float32([[3, np.nan], [4, 8]]))
    mixed = combine(scores, {"mine": 0.5}, baseline="greedy")
    np.testing.assert_allclose(mixed.values, [[0, 0], [-0.5, 1.5]])
    assert mixed.kept.tolist() == [False, True]
    assert mixed.applied == {"mine": 1}


def test_an_actor_that_died_comes_back_however_many_captions_it_may_read(
    ray_session: Any, tiny_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments of an actor above 100 KB are freed once it is there, and it cannot be started again without them."""
    run = tiny_run("restart", rewards={"cider": {}})
    folder = run.path("scst", 0)
    folder.mkdir(parents=True, exist_ok=True)
    spec = training_stages.reward_context(run, folder)
    known = json.loads(Path(spec.labelled).read_text())
    Path(spec.labelled).write_text(json.dumps(known * 5_000))  # a list as long as that of many images
    assert len(pickle.dumps(spec)) < 50_000
    monkeypatch.setattr(training_stages, "RewardWorker", NumberedWorker)
    (actor,) = training_stages._reward_actors("cider", spec, run)
    pools = RewardPools({"cider": [actor]})
    try:
        before = pools.wait_until_ready()
        number = ray_session.get(actor.number.remote())
        os.kill(number, signal.SIGKILL)
        of_run = Lease(0, 0, tuple(Prompt(image_id, n) for n, image_id in enumerate(known[:2])))
        assert pools.score(of_run, generation())["cider"].rewards.shape == (2, 2)
        assert pools.wait_until_ready() == before
        assert ray_session.get(actor.number.remote()) != number
    finally:
        ray_session.kill(actor)


def test_a_run_ends_with_the_component_and_the_caption(ray_session: Any, tiny_run: Any) -> None:
    run = tiny_run("faulty", rewards={"cider": {}, "mine": {"source": SOURCE, "options": {"fault": "nan"}}})
    with pytest.raises(RewardError, match=r"rewards.mine = .*nan") as failed:
        run_recipe(run.recipe)
    assert failed.value.exit_code == 1
    assert [r["step"] for r in read_log(run.path("scst", 0))] == [0], "nothing was learned from it"
    assert not (run.path("scst", 0) / "finished.json").exists()


def test_an_actor_that_is_slow_to_start_is_spoken_of(
    ray_session: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the cluster has no room for it, nothing else would say why nothing happens."""

    class Slow:
        def ready(self) -> str:
            time.sleep(1.0)
            return "signature"

    monkeypatch.setattr(reward_pool, "PATIENCE_S", 0.3)
    actor = ray_session.remote(Slow).options(num_cpus=0).remote()
    assert RewardPools({"mine": [actor]}).wait_until_ready() == {"mine": "signature"}
    ray_session.kill(actor)
    said = capsys.readouterr().out
    assert "rewards.mine has waited 0 s for its actor to start; free are" in said
    assert f"of {ray_session.cluster_resources()['CPU']:g} CPUs" in said
