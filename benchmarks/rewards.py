"""How fast metrics and training rewards are, against pycocoevalcap's, on one core. Prints one JSON object.

    python benchmarks/rewards.py [--flickr8k FOLDER] [--images 5000] [--captions 5] [--lease 120]

`cider_prepared_ratio`: captions a second of the training reward (references prepared, captions never seen before)
against pycocoevalcap's CIDEr-D of the same captions; `cider_cold_ratio`: the same with the preparation counted, and
`cider_cold_single_ratio` with one candidate an image; `cider_lease_ratio`: the first in batches of `--lease` captions,
as a step of training asks. Both sides get tokenised strings (tokens joined by blanks) and split them in the timed call.
`score_ratio`: seconds of pycocoevalcap with its Java tokenizer for BLEU, ROUGE-L and CIDEr-D from raw strings, against
the whole command `raycap score`, start of the process included; null without Java. `peak_rss_bytes`: of ours.

Captions are Flickr8k's where its folder is given, those of drawn scenes otherwise. A candidate is the first half of one
caption and the second half of another image's: it shares n-grams with its references, and nobody has scored it before.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[threads] = "1"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

from raycap.data.flickr8k import TOKEN_FILE  # noqa: E402
from raycap.data.scenes.grammar import references as references_of_scene  # noqa: E402
from raycap.data.scenes.world import imagine  # noqa: E402
from raycap.metrics.cider import EOS, PreparedReferences, cider_d, prepare_training  # noqa: E402
from raycap.metrics.java import find_java  # noqa: E402
from raycap.metrics.ptb import tokenize  # noqa: E402

Captions = dict[str, list[str]]
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flickr8k", type=Path, help="folder with Flickr8k.token.txt; drawn scenes when not given")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=5, help="candidates an image, as K samples are")
    parser.add_argument("--lease", type=int, default=120, help="captions a batch of training rewards")
    asked = parser.parse_args()
    references = flickr8k(asked.flickr8k, asked.images) if asked.flickr8k else scenes(asked.images)
    candidates = crossed(references, asked.captions)
    report = {"images": len(references), "captions": sum(map(len, candidates.values())),
              "text": "flickr8k" if asked.flickr8k else "scenes"}  # fmt: skip
    report |= cider(references, candidates, asked.lease)
    report |= whole_score(references, {image: several[0] for image, several in candidates.items()})
    print(json.dumps(report))


def scenes(images: int) -> Captions:
    return {f"scene-{n}": list(references_of_scene(imagine(f"scene-{n}", seed=0))) for n in range(images)}


def flickr8k(folder: Path, images: int) -> Captions:
    found: Captions = {}
    for line in (folder / TOKEN_FILE).read_text(encoding="utf-8").splitlines():
        key, _, caption = line.partition("\t")
        found.setdefault(key.partition("#")[0], []).append(caption)
    return dict(list(found.items())[:images])


def crossed(references: Captions, count: int) -> Captions:
    """`count` candidates an image: the first half of one of its captions, the second half of another image's."""
    images, out = list(references), {}
    for place, image in enumerate(images):
        out[image] = []
        for number in range(count):
            own = references[image][number % len(references[image])].split()
            other = references[images[(place + 1 + 7 * number) % len(images)]][0].split()
            out[image].append(" ".join(own[: (len(own) + 1) // 2] + other[len(other) // 2 :]))
    return out


def seconds(work: Callable[[], object]) -> float:
    """The fastest of a few runs; nothing is kept between them."""
    taken = []
    for _ in range(ROUNDS):
        gc.collect()
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def cider(references: Captions, candidates: Captions, lease: int) -> dict[str, float | int]:
    """The training reward and pycocoevalcap's CIDEr-D on the same tokenised strings."""
    lines = {image: [" ".join(tokenize(text)) for text in texts] for image, texts in references.items()}
    said = [(image, " ".join(tokenize(text))) for image, texts in candidates.items() for text in texts]
    single = list(dict(reversed(said)).items())  # the first of each image
    _, prepared = prepare_training(split(lines), EOS)

    def in_leases() -> None:
        for at in range(0, len(said), lease):
            reward(said[at : at + lease], prepared)

    ours = {
        "cider_prepared": seconds(lambda: reward(said, prepared)),
        "cider_lease": seconds(in_leases),
        "cider_cold": seconds(lambda: reward(said, prepare_training(split(lines), EOS)[1])),
        "cider_cold_single": seconds(lambda: reward(single, prepare_training(split(lines), EOS)[1])),
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    theirs = dict.fromkeys(ours, seconds(lambda: reference_cider(lines, said)))
    theirs["cider_cold_single"] = seconds(lambda: reference_cider(lines, single))
    figures: dict[str, float | int] = {f"{name}_ratio": theirs[name] / mine for name, mine in ours.items()}
    counts = {name: len(single if name == "cider_cold_single" else said) for name in ours}
    figures |= {f"{name}_captions_per_s": counts[name] / mine for name, mine in ours.items()}
    their_speed = len(said) / theirs["cider_prepared"]
    return {**figures, "pycocoevalcap_cider_captions_per_s": their_speed, "peak_rss_bytes": peak}


def split(lines: Captions) -> dict[str, list[list[str]]]:
    return {image: [line.split() for line in several] for image, several in lines.items()}


def reward(said: Sequence[tuple[str, str]], prepared: PreparedReferences) -> None:
    """CIDEr-D of (image, tokenised string) pairs as the training reward computes it; each ended by itself."""
    cider_d([line.split() for _, line in said], [image for image, _ in said], prepared, finished=[True] * len(said))


def reference_cider(references: Mapping[str, Sequence[str]], candidates: Sequence[tuple[str, str]]) -> None:
    """pycocoevalcap's CIDEr-D of all candidates; each is an entry of its own, as its interface wants it."""
    from pycocoevalcap.cider.cider import Cider

    res = {number: [caption] for number, (_, caption) in enumerate(candidates)}
    gts = {number: list(references[image]) for number, (image, _) in enumerate(candidates)}
    Cider().compute_score(gts, res)


def whole_score(references: Captions, candidates: Mapping[str, str]) -> dict[str, float | int | None]:
    """The command `raycap score` from files, and pycocoevalcap with its Java tokenizer on the same raw strings."""
    java = find_java()
    if java is None:
        return {"score_ratio": None}
    with tempfile.TemporaryDirectory() as folder:
        results, annotations = Path(folder) / "results.json", Path(folder) / "references.json"
        results.write_text(json.dumps([{"image_id": i, "caption": c} for i, c in candidates.items()]))
        annotations.write_text(json.dumps(references))
        command = [sys.executable, "-c", "from raycap.cli import main; main()", "score", "--candidates", str(results),
                   "--references", str(annotations), "--metrics", "bleu,rouge,cider"]  # fmt: skip
        mine = seconds(lambda: subprocess.run(command, check=True, capture_output=True))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    os.environ["PATH"] = f"{Path(java).parent}{os.pathsep}{os.environ['PATH']}"
    theirs = seconds(lambda: reference_score(references, candidates))
    return {"score_ratio": theirs / mine, "score_s": mine, "pycocoevalcap_score_s": theirs,
            "score_peak_rss_bytes": peak}  # fmt: skip


def reference_score(references: Captions, candidates: Mapping[str, str]) -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with contextlib.redirect_stdout(io.StringIO()):
        tokenizer = PTBTokenizer()
        gts = tokenizer.tokenize({i: [{"caption": c} for c in texts] for i, texts in references.items()})
        res = tokenizer.tokenize({i: [{"caption": c}] for i, c in candidates.items()})
        for scorer in (Bleu(4), Rouge(), Cider()):
            scorer.compute_score(gts, res)


if __name__ == "__main__":
    main()
