"""SIGTERM and Ctrl-C while a stage trains, in this process."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from raycap.cluster.signals import SIGNALS, stopping_at_signals
from raycap.errors import Stopped
from raycap.train.stopping import ask_to_stop, stop_asked, stop_before_start


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_asks_and_the_second_ends_at_once(
    tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with stopping_at_signals(tmp_path):
        assert stop_asked(tmp_path) == ""
        os.kill(os.getpid(), number)
        assert stop_asked(tmp_path) == number.name
        assert "stopping after this step, with a checkpoint (once more: at once)" in capsys.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert stop_asked(tmp_path) == ""
    assert signal.getsignal(number) is before


def test_what_was_asked_of_the_start_before_is_over(tmp_path: Path) -> None:
    ask_to_stop(tmp_path, "SIGTERM")
    with stopping_at_signals(tmp_path):
        assert stop_asked(tmp_path) == ""


def test_a_storage_that_is_full_still_lets_the_second_one_through(tmp_path: Path) -> None:
    with stopping_at_signals(tmp_path / "nowhere"):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_in_another_thread_signals_are_not_ours(tmp_path: Path) -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stopping_at_signals(tmp_path):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def test_while_a_stage_gets_ready_there_is_nothing_to_save(tmp_path: Path) -> None:
    stop_before_start(tmp_path)
    ask_to_stop(tmp_path, "SIGINT")
    with pytest.raises(Stopped, match="stopped before it learned anything: SIGINT"):
        stop_before_start(tmp_path)


def test_a_storage_that_does_not_answer_asks_nothing(tmp_path: Path) -> None:
    (tmp_path / "stop").mkdir()
    assert stop_asked(tmp_path) == ""
