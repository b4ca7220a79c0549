"""The records of subnet administration that hold attributes of subnet management (IBA vol. 1, 15.2.5.2 to 15.2.5.12).

A record is a record identifier (whose port it is), the attribute as SMPs carry it, and zeros up to a multiple of eight
bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

from verbena.wire.errors import DecodeError
from verbena.wire.layout import Buffer, Layout, raw, uint
from verbena.wire.notice import GmpNotice, InformInfo
from verbena.wire.sa import Record, SaAttribute
from verbena.wire.sa_records import (
    GUIDInfoRecord,
    LinearForwardingTableRecord,
    LinkRecord,
    MCMemberRecord,
    MulticastForwardingTableRecord,
    PathRecord,
    PKeyTableRecord,
    ServiceRecord,
    SLtoVLMappingTableRecord,
    VLArbitrationRecord,
)
from verbena.wire.smp_attributes import NodeDescription, NodeInfo, PortInfo, SMInfo, SwitchInfo


class _Parts:
    """A record of several fixed-size parts, its dataclass fields, and padding."""

    __slots__ = ()
    SIZE: ClassVar[int]
    PARTS: ClassVar[tuple[tuple[str, type[Layout]], ...]]

    def __init__(self, *parts: Layout) -> None:  # the dataclasses below have their own
        raise NotImplementedError

    def __init_subclass__(cls, parts: tuple[tuple[str, type[Layout]], ...] = ()) -> None:
        if parts:
            cls.PARTS = parts
            size = sum(kind.SIZE for _, kind in parts)
            cls.SIZE = size + -size % 8

    def pack(self) -> bytes:
        """The bytes on the wire; raises `EncodeError` for a value that its field cannot hold."""
        return b"".join(getattr(self, name).pack() for name, _ in self.PARTS).ljust(self.SIZE, b"\0")

    @classmethod
    def unpack(cls, buf: Buffer, offset: int = 0) -> Self:
        """Read one from `buf` at `offset`; raises `DecodeError` when the buffer ends before it does."""
        if len(buf) - offset < cls.SIZE:
            raise DecodeError(
                "short", f"{cls.__name__} needs {cls.SIZE} bytes, {len(buf) - offset} are there"
            )
        found = []
        for _, kind in cls.PARTS:
            found.append(kind.unpack(buf, offset))
            offset += kind.SIZE
        return cls(*found)


@dataclass(frozen=True, slots=True)
class LidIdentifier(Layout):
    """Record identifier: the LID of a node's port, or of a switch."""

    lid: int = uint(16, at=0)
    reserved2: int = uint(16, at=2)


@dataclass(frozen=True, slots=True)
class PortIdentifier(Layout):
    """Record identifier: a LID, and a port's number there."""

    lid: int = uint(16, at=0)
    port: int = uint(8, at=2)
    options: int = uint(8, at=3)


@dataclass(frozen=True, slots=True)
class SubscriberIdentifier(Layout):
    """Record identifier: a subscriber, and which of its subscriptions."""

    gid: bytes = raw(16, at=0)
    enum: int = uint(16, at=16)
    reserved18: int = uint(48, at=18)


@dataclass(frozen=True, slots=True)
class NumberIdentifier(Layout):
    """Record identifier: a running number."""

    number: int = uint(32, at=0)
    time_s: int = uint(32, at=4)


@dataclass(frozen=True, slots=True)
class NodeRecord(_Parts, parts=(("id", LidIdentifier), ("info", NodeInfo), ("description", NodeDescription))):
    """NodeRecord (15.2.5.2): a node, as seen at one of its ports."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.NODE
    COMPONENTS: ClassVar[tuple[str | None, ...]] = (
        *("id.lid", None, "info.base_version", "info.class_version", "info.node_type", "info.num_ports"),
        *("info.system_image_guid", "info.node_guid", "info.port_guid", "info.partition_cap"),
        *("info.device_id", "info.revision", "info.local_port_num", "info.vendor_id", "description.text"),
    )

    id: LidIdentifier = field(default_factory=LidIdentifier)
    info: NodeInfo = field(default_factory=NodeInfo)
    description: NodeDescription = field(default_factory=NodeDescription)

    @property
    def lid(self) -> int:
        return self.id.lid


@dataclass(frozen=True, slots=True)
class PortInfoRecord(_Parts, parts=(("id", PortIdentifier), ("info", PortInfo))):
    """PortInfoRecord (15.2.5.3): a port; of an untrusted request, without its M_Key."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.PORT_INFO
    COMPONENTS: ClassVar[tuple[str | None, ...]] = (
        *(
            "id.lid",
            "id.port",
            "id.options",
            "info.mkey",
            "info.gid_prefix",
            "info.lid",
            "info.master_sm_lid",
        ),
        *("info.capability_mask", "info.diag_code", "info.mkey_lease_period", "info.local_port_num"),
        *("info.link_width_enabled", "info.link_width_supported", "info.link_width_active"),
        *("info.link_speed_supported", "info.port_state", "info.port_physical_state"),
        *(
            "info.link_down_default_state",
            "info.mkey_protect_bits",
            None,
            "info.lmc",
            "info.link_speed_active",
        ),
        *(
            "info.link_speed_enabled",
            "info.neighbor_mtu",
            "info.master_sm_sl",
            "info.vl_cap",
            "info.init_type",
        ),
        *("info.vl_high_limit", "info.vl_arbitration_high_cap", "info.vl_arbitration_low_cap"),
        *("info.init_type_reply", "info.mtu_cap", "info.vl_stall_count", "info.hoq_life"),
        *(
            "info.operational_vls",
            "info.partition_enforcement_inbound",
            "info.partition_enforcement_outbound",
        ),
        *("info.filter_raw_inbound", "info.filter_raw_outbound", "info.mkey_violations"),
        *("info.pkey_violations", "info.qkey_violations", "info.guid_cap", None, "info.subnet_timeout", None),
        *("info.response_time_value", "info.local_physical_error_threshold", "info.overrun_error_threshold"),
    )

    id: PortIdentifier = field(default_factory=PortIdentifier)
    info: PortInfo = field(default_factory=PortInfo)


@dataclass(frozen=True, slots=True)
class SwitchInfoRecord(_Parts, parts=(("id", LidIdentifier), ("info", SwitchInfo))):
    """SwitchInfoRecord (15.2.5.5): a switch."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.SWITCH_INFO
    COMPONENTS: ClassVar[tuple[str | None, ...]] = (
        *("id.lid", None, "info.linear_fdb_cap", "info.random_fdb_cap", "info.multicast_fdb_cap"),
        *("info.linear_fdb_top", "info.default_port", "info.default_multicast_primary_port"),
        *("info.default_multicast_not_primary_port", "info.life_time_value", "info.port_state_change"),
        *("info.optimized_sl2vl", "info.lids_per_port", "info.partition_enforcement_cap"),
        *("info.inbound_enforcement_cap", "info.outbound_enforcement_cap", "info.filter_raw_inbound_cap"),
        *("info.filter_raw_outbound_cap", "info.enhanced_port0", None),
    )

    id: LidIdentifier = field(default_factory=LidIdentifier)
    info: SwitchInfo = field(default_factory=SwitchInfo)


@dataclass(frozen=True, slots=True)
class SMInfoRecord(_Parts, parts=(("id", LidIdentifier), ("info", SMInfo))):
    """SMInfoRecord (15.2.5.10): a subnet manager; of an untrusted request, without its SM_Key."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.SM_INFO
    COMPONENTS: ClassVar[tuple[str | None, ...]] = (
        *("id.lid", None, "info.guid", "info.sm_key", "info.act_count", "info.priority", "info.state"),
    )

    id: LidIdentifier = field(default_factory=LidIdentifier)
    info: SMInfo = field(default_factory=SMInfo)


@dataclass(frozen=True, slots=True)
class InformInfoRecord(_Parts, parts=(("id", SubscriberIdentifier), ("info", InformInfo))):
    """InformInfoRecord (15.2.5.12): a subscription."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.INFORM_INFO_RECORD
    COMPONENTS: ClassVar[tuple[str | None, ...]] = (
        *("id.gid", "id.enum", None, "info.gid", "info.lid_begin", "info.lid_end", None, "info.is_generic"),
        *("info.subscribe", "info.type", "info.trap_number", "info.qpn", None, "info.response_time", None),
        "info.producer_type",
    )

    id: SubscriberIdentifier = field(default_factory=SubscriberIdentifier)
    info: InformInfo = field(default_factory=InformInfo)


@dataclass(frozen=True, slots=True)
class NoticeRecord(_Parts, parts=(("id", NumberIdentifier), ("notice", GmpNotice))):
    """An entry of the log of notices: its running number, when (seconds of the manager's clock), and the notice."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.NOTICE_RECORD
    COMPONENTS: ClassVar[tuple[str | None, ...]] = (
        *("id.number", "id.time_s", "notice.generic", "notice.type", "notice.producer", "notice.trap"),
        *("notice.issuer_lid", "notice.toggle", "notice.count", "notice.details", "notice.issuer_gid"),
    )

    id: NumberIdentifier = field(default_factory=NumberIdentifier)
    notice: GmpNotice = field(default_factory=GmpNotice)


RECORDS: dict[int, type[Record]] = {
    kind.ATTRIBUTE_ID: kind
    for kind in (
        *(
            NodeRecord,
            PortInfoRecord,
            SLtoVLMappingTableRecord,
            SwitchInfoRecord,
            LinearForwardingTableRecord,
        ),
        *(MulticastForwardingTableRecord, SMInfoRecord, LinkRecord, GUIDInfoRecord, ServiceRecord),
        *(PKeyTableRecord, PathRecord, VLArbitrationRecord, MCMemberRecord, InformInfoRecord, NoticeRecord),
    )
}
"""Attribute id -> record."""
