"""A channel: one way for records from one host to another; reliable and in order, until it is down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from verbena.team.offload.record import HEAD, Record, RecordReader
from verbena.team.offload.states import Path
from verbena.team.stack.tcp import TcpConnection
from verbena.wire.errors import DecodeError


class Channel(Protocol):
    """What a session sends by.

    path: which way it goes.  is_up: can records pass now?  largest: bytes of body that a record should have at most.
    room: bytes of body that may be sent now; `on_room` tells when there is more.
    """

    path: Path
    on_up: Callable[[], None]
    on_record: Callable[[Record], None]
    on_room: Callable[[], None]
    on_down: Callable[[str], None]

    @property
    def is_up(self) -> bool: ...
    @property
    def largest(self) -> int: ...
    @property
    def room(self) -> int: ...

    def send(self, record: Record) -> None:
        """Send a record; control records are taken also where there is no room.  A channel that is down drops it."""

    def close(self) -> None:
        """Let it go, without `on_down`.  What was sent is still delivered if the path works."""

    def abort(self) -> None:
        """Let it go at once."""


class ChannelEvents:
    """The calls that a channel makes, until somebody else is to get them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.on_up: Callable[[], None] = lambda: None
        self.on_record: Callable[[Record], None] = lambda record: None
        self.on_room: Callable[[], None] = lambda: None
        self.on_down: Callable[[str], None] = lambda why: None

    def quieten(self) -> None:
        """Nobody listens any more."""
        self.on_up = self.on_room = lambda: None
        self.on_record = lambda record: None
        self.on_down = lambda why: None


class TcpChannel(ChannelEvents):
    """Records on a TCP connection of the built-in stack.

    At most in_flight bytes are given to TCP ahead of what the peer has acknowledged, so that a connection which moves
    has little left to wait for.
    """

    LARGEST = 16_384

    def __init__(self, connection: TcpConnection, path: Path, in_flight: int = 1 << 18) -> None:
        super().__init__(path)
        self.in_flight = in_flight
        self.connection = connection
        self._reader = RecordReader()
        self._was_up = connection.is_established
        self._control = bytearray()
        self._open = True
        connection.on_change = self._changed

    @property
    def is_up(self) -> bool:
        return self._open and self.connection.is_established and self.connection.error is None

    @property
    def largest(self) -> int:
        return min(self.LARGEST, self.in_flight)

    @property
    def room(self) -> int:
        if not self.is_up or self._control:
            return 0
        connection = self.connection
        return max(0, min(connection.room, self.in_flight - connection.unacknowledged) - HEAD)

    def send(self, record: Record) -> None:
        """Implements `Channel.send`."""
        if not self._open or self.connection.error is not None:
            return
        self._control += record.pack()
        self._flush()

    def _flush(self) -> None:
        if self._control and self.connection.room:
            taken = self.connection.write(self._control)
            del self._control[:taken]

    def _changed(self) -> None:
        if not self._open:
            if self.connection.readable:
                self.connection.read()
            return
        if not self._was_up and self.is_up:
            self._was_up = True
            self.on_up()
        if self.connection.error is not None and not self.connection.readable:
            self._down(str(self.connection.error))
            return
        try:
            for record in self._reader.feed(self.connection.read()):
                self.on_record(record)
                if self._was_closed():
                    return
        except DecodeError as error:
            self.connection.abort()
            self._down(f"bad record: {error}")
            return
        if self.connection.at_end:
            self._down("the peer has closed it")
            return
        self._flush()
        if self.room:
            self.on_room()

    def _was_closed(self) -> bool:
        return not self._open

    def _down(self, why: str) -> None:
        if self._open:
            self._open = False
            self.connection.close()
            self.on_down(why)

    def close(self) -> None:
        """Implements `Channel.close`."""
        if self._open:
            self._flush()
            self._open = False
            self.connection.close()
        self.quieten()

    def abort(self) -> None:
        """Implements `Channel.abort`."""
        self._open = False
        self.quieten()
        self.connection.abort()
