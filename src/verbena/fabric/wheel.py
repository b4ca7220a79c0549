"""The event queue of the fabric simulator: a hierarchical timing wheel in picoseconds.

The lowest level has 4,096 slots of 1,024 ps; a slot of each level above spans the whole level below, so that five
levels reach 2^63 ps, further than the clock.  An event lies on the level of the highest digit (of 12 bits) in which
its time differs from the present, and comes down a level when the present enters its slot: that is once for most
events, and never more than four times.  A map with a bit for each occupied slot lets the present jump over empty time
in a few steps, however far.

Within a slot events are sorted when the present enters it, by time and then in the order in which they were scheduled:
the order of events never depends on the width of a slot.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.fabric.tables import Tables

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, free
    from cython.cimports.verbena.fabric.tables import *
else:
    from verbena._declarations import declarations
    from verbena.fabric.tables import *

    globals().update(declarations(__file__))

ONE = 1


def lowest_bit(word):
    """The number of the lowest bit that is set; the word must not be 0."""
    if cython.compiled:
        return count_trailing_zeros(word)
    return (word & -word).bit_length() - 1


def highest_bit(word):
    """The number of the highest bit that is set; the word must not be 0."""
    if cython.compiled:
        return 63 - count_leading_zeros(word)
    return word.bit_length() - 1


class Wheel(Tables):
    """The events of one fabric in the order of their times."""

    def __init__(self, flits):
        super().__init__(flits)
        self.tick = 0
        self.scheduled = 0
        self.sorted = False
        if cython.compiled:
            self.first = cython.cast(
                cython.pointer(cython.pointer(Event)), calloc(LEVELS * SLOTS, cython.sizeof(cython.p_void))
            )
            self.last = cython.cast(
                cython.pointer(cython.pointer(Event)), calloc(LEVELS * SLOTS, cython.sizeof(cython.p_void))
            )
            self.map = cython.cast(cython.pointer(uint64_t), calloc(LEVELS * WORDS, 8))
            self.summary = cython.cast(cython.pointer(uint64_t), calloc(LEVELS, 8))
            if not (self.first and self.last and self.map and self.summary):
                raise MemoryError
        else:
            self.first = [None] * (LEVELS * SLOTS)
            self.last = [None] * (LEVELS * SLOTS)
            self.map = [0] * (LEVELS * WORDS)
            self.summary = [0] * LEVELS

    def __dealloc__(self):
        if cython.compiled:
            free(self.first)
            free(self.last)
            free(self.map)
            free(self.summary)

    def schedule(self, time, kind, port):
        """A new event; the caller fills in what else it needs.  Times in the past count as the present."""
        e = self.new_event()
        e.time = time
        e.kind = kind
        e.port = port
        self.scheduled += 1
        self.place(e)
        return e

    def free_event(self, e):
        e.next = self.free_events
        self.free_events = e
        self.scheduled -= 1

    def place(self, e):
        tick: cython.longlong = e.time >> TICK_BITS
        level: cython.int = 0
        digit: cython.int
        at: int32_t
        if tick < self.tick:
            tick = self.tick
        if tick != self.tick:
            level = highest_bit(cython.cast(cython.ulonglong, tick ^ self.tick)) // SLOT_BITS
        digit = (tick >> (level * SLOT_BITS)) & (SLOTS - 1)
        at = level * SLOTS + digit
        if tick == self.tick and self.sorted:
            self.put_in_order(at, e)
        else:
            self.put_last(at, e)

    def put_last(self, at, e):
        word: cython.int = at >> 6
        e.next = NO_EVENT
        if self.first[at]:
            self.last[at].next = e
        else:
            self.first[at] = e
            self.map[word] |= ONE << (at & 63)
            self.summary[at >> SLOT_BITS] |= ONE << (word & 63)
        self.last[at] = e

    def put_in_order(self, at, e):
        """Into the slot that is worked on: behind everything that is not later."""
        if not self.first[at] or self.last[at].time <= e.time:
            self.put_last(at, e)
        elif e.time < self.first[at].time:
            e.next = self.first[at]
            self.first[at] = e
        else:
            before = self.first[at]
            while before.next and before.next.time <= e.time:
                before = before.next
            e.next = before.next
            before.next = e

    def clear_slot(self, at):
        word: cython.int = at >> 6
        self.first[at] = NO_EVENT
        self.last[at] = NO_EVENT
        self.map[word] &= ~(ONE << (at & 63))
        if not self.map[word]:
            self.summary[at >> SLOT_BITS] &= ~(ONE << (word & 63))

    def next_slot(self, level, slot):
        """The first occupied slot of a level from `slot` on; -1: none."""
        word: cython.int = slot >> 6
        bits: uint64_t
        if slot >= SLOTS:
            return -1
        bits = self.map[level * WORDS + word] >> (slot & 63)
        if bits:
            return slot + lowest_bit(bits)
        if word == WORDS - 1:
            return -1
        bits = self.summary[level] >> (word + 1)
        if not bits:
            return -1
        word += 1 + lowest_bit(bits)
        return (word << 6) + lowest_bit(self.map[level * WORDS + word])

    def sort_slot(self, at):
        """Stable merge sort of a slot's list by time: runs of 1, 2, 4, ... are merged."""
        run: cython.int = 1
        merges: cython.int
        left: cython.int
        right: cython.int
        head = self.first[at]
        if not head.next:
            return
        while True:
            merges = 0
            p = head
            head = NO_EVENT
            tail = NO_EVENT
            while p:
                merges += 1
                q = p
                left = 0
                while left < run and q:
                    left += 1
                    q = q.next
                right = run
                while left > 0 or (right > 0 and q):
                    if left > 0 and (right == 0 or not q or p.time <= q.time):
                        e = p
                        p = p.next
                        left -= 1
                    else:
                        e = q
                        q = q.next
                        right -= 1
                    if tail:
                        tail.next = e
                    else:
                        head = e
                    tail = e
                p = q
            tail.next = NO_EVENT
            if merges <= 1:
                break
            run *= 2
        self.first[at] = head
        self.last[at] = tail

    def next_event(self, until):
        """Take out the earliest event, if it is due by `until` (ps); nothing otherwise."""
        last_tick: cython.longlong = until >> TICK_BITS
        slot: int32_t
        while self.scheduled > 0:
            slot = self.next_slot(0, cython.cast(cython.int, self.tick & (SLOTS - 1)))
            if slot >= 0:
                if slot != (self.tick & (SLOTS - 1)):
                    if (self.tick & ~(SLOTS - 1)) + slot > last_tick:
                        break
                    self.tick = (self.tick & ~(SLOTS - 1)) + slot
                    self.sorted = False
                if not self.sorted:
                    self.sort_slot(slot)
                    self.sorted = True
                e = self.first[slot]
                if e.time > until:
                    return NO_EVENT
                if e.next:
                    self.first[slot] = e.next
                else:
                    self.clear_slot(slot)
                return e
            if not self.descend(last_tick):
                break
        if last_tick > self.tick:
            self.advance(last_tick)
        return NO_EVENT

    def descend(self, last_tick):
        """Bring the next occupied slot above the lowest level down, unless it begins after `last_tick`."""
        level: cython.int
        slot: int32_t
        start: cython.longlong
        shift: cython.int
        for level in range(1, LEVELS):
            shift = level * SLOT_BITS
            slot = self.next_slot(level, cython.cast(cython.int, (self.tick >> shift) & (SLOTS - 1)))
            if slot < 0:
                continue
            start = ((self.tick >> (shift + SLOT_BITS)) << (shift + SLOT_BITS)) + (
                cython.cast(cython.longlong, slot) << shift
            )
            if start > last_tick:
                return False
            self.tick = start
            self.sorted = False
            e = self.first[level * SLOTS + slot]
            self.clear_slot(level * SLOTS + slot)
            while e:
                following = e.next
                self.place(e)
                e = following
            return True
        return False

    def advance(self, tick):
        """Make the empty time up to `tick` the past.

        The slots above the lowest level that the present enters this way may hold events: they come down now.
        """
        level: cython.int
        at: int32_t
        self.tick = tick
        self.sorted = False
        for level in range(LEVELS - 1, 0, -1):
            at = level * SLOTS + cython.cast(cython.int, (tick >> (level * SLOT_BITS)) & (SLOTS - 1))
            e = self.first[at]
            if e:
                self.clear_slot(at)
                while e:
                    following = e.next
                    self.place(e)
                    e = following

    def earliest(self):
        """The time of the earliest event in ps; -1: there is none."""
        level: cython.int
        slot: int32_t
        best: cython.longlong = -1
        for level in range(LEVELS):
            slot = self.next_slot(
                level, cython.cast(cython.int, (self.tick >> (level * SLOT_BITS)) & (SLOTS - 1))
            )
            if slot < 0:
                continue
            e = self.first[level * SLOTS + slot]
            while e:
                if best < 0 or e.time < best:
                    best = e.time
                if level == 0 and self.sorted and slot == (self.tick & (SLOTS - 1)):
                    break
                e = e.next
            return best
        return best
