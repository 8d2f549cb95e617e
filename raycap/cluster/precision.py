"""The type that each role of a training stage computes in: found out when the stage begins, where the role runs, and
kept for as long as the stage lasts.
"""

from __future__ import annotations

from raycap.cluster.stages import Run
from raycap.cluster.tasks import gather, on, task
from raycap.models.precision import Precision, measure_precision, recorded_precision

RECORD = "precision.json"


def stage_precision(run: Run, stage: str, seed: int) -> dict[str, str]:
    """torch's name of the type, by role: of the learner, and in SCST of the rollouts.

    What the stage's folder records holds, whatever the recipe asks for now. Where it records nothing it is float32,
    or bfloat16 where that is asked for and is faster for the role.
    """
    alone = stage != "scst"
    roles = ("learner",) if alone else ("learner", "rollout")
    found = recorded_precision(
        run.path(stage, seed) / RECORD, lambda: {role: find_precision(run, role, alone=alone) for role in roles}
    )
    types = {role: str(found.get(role, found)["dtype"]) for role in roles}  # an older raycap recorded one for all
    for role, dtype in types.items():
        if dtype != run.recipe.cluster.precision:
            print(f"{stage:<14}  cluster.precision = {run.recipe.cluster.precision}, but the {role} computes in "
                  f"{dtype}: that is what was found when the stage began ({RECORD})", flush=True)  # fmt: skip
    return types


def find_precision(run: Run, role: str, *, alone: bool) -> Precision:
    """The faster type for a role: on its device, with its threads, in a process that has what its own will have.

    Roles are measured one after the other: at once they would take each other's time.
    """
    cluster = run.recipe.cluster
    if cluster.precision == "float32":
        return {"dtype": "float32"}
    cpus, threads = {
        "learner": (cluster.learner_cpus, cluster.learner_threads),
        "rollout": (cluster.rollout_cpus, cluster.rollout_threads),
    }[role]
    measure = task(_measure, num_cpus=cpus, num_gpus=run.gpus(role, alone=alone))
    name = f"cluster.precision of the {role}"
    asked = {name: measure(run.device_of(role, alone=alone), threads)}
    found: Precision = gather(asked, limit_s=cluster.stall_timeout_s)[name]
    return found


def _measure(device: str, threads: int) -> Precision:
    """Runs as a task."""
    import torch

    torch.set_num_threads(threads)
    return measure_precision(on(device))
