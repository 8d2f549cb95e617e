"""Walking through folders: in order, into links but not in circles, past what is hidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycap.data.folders import walk
from raycap.data.source import describe_source


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("b/2.jpg", "a/1.jpg", ".hidden/3.jpg", "__MACOSX/4.jpg", "a/.5.jpg", "0.jpg"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_bytes(b"1")
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "disk" / "deep" / "6.jpg").write_bytes(b"1")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "root" / "a" / "back").symlink_to(tmp_path / "root")
    (tmp_path / "disk" / "deep" / "self").symlink_to(tmp_path / "disk" / "deep")
    return tmp_path / "root"


def found(root: Path, **options: Path) -> list[str]:
    return [
        (Path(folder) / name).relative_to(root).as_posix() for folder, names in walk(root, **options) for name in names
    ]


def test_linked_folders_are_folders_and_circles_end(root: Path) -> None:
    assert found(root) == ["0.jpg", "a/1.jpg", "b/2.jpg", "linked/deep/6.jpg"]
    assert found(root, without=root / "b") == ["0.jpg", "a/1.jpg", "linked/deep/6.jpg"]


def test_a_change_behind_a_link_is_a_change(root: Path) -> None:
    before = describe_source(root)
    assert before["pictures"].startswith("4 files")
    (root.parent / "disk" / "deep" / "6.jpg").write_bytes(b"123")
    assert describe_source(root)["pictures"] != before["pictures"]


def test_folders_that_cannot_be_read_are_told_of(tmp_path: Path) -> None:
    told: list[OSError] = []
    assert list(walk(tmp_path / "nowhere", onerror=told.append)) == []
    assert len(told) == 1
