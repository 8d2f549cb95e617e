from __future__ import annotations

import io
from collections.abc import Mapping

from raycap.evaluate.results import ResultRow
from raycap.evaluate.table import figures, percent, print_table, table_text

METRICS = {"bleu_4": 0.31, "rouge_l": 0.521, "clipscore": 0.61, "bad_ending_rate": 0.0125, "length": 10.24}


def row(
    label: str,
    cider: float,
    *,
    seed: int = 0,
    decoding: str = "greedy",
    seconds: float | None = 312.4,
    **changed: object,
) -> ResultRow:
    metrics: Mapping[str, float] = {"cider_d": cider, **METRICS}
    more = {"num_images": 400, "judge": "scenes-judge", **changed}
    return ResultRow(label, label, "test", decoding, seed, metrics, seconds, **more)  # type: ignore[arg-type]


def cells(text: str, label: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [label])


def test_one_seed() -> None:
    text = table_text([row("mle_best", 0.8), row("mle_continued", 0.75), row("scst", 0.9, seconds=1512)])
    assert cells(text, "mle_best") == [
        "mle_best",
        "greedy",
        "0.800",
        "0.310",
        "0.521",
        "0.610",
        "1.2",
        "10.2",
        "312",
        "+12.5%",
    ]
    assert cells(text, "mle_continued")[-1] == "+20.0%"
    assert cells(text, "scst") == ["scst", "greedy", "0.900", "0.310", "0.521", "0.610", "1.2", "10.2", "1,512"]
    assert text.startswith("split test, 400 images, seed 0\n")
    assert "CLIPScore by the judge scenes-judge" in text
    assert "±" not in text


def test_plain_text_fits_and_has_no_escape_codes() -> None:
    rows = [row(label, 0.8, seed=seed) for label in ("mle_best", "mle_continued", "scst") for seed in (0, 1, 2)]
    text = table_text(rows)
    assert max(len(line) for line in text.splitlines()) <= 120
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "mle_continued" in text  # not broken in two


def test_several_seeds_are_mean_and_deviation() -> None:
    rows = [row("mle", value, seed=seed) for seed, value in enumerate((0.7, 0.8, 0.9))]
    rows += [row("scst", value, seed=seed) for seed, value in enumerate((0.9, 1.0, 1.1))]
    text = table_text(rows)
    assert cells(text, "mle")[2:4] == ["0.800", "±0.100"]
    assert cells(text, "mle")[-1] == "+25.0%"
    assert "seeds 0, 1, 2" in text
    assert "sample standard deviation over seeds" in text


def test_unavailable_is_a_footnote_and_never_a_zero() -> None:
    rows = [
        ResultRow("mle", "mle", "dev", "greedy", 0, {"cider_d": 0.5}, 1.0,
                  unavailable={"clipscore": "no judge", "meteor": "no Java"}),
        ResultRow("scst", "scst", "dev", "greedy", 0, {"cider_d": 0.6}, 2.0, unavailable={"clipscore": "no judge"}),
    ]  # fmt: skip
    text = table_text(rows)
    assert cells(text, "mle") == ["mle", "greedy", "0.500", "–¹", "1", "+20.0%"]
    assert text.count("¹ CLIPScore unavailable: no judge") == 1
    assert "METEOR unavailable: no Java" in text
    assert "BLEU-4" not in text  # nobody asked for it


def test_only_like_is_compared_with_like() -> None:
    rows = [row(label, cider, decoding=decoding) for label, cider, decoding in (
        ("mle", 0.5, "greedy"), ("mle", 0.8, "beam"), ("scst", 0.6, "greedy"), ("scst", 0.88, "beam"))]  # fmt: skip
    made = figures(rows)
    assert [(line[0], line[1], line[-1]) for line in made.lines] == [
        ("mle", "greedy", "+20.0%"),
        ("scst", "greedy", ""),
        ("mle", "beam", "+10.0%"),
        ("scst", "beam", ""),
    ]
    assert made.blocks == (2,)
    assert made.header[-1] == "scst vs. row"


def test_two_decodings_of_one_checkpoint_have_no_gain() -> None:
    made = figures([row("scst", 0.5, seconds=None), row("scst", 0.6, decoding="beam", seconds=None)])
    assert made.header == ("label", "decoding", "CIDEr-D", "BLEU-4", "ROUGE-L", "CLIPScore", "bad endings %", "length")
    assert made.blocks == ()


def test_a_base_of_zero_has_no_relative_difference() -> None:
    made = figures([row("broken", 0.0), row("mle", 0.5), row("scst", 0.6)])
    assert [line[-1] for line in made.lines] == ["", "+20.0%", ""]


def test_the_report_has_room_for_more() -> None:
    metrics = {"cider_d": 0.5, "meteor": 0.2}
    rows = [ResultRow("scst", "scst", "test", "greedy", 0, metrics, None, signature="raycap|ptb")]
    assert "METEOR" not in figures(rows).header
    assert "METEOR" in figures(rows, extra=True).header
    assert figures(rows).signatures == ("raycap|ptb",)


def test_judges_that_differ_are_told_apart() -> None:
    made = figures([row("mle", 0.5, judge="a"), row("scst", 0.6, judge="b")])
    assert "CLIPScore by the judge a (mle greedy); b (scst greedy)" in made.footnotes


def test_markup_in_a_label_is_text() -> None:
    assert "[bold]x" in table_text([row("[bold]x", 0.5)])


def test_into_a_file_it_is_plain() -> None:
    file = io.StringIO()
    print_table([row("mle", 0.5), row("scst", 0.6)], file)
    assert file.getvalue() == table_text([row("mle", 0.5), row("scst", 0.6)])


def test_no_rows() -> None:
    assert "no figures yet" in table_text([])


def test_percent() -> None:
    assert (percent(0.1234), percent(-0.05)) == ("+12.3%", "−5.0%")
