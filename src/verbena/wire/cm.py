"""The messages of the connection manager (IBA vol. 1, 12.6) and of RDMA IP CM (annex A11).

A message is the 232-byte data area of a MAD of class 7, version 2, method Send; its attribute id tells which.
Private data shorter than its field is filled up with zeros on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import ClassVar, Protocol, Self

from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.layout import Layout, data, flag, raw, uint
from verbena.wire.mad import Mad, ManagementClass, Method

CM_CLASS_VERSION = 2


class TransportService(IntEnum):
    """REQ:Transport Service Type (IBA vol. 1, 12.7)."""

    RC = 0
    UC = 1
    RD = 2


class MessageRejected(IntEnum):
    """REJ:Message REJected (IBA vol. 1, 12.6.7) and MRA:Message MRAed (12.6.6, where only 0-2 exist)."""

    REQ = 0
    REP = 1
    OTHER = 2
    """In a REJ: no message was rejected. In an MRA: a LAP."""


class RejectReason(IntEnum):
    """REJ:Reason (IBA vol. 1, 12.6.7.2)."""

    NO_QP = 1
    NO_EEC = 2
    NO_RESOURCES = 3
    TIMEOUT = 4
    UNSUPPORTED_REQUEST = 5
    INVALID_COMM_ID = 6
    INVALID_COMM_INSTANCE = 7
    INVALID_SERVICE_ID = 8
    INVALID_TRANSPORT_SERVICE_TYPE = 9
    STALE_CONNECTION = 10
    RDC_DOES_NOT_EXIST = 11
    PRIMARY_REMOTE_GID = 12
    PRIMARY_REMOTE_LID = 13
    INVALID_PRIMARY_SL = 14
    INVALID_PRIMARY_TRAFFIC_CLASS = 15
    INVALID_PRIMARY_HOP_LIMIT = 16
    INVALID_PRIMARY_PACKET_RATE = 17
    ALTERNATE_REMOTE_GID = 18
    ALTERNATE_REMOTE_LID = 19
    INVALID_ALTERNATE_SL = 20
    INVALID_ALTERNATE_TRAFFIC_CLASS = 21
    INVALID_ALTERNATE_HOP_LIMIT = 22
    INVALID_ALTERNATE_PACKET_RATE = 23
    PORT_AND_CM_REDIRECTION = 24
    PORT_REDIRECTION = 25
    INVALID_PATH_MTU = 26
    INSUFFICIENT_RESPONDER_RESOURCES = 27
    CONSUMER_REJECT = 28
    RNR_RETRY_COUNT = 29
    DUPLICATE_LOCAL_COMM_ID = 30
    UNSUPPORTED_CLASS_VERSION = 31
    INVALID_PRIMARY_FLOW_LABEL = 32
    INVALID_ALTERNATE_FLOW_LABEL = 33


@dataclass(frozen=True, slots=True)
class REQ(Layout):
    """Request for communication (IBA vol. 1, 12.6.5)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0010

    local_comm_id: int = uint(32, at=0)
    reserved4: int = uint(32, at=4)
    service_id: int = uint(64, at=8)
    local_ca_guid: int = uint(64, at=16)
    reserved24: int = uint(32, at=24)
    local_qkey: int = uint(32, at=28)
    local_qpn: int = uint(24, at=32)
    responder_resources: int = uint(8, at=35)
    local_eecn: int = uint(24, at=36)
    initiator_depth: int = uint(8, at=39)
    remote_eecn: int = uint(24, at=40)
    remote_cm_response_timeout: int = uint(5, at=43)
    transport_service: int = uint(2)
    end_to_end_flow_control: bool = flag()
    starting_psn: int = uint(24, at=44)
    local_cm_response_timeout: int = uint(5, at=47)
    retry_count: int = uint(3)
    pkey: int = uint(16, 0xFFFF, at=48)
    path_mtu: int = uint(4, at=50)
    """Code: 1 is 256 bytes ... 5 is 4096."""
    rdc_exists: bool = flag()
    rnr_retry_count: int = uint(3)
    max_cm_retries: int = uint(4, at=51)
    srq: bool = flag()
    extended_transport: int = uint(3)
    primary_local_lid: int = uint(16, at=52)
    primary_remote_lid: int = uint(16, at=54)
    primary_local_gid: bytes = raw(16, at=56)
    primary_remote_gid: bytes = raw(16, at=72)
    primary_flow_label: int = uint(20, at=88)
    reserved90: int = uint(6)
    primary_packet_rate: int = uint(6)
    primary_traffic_class: int = uint(8, at=92)
    primary_hop_limit: int = uint(8, at=93)
    primary_sl: int = uint(4, at=94)
    primary_subnet_local: bool = flag()
    reserved94: int = uint(3)
    primary_local_ack_timeout: int = uint(5, at=95)
    reserved95: int = uint(3)
    alternate_local_lid: int = uint(16, at=96)
    alternate_remote_lid: int = uint(16, at=98)
    alternate_local_gid: bytes = raw(16, at=100)
    alternate_remote_gid: bytes = raw(16, at=116)
    alternate_flow_label: int = uint(20, at=132)
    reserved134: int = uint(6)
    alternate_packet_rate: int = uint(6)
    alternate_traffic_class: int = uint(8, at=136)
    alternate_hop_limit: int = uint(8, at=137)
    alternate_sl: int = uint(4, at=138)
    alternate_subnet_local: bool = flag()
    reserved138: int = uint(3)
    alternate_local_ack_timeout: int = uint(5, at=139)
    reserved139: int = uint(3)
    private_data: bytes = data(92, at=140)


@dataclass(frozen=True, slots=True)
class MRA(Layout):
    """Message receipt acknowledgement (IBA vol. 1, 12.6.6): "wait, it takes longer"."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0011

    local_comm_id: int = uint(32, at=0)
    remote_comm_id: int = uint(32, at=4)
    message: int = uint(2, at=8)
    reserved8: int = uint(6)
    service_timeout: int = uint(5, at=9)
    reserved9: int = uint(3)
    private_data: bytes = data(222, at=10)


@dataclass(frozen=True, slots=True)
class REJ(Layout):
    """Reject (IBA vol. 1, 12.6.7)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0012

    local_comm_id: int = uint(32, at=0)
    remote_comm_id: int = uint(32, at=4)
    message: int = uint(2, at=8)
    reserved8: int = uint(6)
    info_length: int = uint(7, at=9)
    reserved9: int = uint(1)
    reason: int = uint(16, at=10)
    info: bytes = data(72, at=12)
    private_data: bytes = data(148, at=84)


@dataclass(frozen=True, slots=True)
class REP(Layout):
    """Reply to request for communication (IBA vol. 1, 12.6.8)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0013

    local_comm_id: int = uint(32, at=0)
    remote_comm_id: int = uint(32, at=4)
    local_qkey: int = uint(32, at=8)
    local_qpn: int = uint(24, at=12)
    reserved15: int = uint(8)
    local_eecn: int = uint(24, at=16)
    reserved19: int = uint(8)
    starting_psn: int = uint(24, at=20)
    reserved23: int = uint(8)
    responder_resources: int = uint(8, at=24)
    initiator_depth: int = uint(8, at=25)
    target_ack_delay: int = uint(5, at=26)
    failover_accepted: int = uint(2)
    end_to_end_flow_control: bool = flag()
    rnr_retry_count: int = uint(3, at=27)
    srq: bool = flag()
    reserved27: int = uint(4)
    local_ca_guid: int = uint(64, at=28)
    private_data: bytes = data(196, at=36)


@dataclass(frozen=True, slots=True)
class RTU(Layout):
    """Ready to use (IBA vol. 1, 12.6.9)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0014

    local_comm_id: int = uint(32, at=0)
    remote_comm_id: int = uint(32, at=4)
    private_data: bytes = data(224, at=8)


@dataclass(frozen=True, slots=True)
class DREQ(Layout):
    """Request for communication release (IBA vol. 1, 12.6.10)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0015

    local_comm_id: int = uint(32, at=0)
    remote_comm_id: int = uint(32, at=4)
    remote_qpn: int = uint(24, at=8)
    reserved11: int = uint(8)
    private_data: bytes = data(220, at=12)


@dataclass(frozen=True, slots=True)
class DREP(Layout):
    """Reply to request for communication release (IBA vol. 1, 12.6.11)."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0016

    local_comm_id: int = uint(32, at=0)
    remote_comm_id: int = uint(32, at=4)
    private_data: bytes = data(224, at=8)


CmMessage = REQ | MRA | REJ | REP | RTU | DREQ | DREP

CM_MESSAGES: dict[int, type[CmMessage]] = {
    message.ATTRIBUTE_ID: message for message in (REQ, MRA, REJ, REP, RTU, DREQ, DREP)
}
"""Attribute id -> message."""


class CmFormat(Protocol):
    """Whatever travels in the connection manager's class."""

    ATTRIBUTE_ID: ClassVar[int]

    def pack(self) -> bytes: ...


def cm_mad(message: CmFormat, transaction_id: int = 0) -> Mad:
    """The MAD that carries `message`."""
    return Mad(
        management_class=ManagementClass.COMMUNICATION,
        class_version=CM_CLASS_VERSION,
        method=Method.SEND,
        transaction_id=transaction_id,
        attribute_id=message.ATTRIBUTE_ID,
        data=message.pack(),
    )


def check_cm_version(mad: Mad) -> None:
    """Raise `DecodeError` unless a MAD of the class is of the version that is known."""
    if mad.base_version != 1 or mad.class_version != CM_CLASS_VERSION:
        raise DecodeError(
            "version", f"CM class version {mad.class_version}; only {CM_CLASS_VERSION} is known"
        )


def cm_message(mad: Mad) -> CmMessage:
    """The message in a MAD; raises `DecodeError` if it is none, or of a version or kind that is not known."""
    if mad.management_class != ManagementClass.COMMUNICATION or mad.method != Method.SEND:
        raise DecodeError(
            "header", f"a MAD of class {mad.management_class:#x}, method {mad.method:#x} is no CM message"
        )
    check_cm_version(mad)
    kind = CM_MESSAGES.get(mad.attribute_id)
    if kind is None:
        raise DecodeError("opcode", f"attribute {mad.attribute_id:#06x} is no known CM message")
    return kind.unpack(mad.data)


RDMA_PS_TCP = 0x0106
"""The port space of reliable connections, as in librdmacm: protocol 6 (TCP) of the IETF prefix 1."""


def service_id(port: int, port_space: int = RDMA_PS_TCP) -> int:
    """Service id of an IP port: 0x0000000001060000 | port for TCP's (annex A11)."""
    if not 0 <= port <= 0xFFFF:
        raise EncodeError(f"port is {port}; it must be from 0 to 65535")
    return port_space << 16 | port


def service_port(identifier: int, port_space: int = RDMA_PS_TCP) -> int | None:
    """The IP port of a service id, None if it belongs to no port of that port space."""
    return identifier & 0xFFFF if identifier >> 16 == port_space else None


@dataclass(frozen=True, slots=True)
class IpCmHeader(Layout):
    """Who connects: the first 36 bytes of a REQ's private data; 56 are left to the consumer (annex A11).

    An IPv4 address stands in the last four of its sixteen bytes.
    """

    major: int = uint(4, at=0)
    minor: int = uint(4)
    ip_version: int = uint(4, 4, at=1)
    reserved1: int = uint(4)
    src_port: int = uint(16, at=2)
    src: bytes = raw(16, at=4)
    dst: bytes = raw(16, at=20)

    @classmethod
    def of(cls, source: str, destination: str, src_port: int) -> Self:
        """From two IP addresses of the same version."""
        ends = ip_address(source), ip_address(destination)
        if ends[0].version != ends[1].version:
            raise EncodeError(f"{source} and {destination} are not of the same IP version")
        src, dst = (end.packed.rjust(16, b"\0") for end in ends)
        return cls(ip_version=ends[0].version, src_port=src_port, src=src, dst=dst)

    def _address(self, field: bytes) -> IPv4Address | IPv6Address:
        if self.ip_version == 4:
            return IPv4Address(field[12:])
        if self.ip_version == 6:
            return IPv6Address(field)
        raise DecodeError("version", f"IP version {self.ip_version} in the RDMA IP CM header")

    @property
    def source(self) -> IPv4Address | IPv6Address:
        return self._address(self.src)

    @property
    def destination(self) -> IPv4Address | IPv6Address:
        return self._address(self.dst)
