"""Bridges between an emulated LAN and an ordinary Ethernet: veth cables, hosts that know nothing, loops attempted."""

from __future__ import annotations

import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tap_lab import ALL_ONES, Lab, eventually, frame, lab, quiet, real_config, star, take
from verbena.runtime import namespaces
from verbena.runtime.namespaces import inside
from verbena.runtime.real_lan import Place

pytestmark = [pytest.mark.network("netns", "tap", "raw"), pytest.mark.compiled]
KIND = 0x88B5


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def ethernet(net: Lab) -> Iterator[tuple[str, str]]:
    """A host e with an ordinary interface, and the namespace in which the other end of its cable is, as e1."""
    host, side = net.namespace("e"), net.namespace("side")
    for name in (host, side):
        namespaces.create(name)
    try:
        ip("link", "add", "e0", "netns", host, "type", "veth", "peer", "name", "e1", "netns", side)
        for address in ("10.88.0.100/24", "fd88::100/64"):
            ip("-n", host, "addr", "add", address, "dev", "e0", *(["nodad"] if ":" in address else []))
        for name, device in ((host, "e0"), (side, "e1")):
            ip("-n", name, "link", "set", device, "up")
        yield host, side
    finally:
        for name in (host, side):
            namespaces.remove(name)


@pytest.mark.requirement("LAN-26")
def test_hosts_on_both_sides_of_a_bridge() -> None:
    """The bridge is on the Ethernet by an ordinary interface; neither side knows of it, or has anything set up."""
    with lab(star("abd"), "ab") as net, ethernet(net) as (host, side):
        net.lan.add(Place("d", "e1", side, bridge=True, tap=False, spanning_tree=False))
        for source, target in (
            ("a", "10.88.0.100"),
            ("b", "fd88::100"),
            ("e", net.ip("b")),
            ("e", net.ip6("a")),
        ):
            assert " 0% packet loss" in net.ping(source, target)
        foreign = mac_of(net, "e")
        assert net.lan.members["a"].interface.neighbours()["10.88.0.100"] == foreign.hex(":")
        assert foreign[:4] != net.mac("a")[:4]  # no LID inside
        with packet_socket(host) as there, net.packets("a", KIND) as here, net.packets("b", KIND) as also:
            tagged = b"\x81\x00\x20\x2a" + KIND.to_bytes(2, "big")
            for sent in (
                frame(foreign, net.mac("a"), KIND, bytes(200)),
                frame(ALL_ONES, net.mac("a"), KIND, b"to all" * 20),
                foreign + net.mac("a") + tagged + b"with a tag" * 10,
            ):
                here.send(sent)
                got = take(there, lambda f, s=sent: f[:12] == s[:12])
                assert got[-80:] == sent[-80:]
                assert quiet(there, lambda f, s=sent: f[:12] == s[:12], 0.1)  # once
            there.send(frame(net.mac("b"), foreign, KIND, b"back" * 20))
            assert take(also, lambda f: f[6:12] == foreign)[14:18] == b"back"
            assert quiet(here, lambda f: f[6:12] == foreign, 0.1)  # nobody else's: the bridge has learnt
            unknown = frame(b"\x02\x99\0\0\0\1", net.mac("a"), KIND, b"unknown" * 10)
            here.send(unknown)  # nobody has that address: as on Ethernet, it is flooded
            assert take(there, lambda f: f[:6] == unknown[:6]) == unknown
        status = net.lan.status()["members"][-1]
        assert status["role"] == "bridge"
        assert status["behind"][foreign.hex(":")] == 1
        net.run("e", "ip", "link", "set", "e0", "mtu", "1400")
        transfer(net, "10.88.0.100", host)


def mac_of(net: Lab, host: str) -> bytes:
    return bytes.fromhex(net.run(host, "cat", "/sys/class/net/e0/address").stdout.strip().replace(":", ""))


def packet_socket(namespace: str, device: str = "e0") -> socket.socket:
    sock = inside(namespace, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    sock.bind((device, 3))
    return sock


def transfer(net: Lab, address: str, namespace: str) -> None:
    """TCP from the LAN, whose frames wait for segmentation, to a host on an ordinary cable, and back."""
    data = bytes(range(256)) * 2000
    with (
        inside(namespace, lambda: socket.create_server((address, 7000))) as server,
        net.socket("a", socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        client.connect((address, 7000))
        peer, _ = server.accept()
        peer.settimeout(20)
        with peer:
            for one, other in ((client, peer), (peer, client)):
                thread = threading.Thread(target=one.sendall, args=(data,))
                thread.start()
                got = b""
                while len(got) < len(data):
                    got += other.recv(1 << 18)
                thread.join()
                assert got == data


class Hub(threading.Thread):
    """Joins interfaces of a namespace: what comes in by one goes out by the others."""

    def __init__(self, namespace: str, *devices: str) -> None:
        super().__init__()
        self._socks = [packet_socket(namespace, device) for device in devices]
        for sock in self._socks:
            sock.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
            sock.setblocking(False)
        self._end, self._ended = socket.socketpair()
        self.carried = 0

    def run(self) -> None:
        while True:
            for sock in select.select([*self._socks, self._end], [], [])[0]:
                if sock is self._end:
                    return
                data = sock.recv(70_000)
                self.carried += 1
                for other in self._socks:
                    if other is not sock:
                        try:
                            other.send(data)
                        except OSError:
                            continue  # a full queue, as in any hub

    def stop(self) -> None:
        self._ended.send(b".")
        self.join()
        for sock in (*self._socks, self._end, self._ended):
            sock.close()


@pytest.mark.requirement("LAN-26")
def test_a_loop_of_two_bridges_is_not_closed() -> None:
    """Two bridges to one Ethernet: a broadcast comes once, and does not go round."""
    with lab(star("abcd"), "ab", config=real_config()) as net, ethernet(net) as (host, side):
        for bridge, device in (("c", "t1"), ("d", "t2")):
            net.lan.add(Place(bridge, device, side, bridge=True, tap=True))
        hub = Hub(side, "e1", "t1", "t2")
        hub.start()
        try:
            bridges = [net.lan.members[name] for name in "cd"]

            def settled() -> bool:
                states = sorted(
                    member.bridge.state(n).name for member in bridges for n in (0, 1) if member.bridge
                )
                return states in (["BLOCKING", *["FORWARDING"] * 3], ["FORWARDING"] * 3 + ["LISTENING"])

            def steady() -> bool:
                """Settled for a second: while the bridges still make up their minds, a frame may be lost."""
                end = time.monotonic() + 1.0
                while settled():
                    if time.monotonic() > end:
                        return True
                    time.sleep(0.01)
                return False

            eventually(steady, "one of the four ports blocks", 40)
            foreign = mac_of(net, "e")
            with packet_socket(host) as there, net.packets("a", KIND) as here, net.packets("b", KIND) as also:
                for sock, hearers, source in (
                    (here, (there, also), net.mac("a")),
                    (there, (here, also), foreign),
                ):
                    sent = frame(ALL_ONES, source, KIND, b"once" * 20)
                    sock.send(sent)
                    for hearer in hearers:
                        take(hearer, lambda f, s=sent: f[6:18] == s[6:18])
                        assert quiet(hearer, lambda f, s=sent: f[6:18] == s[6:18], 0.2)
            carried = hub.carried
            assert " 0% packet loss" in net.ping("a", "10.88.0.100")
            assert hub.carried - carried < 200
        finally:
            hub.stop()
