"""The states of a TCP connection, as one table (RFC 9293, 3.3.2, figure 5), and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

MILLISECOND = 1_000_000


class TcpState(Enum):
    """RFC 9293, 3.3.2; LISTEN is a listener's, not a connection's."""

    CLOSED = auto()
    SYN_SENT = auto()
    SYN_RECEIVED = auto()
    ESTABLISHED = auto()
    FIN_WAIT_1 = auto()
    FIN_WAIT_2 = auto()
    CLOSE_WAIT = auto()
    CLOSING = auto()
    LAST_ACK = auto()
    TIME_WAIT = auto()


class TcpEvent(Enum):
    """What moves a connection from state to state."""

    OPEN = auto()
    SYN = auto()
    SYN_ACK = auto()
    ACK_OF_SYN = auto()
    CLOSE = auto()
    FIN = auto()
    ACK_OF_FIN = auto()
    RESET = auto()
    EXPIRE = auto()


_S, _E = TcpState, TcpEvent

TRANSITIONS: dict[tuple[TcpState, TcpEvent], TcpState] = {
    (_S.CLOSED, _E.OPEN): _S.SYN_SENT,
    (_S.CLOSED, _E.SYN): _S.SYN_RECEIVED,
    (_S.SYN_SENT, _E.SYN_ACK): _S.ESTABLISHED,
    (_S.SYN_SENT, _E.SYN): _S.SYN_RECEIVED,  # both open at once
    (_S.SYN_RECEIVED, _E.ACK_OF_SYN): _S.ESTABLISHED,
    (_S.SYN_RECEIVED, _E.CLOSE): _S.FIN_WAIT_1,
    (_S.SYN_RECEIVED, _E.FIN): _S.CLOSE_WAIT,
    (_S.ESTABLISHED, _E.CLOSE): _S.FIN_WAIT_1,
    (_S.ESTABLISHED, _E.FIN): _S.CLOSE_WAIT,
    (_S.FIN_WAIT_1, _E.ACK_OF_FIN): _S.FIN_WAIT_2,
    (_S.FIN_WAIT_1, _E.FIN): _S.CLOSING,
    (_S.FIN_WAIT_2, _E.FIN): _S.TIME_WAIT,
    (_S.CLOSING, _E.ACK_OF_FIN): _S.TIME_WAIT,
    (_S.CLOSE_WAIT, _E.CLOSE): _S.LAST_ACK,
    (_S.LAST_ACK, _E.ACK_OF_FIN): _S.CLOSED,
    (_S.SYN_SENT, _E.CLOSE): _S.CLOSED,
    **{(state, _E.RESET): _S.CLOSED for state in _S},
    **{(state, _E.EXPIRE): _S.CLOSED for state in _S},
}
"""What has no row changes nothing."""

MAY_SEND = (_S.ESTABLISHED, _S.CLOSE_WAIT)
SENDING = (_S.ESTABLISHED, _S.CLOSE_WAIT, _S.FIN_WAIT_1, _S.CLOSING, _S.LAST_ACK)
MAY_RECEIVE = (_S.ESTABLISHED, _S.FIN_WAIT_1, _S.FIN_WAIT_2)


@dataclass(frozen=True, slots=True)
class TcpOptions:
    """Settings of all connections of a stack; sizes in bytes, times in nanoseconds.

    least_rto_ns: RFC 6298 says a second, Linux has 200 ms.  tries: retransmissions without an answer before the
    connection is given up.
    """

    send_buffer: int = 1 << 19
    receive_buffer: int = 1 << 20
    least_rto_ns: int = 200 * MILLISECOND
    first_rto_ns: int = 1_000 * MILLISECOND
    most_rto_ns: int = 60_000 * MILLISECOND
    delayed_ack_ns: int = 1 * MILLISECOND
    time_wait_ns: int = 1_000 * MILLISECOND
    tries: int = 10
    initial_segments: int = 10
