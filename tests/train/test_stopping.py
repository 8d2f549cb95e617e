"""A loop that somebody stops writes a checkpoint, and the same command goes on as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycap.errors import Stopped
from raycap.train.group import Alone
from raycap.train.journal import FolderJournal
from raycap.train.stopping import ask_to_stop, forget_stop, stop_if_asked


def test_nobody_asked(tmp_path: Path) -> None:
    journal = FolderJournal(tmp_path)
    assert journal.stop_asked() == ""
    stop_if_asked(Alone(), journal.stop_asked(), 3, lambda: pytest.fail("no checkpoint is due"))


def test_a_checkpoint_comes_first(tmp_path: Path) -> None:
    journal, saved = FolderJournal(tmp_path), []
    ask_to_stop(tmp_path, "SIGTERM")
    with pytest.raises(Stopped, match="stopped after step 3 with a checkpoint: SIGTERM"):
        stop_if_asked(Alone(), journal.stop_asked(), 3, lambda: saved.append(3))
    assert saved == [3]
    forget_stop(tmp_path)
    forget_stop(tmp_path)
    assert journal.stop_asked() == ""


def test_an_empty_file_asks_too(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    assert FolderJournal(tmp_path).stop_asked()


def test_all_ranks_end_together_and_rank_0_alone_is_asked(tmp_path: Path, on_ranks: Any) -> None:
    def ask(why: str) -> list[str]:
        def work(group: Any) -> str:
            try:
                stop_if_asked(group, why if group.rank == 0 else "ignored", 5, lambda: None)
            except Stopped:
                return "stopped"
            return "goes on"

        return on_ranks(3, work)

    assert ask("") == ["goes on"] * 3
    assert ask("SIGTERM") == ["stopped"] * 3
