"""A log that another process writes, as progress here."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from typing import Any

import pytest

from raycap.cluster import following
from raycap.cluster.following import _new_lines, followed


def test_only_whole_lines_are_read_and_each_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"one\ntwo\nthr")
    lines, place = _new_lines(log, 0)
    assert (lines, place) == ([b"one", b"two"], 8)
    log.write_bytes(b"one\ntwo\nthree\n")
    assert _new_lines(log, place) == ([b"three"], 14)
    log.write_bytes(b"one\nnew\n")
    assert _new_lines(log, 14) == ([b"one", b"new"], 8), "a resume cut it"


def test_a_storage_that_does_not_answer_for_a_moment_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, failures = following._new_lines, [0]

    def hiccups(file: Path, place: int) -> Any:
        if failures[0] < 2:
            failures[0] += 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(file, place)

    monkeypatch.setattr(following, "_new_lines", hiccups)
    (tmp_path / "log.jsonl").write_text(json.dumps({"warning": "planted"}) + "\n")
    with followed(tmp_path, "scst"):
        deadline = time.monotonic() + 60
        while failures[0] < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "warning: planted" in capsys.readouterr().out, "the last look comes after the end"
