"""Whose turn it is on a link: between the lanes of an output, and between the inputs of a lane.

**Between inputs**: the heads that wait for one lane of one output stand in a ring, in the order in which they came;
an input that was served goes to the end.  That is round robin among the inputs that have something to send.

**Between lanes** (IBA vol. 1, 7.6.9): VL15 goes first.  Without tables, data lanes take turns, a packet each.  With
tables, the high-priority table is served as long as it has a lane that can send, but low priority has a turn after
Limit_High x 4,096 bytes (0: after each packet; 255: never as long as there is high priority).  Within a table, weighted
round robin: an entry may send weight x 64 bytes (a packet that begins within them goes out whole), then the next
entry has its turn; an entry of weight 0 is skipped.

A packet may begin only when the peer has room for all of it (credits of its lane).
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError
from verbena.fabric.ledger import Ledger

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, free
    from cython.cimports.verbena.fabric.tables import *
    from cython.cimports.verbena.fabric.wheel import lowest_bit
else:
    from verbena._declarations import declarations
    from verbena.fabric.tables import *
    from verbena.fabric.wheel import lowest_bit

    globals().update(declarations(__file__))


class Arbitration(Ledger):
    """Which lane and which input an output serves next."""

    @cython.final
    def may_send(self, o, lane):
        """Could this lane send now?  In train mode: is there credit for all of its next packet?"""
        if self.flits:
            return self.may_send_flit(o, lane)
        line = o.lane[lane]
        if not line.first:
            return False
        if lane == VL15 or line.credits >= line.first.head.blocks:
            return True
        self.look_for_credit(o, lane)
        return line.credits >= line.first.head.blocks

    def may_send_flit(self, o, lane):
        """The same in flit mode (module `flits`)."""
        return False

    def look_for_credit(self, o, lane):
        """Take the credit that the peer has given back (module `trains`)."""

    @cython.final
    def pick(self, o, lanes):
        """The lane that sends next among `lanes` (bits); -1: none can."""
        if lanes & (1 << VL15):
            if self.may_send(o, VL15):
                return VL15
            lanes &= ~(1 << VL15)
        if not lanes:
            return -1
        if o.arbiter:
            return self.weighted(o, lanes)
        return self.by_turns(o, lanes)

    @cython.final
    def by_turns(self, o, lanes):
        lane: cython.int
        later: uint32_t = (lanes >> o.turn) << o.turn
        earlier: uint32_t = lanes ^ later
        while later:
            lane = lowest_bit(later)
            if self.may_send(o, lane):
                return lane
            later &= later - 1
        while earlier:
            lane = lowest_bit(earlier)
            if self.may_send(o, lane):
                return lane
            earlier &= earlier - 1
        return -1

    @cython.final
    def weighted(self, o, lanes):
        a = o.arbiter
        low: cython.int
        high: cython.int = self.entry(o, True, lanes)
        if high >= 0 and (a.limit == 255 or a.allowance > 0):
            return high
        low = self.entry(o, False, lanes)
        if low >= 0:
            return low
        return high

    @cython.final
    def entry(self, o, high, lanes):
        """The lane of the table's entry whose turn it is; the entry becomes the current one when it is charged."""
        a = o.arbiter
        i: cython.int
        at: cython.int = a.high_at if high else a.low_at
        count: cython.int = a.high_count if high else a.low_count
        left: cython.int = a.high_left if high else a.low_left
        lane: cython.int
        weight: cython.int
        # The current entry, if it has something left; then the others in turn; at last the current one anew.
        for i in range(count + 1):
            if at >= count:
                at = 0
            lane = a.high_vl[at] if high else a.low_vl[at]
            weight = a.high_weight[at] if high else a.low_weight[at]
            if (left > 0 or (i > 0 and weight > 0)) and ((lanes >> lane) & 1) and self.may_send(o, lane):
                return lane
            left = 0
            at += 1
        return -1

    @cython.final
    def charge(self, o, lane, size):
        """A packet or flit of that many bytes goes out: move the turn along."""
        a = o.arbiter
        i: cython.int
        at: cython.int
        if lane == VL15:
            return
        if not a:
            o.turn = lane + 1
            return
        for i in range(a.high_count + 1):
            at = (a.high_at + i) % a.high_count if a.high_count else 0
            if i == 0 and a.high_left <= 0:
                continue
            if a.high_count and a.high_vl[at] == lane and (i == 0 or a.high_weight[at] > 0):
                if i > 0 or a.high_left <= 0:
                    a.high_left = a.high_weight[at] * BLOCK
                a.high_at = at
                a.high_left -= size
                a.allowance -= size
                if a.high_left <= 0:
                    a.high_left = 0
                if a.limit == 0:
                    a.allowance = 0
                return
        a.allowance = a.limit * 4096 if a.limit else 1
        for i in range(a.low_count + 1):
            at = (a.low_at + i) % a.low_count if a.low_count else 0
            if i == 0 and a.low_left <= 0:
                continue
            if a.low_count and a.low_vl[at] == lane and (i == 0 or a.low_weight[at] > 0):
                if i > 0 or a.low_left <= 0:
                    a.low_left = a.low_weight[at] * BLOCK
                a.low_at = at
                a.low_left -= size
                if a.low_left <= 0:
                    a.low_left = 0
                return

    # --- the ring of a lane -------------------------------------------------------------------------------

    @cython.final
    def join(self, o, q):
        """The head of a queue begins to wait for an output."""
        line = o.lane[q.lane]
        q.output = o
        q.waiting = True
        q.head.since_ps = self.now_ps
        q.stamp += 1
        q.next = NO_QUEUE
        if line.first:
            line.last.next = q
        else:
            line.first = q
            o.waiting |= cython.cast(cython.uint, 1) << q.lane
        line.last = q

    @cython.final
    def take_turn(self, o, lane):
        """The queue whose turn it is; it leaves the ring."""
        line = o.lane[lane]
        q = line.first
        line.first = q.next
        if not line.first:
            line.last = NO_QUEUE
            o.waiting &= ~(cython.cast(cython.uint, 1) << lane)
        q.waiting = False
        q.next = NO_QUEUE
        return q

    @cython.final
    def unlink(self, q):
        """A queue whose head was taken away leaves the ring out of turn."""
        line = q.output.lane[q.lane]
        if line.first == q:
            self.take_turn(q.output, q.lane)
            return
        before = line.first
        while before.next != q:
            before = before.next
        before.next = q.next
        if line.last == q:
            line.last = before
        q.waiting = False
        q.next = NO_QUEUE

    # --- time ---------------------------------------------------------------------------------------------

    @cython.final
    def span(self, o, octets):
        """How long that many bytes take on a port's link, in ps, rounded down."""
        if o.byte_ps:
            return octets * o.byte_ps
        return octets * BYTE_PS // o.rate_bps

    @cython.final
    def part_span(self, o, octets):
        """When so many of the bytes will have left that begin to leave a port now (before `occupy`), from now."""
        if o.byte_ps:
            return octets * o.byte_ps
        return (octets * BYTE_PS + (o.remainder if o.free_ps == self.now_ps else 0)) // o.rate_bps

    @cython.final
    def occupy(self, o, octets):
        """Send that many bytes from now on: when the last one has left.

        What follows without a gap carries the rest of the division on, so that a stream has the link's rate exactly.
        """
        total: cython.longlong
        if o.byte_ps:
            o.free_ps = self.now_ps + octets * o.byte_ps
            o.busy_ps += octets * o.byte_ps
            return o.free_ps
        if o.free_ps != self.now_ps:
            o.remainder = 0
        total = octets * BYTE_PS + o.remainder
        o.remainder = total % o.rate_bps
        o.free_ps = self.now_ps + total // o.rate_bps
        o.busy_ps += o.free_ps - self.now_ps
        return o.free_ps

    def set_arbitration(self, port, high, low, limit_high):
        """The two tables [(lane, weight in 64-byte units)], at most 64 entries each, and Limit_High (0..255).

        Two empty tables: data lanes take turns.  Raises `InvalidAttributeError`.
        """
        i: cython.int
        p = self.port_at(port)
        if not 0 <= limit_high <= 255:
            raise InvalidAttributeError(f"Limit_High is {limit_high}; it must be from 0 to 255")
        for table in (high, low):
            if len(table) > 64 or any(not 0 <= v < VL15 or not 0 <= w <= 255 for v, w in table):
                raise InvalidAttributeError("an arbitration table has at most 64 (lane 0..14, weight 0..255)")
        if cython.compiled:
            free(p.arbiter)
            p.arbiter = cython.cast(cython.pointer(Arbiter), calloc(1, cython.sizeof(Arbiter)))
            if not p.arbiter:
                raise MemoryError
        else:
            p.arbiter = Arbiter()
        a = p.arbiter
        a.limit, a.allowance = limit_high, limit_high * 4096 if limit_high else 1
        a.high_count, a.low_count = len(high), len(low)
        for i, (lane, weight) in enumerate(high):
            a.high_vl[i], a.high_weight[i] = lane, weight
        for i, (lane, weight) in enumerate(low):
            a.low_vl[i], a.low_weight[i] = lane, weight
        if not high and not low:
            if cython.compiled:
                free(p.arbiter)
            p.arbiter = NO_ARBITER
