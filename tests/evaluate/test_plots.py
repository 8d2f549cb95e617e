from __future__ import annotations

import io
import re
import sys
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from raycap.evaluate.plots import COLOURS, cider_plot, describe_curves, duration, seconds_plot, training_curves
from raycap.evaluate.results import ResultRow

MLE: list[dict[str, Any]] = [
    {"step": 10, "total_steps": 60, "seconds": 1.0},
    {"step": 20, "epoch": 1.0, "select_cider": 0.2, "select_xe_loss": 3.0, "best": True, "train_loss": 4.0},
    {"event": "checkpoint_broken", "step": 20, "epoch": 99.0, "select_cider": 9.0},
    {"step": 40, "epoch": 2.0, "select_cider": 0.5, "select_xe_loss": 2.0, "best": True, "train_loss": 2.5},
    {"step": 60, "epoch": 3.0, "select_cider": 0.4, "select_xe_loss": 2.1, "best": False, "train_loss": float("nan")},
]


def scst(steps: int, components: tuple[str, ...] = ("cider", "clip")) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    records: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        record: dict[str, Any] = {"step": step, "total_steps": steps, "pg_loss": 0.1}
        for name in components:
            record |= {f"reward/{name}/sampled": draw.normal(0.5, 0.1), f"reward/{name}/greedy": draw.normal(0.8, 0.1)}
        if step % 20 == 0:
            record |= {"select_cider": 0.7 + step / 1000, "best": True}
        records.append(record)
    return records


def rows(seeds: int) -> list[ResultRow]:
    made = [("mle_best", 0.8), ("scst", 0.9)]
    return [ResultRow(n, n, "test", "greedy", s, {"cider_d": c + 0.01 * s}, 1.0) for n, c in made for s in range(seeds)]


def texts(svg: bytes | None) -> list[str]:
    assert svg is not None
    return [(node.text or "").strip() for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_mle_shows_losses_and_marks_the_best_look() -> None:
    shown = texts(training_curves(MLE))
    for expected in (
        "cross-entropy, nats a token",
        "train",
        "select",
        "CIDEr-D on select",
        "best 0.500 at epoch 2",
        "epoch",
    ):
        assert expected in shown
    assert describe_curves(MLE) == (
        "Cross-entropy, nats a token: train from 4.000 to 2.500, select from 3.000 to 2.100. "
        "CIDEr-D on select: first 0.200, best 0.500 at epoch 2 of 3."
    )


def test_scst_shows_each_component_and_the_looks() -> None:
    shown = texts(training_curves(scst(100)))
    for expected in ("reward cider", "reward clip", "sampled", "greedy", "best 0.800 at step 100", "step"):
        assert expected in shown
    assert describe_curves(scst(100)).startswith("Reward cider: sampled from 0.")


def test_a_long_run_stays_a_small_picture() -> None:
    short, long = training_curves(scst(600)), training_curves(scst(20_000))
    assert short is not None
    assert long is not None
    assert len(long) < 1.5 * len(short) + 50_000


@pytest.mark.parametrize(
    "records", [[], [{"step": 1, "seconds": 2.0}], [{"event": "restart", "loss": 1.0, "epoch": 1}]]
)
def test_a_log_without_figures_has_no_picture(records: list[dict[str, Any]]) -> None:
    assert training_curves(records) is None
    assert describe_curves(records) == ""


def test_a_run_that_has_just_begun() -> None:
    assert training_curves(scst(1)) is not None
    assert training_curves(MLE[:2]) is not None


def test_clip_training_has_curves_too() -> None:
    log = [{"step": s, "epoch": s, "loss": 4.0 / s, "recall_at_1": 0.1 * s, "recall_at_5": 0.2 * s} for s in (1, 2, 3)]
    assert {"contrastive loss", "recall of the own caption", "at 1", "at 5"} <= set(texts(training_curves(log)))


def test_cider_bars_have_a_dot_for_each_seed() -> None:
    one, three = cider_plot(rows(1)), cider_plot(rows(3))
    assert {"mle_best", "scst", "0.800", "0.900"} <= set(texts(one))
    assert {"0.810", "0.910", "CIDEr-D, mean (dots: single seeds)"} <= set(texts(three))
    assert one is not None
    assert three is not None
    dots = [len(re.findall(rf"<use [^>]*fill: {COLOURS['ink']}", svg.decode())) for svg in (one, three)]
    assert dots[1] - dots[0] == 6
    assert cider_plot([]) is None


def test_decodings_are_named_where_they_differ() -> None:
    both = [*rows(1), ResultRow("scst", "scst", "test", "beam", 0, {"cider_d": 0.95}, 1.0)]
    assert "scst, beam" in texts(cider_plot(both))


def test_seconds_by_stage() -> None:
    shown = texts(seconds_plot({"prepare": 12.06, "mle": 312.0, "scst": 4980.0}))
    assert {"prepare", "12.1 s", "5 min 12 s", "1 h 23 min", "seconds, wall clock"} <= set(shown)
    assert seconds_plot({}) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (119.9, "2 min 0 s"),
        (3599.7, "1 h 0 min"),
        (5000, "1 h 23 min"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_names_are_plain_text() -> None:
    shown = texts(training_curves(scst(30, components=("cost_$x$<b>",))))
    assert "reward cost_$x$<b>" in shown


def test_png_is_a_picture_and_nothing_is_left_behind() -> None:
    before, loaded = dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    png = training_curves(MLE, "png")
    assert png is not None
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    assert picture.convert("RGBA").getpixel((0, 0))[3] == 0  # type: ignore[index]
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_the_same_records_give_the_same_bytes() -> None:
    assert training_curves(MLE) == training_curves(MLE)
