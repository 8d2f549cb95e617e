from __future__ import annotations

import base64
import io
import random
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from raycap.evaluate.bootstrap import paired_bootstrap
from raycap.evaluate.report import Example, Report, render_report, summary_in_words, thumbnail, write_report
from raycap.evaluate.results import ResultRow

EVIL = "<script>alert('a \"dog\" & b')</script>"
VOID = {"meta", "img", "br", "use", "path"}


class Page(HTMLParser):
    """The elements of a page: tags, attributes and text; checks that what is opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def row(label: str, cider: float, *, seed: int = 0, decoding: str = "greedy", **more: Any) -> ResultRow:
    metrics = {"cider_d": cider, "bleu_4": 0.31, "clipscore": 0.62, "bad_ending_rate": 0.013}
    return ResultRow(label, label, "test", decoding, seed, metrics, 312.0, num_images=40, **more)


def examples(folder: Path | None, count: int = 40) -> list[Example]:
    draw = random.Random(0)
    made = []
    for number in range(count):
        picture = folder / f"{number}.png" if folder else None
        if picture:
            Image.new("RGB", (400, 300) if number % 2 else (64, 64), (number * 6, 90, 120)).save(picture)
        scores = {"mle_best": draw.random(), "scst": draw.random() + 0.1}
        captions = {"mle_best": f"a dog {number}", "scst": f"a brown dog {number}"}
        made.append(Example(f"image-{number}", picture, (f"the dog {number}", "an animal"), captions, scores))
    return made


def whole(folder: Path) -> Report:
    shown = examples(folder)
    before, after = ([e.scores[label] for e in shown] for label in ("mle_best", "scst"))
    scst: list[dict[str, Any]] = [
        {"step": s, "reward/cider/sampled": 0.5, "reward/cider/greedy": 0.8, "select_cider": 0.7} for s in range(1, 60)
    ]
    mle = [
        {"step": s, "epoch": s / 10, "train_loss": 3.0, "select_cider": 0.5, "select_xe_loss": 2.0} for s in (10, 20)
    ]
    return Report(
        title="scenes & more",
        rows=[
            row("mle_best", 0.8),
            row("scst", 0.9, judge="scenes-judge", signature="raycap|ptb", unavailable={"meteor": "no Java"}),
        ],
        curves={"mle": mle, "scst": [{"event": "checkpoint_broken", "folder": "step-000120"}, *scst]},
        examples=shown,
        stage_seconds={"prepare": 12.0, "mle": 312.0},
        facts={"recipe": "scenes", "skipped input": "nothing skipped"},
        notes=["Samples lay far below greedy."],
        comparisons=[paired_bootstrap(before, after, labels=("mle_best", "scst"), resamples=500)],
        images_per_group=5,
    )


def test_the_whole_page(tmp_path: Path) -> None:
    report = whole(tmp_path)
    file = write_report(tmp_path / "out" / "report.html", report)
    assert [p.name for p in file.parent.iterdir()] == ["report.html"]
    html = file.read_text(encoding="utf-8")
    page = Page(html)
    for figure in ("0.800", "0.900", "+12.5%", "0.310", "raycap|ptb", "CLIPScore by the judge scenes-judge",
                   "METEOR unavailable: no Java", "5 min 12 s", "nothing skipped", "Samples lay far below greedy.",
                   "checkpoint_broken", "folder step-000120", report.comparisons[0].sureness):  # fmt: skip
        assert figure in page.text, figure
    assert [attributes["id"] for attributes in page.all("section")] == [
        "figures",
        "training",
        "pictures",
        "notes",
        "facts",
    ]
    assert len(page.all("h1")) == 1
    assert all("scope" in attributes for attributes in page.all("th"))
    assert len(page.all("svg")) == 4
    assert all(attributes["aria-label"] for attributes in page.all("svg"))
    assert "prefers-color-scheme: dark" in html


def test_one_file_without_script_or_network(tmp_path: Path) -> None:
    html = render_report(whole(tmp_path))
    page = Page(html)
    assert not page.all("script") + page.all("link") + page.all("iframe")
    sources = [a[name] for _, a in page.elements for name in ("src", "href", "xlink:href") if name in a]
    assert sources
    assert all(source.startswith(("#", "data:image/jpeg;base64,")) for source in sources)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_ids_are_unique_and_found(tmp_path: Path) -> None:
    html = render_report(whole(tmp_path))
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'href="#([^"]+)"', html) + re.findall(r"url\(#([^)]+)\)", html)
    assert set(wanted) <= set(ids)


def test_untrusted_text_stays_text(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    evil = Example(EVIL, tmp_path / "a.png", (EVIL,), {"mle": "a", EVIL: EVIL}, {"mle": 0.1, EVIL: 0.2})
    record: dict[str, Any] = {"step": 1, f"reward/{EVIL}/sampled": 0.5, f"reward/{EVIL}/greedy": 0.5}
    rows = [
        row("mle", 0.5, signature=EVIL),
        ResultRow("scst", EVIL, "test", "greedy", 0, {"cider_d": 0.6}, 1.0, judge=EVIL),
    ]
    report = Report(EVIL, rows, curves={EVIL: [record, {"event": EVIL, "why": EVIL}]}, facts={EVIL: EVIL}, notes=[EVIL],
                    examples=[evil, Example("x", None, (), {"mle": "a", EVIL: EVIL})],
                    stage_seconds={EVIL: 1.0})  # fmt: skip
    html = render_report(report)
    page = Page(html)
    assert "<script" not in html.lower()
    assert page.all("img")[0]["alt"] == EVIL  # the parser gives back what was put in
    assert EVIL in page.text
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_pictures_are_small_and_told_in_words(tmp_path: Path) -> None:
    page = Page(render_report(whole(tmp_path)))
    pictures = page.all("img")
    assert 10 <= len(pictures) <= 15
    assert all(re.fullmatch(r"a brown dog \d+", attributes["alt"]) for attributes in pictures)
    for attributes in pictures:
        encoded = attributes["src"].removeprefix("data:image/jpeg;base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
        assert picture.format == "JPEG"
        assert picture.size == (int(attributes["width"]), int(attributes["height"])) in [(256, 192), (64, 64)]


def test_a_picture_that_cannot_be_shown_is_a_placeholder(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff no picture")
    assert thumbnail(None) == {"why": "no picture"}
    assert thumbnail(tmp_path / "gone.jpg") == {"why": "picture missing"}
    assert thumbnail(broken) == {"why": "picture broken"}
    shown = [Example(f"{n}", p, (), {"scst": "a dog"}, {}) for n, p in enumerate((None, tmp_path / "gone.jpg", broken))]
    page = Page(render_report(Report("t", [row("scst", 0.5)], examples=shown)))
    assert not page.all("img")
    for why in ("no picture", "picture missing", "picture broken"):
        assert why in page.text
    assert [a["aria-label"] for a in page.all("div") if a.get("class") == "placeholder"] == ["a dog"] * 3


def cards(html: str, group: str) -> list[str]:
    after = html.split(f"<h3>{group} ")[1].split("<h3>")[0].split("</section>")[0]
    return re.findall(r"References of (image-\d+)", after)


def test_gains_and_losses_are_both_shown_and_all_are_counted() -> None:
    shown = examples(None)
    html = render_report(Report("t", [row("mle_best", 0.5), row("scst", 0.6)], examples=shown, images_per_group=4))
    gains: Mapping[str, float] = {e.image_id: e.scores["scst"] - e.scores["mle_best"] for e in shown}
    order = sorted(gains, key=lambda image: gains[image])
    assert cards(html, "Biggest losses") == order[:4]
    assert cards(html, "Biggest gains") == order[::-1][:4]
    more = sum(gain > 0 for gain in gains.values())
    assert f"Of 40 images, {more} score higher with scst" in re.sub(r"\s+", " ", html)
    assert f"{40 - more} lower and 0 the same" in html


def test_the_sample_is_drawn_by_its_seed() -> None:
    def sample(seed: int) -> list[str]:
        report = Report("t", [], examples=examples(None), seed=seed, images_per_group=6)
        return cards(render_report(report), "Random sample")

    assert sample(1) == sample(1) != sample(2)
    assert len(set(sample(1))) == 6


def test_no_loss_is_said_and_not_left_out() -> None:
    better = [Example("a", None, ("r",), {"mle": "x", "scst": "y"}, {"mle": 0.1, "scst": 0.2})]
    html = render_report(Report("t", [row("mle", 0.1), row("scst", 0.2)], examples=better))
    assert "No image is one of these." in html.split("Biggest losses")[1]


@pytest.mark.parametrize("pictures", [True, False])
def test_one_checkpoint_with_two_decodings(tmp_path: Path, pictures: bool) -> None:
    shown = [
        Example(e.image_id, e.picture, e.references, {"greedy": e.captions["mle_best"], "beam": e.captions["scst"]},
                {"greedy": e.scores["mle_best"], "beam": e.scores["scst"]})
        for e in examples(tmp_path if pictures else None, 12)
    ]  # fmt: skip
    rows = [row("scst", 0.52), row("scst", 0.56, decoding="beam")]
    page = Page(render_report(Report("Evaluation of scst", rows, examples=shown)))
    assert "greedy captions of scst reach a CIDEr-D of 0.520. Its beam captions reach 0.560." in page.text
    assert [attributes["id"] for attributes in page.all("section")] == ["figures", "pictures"]
    assert not page.all("svg")


def test_one_system_alone_shows_both_ends_of_its_scores() -> None:
    shown = [Example(f"image-{n}", None, ("r",), {"scst": "a dog"}, {"scst": n / 10}) for n in range(10)]
    html = render_report(Report("t", [row("scst", 0.5)], examples=shown, images_per_group=3))
    assert cards(html, "Highest scores") == ["image-9", "image-8", "image-7"]
    assert cards(html, "Lowest scores") == ["image-0", "image-1", "image-2"]


def test_images_without_references_have_no_scores() -> None:
    shown = [Example("a", None, (), {"mle": "x", "scst": ""})]
    page = Page(render_report(Report("t", [], examples=shown)))
    assert "There are no figures yet." in page.text
    assert "No references of a" in page.text
    assert "(empty)" in page.text
    assert "Biggest" not in page.text


def test_an_empty_report_is_a_page() -> None:
    assert "There are no figures yet." in Page(render_report(Report("t", []))).text


def test_the_summary_says_how_sure_it_is() -> None:
    rows = [
        row(label, cider + seed / 100, seed=seed)
        for label, cider in (("mle", 0.49), ("scst", 0.59))
        for seed in (0, 1, 2)
    ]
    sure = paired_bootstrap([1.0, 1.0], [1.1, 1.3], labels=("mle", "scst"), decoding="greedy")
    other = paired_bootstrap([1.0, 1.0], [9.0, 9.0], labels=("mle", "scst"), decoding="beam")
    assert summary_in_words(rows, [other, sure]) == (
        "On 40 images of split test, greedy captions of scst reach a CIDEr-D of 0.600, the mean of 3 seeds. "
        "That is +20.0% relative to mle, which reaches 0.500 (95% interval +10.0% to +30.0%, p < 0.001)."
    )


def test_a_summary_of_ones_own_is_kept() -> None:
    assert "Nothing was trained." in render_report(Report("t", [row("scst", 0.5)], summary="Nothing was trained."))
