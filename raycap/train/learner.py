"""The learner: rollouts in, one optimizer step of policy gradient, weights out. A plain class, used by the one-process
loop and, unchanged, by the Ray Train job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from raycap.data.features import FeatureStore
from raycap.errors import RecipeError
from raycap.models.prefix import PrefixCaptioner
from raycap.models.weights import snapshot
from raycap.recipe import SCSTRecipe
from raycap.rewards.mix import Mix
from raycap.rl.advantages import combine
from raycap.train.descent import Descent
from raycap.train.group import Alone, Group, of_first
from raycap.train.labelled import LabelledSet
from raycap.train.lease_batch import LeaseBatch
from raycap.train.objective import minibatches
from raycap.train.optimizing import Average, set_lr
from raycap.train.reference import Reference
from raycap.train.schedules import scst_factor
from raycap.train.standing import Standing
from raycap.train.step_figures import Sums, lease_figures, loss_figures, reward_figures
from raycap.train.turns import Turns
from raycap.types import Rollouts, WeightsId, WeightSnapshot


class Learner:
    """Owns the policy and its optimizer.

    The policy that `kl_weight` holds it to is the captioner as it is handed in: before a checkpoint is loaded.
    Dropout is off in the whole RL stage.

    Args:
        captioner: the policy, trained in place; whole, until the group holds it as it does.
        weights: of the reward components, constant or a `Mix`.
        group: the ranks that learn together; each `update` gets this rank's leases.
        seed: of the run: the captioner sees the views that generated the captions.
        precision: of products; parameters, sums and the optimizer are float32.
        labelled: captions for `mle_weight`.

    Raises:
        RecipeError: `mle_weight` without `labelled`.
    """

    def __init__(
        self,
        captioner: PrefixCaptioner,
        features: FeatureStore,
        recipe: SCSTRecipe,
        weights: Mapping[str, float] | Mix,
        group: Group | None = None,
        *,
        seed: int = 0,
        precision: torch.dtype = torch.float32,
        labelled: LabelledSet | None = None,
    ) -> None:
        if recipe.mle_weight and labelled is None:
            raise RecipeError("needs labelled images", key="scst.mle_weight", value=recipe.mle_weight,
                              remedy="set it to 0 where there are none")  # fmt: skip
        self.captioner, self.features, self.recipe, self.seed = captioner.eval(), features, recipe, seed
        self.group = group = group or Alone()
        self.reference = (
            Reference(captioner, features, recipe, group, seed=seed, precision=precision) if recipe.kl_weight else None
        )
        shown = group.shown(captioner)
        group.hold(captioner)
        self.mix = weights if isinstance(weights, Mix) else Mix.constant(weights)
        self.step, self.incarnation = 0, 0
        self.published: WeightSnapshot | None = None
        trainable = [p for p in captioner.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trainable, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
        self.descent = Descent(captioner, features, recipe, group, self.optimizer, labelled=labelled, seed=seed,
                               precision=precision)  # fmt: skip
        self.average = Average(captioner, recipe.ema)
        self.standing = Standing(captioner, shown, self.optimizer, self.average)

    @property
    def weights_id(self) -> WeightsId:
        """Identity of the policy now, which generates step `self.step` at lag 0."""
        return WeightsId(self.incarnation, self.step)

    @property
    def due(self) -> bool:
        """Whether a look at `select` and a checkpoint follow the step that was just done."""
        return self.step % self.recipe.select_every == 0 or self.step == self.recipe.steps

    def turns(self, *, shared: bool) -> Turns:
        """This learner's turns on its GPU, which others share or not."""
        still = [] if self.reference is None else self.reference.own
        return Turns(self.optimizer, self.average.tensors, still, shared=shared)

    def publish(self, into: WeightSnapshot | None = None) -> WeightSnapshot:
        """A copy of the policy now; in the memory of an earlier one that nobody needs any more, when given."""
        return snapshot(self.standing.captioner, self.weights_id, None if into is None else into.buffer)

    def update(self, rollouts: Sequence[Rollouts]) -> dict[str, Any]:
        """Learn from this rank's leases of a step: one optimizer step, or several where PPO goes through them again.

        Returns:
            What was measured, over all ranks.

        Raises:
            WorkFailed: a gradient is not finite; the weights are those before it.
        """
        recipe, device = self.recipe, self.descent.parameters[0].device
        weights = self._weights()
        mixed = [combine(r.scores, weights, baseline=recipe.baseline, scaling=recipe.scaling) for r in rollouts]
        leases = [LeaseBatch.of(r, advantages, device) for r, advantages in zip(rollouts, mixed, strict=True)]
        if self.reference is not None:
            self.reference.score(leases)
        places = [lease.places(recipe.lease_size) for lease in leases]
        sums = Sums()
        set_lr(self.optimizer, recipe.lr * scst_factor(recipe, self.step))
        for number, chosen in enumerate(minibatches(places, recipe, seed=self.seed, step=self.step)):
            sums.add(self.descent(leases, chosen, step=self.step, number=number))
        self.average.update()
        self.step += 1
        self.standing.collect(state=self.due)
        return {
            **loss_figures(sums, recipe, self.group),
            "lr": self.optimizer.param_groups[0]["lr"],
            **reward_figures(rollouts, mixed, self.mix.names, self.group),
            **{f"reward/{name}/weight": weight for name, weight in weights.items()},
            **lease_figures(rollouts, [lease.ratio for lease in leases], self.group),
        }

    def _weights(self) -> dict[str, float]:
        """Weights of the update that the log calls step `self.step` + 1.

        What hangs on `select` is known to rank 0, which alone looks at it.
        """
        mine = self.mix.at(self.step + 1)
        if not self.mix.has_state:
            return mine
        return dict(zip(mine, of_first(self.group, list(mine.values())), strict=True))
