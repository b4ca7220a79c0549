"""Moves frames between a descriptor and a switch's core, without touching Python on the way.

One read is one frame, and one write, as TAP devices have it.  With `offload`, a ``virtio_net_hdr`` stands before each
frame at the descriptor; within the switch it follows the frame, as its last ten bytes: the core looks only at a frame's
beginning, and so carries the header without knowing of it.
"""

from __future__ import annotations

import errno
import os

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

if cython.compiled:
    from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
    from cython.cimports.libc.string import memcpy
    from cython.cimports.verbena.vswitch.engine import SwitchEngine
else:
    from verbena._declarations import declarations
    from verbena.vswitch.engine import SwitchEngine

    globals().update(declarations(__file__))


def outcome_of(error):
    """What a read or write came to that moved nothing."""
    return {errno.EAGAIN: AGAIN, errno.EBADFD: REMOVED}.get(error.errno, WRONG)


class FramePump:
    """Of one descriptor, which does not block.  room: bytes of the longest frame.

    `octets`, `written`: bytes of all frames that were read, that were written.  `held`: bytes of a frame that was read
    and not taken; `take` gives it out.  `drained`: the last read found nothing; `full`: the last write was refused for
    want of room; `gone`: the device is no longer there.
    """

    def __init__(self, fd, room, offload):
        self.fd = fd
        self.room = room
        self.extra = HEAD_SIZE if offload else 0
        self.buffer = bytearray(room + HEAD_SIZE)
        self.held = 0
        self.late = None
        self.drained = self.full = self.gone = False
        self.blocked = self.controls = self.runts = self.errors = self.refused = self.octets = 0
        self.written = 0
        self.view = self.buffer if cython.compiled else memoryview(self.buffer)
        if cython.compiled:
            self.data = cython.cast(cython.pointer(uint8_t), cython.address(self.view[0]))
        else:
            self.head = bytearray(self.extra)

    # --- in ---------------------------------------------------------------------------------------------------

    def read_one(self):
        """The next frame into the buffer; its size with the header behind it, 0: there is none."""
        size: cython.longlong
        while True:
            if cython.compiled:
                size = vb_readv(self.fd, self.head, self.extra, self.data, self.room)
            else:
                try:
                    size = os.readv(self.fd, [self.head, self.view[: self.room]])
                except OSError as error:
                    size = outcome_of(error)
            if size <= 0:
                self.drained = size == AGAIN
                if size == REMOVED:
                    self.gone = True
                elif size == WRONG:
                    self.errors += 1
                return 0
            size -= self.extra
            if size < LEAST:
                self.runts += 1
                continue
            if self.extra:
                if cython.compiled:
                    memcpy(self.data + size, self.head, self.extra)
                else:
                    self.buffer[size : size + self.extra] = self.head
            self.octets += size
            return size + self.extra

    def feed(self, engine: SwitchEngine, port: cython.int, most: cython.int):
        """Frames into a port's input queues; returns how many were taken.

        Ends at a frame that finds no room (`blocked` counts) and at a control frame (`controls`): it is then `held`.
        """
        outcome: cython.int
        size: cython.longlong
        count: cython.int = 0
        self.drained = False
        while count < most:
            size = self.held if self.held else self.read_one()
            if size == 0:
                break
            if cython.compiled:
                outcome = engine.enter(port, self.data, size, size, True, False)
            else:
                outcome = engine.enter(port, bytes(self.buffer[:size]), size, size, True, False)
            if outcome == 0:
                self.blocked += 1
                self.held = size
                break
            if outcome == 2:
                self.controls += 1
                self.held = size
                break
            self.held = 0
            count += 1
        return count

    def take(self, most: cython.int):
        """Up to so many frames, the held one first, for whoever keeps them until there is room."""
        size: cython.longlong
        found: list = []
        self.drained = False
        while most > 0:
            size = self.held if self.held else self.read_one()
            if size == 0:
                break
            self.held = 0
            found.append(bytes(self.buffer[:size]))
            most -= 1
        return found

    # --- out --------------------------------------------------------------------------------------------------

    def write_one(self, frame, size):
        """Write a frame with its header behind it; returns the size, or what went wrong, negative."""
        body: cython.longlong = size - self.extra
        result: cython.longlong
        if cython.compiled:
            result = vb_writev(self.fd, frame + body, self.extra, frame, body)
        else:
            try:
                result = os.writev(self.fd, [frame[body:size], frame[:body]])
            except OSError as error:
                result = outcome_of(error)
        if result == AGAIN:
            self.full = True
        elif result < 0:
            self.refused += 1
            self.gone = self.gone or result == REMOVED
        else:
            self.written += body
        return result

    def drain(self, engine: SwitchEngine, port: cython.int, most: cython.int):
        """Frames out of a port's output queues; returns how many went.  One that finds no room goes first next time."""
        s: cython.int
        size: cython.longlong
        result: cython.longlong
        count: cython.int = 0
        self.full = False
        if self.late is not None:
            late: bytes = self.late
            if cython.compiled:
                result = self.write_one(
                    cython.cast(cython.pointer(uint8_t), PyBytes_AS_STRING(late)), len(late)
                )
            else:
                result = self.write_one(late, len(late))
            if result == AGAIN:
                return 0
            self.late = None
            count = 1
        while count < most:
            s = engine.take(port)
            if s < 0:
                break
            if cython.compiled:
                if engine.change_of_tag(s, port) == 0:
                    size = engine.slots[s].stored
                    result = self.write_one(engine.slots[s].data, size)
                    if result == AGAIN:
                        self.late = PyBytes_FromStringAndSize(
                            cython.cast(cython.pointer(cython.char), engine.slots[s].data), size
                        )
                else:
                    data: bytes = engine.frame_of(s, port)
                    result = self.write_one(
                        cython.cast(cython.pointer(uint8_t), PyBytes_AS_STRING(data)), len(data)
                    )
                    if result == AGAIN:
                        self.late = data
            else:
                frame = engine.frame_of(s, port)
                result = self.write_one(frame, len(frame))
                if result == AGAIN:
                    self.late = frame
            engine.release(s)
            if result == AGAIN:
                break
            count += 1
        return count
