"""`verbena vswitch up`, `status`, `down`: what they make, show and leave behind (nothing)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.processes import read_until, start
from cli.processes import verbena as run
from verbena import FabricFileError
from verbena.runtime import namespaces, registry
from verbena.runtime.shm_port import open_card
from verbena.runtime.stream_port import LENGTH
from verbena.scenario.vswitch_report import load_switch_file

pytestmark = pytest.mark.compiled

NAME = f"verbena-vs-{os.getpid()}"
FILE = """
name: {name}
vswitch:
  live:
    watchdog_ms: 1000
    ports:
      - {{name: a, kind: tap, interface: eth0, namespace: {name}-a, addresses: [10.86.0.1/24]}}
      - {{name: b, kind: tap, interface: eth0, namespace: {name}-b, addresses: [10.86.0.2/24]}}
      - {{name: vm, kind: qemu, listen: {folder}/vm.sock, macs: ["52:54:00:00:00:01"]}}
"""
PROGRAMS = """
name: {name}
vswitch:
  live:
    ports:
      - {{name: vm, kind: qemu, listen: {folder}/vm.sock, macs: ["52:54:00:00:00:01"]}}
      - {{name: card, kind: card, listen: {folder}/card.sock, macs: ["52:54:00:00:00:02"]}}
"""
VM, CARD = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
real = pytest.mark.network("netns", "tap", "raw")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("VERBENA_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(registry, "FOLDER", tmp_path / "run")
    path = tmp_path / "switch.yaml"
    path.write_text(FILE.format(name=NAME, folder=tmp_path))
    yield path
    for each in left(tmp_path):  # of a test that failed
        if each.startswith(NAME):
            namespaces.remove(each)


def left(folder: Path) -> list[str]:
    """What a switch of this file has left on the machine."""
    found = [path.name for path in namespaces.FOLDER.glob(f"{NAME}-*")]
    return (
        found + [path.name for path in (folder / "run").glob("*")] + [p.name for p in folder.glob("*.sock")]
    )


def inside(host: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", f"{NAME}-{host}", *command], capture_output=True, text=True, check=False
    )


@real
def test_up_status_down(file: Path) -> None:
    process = start("vswitch", "up", file)
    try:
        said = read_until(process, "Ctrl-C ends it")
        assert f"a: tap eth0 in namespace {NAME}-a, 10.86.0.1/24" in said
        assert f"vm: qemu {file.parent}/vm.sock, waits for it to connect" in said
        pinged = inside("a", "ping", "-c", "1", "-W", "5", "10.86.0.2")
        assert not pinged.returncode, pinged.stdout
        shown = run("vswitch", "status")
        assert not shown.status, shown.err
        for expected in ("ports: MTU 1500, lossless classes: 0", "queues", "stops at", "losses", "256"):
            assert expected in shown.out
        told = json.loads(run("vswitch", "status", NAME, "--json").out)
        assert [port["up"] for port in told["ports"]] == [True, True, False]
        assert told["ports"][0]["state"]["tx_frames"] >= 2
        assert told["losses"] == {}
        second = run("vswitch", "up", file)
        assert second.sentence.endswith(
            f"a virtual switch {NAME} is up already: verbena vswitch down {NAME} ends it"
        )
        ended = run("vswitch", "down")
        assert (ended.status, ended.out.strip()) == (0, f"down: {NAME}")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
    assert not left(file.parent)
    none = run("vswitch", "status")
    assert (none.status, none.sentence) == (1, "verbena vswitch status: no virtual switch is up")


@pytest.mark.compiled(False)
@pytest.mark.loopback
def test_programs_and_virtual_machines_come_and_go(file: Path) -> None:
    file.write_text(PROGRAMS.format(name=NAME, folder=file.parent))
    process = start("vswitch", "up", file)
    try:
        read_until(process, "Ctrl-C ends it")
        card = open_card(str(file.parent / "card.sock"))
        for number in range(2):
            machine = socket.socket(socket.AF_UNIX)
            machine.settimeout(30)
            machine.connect(str(file.parent / "vm.sock"))
            read_until(process, "vm: connected")
            data = (CARD + VM + b"\x08\x00" + bytes((number,))).ljust(60, b"\0")
            machine.sendall(LENGTH.pack(len(data)) + data)
            assert card.wait_frames(30)
            assert card.receive() == data
            machine.close()
            read_until(process, "vm: gone")
        told = json.loads(run("vswitch", "status", "--json").out)
        assert told["gone"]["vm"]["rx_frames"] == 1
        card.close()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, (out, err)
    finally:
        process.kill()
        process.communicate()
    assert not left(file.parent)


@real
def test_what_a_killed_one_has_left_is_removed(file: Path) -> None:
    process = start("vswitch", "up", file)
    read_until(process, "Ctrl-C ends it")
    process.kill()
    process.communicate()
    assert f"{NAME}-a" in left(file.parent)
    gone = run("vswitch", "status")
    assert f"the process of virtual switch {NAME} is gone" in gone.sentence
    ended = run("vswitch", "down")
    assert f"removed what it had left: {NAME}-a, {NAME}-b" in ended.out
    assert left(file.parent) == ["vm.sock"], "at which nobody listens: the next one takes its place"
    (file.parent / "vm.sock").unlink()


@real
def test_a_port_that_cannot_be_made_leaves_nothing(file: Path) -> None:
    file.write_text(file.read_text().replace(f"namespace: {NAME}-b", f"namespace: {NAME}-a"))
    done = run("vswitch", "up", file)
    assert done.status == 1
    assert "there is one already" in done.sentence
    assert not left(file.parent)


@real
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs the program setpriv")
@pytest.mark.parametrize("capability", ["net_admin", "sys_admin"])
def test_the_missing_permission_is_named(file: Path, capability: str) -> None:
    process = start(
        "vswitch",
        "up",
        file,
        prefix=("setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}"),
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"CAP_{capability.upper()} is missing" in err
    assert not left(file.parent)


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ("name: b,", "name: a,", "there is a port a already"),
        ("kind: qemu, listen: {folder}/vm.sock", "kind: qemu", "a port of kind qemu needs the key listen"),
        ("kind: qemu", "kind: qemu, vni: 3", "a port of kind qemu has no key vni"),
        (', macs: ["52:54:00:00:00:01"]', "", "nobody finds port vm"),
        ("52:54:00:00:00:01", "53:54:00:00:00:01", "I/G bit 0"),
        ("52:54:00:00:00:01", "52:54", "no Ethernet address"),
        ("watchdog_ms", "watchdogs", "unknown key 'watchdogs'"),
        ("kind: qemu", "kind: bridge", "not one of"),
        ("    ports:", "    offload: true\n    separate_vlans: true\n    ports:", "exclude each other"),
        ("interface: eth0,", "interface: eth0, output: {{low: 5, high: 4}},", "low < high"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(
    file: Path, wrong: str, right: str, message: str
) -> None:
    file.write_text(FILE.replace(wrong, right, 1).format(name=NAME, folder=file.parent))
    with pytest.raises(FabricFileError, match=re.escape(f"{file}:")) as told:
        load_switch_file(str(file))
    assert message in str(told.value)


def test_a_file_without_ports(file: Path) -> None:
    example = Path(__file__).parents[2] / "examples/vswitch/report.yaml"
    done = run("vswitch", "up", example)
    assert done.status == 1
    assert "it declares no ports: the key live is missing" in done.sentence


def test_the_examples_are_right() -> None:
    folder = Path(__file__).parents[2] / "examples/vswitch"
    for name in ("live.yaml", "overlay-1.yaml", "overlay-2.yaml"):
        assert load_switch_file(str(folder / name)).vswitch.live is not None
