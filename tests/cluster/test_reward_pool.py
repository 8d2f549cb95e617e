"""The reward contract through Ray: what a component does wrong in its actor, and what becomes of it here."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycap.cluster import reward_pool, room, training_stages
from raycap.cluster.fitting import Want
from raycap.cluster.reward_pool import RewardPools, RewardWorker
from raycap.cluster.run import run_recipe
from raycap.errors import RewardError, RewardStuck, WorkFailed
from raycap.rewards.context import ContextSpec
from raycap.rl.advantages import combine
from raycap.train.journal import read_log
from raycap.types import Generation, Lease, Prompt

from .faulty import NumberedWorker, SlowToStart

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

    def start(fault: str, limit_s: float = math.inf, workers: int = 1, **options: Any) -> RewardPools:
        spec = ContextSpec(
            recipe=None, prepared=str(prepared.folder), labelled="", document_frequency="",
            clip_embeddings="", trained_clip="", device="cpu",
        )  # fmt: skip
        kind = ray_session.remote(RewardWorker).options(num_cpus=0, max_restarts=-1, max_task_retries=0)
        actors = [kind.remote("mine", spec, {"fault": fault, **options}, SOURCE, 1, limit_s) for _ in range(workers)]
        started.extend(actors)
        return RewardPools({"mine": actors})

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


def test_a_reward_that_hangs_ends_the_run_with_its_name_and_the_batch(pool_of: Any) -> None:
    said: list[Any] = []
    pools = pool_of("hang", limit_s=0.5)
    with pytest.raises(RewardStuck, match=r"rewards\.mine: took longer than 0\.5 s .* begins with 'dog' of a\.jpg"):
        pools.score(lease(), generation(), said.append)


@pytest.mark.parametrize("fault", ["hang", "die"])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_happens_once_is_tried_again(pool_of: Any, tmp_path: Path, fault: str, workers: int) -> None:
    """The batches queued behind it, and another one at the same time, have their scores too."""
    pools = pool_of(fault, limit_s=1.0, workers=workers, marker=str(tmp_path / "marker"))
    with ThreadPoolExecutor(3) as threads:
        several = [threads.submit(pools.score, lease(), generation()) for _ in range(3)]
        for each in several:
            np.testing.assert_array_equal(each.result(timeout=60)["mine"].rewards, np.float32([[3, 5], [4, 8]]))


def test_it_is_told_who_is_waited_for(pool_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_pool, "REPORT_S", 0.2)
    said: list[Any] = []
    pool_of("hang", limit_s=1.0, marker=str(tmp_path / "marker")).score(lease(), generation(), said.append)
    assert said[0] == ["mine"]
    assert {name for names in said for name in names} <= {"mine", "mine, whose actors are being started again"}


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
    (actor,) = training_stages._reward_actors(Want("cider", 1, 0.0, 0.0), spec, run)
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


def test_an_actor_that_takes_long_to_come_back_is_one_death(
    ray_session: Any, tiny_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is started again every call to it fails at once: that is none of the batch's doing."""
    run = tiny_run("slow", rewards={"cider": {}})
    folder = run.path("scst", 0)
    folder.mkdir(parents=True, exist_ok=True)
    spec = training_stages.reward_context(run, folder)
    monkeypatch.setattr(training_stages, "RewardWorker", SlowToStart)
    (actor,) = training_stages._reward_actors(Want("cider", 1, 0.0, 0.0), spec, run)
    pools = RewardPools({"cider": [actor]}, retries=2)
    known = json.loads(Path(spec.labelled).read_text())
    of_run = Lease(0, 0, tuple(Prompt(image_id, n) for n, image_id in enumerate(known[:2])))
    said: list[Any] = []
    try:
        pools.wait_until_ready()
        os.kill(ray_session.get(actor.number.remote()), signal.SIGKILL)
        assert pools.score(of_run, generation(), said.append)["cider"].rewards.shape == (2, 2)
        assert ["cider, whose actors are being started again"] in said
        os.kill(ray_session.get(actor.number.remote()), signal.SIGKILL)
        assert pools.wait_until_ready().keys() == {"cider"}
    finally:
        ray_session.kill(actor)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_that_kills_its_actors_ends_the_run_by_name(pool_of: Any, workers: int) -> None:
    pools = pool_of("die", workers=workers)
    pools.retries = 3
    with pytest.raises(WorkFailed, match=r"rewards\.mine: its actors died 3 times of a batch that begins with a\.jpg"):
        pools.score(lease(), generation())


def test_waiting_for_room_can_be_broken_off(ray_session: Any) -> None:
    class Large:
        def ready(self) -> str:
            return ""

    actor = ray_session.remote(Large).options(num_cpus=1000).remote()
    try:
        with pytest.raises(KeyboardInterrupt):
            RewardPools({"mine": [actor]}).wait_until_ready(look=_interrupt)
    finally:
        ray_session.kill(actor)


def _interrupt() -> None:
    raise KeyboardInterrupt


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

    monkeypatch.setattr(room, "PATIENCE_S", 0.3)
    actor = ray_session.remote(Slow).options(num_cpus=0).remote()
    assert RewardPools({"mine": [actor]}).wait_until_ready() == {"mine": "signature"}
    ray_session.kill(actor)
    said = capsys.readouterr().out
    assert re.search(r"rewards\.mine has waited \d+ s to start; free are", said)
    assert f"of {ray_session.cluster_resources()['CPU']:g} CPUs" in said
