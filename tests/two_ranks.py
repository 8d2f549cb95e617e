"""Two processes that learn together through torch.distributed (gloo, on the CPU), for tests of what ranks do."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

RANKS = 2


class TwoRanks:
    """`ranks(work, *arguments)` runs `work(*arguments)`, a function of a module, on both ranks at once; their answers.

    Where one of them fails, or does not answer in time (it waits for the other), both are ended and the test with them.
    The next work finds new ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, 0
        self.processes: list[Any] = []
        self.pipes: list[Connection] = []

    def __call__(self, work: Callable[..., Any], *arguments: Any, limit_s: float = 300.0) -> list[Any]:
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send_bytes(pickle.dumps((work, arguments)))  # by value: torch's own way shares memory
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + limit_s
        while len(answers) < RANKS:
            for rank, pipe in enumerate(self.pipes):
                if rank not in answers and pipe.poll(0.02):
                    try:
                        failed, answers[rank] = pickle.loads(pipe.recv_bytes())
                    except EOFError:
                        self._fail(f"rank {rank} is gone")
                    if failed:
                        self._fail(answers[rank])
            if time.monotonic() > deadline:
                self._fail(f"no answer in {limit_s:g} s, but of ranks {sorted(answers)}: they wait for each other")
        return [answers[rank] for rank in range(RANKS)]

    def _fail(self, why: str) -> NoReturn:
        self.close()
        raise AssertionError(why)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        meeting = self.folder / f"meeting-{self.started}"
        self.started += 1
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, str(meeting), theirs), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.processes, self.pipes = [], []


def _serve(rank: int, meeting: str, pipe: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist

    from raycap.models.shared_attention import register

    register()  # captioners come pickled, and not through their constructor
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    while True:
        try:
            work, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            told = pickle.dumps((False, work(*arguments)))
        except BaseException:  # noqa: BLE001 - told to the test
            told = pickle.dumps((True, f"rank {rank}:\n{traceback.format_exc()}"))
        pipe.send_bytes(told)
