"""The Address Resolution Protocol for IPv4 over Ethernet (RFC 826; announcements: RFC 5227)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from verbena.wire.errors import DecodeError
from verbena.wire.ip import ETHERTYPE_ARP, ETHERTYPE_IPV4
from verbena.wire.layout import Buffer, Layout, raw, uint

HARDWARE_ETHERNET = 1


class ArpOperation(IntEnum):
    """ar$op."""

    REQUEST = 1
    REPLY = 2


@dataclass(frozen=True, slots=True)
class ArpPacket(Layout):
    """An ARP packet: hardware addresses of 6 bytes, protocol addresses of 4."""

    hardware: int = uint(16, HARDWARE_ETHERNET, at=0)
    protocol: int = uint(16, ETHERTYPE_IPV4, at=2)
    hardware_size: int = uint(8, 6, at=4)
    protocol_size: int = uint(8, 4, at=5)
    operation: int = uint(16, ArpOperation.REQUEST, at=6)
    sender_mac: bytes = raw(6, at=8)
    sender_ip: bytes = raw(4, at=14)
    target_mac: bytes = raw(6, at=18)
    target_ip: bytes = raw(4, at=24)

    @classmethod
    def parse(cls, payload: Buffer) -> Self:
        """An ARP packet for IPv4 over Ethernet, with or without padding; raises `DecodeError` for any other."""
        made = cls.unpack(payload)
        if (made.hardware, made.protocol) != (HARDWARE_ETHERNET, ETHERTYPE_IPV4):
            raise DecodeError("header", f"ARP for {made.protocol:#06x} over hardware {made.hardware}")
        if (made.hardware_size, made.protocol_size) != (6, 4):
            raise DecodeError(
                "header", f"ARP addresses of {made.hardware_size} and {made.protocol_size} bytes"
            )
        return made

    def frame(self, destination: bytes, source: bytes) -> bytes:
        """The Ethernet frame that carries it."""
        return destination + source + ETHERTYPE_ARP.to_bytes(2, "big") + self.pack()
