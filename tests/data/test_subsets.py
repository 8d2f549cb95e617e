from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.data.folders import IMAGE_FOLDERS
from raycap.data.subsets import cut_select, cut_web, default_select_size, labelled_subset, shares_of, split_by_hash
from raycap.errors import DataError

IDS = [f"{number:04d}.jpg" for number in range(2000)]
ids_lists = st.lists(st.text(min_size=1, max_size=6), unique=True, min_size=3, max_size=60)


@given(ids_lists, st.integers(0, 2**31), st.data())
def test_smaller_labelled_subsets_lie_inside_larger_ones(ids: list[str], seed: int, data: st.DataObject) -> None:
    small = data.draw(st.integers(1, len(ids)))
    large = data.draw(st.integers(small, len(ids)))
    inner, outer = (labelled_subset(ids, num_labeled=size, seed=seed) for size in (small, large))
    assert set(inner) <= set(outer) <= set(ids)
    assert (len(inner), len(outer)) == (small, large)
    assert inner == sorted(inner)


@given(ids_lists, st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_cuts_do_not_depend_on_the_order_of_input(ids: list[str], seed: int, random: object) -> None:
    mixed = list(ids)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert labelled_subset(ids, num_labeled=2, seed=seed) == labelled_subset(mixed, num_labeled=2, seed=seed)
    assert cut_select(ids, seed, 2) == cut_select(mixed, seed, 2)
    assert cut_web(ids, 0.4, seed) == cut_web(mixed, 0.4, seed)


@given(ids_lists, st.integers(0, 2**31), st.floats(0, 0.99))
def test_web_and_pool_share_no_image_and_lose_none(ids: list[str], seed: int, share: float) -> None:
    web, pool = cut_web(ids, share, seed)
    assert sorted(web + pool) == sorted(ids)
    assert len(web) == round(share * len(ids))
    assert set(web) <= set(cut_web(ids, min(share + 0.2, 0.99), seed)[0])


def test_the_hundred_are_among_the_thousand_and_another_seed_gives_others() -> None:
    hundred, thousand = (labelled_subset(IDS, num_labeled=size, seed=3) for size in (100, 1000))
    assert set(hundred) < set(thousand)
    assert hundred != labelled_subset(IDS, num_labeled=100, seed=4)
    assert labelled_subset(IDS, labeled_fraction=0.05, seed=3) == hundred
    assert labelled_subset(IDS, seed=3) == IDS


def test_cuts_are_the_same_on_every_machine() -> None:
    assert labelled_subset(IDS, num_labeled=3, seed=0) == ["0096.jpg", "0318.jpg", "1892.jpg"]
    assert cut_select(IDS, 0, 3) == ["0361.jpg", "0933.jpg", "1160.jpg"]
    assert [name for name in IDS[:30] if split_by_hash(name, 0) == "dev"] == [
        "0008.jpg",
        "0009.jpg",
        "0014.jpg",
        "0015.jpg",
    ]


def test_select_has_the_size_of_the_design() -> None:
    assert [default_select_size(number) for number in (0, 1, 2, 9, 100, 6000)] == [0, 0, 1, 1, 10, 500]
    assert len(cut_select(IDS, 0)) == 200
    assert cut_select(IDS, 0, 0) == []


def test_few_label_runs_get_no_more_select_images_than_labels() -> None:
    few = cut_select(IDS, 0, num_labeled=50)
    assert len(few) == 50
    assert set(few) < set(cut_select(IDS, 0))


@pytest.mark.parametrize(
    "sizes",
    [{"num_labeled": 0}, {"num_labeled": 2001}, {"labeled_fraction": 0.0}, {"labeled_fraction": 1.2},
     {"num_labeled": 5, "labeled_fraction": 0.5}],
)  # fmt: skip
def test_impossible_sizes_name_key_and_value(sizes: dict[str, float]) -> None:
    with pytest.raises(DataError, match=next(iter(sizes))):
        labelled_subset(IDS, seed=0, **sizes)  # type: ignore[arg-type]


def test_impossible_cuts_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.select_size = 2000"):
        cut_select(IDS, 0, 2000)
    with pytest.raises(DataError, match=r"data\.web_share = 1\.0"):
        cut_web(IDS, 1.0, 0)
    with pytest.raises(DataError, match="shares"):
        split_by_hash("a", 0, {"train": 0.5})
    with pytest.raises(DataError, match="shares"):
        split_by_hash("a", 0, {"train": 0.5, "validation": 0.5})


def test_splits_by_hash_meet_their_shares_on_average_and_move_no_image_when_one_is_added() -> None:
    before = {name: split_by_hash(name, 1) for name in IDS}
    assert {split: list(before.values()).count(split) for split in ("dev", "test")} == pytest.approx(
        {"dev": 200, "test": 200}, abs=45
    )
    assert {name: split_by_hash(name, 1) for name in [*IDS, "new.jpg"]} == before | {
        "new.jpg": split_by_hash("new.jpg", 1)
    }
    assert {split_by_hash(name, 1, {"test": 1.0}) for name in IDS} == {"test"}


@pytest.mark.parametrize("folder", IMAGE_FOLDERS)
def test_the_split_hangs_on_the_path_inside_the_folder_of_pictures(folder: str) -> None:
    """Whatever an importer calls the picture: `images/a.jpg` of a folder is `a.jpg` of the CSV layout."""
    for number in range(200):
        for path in (f"{number}.jpg", f"deep/{number}.jpg"):
            assert split_by_hash(f"{folder}/{path}", 3) == split_by_hash(path, 3)
    assert len({split_by_hash(f"{folder}/{number}.jpg", 3) for number in range(200)}) == 3


def test_pictures_of_one_name_in_many_albums_are_in_every_split() -> None:
    """Cameras number anew in each album; by the name alone all of them would be in one split."""
    splits = [split_by_hash(f"album{number}/photo.jpg", 0) for number in range(1000)]
    assert {split: splits.count(split) for split in ("dev", "test")} == pytest.approx({"dev": 100, "test": 100}, abs=30)
    assert len({split_by_hash(f"album{number}/images/photo.jpg", 0) for number in range(100)}) == 3


def test_without_dev_its_share_is_trains_and_test_stays_what_it_is() -> None:
    names = [f"{number}.jpg" for number in range(400)]
    whole = {name: split_by_hash(name, 0) for name in names}
    for asked in (None, {"train", "dev"}, {"dev"}):
        assert {name: split_by_hash(name, 0, shares_of(asked)) for name in names} == whole
    without = {name: split_by_hash(name, 0, shares_of({"train", "test"})) for name in names}
    assert without == {name: "train" if split == "dev" else split for name, split in whole.items()}
