"""Where a connection is, as one table; the paths; the settings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto

MILLISECOND = 1_000_000


class Path(IntEnum):
    """Which way the bytes go (document 004, paragraphs 23 to 33)."""

    UPLOAD = 1
    """Protocol stack, R-virtual miniport, RDMA card."""
    OFFLOAD = 2
    """User-mode driver, RDMA card."""
    TEAM = 3
    """Protocol stack, T-virtual miniport, any card of the team."""


class SessionState(Enum):
    """Where a connection is."""

    OPENING = auto()
    ESTABLISHED = auto()
    """Data pass, on one path."""
    PREPARING = auto()
    """Data pass on one path, while another one is made and tried."""
    SWITCHING = auto()
    """Nothing more is sent on the old path, and nothing yet on the new one."""
    RECOVERING = auto()
    """The path has failed, and another one is sought."""
    CLOSED = auto()


class SessionEvent(Enum):
    """What happens to it."""

    OPENED = auto()
    PREPARE = auto()
    GIVE_UP = auto()
    """The new path could not be had."""
    SWITCH = auto()
    SWITCHED = auto()
    FAIL = auto()
    RESUMED = auto()
    END = auto()


_S, _E = SessionState, SessionEvent

TRANSITIONS: dict[tuple[SessionState, SessionEvent], SessionState] = {
    (_S.OPENING, _E.OPENED): _S.ESTABLISHED,
    (_S.ESTABLISHED, _E.PREPARE): _S.PREPARING,
    (_S.PREPARING, _E.GIVE_UP): _S.ESTABLISHED,
    (_S.PREPARING, _E.SWITCH): _S.SWITCHING,
    (_S.PREPARING, _E.SWITCHED): _S.ESTABLISHED,  # the side that did not ask for it switches at once
    (_S.SWITCHING, _E.SWITCHED): _S.ESTABLISHED,
    (_S.ESTABLISHED, _E.FAIL): _S.RECOVERING,
    (_S.PREPARING, _E.FAIL): _S.RECOVERING,
    (_S.SWITCHING, _E.FAIL): _S.RECOVERING,
    (_S.RECOVERING, _E.RESUMED): _S.ESTABLISHED,
    # The peer found out first.
    (_S.ESTABLISHED, _E.RESUMED): _S.ESTABLISHED,
    (_S.PREPARING, _E.RESUMED): _S.ESTABLISHED,
    (_S.SWITCHING, _E.RESUMED): _S.ESTABLISHED,
    **{(state, _E.END): _S.CLOSED for state in _S},
}
"""What has no row is a mistake of ours, and raises."""

PASSING = (_S.ESTABLISHED, _S.PREPARING)
"""Data may be sent."""


@dataclass(frozen=True, slots=True)
class OffloadConfig:
    """Settings of the sockets-direct layer; times in nanoseconds, sizes in bytes.

    send_buffer, receive_buffer: of each connection.  slots, slot_size: buffers of a queue pair in each direction.
    most_queue_pairs: of a card; most_connections: of a host, more are refused.
    stall_ns: bytes are under way and nothing is heard: the path has failed.  keepalive_ns: of idle connections.
    move_ns: within which a new path has to work.  attempt_ns: for one attempt to resume; give_up_ns: for all.
    evaluate_ns: how often the policy is asked.  hold_ns: after a failed move no other one for so long, and twice as
    long after each further one.  linger_ns: how long a closed connection still answers.
    tcp_in_flight: bytes that TCP is given ahead of its acknowledgements; a move has to wait for them.
    timeout_code: of queue pairs (4.096 us * 2^n), with seven retries.
    """

    service_port: int = 4792
    send_buffer: int = 1 << 20
    receive_buffer: int = 1 << 20
    slots: int = 16
    slot_size: int = 16_384
    most_queue_pairs: int = 256
    most_connections: int = 16_384
    stall_ns: int = 250 * MILLISECOND
    keepalive_ns: int = 500 * MILLISECOND
    move_ns: int = 100 * MILLISECOND
    attempt_ns: int = 50 * MILLISECOND
    give_up_ns: int = 30_000 * MILLISECOND
    evaluate_ns: int = 5 * MILLISECOND
    hold_ns: int = 50 * MILLISECOND
    linger_ns: int = 1_000 * MILLISECOND
    ack_ns: int = 1 * MILLISECOND
    timeout_code: int = 8
    tcp_in_flight: int = 1 << 18
