"""Credit messages: InfiniBand flow-control packets, PCI-Express flow-control DLLPs, and grants of software.

InfiniBand (IBA vol. 1, 7.9.4): how many 64-byte blocks were sent on a lane (FCTBS) and up to which one the receiver has
room (FCCL), modulo 4,096, sealed with the link packet CRC (the CRC-16 of the VCRC).  PCI-Express (base specification,
3.4.1): header and data credits for posted and non-posted requests and completions; data credits are 16 bytes; sealed
with the same polynomial.  Grants have no standard (the document says only "on/off grants, rate increase/decrease"): an
Ethernet frame with an EtherType for local experiments (IEEE 802, 9.2.4), so that they can be seen on any link.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from verbena.wire.crc import vcrc
from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.ethernet import SMALLEST_FRAME
from verbena.wire.layout import Buffer, Layout, raw, uint

IB_BLOCK = 64
IB_MODULUS = 4096
PCIE_DATA_CREDIT = 16
PCIE_HEADER_MODULUS = 256
PCIE_DATA_MODULUS = 4096
ETHERTYPE_EXPERIMENTAL = 0x88B5
GRANT_GROUP = bytes.fromhex("0180c2000001")
"""Nearest-neighbour address: no bridge forwards it."""


@dataclass(frozen=True, slots=True)
class IbFlowControl(Layout):
    """A flow-control packet without its CRC.  op: 0 normal, 1 initialization."""

    op: int = uint(4, at=0)
    fctbs: int = uint(12)
    lane: int = uint(4, at=2)
    fccl: int = uint(12)

    def sealed(self) -> bytes:
        """The 6 bytes on the link."""
        body = self.pack()
        return body + vcrc(body).to_bytes(2, "big")

    @classmethod
    def opened(cls, data: Buffer) -> IbFlowControl:
        """From 6 bytes; raises `DecodeError` for another length, a wrong CRC, an unknown op."""
        if len(data) != cls.SIZE + 2:
            raise DecodeError("length", f"a flow-control packet has {cls.SIZE + 2} bytes, not {len(data)}")
        if vcrc(data[: cls.SIZE]) != int.from_bytes(data[cls.SIZE :], "big"):
            raise DecodeError("crc", "a flow-control packet whose CRC is wrong")
        found = cls.unpack(data)
        if found.op > 1:
            raise DecodeError("opcode", f"flow-control op {found.op}; 0 and 1 exist")
        return found


class PcieKind(IntEnum):
    """Types of flow-control DLLPs, upper four bits; the lower three name the virtual channel."""

    INIT1_POSTED = 0x4
    INIT1_NON_POSTED = 0x5
    INIT1_COMPLETION = 0x6
    UPDATE_POSTED = 0x8
    UPDATE_NON_POSTED = 0x9
    UPDATE_COMPLETION = 0xA
    INIT2_POSTED = 0xC
    INIT2_NON_POSTED = 0xD
    INIT2_COMPLETION = 0xE


@dataclass(frozen=True, slots=True)
class PcieFlowControl(Layout):
    """A flow-control DLLP without its CRC: credits given out so far, modulo 256 and 4,096."""

    kind: int = uint(4, PcieKind.UPDATE_POSTED, at=0)
    reserved: int = uint(1)
    channel: int = uint(3)
    reserved2: int = uint(2, at=1)
    headers: int = uint(8)
    reserved3: int = uint(2)
    data: int = uint(12)

    def sealed(self) -> bytes:
        """The 6 bytes on the link."""
        body = self.pack()
        return body + vcrc(body).to_bytes(2, "big")

    @classmethod
    def opened(cls, data: Buffer) -> PcieFlowControl:
        """From 6 bytes; raises `DecodeError` for another length, a wrong CRC, an unknown type."""
        if len(data) != cls.SIZE + 2:
            raise DecodeError("length", f"a DLLP has {cls.SIZE + 2} bytes, not {len(data)}")
        if vcrc(data[: cls.SIZE]) != int.from_bytes(data[cls.SIZE :], "big"):
            raise DecodeError("crc", "a DLLP whose CRC is wrong")
        found = cls.unpack(data)
        if found.kind not in PcieKind.__members__.values():
            raise DecodeError("opcode", f"DLLP type {found.kind:#x} is none of flow control")
        return found


class GrantKind(IntEnum):
    """What a grant says."""

    OFF = 0
    ON = 1
    RATE = 2


@dataclass(frozen=True, slots=True)
class Grant(Layout):
    """On, off, or a rate for one class of a link; sequence: counts up, so that an overtaken one is recognized."""

    destination: bytes = raw(6, at=0)
    source: bytes = raw(6, at=6)
    ethertype: int = uint(16, ETHERTYPE_EXPERIMENTAL, at=12)
    version: int = uint(8, 1, at=14)
    kind: int = uint(8, at=15)
    priority: int = uint(8, at=16)
    reserved: int = uint(8, at=17)
    sequence: int = uint(32, at=18)
    rate_bps: int = uint(64, at=22)

    @classmethod
    def say(
        cls, kind: GrantKind, priority: int, sequence: int, rate_bps: int = 0, source: bytes = bytes(6)
    ) -> bytes:
        """The frame, padded."""
        if not 0 <= priority < 8:
            raise EncodeError(f"priority {priority}; 0 to 7 exist")
        made = cls(GRANT_GROUP, source, kind=kind, priority=priority, sequence=sequence, rate_bps=rate_bps)
        return made.pack().ljust(SMALLEST_FRAME, b"\0")

    @classmethod
    def heard(cls, frame: Buffer) -> Grant:
        """From a frame; raises `DecodeError` for one that is none, or says what nobody knows."""
        if len(frame) < SMALLEST_FRAME:
            raise DecodeError("short", f"a grant of {len(frame)} bytes; {SMALLEST_FRAME} is the least")
        found = cls.unpack(frame)
        if found.ethertype != ETHERTYPE_EXPERIMENTAL or found.destination != GRANT_GROUP:
            raise DecodeError("header", "this frame is no grant")
        if found.version != 1:
            raise DecodeError("version", f"a grant of version {found.version}; 1 exists")
        if found.kind > GrantKind.RATE or found.priority > 7 or found.reserved:
            raise DecodeError("header", "a grant of an unknown kind, or for a class above 7")
        return found
