"""Seeds of a step: everything that torch draws hangs on (seed, stream, step, rank), so a resume needs no state."""

from __future__ import annotations

import numpy as np
import torch

INIT, DROPOUT = 0, 1  # streams of the seeds; 3 models.grid, 4 data.picture_views, 5 train.views, 6 train.objective


def seed_torch(seed: int, stream: int, step: int = 0, rank: int = 0) -> None:
    """Set torch's generators (all devices) for one step."""
    torch.manual_seed(int(np.random.SeedSequence([seed, stream, step, rank]).generate_state(1, np.uint64)[0] >> 1))
