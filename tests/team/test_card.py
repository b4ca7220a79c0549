"""Ports that take bursts as members: what they hand up, what they do not take, and frames that are still to be cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

from team_lab import TEAM_VLAN, Lab
from verbena.team.card import BurstMember
from verbena.team.frames import OffloadFrame
from verbena.wire.offload import OffloadFlag, OffloadHeader, Segmentation


class Event(Enum):
    LINK_UP = auto()
    LINK_DOWN = auto()
    ROOM = auto()


class Port:
    """A port such as a LAN-emulation card's; room: how many frames it takes."""

    def __init__(self, mac: bytes) -> None:
        self.mac, self.mtu, self.link, self.room = mac, 1500, True, 100
        self.sent: list[bytes] = []
        self.receive: Callable[[list[bytes]], None] = lambda frames: None
        self.changed: Callable[[Any, bytes], None] = lambda event, detail: None

    def send_frames(self, frames: Sequence[bytes]) -> int:
        taken = list(frames[: self.room])
        self.sent += taken
        self.room -= len(taken)
        return len(taken)

    def attach(self, receive: Callable[[list[bytes]], None], changed: Callable[[Any, bytes], None]) -> None:
        self.receive, self.changed = receive, changed

    def detach(self) -> None:
        self.receive, self.changed = lambda frames: None, lambda event, detail: None


def test_a_port_that_takes_bursts_is_a_member(seed: int) -> None:
    lab = Lab(seed)
    host = lab.host(nics=0, rnics=0, rdma_vlan=None)
    port = Port(bytes.fromhex("024c41000007"))
    member = host.add(BurstMember("lan0", port))
    assert member.is_usable
    assert host.interfaces[TEAM_VLAN].port.is_up
    host.stack.send_udp(9, (f"10.{TEAM_VLAN}.0.99", 9), b"x")
    assert port.sent[-1][12:16] == b"\x81\x00\x00\x0a", "an ARP request, with the group's tag"
    before = host.stack.counters["rx"]
    reply = host.driver.mac + bytes.fromhex("020000000055") + b"\x81\x00\x00\x0a\x08\x06" + bytes(46)
    port.receive([reply, reply])
    assert host.stack.counters["rx"] == before + 2
    port.changed(Event.ROOM, b"")
    assert member.is_usable
    port.link = False
    port.changed(Event.LINK_DOWN, b"")
    assert not host.interfaces[TEAM_VLAN].port.is_up


def test_what_is_still_to_be_cut_is_cut_and_what_does_not_fit_is_counted() -> None:
    port = Port(bytes(6))
    member = BurstMember("lan0", port)
    ip = b"\x45\0" + (40 + 2500).to_bytes(2, "big") + bytes.fromhex("00000000400600000a0000010a000002")
    frame = bytes(12) + b"\x08\x00" + ip + bytes(12) + b"\x50\x10" + bytes(6) + bytes(2500)
    head = OffloadHeader(OffloadFlag.NEEDS_CHECKSUM, Segmentation.TCP4, 54, 1000, 34, 16).pack()
    assert member.transmit(OffloadFrame(frame, head))
    assert [len(sent) for sent in port.sent] == [1054, 1054, 554]
    port.room = 1
    assert not member.transmit(OffloadFrame(frame, head))
    assert member.counters["drop.tx.full"] == 2
    assert not member.transmit(OffloadFrame(frame[:40], head))
    assert sum(n for name, n in member.counters.items() if name.startswith("drop.tx.") and n) == 3
