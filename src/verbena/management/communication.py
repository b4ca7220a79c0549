"""The states of a connection being made and unmade, as one table; and the record of one.

IBA vol. 1, 12.9.5 (state diagrams of the active and the passive side) and 12.9.8, 12.10 (what each state does with each
message).  The table is complete: a message that it has no row for is dropped and counted, a call raises.  A row that
leads to its own state answers a duplicate, or lengthens a timer.

Two differences from the diagrams, both Linux': a queue pair is in RTS before its REP is sent, so that the passive side
needs no separate state for the first data that overtakes the RTU; and a rejected request stays in TIMEWAIT for a while,
so that its duplicates are rejected again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from verbena.clock import Timer
from verbena.errors import InvalidStateError
from verbena.management.negotiation import Offer
from verbena.wire import REP, REQ, CmMessage, IpCmHeader


class State(Enum):
    """Where a connection is; names as in IBA vol. 1, 12.9.5."""

    IDLE = auto()
    REQ_SENT = auto()
    MRA_REQ_RCVD = auto()  # active: the peer asked for more time
    REP_RCVD = auto()  # active: the queue pair is being brought up
    MRA_REP_SENT = auto()  # active: and that takes longer than the peer likes
    REQ_RCVD = auto()  # passive: the program has not decided yet
    MRA_REQ_SENT = auto()  # passive: and the peer was told so
    REP_SENT = auto()
    MRA_REP_RCVD = auto()  # passive: the peer asked for more time
    ESTABLISHED = auto()
    DREQ_SENT = auto()
    DREQ_RCVD = auto()  # the queue pair is being taken down
    TIMEWAIT = auto()


class Input(Enum):
    """What happens to a connection: calls, messages that come in, and the end of all retries or of a wait."""

    CONNECT = auto()
    ACCEPT = auto()
    REJECT = auto()
    READY = auto()  # the queue pair is up
    DISCONNECT = auto()
    RELEASE = auto()  # the queue pair is down
    REQ = auto()
    MRA = auto()
    REJ = auto()
    REP = auto()
    RTU = auto()
    DREQ = auto()
    DREP = auto()
    STALE = auto()  # the peer shows that it has forgotten the connection
    EXPIRE = auto()


_S, _I = State, Input

TRANSITIONS: dict[tuple[State, Input], State] = {
    # active side
    (_S.IDLE, _I.CONNECT): _S.REQ_SENT,
    (_S.REQ_SENT, _I.MRA): _S.MRA_REQ_RCVD,
    (_S.REQ_SENT, _I.REP): _S.REP_RCVD,
    (_S.REQ_SENT, _I.REJ): _S.IDLE,
    (_S.REQ_SENT, _I.EXPIRE): _S.IDLE,
    (_S.MRA_REQ_RCVD, _I.MRA): _S.MRA_REQ_RCVD,
    (_S.MRA_REQ_RCVD, _I.REP): _S.REP_RCVD,
    (_S.MRA_REQ_RCVD, _I.REJ): _S.IDLE,
    (_S.MRA_REQ_RCVD, _I.EXPIRE): _S.IDLE,
    (_S.REP_RCVD, _I.REP): _S.MRA_REP_SENT,
    (_S.REP_RCVD, _I.READY): _S.ESTABLISHED,
    (_S.REP_RCVD, _I.REJECT): _S.TIMEWAIT,
    (_S.REP_RCVD, _I.REJ): _S.TIMEWAIT,
    (_S.REP_RCVD, _I.STALE): _S.TIMEWAIT,
    (_S.MRA_REP_SENT, _I.REP): _S.MRA_REP_SENT,
    (_S.MRA_REP_SENT, _I.READY): _S.ESTABLISHED,
    (_S.MRA_REP_SENT, _I.REJECT): _S.TIMEWAIT,
    (_S.MRA_REP_SENT, _I.REJ): _S.TIMEWAIT,
    (_S.MRA_REP_SENT, _I.STALE): _S.TIMEWAIT,
    (_S.ESTABLISHED, _I.REP): _S.ESTABLISHED,  # the RTU was lost: again
    # passive side
    (_S.IDLE, _I.REQ): _S.REQ_RCVD,
    (_S.REQ_RCVD, _I.REQ): _S.MRA_REQ_SENT,
    (_S.REQ_RCVD, _I.ACCEPT): _S.REP_SENT,
    (_S.REQ_RCVD, _I.REJECT): _S.TIMEWAIT,
    (_S.REQ_RCVD, _I.REJ): _S.IDLE,
    (_S.REQ_RCVD, _I.STALE): _S.IDLE,
    (_S.MRA_REQ_SENT, _I.REQ): _S.MRA_REQ_SENT,
    (_S.MRA_REQ_SENT, _I.ACCEPT): _S.REP_SENT,
    (_S.MRA_REQ_SENT, _I.REJECT): _S.TIMEWAIT,
    (_S.MRA_REQ_SENT, _I.REJ): _S.IDLE,
    (_S.MRA_REQ_SENT, _I.STALE): _S.IDLE,
    (_S.REP_SENT, _I.REQ): _S.REP_SENT,  # the REP was lost: again
    (_S.REP_SENT, _I.MRA): _S.MRA_REP_RCVD,
    (_S.REP_SENT, _I.RTU): _S.ESTABLISHED,
    (_S.REP_SENT, _I.REJ): _S.TIMEWAIT,
    (_S.REP_SENT, _I.DREQ): _S.DREQ_RCVD,  # the RTU was lost, and the peer is through already
    (_S.REP_SENT, _I.EXPIRE): _S.TIMEWAIT,
    (_S.REP_SENT, _I.STALE): _S.TIMEWAIT,
    (_S.MRA_REP_RCVD, _I.REQ): _S.MRA_REP_RCVD,
    (_S.MRA_REP_RCVD, _I.MRA): _S.MRA_REP_RCVD,
    (_S.MRA_REP_RCVD, _I.RTU): _S.ESTABLISHED,
    (_S.MRA_REP_RCVD, _I.REJ): _S.TIMEWAIT,
    (_S.MRA_REP_RCVD, _I.DREQ): _S.DREQ_RCVD,
    (_S.MRA_REP_RCVD, _I.EXPIRE): _S.TIMEWAIT,
    (_S.MRA_REP_RCVD, _I.STALE): _S.TIMEWAIT,
    # both, from here to the end
    (_S.ESTABLISHED, _I.DISCONNECT): _S.DREQ_SENT,
    (_S.ESTABLISHED, _I.DREQ): _S.DREQ_RCVD,
    (_S.ESTABLISHED, _I.REJ): _S.TIMEWAIT,
    (_S.ESTABLISHED, _I.STALE): _S.DREQ_SENT,
    (_S.DREQ_RCVD, _I.DREQ): _S.DREQ_RCVD,
    (_S.DREQ_RCVD, _I.RELEASE): _S.TIMEWAIT,
    (_S.DREQ_SENT, _I.DREP): _S.TIMEWAIT,
    (_S.DREQ_SENT, _I.DREQ): _S.TIMEWAIT,  # both at once: answered, and that is all
    (_S.DREQ_SENT, _I.REJ): _S.TIMEWAIT,
    (_S.DREQ_SENT, _I.EXPIRE): _S.TIMEWAIT,
    (_S.TIMEWAIT, _I.REQ): _S.TIMEWAIT,  # rejected: again
    (_S.TIMEWAIT, _I.REP): _S.TIMEWAIT,  # rejected: again
    (_S.TIMEWAIT, _I.DREQ): _S.TIMEWAIT,  # the DREP was lost: again
    (_S.TIMEWAIT, _I.EXPIRE): _S.IDLE,
}

WAITING = {
    # states in which the last message is sent again
    _S.REQ_SENT,
    _S.MRA_REQ_RCVD,
    _S.REP_SENT,
    _S.MRA_REP_RCVD,
    _S.DREQ_SENT,
}
UNDECIDED = {_S.REQ_RCVD, _S.MRA_REQ_SENT}


class Event(Enum):
    """What a connection's owner is told."""

    REPLIED = auto()  # bring the queue pair up by `agreement`, then call `ready`, or `reject`
    ESTABLISHED = auto()
    REFUSED = auto()  # by the peer: see `reason` and `private_data`
    TIMED_OUT = auto()
    DISCONNECTED = auto()  # take the queue pair down, then call `release`
    ENDED = auto()


Notify = Callable[["Communication", Event], None]


@dataclass(eq=False, slots=True)
class Communication:
    """One connection as the connection manager sees it.  Read by its owner, changed by the manager alone."""

    remote: bytes  # the peer's GID
    service_id: int
    local_id: int
    transaction: int
    active: bool
    state: State = State.IDLE
    remote_id: int | None = None
    req: REQ | None = None
    rep: REP | None = None
    offer: Offer | None = None
    ip: IpCmHeader | None = None
    private_data: bytes = b""
    """What the peer's program sent along with REQ, REP or REJ, without the zeros that fill up the field."""
    reason: int = 0
    remote_qp: tuple[bytes, int, int] | None = None  # GID, GUID, number
    listening: object = None
    notify: Notify | None = None
    message: CmMessage | None = None  # the last one sent; sent again when it was lost
    retries: int = 0
    interval_ns: int = 0
    timer: Timer | None = None
    ticket: int = 0  # of the timer that counts

    def may(self, happens: Input) -> bool:
        """Is there a row in the table for it?"""
        return (self.state, happens) in TRANSITIONS

    def step(self, happens: Input) -> State:
        """Move on by the table; returns the state before.  Raises `InvalidStateError` where there is no row."""
        before = self.state
        if not self.may(happens):
            raise InvalidStateError(f"a connection in {before.name} cannot {happens.name.lower()}")
        self.state = TRANSITIONS[before, happens]
        return before
