"""`raycap watch`: a stage that trains, live on the terminal: how far, how fast, rewards, who waits for whom."""

from __future__ import annotations

import itertools
import time
from collections import deque
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
from raycap.train.bottleneck import bottleneck
from raycap.train.progress import clock

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

    It ends when the stage has ended; Ctrl-C ends the watching alone.
    """
    if not folder.is_dir():
        raise CheckpointError("there is no such stage", key="folder", value=str(folder),
                              remedy="name its folder: STORAGE/NAME/scst")  # fmt: skip
    console = Console()
    if once:
        console.print(view(folder.name, _records(folder)))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            ended = (folder / "finished.json").exists()
            live.update(view(folder.name, _records(folder)), refresh=True)
            if ended:
                return
            time.sleep(every)


def _records(folder: Path) -> list[dict[str, Any]]:
    from raycap.train.journal import read_log

    return [r for r in read_log(folder) if "step" in r] if (folder / "log.jsonl").exists() else []


def view(label: str, records: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A stage's log as it is shown."""
    if not records:
        return Panel(Text("has not begun to train"), title=label)
    last, recent = records[-1], list(deque(records, WINDOW))
    return Panel(Group(_progress(last, recent), *_figures(records, recent), *_waiting(recent)), title=label)


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
    keys = {key for r in recent for key in r if key.startswith(("seconds/", "idle/"))}
    means = {key: sum(r.get(key, 0.0) for r in recent) / len(recent) for key in keys}
    parts = [f"{part} {means[f'seconds/{part}']:.2f} s" for part in ("wait", "learn", "publish")
             if f"seconds/{part}" in means]  # fmt: skip
    if parts:
        yield Text("a step of the learner: " + ", ".join(parts))
    if where := bottleneck(means):
        yield Text(where, style="yellow")
    warnings = [r["warning"] for r in recent if "warning" in r]
    if warnings:
        yield Text(warnings[-1], style="red")


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """A course of values as bars, means of neighbours where there are more than `width`. What hardly moves is flat."""
    count = min(width, len(values))
    cuts = [round(n * len(values) / count) for n in range(count + 1)] if count else []
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    moves = high - low > 1e-3 * max(abs(high), abs(low))
    scale = (len(_BARS) - 1) / (high - low) if moves else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)
