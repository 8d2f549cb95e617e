"""Cuts of the training images: `select`, `web`/`pool`, nested labelled subsets, seeded splits. All by image.

Each cut orders the ids by BLAKE2b of (seed, purpose, id) and takes the first ones. So a cut is the same on every
machine and in every order of input, a smaller one lies inside a larger one of the same seed, and adding an image moves
no other image across a hash threshold. Purposes keep the cuts independent of each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from hashlib import blake2b

from raycap.data.folders import IMAGE_FOLDERS
from raycap.errors import DataError

SELECT_MOST = 500
SELECT_SHARE = 0.1
DEFAULT_SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}


def hash_key(seed: int, purpose: str, image_id: str) -> int:
    """A number in [0, 2^64) from (seed, purpose, id), the same on every machine."""
    return int.from_bytes(blake2b(f"{seed}\0{purpose}\0{image_id}".encode(), digest_size=8).digest(), "big")


def hash_order(ids: Iterable[str], seed: int, purpose: str) -> list[str]:
    """The ids in the order of their hash, independent of the order they came in."""
    return sorted(ids, key=lambda image_id: (hash_key(seed, purpose, image_id), image_id))


def cut_select(ids: Iterable[str], seed: int, size: int | None = None, num_labeled: int | None = None) -> list[str]:
    """The images kept for model selection, sorted.

    Args:
        ids: captioned training images.
        size: how many; min(500, 10% of them) unless given, at least 1 where two images are there. 0 cuts nothing.
        num_labeled: in a few-label run, select holds no more captioned images than the run may read.

    Raises:
        DataError: `size` is negative or leaves nothing to train on.
    """
    pool = list(ids)
    wanted = default_select_size(len(pool)) if size is None else size
    if wanted < 0 or (wanted and wanted >= len(pool)):
        what = f"select must leave training images: {len(pool)} captioned ones are there"
        raise DataError(what, key="data.select_size", value=wanted, remedy="give a smaller size, or 0")
    if num_labeled is not None:
        wanted = min(wanted, num_labeled)
    return sorted(hash_order(pool, seed, "select")[:wanted])


def default_select_size(num_train: int) -> int:
    """min(500, 10% of train), at least 1 where that leaves an image to train on."""
    return min(SELECT_MOST, max(int(SELECT_SHARE * num_train), 1 if num_train > 1 else 0))


def cut_web(ids: Iterable[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """(web, pool), both sorted: `share` of the images, rounded, is web, whose captions only CLIPs see."""
    if not 0 <= share < 1:
        raise DataError("expected a share in [0, 1)", key="data.web_share", value=share)
    ordered = hash_order(ids, seed, "web")
    cut = round(share * len(ordered))
    return sorted(ordered[:cut]), sorted(ordered[cut:])


def labelled_subset(
    ids: Iterable[str], *, num_labeled: int | None = None, labeled_fraction: float | None = None, seed: int
) -> list[str]:
    """The images whose captions a run reads, sorted; all of `ids` when neither size is given.

    For one seed, a smaller subset lies inside every larger one (100 labelled images are among the 1,000).

    Raises:
        DataError: both sizes are given, or one is out of range.
    """
    available = list(ids)
    if num_labeled is not None and labeled_fraction is not None:
        raise DataError("give num_labeled or labeled_fraction, not both", key="num_labeled", value=num_labeled)
    if labeled_fraction is not None:
        if not 0 < labeled_fraction <= 1:
            raise DataError("expected a fraction in (0, 1]", key="labeled_fraction", value=labeled_fraction)
        num_labeled = max(1, round(labeled_fraction * len(available)))
    if num_labeled is None:
        return sorted(available)
    if not 0 < num_labeled <= len(available):
        what = f"{len(available)} captioned training images are there (select and web taken off)"
        raise DataError(what, key="num_labeled", value=num_labeled, remedy=f"give 1 to {len(available)}")
    return sorted(hash_order(available, seed, "labelled")[:num_labeled])


def split_by_hash(image_id: str, seed: int, shares: Mapping[str, float] | None = None) -> str:
    """The split of one image where a data set has no split of its own; adding images never moves it.

    Args:
        image_id: its path in the folder. One of `IMAGE_FOLDERS` at the top does not count: importers that name one
            picture `images/a.jpg` and `a.jpg` agree about its split.
        shares: of train, dev and test, sum 1 (0.8, 0.1, 0.1 unless given); met on average, not exactly.
    """
    shares = check_shares(shares)
    top, _, inside = image_id.partition("/")
    path = inside if inside and top in IMAGE_FOLDERS else image_id
    position = hash_key(seed, "split", path) / 2**64
    for split in ("test", "dev"):
        position -= shares.get(split, 0.0)
        if position < 0:
            return split
    return "train" if shares.get("train", 0.0) > 0 else max(shares, key=lambda split: shares[split])


def shares_of(splits: Collection[str] | None) -> Mapping[str, float]:
    """The shares for a run that imports these splits (None: all): without dev, its share stays in train.

    What is kept from training must be what the run reports on or may be asked for later: test keeps its share always.
    """
    if splits is None or "dev" in splits:
        return DEFAULT_SHARES
    return {"train": DEFAULT_SHARES["train"] + DEFAULT_SHARES["dev"], "dev": 0.0, "test": DEFAULT_SHARES["test"]}


def check_shares(shares: Mapping[str, float] | None) -> Mapping[str, float]:
    """The shares, or the default ones; raises DataError unless they are train, dev, test, not negative, sum 1."""
    if shares is None:
        return DEFAULT_SHARES
    fine = set(shares) <= set(DEFAULT_SHARES) and min(shares.values(), default=-1) >= 0
    if not fine or abs(sum(shares.values()) - 1) > 1e-9:
        raise DataError("expected shares of train, dev and test with sum 1", key="data.shares", value=dict(shares))
    return shares
