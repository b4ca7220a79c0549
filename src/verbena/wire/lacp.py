"""The Link Aggregation Control Protocol's data units (IEEE 802.1AX-2014, 6.4.2.3): version 1, 110 bytes of payload."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Self

from verbena.wire.errors import DecodeError
from verbena.wire.layout import Buffer, Layout, raw, uint

SLOW_PROTOCOLS_GROUP = bytes.fromhex("0180c2000002")
ETHERTYPE_SLOW = 0x8809
SUBTYPE_LACP = 1


class LacpState(IntFlag):
    """Actor_State and Partner_State (6.4.2.3, h)."""

    ACTIVITY = 1
    TIMEOUT = 2
    """Short timeout: the sender wants to hear every second, not every 30."""
    AGGREGATION = 4
    SYNCHRONIZATION = 8
    COLLECTING = 16
    DISTRIBUTING = 32
    DEFAULTED = 64
    EXPIRED = 128


@dataclass(frozen=True, slots=True)
class LacpInfo(Layout):
    """What is said of one end of a link (Actor_ and Partner_Information, 18 bytes without type and length)."""

    system_priority: int = uint(16, 0x8000, at=0)
    system: bytes = raw(6, at=2)
    key: int = uint(16, at=8)
    port_priority: int = uint(16, 0x8000, at=10)
    port: int = uint(16, at=12)
    state: int = uint(8, at=14)
    reserved: bytes = raw(3, at=15)


@dataclass(frozen=True, slots=True)
class Lacpdu:
    """One data unit: what its sender says of itself (actor) and believes of the other end (partner).

    collector_max_delay: in tens of microseconds.
    """

    actor: LacpInfo
    partner: LacpInfo
    collector_max_delay: int = 0

    SIZE = 110

    def frame(self, source: bytes) -> bytes:
        """The Ethernet frame that carries it, from the address of the sending port."""
        made = SLOW_PROTOCOLS_GROUP + source + ETHERTYPE_SLOW.to_bytes(2, "big") + bytes((SUBTYPE_LACP, 1))
        made += b"\x01\x14" + self.actor.pack() + b"\x02\x14" + self.partner.pack()
        made += b"\x03\x10" + self.collector_max_delay.to_bytes(2, "big") + bytes(12)
        return made + b"\0\0" + bytes(50)

    @classmethod
    def parse(cls, payload: Buffer) -> Self:
        """From the subtype on; raises `DecodeError`.

        A later version is read as version 1 (6.4.2.3, b); reserved fields are not looked at.
        """
        if len(payload) < cls.SIZE:
            raise DecodeError("short", f"a LACPDU has {cls.SIZE} bytes, not {len(payload)}")
        if payload[0] != SUBTYPE_LACP:
            raise DecodeError("header", f"slow protocol {payload[0]} is not LACP")
        if payload[1] < 1:
            raise DecodeError("version", f"LACP version {payload[1]}")
        if bytes(payload[2:4]) != b"\x01\x14" or bytes(payload[22:24]) != b"\x02\x14":
            raise DecodeError("header", "a LACPDU's actor and partner information have 20 bytes each")
        if bytes(payload[42:44]) != b"\x03\x10":
            raise DecodeError("header", "a LACPDU's collector information has 16 bytes")
        delay = payload[44] << 8 | payload[45]
        return cls(LacpInfo.unpack(payload, 4), LacpInfo.unpack(payload, 24), delay)
