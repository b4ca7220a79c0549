"""Cables pulled during a transfer, hosts that come and go, storms, on a LAN of real operating systems' interfaces."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from pathlib import Path

import pytest

from tap_lab import ALL_ONES, Lab, eventually, frame, lab, quiet, real_config, star, take, two_paths
from verbena import InvalidAttributeError, SystemLimitError, _pure
from verbena.runtime import namespaces
from verbena.runtime.real_lan import Place

pytestmark = [pytest.mark.network("netns", "tap", "raw"), pytest.mark.compiled]
SIZE = 48 << 20 if _pure.compiled() else 1 << 20  # bytes; an eighth crosses before a cable is pulled
FAST = real_config(query_interval_ns=300_000_000)


class Transfer:
    """Bytes by TCP from one host to another, at its own pace until `finish`, and their checksums."""

    def __init__(self, net: Lab, source: str, target: str, seed: int) -> None:
        self._data = random.Random(seed).randbytes(1 << 16)
        self._ending = False
        self._blocks = 0
        self.received = 0
        self._sum = hashlib.sha256()
        self._listener = net.socket(target, socket.AF_INET, socket.SOCK_STREAM)
        self._listener.bind((net.ip(target), 7000))
        self._listener.listen()
        self._out = net.socket(source, socket.AF_INET, socket.SOCK_STREAM)
        self._out.settimeout(60)
        self._out.connect((net.ip(target), 7000))
        self._in, _ = self._listener.accept()
        self._in.settimeout(60)
        self._threads = [threading.Thread(target=each) for each in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._ending:
            self._out.sendall(self._data)
            self._blocks += 1
        self._out.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        while part := self._in.recv(1 << 18):
            self._sum.update(part)
            self.received += len(part)

    def finish(self) -> None:
        """Send no more; every byte must have come, once, in order."""
        self._ending = True
        for thread in self._threads:
            thread.join(120)
        for sock in (self._in, self._out, self._listener):
            sock.close()
        expected = hashlib.sha256()
        for _ in range(self._blocks):
            expected.update(self._data)
        assert self.received == self._blocks * len(self._data)
        assert self._sum.digest() == expected.digest()


@pytest.mark.requirement("LAN-21", "SYS-02")
def test_a_transfer_goes_on_when_its_cable_is_pulled(seed: int) -> None:
    with lab(two_paths(), config=FAST) as net:
        net.ping("a", net.ip("b"))
        mac = net.mac("b")
        transfer = Transfer(net, "a", "b", seed)
        cables = [port for port in net.fabric.topology.at if port.node == "s1" and port.port > 1]
        for port in cables:
            begun = transfer.received
            eventually(lambda b=begun: transfer.received > b + SIZE // 8, "bytes cross", 60)
            link = net.fabric.pull(port)
            begun = transfer.received
            eventually(
                lambda b=begun: transfer.received > b + SIZE // 16, "it goes on by the other cable", 60
            )
            net.fabric.plug(link)
            assert net.fabric.wait_until(lambda: net.fabric.settled, 20)
        transfer.finish()
        assert net.mac("b") == mac
        # No side channel: without any cable nothing crosses.
        pulled = [net.fabric.pull(port) for port in cables]
        assert net.try_run("a", "ping", "-c", "2", "-i", "0.2", "-W", "1", net.ip("b")).returncode
        for link in pulled:
            net.fabric.plug(link)
        eventually(
            lambda: not net.try_run("a", "ping", "-c", "1", "-W", "1", net.ip("b")).returncode, "it is back"
        )


@pytest.mark.requirement("SYS-02")
def test_the_lan_is_the_adapters_own_queue_pairs() -> None:
    """Close the queue pairs behind a card, and nothing crosses any more, whatever the interfaces are."""
    with lab(star("ab")) as net:
        net.ping("a", net.ip("b"))
        member = net.lan.members["b"]
        assert member.context.query_device().max_qp
        sent = net.counters("a")["tx.frames"]
        packets = member.context.counters()["rx.packets"]
        net.ping("a", net.ip("b"))
        assert member.context.counters()["rx.packets"] - packets >= 3
        assert net.counters("a")["tx.frames"] - sent >= 3
        member.context.close()  # its queue pairs and keys are gone, the interface is still there
        assert net.try_run("a", "ping", "-c", "2", "-i", "0.2", "-W", "1", net.ip("b")).returncode


@pytest.mark.requirement("LAN-22", "LAN-06")
def test_hosts_come_and_go() -> None:
    topology = star("abc")
    with lab(topology, "ab", config=FAST) as net:
        net.ping("a", net.ip("b"))
        for _ in range(2):
            net.add("c")  # its broadcasts are heard, and it hears those of the others
            net.ping("a", net.ip("c"))
            net.ping("c", net.ip("b"))
            gone = net.mac("c")
            with net.packets("c", 0x88B5) as there, net.packets("a", 0x88B5) as here:
                here.send(frame(ALL_ONES, net.mac("a"), 0x88B5, b"all"))
                take(there, lambda f: f[14:17] == b"all")
            net.lan.remove("c")
            assert not namespaces.exists(net.namespace("c"))
            peers = net.lan.members["a"].node.drivers[0].station.peers
            eventually(lambda p=peers, m=gone: p.at(int.from_bytes(m[4:], "big")) is None, "a forgets c", 10)
        net.ping("a", net.ip("b"))


@pytest.mark.requirement("LAN-19")
def test_the_link_of_the_card_is_the_link_of_the_interface() -> None:
    with lab(star("ab")) as net:
        net.ping("a", net.ip("b"))
        carrier = lambda: net.run("b", "cat", "/sys/class/net/lan0/carrier").stdout.strip()  # noqa: E731
        assert carrier() == "1"
        link = net.fabric.pull("b[1]")
        eventually(lambda: carrier() == "0", "the system sees that the cable is out")
        net.fabric.plug(link)
        eventually(lambda: carrier() == "1", "and that it is in again")
        eventually(lambda: not net.try_run("a", "ping", "-c", "1", "-W", "1", net.ip("b")).returncode, "ping")


@pytest.mark.requirement("LAN-03")
def test_another_lid_is_another_address_and_is_announced() -> None:
    """The card's LID changes: so do the interface's address and, unasked, what the others have resolved."""
    with lab(star("ab"), config=FAST) as net:
        net.ping("a", net.ip("b"))
        old = net.mac("b")
        with net.packets("a", 0x0806) as watch:
            link = net.fabric.pull("b[1]")
            with net.fabric.loop.held():
                lids = net.fabric.manager_of("a").subnet_manager.lids
                lids.reserve(net.fabric.topology.nodes["b"].port_guid(1), 99)
            net.fabric.plug(link)
            announced = take(watch, lambda f: f[28:32] == socket.inet_aton(net.ip("b")), 20)
        new = net.mac("b")
        assert new[4:] == (99).to_bytes(2, "big") != old[4:]
        assert announced[6:12] == new
        eventually(lambda: not net.try_run("a", "ping", "-c", "1", "-W", "1", net.ip("b")).returncode, "ping")
        assert net.lan.members["a"].interface.neighbours()[net.ip("b")] == new.hex(":")


def test_a_broadcast_storm_is_dropped_and_counted() -> None:
    """One host shouts as fast as it can: the others' rate is limited, and they go on working."""
    config = real_config(storm_rate=200, storm_burst=50)
    with lab(star("abc"), config=config) as net:
        net.ping("b", net.ip("c"))
        stop = threading.Event()

        def shout() -> None:
            with net.packets("a") as sock:
                shouted = frame(ALL_ONES, net.mac("a"), 0x88B5, bytes(1000))
                while not stop.is_set():
                    try:
                        sock.send(shouted)
                    except OSError:
                        time.sleep(0.001)  # the interface's queue is full

        thread = threading.Thread(target=shout)
        thread.start()
        try:
            eventually(lambda: net.counters("b")["drop.rx.storm"] > 500, "the storm is noticed", 30)
            net.ping("b", net.ip("c"))
            assert net.counters("b")["drop.rx.storm"] > 500
        finally:
            stop.set()
            thread.join()
        with net.packets("b", 0x88B5) as there:
            quiet(there, lambda f: False, 0.2)
        # It is no outcast afterwards, when what was in the queues has been dropped, too.
        eventually(
            lambda: not net.try_run("a", "ping", "-c", "1", "-W", "1", net.ip("b")).returncode, "ping", 40
        )
        memory = net.lan.members["b"].node.drivers[0].station.services.messages
        eventually(lambda: memory.free == memory.count, "all slots are free again")


def test_what_cannot_be_added(tmp_path: Path) -> None:
    with lab(star("ab"), "a") as net:
        before = set(namespaces.FOLDER.iterdir())
        with pytest.raises(InvalidAttributeError, match="'x' is no host of this fabric"):
            net.lan.add(Place("x", "lan0", net.namespace("x")))
        with pytest.raises(SystemLimitError, match="a is in the LAN already"):
            net.lan.add(Place("a", "lan0", net.namespace("y")))
        with pytest.raises(SystemLimitError, match=r"TAP device lan0 in namespace .* cannot be made"):
            net.lan.add(Place("b", "lan0", net.namespace("a")))
        with pytest.raises(InvalidAttributeError, match="is no address of an interface"):
            net.lan.add(Place("b", "lan0", net.namespace("y"), ("10.1.2.3.4/8",)))
        with pytest.raises(InvalidAttributeError, match="is not in the LAN"):
            net.lan.remove("b")
        assert set(namespaces.FOLDER.iterdir()) == before  # nothing of it is left
        net.add("b")
        net.ping("a", net.ip("b"))
