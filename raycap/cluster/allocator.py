"""How processes that compute get their memory: kept once it is there, whichever thread asks for it."""

from __future__ import annotations

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_ARENA_MAX": "1",
}
"""Environment of every process that computes with torch, for glibc.

Big arrays come and go every step; without the thresholds glibc hands their pages back each time and faults them in
again (measured on two cores: 4 times the seconds of a learner's step, 2.7 times those of EfficientNet-Lite0).
Ray Data and Ray Train call our functions in threads of their own, whose arenas the thresholds do not reach: one arena.
"""
