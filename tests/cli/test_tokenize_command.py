"""`raycap tokenize`: line by line, whatever the lines hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

VECTORS = Path(__file__).parents[1] / "metrics" / "vectors" / "nasty_dev.json"


def test_the_vectors_of_the_java_tool_through_a_real_pipe() -> None:
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    text = "".join(one["in"].replace("\n", " ") + "\n" for one in vectors)
    done = subprocess.run(
        [sys.executable, "-c", "from raycap.cli import main; main()", "tokenize"],
        input=text.encode(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.decode().split("\n") == [*(one["out"] for one in vectors), ""]
    assert done.stderr == b""


def test_one_line_in_one_line_out(raycap) -> None:
    given = "\ufeffA dog.\r\n\n . \nTwo\u2028cats\x0band\rmice!\nthe last".encode()
    assert raycap("tokenize", stdin=given).stdout == "a dog\n\n\ntwo cats and mice\nthe last\n"
    assert raycap("tokenize", stdin=b"").stdout == ""


def test_what_is_not_utf8_is_refused_with_its_line(raycap) -> None:
    result = raycap("tokenize", stdin=b"a dog\nna\xefve\n")
    assert result.exit_code == 2
    assert "line = 2: is not UTF-8" in result.stderr
