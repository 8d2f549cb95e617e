"""The driver's watch on a learner: of one that says nothing for too long nobody else would tell.

While a learner waits for rollouts the Exchange sees a stall and says who waits for whom. This one is for what is left:
a worker group that cannot start, a rank that hangs.
"""

from __future__ import annotations

import time
from pathlib import Path

from raycap.errors import WorkFailed

START_S = 120.0
"""What a process may need to start, beyond what the recipe allows for a step."""
LOOK_S = 5.0
"""Between two looks at the log, which may lie on a network's storage."""


class Silence:
    """How long a stage's log has not grown.

    Args:
        log: of the stage; a line a step.
        stall_timeout_s: of the recipe. Twice as long is allowed, and some time to start: whoever knows better who
            waits for whom speaks first.
    """

    def __init__(self, log: Path, stall_timeout_s: float, start_s: float = START_S) -> None:
        self.log, self.stall_timeout_s = log, stall_timeout_s
        self.limit_s = 2 * stall_timeout_s + start_s
        self._size, self._since = -1, time.monotonic()
        self._looked = self._since - LOOK_S

    def silent_s(self) -> float:
        """Since it last grew."""
        return time.monotonic() - self._since

    def look(self) -> None:
        """To be called now and then. A storage that does not answer says nothing of the learner.

        Raises:
            WorkFailed: it has been silent for too long.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        size = self._found()
        if size != self._size:
            self._size, self._since = size, now
        elif now - self._since > self.limit_s:
            what = f"the learner has logged nothing for {now - self._since:.0f} s: it hangs, or cannot start"
            raise WorkFailed(what, key="cluster.stall_timeout_s", value=self.stall_timeout_s,
                             remedy="run the same command again where there is room; raise it where a step or a look "
                             "at `select` takes so long")  # fmt: skip

    def _found(self) -> int:
        try:
            return self.log.stat().st_size
        except FileNotFoundError:
            return 0
        except OSError:
            return self._size
