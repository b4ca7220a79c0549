"""What routers tell one another: the prefixes that each reaches, as a raw packet of an EtherType.

IBA vol. 1, chapter 19 leaves the protocol between routers open.  Here it is RIPng's (RFC 2080): a list of entries of
the same 20 bytes (prefix, tag, length, metric), distances counted in routers, 16 = not reachable.  It travels in raw
packets of the EtherType for local experiments (IEEE 802, 0x88B5), which no transport and no program sees; in front of
the entries stand a fixed word (other experiments use the number, too), the sender's GUID and its GID on this subnet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.headers import RWH
from verbena.wire.layout import Buffer, Layout, raw, uint

ETHERTYPE_ROUTERS = 0x88B5
ANNOUNCEMENT_MAGIC = 0x56525442
"""ASCII "VRTB"."""
VERSION = 1
INFINITY = 16
"""The metric of what cannot be reached (RFC 2080, 2.1)."""


@dataclass(frozen=True, slots=True)
class AnnouncementHeader(Layout):
    """In front of the entries."""

    magic: int = uint(32, ANNOUNCEMENT_MAGIC, at=0)
    version: int = uint(8, VERSION, at=4)
    reserved8: int = uint(8)
    count: int = uint(16, at=6)
    guid: int = uint(64, at=8)
    gid: bytes = raw(16, at=16)
    hold_ms: int = uint(32, at=32)


@dataclass(frozen=True, slots=True)
class RouteEntry(Layout):
    """One prefix: its first `length` bits, and how many routers away it is (RFC 2080, 2.1)."""

    prefix: bytes = raw(16, at=0)
    tag: int = uint(16, at=16)
    length: int = uint(8, at=18)
    metric: int = uint(8, at=19)


@dataclass(frozen=True, slots=True)
class RouteAnnouncement:
    """Some of the routes that a router has.

    guid: the router's.  gid: the GID of its port on this subnet, where packets for these prefixes are to go.
    hold_ms: how long the entries may be believed without being repeated, milliseconds.
    """

    guid: int
    gid: bytes
    hold_ms: int
    entries: tuple[RouteEntry, ...] = ()

    def encode(self) -> bytes:
        """The bytes that follow the LRH: RWH, header, entries."""
        for entry in self.entries:
            if entry.length > 128 or not 1 <= entry.metric <= INFINITY:
                raise EncodeError(f"{entry!r}: a prefix has 0 to 128 bits, a metric is from 1 to {INFINITY}")
        head = AnnouncementHeader(
            count=len(self.entries), guid=self.guid, gid=self.gid, hold_ms=self.hold_ms
        ).pack()
        return RWH(ethertype=ETHERTYPE_ROUTERS).pack() + head + b"".join(e.pack() for e in self.entries)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """From the bytes that follow the LRH.  Raises `DecodeError`."""
        if RWH.unpack(data).ethertype != ETHERTYPE_ROUTERS:
            raise DecodeError("header", "a raw packet of another EtherType")
        head = AnnouncementHeader.unpack(data, RWH.SIZE)
        if head.magic != ANNOUNCEMENT_MAGIC:
            raise DecodeError("header", "not a router's announcement")
        if head.version != VERSION:
            raise DecodeError(
                "version", f"an announcement of version {head.version}; only {VERSION} is known"
            )
        first = RWH.SIZE + AnnouncementHeader.SIZE
        if len(data) != first + RouteEntry.SIZE * head.count:
            raise DecodeError("length", f"{head.count} entries in an announcement of {len(data)} bytes")
        entries = tuple(RouteEntry.unpack(data, first + RouteEntry.SIZE * i) for i in range(head.count))
        for entry in entries:
            if entry.length > 128 or not 1 <= entry.metric <= INFINITY:
                raise DecodeError("header", f"a prefix of {entry.length} bits with metric {entry.metric}")
        return cls(head.guid, head.gid, head.hold_ms, entries)

    @staticmethod
    def capacity(mtu: int) -> int:
        """Entries that fit into a packet whose bytes after the LRH are at most `mtu`."""
        return max(0, mtu - RWH.SIZE - AnnouncementHeader.SIZE) // RouteEntry.SIZE
