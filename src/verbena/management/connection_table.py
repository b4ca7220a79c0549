"""The connections of an adapter: found by their numbers, timed, and forgotten when they have ended.

What `connection_manager` stands on.  Nothing here decides what a message means.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from verbena.clock import Clock
from verbena.management import negotiation
from verbena.management.communication import WAITING, Communication, Event, Input, State
from verbena.management.negotiation import timeout_ns
from verbena.wire import REJ, CmMessage, MessageRejected, RejectReason, cm_mad

if TYPE_CHECKING:
    from random import Random

MOST_ENDED = 4096  # connections in TIMEWAIT; beyond it the oldest are forgotten early
LONGEST_TIMEWAIT = 21  # code: 8.6 s

Send = Callable[[bytes, bytes], None]


@dataclass(eq=False, slots=True)
class Listening:
    """A service that may be connected to; at most `backlog` requests wait for its program's decision."""

    service_id: int
    backlog: int
    notify: Callable[[Communication], None]
    undecided: set[Communication] = field(default_factory=set)


class ConnectionTable:
    """Connections, their timers, and what is to be done outside of the lock."""

    def __init__(
        self,
        gid: bytes,
        guid: int,
        mtu: int,
        *,
        clock: Clock,
        random: Random,
        send: Send,
        lock: AbstractContextManager[object],
        pkey: int = 0xFFFF,
    ) -> None:
        self.gid = gid
        self.guid = guid
        self.mtu = mtu
        self.pkey = pkey
        self.counters: Counter[str] = Counter()
        self._clock = clock
        self._random = random
        self._transmit = send
        self._lock = lock
        self._outbox: deque[Callable[[], None]] = deque()
        self._emptying = False
        self._services: dict[int, Listening] = {}
        self._connections: dict[int, Communication] = {}
        self._peers: dict[tuple[bytes, int], Communication] = {}
        self._remote_qps: dict[tuple[bytes, int, int], Communication] = {}
        self._ended: OrderedDict[Communication, None] = OrderedDict()
        self._open = True

    @property
    def known(self) -> int:
        """Connections that are known, in whatever state."""
        return len(self._connections)

    # --- outside of the lock ------------------------------------------------------------------------------

    @contextmanager
    def _work(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        finally:
            self._empty_outbox()

    def _empty_outbox(self) -> None:
        while True:
            with self._lock:
                if self._emptying or not self._outbox:
                    return
                self._emptying = True
                effect = self._outbox.popleft()
            try:
                effect()
            finally:
                self._emptying = False

    def _tell(self, comm: Communication, event: Event) -> None:
        notify = comm.notify
        if notify is not None:
            self._outbox.append(lambda: notify(comm, event))

    def _send(self, remote: bytes, message: CmMessage, transaction: int) -> None:
        self.counters[f"sent.{type(message).__name__.lower()}"] += 1
        data = cm_mad(message, transaction).pack()
        self._outbox.append(lambda: self._transmit(remote, data))

    def _say(self, comm: Communication, message: CmMessage) -> None:
        comm.message = message
        self._send(comm.remote, message, comm.transaction)

    # --- time ---------------------------------------------------------------------------------------------

    def _set_timer(self, comm: Communication, wait_ns: int) -> None:
        self._stop_timer(comm)
        ticket = comm.ticket
        comm.timer = self._clock.call_at(self._clock.now() + wait_ns, lambda: self._rang(comm, ticket))

    def _stop_timer(self, comm: Communication) -> None:
        # A timer may have rung already, and its call be waiting for the lock: it finds its ticket void.
        comm.ticket += 1
        if comm.timer is not None:
            comm.timer.cancel()
            comm.timer = None

    def _rang(self, comm: Communication, ticket: int) -> None:
        with self._work():
            if comm.ticket != ticket:
                return
            if comm.state in WAITING and comm.retries > 0 and comm.message is not None:
                comm.retries -= 1
                self.counters["retries"] += 1
                self._send(comm.remote, comm.message, comm.transaction)
                self._set_timer(comm, comm.interval_ns)
            elif comm.may(Input.EXPIRE):
                self._expire(comm)

    def _expire(self, comm: Communication) -> None:
        """All retries are over, or a wait is."""
        before = comm.step(Input.EXPIRE)
        if before is State.TIMEWAIT:
            self._forget(comm)
            return
        if before is State.DREQ_SENT:
            self._linger(comm)
            self._tell(comm, Event.ENDED)
            return
        rejected = MessageRejected.REQ if comm.active else MessageRejected.REP
        self._say(
            comm,
            self._rejection(comm, rejected, RejectReason.TIMEOUT, info=self.guid.to_bytes(8, "big")),
        )
        if comm.state is State.IDLE:
            self._forget(comm)
        else:
            self._linger(comm)
        self._tell(comm, Event.TIMED_OUT)

    def _linger(self, comm: Communication) -> None:
        """Keep an ended connection until no packet of it can be on its way (TIMEWAIT: 12.9.8.4)."""
        ack = negotiation.ack_timeout(negotiation.PACKET_LIFETIME, negotiation.ACK_DELAY)
        if comm.req is not None and not comm.active:
            ack = min(max(ack, comm.req.primary_local_ack_timeout), LONGEST_TIMEWAIT)
        self._set_timer(comm, timeout_ns(ack))
        self._ended[comm] = None
        if len(self._ended) > MOST_ENDED:
            self._forget(next(iter(self._ended)))

    # --- in and out ---------------------------------------------------------------------------------------

    def _decided(self, comm: Communication) -> None:
        if isinstance(comm.listening, Listening):
            comm.listening.undecided.discard(comm)

    def _rejection(
        self,
        comm: Communication,
        rejected: MessageRejected,
        reason: int,
        info: bytes = b"",
        private: bytes = b"",
    ) -> REJ:
        return REJ(
            local_comm_id=comm.local_id,
            remote_comm_id=comm.remote_id or 0,
            message=rejected,
            info_length=len(info),
            reason=reason,
            info=info,
            private_data=private,
        )

    def _forget(self, comm: Communication) -> None:
        self._stop_timer(comm)
        comm.state = State.IDLE
        self._connections.pop(comm.local_id, None)
        self._ended.pop(comm, None)
        if comm.remote_id is not None and self._peers.get((comm.remote, comm.remote_id)) is comm:
            del self._peers[comm.remote, comm.remote_id]
        self._disown_qp(comm)

    def _disown_qp(self, comm: Communication) -> None:
        if comm.remote_qp is not None and self._remote_qps.get(comm.remote_qp) is comm:
            del self._remote_qps[comm.remote_qp]

    def _new_id(self) -> int:
        """A number for a connection: random, so that nobody off the path can guess it."""
        while True:
            made = self._random.getrandbits(32)
            if made and made not in self._connections:
                return made
