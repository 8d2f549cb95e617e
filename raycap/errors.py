"""Everything raycap raises on purpose: what is wrong, the key and the value, and what to do about it.

Two kinds matter to callers, because commands exit with them: `Refused` (the input or the configuration is at fault,
exit 2) and `WorkFailed` (the work itself failed, exit 1). Ray lives elsewhere; errors cross process boundaries, so each
one can be pickled.
"""

from __future__ import annotations

from typing import Any

_UNSET = "<unset>"


class RaycapError(Exception):
    """An error with a remedy.

    Args:
        what: the fault in one sentence.
        key: the name the user knows it by (recipe key, option, file), if there is one.
        value: the value that was found under that key.
        remedy: what the user can do.
    """

    exit_code = 1

    def __init__(self, what: str, *, key: str | None = None, value: Any = _UNSET, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what, self.key, self.remedy = what, key, remedy
        self.value = None if isinstance(value, str) and value == _UNSET else value
        self._has_value = not (isinstance(value, str) and value == _UNSET)

    def __str__(self) -> str:
        head = ""
        if self.key is not None:
            head = f"{self.key} = {self.value!r}: " if self._has_value else f"{self.key}: "
        tail = f" ({self.remedy})" if self.remedy else ""
        return f"{head}{self.what}{tail}"

    def __reduce__(self) -> tuple[Any, ...]:
        value = self.value if self._has_value else _UNSET
        return _rebuild, (type(self), self.what, self.key, value, self.remedy)


def _rebuild(kind: type[RaycapError], what: str, key: str | None, value: Any, remedy: str | None) -> RaycapError:
    return kind(what, key=key, value=value, remedy=remedy)


class Refused(RaycapError):
    """The input or the configuration cannot be used; finished work is kept. Exit code 2."""

    exit_code = 2


class RecipeError(Refused):
    """A recipe value is unknown, out of range or contradicts another one."""


class DataError(Refused):
    """An image, a caption or a split list cannot be used and the recipe does not allow skipping it."""


class StaleStage(Refused):
    """A finished stage was made with another recipe or other inputs than those asked for now."""


class CheckpointError(Refused):
    """A checkpoint is missing, incomplete or of another shape than the model."""


class WorkFailed(RaycapError):
    """The work was started and failed. Exit code 1."""


class RewardError(WorkFailed):
    """A reward component raised, or returned NaN, infinity or the wrong number of values."""


class RewardStuck(WorkFailed):
    """A reward component takes longer for a batch than it may."""


class Collapsed(WorkFailed):
    """The collapse guard stopped a run whose metric fell below half of its start."""


class Stopped(WorkFailed):
    """Training ended before its time because somebody asked; a checkpoint was written."""
