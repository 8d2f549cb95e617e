"""A policy's trainable parameters as one flat buffer with a manifest, and back.

One copy into the buffer, one copy out of it: the buffer travels through the object store, is read there zero-copy and
read-only, and is copied into the parameters, never trained on in place.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from raycap.errors import CheckpointError
from raycap.types import ManifestEntry, WeightsId, WeightSnapshot

_REMEDY = "learner and rollout workers must start from the same checkpoint"
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_ALIGN = 64  # bytes; keeps every parameter's start on a cache line


def _bytes_of(tensor: Tensor) -> np.ndarray:
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)


def snapshot(module: nn.Module, weights_id: WeightsId, buffer: np.ndarray | None = None) -> WeightSnapshot:
    """Copy the trainable parameters out, in the module's own order; bytes as they lie in memory.

    Args:
        buffer: that of an earlier snapshot of the module, which is overwritten; new memory when None. Where a snapshot
            is copied on at once (into the object store), one buffer saves touching new pages every time.
    """
    entries: list[ManifestEntry] = []
    offset = 0
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    for name, parameter in trainable:
        nbytes = parameter.numel() * parameter.element_size()
        dtype = str(parameter.dtype).removeprefix("torch.")
        entries.append(ManifestEntry(name, tuple(parameter.shape), dtype, offset, nbytes))
        offset += -(-nbytes // _ALIGN) * _ALIGN
    if buffer is None or len(buffer) != offset:
        buffer = np.zeros(offset, np.uint8)
    for entry, (_, parameter) in zip(entries, trainable, strict=True):
        buffer[entry.offset : entry.offset + entry.nbytes] = _bytes_of(parameter)
    return WeightSnapshot(weights_id, tuple(entries), buffer)


def load_snapshot(module: nn.Module, published: WeightSnapshot) -> None:
    """Copy published weights into a module of the same architecture, all of them or none; it may be of another type.

    Raises:
        CheckpointError: a parameter is missing, unknown, or of another shape or an unknown type; the buffer is too
            short.
    """
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    names = {entry.name for entry in published.manifest}
    if names != set(own):
        odd = sorted(names ^ set(own))[:3]
        raise CheckpointError("published weights are of another model", key="weights", value=odd, remedy=_REMEDY)
    for entry in published.manifest:
        target = own[entry.name]
        if tuple(target.shape) != entry.shape or entry.dtype not in _TYPES:
            raise CheckpointError(f"published as {entry.dtype}{entry.shape}, the model has "
                                  f"{target.dtype}{tuple(target.shape)}", key="weights", value=entry.name,
                                  remedy=_REMEDY)  # fmt: skip
        if (
            entry.offset + entry.nbytes > published.nbytes
            or entry.nbytes != target.numel() * _TYPES[entry.dtype].itemsize
        ):
            raise CheckpointError(f"the buffer of {published.nbytes} bytes does not hold it", key="weights",
                                  value=entry.name, remedy="publish the weights again")  # fmt: skip
    with torch.no_grad():
        for entry in published.manifest:
            if not entry.nbytes:
                continue  # an empty array cannot be viewed as another dtype
            raw = published.buffer[entry.offset : entry.offset + entry.nbytes]
            _fill(own[entry.name], raw, _TYPES[entry.dtype])


def _fill(target: Tensor, raw: np.ndarray, dtype: torch.dtype) -> None:
    """Bytes into a parameter: in one copy where they lie in it as they come."""
    if target.device.type == "cpu" and target.dtype == dtype and target.is_contiguous():
        np.copyto(target.detach().reshape(-1).view(torch.uint8).numpy(), raw)
        return
    # torch takes no array that may not be written to: this copy is its own
    target.copy_(torch.from_numpy(raw.copy()).view(dtype).reshape(target.shape))
