"""Where else the log goes: TensorBoard's files, libraries that are not there, and one that fails."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raycap.errors import RecipeError
from raycap.recipe import LoggingRecipe
from raycap.train import sinks
from raycap.train.sinks import Sink, Sinks, TensorBoard, sinks_of


def test_tensorboard_holds_every_figure_of_every_step(tmp_path: Path) -> None:
    watch = Sinks(sinks_of(LoggingRecipe(), tmp_path, "run/seed-0/scst"))
    for step in (1, 2):
        watch({"step": step, "pg_loss": 0.5 * step, "reward/cider/sampled": 1.0})
    watch({"event": "checkpoint_broken"})
    watch.close("finished")
    steps = {("pg_loss", 1): 0.5, ("pg_loss", 2): 1.0}
    assert scalars(tmp_path / "tensorboard") == steps | {("reward/cider/sampled", step): 1.0 for step in (1, 2)}


def test_events_that_were_cut_by_a_full_disk_are_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = TensorBoard(tmp_path)
    board.log({"step": 1, "pg_loss": 0.5})
    first = list(tmp_path.iterdir())

    def full(*event: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board._writer, "write_event", full)
    with pytest.raises(OSError, match="No space"):
        board.log({"step": 2, "pg_loss": 0.25})
    first[0].rename(tmp_path / "first")  # files are named by the second
    board.log({"step": 3, "pg_loss": 0.1})
    assert {step for _, step in scalars(tmp_path)} == {1, 3}
    assert len(list(tmp_path.iterdir())) == 2


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """Read back by tensorboardX's own message. A record: its length (8 bytes), a checksum (4), the event, another."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for file in folder.iterdir():
        data, place = file.read_bytes(), 0
        while place < len(data):
            size = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + size])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            place += 16 + size
    return found


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_library_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecipeError, match=rf"logging\.{name} = 'here': the package {name} is not installed"):
        sinks_of(LoggingRecipe(tensorboard=False, **{name: "here"}), tmp_path, "run/scst")


class Flaky:
    """A place that is away at the times that are given (by its own count)."""

    def __init__(self, *away: int) -> None:
        self.away, self.count = away, 0
        self.steps: list[int] = []
        self.ended: list[str] = []

    def log(self, record: Mapping[str, Any]) -> None:
        self.count += 1
        if self.count in self.away:
            raise ConnectionError("it is away")
        self.steps.append(record["step"])

    def close(self, status: str) -> None:
        if not self.steps:
            raise ConnectionError("it is away")
        self.ended.append(status)

    def sink(self, name: str) -> Sink:
        return Sink(name, f"look at {name}", self.log, self.close)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds; what is in it is now."""
    now = [1000.0]
    monkeypatch.setattr(sinks.time, "monotonic", lambda: now[0])
    return now


def test_one_that_fails_is_spoken_of_once_and_tried_again(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    flaky, sound = Flaky(2, 3), Flaky()
    watch = Sinks([flaky.sink("Far"), sound.sink("Near")])
    for step in range(1, 9):
        watch({"step": step})
        clock[0] += 25.0  # it is left alone for a minute: not asked for steps 3, 4 and 6, 7
    assert (flaky.steps, flaky.count) == ([1, 8], 4)
    assert sound.steps == list(range(1, 9))
    said = capsys.readouterr().out
    assert said == (
        "warning: the log does not go to Far (ConnectionError: it is away); look at Far. Training goes on, log.jsonl "
        "has all of it, and it is tried again\n"
    )


def test_all_are_told_how_a_stage_ended(capsys: pytest.CaptureFixture[str]) -> None:
    away, sound = Flaky(1), Flaky()
    watch = Sinks([away.sink("Far"), sound.sink("Near")])
    watch({"step": 1})
    watch.close("stopped")
    assert sound.ended == ["stopped"]
    assert capsys.readouterr().out.count("warning") == 1


def test_a_server_that_cannot_be_reached_ends_nothing_and_its_warning_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the start, too."""
    package: Any = type(sys)("wandb")

    def init(**options: Any) -> None:
        raise TimeoutError("no answer in 90 s")

    package.init = init
    monkeypatch.setitem(sys.modules, "wandb", package)
    watch = Sinks(sinks_of(LoggingRecipe(tensorboard=False, wandb="captions"), tmp_path, "run/seed-0/scst"))
    for step in range(3):
        watch({"step": step})
    watch.close("finished")
    said = capsys.readouterr().out
    assert said.count("warning") == 1
    assert "Weights & Biases (TimeoutError: no answer in 90 s); look whether logging.wandb = 'captions'" in said
