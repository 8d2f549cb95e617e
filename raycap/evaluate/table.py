"""The table of figures: what stands in each cell, decided once for the terminal and for the report.

Rows are joined over seeds (mean ± sample standard deviation). A metric that could not be measured is a dash with a
footnote that says why, never a 0. The last column says by how much the last system's CIDEr-D differs from each row's.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raycap.evaluate.results import ResultRow, Summary, mean_std

WIDTH = 120  # characters, where the output is not a terminal
NO_VALUE = "–"
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Column:
    """A metric's column: the value times `scale`, with `digits` decimals, and ± over seeds where `spread`.

    An `extra` column is for the report, which has room, and there only when a row has that metric.
    """

    key: str
    title: str
    scale: float = 1.0
    digits: int = 3
    spread: bool = True
    extra: bool = False


COLUMNS = (
    Column("cider_d", "CIDEr-D"),
    Column("bleu_4", "BLEU-4"),
    Column("rouge_l", "ROUGE-L"),
    Column("meteor", "METEOR", extra=True),
    Column("spice", "SPICE", extra=True),
    Column("clipscore", "CLIPScore"),
    Column("refclipscore", "RefCLIPScore", extra=True),
    Column("bad_ending_rate", "bad endings %", scale=100.0, digits=1),
    Column("length", "length", digits=1, spread=False),
    Column("vocabulary", "words", digits=0, spread=False, extra=True),
    Column("novel_share", "novel %", scale=100.0, digits=0, spread=False, extra=True),
    Column("unsupported_gender_rate", "unsupported gender %", scale=100.0, digits=1, spread=False, extra=True),
    Column("self_retrieval_r1", "finds its picture % (R@1)", scale=100.0, digits=1, extra=True),
    Column("self_retrieval_r10", "R@10 %", scale=100.0, digits=1, extra=True),
    Column("distinct_1", "distinct-1 (samples)", extra=True),
    Column("distinct_2", "distinct-2 (samples)", extra=True),
    Column("mbleu_4", "mBLEU-4 (samples)", extra=True),
    Column("self_cider", "self-CIDEr (samples)", extra=True),
    Column("refcompare_own_refs", "RefCompare, own", extra=True),
    Column("refcompare_pooled", "RefCompare, pooled", extra=True),
)
TITLES = {column.key: column.title for column in COLUMNS}


@dataclass(frozen=True)
class Figures:
    """A table as text.

    Args:
        title: which split, how many images, which seeds.
        header: of all columns; the first `num_names` columns name the row, the others are figures.
        lines: cells, one tuple a row.
        blocks: numbers of the lines that begin another split or decoding, where several rows share one.
        footnotes: reasons, judge, meaning of ±; to be shown below.
        signatures: how the metrics were computed, each once.
    """

    title: str
    header: tuple[str, ...]
    num_names: int
    lines: tuple[tuple[str, ...], ...]
    blocks: tuple[int, ...]
    footnotes: tuple[str, ...]
    signatures: tuple[str, ...]


def figures(rows: Sequence[ResultRow], *, extra: bool = False) -> Figures:
    """The table of rows, joined over seeds as `mean_std` does.

    Args:
        extra: add the columns that need more room.
    """
    summaries = mean_std(rows)
    several_splits = len({summary.split for summary in summaries}) > 1
    notes = _Footnotes()
    columns = _columns(summaries, extra)
    gains, timed = _gains(summaries), any(summary.seconds is not None for summary in summaries)
    lines = []
    for summary, gain in zip(summaries, gains, strict=True):
        cells = [summary.label, *([summary.split] if several_splits else []), summary.decoding]
        cells += [_cell(summary, column, notes) for column in columns]
        cells += [NO_VALUE if summary.seconds is None else f"{summary.seconds:,.0f}"] if timed else []
        lines.append((*cells, *([gain] if any(gains) else [])))
    header = ["label", *(["split"] if several_splits else []), "decoding", *(column.title for column in columns)]
    header += ["seconds"] if timed else []
    header += [f"{summaries[-1].label} vs. row"] if any(gains) else []
    return Figures(
        title=_title(summaries),
        header=tuple(header),
        num_names=3 if several_splits else 2,
        lines=tuple(lines),
        blocks=_blocks(summaries),
        footnotes=(*notes.lines, *_unmarked(summaries, columns), *_about(summaries)),
        signatures=tuple(dict.fromkeys(row.signature for row in rows if row.signature)),
    )


def figures_table(rows: Sequence[ResultRow]) -> Table:
    """The same as a rich table, footnotes as its caption."""
    made = figures(rows)
    table = Table(
        title=Text(made.title),
        caption=Text("\n".join(made.footnotes)) if made.footnotes else None,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="dim",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    for number, title in enumerate(made.header):
        name = number < made.num_names
        # Two words stand one above the other: figures are narrow, and the table has to fit.
        table.add_column(title if name else title.replace(" ", "\n", 1), justify="left" if name else "right",
                         no_wrap=not name, overflow="fold", vertical="bottom")  # fmt: skip
    for number, line in enumerate(made.lines):
        if number in made.blocks:
            table.add_section()
        table.add_row(*(Text(cell) for cell in line), style="bold" if line[0] == made.lines[-1][0] else None)
    return table


def table_text(rows: Sequence[ResultRow], width: int = WIDTH) -> str:
    """The table as plain text of at most `width` columns, without colours; ends with a line break."""
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, force_terminal=False, legacy_windows=False).print(
        figures_table(rows)
    )
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


def print_table(rows: Sequence[ResultRow], file: TextIO | None = None) -> None:
    """Prints the table: in colours on a terminal, as plain text of `WIDTH` columns into a file or pipe."""
    console = Console(file=file)
    if console.is_terminal:
        console.print(figures_table(rows))
    else:
        console.file.write(table_text(rows))


def percent(value: float) -> str:
    """A relative difference with its sign: 0.1234 -> "+12.3%", with a true minus sign."""
    return f"{100 * value:+.1f}%".replace("-", "−")


class _Footnotes:
    """Numbers reasons in the order in which cells refer to them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        number = self._numbers.setdefault(text, len(self._numbers) + 1)
        return str(number).translate(_SUPERSCRIPTS)

    @property
    def lines(self) -> list[str]:
        return [f"{str(number).translate(_SUPERSCRIPTS)} {text}" for text, number in self._numbers.items()]


def _columns(summaries: Sequence[Summary], extra: bool) -> list[Column]:
    """Those about which a row says something: a value, or (unless the column is an extra one) why there is none."""
    measured = {key for summary in summaries for key in summary.mean}
    explained = {key for summary in summaries for key in summary.unavailable}
    main = [c.key for c in COLUMNS if not c.extra and (c.key in measured or c.key in explained)]
    return [c for c in COLUMNS if c.key in main or (extra and c.extra and c.key in measured)]


def _cell(summary: Summary, column: Column, notes: _Footnotes) -> str:
    if column.key not in summary.mean:
        why = summary.unavailable.get(column.key)
        return NO_VALUE + (notes.mark(f"{column.title} unavailable: {why}") if why else "")
    text = f"{column.scale * summary.mean[column.key]:.{column.digits}f}"
    if column.spread and column.key in summary.std:
        text += f" ±{column.scale * summary.std[column.key]:.{column.digits}f}"
    return text


def _blocks(summaries: Sequence[Summary]) -> tuple[int, ...]:
    keys = [(summary.split, summary.decoding) for summary in summaries]
    if len(set(keys)) == len(keys):
        return ()
    return tuple(number for number in range(1, len(keys)) if keys[number] != keys[number - 1])


def _gains(summaries: Sequence[Summary]) -> list[str]:
    """Relative difference in CIDEr-D of the last row to each other one of the same split and decoding.

    Captions of another split or decoding are another comparison: those rows are held against the last row of their own.
    """
    last = {(summary.split, summary.decoding): summary for summary in summaries}
    gains = []
    for summary in summaries:
        other = last[summary.split, summary.decoding]
        before, after = (each.mean.get("cider_d") for each in (summary, other))
        comparable = other is not summary and other.label == summaries[-1].label
        gains.append(percent(after / before - 1) if comparable and before and after is not None else "")
    return gains


def _title(summaries: Sequence[Summary]) -> str:
    rows = [row for summary in summaries for row in summary.rows]
    parts = [f"split {', '.join(dict.fromkeys(row.split for row in rows))}"]
    counts = {f"{row.num_images:,}" for row in rows if row.num_images is not None}
    parts += [f"{counts.pop()} images"] if len(counts) == 1 else []
    seeds = sorted({row.seed for row in rows})
    parts.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    return ", ".join(parts) if rows else "no figures yet"


def _unmarked(summaries: Sequence[Summary], columns: Sequence[Column]) -> list[str]:
    """Reasons of metrics that were asked for and have no column here."""
    shown = {column.key for column in columns}
    missing = {key: why for summary in summaries for key, why in summary.unavailable.items() if key not in shown}
    return [f"{TITLES.get(key, key)} unavailable: {why}" for key, why in missing.items()]


def _about(summaries: Sequence[Summary]) -> list[str]:
    judges: dict[str, list[str]] = {}
    for summary in summaries:
        for judge in {row.judge for row in summary.rows if row.judge and "clipscore" in summary.mean}:
            judges.setdefault(judge, []).append(f"{summary.label} {summary.decoding}")
    about = []
    if judges:
        named = [judge if len(judges) == 1 else f"{judge} ({', '.join(of)})" for judge, of in judges.items()]
        about.append(f"CLIPScore by the judge {'; '.join(named)}")
    if any(summary.std for summary in summaries):
        about.append("±: sample standard deviation over seeds")
    return about
