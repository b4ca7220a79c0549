"""The short way of frames gives the same as the long one: what arrives, and every counter of both cards."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lan.lan_lab import BROADCAST, MS, Lan, ethernet, star
from verbena.lan import LanAddress, LanConfig
from verbena.lan.message import Role
from verbena.lan.port import OffloadFrame, PortEvent
from verbena.runtime.tap_lane import TapLane
from verbena.wire.offload import PLAIN, OffloadFlag, OffloadHeader

MTU = 2000
UNFINISHED = OffloadHeader(OffloadFlag.NEEDS_CHECKSUM, 0, 0, 0, 34, 6).pack()
VALID = OffloadHeader(OffloadFlag.DATA_VALID).pack()
KINDS = (0x88B5, 0x0800, 0x0806, 0x86DD, 0x8100, 0x88A8)


class Device:
    """A pair of sockets that keeps frames apart, in the place of a TAP device with a lane to a host's card."""

    def __init__(self, lan: Lan, name: str) -> None:
        self.lan, self.card = lan, lan.card(name)
        self.system, self.ours = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        )
        self.counters: Counter[str] = Counter()
        self.lane = self.card.sink = TapLane(self.ours.fileno(), True, self.counters)
        self.stopped = False

    def send(self, *frames: tuple[bytes, bytes]) -> None:
        """The system sends frames (header, frame); what the short way leaves goes the long one, as it has to."""
        for header, frame in frames:
            self.system.send(header + frame)
        while True:
            express = self.card.express
            self.lane.read(express, 32, 1 << 18)
            express.kick()
            if self.lane.left is not None:
                frame, header = self.lane.left
                self.card.send_frames([OffloadFrame(frame, header) if header else frame])
            self.stopped = self.lane.starved
            if self.lane.starved or self.lane.drained:
                return

    def heard(self) -> list[tuple[bytes, bytes]]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while octets := self.system.recv(1 << 17):
                found.append((octets[: len(PLAIN)], octets[len(PLAIN) :]))
        return found

    def close(self) -> None:
        self.card.sink = None
        self.system.close()
        self.ours.close()


def lan_of_three(**more: object) -> Lan:
    lan = star(3, lan=LanConfig(mtu=MTU, offload=True, **more))
    for one, other in (("h0", "h1"), ("h1", "h0"), ("h0", "h2")):
        lan.send(one, other)  # so that there are channels
        lan.settle(20 * MS)
    lan.heard()
    return lan


@pytest.fixture(scope="module")
def labs() -> Iterator[tuple[Lan, Lan, Device, Device]]:
    short, long = lan_of_three(), lan_of_three()
    ends = Device(short, "h0"), Device(short, "h1")
    yield short, long, *ends
    for end in ends:
        end.close()


def frames(lan: Lan) -> st.SearchStrategy[tuple[bytes, bytes]]:
    macs = [lan.mac(name) for name in ("h0", "h1", "h2")]
    others = [LanAddress(0x1234).pack(), bytes.fromhex("001122334455"), bytes.fromhex("01005e000001")]
    return st.builds(
        lambda to, source, kind, size, header: (header, ethernet(to, source, size, kind)),
        st.sampled_from([macs[1]] * 6 + macs + others + [BROADCAST]),
        st.sampled_from([macs[0]] * 12 + [macs[1], *others]),
        st.sampled_from(KINDS[:2] * 4 + KINDS),
        st.one_of(st.integers(14, 120), st.integers(MTU - 4, MTU + 30), st.integers(256, 6000)),
        st.sampled_from([PLAIN] * 4 + [VALID, UNFINISHED, UNFINISHED]),
    )


@pytest.mark.requirement("LAN-10")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_both_ways_give_the_same(labs: tuple[Lan, Lan, Device, Device], data: st.DataObject) -> None:
    short, long, sender, receiver = labs
    burst = data.draw(st.lists(frames(long), min_size=1, max_size=8))
    before = [
        {name: Counter(lab.card(name).counters) for name in ("h0", "h1", "h2")} for lab in (short, long)
    ]
    sender.send(*burst)
    for header, frame in burst:
        long.card("h0").send_frames([frame if header in (PLAIN, VALID) else OffloadFrame(frame, header)])
    heard, expected = short.heard(), long.heard()
    heard["h1"] += [
        frame if header == PLAIN else OffloadFrame(frame, header) for header, frame in receiver.heard()
    ]
    for name in ("h0", "h1", "h2"):
        assert sorted(heard[name]) == sorted(expected[name])
        assert sorted(getattr(frame, "header", b"") for frame in heard[name]) == sorted(
            getattr(frame, "header", b"") for frame in expected[name]
        )
        changes = [
            {key: n - old[name][key] for key, n in lab.card(name).counters.items() if n != old[name][key]}
            for lab, old in zip((short, long), before, strict=True)
        ]
        for change in changes:
            change.pop("probes", None)  # when the last one was answered depends on earlier bursts
        assert changes[0] == changes[1]
    short.check_laws()


def test_most_frames_go_the_short_way() -> None:
    """Frames to a peer with a channel: none is left for the long way, in or out, and all come in their order."""
    lan = lan_of_three()
    sender, receiver = Device(lan, "h0"), Device(lan, "h1")
    sent = [ethernet(lan.mac("h1"), lan.mac("h0"), 60 + 97 * n, seed=n) for n in range(20)]
    sender.send(*[(PLAIN, frame) for frame in sent])
    assert not lan.heard()["h1"]
    assert receiver.heard() == [(PLAIN, frame) for frame in sent]
    assert sender.counters == {"tx.frames": 20, "tx.bytes": sum(map(len, sent))}
    assert receiver.counters == {"rx.frames": 20, "rx.bytes": sum(map(len, sent))}
    large = (UNFINISHED, ethernet(lan.mac("h1"), lan.mac("h0"), 65_549))
    sender.send(large)
    lan.settle(1 * MS)
    assert receiver.heard() == [large]
    pool = lan.driver("h0").station.services.messages
    sender.send((PLAIN, sent[0]))
    lan.settle(1 * MS)
    lan.driver("h0").station.services.take_sent()
    assert pool.free == pool.count  # every message was given back
    sender.close()
    receiver.close()


def test_a_device_that_takes_nothing_and_one_that_is_gone() -> None:
    """What the system refuses is dropped and counted by reason; the fabric goes on."""
    lan = lan_of_three()
    sender, receiver = Device(lan, "h0"), Device(lan, "h1")
    frame = ethernet(lan.mac("h1"), lan.mac("h0"), 1500)
    for _ in range(600):
        sender.send((PLAIN, frame))
        lan.settle(MS // 10)
    taken = len(receiver.heard())
    assert 0 < taken < 600
    assert receiver.counters == {
        "rx.frames": taken,
        "rx.bytes": taken * len(frame),
        "drop.rx.full": 600 - taken,
    }
    receiver.lane.close()
    sender.send((PLAIN, frame))
    assert lan.heard()["h1"] == [frame]  # the long way, to whoever is attached
    sender.send((PLAIN, frame[:13]), (PLAIN, bytes(70_000)))
    assert sender.counters["drop.tx.runt"] == sender.counters["drop.tx.too_long"] == 1
    sender.close()
    receiver.close()


def test_without_messages_reading_stops_until_there_are_some() -> None:
    lan = lan_of_three(send_messages=4)
    sender, receiver = Device(lan, "h0"), Device(lan, "h1")
    services = lan.driver("h0").station.services
    held = [services.messages.take() for _ in range(4)]
    frame = ethernet(lan.mac("h1"), lan.mac("h0"), 100)
    sender.send((PLAIN, frame))
    assert sender.stopped
    assert not receiver.heard()
    assert PortEvent.ROOM not in lan.ears["h0"].events
    for message in held:
        message.release()
    lan.send("h2", "h0")  # something that completes
    lan.settle(1 * MS)
    assert PortEvent.ROOM in lan.ears["h0"].events
    sender.send()
    lan.settle(1 * MS)
    assert receiver.heard() == [(PLAIN, frame)]
    sender.close()
    receiver.close()


def test_the_short_way_ends_where_somebody_has_to_look() -> None:
    """A card that is watched, is a bridge's or one of several, or is down has none; then it has one again."""
    lan = lan_of_three()
    sender = Device(lan, "h0")
    card, frame = lan.card("h0"), ethernet(lan.mac("h1"), lan.mac("h0"), 100)

    def is_left() -> bool:
        sender.system.send(PLAIN + frame)
        went = sender.lane.read(card.express, 1, 1 << 18)
        card.express.kick()
        if sender.lane.closed:
            os.read(sender.ours.fileno(), 1 << 16)
        return went == 0

    assert not is_left()
    shown: list[bytes] = []
    card.tap = lambda frame, outbound: shown.append(frame)
    assert is_left()
    card.tap = None
    card.become(Role.BRIDGE)
    assert is_left()
    card.become(Role.NONE, 0x77)
    assert is_left()
    card.become(Role.NONE)
    assert not is_left()
    old = card.express
    lan.lan_nodes["h0"].close()
    assert card.express is None
    sender.system.send(PLAIN + frame)
    assert sender.lane.read(old, 1, 1 << 18) == 0
    assert sender.lane.closed
    sender.close()
