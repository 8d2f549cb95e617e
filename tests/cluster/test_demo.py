"""`make demo` in a terminal: Ctrl-C in the middle of SCST, started again, the terminal closed, started once more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raycap.train.journal import read_log

pytestmark = [pytest.mark.slow, pytest.mark.ray]

TINY = (
    "data.scenes={num_train: 60, num_dev: 6, num_test: 12}", "clip.reward=null", "clip.judge=null",
    "captioner.lm_config={model_type: gpt2, n_embd: 32, n_layer: 1, n_head: 2, n_positions: 64}",
    "mle.epochs=2", "mle.batch_size=20", "scst.steps=400", "scst.batch_size=8", "scst.lease_size=4",
    "scst.select_every=20",
    "scst.collapse_share=0", "mle_continued.steps=4", "evaluate.decodings=[greedy]", "evaluate.report_images=3",
)  # fmt: skip
STOPPED_AFTER, CLOSED_AFTER = 25, 150


def _as_a_terminal_does() -> None:
    """A shell that runs the tests in the background lets them ignore Ctrl-C, and what they start would, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Demo:
    """The command in a session of its own, as a terminal starts it: Ctrl-C reaches all of its foreground processes."""

    def __init__(self, storage: Path) -> None:
        self.scst = storage / "scenes" / "scst"
        self.output = storage.parent / "output.txt"
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raycap.cluster.demo", "recipe=scenes", f"storage={storage}", *TINY],
                stdout=output, stderr=output, start_new_session=True, preexec_fn=_as_a_terminal_does,
            )  # fmt: skip

    def steps(self) -> list[int]:
        return [record["step"] for record in read_log(self.scst)] if (self.scst / "log.jsonl").exists() else []

    def wait_for(self, what: Callable[[], bool]) -> None:
        while not what():
            assert self.process.poll() is None, self.output.read_text()[-4000:]
            time.sleep(0.2)

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def close_the_terminal(self) -> None:
        os.killpg(self.process.pid, signal.SIGHUP)


def test_stopped_it_goes_on_where_it_was(tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    first = Demo(storage)
    first.wait_for(lambda: max(first.steps(), default=0) >= STOPPED_AFTER)
    first.press_ctrl_c()
    assert first.process.wait(timeout=60) == 1
    assert "the same command goes on" in first.output.read_text()
    assert "\nTraceback" not in first.output.read_text()  # those of Ray's own processes have their names in front
    stopped_at = max(first.steps())
    assert STOPPED_AFTER <= stopped_at < 400
    assert not (first.scst / "finished.json").exists()
    time.sleep(2)  # nobody of the first one trains on
    assert max(first.steps()) == stopped_at
    trained = (storage / "scenes" / "mle" / "finished.json").stat().st_mtime_ns

    second = Demo(storage)
    second.wait_for(lambda: max(second.steps(), default=0) >= CLOSED_AFTER)
    second.close_the_terminal()
    assert second.process.wait(timeout=60) == 1

    third = Demo(storage)
    assert third.process.wait(timeout=600) == 0, third.output.read_text()[-4000:]
    assert third.steps() == list(range(401)), "each step once: those after the last checkpoint were done again"
    assert (storage / "scenes" / "mle" / "finished.json").stat().st_mtime_ns == trained
    results = json.loads((storage / "scenes" / "results.json").read_text())
    assert [row["label"] for row in results["rows"]] == ["mle_best", "mle_continued", "scst"]
    assert (storage / "scenes" / "evaluate" / "report.html").is_file()
