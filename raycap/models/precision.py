"""bfloat16 where a machine multiplies it faster than float32, found out by measuring.

A processor without the instructions makes a bfloat16 product hundreds of times slower than a float32 one, and nothing
in torch says so beforehand.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from raycap.whole_file import write_whole

Precision = dict[str, Any]
_Module = TypeVar("_Module", bound=nn.Module)

# Around each product of bfloat16 numbers come conversions: a gain of less is none.
_MARGIN = 1.3
_SMALL, _LARGE = (32, 256), (256, 1024)  # rows and width: of a decoding step and of scoring


def measure_precision(device: str) -> Precision:
    """Time products in both types.

    Returns:
        dtype, the faster one's name; float32_gflops and bfloat16_gflops of the larger product, the latter null where
        the small one already took twenty times as long.
    """
    plain = {size: _gflops(device, torch.float32, *size) for size in (_SMALL, _LARGE)}
    half = _gflops(device, torch.bfloat16, *_SMALL)
    if half < plain[_SMALL] / 20:
        return {"dtype": "float32", "float32_gflops": plain[_LARGE], "bfloat16_gflops": None}
    half = _gflops(device, torch.bfloat16, *_LARGE)
    better = "bfloat16" if half > _MARGIN * plain[_LARGE] else "float32"
    return {"dtype": better, "float32_gflops": plain[_LARGE], "bfloat16_gflops": half}


def recorded_precision(file: Path, measure: Callable[[], Precision]) -> Precision:
    """What was measured when the work began: a resumed run goes on in the same type."""
    if file.exists():
        return dict(json.loads(file.read_text()))
    found = measure()
    write_whole(file, json.dumps(found))
    return found


def computing_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Inside, products of a module with float32 parameters are computed in `dtype`."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def cast_in(dtype: torch.dtype, module: _Module) -> _Module:
    """The module itself, its parameters' type changed one at a time.

    Buffers stay as they are: rotary frequencies that are rounded to bfloat16 turn a fifth of a radian too far, or not
    far enough, in a hundred positions.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module


def copy_in(dtype: torch.dtype, module: _Module) -> _Module:
    """To generate with, beside a module that learns: itself when it is of this type, otherwise a copy in it.

    Parameters are cast as they are copied, and buffers are not: see `cast_in`.
    """
    if next(module.parameters()).dtype == dtype:
        return module
    cast = {id(p): nn.Parameter(p.detach().to(dtype, copy=True), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, cast).eval()


@torch.no_grad()
def refresh(copied: nn.Module, module: nn.Module) -> None:
    """Parameters of the module into a copy made by `copy_in`."""
    if copied is not module:
        for target, source in zip(copied.parameters(), module.parameters(), strict=True):
            target.copy_(source)


def _gflops(device: str, dtype: torch.dtype, rows: int, width: int) -> float:
    left = torch.randn(rows, width, device=device).to(dtype)
    right = torch.randn(width, width, device=device).to(dtype)
    fastest = min(_seconds(device, left, right) for _ in range(5))
    return 2e-9 * rows * width * width / fastest


def _seconds(device: str, left: torch.Tensor, right: torch.Tensor) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    _ = left @ right
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
