"""Performance management: a port's counters (IBA vol. 1, 16.1.3).

The attributes begin at byte 64 of the MAD.  Data are counted in units of four bytes.  The counters of PortCounters stop
at their largest value; those of PortCountersExtended have 64 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar, Self

from verbena.wire.layout import Layout, uint
from verbena.wire.mad import Mad, ManagementClass

PM_CLASS_VERSION = 1
PM_DATA_OFFSET = 40
"""Where an attribute begins in `Mad.data`: behind 40 reserved bytes."""
ALL_PORTS = 0xFF
"""PortSelect: the sum of all ports, of agents that have `PmCapability.ALL_PORT_SELECT`."""
DATA_UNIT = 4


class PmAttribute(IntEnum):
    """Attribute ids (16.1.3.1)."""

    CLASS_PORT_INFO = 0x0001
    PORT_COUNTERS = 0x0012
    PORT_COUNTERS_EXTENDED = 0x001D


class PmCapability(IntFlag):
    """ClassPortInfo:CapabilityMask of performance management (16.1.3.2)."""

    ALL_PORT_SELECT = 0x0100
    EXTENDED_WIDTH = 0x0200
    EXTENDED_WIDTH_NO_IETF = 0x0400
    SAMPLES_ONLY = 0x0800
    XMIT_WAIT = 0x1000


@dataclass(frozen=True, slots=True)
class PortCounters(Layout):
    """PortCounters (16.1.3.5).  `counter_select`: the bits of `SELECT`, which a Set clears."""

    ATTRIBUTE_ID: ClassVar[int] = PmAttribute.PORT_COUNTERS
    SELECT: ClassVar[tuple[str, ...]] = (
        *("symbol_error", "link_error_recovery", "link_downed", "rcv_errors", "rcv_remote_physical_errors"),
        *("rcv_switch_relay_errors", "xmit_discards", "xmit_constraint_errors", "rcv_constraint_errors"),
        *("local_link_integrity_errors", "excessive_buffer_overrun_errors", "vl15_dropped"),
        *("xmit_data", "rcv_data", "xmit_pkts", "rcv_pkts"),
    )
    SELECT2: ClassVar[tuple[str, ...]] = ("xmit_wait",)

    reserved0: int = uint(8, at=0)
    port_select: int = uint(8, at=1)
    counter_select: int = uint(16, at=2)
    symbol_error: int = uint(16, at=4)
    link_error_recovery: int = uint(8, at=6)
    link_downed: int = uint(8, at=7)
    rcv_errors: int = uint(16, at=8)
    rcv_remote_physical_errors: int = uint(16, at=10)
    rcv_switch_relay_errors: int = uint(16, at=12)
    xmit_discards: int = uint(16, at=14)
    xmit_constraint_errors: int = uint(8, at=16)
    rcv_constraint_errors: int = uint(8, at=17)
    counter_select2: int = uint(8, at=18)
    local_link_integrity_errors: int = uint(4, at=19)
    excessive_buffer_overrun_errors: int = uint(4)
    qp1_dropped: int = uint(16, at=20)
    vl15_dropped: int = uint(16, at=22)
    xmit_data: int = uint(32, at=24)
    rcv_data: int = uint(32, at=28)
    xmit_pkts: int = uint(32, at=32)
    rcv_pkts: int = uint(32, at=36)
    xmit_wait: int = uint(32, at=40)

    @classmethod
    def saturated(cls, port_select: int, counts: dict[str, int]) -> Self:
        """From counts of any size: what does not fit stands at its largest value."""
        most = {entry.name: entry.mask for entry in cls._FIELDS}
        return cls(port_select=port_select, **{name: min(n, most[name]) for name, n in counts.items()})


@dataclass(frozen=True, slots=True)
class PortCountersExtended(Layout):
    """PortCountersExtended (16.1.4.11): the same of data and packets, in 64 bits, and by kind of packet."""

    ATTRIBUTE_ID: ClassVar[int] = PmAttribute.PORT_COUNTERS_EXTENDED
    SELECT: ClassVar[tuple[str, ...]] = (
        *("xmit_data", "rcv_data", "xmit_pkts", "rcv_pkts", "unicast_xmit_pkts", "unicast_rcv_pkts"),
        *("multicast_xmit_pkts", "multicast_rcv_pkts"),
    )

    reserved0: int = uint(8, at=0)
    port_select: int = uint(8, at=1)
    counter_select: int = uint(16, at=2)
    counter_select2: int = uint(32, at=4)
    xmit_data: int = uint(64, at=8)
    rcv_data: int = uint(64, at=16)
    xmit_pkts: int = uint(64, at=24)
    rcv_pkts: int = uint(64, at=32)
    unicast_xmit_pkts: int = uint(64, at=40)
    unicast_rcv_pkts: int = uint(64, at=48)
    multicast_xmit_pkts: int = uint(64, at=56)
    multicast_rcv_pkts: int = uint(64, at=64)

    @classmethod
    def wrapped(cls, port_select: int, counts: dict[str, int]) -> Self:
        """From counts of any size, modulo 2^64."""
        return cls(port_select=port_select, **{name: n % (1 << 64) for name, n in counts.items()})


PmBody = PortCounters | PortCountersExtended


def pm_mad(method: int, attribute_id: int, body: bytes, *, transaction_id: int = 0, status: int = 0) -> Mad:
    """The MAD that carries an attribute of this class."""
    return Mad(
        management_class=ManagementClass.PERFORMANCE,
        class_version=PM_CLASS_VERSION,
        method=method,
        status=status,
        transaction_id=transaction_id,
        attribute_id=attribute_id,
        data=bytes(PM_DATA_OFFSET) + body,
    )
