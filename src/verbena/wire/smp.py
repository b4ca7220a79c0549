"""Subnet management packets: MADs on QP 0 and lane 15 (IBA vol. 1, 14.2.1).

One format serves both classes: LID-routed (0x01), and directed route (0x81), which says the ports to leave by, hop by
hop, and so reaches nodes that have no LID yet.  In a LID-routed SMP everything of the route is zero.

An SMP costs a few microseconds here: fixed structures instead of the general bit layouts, and the constant part of a
directed-route packet's CRC is computed once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from verbena.wire.crc import ICRC_SIZE, VCRC_SIZE, native_icrc
from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.headers import BTH, DEFAULT_PKEY, DETH, LRH, LinkNextHeader
from verbena.wire.layout import Buffer
from verbena.wire.mad import MAD_SIZE, ManagementClass
from verbena.wire.opcodes import Opcode
from verbena.wire.smp_attributes import ATTRIBUTES, Attribute

try:
    from isal.isal_zlib import crc32
except ImportError:  # the library is fast, not necessary
    from zlib import crc32

PERMISSIVE_LID = 0xFFFF
"""Directed routes: there is no LID-routed part (14.2.1.2)."""
MANAGEMENT_VL = 15
SMP_QP = 0
MAX_HOPS = 63
"""A path has 64 bytes, and the first is not used (14.2.1.2)."""
DATA_OFFSET = 64
DATA_SIZE = 64
RETURN_PATH_OFFSET = 192
STATUS_OFFSET, HOP_POINTER_OFFSET, HOP_COUNT_OFFSET = 4, 6, 7


class AttributeId(IntEnum):
    """MAD:AttributeID of subnet management (14.2.5)."""

    NOTICE = 0x0002
    NODE_DESCRIPTION = 0x0010
    NODE_INFO = 0x0011
    SWITCH_INFO = 0x0012
    GUID_INFO = 0x0014
    PORT_INFO = 0x0015
    PKEY_TABLE = 0x0016
    SL_TO_VL = 0x0017
    VL_ARBITRATION = 0x0018
    LINEAR_FORWARDING = 0x0019
    RANDOM_FORWARDING = 0x001A
    MULTICAST_FORWARDING = 0x001B
    SM_INFO = 0x0020
    VENDOR_DIAG = 0x0030
    LED_INFO = 0x0031


_SMP = struct.Struct(">BBBBHBBQHHIQHH28s64s64s64s")
assert _SMP.size == MAD_SIZE
_D_BIT = 0x8000
_ZEROS28, _ZEROS64 = bytes(28), bytes(64)


@dataclass(frozen=True, slots=True)
class Smp:
    """An SMP, every bit of its 256 bytes.

    hop_pointer, hop_count: of directed routes; both bytes of MAD:ClassSpecific.  direction: the D bit, set on the way
    back (LID-routed: always clear).  data: 64 bytes.  initial_path, return_path: port numbers, entries 1 to hop_count
    (LID-routed: zeros).
    """

    management_class: int = ManagementClass.SUBN_LID_ROUTED
    method: int = 0
    attribute_id: int = 0
    attribute_modifier: int = 0
    transaction_id: int = 0
    mkey: int = 0
    data: bytes = _ZEROS64
    status: int = 0
    direction: bool = False
    hop_pointer: int = 0
    hop_count: int = 0
    dr_slid: int = 0
    dr_dlid: int = 0
    initial_path: bytes = _ZEROS64
    return_path: bytes = _ZEROS64
    base_version: int = 1
    class_version: int = 1
    reserved16: int = 0
    reserved36: bytes = _ZEROS28

    @property
    def is_directed(self) -> bool:
        return self.management_class == ManagementClass.SUBN_DIRECTED_ROUTE

    @property
    def path(self) -> tuple[int, ...]:
        """The ports to leave by, first hop first."""
        return tuple(self.initial_path[1 : 1 + self.hop_count])

    def attribute(self) -> Attribute:
        """What the data hold; raises `DecodeError` for an attribute that does not exist."""
        kind = ATTRIBUTES.get(self.attribute_id)
        if kind is None:
            raise DecodeError("opcode", f"attribute {self.attribute_id:#06x} is none of subnet management")
        return kind.unpack(self.data)

    def pack(self) -> bytes:
        """The 256 bytes; shorter data and paths are filled up with zeros.  Raises `EncodeError`."""
        for name in ("data", "initial_path", "return_path"):
            if len(getattr(self, name)) > 64:
                raise EncodeError(f"Smp.{name} has {len(getattr(self, name))} bytes; it takes up to 64")
        if len(self.reserved36) != 28 or not 0 <= self.status < _D_BIT:
            raise EncodeError("Smp.status has 15 bits, Smp.reserved36 has 28 bytes")
        try:
            return _SMP.pack(
                self.base_version,
                self.management_class,
                self.class_version,
                self.method,
                self.status | (_D_BIT if self.direction else 0),
                self.hop_pointer,
                self.hop_count,
                self.transaction_id,
                self.attribute_id,
                self.reserved16,
                self.attribute_modifier,
                self.mkey,
                self.dr_slid,
                self.dr_dlid,
                self.reserved36,
                self.data,
                self.initial_path,
                self.return_path,
            )
        except struct.error as error:
            raise EncodeError(f"an SMP's field does not fit: {error}") from None

    @classmethod
    def unpack(cls, buf: Buffer, offset: int = 0) -> Smp:
        """From 256 bytes of `buf` at `offset`; raises `DecodeError`."""
        if len(buf) - offset < MAD_SIZE:
            raise DecodeError("short", f"an SMP has {MAD_SIZE} bytes, {max(len(buf) - offset, 0)} are there")
        (
            base, kind, version, method, status, pointer, count, transaction, attribute, reserved16, modifier, mkey,
            dr_slid, dr_dlid, reserved36, payload, initial, back,
        ) = _SMP.unpack_from(buf, offset)  # fmt: skip
        return cls(
            kind,
            method,
            attribute,
            modifier,
            transaction,
            mkey,
            payload,
            status & ~_D_BIT,
            status >= _D_BIT,
            pointer,
            count,
            dr_slid,
            dr_dlid,
            initial,
            back,
            base,
            version,
            reserved16,
            reserved36,
        )


def directed_smp(
    method: int,
    attribute_id: int,
    attribute_modifier: int,
    path: bytes | tuple[int, ...],
    *,
    data: bytes = b"",
    mkey: int = 0,
    transaction_id: int = 0,
) -> bytes:
    """A directed-route SMP at its origin: hop pointer 0, no LID-routed part (14.2.2.1).

    path: the ports to leave by, at most 63.  Raises `EncodeError` for a longer one, and for data over 64 bytes.
    """
    hops = len(path)
    if hops > MAX_HOPS or len(data) > DATA_SIZE:
        raise EncodeError(
            f"a path of {hops} hops, {len(data)} bytes of data: at most {MAX_HOPS}, {DATA_SIZE}"
        )
    return _SMP.pack(
        1, ManagementClass.SUBN_DIRECTED_ROUTE, 1, method, 0, 0, hops, transaction_id, attribute_id, 0,
        attribute_modifier, mkey, PERMISSIVE_LID, PERMISSIVE_LID, b"", data, b"\0" + bytes(path), b"",
    )  # fmt: skip


def lid_routed_smp(
    method: int,
    attribute_id: int,
    attribute_modifier: int,
    *,
    data: bytes = b"",
    mkey: int = 0,
    transaction_id: int = 0,
) -> bytes:
    """A LID-routed SMP."""
    if len(data) > DATA_SIZE:
        raise EncodeError(f"{len(data)} bytes of data; an SMP carries {DATA_SIZE}")
    return _SMP.pack(
        1, ManagementClass.SUBN_LID_ROUTED, 1, method, 0, 0, 0, transaction_id, attribute_id, 0,
        attribute_modifier, mkey, 0, 0, b"", data, b"", b"",
    )  # fmt: skip


# --- complete packets -------------------------------------------------------------------------------------------

_HEAD = struct.Struct(">BBHHH BBHII II")
PACKET_SIZE = LRH.SIZE + BTH.SIZE + DETH.SIZE + MAD_SIZE + ICRC_SIZE
"""LRH ... ICRC of an SMP; a VCRC of two bytes may follow."""
_MAD_AT = LRH.SIZE + BTH.SIZE + DETH.SIZE
_ICRC_AT = _MAD_AT + MAD_SIZE


class SmpPacket(NamedTuple):
    """An SMP as it came: its LIDs, service level and 256 bytes."""

    slid: int
    dlid: int
    sl: int
    mad: bytes


def _head(slid: int, dlid: int, sl: int) -> tuple[bytes, int]:
    """LRH, BTH and DETH, and the running CRC-32 over them."""
    try:
        head = _HEAD.pack(
            MANAGEMENT_VL << 4, sl << 4 | LinkNextHeader.IBA_LOCAL, dlid, PACKET_SIZE // 4, slid,
            Opcode.UD_SEND_ONLY, 0, DEFAULT_PKEY, SMP_QP, 0,
            0, SMP_QP,
        )  # fmt: skip
    except struct.error:
        raise EncodeError(f"SLID {slid}, DLID {dlid}, SL {sl}: 16, 16 and 4 bits") from None
    masked = bytearray(head)
    masked[0] |= 0xF0  # the lane
    masked[LRH.SIZE + 4] = 0xFF  # FECN, BECN, reserved
    return head, crc32(masked)


_PERMISSIVE = _head(PERMISSIVE_LID, PERMISSIVE_LID, 0)


def smp_packet(mad: Buffer, slid: int = PERMISSIVE_LID, dlid: int = PERMISSIVE_LID, sl: int = 0) -> bytes:
    """The UD packet on lane 15 from QP 0 to QP 0 that carries an SMP: LRH ... ICRC, without VCRC.

    Directed routes have permissive LIDs at both ends.  Raises `EncodeError` for a MAD that has not 256 bytes.
    """
    if len(mad) != MAD_SIZE:
        raise EncodeError(f"a MAD of {len(mad)} bytes; it has {MAD_SIZE}")
    head, start = _PERMISSIVE if slid == dlid == PERMISSIVE_LID and not sl else _head(slid, dlid, sl)
    return b"".join((head, mad, crc32(mad, start).to_bytes(ICRC_SIZE, "little")))


def parse_smp_packet(packet: Buffer) -> SmpPacket:
    """The SMP in a packet, LRH ... ICRC, with or without the two bytes of a VCRC, which is not looked at.

    Raises `DecodeError`: "length", "header" (not lane 15, not a UD packet from QP 0 to QP 0) or "icrc".
    """
    if len(packet) not in (PACKET_SIZE, PACKET_SIZE + VCRC_SIZE):
        raise DecodeError("length", f"a packet with an SMP has {PACKET_SIZE} bytes, not {len(packet)}")
    lane, level, dlid, words, slid, opcode, flags, _, dest_qp, _, _, src_qp = _HEAD.unpack_from(packet)
    if words & 0x7FF != PACKET_SIZE // 4:
        raise DecodeError("length", f"LRH says {4 * (words & 0x7FF)} bytes, the packet has {PACKET_SIZE}")
    if (
        lane != MANAGEMENT_VL << 4
        or level & 3 != LinkNextHeader.IBA_LOCAL
        or opcode != Opcode.UD_SEND_ONLY
        or flags & 0x3F
        or dest_qp & 0xFFFFFF != SMP_QP
        or src_qp & 0xFFFFFF != SMP_QP
    ):
        raise DecodeError(
            "header", "no UD packet on lane 15 from QP 0 to QP 0, without pad, of transport version 0"
        )
    icrc = int.from_bytes(packet[_ICRC_AT : _ICRC_AT + ICRC_SIZE], "big")
    if icrc != native_icrc(packet[: LRH.SIZE], packet[LRH.SIZE : _ICRC_AT]):
        raise DecodeError("icrc", "the invariant CRC of a packet with an SMP is wrong")
    return SmpPacket(slid, dlid, level >> 4, bytes(packet[_MAD_AT:_ICRC_AT]))
