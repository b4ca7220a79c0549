"""TCP, byte for byte: handshake, retransmission, flow and congestion control (RFC 9293, 6298, 5681, 6582, 7323).

Left out: urgent data, selective acknowledgements, timestamps, Nagle's algorithm.  A `TcpConnection` is handed a way to
send segments, and told of those that come; it never waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from verbena.clock import Clock, Timer
from verbena.errors import ConnectionLost, ConnectionRefused, ConnectionTimeout, InvalidStateError
from verbena.team.stack.tcp_congestion import MASK, Congestion, RoundTrip, minus
from verbena.team.stack.tcp_states import (
    MAY_RECEIVE,
    MAY_SEND,
    SENDING,
    TRANSITIONS,
    TcpEvent,
    TcpOptions,
    TcpState,
)
from verbena.wire.tcp import TcpFlag, TcpSegment

LARGEST_WINDOW = 0xFFFF
SCALE = 7
FIN, SYN, RST, PSH, ACK = TcpFlag.FIN, TcpFlag.SYN, TcpFlag.RST, TcpFlag.PSH, TcpFlag.ACK

Send = Callable[[int, int, int, int, bytes, int | None, int | None], None]
"""seq, ack, flags, window field, data, mss, scale."""


class TcpConnection:
    """One end.

    on_change: called when there is something to read, room to write, or another state.  error: what ended it, or None.
    counters: of the stack, ``tcp.*``.
    """

    def __init__(
        self,
        clock: Clock,
        send: Send,
        mss: int,
        initial: int,
        options: TcpOptions,
        counters: Counter[str],
        forget: Callable[[], None],
    ) -> None:
        self.clock = clock
        self.options = options
        self.counters = counters
        self.state = TcpState.CLOSED
        self.error: Exception | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.mss = mss
        self._send = send
        self._forget = forget
        # Sending: _buffer begins at _una; what is from _next on was not sent (again) yet.
        self._una = self._next = self._most = initial
        self._buffer = bytearray()
        self._fin = False
        self._window = 0
        self._scale_out = self._scale_in = 0
        self._congestion = Congestion(mss, options.initial_segments)
        self._round_trip = RoundTrip(options)
        self._timed: tuple[int, int] | None = None
        self._tries = 0
        self._timer: Timer | None = None
        # Receiving: _early holds what came before its turn.
        self._expected = 0
        self._ready = bytearray()
        self._early: dict[int, bytes] = {}
        self._early_fin: int | None = None
        self._unacked = 0
        self._ack_timer: Timer | None = None
        self._told = 0

    # --- what the program does ----------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Can anything still come or go?"""
        return self.state not in (TcpState.CLOSED, TcpState.TIME_WAIT)

    @property
    def is_established(self) -> bool:
        return self.state not in (TcpState.CLOSED, TcpState.SYN_SENT, TcpState.SYN_RECEIVED)

    @property
    def at_end(self) -> bool:
        """Has the peer sent everything, and was it read?"""
        over = self.state not in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED, *MAY_RECEIVE)
        return over and not self._ready

    @property
    def room(self) -> int:
        """Bytes that `write` takes now."""
        if self.state not in (*MAY_SEND, TcpState.SYN_SENT, TcpState.SYN_RECEIVED) or self._fin:
            return 0
        return max(0, self.options.send_buffer - len(self._buffer))

    @property
    def unacknowledged(self) -> int:
        """Bytes that the peer has not acknowledged."""
        return len(self._buffer)

    @property
    def readable(self) -> int:
        """Bytes that `read` gives now."""
        return len(self._ready)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take as much as there is room for; returns how many bytes.  Raises what ended the connection."""
        if self.error is not None:
            raise self.error
        if self._fin or self.state is TcpState.CLOSED:
            raise InvalidStateError("this connection was closed for sending")
        taken = min(len(data), self.room)
        self._buffer += data[:taken]
        self._output()
        return taken

    def read(self, most: int = 1 << 30) -> bytes:
        """At most so many bytes of what has come; b"" if there is nothing.  Raises what broke the connection."""
        if not self._ready and self.error is not None:
            raise self.error
        data = bytes(self._ready[:most])
        del self._ready[:most]
        if (
            data
            and self.is_open
            and self._receive_window() - self._told >= 2 * self.mss
            and self._told < 2 * self.mss
        ):
            self._acknowledge()  # the window was all but shut
        return data

    def connect(self) -> None:
        """Open actively."""
        self._apply(TcpEvent.OPEN)
        self._say(self._una, SYN, b"", with_options=True)
        self._next = self._most = self._una + 1 & MASK
        self._timed = (self._next, self.clock.now())
        self._set_timer()

    def close(self) -> None:
        """No more is written; what was written is still sent."""
        if self._fin or self.state is TcpState.CLOSED:
            return
        if self.state is TcpState.SYN_SENT:
            self._end(None, TcpEvent.CLOSE)
            return
        self._fin = True
        self._apply(TcpEvent.CLOSE)
        self._output()

    def abort(self) -> None:
        """End it at once; the peer is told by a reset."""
        if self.state is not TcpState.CLOSED:
            if self.is_open and self.state is not TcpState.SYN_SENT:
                self._send(self._next, self._expected, RST | ACK, 0, b"", None, None)
            self._end(ConnectionLost("this end has given up the connection"), TcpEvent.RESET)

    # --- segments that come -------------------------------------------------------------------------------

    def accept(self, segment: TcpSegment) -> None:
        """Open passively: a SYN came."""
        self._apply(TcpEvent.SYN)
        self._take_syn(segment)
        self._say(self._una, SYN | ACK, b"", with_options=True)
        self._next = self._most = self._una + 1 & MASK
        self._set_timer()

    def _take_syn(self, segment: TcpSegment) -> None:
        self._expected = segment.seq + 1 & MASK
        self.mss = min(self.mss, segment.mss or 536)
        self._congestion = Congestion(self.mss, self.options.initial_segments)
        if segment.scale is not None:
            self._scale_out, self._scale_in = segment.scale, SCALE
        self._window = segment.window

    def receive(self, segment: TcpSegment) -> None:
        """A segment with a right checksum came (RFC 9293, 3.10.7)."""
        if self.state is TcpState.SYN_SENT:
            self._receive_syn_sent(segment)
            return
        if not self._acceptable(segment):
            self.counters["tcp.drop.window"] += 1
            if not segment.flags & RST:
                self._acknowledge()
            return
        if segment.flags & RST:
            if segment.seq == self._expected:  # RFC 5961, 3.2: exactly
                self._end(ConnectionLost("the peer has reset the connection"), TcpEvent.RESET)
            else:
                self._acknowledge()
            return
        if segment.flags & SYN:
            if self.state is TcpState.SYN_RECEIVED:
                self._say(self._una, SYN | ACK, b"", with_options=True)
            else:
                self._acknowledge()
            return
        if not segment.flags & ACK:
            return
        if not self._take_ack(segment):
            return
        if segment.data or segment.flags & FIN:
            self._take_data(segment)
        self._output()

    def _receive_syn_sent(self, segment: TcpSegment) -> None:
        answers = segment.flags & ACK and segment.ack == self._most
        if segment.flags & RST:
            if answers:
                self._end(ConnectionRefused("nobody listens there"), TcpEvent.RESET)
        elif segment.flags & SYN and answers:
            self._take_syn(segment)
            self._una = segment.ack
            self._sample()
            self._tries = 0
            self._apply(TcpEvent.SYN_ACK)
            self._acknowledge()
            self._set_timer()
            self.on_change()
            self._output()

    def _acceptable(self, segment: TcpSegment) -> bool:
        """RFC 9293, 3.10.7.4: does it begin or end in the window?"""
        window = max(self._receive_window(), 1)
        length = len(segment.data) + bool(segment.flags & FIN) + bool(segment.flags & SYN)
        first = minus(segment.seq, self._expected)
        return 0 <= first < window or 0 <= first + max(length, 1) - 1 < window or first == window == 0

    def _take_ack(self, segment: TcpSegment) -> bool:
        """False: nothing else of the segment may be looked at."""
        if minus(segment.ack, self._most) > 0:
            self.counters["tcp.drop.ack"] += 1
            self._acknowledge()
            return False
        if self.state is TcpState.SYN_RECEIVED:
            if minus(segment.ack, self._una) <= 0:
                return False
            self._una = self._una + 1 & MASK
            self._tries = 0
            self._round_trip.restore()
            self._window = segment.window << self._scale_out
            self._apply(TcpEvent.ACK_OF_SYN)
            self._set_timer()
            self.on_change()
        moved = minus(segment.ack, self._una)
        if moved > 0:
            self._advance(segment.ack, moved)
        elif (
            moved == 0
            and not segment.data
            and not segment.flags & FIN
            and self._next != self._una
            and segment.window << self._scale_out == self._window
        ):
            flight = minus(self._next, self._una)
            if self._congestion.duplicate(flight, self._most):
                self.counters["tcp.fast_retransmissions"] += 1
                self._retransmit()
        if moved >= 0:
            self._window = segment.window << self._scale_out
        return self.state is not TcpState.CLOSED

    def _advance(self, ack: int, moved: int) -> None:
        """New bytes were acknowledged."""
        data = min(moved, len(self._buffer))
        del self._buffer[:data]
        self._una = ack
        if minus(self._next, ack) < 0:
            self._next = ack
        self._tries = 0
        if self._timed is not None and minus(ack, self._timed[0]) >= 0:
            self._sample()
        else:
            self._round_trip.restore()
        if self._congestion.acknowledged(ack, data):
            self._retransmit()
        if self._fin and moved > data:
            self._apply(TcpEvent.ACK_OF_FIN)
            if self.state is TcpState.CLOSED:
                self._end(None, TcpEvent.ACK_OF_FIN)
                return
        self._set_timer()
        self.on_change()

    def _take_data(self, segment: TcpSegment) -> None:
        if self.state not in MAY_RECEIVE:
            self._acknowledge()  # a FIN that was sent again
            return
        data, at = segment.data, segment.seq
        if segment.flags & FIN:
            self._early_fin = at + len(data) & MASK
        before = minus(self._expected, at)
        if before > 0:
            data, at = data[before:], self._expected
        room = self._receive_window() - minus(at, self._expected)
        data = data[: max(0, room)]
        in_order = at == self._expected
        if data and len(self._early.get(at, b"")) < len(data):
            self._early[at] = data
        self._gather()
        if self._early_fin == self._expected:
            self._early_fin = None
            self._expected = self._expected + 1 & MASK
            self._apply(TcpEvent.FIN)
            self._acknowledge()
            if self.state is TcpState.TIME_WAIT:
                self._wait_a_while()
            self.on_change()
            return
        self._unacked += 1
        if not in_order or self._early or self._unacked >= 2:
            self._acknowledge()
        elif self._ack_timer is None:
            when = self.clock.now() + self.options.delayed_ack_ns
            self._ack_timer = self.clock.call_at(when, self._acknowledge)
        self.on_change()

    def _gather(self) -> None:
        """Take what is in order now."""
        while self._early:
            data = self._early.pop(self._expected, None)
            if data is None:
                at = min(self._early, key=lambda each: minus(each, self._expected))
                before = minus(self._expected, at)
                if before <= 0:
                    return
                data = self._early.pop(at)[before:]
                if not data:
                    continue
            self._ready += data
            self._expected = self._expected + len(data) & MASK

    # --- segments that go ---------------------------------------------------------------------------------

    def _receive_window(self) -> int:
        return max(0, self.options.receive_buffer - len(self._ready))

    def _say(self, seq: int, flags: int, data: bytes, with_options: bool = False) -> None:
        self._told = min(self._receive_window(), LARGEST_WINDOW << (0 if with_options else self._scale_in))
        field = self._told if with_options else self._told >> self._scale_in
        mss, scale = (self.mss, SCALE) if with_options else (None, None)
        self._send(seq, self._expected, flags, field, data, mss, scale)
        self._unacked = 0
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None

    def _acknowledge(self) -> None:
        if self.state not in (TcpState.CLOSED, TcpState.SYN_SENT):
            self._say(self._next, ACK, b"")

    def _output(self) -> None:
        """Send what the windows allow."""
        if self.state not in SENDING:
            return
        while True:
            sent = minus(self._next, self._una)
            if sent < 0 or sent > len(self._buffer):
                return  # everything, and the FIN
            usable = min(self._window, self._congestion.window) - sent
            size = min(self.mss, len(self._buffer) - sent, usable)
            last = self._fin and sent + max(size, 0) == len(self._buffer)
            if size <= 0 and not (last and sent == len(self._buffer)):
                break
            if size < self.mss and size < len(self._buffer) - sent and sent:
                break  # no small segment while more of the window will open
            self._emit(sent, max(size, 0), last)
            if last:
                break
        if self._timer is None and (self._una != self._most or self._buffer or self._fin):
            self._set_timer()

    def _emit(self, offset: int, size: int, last: bool) -> None:
        data = bytes(self._buffer[offset : offset + size])
        seq = self._una + offset & MASK
        end = seq + size + last & MASK
        if minus(end, self._most) > 0:
            if self._timed is None and size:
                self._timed = (end, self.clock.now())
            self._most = end
        else:
            self.counters["tcp.retransmissions"] += 1
        self._next = end
        self._say(seq, ACK | (FIN if last else 0) | (PSH if size else 0), data)

    def _retransmit(self) -> None:
        """The first segment that is not acknowledged, once more."""
        size = min(self.mss, len(self._buffer))
        last = self._fin and size == len(self._buffer)
        self._timed = None
        if not size and not last:
            return
        self.counters["tcp.retransmissions"] += 1
        data = bytes(self._buffer[:size])
        self._say(self._una, ACK | (FIN if last else 0) | (PSH if size else 0), data)

    # --- timers -------------------------------------------------------------------------------------------

    def _sample(self) -> None:
        """A round trip was measured (RFC 6298, 2)."""
        if self._timed is None:
            return
        took = max(1, self.clock.now() - self._timed[1])
        self._timed = None
        self._round_trip.sample(took)

    def _set_timer(self) -> None:
        if self.state is TcpState.TIME_WAIT:
            return  # its timer runs already
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._una != self._most or self._buffer or (self._fin and self.state in SENDING):
            self._timer = self.clock.call_at(self.clock.now() + self._round_trip.timeout, self._expired)

    def _expired(self) -> None:
        """RFC 6298, 5: go back to the first byte that is not acknowledged; probes a shut window, too."""
        self._timer = None
        self._tries += 1
        if self._tries > self.options.tries:
            self._end(ConnectionTimeout("the peer no longer answers"), TcpEvent.EXPIRE)
            return
        self.counters["tcp.timeouts"] += 1
        self._round_trip.back_off()
        self._timed = None
        if self.state is TcpState.SYN_SENT:
            self._say(self._una, SYN, b"", with_options=True)
        elif self.state is TcpState.SYN_RECEIVED:
            self._say(self._una, SYN | ACK, b"", with_options=True)
        else:
            lost = bool(self._window) or self._una != self._next
            self._congestion.timed_out(minus(self._next, self._una), lost)
            self._next = self._una
            if self._window:
                self._output()
            else:
                self._emit(0, min(1, len(self._buffer)), self._fin and len(self._buffer) <= 1)
        self._set_timer()

    def _wait_a_while(self) -> None:
        for timer in (self._timer, self._ack_timer):
            if timer is not None:
                timer.cancel()
        when = self.clock.now() + self.options.time_wait_ns
        self._timer = self.clock.call_at(when, lambda: self._end(None, TcpEvent.EXPIRE))

    def _apply(self, event: TcpEvent) -> None:
        self.state = TRANSITIONS.get((self.state, event), self.state)
        if self.state is TcpState.TIME_WAIT and event is TcpEvent.ACK_OF_FIN:
            self._wait_a_while()

    def _end(self, error: Exception | None, event: TcpEvent) -> None:
        self._apply(event)
        for timer in (self._timer, self._ack_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._ack_timer = None
        if self.error is None:
            self.error = error
        self._forget()
        self.on_change()
