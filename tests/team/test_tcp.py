"""The small stack's TCP: byte for byte under loss, reordering, duplication and damage; resets, windows, both ends."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena.errors import ConnectionLost, ConnectionRefused, ConnectionTimeout, InvalidAttributeError
from verbena.runtime.virtual_ethernet import VirtualCard
from verbena.runtime.virtual_time import VirtualTime
from verbena.team.stack.host import HostStack
from verbena.team.stack.tcp import TcpConnection
from verbena.team.stack.tcp_states import TcpOptions, TcpState
from verbena.wire.errors import DecodeError
from verbena.wire.ip import IPv4
from verbena.wire.tcp import TcpFlag, TcpSegment

IP = IPv4(src=b"\x0a\0\0\1", dst=b"\x0a\0\0\2")


class Net:
    """Two stacks on one cable; meddle: gets each frame, returns those that go on, with a delay each."""

    def __init__(
        self, meddle: Callable[[bytes], list[tuple[bytes, int]]] | None = None, **options: int
    ) -> None:
        self.net = VirtualTime()
        self.cards = [VirtualCard(self.net.clock, f"c{i}", bytes((2, 0, 0, 0, 0, i + 1))) for i in range(2)]
        self.cards[0].plug(self.cards[1])
        if meddle is not None:
            for card in self.cards:
                card.transmit = self._meddling(card.transmit, meddle)  # type: ignore[method-assign]
        self.stacks = [HostStack(self.net.clock, Random(i), options=TcpOptions(**options)) for i in range(2)]
        self.ends = [
            stack.bind(card, f"10.0.0.{i + 1}/24")
            for i, (stack, card) in enumerate(zip(self.stacks, self.cards, strict=True))
        ]

    def _meddling(self, send: Callable[[bytes], bool], meddle: Callable) -> Callable[[bytes], bool]:
        def transmit(frame: bytes) -> bool:
            for made, delay in meddle(frame):
                self.net.clock.call_at(self.net.now + delay, lambda made=made: send(made))
            return True

        return transmit

    def pair(self) -> tuple[TcpConnection, TcpConnection]:
        accepted: list[TcpConnection] = []
        self.stacks[1].listen(self.ends[1], 80, lambda connection, peer: accepted.append(connection))
        near = self.stacks[0].connect(self.ends[0], ("10.0.0.2", 80))
        while not accepted:
            assert self.net.clock.step()
        return near, accepted[0]


class Pumped:
    """Writes what it has, reads what comes, closes when it is through."""

    def __init__(self, connection: TcpConnection, data: bytes) -> None:
        self.connection, self.data, self.sent, self.got = connection, data, 0, bytearray()
        connection.on_change = self.go
        self.go()

    def go(self) -> None:
        connection = self.connection
        if connection.readable:
            self.got += connection.read(5_000)
        while self.sent < len(self.data) and connection.room and connection.error is None:
            self.sent += connection.write(self.data[self.sent : self.sent + 10_000])
        if self.sent == len(self.data) and connection.error is None:
            connection.close()
        if connection.readable:
            connection.clock.call_at(connection.clock.now() + 100_000, self.go)


@pytest.mark.parametrize("faults", ["none", "loss", "duplication", "reordering", "damage", "everything"])
def test_the_stream_is_exact_whatever_the_network_does(faults: str, seed: int) -> None:
    random = Random(seed)

    def meddle(frame: bytes) -> list[tuple[bytes, int]]:
        def chance(kind: str, p: float) -> bool:
            return faults in (kind, "everything") and random.random() < p

        if chance("loss", 0.03):
            return []
        if chance("damage", 0.02):
            at = random.randrange(14, len(frame))
            frame = frame[:at] + bytes((frame[at] ^ 1 << random.randrange(8),)) + frame[at + 1 :]
        delay = random.randrange(300_000) if chance("reordering", 0.1) else 0
        return [(frame, delay)] * (2 if chance("duplication", 0.1) else 1)

    net = Net(meddle, least_rto_ns=5_000_000, receive_buffer=20_000, time_wait_ns=10**7)
    near, far = net.pair()
    a, b = Pumped(near, random.randbytes(150_000)), Pumped(far, random.randbytes(70_000))
    net.net.run_until_idle(400_000)
    assert b.got == a.data
    assert a.got == b.data
    assert near.state is far.state is TcpState.CLOSED
    assert near.error is None
    assert far.error is None
    assert not net.stacks[0]._connections


def test_a_shut_window_opens_again_also_when_its_update_is_lost(seed: int) -> None:
    lost: list[int] = []

    def meddle(frame: bytes) -> list[tuple[bytes, int]]:
        pure_ack = frame[6:12] == bytes((2, 0, 0, 0, 0, 2)) and len(frame) == 54
        if pure_ack and reading and len(lost) < 2:
            lost.append(len(frame))
            return []
        return [(frame, 0)]

    reading: list[bytes] = []
    net = Net(meddle, receive_buffer=4_000, least_rto_ns=5_000_000)
    near, far = net.pair()
    near.write(bytes(30_000))
    net.net.run_for(50_000_000)
    assert 4_000 - 128 < far.readable <= 4_000, "the window is told in steps of 128"
    while sum(map(len, reading)) < 30_000:
        reading.append(far.read())
        net.net.run_for(20_000_000)
        assert len(reading) < 200
    assert lost


def test_refused_reset_and_silent_peers() -> None:
    net = Net(tries=3, first_rto_ns=10_000_000, least_rto_ns=5_000_000)
    near = net.stacks[0].connect(net.ends[0], ("10.0.0.2", 81))
    net.net.run_for(10_000_000)
    assert isinstance(near.error, ConnectionRefused)
    with pytest.raises(ConnectionRefused):
        near.write(b"x")
    near, far = net.pair()
    far.abort()
    net.net.run_for(1_000_000)
    assert isinstance(near.error, ConnectionLost)
    with pytest.raises(InvalidAttributeError, match=r"port 80 of 10[.]0[.]0[.]2 is taken"):
        net.stacks[1].listen(net.ends[1], 80, lambda connection, peer: None)
    net.stacks[1].unlisten(net.ends[1], 80)
    near, far = net.pair()
    net.cards[1].silent = True
    near.write(b"hello?")
    net.net.run_for(10**9)
    assert isinstance(near.error, ConnectionTimeout)
    with pytest.raises(InvalidAttributeError, match="no interface of this host leads to"):
        net.stacks[0].connect(net.stacks[0].interface_to("192.0.2.1"), ("192.0.2.1", 80))


def test_a_blind_reset_does_nothing(seed: int) -> None:
    """RFC 5961, 3.2: only the very number that is expected resets; another one in the window is challenged."""
    net = Net()
    near, far = net.pair()
    net.net.run_for(5_000_000)
    for offset in (1, 1000, -5, 1 << 31):
        far.receive(TcpSegment(1, 2, far._expected + offset & 0xFFFFFFFF, 0, TcpFlag.RST, 0))
        assert far.error is None
    near.write(b"still there")
    net.net.run_for(5_000_000)
    assert far.read() == b"still there"


@given(
    st.integers(0, 65_535),
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.binary(max_size=100),
    st.none() | st.integers(0, 65_535),
    st.none() | st.integers(0, 14),
)
def test_a_segment_survives_the_wire(
    port: int, seq: int, flags: int, data: bytes, mss: int | None, scale: int | None
) -> None:
    made = TcpSegment(port, port ^ 1, seq, seq ^ 5, flags, port, data, mss, scale)
    assert TcpSegment.parse(made.pack(IP), IP) == made


@given(st.binary(max_size=80))
def test_garbage_is_no_segment(data: bytes) -> None:
    with pytest.raises(DecodeError) as told:
        TcpSegment.parse(data, IP)
    assert told.value.reason in ("short", "length", "crc")


def test_echo_and_what_is_dropped() -> None:
    net = Net()
    stack = net.stacks[1]
    net.ends[0].send_ip(net.ends[1].packed, 1, bytes.fromhex("0800f7ff00000000"))
    net.net.run_for(1_000_000)
    assert net.stacks[0].counters["icmp.echo_reply"] == 1
    for payload, protocol, counter in (
        (b"short", 6, "drop.rx.short"),
        (bytes(20), 6, "drop.rx.length"),
        (bytes(3), 1, "drop.rx.crc"),
        (b"?", 99, "drop.rx.protocol"),
        (bytes.fromhex("0001000200080000"), 17, "drop.rx.port"),
        (bytes.fromhex("0001000200990000"), 17, "drop.rx.length"),
    ):
        before = stack.counters[counter]
        net.ends[0].send_ip(net.ends[1].packed, protocol, payload)
        net.net.run_for(1_000_000)
        assert stack.counters[counter] == before + 1, counter
    net.cards[1].deliver(net.cards[1].mac + bytes(6) + b"\x08\x00" + bytes(30))
    assert stack.counters["drop.rx.length"] == 3
    net.cards[1].deliver(net.cards[1].mac + bytes(6) + b"\x12\x34" + bytes(30))
    assert stack.counters["drop.rx.ethertype"] == 1
