"""Ranks set up together: one that cannot takes the others along, instead of leaving them to wait for it."""

from __future__ import annotations

import pytest

from raycap.cluster.train_job import built_together
from raycap.errors import CheckpointError, RaycapError
from raycap.train.optimizing import Alone


class OfTwo(Alone):
    """Rank 0 of two; what the other one says is given."""

    def __init__(self, other: str) -> None:
        self.other, self.said = other, [""]

    def gather_texts(self, text: str) -> list[str]:
        self.said.append(text)
        return [text, self.other]


def test_what_is_built_on_all_ranks_is_given_back() -> None:
    group = OfTwo("")
    assert built_together(group, lambda: 7) == 7
    assert group.said[-1] == ""


def test_the_error_of_another_rank_ends_this_one() -> None:
    with pytest.raises(RaycapError, match="the file is gone"):
        built_together(OfTwo("checkpoint = 'x': the file is gone"), lambda: 7)


def test_its_own_error_is_told_to_the_others() -> None:
    group = OfTwo("")

    def fails() -> None:
        raise CheckpointError("the file is gone", key="checkpoint", value="x")

    with pytest.raises(CheckpointError, match="the file is gone"):
        built_together(group, fails)
    assert "the file is gone" in group.said[-1]
