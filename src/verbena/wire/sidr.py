"""Service id resolution: the connection manager's question which datagram queue pair a service has.

IBA vol. 1, 12.11: SIDR_REQ and SIDR_REP, messages of management class 7, version 2, method Send.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from verbena.wire.cm import check_cm_version
from verbena.wire.layout import Layout, data, uint
from verbena.wire.mad import Mad, ManagementClass, Method


class SidrStatus(IntEnum):
    """SIDR_REP:Status (12.11.2.1)."""

    VALID = 0
    NOT_SUPPORTED = 1
    REJECTED = 2
    NO_QP = 3
    REDIRECTED = 4
    UNSUPPORTED_VERSION = 5


@dataclass(frozen=True, slots=True)
class SidrReq(Layout):
    """Which queue pair has this service (12.11.1)?"""

    ATTRIBUTE_ID: ClassVar[int] = 0x0017

    request_id: int = uint(32, at=0)
    pkey: int = uint(16, 0xFFFF, at=4)
    reserved6: int = uint(16, at=6)
    service_id: int = uint(64, at=8)
    private_data: bytes = data(216, at=16)


@dataclass(frozen=True, slots=True)
class SidrRep(Layout):
    """This one, or why none (12.11.2)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0018

    request_id: int = uint(32, at=0)
    status: int = uint(8, at=4)
    info_length: int = uint(8, at=5)
    reserved6: int = uint(16, at=6)
    qpn: int = uint(24, at=8)
    reserved11: int = uint(8, at=11)
    service_id: int = uint(64, at=12)
    qkey: int = uint(32, at=20)
    info: bytes = data(72, at=24)
    private_data: bytes = data(136, at=96)


SidrMessage = SidrReq | SidrRep
_KINDS: dict[int, type[SidrMessage]] = {kind.ATTRIBUTE_ID: kind for kind in (SidrReq, SidrRep)}


def sidr_message(mad: Mad) -> SidrMessage | None:
    """The message in a MAD of the connection manager's class, None if it is another one; raises `DecodeError`."""
    kind = _KINDS.get(mad.attribute_id)
    if kind is None or mad.management_class != ManagementClass.COMMUNICATION or mad.method != Method.SEND:
        return None
    check_cm_version(mad)
    return kind.unpack(mad.data)
