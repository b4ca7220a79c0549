"""The datagram queue pair's sending side: messages to one or many destinations, in fragments (000:38, 102, 128).

A message is posted from the slot that it lies in, once for each destination and fragment; the slot is free again after
the last completion.  What the queue pair does not take at once waits in its slot.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from verbena.errors import VerbError
from verbena.lan.message import HEADER, HEADER_SIZE
from verbena.lan.pools import Message
from verbena.lan.ways import Way
from verbena.transport.kinds import SendFlags, WROpcode
from verbena.transport.work import WorkRequest
from verbena.verbs.queue_pair import QueuePair

QKEY = 0x4C414E
SIGNAL_EVERY = 16


class _Job:
    """A message on its way to several destinations, in fragments."""

    __slots__ = ("message", "pieces", "place", "ways")

    def __init__(self, message: Message, ways: Sequence[Way], pieces: list[list[Any]]) -> None:
        self.message = message
        self.ways = ways
        self.pieces = pieces
        self.place = 0


def cut(message: Message, lead: int, room: int) -> list[list[Any]]:
    """The pieces of a message that begins `lead` bytes into its slot: one, or fragments of `room` bytes.

    Each fragment has a header in front of it, the same for all destinations; these stand at the slot's begin.
    """
    pool = message.pool
    payload = message.length - HEADER_SIZE
    if payload <= room:
        return [[pool.sge(message, lead, message.length)]]
    buf, main = pool.buf, message.at + lead
    first, flags, lid, number, length, _ = HEADER.unpack_from(buf, main)
    pieces = []
    for place, offset in enumerate(range(0, payload, room)):
        size = min(room, payload - offset)
        head = place * HEADER_SIZE
        HEADER.pack_into(buf, message.at + head, first, flags, lid, number, length, offset)
        data = pool.sge(message, lead + HEADER_SIZE + offset, size)
        pieces.append([pool.sge(message, head, HEADER_SIZE), data])
    return pieces


class DatagramSender:
    """Posts to one queue pair, `depth` requests at most at a time.  broken: called when it takes no more, once."""

    def __init__(
        self, qp: QueuePair, depth: int, wr_id: int, counters: Counter[str], broken: Callable[[], None]
    ) -> None:
        self.qp = qp
        self._depth = depth
        self._wr_id = wr_id
        self._counters = counters
        self._broken = broken
        self._is_broken = False
        self.jobs: deque[_Job] = deque()
        self._sent: deque[tuple[int, Message | None]] = deque()
        self._unsignaled = 0
        self._in_flight = 0

    def add(self, message: Message, ways: Sequence[Way], pieces: list[list[Any]]) -> None:
        """Send a message; takes the caller's reference."""
        self.jobs.append(_Job(message, ways, pieces))
        self.pump()

    def pump(self) -> None:
        """Post what the queue pair takes."""
        posts: list[WorkRequest] = []
        while self.jobs and self._in_flight < self._depth:
            self._post(self.jobs[0], posts)
        if not posts:
            return
        self._counters["posts.datagram"] += len(posts)
        try:
            self.qp.post_send_many(posts)
        except VerbError:  # the port has just gone down, or the queue pair has failed
            self.fail()

    def _post(self, job: _Job, posts: list[WorkRequest]) -> None:
        """As much of a job as there is room for; of some requests, only the last makes a completion."""
        pieces, ways = job.pieces, job.ways
        last = len(pieces) * len(ways) - 1
        while job.place <= last and self._in_flight < self._depth:
            way = ways[job.place // len(pieces)]
            done = job.place == last
            self._unsignaled += 1
            self._in_flight += 1
            signaled = done or self._unsignaled >= SIGNAL_EVERY or self._in_flight >= self._depth
            posts.append(
                WorkRequest(
                    self._wr_id,
                    WROpcode.SEND,
                    pieces[job.place % len(pieces)],
                    SendFlags.SIGNALED if signaled else 0,
                    ah=way.handle,
                    remote_qpn=way.qpn,
                    remote_qkey=QKEY,
                )
            )
            if signaled:
                self._sent.append((self._unsignaled, job.message if done else None))
                self._unsignaled = 0
            job.place += 1
        if job.place > last:
            self.jobs.popleft()

    def completed(self, ok: bool) -> None:
        """A completion: of one request, and of those before it that made none."""
        if not self._sent:
            return
        count, message = self._sent.popleft()
        self._in_flight -= count
        if message is not None:
            message.release()
        if not ok:
            self.fail()

    def fail(self) -> None:
        """The queue pair is of no use any more: the driver has to open the library anew."""
        self.jobs.clear()
        if not self._is_broken:
            self._is_broken = True
            self._counters["datagrams.broken"] += 1
            self._broken()
