"""The two halves of a byte stream, by offsets: what is not acknowledged yet, what is not read yet."""

from __future__ import annotations


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
        self._ended = 1 << 63  # offset of the end, once it is known
        self._data = bytearray()
        self._start = 0  # where `base` is in _data

    @property
    def end(self) -> int:
        return self.base_data_end + self.closed

    @property
    def base_data_end(self) -> int:
        """Offset behind the last byte written."""
        return self._origin + len(self._data) - self._start

    @property
    def _origin(self) -> int:
        """Offset of _data[_start]; the acknowledged end of the stream is no byte."""
        return self.base if self.base <= self._ended else self._ended

    @property
    def room(self) -> int:
        """Bytes that `write` takes."""
        return 0 if self.closed else max(0, self.capacity - (len(self._data) - self._start))

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take as much as there is room for."""
        taken = min(len(data), self.room)
        self._data += data[:taken]
        return taken

    def close(self) -> None:
        """Nothing more is written."""
        if not self.closed:
            self._ended = self.base_data_end
            self.closed = True

    @property
    def unsent(self) -> int:
        """Bytes that are to be sent, without the end of the stream."""
        return max(0, self.base_data_end - self.following)

    @property
    def fin_due(self) -> bool:
        """Is the end of the stream the next thing to be sent?"""
        return self.closed and self.following == self._ended

    def take(self, most: int) -> bytes:
        """The next bytes to be sent, which count as sent."""
        at = self._start + self.following - self._origin
        data = bytes(self._data[at : at + most])
        self.following += len(data)
        self.most = max(self.most, self.following)
        return data

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
            self._start += min(offset, self._ended) - self._origin
            self.base = offset
            self.following = max(self.following, offset)
            if self._start >= 1 << 16 and 2 * self._start >= len(self._data):
                del self._data[: self._start]
                self._start = 0
        return True

    def rewind(self, offset: int) -> bool:
        """Send again from here; False if the peer cannot be there."""
        if not self.base <= offset <= self.most:
            return False
        self.acknowledge(offset)
        self.following = offset
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
        self._ready = bytearray()

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
        self._ready += data
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
        data = bytes(self._ready[:most])
        del self._ready[:most]
        self.read_to += len(data)
        return data

    def __len__(self) -> int:
        return len(self._ready)

    def __bool__(self) -> bool:
        return True
