"""Events of completion queues: from an entry to the interrupt of the handler that its queue is bound to.

Document 001, figure 4, blocks 416 to 430, for each entry.  Each handler that the adapter can have is a *vector* here:
an interrupt in the manner of MSI-X (a write of data to an address, with mask and pending bit: PCI Local Bus 3.0,
6.8.2), and a line of the completion queues whose event waits to be taken.  A queue stands in a line once at most, so
that a line needs no memory of its own and cannot overflow; events that come while one of the same queue waits merge
with it.

The interrupt is only noted here.  Whoever drives the adapter makes the write when he lets go of its lock: by then the
entry can be seen, whatever order entry and event were made in.  Callers hold the adapter's lock.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError
from verbena.transport.schedule import Schedule

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, free
    from cython.cimports.verbena.transport.tables import *
else:
    from verbena._declarations import declarations
    from verbena.transport.tables import *

    globals().update(declarations(__file__))


class Notification(Schedule):
    """The tables of one adapter, with its vectors.

    solicited_armed: a solicited entry raises an event only where one was asked for (IBA vol. 1, 11.4.2.2; iWARP), not
    on every queue with a handler (document 001, paragraph 38).  entry_first: the entry is posted, then its event is
    built; else the other way round (blocks 424, 426).
    """

    if not cython.compiled:
        max_vectors, first_due, last_due, moderated, now_ns = 0, -1, -1, 0, 0
        function_masked = shutting = ended = solicited_armed = entry_first = tracing = False
        traced = told = 0

    def __dealloc__(self):
        if cython.compiled:
            free(self.vectors)
            free(self.steps)

    def make_vectors(self, number):
        """Make the vectors; once."""
        i: cython.int
        self.first_due = self.last_due = -1
        if cython.compiled:
            self.vectors = cython.cast(cython.pointer(Vector), calloc(max(1, number), cython.sizeof(Vector)))
            if not self.vectors:
                raise MemoryError
        else:
            self.vectors = [Vector() for _ in range(number)]
        self.max_vectors = number
        for i in range(number):
            self.vectors[i].first_cq = self.vectors[i].last_cq = self.vectors[i].descriptor = -1

    def vector_at(self, place):
        if not 0 <= place < self.max_vectors or self.vectors[place].identifier == 0:
            raise InvalidAttributeError(f"vector {place} belongs to no completion handler")
        if cython.compiled:
            return cython.address(self.vectors[place])
        else:
            return self.vectors[place]

    # --- for each entry -----------------------------------------------------------------------------------

    def wanted(self, cq, entry, solicited):
        """Does the entry raise an event (blocks 416 to 420)?  EVENT_* if it does, else 0."""
        kind: cython.int = 0
        error: cython.bint = entry.status != SUCCESS
        asked: cython.bint
        ring = self.cqs[cq]
        asked = (
            ring.armed == ARMED_ANY
            or (ring.armed == ARMED_SOLICITED and (solicited or error))
            or (ring.armed == ARMED_ERRORS and error)
        )
        if self.tracing:
            self.step(416, cq, entry.qpn, 1)
            self.step(418, cq, entry.qpn, solicited)
            if not solicited or self.solicited_armed:
                self.step(420, cq, entry.qpn, asked)
        if asked:
            kind = EVENT_ASKED
        elif not solicited or self.solicited_armed or ring.handler < 0:
            return 0
        if solicited:
            kind |= EVENT_SOLICITED
        if error:
            kind |= EVENT_ERROR
        return kind

    def announce(self, cq, entry, kind):
        """Build the event for the handler that the queue names (blocks 422, 424).  The queue has one."""
        ring = self.cqs[cq]
        place: cython.int = ring.handler
        if kind & EVENT_ASKED:
            ring.armed = ARMED_NOT
        if self.tracing:
            self.step(422, cq, entry.qpn, self.vectors[place].identifier)
        if self.ended:
            self.vectors[place].discarded += 1
            return
        if self.tracing:
            self.step(424, cq, entry.qpn, self.vectors[place].identifier)
        self.vectors[place].events += 1
        if ring.announced:
            self.vectors[place].merged += 1
            ring.merged += 1
            ring.event_kind |= kind
            if self.vectors[place].held:
                self.interrupt(place)
            return
        ring.announced = True
        ring.event_kind = kind
        ring.event_qpn = entry.qpn
        ring.event_wr_id = entry.wr_id
        ring.event_ns = self.now_ns
        ring.merged = 0
        self.append(place, cq)
        self.interrupt(place)

    def append(self, place, cq):
        """Put a queue at the end of a vector's line."""
        self.cqs[cq].next_event = -1
        if self.vectors[place].waiting == 0:
            self.vectors[place].first_cq = cq
        else:
            self.cqs[self.vectors[place].last_cq].next_event = cq
        self.vectors[place].last_cq = cq
        self.vectors[place].waiting += 1

    def unlink(self, place, cq):
        """Take a queue out of a vector's line, wherever it stands."""
        before: cython.int = -1
        at: cython.int = self.vectors[place].first_cq
        while at != cq:
            before = at
            at = self.cqs[at].next_event
        if before < 0:
            self.vectors[place].first_cq = self.cqs[cq].next_event
        else:
            self.cqs[before].next_event = self.cqs[cq].next_event
        if self.vectors[place].last_cq == cq:
            self.vectors[place].last_cq = before
        self.vectors[place].waiting -= 1
        if self.vectors[place].waiting == 0:
            self.vectors[place].raised = False

    # --- interrupts ---------------------------------------------------------------------------------------

    def interrupt(self, place):
        """An event happened: interrupt now, or with those that follow (moderation)."""
        if self.vectors[place].longest_ns:
            self.vectors[place].held += 1
            if self.vectors[place].held < self.vectors[place].most:
                if self.vectors[place].deadline_ns == 0:
                    self.vectors[place].deadline_ns = self.now_ns + self.vectors[place].longest_ns
                    self.moderated += 1
                return
        self.message(place)

    def message(self, place):
        """Note a write to the vector's address, or its pending bit where it is masked."""
        self.vectors[place].held = 0
        if self.vectors[place].deadline_ns:
            self.vectors[place].deadline_ns = 0
            self.moderated -= 1
        if self.vectors[place].masked or self.function_masked:
            self.vectors[place].pending = True
            return
        self.vectors[place].interrupts += 1
        self.vectors[place].raised = self.vectors[place].waiting > 0
        if self.vectors[place].due:
            return
        self.vectors[place].due = True
        self.vectors[place].next_due = -1
        if self.first_due < 0:
            self.first_due = place
        else:
            self.vectors[self.last_due].next_due = place
        self.last_due = place

    def next_message(self):
        """The vector whose write is to be made next, taken off the line; -1 when there is none."""
        place: cython.int = self.first_due
        if place >= 0:
            self.first_due = self.vectors[place].next_due
            self.vectors[place].due = False
        return place

    def expire(self, now):
        """Moderation timers that are over."""
        i: cython.int
        for i in range(self.max_vectors):
            if self.vectors[i].deadline_ns and self.vectors[i].deadline_ns <= now:
                self.message(i)

    def earliest(self):
        """When timers must be served next; 0 = none runs."""
        i: cython.int
        when: cython.ulonglong = Schedule.earliest(self)
        if self.moderated:
            for i in range(self.max_vectors):
                if self.vectors[i].deadline_ns and (when == 0 or self.vectors[i].deadline_ns < when):
                    when = self.vectors[i].deadline_ns
        return when

    # --- for software -------------------------------------------------------------------------------------

    def open_vector(self, place, identifier, address, data, descriptor):
        """A vector is a handler's from now on."""
        at: cython.int = place
        self.vectors[at].identifier = identifier
        self.vectors[at].masked = self.vectors[at].pending = self.vectors[at].raised = False
        self.vectors[at].most = self.vectors[at].longest_ns = self.vectors[at].held = 0
        self.vectors[at].events = self.vectors[at].merged = self.vectors[at].interrupts = 0
        self.vectors[at].taken = self.vectors[at].discarded = 0
        self.set_vector(place, address, data, descriptor)

    def set_vector(self, place, address, data, descriptor):
        """Where its interrupts go from now on; one for what waits already goes there, too."""
        at: cython.int = place
        v = self.vector_at(at)
        v.address, v.data, v.descriptor = address, data, descriptor
        if v.waiting:
            self.message(at)

    def close_vector(self, place):
        """The vector is nobody's again.  No queue may be bound to it."""
        at: cython.int = place
        v = self.vector_at(at)
        if v.deadline_ns:
            v.deadline_ns = 0
            self.moderated -= 1
        v.identifier, v.descriptor, v.held = 0, -1, 0

    def mask(self, place, masked):
        """Hold a vector's interrupts back, or let them go: one, if any came meanwhile."""
        at: cython.int = place
        v = self.vector_at(at)
        v.masked = masked
        if not masked and v.pending and not self.function_masked:
            v.pending = False
            self.message(at)

    def mask_function(self, masked):
        """`mask` for all vectors, beside their own masks."""
        i: cython.int
        self.function_masked = masked
        for i in range(self.max_vectors):
            if not masked and self.vectors[i].pending and not self.vectors[i].masked:
                self.vectors[i].pending = False
                self.message(i)

    def moderate(self, place, most, longest_ns):
        """One interrupt for `most` events, `longest_ns` after the first at the latest; 0 ns ends it."""
        at: cython.int = place
        v = self.vector_at(at)
        v.most, v.longest_ns = most, longest_ns
        if v.held:
            self.message(at)

    def messages(self):
        """Take the writes that are to be made: (vector, address, data, descriptor)."""
        at: cython.int
        found = []
        while True:
            at = self.next_message()
            if at < 0:
                return found
            if self.vectors[at].identifier:
                found.append(
                    (at, self.vectors[at].address, self.vectors[at].data, self.vectors[at].descriptor)
                )

    def bind(self, index, place):
        """Bind a completion queue to a vector (-1: to none).

        An event that nobody has taken goes with it; with no new handler, it ends.
        """
        cq: cython.int = index
        old: cython.int
        new: cython.int = place
        ring = self.cq_at(cq)
        if new >= 0:
            self.vector_at(new)
        old = ring.handler
        if old == new:
            return
        ring.handler = new
        if new < 0:
            ring.armed = ARMED_NOT  # what was asked for was a call of the handler
        if not ring.announced:
            return
        self.unlink(old, cq)
        if new >= 0:
            self.vectors[new].events += 1
            self.vectors[old].events -= 1
            self.append(new, cq)
            self.interrupt(new)
        else:
            ring.announced = False
            self.vectors[old].discarded += 1

    def handler_of(self, index):
        """The vector that a queue is bound to; -1 = none."""
        at: cython.int = index
        return self.cq_at(at).handler

    def take_event(self, place):
        """The oldest event of a vector's line, or None: (queue, qp, wr_id, EVENT_*, when, how many merged with it)."""
        at: cython.int = place
        if self.vectors[at].waiting == 0:
            return None
        cq: cython.int = self.vectors[at].first_cq
        ring = self.cqs[cq]
        self.vectors[at].first_cq = ring.next_event
        self.vectors[at].waiting -= 1
        self.vectors[at].taken += 1
        if self.vectors[at].waiting == 0:
            self.vectors[at].raised = False
        ring.announced = False
        return (cq, ring.event_qpn, ring.event_wr_id, ring.event_kind, ring.event_ns, ring.merged)

    def announce_again(self, index):
        """A handler has left entries in the queue: it is called for them, after others, without another interrupt."""
        cq: cython.int = index
        place: cython.int
        ring = self.cq_at(cq)
        place = ring.handler
        if place < 0 or ring.announced or ring.head == ring.tail:
            return
        self.vectors[place].events += 1
        ring.announced = True
        ring.event_ns = self.now_ns
        ring.merged = 0
        self.append(place, cq)
        if self.vectors[place].masked or self.function_masked:
            self.vectors[place].pending = True
        else:
            self.vectors[place].raised = True

    def waiting(self, place):
        """Queues whose event waits to be taken."""
        at: cython.int = place
        return self.vectors[at].waiting

    def announced(self, place):
        """Those of them that an interrupt told of: none while it is masked, or held back."""
        at: cython.int = place
        return self.vectors[at].waiting if self.vectors[at].raised else 0

    def has_messages(self):
        """Do writes wait to be made?"""
        return self.first_due >= 0

    def vector(self, place):
        """What a vector holds, by name."""
        at: cython.int = place
        v = self.vector_at(at)
        return {
            "address": v.address,
            "data": v.data,
            "masked": bool(v.masked),
            "pending": bool(v.pending),
            "most": v.most,
            "longest_ns": v.longest_ns,
            "held": v.held,
            "waiting": v.waiting,
            "events": v.events,
            "merged": v.merged,
            "interrupts": v.interrupts,
            "taken": v.taken,
            "discarded": v.discarded,
        }

    # --- the trace ----------------------------------------------------------------------------------------

    def trace(self, on):
        """Begin to note the blocks of figure 4, or end it."""
        if on and self.traced == 0:
            if cython.compiled:
                self.steps = cython.cast(cython.pointer(Step), calloc(TRACE_STEPS, cython.sizeof(Step)))
                if not self.steps:
                    raise MemoryError
            else:
                self.steps = [Step() for _ in range(TRACE_STEPS)]
            self.traced = self.told = 1
        self.tracing = on

    def step(self, block, cq, qpn, answer):
        """Note that a block was passed; of the oldest ones the trace forgets."""
        at: cython.uint = self.traced & (TRACE_STEPS - 1)
        self.steps[at].block = block
        self.steps[at].cq = cq
        self.steps[at].qpn = qpn
        self.steps[at].answer = answer
        self.steps[at].when = self.now_ns
        self.traced += 1

    def note(self, block, cq, qpn, answer):
        """`step`, for callers in Python."""
        if self.tracing:
            self.step(block, cq, qpn, answer)

    def take_steps(self):
        """The steps since the last call, oldest first: (block, queue, qp, answer, when); and how many are forgotten."""
        at: cython.uint
        found = []
        lost: cython.ulonglong = 0
        if self.traced - self.told > TRACE_STEPS:
            lost = self.traced - self.told - TRACE_STEPS
        self.told += lost
        while self.told != self.traced:
            at = self.told & (TRACE_STEPS - 1)
            s = self.steps[at]
            found.append((s.block, s.cq, s.qpn, s.answer, s.when))
            self.told += 1
        return found, lost
