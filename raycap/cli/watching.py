"""`raycap watch`: a stage that trains, live on the terminal: how far, how fast, rewards, who waits for whom."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raycap.cli.group import AnyPath, options
from raycap.errors import CheckpointError
from raycap.train.bottleneck import bottleneck, typical
from raycap.train.progress import clock
from raycap.train.tail import Tail

WINDOW = 50
"""Steps that means and the rate are taken over."""
_BARS = "▁▂▃▄▅▆▇█"


@click.command()
@click.argument("folder", type=AnyPath(), metavar="STORAGE/NAME/STAGE")
@click.option("--every", default=1.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Show it once and end.")
@options()
def watch(folder: Path, every: float, once: bool) -> None:
    """Watch a stage that trains (mle, scst, mle_continued) from any machine that sees its storage.

    It ends when the stage has ended; Ctrl-C ends the watching alone. Nobody tells it that a stage died: it shows how
    long ago the last line came, in red when that is longer than steps have taken.
    """
    _check_stage(folder)
    console, tail = Console(), Tail(folder / "log.jsonl")
    records: list[dict[str, Any]] = []

    def look() -> RenderableType:
        new, anew = tail.look()
        if anew:
            records.clear()
        records.extend(record for record in new if "step" in record)
        return view(folder.name, records, None if ended() else tail.age_s(time.time()))

    def ended() -> bool:
        return (folder / "finished.json").exists()

    if once:
        console.print(look())
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            last = ended()
            live.update(look(), refresh=True)
            if last:
                return
            time.sleep(every)


def _check_stage(folder: Path) -> None:
    """Raises CheckpointError where a folder is no stage; the stages below it are named."""
    if (folder / "stage.json").is_file():
        return
    below = sorted(file.parent for pattern in ("*", "*/*") for file in folder.glob(f"{pattern}/stage.json"))
    named = [str(stage.relative_to(folder)) for stage in below if (stage / "log.jsonl").exists()]
    what = "is no stage, but has stages below it" if named else "there is no such stage"
    remedy = f"add one of {', '.join(named)}" if named else "name its folder: STORAGE/NAME/scst"
    raise CheckpointError(what, key="folder", value=str(folder), remedy=remedy)


def view(label: str, records: Sequence[Mapping[str, Any]], age_s: float | None = None) -> RenderableType:
    """A stage's log as it is shown.

    Args:
        age_s: seconds since its last line; None where the stage has ended.
    """
    if not records:
        return Panel(Text("has not begun to train"), title=label)
    last, recent = records[-1], records[-WINDOW:]
    shown = [_progress(last, recent), *_figures(records, recent), *_waiting(recent), *_age(recent, age_s)]
    return Panel(Group(*shown), title=label)


def _progress(last: Mapping[str, Any], recent: Sequence[Mapping[str, Any]]) -> RenderableType:
    done, total = last["step"], last["total_steps"]
    first = recent[0]
    seconds, steps = last["seconds"] - first["seconds"], done - first["step"]
    rate = steps / seconds if seconds > 0 else 0.0
    line = Table.grid(padding=(0, 2))
    left = f"ETA {clock((total - done) / rate)}" if rate and done < total else ""
    line.add_row(ProgressBar(total=total, completed=done, width=20), f"{done:,} of {total:,} steps",
                 f"{rate:.2f} steps/s" if rate else "", left, f"trained for {clock(last['seconds'])}")  # fmt: skip
    return line


def _figures(records: Sequence[Mapping[str, Any]], recent: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    table = Table(box=None, padding=(0, 2))
    for name in ("", f"mean of {len(recent)} steps", "from the beginning"):
        table.add_column(name)
    drawn = [key for key in records[-1] if key.startswith("reward/") and key.endswith(("/sampled", "/greedy"))]
    drawn += [key for key in ("train_loss", "kl", "entropy", "ess", "policy_lag", "length") if key in records[-1]]
    for key in drawn:
        course = [r[key] for r in records if key in r]
        mean = sum(course[-len(recent) :]) / len(course[-len(recent) :])
        table.add_row(key, f"{mean:.3f}", sparkline(course))
    looks = [r["select_cider"] for r in records if "select_cider" in r]
    if looks:
        table.add_row("CIDEr-D on select", f"{looks[-1]:.3f} (best {max(looks):.3f})", sparkline(looks))
    yield table


def _waiting(recent: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    means = typical(recent)
    parts = [f"{part} {means[f'seconds/{part}']:.2f}" for part in ("wait", "learn", "publish", "look", "checkpoint")
             if f"seconds/{part}" in means]  # fmt: skip
    if parts:
        yield Text("learner, seconds a step: " + ", ".join(parts))
    if where := bottleneck(means):
        yield Text(where, style="yellow")
    warnings = [r["warning"] for r in recent if "warning" in r]
    if warnings:
        yield Text(warnings[-1], style="red")


_SILENT_S, _SILENT_STEPS = 30.0, 3.0
"""A stage is silent for long after so many seconds, and so many times the longest that a step took of late."""


def _age(recent: Sequence[Mapping[str, Any]], age_s: float | None) -> Iterator[RenderableType]:
    if age_s is None:
        return
    longest = max((b["seconds"] - a["seconds"] for a, b in itertools.pairwise(recent)), default=0.0)
    if age_s < max(_SILENT_S, _SILENT_STEPS * longest):
        yield Text(f"last line {age_s:.0f} s ago", style="dim")
    else:
        yield Text(f"last line {clock(age_s)} ago, and no step took longer than {clock(longest)}: it waits for room, "
                   "hangs or is dead; the job's log says more", style="red")  # fmt: skip


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """A course of values as bars, means of neighbours where there are more than `width`. What hardly moves is flat."""
    count = min(width, len(values))
    cuts = [round(n * len(values) / count) for n in range(count + 1)] if count else []
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    moves = high - low > 1e-3 * max(abs(high), abs(low))
    scale = (len(_BARS) - 1) / (high - low) if moves else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)
