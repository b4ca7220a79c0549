"""Management datagrams: the common 256-byte format (IBA vol. 1, 13.4.2).

A MAD is the payload of a UD SEND_ONLY packet: on QP 0 for subnet management, on QP 1 (the general services
interface, Q_Key `GSI_QKEY`) for the rest, the connection manager among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

from verbena.wire.layout import Layout, data, uint

MAD_SIZE = 256
GSI_QP = 1
GSI_QKEY = 0x80010000
"""The well-known Q_Key of QP 1 (IBA vol. 1, 10.2.5)."""


class ManagementClass(IntEnum):
    """MAD:MgmtClass (IBA vol. 1, 13.4.4)."""

    SUBN_LID_ROUTED = 0x01
    SUBN_ADM = 0x03
    PERFORMANCE = 0x04
    BOARD = 0x05
    DEVICE = 0x06
    COMMUNICATION = 0x07
    SNMP = 0x08
    SUBN_DIRECTED_ROUTE = 0x81


class Method(IntEnum):
    """MAD:Method, the common ones (IBA vol. 1, 13.4.5); the high bit marks a response."""

    GET = 0x01
    SET = 0x02
    SEND = 0x03
    TRAP = 0x05
    REPORT = 0x06
    TRAP_REPRESS = 0x07
    GET_RESPONSE = 0x81
    REPORT_RESPONSE = 0x86


class MadStatus(IntFlag):
    """MAD:Status, the bits common to all classes (IBA vol. 1, 13.4.7)."""

    OK = 0
    BUSY = 0x0001
    REDIRECT = 0x0002
    BAD_VERSION = 0x0004
    UNSUPPORTED_METHOD = 0x0008
    UNSUPPORTED_METHOD_ATTRIBUTE = 0x000C
    INVALID_VALUE = 0x001C


@dataclass(frozen=True, slots=True)
class Mad(Layout):
    """A management datagram: the 24-byte common header and 232 bytes that its class defines."""

    base_version: int = uint(8, 1, at=0)
    management_class: int = uint(8, at=1)
    class_version: int = uint(8, 1, at=2)
    method: int = uint(8, at=3)
    status: int = uint(16, at=4)
    class_specific: int = uint(16, at=6)
    transaction_id: int = uint(64, at=8)
    attribute_id: int = uint(16, at=16)
    reserved16: int = uint(16, at=18)
    attribute_modifier: int = uint(32, at=20)
    data: bytes = data(232, at=24)
