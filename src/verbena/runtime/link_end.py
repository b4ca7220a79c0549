"""The physical layer over datagrams: one end of a link whose other end is in another process.

A datagram is a header of 40 bytes and, behind it, whole flits as `FabricCore.take_flits` gives them.  Datagrams may be
lost, doubled and overtaken.  Doubles, and those that were overtaken, are dropped here by their *number*: the link layer
counts flits and credit modulo 4096, as on a cable, where nothing overtakes; it would take a credit that is more than
2,048 blocks old for a new one, and stop for ever.  What is lost the link layer repairs (`fabric.retry`).

What it cannot see is a peer that begins anew, since both ends' numbers begin at 0 then.  So each end gives itself a
*session*, a number that grows, whenever its link trains; flits count only between two ends that know each other's:

* POLLING: send TRAIN datagrams with the own session and the peer's, as far as it is known.
* A datagram that names our session, from the session that we know, makes the link UP; the other end comes up with the
  first datagram that we send then.
* A newer session of the peer means that it trains again: an end that is UP goes down, and takes a new session itself.
  An older one is a straggler, dropped and counted.
* UP: something is sent at least every `keep_alive_ns`.  Silence of `silence_ns` means that the peer is dead: down, and
  POLLING again.  DOWN datagrams say so at once.

Header, big-endian: magic ``VbFl`` (4), version 2 (1), kind (1), 0 (2), token (8), own session (8), peer's session (8),
number of the datagram among those of its sender (8).
The token is the cable's: both ends learnt it over another way.  It keeps strangers and old processes apart; it is no
protection against whoever can read the network.  Times are of the caller's clock, in nanoseconds.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

from verbena import _pure
from verbena.errors import InvalidAttributeError

HEADER = struct.Struct(">4sBBHQQQQ")
MAGIC, VERSION = b"VbFl", 2
LARGEST_DATAGRAM = 60_000
"""Bytes of flits in a datagram."""
UNKNOWN = 0
MILLISECOND = 1_000_000
REPLAY_NS = (20 if _pure.compiled() else 250) * MILLISECOND
"""Longer than a peer takes for a full window of flits, which uncompiled is long."""


class Kind(IntEnum):
    """What a datagram is for."""

    TRAIN = 1
    FLITS = 2
    DOWN = 3


class State(Enum):
    """Of one end."""

    OFF = "off"  # no cable
    POLLING = "polling"
    UP = "up"


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """The times of a link over datagrams, in ns; much longer than those of a cable, and than a process has to wait.

    poll_ns: between TRAIN datagrams.  keep_alive_ns: something is sent at least that often.  silence_ns: the peer is
    dead when nothing has come for so long.  ack_ns, replay_ns, ask_ns: see `FabricCore.make_external`.
    """

    poll_ns: int = 50 * MILLISECOND
    keep_alive_ns: int = 250 * MILLISECOND
    silence_ns: int = 3_000 * MILLISECOND
    ack_ns: int = MILLISECOND // 2
    replay_ns: int = REPLAY_NS
    ask_ns: int = 5 * MILLISECOND

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not isinstance(value, int) or not 1_000 <= value <= 1 << 40:
                raise InvalidAttributeError(f"{name} = {value!r}: nanoseconds, 1000 to 2^40")
        if self.silence_ns < 2 * max(self.keep_alive_ns, self.poll_ns):
            raise InvalidAttributeError(
                f"silence_ns = {self.silence_ns}: at least twice as long as keep_alive_ns and poll_ns"
            )


class LinkEnd:
    """One end of a link over datagrams.

    token: of the cable, 64 bits, not 0.  new_session: gives session numbers, each greater than those before, also than
    those of an earlier process.  send(datagram).  went_up(), went_down(): the link can be used, or not any more; flits
    are not passed on in between.  `counters` names what came, and what was dropped and why.
    """

    def __init__(
        self,
        token: int,
        times: LinkTimes,
        new_session: Callable[[], int],
        send: Callable[[bytes], None],
        went_up: Callable[[], None],
        went_down: Callable[[], None],
    ) -> None:
        self.token = token
        self.times = times
        self.state = State.OFF
        self.counters: Counter[str] = Counter()
        self._new_session = new_session
        self._send = send
        self._went_up = went_up
        self._went_down = went_down
        self._own = UNKNOWN
        self._peer = UNKNOWN
        self._sent = 0  # the number of our last datagram,
        self._heard = 0  # and of the peer's, in its session
        self._heard_at = 0
        self._send_at = 0

    # --- the cable ----------------------------------------------------------------------------------------

    def plug(self, now: int) -> None:
        """There is a cable: look for the peer."""
        if self.state is State.OFF:
            self._peer = UNKNOWN
            self._poll(now)

    def unplug(self, now: int) -> None:
        """The cable is gone; the peer is told."""
        if self.state is State.OFF:
            return
        self._emit(Kind.DOWN, now)
        self._leave(State.OFF)

    def _poll(self, now: int) -> None:
        self._own = self._new_session()
        self._leave(State.POLLING)
        self._heard_at = now
        self._send_at = now

    def _leave(self, state: State) -> None:
        before, self.state = self.state, state
        if before is State.UP:
            self.counters["downs"] += 1
            self._went_down()

    # --- out ----------------------------------------------------------------------------------------------

    def send_flits(self, flits: bytes, now: int) -> None:
        """Send whole flits; at most `LARGEST_DATAGRAM` bytes."""
        if self.state is State.UP:
            self._emit(Kind.FLITS, now, flits)
        else:
            self.counters["drop.tx_down"] += 1

    def _emit(self, kind: Kind, now: int, flits: bytes = b"") -> None:
        self.counters["sent"] += 1
        wait = self.times.poll_ns if self.state is State.POLLING else self.times.keep_alive_ns
        self._send_at = now + wait
        self._sent += 1
        self._send(
            HEADER.pack(MAGIC, VERSION, kind, 0, self.token, self._own, self._peer, self._sent) + flits
        )

    def tick(self, now: int) -> int:
        """Send what is due, and notice silence.  Returns when to call again; 0: never."""
        if self.state is State.OFF:
            return 0
        if now - self._heard_at >= self.times.silence_ns:
            if self.state is State.UP:
                self.counters["silences"] += 1
            self._peer = UNKNOWN
            self._poll(now)
        if now >= self._send_at:
            self._emit(Kind.FLITS if self.state is State.UP else Kind.TRAIN, now)
        return min(self._send_at, self._heard_at + self.times.silence_ns)

    # --- in -----------------------------------------------------------------------------------------------

    def receive(self, datagram: Any, now: int) -> Any:
        """The flits of a datagram with our token, as a part of its buffer; None when there are none for us."""
        _, _, kind, _, _, theirs, ours, number = HEADER.unpack_from(datagram)
        if self.state is State.OFF:
            self.counters["drop.rx_off"] += 1
            return None
        if theirs < self._peer or theirs == UNKNOWN:
            self.counters["drop.rx_old"] += 1
            return None
        if theirs == self._peer and number <= self._heard:
            self.counters["drop.rx_overtaken"] += 1
            return None
        if kind == Kind.DOWN:
            self._peer_left(theirs, ours, now)
            return None
        if kind not in (Kind.TRAIN, Kind.FLITS):
            self.counters["drop.rx_kind"] += 1
            return None
        if theirs > self._peer:
            self._meet(theirs, now)
        self._heard = number
        self._heard_at = now
        if ours != self._own:
            if ours:
                self.counters["drop.rx_stale"] += 1
            if self.state is State.POLLING:
                self._send_at = now
            return None
        if self.state is State.POLLING:
            self.state = State.UP
            self.counters["ups"] += 1
            self._send_at = now  # the other end comes up with this
            self._went_up()
        elif kind == Kind.TRAIN:
            self._send_at = now  # what should have brought it up was lost
        if kind == Kind.TRAIN or len(datagram) == HEADER.size:
            return None
        self.counters["received"] += 1
        return datagram[HEADER.size :]

    def _meet(self, theirs: int, now: int) -> None:
        """The peer has a new session."""
        self._peer = theirs
        if self.state is State.UP:
            self.counters["retrained"] += 1
            self._poll(now)

    def _peer_left(self, theirs: int, ours: int, now: int) -> None:
        if theirs == self._peer and ours == self._own and self.state is State.UP:
            self._poll(now)
        else:
            self.counters["drop.rx_old"] += 1


def token_of(datagram: Any) -> int:
    """The token of a datagram; 0 of one that is none of ours."""
    if len(datagram) < HEADER.size:
        return 0
    magic, version, _, _, token, _, _, _ = HEADER.unpack_from(datagram)
    return int(token) if magic == MAGIC and version == VERSION else 0
