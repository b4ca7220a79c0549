"""Fragments of datagrams, put together again within fixed bounds (document 000:102).

A message is known by its sender and its number.  Fragments may come in any order, twice, or not at all; what does not
complete in time, or contradicts itself, is dropped whole and counted.  Memory is bounded twice: by the messages that
one sender may have open, and by the bytes of all.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable


class _Message:
    __slots__ = ("begun_ns", "data", "flags", "front", "missing", "places", "sender")

    def __init__(self, sender: Hashable, length: int, flags: int, now: int) -> None:
        self.sender = sender
        self.data = bytearray(length)
        self.flags = flags
        self.missing = length
        self.places: dict[int, int] = {}  # offset -> length, of what has come
        self.front = 0  # nothing lies behind it yet
        self.begun_ns = now

    def overlaps(self, offset: int, end: int) -> bool:
        """Does a piece cover bytes that have come?"""
        if offset >= self.front:
            return False
        return any(at < end and offset < at + size for at, size in self.places.items())


class Reassembly:
    """The open messages of one port.

    most_bytes: of all open messages together.  per_sender: open messages of one sender; a new one takes the place of
    its oldest.  timeout_ns: from the first fragment on.  `counters`: ``reassembly.*`` by reason, one per message.
    """

    def __init__(
        self, *, most_bytes: int, per_sender: int, timeout_ns: int, largest: int, counters: Counter[str]
    ) -> None:
        self.counters = counters
        self.bytes_held = 0
        self._most_bytes = most_bytes
        self._per_sender = per_sender
        self._timeout_ns = timeout_ns
        self._largest = largest
        self._open: OrderedDict[tuple[Hashable, int], _Message] = OrderedDict()
        self._of_sender: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def add(
        self, sender: Hashable, number: int, length: int, offset: int, flags: int, piece: bytes, now: int
    ) -> bytes | None:
        """A fragment; the whole message when it was the last one missing, else None."""
        key = (sender, number)
        message = self._open.get(key)
        if message is None:
            message = self._begin(key, length, flags, now)
            if message is None:
                return None
        elif len(message.data) != length or message.flags != flags:
            self._drop(key, "contradiction")
            return None
        end = offset + len(piece)
        if piece and message.places.get(offset) == len(piece):
            self.counters["rx.duplicate_fragments"] += 1
            return None
        if not piece or end > length or message.overlaps(offset, end):
            self._drop(key, "overlap")
            return None
        message.data[offset:end] = piece
        message.places[offset] = len(piece)
        message.front = max(message.front, end)
        message.missing -= len(piece)
        if message.missing:
            return None
        self._forget(key)
        return bytes(message.data)

    def _begin(self, key: tuple[Hashable, int], length: int, flags: int, now: int) -> _Message | None:
        if not 0 < length <= self._largest:
            self.counters["drop.rx.reassembly.length"] += 1
            return None
        sender = key[0]
        if self._of_sender[sender] >= self._per_sender:
            oldest = next(k for k, m in self._open.items() if m.sender == sender)
            self._drop(oldest, "too_many")
        while self._open and self.bytes_held + length > self._most_bytes:
            self._drop(next(iter(self._open)), "memory")
        if self.bytes_held + length > self._most_bytes:
            self.counters["drop.rx.reassembly.memory"] += 1
            return None
        made = self._open[key] = _Message(sender, length, flags, now)
        self._of_sender[sender] += 1
        self.bytes_held += length
        return made

    def _forget(self, key: tuple[Hashable, int]) -> None:
        message = self._open.pop(key)
        self.bytes_held -= len(message.data)
        self._of_sender[message.sender] -= 1
        if not self._of_sender[message.sender]:
            del self._of_sender[message.sender]

    def _drop(self, key: tuple[Hashable, int], reason: str) -> None:
        self._forget(key)
        self.counters[f"drop.rx.reassembly.{reason}"] += 1

    def expire(self, now: int) -> int | None:
        """Drop what is too old; returns when to look again, None if nothing is open."""
        while self._open:
            key, message = next(iter(self._open.items()))
            ends = message.begun_ns + self._timeout_ns
            if ends > now:
                return ends
            self._drop(key, "timeout")
        return None

    def clear(self, sender: Hashable | None = None) -> None:
        """Drop the open messages of a sender, or all."""
        for key, message in list(self._open.items()):
            if sender is None or message.sender == sender:
                self._drop(key, "cleared")
