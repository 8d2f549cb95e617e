"""What survives: newest checkpoints, the best captioner, a log that fits the checkpoint a run goes on from."""

from __future__ import annotations

import errno
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from raycap.errors import CheckpointError, WorkFailed
from raycap.models.checkpoint import CONFIG, WEIGHTS, load_captioner, read_about
from raycap.models.prefix import PrefixCaptioner
from raycap.models.tokenizer import FILE, WordTokenizer
from raycap.train import journal as journal_module
from raycap.train.journal import SIZES, TRAINER, FolderJournal, read_log

MakeCaptioner = Callable[..., PrefixCaptioner]


@pytest.fixture(scope="module")
def captioners(make_captioner: MakeCaptioner) -> list[PrefixCaptioner]:
    return [make_captioner(tokenizer=WordTokenizer(["a", "dog"]), seed=seed) for seed in range(6)]


def same(one: PrefixCaptioner, two: PrefixCaptioner) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def filled(folder: Path, captioners: list[PrefixCaptioner], steps: int, **options: Any) -> FolderJournal:
    """Steps 1 to `steps`, each with a log line and a checkpoint of its own captioner."""
    journal = FolderJournal(folder, **options)
    for step in range(1, steps + 1):
        journal.log({"step": step, "loss": 1 / step})
        journal.save(step, captioners[step], {"optimizer": torch.full((3,), float(step)), "seconds": 0.5 * step})
    return journal


def test_the_newest_checkpoints_and_the_best_captioner_are_kept(
    tmp_path: Path, captioners: list[PrefixCaptioner]
) -> None:
    journal = FolderJournal(tmp_path, keep=2, about={"stage": "scst"})
    for step in range(1, 5):
        if step <= 2:
            journal.save_best(captioners[step], {"step": step, "select_cider": 0.1 * step})
        journal.save(step, captioners[step], {})
    assert [folder.name for folder in journal.checkpoints] == ["step-000003", "step-000004"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000003", "step-000004"]
    assert same(load_captioner(tmp_path / "best"), captioners[2])
    assert read_about(tmp_path / "best") == {"stage": "scst", "step": 2, "select_cider": 0.2}
    assert read_about(journal.checkpoints[-1]) == {"stage": "scst", "step": 4}
    assert not (tmp_path / "best" / TRAINER).exists()


def test_steps_are_ordered_as_numbers(tmp_path: Path, captioners: list[PrefixCaptioner]) -> None:
    journal = FolderJournal(tmp_path, keep=2)
    for step in (999_998, 999_999, 1_000_000):
        journal.save(step, captioners[0], {})
    assert [folder.name for folder in journal.checkpoints] == ["step-999999", "step-1000000"]
    found = journal.restore()
    assert found is not None
    assert found[1]["step"] == 1_000_000


def test_the_newest_checkpoint_is_gone_on_from_and_the_log_is_cut_behind_it(
    tmp_path: Path, captioners: list[PrefixCaptioner]
) -> None:
    journal = filled(tmp_path, captioners, 3)
    journal.log({"event": "note"})
    journal.log({"step": 4, "loss": 0.25})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    found = FolderJournal(tmp_path).restore()
    assert found is not None
    folder, state = found
    assert folder.name == "step-000003"
    assert (state["step"], state["seconds"]) == (3, 1.5)
    assert state["optimizer"].tolist() == [3, 3, 3]
    assert same(load_captioner(folder), captioners[3])
    assert read_log(tmp_path) == [*({"step": n, "loss": 1 / n} for n in (1, 2, 3)), {"event": "note"}]
    journal.log({"step": 4, "loss": 0.5})
    assert read_log(tmp_path)[-1] == {"step": 4, "loss": 0.5}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "trainer cut": lambda folder: cut(folder / TRAINER),
    "trainer gone": lambda folder: (folder / TRAINER).unlink(),
    "trainer empty": lambda folder: (folder / TRAINER).write_bytes(b""),
    "weights cut": lambda folder: cut(folder / WEIGHTS),
    "weights gone": lambda folder: (folder / WEIGHTS).unlink(),
    "config cut": lambda folder: cut(folder / CONFIG),
    "config gone": lambda folder: (folder / CONFIG).unlink(),
    "tokenizer cut": lambda folder: cut(folder / FILE),
    "tokenizer gone": lambda folder: (folder / FILE).unlink(),
    "sizes cut": lambda folder: cut(folder / SIZES),
    "weights too long": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"\0"),
    "all gone": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, captioners: list[PrefixCaptioner], damage: str
) -> None:
    journal = filled(tmp_path, captioners, 3)
    DAMAGES[damage](journal.checkpoints[-1])
    found = journal.restore()
    assert found is not None
    folder, state = found
    assert (folder.name, state["step"]) == ("step-000002", 2)
    assert same(load_captioner(folder), captioners[2])
    assert (tmp_path / "checkpoints" / "broken-step-000003").is_dir()
    steps = [record["step"] for record in read_log(tmp_path) if "step" in record]
    assert steps == [1, 2]
    (event,) = (record for record in read_log(tmp_path) if "event" in record)
    assert (event["event"], event["folder"]) == ("checkpoint_broken", "step-000003")
    assert event["error"]


@pytest.mark.parametrize("name", [TRAINER, WEIGHTS, CONFIG, FILE])
def test_the_file_that_was_cut_is_named(
    tmp_path: Path, captioners: list[PrefixCaptioner], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = filled(tmp_path, captioners, 2)
    whole = (journal.checkpoints[-1] / name).stat().st_size
    cut(journal.checkpoints[-1] / name)
    journal.restore()
    said = capsys.readouterr().out
    assert f"checkpoint step-000002 is broken and put aside (CheckpointError: checkpoint = '{tmp_path}" in said
    assert f"{name} has {whole - 20} of {whole} bytes" in said
    assert "it goes on from step-000001" in said


def test_a_checkpoint_that_does_not_say_how_long_its_files_are_is_read(
    tmp_path: Path, captioners: list[PrefixCaptioner]
) -> None:
    """Of a raycap before this one; what cannot be read is found all the same."""
    journal = filled(tmp_path, captioners, 3)
    for folder in journal.checkpoints:
        (folder / SIZES).unlink()
    found = journal.restore()
    assert found is not None
    assert found[0].name == "step-000003"
    cut(found[0] / WEIGHTS)
    found = journal.restore()
    assert found is not None
    assert found[0].name == "step-000002"


@contextmanager
def full_disk(bytes_a_file: int) -> Iterator[None]:
    """Inside, no file grows beyond so many bytes: each library fails in its own words, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("fails", [CONFIG, WEIGHTS, TRAINER])
def test_a_full_disk_costs_no_checkpoint_and_is_named(
    tmp_path: Path, captioners: list[PrefixCaptioner], fails: str
) -> None:
    journal = filled(tmp_path, captioners, 2)
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    weights = (journal.checkpoints[-1] / WEIGHTS).stat().st_size
    state = {"optimizer": torch.zeros(4 * weights)}
    about = {"note": "x" * 4 * weights} if fails == CONFIG else {}
    journal.about = about
    room = {CONFIG: weights, WEIGHTS: weights - 1, TRAINER: weights}[fails]
    with full_disk(room), pytest.raises(WorkFailed) as failed:
        journal.save(3, captioners[3], state)
    assert (failed.value.key, failed.value.value, failed.value.exit_code) == ("storage", str(tmp_path), 1)
    assert "the checkpoint of step 3 could not be written" in str(failed.value)
    assert "GB are free" in str(failed.value)
    assert "make room there" in str(failed.value)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before
    found = FolderJournal(tmp_path).restore()
    assert found is not None
    assert same(load_captioner(found[0]), captioners[2])
    journal.about = {}
    journal.save(3, captioners[3], state)
    assert FolderJournal(tmp_path).checkpoints[-1].name == "step-000003"


def test_a_full_disk_costs_neither_the_best_captioner_nor_the_log(
    tmp_path: Path, captioners: list[PrefixCaptioner]
) -> None:
    journal = filled(tmp_path, captioners, 1)
    journal.save_best(captioners[1], {})
    journal.save(2, captioners[1], {})
    size = (tmp_path / "log.jsonl").stat().st_size
    with full_disk(size + 5):
        with pytest.raises(WorkFailed, match="the best captioner could not be written"):
            journal.save_best(captioners[2], {})
        with pytest.raises(WorkFailed, match=r"storage = .*: the log could not be written.*make room"):
            journal.log({"step": 2, "loss": 0.5})
    assert same(load_captioner(tmp_path / "best"), captioners[1])
    assert read_log(tmp_path) == [{"step": 1, "loss": 1.0}]
    with full_disk(0):  # what was half written is cut off, for which there is room
        assert journal.restore() is not None
    assert (tmp_path / "log.jsonl").stat().st_size == size


def test_an_error_of_ours_is_no_full_disk(
    tmp_path: Path, captioners: list[PrefixCaptioner], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(journal_module.torch, "save", fail)
    with pytest.raises(RuntimeError, match="CUDA error"):
        FolderJournal(tmp_path).save(1, captioners[1], {})


def test_what_a_killed_process_left_half_written_is_no_checkpoint_and_goes(
    tmp_path: Path, captioners: list[PrefixCaptioner]
) -> None:
    journal = filled(tmp_path, captioners, 2)
    for name in (".step-000003.4711.tmp", ".step-000007.4712.tmp"):
        shutil.copytree(journal.checkpoints[-1], tmp_path / "checkpoints" / name)
    assert [folder.name for folder in journal.checkpoints] == ["step-000001", "step-000002"]
    found = journal.restore()
    assert found is not None
    assert found[0].name == "step-000002"
    journal.save(3, captioners[3], {})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000002", "step-000003"]


def test_a_cut_log_line_and_a_broken_checkpoint_at_once(tmp_path: Path, captioners: list[PrefixCaptioner]) -> None:
    """A power cut does both: the note about the checkpoint must not be appended to the half line."""
    journal = filled(tmp_path, captioners, 3)
    cut(journal.checkpoints[-1] / TRAINER)
    cut(tmp_path / "log.jsonl")
    assert journal.restore() is not None
    assert [record.get("folder", record.get("step")) for record in read_log(tmp_path)] == [1, 2, "step-000003"]


def test_the_same_step_may_break_twice(tmp_path: Path, captioners: list[PrefixCaptioner]) -> None:
    journal = filled(tmp_path, captioners, 3)
    for _ in range(2):
        cut(journal.checkpoints[-1] / WEIGHTS)
        found = journal.restore()
        assert found is not None
        assert found[1]["step"] == 2
        journal.save(3, captioners[3], {})


def test_when_every_checkpoint_is_broken_the_run_starts_again(
    tmp_path: Path, captioners: list[PrefixCaptioner]
) -> None:
    journal = filled(tmp_path, captioners, 2)
    for folder in journal.checkpoints:
        cut(folder / TRAINER)
    assert journal.restore() is None
    assert [record["folder"] for record in read_log(tmp_path)] == ["step-000002", "step-000001"]


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    journal = FolderJournal(tmp_path / "new" / "stage")
    assert journal.restore() is None
    with pytest.raises(CheckpointError, match="holds no log"):
        read_log(tmp_path / "new" / "stage")
    journal.log({"step": 1})  # a run that ended before its first checkpoint
    assert journal.restore() is None
    assert read_log(journal.folder) == []


def test_an_interrupted_save_leaves_the_checkpoints_as_they_were(
    tmp_path: Path, captioners: list[PrefixCaptioner], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = filled(tmp_path, captioners, 3)
    before = {folder.name: sorted(p.name for p in folder.iterdir()) for folder in journal.checkpoints}

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(journal_module.torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        journal.save(4, captioners[4], {})
    assert {f.name: sorted(p.name for p in f.iterdir()) for f in (tmp_path / "checkpoints").iterdir()} == before
    found = journal.restore()
    assert found is not None
    assert found[1]["step"] == 3


def test_a_best_captioner_that_was_being_replaced_comes_back(tmp_path: Path, captioners: list[PrefixCaptioner]) -> None:
    """Killed between the two renames of the replacement: the old one lies under its hidden name."""
    journal = filled(tmp_path, captioners, 1)
    journal.save_best(captioners[1], {"step": 1})
    journal.restore()
    (tmp_path / "best").rename(tmp_path / ".best.4711.old")
    shutil.copytree(journal.checkpoints[0], tmp_path / ".best.4711.tmp")
    journal.restore()
    assert same(load_captioner(tmp_path / "best"), captioners[1])


def test_the_best_captioner_comes_with_the_checkpoint_that_remembers_it(
    tmp_path: Path, captioners: list[PrefixCaptioner]
) -> None:
    """A crash between the two leaves neither: the look that follows may, at a lag, find another value."""
    journal = filled(tmp_path, captioners, 1)
    journal.save_best(captioners[1], {"step": 2})
    journal.save(2, captioners[2], {})
    journal.save_best(captioners[3], {"step": 3})
    assert same(load_captioner(tmp_path / "best"), captioners[1])
    found = FolderJournal(tmp_path).restore()
    assert found is not None
    assert found[1]["step"] == 2
    assert same(load_captioner(tmp_path / "best"), captioners[1])
    journal.save(3, captioners[3], {})
    assert same(load_captioner(tmp_path / "best"), captioners[1]), "what the crash had found is forgotten"


def test_a_crash_between_the_checkpoint_and_its_best_captioner(
    tmp_path: Path, captioners: list[PrefixCaptioner], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = filled(tmp_path, captioners, 1)
    journal.save_best(captioners[2], {"step": 2})
    with monkeypatch.context() as patch:
        patch.setattr(FolderJournal, "_found_best", lambda self: None)
        journal.save(2, captioners[2], {})
    assert not (tmp_path / "best").exists()
    found = FolderJournal(tmp_path).restore()
    assert found is not None
    assert found[1]["step"] == 2
    assert same(load_captioner(tmp_path / "best"), captioners[2])


def test_a_checkpoint_is_written_once(tmp_path: Path, captioners: list[PrefixCaptioner]) -> None:
    """A stop after a step that had its checkpoint costs no second one: there may be three seconds left."""
    journal = filled(tmp_path, captioners, 2)
    before = (journal.checkpoints[-1] / TRAINER).stat().st_mtime_ns
    journal.save(2, captioners[2], {})
    assert (journal.checkpoints[-1] / TRAINER).stat().st_mtime_ns == before


def test_a_checkpoint_that_was_being_replaced_comes_back(tmp_path: Path, captioners: list[PrefixCaptioner]) -> None:
    journal = filled(tmp_path, captioners, 2)
    journal.checkpoints[-1].rename(tmp_path / "checkpoints" / ".step-000002.4711.old")
    found = FolderJournal(tmp_path).restore()
    assert found is not None
    assert found[0].name == "step-000002"


def test_another_rank_s_checkpoint_is_waited_for(
    tmp_path: Path, captioners: list[PrefixCaptioner], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = filled(tmp_path, captioners, 1)
    hidden, shown = tmp_path / "hidden", journal.checkpoints[0]
    shown.rename(hidden)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            hidden.rename(shown)

    monkeypatch.setattr(journal_module.time, "sleep", wait)
    folder, state = journal.checkpoint("step-000001")
    assert (folder, state["step"], len(waits)) == (shown, 1, 3)
    monkeypatch.setattr(journal_module, "SHOWS_WITHIN_S", -1.0)
    with pytest.raises(OSError, match="does not show this rank the checkpoint"):
        journal.checkpoint("step-000009")
    assert [folder.name for folder in journal.checkpoints] == ["step-000001"], "nothing is put aside"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC])
def test_a_full_disk_ends_a_run_and_a_hiccup_may_be_tried_again(
    tmp_path: Path, captioners: list[PrefixCaptioner], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, "planted")

    monkeypatch.setattr(journal_module.torch, "save", fail)
    expected = WorkFailed if number == errno.ENOSPC else OSError
    with pytest.raises(expected, match="planted"):
        FolderJournal(tmp_path).save(1, captioners[1], {})


def test_every_record_is_a_line_at_once_and_is_watched(tmp_path: Path) -> None:
    seen: list[Any] = []
    journal = FolderJournal(tmp_path, watch=seen.append)
    records = [{"step": 1, "loss": 0.1}, {"event": "x", "text": "a\nb\u2028c"}]
    for count, record in enumerate(records, start=1):
        journal.log(record)
        assert (tmp_path / "log.jsonl").read_text().count("\n") == count
    assert seen == read_log(tmp_path) == records


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert read_log(tmp_path) == [{"step": 1}]


def test_a_storage_that_does_not_answer_costs_no_checkpoint(
    tmp_path: Path, captioners: list[PrefixCaptioner], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FolderJournal(tmp_path)
    journal.save(1, captioners[0], {})

    def stale(*args: object, **options: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("torch.load", stale)
        with pytest.raises(OSError, match="Stale"):  # worth another start
            journal.restore()
    assert [folder.name for folder in journal.checkpoints] == ["step-000001"]
    assert journal.restore() is not None
