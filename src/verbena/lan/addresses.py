"""Ethernet addresses with a LID inside (document 000:76, 84, figure 2).

48 bits: 24 of vendor id, 8 reserved, 16 of base LID.  The document gives the widths and not the places; here octets 0
to 2 are the vendor id, octet 3 the reserved part, octets 4 and 5 the LID:

- The document tells multicast by "the most significant bit" of the destination (000:90).  The bit that Ethernet sends
  first is the *least* significant of the first octet (I/G, IEEE 802).  Were the LID in the first octets, unicast LIDs
  with that bit set would look like groups.  So the first octets are the vendor's, with I/G clear, and I/G is tested.
- The vendor id has the U/L bit set: these addresses are given by whoever runs the subnet, not by IEEE.
- The reserved octet is free for use (000:84).  Here it is the number of the LAN, so that several LANs, also of
  different subnets that a bridge joins, give different addresses to equal LIDs.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from verbena.errors import InvalidAttributeError
from verbena.wire.ethernet import BROADCAST, GROUP_BIT, mac_text
from verbena.wire.layout import Buffer

VENDOR_ID = 0x027662
"""The high half of this project's GUIDs; locally administered, I/G clear."""
FIRST_LID, LAST_LID = 0x0001, 0xBFFF
"""Unicast LIDs (IBA vol. 1, 4.1.3)."""


class Destination(Enum):
    """The three kinds of destinations that a card takes (000:90)."""

    BROADCAST = "broadcast"
    MULTICAST = "multicast"
    UNICAST = "unicast"


class LanAddress(NamedTuple):
    """What an address of an emulated LAN holds.  lid: a base LID; reserved: 8 bits; vendor: 24 bits."""

    lid: int
    reserved: int = 0
    vendor: int = VENDOR_ID

    def pack(self) -> bytes:
        """The six octets.  Raises `InvalidAttributeError` for what is no unicast LID, or makes a group address."""
        if not FIRST_LID <= self.lid <= LAST_LID:
            raise InvalidAttributeError(
                f"lid = {self.lid!r}: a card's LID is a unicast one, 1 to {LAST_LID:#x}"
            )
        if not 0 <= self.reserved <= 0xFF:
            raise InvalidAttributeError(f"reserved = {self.reserved!r}: 8 bits")
        if not 0 <= self.vendor <= 0xFFFFFF or self.vendor >> 16 & GROUP_BIT:
            raise InvalidAttributeError(
                f"vendor = {self.vendor:#x}: 24 bits, and the lowest of its first octet (I/G) must be 0"
            )
        return (self.vendor << 24 | self.reserved << 16 | self.lid).to_bytes(6, "big")

    @classmethod
    def unpack(cls, mac: Buffer) -> LanAddress:
        """Any six octets taken apart.  Raises `InvalidAttributeError` for another number of octets."""
        if len(mac) != 6:
            raise InvalidAttributeError(f"an Ethernet address has 6 octets, not {len(mac)}")
        number = int.from_bytes(mac, "big")
        return cls(number & 0xFFFF, number >> 16 & 0xFF, number >> 24)

    def __str__(self) -> str:
        return mac_text((self.vendor << 24 | self.reserved << 16 | self.lid).to_bytes(6, "big"))


def lan_prefix(reserved: int = 0, vendor: int = VENDOR_ID) -> bytes:
    """The four octets that all addresses of one LAN begin with."""
    return LanAddress(FIRST_LID, reserved, vendor).pack()[:4]


def lid_of(mac: Buffer, prefix: bytes) -> int:
    """The LID in an address of the LAN with this prefix; 0 of any other, which stands behind a bridge."""
    if bytes(mac[:4]) != prefix:
        return 0
    lid = mac[4] << 8 | mac[5]
    return lid if FIRST_LID <= lid <= LAST_LID else 0


def classify(mac: Buffer) -> Destination:
    """All ones, another group, or one card (000:90)."""
    if mac[0] & GROUP_BIT:
        return Destination.BROADCAST if bytes(mac) == BROADCAST else Destination.MULTICAST
    return Destination.UNICAST
