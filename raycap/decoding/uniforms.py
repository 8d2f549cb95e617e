"""Counter-based random numbers: one uniform for (seed, step, prompt, sample, position), whoever asks, whenever.

So a caption does not depend on which worker drew it, on its batch mates, on refills or on retries. The generator is
Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the counter's four words are
position in the caption, sample, prompt and step, its key is the seed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

Words = NDArray[np.uint64]


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Ten rounds of Philox4x32 on arrays of 32-bit words held in uint64; all arrays broadcast against each other."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _32) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def caption_uniforms(
    seed: int, step: int, positions: NDArray[np.int64], num_samples: int, length: int
) -> NDArray[np.float64]:
    """The random numbers of a lease's captions.

    Args:
        seed: the run's, 0 ≤ seed < 2⁶⁴.
        step: of the training run, 0 ≤ step < 2³².
        positions: int64 [B], the prompts' places in the fixed order of the training images.
        num_samples: K.
        length: T, the length limit in tokens.

    Returns:
        float64 [B·K, T] in [0, 1), rows of an image as neighbours; more samples or tokens never change earlier ones.
    """
    token = np.arange(length, dtype=np.uint64)[None, None, :]
    sample = np.arange(num_samples, dtype=np.uint64)[None, :, None]
    prompt = np.asarray(positions, dtype=np.uint64)[:, None, None]
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    high, low, _, _ = philox((token, sample, prompt, np.full((1, 1, 1), step, np.uint64)), key)
    bits = (high << np.uint64(21)) | (low >> np.uint64(11))  # 53 bits, all that a double can hold
    return (bits * 2.0**-53).reshape(len(positions) * num_samples, length)
