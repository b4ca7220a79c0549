"""Records on a TCP connection of the operating system: the upload and the team path in real time."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque

from verbena.runtime.real_loop import RealLoop
from verbena.team.offload.channel import ChannelEvents
from verbena.team.offload.record import HEAD, Record, RecordReader
from verbena.team.offload.states import Path
from verbena.wire.errors import DecodeError

RECEIVE = 1 << 18
AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: what was not sent is forgotten, and the peer is told so (socket(7))."""


class KernelChannel(ChannelEvents):
    """Implements `team.offload.channel.Channel`.  All calls come with the loop's lock held.

    A connection that is being made is handed in non-blocking, after `connect_ex`.
    """

    LARGEST = 1 << 17

    def __init__(self, loop: RealLoop, sock: socket.socket, path: Path, in_flight: int, made: bool) -> None:
        super().__init__(path)
        self.loop = loop
        self.sock = sock
        self.in_flight = in_flight
        self._reader = RecordReader()
        self._out: deque[memoryview] = deque()
        self._left = 0
        self._made = made
        self._open = True
        self._closing = False
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    @property
    def is_up(self) -> bool:
        return self._open and self._made and not self._closing

    @property
    def largest(self) -> int:
        return self.LARGEST

    @property
    def room(self) -> int:
        return max(0, self.in_flight - self._left - HEAD) if self.is_up else 0

    def _watch(self) -> None:
        if not self._open:
            return
        want_write = bool(self._out) or not self._made
        self.loop.watch(self.sock.fileno(), self._readable, self._writable if want_write else None)

    def send(self, record: Record) -> None:
        """Implements `Channel.send`."""
        if not self._open or self._closing:
            return
        idle = not self._out
        for part in (record.head(), record.body):
            if part:
                self._out.append(memoryview(part))
                self._left += len(part)
        if idle and self._made:
            self._flush()
            if self._out:
                self._watch()

    def _flush(self) -> None:
        while self._out and self._open:
            try:
                taken = self.sock.sendmsg([part for part, _ in zip(self._out, range(16), strict=False)])
            except BlockingIOError:
                return
            except OSError as error:
                self._down(error.strerror or str(error))
                return
            self._left -= taken
            while taken:
                if taken >= len(self._out[0]):
                    taken -= len(self._out.popleft())
                else:
                    self._out[0] = self._out[0][taken:]
                    taken = 0

    def _writable(self) -> None:
        if not self._made:
            failure = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                self._down(OSError(failure, "").strerror or f"error {failure}")
                return
            self._made = True
            self.on_up()
        self._flush()
        if not self._open:
            return
        if not self._out:
            if self._closing:
                self._shut()
                return
            self._watch()
        if self.room:
            self.on_room()

    def _readable(self) -> None:
        try:
            data = self.sock.recv(RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            self._down(error.strerror or str(error))
            return
        if not data:
            self._down("the peer has closed it")
            return
        try:
            for record in self._reader.feed(data):
                self.on_record(record)
                if self._was_closed():
                    return
        except DecodeError as error:
            self._down(f"bad record: {error}")

    def _was_closed(self) -> bool:
        return not self._open

    def _down(self, why: str) -> None:
        if self._open:
            self._shut()
            self.on_down(why)

    def _shut(self) -> None:
        self._open = False
        self.loop.watch(self.sock.fileno(), None)
        self.sock.close()

    def close(self) -> None:
        """Implements `Channel.close`: what is left goes out first."""
        self.quieten()
        if not self._open:
            return
        self._closing = True
        self._flush()
        if self._open and (not self._out or not self._made):
            self._shut()

    def abort(self) -> None:
        """Implements `Channel.abort`."""
        self.quieten()
        if self._open:
            # Or the system goes on sending what is left: an attempt that was given up would arrive when it is over.
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            self._shut()
