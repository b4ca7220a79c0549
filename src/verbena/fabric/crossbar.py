"""What happens to a packet between the input and the output of a node: buffers, heads, tables, limits.

A packet that has entered a switch lies in the receive buffer of its input port and lane, behind those that came
before it.  The head asks the forwarding tables for its output and waits there for its turn; while it waits, nothing
behind it moves (head-of-line blocking: the input-queued switch of the literature, which saturates at 58.6 %).  With
``voq=True`` a switch keeps one queue for each output behind each input and lane, and reads several of them at the same
time.  A head is on its way out from its first to its last byte: the next one follows when its buffer is free, that is
when its last byte has left.

Multicast packets are copied to all their outputs but the one they came in by; each copy waits for its output like a
packet, and the buffer is free when the last copy has left.  They and management packets (VL15) are stored whole before
they are forwarded, everything else is cut through unless the switch stores and forwards.

Limits (IBA vol. 1, 18.2.5.4): a head that has waited for its output longer than the output's head-of-queue limit, or a
packet that has been in the switch longer than its lifetime limit, is dropped and counted.  0: no limit.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.fabric.smi import Smi

if cython.compiled:
    from cython.cimports.libc.string import memcpy
    from cython.cimports.verbena.fabric.smi import SMI_DROP
    from cython.cimports.verbena.fabric.tables import *
else:
    from verbena._declarations import declarations
    from verbena.fabric.smi import SMI_DROP
    from verbena.fabric.tables import *

    globals().update(declarations(__file__))


class Crossbar(Smi):
    """Queues of a node, and the way from input to output."""

    # --- what the layers above supply -----------------------------------------------------------------------

    def serve(self, o):
        """An output may have something to send."""

    def credit_back(self, r, lane, blocks):
        """Blocks of a receive buffer became free."""

    def to_software(self, port, p):
        """A packet for the software of a switch, at its port 0."""

    # --- where to -------------------------------------------------------------------------------------------

    @cython.final
    def closed(self, o, p):
        """Why an output takes no such packet: a reason to drop it; 0 when it does."""
        if o.state == STATE_DOWN:
            return DROP_LINK
        if p.lane == VL15:
            return 0
        if o.state != STATE_ACTIVE:
            return DROP_STATE
        if p.lane >= o.lanes:
            return DROP_LANE
        if p.size > o.max_size:
            return DROP_MTU
        return 0

    @cython.final
    def table_entry(self, node, in_port, dlid):
        """The output's number by the forwarding table; `NO_ROUTE`: none."""
        if node.per_input and node.tables and node.tables[in_port]:
            return node.tables[in_port][dlid] if dlid < node.table_sizes[in_port] else NO_ROUTE
        return node.lft[dlid] if dlid < node.lft_size else NO_ROUTE

    @cython.final
    def pkey_fits(self, port, p):
        """Is the packet of one of the port's partitions?  (IBA vol. 1, 10.9.3; raw packets have none.)"""
        i: cython.int
        at: cython.int = 10
        key: cython.int
        entry: cython.int
        if p.lane == VL15 or not p.data:
            return True
        if (p.data[1] & 3) == 3:
            at = 50
        elif (p.data[1] & 3) != 2:
            return True
        if p.size < at + 2:
            return False
        key = (p.data[at] << 8) | p.data[at + 1]
        for i in range(port.pkey_count):
            entry = port.pkeys[i]
            if ((entry ^ key) & 0x7FFF) == 0 and ((entry | key) & 0x8000) != 0 and (key & 0x7FFF) != 0:
                return True
        return False

    @cython.final
    def for_switch(self, p):
        """Does a switch's software take it?  Subnet management on VL15, general services (queue pair 1) on any lane."""
        at: cython.int = 8
        if p.lane == VL15:
            return True
        if not p.data:
            return False
        if (p.data[1] & 3) == 3:
            at = 48
        elif (p.data[1] & 3) != 2:
            return False
        return p.size >= at + 14 and p.data[at + 5] == 0 and p.data[at + 6] == 0 and p.data[at + 7] == 1

    @cython.final
    def is_stored(self, node, p):
        """Must a switch have all of it before it goes on?"""
        return not node.cut_through or p.lane == VL15 or p.dlid >= FIRST_MULTICAST

    @cython.final
    def complete(self, q, p):
        """Has all of it arrived?  If not, the head is looked at again when it has."""
        when: cython.longlong
        if self.flits:
            return not q.inbound or p.ready >= p.size
        when = p.tail_ps + q.port.node.latency_ps
        if not q.inbound or when <= self.now_ps:
            return True
        q.delayed = True
        q.stamp += 1
        e = self.schedule(when, EVENT_WAKE, q.port)
        e.what = q
        e.stamp = q.stamp
        return False

    @cython.final
    def route(self, q, p):
        """The output for a queue's head; nothing: `fate` says what became of it."""
        node = q.port.node
        number: cython.int
        if node.kind == ENDNODE:
            return self.check_output(q, p, q.port)
        if p.lane == VL15 and p.dlid == PERMISSIVE:
            return self.route_directed(q, p)
        if p.dlid >= FIRST_MULTICAST and p.dlid != PERMISSIVE:
            if self.complete(q, p):
                self.replicate(q, p)
            else:
                self.fate = FATE_LATER
            return NO_PORT
        number = self.table_entry(node, q.port.number, p.dlid)
        if node.lid and (p.dlid >> node.lmc) == (node.lid >> node.lmc):
            number = 0
        if number == 0:
            if not self.for_switch(p):
                q.port.counters[DROP_NODE] += 1
                self.fate = FATE_DROPPED
            else:
                self.fate = FATE_LOCAL if self.complete(q, p) else FATE_LATER
            return NO_PORT
        if number > node.ports:
            q.port.counters[DROP_LFT] += 1
            self.fate = FATE_DROPPED
            return NO_PORT
        return self.check_output(q, p, node.port[number])

    @cython.final
    def route_directed(self, q, p):
        """The same for a directed-route packet; the switch's interface writes into it, once."""
        number: cython.int = SMI_DROP
        if not self.complete(q, p):
            self.fate = FATE_LATER
            return NO_PORT
        if self.is_directed(p):
            number = self.smi_forward(q.port.node, q.port.number, p)
        if number < 0:
            q.port.counters[DROP_SMI] += 1
            self.fate = FATE_DROPPED
            return NO_PORT
        if number == 0:
            self.fate = FATE_LOCAL
            return NO_PORT
        return self.check_output(q, p, q.port.node.port[number])

    @cython.final
    def check_output(self, q, p, o):
        reason: cython.int = self.closed(o, p)
        if reason == 0 and o.pkeys_out and not self.pkey_fits(o, p):
            reason = DROP_PKEY
            self.report(PKEY_VIOLATION, o, self.pkey_of(p))
        if reason:
            o.counters[reason] += 1
            self.fate = FATE_DROPPED
            return NO_PORT
        return o

    @cython.final
    def pkey_of(self, p):
        at: cython.int = 50 if (p.data[1] & 3) == 3 else 10
        if p.size < at + 2:
            return 0
        return (p.data[at] << 8) | p.data[at + 1]

    @cython.final
    def expired(self, node, p):
        """Has it been in the switch for too long?"""
        return node.lifetime_ps > 0 and self.now_ps >= p.entered_ps + node.lifetime_ps

    @cython.final
    def hold_back(self, q, p, o):
        """Where the output is faster than the input, a packet begins just so late that it never runs dry."""
        last: cython.longlong
        before: cython.longlong
        when: cython.longlong
        if not q.port.node.mixed or not q.inbound or o.rate_bps <= q.port.rate_bps:
            return False
        when = p.tail_ps + q.port.node.latency_ps
        if when <= self.now_ps:
            return False
        # The last flit, which may be short, must have come in time, and so must the one before it.
        last = (p.size - 1) // FLIT_PAYLOAD
        before = when - self.span(q.port, p.size - last * FLIT_PAYLOAD + FLIT_HEADER)
        when -= self.span(o, last * (FLIT_PAYLOAD + FLIT_HEADER))
        if last > 0:
            before -= self.span(o, (last - 1) * (FLIT_PAYLOAD + FLIT_HEADER))
            if before > when:
                when = before
        if when <= self.now_ps:
            return False
        q.delayed = True
        q.stamp += 1
        e = self.schedule(when, EVENT_WAKE, q.port)
        e.what = q
        e.stamp = q.stamp
        return True

    # --- queues ---------------------------------------------------------------------------------------------

    @cython.final
    def append(self, q, p):
        """A packet joins a queue; nothing else happens."""
        p.next = NO_PACKET
        if q.head:
            q.tail.next = p
        else:
            q.head = p
        q.tail = p
        q.length += 1

    @cython.final
    def line_up(self, q, p):
        """A packet joins a queue; as its head it gets in line for its output."""
        self.append(q, p)
        if q.head == p:
            self.enlist(q)

    @cython.final
    def enter_buffer(self, r, p):
        """A packet that came in by a switch's port joins its queue there."""
        self.line_up(self.inbox_of(r, p), p)

    @cython.final
    def take_head(self, q):
        p = q.head
        q.head = p.next
        if not q.head:
            q.tail = NO_PACKET
        q.length -= 1
        p.next = NO_PACKET
        return p

    @cython.final
    def inbox_of(self, r, p):
        """Where a packet lies that came in by a switch's port: the lane's queue, or that of its output."""
        number: cython.int
        line = r.lane[p.lane]
        if not r.node.voq or p.dlid >= FIRST_MULTICAST or p.lane == VL15:
            return line.inbox
        number = self.table_entry(r.node, r.number, p.dlid)
        if number == 0 or number > r.node.ports or not line.voq:
            return line.inbox
        if not line.voq[number]:
            line.voq[number] = self.new_queue(r, p.lane, True)
        return line.voq[number]

    @cython.final
    def wants_turn(self, q):
        """Has it a head that waits for nothing yet?"""
        if q.waiting or q.delayed or q.copies > 0:
            return False
        return q.head != NO_PACKET and q.sending == NO_PACKET

    @cython.final
    def enlist(self, q):
        """A queue's head, if it has one that waits for nothing yet, gets in line for its output."""
        while self.wants_turn(q):
            p = q.head
            if q.port.node.kind == SWITCH and (p.bad or self.expired(q.port.node, p)):
                self.give_up(q, DROP_VCRC if p.bad else DROP_LIFETIME)
                continue
            o = self.route(q, p)
            if o:
                if self.hold_back(q, p, o):
                    return
                self.join(o, q)
                if not o.busy:
                    self.serve(o)
                if q.waiting:
                    self.limit_wait(q)
                return
            if self.fate == FATE_LATER or self.fate == FATE_COPIED:
                return
            p = self.take_head(q)
            self.leave_buffer(q, p)
            if self.fate == FATE_LOCAL:
                self.to_software(q.port.node.port[0], p)
            else:  # counted where it was decided
                self.dropped += 1
                self.inside -= 1
                p.gone = True
                if p.source:
                    p.source.dropped += 1
                if self.trace_mask & TRACE_DROP:
                    self.trace(TRACE_DROP, q.port, p.lane, 0, p.size, p.id, 0, self.now_ps)
                self.release_packet(p)

    @cython.final
    def give_up(self, q, reason):
        """Drop a queue's head, which is not on its way out; the next one is not enlisted yet."""
        where = q.port
        if q.waiting:
            where = q.output
            self.unlink(q)
        q.delayed = False
        q.stamp += 1
        p = self.take_head(q)
        self.leave_buffer(q, p)
        p.gone = True
        self.drop(where, p, reason)

    @cython.final
    def leave_buffer(self, q, p):
        """A packet no longer holds the place it had."""
        line = q.port.lane[q.lane]
        if q.is_copy:
            return
        if q.inbound:
            line.occupied -= p.blocks
            self.credit_back(q.port, q.lane, p.blocks)
        else:
            if p.source:
                p.source.queued -= 1
                if p.source.waiting and not p.source.scheduled:
                    p.source.scheduled = True
                    e = self.schedule(self.now_ps, EVENT_SOURCE, q.port)
                    e.what = p.source
            if line.room_wanted and q.length < q.port.send_queue:
                line.room_wanted = False
                self.report(ROOM, q.port, 1 << q.lane)

    @cython.final
    def sent(self, q, p):
        """The last byte of what a queue was sending has left."""
        q.sending = NO_PACKET
        self.leave_buffer(q, p)
        self.release_packet(p)
        if q.is_copy:
            self.copy_gone(q)
        else:
            self.enlist(q)

    # --- multicast ------------------------------------------------------------------------------------------

    @cython.final
    def replicate(self, q, p):
        """Copy the head to its outputs; each copy is a queue of its own until it has left.

        An output that does not take it has dropped a copy, and counted it.
        """
        node = q.port.node
        number: cython.int
        at: cython.int = p.dlid - FIRST_MULTICAST
        made: cython.int = 0
        refused: cython.int = 0
        first = NO_QUEUE
        if at < node.mft_size:
            for number in range(1, node.ports + 1):
                if not (node.mft[at * MASK_BYTES + (number >> 3)] >> (number & 7)) & 1:
                    continue
                if number == q.port.number:
                    continue
                o = self.check_output(q, p, node.port[number])
                if not o:
                    refused += 1
                    continue
                copy = self.new_queue(q.port, q.lane, q.inbound)
                copy.owner, copy.is_copy = q, True
                copy.next = first
                copy.output = o
                first = copy
                self.append(copy, self.copy_of(p))
                made += 1
        if made == 0:
            self.fate = FATE_DROPPED  # which counts one drop
            if refused == 0:
                q.port.counters[DROP_MFT] += 1
                return
            refused -= 1
            self.replicated += refused
            self.dropped += refused
            return
        self.fate = FATE_COPIED
        self.replicated += made + refused - 1
        self.dropped += refused
        q.sending = self.take_head(q)
        p.came_ps = p.tail_ps
        q.copies = made
        self.inside -= 1  # the original only keeps its place; it goes on as its copies
        while first:
            copy = first
            first = copy.next
            o = copy.output
            self.join(o, copy)
            if not o.busy:
                self.serve(o)
            if copy.waiting:
                self.limit_wait(copy)

    @cython.final
    def copy_gone(self, q):
        """A copy has left; after the last one the original's buffer is free."""
        owner = q.owner
        self.free_queue(q)
        owner.copies -= 1
        if owner.copies == 0:
            self.sent(owner, owner.sending)

    @cython.final
    def copy_of(self, p):
        made = self.new_packet()
        made.id = p.id
        made.tag, made.born_ps, made.entered_ps, made.tail_ps = p.tag, p.born_ps, p.entered_ps, p.tail_ps
        made.size, made.blocks, made.ready, made.received = p.size, p.blocks, p.size, p.size
        made.dlid, made.lane, made.sl, made.in_port = p.dlid, p.lane, p.sl, p.in_port
        made.phantom = p.phantom
        if p.data:
            self.give_bytes(made)
            if cython.compiled:
                memcpy(made.data, p.data, p.size)
            else:
                made.data[:] = p.data
        return made

    # --- limits ---------------------------------------------------------------------------------------------

    @cython.final
    def limit_wait(self, q):
        """See to it that a head that begins to wait does not wait for ever, if there is a limit."""
        when: cython.longlong = 0
        if q.output.limited and q.lane != VL15:
            when = q.head.since_ps + q.output.hoq_ps
        if q.port.node.lifetime_ps > 0 and q.port.node.kind == SWITCH:
            if when == 0 or q.head.entered_ps + q.port.node.lifetime_ps < when:
                when = q.head.entered_ps + q.port.node.lifetime_ps
        if when:
            e = self.schedule(when, EVENT_TIMEOUT, q.port)
            e.what = q
            e.stamp = q.stamp

    @cython.final
    def timed_out(self, q, stamp):
        if q.stamp != stamp or not q.waiting:
            return
        self.give_up(q, DROP_LIFETIME if self.expired(q.port.node, q.head) else DROP_HOQ)
        if q.is_copy:
            self.copy_gone(q)
        else:
            self.enlist(q)

    @cython.final
    def wake(self, q, stamp):
        if q.delayed and q.stamp == stamp:
            q.delayed = False
            self.enlist(q)

    # --- taps -----------------------------------------------------------------------------------------------

    def note_tap(self, port, p, outbound, time):
        """A packet has passed a tapped port as a whole: keep a copy, which no counter knows of."""
        if not p.data:
            return
        copy = self.copy_of(p)
        self.inside -= 1
        self.next_id -= 1
        copy.tail_ps = time
        copy.received = port.index
        copy.in_port = outbound
        if self.tap_first:
            self.tap_last.next = copy
        else:
            self.tap_first = copy
        self.tap_last = copy
