"""The reliable multi-packet protocol's two machines: who sends a transfer, and who receives one (IBA vol. 1, 13.6).

The sender may be one window ahead of what is acknowledged.  The window is 1 at first; the receiver moves it in each
acknowledgement (NewWindowLast).  What is not acknowledged in time is sent again from there on (13.6.3.3).  Neither
machine reads a datagram that is not of its transfer: its owner sorts them.
"""

from __future__ import annotations

from collections.abc import Callable

from verbena.clock import Clock, Timer
from verbena.wire.errors import DecodeError
from verbena.wire.rmpp import (
    RMPP_VERSION,
    RmppFlags,
    RmppMad,
    RmppStatus,
    RmppType,
    control,
    joined,
    segment_length,
)

WINDOW = 32
"""Segments that a receiver lets be sent ahead."""
RESPONSE_NS = 200_000_000
"""How long a sender waits for an acknowledgement before it sends again."""
IDLE_NS = 4_000_000_000
"""How long a receiver waits for the next segment before it gives up."""
RETRIES = 7
RESPONSE_BIT = 0x80
LARGEST_TRANSFER = 64 << 20
"""Bytes that a receiver takes; for more it says STOP."""

Emit = Callable[[RmppMad], None]


class RmppSender:
    """Sends the datagrams of one transfer.

    done: called once with how it ended, NORMAL if all was acknowledged.  response_ns: time-out of an acknowledgement.
    """

    def __init__(
        self,
        parts: list[RmppMad],
        *,
        clock: Clock,
        emit: Emit,
        done: Callable[[RmppStatus], None],
        response_ns: int = RESPONSE_NS,
        retries: int = RETRIES,
    ) -> None:
        self.acknowledged = 0
        self.resent = 0
        self.open = True
        self._parts = parts
        self._clock = clock
        self._emit = emit
        self._done = done
        self._response_ns = response_ns
        self._retries = self._tries = retries
        self._sent = 0
        self._window_last = 1
        self._timer: Timer | None = None

    def start(self) -> None:
        """Send the first segment."""
        self._fill()

    def receive(self, mad: RmppMad) -> None:
        """An ACK, STOP or ABORT of this transfer."""
        if not self.open:
            return
        if mad.rmpp_version != RMPP_VERSION:
            self._abort(RmppStatus.UNSUPPORTED_VERSION)
        elif mad.rmpp_type == RmppType.ACK:
            self._acknowledge(mad)
        elif mad.rmpp_type in (RmppType.STOP, RmppType.ABORT):
            self._finish(_told(mad))
        else:
            self._abort(RmppStatus.BAD_TYPE)

    def _acknowledge(self, mad: RmppMad) -> None:
        segment, window_last = mad.data1, mad.data2
        if mad.rmpp_status:
            self._abort(RmppStatus.ILLEGAL_STATUS)
        elif window_last < segment:
            self._abort(RmppStatus.WINDOW_TOO_SMALL)
        elif segment > self._sent:
            self._abort(RmppStatus.SEGMENT_TOO_BIG)
        elif (
            segment >= self.acknowledged and window_last >= self._window_last
        ):  # else it is an old one, overtaken
            if segment > self.acknowledged:
                self.acknowledged = segment
                self._tries = self._retries
            self._window_last = window_last
            if segment == len(self._parts):
                self._finish(RmppStatus.NORMAL)
            else:
                self._fill()

    def _fill(self) -> None:
        last = min(self._window_last, len(self._parts))
        while self._sent < last and self.open:
            self._sent += 1
            self._emit(self._parts[self._sent - 1])
        self._wait()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self.open:
            self._timer = self._clock.call_at(self._clock.now() + self._response_ns, self._rang)

    def _rang(self) -> None:
        self._timer = None
        if not self.open:
            return
        if self._tries == 0:
            self._abort(RmppStatus.TOO_MANY_RETRIES)
            return
        self._tries -= 1
        self.resent += self._sent - self.acknowledged
        self._sent = self.acknowledged
        self._fill()

    def _abort(self, status: RmppStatus) -> None:
        self._emit(control(self._parts[0], RmppType.ABORT, method=self._parts[0].method, status=status))
        self._finish(status)

    def _finish(self, status: RmppStatus) -> None:
        self.close()
        self._done(status)

    def close(self) -> None:
        """Forget the transfer; nobody is told."""
        self.open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class RmppReceiver:
    """Receives one transfer, whose first datagram to come need not be its first segment.

    header_size: bytes of the class's header in each segment.  done: called once, with the payload and NORMAL, or with
    nothing and what went wrong.
    """

    def __init__(
        self,
        *,
        header_size: int,
        clock: Clock,
        emit: Emit,
        done: Callable[[bytes, RmppStatus], None],
        window: int = WINDOW,
        idle_ns: int = IDLE_NS,
        largest: int = LARGEST_TRANSFER,
    ) -> None:
        self.open = True
        self._header_size = header_size
        self._clock = clock
        self._emit = emit
        self._done = done
        self._window = window
        self._idle_ns = idle_ns
        self._most = max(1, largest // 200)
        self._parts: list[RmppMad] = []
        self._count = 0
        self._complete = False
        self._ahead: dict[int, RmppMad] = {}
        self._window_last = 1
        self._last: int | None = None
        self._timer: Timer | None = None
        self._listen()

    def receive(self, mad: RmppMad) -> None:
        """A datagram of this transfer; after its end: one that was repeated, and is acknowledged again."""
        if mad.rmpp_type == RmppType.DATA and not self.open:
            if self._complete:
                self._acknowledge(mad)
        elif not self.open:
            return
        elif mad.rmpp_version != RMPP_VERSION:
            self._abort(mad, RmppStatus.UNSUPPORTED_VERSION)
        elif mad.rmpp_type == RmppType.DATA:
            self._segment(mad)
        elif mad.rmpp_type in (RmppType.STOP, RmppType.ABORT):
            self._finish(b"", _told(mad))
        else:
            self._abort(mad, RmppStatus.BAD_TYPE)

    def _segment(self, mad: RmppMad) -> None:
        number = mad.data1
        if (number <= 1) != bool(mad.rmpp_flags & RmppFlags.FIRST) or number == 0:
            self._abort(mad, RmppStatus.INCONSISTENT_FIRST)
            return
        if not self._last_agrees(mad):
            self._abort(mad, RmppStatus.INCONSISTENT_LAST)
            return
        if number > self._window_last:
            return  # not asked for: it comes again when the window is there
        self._listen()
        if number <= self._count:
            self._acknowledge(mad)  # our acknowledgement was lost
            return
        self._ahead[number] = mad
        while (part := self._ahead.pop(self._count + 1, None)) is not None:
            self._parts.append(part)
            self._count += 1
        if self._count == self._last:
            self._end(mad)
        elif self._count == self._window_last:
            if self._window_last >= self._most:
                self._stop(mad)
                return
            self._window_last += self._window
            self._acknowledge(mad)

    def _last_agrees(self, mad: RmppMad) -> bool:
        """Whether a segment's flag Last, its length and what came before go together."""
        try:
            segment_length(mad, self._header_size)
        except DecodeError:
            return False
        number = mad.data1
        if not mad.rmpp_flags & RmppFlags.LAST:
            return self._last is None or number < self._last
        if self._last is None and number <= self._window_last:
            if any(other > number for other in self._ahead) or self._count >= number:
                return False
            self._last = number
        return self._last is None or number == self._last

    def _end(self, mad: RmppMad) -> None:
        last, first = self._parts[-1], self._parts[0]
        whole = (len(self._parts) - 1) * len(first.data) + last.data2
        if len(self._parts) > 1 and first.data2 not in (0, whole):
            self._abort(mad, RmppStatus.INCONSISTENT_LAST)
            return
        self._complete = True
        self._acknowledge(mad)
        self._finish(joined(self._parts, self._header_size), RmppStatus.NORMAL)

    def _acknowledge(self, mad: RmppMad) -> None:
        self._say(mad, RmppType.ACK, segment=self._count, window_last=max(self._count, self._window_last))

    def _say(
        self,
        mad: RmppMad,
        kind: RmppType,
        status: RmppStatus = RmppStatus.NORMAL,
        segment: int = 0,
        window_last: int = 0,
    ) -> None:
        self._emit(
            control(
                mad,
                kind,
                method=mad.method ^ RESPONSE_BIT,
                status=status,
                segment=segment,
                window_last=window_last,
            )
        )

    def _abort(self, mad: RmppMad, status: RmppStatus) -> None:
        self._say(mad, RmppType.ABORT, status)
        self._finish(b"", status)

    def _stop(self, mad: RmppMad) -> None:
        self._say(mad, RmppType.STOP, RmppStatus.RESOURCES_EXHAUSTED)
        self._finish(b"", RmppStatus.RESOURCES_EXHAUSTED)

    def _listen(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_at(self._clock.now() + self._idle_ns, self._rang)

    def _rang(self) -> None:
        self._timer = None
        if self.open:
            if self._parts:
                self._abort(self._parts[0], RmppStatus.TOTAL_TIME_TOO_LONG)
            else:
                self._finish(b"", RmppStatus.TOTAL_TIME_TOO_LONG)

    def _finish(self, payload: bytes, status: RmppStatus) -> None:
        self.close()
        self._done(payload, status)

    def close(self) -> None:
        """Forget the transfer; nobody is told."""
        self.open = False
        self._ahead.clear()
        self._parts.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _told(mad: RmppMad) -> RmppStatus:
    """What a STOP or ABORT says; a code that does not exist is UNSPECIFIED."""
    try:
        status = RmppStatus(mad.rmpp_status)
    except ValueError:
        return RmppStatus.UNSPECIFIED
    return RmppStatus.UNSPECIFIED if status is RmppStatus.NORMAL else status
