"""A file is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycap.whole_file import whole_file, write_whole


def test_text_and_bytes_are_written_and_nothing_is_left_beside(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "né\n")
    assert (tmp_path / "a").read_bytes() == b"n\xc3\xa9\n"
    write_whole(tmp_path / "a", b"\x00")
    assert (tmp_path / "a").read_bytes() == b"\x00"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old")

    def half() -> None:
        with whole_file(tmp_path / "a") as unfinished:
            unfinished.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        half()
    assert (tmp_path / "a").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_an_error_of_the_target_is_the_one_that_is_raised(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "folder", "text")
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "a", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]
