"""How sure is a difference between two systems on the same images: the paired bootstrap (Koehn 2004; Efron 1979).

Images are drawn with replacement, the same draw for both systems, and the difference of means is taken each time. That
is right for metrics that are a mean over images, and CIDEr-D of a corpus is one: the mean of its images' CIDEr-D, with
document frequencies from the evaluated references, which stay as they are. (BLEU of a corpus is not: its n-gram counts
are summed first.) The interval is about *other images of this kind*; how much a new training seed would change is in
the figures per seed, which stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raycap.errors import DataError

Floats = NDArray[np.float64]
_DRAWS_AT_ONCE = 2_000_000  # indices in memory: 16 MB


@dataclass(frozen=True)
class Comparison:
    """`system` against `base` on the same images.

    Args:
        base, system: labels.
        metric: its key, such as `cider_d`.
        base_mean, system_mean: over images (and seeds).
        low, high: interval of the difference system - base, at `confidence`.
        relative_low, relative_high: the same of the relative difference; None where a drawn base mean is not positive.
        p_value: two-sided, of the hypothesis that the difference is 0.
        per_seed: (base mean, system mean) of each seed; one pair when there is one seed.
        decoding: of both systems' captions, where it matters.
    """

    base: str
    system: str
    metric: str
    base_mean: float
    system_mean: float
    low: float
    high: float
    relative_low: float | None
    relative_high: float | None
    p_value: float
    num_images: int
    resamples: int
    confidence: float
    per_seed: tuple[tuple[float, float], ...]
    decoding: str | None = None

    @property
    def difference(self) -> float:
        return self.system_mean - self.base_mean

    @property
    def relative(self) -> float | None:
        """(system - base) / base; None when the base is not positive."""
        return self.difference / self.base_mean if self.base_mean > 0 else None

    @property
    def sureness(self) -> str:
        """The interval in words, relative where there is one: "95% interval +15.1% to +20.2%, p < 0.001"."""
        low, high = f"{self.low:+.3f}", f"{self.high:+.3f}"
        if self.relative_low is not None and self.relative_high is not None:
            low, high = f"{100 * self.relative_low:+.1f}%", f"{100 * self.relative_high:+.1f}%"
        return f"{100 * self.confidence:g}% interval {low} to {high}, {self.p_text}".replace("-", "−")

    @property
    def p_text(self) -> str:
        """The p-value as one writes it; below 1 / resamples nothing can be told apart."""
        return "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"


def paired_bootstrap(
    base: ArrayLike,
    system: ArrayLike,
    *,
    labels: tuple[str, str] = ("base", "system"),
    metric: str = "cider_d",
    decoding: str | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Percentile interval and p-value of the difference of two systems' means.

    The p-value shifts the drawn differences to mean 0, which is what the hypothesis says, and counts those at least as
    far out as the one observed, (1 + count) / (1 + resamples).

    Args:
        base, system: a value an image, float [N], or several seeds', float [S, N]: then the values are averaged over
            seeds first, and the interval is over images of that average. Row s of both is seed s; column n of both is
            the same image.
        labels, metric, decoding: what is compared, for whoever shows it.
        seed: of the draws; the same seed gives the same figures.

    Raises:
        DataError: shapes differ, no image, or a value that is not finite.
    """
    pair = _checked(base, system, labels)
    averaged: Floats = pair.mean(axis=1)
    drawn = _drawn_means(averaged, resamples, seed)
    differences: Floats = drawn[1] - drawn[0]
    observed = float(averaged[1].mean() - averaged[0].mean())
    # Rounding must not decide a tie: with few images many draws reproduce the observed difference exactly.
    far_out = np.abs(differences - observed) >= abs(observed) * (1 - 1e-12)
    low, high = _interval(differences, confidence)
    relative = _interval(differences / drawn[0], confidence) if (drawn[0] > 0).all() else (None, None)
    return Comparison(
        base=labels[0],
        system=labels[1],
        metric=metric,
        base_mean=float(averaged[0].mean()),
        system_mean=float(averaged[1].mean()),
        low=low,
        high=high,
        relative_low=relative[0],
        relative_high=relative[1],
        p_value=(1 + int(far_out.sum())) / (1 + resamples),
        num_images=averaged.shape[1],
        resamples=resamples,
        confidence=confidence,
        per_seed=tuple((float(one), float(other)) for one, other in pair.mean(axis=2).T),
        decoding=decoding,
    )


def _checked(base: ArrayLike, system: ArrayLike, labels: Sequence[str]) -> Floats:
    """Both systems as one array [2, S, N]."""
    arrays = [np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (base, system)]
    for label, values in zip(labels, arrays, strict=True):
        if values.ndim != 2 or values.size == 0:
            raise DataError("expected values [N] or [S, N] with at least one image", key=label, value=values.shape)
        if not np.isfinite(values).all():
            raise DataError("a value is NaN or infinite", key=label, value=int((~np.isfinite(values)).sum()))
    if arrays[0].shape != arrays[1].shape:
        shapes = f"{arrays[0].shape} and {arrays[1].shape}"
        raise DataError(f"paired values need the same seeds and images, not {shapes}", key=" and ".join(labels))
    return np.stack(arrays)


def _drawn_means(values: Floats, resamples: int, seed: int) -> Floats:
    """Means over images drawn with replacement, the same draw for both rows: [2, N] -> [2, resamples]."""
    draw = np.random.default_rng(seed)
    images = values.shape[1]
    chunk = max(1, _DRAWS_AT_ONCE // images)
    parts = []
    for start in range(0, resamples, chunk):
        drawn = draw.integers(images, size=(min(chunk, resamples - start), images))
        parts.append(np.stack([row[drawn].mean(axis=1) for row in values]))
    return np.concatenate(parts, axis=1)


def _interval(values: Floats, confidence: float) -> tuple[float, float]:
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
