"""The learner: rollouts in, one optimizer step of policy gradient, weights out. A plain class, used by the one-process
loop and, unchanged, by the Ray Train job.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap.data.features import FeatureStore
from raycap.errors import RecipeError
from raycap.models.accumulate import in_place
from raycap.models.precision import computing_in
from raycap.models.prefix import PrefixCaptioner
from raycap.models.weights import snapshot
from raycap.recipe import SCSTRecipe
from raycap.rewards.mix import Mix
from raycap.rl.advantages import Advantages, combine
from raycap.rl.diagnostics import ratio_diagnostics
from raycap.rl.losses import cross_entropy, denominator_of
from raycap.train.group import Alone, Group, of_first
from raycap.train.labelled import LabelledSet
from raycap.train.objective import Samples, minibatches, policy_loss
from raycap.train.optimizing import Average, clip_gradients, micro_batches, set_lr
from raycap.train.schedules import scst_factor
from raycap.train.sharding import idle_pass
from raycap.train.standing import Standing
from raycap.train.step_figures import Sums, digest, mean_of, prompts_digest, reward_figures
from raycap.train.turns import Turns
from raycap.train.views import training_views
from raycap.types import Lease, Rollouts, WeightsId, WeightSnapshot


class Learner:
    """Owns the policy and its optimizer.

    The policy that `kl_weight` holds it to is the captioner as it is handed in: before a checkpoint is loaded.
    Dropout is off in the whole RL stage. A step's loss is worked through lease by lease and normalised over the whole
    step, so its gradient does not depend on how the step is cut.

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
        self.seed, self.precision, self.labelled = seed, precision, labelled
        self.captioner, self.features, self.recipe = captioner.eval(), features, recipe
        self.group = group or Alone()
        self.reference = copy.deepcopy(captioner).requires_grad_(False) if recipe.kl_weight else None
        if self.reference is not None:
            self.group.hold(self.reference)
        shown = self.group.shown(captioner)
        self.group.hold(captioner)
        self.mix = weights if isinstance(weights, Mix) else Mix.constant(weights)
        self.step, self.incarnation = 0, 0
        self.published: WeightSnapshot | None = None
        self.parameters = [p for p in captioner.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
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
        modules = [] if self.reference is None else [self.reference]
        return Turns(self.optimizer, self.average.tensors, modules, shared=shared)

    def publish(self, into: WeightSnapshot | None = None) -> WeightSnapshot:
        """A copy of the policy now; in the memory of an earlier one that nobody needs any more, when given."""
        return snapshot(self.standing.captioner, self.weights_id, None if into is None else into.buffer)

    def update(self, rollouts: Sequence[Rollouts]) -> dict[str, Any]:
        """Learn from this rank's leases of a step: one optimizer step, or several where PPO goes through them again.

        Returns:
            What was measured.

        Raises:
            WorkFailed: a gradient is not finite; the weights are those before it.
        """
        recipe = self.recipe
        weights = self._weights()
        mixed = [combine(r.scores, weights, baseline=recipe.baseline, scaling=recipe.scaling) for r in rollouts]
        leases = [self._lease(r, a) for r, a in zip(rollouts, mixed, strict=True)]
        if self.reference is not None:
            self._refer(self.reference, leases)
        places = [np.flatnonzero(lease.kept) + lease.lease.number * recipe.lease_size for lease in leases]
        told = Sums()
        set_lr(self.optimizer, recipe.lr * scst_factor(recipe, self.step))
        for number, chosen in enumerate(minibatches(places, recipe, seed=self.seed, step=self.step)):
            told.add(self._descend(leases, chosen, number))
        self.average.update()
        self.step += 1
        self.standing.collect(state=self.due)
        return {
            **self._figures(told),
            "lr": self.optimizer.param_groups[0]["lr"],
            **mean_of([lease.diagnostics for lease in leases if lease.diagnostics]),
            **reward_figures(rollouts, mixed, self.mix.names, self.group),
            **{f"reward/{name}/weight": weight for name, weight in weights.items()},
            "prompts": prompts_digest(rollout.lease for rollout in rollouts),
            "rollouts": digest(rollouts),
        }

    def _weights(self) -> dict[str, float]:
        """Weights of the update that the log calls step `self.step` + 1.

        What hangs on `select` is known to rank 0, which alone looks at it.
        """
        mine = self.mix.at(self.step + 1)
        if not self.mix.has_state:
            return mine
        values = of_first(self.group, list(mine.values()))
        return dict(zip(mine, values, strict=True))

    def _lease(self, rollout: Rollouts, advantages: Advantages) -> _Lease:
        """What is learned of a lease: the images that some component applies to."""
        device = self.parameters[0].device
        generation, images = rollout.generation, len(rollout.lease.prompts)
        rows = np.repeat(advantages.kept, generation.num_samples)
        width = generation.tokens.shape[1]
        mask = (np.arange(width)[None] < generation.lengths[:, None]).astype(np.float32)
        values = advantages.values.reshape(images * generation.num_samples)
        arrays = (generation.tokens, mask, generation.behavior_logprobs, values)
        samples = Samples(*(torch.from_numpy(a[rows]).clone().to(device) for a in arrays))
        return _Lease(rollout.lease, advantages.kept, samples)

    def _seen(self, lease: _Lease) -> Tensor:
        return seen_by(self.captioner, self.features, lease.lease, self.recipe, seed=self.seed, kept=lease.kept)

    def _cuts(self, images: int) -> list[tuple[slice, slice]]:
        return list(micro_batches(images, self.recipe.num_samples, self.recipe.micro_batch))

    @torch.no_grad()
    def _refer(self, reference: PrefixCaptioner, leases: Sequence[_Lease]) -> None:
        """Give leases their log-probabilities under the policy that SCST began with, float32 [N, T]."""
        idle = self.group.idle_passes(sum(len(self._cuts(lease.images)) for lease in leases))
        for lease in leases:
            if not lease.images:
                continue
            seen, found = self._seen(lease), []
            for images, rows in self._cuts(lease.images):
                part = lease.samples.of(rows)
                with computing_in(self.precision, seen.device):
                    shown = reference.encode(seen[images])
                    found.append(reference.score(shown, part.tokens, part.mask, self.recipe.temperature))
            lease.samples = replace(lease.samples, reference=torch.cat(found))
        for _ in range(idle):
            idle_pass(reference, self.features)

    def _descend(self, leases: Sequence[_Lease], chosen: Sequence[Any], number: int) -> Sums:
        """One optimizer step on some images of each lease; sums for the log."""
        recipe, samples = self.recipe, self.recipe.num_samples
        self.optimizer.zero_grad(set_to_none=True)
        parts = [(lease, *lease.part(images, samples)) for lease, images in zip(leases, chosen, strict=True)]
        mine = sum(denominator_of(recipe.normalize, part.mask) for _, _, part in parts)
        denominator = self.group.sum_values([mine])[0]
        told = Sums()
        idle = self.group.idle_passes(sum(len(self._cuts(len(part) // samples)) for *_, part in parts))
        for lease, images, part in parts:
            if not len(part):
                continue
            logprobs = self._accumulate(self._seen(lease)[images], part, denominator, told)
            if not lease.diagnostics and number == 0:
                lease.diagnostics = ratio_diagnostics(logprobs, part.behavior, part.mask)
        self._idle(idle)
        if recipe.mle_weight:
            self._accumulate_mle(number, told)
        self.group.sum_gradients(self.parameters)
        norm = clip_gradients(self.parameters, recipe.grad_clip, step=self.step, remedy="lower scst.lr")
        self.optimizer.step()
        told.add({"descents": 1.0, "grad_norm": norm})
        return told

    def _accumulate(self, seen: Tensor, samples: Samples, denominator: float, told: Sums) -> Tensor:
        """Gradients of captions, a few images at a time: the memory is that of `micro_batch` captions, however many
        there are, or of one image's K where these are more.

        Returns:
            Their log-probabilities [N, T], without gradient.
        """
        logprobs = []
        for images, rows in self._cuts(len(seen)):
            with computing_in(self.precision, seen.device):
                loss, scored, sums = policy_loss(
                    self.captioner, seen[images], samples.of(rows), self.recipe, denominator
                )
            with in_place():
                loss.backward()
            told.add(sums)
            logprobs.append(scored)
        return torch.cat(logprobs)

    def _idle(self, passes: int) -> None:
        for _ in range(passes):
            with computing_in(self.precision, self.parameters[0].device):
                nothing = idle_pass(self.captioner, self.features)
            nothing.backward()

    def _accumulate_mle(self, number: int, told: Sums) -> None:
        """Gradients of `mle_weight` times the cross-entropy of this rank's share of a batch of labelled images."""
        recipe, group = self.recipe, self.group
        assert self.labelled is not None
        place = self.step * recipe.ppo_epochs * recipe.minibatches + number
        batch = self.labelled.batch(place, batch_size=recipe.mle_batch_size, captions_per_image=1, seed=self.seed)
        count, words = len(batch.image_ids), float(batch.loss_mask.sum())
        share = range(count)[group.rank * count // group.size : (group.rank + 1) * count // group.size]
        rows, device = slice(share.start, share.stop), self.parameters[0].device
        cuts = list(micro_batches(len(share), 1, recipe.micro_batch))
        idle = group.idle_passes(len(cuts))
        if share:
            seen = training_views(self.captioner, self.features, batch.image_ids[rows], recipe, seed=self.seed,
                                  step=place, positions=share)  # fmt: skip
            tokens, mask = (torch.from_numpy(each[rows]).to(device) for each in (batch.tokens, batch.loss_mask))
        for images, part in cuts:
            with computing_in(self.precision, device):
                logprobs = self.captioner.score(self.captioner.encode(seen[images]), tokens[part], mask[part])
            loss = cross_entropy(logprobs, mask[part], denominator=words)
            with in_place():
                (recipe.mle_weight * loss).backward()
            told.add({"mle_loss": float(loss.detach())})
        self._idle(idle)

    def _figures(self, told: Mapping[str, float]) -> dict[str, float]:
        """Losses and means a token over all ranks; the gradient's norm, the mean of several steps'."""
        names = ["pg_loss", "mle_loss", "tokens", "kl", "entropy", "clipped"]
        sums = dict(zip(names, self.group.sum_values([float(told.get(n, 0.0)) for n in names]), strict=True))
        descents, tokens = told["descents"], max(1.0, sums["tokens"])
        recipe = self.recipe
        out = {"pg_loss": sums["pg_loss"] / descents, "grad_norm": told["grad_norm"] / descents}
        wanted = {"kl": recipe.kl_weight, "entropy": recipe.entropy_weight, "clipped": recipe.objective == "ppo"}
        out |= {name: sums[name] / tokens for name, on in wanted.items() if on}
        return out | ({"mle_loss": sums["mle_loss"] / descents} if recipe.mle_weight else {})


@dataclass
class _Lease:
    """A lease as it is learned from. `diagnostics`: of the ratio, when its captions were first gone through."""

    lease: Lease
    kept: NDArray[np.bool_]
    samples: Samples
    diagnostics: dict[str, float] = field(default_factory=dict)

    @property
    def images(self) -> int:
        return int(self.kept.sum())

    def part(self, images: Any, samples: int) -> tuple[Any, Samples]:
        """Some of its images, an index, and their rows."""
        if isinstance(images, slice):
            return images, self.samples
        rows = (images[:, None] * samples + torch.arange(samples)).reshape(-1)
        return images, self.samples.of(rows.to(self.samples.tokens.device))


def seen_by(
    captioner: PrefixCaptioner, features: FeatureStore, lease: Lease, recipe: SCSTRecipe, *, seed: int,
    kept: NDArray[np.bool_] | None = None,
) -> Tensor:  # fmt: skip
    """Features of a lease's images in the views of its step: the same when captions are generated and when learned.

    Args:
        kept: bool [B], the images that are wanted; all when None.
    """
    prompts = [p for index, p in enumerate(lease.prompts) if kept is None or kept[index]]
    return training_views(captioner, features, [p.image_id for p in prompts], recipe, seed=seed, step=lease.step,
                          positions=[p.position for p in prompts])  # fmt: skip
