"""Ten members in real time: load on all of them, nine cables pulled; what is offloaded, and VLANs, on the wire."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from team_world import PATIENT, World
from verbena.runtime.namespaces import inside
from verbena.runtime.tap import missing_permission

pytestmark = [
    pytest.mark.network("netns", "tap", "raw"),
    pytest.mark.skipif(os.environ.get("VERBENA_PURE", "") not in ("", "0"), reason="the same uncompiled"),
]
MEMBERS, RDMA = 10, 8
"""RDMA: the first of the two RDMA cards."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if missing_permission():
        pytest.skip(str(missing_permission()))
    made = World(tmp_path_factory.mktemp("ten"), MEMBERS, MEMBERS - RDMA, proxies=True)
    try:
        yield made
    finally:
        made.close()


def sent(world: World) -> list[int]:
    return [member["tx"] for member in world.ask("a", "status")["members"]]


@pytest.mark.requirement("TEM-02", "TEM-03", "TEM-07")
def test_many_flows_use_all_ten_and_one_stream_outlives_nine(world: World, seed: int) -> None:
    def udp() -> list[socket.socket]:
        return [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(200)]

    before, flows = sent(world), inside(world.names[0], udp)

    def spread() -> bool:
        for sock in flows:  # while an address is not resolved yet, the system drops most of it
            sock.sendto(bytes(400), ("10.10.0.2", 9))
        return all(after - count >= 25 for after, count in zip(sent(world), before, strict=True))

    world.until(spread)
    for sock in flows:
        sock.close()

    random = Random(seed)
    data = random.randbytes(12 << 20)
    listener = inside(world.names[1], lambda: socket.create_server(("10.11.0.2", 9100)))
    near = inside(world.names[0], lambda: socket.create_connection(("10.11.0.2", 9100), PATIENT))
    far, _ = listener.accept()
    far.settimeout(PATIENT)
    turn = threading.Semaphore(0)

    def write() -> None:
        for at in range(0, len(data), len(data) // 10 + 1):
            near.sendall(data[at : at + len(data) // 10 + 1])
            assert turn.acquire(timeout=PATIENT)
        near.close()

    writer = threading.Thread(target=write)
    writer.start()
    order = random.sample(range(MEMBERS), MEMBERS)
    got = bytearray()
    for number, pulled in enumerate(order[:-1]):
        world.link(random.choice("ab"), pulled, False)
        turn.release()
        world.until(lambda left=MEMBERS - 1 - number: world.active("a") == world.active("b") == left)  # type: ignore[misc]
    turn.release()
    while piece := far.recv(1 << 20):
        got += piece
    writer.join()
    far.close(), listener.close()
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    for end in "ab":
        for number in range(MEMBERS):
            world.link(end, number, True)
    world.until(lambda: world.active("a") == world.active("b") == MEMBERS)


@pytest.mark.requirement("TEM-12", "TEM-16")
def test_tshark_sees_an_offloaded_connection_on_its_card_alone(
    world: World, tmp_path: Path, seed: int
) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("needs tshark")
    server = inside(world.names[1], lambda: socket.create_server(("127.0.0.1", 9000)))
    near = inside(world.names[0], lambda: socket.create_connection(("127.0.0.1", 8000), PATIENT))
    server.settimeout(PATIENT)
    far, _ = server.accept()
    captures = [tmp_path / f"a{number}.pcapng" for number in (0, RDMA, RDMA + 1)]
    programs = [
        world.start(0, "tshark", "-q", "-i", file.stem, "-s", "100", "-w", str(file)) for file in captures
    ]
    world.until(lambda: all(file.exists() and file.stat().st_size > 100 for file in captures))
    data = Random(seed).randbytes(1 << 20)
    for path in ("UPLOAD", "OFFLOAD"):
        assert "error" not in world.ask("a", path.lower())
        world.until(lambda path=path: world.path() == path)  # type: ignore[misc]
        near.sendall(data)
        got = b""
        while len(got) < len(data):
            got += far.recv(1 << 20)
        assert got == data
    near.close(), far.close(), server.close()
    time.sleep(0.5)
    for program in programs:
        program.send_signal(signal.SIGINT)
        program.wait(PATIENT)
        world.programs.remove(program)
    offloaded, uploaded = [], []
    for file in captures:
        for wanted, into in (("udp.dstport == 4791", offloaded), ("vlan.id == 20 && tcp", uploaded)):
            command = ["tshark", "-r", str(file), "-Y", wanted, "-T", "fields", "-e", "frame.len"]
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            into.append(sum(map(int, lines)))
    assert offloaded[0] == offloaded[2] == 0
    assert offloaded[1] > len(data)
    assert uploaded[0] == uploaded[2] == 0
    assert uploaded[1] > len(data)


@pytest.mark.requirement("TEM-04", "TEM-06", "TEM-08")
def test_vlans_are_isolated(world: World) -> None:
    cards = {
        name: inside(world.names[1], lambda name=name: listen(name)) for name in ("tb.10", "tb.11", "tb.r")
    }  # type: ignore[misc]
    cable = inside(world.names[0], lambda: listen("a0"))
    team, rdma = (address(world, name) for name in ("tb.10", "tb.r"))
    source = bytes.fromhex("020000000077")
    drops = Counter(world.ask("b", "status")["members"][0]["drops"])
    for vlan, to in ((0, team), (10, team), (11, team), (12, team), (20, rdma), (20, team), (10, rdma)):
        tag = b"\x81\0" + vlan.to_bytes(2, "big") if vlan else b""
        cable.send(to + source + tag + b"\x88\xb5" + vlan.to_bytes(2, "big") + bytes(50))

    def dropped() -> Counter[str]:
        """On the member that the frames came by; the system's own frames on the cable are among them."""
        return Counter(world.ask("b", "status")["members"][0]["drops"]) - drops

    def others() -> int:
        return dropped()["drop.rx.upload_elsewhere"] + dropped()["drop.rx.other"]

    world.until(lambda: dropped()["drop.rx.vlan"] >= 2 and others() >= 3)
    seen = {name: [frame for frame in taken(sock) if frame[6:12] == source] for name, sock in cards.items()}
    assert [frame[14:16] for frame in seen["tb.10"]] == [b"\0\x0a"]
    assert [frame[14:16] for frame in seen["tb.11"]] == [b"\0\x0b"]
    assert seen["tb.r"] == []
    for sock in (*cards.values(), cable):
        sock.close()


def listen(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind((name, 3))
    sock.setblocking(False)
    return sock


def taken(sock: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(sock.recv(2048))
        except BlockingIOError:
            return found


def address(world: World, name: str) -> bytes:
    told = subprocess.run(
        ["ip", "-o", "-n", world.names[1], "link", "show", name], capture_output=True, text=True, check=True
    )
    return bytes.fromhex(told.stdout.split("link/ether ")[1].split()[0].replace(":", ""))
