"""All transport opcodes and what a packet of each consists of (IBA vol. 1, 9.2.1; CNP: annex A17.9).

The three high bits of an opcode are the transport service, the five low ones the operation, which means the
same in each service that has it.  `_OPERATIONS` is therefore the one place where operations and their headers
are written down; `OPCODES` spreads it over the services, and is what the rest of Verbena asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from verbena.wire.headers import AETH, BTH, DETH, IETH, RDETH, RETH, AtomicAckETH, AtomicETH, ImmDt
from verbena.wire.layout import Layout


class Service(IntEnum):
    """Transport services: the three high bits of the opcode."""

    RC = 0
    UC = 1
    RD = 2
    UD = 3
    CNP = 4


class Operation(Enum):
    """What a packet is part of, whatever its position in the message."""

    SEND = "SEND"
    RDMA_WRITE = "RDMA_WRITE"
    RDMA_READ_REQUEST = "RDMA_READ_REQUEST"
    RDMA_READ_RESPONSE = "RDMA_READ_RESPONSE"
    ACKNOWLEDGE = "ACKNOWLEDGE"
    ATOMIC_ACKNOWLEDGE = "ATOMIC_ACKNOWLEDGE"
    COMPARE_SWAP = "COMPARE_SWAP"
    FETCH_ADD = "FETCH_ADD"
    RESYNC = "RESYNC"
    CNP = "CNP"


class Position(Enum):
    """Where in its message a packet stands."""

    FIRST = "FIRST"
    MIDDLE = "MIDDLE"
    LAST = "LAST"
    ONLY = "ONLY"


class Opcode(IntEnum):
    """BTH:OpCode."""

    RC_SEND_FIRST = 0x00
    RC_SEND_MIDDLE = 0x01
    RC_SEND_LAST = 0x02
    RC_SEND_LAST_WITH_IMMEDIATE = 0x03
    RC_SEND_ONLY = 0x04
    RC_SEND_ONLY_WITH_IMMEDIATE = 0x05
    RC_RDMA_WRITE_FIRST = 0x06
    RC_RDMA_WRITE_MIDDLE = 0x07
    RC_RDMA_WRITE_LAST = 0x08
    RC_RDMA_WRITE_LAST_WITH_IMMEDIATE = 0x09
    RC_RDMA_WRITE_ONLY = 0x0A
    RC_RDMA_WRITE_ONLY_WITH_IMMEDIATE = 0x0B
    RC_RDMA_READ_REQUEST = 0x0C
    RC_RDMA_READ_RESPONSE_FIRST = 0x0D
    RC_RDMA_READ_RESPONSE_MIDDLE = 0x0E
    RC_RDMA_READ_RESPONSE_LAST = 0x0F
    RC_RDMA_READ_RESPONSE_ONLY = 0x10
    RC_ACKNOWLEDGE = 0x11
    RC_ATOMIC_ACKNOWLEDGE = 0x12
    RC_COMPARE_SWAP = 0x13
    RC_FETCH_ADD = 0x14
    RC_SEND_LAST_WITH_INVALIDATE = 0x16
    RC_SEND_ONLY_WITH_INVALIDATE = 0x17

    UC_SEND_FIRST = 0x20
    UC_SEND_MIDDLE = 0x21
    UC_SEND_LAST = 0x22
    UC_SEND_LAST_WITH_IMMEDIATE = 0x23
    UC_SEND_ONLY = 0x24
    UC_SEND_ONLY_WITH_IMMEDIATE = 0x25
    UC_RDMA_WRITE_FIRST = 0x26
    UC_RDMA_WRITE_MIDDLE = 0x27
    UC_RDMA_WRITE_LAST = 0x28
    UC_RDMA_WRITE_LAST_WITH_IMMEDIATE = 0x29
    UC_RDMA_WRITE_ONLY = 0x2A
    UC_RDMA_WRITE_ONLY_WITH_IMMEDIATE = 0x2B

    RD_SEND_FIRST = 0x40
    RD_SEND_MIDDLE = 0x41
    RD_SEND_LAST = 0x42
    RD_SEND_LAST_WITH_IMMEDIATE = 0x43
    RD_SEND_ONLY = 0x44
    RD_SEND_ONLY_WITH_IMMEDIATE = 0x45
    RD_RDMA_WRITE_FIRST = 0x46
    RD_RDMA_WRITE_MIDDLE = 0x47
    RD_RDMA_WRITE_LAST = 0x48
    RD_RDMA_WRITE_LAST_WITH_IMMEDIATE = 0x49
    RD_RDMA_WRITE_ONLY = 0x4A
    RD_RDMA_WRITE_ONLY_WITH_IMMEDIATE = 0x4B
    RD_RDMA_READ_REQUEST = 0x4C
    RD_RDMA_READ_RESPONSE_FIRST = 0x4D
    RD_RDMA_READ_RESPONSE_MIDDLE = 0x4E
    RD_RDMA_READ_RESPONSE_LAST = 0x4F
    RD_RDMA_READ_RESPONSE_ONLY = 0x50
    RD_ACKNOWLEDGE = 0x51
    RD_ATOMIC_ACKNOWLEDGE = 0x52
    RD_COMPARE_SWAP = 0x53
    RD_FETCH_ADD = 0x54
    RD_RESYNC = 0x55

    UD_SEND_ONLY = 0x64
    UD_SEND_ONLY_WITH_IMMEDIATE = 0x65

    CNP = 0x81


@dataclass(frozen=True, slots=True)
class OpcodeInfo:
    """What a packet of an opcode is and consists of."""

    opcode: Opcode
    service: Service
    operation: Operation
    position: Position
    headers: tuple[type[Layout], ...]
    """The extended headers after the BTH, in wire order."""
    has_payload: bool
    is_request: bool

    @property
    def is_response(self) -> bool:
        """Sent by a responder: read responses and acknowledgements."""
        return not self.is_request

    @property
    def has_immediate(self) -> bool:
        return ImmDt in self.headers

    @property
    def has_invalidate(self) -> bool:
        return IETH in self.headers

    @property
    def header_size(self) -> int:
        """Bytes from BTH to the end of the extended headers."""
        return BTH.SIZE + sum(header.SIZE for header in self.headers)

    @property
    def name(self) -> str:
        """As people say it: "RC SEND_FIRST"."""
        return self.opcode.name.replace("_", " ", 1) if self.service is not Service.CNP else "CNP"


_F, _M, _L, _O = Position.FIRST, Position.MIDDLE, Position.LAST, Position.ONLY
_PAYLOAD, _EMPTY = True, False
_REQUEST, _RESPONSE = True, False

# low five bits -> operation, position, extended headers in RC and UC, payload, request
_OPERATIONS: dict[int, tuple[Operation, Position, tuple[type[Layout], ...], bool, bool]] = {
    0x00: (Operation.SEND, _F, (), _PAYLOAD, _REQUEST),
    0x01: (Operation.SEND, _M, (), _PAYLOAD, _REQUEST),
    0x02: (Operation.SEND, _L, (), _PAYLOAD, _REQUEST),
    0x03: (Operation.SEND, _L, (ImmDt,), _PAYLOAD, _REQUEST),
    0x04: (Operation.SEND, _O, (), _PAYLOAD, _REQUEST),
    0x05: (Operation.SEND, _O, (ImmDt,), _PAYLOAD, _REQUEST),
    0x06: (Operation.RDMA_WRITE, _F, (RETH,), _PAYLOAD, _REQUEST),
    0x07: (Operation.RDMA_WRITE, _M, (), _PAYLOAD, _REQUEST),
    0x08: (Operation.RDMA_WRITE, _L, (), _PAYLOAD, _REQUEST),
    0x09: (Operation.RDMA_WRITE, _L, (ImmDt,), _PAYLOAD, _REQUEST),
    0x0A: (Operation.RDMA_WRITE, _O, (RETH,), _PAYLOAD, _REQUEST),
    0x0B: (Operation.RDMA_WRITE, _O, (RETH, ImmDt), _PAYLOAD, _REQUEST),
    0x0C: (Operation.RDMA_READ_REQUEST, _O, (RETH,), _EMPTY, _REQUEST),
    0x0D: (Operation.RDMA_READ_RESPONSE, _F, (AETH,), _PAYLOAD, _RESPONSE),
    0x0E: (Operation.RDMA_READ_RESPONSE, _M, (), _PAYLOAD, _RESPONSE),
    0x0F: (Operation.RDMA_READ_RESPONSE, _L, (AETH,), _PAYLOAD, _RESPONSE),
    0x10: (Operation.RDMA_READ_RESPONSE, _O, (AETH,), _PAYLOAD, _RESPONSE),
    0x11: (Operation.ACKNOWLEDGE, _O, (AETH,), _EMPTY, _RESPONSE),
    0x12: (Operation.ATOMIC_ACKNOWLEDGE, _O, (AETH, AtomicAckETH), _EMPTY, _RESPONSE),
    0x13: (Operation.COMPARE_SWAP, _O, (AtomicETH,), _EMPTY, _REQUEST),
    0x14: (Operation.FETCH_ADD, _O, (AtomicETH,), _EMPTY, _REQUEST),
    0x15: (Operation.RESYNC, _O, (), _EMPTY, _REQUEST),
    0x16: (Operation.SEND, _L, (IETH,), _PAYLOAD, _REQUEST),
    0x17: (Operation.SEND, _O, (IETH,), _PAYLOAD, _REQUEST),
}


def _info(opcode: Opcode) -> OpcodeInfo:
    service = Service(opcode >> 5)
    if service is Service.CNP:
        # 16 reserved bytes follow the BTH of a congestion notification packet; they are kept as its payload.
        return OpcodeInfo(opcode, service, Operation.CNP, _O, (), _PAYLOAD, _REQUEST)
    operation, position, headers, has_payload, is_request = _OPERATIONS[opcode & 0x1F]
    if service is Service.RD:
        headers = (RDETH, DETH, *headers) if is_request else (RDETH, *headers)
    elif service is Service.UD:
        headers = (DETH, *headers)
    return OpcodeInfo(opcode, service, operation, position, headers, has_payload, is_request)


OPCODES: dict[int, OpcodeInfo] = {int(opcode): _info(opcode) for opcode in Opcode}
"""Opcode -> what its packets are; an opcode that is not a key does not exist."""

CNP_PAYLOAD_SIZE = 16
