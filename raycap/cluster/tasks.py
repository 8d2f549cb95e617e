"""Ray in small: connect, run functions as tasks, wait with a heartbeat, hand errors through."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

from raycap.cluster.allocator import ALLOCATOR
from raycap.cluster.room import Patience
from raycap.errors import RaycapError, RecipeError, WorkFailed


@contextmanager
def connected() -> Any:
    """Inside, Ray is there: the cluster this job was submitted to, or one started here and stopped at the end."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        yield ray
        return
    inside_job = "RAY_ADDRESS" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    ray.init(**({} if inside_job else {"address": "local", "include_dashboard": False}), log_to_driver=True)
    try:
        yield ray
    finally:
        ray.shutdown()


def nodes() -> list[dict[str, float]]:
    """Resources of each node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def cpu_share(parts: int) -> int:
    """Whole CPUs of the largest node for each of `parts` equal parts, at least 1: a task fits on one node or waits."""
    largest = max((node.get("CPU", 0) for node in nodes()), default=1)
    return max(1, int(largest) // parts)


def all_cpus() -> int:
    """CPUs of the whole cluster, at least 1."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def one_node() -> bool:
    """Whether the cluster is one machine."""
    return len(nodes()) == 1


def on(device: str) -> str:
    """The device, when this process can use it.

    Raises:
        RecipeError: a GPU is wanted and none is visible here.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("no GPU is visible to this process", key="device", value=device,
                          remedy="ask for one, so that it runs where there is one (cluster.learner_gpus, "
                          "cluster.rollout_gpus, rewards.<name>.num_gpus), or take device=cpu")  # fmt: skip
    return device


def task(function: Callable[..., Any], *, num_cpus: float, num_gpus: float = 0.0) -> Callable[..., Any]:
    """A function as a Ray task: calling it gives a reference. A crash of its process is tried again once."""
    import ray

    @functools.wraps(function)
    def begun_here(*args: Any, **keywords: Any) -> Any:
        say_begun(ray.get_runtime_context().get_task_id())
        return function(*args, **keywords)

    options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": 1, "runtime_env": {"env_vars": ALLOCATOR}}
    return ray.remote(**options)(begun_here).remote


_BEGUN = "raycap"  # a namespace of Ray's own key-value store: there is nothing else that the driver can ask


def say_begun(mark: str) -> None:
    """By what the driver waits for, that it has found its place and runs. `mark`: of it alone, such as a task's id."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(mark, b"1", namespace=_BEGUN)


def has_begun(mark: str) -> bool:
    """Whether somebody has said so."""
    from ray.experimental import internal_kv

    return bool(internal_kv._internal_kv_exists(mark, namespace=_BEGUN))


def gather(
    refs: Mapping[str, Any], tick: Callable[[], None] = lambda: None, every_s: float = 1.0, *,
    limit_s: float = math.inf,
) -> dict[str, Any]:  # fmt: skip
    """Results by name of calls to `task`.

    While none of them runs, every minute it is said which wait for room, and what is free.

    Args:
        tick: called now and then while they are out.
        limit_s: for how long none may run.

    Raises:
        RaycapError: what a task raised; WorkFailed for everything else, and when they find no room.
    """
    import ray

    names = {ref: name for name, ref in refs.items()}
    left, begun, results = list(names), set[Any](), dict[str, Any]()
    patience = Patience(limit_s)
    while left:
        done, left = ray.wait(left, num_returns=1, timeout=every_s)
        for ref in done:
            results[names[ref]] = _result(ref, names[ref])
        tick()
        if not begun & set(left):  # one of them that runs may keep the others' room
            begun |= {ref for ref in left if has_begun(ref.task_id().hex())}
        waiting = [] if done or begun & set(left) else [names[ref] for ref in left]
        patience.look(f"each of {len(waiting)} tasks ({', '.join(waiting[:3])})" if waiting else "")
    return results


def _result(ref: Any, name: str) -> Any:
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RaycapError):
            raise error.cause from None
        raise WorkFailed(f"{type(error.cause).__name__}: {error.cause}", key="task", value=name) from error
    except ray.exceptions.RayError as error:
        raise WorkFailed(str(error)[:500], key="task", value=name, remedy="run the same command again") from error
