"""The actor's half: lease a slice, generate its captions, have them scored, deliver them.

`RolloutWorker` is plain and needs no cluster; `RolloutActor` is its edge: it builds one and walks it through the
Exchange until the run is over.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import torch

from raycap.cluster.reward_pool import RewardPools
from raycap.cluster.tasks import on
from raycap.data.features import FeatureStore
from raycap.errors import RaycapError, WorkFailed
from raycap.models.checkpoint import load_captioner
from raycap.models.precision import cast_in
from raycap.models.prefix import PrefixCaptioner
from raycap.models.weights import load_snapshot
from raycap.recipe import SCSTRecipe
from raycap.train.scst import generate_lease
from raycap.types import Generation, Lease, WeightsId, WeightSnapshot


class RolloutWorker:
    """A copy of the policy that generates leases."""

    def __init__(
        self, captioner: PrefixCaptioner, features: FeatureStore, recipe: SCSTRecipe, *, max_length: int, seed: int
    ) -> None:
        self.captioner, self.features, self.recipe = captioner.eval(), features, recipe
        self.max_length, self.seed = max_length, seed
        self.weights_id: WeightsId | None = None

    def load(self, published: WeightSnapshot) -> None:
        load_snapshot(self.captioner, published)
        self.weights_id = published.weights_id

    def generate(self, lease: Lease) -> Generation:
        return generate_lease(
            self.captioner, self.features, lease, self.recipe, max_length=self.max_length, seed=self.seed
        )


class RolloutActor:
    """A `RolloutWorker` in a process of its own.

    Args:
        name: unique among all workers of the run, restarts included; the Exchange knows the worker by it.
        captioner_folder, features_folder: on storage that the node sees.
        pools: of the reward components.
        threads: torch threads; at lag 0 the same number in every process that generates.
        precision: torch's name of the type that it generates in.
    """

    def __init__(
        self, name: str, captioner_folder: str, features_folder: str, recipe: SCSTRecipe, pools: RewardPools,
        *, max_length: int, seed: int, threads: int, device: str, precision: str = "float32",
    ) -> None:  # fmt: skip
        torch.set_num_threads(threads)
        self.name, self.pools = name, pools
        self.refused: RaycapError | None = None
        try:
            # cast before it goes to the device, which then never holds it in float32
            captioner = cast_in(getattr(torch, precision), load_captioner(Path(captioner_folder))).to(on(device))
            features = FeatureStore.open(Path(features_folder))
        except RaycapError as error:  # raised here, it would look like the death of a worker, and others would follow
            self.refused = error
            return
        self.worker = RolloutWorker(captioner, features, recipe, max_length=max_length, seed=seed)

    def run(self, exchange: Any) -> dict[str, float]:
        """Work until the Exchange closes; seconds by activity.

        An error that no retry mends (a reward that fails, a model that cannot generate) ends the run through the
        Exchange; a lost Exchange ends this worker quietly, the run's driver sees that first.
        """
        import ray

        seconds = {"wait": 0.0, "generate": 0.0, "reward": 0.0, "weights": 0.0}
        if self.refused is not None:
            ray.get(exchange.fail.remote(self.refused))
            return seconds
        while True:
            asked = time.perf_counter()
            answer = ray.get(exchange.lease.remote(self.name, self.worker.weights_id))
            seconds["wait"] += time.perf_counter() - asked
            if answer.get("closed"):
                return seconds
            if answer["lease"] is None:
                continue
            try:
                self._serve(exchange, answer, seconds)
            except RaycapError as error:
                ray.get(exchange.fail.remote(error))
                return seconds
            except ray.exceptions.RayError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the run must end with its message
                fatal = WorkFailed(f"a rollout worker failed: {type(error).__name__}: {error}", key="worker",
                                   value=self.name)  # fmt: skip
                ray.get(exchange.fail.remote(fatal))
                return seconds

    def _serve(self, exchange: Any, answer: dict[str, Any], seconds: dict[str, float]) -> None:
        import ray

        from raycap.types import Rollouts

        marks = [time.perf_counter()]
        if answer["weights"] is not None:
            self.worker.load(ray.get(answer["weights"][0]))
        marks.append(time.perf_counter())
        lease = answer["lease"]
        generation = self.worker.generate(lease)
        marks.append(time.perf_counter())
        scores = self.pools.score(lease, generation)
        marks.append(time.perf_counter())
        parts = (after - before for before, after in itertools.pairwise(marks))
        spent = dict(zip(("weights", "generate", "reward"), parts, strict=True))
        for name, value in spent.items():
            seconds[name] += value
        assert self.worker.weights_id is not None
        rollouts = Rollouts(lease, self.worker.weights_id, generation, scores, spent)
        ray.get(exchange.deliver.remote(self.name, rollouts))
