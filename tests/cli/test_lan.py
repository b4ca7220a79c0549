"""`verbena lan`: up, status, down, what interrupts leave behind (nothing), and which missing right is named."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.processes import read_until, start
from cli.processes import verbena as run
from verbena import FabricFileError, SystemLimitError
from verbena.errors import NotFound
from verbena.runtime import namespaces, registry
from verbena.scenario.load import load_fabric

pytestmark = pytest.mark.compiled

FILE = """
name: {name}
hosts:
  - {{name: a, adapters: [{{name: a0}}]}}
  - {{name: b, adapters: [{{name: b0}}]}}
fabric:
  switches: [{{name: s1, ports: 4}}]
  links:
    - {{from: a0, to: s1}}
    - {{from: b0, to: s1}}
lan:
  nodes:
    - {{adapter: a0, namespace: {name}-a, addresses: [10.89.0.1/24]}}
    - {{adapter: b0, namespace: {name}-b, addresses: [10.89.0.2/24, "fd89::2/64"]}}
"""
NAME = f"verbena-lan-{os.getpid()}"
real = pytest.mark.network("netns", "tap", "raw")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("VERBENA_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(registry, "FOLDER", tmp_path / "run")
    path = tmp_path / "lan.yaml"
    path.write_text(FILE.format(name=NAME))
    yield path
    for each in left(tmp_path):  # of a test that failed
        if each.startswith(NAME):
            namespaces.remove(each)


def left(folder: Path) -> list[str]:
    """What a LAN of this file has left on the machine."""
    found = [path.name for path in namespaces.FOLDER.glob(f"{NAME}-*")]
    return found + [path.name for path in (folder / "run").glob("*")]


def inside(host: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", f"{NAME}-{host}", *command], capture_output=True, text=True, check=False
    )


@pytest.mark.compiled(False)
@real
def test_up_status_down(file: Path) -> None:
    process = start("lan", "up", file)
    try:
        said = read_until(process, "Ctrl-C ends it")
        assert "fabric: 1 switches, 2 hosts, 2 cables" in said
        assert f"a0: lan0 in namespace {NAME}-a, 02:76:62:00:00:" in said
        pinged = inside("a", "ping", "-c", "1", "-W", "5", "10.89.0.2")
        assert not pinged.returncode, pinged.stdout
        shown = run("lan", "status")
        assert not shown.status, shown.err
        for expected in ("nodes: MTU 1500", "channels", "ARP and neighbour tables", "10.89.0.2", "counters"):
            assert expected in shown.out
        told = registry.LANS.ask(NAME)
        a, b = told["members"]
        assert a["neighbours"]["10.89.0.2"] == b["mac"]
        assert a["peers"][0]["mac"] == b["mac"]
        assert a["counters"]["tx.frames"] > 0
        with pytest.raises(SystemLimitError, match=f"a LAN {NAME} is up already"):
            registry.Registration(registry.LANS, NAME, lambda: None)
        ended = run("lan", "down", NAME)
        assert (ended.status, ended.out.strip()) == (0, f"down: {NAME}")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
    assert not left(file.parent)
    none = run("lan", "down", "x")
    assert (none.status, none.sentence) == (1, "verbena lan down: no LAN x is up")


@real
@pytest.mark.parametrize(
    ("number", "early"), [(signal.SIGINT, False), (signal.SIGTERM, True)], ids=["when up", "while coming up"]
)
def test_an_interrupt_leaves_nothing_behind(file: Path, number: signal.Signals, early: bool) -> None:
    process = start("lan", "up", file)
    try:
        read_until(process, "cables" if early else "Ctrl-C ends it")
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, (out, err)
        assert "Traceback" not in err
    finally:
        process.kill()
    assert not left(file.parent)


@real
def test_what_a_killed_one_has_left_is_removed(file: Path) -> None:
    process = start("lan", "up", file)
    read_until(process, "Ctrl-C ends it")
    process.kill()
    process.communicate()
    assert f"{NAME}-a" in left(file.parent)
    with pytest.raises(NotFound, match=f"the process of LAN {NAME} is gone"):
        registry.LANS.ask(NAME)
    ended = run("lan", "down")
    assert ended.status == 0
    assert f"removed what it had left: {NAME}-a, {NAME}-b" in ended.out
    assert not left(file.parent)


@real
def test_a_namespace_that_was_there_stays(file: Path) -> None:
    namespaces.create(f"{NAME}-a")
    try:
        process = start("lan", "up", file)
        read_until(process, "Ctrl-C ends it")
        process.terminate()
        process.communicate(timeout=30)
        assert left(file.parent) == [f"{NAME}-a"]
        assert "lan0" not in inside("a", "ip", "link").stdout
    finally:
        namespaces.remove(f"{NAME}-a")


@real
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs the program setpriv")
@pytest.mark.parametrize(
    ("capability", "what"),
    [
        ("net_admin", "CAP_NET_ADMIN is missing, which making TAP devices"),
        ("sys_admin", "CAP_SYS_ADMIN is missing"),
    ],
)
def test_the_missing_permission_is_named(file: Path, capability: str, what: str) -> None:
    process = start(
        "lan", "up", file, prefix=("setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}")
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert what in err
    assert "run it as root" in err
    assert not left(file.parent)


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        (
            "10.89.0.1/24",
            "10.89.0.1",
            "'10.89.0.1' is no address of an interface: write for example 10.0.0.1/24",
        ),
        ("adapter: b0", "adapter: x0", "there is no adapter x0"),
        ("adapter: b0", "adapter: a0", "a0 is in the LAN already: each adapter once"),
        ("lan:", "lan:\n  mtu: 70000", "mtu"),
        ("lan:", "lan:\n  speed: 3", "speed"),
        ("lan:", "lan:\n  policy: never", "policy"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(
    file: Path, wrong: str, right: str, message: str
) -> None:
    file.write_text(file.read_text().replace(wrong, right, 1))
    with pytest.raises(FabricFileError, match=re.escape(f"{file}:")) as told:
        load_fabric(str(file))
    assert message in str(told.value)


def test_a_file_without_a_lan(file: Path) -> None:
    file.write_text(file.read_text().split("lan:")[0])
    with pytest.raises(FabricFileError, match="the key workloads is missing here"):
        load_fabric(str(file))
    example = Path(__file__).parents[2] / "examples/fabric-two-paths.yaml"
    done = run("lan", "up", example)
    assert done.status == 1
    assert "the key lan is missing" in done.err


def test_nothing_to_run_in_a_file_that_has_only_a_lan(file: Path) -> None:
    done = run("run", file)
    assert done.status == 2
    assert "verbena lan up" in done.err
