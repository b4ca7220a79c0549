"""The part of a connection that moves bytes: windows, acknowledgements, the end of the stream.

Data go by one channel at a time, in one epoch.  What the peer has not acknowledged stays, so that it can be sent again
on another path; what comes twice for that reason is cut off by its offset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from verbena.clock import Clock, Timer
from verbena.errors import ClosedError, ConnectionLost, InvalidStateError
from verbena.team.member import Meter
from verbena.team.offload.channel import Channel
from verbena.team.offload.record import Kind, Record
from verbena.team.offload.states import (
    MILLISECOND,
    PASSING,
    TRANSITIONS,
    OffloadConfig,
    Path,
    SessionEvent,
    SessionState,
)
from verbena.team.offload.stream import ReceiveStream, SendStream


class Pump:
    """A byte stream over whatever channel there is.

    on_change: called when there is something to read, room to write, or the connection has ended.  error: what ended
    it.  counters: of the layer, shared by all connections of a host.
    """

    def __init__(self, clock: Clock, config: OffloadConfig, counters: Counter[str]) -> None:
        self.clock = clock
        self.config = config
        self.counters = counters
        self.state = SessionState.OPENING
        self.path = Path.UPLOAD
        self.epoch = 0
        self.channel: Channel | None = None
        self.error: Exception | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.tx = SendStream(config.send_buffer)
        self.rx = ReceiveStream(config.receive_buffer)
        self.meter = Meter(10 * MILLISECOND)
        self.bytes_by_path: Counter[Path] = Counter()
        self.opened_ns = clock.now()
        self.heard_ns = self.opened_ns
        self.active_ns = self.opened_ns
        self._limit = 0
        self._acked = 0
        self._told = 0
        self._ack_timer: Timer | None = None
        self._pumping = False

    # --- the program's side -------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self.state is not SessionState.CLOSED

    @property
    def is_established(self) -> bool:
        """Was it ever made?"""
        return self.state is not SessionState.OPENING and self.error is None

    @property
    def room(self) -> int:
        """Bytes that `write` takes now."""
        return self.tx.room if self.error is None and self.is_open else 0

    @property
    def readable(self) -> int:
        return len(self.rx)

    @property
    def at_end(self) -> bool:
        """Has the peer written everything, and was it read?"""
        return self.rx.ended and not len(self.rx)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take as much as there is room for; returns how many bytes.  Raises what ended the connection."""
        if self.error is not None:
            raise self.error
        if self.tx.closed or not self.is_open:
            raise ClosedError("this connection was closed for writing")
        taken = self.tx.write(data)
        if self.state in PASSING:
            self.pump()
        return taken

    def read(self, most: int = 1 << 30, *, some: bool = False) -> bytes:
        """At most so many bytes of what has come; b"" if there is nothing.  Raises what broke the connection.

        some: it may be less than what has come, where that saves copying.
        """
        if not len(self.rx) and self.error is not None:
            raise self.error
        data = self.rx.read_some(most) if some else self.rx.read(most)
        if data and self.rx.limit - self._told >= self.config.receive_buffer // 4:
            self.acknowledge()
        return data

    def close_writing(self) -> None:
        """Nothing more is written; what was is still delivered."""
        if not self.tx.closed and self.is_open:
            self.tx.close()
            if self.state in PASSING:
                self.pump()

    # --- sending ------------------------------------------------------------------------------------------

    def apply(self, event: SessionEvent) -> None:
        """Take an event; raises `InvalidStateError` for one that the state does not know."""
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise InvalidStateError(f"a connection in {self.state.name} cannot take {event.name}")
        self.state = following

    def say(self, kind: Kind, channel: Channel | None = None, **fields: object) -> None:
        """Send a record with the present acknowledgement."""
        channel = channel or self.channel
        if channel is None or not channel.is_up:
            return
        fields.setdefault("epoch", self.epoch)
        fields.setdefault("ack", self.rx.expected)
        record = Record(kind, limit=self.rx.limit, **fields)  # type: ignore[arg-type]
        self._acked, self._told = self.rx.expected, self.rx.limit
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        channel.send(record)

    def pump(self) -> None:
        """Send what the window and the channel have room for."""
        if self._pumping or self.state not in PASSING:
            return
        self._pumping = True
        try:
            while self.state in PASSING and self.channel is not None and self._one(self.channel):
                pass
        finally:
            self._pumping = False

    def _one(self, channel: Channel) -> bool:
        """Send one record, if one can be sent."""
        tx = self.tx
        window = self._limit - tx.following
        if tx.unsent:
            size = min(tx.unsent, window, channel.largest, channel.room)
            if size <= 0 or (size < tx.unsent and size < channel.largest // 4 and tx.following > tx.base):
                return False
            offset = tx.following
            data = tx.take(size)
            self.bytes_by_path[channel.path] += size
            self._count(size)
            self.say(Kind.DATA, offset=offset, body=data)
            return True
        if tx.fin_due and channel.room:
            self.say(Kind.FIN, offset=tx.take_fin())
            return True
        return False

    def _count(self, size: int) -> None:
        self.active_ns = self.clock.now()
        self.meter.count(size, self.active_ns)

    def acknowledge(self) -> None:
        """Tell the peer what has come, and how much room there is."""
        if self.state in PASSING:
            self.say(Kind.ACK)

    def _acknowledge_soon(self) -> None:
        if self.rx.expected - self._acked >= self.config.receive_buffer // 8:
            self.acknowledge()
        elif self._ack_timer is None:
            self._ack_timer = self.clock.call_at(self.clock.now() + self.config.ack_ns, self._ack_due)

    def _ack_due(self) -> None:
        self._ack_timer = None
        if self.rx.expected > self._acked:
            self.acknowledge()

    # --- receiving ----------------------------------------------------------------------------------------

    def take_ack(self, record: Record) -> None:
        """The acknowledgement and the window of a record; both only grow."""
        if not self.tx.acknowledge(record.ack):
            self.break_off("acknowledges what was never sent")
            return
        self._limit = max(self._limit, record.limit)

    def take_data(self, record: Record) -> None:
        """DATA or FIN, in the present epoch."""
        before = self.rx.expected
        if record.kind is Kind.DATA:
            good = self.rx.put(record.offset, bytes(record.body))
        else:
            good = self.rx.put_end(record.offset)
        if not good:
            self.break_off(f"sends bytes at {record.offset}, where {before} was due")
            return
        self._count(len(record.body))
        if record.kind is Kind.FIN:
            self.acknowledge()
        else:
            self._acknowledge_soon()

    def break_off(self, why: str) -> None:
        """The peer does what it must not: the connection ends, with one clear error."""
        self.counters["peer.violation"] += 1
        self.say(Kind.RESET)
        self.end(ConnectionLost(f"the peer {why}: the connection was broken off"))

    def end(self, error: Exception | None) -> None:
        """It is over."""
        raise NotImplementedError

    def stop_ack(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
