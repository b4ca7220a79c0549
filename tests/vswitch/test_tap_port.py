"""TAP ports of a virtual switch between network namespaces: programs talk, a slow reader makes UDP senders wait."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any

import pytest

from tap_lab import ping
from verbena import _pure
from verbena.runtime import namespaces
from verbena.runtime.rtnetlink import LinkControl
from verbena.runtime.shm_port import card_pair
from verbena.runtime.tap import Tap
from verbena.runtime.tap_port import TapPort
from verbena.runtime.udp_socket import SO_RCVBUFFORCE
from verbena.runtime.vswitch_loop import SwitchLoop
from verbena.vswitch.config import Marks, PortConfig, SwitchConfig
from verbena.wire.offload import checksum
from vswitch.lab import mac
from vswitch.real_lab import SMALL, card, eventually

pytestmark = pytest.mark.network("netns", "tap")
LABS = count(1)
UDP_PORT = 9_000
HEADERS = 42


class Lab:
    """A switch with TAP devices in namespaces of their own.  Host N has 10.87.0.N and the address of station N."""

    def __init__(self, loop: SwitchLoop, stack: ExitStack, offload: bool) -> None:
        self.loop, self._stack, self.offload = loop, stack, offload
        self.name = f"verbena-vsw-{os.getpid()}-{next(LABS)}"

    def host(
        self, number: int, *, paced: bool = True, marks: Marks = SMALL, rate_bps: float = 0, **more: Any
    ) -> TapPort:
        space = f"{self.name}-{number}"
        namespaces.create(space)
        self._stack.callback(namespaces.remove, space)
        tap = Tap(
            "vsw0", namespace=space, mac=mac(number), addresses=[f"10.87.0.{number}/24"], offload=self.offload
        )
        driver = TapPort(tap, paced=paced, rate_bps=rate_bps)
        self.loop.add(driver, PortConfig(f"h{number}", (mac(number),), input=marks, output=marks, **more))
        return driver

    def run(self, number: int, *command: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", f"{self.name}-{number}", *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def ping(self, number: int, address: str) -> None:
        """Echoes, all answered."""
        ping(partial(self.run, number), address)

    def socket(self, number: int, kind: int) -> socket.socket:
        sock = namespaces.inside(f"{self.name}-{number}", lambda: socket.socket(socket.AF_INET, kind))
        sock.settimeout(30)
        return sock

    def know(self, number: int, other: int) -> None:
        """A neighbour that answers no ARP."""
        self.run(
            number, "ip", "neigh", "add", f"10.87.0.{other}", "lladdr", mac(other).hex(":"), "dev", "vsw0"
        )


@contextmanager
def lab(offload: bool = False, vlans: bool = False) -> Iterator[Lab]:
    config = SwitchConfig(max_frame=65_563) if offload else SwitchConfig(vlans=vlans)
    with ExitStack() as stack:
        loop = stack.enter_context(SwitchLoop(config))
        yield Lab(loop, stack, offload)


@pytest.mark.requirement("VSW-19")
@pytest.mark.parametrize("offload", [False, True])
def test_programs_in_namespaces_talk_through_the_switch(offload: bool) -> None:
    with lab(offload) as made:
        made.host(1)
        made.host(2)
        made.ping(1, "10.87.0.2")
        data = os.urandom(3_000_000 if _pure.compiled() else 300_000)
        with made.socket(2, socket.SOCK_STREAM) as server, made.socket(1, socket.SOCK_STREAM) as client:
            server.bind(("10.87.0.2", 5_000))
            server.listen()
            client.connect(("10.87.0.2", 5_000))
            peer, _ = server.accept()
            threading.Thread(target=lambda: (client.sendall(data), client.close()), daemon=True).start()
            got = b""
            while part := peer.recv(1 << 20):
                got += part
            peer.close()
        assert got == data
        assert made.loop.switch.losses() == {}
        if offload:
            largest = made.loop.status()["ports"]["h2"]
            assert largest["tx_bytes"] / largest["tx_frames"] > 2_000, "frames crossed uncut"


@pytest.mark.requirement("VSW-01", "VSW-18")
def test_a_reader_that_is_slow_makes_udp_senders_wait() -> None:
    """Pacing makes the sender's socket full; what a busy kernel drops all the same is told as its own."""
    share, waited, told = _flood(True)
    assert waited, "the sender would have had to wait: its socket was full"
    assert told["rate_changes"] > 0
    unpaced, _, _ = _flood(False)
    assert share < unpaced / 4, (share, unpaced, told)


def _flood(paced: bool) -> tuple[float, bool, dict[str, int]]:
    """(the part of the frames that was lost, did the socket say that it is full?, what the port counted)."""
    with lab() as made:
        driver = made.host(1, paced=paced)
        reader = card(made.loop, "reader", 9)
        made.know(1, 9)
        sock = made.socket(1, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sent, waited, got = 0, False, 0
        end = time.monotonic() + 2
        while time.monotonic() < end:
            try:
                sock.sendto(bytes(1000), ("10.87.0.9", UDP_PORT))
                sent += 1
            except BlockingIOError:
                waited = True
                time.sleep(0.001)
            if sent % 50 == 0:
                got += len(_datagrams(reader.receive_many(5)))

        def rest() -> bool:
            nonlocal got
            while reader.wait_frames(0.3):
                got += len(_datagrams(reader.receive_many(500)))
            return bool(got + driver.counters()["kernel.dropped_to_switch"] >= sent)

        eventually(rest, f"{sent} were sent, {got} came: {driver.counters()}", 60)
        told = driver.counters()
        assert made.loop.switch.losses() == {}
        sock.close()
        reader.close()
        assert sent - got <= told["kernel.dropped_to_switch"] + told["kernel.dropped_in_qdisc"], told
        return (sent - got) / sent, waited, told


def _datagrams(frames: list[bytes]) -> list[bytes]:
    return [each for each in frames if len(each) == HEADERS + 1000]


def test_what_the_kernel_drops_is_told_as_the_kernels() -> None:
    """Nobody reads a device with a queue of 4 frames: the rest is dropped, and its interface says so."""
    with ExitStack() as stack:
        space = f"verbena-vsw-{os.getpid()}-{next(LABS)}"
        namespaces.create(space)
        stack.callback(namespaces.remove, space)
        tap = Tap("vsw0", namespace=space, addresses=["10.87.0.1/24"], offload=False)
        stack.callback(tap.close)
        link = LinkControl("vsw0", space)
        stack.callback(link.close)
        link.set_queue_length(4)
        before = link.counters()["dropped_to_switch"]
        subprocess.run(
            ["ip", "-n", space, "neigh", "add", "10.87.0.9", "lladdr", "02:00:00:00:00:09", "dev", "vsw0"],
            check=True,
        )
        sock = namespaces.inside(space, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for _ in range(50):
            sock.sendto(bytes(100), ("10.87.0.9", UDP_PORT))
        sock.close()
        assert eventually(lambda: link.counters()["dropped_to_switch"] - before, "it drops") >= 40
        link.shape(10_000, 1 << 17, 1 << 20)
        shown = subprocess.run(
            ["tc", "-n", space, "qdisc", "show", "dev", "vsw0"], capture_output=True, text=True, check=True
        ).stdout
        assert "qdisc tbf 1: root" in shown
        assert "rate 80Kbit" in shown
        link.shape(5_000_000_000, 1 << 20, 1 << 20)
        shown = subprocess.run(
            ["tc", "-n", space, "qdisc", "show", "dev", "vsw0"], capture_output=True, text=True, check=True
        ).stdout
        assert "rate 40Gbit" in shown


def test_a_device_that_somebody_removes_takes_its_port_along() -> None:
    with lab() as made:
        made.host(1)
        made.host(2)
        first = made.loop.drivers["h1"]
        made.run(1, "ip", "link", "del", "vsw0")
        eventually(lambda: "h1" not in made.loop.status()["ports"], "the port goes")
        assert "h2" in made.loop.status()["ports"]
        assert first.closed


def test_a_shaper_of_somebody_else_does_not_end_the_switch() -> None:
    with lab() as made:
        driver = made.host(1)
        made.host(2)
        made.run(1, "tc", "qdisc", "del", "dev", "vsw0", "root")
        made.run(1, "tc", "qdisc", "add", "dev", "vsw0", "root", "handle", "1:", "pfifo")
        with made.loop._locked():
            driver.pacer.rate = 100_000
        for _ in range(3):
            made.run(1, "ping", "-c", "20", "-i", "0.002", "-s", "1400", "-W", "5", "10.87.0.2")
        eventually(lambda: driver.counters().get("shaper_refused"), "it is counted")
        made.ping(2, "10.87.0.1")


def test_no_more_goes_out_than_the_rate_of_a_port() -> None:
    """A million bytes at 20 Mb/s take 0.4 s at least; what waits meanwhile waits in the switch, and nothing is lost."""
    with lab() as made:
        made.host(1, rate_bps=20e6)
        sender = card(made.loop, "sender", 9, ring=1 << 16)
        sock = made.socket(1, socket.SOCK_DGRAM)
        sock.bind(("10.87.0.1", UDP_PORT))
        sock.setsockopt(
            socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24
        )  # for all of them, should this test be asleep
        begun = time.monotonic()
        threading.Thread(target=lambda: sender.send_all([datagram(9, 1, 970)] * 1_000, timeout=60)).start()
        for _ in range(1_000):
            assert len(sock.recv(2_000)) == 970
        assert time.monotonic() - begun > (1_000 * (970 + HEADERS) * 8 / 20e6) * 0.95 - 0.01
        assert made.loop.status()["ports"]["h1"]["output"][0]["stops"] > 0
        assert made.loop.switch.losses() == {}
        sock.close()
        sender.close()


def datagram(source: int, destination: int, size: int) -> bytes:
    """A frame with a UDP datagram from a card's station to a host."""
    udp = struct.pack(">HHHH", 7, UDP_PORT, 8 + size, 0) + bytes(size)
    addresses = bytes((10, 87, 0, source, 10, 87, 0, destination))
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    return mac(destination) + mac(source) + b"\x08\x00" + head + udp


def test_vlans_separate_hosts_and_a_trunk_has_tags() -> None:
    with lab(vlans=True) as made:
        ten, twenty = frozenset({10}), frozenset({20})
        made.host(1, pvid=10, vlans=ten)
        made.host(2, pvid=20, vlans=twenty)
        made.host(3, pvid=10, vlans=ten)
        driver, trunk = card_pair(1 << 16)
        made.loop.add(driver, PortConfig("trunk", (mac(9),), vlans=ten | twenty, tagged=True))
        made.ping(1, "10.87.0.3")
        sock = made.socket(2, socket.SOCK_DGRAM)
        sock.bind(("10.87.0.2", UDP_PORT))
        sock.sendto(b"?", ("10.87.0.1", UDP_PORT))  # asks who that is, of VLAN 20 only
        seen: dict[int, set[bytes]] = {10: set(), 20: set()}

        def both() -> bool:
            trunk.wait_frames(0.1)
            for frame in trunk.receive_many(100):
                assert frame[12:14] == b"\x81\x00", "whatever leaves by the trunk has its tag"
                seen[int.from_bytes(frame[14:16], "big") & 0xFFF].add(frame[6:12])
            return mac(1) in seen[10] and mac(2) in seen[20]

        eventually(both, "broadcasts of both VLANs leave by the trunk")
        assert (mac(2) in seen[10], mac(1) in seen[20]) == (False, False)
        host2 = made.loop.status()["ports"]["h2"]["tx_frames"]
        plain = datagram(9, 2, 30)
        for vlan in (10, 20):  # of VLAN 10 to a host of VLAN 20, then of its own
            trunk.send(plain[:12] + struct.pack(">HH", 0x8100, vlan) + plain[12:])
        assert len(sock.recv(100)) == 30
        assert made.loop.status()["ports"]["h2"]["tx_frames"] == host2 + 1, "one of them, without its tag"
        sock.close()
        trunk.close()


def test_a_namespace_that_somebody_removes_stops_nobody() -> None:
    """Its last reader gone, the device is still the switch's: what goes there goes nowhere, and the others go on."""
    with lab() as made:
        for number in (1, 2, 3):
            made.host(number)
        sock = made.socket(1, socket.SOCK_DGRAM)
        made.know(1, 2)
        namespaces.remove(f"{made.name}-2")
        before = made.loop.status()["ports"]["h2"]["tx_frames"]
        for _ in range(500):
            sock.sendto(bytes(1000), ("10.87.0.2", UDP_PORT))
        eventually(lambda: made.loop.status()["ports"]["h2"]["tx_frames"] >= before + 500, "all of it goes")
        made.ping(1, "10.87.0.3")
        assert made.loop.switch.losses() == {}
        sock.close()


def test_an_interface_that_is_down_refuses_and_that_is_told() -> None:
    with lab() as made:
        driver = made.host(1)
        made.host(2)
        sender = card(made.loop, "sender", 9)
        made.run(1, "ip", "link", "set", "vsw0", "down")
        sender.send_all([datagram(9, 1, 100)] * 50, timeout=30)
        eventually(lambda: driver.counters()["refused_by_kernel"] >= 50, "each is refused, and counted")
        made.run(1, "ip", "link", "set", "vsw0", "up")
        made.ping(2, "10.87.0.1")
        sender.close()
