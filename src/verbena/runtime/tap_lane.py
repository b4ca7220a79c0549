"""Frames between a TAP device and a card, from and to where the fabric has them: no copy, and no Python on the way.

One read is one frame, and one write; a ``virtio_net_hdr`` stands before each if the device has them.  What the short
way (`lan.express`) does not take is left to the caller, as `Tap.read` would have returned it.
"""

from __future__ import annotations

import errno
import os

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.lan.express import FrameSink

if cython.compiled:
    from cython.cimports.verbena.lan.express import CLOSED, NO_ROOM, Express, FrameSink
else:
    from verbena._declarations import declarations
    from verbena.lan.express import CLOSED, NO_ROOM, Express

    globals().update(declarations(__file__))

REASONS = {errno.EAGAIN: "full", errno.EINVAL: "refused", errno.EIO: "down"}


class TapLane(FrameSink):
    """Of one device.  offload: frames have a header.  counters: the interface's.

    After `read`: `drained`: there was nothing more; `starved`: no message was free; `closed`: the card has no short way
    now; `left`: a frame for the caller, and its header, or None; `octets`: bytes of the frames that went.
    """

    def __init__(self, fd, offload, counters):
        self.fd = fd
        self.extra = HEAD if offload else 0
        self.counters = counters
        self.drained = self.starved = self.closed = False
        self.octets = 0
        self.left = None
        if not cython.compiled:
            self.plain = bytes(HEAD)

    def close(self):
        """The device is about to be closed: its descriptor is used no more."""
        self.fd = -1

    # --- from the system --------------------------------------------------------------------------------------

    def read_one(self, b, at, room):
        """A frame to b[at]; its size without the header, or an errno, negative."""
        size: cython.longlong
        if cython.compiled:
            size = vb_lane_read(self.fd, b + at - self.extra, self.extra, b + at, room)
        else:
            try:
                size = os.readv(self.fd, [b[at - self.extra : at], b[at : at + room], bytearray(1)])
            except OSError as error:
                size = -(error.errno or 1)
        return size - self.extra if size >= 0 else size

    def is_plain(self, b, head):
        """Does a header ask for nothing?"""
        i: cython.int
        for i in range(1, HEAD):
            if b[head + i]:
                return False
        return b[head] == 0 or b[head] == DATA_VALID

    def read(self, express: Express, most: cython.int, most_octets: cython.longlong):
        """Send up to so many frames, and no more once so many bytes went; returns how many went."""
        count: cython.int = 0
        at: cython.longlong
        size: cython.longlong
        unfinished: cython.bint
        self.drained = self.starved = self.closed = False
        self.left = None
        self.octets = 0
        express.hold()
        try:
            while count < most and self.octets < most_octets:
                at = express.begin()
                if at < 0:
                    self.starved, self.closed = at == NO_ROOM, at == CLOSED
                    break
                b = express.out
                size = self.read_one(b, at, express.room)
                if size < SHORTEST or size > express.room:
                    if self.failed(size, express.room):
                        break
                    continue
                unfinished = self.extra != 0 and not self.is_plain(b, at - HEAD)
                if not express.send(unfinished, size):
                    if cython.compiled:
                        self.left = (b[at : at + size], b[at - HEAD : at] if unfinished else None)
                    else:
                        self.left = (
                            bytes(b[at : at + size]),
                            bytes(b[at - HEAD : at]) if unfinished else None,
                        )
                    break
                self.octets += size
                count += 1
        finally:
            express.done()
            express.let_go()
        if count:
            self.counters["tx.frames"] += count
            self.counters["tx.bytes"] += self.octets
        return count

    def failed(self, size: cython.longlong, room: cython.longlong):
        """What was read is no frame: is nothing more to be read?"""
        if size < 0:
            self.drained = True
            if size != -errno.EAGAIN and size != -errno.EBADFD:  # it is being removed
                self.counters["drop.tx.system"] += 1
            return True
        self.counters["drop.tx.too_long" if size > room else "drop.tx.runt"] += 1
        return False

    # --- to the system ----------------------------------------------------------------------------------------

    def put(self, b, head, at, n):
        size: cython.longlong
        if self.fd < 0 or (head >= 0 and self.extra == 0):
            return False
        if cython.compiled:
            size = vb_lane_write(self.fd, b + head if head >= 0 else self.plain, self.extra, b + at, n)
        else:
            header = b[head : head + HEAD] if head >= 0 else self.plain
            try:
                size = os.writev(self.fd, [header[: self.extra], b[at : at + n]])
            except OSError as error:
                size = -(error.errno or 1)
        if size < 0:
            self.counters["drop.rx." + REASONS.get(-size, "system")] += 1
        else:
            self.counters["rx.frames"] += 1
            self.counters["rx.bytes"] += n
        return True
