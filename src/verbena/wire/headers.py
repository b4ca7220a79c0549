"""The headers of InfiniBand packets: local and global route, base and extended transport headers.

Formats from IBA vol. 1: LRH 7.7, GRH 8.3, BTH 9.2, extended transport headers 9.3, raw header chapter 5; the
congestion bits of the BTH from annex A10.  Field order is wire order; reserved bits are fields: nothing is
lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from verbena.wire.errors import EncodeError
from verbena.wire.layout import Layout, flag, raw, uint

DEFAULT_PKEY = 0xFFFF
GRH_NEXT_HEADER_IBA = 0x1B
"""GRH:NxtHdr of a packet whose next header is a BTH (IBA vol. 1, 8.3)."""


class LinkNextHeader(IntEnum):
    """LRH:LNH, what follows the local route header (IBA vol. 1, 7.7.5)."""

    RAW = 0
    """Raw packet: RWH with an EtherType."""
    IPV6 = 1
    """Raw packet: a plain IPv6 header."""
    IBA_LOCAL = 2
    """BTH."""
    IBA_GLOBAL = 3
    """GRH, then BTH."""


@dataclass(frozen=True, slots=True)
class LRH(Layout):
    """Local route header (IBA vol. 1, 7.7).  `packet_length` counts 4-byte words from LRH up to the VCRC."""

    vl: int = uint(4, at=0)
    link_version: int = uint(4)
    sl: int = uint(4, at=1)
    reserved2: int = uint(2)
    lnh: int = uint(2, LinkNextHeader.IBA_LOCAL)
    dlid: int = uint(16, at=2)
    reserved5: int = uint(5, at=4)
    packet_length: int = uint(11)
    slid: int = uint(16, at=6)


@dataclass(frozen=True, slots=True)
class GRH(Layout):
    """Global route header, an IPv6 header (IBA vol. 1, 8.3).  `payload_length` counts BTH through ICRC."""

    ip_version: int = uint(4, 6, at=0)
    traffic_class: int = uint(8)
    flow_label: int = uint(20)
    payload_length: int = uint(16, at=4)
    next_header: int = uint(8, GRH_NEXT_HEADER_IBA, at=6)
    hop_limit: int = uint(8, 64, at=7)
    sgid: bytes = raw(16, at=8)
    dgid: bytes = raw(16, at=24)


@dataclass(frozen=True, slots=True)
class RWH(Layout):
    """Raw header: the EtherType of a raw packet (IBA vol. 1, chapter 5)."""

    reserved16: int = uint(16, at=0)
    ethertype: int = uint(16, at=2)


@dataclass(frozen=True, slots=True)
class BTH(Layout):
    """Base transport header (IBA vol. 1, 9.2; FECN and BECN: annex A10)."""

    opcode: int = uint(8, at=0)
    solicited: bool = flag(at=1)
    mig_req: bool = flag()
    pad_count: int = uint(2)
    version: int = uint(4)
    pkey: int = uint(16, DEFAULT_PKEY, at=2)
    fecn: bool = flag(at=4)
    becn: bool = flag()
    reserved6: int = uint(6)
    dest_qp: int = uint(24, at=5)
    ack_request: bool = flag(at=8)
    reserved7: int = uint(7)
    psn: int = uint(24, at=9)


@dataclass(frozen=True, slots=True)
class RDETH(Layout):
    """Reliable datagram extended transport header (IBA vol. 1, 9.3): the end-to-end context."""

    reserved8: int = uint(8, at=0)
    ee_context: int = uint(24, at=1)


@dataclass(frozen=True, slots=True)
class DETH(Layout):
    """Datagram extended transport header (IBA vol. 1, 9.3)."""

    qkey: int = uint(32, at=0)
    reserved8: int = uint(8, at=4)
    src_qp: int = uint(24, at=5)


@dataclass(frozen=True, slots=True)
class RETH(Layout):
    """RDMA extended transport header (IBA vol. 1, 9.3)."""

    virtual_address: int = uint(64, at=0)
    rkey: int = uint(32, at=8)
    dma_length: int = uint(32, at=12)


@dataclass(frozen=True, slots=True)
class AtomicETH(Layout):
    """Atomic extended transport header (IBA vol. 1, 9.3)."""

    virtual_address: int = uint(64, at=0)
    rkey: int = uint(32, at=8)
    swap_add: int = uint(64, at=12)
    compare: int = uint(64, at=20)


@dataclass(frozen=True, slots=True)
class ImmDt(Layout):
    """Immediate data (IBA vol. 1, 9.3), as the number that the four bytes make, first byte highest."""

    data: int = uint(32, at=0)


@dataclass(frozen=True, slots=True)
class IETH(Layout):
    """Invalidate extended transport header (IBA vol. 1, 9.3)."""

    rkey: int = uint(32, at=0)


@dataclass(frozen=True, slots=True)
class AtomicAckETH(Layout):
    """Atomic acknowledge extended transport header (IBA vol. 1, 9.3): what the word held before."""

    original: int = uint(64, at=0)


class AethKind(IntEnum):
    """AETH:Syndrome, bits 6-5 (IBA vol. 1, 9.7.5.1.2, table 43)."""

    ACK = 0
    RNR_NAK = 1
    RESERVED = 2
    NAK = 3


class NakCode(IntEnum):
    """The NAK codes (IBA vol. 1, 9.7.5.2, table 46)."""

    PSN_SEQUENCE_ERROR = 0
    INVALID_REQUEST = 1
    REMOTE_ACCESS_ERROR = 2
    REMOTE_OPERATIONAL_ERROR = 3
    INVALID_RD_REQUEST = 4


INVALID_CREDITS = 31
"""The credit code that says "no end-to-end credits here": the requester is not limited."""

CREDITS: tuple[int, ...] = (0, 1, 2, 3, *(c << s for s in range(1, 14) for c in (2, 3)), 2 << 14)
"""Credit code (0-30) -> number of receive requests (IBA vol. 1, 9.7.7.2, table 44)."""

RNR_TIMER_NS: tuple[int, ...] = (
    *(655_360_000, 10_000, 20_000, 30_000),
    *(10_000 * (c << s) for s in range(1, 15) for c in (2, 3)),
)
"""RNR NAK timer code (0-31) -> nanoseconds: 655.36 ms, 0.01 ms ... 491.52 ms (IBA vol. 1, table 45)."""


@dataclass(frozen=True, slots=True)
class AETH(Layout):
    """ACK extended transport header (IBA vol. 1, 9.3, 9.7.5)."""

    syndrome: int = uint(8, at=0)
    msn: int = uint(24, at=1)

    @classmethod
    def ack(cls, msn: int, credit_code: int = INVALID_CREDITS) -> Self:
        """A positive acknowledgement."""
        return cls(AethKind.ACK << 5 | _five_bits("credit code", credit_code), msn)

    @classmethod
    def rnr_nak(cls, msn: int, timer_code: int) -> Self:
        """Receiver not ready: try again when the timer (see `RNR_TIMER_NS`) has run out."""
        return cls(AethKind.RNR_NAK << 5 | _five_bits("RNR timer code", timer_code), msn)

    @classmethod
    def nak(cls, msn: int, code: NakCode) -> Self:
        """A negative acknowledgement."""
        return cls(AethKind.NAK << 5 | _five_bits("NAK code", code), msn)

    @property
    def kind(self) -> AethKind:
        """Which of the three acknowledgements it is."""
        return AethKind(self.syndrome >> 5 & 3)

    @property
    def value(self) -> int:
        """The low five bits: credit code, RNR timer code or NAK code, after `kind`."""
        return self.syndrome & 31

    @property
    def credits(self) -> int | None:
        """Receive requests that the responder has, or None: it tells nothing, or this is no ACK."""
        if self.kind is not AethKind.ACK or self.value == INVALID_CREDITS:
            return None
        return CREDITS[self.value]


def _five_bits(what: str, value: int) -> int:
    if not 0 <= value <= 31:
        raise EncodeError(f"{what} is {value}; it must be from 0 to 31")
    return value


def credit_code(count: int) -> int:
    """The largest credit code that does not promise more than `count` receive requests (table 44)."""
    return max(code for code, value in enumerate(CREDITS) if value <= max(count, 0))


def ack_timeout_ns(code: int) -> int | None:
    """Local ACK timeout: 4.096 us times 2 to the `code`; 0 means no timeout (IBA vol. 1, 9.7.6.1.3)."""
    return None if _five_bits("timeout", code) == 0 else 4096 << code


def rnr_timer_code(delay_ns: int) -> int:
    """The code of the shortest RNR timer of at least `delay_ns` (of the longest, if none is long enough)."""
    codes = sorted(range(32), key=RNR_TIMER_NS.__getitem__)
    return next((code for code in codes if RNR_TIMER_NS[code] >= delay_ns), 0)
