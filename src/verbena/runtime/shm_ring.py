"""A ring of frames in memory that two processes share: one writes, the other reads, and neither waits for a lock.

Layout: a header of 384 bytes with head, tail and flags, each in a cache line of its own, then `size` bytes, a power of
two.  A record is 8 bytes with the frame's length, then the frame, padded to 8; a record never wraps: what is left at
the end is skipped.  Head and tail count bytes since the start.

**Sleep without a lost wake-up**: who wants to sleep sets its flag, then looks again, with a full fence between; the
other side publishes, then looks at the flag, with a full fence between.  So one of the two sees the other.

What the other process wrote is not believed: a head, tail or length that cannot be breaks the ring (`broken`), which
its owner closes; nothing outside the ring is read or written.

`feed` and `drain` move frames between a ring and a switch's core without touching Python.
"""

from __future__ import annotations

import threading

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError

if cython.compiled:
    from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
    from cython.cimports.libc.string import memcpy
    from cython.cimports.verbena.vswitch.engine import SwitchEngine
else:
    from verbena._declarations import declarations
    from verbena.vswitch.engine import SwitchEngine

    globals().update(declarations(__file__))

HEADER = 384
SMALLEST = 1 << 12
_LOCK = threading.Lock()


class Ring:
    """One direction between two processes.  memory: writable, of HEADER + a power of two bytes; zeroed at first."""

    def __init__(self, memory):
        size = len(memory) - HEADER
        if size < SMALLEST or size & (size - 1):
            raise InvalidAttributeError(f"a ring of {size} bytes: a power of two from {SMALLEST} on")
        self.memory = memory
        self.size = size
        self.mask = size - 1
        self.broken = False
        self.blocked = self.controls = 0
        if cython.compiled:
            self.view = memory
            self.words = cython.cast(cython.pointer(uint64_t), cython.address(self.view[0]))
            self.data = cython.cast(cython.pointer(uint8_t), cython.address(self.view[0])) + HEADER_BYTES
        else:
            self.view = memoryview(memory)
            self.cells = self.view[:HEADER].cast("Q")
        self.head = self.load(HEAD)
        self.tail = self.load(TAIL)
        self.other = 0

    def release(self):
        """Let go of the memory."""
        if not cython.compiled:
            self.cells.release()
            self.view.release()
        self.memory = None

    # --- words that both sides see ------------------------------------------------------------------------------

    def load(self, word):
        if cython.compiled:
            return vb_acquire(self.words + word)
        return self.cells[word]

    def store(self, word, value):
        if cython.compiled:
            vb_release(self.words + word, value)
        else:
            self.cells[word] = value

    def fence(self):
        if cython.compiled:
            vb_fence()
        else:
            with _LOCK:  # taking a lock is a full fence on every processor that Python runs on
                pass

    def used(self):
        """Bytes in the ring."""
        return self.load(TAIL) - self.load(HEAD)

    def is_empty(self):
        return self.load(TAIL) == self.load(HEAD)

    def shut(self):
        """Tell the other side that nobody is here any more."""
        self.store(SHUT, 1)

    def is_shut(self):
        return self.load(SHUT) != 0

    # --- sleeping -----------------------------------------------------------------------------------------------

    def consumer_may_sleep(self):
        """Say that the reader sleeps; False: do not, there is something."""
        self.store(CONSUMER_SLEEPS, 1)
        self.fence()
        if self.is_empty():
            return True
        self.store(CONSUMER_SLEEPS, 0)
        return False

    def producer_may_sleep(self):
        """Say that the writer sleeps until half of the ring is free; False: do not, it is."""
        self.store(PRODUCER_SLEEPS, 1)
        self.fence()
        if self.used() * 2 > self.size:
            return True
        self.store(PRODUCER_SLEEPS, 0)
        return False

    def must_wake_consumer(self):
        """Ask after writing: is the reader asleep?  It is told once."""
        self.fence()
        if self.load(CONSUMER_SLEEPS):
            self.store(CONSUMER_SLEEPS, 0)
            return True
        return False

    def must_wake_producer(self):
        """Ask after reading: is the writer asleep, and half of the ring free?"""
        self.fence()
        if self.load(PRODUCER_SLEEPS) and self.used() * 2 <= self.size:
            self.store(PRODUCER_SLEEPS, 0)
            return True
        return False

    def awake(self):
        """Take back what `consumer_may_sleep` and `producer_may_sleep` said, for this side's part of it."""
        self.store(CONSUMER_SLEEPS, 0)

    # --- writing ------------------------------------------------------------------------------------------------

    def room_for(self, length):
        """Where a record of so many bytes goes; -1: there is no room."""
        need: cython.ulonglong = 8 + ((length + 7) & ~7)
        left: cython.ulonglong = self.size - (self.tail & self.mask)
        all_of_it: cython.ulonglong = need if need <= left else need + left
        if self.size - (self.tail - self.other) < all_of_it:
            self.other = self.load(HEAD)
            if self.tail - self.other > self.size:
                self.broken = True
                return -1
            if self.size - (self.tail - self.other) < all_of_it:
                return -1
        if need > left:
            if cython.compiled:
                cython.cast(cython.pointer(uint64_t), self.data + (self.tail & self.mask))[0] = SKIP
            else:
                at = HEADER + (self.tail & self.mask)
                self.view[at : at + 8] = SKIP.to_bytes(8, "little")
            self.tail += left
        return self.tail & self.mask

    def push_many(self, frames, start=0):
        """Write frames from number `start` on; returns how many there was room for."""
        at: cython.longlong
        size: cython.ulonglong
        count: cython.Py_ssize_t = 0
        i: cython.Py_ssize_t
        for i in range(start, len(frames)):
            data: bytes = frames[i]
            size = len(data)
            at = self.room_for(size)
            if at < 0:
                break
            if cython.compiled:
                cython.cast(cython.pointer(uint64_t), self.data + at)[0] = size
                memcpy(self.data + at + 8, PyBytes_AS_STRING(data), size)
            else:
                at += HEADER
                self.view[at : at + 8] = size.to_bytes(8, "little")
                self.view[at + 8 : at + 8 + size] = data
            self.tail += 8 + ((size + 7) & ~7)
            count += 1
        self.store(TAIL, self.tail)
        return count

    # --- reading ------------------------------------------------------------------------------------------------

    def next_record(self):
        """Length of the next frame, which begins at ``head + 8``; -1: none.  Nothing is taken yet."""
        length: cython.ulonglong
        at: cython.ulonglong
        while True:
            if self.head == self.other:
                self.other = self.load(TAIL)
                if self.head == self.other:
                    return -1
            at = self.head & self.mask
            if self.other - self.head > self.size or (self.head & 7):
                self.broken = True
                return -1
            if cython.compiled:
                length = cython.cast(cython.pointer(uint64_t), self.data + at)[0]
            else:
                length = int.from_bytes(self.view[HEADER + at : HEADER + at + 8], "little")
            if length == SKIP:
                if self.size - at > self.other - self.head:
                    self.broken = True
                    return -1
                self.head += self.size - at
                continue
            if length > self.size or at + 8 + length > self.size or 8 + length > self.other - self.head:
                self.broken = True
                return -1
            return length

    def skip(self, length):
        """Take the record that `next_record` found; `publish_head` gives its room back."""
        self.head += 8 + ((length + 7) & ~7)

    def pop_many(self, most):
        """Read up to `most` frames."""
        length: cython.longlong
        at: cython.ulonglong
        found: list = []
        while most > 0:
            length = self.next_record()
            if length < 0:
                break
            at = (self.head & self.mask) + 8
            if cython.compiled:
                found.append(
                    PyBytes_FromStringAndSize(
                        cython.cast(cython.pointer(cython.char), self.data + at), length
                    )
                )
            else:
                found.append(bytes(self.view[HEADER + at : HEADER + at + length]))
            self.skip(length)
            most -= 1
        self.store(HEAD, self.head)
        return found

    # --- between a ring and a switch ----------------------------------------------------------------------------

    def feed(self, engine: SwitchEngine, port: cython.int, most: cython.int):
        """Frames out of this ring into a port's input queues; returns how many were taken.

        Ends early at a frame that finds no room (`blocked` counts; it stays in the ring) and before a control frame
        (`control_frame` then has it).
        """
        length: cython.longlong
        at: cython.ulonglong
        outcome: cython.int
        count: cython.int = 0
        while count < most:
            length = self.next_record()
            if length < 0:
                break
            at = (self.head & self.mask) + 8
            if cython.compiled:
                outcome = engine.enter(port, self.data + at, length, length, True, False)
            else:
                frame = bytes(self.view[HEADER + at : HEADER + at + length])
                outcome = engine.enter(port, frame, length, length, True, False)
            if outcome == 0:
                self.blocked += 1
                break
            if outcome == 2:
                self.controls += 1
                break
            self.skip(length)
            count += 1
        self.store(HEAD, self.head)
        return count

    def drain(self, engine: SwitchEngine, port: cython.int, most: cython.int):
        """Frames out of a port's output queues into this ring; returns how many there was room for."""
        at: cython.longlong
        size: cython.longlong
        s: cython.int
        count: cython.int = 0
        while count < most:
            at = self.room_for(engine.max_frame + 4)
            if at < 0:
                break
            s = engine.take(port)
            if s < 0:
                break
            if cython.compiled:
                size = engine.give(s, port, self.data + at + 8)
                cython.cast(cython.pointer(uint64_t), self.data + at)[0] = size
            else:
                frame = engine.frame_of(s, port)
                size = len(frame)
                at += HEADER
                self.view[at : at + 8] = size.to_bytes(8, "little")
                self.view[at + 8 : at + 8 + size] = frame
            engine.release(s)
            self.tail += 8 + ((size + 7) & ~7)
            count += 1
        self.store(TAIL, self.tail)
        return count
