"""Attention over shared prefixes against one plain attention a row, in which every row holds its prefix itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from raycap.models.shared_attention import (
    Decode,
    Groups,
    Layer,
    Prefill,
    Score,
    Unsupported,
    _attention,
    attend,
    starts_of,
)

HEADS, SHARED, WIDTH, SEEN, PREFIX, LAYERS = 4, 2, 6, 5, 3, 2  # two query heads a key head; values narrower than keys
SCALE = 0.4


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers(images: int, seed: int) -> list[Layer]:
    return [Layer(random(images, SHARED, PREFIX, WIDTH, seed=seed + n), random(images, SHARED, PREFIX, SEEN,
                                                                              seed=seed + n + 50))
            for n in range(LAYERS)]  # fmt: skip


def plain(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Query [H, T, d] of the last T of S tokens, keys [Hkv, S, d], values [Hkv, S, dv] → [T, H, dv]; slow."""
    length, out = query.shape[1], torch.zeros(query.shape[1], HEADS, SEEN)
    for head in range(HEADS):
        of = head // (HEADS // SHARED)
        for token in range(length):
            sees = keys.shape[1] - length + token + 1
            share = torch.softmax(SCALE * keys[of, :sees] @ query[head, token], dim=0)
            out[token, head] = share @ values[of, :sees]
    return out


@pytest.mark.parametrize("image", [[0, 0, 1, 1, 2, 2], [2, 0, 2, 2, 0], [1], [2, 1, 0]])
def test_attention_over_prefix_and_own_tokens(image: list[int]) -> None:
    """Rows in and out of order, images with many rows and with none; three tokens that see themselves and before."""
    rows, [prefix, _] = len(image), layers(3, seed=1)
    query = random(rows, HEADS, 3, WIDTH, seed=2)
    key, value = random(rows, SHARED, 3, WIDTH, seed=3), random(rows, SHARED, 3, SEEN, seed=4)
    groups = Groups.of(torch.tensor(image), 3)
    got = attend(query, prefix, groups, key, value, torch.ones(3, 3, dtype=torch.bool).tril(), SCALE)
    assert got.shape == (rows, 3, HEADS, SEEN)
    for row, of in enumerate(image):
        keys, values = torch.cat([prefix.keys[of], key[row]], 1), torch.cat([prefix.values[of], value[row]], 1)
        torch.testing.assert_close(got[row], plain(query[row], keys, values), rtol=0, atol=1e-5)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_rows_find_their_places_and_come_back(image: list[int]) -> None:
    groups = Groups.of(torch.tensor(image), 5)
    assert groups.size == max(image.count(of) for of in range(5))
    values = torch.arange(2.0 * len(image)).view(-1, 2, 1, 1, 1)  # [N, Hkv, H/Hkv, T, d]
    placed = groups.gather(values)
    assert placed.shape == (5, 2, groups.size, 1, 1, 1)
    for of in range(5):
        mine = [2.0 * row for row, other in enumerate(image) if other == of]
        assert placed[of, 0, : len(mine), 0, 0, 0].tolist() == mine
    assert torch.equal(groups.scatter(placed), values)


def test_rows_that_are_in_place_are_not_moved() -> None:
    assert Groups.of(torch.tensor([0, 0, 1, 1]), 2) == Groups(2, 2)
    assert Groups.of(torch.tensor([0, 1, 0, 1]), 2).slot is not None
    assert starts_of(torch.tensor([3, 0, 2])).tolist() == [0, 3, 3]


class Row:
    """A row of the slow side: its own copy of the prefix and of all that it has said, by layer."""

    def __init__(self, prefix: list[Layer], image: int) -> None:
        self.keys = [layer.keys[image] for layer in prefix]
        self.values = [layer.values[image] for layer in prefix]

    def copy(self) -> Row:
        other = Row.__new__(Row)
        other.keys, other.values = list(self.keys), list(self.values)
        return other


class Both:
    """The same rows on both sides; a step compares what they see in every layer."""

    def __init__(self, walk: Decode, rows: list[Row]) -> None:
        self.walk, self.rows = walk, rows

    @classmethod
    def begin(cls, images: int, seed: int) -> Both:
        prefix = layers(images, seed)
        return cls(Decode(prefix, torch.arange(images)), [Row(prefix, image) for image in range(images)])

    def step(self, seed: int, times: int = 1) -> Both:
        count = len(self.rows)
        for number in range(times):
            places = self.walk.begin()
            assert places.tolist() == [row.keys[0].shape[1] - PREFIX for row in self.rows]
            for layer in range(LAYERS):
                of = seed + 1000 * number + 100 * layer
                query = random(count, HEADS, 1, WIDTH, seed=of)
                key, value = random(count, SHARED, 1, WIDTH, seed=of + 1), random(count, SHARED, 1, SEEN, seed=of + 2)
                got = self.walk.attend(layer, query, key, value, SCALE, 0.0)
                assert got.shape == (count, 1, HEADS, SEEN)
                for n, row in enumerate(self.rows):
                    row.keys[layer] = torch.cat([row.keys[layer], key[n]], dim=1)
                    row.values[layer] = torch.cat([row.values[layer], value[n]], dim=1)
                    torch.testing.assert_close(got[n], plain(query[n], row.keys[layer], row.values[layer]),
                                               rtol=0, atol=1e-5)  # fmt: skip
            self.walk.end()
        return self

    def select(self, *rows: int) -> Both:
        return Both(self.walk.select(torch.tensor(rows)), [self.rows[row].copy() for row in rows])

    def repeat(self, times: int) -> Both:
        return Both(self.walk.repeat(times), [row.copy() for row in self.rows for _ in range(times)])

    def join(self, other: Both) -> Both:
        return Both(self.walk.join(other.walk), self.rows + other.rows)


def test_rows_go_on_as_if_each_held_its_prefix() -> None:
    """Twenty tokens: buffers are full and grow twice, before and behind selections."""
    both = Both.begin(3, seed=0).repeat(3).step(1).step(2, times=8)
    both = both.select(8, 0, 0, 4, 5).step(3, times=4)
    both.repeat(2).step(4, times=7)


def test_rows_of_other_lengths_join_and_are_selected() -> None:
    """What a refill does: new rows without a token join ragged ones, and buffers of several widths meet."""
    both = Both.begin(2, seed=0).repeat(2).step(1, times=9)
    both = both.join(Both.begin(2, seed=7).repeat(3)).step(2, times=2)
    both = both.join(Both.begin(1, seed=9).step(3)).step(4)
    assert sorted(set(both.walk.said.tolist())) == [2, 3, 12]
    both = both.select(10, 3, 3, 6, 0).step(5, times=2)
    both = both.select(0, 3).step(6)  # the longest are gone
    assert both.walk.said.tolist() == [5, 6]
    both.repeat(2).step(7)


def test_rows_that_became_even_again_write_side_by_side() -> None:
    both = Both.begin(1, seed=0).step(1).join(Both.begin(2, seed=3).repeat(2))
    both = both.step(2).select(1, 2, 3, 4)
    assert both.walk._even
    both.step(3, times=9)


def test_states_of_two_batches_that_have_not_begun_join() -> None:
    Both.begin(2, seed=0).join(Both.begin(1, seed=4)).repeat(2).step(1, times=2)


def test_prefixes_that_nobody_needs_are_let_go_and_the_others_found_again() -> None:
    both = Both.begin(8, seed=0).repeat(2).step(1)
    most = both.select(*range(14))  # seven of eight: not worth a copy
    assert most.walk.images == 8
    few = most.step(2).select(13, 4, 5, 1)
    assert few.walk.images == 3
    assert few.walk.prefix[0].keys.shape[0] == 3
    few.step(3).join(Both.begin(1, seed=5)).step(4)


@pytest.mark.parametrize("lengths", [[3, 0, 1, 4, 4, 2], [1], [0, 2]])
def test_captions_that_are_packed_see_their_own_words_alone(lengths: list[int]) -> None:
    image = torch.arange(len(lengths)) // 2
    prefix, total = layers(int(image.max()) + 1, seed=0), sum(lengths)
    walk = Score(prefix, image, torch.tensor(lengths))
    assert walk.places.tolist() == [place for length in lengths for place in range(length)]
    for number, layer in enumerate(prefix):
        query = random(1, HEADS, total, WIDTH, seed=number)
        key, value = random(1, SHARED, total, WIDTH, seed=8), random(1, SHARED, total, SEEN, seed=9)
        got, start = walk.attend(number, query, key, value, SCALE, 0.0), 0
        assert got.shape == (1, total, HEADS, SEEN)
        for row, length in enumerate(lengths):
            part = slice(start, start + length)
            keys = torch.cat([layer.keys[image[row]], key[0][:, part]], dim=1)
            values = torch.cat([layer.values[image[row]], value[0][:, part]], dim=1)
            torch.testing.assert_close(got[0, part], plain(query[0][:, part], keys, values), rtol=0, atol=1e-5)
            start += length


def test_a_prefix_is_read_as_it_always_is_and_kept() -> None:
    walk, [layer, _] = Prefill(), layers(2, seed=0)
    query = random(2, HEADS, PREFIX, WIDTH, seed=1)
    got = walk.attend(0, query, layer.keys, layer.values, SCALE, 0.0)
    for image in range(2):
        torch.testing.assert_close(got[image], plain(query[image], layer.keys[image], layer.values[image]),
                                   rtol=0, atol=1e-5)  # fmt: skip
    assert torch.equal(walk.layers[0].keys, layer.keys)
    with pytest.raises(Unsupported, match="out of order, or twice"):
        walk.attend(0, query, layer.keys, layer.values, SCALE, 0.0)
    walk.done = True
    assert torch.equal(walk.attend(0, query, layer.keys, layer.values, SCALE, 0.0), got)  # for its gradient
    assert len(walk.layers) == 1


@pytest.mark.parametrize(
    ("positions", "asked", "fits"),
    [
        (48, {}, True), (48, {"sliding_window": None, "softcap": None}, True), (48, {"sliding_window": 48}, True),
        (48, {"sliding_window": 47}, False), (None, {"sliding_window": 4096}, False), (48, {"softcap": 30.0}, False),
        (48, {"s_aux": torch.zeros(4)}, False),
    ],
)  # fmt: skip
def test_an_attention_that_is_not_this_one_is_refused(positions: int | None, asked: dict[str, Any], fits: bool) -> None:
    module = nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    module.config = SimpleNamespace(max_position_embeddings=positions)  # type: ignore[assignment]
    [layer, _] = layers(2, seed=0)
    arguments = (module, random(2, HEADS, PREFIX, WIDTH, seed=1), layer.keys, layer.values, None)
    if fits:
        assert _attention(*arguments, walk=Prefill(), **asked)[0].shape == (2, PREFIX, HEADS, SEEN)
    else:
        name = next(iter(asked))
        with pytest.raises(Unsupported, match=f"attention with {name}"):
            _attention(*arguments, walk=Prefill(), **asked)
