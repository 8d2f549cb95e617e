"""The driver's watch on a learner: of one that says nothing for too long nobody else would tell.

While a learner waits for rollouts the Exchange sees a stall and says who waits for whom. This one is for what is left:
a worker group that finds no room in the cluster, a rank that hangs.
"""

from __future__ import annotations

import time
from pathlib import Path

from raycap.errors import WorkFailed

START_S = 120.0
"""What a process may need to start, beyond what the recipe allows for a step."""


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

    def look(self) -> None:
        """To be called now and then.

        Raises:
            WorkFailed: it has been silent for too long.
        """
        size = self.log.stat().st_size if self.log.exists() else 0
        now = time.monotonic()
        if size != self._size:
            self._size, self._since = size, now
        elif now - self._since > self.limit_s:
            what = f"the learner has logged nothing for {now - self._since:.0f} s: it hangs, or finds no room"
            raise WorkFailed(what, key="cluster.stall_timeout_s", value=self.stall_timeout_s,
                             remedy="run the same command again where there is room; raise it where a step or a look "
                             "at `select` takes so long")  # fmt: skip
