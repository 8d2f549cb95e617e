"""stub"""
from typing import Any
from raycap.cluster.stages import Run
def evaluate_stage(run: Run, seed: int) -> dict[str, Any]:
    return {}
