"""Subnet administration's own records: paths, groups, services, links, tables (IBA vol. 1, 15.2.5).

Sizes are what travels: a multiple of eight bytes, reserved ones at the end counted.  `COMPONENTS` lists what the bits
of a component mask stand for.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from verbena.wire.layout import Layout, data, flag, raw, uint
from verbena.wire.sa import SaAttribute


class Selector(IntEnum):
    """What a value of MTU, rate or packet lifetime in a request means (15.2.5.16)."""

    GREATER = 0
    LESS = 1
    EXACTLY = 2
    LARGEST = 3
    """The largest that there is; of a lifetime: the smallest."""


MTU_BYTES = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096}
"""The codes of an MTU."""

# Gb/s of the rate codes, as the field's tables print them; FDR is nominally 14 Gb/s a lane.
RATE_GBPS: dict[int, float] = {
    2: 2.5,
    3: 10,
    4: 30,
    5: 5,
    6: 20,
    7: 40,
    8: 60,
    9: 80,
    10: 120,
    11: 14,
    12: 56,
    13: 112,
    14: 168,
    15: 25,
    16: 100,
    17: 200,
    18: 300,
    19: 28,
    20: 50,
    21: 400,
    22: 600,
    23: 800,
    24: 1200,
}
"""The codes of a path's rate (15.2.5.16; higher ones: later annexes).  They do not rise with the rate."""
RATE_CODE = {rate: code for code, rate in RATE_GBPS.items()}


def lifetime_ns(code: int) -> int:
    """A packet lifetime, or a time-out: 4.096 us * 2^code."""
    return 4_096 << code


def lifetime_code(duration_ns: int) -> int:
    """The smallest code whose time is not shorter; 63 at most."""
    return next((code for code in range(64) if lifetime_ns(code) >= duration_ns), 63)


@dataclass(frozen=True, slots=True)
class PathRecord(Layout):
    """PathRecord (15.2.5.16): how packets get from one port to another."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.PATH
    COMPONENTS: ClassVar[tuple[str | None, ...]] = (
        *("service_id_high", "service_id_low", "dgid", "sgid", "dlid", "slid", "raw_traffic", None),
        *("flow_label", "hop_limit", "tclass", "reversible", "numb_path", "pkey", "qos_class", "sl"),
        *(
            "mtu_selector",
            "mtu",
            "rate_selector",
            "rate",
            "packet_life_selector",
            "packet_life",
            "preference",
        ),
    )

    service_id_high: int = uint(8, at=0)
    service_id_low: int = uint(56)
    dgid: bytes = raw(16, at=8)
    sgid: bytes = raw(16, at=24)
    dlid: int = uint(16, at=40)
    slid: int = uint(16, at=42)
    raw_traffic: bool = flag(at=44)
    reserved44: int = uint(3)
    flow_label: int = uint(20)
    hop_limit: int = uint(8, at=47)
    tclass: int = uint(8, at=48)
    reversible: bool = flag(at=49)
    numb_path: int = uint(7)
    pkey: int = uint(16, at=50)
    qos_class: int = uint(12, at=52)
    sl: int = uint(4)
    mtu_selector: int = uint(2, at=54)
    mtu: int = uint(6)
    rate_selector: int = uint(2, at=55)
    rate: int = uint(6)
    packet_life_selector: int = uint(2, at=56)
    packet_life: int = uint(6)
    preference: int = uint(8, at=57)
    reserved58: int = uint(48, at=58)

    @property
    def mtu_bytes(self) -> int:
        """The path's MTU in bytes, 0 for a code that means none."""
        return MTU_BYTES.get(self.mtu, 0)

    @property
    def rate_gbps(self) -> float:
        """The path's rate in Gb/s, 0 for a code that means none."""
        return RATE_GBPS.get(self.rate, 0)


@dataclass(frozen=True, slots=True)
class MultiPathRecord(Layout):
    """The fixed part of MultiPathRecord (15.2.5.20): source and destination GIDs follow it."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.MULTI_PATH
    COMPONENTS: ClassVar[tuple[str | None, ...]] = (
        *("raw_traffic", None, "flow_label", "hop_limit", "tclass", "reversible", "numb_path", "pkey"),
        *("qos_class", "sl", "mtu_selector", "mtu", "rate_selector", "rate", "packet_life_selector"),
        *("packet_life", "service_id_high", "independence_selector", None, "sgid_count", "dgid_count"),
        "service_id_low",
    )

    raw_traffic: bool = flag(at=0)
    reserved0: int = uint(3)
    flow_label: int = uint(20)
    hop_limit: int = uint(8)
    tclass: int = uint(8, at=4)
    reversible: bool = flag(at=5)
    numb_path: int = uint(7)
    pkey: int = uint(16, at=6)
    qos_class: int = uint(12, at=8)
    sl: int = uint(4)
    mtu_selector: int = uint(2, at=10)
    mtu: int = uint(6)
    rate_selector: int = uint(2)
    rate: int = uint(6)
    packet_life_selector: int = uint(2, at=12)
    packet_life: int = uint(6)
    service_id_high: int = uint(8, at=13)
    independence_selector: int = uint(2, at=14)
    reserved14: int = uint(6)
    sgid_count: int = uint(8, at=15)
    dgid_count: int = uint(8, at=16)
    service_id_low: int = uint(56, at=17)


class JoinState(IntEnum):
    """Bits of MCMemberRecord:JoinState (15.2.5.17)."""

    FULL = 1
    NON_MEMBER = 2
    SEND_ONLY = 4
    """SendOnlyNonMember: the group ends without regard to it."""


@dataclass(frozen=True, slots=True)
class MCMemberRecord(Layout):
    """MCMemberRecord (15.2.5.17): a port's membership in a multicast group, and the group's properties."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.MULTICAST_MEMBER
    COMPONENTS: ClassVar[tuple[str | None, ...]] = (
        *("mgid", "port_gid", "qkey", "mlid", "mtu_selector", "mtu", "tclass", "pkey"),
        *("rate_selector", "rate", "packet_life_selector", "packet_life", "sl", "flow_label", "hop_limit"),
        *("scope", "join_state", "proxy_join"),
    )

    mgid: bytes = raw(16, at=0)
    port_gid: bytes = raw(16, at=16)
    qkey: int = uint(32, at=32)
    mlid: int = uint(16, at=36)
    mtu_selector: int = uint(2, at=38)
    mtu: int = uint(6)
    tclass: int = uint(8, at=39)
    pkey: int = uint(16, at=40)
    rate_selector: int = uint(2, at=42)
    rate: int = uint(6)
    packet_life_selector: int = uint(2, at=43)
    packet_life: int = uint(6)
    sl: int = uint(4, at=44)
    flow_label: int = uint(20)
    hop_limit: int = uint(8)
    scope: int = uint(4, at=48)
    join_state: int = uint(4)
    proxy_join: bool = flag(at=49)
    reserved49: int = uint(7)
    reserved50: int = uint(48, at=50)


@dataclass(frozen=True, slots=True)
class ServiceRecord(Layout):
    """ServiceRecord (15.2.5.14): who offers a service, registered for a while."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.SERVICE
    COMPONENTS: ClassVar[tuple[str | None, ...]] = (
        *("service_id", "gid", "pkey", None, "lease", "key", "name"),
        *(f"data8_{at}" for at in range(16)),
        *(f"data16_{at}" for at in range(8)),
        *(f"data32_{at}" for at in range(4)),
        *(f"data64_{at}" for at in range(2)),
    )

    service_id: int = uint(64, at=0)
    gid: bytes = raw(16, at=8)
    pkey: int = uint(16, at=24)
    reserved26: int = uint(16, at=26)
    lease: int = uint(32, 0xFFFFFFFF, at=28)
    """Seconds; 0xFFFFFFFF for ever."""
    key: bytes = raw(16, at=32)
    name: bytes = data(64, at=48)
    """UTF-8, filled up with zeros."""
    data: bytes = data(64, at=112)
    """Sixteen numbers of 8 bits, eight of 16, four of 32, two of 64."""

    def __getattr__(self, name: str) -> int:
        # The numbers of `data` by their components' names, such as data32_0.
        width, _, index = name.removeprefix("data").partition("_")
        if name.startswith("data") and width in ("8", "16", "32", "64") and index.isdecimal():
            size = int(width) // 8
            at = {1: 0, 2: 16, 4: 32, 8: 48}[size] + int(index) * size
            return int.from_bytes(self.data[at : at + size].ljust(size, b"\0"), "big")
        raise AttributeError(f"ServiceRecord has no {name}")


FOREVER = 0xFFFFFFFF
"""ServiceRecord:ServiceLease without an end."""


@dataclass(frozen=True, slots=True)
class LinkRecord(Layout):
    """LinkRecord (15.2.5.13): one direction of a link."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.LINK
    COMPONENTS: ClassVar[tuple[str | None, ...]] = ("from_lid", "from_port", "to_port", "to_lid")

    from_lid: int = uint(16, at=0)
    from_port: int = uint(8, at=2)
    to_port: int = uint(8, at=3)
    to_lid: int = uint(16, at=4)
    reserved6: int = uint(16, at=6)


@dataclass(frozen=True, slots=True)
class LinearForwardingTableRecord(Layout):
    """LinearForwardingTableRecord (15.2.5.6): the ports of 64 LIDs."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.LINEAR_FORWARDING
    COMPONENTS: ClassVar[tuple[str | None, ...]] = ("lid", "block", None, "ports")

    lid: int = uint(16, at=0)
    block: int = uint(16, at=2)
    reserved4: int = uint(32, at=4)
    ports: bytes = raw(64, at=8)


@dataclass(frozen=True, slots=True)
class MulticastForwardingTableRecord(Layout):
    """MulticastForwardingTableRecord (15.2.5.8): sixteen ports' bits of 32 multicast LIDs."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.MULTICAST_FORWARDING
    COMPONENTS: ClassVar[tuple[str | None, ...]] = ("lid", "position", None, "block", None, "masks")

    lid: int = uint(16, at=0)
    position: int = uint(4, at=2)
    reserved2: int = uint(3)
    block: int = uint(9)
    reserved4: int = uint(32, at=4)
    masks: bytes = raw(64, at=8)
    """32 masks of 16 bits: bit n of position p is port 16 p + n."""


@dataclass(frozen=True, slots=True)
class GUIDInfoRecord(Layout):
    """GUIDInfoRecord (15.2.5.18): eight GUIDs of a port."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.GUID_INFO
    COMPONENTS: ClassVar[tuple[str | None, ...]] = (
        *("lid", "block", None, None),
        *(f"guid{at}" for at in range(8)),
    )

    lid: int = uint(16, at=0)
    block: int = uint(8, at=2)
    reserved3: int = uint(8, at=3)
    reserved4: int = uint(32, at=4)
    guid0: int = uint(64, at=8)
    guid1: int = uint(64)
    guid2: int = uint(64)
    guid3: int = uint(64)
    guid4: int = uint(64)
    guid5: int = uint(64)
    guid6: int = uint(64)
    guid7: int = uint(64)

    @property
    def guids(self) -> tuple[int, ...]:
        return tuple(getattr(self, f"guid{at}") for at in range(8))


@dataclass(frozen=True, slots=True)
class PKeyTableRecord(Layout):
    """P_KeyTableRecord (15.2.5.11): 32 entries of a port's partition table."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.PKEY_TABLE
    COMPONENTS: ClassVar[tuple[str | None, ...]] = ("lid", "block", "port", None, "table")

    lid: int = uint(16, at=0)
    block: int = uint(16, at=2)
    port: int = uint(8, at=4)
    reserved5: int = uint(24, at=5)
    table: bytes = raw(64, at=8)


@dataclass(frozen=True, slots=True)
class SLtoVLMappingTableRecord(Layout):
    """SLtoVLMappingTableRecord (15.2.5.4): sixteen lanes, four bits each."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.SL_TO_VL
    COMPONENTS: ClassVar[tuple[str | None, ...]] = ("lid", "input_port", "output_port", None, "table")

    lid: int = uint(16, at=0)
    input_port: int = uint(8, at=2)
    output_port: int = uint(8, at=3)
    reserved4: int = uint(32, at=4)
    table: bytes = raw(8, at=8)


@dataclass(frozen=True, slots=True)
class VLArbitrationRecord(Layout):
    """VLArbitrationTableRecord (15.2.5.9): 32 pairs of lane and weight."""

    ATTRIBUTE_ID: ClassVar[int] = SaAttribute.VL_ARBITRATION
    COMPONENTS: ClassVar[tuple[str | None, ...]] = ("lid", "output_port", "block", None, "table")

    lid: int = uint(16, at=0)
    output_port: int = uint(8, at=2)
    block: int = uint(8, at=3)
    """1 and 2: low priority; 3 and 4: high."""
    reserved4: int = uint(32, at=4)
    table: bytes = raw(64, at=8)
