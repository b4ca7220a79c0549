"""Subnet administration's datagrams: their header, methods, states and numbers (IBA vol. 1, 15.2).

A request carries one attribute and a component mask, which names the components that count; the answer to a GetTable
is a multi-packet transfer (`wire.rmpp`) of records, `attribute_offset` eight-byte words apart.  The records stand in
`wire.sa_records` and `wire.sa_nodes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from functools import lru_cache
from operator import attrgetter
from typing import Any, ClassVar, Protocol, Self

from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.layout import Buffer, Layout, uint
from verbena.wire.mad import ManagementClass, Method
from verbena.wire.rmpp import RMPP_DATA, RmppMad, segments

SA_CLASS_VERSION = 2


class SaMethod(IntEnum):
    """MAD:Method of subnet administration (15.2.2)."""

    GET = Method.GET
    SET = Method.SET
    REPORT = Method.REPORT
    GET_TABLE = 0x12
    GET_TRACE_TABLE = 0x13
    GET_MULTI = 0x14
    DELETE = 0x15
    GET_RESPONSE = Method.GET_RESPONSE
    REPORT_RESPONSE = Method.REPORT_RESPONSE
    GET_TABLE_RESPONSE = 0x92
    GET_MULTI_RESPONSE = 0x94
    DELETE_RESPONSE = 0x95


class SaStatus(IntEnum):
    """The class's own part of MAD:Status (15.2.4)."""

    OK = 0
    NO_RESOURCES = 0x0100
    REQUEST_INVALID = 0x0200
    NO_RECORDS = 0x0300
    TOO_MANY_RECORDS = 0x0400
    INVALID_GID = 0x0500
    INSUFFICIENT_COMPONENTS = 0x0600
    DENIED = 0x0700


class SaCapability(IntFlag):
    """ClassPortInfo:CapabilityMask of subnet administration (15.2.1.1.1)."""

    OPTIONAL_RECORDS = 0x0100
    MULTICAST = 0x0200
    """UD multicast: groups can be made and joined."""
    MULTI_PATH = 0x0400
    REINITIALIZE = 0x0800


class SaAttribute(IntEnum):
    """Attribute ids (15.2.3)."""

    CLASS_PORT_INFO = 0x0001
    NOTICE = 0x0002
    INFORM_INFO = 0x0003
    NODE = 0x0011
    PORT_INFO = 0x0012
    SL_TO_VL = 0x0013
    SWITCH_INFO = 0x0014
    LINEAR_FORWARDING = 0x0015
    MULTICAST_FORWARDING = 0x0017
    SM_INFO = 0x0018
    LINK = 0x0020
    GUID_INFO = 0x0030
    SERVICE = 0x0031
    PKEY_TABLE = 0x0033
    PATH = 0x0035
    VL_ARBITRATION = 0x0036
    MULTICAST_MEMBER = 0x0038
    MULTI_PATH = 0x003A
    INFORM_INFO_RECORD = 0x00F3
    NOTICE_RECORD = 0x00F4
    """The log of notices.  Later releases of the standard have no such record; the number is next to the last one's."""


@dataclass(frozen=True, slots=True)
class SaHeader(Layout):
    """The class's header: the first twenty bytes of each segment's data (15.2.1.1)."""

    sm_key: int = uint(64, at=0)
    attribute_offset: int = uint(16, at=8)
    """From one record to the next, in words of eight bytes."""
    reserved10: int = uint(16, at=10)
    component_mask: int = uint(64, at=12)


SA_HEADER = SaHeader.SIZE
SA_DATA = RMPP_DATA - SA_HEADER
"""Bytes of records in one datagram."""


class Packable(Protocol):
    def pack(self) -> bytes: ...


class Record(Protocol):
    """One of the attributes: packed and unpacked as `Layout` does, with its components in the mask's order."""

    ATTRIBUTE_ID: ClassVar[int]
    SIZE: ClassVar[int]
    COMPONENTS: ClassVar[tuple[str | None, ...]]
    """The name of each bit of a component mask, from bit 0 on; None for reserved ones; dots lead into parts."""

    def pack(self) -> bytes: ...

    @classmethod
    def unpack(cls, buf: Buffer, offset: int = 0) -> Self: ...


def component_mask(kind: type[Record], *names: str) -> int:
    """The mask of some components; raises `EncodeError` for a name that the record does not have."""
    mask = 0
    for name in names:
        if name not in kind.COMPONENTS:
            raise EncodeError(f"{kind.__name__} has no component {name!r}")
        mask |= 1 << kind.COMPONENTS.index(name)
    return mask


@lru_cache(maxsize=1024)
def named_components(kind: type[Record], mask: int) -> tuple[str, ...] | None:
    """The components that a mask names, None if it has a bit that stands for none."""
    if mask >> len(kind.COMPONENTS):
        return None
    named = (name for bit, name in enumerate(kind.COMPONENTS) if mask >> bit & 1)
    return tuple(name for name in named if name is not None)


def matches(record: Record, template: Record, names: tuple[str, ...]) -> bool:
    """Whether `record` is equal to `template` in the components named."""
    return all(component(record, name) == component(template, name) for name in names)


@lru_cache(maxsize=4096)
def _getter(name: str) -> Any:
    return attrgetter(name)


def component(record: Record, name: str) -> Any:
    """A component's value, by its name in `COMPONENTS`."""
    return _getter(name)(record)


def offset_of(kind: type[Record]) -> int:
    """AttributeOffset of a record: its size in words of eight bytes."""
    return -(-kind.SIZE // 8)


def sa_mad(
    method: int,
    attribute_id: int,
    *,
    transaction_id: int = 0,
    status: int = 0,
    attribute_modifier: int = 0,
) -> RmppMad:
    """The header of a datagram of this class."""
    return RmppMad(
        management_class=ManagementClass.SUBN_ADM,
        class_version=SA_CLASS_VERSION,
        method=method,
        status=status,
        transaction_id=transaction_id,
        attribute_id=attribute_id,
        attribute_modifier=attribute_modifier,
    )


def sa_message(mad: RmppMad, header: SaHeader, record: Packable | None = None) -> RmppMad:
    """A datagram with one record, or none, that is not part of a transfer."""
    return replace(mad, data=header.pack() + (record.pack() if record is not None else b""))


def sa_table(mad: RmppMad, kind: type[Record], records: list[bytes], sm_key: int = 0) -> list[RmppMad]:
    """The transfer that carries a table of packed records."""
    offset = offset_of(kind)
    header = SaHeader(sm_key=sm_key, attribute_offset=offset)
    return segments(mad, header.pack(), b"".join(record.ljust(8 * offset, b"\0") for record in records))


def sa_records(kind: type[Record], payload: bytes, offset: int) -> Iterator[Record]:
    """The records in a transfer's payload.

    Raises `DecodeError`: "length" when the attribute offset or the payload does not fit the record.
    """
    step = 8 * offset
    if not payload:
        return
    if step < kind.SIZE or len(payload) % step:
        raise DecodeError(
            "length",
            f"{len(payload)} bytes at offset {offset} are no table of {kind.__name__} ({kind.SIZE} bytes)",
        )
    for at in range(0, len(payload), step):
        yield kind.unpack(payload, at)
