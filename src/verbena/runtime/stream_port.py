"""A port of a virtual switch for a QEMU virtual machine: ``-netdev stream``, over a Unix socket or TCP.

Each frame follows its length, four bytes, the highest first (QEMU, net/stream.c).  The socket loses nothing: while the
switch takes no more, it is not read, QEMU's side of it fills, QEMU stops taking frames from the guest's card, whose
transmit ring fills, and then the guest's own queues.  The other way, what the guest's card has no room for waits in
QEMU, then in the socket, then in the switch's output queue.

`StreamListener` is where machines come in; a machine that goes takes its port with it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import deque

from verbena.errors import InvalidAttributeError, SystemLimitError
from verbena.runtime.poll_port import PollPort
from verbena.wire.offload import PLAIN

LENGTH = struct.Struct(">I")
LONGEST = 4096 + 65_536
"""QEMU's NET_BUFSIZE: a longer one is no frame, but noise."""
READ_BYTES = 1 << 18
GATHERED_BYTES = 1 << 17
MOST_PARTS = 512


class StreamPort(PollPort):
    """sock: connected.  trailer: frames in the switch have a ``virtio_net_hdr`` behind them; the socket's have none."""

    def __init__(self, sock: socket.socket, *, trailer: bool = False) -> None:
        super().__init__(trailer)
        self._sock = sock
        self._buffer = bytearray(LONGEST + READ_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._full = self._blocked = False
        self._out: deque[bytes] = deque()
        self._out_bytes = 0
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.watch(sock.fileno(), True)

    # --- in ---------------------------------------------------------------------------------------------------

    def feed(self, most: int) -> int:
        moved = self._parse(most)
        while not self._full and moved < most and self._receive():
            moved += self._parse(most - moved)
        self._rewatch()
        return moved

    def _receive(self) -> bool:
        """More bytes into the buffer; False: there are none now."""
        if self.closed:
            return False
        left = self._end - self._start
        if self._start and len(self._buffer) - self._end < READ_BYTES:
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
        try:
            size = self._sock.recv_into(self._view[self._end :])
        except BlockingIOError:
            return False
        except OSError:
            size = 0
        if not size:
            self.closed = True
            if left:
                self.tally["cut_off"] += 1
            return False
        self._end += size
        return True

    def _parse(self, most: int) -> int:
        """Offer the frames that are in the buffer."""
        moved = 0
        self._full = False
        while moved < most and self._end - self._start >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._buffer, self._start)
            if not 0 < size <= LONGEST:
                # Nothing says where the next frame begins.
                self.tally["bad_length"] += 1
                self.closed = True
                break
            at = self._start + LENGTH.size
            if self._end - at < size:
                break
            frame = bytes(self._view[at : at + size])
            if not self.offer(frame + PLAIN if self.trailer else frame):
                self._full = True
                break
            self._start = at + size
            moved += 1
        return moved

    # --- out --------------------------------------------------------------------------------------------------

    def drain(self, most: int) -> int:
        moved = 0
        while moved < most and not self.closed:
            if not self._out:
                moved += self._gather(most - moved)
            if not self._out or not self._send():
                break
        self._rewatch()
        return moved

    def _gather(self, most: int) -> int:
        """Frames of the output queue, as the socket gets them."""
        count = 0
        engine, number = self.port.switch.engine, self.port.number
        while count < most and self._out_bytes < GATHERED_BYTES and len(self._out) < MOST_PARTS:
            found = engine.receive(number, False)
            if found is None:
                break
            count += 1
            for frame in self.completed(found[0]):
                self._out.append(LENGTH.pack(len(frame)) + frame)
                self._out_bytes += LENGTH.size + len(frame)
        return count

    def _send(self) -> bool:
        """True: everything that was gathered has gone."""
        self._blocked = False
        while self._out:
            try:
                sent = self._sock.sendmsg(list(self._out)[:MOST_PARTS])
            except BlockingIOError:
                self._blocked = True
                return False
            except OSError:
                self.closed = True
                return False
            self._out_bytes -= sent
            while self._out and sent >= len(self._out[0]):
                sent -= len(self._out.popleft())
            if sent:
                self._out[0] = self._out[0][sent:]
        return True

    # --- the rest ---------------------------------------------------------------------------------------------

    def _rewatch(self) -> None:
        if not self.closed:
            self.watch(self._sock.fileno(), not self._full, self._blocked)

    def may_sleep(self) -> bool:
        return not self.closed

    def counters(self) -> dict[str, int]:
        waiting = {"in_buffer_bytes": self._end - self._start, "out_buffer_bytes": self._out_bytes}
        return waiting | dict(self.tally)

    def close(self) -> None:
        super().close()
        self._sock.close()


class StreamListener:
    """Where virtual machines connect to: a path of a Unix socket, or ``host:port``.

    Raises `InvalidAttributeError` for what is no address, `SystemLimitError` where it cannot be listened at.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._path = address if "/" in address else None
        host, _, number = address.rpartition(":")
        if self._path is None and (not host or not number.isdecimal() or int(number) > 65_535):
            raise InvalidAttributeError(f"{address!r}: write /path/of/a/socket or address:port")
        try:
            if self._path is None:
                self._sock = socket.create_server((host, int(number)))
            else:
                self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                _remove_dead(self._path)
                self._sock.bind(self._path)
                os.chmod(self._path, 0o600)
                self._sock.listen(1)
        except OSError as error:
            raise SystemLimitError(f"cannot listen at {address}: {error.strerror}") from None

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self, *, trailer: bool = False, timeout: float | None = None) -> StreamPort:
        """The next machine; raises `TimeoutError`."""
        self._sock.settimeout(timeout)
        sock, _ = self._sock.accept()
        return StreamPort(sock, trailer=trailer)

    def close(self) -> None:
        self._sock.close()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)


def _remove_dead(path: str) -> None:
    """Remove a socket at which nobody listens any more; what else is there stays, and binding fails."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return
