"""Attention in which the captions of an image share its prefix: keys and values of the prefix are there once.

A causal LM of Hugging Face asks a function for its attention; the one that is registered here is theirs until a caller
hands a `Walk` through the LM's keyword arguments. A walk is what the forward is for: `Prefill` gathers the prefixes'
keys and values, `Decode` feeds one token a row, `Score` whole captions at once.

Softmax runs over prefix and caption together, so the numbers are those of a plain forward, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

NAME = "raycap_shared_prefix"
_STEP = 8  # tokens that a caption's buffer first has room for, and that a selection rounds up to; a full one doubles


class Unsupported(Exception):
    """The LM's attention does something that is not done here."""


@dataclass
class Layer:
    """Keys [B, Hkv, P, d] and values [B, Hkv, P, dv] of one layer."""

    keys: Tensor
    values: Tensor

    def select(self, rows: Tensor) -> Layer:
        return Layer(self.keys.index_select(0, rows), self.values.index_select(0, rows))


class Walk(Protocol):
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Query [N, H, T, d], key [N, Hkv, T, d], value [N, Hkv, T, dv] → [N, T, H, dv]."""
        ...


def register() -> None:
    """Make the function known to transformers under `NAME`; masks are made as for sdpa."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    scaling: float | None = None, walk: Walk | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    if walk is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    strange = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if kwargs.get("sliding_window") is not None and _forgets(module, kwargs["sliding_window"]):
        strange.append("sliding_window")
    if strange:
        raise Unsupported(f"attention with {', '.join(strange)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return walk.attend(module.layer_idx, query, key, value, scale, dropout), None  # type: ignore[arg-type]


def _forgets(module: nn.Module, window: int) -> bool:
    """Whether the LM has positions that a later one does not look back to: how long captions grow is not known here."""
    positions = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    return positions is None or window < positions


class Prefill:
    """A plain causal forward that keeps its keys and values.

    Attributes:
        done: whether the forward is over.
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.done = False

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        if layer == len(self.layers):
            self.layers.append(Layer(key.contiguous(), value.contiguous()))
        elif not self.done:  # afterwards a block may be computed again, for its gradient
            raise Unsupported("layers that attend out of order, or twice")
        group = query.shape[1] // key.shape[1]
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=query.shape[2] > 1, scale=scaling, enable_gqa=group > 1
        )
        return out.transpose(1, 2).contiguous()


def starts_of(lengths: Tensor) -> Tensor:
    """Where each of some stretches begins when one lies behind the other: int64 [N]."""
    return lengths.cumsum(0) - lengths


@dataclass
class Groups:
    """Which rows belong to which image, and where they find room beside each other for one product an image.

    Attributes:
        images: B, rows of the prefix.
        size: most rows that an image has.
        slot: int64 [N], the place of each row among B·size places; None where rows are in place as they come.
        row: int64 [B·size], the row in each place (row 0 where there is none).
    """

    images: int
    size: int
    slot: Tensor | None = None
    row: Tensor | None = None

    @classmethod
    def of(cls, image: Tensor, images: int) -> Groups:
        """Of rows that belong to the images `image` (int64 [N])."""
        counts = torch.bincount(image, minlength=images)
        size = max(1, int(counts.max())) if len(image) else 1
        order = torch.argsort(image, stable=True)
        place = torch.arange(len(image), device=image.device) - starts_of(counts)[image[order]]
        slot = torch.empty_like(image)
        slot[order] = image[order] * size + place
        if len(image) == images * size and bool((slot == torch.arange(len(slot), device=slot.device)).all()):
            return cls(images, size)
        row = torch.zeros(images * size, dtype=torch.int64, device=image.device)
        row[slot] = torch.arange(len(image), device=image.device)
        return cls(images, size, slot, row)

    def gather(self, values: Tensor) -> Tensor:
        """By row [N, Hkv, ...] → by image [B, Hkv, size, ...]."""
        placed = values if self.row is None else values.index_select(0, self.row)
        return placed.view(self.images, self.size, *values.shape[1:]).transpose(1, 2)

    def scatter(self, values: Tensor) -> Tensor:
        """By image [B, Hkv, size, ...] → by row [N, Hkv, ...]."""
        flat = values.transpose(1, 2).reshape(self.images * self.size, values.shape[1], *values.shape[3:])
        return flat if self.slot is None else flat.index_select(0, self.slot)


def attend(
    query: Tensor, prefix: Layer, groups: Groups, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float,
    dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """Attention of T tokens of N rows over their image's prefix and S tokens of their own.

    Args:
        query: [N, H, T, d].
        key: [N, Hkv, S, d].
        value: [N, Hkv, S, dv].
        mask: bool, broadcasts to [N, Hkv, H/Hkv, T, S]: what may be looked at; everything where None.

    Returns:
        [N, T, H, dv].
    """
    rows, heads, length, width = query.shape
    shared, images, own = heads // key.shape[1], groups.images, key.shape[2]
    places, prefixed = prefix.keys.shape[1], prefix.keys.shape[2]
    seen_width = value.shape[3]
    grouped = (query * scaling).view(rows, places, shared, length, width)
    by_image = groups.gather(grouped).reshape(images * places, -1, width)
    on_prefix = torch.bmm(by_image, prefix.keys.reshape(images * places, prefixed, width).transpose(1, 2))
    on_prefix = groups.scatter(on_prefix.view(images, places, groups.size, shared, length, prefixed))
    flat = grouped.reshape(rows * places, shared * length, width)
    on_own = torch.bmm(flat, key.reshape(rows * places, own, width).transpose(1, 2))
    on_own = on_own.view(rows, places, shared, length, own)
    if mask is not None:
        on_own = on_own.masked_fill(~mask, float("-inf"))
    share = torch.softmax(torch.cat([on_prefix, on_own], dim=-1), dim=-1, dtype=torch.float32).to(query.dtype)
    if dropout:
        share = torch.nn.functional.dropout(share, dropout)
    of_prefix = groups.gather(share[..., :prefixed]).reshape(images * places, -1, prefixed)
    seen = torch.bmm(of_prefix, prefix.values.reshape(images * places, prefixed, seen_width))
    seen = groups.scatter(seen.view(images, places, groups.size, shared, length, seen_width))
    of_own = share[..., prefixed:].reshape(rows * places, shared * length, own)
    seen = seen + torch.bmm(of_own, value.reshape(rows * places, own, seen_width)).view_as(seen)
    return seen.permute(0, 3, 1, 2, 4).reshape(rows, length, heads, seen_width)


class Score:
    """Whole captions of many lengths, packed: the LM reads the M tokens of all rows in a single row, without padding.

    Everything can be differentiated.

    Args:
        prefix: layers, rows of them are images.
        image: int64 [N], the image of each row.
        lengths: int64 [N], tokens of each row in the pack, one row behind the other; M is their sum.
    """

    def __init__(self, prefix: list[Layer], image: Tensor, lengths: Tensor) -> None:
        self.prefix = prefix
        self.groups = Groups.of(image, prefix[0].keys.shape[0])
        self.rows, self.most = len(image), int(lengths.max())
        self.places = torch.arange(self.most, device=image.device).repeat(self.rows, 1)[self._inside(lengths)]
        self._here = self._inside(lengths).reshape(-1).nonzero()[:, 0]  # [M], of the N·T places
        self._from = torch.zeros(self.rows * self.most, dtype=torch.int64, device=image.device)
        self._from[self._here] = torch.arange(len(self._here), device=image.device)
        self.mask = torch.ones(self.most, self.most, dtype=torch.bool, device=image.device).tril()

    def _inside(self, lengths: Tensor) -> Tensor:
        return torch.arange(self.most, device=lengths.device) < lengths[:, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        spread = [self._spread(values) for values in (query, key, value)]
        seen = attend(spread[0], self.prefix[layer], self.groups, spread[1], spread[2], self.mask, scaling, dropout)
        return seen.reshape(self.rows * self.most, *seen.shape[2:]).index_select(0, self._here)[None]

    def _spread(self, packed: Tensor) -> Tensor:
        """[1, H, M, d] → [N, H, T, d]; places behind a row's end hold the pack's first token, which nobody looks at."""
        flat = packed[0].transpose(0, 1).index_select(0, self._from)
        return flat.view(self.rows, self.most, *flat.shape[1:]).transpose(1, 2)


class Decode:
    """N rows that go on token by token, each with what it has said so far.

    Rows may be of different lengths. A step writes into buffers, which a selection copies: a state that was walked on
    from, or selected from, is used up.

    Attributes:
        prefix: layers, rows of them are images.
        image: int64 [N].
        said: int64 [N], tokens of each row that are in the buffers.
    """

    def __init__(self, prefix: list[Layer], image: Tensor, said: Tensor | None = None,
                 own: list[Layer] | None = None) -> None:  # fmt: skip
        self.prefix, self.image = prefix, image
        self.said = torch.zeros_like(image) if said is None else said
        self.own = own
        self.images = prefix[0].keys.shape[0]
        self._groups: Groups | None = None
        self._most = int(self.said.max()) if said is not None and len(said) else 0
        self._even = said is None
        self._mask: Tensor | None = None

    def begin(self) -> Tensor:
        """Make room for the next token of every row; its place in the row, int64 [N]."""
        if self._groups is None:
            self._groups = Groups.of(self.image, self.images)
        self._most += 1
        if self.own is None:
            self.own = [self._room(layer, _STEP) for layer in self.prefix]
        elif self._most > self.own[0].keys.shape[2]:
            self.own = [Layer(_grown(layer.keys), _grown(layer.values)) for layer in self.own]
        if not self._even:
            places = torch.arange(self._most, device=self.image.device)
            self._mask = (places <= self.said[:, None])[:, None, None, None]
        return self.said

    def end(self) -> None:
        """The token is in all layers."""
        self.said = self.said + 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        assert self.own is not None
        assert self._groups is not None
        own = self.own[layer]
        if self._even:
            own.keys[:, :, self._most - 1] = key[:, :, 0]
            own.values[:, :, self._most - 1] = value[:, :, 0]
        else:
            rows = torch.arange(len(key), device=key.device)
            own.keys[rows, :, self.said] = key[:, :, 0]
            own.values[rows, :, self.said] = value[:, :, 0]
        keys, values = own.keys[:, :, : self._most], own.values[:, :, : self._most]
        return attend(query, self.prefix[layer], self._groups, keys, values, self._mask, scaling, dropout)

    def select(self, rows: Tensor) -> Decode:
        """The given rows; prefixes that nobody needs any more are let go once they are a quarter of all."""
        image, said = self.image[rows], self.said[rows]
        prefix = self.prefix
        needed, position = torch.unique(image, return_inverse=True)
        if len(needed) <= 0.75 * self.images:
            prefix, image = [layer.select(needed) for layer in prefix], position
        most = int(said.max()) if len(said) else 0
        own = None
        if self.own is not None:
            own = [Layer(_copied(layer.keys, rows, most), _copied(layer.values, rows, most)) for layer in self.own]
        chosen = Decode(prefix, image, said, own)
        chosen._even = self._even or bool((said == most).all())
        return chosen

    def repeat(self, times: int) -> Decode:
        rows = torch.arange(len(self.image), device=self.image.device).repeat_interleave(times)
        if self.own is not None:
            return self.select(rows)
        return Decode(self.prefix, self.image[rows])

    def join(self, other: Decode) -> Decode:
        """These rows and those of another batch behind them."""
        prefix = [Layer(torch.cat([a.keys, b.keys]), torch.cat([a.values, b.values]))
                  for a, b in zip(self.prefix, other.prefix, strict=True)]  # fmt: skip
        room = max(1, self._most, other._most)
        own = [
            Layer(torch.cat([a.keys, b.keys]), torch.cat([a.values, b.values]))
            for a, b in zip(self._with_room(room), other._with_room(room), strict=True)
        ]
        return Decode(prefix, torch.cat([self.image, other.image + self.images]), torch.cat([self.said, other.said]),
                      own)  # fmt: skip

    def _with_room(self, room: int) -> list[Layer]:
        if self.own is None:
            return [self._room(layer, room) for layer in self.prefix]
        every = torch.arange(len(self.image), device=self.image.device)
        return [Layer(_copied(layer.keys, every, room, room), _copied(layer.values, every, room, room))
                for layer in self.own]  # fmt: skip

    def _room(self, like: Layer, tokens: int) -> Layer:
        keys, values = (part.new_zeros(len(self.image), part.shape[1], tokens, part.shape[3])
                        for part in (like.keys, like.values))  # fmt: skip
        return Layer(keys, values)


def _grown(values: Tensor) -> Tensor:
    return torch.cat([values, values.new_zeros(*values.shape[:2], values.shape[2], values.shape[3])], dim=2)


def _copied(values: Tensor, rows: Tensor, said: int, room: int | None = None) -> Tensor:
    """The first `said` tokens of some rows in a buffer with room for more; what is not said yet is 0, never NaN."""
    room = room or -(-(said + 1) // _STEP) * _STEP
    out = values.new_zeros(len(rows), values.shape[1], room, values.shape[3])
    kept = min(said, values.shape[2])
    out[:, :, :kept] = values[:, :, :kept].index_select(0, rows)
    return out
