"""Processes of the tests' own Ray, found by their titles."""

from __future__ import annotations

import os
from pathlib import Path


def processes(title: str) -> list[int]:
    """This user's processes of that title below our own Ray."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if line.startswith(title) and os.getpid() in _ancestors(int(entry.name)):
            found.append(int(entry.name))
    return found


def _ancestors(pid: int) -> list[int]:
    chain = []
    while pid > 1:
        try:
            # the command's name, in parentheses, may hold anything: the parent stands second after it
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            break
        chain.append(pid)
    return chain
