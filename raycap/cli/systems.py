"""Commands that caption with a trained system: `evaluate`, `caption`, `export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raycap.cli.group import (
    AnyPath,
    as_options,
    check_target,
    checkpoint_option,
    comma_list,
    device_option,
    json_text,
    max_pixels_option,
    metric_list,
    options,
    out_folder,
    write_json,
    write_text,
)
from raycap.cli.scoring import DEFAULT_METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raycap.data.input_report import InputReport
    from raycap.evaluate.on_data import Evaluation
    from raycap.evaluate.pictures import Opened
    from raycap.evaluate.system import Decoding, System

FORMATS = ("auto", "flickr8k", "csv", "coco", "karpathy", "folder", "scenes")
_DATA_OPTIONS = {
    "data.root": "--data", "data.skip": "--skip", "data.format": "--format", "data.max_pixels": "--max-pixels",
}  # fmt: skip
METRICS = (*DEFAULT_METRICS, "clipscore")
"""What `evaluate` computes, besides what the recipe names; a run keeps to its recipe, whose table should not wait."""
_METRICS, _PAGE, _INPUT, _CAPTIONS = "metrics.json", "report.html", "input.json", "captions.{}.json"
_FILTERS = ("top_k", "top_p", "min_length", "no_repeat_ngram")
_NUMBERS = ("num_captions", "length_penalty", "beam_groups", "diversity", "temperature", "seed")
_DECODING_OPTIONS = {name: f"--{name.replace('_', '-')}" for name in ("decoding", "beam_size", *_NUMBERS, *_FILTERS)}


@click.command()
@options(
    checkpoint_option,
    click.option("--data", required=True, type=AnyPath(), metavar="FOLDER", help="The data set."),
    click.option("--format", "format_", type=click.Choice(FORMATS), default="auto", show_default=True,
                 help="Layout of the data set; auto looks at what lies there, and takes the recipe's where it fits."),
    click.option("--split", type=click.Choice(["train", "dev", "test", "all"]), default="test", show_default=True,
                 help="Only its list and its photographs need to be there."),
    click.option("--out", type=AnyPath(), metavar="FOLDER",
                 help="Takes metrics.json, captions.greedy.json, captions.beam.json, report.html, input.json. Without "
                 "it the metrics go to standard output and nothing is written."),
    click.option("--skip", callback=comma_list, metavar="KIND,...|all",
                 help="Bad input that is left out and counted instead of refused, such as image_missing."),
    click.option("--metrics", callback=metric_list, metavar="NAME,...",
                 help="bleu, rouge, cider, meteor, spice, clipscore, refcompare. When not set, all but the last, which "
                 "needs the recipe to name it."),
    click.option("--beam-size", type=click.IntRange(min=1), help="Of the beam search; the recipe's when not set."),
    click.option("--batch-size", type=click.IntRange(min=1), help="Images at once; the recipe's when not set."),
    max_pixels_option,
    device_option,
)  # fmt: skip
def evaluate(**given: Any) -> None:
    """Caption a split of any data set with a checkpoint and score the captions.

    Greedy and beam captions; CLIPScore is by the judge of the checkpoint's run. A metric that cannot be computed (no
    judge, no Java) is `unavailable` with the reason. Progress and table go to standard error.
    """
    from raycap.data.subsets import shares_of
    from raycap.evaluate.on_data import evaluate_system, read_split, result_rows
    from raycap.evaluate.system import System
    from raycap.evaluate.table import print_table
    from raycap.train.progress import Progress

    out = out_folder(given["out"]) if given["out"] else None
    system = System.open(given["checkpoint"], given["device"])
    if out is not None:
        _empty(out)
    recipe = system.origin.recipe
    most = given["max_pixels"] or recipe.data.max_pixels
    with as_options(_DATA_OPTIONS):
        split = read_split(
            given["data"].absolute(), format=given["format_"], split=given["split"], skip=given["skip"] or (),
            seed=recipe.data.seed, shares=shares_of(recipe.data.splits), like=recipe.data.format, max_pixels=most,
            progress=Progress("check", "images", out=sys.stderr).update,
            when_refused=lambda report: _write_refused(out, report),
        )  # fmt: skip
    click.echo(split.report.summary(), err=True)
    evaluation = evaluate_system(
        system, split, given["metrics"] or tuple(dict.fromkeys((*METRICS, *recipe.evaluate.metrics))), max_pixels=most,
        beam_size=given["beam_size"] or recipe.evaluate.beam_size,
        batch_size=given["batch_size"] or recipe.evaluate.batch_size,
        progress=Progress("evaluate", "images", out=sys.stderr).update,
        when_captioned=lambda captions: _write_captions(out, captions),
    )  # fmt: skip
    print_table(result_rows(system, evaluation), sys.stderr)
    if out is None:
        click.echo(json_text(evaluation.metrics_json(), indent=1))
    else:
        _write_evaluation(out, system, evaluation)


def _empty(out: Path) -> None:
    """Remove the files of an evaluation before this one, whose input may have been another."""
    for name in (_METRICS, _PAGE, _INPUT, *(_CAPTIONS.format(decoding) for decoding in ("greedy", "beam"))):
        check_target(out / name, "--out")
        (out / name).unlink(missing_ok=True)


def _write_refused(out: Path | None, report: InputReport) -> None:
    if out is not None:
        report.write(out / _INPUT)


def _write_captions(out: Path | None, captions: Mapping[str, Mapping[str, str]]) -> None:
    """Of every decoding, as COCO results."""
    if out is None:
        return
    for decoding, spoken in captions.items():
        results = [{"image_id": image_id, "caption": caption} for image_id, caption in spoken.items()]
        write_json(out / _CAPTIONS.format(decoding), results)


def _write_evaluation(out: Path, system: System, evaluation: Evaluation) -> None:
    from raycap.evaluate.on_data import evaluation_report
    from raycap.evaluate.report import render_report

    write_json(out / _INPUT, evaluation.split.report.to_json())
    write_text(out / _PAGE, render_report(evaluation_report(system, evaluation)))
    write_json(out / _METRICS, evaluation.metrics_json())  # last: where it is, everything is
    click.echo(f"metrics: {out / _METRICS}\nreport: {out / _PAGE}", err=True)


@click.command()
@click.argument("pictures", nargs=-1, required=True, type=AnyPath(), metavar="FILE|FOLDER...")
@options(
    checkpoint_option,
    click.option("--decoding", type=click.Choice(["greedy", "beam", "sample"]), default="greedy", show_default=True),
    click.option("--num-captions", type=click.IntRange(min=1), default=1, show_default=True,
                 help="Captions an image, of --decoding sample or beam; several come as a list `captions`."),
    click.option("--beam-size", type=click.IntRange(min=1), help="Of --decoding beam; the recipe's when not set."),
    click.option("--length-penalty", type=float, default=1.0, show_default=True,
                 help="Of --decoding beam: scores are log-probability / length^penalty."),
    click.option("--beam-groups", type=click.IntRange(min=1), default=1, show_default=True,
                 help="Of --decoding beam: groups whose words differ (diverse beam search)."),
    click.option("--diversity", type=click.FloatRange(min=0), default=0.0, show_default=True,
                 help="What a word costs for each earlier group that has it in the same place."),
    click.option("--temperature", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
                 help="Of --decoding sample."),
    click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True,
                 help="Of --decoding sample."),
    click.option("--top-k", type=click.IntRange(min=0), default=0, help="Of --decoding sample: only so many words."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0,
                 help="Of --decoding sample: only the likeliest words that together have this probability."),
    click.option("--min-length", type=click.IntRange(min=0), default=0, help="Tokens before a caption may end."),
    click.option("--no-repeat-ngram", type=click.IntRange(min=0), default=0,
                 help="So many tokens in a row are not said twice."),
    click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images at once."),
    max_pixels_option,
    device_option,
)  # fmt: skip
def caption(pictures: tuple[Path, ...], checkpoint: Path, device: str, **given: Any) -> None:
    """Caption pictures: one JSON line {"image": .., "caption": ..} each, in the order given.

    Folders are searched with their sub-folders, in sorted order. A file that cannot be read gives {"image": ..,
    "error": ..}; the others go on, and the exit code is 1.
    """
    from raycap.decoding.filters import Filters
    from raycap.errors import WorkFailed
    from raycap.evaluate.pictures import find_pictures, picture_batches
    from raycap.evaluate.system import Decoding, System
    from raycap.train.progress import Progress

    files = find_pictures(pictures)
    system = System.open(checkpoint, device)
    recipe = system.origin.recipe
    with as_options(_DECODING_OPTIONS):
        decoding = Decoding(
            given["decoding"], beam_size=given["beam_size"] or recipe.evaluate.beam_size,
            filters=Filters(**{name: given[name] for name in _FILTERS}), **{name: given[name] for name in _NUMBERS},
        )  # fmt: skip
    # lines on a terminal are progress enough
    progress = None if sys.stdout.isatty() else Progress("caption", "images", out=sys.stderr)
    failed = 0
    most = given["max_pixels"] or recipe.data.max_pixels
    for batch in picture_batches(files, batch_size=given["batch_size"], max_pixels=most):
        failed += _caption_batch(system, decoding, batch)
        if progress and len(files) > given["batch_size"]:
            progress.update(batch[-1].index + 1, len(files))
    if failed:
        raise WorkFailed(f"{failed} of {len(files)} pictures cannot be read; their lines say why")


def _caption_batch(system: System, decoding: Decoding, batch: list[Opened]) -> int:
    """Print the lines of a batch; how many of its pictures could not be read."""
    good = [opened for opened in batch if opened.picture is not None]
    spoken: dict[int, tuple[str, ...]] = {}
    if good:
        places = [opened.index for opened in good]
        features = system.features([opened.picture for opened in good if opened.picture is not None])
        spoken = dict(zip(places, system.caption(features, decoding, places), strict=True))
    for opened in batch:
        line: dict[str, Any] = {"image": str(opened.path)}
        if opened.error is not None:
            line["error"] = opened.error.what
        else:
            captions = spoken[opened.index]
            line |= {"caption": captions[0], **({"captions": captions} if len(captions) > 1 else {})}
        click.echo(json_text(line))
    return len(batch) - len(good)


@click.command()
@options(
    checkpoint_option,
    click.option("--out", required=True, type=AnyPath(), metavar="FOLDER", help="Not there, or empty."),
    click.option("--force", is_flag=True, help="Write into a folder that is not empty."),
)
def export(checkpoint: Path, out: Path, force: bool) -> None:
    """Write a checkpoint as a plain folder that needs nothing of its run.

    Weights (safetensors), config, tokenizer, recipe, and the CLIPs and weights files that it needs. `caption` and
    `evaluate` take the folder on any machine.
    """
    from raycap.errors import Refused
    from raycap.models.export import export_captioner

    try:
        written = export_captioner(checkpoint, out.absolute(), force=force)
    except OSError as error:
        raise Refused(f"cannot be written: {error.strerror or error}", key="--out", value=str(out),
                      remedy="name another folder") from error  # fmt: skip
    click.echo(str(written))
