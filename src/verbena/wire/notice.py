"""What all management classes share: notices, subscriptions to them, and what a class says of itself.

IBA vol. 1, 13.4.8: ClassPortInfo, Notice and InformInfo; the numbers of traps and what their details hold: 14.2.5.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Self

from verbena.wire.layout import Layout, data, flag, raw, uint
from verbena.wire.smp_attributes import Notice, NoticeType

ALL_TYPES = 0xFFFF
"""InformInfo:Type: notices of every type."""
ALL_TRAPS = 0xFFFF
"""InformInfo:TrapNumber: notices of every number."""
ALL_LIDS = 0xFFFF
"""InformInfo:LIDRangeBegin: notices from everywhere."""
ALL_PRODUCERS = 0xFFFFFF
"""InformInfo:ProducerType: notices from nodes of every kind."""


class ProducerType(IntEnum):
    """Notice:ProducerType; as NodeInfo:NodeType, and the class manager (here: the subnet manager)."""

    CHANNEL_ADAPTER = 1
    SWITCH = 2
    ROUTER = 3
    CLASS_MANAGER = 4


@dataclass(frozen=True, slots=True)
class GmpNotice(Layout):
    """Notice (13.4.8.2) as general services carry it: with the issuer's GID behind what SMPs have."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0002

    generic: bool = flag(True, at=0)
    type: int = uint(7)
    producer: int = uint(24, at=1)
    """`ProducerType`; of a notice that is not generic: the vendor's id."""
    trap: int = uint(16, at=4)
    """Of a notice that is not generic: the device id."""
    issuer_lid: int = uint(16, at=6)
    toggle: bool = flag(at=8)
    count: int = uint(15)
    details: bytes = data(54, at=10)
    issuer_gid: bytes = raw(16, at=64)

    @property
    def gid(self) -> bytes:
        """The GID that traps 64 to 67 are about: behind six reserved bytes of the details (14.2.5.1)."""
        return self.details[6:22]

    @classmethod
    def about_gid(cls, trap: int, gid: bytes, issuer_lid: int, issuer_gid: bytes) -> Self:
        """Trap 64 to 67, of the subnet manager."""
        return cls(
            type=NoticeType.SUBNET_MANAGEMENT,
            producer=ProducerType.CLASS_MANAGER,
            trap=trap,
            issuer_lid=issuer_lid,
            details=bytes(6) + gid + bytes(32),
            issuer_gid=issuer_gid,
        )

    @classmethod
    def of(cls, notice: Notice, issuer_gid: bytes) -> Self:
        """From a subnet management agent's trap."""
        return cls.unpack(notice.pack()[:64] + issuer_gid)


@dataclass(frozen=True, slots=True)
class InformInfo(Layout):
    """InformInfo (13.4.8.3): subscribe to notices, or no longer."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0003

    gid: bytes = raw(16, at=0)
    """Whose notices; zero: then `lid_begin` to `lid_end` tells."""
    lid_begin: int = uint(16, ALL_LIDS, at=16)
    lid_end: int = uint(16, at=18)
    reserved20: int = uint(16, at=20)
    is_generic: int = uint(8, 1, at=22)
    subscribe: int = uint(8, 1, at=23)
    type: int = uint(16, ALL_TYPES, at=24)
    trap_number: int = uint(16, ALL_TRAPS, at=26)
    """Not generic: the device id."""
    qpn: int = uint(24, at=28)
    """Where the reports go; in a Set of `subscribe` 1, zero is the class's own queue pair."""
    reserved31: int = uint(3)
    response_time: int = uint(5)
    reserved32: int = uint(8, at=32)
    producer_type: int = uint(24, ALL_PRODUCERS, at=33)
    """Not generic: the vendor's id."""


@dataclass(frozen=True, slots=True)
class ClassPortInfo(Layout):
    """ClassPortInfo (13.4.8.1): what a class's agent can do, and where it is, if not here."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0001

    base_version: int = uint(8, 1, at=0)
    class_version: int = uint(8, at=1)
    capability_mask: int = uint(16, at=2)
    capability_mask2: int = uint(27, at=4)
    response_time: int = uint(5, 18)
    """RespTimeValue: 4.096 us * 2^n; 18 is about a second."""
    redirect_gid: bytes = raw(16, at=8)
    redirect_tclass: int = uint(8, at=24)
    redirect_sl: int = uint(4, at=25)
    redirect_flow_label: int = uint(20)
    redirect_lid: int = uint(16, at=28)
    redirect_pkey: int = uint(16, at=30)
    reserved32: int = uint(8, at=32)
    redirect_qp: int = uint(24, at=33)
    redirect_qkey: int = uint(32, at=36)
    trap_gid: bytes = raw(16, at=40)
    trap_tclass: int = uint(8, at=56)
    trap_sl: int = uint(4, at=57)
    trap_flow_label: int = uint(20)
    trap_lid: int = uint(16, at=60)
    trap_pkey: int = uint(16, at=62)
    trap_hop_limit: int = uint(8, at=64)
    trap_qp: int = uint(24, at=65)
    trap_qkey: int = uint(32, at=68)
