"""Teams in network namespaces: real TCP programs, cables that are pulled, packets on the member that they belong on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from team_world import PATIENT, World, ip
from verbena.errors import FabricFileError
from verbena.runtime.namespaces import inside
from verbena.runtime.real_loop import RealLoop
from verbena.runtime.tap import missing_permission
from verbena.runtime.team_ports import LOOK_NS, LinkWatch, PacketPort
from verbena.scenario.team_file import parse_team
from verbena.wire.offload import PLAIN

pytestmark = pytest.mark.compiled

network = pytest.mark.network("netns", "tap", "raw")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if missing_permission():
        pytest.skip(str(missing_permission()))
    made = World(tmp_path_factory.mktemp("team"))
    try:
        yield made
    finally:
        made.close()


def exchange(
    world: World, data: bytes, meanwhile: object, addresses: tuple[str, str] = ("10.10.0.1", "10.10.0.2")
) -> bytes:
    """The system's own TCP from a to b; returns the checksum that b got.  meanwhile: called while it runs."""
    server = inside(world.names[1], lambda: socket.create_server((addresses[1], 0)))
    client = inside(world.names[0], lambda: socket.socket())
    client.settimeout(PATIENT)
    client.connect(server.getsockname())
    taken, _ = server.accept()
    taken.settimeout(PATIENT)

    def send() -> None:
        for at in range(0, len(data), 1 << 16):
            client.sendall(data[at : at + (1 << 16)])
            time.sleep(0.002)
        client.close()

    thread = threading.Thread(target=send)
    thread.start()
    meanwhile()  # type: ignore[operator]
    digest = hashlib.sha256()
    while piece := taken.recv(1 << 16):
        digest.update(piece)
    thread.join()
    taken.close(), server.close()
    return digest.digest()


@network
@pytest.mark.requirement("TEM-03", "TEM-21")
def test_tcp_goes_on_while_cables_are_pulled(world: World, seed: int) -> None:
    random = Random(seed)
    data = random.randbytes(24 << 20)

    def pull() -> None:
        for _ in range(6):
            end, number = random.choice("ab"), random.randrange(3)
            world.link(end, number, False)
            time.sleep(0.1)
            world.link(end, number, True)
            time.sleep(0.02)

    assert exchange(world, data, pull) == hashlib.sha256(data).digest()
    world.until(lambda: world.active("a") == world.active("b") == 3)


@network
@pytest.mark.requirement("TEM-04", "TEM-08")
def test_tshark_sees_each_vlan_where_it_belongs(world: World, tmp_path: Path, seed: int) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("needs tshark")
    captures = []
    for number in range(3):
        file = tmp_path / f"a{number}.pcapng"
        world.start(0, "tshark", "-q", "-i", f"a{number}", "-w", str(file))
        captures.append(file)
    world.until(lambda: all(file.exists() and file.stat().st_size > 100 for file in captures))
    data = Random(seed).randbytes(200_000)
    for network in (10, 11, 20):
        for _ in range(6):
            addresses = (f"10.{network}.0.1", f"10.{network}.0.2")
            assert exchange(world, data, lambda: None, addresses) == hashlib.sha256(data).digest()
    time.sleep(1)
    for program in world.programs[-3:]:
        program.send_signal(signal.SIGINT)
        program.wait(PATIENT)
    del world.programs[-3:]
    seen = []
    for file in captures:
        command = [
            "tshark",
            "-r",
            str(file),
            "-Y",
            "tcp.len > 0",
            "-T",
            "fields",
            "-e",
            "vlan.id",
            "-e",
            "ip.dst",
        ]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
        seen.append({tuple(line.split("\t")) for line in lines if line})
    assert ("20", "10.20.0.2") in seen[2]
    assert not any(vlan == "20" for vlan, _ in seen[0] | seen[1])
    assert {address.split(".")[1] for vlan, address in seen[0] | seen[1] | seen[2] if vlan == "10"} == {"10"}
    assert any(("11", "10.11.0.2") in one for one in seen)


@network
def test_nobody_but_the_team_answers_for_its_addresses(world: World) -> None:
    """The system has interfaces of its own on the cables; it must not offer their addresses for the team's."""
    for number in (10, 11):
        for other in range(4):
            ip("-n", world.names[0], "neigh", "flush", "dev", f"ta.{number}")
            assert exchange(world, b"x" * 3000, lambda: None, (f"10.{number}.0.1", f"10.{number}.0.2"))
            told = subprocess.run(
                ["ip", "-j", "-n", world.names[0], "neigh", "show", f"10.{number}.0.2"],
                capture_output=True,
                text=True,
                check=True,
            )
            (entry,) = json.loads(told.stdout)
            card = json.loads(
                subprocess.run(
                    ["ip", "-j", "-n", world.names[1], "link", "show", f"tb.{number}"],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
            )[0]
            assert entry["lladdr"] == card["address"], other


@pytest.mark.compiled(False)
@network
def test_the_administrator_s_commands(world: World) -> None:
    def verbena(*words: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "verbena.cli.main",
            "team",
            *words,
            "-c",
            str(world.folder / "a.sock"),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    shown = verbena("status")
    assert shown.returncode == 0
    assert "a2 (RDMA)" in shown.stdout
    assert "R-virtual" in shown.stdout
    assert world.ask("a", "fail", "a1")["members"][1]["state"] == "DISABLED"
    world.until(lambda: world.active("b") == 2)
    world.ask("a", "recover", "a1")
    world.until(lambda: world.active("b") == world.active("a") == 3)
    assert [m["name"] for m in world.ask("a", "remove", "a1")["members"]] == ["a0", "a2"]
    world.until(lambda: world.active("b") == 2)
    assert verbena("add", "a1").returncode == 0
    world.until(lambda: world.active("b") == world.active("a") == 3)
    again = verbena("add", "a1")
    assert again.stderr == "verbena team add: a1 is in the team already\n"
    none = verbena("add", "eth9")
    assert none.stderr == "verbena team add: interface eth9 cannot be a member: No such device\n"
    second = verbena("up", str(world.folder / "a.yaml"))
    assert second.returncode == 1
    assert second.stderr.startswith("verbena team up: a team runs already at ")
    assert verbena("status").returncode == 0  # and still does
    wrong = verbena("fail", "eth9")
    assert wrong.returncode == 1
    assert wrong.stderr == "verbena team fail: the team has no member eth9: it has a0, a2, a1\n"
    wrong_one = world.ask("a", "offload", "beef")
    assert wrong_one == {"error": "0 connections begin with 'beef': `status` lists them"}
    lost = subprocess.run(
        [sys.executable, "-m", "verbena.cli.main", "team", "status", "-c", str(world.folder / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert lost.returncode == 1
    assert lost.stderr.startswith(
        f"verbena team status: no team answers at {world.folder / 'none'} (No such file"
    )
    assert world.ask("a", "dance") == {"error": "a team knows no 'dance'"}


@network
@pytest.mark.requirement("TEM-03")
def test_a_lost_carrier_is_seen_by_whoever_sends() -> None:
    """Before the kernel tells, which may take it a second; and what it tells late does not bring the link back."""
    if missing_permission():
        pytest.skip(str(missing_permission()))
    name = f"vteam{os.getpid()}c"
    ip("netns", "add", name)
    loop = RealLoop()
    try:
        ip("-n", name, "link", "add", "here", "type", "veth", "peer", "name", "there")
        ip("-n", name, "link", "set", "here", "up")
        ip("-n", name, "link", "set", "there", "up")
        told: list[bool] = []

        def make() -> PacketPort:
            with loop.lock:
                return PacketPort(loop, LinkWatch(loop), "here")

        port = inside(name, make)
        World.until(lambda: port.is_up)
        with loop.lock:  # nothing that the kernel tells is looked at meanwhile
            port.attach(lambda frame: None, told.append)
            ip("-n", name, "link", "set", "there", "down")
            time.sleep(2 * LOOK_NS / 1e9)
            assert not port.transmit_parts(bytes(12), memoryview(bytes(48)), PLAIN)
            assert not port.is_up
            assert told == [False]
            port._link(True)
            assert told == [False]
        ip("-n", name, "link", "set", "there", "up")
        World.until(lambda: port.is_up)
        ip("-n", name, "link", "set", "there", "down")
        time.sleep(2 * LOOK_NS / 1e9)
        with loop.lock:
            port.transmit(bytes(60))
        World.until(lambda: not port.is_up)
        assert told == [False, True, False]
        with loop.lock:
            port.close()
    finally:
        loop.close()
        ip("netns", "del", name)


GOOD = "members: [eth0]\nvlans: {10: 10.0.0.1/24}\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("members: [", "line"),
        ("[]", "the file"),
        ("members: []\nvlans: {}", "members"),
        (GOOD + "mode: fast\n", "mode"),
        (GOOD + "speed: 1\n", "speed"),
        (GOOD + "mtu: 9\n", "mtu = 9"),
        (GOOD + "rdma: {vlan: 10, address: 10.2.0.1/24, adapters: {eth0: 1.2.3.4}}\n", "dedicated"),
        (GOOD + "rdma: {vlan: 20, address: 10.2.0.1/24, adapters: {eth1: 1.2.3.4}}\n", "eth1 is no member"),
        (GOOD + "probe: {interval_ms: 0}\n", "probe.interval_ms"),
        (GOOD + "name: two words\n", "name"),
    ],
)
def test_wrong_team_files_get_one_sentence(text: str, what: str) -> None:
    with pytest.raises(FabricFileError, match=what) as told:
        parse_team(text)
    assert len(str(told.value).splitlines()) == 1


def test_a_right_team_file() -> None:
    made = parse_team(GOOD + "mode: least-load\nprobe: {heartbeat_key: shared secret, interval_ms: 5}\n")
    assert made.team.probes
    assert made.team.probe_interval_ns == 5_000_000
    assert made.members == ("eth0",)
    with contextlib.suppress(FabricFileError):
        parse_team(GOOD)
