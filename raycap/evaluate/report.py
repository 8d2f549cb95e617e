"""One HTML file about a run: what was gained, how sure that is, the curves, and pictures with their captions.

The page carries everything in itself (pictures as small JPEGs, plots as SVG), needs no script and no network, and is
read on a desk, on a telephone and on paper. What was lost is shown as openly as what was gained. Captions, ids and
names are untrusted text: the template escapes all of it.
"""

from __future__ import annotations

import base64
import io
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from raycap.data.images import UnusableImage, open_image
from raycap.evaluate.bootstrap import Comparison
from raycap.evaluate.plots import COLOURS, cider_plot, describe_curves, duration, seconds_plot, training_curves
from raycap.evaluate.results import ResultRow, Summary, mean_std
from raycap.evaluate.table import TITLES, figures, percent
from raycap.whole_file import write_whole

THUMBNAIL = 256  # pixels, the longer side
MOST_EVENTS = 50
_WHY_NO_PICTURE = {"image_missing": "picture missing", "image_too_large": "picture too large"}


@dataclass(frozen=True)
class Example:
    """A picture with what people and systems say about it.

    Args:
        picture: file of the image; None, missing or broken gives a placeholder.
        captions: by label, from the system before to the system after.
        scores: CIDEr-D of this image by label; a label may be missing.
    """

    image_id: str
    picture: Path | None
    references: tuple[str, ...]
    captions: Mapping[str, str]
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def last_caption(self) -> str:
        return list(self.captions.values())[-1] if self.captions else ""

    @property
    def last_score(self) -> float | None:
        return self.scores.get(list(self.captions)[-1]) if self.captions else None

    @property
    def gain(self) -> float | None:
        """Score of the last label less that of the first; None when there are not two."""
        scored = [self.scores.get(label) for label in self.captions]
        if len(scored) < 2 or scored[0] is None or scored[-1] is None:
            return None
        return scored[-1] - scored[0]


@dataclass(frozen=True)
class Report:
    """What goes onto the page; whatever is empty is left out of it.

    Args:
        rows: the systems from before to after, all seeds.
        summary: a paragraph in words; made from rows and comparisons when None.
        curves: a stage's records of log.jsonl, by stage.
        examples: all images that are known, best the whole split: the page counts gains and losses over all of them,
            and shows `images_per_group` in each group.
        stage_seconds: wall clock by stage, in the order they ran.
        facts: recipe, seed, versions, counts, skipped input, checkpoint, decoding ...: what makes the run repeatable.
        notes: sentences for the reader, such as warnings.
        comparisons: paired bootstraps; the summary tells those of its systems.
        seed: of the random sample of images.
    """

    title: str
    rows: Sequence[ResultRow]
    summary: str | None = None
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    comparisons: Sequence[Comparison] = ()
    seed: int = 0
    images_per_group: int = 8


def write_report(file: Path, report: Report) -> Path:
    """Writes the page, whole or not at all, and returns its path; the folder is made when missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, render_report(report))
    return file


def render_report(report: Report) -> str:
    """The page as a string."""
    environment = Environment(
        loader=PackageLoader("raycap.evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, thumbnail=thumbnail)
    stages = report.stage_seconds
    return environment.get_template("report.html").render(
        report=report,
        summary=report.summary or summary_in_words(report.rows, report.comparisons),
        about=_about_tiles(report.rows),
        tiles=_tiles(report.rows),
        figures=figures(report.rows, extra=True) if report.rows else None,
        titles=TITLES,
        several=len({row.label for row in report.rows}) > 1,
        cider=_inline(cider_plot(report.rows), "cider", "CIDEr-D of each system as bars; the figures are in the table"),
        curves=_curves(report.curves),
        time=_inline(seconds_plot(stages), "time", "; ".join(f"{k} {duration(v)}" for k, v in stages.items())),
        tally=_tally(report.examples),
        groups=_groups(report),
        events=[(stage, r) for stage, records in report.curves.items() for r in records if "event" in r],
        most_events=MOST_EVENTS,
    )


def summary_in_words(rows: Sequence[ResultRow], comparisons: Sequence[Comparison] = ()) -> str:
    """Which system, on which split, from where to where, and how sure that is: one paragraph."""
    block = _main_block(rows)
    if not block:
        return "There are no figures yet."
    last = block[-1]
    images = last.rows[0].num_images
    where = f"On {images:,} images of split {last.split}" if images else f"On split {last.split}"
    seeds = f", the mean of {len(last.rows)} seeds" if len(last.rows) > 1 else ""
    reached = f"reach a CIDEr-D of {last.mean['cider_d']:.3f}{seeds}"
    sentences = [f"{where}, {last.decoding} captions of {last.label} {reached}."]
    gains = [_gain_in_words(other, last, comparisons) for other in block[:-1]]
    if gains:
        sentences.append(f"That is {' and '.join(gains)}.")
    else:
        others = [s for s in mean_std(rows) if (s.label, s.split) == (last.label, last.split)]
        spoken = [s for s in others if s.decoding != last.decoding and "cider_d" in s.mean]
        sentences += [f"Its {s.decoding} captions reach {s.mean['cider_d']:.3f}." for s in spoken]
    return " ".join(sentences)


def _gain_in_words(other: Summary, last: Summary, comparisons: Sequence[Comparison]) -> str:
    before, after = other.mean["cider_d"], last.mean["cider_d"]
    found = [
        c
        for c in comparisons
        if (c.base, c.system, c.metric) == (other.label, last.label, "cider_d") and c.decoding in (None, last.decoding)
    ]
    sure = f" ({found[0].sureness})" if found else ""
    change = f"{percent(after / before - 1)} relative to" if before > 0 else f"{after - before:+.3f} against"
    return f"{change} {other.label}, which reaches {before:.3f}{sure}"


def thumbnail(picture: Path | None) -> dict[str, Any]:
    """`uri` (JPEG, at most 256 pixels a side), `width`, `height`; or `why` there is no picture."""
    if picture is None:
        return {"why": "no picture"}
    try:
        image = open_image(picture)
    except UnusableImage as error:
        return {"why": _WHY_NO_PICTURE.get(error.kind, "picture broken")}
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    # Without chroma subsampling: the edges of small drawn pictures would bleed.
    image.save(file, "JPEG", quality=86, subsampling=0, optimize=True)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return {"uri": f"data:image/jpeg;base64,{encoded}", "width": image.width, "height": image.height}


def _main_block(rows: Sequence[ResultRow]) -> list[Summary]:
    """The rows with CIDEr-D that share the first one's split and decoding: those that the summary compares."""
    known = [summary for summary in mean_std(rows) if "cider_d" in summary.mean]
    return [s for s in known if (s.split, s.decoding) == (known[0].split, known[0].decoding)]


def _about_tiles(rows: Sequence[ResultRow]) -> str:
    block = _main_block(rows)
    labels = " → ".join(dict.fromkeys(summary.label for summary in (block[:1] + block[-1:])))
    return f"{labels}, {block[0].decoding} captions" if block else ""


def _tiles(rows: Sequence[ResultRow]) -> list[dict[str, str]]:
    """The figures at the top of the page: before, after and difference of the main metrics."""
    block = _main_block(rows)
    if not block:
        return []
    first, last = block[0], block[-1]
    tiles = []
    for key, scale, unit in (
        ("cider_d", 1, ""),
        ("bleu_4", 1, ""),
        ("clipscore", 1, ""),
        ("bad_ending_rate", 100, "%"),
    ):
        if key not in last.mean or key not in first.mean:
            continue
        digits = 1 if unit else 3
        before, after = scale * first.mean[key], scale * last.mean[key]
        change = percent(after / before - 1) if before > 0 else ""
        if unit:
            change = f"{after - before:+.1f} points".replace("-", "−")
        tile = {"title": TITLES[key].removesuffix(" %"), "after": f"{after:.{digits}f}{unit}"}
        tiles.append(tile if first is last else {**tile, "before": f"{before:.{digits}f}{unit}", "change": change})
    return tiles


def _curves(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    drawn: list[dict[str, Any]] = []
    for stage, records in curves.items():
        words = describe_curves(records)
        picture = _inline(training_curves(records), f"curves-{len(drawn)}", f"Training curves of {stage}. {words}")
        if picture:
            drawn.append({"stage": stage, "picture": picture, "words": words})
    return drawn


def _tally(examples: Sequence[Example]) -> dict[str, Any] | None:
    """How many images gained, lost and stayed, over all that are known; None where there is no before and after."""
    compared = [example for example in examples if example.gain is not None]
    if not compared:
        return None
    first, *_, last = compared[0].captions
    more = sum((example.gain or 0.0) > 0 for example in compared)
    less = sum((example.gain or 0.0) < 0 for example in compared)
    same = len(compared) - more - less
    return {"all": len(compared), "more": more, "less": less, "same": same, "first": first, "last": last}


def _groups(report: Report) -> list[dict[str, Any]]:
    """A random sample, and both ends of the order by gain (or by score where there is one system)."""
    examples, most = list(report.examples), report.images_per_group
    if not examples or most < 1:
        return []
    chosen = random.Random(report.seed).sample(examples, min(most, len(examples)))
    groups = [{"name": "Random sample", "about": f"drawn with seed {report.seed}", "examples": chosen}]
    compared = sorted((e for e in examples if e.gain is not None), key=lambda e: e.gain or 0.0)
    scored = sorted((e for e in examples if e.last_score is not None), key=lambda e: e.last_score or 0.0)
    if compared:
        first, *_, last = compared[0].captions
        groups += [
            {"name": "Biggest gains", "about": f"CIDEr-D of {last} above {first}",
             "examples": [e for e in reversed(compared[-most:]) if (e.gain or 0.0) > 0]},
            {"name": "Biggest losses", "about": f"CIDEr-D of {last} below {first}",
             "examples": [e for e in compared[:most] if (e.gain or 0.0) < 0]},
        ]  # fmt: skip
    elif len(scored) > most:
        groups += [
            {"name": "Highest scores", "about": "by CIDEr-D of the image", "examples": scored[: -most - 1 : -1]},
            {"name": "Lowest scores", "about": "by CIDEr-D of the image", "examples": scored[:most]},
        ]
    return groups


def _inline(svg: bytes | None, name: str, label: str) -> Markup | None:
    """A plot as part of the page: the page's own colours and font, ids that are unique on it, its text as label."""
    if svg is None:
        return None
    text = svg.decode("utf-8")
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*;?\s*", "", text)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for purpose, colour in COLOURS.items():
        text = text.replace(colour, f"var(--plot-{purpose})")
    return Markup(text.replace("<svg ", f'<svg class="plot" role="img" aria-label="{escape(label)}" ', 1))
