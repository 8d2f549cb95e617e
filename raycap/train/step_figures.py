"""What a learner's step says of itself in the log: rewards by component, means over leases, digest of its captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raycap.rl.advantages import Advantages, shares_of
from raycap.train.group import Group
from raycap.types import Lease, Rollouts


class Sums(dict[str, float]):
    """Figures that add up over the parts of a step."""

    def add(self, more: Mapping[str, float]) -> None:
        for name, value in more.items():
            self[name] = self.get(name, 0.0) + value


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


def prompts_digest(leases: Iterable[Lease]) -> str:
    """Of the images of some leases, in order: what an epoch went through can be told from the log."""
    found = blake2b(digest_size=8)
    for lease in leases:
        for prompt in lease.prompts:
            found.update(f"{prompt.position} {prompt.image_id}\n".encode())
    return found.hexdigest()


def mean_of(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    if not records:
        return {}
    out = {name: sum(r[name] for r in records) / len(records) for name in records[0]}
    out["ratio_max_error"] = max(r["ratio_max_error"] for r in records)
    return out


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
