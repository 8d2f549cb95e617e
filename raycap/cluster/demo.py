"""`make demo`: a Ray head of our own on this machine, one job submitted to it, the head stopped again.

The job is submitted exactly as to any cluster, and the command is printed; Ctrl-C, `kill` or the end of the terminal
stop job and head, and the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
_START_S, _STOP_S = 90.0, 20.0


def main(arguments: Sequence[str]) -> int:
    """Run `jobs/scst.py` with the given arguments on a head of its own; the exit status of the job's process."""
    environment = _environment()
    print("starting Ray ...", flush=True)
    with _head(environment) as address:
        job_id = f"raycap_{secrets.token_hex(6)}"
        submit = ["ray", "job", "submit", "--address", address, "--submission-id", job_id,
                  "--runtime-env-json", '{"working_dir": "."}', "--", "python", "jobs/scst.py", *arguments]  # fmt: skip
        print(f"$ {shlex.join(submit)}", flush=True)
        job = subprocess.Popen(submit, cwd=CHECKOUT, env=environment)
        try:
            status = job.wait()
        except KeyboardInterrupt:
            with suppress(OSError):  # the terminal may be gone
                print("\nstopping; the same command goes on from the last checkpoint", flush=True)
            _stop_job(address, job_id, environment)
            job.kill()  # it only showed the job's output
            return 1
        if status == 0:
            return 0
        return _driver_status(address, job_id, environment) or status


def _stop_job(address: str, job_id: str, environment: Mapping[str, str]) -> None:
    """Stop the job and see it end: its process would outlive the head for a while and keep the run's folder locked."""
    url, deadline = f"{address}/api/jobs/{job_id}", time.monotonic() + _STOP_S
    with suppress(OSError, ValueError):
        urllib.request.urlopen(_request(f"{url}/stop", environment, method="POST"), timeout=5).close()
        while time.monotonic() < deadline:
            with urllib.request.urlopen(_request(url, environment), timeout=5) as answer:
                if json.load(answer).get("status") in ("STOPPED", "FAILED", "SUCCEEDED"):
                    return
            time.sleep(0.3)


def _driver_status(address: str, job_id: str, environment: Mapping[str, str]) -> int | None:
    """Exit status of the job's own process: `ray job submit` says 1 whatever it was."""
    try:
        with urllib.request.urlopen(_request(f"{address}/api/jobs/{job_id}", environment), timeout=5) as answer:
            return json.load(answer).get("driver_exit_code")
    except (OSError, ValueError):
        return None


def _request(url: str, environment: Mapping[str, str], method: str = "GET") -> urllib.request.Request:
    token = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    return urllib.request.Request(url, headers=token, method=method)


def _environment() -> dict[str, str]:
    """Our own Python first on the path (the job's `python` is this one), a token that only this head knows."""
    own = Path(sys.executable).parent
    return {
        **{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        "PATH": f"{own}{os.pathsep}{os.environ.get('PATH', '')}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "PYTHONUNBUFFERED": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": str(int(_STOP_S)),  # for the checkpoint that is written at the end
    }


@contextmanager
def _head(environment: Mapping[str, str]) -> Iterator[str]:
    """A Ray head on free ports, loopback only; its dashboard's address. It ends with this block, whatever happens."""
    dashboard = _free_port(8265)
    command = _head_command(dashboard)
    with tempfile.TemporaryFile() as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until_up(head, f"http://127.0.0.1:{dashboard}", environment, log)
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            _stop(head)


def _head_command(dashboard: int) -> list[str]:
    """`ray start` beside whatever else runs here.

    Ports that every head takes as a matter of course are asked for: had another head the agent's, there would be nobody
    here to submit a job to. A folder of its own: in Ray's, `ray.init()` of others would find this head as the latest.
    """
    ports = {"port": 6379, "ray-client-server-port": 10001, "dashboard-agent-listen-port": 52365}
    own = [f"--{name}={_free_port(usual)}" for name, usual in ports.items()]
    if "RAY_TMPDIR" not in os.environ:
        own.append(f"--temp-dir=/tmp/raycap-{os.getuid()}")  # short: sockets below it have names of 107 bytes at most
    return ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", "--disable-usage-stats", *own]  # fmt: skip


def _wait_until_up(head: subprocess.Popen[bytes], address: str, environment: Mapping[str, str], log: object) -> None:
    request = _request(f"{address}/api/version", environment)
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if head.poll() is not None:
            break
        try:
            urllib.request.urlopen(request, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    log.seek(0)  # type: ignore[attr-defined]
    sys.stderr.write(log.read().decode(errors="replace"))  # type: ignore[attr-defined]
    raise SystemExit("raycap: the Ray head did not come up; its output is above")


def _stop(head: subprocess.Popen[bytes]) -> None:
    """End this head and nothing else: `ray stop` would end every Ray on the machine."""
    if head.poll() is None:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def _free_port(wanted: int) -> int:
    """The wanted port when it is free, else another one.

    None of those that the system gives to whoever asks for any (outgoing connections, Ray's own servers): between this
    look and Ray's start it may give that one. Those of Ray's workers (10002 to 19999) lie below.

    Raises:
        SystemExit: none of a hundred is free.
    """
    lowest, highest = 20_000, _first_ephemeral() - 1
    others = [lowest + secrets.randbelow(highest - lowest + 1) for _ in range(100)]
    for port in ([wanted] if wanted <= highest else []) + others:
        with socket.socket() as probe:
            try:
                probe.bind(("", port))  # another head may hold it on another address of this machine
            except OSError:
                continue
            return port
    raise SystemExit("raycap: no free port on 127.0.0.1")


def _first_ephemeral() -> int:
    """The lowest port that the system gives to whoever asks for any; Linux's usual one where it does not say, or gives
    nearly all."""
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        lowest = 32_768
    return lowest if lowest > 21_000 else 32_768


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):  # without us nobody could stop the head: its token is ours alone
        signal.signal(ending, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # before there was a job
        sys.exit(1)
