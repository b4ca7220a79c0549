"""A TCP model in virtual time: what decides how long flows take when frames are lost.

Modelled: segments of one size, cumulative and selective acknowledgements (RFC 2018) for every segment, loss detection
by what was delivered later (three transmissions; RFC 8985 without its reordering timer), a retransmission timer with a
minimum and exponential back-off (RFC 6298), tail loss probe, congestion control, explicit congestion notification, the
receiver's window.  Not modelled: connection set-up and end (flows begin established, with the path's round trip known),
delayed acknowledgements, pacing, reordering.  Segments carry numbers and no payload; frames have the true length.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from verbena.clock import Clock, Timer
from verbena.errors import InvalidAttributeError
from verbena.vswitch.congestion import control

MSS = 1448
HEADERS = 66  # Ethernet 14, IPv4 20, TCP 20 with 12 of time stamps
DATA, ACK = 0, 1
_SEGMENT = struct.Struct("!IBQIBB")
_RANGE = struct.Struct("!II")
MOST_RANGES = 3
DUPLICATES = 3
PROBE_FLOOR_NS = 2_000_000
MOST_RTO_NS = 120 * 10**9


class Stack(Protocol):
    """The host that a flow's end sits on."""

    def transmit(self, peer: str, body: bytes, length: int) -> bool:
        """Send a segment; False: the card is full, the host will call `Sender.more`."""


class Segment:
    """One that was sent and is not acknowledged."""

    __slots__ = ("end", "lost", "number", "sacked", "sent_ns", "seq", "tries")

    def __init__(self, seq: int, end: int) -> None:
        self.seq, self.end = seq, end
        self.number = self.sent_ns = self.tries = 0
        self.lost = self.sacked = False


class Sender:
    """The sending end of a flow of `size` bytes.  on_done: called when all of it is acknowledged."""

    def __init__(
        self,
        clock: Clock,
        stack: Stack,
        flow: int,
        peer: str,
        size: int,
        *,
        congestion: str = "cubic",
        min_rto_ns: int = 200_000_000,
        rtt_ns: int = 100_000,
        probes: bool = True,
        window: int = 1 << 22,
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        if not 1 <= size < 1 << 32:
            raise InvalidAttributeError(f"a flow of {size} bytes; 1 to 2^32 - 1 can be numbered")
        self.flow, self.peer, self.size = flow, peer, size
        self.control = control(congestion, MSS)
        self.retransmitted = self.timeouts = self.probed = 0
        self.done = False
        self._clock, self._stack, self._on_done = clock, stack, on_done
        self._min_rto, self._probes, self._room = min_rto_ns, probes, window
        self._srtt, self._rttvar, self._backoff = float(rtt_ns), rtt_ns / 2, 0
        self._una = self._next = 0
        self._segments: list[Segment] = []
        self._number = self._delivered = 0
        self._recover: int | None = None
        self._probing = False
        self._timer: Timer | None = None

    # --- sending ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to send."""
        self.more()

    def more(self) -> None:
        """Send what the windows allow."""
        if self.done:
            return
        sent = False
        while True:
            flight = sum(s.end - s.seq for s in self._segments if not s.lost and not s.sacked)
            if flight and flight + MSS > self.control.window:
                break
            segment = next((s for s in self._segments if s.lost and not s.sacked), None)
            new = segment is None
            if segment is None:
                if self._next >= self.size or self._next - self._una + MSS > self._room:
                    break
                segment = Segment(self._next, min(self._next + MSS, self.size))
            if not self._transmit(segment):
                break
            sent = True
            if new:
                self._segments.append(segment)
                self._next = segment.end
        if sent or self._timer is None:
            self._arm()

    def _transmit(self, segment: Segment) -> bool:
        length = segment.end - segment.seq
        body = _SEGMENT.pack(self.flow, DATA, segment.seq, length, self.control.ecn, 0)
        if not self._stack.transmit(self.peer, body, length + HEADERS):
            return False
        self._number += 1
        segment.number, segment.sent_ns = self._number, self._clock.now()
        segment.lost = False
        segment.tries += 1
        self.retransmitted += segment.tries > 1
        return True

    # --- acknowledgements ---------------------------------------------------------------------------------------

    def acknowledged(self, upto: int, marked: bool, ranges: list[tuple[int, int]], window: int) -> None:
        """An acknowledgement came.  ranges: what the receiver has beyond `upto`; window: its room from there on."""
        if self.done or upto > self._next:
            return
        self._room = window
        now = self._clock.now()
        came, sample = 0, None
        for s in self._segments:
            held = s.end <= upto or any(low <= s.seq and s.end <= high for low, high in ranges)
            if held and not s.sacked:
                s.sacked = True
                came += s.end - s.seq
                self._delivered = max(self._delivered, s.number)
                if s.tries == 1:  # Karn: nothing is learned from what was sent twice
                    sample = now - s.sent_ns
        if upto > self._una:
            self._una = upto
            self._backoff = 0
            self._probing = False
        self._segments = [s for s in self._segments if s.end > upto]
        if sample is not None:
            self._measure(sample)
        if self._una >= self.size:
            self._finish()
            return
        if self._recover is not None and self._una >= self._recover:
            self._recover = None
        if came and self._recover is None:
            self.control.acknowledged(came, now, int(self._srtt), marked, self._una, self._next)
        self._find_losses(now)
        self._arm()
        self.more()

    def _find_losses(self, now: int) -> None:
        found = False
        for s in self._segments:
            if not s.sacked and not s.lost and s.number + DUPLICATES <= self._delivered:
                s.lost = found = True
        if found and self._recover is None:
            self._recover = self._next
            self.control.lost(now)

    def _measure(self, sample: int) -> None:
        self._rttvar += (abs(self._srtt - sample) - self._rttvar) / 4
        self._srtt += (sample - self._srtt) / 8

    # --- timers -------------------------------------------------------------------------------------------------

    def _rto(self) -> int:
        first = max(self._min_rto, int(self._srtt + 4 * self._rttvar))
        return min(first << self._backoff, MOST_RTO_NS)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._segments:
            return
        now, rto = self._clock.now(), self._rto()
        probe = max(PROBE_FLOOR_NS, int(2 * self._srtt))
        if len(self._segments) == 1:
            probe += self._min_rto  # the peer may be about to delay its acknowledgement (RFC 8985, 7.2)
        if self._probes and not self._probing and self._recover is None and not self._backoff and probe < rto:
            self._timer = self._clock.call_at(now + probe, self._probe)
        else:
            self._timer = self._clock.call_at(now + rto, self._timeout)

    def _probe(self) -> None:
        """Tail loss probe: the last segment again, so that its acknowledgement shows what is missing."""
        self._timer = None
        if self.done or not self._segments:
            return
        self._probing = True
        last = self._segments[-1]
        if not last.sacked and self._transmit(last):
            self.probed += 1
        self._arm()

    def _timeout(self) -> None:
        self._timer = None
        if self.done or not self._segments:
            return
        self.timeouts += 1
        self._backoff += 1
        self._probing = False
        for s in self._segments:
            s.lost = not s.sacked
        self.control.timed_out(self._clock.now())
        self._recover = self._next
        self._arm()
        self.more()

    def _finish(self) -> None:
        self.done = True
        if self._timer is not None:
            self._timer.cancel()
        self._on_done()


class Receiver:
    """The receiving end.  on_done: called when all `size` bytes are there.

    room: bytes of the socket's buffer; what the application has not read is taken off the window that is advertised.
    reading: does the application read at once what is there?
    """

    def __init__(
        self, stack: Stack, flow: int, peer: str, size: int, on_done: Callable[[], None], room: int = 1 << 22
    ) -> None:
        self.room, self.reading, self.taken = room, True, 0
        self._stack, self.flow, self.peer, self.size, self._on_done = stack, flow, peer, size, on_done
        self.upto = 0
        self.done = False
        self._ranges: list[tuple[int, int]] = []
        self._unsent: bytes | None = None

    def arrived(self, seq: int, length: int, marked: bool) -> None:
        """A segment came: put it in its place, and acknowledge."""
        latest = self._insert(seq, seq + length)
        while self._ranges and self._ranges[0][0] <= self.upto:
            self.upto = max(self.upto, self._ranges.pop(0)[1])
        ranges = [latest] if latest in self._ranges else []
        ranges += [r for r in self._ranges if r != latest]
        if self.reading:
            self.taken = self.upto
        self._tell(marked, ranges[:MOST_RANGES])
        if self.upto >= self.size and not self.done:
            self.done = True
            self._on_done()

    def read(self) -> None:
        """The application takes all that is there, and goes on doing so: the window opens."""
        self.reading = True
        self.taken = self.upto
        self._tell(False, self._ranges[:MOST_RANGES])

    def _tell(self, marked: bool, ranges: list[tuple[int, int]]) -> None:
        window = max(0, self.room - (self.upto - self.taken))
        head = _SEGMENT.pack(self.flow, ACK, self.upto, window, marked, len(ranges))
        self._unsent = head + b"".join(_RANGE.pack(*r) for r in ranges)
        self.more()

    def more(self) -> None:
        """Send the newest acknowledgement, if it could not be sent yet."""
        if self._unsent is None:
            return
        length = HEADERS + len(self._unsent) - _SEGMENT.size
        if self._stack.transmit(self.peer, self._unsent, length):
            self._unsent = None

    def _insert(self, low: int, high: int) -> tuple[int, int]:
        kept = []
        for a, b in self._ranges:
            if b < low or a > high:
                kept.append((a, b))
            else:
                low, high = min(a, low), max(b, high)
        self._ranges = sorted([*kept, (low, high)])
        return (low, high)


def unpack_segment(body: bytes) -> tuple[int, int, int, int, bool, list[tuple[int, int]]]:
    """(flow, kind, number, length, flag, ranges) of a segment's bytes."""
    flow, kind, seq, length, flag, count = _SEGMENT.unpack_from(body)
    ranges = [_RANGE.unpack_from(body, _SEGMENT.size + i * _RANGE.size) for i in range(count)]
    return flow, kind, seq, length, bool(flag), [(low, high) for low, high in ranges]
