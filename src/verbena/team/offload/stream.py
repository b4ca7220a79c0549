"""The two halves of a byte stream, by offsets: what is not acknowledged yet, what is not read yet.

Both keep pieces as they come, and hand out views of them: a byte is copied once on its way in, and no more.
"""

from __future__ import annotations

from collections import deque

SMALL = 1 << 14
"""Pieces shorter than this are put together when they are sent, and when they are read."""
NEVER = 1 << 63
Buffer = bytes | bytearray | memoryview


class SendStream:
    """What this side writes.

    base: acknowledged up to here.  following: the next offset to be sent on the present path.  most: the largest offset
    that was ever sent.  end: written up to here; the end of the stream counts one more.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.base = 0
        self.following = 0
        self.most = 0
        self.closed = False
        self._ended = NEVER  # offset of the end, once it is known
        self._written = 0
        self._pieces: deque[memoryview] = deque()
        self._first = 0  # offset of the first piece's first byte
        self._place = 0  # of the piece that `following` is in, and where that one begins
        self._place_at = 0

    @property
    def end(self) -> int:
        return self._written + self.closed

    @property
    def room(self) -> int:
        """Bytes that `write` takes."""
        return 0 if self.closed else max(0, self.capacity - (self._written - self.base))

    def write(self, data: Buffer) -> int:
        """Take as much as there is room for."""
        taken = min(len(data), self.room)
        if taken:
            # Bytes never change, so that they need no copy.
            whole = isinstance(data.obj if isinstance(data, memoryview) else data, bytes)
            self._pieces.append(memoryview(data)[:taken] if whole else memoryview(bytes(data[:taken])))
            self._written += taken
        return taken

    def close(self) -> None:
        """Nothing more is written."""
        if not self.closed:
            self._ended = self._written
            self.closed = True

    @property
    def unsent(self) -> int:
        """Bytes that are to be sent, without the end of the stream."""
        return max(0, self._written - self.following)

    @property
    def fin_due(self) -> bool:
        """Is the end of the stream the next thing to be sent?"""
        return self.closed and self.following == self._ended

    def take(self, most: int) -> Buffer:
        """The next bytes to be sent, at most so many, which count as sent."""
        found = self._slice(most)
        if len(found) < min(most, self.unsent) and len(found) < SMALL:
            parts = [found]
            size = len(found)
            self.following += len(found)
            while size < most and self.unsent:
                parts.append(self._slice(most - size))
                size += len(parts[-1])
                self.following += len(parts[-1])
            self.most = max(self.most, self.following)
            return b"".join(parts)
        self.following += len(found)
        self.most = max(self.most, self.following)
        return found

    def _slice(self, most: int) -> memoryview:
        """What comes next, out of one piece."""
        while self._place_at + len(self._pieces[self._place]) <= self.following:
            self._place_at += len(self._pieces[self._place])
            self._place += 1
        at = self.following - self._place_at
        return self._pieces[self._place][at : at + most]

    def take_fin(self) -> int:
        """The end of the stream counts as sent; returns its offset."""
        at = self.following
        self.following += 1
        self.most = max(self.most, self.following)
        return at

    def acknowledge(self, offset: int) -> bool:
        """The peer has everything before this offset; False if that cannot be."""
        if offset > self.most:
            return False
        if offset > self.base:
            self.base = offset
            if offset > self.following:
                self.following = offset
            while self._pieces and self._first + len(self._pieces[0]) <= offset:
                self._first += len(self._pieces.popleft())
                self._place -= 1
            if self._place < 0:
                self._place, self._place_at = 0, self._first
        return True

    def rewind(self, offset: int) -> bool:
        """Send again from here; False if the peer cannot be there."""
        if not self.base <= offset <= self.most:
            return False
        self.acknowledge(offset)
        self.following = offset
        self._place, self._place_at = 0, self._first
        return True

    @property
    def done(self) -> bool:
        """Was everything acknowledged, the end included?"""
        return self.closed and self.base == self._ended + 1


class ReceiveStream:
    """What the peer writes.  expected: the next offset.  limit: up to which there is room, as the peer was told."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.expected = 0
        self.ended = False
        self.read_to = 0
        self.duplicates = 0
        self._pieces: deque[bytes] = deque()
        self._size = 0

    @property
    def limit(self) -> int:
        return self.read_to + self.capacity

    def put(self, offset: int, data: bytes) -> bool:
        """Bytes came; False if they cannot be right: a gap, beyond the limit, or behind the end."""
        if offset > self.expected or offset + len(data) > self.limit or (self.ended and data):
            return False
        known = self.expected - offset
        if known:
            self.duplicates += min(known, len(data))
            data = data[known:]
        if data:
            self._pieces.append(data)
            self._size += len(data)
            self.expected += len(data)
        return True

    def put_end(self, offset: int) -> bool:
        """The peer has written everything; False if there should be more."""
        if self.ended:
            return offset == self.expected - 1
        if offset != self.expected:
            return False
        self.ended = True
        self.expected += 1
        return True

    def read(self, most: int) -> bytes:
        """At most so many bytes."""
        parts, size = [], 0
        while self._pieces and size < most:
            piece = self._pieces.popleft()
            if len(piece) > most - size:
                self._pieces.appendleft(piece[most - size :])
                piece = piece[: most - size]
            parts.append(piece)
            size += len(piece)
        self.read_to += size
        self._size -= size
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_some(self, most: int) -> bytes:
        """At most so many bytes; of large pieces only one, which then is not copied."""
        if self._pieces and SMALL <= len(self._pieces[0]) <= most:
            piece = self._pieces.popleft()
            self.read_to += len(piece)
            self._size -= len(piece)
            return piece
        return self.read(most)

    def __len__(self) -> int:
        return self._size

    def __bool__(self) -> bool:
        return True
