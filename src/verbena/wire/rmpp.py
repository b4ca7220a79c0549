"""The reliable multi-packet protocol: one management transaction of many datagrams (IBA vol. 1, 13.6).

A MAD whose class uses the protocol has twelve more bytes of header, and 220 bytes of data.  The data of each segment
begins with the class's own header (20 bytes in subnet administration, none in device management), which the payload
lengths count.  The machines that send and receive are `management.rmpp`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag

from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.layout import Layout, data, uint

RMPP_VERSION = 1
RMPP_DATA = 220
"""Bytes of data in a segment, the class's own header among them."""


class RmppType(IntEnum):
    """RMPPType (13.6.2.1); 0 stands in datagrams of these classes that are no part of a transfer."""

    NONE = 0
    DATA = 1
    ACK = 2
    STOP = 3
    ABORT = 4


class RmppFlags(IntFlag):
    """RMPPFlags (13.6.2.1)."""

    ACTIVE = 1
    FIRST = 2
    LAST = 4


class RmppStatus(IntEnum):
    """RMPPStatus of STOP and ABORT (13.6.2.4)."""

    NORMAL = 0
    RESOURCES_EXHAUSTED = 1
    TOTAL_TIME_TOO_LONG = 118
    INCONSISTENT_LAST = 119
    """Last segment and PayloadLength contradict each other."""
    INCONSISTENT_FIRST = 120
    """The flag First and the segment number contradict each other."""
    BAD_TYPE = 121
    WINDOW_TOO_SMALL = 122
    """NewWindowLast is smaller than a window that was given before."""
    SEGMENT_TOO_BIG = 123
    """A segment number beyond what was sent, or beyond the window."""
    ILLEGAL_STATUS = 124
    UNSUPPORTED_VERSION = 125
    TOO_MANY_RETRIES = 126
    UNSPECIFIED = 127


NO_RESPONSE_TIME = 31
"""RRespTime: none given."""


@dataclass(frozen=True, slots=True)
class RmppMad(Layout):
    """A management datagram of a class that may use the protocol: 24 + 12 bytes of header, 220 of data."""

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
    rmpp_version: int = uint(8, at=24)
    rmpp_type: int = uint(8, at=25)
    response_time: int = uint(5, at=26)
    """RRespTime: 4.096 us * 2^n; 31 for none."""
    rmpp_flags: int = uint(3)
    rmpp_status: int = uint(8, at=27)
    data1: int = uint(32, at=28)
    """Segment number, of DATA and ACK."""
    data2: int = uint(32, at=32)
    """PayloadLength of DATA, NewWindowLast of ACK."""
    data: bytes = data(RMPP_DATA, at=36)

    @property
    def is_rmpp(self) -> bool:
        """Whether it belongs to a transfer."""
        return bool(self.rmpp_flags & RmppFlags.ACTIVE)


def segments(mad: RmppMad, class_header: bytes, payload: bytes) -> list[RmppMad]:
    """The datagrams that carry `payload` (13.6.2.2); one at least, with no payload, for an empty one.

    mad: the header that they share.  Raises `EncodeError` for a class header that leaves no place.
    """
    room = RMPP_DATA - len(class_header)
    if room <= 0:
        raise EncodeError(f"a class header of {len(class_header)} bytes leaves no place in {RMPP_DATA}")
    count = max(1, -(-len(payload) // room))
    last = len(class_header) + len(payload) - (count - 1) * room
    made = []
    for number in range(1, count + 1):
        flags, length = RmppFlags.ACTIVE, 0
        if number == 1:  # the length of all, each segment's class header counted
            flags |= RmppFlags.FIRST
            length = (count - 1) * RMPP_DATA + last
        if number == count:
            flags |= RmppFlags.LAST
            length = last
        made.append(
            replace(
                mad,
                rmpp_version=RMPP_VERSION,
                rmpp_type=RmppType.DATA,
                response_time=NO_RESPONSE_TIME,
                rmpp_flags=int(flags),
                rmpp_status=RmppStatus.NORMAL,
                data1=number,
                data2=length,
                data=class_header + payload[(number - 1) * room : number * room],
            )
        )
    return made


def segment_length(segment: RmppMad, header_size: int) -> int:
    """Bytes of payload, without the class header, in a DATA segment.

    Raises `DecodeError`: "length" for a PayloadLength that contradicts the segment.
    """
    if not segment.rmpp_flags & RmppFlags.LAST:
        return RMPP_DATA - header_size
    if not header_size <= segment.data2 <= RMPP_DATA:
        raise DecodeError(
            "length",
            f"the last segment says {segment.data2} bytes: {header_size} to {RMPP_DATA} are possible",
        )
    return segment.data2 - header_size


def joined(parts: Iterator[RmppMad] | list[RmppMad], header_size: int) -> bytes:
    """The payload of a whole transfer's segments, in their order."""
    return b"".join(
        part.data[header_size : header_size + segment_length(part, header_size)] for part in parts
    )


def control(
    about: RmppMad,
    kind: RmppType,
    *,
    method: int,
    status: RmppStatus = RmppStatus.NORMAL,
    segment: int = 0,
    window_last: int = 0,
    class_header: bytes = b"",
) -> RmppMad:
    """An ACK, STOP or ABORT about a transfer (13.6.2.3, 13.6.2.4), from the header of one of its datagrams.

    method: as the other direction's (13.6.2.1: the response bit is the opposite of DATA's for what a receiver sends).
    """
    return replace(
        about,
        method=method,
        status=0,
        rmpp_version=RMPP_VERSION,
        rmpp_type=kind,
        response_time=NO_RESPONSE_TIME,
        rmpp_flags=int(RmppFlags.ACTIVE),
        rmpp_status=status,
        data1=segment,
        data2=window_last,
        data=class_header,
    )
