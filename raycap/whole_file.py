"""A file that is there whole or not at all, whatever ends the process that writes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A hidden neighbour to write into; it takes the target's place when the block ends without an error.

    Raises:
        OSError: it cannot be written, or cannot take the target's place; the target is as it was.
    """
    unfinished = target.with_name(f".{target.name}.{token_hex(4)}.tmp")  # process ids repeat across machines
    try:
        yield unfinished
        os.replace(unfinished, target)
    finally:
        with suppress(OSError):  # there only where something went wrong
            unfinished.unlink()


def write_whole(target: Path, content: str | bytes) -> None:
    """A file of this content (text as UTF-8); raises what `whole_file` raises."""
    with whole_file(target) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
