"""What may pass by itself: a storage that does not answer for a moment, memory that is not free yet. Tried again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from raycap.cluster.reaching import in_a_line

Built = TypeVar("Built")
PAUSES_S = (1.0, 3.0, 10.0, 30.0)
"""Before the second time and those after it."""


def storage_fails(error: BaseException) -> bool:
    """Whether a storage that does not answer lies behind an error. A file that is not there is another matter, and so
    is what libraries say of names that nobody knows, with an OSError that has no number."""
    return any(
        isinstance(cause, OSError)
        and cause.errno is not None
        and not isinstance(cause, FileNotFoundError | NotADirectoryError)
        for cause in _causes(error)
    )


def may_pass(error: BaseException) -> bool:
    """Whether it may be better in a moment: the storage fails, or a process that has just died holds memory still."""
    torch = sys.modules.get("torch")  # who has not imported it has not met its errors
    memory = (MemoryError, torch.OutOfMemoryError) if torch is not None else (MemoryError,)
    return storage_fails(error) or any(isinstance(cause, memory) for cause in _causes(error))


def tried_again(who: str, build: Callable[[], Built]) -> Built:
    """What `build` makes, tried again where what it raises may pass.

    Args:
        who: is built, for the log.

    Raises:
        what it raised the last time.
    """
    for pause in PAUSES_S:
        try:
            return build()
        except Exception as error:  # of a component of anybody's; what may not pass is raised as it is
            if not may_pass(error):
                raise
            print(f"{who} could not start, and tries again in {pause:g} s: {in_a_line(error)}", flush=True)
        time.sleep(pause)
    return build()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """It, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__
