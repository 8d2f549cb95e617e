"""The learner: rollouts in, one optimizer step of policy gradient, weights out. A plain class, used by the one-process
loop and, unchanged, by the Ray Train job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap.data.features import FeatureStore
from raycap.models.accumulate import in_place
from raycap.models.precision import computing_in
from raycap.models.prefix import PrefixCaptioner
from raycap.models.weights import snapshot
from raycap.recipe import SCSTRecipe
from raycap.rewards.mix import Mix
from raycap.rl.advantages import Advantages, combine, shares_of
from raycap.rl.diagnostics import ratio_diagnostics
from raycap.rl.losses import denominator_of, importance_weights, policy_gradient_loss
from raycap.train.optimizing import Alone, Average, Group, clip_gradients, micro_batches, set_lr, warmup_linear
from raycap.train.views import training_views
from raycap.types import Lease, Rollouts, WeightsId, WeightSnapshot


class Learner:
    """Owns the policy and its optimizer.

    Dropout is off in the whole RL stage. A step's loss is worked through lease by lease and normalised over the whole
    step, so its gradient does not depend on how the step is cut.

    Args:
        captioner: the policy, trained in place.
        weights: of the reward components, constant or a `Mix`.
        group: the ranks that learn together; each `update` gets this rank's leases.
        seed: of the run: the captioner sees the views that generated the captions.
        precision: of products; parameters, sums and the optimizer are float32.
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
    ) -> None:
        self.seed, self.precision = seed, precision
        self.captioner, self.features, self.recipe = captioner.eval(), features, recipe
        self.mix = weights if isinstance(weights, Mix) else Mix.constant(weights)
        self.group = group or Alone()
        self.step, self.incarnation = 0, 0
        self.parameters = [p for p in captioner.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
        self.average = Average(captioner, recipe.ema)

    @property
    def weights_id(self) -> WeightsId:
        """Identity of the policy now, which generates step `self.step` at lag 0."""
        return WeightsId(self.incarnation, self.step)

    def publish(self) -> WeightSnapshot:
        """A copy of the policy now."""
        return snapshot(self.captioner, self.weights_id)

    def update(self, rollouts: Sequence[Rollouts]) -> dict[str, Any]:
        """One optimizer step on this rank's leases of a step; what was measured.

        Raises:
            WorkFailed: the gradient is not finite; nothing was changed.
        """
        recipe = self.recipe
        weights = self._weights()
        mixed = [combine(r.scores, weights, baseline=recipe.baseline, scaling=recipe.scaling) for r in rollouts]
        batches = [self._batch(r, a) for r, a in zip(rollouts, mixed, strict=True)]
        counts = [denominator_of(recipe.normalize, mask) for _, mask, _, _ in batches]
        denominator = self.group.sum_values([sum(counts)])[0]
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum, diagnostics = 0.0, []
        for rollout, mix, batch in zip(rollouts, mixed, batches, strict=True):
            if not len(batch[0]):
                continue
            seen = seen_by(self.captioner, self.features, rollout.lease, recipe, seed=self.seed, kept=mix.kept)
            loss, logprobs = self._accumulate(seen, batch, denominator)
            loss_sum += loss
            _, mask, behavior, _ = batch
            diagnostics.append(ratio_diagnostics(logprobs, behavior, mask))
        self.group.sum_gradients(self.parameters)
        norm = self._apply()
        return {
            "pg_loss": self.group.sum_values([loss_sum])[0],
            "grad_norm": norm,
            "lr": self.optimizer.param_groups[0]["lr"],
            **_mean_of(diagnostics),
            **_reward_figures(rollouts, mixed, self.mix.names, self.group),
            **{f"reward/{name}/weight": weight for name, weight in weights.items()},
            "rollouts": digest(rollouts),
        }

    def _weights(self) -> dict[str, float]:
        """Weights of the update that the log calls step `self.step` + 1.

        What hangs on `select` is known to rank 0, which alone looks at it.
        """
        mine = self.mix.at(self.step + 1)
        if not self.mix.has_state:
            return mine
        values = self.group.sum_values(list(mine.values()) if self.group.rank == 0 else [0.0] * len(mine))
        return dict(zip(mine, values, strict=True))

    def _batch(self, rollout: Rollouts, advantages: Advantages) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens, loss mask, behavior log-probabilities and advantages of the images that some component applies to."""
        device = self.parameters[0].device
        generation, images = rollout.generation, len(rollout.lease.prompts)
        rows = np.repeat(advantages.kept, generation.num_samples)
        width = generation.tokens.shape[1]
        mask = (np.arange(width)[None] < generation.lengths[:, None]).astype(np.float32)
        values = advantages.values.reshape(images * generation.num_samples)
        arrays = (generation.tokens, mask, generation.behavior_logprobs, values)
        return tuple(torch.from_numpy(a[rows]).clone().to(device) for a in arrays)  # type: ignore[return-value]

    def _accumulate(
        self, seen: Tensor, batch: tuple[Tensor, Tensor, Tensor, Tensor], denominator: float
    ) -> tuple[float, Tensor]:
        """Gradients of a lease, a few images at a time: the memory is that of `micro_batch` captions, whatever the
        lease has, or of one image's K where these are more.

        Returns:
            The lease's loss, and its log-probabilities [N, T], without gradient.
        """
        loss_sum, logprobs = 0.0, []
        for images, rows in micro_batches(len(seen), self.recipe.num_samples, self.recipe.micro_batch):
            tokens, mask, behavior, advantages = (part[rows] for part in batch)
            loss, scored = self._loss(seen[images], tokens, mask, behavior, advantages, denominator)
            with in_place():
                loss.backward()
            loss_sum += float(loss.detach())
            logprobs.append(scored.detach())
        return loss_sum, torch.cat(logprobs)

    def _loss(
        self,
        seen: Tensor,
        tokens: Tensor,
        mask: Tensor,
        behavior: Tensor,
        advantages: Tensor,
        denominator: float,
    ) -> tuple[Tensor, Tensor]:
        recipe = self.recipe
        with computing_in(self.precision, tokens.device):
            conditioning = self.captioner.encode(seen)
            logprobs = self.captioner.score(conditioning, tokens, mask, temperature=recipe.temperature)
        weights = None
        if recipe.max_policy_lag > 0 and recipe.importance != "none":
            weights = importance_weights(logprobs, behavior, mask, level=recipe.importance, cap=recipe.importance_cap)
        loss = policy_gradient_loss(
            logprobs, mask, advantages, normalize=recipe.normalize, denominator=denominator, weights=weights
        )
        return loss, logprobs

    def _apply(self) -> float:
        recipe = self.recipe
        norm = clip_gradients(self.parameters, recipe.grad_clip, step=self.step, remedy="lower scst.lr")
        factor = warmup_linear(self.step, warmup=recipe.warmup_steps, total=recipe.steps, floor=recipe.lr_floor)
        set_lr(self.optimizer, recipe.lr * factor)
        self.optimizer.step()
        self.average.update()
        self.step += 1
        return norm


def digest(rollouts: Sequence[Rollouts]) -> str:
    """Of all captions and rewards of some leases, samples and greedy: equal digests mean equal rollouts, bit by bit."""
    found = blake2b(digest_size=8)
    for rollout in rollouts:
        generation = rollout.generation
        found.update(f"{rollout.lease.step} {rollout.lease.number} {generation.greedy_captions}".encode())
        arrays: list[NDArray[Any]] = [generation.tokens, generation.lengths]
        for name in sorted(rollout.scores):
            arrays += [rollout.scores[name].rewards, rollout.scores[name].greedy_rewards]
        for array in arrays:
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _mean_of(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    if not records:
        return {}
    out = {name: sum(r[name] for r in records) / len(records) for name in records[0]}
    out["ratio_max_error"] = max(r["ratio_max_error"] for r in records)
    return out


def _reward_figures(
    rollouts: Sequence[Rollouts], mixed: Sequence[Advantages], names: Sequence[str], group: Group
) -> dict[str, Any]:
    """Means, spreads and shares by component over all ranks; sampled beside greedy, from step 0 on.

    A component that applies to no image of this step has no mean: a number there would look like a reward.
    """
    sums: dict[str, float] = {"leases": float(len(rollouts))}
    for name in names:
        sampled = _present([r.scores[name].rewards for r in rollouts])
        greedy = _present([r.scores[name].greedy_rewards for r in rollouts])
        sums |= {f"{name} sampled": sampled.sum(), f"{name} squares": (sampled**2).sum(), f"{name} n": sampled.size,
                 f"{name} greedy": greedy.sum(), f"{name} greedy n": greedy.size,
                 f"{name} magnitude": sum(a.magnitudes[name] for a in mixed),
                 f"{name} images": sum(a.applied[name] for a in mixed)}  # fmt: skip
    lengths = _present([r.generation.lengths for r in rollouts])
    sums |= {"length": lengths.sum(), "rows": lengths.size,
             "finished": _present([r.generation.finished for r in rollouts]).sum(),
             "left": sum(int((~a.kept).sum()) for a in mixed)}  # fmt: skip
    total = dict(zip(sums, group.sum_values([float(value) for value in sums.values()]), strict=True))
    out: dict[str, Any] = {}
    shares = shares_of({name: total[f"{name} magnitude"] for name in names})
    for name in names if total["leases"] else ():
        out[f"reward/{name}/share"] = shares[name]
        out[f"reward/{name}/images"] = int(total[f"{name} images"])
        if total[f"{name} images"]:
            mean = total[f"{name} sampled"] / total[f"{name} n"]
            out[f"reward/{name}/sampled"] = mean
            out[f"reward/{name}/spread"] = max(0.0, total[f"{name} squares"] / total[f"{name} n"] - mean**2) ** 0.5
            out[f"reward/{name}/greedy"] = total[f"{name} greedy"] / total[f"{name} greedy n"]
    out["images_without_reward"] = int(total["left"])
    if total["rows"]:
        out["length"], out["finished_share"] = total["length"] / total["rows"], total["finished"] / total["rows"]
    return out


def _present(arrays: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """All values that are numbers, float64 [n]; a component's None is NaN."""
    flat = np.concatenate([a.reshape(-1) for a in arrays]).astype(np.float64) if arrays else np.zeros(0)
    return flat[~np.isnan(flat)]


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
