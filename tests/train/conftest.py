"""Journals that break off, ranks as threads, and words for comparing runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raycap.models.checkpoint import load_captioner
from raycap.train.group import Whole
from raycap.train.journal import FolderJournal, read_log
from tests.two_ranks import TwoRanks


class Interrupted(Exception):
    """Stands for the power cut."""


class BreakingJournal(FolderJournal):
    """Breaks off when a step is to be logged, as if the process had been killed there."""

    def __init__(self, folder: Path, breaks_at: int, **options: Any) -> None:
        super().__init__(folder, **options)
        self.breaks_at = breaks_at

    def log(self, record: Mapping[str, Any]) -> None:
        if record.get("step") == self.breaks_at:
            with open(self.folder / "log.jsonl", "a") as file:
                file.write('{"step": 99')  # a line that was cut
            raise Interrupted
        super().log(record)


@pytest.fixture(scope="session")
def interrupted() -> Callable[..., None]:
    """interrupted(train, folder, at=step): run `train(journal)` until the journal breaks off."""

    def run(train: Callable[[FolderJournal], Any], folder: Path, *, at: int) -> None:
        with pytest.raises(Interrupted):
            train(BreakingJournal(folder, at))

    return run


def without_seconds(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_log(folder)]


def trainer_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "trainer.pt", weights_only=True)
    del state["seconds"]
    return state


def assert_same(one: Any, two: Any, where: str = "state") -> None:
    """Equal bit by bit, through dicts and lists."""
    assert type(one) is type(two), where
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for place, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{where}.{place}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    else:
        assert one == two, where


@pytest.fixture(scope="session")
def assert_same_run() -> Callable[[Path, Path], None]:
    """Log (seconds aside), newest checkpoint with its trainer's state, and best captioner are equal bit by bit."""

    def check(one: Path, two: Path) -> None:
        assert without_seconds(one) == without_seconds(two)
        newest = [FolderJournal(folder).checkpoints[-1] for folder in (one, two)]
        assert newest[0].name == newest[1].name
        assert_same(trainer_state(newest[0]), trainer_state(newest[1]))
        for a, b in (newest, [one / "best", two / "best"]):
            assert_same(dict(load_captioner(a).state_dict()), dict(load_captioner(b).state_dict()), b.name)

    return check


class ThreadGroup(Whole):
    """Ranks as threads of this process, adding up in the order of the ranks."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: list[Any]) -> None:
        self.rank, self.size, self._barrier, self._board = rank, size, barrier, board

    def _all(self, mine: Any) -> list[Any]:
        self._board[self.rank] = mine
        self._barrier.wait()
        everyone = list(self._board)
        self._barrier.wait()
        return everyone

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        trainable = [p for p in parameters if p.requires_grad]
        mine = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trainable]
        for parts, parameter in zip(zip(*self._all(mine), strict=True), trainable, strict=True):
            parameter.grad = torch.stack(parts).sum(dim=0)

    def sum_values(self, values: list[float]) -> list[float]:
        return [sum(parts) for parts in zip(*self._all(values), strict=True)]

    def gather_texts(self, text: str) -> list[str]:
        return self._all(text)


@pytest.fixture(scope="session")
def on_ranks() -> Callable[..., list[Any]]:
    """on_ranks(size, work): `work(group)` on every rank at once; what each of them returned."""

    def run(size: int, work: Callable[[ThreadGroup], Any]) -> list[Any]:
        barrier, board = threading.Barrier(size, timeout=600), [None] * size
        answers: list[Any] = [None] * size

        def rank(number: int) -> None:
            try:
                answers[number] = work(ThreadGroup(number, size, barrier, board))
            except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
                answers[number] = error
                barrier.abort()

        threads = [threading.Thread(target=rank, args=(number,), daemon=True) for number in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    return run


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoRanks]:
    """Two processes for all tests that need ranks of torch.distributed; started by the first."""
    ranks = TwoRanks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.close()
