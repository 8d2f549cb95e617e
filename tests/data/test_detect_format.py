from __future__ import annotations

from pathlib import Path

import pytest

from raycap.data.detect import FORMATS, detect_format, import_dataset
from raycap.data.input_report import InputReport
from raycap.data.scenes.dataset import draw_scenes
from raycap.errors import DataError


def test_each_format_is_known_by_what_lies_there(tmp_path: Path, flickr8k: Path, write_picture) -> None:
    draw_scenes(tmp_path / "scenes", num_train=2, num_dev=0, num_test=1)
    write_picture(tmp_path / "csv" / "Images" / "a.jpg")
    (tmp_path / "csv" / "captions.txt").write_text("image,caption\na.jpg,a dog\n")
    write_picture(tmp_path / "folder" / "sub" / "a.jpg")
    write_picture(tmp_path / "karpathy" / "images" / "a.jpg")
    (tmp_path / "karpathy" / "dataset_flickr8k.json").write_text(
        '{"images": [{"filename": "a.jpg", "split": "test", "sentences": [{"raw": "a dog"}]}]}'
    )
    write_picture(tmp_path / "coco" / "val2017" / "1.jpg")
    (tmp_path / "coco" / "annotations").mkdir()
    (tmp_path / "coco" / "annotations" / "captions_val2017.json").write_text(
        '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": []}'
    )
    for name in FORMATS:
        root = flickr8k if name == "flickr8k" else tmp_path / name
        assert detect_format(root) == name
        assert len(import_dataset(root, report=InputReport())) == {"scenes": 3, "flickr8k": 6}.get(name, 1)
        assert import_dataset(root, format=name, report=InputReport()) == import_dataset(root, report=InputReport())


@pytest.mark.parametrize(
    "table",
    ["image,caption\nimages/a.jpg,a dog\n", "image,caption,split\na.jpg,a dog,test\n", "file,text\na.jpg,a dog\n"],
)
def test_a_users_own_table_is_a_folder_and_not_the_csv_layout(tmp_path: Path, write_picture, table: str) -> None:
    write_picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "captions.csv").write_text(table)
    assert detect_format(tmp_path) == "folder"
    report = InputReport()
    assert import_dataset(tmp_path, report=report)[0].captions == ("a dog",)
    report.raise_if_refused()


def test_a_captioners_own_format_is_taken_where_it_fits(tmp_path: Path, flickr8k: Path, write_picture) -> None:
    root = tmp_path / "both"
    write_picture(root / "images" / "a.jpg")
    (root / "captions.csv").write_text("image,caption\na.jpg,a dog\n")
    found = {like: detect_format(root, like) for like in ("auto", *FORMATS)}
    assert found == {"auto": "csv", "csv": "csv", "folder": "folder"} | dict.fromkeys(FORMATS[:4], "csv")
    assert {detect_format(flickr8k, like) for like in ("auto", *FORMATS)} == {"flickr8k"}
    (root / "captions.csv").write_text("image,caption,photographer\na.jpg,a dog,me\n")
    assert (detect_format(root), detect_format(root, "csv")) == ("folder", "csv")
    (root / "annotations").mkdir()
    (root / "annotations" / "captions_val2017.json").write_text("{}")
    (root / "dataset_coco.json").write_text("{}")
    assert [detect_format(root, like) for like in ("auto", "coco", "karpathy")] == ["karpathy", "coco", "karpathy"]


TABLES = {
    "captions.txt": "image,caption\n0.jpg,a dog\n",
    "captions.csv": "file,text,split\nImages/0.jpg,a dog,train\n",
    "words.jsonl": '{"image": "0.jpg"}\n{"Image": "0.jpg", "caption": null, "captions": ["a dog"]}\n',
    "Images/0.txt": "a dog\n",
}


@pytest.mark.parametrize("captions", TABLES)
def test_a_captioner_of_a_folder_reads_its_own_as_a_folder_whatever_lies_beside(
    tmp_path: Path, write_picture, captions: str
) -> None:
    """Flickr8k from Kaggle with the original lists: its `test` was mostly trained on, by the folder's own splits."""
    names = [f"{number}.jpg" for number in range(30)]
    for name in names:
        write_picture(tmp_path / "Images" / name)
    (tmp_path / captions).write_text(TABLES[captions])
    (tmp_path / "Flickr8k.token.txt").write_text("".join(f"{name}#0\ta dog\n" for name in names))
    (tmp_path / "Flickr_8k.testImages.txt").write_text("".join(f"{name}\n" for name in names[:15]))
    (tmp_path / "dataset_flickr8k.json").write_text("{}")
    assert {like: detect_format(tmp_path, like) for like in ("auto", "karpathy", "folder")} == {
        "auto": "flickr8k", "karpathy": "karpathy", "folder": "folder",
    }  # fmt: skip
    trained, asked = (
        import_dataset(tmp_path, format=detect_format(tmp_path, "folder"), splits=splits, report=InputReport(),
                       shares={"train": 0.9, "test": 0.1})
        for splits in ({"train", "test"}, {"test"})
    )  # fmt: skip
    assert {record.path for record in asked} == {record.path for record in trained if record.split == "test"}
    listed = import_dataset(tmp_path, format="flickr8k", splits={"test"}, report=InputReport())
    assert {record.path for record in listed} & {record.path for record in trained if record.split == "train"}


def test_other_data_sets_than_its_own_are_read_as_what_they_are(tmp_path: Path, flickr8k: Path, write_picture) -> None:
    """What is no table of captions says nothing: results, and the table that scenes have."""
    (flickr8k / "results.csv").write_text("metric,value\nbleu,0.3\n")
    (flickr8k / "judged.jsonl").write_text('{"image": "10_a.jpg", "score": 1}\n')
    assert detect_format(flickr8k, "folder") == "flickr8k"
    write_picture(tmp_path / "coco" / "val2017" / "1.jpg")
    (tmp_path / "coco" / "captions_val2017.json").write_text("{}")
    assert detect_format(tmp_path / "coco", "folder") == "coco"
    draw_scenes(tmp_path / "scenes", num_train=2, num_dev=0, num_test=1)
    assert detect_format(tmp_path / "scenes", "folder") == "scenes"
    as_scenes, as_folder = (
        {record.path: record.split for record in import_dataset(tmp_path / "scenes", format=name, report=InputReport())}
        for name in ("scenes", "folder")
    )
    assert as_scenes == as_folder


def test_without_dev_an_image_without_a_split_is_in_train(tmp_path: Path, write_picture) -> None:
    for number in range(40):
        write_picture(tmp_path / f"{number}.jpg")
    counts = {}
    for asked in (None, {"train", "test"}, {"train", "dev"}):
        records = import_dataset(tmp_path, format="folder", splits=asked, report=InputReport())
        counts[str(asked)] = [[r.split for r in records].count(split) for split in ("train", "dev", "test")]
    (whole, without, no_test) = counts.values()
    assert min(whole) > 0
    assert without == [whole[0] + whole[1], 0, whole[2]]
    assert no_test == [*whole[:2], 0]


def test_what_is_not_recognised_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "mail.txt").write_text("hello")
    with pytest.raises(DataError, match=r"Looked for: .*Flickr8k\.token\.txt.*Found: letters/, mail\.txt"):
        detect_format(tmp_path)


def test_roots_that_are_not_there_and_unknown_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root = .*gone.*no such folder"):
        import_dataset(tmp_path / "gone", report=InputReport())
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="a file and not a folder"):
        detect_format(tmp_path / "file")
    with pytest.raises(DataError, match=r"data\.format = 'voc'.*auto, scenes"):
        import_dataset(tmp_path, format="voc", report=InputReport())
    with pytest.raises(DataError, match=r"split = 'val'"):
        import_dataset(tmp_path, format="folder", splits={"val"}, report=InputReport())
