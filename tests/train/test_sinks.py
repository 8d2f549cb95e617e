"""Where else the log goes: TensorBoard's files, libraries that are not there, and one that fails."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raycap.errors import RecipeError
from raycap.recipe import LoggingRecipe
from raycap.train.sinks import all_of, numbers_of, sinks_of


def test_numbers_are_what_can_be_drawn() -> None:
    record = {"step": 3, "total_steps": 9, "pg_loss": 0.5, "best": True, "rollouts": "ab12", "queue/ready": 2}
    assert numbers_of(record) == {"pg_loss": 0.5, "queue/ready": 2.0}


def test_tensorboard_holds_every_figure_of_every_step(tmp_path: Path) -> None:
    (sink,) = sinks_of(LoggingRecipe(), tmp_path, "run/scst")
    for step in (1, 2):
        sink({"step": step, "pg_loss": 0.5 * step, "reward/cider/sampled": 1.0})
    sink({"event": "checkpoint_broken"})
    steps = {("pg_loss", 1): 0.5, ("pg_loss", 2): 1.0}
    assert scalars(tmp_path / "tensorboard") == steps | {("reward/cider/sampled", step): 1.0 for step in (1, 2)}


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


def test_a_sink_that_fails_is_spoken_of_once_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []

    def broken(record: Mapping[str, Any]) -> None:
        raise ConnectionError("the server is away")

    watch = all_of([broken, seen.append])
    watch({"step": 1})
    watch({"step": 2})
    assert [record["step"] for record in seen] == [1, 2]
    assert capsys.readouterr().out.count("ConnectionError: the server is away") == 1
