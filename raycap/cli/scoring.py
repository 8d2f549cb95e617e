"""Commands about captions that are there already: `score`, `tokenize`, `correlate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raycap.cli.group import AnyPath, as_options, check_target, json_text, metric_list, options, write_json, write_text

if TYPE_CHECKING:
    from raycap.metrics.clipscore import ClipEmbeddings
    from raycap.metrics.score import Scores

DEFAULT_METRICS = ("bleu", "rouge", "cider", "meteor", "spice")
"""Of `score`: what coco-caption prints."""
JUDGED_METRICS = ("bleu", "rouge", "cider")
"""Of `correlate`: those that need no Java."""


@click.command()
@options(
    click.option("--candidates", required=True, type=AnyPath(), metavar="FILE",
                 help='COCO results [{"image_id", "caption"}], or the same as JSONL.'),
    click.option("--references", required=True, type=AnyPath(), metavar="FILE",
                 help='COCO captions annotations, {"image_id": ["...", ...]}, or JSONL.'),
    click.option("--metrics", callback=metric_list, metavar="NAME,...",
                 help="bleu, rouge, cider, meteor, spice, clipscore, refcompare, or a key of the output for its "
                 "metric (bleu_4 for bleu). Default: bleu,rouge,cider,meteor,spice, and clipscore where a CLIP is "
                 "named. meteor and spice run Java and are `unavailable` where it or their jars are not there."),
    click.option("--images", type=AnyPath(), metavar="FOLDER",
                 help="Pictures, for metrics by CLIP: an image id is a picture's path in it, its name or its stem."),
    click.option("--clip-model", metavar="NAME|FOLDER", help="An open_clip model, or a CLIP that raycap trained."),
    click.option("--clip-pretrained", metavar="TAG|FILE", help="Its weights; not for a folder."),
    click.option("--allow-partial", is_flag=True, help="Score the ids that both sides have, and count the others."),
    click.option("--out", type=AnyPath(), metavar="FILE",
                 help="Takes the JSON, which goes to standard output otherwise."),
    click.option("--per-image", type=AnyPath(), metavar="FILE", help="Takes one JSON line an image."),
)  # fmt: skip
def score(
    candidates: Path, references: Path, metrics: tuple[str, ...] | None, images: Path | None, clip_model: str | None,
    clip_pretrained: str | None, allow_partial: bool, out: Path | None, per_image: Path | None,
) -> None:  # fmt: skip
    """Score captions against references. The table goes to standard error."""
    from raycap.metrics.files import read_candidates, read_references
    from raycap.metrics.score import BY_CLIP, common_images, score_captions

    _check_clip_options(images, clip_model, clip_pretrained)
    _check_targets(out, per_image)
    spoken, written = read_candidates(candidates), read_references(references)
    metrics = metrics or (*DEFAULT_METRICS, *(["clipscore"] if clip_model else []))
    embeddings = None
    if images and clip_model and set(BY_CLIP) & set(metrics):
        shared, _ = common_images(spoken, written, allow_partial)
        embeddings = _embed({i: spoken[i] for i in shared}, written, references, images, clip_model, clip_pretrained)
    scores = score_captions(spoken, written, metrics, embeddings=embeddings, allow_partial=allow_partial)
    if per_image:
        lines = [{"image_id": i, "caption": spoken[i], **values} for i, values in scores.per_image.items()]
        write_text(per_image, "".join(json_text(line) + "\n" for line in lines), "--per-image")
    click.echo(_table(scores), err=True)
    _give(out, scores.to_json())


def _check_targets(out: Path | None, per_image: Path | None = None) -> None:
    for key, path in (("--out", out), ("--per-image", per_image)):
        if path is not None:
            check_target(path, key)
    if out and per_image and out.resolve() == per_image.resolve():
        raise click.UsageError("--out and --per-image name one file")


def _check_clip_options(images: Path | None, model: str | None, pretrained: str | None) -> None:
    if (images is None) != (model is None):
        raise click.UsageError("metrics by CLIP need both --images and --clip-model")
    if model is not None and Path(model).is_dir():
        if pretrained is not None:
            raise click.UsageError("--clip-model names a folder: its weights lie in it, leave --clip-pretrained out")
    elif (model is None) != (pretrained is None):
        raise click.UsageError("--clip-model NAME and --clip-pretrained TAG|FILE belong together")


def _embed(
    candidates: dict[str, str], references: dict[str, list[str]], references_file: Path, images: Path, model: str,
    pretrained: str | None,
) -> ClipEmbeddings:  # fmt: skip
    from raycap.data.images import MAX_PIXELS
    from raycap.evaluate.judge import Judge, judge_references
    from raycap.evaluate.pictures import coco_file_names, picture_batches, pictures_by_id
    from raycap.metrics.clipscore import PROMPT
    from raycap.models.clip import load_clip, load_trained_clip
    from raycap.train.progress import Progress

    found = pictures_by_id(list(candidates), images, coco_file_names(references_file))
    with as_options({"clip.model": "--clip-model", "clip.pretrained": "--clip-pretrained", "clip": "--clip-model"}):
        clip = load_trained_clip(Path(model)) if pretrained is None else load_clip(model, pretrained, prompt=PROMPT)
    progress, ids = Progress("clip", "images", out=sys.stderr), list(found)
    seen: dict[str, Any] = {}
    for batch in picture_batches(list(found.values()), batch_size=64, max_pixels=MAX_PIXELS):
        pictures = []
        for opened in batch:
            if opened.picture is None:
                raise opened.error or RuntimeError(str(opened.path))
            pictures.append(opened.picture)
        seen.update(zip((ids[opened.index] for opened in batch), clip.embed_images(pictures), strict=True))
        progress.update(len(seen), len(ids))
    asked = {i: references[i] for i in candidates}
    return Judge(clip, seen, judge_references(clip, asked)).embeddings(candidates)


def _table(scores: Scores) -> str:
    lines = [f"{scores.num_images:,} images"]
    lines += [f"{key:<19}  {value:.4f}" for key, value in scores.metrics.items()]
    lines += [f"{key:<19}  –  unavailable: {why}" for key, why in scores.unavailable.items()]
    lines.append(f"{scores.empty_candidates:,} empty candidates")
    if scores.left_out is not None:
        lines.append("left out: " + ", ".join(f"{count:,} {side}" for side, count in scores.left_out.items()))
    lines.append(scores.signature)
    return "\n".join(lines)


def _give(out: Path | None, content: dict[str, Any]) -> None:
    if out is None:
        click.echo(json_text(content, indent=1))
    else:
        write_json(out, content)


@click.command()
@options()
def tokenize() -> None:
    """Captions from standard input, one a line, as coco-caption's PTB tokenizer cuts them.

    Lower case, punctuation dropped, tokens apart by blanks; line by line the same number comes out.
    """
    from raycap.errors import DataError
    from raycap.metrics.ptb import tokenize as cut

    out = sys.stdout.buffer
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            caption = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"is not UTF-8: {error.reason}", key="standard input, line", value=number,
                            remedy="convert it to UTF-8") from error  # fmt: skip
        out.write((" ".join(cut(caption)) + "\n").encode())
    out.flush()


@click.command()
@options(
    click.option("--judgements", required=True, metavar="flickr8k-expert|flickr8k-crowdflower|FILE",
                 help='FILE is JSONL: {"image_id", "caption", "references", "score"} a line.'),
    click.option("--root", type=AnyPath(), metavar="FOLDER",
                 help="Of the published files: Flickr8k.token.txt and the annotations."),
    click.option("--metrics", callback=metric_list, default=",".join(JUDGED_METRICS), show_default=True,
                 metavar="NAME,...", help="As of `raycap score`."),
    click.option("--out", type=AnyPath(), metavar="FILE",
                 help="Takes the JSON, which goes to standard output otherwise."),
)  # fmt: skip
def correlate(judgements: str, root: Path | None, metrics: tuple[str, ...], out: Path | None) -> None:
    """Agreement of metrics with human judgements of captions: Kendall's tau-b and tau-c."""
    from raycap.evaluate import judgements as judged

    _check_targets(out)
    content = judged.correlate(judged.read_judgements(judgements, root), metrics)
    for key, found in content["metrics"].items():
        line = f"{key:<10}  tau-b {100 * found['tau_b']:6.2f}  tau-c {100 * found['tau_c']:6.2f}  n {found['n']:,}"
        click.echo(line, err=True)
    for key, why in content["unavailable"].items():
        click.echo(f"{key:<10}  –  unavailable: {why}", err=True)
    _give(out, content)
