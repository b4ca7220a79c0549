"""`verbena run`, as a user runs it: output, exit status, run folder, and what happens when something is wrong."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scenario.fabrics import ALL, EXAMPLES, FILE, HOSTS, NET, write
from verbena.cli.run import run

Output = pytest.CaptureFixture[str]
ENDLESS = HOSTS + (
    "workloads:\n  - {kind: ping-pong, name: p, client: a0, server: b0, iterations: 1000000, capture: false}\n"
)


def command(file: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "verbena.cli.main", "run", file, *options]


def said(errors: str) -> str:
    """What stands on stderr, but for the notice that uncompiled code runs."""
    lines = errors.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("verbena: running uncompiled"))


def sums(output: str) -> dict[str, str]:
    """The lines at the end."""
    lines = output.splitlines()[-3:]
    found = [re.fullmatch(r"sha256 (sent|arrived|read back) +([0-9a-f]{64})", line) for line in lines]
    return {match[1]: match[2] for match in found if match}


def test_in_virtual_time(tmp_path: Path, capsys: Output) -> None:
    assert run(write(tmp_path), out=str(tmp_path / "out")) == 0
    output = capsys.readouterr()
    assert output.err == ""
    found = sums(output.out)
    assert set(found) == {"sent", "arrived", "read back"}
    assert len(set(found.values())) == 1
    for line in (
        "ok     file: SHA-256 equal",
        "file: write, 100,001 bytes",
        f"run folder: {tmp_path / 'out'}",
    ):
        assert line in output.out
    names = {path.name for path in (tmp_path / "out").iterdir()} - {"throughput.svg"}
    assert names == {"report.md", "report.json", "counters.json", "capture.pcapng"}


@pytest.mark.loopback
def test_the_demo_with_an_own_file(tmp_path: Path) -> None:
    text = (EXAMPLES / "demo.yaml").read_text()
    file = write(tmp_path, text.replace("127.0.0.1", f"{NET}.1").replace("127.0.0.2", f"{NET}.2"))
    given = tmp_path / "given"
    given.write_bytes(os.urandom(300_003))
    done = subprocess.run(
        command(file, "--time", "real", "--input", str(given)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert set(sums(done.stdout).values()) == {hashlib.sha256(given.read_bytes()).hexdigest()}
    assert len(sums(done.stdout)) == 3
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("demo-real-")
    assert (folder / "capture.pcapng").stat().st_size


def test_options(tmp_path: Path, capsys: Output) -> None:
    file = write(tmp_path)
    assert run(file, seed=3, capture=False, quiet=True, out=str(tmp_path / "out")) == 0
    output = capsys.readouterr().out
    assert "virtual time, seed 3" in output
    assert "..." not in output, "no progress when quiet"
    assert not (tmp_path / "out" / "capture.pcapng").exists()


def test_run_folders_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, HOSTS + "workloads:\n" + FILE)
    assert [run(file, quiet=True) for _ in range(3)] == [0, 0, 0]
    assert len(list((tmp_path / "runs").iterdir())) == 3


# --- what is wrong before it begins -----------------------------------------------------------------------------


def test_a_wrong_file(tmp_path: Path, capsys: Output) -> None:
    file = write(tmp_path, ALL.replace("name: test", "nmae: test"))
    assert run(file) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{file}:2: the key name is missing here",
        f"{file}:2: unknown key 'nmae': did you mean name?",
    ]


@pytest.mark.parametrize("real", [False, True])
def test_input_that_cannot_be_sent(real: bool, tmp_path: Path, capsys: Output) -> None:
    file = write(tmp_path)
    way = "real" if real else "virtual"
    for wrong, why in (
        (tmp_path / "missing", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
        (Path("/dev/null"), "cannot be sent: it is no regular file"),
    ):
        assert run(file, time=way, input=str(wrong), out=str(tmp_path / "out")) == 2
        assert capsys.readouterr().err == f"verbena run: {wrong} {why}\n"
    assert not (tmp_path / "out").exists()


def test_other_wrong_use(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "a file").touch()
    without = write(
        tmp_path, HOSTS + "workloads:\n  - {kind: ud-burst, name: u, from: a0, to: b0}\n", "w.yaml"
    )
    file = write(tmp_path)
    assert run(file, time="imaginary") == 2
    assert run(file, seed=-1) == 2
    assert run(without, input=file) == 2
    assert run(file, out=str(tmp_path / "a file")) == 1
    assert run(file, out=str(tmp_path / "a file" / "in it")) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5
    for error, word in zip(
        errors, ("imaginary", "2^64", "file-transfer", "run folder", "run folder"), strict=True
    ):
        assert error.startswith("verbena run: ")
        assert word in error


# --- what goes wrong while it runs ------------------------------------------------------------------------------


def test_a_dead_network(tmp_path: Path, capsys: Output) -> None:
    file = write(tmp_path, ALL + "wire: {faults: {loss: 1}}\n")
    assert run(file, out=str(tmp_path / "out"), quiet=True) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert errors.startswith("verbena run: workload file: ")


@pytest.mark.loopback
def test_a_port_in_use(tmp_path: Path, capsys: Output) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((f"{NET}.2", 4791))
        assert run(write(tmp_path), time="real", out=str(tmp_path / "out"), quiet=True) == 1
    errors = capsys.readouterr().err
    assert said(errors).count("\n") == 1
    assert f"adapter b0: UDP {NET}.2 port 4791 is in use" in errors


@pytest.mark.loopback
def test_an_address_that_is_not_here(tmp_path: Path, capsys: Output) -> None:
    file = write(tmp_path, ALL.replace(f"{NET}.2", "192.0.2.1"))
    assert run(file, time="real", out=str(tmp_path / "out"), quiet=True) == 1
    assert "192.0.2.1 port 4791 is not available" in capsys.readouterr().err


def hosts_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The two processes that it started, at work."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        found = [
            child
            for child in psutil.Process(process.pid).children()
            if "verbena.scenario.host" in child.cmdline()
        ]
        if len(found) == 2 and all(sum(child.cpu_times()[:2]) > 0.1 for child in found):
            return found
        time.sleep(0.02)
    raise AssertionError(f"there are no two hosts: {process.communicate()}")


def start_endless(tmp_path: Path) -> subprocess.Popen[str]:
    file = write(tmp_path, ENDLESS)
    options = ("--time", "real", "--out", str(tmp_path / "out"), "--quiet")
    return subprocess.Popen(
        command(file, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.loopback
@pytest.mark.parametrize("which", [0, 1])
def test_a_host_that_dies(which: int, tmp_path: Path) -> None:
    process = start_endless(tmp_path)
    hosts = hosts_of(process)
    hosts[which].kill()
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    name = "ab"[which]
    expected = f"verbena run: host {name} (process {hosts[which].pid}) was killed by SIGKILL before its work was done\n"
    assert said(errors) == expected
    assert output == ""
    psutil.wait_procs(hosts, timeout=10)
    assert not any(host.is_running() for host in hosts)


@pytest.mark.compiled
@pytest.mark.loopback
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_host_outlives_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    process = start_endless(tmp_path)
    hosts = hosts_of(process)
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    if how is signal.SIGINT:
        assert (process.returncode, said(errors)) == (130, "verbena run: interrupted\n")
    _, alive = psutil.wait_procs(hosts, timeout=20)
    assert not alive
