"""Every job's promise: 0 done, 2 refused, 1 failed; one line on standard error, a traceback with --debug alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import raycap.cluster.run
from raycap.cluster import demo
from raycap.cluster.job import main
from raycap.errors import DataError, StaleStage, WorkFailed

CHECKOUT = Path(__file__).resolve().parents[2]


def job(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAYCAP_")}
    return subprocess.run([sys.executable, "jobs/scst.py", *arguments], cwd=CHECKOUT, env=environment,
                          capture_output=True, text=True, timeout=120)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("recipe=flickr8k",), ("data.root", "is not set", "Flickr8k.token.txt", "RAYCAP_DATA")),
        (("recipe=flickr8k", "data.root=photos"), ("data.root = 'photos'", "relative path", "absolute")),
        (("recipe=flickr8k", "data.root=/nowhere/at/all"), ("/nowhere/at/all", "put the data set there")),
        (("recipe=flickr8k", "scst.stesp=3"), ("scst.stesp", "did you mean steps?")),
        (("recipe=nothing",), ("nothing", "scenes")),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, arguments: tuple[str, ...], parts: Any) -> None:
    done = job(*arguments, f"storage={tmp_path / 'runs'}")
    assert done.returncode == 2
    assert done.stderr.startswith("raycap: ")
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
    assert not list(tmp_path.rglob("*.parquet"))


def test_relative_storage_is_refused_and_debug_shows_where() -> None:
    done = job("recipe=scenes", "storage=runs", "--debug")
    assert done.returncode == 2
    assert "disposable copy" in done.stderr
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (DataError("no picture", key="data.root", value="/x"), 2, "data.root = '/x': no picture"),
        (StaleStage("made with other values", key="mle"), 2, "mle: made with other values"),
        (WorkFailed("the learner died"), 1, "the learner died"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero (--debug shows where)"),
        (KeyboardInterrupt(), 1, "goes on from the last checkpoint"),
    ],
)
def test_what_the_run_raises_becomes_an_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException,
    status: int, said: str,
) -> None:  # fmt: skip
    def fail(recipe: Any) -> None:
        raise error

    monkeypatch.setattr(raycap.cluster.run, "run_recipe", fail)
    with pytest.raises(SystemExit) as left:
        main(["recipe=scenes", f"storage={tmp_path}"])
    assert left.value.code == status
    told = capsys.readouterr().err
    assert told.startswith("raycap: ")
    assert said in told
    assert "Traceback" not in told


def test_presets_give_way_to_what_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(raycap.cluster.run, "run_recipe", seen.append)
    main([f"storage={tmp_path}", "scst.steps=7"], default="scenes", presets=["scst.steps=5", "mle.epochs=2"])
    assert (seen[0].name, seen[0].scst.steps, seen[0].mle.epochs) == ("scenes", 7, 2)


def test_the_demo_takes_the_usual_port_only_while_it_is_free() -> None:
    import socket

    port = demo._free_port(demo._first_ephemeral())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert demo._free_port(port) != port
    assert demo._free_port(port) == port


def test_the_demo_takes_no_port_that_an_outgoing_connection_may_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's agent found its port taken between the look at it and its start, and nobody could submit a job."""
    for usual in (52_365, demo._first_ephemeral(), 65_535):
        assert 20_000 <= demo._free_port(usual) < demo._first_ephemeral()
    monkeypatch.setattr(demo, "Path", lambda name: pytest.fail(name) if name != _RANGE else Ranged("40000\t60999\n"))
    assert demo._first_ephemeral() == 40_000
    for odd in ("", "x y", "1024 65535"):
        monkeypatch.setattr(demo, "Path", lambda name, odd=odd: Ranged(odd))
        assert demo._first_ephemeral() == 32_768


_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"


class Ranged:
    def __init__(self, text: str) -> None:
        self.text = text

    def read_text(self) -> str:
        return self.text


def test_the_demo_s_head_takes_no_port_and_no_folder_of_another_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    asked: list[int] = []
    monkeypatch.setattr(demo, "_free_port", lambda usual: asked.append(usual) or usual + 1)
    command = demo._head_command(8266)
    assert sorted(asked) == [6379, 10001, 52365]
    for option in ("--port=6380", "--ray-client-server-port=10002", "--dashboard-agent-listen-port=52366",
                   "--dashboard-port=8266", "--node-ip-address=127.0.0.1"):  # fmt: skip
        assert option in command
    folder = next(option.partition("=")[2] for option in command if option.startswith("--temp-dir="))
    assert folder.startswith("/tmp/raycap-")
    # /SESSION/sockets/plasma_store is 65 bytes; a socket's name has 107 at most
    assert len(folder) <= 40
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    assert not any("--temp-dir" in option for option in demo._head_command(8266))


def test_the_demo_hands_on_the_status_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray job submit` says 1 whatever it was: 2 (refused) is asked of the head."""
    asked: list[Any] = []

    class Submitted:
        def __init__(self, command: list[str], **options: Any) -> None:
            asked.append(command)

        def wait(self) -> int:
            return 1

    monkeypatch.setattr(demo.subprocess, "Popen", Submitted)
    monkeypatch.setattr(demo, "_head", lambda environment: _Address())
    monkeypatch.setattr(demo, "_driver_status", lambda address, job_id, environment: 2)
    assert demo.main(["recipe=scenes"]) == 2
    assert asked[0][:3] == ["ray", "job", "submit"]
    assert asked[0][-3:] == ["python", "jobs/scst.py", "recipe=scenes"]
    monkeypatch.setattr(demo, "_driver_status", lambda address, job_id, environment: None)
    assert demo.main(["recipe=scenes"]) == 1


class _Address:
    def __enter__(self) -> str:
        return "http://127.0.0.1:1"

    def __exit__(self, *exc: object) -> None: ...
