"""A log that is read on from where the last look ended, whatever a resume does to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raycap.train.tail import Tail


def lines(*steps: int, about: str = "") -> str:
    return "".join(f'{{"step": {step}{about}}}\n' for step in steps)


def steps(tail: Tail) -> tuple[list[int], bool]:
    records, anew = tail.look()
    return [record["step"] for record in records], anew


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def test_only_what_is_new_is_read(log: Path) -> None:
    tail = Tail(log)
    assert steps(tail) == ([], True)
    log.write_text(lines(1, 2) + '{"step": 3')
    assert steps(tail) == ([1, 2], True)
    assert steps(tail) == ([], False)
    with open(log, "a") as file:
        file.write("}\nno record\n" + lines(4))
    assert steps(tail) == ([3, 4], False)


def test_a_log_that_was_cut_is_read_anew(log: Path) -> None:
    tail = Tail(log)
    log.write_text(lines(1, 2, 3, 4))
    tail.look()
    os.truncate(log, len(lines(1, 2)))
    assert steps(tail) == ([1, 2], True)
    with open(log, "a") as file:
        file.write(lines(3))
    assert steps(tail) == ([3], False)


def test_one_that_was_cut_and_has_grown_since_is_read_anew(log: Path) -> None:
    """As long as it was, or longer: its size tells nothing."""
    tail = Tail(log)
    log.write_text(lines(1, 2, 3, 4))
    tail.look()
    log.write_text(lines(1, 2) + lines(3, 4, 5, about=', "resumed": true'))
    assert steps(tail) == ([1, 2, 3, 4, 5], True)


def test_one_that_goes_away_begins_again(log: Path) -> None:
    tail = Tail(log)
    log.write_text(lines(1))
    tail.look()
    log.unlink()
    assert steps(tail) == ([], True)
    assert tail.age_s(0.0) is None
    log.write_text(lines(7))
    assert steps(tail) == ([7], True)


def test_age_is_that_of_the_last_line(log: Path) -> None:
    log.write_text(lines(1))
    os.utime(log, (100.0, 100.0))
    assert Tail(log).age_s(130.0) == 30.0
    assert Tail(log).age_s(90.0) == 0.0  # the storage's clock is ahead
