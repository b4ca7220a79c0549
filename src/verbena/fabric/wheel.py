"""The event queue of the fabric simulator: a hierarchical timing wheel in picoseconds.

The lowest level has 4,096 slots of 4,096 ps; a slot of each level above spans the whole level below, so that five
levels reach 2^63 ps, further than the clock.  An event lies on the level of the highest digit (of 12 bits) in which
its time differs from the present, and comes down a level when the present enters its slot: that is once for most
events, and never more than four times.  A map with a bit for each occupied slot lets the present jump over empty time
in a few steps, however far.

A slot keeps its events as they come, in batches.  When the present enters it, they are copied into one array, the
*agenda*, and sorted by time and then in the order in which they were scheduled (radix sort: the cost of an event does
not grow with their number); the order of events never depends on the width of a slot.  As the agenda says what comes
next, the memory that the next events need is fetched into the cache while the present one is worked on.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.fabric.tables import Tables

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, free, realloc
    from cython.cimports.verbena.fabric.tables import *
else:
    from verbena._declarations import declarations
    from verbena.fabric.tables import *

    globals().update(declarations(__file__))

ONE = 1


def lane_beside(port, lane):
    """Where a port's data lane lies (see `Tables._make_port`), without looking at the port."""
    at: cython.size_t
    if cython.compiled:
        at = (cython.sizeof(Port) + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
        at += (cython.sizeof(Lane) + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE * lane
        return cython.cast(cython.pointer(Lane), cython.cast(cython.pointer(uint8_t), port) + at)
    return port.lane[lane]


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
        self.agenda_at = self.agenda_end = self.agenda_room = 0
        if cython.compiled:
            self.first = cython.cast(
                cython.pointer(cython.pointer(Batch)), calloc(LEVELS * SLOTS, cython.sizeof(cython.p_void))
            )
            self.last = cython.cast(
                cython.pointer(cython.pointer(Batch)), calloc(LEVELS * SLOTS, cython.sizeof(cython.p_void))
            )
            self.map = cython.cast(cython.pointer(uint64_t), calloc(LEVELS * WORDS, 8))
            self.summary = cython.cast(cython.pointer(uint64_t), calloc(LEVELS, 8))
            if not (self.first and self.last and self.map and self.summary):
                raise MemoryError
            self.grow_agenda(256)
        else:
            self.first = [None] * (LEVELS * SLOTS)
            self.agenda = []
            self.map = [0] * (LEVELS * WORDS)
            self.summary = [0] * LEVELS

    def __dealloc__(self):
        if cython.compiled:
            free(self.first)
            free(self.last)
            free(self.map)
            free(self.summary)
            free(self.agenda)
            free(self.scratch)

    @cython.final
    def grow_agenda(self, room):
        if cython.compiled and room > self.agenda_room:
            self.agenda_room = room * 2
            self.agenda = cython.cast(
                cython.pointer(Event), realloc(self.agenda, self.agenda_room * cython.sizeof(Event))
            )
            self.scratch = cython.cast(
                cython.pointer(Event), realloc(self.scratch, self.agenda_room * cython.sizeof(Event))
            )
            if not self.agenda or not self.scratch:
                Py_FatalError("verbena: no memory left for the fabric")

    @cython.final
    def schedule(self, time, kind, port):
        """A new event; the caller fills in what else it needs, at once.  Times in the past count as the present."""
        if time < self.now_ps:
            time = self.now_ps
        e = self.place(time)
        e.time = time
        e.kind = kind
        e.port = port
        self.scheduled += 1
        return e

    @cython.final
    def place(self, time):
        """Where an event of that time goes."""
        if self.sorted and (time >> TICK_BITS) <= self.tick:
            return self.put_in_order(time)
        return self.put_last(self.slot_of(time))

    @cython.final
    def slot_of(self, time):
        tick: cython.longlong = time >> TICK_BITS
        level: cython.int = 0
        if tick <= self.tick:
            tick = self.tick
        elif (tick ^ self.tick) >= SLOTS:
            level = highest_bit(cython.cast(cython.ulonglong, tick ^ self.tick)) // SLOT_BITS
        return level * SLOTS + cython.cast(cython.int, (tick >> (level * SLOT_BITS)) & (SLOTS - 1))

    @cython.final
    def put_last(self, at):
        """At the end of a slot."""
        word: cython.int = at >> 6
        if not self.first[at]:
            self.map[word] |= ONE << (at & 63)
            self.summary[at >> SLOT_BITS] |= ONE << (word & 63)
        if cython.compiled:
            batch = self.last[at]
            if not batch or batch.count == BATCH:
                batch = self.free_batches
                if batch:
                    self.free_batches = batch.next
                    batch.next = NO_BATCH
                    batch.count = 0
                else:
                    batch = self.new_batch()
                if self.first[at]:
                    self.last[at].next = batch
                else:
                    self.first[at] = batch
                self.last[at] = batch
            batch.count += 1
            return cython.address(batch.event[batch.count - 1])
        if not self.first[at]:
            self.first[at] = []
        self.first[at].append(Event())
        return self.first[at][-1]

    @cython.final
    def put_in_order(self, time):
        """Into the slot that is worked on: behind everything that is not later."""
        if self.agenda_at == self.agenda_end:
            self.agenda_at = self.agenda_end = 0
        at: int32_t = self.agenda_end
        self.agenda_end += 1
        if cython.compiled:
            if self.agenda_end > self.agenda_room:
                self.grow_agenda(self.agenda_end)
            while at > self.agenda_at and self.agenda[at - 1].time > time:
                self.agenda[at] = self.agenda[at - 1]
                at -= 1
            return cython.address(self.agenda[at])
        while at > self.agenda_at and self.agenda[at - 1].time > time:
            at -= 1
        del self.agenda[self.agenda_end - 1 :]  # what has passed
        self.agenda.insert(at, Event())
        return self.agenda[at]

    @cython.final
    def mark_empty(self, at):
        word: cython.int = at >> 6
        if cython.compiled:
            self.first[at] = NO_BATCH
            self.last[at] = NO_BATCH
        else:
            self.first[at] = None
        self.map[word] &= ~(ONE << (at & 63))
        if not self.map[word]:
            self.summary[at >> SLOT_BITS] &= ~(ONE << (word & 63))

    @cython.final
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

    @cython.final
    def collect(self, at):
        """Put a slot's events at the end of the agenda, in order."""
        i: cython.int
        start: int32_t = self.agenda_end
        count: int32_t = start
        self.sorted = True
        if cython.compiled:
            batch = self.first[at]
            while batch:
                if count + BATCH > self.agenda_room:
                    self.grow_agenda(count + BATCH)
                for i in range(batch.count):
                    self.agenda[count + i] = batch.event[i]
                count += batch.count
                following = batch.next
                batch.next = self.free_batches
                self.free_batches = batch
                batch = following
            self.agenda_end = count
            self.mark_empty(at)
            self.sort_agenda(start)
        else:
            self.agenda = self.agenda[:start] + sorted(self.first[at], key=_time_of)
            self.agenda_end = len(self.agenda)
            self.mark_empty(at)

    @cython.final
    def collect_from(self, slot, last_tick):
        """A new agenda: the events of a slot, and of those just after it if it has few (`look_ahead` needs some)."""
        frame: cython.longlong = self.tick & ~(SLOTS - 1)
        end: int32_t = slot + SPAN
        following: int32_t
        self.agenda_at = self.agenda_end = 0
        self.collect(slot)
        if self.port_count >= MANY and not self.flits:  # whose events follow each other too closely
            while self.agenda_end < ENOUGH:
                following = self.next_slot(0, slot + 1)
                if following < 0 or following >= end or frame + following > last_tick:
                    break
                slot = following
                self.collect(slot)
        self.tick = frame + slot

    @cython.final
    def sort_agenda(self, start):
        """From `start` on, by time; what has the same time stays in its order."""
        i: int32_t
        at: int32_t
        count: int32_t = self.agenda_end - start
        moved: Event
        if not cython.compiled:
            return
        if count > FEW:
            self.sort_by_digit(self.agenda + start, self.scratch, count, 0)
            self.sort_by_digit(self.scratch, self.agenda + start, count, RADIX_BITS)
            return
        for i in range(start + 1, self.agenda_end):
            if self.agenda[i - 1].time <= self.agenda[i].time:
                continue
            moved = self.agenda[i]
            at = i
            while at > start and self.agenda[at - 1].time > moved.time:
                self.agenda[at] = self.agenda[at - 1]
                at -= 1
            self.agenda[at] = moved

    @cython.final
    def sort_by_digit(self, source, target, count, shift):
        """One pass of the radix sort: by six bits of the time within the slot."""
        i: int32_t
        digit: cython.int
        total: int32_t = 0
        start: int32_t[64]
        if cython.compiled:
            for i in range(64):
                start[i] = 0
            for i in range(count):
                start[(source[i].time >> shift) & 63] += 1
            for i in range(64):
                total += start[i]
                start[i] = total - start[i]
            for i in range(count):
                digit = (source[i].time >> shift) & 63
                target[start[digit]] = source[i]
                start[digit] += 1

    @cython.final
    def look_ahead(self, at):
        """Fetch into the cache what the events after that one will need, in steps, as one thing leads to the next.

        Nothing depends on what is fetched: an address that leads nowhere does no harm.
        """
        if not cython.compiled:
            return
        if at + STEP * 4 < self.agenda_end:
            e = cython.address(self.agenda[at + STEP * 4])
            prefetch(e.what)
            prefetch(e.port)
            if e.kind == EVENT_ARRIVE:
                prefetch(cython.address(lane_beside(e.port, e.lane).occupied))
            else:
                prefetch(cython.address(e.port.free_ps))
        if at + STEP * 2 < self.agenda_end:
            e = cython.address(self.agenda[at + STEP * 2])
            if e.kind == EVENT_ARRIVE:
                p = cython.cast(cython.pointer(Packet), e.what)
                prefetch(cython.address(e.port.node.lft[p.dlid]))
                if e.port.lane[e.lane]:
                    prefetch(e.port.lane[e.lane].inbox)
            elif e.kind == EVENT_SENT and e.what:
                q = cython.cast(cython.pointer(Queue), e.what)
                prefetch(q.port)
                prefetch(q.sending)
                prefetch(cython.address(lane_beside(q.port, q.lane).occupied))
        if at + STEP < self.agenda_end:
            e = cython.address(self.agenda[at + STEP])
            if e.kind == EVENT_ARRIVE:
                p = cython.cast(cython.pointer(Packet), e.what)
                node = e.port.node
                if p.dlid < node.lft_size:
                    o = node.port[node.lft[p.dlid]]
                    prefetch(o)
                    prefetch(cython.address(o.free_ps))
                    prefetch(lane_beside(o, e.lane))
                else:
                    prefetch(cython.address(p.born_ps))
                    prefetch(cython.address(e.port.counters[DELIVERED]))

    @cython.final
    def next_event(self, until):
        """Take out the earliest event, if it is due by `until` (ps); nothing otherwise.

        It stays readable until the next event is scheduled.
        """
        last_tick: cython.longlong = until >> TICK_BITS
        at: int32_t
        slot: int32_t
        while True:
            at = self.agenda_at
            if at < self.agenda_end:
                if self.agenda[at].time > until:
                    return NO_EVENT
                self.agenda_at = at + 1
                self.scheduled -= 1
                if self.port_count >= MANY:
                    self.look_ahead(at)
                return cython.address(self.agenda[at]) if cython.compiled else self.agenda[at]
            if self.scheduled == 0:
                break
            slot = self.next_slot(0, cython.cast(cython.int, self.tick & (SLOTS - 1)))
            if slot >= 0:
                if (self.tick & ~(SLOTS - 1)) + slot > last_tick:
                    break
                self.collect_from(slot, last_tick)
            elif not self.descend(last_tick):
                break
        if last_tick > self.tick:
            self.advance(last_tick)
        return NO_EVENT

    @cython.final
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
            self.spread(level * SLOTS + slot)
            return True
        return False

    @cython.final
    def spread(self, at):
        """The events of a slot above the lowest level come down."""
        i: cython.int
        if cython.compiled:
            batch = self.first[at]
            self.mark_empty(at)
            while batch:
                for i in range(batch.count):
                    e = self.place(batch.event[i].time)
                    e[0] = batch.event[i]
                following = batch.next
                batch.next = self.free_batches
                self.free_batches = batch
                batch = following
        else:
            events = self.first[at]
            self.mark_empty(at)
            for e in events:
                slot = self.slot_of(e.time)
                self.put_last(slot)
                self.first[slot][-1] = e

    @cython.final
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
            if self.first[at]:
                self.spread(at)

    @cython.final
    def earliest(self):
        """The time of the earliest event in ps; -1: there is none."""
        level: cython.int
        slot: int32_t
        i: cython.int
        best: cython.longlong = -1
        if self.agenda_at < self.agenda_end:
            return self.agenda[self.agenda_at].time
        for level in range(LEVELS):
            slot = self.next_slot(
                level, cython.cast(cython.int, (self.tick >> (level * SLOT_BITS)) & (SLOTS - 1))
            )
            if slot < 0:
                continue
            if not cython.compiled:
                return min(e.time for e in self.first[level * SLOTS + slot])
            batch = self.first[level * SLOTS + slot]
            while batch:
                for i in range(batch.count):
                    if best < 0 or batch.event[i].time < best:
                        best = batch.event[i].time
                batch = batch.next
            return best
        return best


def _time_of(e):
    return e.time
