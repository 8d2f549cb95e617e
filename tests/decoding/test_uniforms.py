from __future__ import annotations

import numpy as np
import pytest

from raycap.decoding.uniforms import caption_uniforms, philox

# Known answers of Random123's kat_vectors for philox4x32-10: counter, key, output
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = tuple(np.array([word], np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox(words, key)) == expected  # type: ignore[arg-type]


def slow_philox(counter: list[int], key: list[int]) -> list[int]:
    """Ten rounds in Python's own integers."""
    for _ in range(10):
        left, right = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (right >> 32) ^ counter[1] ^ key[0], right & 0xFFFFFFFF,
            (left >> 32) ^ counter[3] ^ key[1], left & 0xFFFFFFFF,
        ]  # fmt: skip
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


def test_one_number_for_each_seed_step_prompt_sample_and_position() -> None:
    seed, step, positions = 2**40 + 7, 11, np.array([5, 119_999])
    got = caption_uniforms(seed, step, positions, 3, 4).reshape(2, 3, 4)
    for b, prompt in enumerate(positions):
        for sample in range(3):
            for token in range(4):
                words = slow_philox([token, sample, int(prompt), step], [seed & 0xFFFFFFFF, seed >> 32])
                assert got[b, sample, token] == ((words[0] << 21) | (words[1] >> 11)) / 2**53


def test_more_samples_tokens_or_prompts_change_no_earlier_number() -> None:
    small = caption_uniforms(3, 7, np.array([9, 4]), 2, 5).reshape(2, 2, 5)
    large = caption_uniforms(3, 7, np.array([4, 1, 9]), 6, 20).reshape(3, 6, 20)
    np.testing.assert_array_equal(small[0], large[2, :2, :5])
    np.testing.assert_array_equal(small[1], large[0, :2, :5])


def test_the_numbers_are_uniform_and_all_different() -> None:
    numbers = caption_uniforms(0, 0, np.arange(200), 5, 20).ravel()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert len(np.unique(numbers)) == numbers.size
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    expected = numbers.size / 100
    assert ((counts - expected) ** 2 / expected).sum() < 149  # chi-square, 99 degrees of freedom, p = 0.001
    pairs = np.corrcoef(numbers[:-1], numbers[1:])[0, 1]
    assert abs(pairs) < 4 / np.sqrt(numbers.size)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"seed": 2**32}, {"step": 1}, {"positions": np.array([1])}])
def test_every_address_has_numbers_of_its_own(changed: dict[str, object]) -> None:
    base: dict[str, object] = {"seed": 0, "step": 0, "positions": np.array([0])}
    first = caption_uniforms(**base, num_samples=2, length=8)  # type: ignore[arg-type]
    other = caption_uniforms(**{**base, **changed}, num_samples=2, length=8)  # type: ignore[arg-type]
    assert not (first == other).any()
