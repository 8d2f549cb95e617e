"""What a learner's step says of itself in the log: losses, rewards by component, ratios, digests of its captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raycap.recipe import SCSTRecipe
from raycap.rl.advantages import Advantages, shares_of
from raycap.rl.diagnostics import ratio_diagnostics
from raycap.train.group import Group, gathered_json
from raycap.types import Lease, Rollouts


class Sums(dict[str, float]):
    """Figures that add up over the parts of a step."""

    def add(self, more: Mapping[str, float]) -> None:
        for name, value in more.items():
            self[name] = self.get(name, 0.0) + value


def digest(rollout: Rollouts) -> str:
    """Of all captions and rewards of a lease, samples and greedy: equal digests mean equal rollouts, bit by bit."""
    found, generation = blake2b(digest_size=8), rollout.generation
    found.update(f"{rollout.lease.step} {rollout.lease.number} {generation.greedy_captions}".encode())
    arrays: list[NDArray[Any]] = [generation.tokens, generation.lengths]
    for name in sorted(rollout.scores):
        arrays += [rollout.scores[name].rewards, rollout.scores[name].greedy_rewards]
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def prompts_digest(leases: Iterable[Lease]) -> str:
    """Of the images of a step's leases, in order: what an epoch went through can be told from the log."""
    return _joined(_prompts(lease) for lease in leases)


def _prompts(lease: Lease) -> str:
    said = "".join(f"{prompt.position} {prompt.image_id}\n" for prompt in lease.prompts)
    return blake2b(said.encode(), digest_size=8).hexdigest()


def _joined(digests: Iterable[str]) -> str:
    return blake2b(" ".join(digests).encode(), digest_size=8).hexdigest()


def lease_figures(rollouts: Sequence[Rollouts], ratios: Sequence[Mapping[str, float]], group: Group) -> dict[str, Any]:
    """Of the step's leases on all ranks: how far the policy is from those that sampled, and digests that do not hang on
    which rank had which lease.

    Args:
        rollouts: this rank's leases.
        ratios: by lease, `ratio_sums`; empty where nothing was learned of it.
    """
    mine = [(r.lease.number, _prompts(r.lease), digest(r), sums) for r, sums in zip(rollouts, ratios, strict=True)]
    leases = sorted(lease for part in gathered_json(group, mine) for lease in part)
    return {
        **ratio_diagnostics([sums for *_, sums in leases if sums]),
        "prompts": _joined(prompts for _, prompts, _, _ in leases),
        "rollouts": _joined(rollouts for _, _, rollouts, _ in leases),
    }


def loss_figures(sums: Mapping[str, float], recipe: SCSTRecipe, group: Group) -> dict[str, float]:
    """Losses and means a token over all ranks; the gradient's norm, the mean of several optimizer steps'."""
    names = ["pg_loss", "mle_loss", "tokens", "kl", "entropy", "clipped"]
    total = dict(zip(names, group.sum_values([float(sums.get(n, 0.0)) for n in names]), strict=True))
    descents, tokens = sums["descents"], max(1.0, total["tokens"])
    out = {"pg_loss": total["pg_loss"] / descents, "grad_norm": sums["grad_norm"] / descents}
    wanted = {"kl": recipe.kl_weight, "entropy": recipe.entropy_weight, "clipped": recipe.objective == "ppo"}
    out |= {name: total[name] / tokens for name, on in wanted.items() if on}
    return out | ({"mle_loss": total["mle_loss"] / descents} if recipe.mle_weight else {})


def reward_figures(
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
