"""A loop as a Ray Train job: worker group, restarts from our own checkpoints, errors that are not worth a restart.

Ray Train starts the group again after any error; `retrying` says which of them end the run at once instead.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from raycap.cluster.allocator import ALLOCATOR
from raycap.cluster.aside import in_a_thread
from raycap.cluster.giving_up import ABORT_S, end_run_of
from raycap.cluster.metrics import ray_metrics
from raycap.cluster.preemption import WATCHER, Notices, watched
from raycap.cluster.reaching import in_a_line
from raycap.cluster.room import LearnersRoom, watched_wait
from raycap.cluster.silence import Silence
from raycap.cluster.tasks import one_node
from raycap.errors import RaycapError, Stopped, WorkFailed
from raycap.models.prefix import PrefixCaptioner
from raycap.recipe import ClusterRecipe, LoggingRecipe
from raycap.train.group import Alone, DistributedGroup, Group, built_together, together
from raycap.train.journal import FolderJournal
from raycap.train.sinks import Sinks, sinks_of
from raycap.train.stopping import stop_asked
from raycap.train.trackers import FAILED, FINISHED, STOPPED


class FollowerJournal(FolderJournal):
    """The journal of ranks above 0: reads what rank 0 wrote, writes nothing."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Rank 0 logs."""

    def save(self, step: int, captioner: PrefixCaptioner, state: Mapping[str, Any]) -> None:
        """Rank 0 saves."""

    def save_best(self, captioner: PrefixCaptioner, about: Mapping[str, Any]) -> None:
        """Rank 0 saves."""

    def _say(self, text: str) -> None:
        """Rank 0 says."""


def training_group(cluster: ClusterRecipe, device: str) -> Group:
    """The ranks of this Ray Train job, who hold what learns on their devices as the recipe says."""
    import ray.train

    if ray.train.get_context().get_world_size() == 1:
        return Alone()
    from raycap.train.sharding import ShardingGroup

    return ShardingGroup(device) if cluster.learner_sharding == "fsdp" else DistributedGroup()


def rank_journal(
    folder: str, group: Group, *, keep: int, about: Mapping[str, Any], logging: LoggingRecipe, watched: bool = False,
    closing: list[Callable[[str], None]] | None = None,
) -> FolderJournal:  # fmt: skip
    """The journal of this rank; rank 0's log goes to Ray's metrics and to where `logging` says, too.

    Args:
        about: of the run: its name and its seed are the log's there.
        watched: whether Ray Train looks for notices that a node will be taken away.
        closing: gets what is to be called when the loop has ended, with how: "finished", "stopped" or "failed".

    Raises:
        RecipeError: on every rank, when a library that `logging` asks for is not there.
    """
    notice = Notices(group).fresh if watched else None
    if group.rank:
        together(group, None)
        return FollowerJournal(Path(folder), keep=keep, about=about, notice=notice)
    path = Path(folder)

    def with_sinks() -> FolderJournal:
        path.mkdir(parents=True, exist_ok=True)
        run = f"{about['run']}/seed-{about['seed']}/{path.name}"
        sinks = Sinks([*sinks_of(logging, path, run), ray_metrics(run)])
        if closing is not None:
            closing.append(sinks.close)
        return FolderJournal(path, keep=keep, about=about, watch=sinks, notice=notice)

    return built_together(group, with_sinks)


def _guarded(loop: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The loop with its errors sorted. A stop, and what a rank alone met, are its result: Ray Train hears of no error.
    Of several ranks one may have met it while the others wait for it in a collective: it is raised, and ends them.
    Where else the log went is told how it ended."""

    def run(config: dict[str, Any]) -> dict[str, Any]:
        import ray.train
        import torch

        from raycap.cluster.retrying import final

        torch.set_num_threads(config["threads"])
        status, closing = FAILED, list[Callable[[str], None]]()
        try:
            result = loop({**config, "closing": closing})
            status = FINISHED
            return {"result": result}
        except Exception as error:
            ending = final(error, Path(config["folder"]))
            if ending is None and isinstance(error, RaycapError):  # one of ours would end the run: see `EndAtOnce`
                raise OSError(f"the storage did not answer: {error}") from error
            if ending is None:
                raise
            if isinstance(ending, Stopped):
                status = STOPPED
            if isinstance(ending, Stopped) or ray.train.get_context().get_world_size() == 1:
                return {"error": ending}
            raise ending from error
        finally:
            for close in closing:
                close(status)

    return run


def _end_run(thread: threading.Thread, error: BaseException) -> None:
    """The run of Ray Train that a thread waits for, when the driver waits no longer."""
    end_run_of(thread, abort_s=0.0 if isinstance(error, KeyboardInterrupt) else ABORT_S)


def run_train_job(
    loop: Callable[[dict[str, Any]], dict[str, Any]], config: dict[str, Any], cluster: ClusterRecipe, folder: Path
) -> dict[str, Any]:
    """Run `loop(config)` on every rank of a new worker group; rank 0's result.

    The loop must resume from its own journal: a restart calls it again with the same config.

    Raises:
        RaycapError: what the loop raised; WorkFailed when the worker group could not be kept alive, finds no room, or
            hangs; Stopped when somebody asks for that while it waits for room.
    """
    import ray
    import ray.train

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    limit_s = cluster.stall_timeout_s
    silence = Silence(folder / "log.jsonl", limit_s)
    wait = watched_wait(LearnersRoom(), limit_s, silent_s=silence.silent_s, stop=partial(stop_asked, folder))

    def look() -> None:
        silence.look()
        wait()

    lost = 0  # controllers: Ray Train starts ranks again, and nobody starts it
    while True:
        try:
            # in the main thread Ray Train would answer Ctrl-C itself, by ending everything at once with status 0
            fit = _trainer(loop, config, cluster, folder).fit
            answer = in_a_thread(fit, look, given_up=_end_run).return_value
        except ray.train.TrainingFailedError as error:
            raise _why(error, cluster.max_failures) from error
        except ray.exceptions.RayActorError as error:
            lost += 1
            if lost > cluster.max_failures:
                raise _exhausted("Ray Train's controller died", error, cluster.max_failures) from error
            print(f"Ray Train's controller was lost ({in_a_line(error, 160)}); another starts", flush=True)
            continue
        if "error" in answer:
            raise answer["error"]
        return answer["result"]


def _trainer(
    loop: Callable[[dict[str, Any]], dict[str, Any]], config: dict[str, Any], cluster: ClusterRecipe, folder: Path
) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from raycap.cluster.retrying import EndAtOnce

    if one_node() and not cluster.autoscaling:  # there is no other node to go: a process less to start
        os.environ.setdefault(WATCHER, "0")
    scaling = ray.train.ScalingConfig(
        num_workers=cluster.learner_workers,
        use_gpu=bool(cluster.learner_gpus),
        resources_per_worker={
            "CPU": cluster.learner_cpus,
            **({"GPU": cluster.learner_gpus} if cluster.learner_gpus else {}),
        },
    )
    # A name of its own: the same name and path would quietly resume a Ray Train run that had finished.
    run = ray.train.RunConfig(
        name=f"train-{time.time_ns()}",
        storage_path=str(folder / "ray_train"),
        # It asks for room in rounds of a minute and would count every one of the whole run: the driver watches instead.
        failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=-1),
        worker_runtime_env={"env_vars": ALLOCATOR},
        callbacks=[EndAtOnce()],
    )
    # A rank waits in a collective while another looks at `select`; who waits for rollouts is told by the Exchange.
    backend = TorchConfig(timeout_s=int(max(1800.0, 2 * cluster.stall_timeout_s)))
    config = {**config, "threads": cluster.learner_threads, "watched": watched()}
    return TorchTrainer(_guarded(loop), train_loop_config=config,
                        scaling_config=scaling, run_config=run, torch_config=backend)  # fmt: skip


def _why(error: Exception, max_failures: int) -> RaycapError:
    """What the run ends with when Ray Train gave up."""
    cause = getattr(error, "controller_failure", None)
    return cause if isinstance(cause, RaycapError) else _exhausted("the learner failed", error, max_failures)


def _exhausted(what: str, error: Exception, max_failures: int) -> WorkFailed:
    of_ranks = getattr(error, "worker_failures", {})
    said = "; ".join(f"rank {rank}: {in_a_line(each)}" for rank, each in sorted(of_ranks.items())) or in_a_line(error)
    after = f" after {max_failures} restarts" if max_failures else ""
    remedy = "run the same command again: it goes on from the last checkpoint; or raise it"
    return WorkFailed(f"{what}{after}, the last time of {said}", key="cluster.max_failures", value=max_failures,
                      remedy=remedy)  # fmt: skip
