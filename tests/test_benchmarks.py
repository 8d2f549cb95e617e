"""The benchmarks' own checks: figures of an engine that loses, repeats or ages rollouts are no figures."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from raycap.cluster.exchange import Exchange
from raycap.cluster.reward_pool import RewardPools
from raycap.types import ComponentScores, Rollouts, WeightsId
from tests.in_process import Actors, stand_in


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"benchmark_{name}", Path(__file__).parents[1] / f"benchmarks/{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ASYNC, LAGS, NODES = benchmark("async"), benchmark("lags"), benchmark("nodes")


def crew_of(exchange_of: Callable[..., Exchange] = Exchange) -> type:
    """A crew as the benchmark's, in this process."""

    class Crew:
        def __init__(self, *, steps: int, lag: int, workers: int, generate: float, reward: float) -> None:
            self.actors = Actors()
            self.exchange = self.actors.handle(exchange_of(
                ASYNC.SCHEDULE, total_steps=steps, max_policy_lag=lag, lease_timeout_s=600.0, quarantine_after=3
            ))  # fmt: skip
            pools = RewardPools({"slept": [self.actors.handle(ASYNC.SleepyReward(reward))]})
            made = [ASYNC.SleepyActor(f"w{n}", pools, generate) for n in range(workers)]
            self.at_work = [self.actors.handle(each).run.remote(self.exchange) for each in made]

        def __enter__(self) -> Crew:
            return self

        def __exit__(self, *exc: object) -> None:
            self.exchange.close.remote().result(10)
            for work in self.at_work:
                work.result(30)
            self.actors.close()

    return Crew


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        stand_in(patch)
        yield


SHAPE = ASYNC.Shape(generate=0.12, reward=0.001, learn=0.12)


@pytest.mark.parametrize("lag", [0, 1, 4])
def test_the_loop_that_is_measured_gets_each_lease_once(lag: int) -> None:
    rate, idle = ASYNC.learned(SHAPE, lag, steps=5, crew_of=crew_of())
    assert 0 < rate < 1 / 0.12
    assert 0 <= idle < 1


class Repeats(Exchange):
    """Gives a step's first lease twice."""

    async def take(self, *asked: Any) -> Any:
        taken = await super().take(*asked)
        if isinstance(taken, str):
            return taken
        return replace(taken, rollouts=(*taken.rollouts[:-1], taken.rollouts[0]))


class Ages(Exchange):
    """Opens leases too early."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **{**options, "max_policy_lag": options["max_policy_lag"] + 1})


@pytest.mark.parametrize("broken", [Repeats, Ages])
def test_a_broken_engine_gives_no_figures(broken: type[Exchange]) -> None:
    with pytest.raises(AssertionError):
        ASYNC.learned(SHAPE, 0, steps=5, crew_of=crew_of(broken))


def taken(step: int, version: int) -> list[Rollouts]:
    scores = {"slept": ComponentScores(np.zeros((4, 2), np.float32), np.zeros(4, np.float32))}
    sleeper = ASYNC.Sleeper(0.0)
    return [Rollouts(lease, WeightsId(0, version), sleeper.generate(lease), scores)
            for lease in ASYNC.SCHEDULE.leases(step)]  # fmt: skip


def test_what_is_taken_is_checked() -> None:
    ASYNC.check(taken(7, 6), 7, lag=1)
    good = taken(7, 7)
    faults = [
        good[:-1], [*good, good[0]], good[::-1], taken(8, 7), taken(7, 5), taken(7, 8),
        [*good[:-1], replace(good[-1], weights_id=WeightsId(1, 7))], [replace(good[0], scores={}), *good[1:]],
        [replace(good[0], lease=replace(good[0].lease, prompts=good[1].lease.prompts)), *good[1:]],
    ]  # fmt: skip
    for fault in faults:
        with pytest.raises(AssertionError):
            ASYNC.check(fault, 7, lag=1)


def test_workers_add_up() -> None:
    assert 1.0 < ASYNC.scaled(2, 0.02, crew_of=crew_of()) < 3.0


@pytest.mark.parametrize("place", [(0, 0), (1, 524288), (2, -1)])
def test_a_piece_that_did_not_arrive_is_found(place: tuple[int, int]) -> None:
    module = ASYNC.Parameters(12)
    ASYNC.fill(module, 3)
    assert ASYNC.holds(module, 3)
    assert not ASYNC.holds(module, 2)
    module.pieces[place[0]].data[place[1]] = 0.5
    assert not ASYNC.holds(module, 3)


def test_copies_are_of_the_cores_that_there_are() -> None:
    with ASYNC.Copier(megabytes=8) as copier:
        assert copier.threads == len(os.sched_getaffinity(0))
        assert copier.gb_per_s() > 0
    assert sum(one.nbytes + other.nbytes for one, other in copier.pairs) <= 16 << 20
    assert all(np.array_equal(*pair) for pair in copier.pairs)


def test_publishing_is_compared_round_by_round() -> None:
    """A machine that was slow for a while was so for both: 0.6, 0.5 and 0.7, and not 4 over 10."""
    found = ASYNC.compared_with_copies([6.0, 1.0, 4.2], [10.0, 2.0, 6.0])
    assert found == pytest.approx({"publish_gb_per_s": 4.2, "memcpy_gb_per_s": 6.0, "publish_over_memcpy": 0.6})


class Commands:
    """Stands for `raycap run`: leaves what its stages would leave."""

    def __init__(self, storage: Path) -> None:
        self.storage, self.asked = storage, list[dict[str, str]]()

    def __call__(self, arguments: list[str]) -> None:
        asked = dict(argument.split("=", 1) for argument in arguments)
        self.asked.append(asked)
        run, seeds = self.storage / asked["name"], json.loads(asked["seeds"])
        for stage in asked["stages"][1:-1].split(","):
            shared = stage in (*LAGS.SHARED, "evaluate")
            for folder in [run / stage] if shared else [run / f"seed-{seed}" / stage for seed in seeds]:
                (folder / "inner").mkdir(parents=True, exist_ok=True)
                (folder / "inner" / "weights").write_text(asked["name"])
                (folder / "finished.json").write_text("{}")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands(tmp_path)
    monkeypatch.setattr(LAGS, "call", made)
    return made


def test_more_seeds_are_trained_and_the_table_is_made_again(commands: Commands) -> None:
    """Three seeds first, then five; then the three again, which are there."""
    for seeds in ([0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2]):
        for lag in (0, 1):
            LAGS.train(commands.storage, lag, 0, seeds, [])
    trained = [asked for asked in commands.asked if "evaluate" not in asked["stages"]]
    tables = [asked for asked in commands.asked if asked["stages"] == "[evaluate]"]
    assert [(asked["name"], asked["seeds"]) for asked in tables] == [
        ("lag-0", "[0, 1, 2]"), ("lag-1", "[0, 1, 2]"), ("lag-0", "[0, 1, 2, 3, 4]"), ("lag-1", "[0, 1, 2, 3, 4]"),
    ]  # fmt: skip
    assert [asked.get("rerun") for asked in (*trained, *tables)] == [None] * 4 + ["stale"] * 4
    assert [asked["stages"] for asked in trained] == ["[prepare,clip,features,mle,scst]", "[scst]"] * 2
    captioner = commands.storage / "lag-1/seed-4/mle/inner/weights"
    assert captioner.read_text() == "lag-0"


def test_other_values_are_not_taken_for_done(commands: Commands) -> None:
    """Whether they change anything that is there, raycap says."""
    LAGS.train(commands.storage, 0, 0, [0], [])
    LAGS.train(commands.storage, 0, 0, [0], ["scst.steps=7"])
    assert [asked.get("scst.steps") for asked in commands.asked] == [None, None, "7", "7"]


def test_a_copy_that_was_cut_is_made_again(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    LAGS.train(commands.storage, 0, 0, [0], [])
    half = commands.storage / "lag-1/seed-0/mle"

    def cut(source: Path, target: Path) -> None:
        target.mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LAGS.shutil, "copytree", cut)
        with pytest.raises(KeyboardInterrupt):
            LAGS.train(commands.storage, 1, 0, [0], [])
    half.mkdir(parents=True)  # as an older benchmark would have left it
    LAGS.train(commands.storage, 1, 0, [0], [])
    assert (half / "inner" / "weights").read_text() == "lag-0"
    assert not list(half.parent.glob(".*"))


def test_figures_of_a_run_on_nodes_are_those_of_its_steps(tmp_path: Path) -> None:
    """Two steps half a second apart, between looks; a line that is still being written counts for nothing."""
    idle = {"idle/learner": 0.2, "idle/actors": 0.6}
    records = [{"step": 0, "select_cider": 0.5}, {"step": 1, "pg_loss": 1.0, "seconds": 2.0, **idle},
               {"step": 2, "pg_loss": 1.0, "seconds": 2.5, **idle, "select_cider": 0.75}]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 3')
    assert NODES.figures(tmp_path) == {
        "steps": 2, "steps_per_s": 2.0, "select_cider": {"before": 0.5, "best": 0.75},
        "idle": {"learner": 0.2, "actors": 0.6},
    }  # fmt: skip
