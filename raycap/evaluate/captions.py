"""Captions of many images from stored features: by greedy decoding or beam search, or several samples of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raycap.data.features import FeatureStore
from raycap.decoding.beam import beam_search
from raycap.decoding.sample import generate
from raycap.models.prefix import PrefixCaptioner
from raycap.train.validation import to_device


def caption_images(
    captioner: PrefixCaptioner,
    features: FeatureStore,
    image_ids: Sequence[str],
    *,
    decoding: str,
    max_length: int,
    beam_size: int = 3,
    batch_size: int = 100,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
    """Caption by image id, in the given order.

    Args:
        decoding: `greedy` or `beam`.
        max_length: limit in tokens, EOS included.
    """
    captioner.eval()
    captions: dict[str, str] = {}
    for start in range(0, len(image_ids), batch_size):
        ids = image_ids[start : start + batch_size]
        inputs = to_device(features, ids, captioner)
        if decoding == "beam":
            made = [text for text, _ in beam_search(captioner, inputs, beam_size=beam_size, max_length=max_length)]
        else:
            made = list(generate(captioner, inputs, num_samples=0, greedy=True, max_length=max_length).greedy_captions)
        captions.update(zip(ids, made, strict=True))
        progress(len(captions), len(image_ids))
    return captions


def sample_images(
    captioner: PrefixCaptioner,
    features: FeatureStore,
    image_ids: Sequence[str],
    *,
    num_samples: int,
    max_length: int,
    batch_size: int = 100,
    seed: int = 0,
) -> dict[str, tuple[str, ...]]:
    """`num_samples` captions of each image from the captioner's own distribution (temperature 1), by image id.

    An image's samples hang on `seed` and its place in `image_ids`, not on the batch.
    """
    captioner.eval()
    captions: dict[str, tuple[str, ...]] = {}
    for start in range(0, len(image_ids), batch_size):
        ids = image_ids[start : start + batch_size]
        made = generate(
            captioner, to_device(features, ids, captioner), positions=range(start, start + len(ids)),
            num_samples=num_samples, greedy=False, max_length=max_length, seed=seed,
        )  # fmt: skip
        rows = [made.captions[row : row + num_samples] for row in range(0, len(made.captions), num_samples)]
        captions.update(zip(ids, rows, strict=True))
    return captions
