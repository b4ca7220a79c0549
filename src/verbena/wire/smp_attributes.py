"""The attributes of subnet management: what a subnet manager reads and writes in a node (IBA vol. 1, 14.2.5).

Each is the beginning of an SMP's 64 data bytes (`verbena.wire.smp`); what is left over is zero.  Tables of equal
entries (partitions, forwarding, arbitration) are tuples of numbers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar, Self

from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.layout import Buffer, Layout, data, flag, raw, uint

LFT_BLOCK = 64
"""LIDs in one block of a linear forwarding table."""
MFT_BLOCK = 32
"""Multicast LIDs in one block of a multicast forwarding table, sixteen ports wide."""
PKEY_BLOCK = 32
GUID_BLOCK = 8
ARBITRATION_BLOCK = 32
NO_PORT = 255
"""In a linear forwarding table: this LID is not forwarded."""


class PortState(IntEnum):
    """PortInfo:PortState (IBA vol. 1, 7.2)."""

    NO_CHANGE = 0
    DOWN = 1
    INIT = 2
    ARMED = 3
    ACTIVE = 4


class PhysicalState(IntEnum):
    """PortInfo:PortPhysicalState."""

    NO_CHANGE = 0
    SLEEP = 1
    POLLING = 2
    DISABLED = 3
    TRAINING = 4
    LINK_UP = 5
    ERROR_RECOVERY = 6


class PortCapability(IntFlag):
    """PortInfo:CapabilityMask, the bits that something here sets or asks for."""

    SM = 1 << 1
    NOTICE = 1 << 2
    TRAP = 1 << 3
    AUTOMATIC_MIGRATION = 1 << 5
    SL_MAPPING = 1 << 6
    LED_INFO = 1 << 9
    SM_DISABLED = 1 << 10
    SYSTEM_IMAGE_GUID = 1 << 11
    EXTENDED_SPEEDS = 1 << 14
    COMMUNICATION_MANAGEMENT = 1 << 16
    CAPABILITY_MASK_NOTICE = 1 << 22
    CLIENT_REREGISTRATION = 1 << 25
    OTHER_LOCAL_CHANGES_NOTICE = 1 << 26


class NoticeType(IntEnum):
    """Notice:Type (IBA vol. 1, 13.4.8.2)."""

    FATAL = 0
    URGENT = 1
    SECURITY = 2
    SUBNET_MANAGEMENT = 3
    INFORMATIONAL = 4


class Trap(IntEnum):
    """Notice:TrapNumber of generic notices (IBA vol. 1, 14.2.5.1; 64 to 67: subnet administration's, 15.2.5)."""

    GID_IN_SERVICE = 64
    GID_OUT_OF_SERVICE = 65
    MCG_CREATED = 66
    MCG_DELETED = 67
    LINK_STATE = 128
    LINK_INTEGRITY = 129
    BUFFER_OVERRUN = 130
    FLOW_CONTROL_WATCHDOG = 131
    CAPABILITY = 144
    SYSTEM_IMAGE_GUID = 145
    BAD_MKEY = 256
    BAD_PKEY = 257
    BAD_QKEY = 258
    SWITCH_BAD_PKEY = 259


class SmState(IntEnum):
    """SMInfo:SMState (IBA vol. 1, 14.2.5.13)."""

    NOT_ACTIVE = 0
    DISCOVERING = 1
    STANDBY = 2
    MASTER = 3


class SmControl(IntEnum):
    """The attribute modifier of SubnSet(SMInfo) (IBA vol. 1, 14.4.1)."""

    HANDOVER = 1
    ACKNOWLEDGE = 2
    DISABLE = 3
    STANDBY = 4
    DISCOVER = 5


@dataclass(frozen=True, slots=True)
class Notice(Layout):
    """A notice as SMPs carry it, 64 bytes (13.4.8.2); subnet administration appends the issuer's GID."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0002

    generic: bool = flag(True, at=0)
    type: int = uint(7)
    producer: int = uint(24, at=1)
    """NodeInfo:NodeType of who noticed, 4 for a class manager; a vendor's OUI if not `generic`."""
    trap: int = uint(16, at=4)
    issuer_lid: int = uint(16, at=6)
    toggle: bool = flag(at=8)
    count: int = uint(15)
    details: bytes = data(54, at=10)


@dataclass(frozen=True, slots=True)
class LinkStateDetails(Layout):
    """Notice:DataDetails of trap 128: the switch (14.2.5.1)."""

    lid: int = uint(16, at=0)


@dataclass(frozen=True, slots=True)
class PortDetails(Layout):
    """Notice:DataDetails of traps 129, 130 and 131: a port."""

    reserved0: int = uint(16, at=0)
    lid: int = uint(16, at=2)
    port: int = uint(8, at=4)


@dataclass(frozen=True, slots=True)
class CapabilityDetails(Layout):
    """Notice:DataDetails of trap 144: what a node can, is called, or how its links are enabled, has changed."""

    reserved0: int = uint(16, at=0)
    lid: int = uint(16, at=2)
    reserved4: int = uint(8, at=4)
    reserved5: int = uint(7, at=5)
    other_local_changes: bool = flag()
    capability_mask: int = uint(32, at=6)
    reserved10: int = uint(12, at=10)
    link_speed_enabled: bool = flag()
    link_width_enabled: bool = flag()
    node_description: bool = flag()
    reserved11: int = uint(1)


@dataclass(frozen=True, slots=True)
class BadMkeyDetails(Layout):
    """Notice:DataDetails of trap 256: the SMP with the wrong M_Key."""

    reserved0: int = uint(16, at=0)
    lid: int = uint(16, at=2)
    dr_slid: int = uint(16, at=4)
    method: int = uint(8, at=6)
    reserved7: int = uint(8, at=7)
    attribute_id: int = uint(16, at=8)
    attribute_modifier: int = uint(32, at=10)
    mkey: int = uint(64, at=14)
    reserved22: int = uint(8, at=22)
    dr_notice: bool = flag(at=23)
    dr_path_truncated: bool = flag()
    dr_hop_count: int = uint(6)
    dr_return_path: bytes = data(30, at=24)


@dataclass(frozen=True, slots=True)
class BadKeyDetails(Layout):
    """Notice:DataDetails of traps 257 and 258: from LID 1, QP 1 to LID 2, QP 2 with a wrong P_Key or Q_Key."""

    reserved0: int = uint(16, at=0)
    lid1: int = uint(16, at=2)
    lid2: int = uint(16, at=4)
    key: int = uint(32, at=6)
    sl: int = uint(4, at=10)
    reserved10: int = uint(4)
    qp1: int = uint(24, at=11)
    reserved14: int = uint(8, at=14)
    qp2: int = uint(24, at=15)
    gid1: bytes = raw(16, at=18)
    gid2: bytes = raw(16, at=34)


@dataclass(frozen=True, slots=True)
class NodeDescription(Layout):
    """A node's name, UTF-8, filled up with zeros (14.2.5.2)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0010

    text: bytes = data(64, at=0)

    @classmethod
    def of(cls, text: str) -> Self:
        """From a name; what does not fit in 64 bytes is cut off between two characters."""
        return cls(text.encode()[:64].decode(errors="ignore").encode())

    def __str__(self) -> str:
        return self.text.rstrip(b"\0").decode(errors="replace")


@dataclass(frozen=True, slots=True)
class NodeInfo(Layout):
    """What a node is (14.2.5.3)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0011

    base_version: int = uint(8, 1, at=0)
    class_version: int = uint(8, 1, at=1)
    node_type: int = uint(8, at=2)
    num_ports: int = uint(8, at=3)
    system_image_guid: int = uint(64, at=4)
    node_guid: int = uint(64, at=12)
    port_guid: int = uint(64, at=20)
    partition_cap: int = uint(16, at=28)
    device_id: int = uint(16, at=30)
    revision: int = uint(32, at=32)
    local_port_num: int = uint(8, at=36)
    vendor_id: int = uint(24, at=37)


@dataclass(frozen=True, slots=True)
class SwitchInfo(Layout):
    """What a switch can, and its defaults (14.2.5.4)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0012

    linear_fdb_cap: int = uint(16, at=0)
    random_fdb_cap: int = uint(16, at=2)
    multicast_fdb_cap: int = uint(16, at=4)
    linear_fdb_top: int = uint(16, at=6)
    default_port: int = uint(8, at=8)
    default_multicast_primary_port: int = uint(8, at=9)
    default_multicast_not_primary_port: int = uint(8, at=10)
    life_time_value: int = uint(5, at=11)
    port_state_change: bool = flag()
    optimized_sl2vl: int = uint(2)
    lids_per_port: int = uint(16, at=12)
    partition_enforcement_cap: int = uint(16, at=14)
    inbound_enforcement_cap: bool = flag(at=16)
    outbound_enforcement_cap: bool = flag()
    filter_raw_inbound_cap: bool = flag()
    filter_raw_outbound_cap: bool = flag()
    enhanced_port0: bool = flag()
    reserved16: int = uint(3)
    reserved17: int = uint(8, at=17)
    multicast_fdb_top: int = uint(16, at=18)


@dataclass(frozen=True, slots=True)
class PortInfo(Layout):
    """A port: its addresses, states, limits and counters (14.2.5.6; extended speeds: release 1.3)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0015

    mkey: int = uint(64, at=0)
    gid_prefix: int = uint(64, at=8)
    lid: int = uint(16, at=16)
    master_sm_lid: int = uint(16, at=18)
    capability_mask: int = uint(32, at=20)
    diag_code: int = uint(16, at=24)
    mkey_lease_period: int = uint(16, at=26)
    """In seconds; 0: never ends."""
    local_port_num: int = uint(8, at=28)
    link_width_enabled: int = uint(8, at=29)
    link_width_supported: int = uint(8, at=30)
    link_width_active: int = uint(8, at=31)
    link_speed_supported: int = uint(4, at=32)
    port_state: int = uint(4)
    port_physical_state: int = uint(4, at=33)
    link_down_default_state: int = uint(4)
    mkey_protect_bits: int = uint(2, at=34)
    reserved34: int = uint(3)
    lmc: int = uint(3)
    link_speed_active: int = uint(4, at=35)
    link_speed_enabled: int = uint(4)
    neighbor_mtu: int = uint(4, at=36)
    """Code: 1 is 256 bytes ... 5 is 4096."""
    master_sm_sl: int = uint(4)
    vl_cap: int = uint(4, at=37)
    """Code: 1: VL0, 2: VL0-1, 3: VL0-3, 4: VL0-7, 5: VL0-14."""
    init_type: int = uint(4)
    vl_high_limit: int = uint(8, at=38)
    vl_arbitration_high_cap: int = uint(8, at=39)
    vl_arbitration_low_cap: int = uint(8, at=40)
    init_type_reply: int = uint(4, at=41)
    mtu_cap: int = uint(4)
    vl_stall_count: int = uint(3, at=42)
    hoq_life: int = uint(5)
    """Head-of-queue life time: 4.096 us * 2^value; above 19: no limit."""
    operational_vls: int = uint(4, at=43)
    partition_enforcement_inbound: bool = flag()
    partition_enforcement_outbound: bool = flag()
    filter_raw_inbound: bool = flag()
    filter_raw_outbound: bool = flag()
    mkey_violations: int = uint(16, at=44)
    pkey_violations: int = uint(16, at=46)
    qkey_violations: int = uint(16, at=48)
    guid_cap: int = uint(8, at=50)
    client_reregister: bool = flag(at=51)
    multicast_pkey_trap_suppression: int = uint(2)
    subnet_timeout: int = uint(5)
    """Traps of one kind come at least 4.096 us * 2^value apart."""
    reserved52: int = uint(3, at=52)
    response_time_value: int = uint(5)
    local_physical_error_threshold: int = uint(4, at=53)
    overrun_error_threshold: int = uint(4)
    max_credit_hint: int = uint(16, at=54)
    reserved56: int = uint(8, at=56)
    link_round_trip_latency: int = uint(24, at=57)
    capability_mask2: int = uint(16, at=60)
    link_speed_ext_active: int = uint(4, at=62)
    link_speed_ext_supported: int = uint(4)
    reserved63: int = uint(3, at=63)
    link_speed_ext_enabled: int = uint(5)


@dataclass(frozen=True, slots=True)
class SMInfo(Layout):
    """Who a subnet manager is (14.2.5.13)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0020

    guid: int = uint(64, at=0)
    sm_key: int = uint(64, at=8)
    act_count: int = uint(32, at=16)
    priority: int = uint(4, at=20)
    state: int = uint(4)


@dataclass(frozen=True, slots=True)
class VendorDiag(Layout):
    """A vendor's diagnostics (14.2.5.14)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0030

    next_index: int = uint(16, at=0)
    diagnostics: bytes = data(62, at=2)


@dataclass(frozen=True, slots=True)
class LedInfo(Layout):
    """A port's light (14.2.5.15)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0031

    on: bool = flag(at=0)
    reserved0: int = uint(31)


class _Table:
    """Base of the attributes that are `COUNT` numbers of one size."""

    __slots__ = ()
    ATTRIBUTE_ID: ClassVar[int]
    COUNT: ClassVar[int]
    SIZE: ClassVar[int]
    _FORMAT: ClassVar[struct.Struct]
    entries: tuple[int, ...]

    def __init__(self, entries: tuple[int, ...] = ()) -> None:  # the dataclasses below have their own
        raise NotImplementedError

    def __init_subclass__(cls, *, code: str = "", count: int = 0) -> None:
        if code:
            cls._FORMAT = struct.Struct(f">{count}{code}")
            cls.COUNT, cls.SIZE = count, cls._FORMAT.size

    def pack(self) -> bytes:
        """The bytes on the wire; missing entries are zero.  Raises `EncodeError`."""
        entries = tuple(self.entries)
        try:
            return self._FORMAT.pack(*entries, *(0,) * (self.COUNT - len(entries)))
        except struct.error as error:
            raise EncodeError(
                f"{type(self).__name__} takes up to {self.COUNT} numbers of {self.SIZE // self.COUNT} bytes: {error}"
            ) from None

    @classmethod
    def unpack(cls, buf: Buffer, offset: int = 0) -> Self:
        """Read one from `buf` at `offset`; raises `DecodeError` when the buffer ends before it does."""
        if len(buf) - offset < cls.SIZE:
            raise DecodeError("short", f"{cls.__name__} needs {cls.SIZE} bytes")
        return cls(cls._FORMAT.unpack_from(buf, offset))


@dataclass(frozen=True, slots=True)
class GUIDInfo(_Table, code="Q", count=GUID_BLOCK):
    """Eight of a port's GUIDs; entry 0 of block 0 is the port's own (14.2.5.5)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0014
    entries: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PKeyTable(_Table, code="H", count=PKEY_BLOCK):
    """32 of a port's partition keys; bit 15: full member (14.2.5.7)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0016
    entries: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LinearForwardingTable(_Table, code="B", count=LFT_BLOCK):
    """The output ports of 64 LIDs; 255: none (14.2.5.10)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0019
    entries: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RandomForwardingTable(_Table, code="I", count=16):
    """Sixteen entries: LID in bits 31-16, valid in 15, LMC in 14-12, port in 7-0 (14.2.5.11)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x001A
    entries: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class MulticastForwardingTable(_Table, code="H", count=MFT_BLOCK):
    """Masks of sixteen ports for each of 32 multicast LIDs (14.2.5.12)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x001B
    entries: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SLtoVLMappingTable:
    """The lane of each of the sixteen service levels; 15: none, the packet is dropped (14.2.5.8)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0017
    SIZE: ClassVar[int] = 8
    lanes: tuple[int, ...] = (0,) * 16

    def pack(self) -> bytes:
        if len(self.lanes) != 16 or not all(0 <= lane <= 15 for lane in self.lanes):
            raise EncodeError(f"SLtoVLMappingTable is {self.lanes}; it must be 16 lanes from 0 to 15")
        return bytes(self.lanes[i] << 4 | self.lanes[i + 1] for i in range(0, 16, 2))

    @classmethod
    def unpack(cls, buf: Buffer, offset: int = 0) -> Self:
        chunk = bytes(buf[offset : offset + 8])
        if len(chunk) != 8:
            raise DecodeError("short", f"SLtoVLMappingTable needs 8 bytes, {len(chunk)} are there")
        return cls(tuple(lane for byte in chunk for lane in (byte >> 4, byte & 15)))


@dataclass(frozen=True, slots=True)
class VLArbitrationTable:
    """32 pairs of lane and weight, in units of 64 bytes (14.2.5.9)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0018
    SIZE: ClassVar[int] = 64
    entries: tuple[tuple[int, int], ...] = ()

    def pack(self) -> bytes:
        if len(self.entries) > ARBITRATION_BLOCK:
            raise EncodeError(f"VLArbitrationTable takes up to 32 entries, not {len(self.entries)}")
        if not all(0 <= lane <= 15 and 0 <= weight <= 255 for lane, weight in self.entries):
            raise EncodeError(f"VLArbitrationTable {self.entries}: lanes 0 to 15, weights 0 to 255")
        return bytes(number for entry in self.entries for number in entry).ljust(64, b"\0")

    @classmethod
    def unpack(cls, buf: Buffer, offset: int = 0) -> Self:
        chunk = bytes(buf[offset : offset + 64])
        if len(chunk) != 64:
            raise DecodeError("short", f"VLArbitrationTable needs 64 bytes, {len(chunk)} are there")
        return cls(tuple((chunk[i] & 15, chunk[i + 1]) for i in range(0, 64, 2)))


Attribute = (
    Notice
    | NodeDescription
    | NodeInfo
    | SwitchInfo
    | GUIDInfo
    | PortInfo
    | PKeyTable
    | SLtoVLMappingTable
    | VLArbitrationTable
    | LinearForwardingTable
    | RandomForwardingTable
    | MulticastForwardingTable
    | SMInfo
    | VendorDiag
    | LedInfo
)

ATTRIBUTES: dict[int, type[Attribute]] = {
    kind.ATTRIBUTE_ID: kind
    for kind in (
        Notice, NodeDescription, NodeInfo, SwitchInfo, GUIDInfo, PortInfo, PKeyTable, SLtoVLMappingTable,
        VLArbitrationTable, LinearForwardingTable, RandomForwardingTable, MulticastForwardingTable, SMInfo,
        VendorDiag, LedInfo,
    )
}  # fmt: skip
"""Attribute id -> its format."""
