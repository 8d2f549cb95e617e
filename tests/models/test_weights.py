"""Published weights: one flat buffer and its manifest, copied out and in bit by bit."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raycap.errors import CheckpointError
from raycap.models.prefix import PrefixCaptioner
from raycap.models.weights import load_snapshot, snapshot
from raycap.types import ManifestEntry, WeightsId, WeightSnapshot

MakeCaptioner = Callable[..., PrefixCaptioner]
ID = WeightsId(incarnation=2, policy_version=17)


class Mixed(nn.Module):
    """Parameters of several dtypes and odd sizes: a scalar, an empty one, a transposed view, a frozen one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.scale = nn.Parameter(torch.rand((), generator=draw))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.odd = nn.Parameter(torch.randn(7, 3, generator=draw).t())
        self.short = nn.Parameter(torch.randn(5, 5, generator=draw).bfloat16())
        self.frozen = nn.Parameter(torch.randn(4, generator=draw), requires_grad=False)
        self.last = nn.Parameter(torch.randn(33, generator=draw).double())


def bits(module: nn.Module) -> dict[str, bytes]:
    return {n: p.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            for n, p in module.named_parameters() if p.numel()}  # fmt: skip


def test_every_dtype_and_shape_comes_back_bit_by_bit() -> None:
    source, target = Mixed(0), Mixed(1)
    with torch.no_grad():
        source.odd[0, 0], source.last[0] = torch.nan, -0.0
    kept = bits(target)["frozen"]
    load_snapshot(target, snapshot(source, ID))
    expected = bits(source)
    for name, value in bits(target).items():
        assert value == (kept if name == "frozen" else expected[name]), name


def test_the_manifest_says_where_each_parameter_lies() -> None:
    published = snapshot(Mixed(0), ID)
    assert published.weights_id == ID
    assert [(e.name, e.shape, e.dtype, e.nbytes) for e in published.manifest] == [
        ("scale", (), "float32", 4),
        ("empty", (0, 3), "float32", 0),
        ("odd", (3, 7), "float32", 84),
        ("short", (5, 5), "bfloat16", 50),
        ("last", (33,), "float64", 264),
    ]
    ends = [0]
    for entry in published.manifest:
        assert entry.offset % 64 == 0
        assert entry.offset >= ends[-1]
        ends.append(entry.offset + entry.nbytes)
    assert ends[-1] <= published.nbytes < ends[-1] + 64


def test_a_captioner_s_snapshot_makes_another_one_say_the_same(make_captioner: MakeCaptioner) -> None:
    learner, worker = make_captioner(seed=0), make_captioner(seed=1)
    assert bits(learner) != bits(worker)
    load_snapshot(worker, snapshot(learner, ID))
    assert bits(learner) == bits(worker)


def test_weights_arrive_in_the_reader_s_own_type(make_captioner: MakeCaptioner) -> None:
    learner, worker = make_captioner(seed=0), make_captioner(seed=1).bfloat16()
    load_snapshot(worker, snapshot(learner, ID))
    pairs = zip(learner.parameters(), worker.parameters(), strict=True)
    assert all(torch.equal(mine.bfloat16(), theirs) for mine, theirs in pairs)


def test_only_what_is_trained_is_published(make_captioner: MakeCaptioner) -> None:
    published = snapshot(make_captioner(lm_tuning="frozen"), ID)
    assert {entry.name.split(".")[0] for entry in published.manifest} == {"mapping"}


def test_a_snapshot_is_a_copy_and_is_copied_in() -> None:
    """Learning on must not change what was published, nor what a worker loaded: Ray's buffers are read-only views."""
    source, target = Mixed(0), Mixed(1)
    published = pickle.loads(pickle.dumps(snapshot(source, ID)))
    before = published.buffer.copy()
    published.buffer.setflags(write=False)
    load_snapshot(target, published)
    with torch.no_grad():
        for module in (source, target):
            for parameter in module.parameters():
                parameter.add_(1)
    np.testing.assert_array_equal(published.buffer, before)


def test_one_wrong_byte_does_not_go_unseen() -> None:
    """The comparison that the tests of bit-equality stand on can fail."""
    published = snapshot(Mixed(0), ID)
    published.buffer[published.manifest[2].offset] ^= 1
    target = Mixed(1)
    load_snapshot(target, published)
    different = [name for name, value in bits(target).items() if value != bits(Mixed(0))[name]]
    assert different == ["odd", "frozen"]


def entries(published: WeightSnapshot, **changed: ManifestEntry | None) -> WeightSnapshot:
    manifest = [changed.get(entry.name, entry) for entry in published.manifest]
    return replace(published, manifest=tuple(entry for entry in manifest if entry is not None))


FAULTS: dict[str, tuple[Callable[[WeightSnapshot], WeightSnapshot], str]] = {
    "missing": (lambda p: entries(p, last=None), "of another model"),
    "unknown": (lambda p: entries(p, last=replace(p.manifest[-1], name="lm.head")), "of another model"),
    "shape": (lambda p: entries(p, odd=replace(p.manifest[2], shape=(7, 3))), r"published as float32\(7, 3\)"),
    "dtype": (lambda p: entries(p, short=replace(p.manifest[3], dtype="int8")), r"published as int8\(5, 5\)"),
    "size": (lambda p: entries(p, last=replace(p.manifest[4], nbytes=256)), "does not hold it"),
    "truncated": (lambda p: replace(p, buffer=p.buffer[:-64]), "does not hold it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused_and_nothing_is_loaded(fault: str) -> None:
    plant, message = FAULTS[fault]
    target: Any = Mixed(1)
    before = bits(target)
    with pytest.raises(CheckpointError, match=message) as refused:
        load_snapshot(target, plant(snapshot(Mixed(0), ID)))
    assert refused.value.key == "weights"
    assert refused.value.value
    assert refused.value.remedy
    assert bits(target) == before
