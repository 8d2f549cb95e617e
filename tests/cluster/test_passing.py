"""What is tried again when something is built, and what is not."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raycap.cluster import passing
from raycap.cluster.exchange_actor import ExchangeActor
from raycap.cluster.passing import may_pass, storage_fails, tried_again
from raycap.errors import CheckpointError, RewardError

STALE = OSError(errno.ESTALE, "Stale file handle")


def because_of(cause: BaseException) -> RewardError:
    """As components and loaders say it, in their own words."""
    inner, outer = CheckpointError("cannot be read"), RewardError("raised CheckpointError when it was built")
    inner.__cause__, outer.__cause__ = cause, inner
    return outer


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(passing.time, "sleep", pauses.append)
    return pauses


def failing(*errors: Exception) -> Callable[[], str]:
    """Raises one after the other, then is built."""
    left = list(errors)

    def build() -> str:
        if left:
            raise left.pop(0)
        return "built"

    return build


@pytest.mark.parametrize("wrap", [lambda error: error, because_of], ids=["itself", "behind ours"])
def test_what_may_pass(wrap: Callable[[Exception], Exception]) -> None:
    assert storage_fails(wrap(STALE))
    assert may_pass(wrap(STALE))
    for full in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        assert may_pass(wrap(full))
        assert not storage_fails(wrap(full))
    nowhere = FileNotFoundError(errno.ENOENT, "No such file"), NotADirectoryError(errno.ENOTDIR, "Not a directory")
    unknown = OSError("gpt17 is not a valid model identifier")
    for lasting in (*nowhere, unknown, ValueError(), RuntimeError("mat1 and mat2")):
        assert not may_pass(wrap(lasting))


def test_it_is_built_as_soon_as_it_passes(slept: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory")
    assert tried_again("rewards.clip", failing(because_of(STALE), full)) == "built"
    assert slept == list(passing.PAUSES_S[:2])
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "rewards.clip could not start, and tries again in 3 s: OutOfMemoryError: CUDA out of memory"


def test_what_does_not_pass_is_raised_in_the_end(slept: list[float]) -> None:
    with pytest.raises(OSError, match="Stale"):
        tried_again("it", failing(*[STALE] * 10))
    assert slept == list(passing.PAUSES_S)


def test_what_will_not_pass_is_raised_at_once(slept: list[float]) -> None:
    with pytest.raises(RewardError):
        tried_again("it", failing(because_of(ValueError("shape"))))
    assert slept == []


def test_an_exchange_waits_for_its_prompts(tmp_path: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """What its constructor raised would be the end of it: Ray starts again who dies, and not who cannot start."""
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(["a", "b"]))
    read, left = Path.read_text, [STALE, STALE]

    def hiccups(self: Path, *given: Any) -> str:
        if left:
            raise left.pop()
        return read(self, *given)

    monkeypatch.setattr(Path, "read_text", hiccups)
    made = ExchangeActor(str(file), batch_size=2, lease_size=2, seed=0, total_steps=1, max_policy_lag=0,
                         lease_timeout_s=60.0, quarantine_after=3)  # fmt: skip
    assert made.schedule.image_ids == ("a", "b")
    assert len(slept) == 2
