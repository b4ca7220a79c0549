"""Ports to virtual machines: a peer that speaks QEMU's framing, slow, fast, broken, or with nonsense to say."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from pathlib import Path

import pytest

from verbena import _pure
from verbena.errors import InvalidAttributeError, SystemLimitError
from verbena.runtime.stream_port import LENGTH, LONGEST, StreamListener, StreamPort
from verbena.runtime.vswitch_loop import SwitchLoop
from verbena.vswitch.config import Marks, PortConfig
from verbena.vswitch.watchdog import Watchdog
from verbena.wire.offload import PLAIN, OffloadHeader
from vswitch.lab import frame, mac, number_of
from vswitch.real_lab import SMALL, card, eventually, numbers

SCALE = 1 if _pure.compiled() else 10


class Machine:
    """The other end of the socket, as QEMU's stream backend has it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(30)
        self._file = sock.makefile("rb")

    def send(self, *frames: bytes) -> None:
        self.sock.sendall(b"".join(LENGTH.pack(len(each)) + each for each in frames))

    def receive(self) -> bytes:
        (size,) = LENGTH.unpack(self._file.read(LENGTH.size))
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()
        self.sock.close()


def machine(loop: SwitchLoop, name: str, station: int, marks: Marks = SMALL) -> Machine:
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    loop.add(StreamPort(ours), PortConfig(name, (mac(station),), input=marks, output=marks))
    return Machine(theirs)


@pytest.mark.requirement("VSW-18", "VSW-19")
def test_frames_between_machines_whatever_their_sizes_and_cuts(seed: int) -> None:
    chance = random.Random(seed)
    frames = [frame(1, 2, n, chance.choice((60, 61, 1000, 1514))) for n in range(2000 // SCALE)]
    with SwitchLoop() as loop:
        one, two = machine(loop, "one", 1), machine(loop, "two", 2)
        data = b"".join(LENGTH.pack(len(each)) + each for each in frames)

        def send() -> None:
            at = 0
            while at < len(data):
                size = chance.randrange(1, 5000)
                one.sock.sendall(data[at : at + size])
                at += size

        sender = threading.Thread(target=send)
        sender.start()
        assert [two.receive() for _ in frames] == frames
        sender.join(30)
        two.send(frame(2, 1, 7))
        assert one.receive() == frame(2, 1, 7)
        assert loop.switch.losses() == {}
        one.close()
        two.close()


@pytest.mark.requirement("VSW-18")
def test_a_machine_that_does_not_read_stops_the_other_and_nothing_is_lost() -> None:
    with SwitchLoop() as loop:
        one, two, three = (machine(loop, name, n) for n, name in enumerate(("one", "two", "three"), 1))
        one.sock.settimeout(0.5)
        sent = 0
        batch = [frame(1, 2, n, 1000) for n in range(10_000)]
        with contextlib.suppress(TimeoutError):
            while sent < len(batch):
                one.send(batch[sent])
                sent += 1
        assert sent < 2000, "the socket fills: the machine waits, as its guest's card then does"
        assert loop.status()["ports"]["one"]["input"][0]["stopped"]
        three.send(frame(3, 1, 5))
        assert number_of(one.receive()) == 5, "the other ways are free"
        read = [number_of(two.receive()) for _ in range(sent)]
        assert read == list(range(sent))
        assert loop.switch.losses() == {}
        for each in (one, two, three):
            each.close()


def test_three_machines_at_full_speed_into_one_card_lose_nothing() -> None:
    each = 5_000 // SCALE
    with SwitchLoop() as loop:
        machines = [machine(loop, f"m{n}", n, Marks(16, 64, 80)) for n in (1, 2, 3)]
        reader = card(loop, "reader", 9)

        def produce(n: int) -> None:
            for start in range(0, each, 100):
                machines[n].send(*(frame(n + 1, 9, start + i, 64 + i) for i in range(min(100, each - start))))

        threads = [threading.Thread(target=produce, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        found = numbers(reader, 3 * each)
        for thread in threads:
            thread.join(30)
        assert sorted(found) == sorted(list(range(each)) * 3)
        assert loop.switch.losses() == {}
        assert len(set(loop.switch.balance())) == 1
        for one in machines:
            one.close()
        reader.close()


def test_a_machine_that_reads_no_more_is_declared_dead_and_the_others_go_on() -> None:
    """A real socket whose other end stops reading: its sender waits, for ever without a watchdog."""
    said: list[tuple[str, str]] = []
    with SwitchLoop() as loop:
        one, dead, good = (machine(loop, name, n) for n, name in enumerate(("one", "dead", "good"), 1))
        one.sock.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 10_000:
                one.send(frame(1, 2, sent, 1000))
                sent += 1
        assert sent < 2_000
        one.sock.settimeout(30)
        with loop._locked():
            dog = Watchdog(
                loop.switch,
                loop.clock,
                lambda *what: said.append(what),
                detect_ns=200_000_000,
                restore_ns=100_000_000,
            )
            dog.start()
        eventually(lambda: ("dead", "dead") in said, "it is announced")
        # A frame that was cut by the time limit is still to be finished; then its stream goes on.
        eventually(lambda: loop.status()["ports"]["dead"].get("drop.dead_output", 0) > 0, "and counted")
        eventually(lambda: not loop.status()["ports"]["one"]["input"][0]["stopped"], "its sender may go on")
        assert "one" in loop.status()["ports"]
        assert "good" in loop.status()["ports"]
        good.send(frame(3, 1, 77))
        assert number_of(one.receive()) == 77
        assert dog.detections >= 1
        first = number_of(dead.receive())
        assert first == 0, "what was in its socket before is still there, from the first one on"
        eventually(lambda: ("dead", "restored") in said, "it lives again")
        for each in (one, dead, good):
            each.close()


@pytest.mark.parametrize("noise", [LENGTH.pack(0), LENGTH.pack(LONGEST + 1), b"GET / HTTP/1.1\r\n\r\n"])
def test_what_is_no_framing_ends_the_port_and_only_that(noise: bytes) -> None:
    gone: list[str] = []
    with SwitchLoop(on_gone=gone.append) as loop:
        bad, good = machine(loop, "bad", 1), machine(loop, "good", 2)
        reader = card(loop, "reader", 9)
        bad.send(frame(1, 9, 1))
        bad.sock.sendall(noise)
        eventually(lambda: gone == ["bad"], "the port is taken out")
        good.send(frame(2, 9, 2))
        assert sorted(numbers(reader, 2)) == [1, 2]
        assert bad.sock.recv(1) == b""
        for each in (bad, good, reader):
            each.close()


def test_bad_frames_are_counted_and_the_stream_goes_on() -> None:
    with SwitchLoop() as loop:
        one = machine(loop, "one", 1)
        reader = card(loop, "reader", 9)
        one.send(bytes(5), frame(1, 9, 1, 4000), frame(1, 9, 2))
        assert numbers(reader, 1) == [2]
        state = loop.status()["ports"]["one"]
        assert (state["drop.short"], state["drop.long"]) == (1, 1)
        one.close()
        reader.close()


def test_a_machine_that_dies_within_a_frame() -> None:
    gone: list[str] = []
    with SwitchLoop(on_gone=gone.append) as loop:
        one = machine(loop, "one", 1)
        driver = loop.drivers["one"]
        one.sock.sendall(LENGTH.pack(100) + bytes(50))
        one.close()
        eventually(lambda: gone == ["one"], "the port goes")
        assert driver.counters()["cut_off"] == 1


def test_a_machine_that_dies_while_its_frames_wait_keeps_nobody_busy() -> None:
    gone: list[str] = []
    with SwitchLoop(on_gone=gone.append) as loop:
        one = machine(loop, "one", 1)
        reader = card(loop, "reader", 9, ring=1 << 12)
        one.send(*(frame(1, 9, n, 100) for n in range(100)))
        eventually(lambda: loop.status()["ports"]["one"]["input"].get(0, {}).get("stopped"), "it is stopped")
        one.close()
        time.sleep(0.2)
        begun = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - begun < 0.3, "the loop sleeps"
        assert numbers(reader, 100) == list(range(100)), "what it sent before still comes"
        eventually(lambda: gone == ["one"], "then its port goes")
        reader.close()


def test_offloaded_frames_are_cut_for_a_machine() -> None:
    """Within a switch with offload, frames have their header behind them; the socket's have none."""
    ours, theirs = socket.socketpair()
    with SwitchLoop() as loop:
        port = loop.add(StreamPort(ours, trailer=True), PortConfig("one", (mac(1),)))
        other, far = socket.socketpair()
        loop.add(StreamPort(other, trailer=True), PortConfig("two", (mac(2),)))
        one, two = Machine(theirs), Machine(far)
        one.send(frame(1, 2, 3, 100))
        assert two.receive() == frame(1, 2, 3, 100)
        whole = frame(2, 1, 4, 90)
        header = OffloadHeader(flags=1, checksum_start=34, checksum_offset=6).pack()
        with loop._locked():
            loop.switch.ports["two"].send(whole + header)
            loop.switch.ports["two"].send(whole + OffloadHeader(flags=1, checksum_start=200).pack())
            loop.switch.ports["two"].send(whole + PLAIN)
        done = one.receive()
        assert done[:40] == whole[:40]
        assert done[40:42] != whole[40:42], "the checksum was filled in"
        assert one.receive() == whole
        assert loop.status()["drivers"]["one"]["bad_offload"] == 1
        assert port.open
        one.close()
        two.close()


def test_listeners(tmp_path: Path) -> None:
    path = str(tmp_path / "vm.sock")
    listener = StreamListener(path)
    with pytest.raises(SystemLimitError, match="cannot listen at"):
        StreamListener(path)
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    listener.accept(timeout=10).close()
    client.close()
    listener._sock.close()  # killed: the path stays
    again = StreamListener(path)
    again.close()
    assert not Path(path).exists()
    tcp = StreamListener("127.0.0.1:0")
    tcp.close()
    for wrong in ("vm.sock", "1.2.3.4:x", "1.2.3.4:70000", ":5"):
        with pytest.raises(InvalidAttributeError, match="write /path/of/a/socket"):
            StreamListener(wrong)
