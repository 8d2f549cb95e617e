"""Pictures of a run as SVG or PNG bytes: training curves, the systems' CIDEr-D, seconds by stage.

Curves are drawn from the records of a stage's log.jsonl. Figures are built without pyplot, so nothing is left behind in
the process. Background is transparent and colours are readable on white and on black; they are told apart by people who
see red and green alike. In an SVG text stays text, and the colours are exactly those of `COLOURS`, so that a page may
replace them by its own.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raycap.evaluate.results import ResultRow, mean_std

Format = Literal["svg", "png"]
Records = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]

COLOURS = {"ink": "#6e7781", "line": "#a8b0b9", "first": "#2b83c6", "second": "#e0812b", "quiet": "#8fa3b5"}
"""By what they are for: text, axes and grid, the series that matters, the one beside it, bars in the background."""

_WIDTH = 4.1  # inches: about the width of half a page and of a telephone, so that text keeps its size
_MOST_POINTS = 600
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "raycap",  # the same figure gives the same bytes
    "text.parse_math": False,  # names come from recipes: a dollar is a dollar
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "grid.color": COLOURS["line"],
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.3,
}


@dataclass(frozen=True)
class _Series:
    label: str
    key: str
    colour: str


@dataclass(frozen=True)
class _Panel:
    """Series over one x axis. `looks` are few and exact: dots, the best one marked; the others are smoothed."""

    title: str
    series: tuple[_Series, ...]
    looks: bool = False


def training_curves(records: Records, format: Format = "svg") -> bytes | None:
    """Curves of one stage from its log; None when the log holds nothing that can be drawn.

    MLE: cross-entropy (training and `select`) and CIDEr-D on `select` by epoch. SCST: the mean reward of sampled and of
    greedy captions for every component, and CIDEr-D on `select` by step. CLIP: loss and recall by epoch.
    """
    axis, panels = _layout(records)
    panels = [panel for panel in panels if any(len(_points(records, axis, s.key)[0]) for s in panel.series)]
    if not panels:
        return None
    with rc_context(_STYLE):
        figure, axes = _figure(len(panels), 1.75 * len(panels) + 0.35)
        for panel, place in zip(panels, axes, strict=True):
            _draw(place, panel, records, axis)
        axes[-1].set_xlabel(axis)
        axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        return _bytes(figure, format)


def describe_curves(records: Records) -> str:
    """The same in words: where each curve starts and ends, and the best look at `select`; "" when nothing is drawn."""
    axis, panels = _layout(records)
    sentences = []
    for panel in panels:
        parts = [_in_words(series, panel, *_points(records, axis, series.key), axis) for series in panel.series]
        if any(parts):
            sentences.append(f"{panel.title}: {', '.join(part for part in parts if part)}.")
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _in_words(series: _Series, panel: _Panel, x: Floats, y: Floats, axis: str) -> str:
    if not len(x):
        return ""
    if panel.looks:
        best = int(np.argmax(y))
        return f"first {y[0]:.3f}, best {y[best]:.3f} at {axis} {x[best]:g} of {x[-1]:g}"
    ends = _smoothed(y)
    change = f"from {ends[0]:.3f} to {ends[-1]:.3f}"
    return f"{series.label} {change}" if len(panel.series) > 1 else change


def cider_plot(rows: Sequence[ResultRow], format: Format = "svg") -> bytes | None:
    """A bar of CIDEr-D a system, its mean over seeds, with a dot for each seed; None when no row has CIDEr-D."""
    summaries = [summary for summary in mean_std(rows) if "cider_d" in summary.mean]
    if not summaries:
        return None
    also = [name for name in ("split", "decoding") if len({getattr(summary, name) for summary in summaries}) > 1]
    names = [", ".join([summary.label, *(getattr(summary, name) for name in also)]) for summary in summaries]
    with rc_context(_STYLE):
        means = [summary.mean["cider_d"] for summary in summaries]
        emphasised = [summary.label == summaries[-1].label for summary in summaries]
        texts = [f"{mean:.3f}" for mean in means]
        reach = [max(summary.values("cider_d")) for summary in summaries]
        figure, place = _bars(names, means, texts, reach, emphasised)
        for number, summary in enumerate(summaries):
            if len(summary.rows) > 1:
                values = summary.values("cider_d")
                place.plot(values, [number] * len(values), "o", color=COLOURS["ink"], markersize=3.5, zorder=3)
        several = any(len(summary.rows) > 1 for summary in summaries)
        place.set_xlabel("CIDEr-D, mean (dots: single seeds)" if several else "CIDEr-D")
        return _bytes(figure, format)


def seconds_plot(stage_seconds: Mapping[str, float], format: Format = "svg") -> bytes | None:
    """A bar a stage, in the given order from top to bottom; None when there is no stage."""
    if not stage_seconds:
        return None
    seconds = list(stage_seconds.values())
    with rc_context(_STYLE):
        texts = [duration(value) for value in seconds]
        figure, place = _bars(list(stage_seconds), seconds, texts, seconds, [False] * len(seconds))
        place.set_xlabel("seconds, wall clock")
        return _bytes(figure, format)


def duration(seconds: float) -> str:
    """45.2 -> "45.2 s"; 156.7 -> "2 min 37 s"; 5000 -> "1 h 23 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _layout(records: Records) -> tuple[str, list[_Panel]]:
    """The x axis and the panels that fit what the log holds."""
    keys = dict.fromkeys(key for record in records if "event" not in record for key in record)
    looks = _Panel("CIDEr-D on select", (_Series("CIDEr-D", "select_cider", "first"),), looks=True)
    components = [key.removeprefix("reward/").removesuffix("/sampled") for key in keys if key.endswith("/sampled")]
    if components:
        return "step", [
            *(
                _Panel(
                    f"reward {name}",
                    (
                        _Series("sampled", f"reward/{name}/sampled", "first"),
                        _Series("greedy", f"reward/{name}/greedy", "second"),
                    ),
                )
                for name in components
            ),
            looks,
        ]
    loss = (_Series("train", "train_loss", "second"), _Series("select", "select_xe_loss", "first"))
    clip = (_Series("at 1", "recall_at_1", "first"), _Series("at 5", "recall_at_5", "second"))
    return "epoch", [
        _Panel("cross-entropy, nats a token", loss),
        _Panel("contrastive loss", (_Series("train", "loss", "second"),)),
        looks,
        _Panel("recall of the own caption", clip),
    ]


def _points(records: Records, axis: str, key: str) -> tuple[Floats, Floats]:
    """x and y of the records that hold both as finite numbers."""
    pairs = [
        (r[axis], r[key]) for r in records if "event" not in r and r.get(axis) is not None and r.get(key) is not None
    ]
    points = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    return points[:, 0], points[:, 1]


def _draw(place: Axes, panel: _Panel, records: Records, axis: str) -> None:
    place.set_title(panel.title, loc="left")
    place.grid(axis="y")
    place.yaxis.set_major_locator(MaxNLocator(nbins=5))
    for series in panel.series:
        x, y = _points(records, axis, series.key)
        colour = COLOURS[series.colour]
        if panel.looks or len(x) <= 40:
            place.plot(x, y, color=colour, linewidth=1.6, marker="o", markersize=3, label=series.label)
        else:
            place.plot(*_thinned(x, y), color=colour, linewidth=0.7, alpha=0.3)
            place.plot(*_thinned(x, _smoothed(y)), color=colour, linewidth=1.6, label=series.label)
        if panel.looks:
            best = int(np.argmax(y))
            place.plot(x[best], y[best], "o", markersize=8, markerfacecolor="none", color=COLOURS["second"])
            place.set_title(f"best {y[best]:.3f} at {axis} {x[best]:g}", loc="right", color=COLOURS["second"])
    if len(panel.series) > 1:  # on the title's line, where it can cover nothing
        place.legend(loc="lower right", bbox_to_anchor=(1.02, 1.0), ncols=2, borderaxespad=0, columnspacing=1.2)


def _smoothed(y: Floats) -> Floats:
    """Mean over a centred window of a tenth of the points, narrower at the ends."""
    window = max(1, len(y) // 10) | 1
    ones = np.ones(window)
    return np.convolve(y, ones, "same") / np.convolve(np.ones_like(y), ones, "same")


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most `_MOST_POINTS` points, means of neighbours: a page need not carry every step of a long run."""
    size = -(-len(x) // _MOST_POINTS)
    starts = np.arange(0, len(x), size)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _bars(
    names: Sequence[str],
    values: Sequence[float],
    texts: Sequence[str],
    reach: Sequence[float],
    emphasised: Sequence[bool],
) -> tuple[Figure, Axes]:
    """Horizontal bars from 0, the first on top, each with its text to the right of `reach`."""
    figure, axes = _figure(1, 0.33 * len(values) + 0.62)
    place = axes[0]
    colours = [COLOURS["first" if strong else "quiet"] for strong in emphasised]
    place.barh(range(len(values)), values, color=colours, height=0.62)
    place.set_yticks(range(len(values)), names)
    place.invert_yaxis()
    longest = max(*reach, 0.0) or 1.0
    place.set_xlim(0, 1.34 * longest)
    place.xaxis.set_major_locator(MaxNLocator(nbins=5))
    place.spines["left"].set_visible(False)
    for number, (text, value) in enumerate(zip(texts, reach, strict=True)):
        place.text(max(value, 0.0) + 0.025 * longest, number, text, va="center")
    return figure, place


def _figure(rows: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, squeeze=False, sharex=True)
    return figure, list(axes[:, 0])


def _bytes(figure: Figure, format: Format) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=format, transparent=True, dpi=160, metadata={"Date": None} if format == "svg" else None)
    return file.getvalue()
