"""The links: a packet as a train of flits, sent when there is credit, and what a broken link does to it.

**Timing model.**  All times are exact, in ps; what is not a whole number is rounded down, and a stream without gaps
carries the rest on, so that it keeps its rate.  A packet of S bytes (LRH to VCRC) travels as n = ceil(S / 80) flits:
at most 80 bytes of it and 12 bytes of header each, so that it takes S + 12 n byte times of the link.  Call ser(x) the
time of x bytes at the link's rate, d the link's delay, L a switch's latency, f = min(S, 80) + 12 the bytes of the first
flit.

* A packet that begins to leave a port at t has left it at t + ser(S + 12 n), when the port may begin the next one.
* Its head may leave the next switch at t + ser(f) + d + L (cut-through: the first flit has arrived and was checked),
  its whole at t + ser(S + 12 n) + d + L (store-and-forward; always so for VL15 and multicast).  If the output is
  faster than the input, the head waits until no later flit would come too late.
* It is delivered to an endnode at t + ser(S + 12 n) + d + L of the endnode (0 unless set).
* Its blocks (64 bytes each) of the receive buffer are the sender's again at u + d + ser(12), u being when its last
  byte left the switch, or when the endnode was given it.  A packet begins only with credits for all of it.

So the latency of an empty path with links of one rate is: sum of all d + sum over the switches of (L + ser(f)) +
ser(S + 12 n).  A link whose receive buffer holds B packets of that size and whose receiver is an endnode gives
min(rate, B packets every ser(S + 12 n) + d + L + d + ser(12)).  `zero_load_latency_ps` computes the former for any
path.

**What train mode leaves out**: the lanes of a link take turns by packets, not by flits; credits and acknowledgments
take no bandwidth in the other direction; no bit errors.  Flit mode (module `flits`) has all of these, and gives the
same times on a path without errors and contention (at rates whose byte time is no whole number of ps, to 1 ps a hop).

**A cable that is pulled** loses what is on it: a packet that has not begun to arrive vanishes (and is counted); of
one that has begun, the part that arrived goes on, to be recognized by its VCRC at its end, as a packet that a real
switch has begun to forward; what waits for the port is dropped.  Both ends begin anew with the credits of what is free
in the receive buffers.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.fabric.crossbar import Crossbar

if cython.compiled:
    from cython.cimports.verbena.fabric.smi import vcrc_right
    from cython.cimports.verbena.fabric.tables import *
else:
    from verbena.fabric.smi import vcrc_right
    from verbena.fabric.tables import *


def zero_load_latency_ps(size, links, latencies_ns=(), cut_through=True):
    """From the sending of a packet of `size` bytes (LRH to VCRC) to its delivery on a path that is empty, in ps.

    `links`: [(rate_bps, delay_ns)] in order; `latencies_ns`: those of the switches between them.  Exact where a
    byte's time is a whole number of ps.
    """
    flits = -(-size // 80)
    last = (size - 1) // 80 * 92
    short = size - (size - 1) // 80 * 80 + 12
    ps = 8 * 10**12
    head = head_in = tail = 0
    for i, (rate, delay) in enumerate(links):
        if i:
            latency = latencies_ns[i - 1] * 1000
            head = tail + latency
            if (
                cut_through
            ):  # the first flit is there, and neither the last one nor that before it will be late
                slow = links[i - 1][0]
                late = head - short * ps // slow - (last - 92) * ps // rate if last else 0
                head = max(head_in + latency, head - last * ps // rate, late)
        head_in = head + (min(size, 80) + 12) * ps // rate + delay * 1000
        tail = head + (size + 12 * flits) * ps // rate + delay * 1000
    return tail


class Trains(Crossbar):
    """The links between the nodes, in train mode; what both modes do when a packet arrives or a link breaks."""

    # --- sending --------------------------------------------------------------------------------------------

    @cython.final
    def serve(self, o):
        """Begin to send what has its turn, if anything can be sent."""
        lane: cython.int
        if o.busy:
            return
        if self.flits:
            self.pump(o)
            return
        if not o.waiting:
            o.wait_since_ps = -1
            return
        lane = self.pick(o, o.waiting)
        if lane >= 0:
            self.start(o, lane)
        elif o.wait_since_ps < 0:
            o.wait_since_ps = self.now_ps

    def pump(self, o):
        """The same in flit mode (see `flits`)."""

    @cython.final
    def begun(self, o, p):
        """Count a packet that begins to leave a port."""
        line = o.lane[p.lane]
        if o.wait_since_ps >= 0:
            o.counters[XMIT_WAIT_PS] += self.now_ps - o.wait_since_ps
            o.wait_since_ps = -1
        line.xmit_packets += 1
        line.xmit_bytes += p.size
        if self.trace_mask & TRACE_SEND:
            self.trace(TRACE_SEND, o, p.lane, 0, p.size, p.id, 0, self.now_ps)

    @cython.final
    def start(self, o, lane):
        end: cython.longlong
        when: cython.longlong
        first: cython.longlong
        q = self.take_turn(o, lane)
        p = self.take_head(q)
        q.sending = p
        p.came_ps = p.tail_ps
        if lane != VL15:
            o.lane[lane].credits -= p.blocks
            if o.lane[lane].credits < 0:
                o.counters[WITHOUT_CREDIT] += 1
        if o.arbiter:
            self.charge(o, lane, p.size)
        else:
            o.turn = lane + 1 if lane != VL15 else o.turn
        self.begun(o, p)
        first = self.part_span(o, (p.size if p.size < FLIT_PAYLOAD else FLIT_PAYLOAD) + FLIT_HEADER)
        end = self.occupy(o, p.size + (p.size + FLIT_PAYLOAD - 1) // FLIT_PAYLOAD * FLIT_HEADER)
        o.busy = True
        o.tx_queue = q
        e = self.schedule(end, EVENT_SENT, o)
        e.what = q
        e.stamp = o.epoch
        p.refs += 1
        p.tail_ps = end + o.delay_ps
        if o.far_cuts and lane != VL15 and p.dlid < FIRST_MULTICAST:
            when = self.now_ps + first + o.delay_ps + o.far_latency_ps
        else:
            when = p.tail_ps + o.far_latency_ps
        e = self.schedule(when, EVENT_ARRIVE, o.peer)
        e.what = p
        e.lane = lane
        e.stamp = o.far_epoch

    def train_sent(self, o):
        """The last byte of a packet has left the port."""
        q = o.tx_queue
        p = q.sending
        o.busy = False
        o.tx_queue = NO_QUEUE
        if self.trace_mask & TRACE_SENT:
            self.trace(TRACE_SENT, o, p.lane, 0, p.size, p.id, 0, self.now_ps)
        if o.tapped:
            self.note_tap(o, p, True, self.now_ps)
        self.sent(q, p)
        self.serve(o)

    # --- receiving ------------------------------------------------------------------------------------------

    @cython.final
    def refused(self, r, p):
        """Why a port takes no such packet: a reason to drop it; 0 when it does."""
        line = r.lane[p.lane]
        if r.state == STATE_DOWN:
            return DROP_LINK
        if p.lane == VL15:
            return DROP_VL15 if line.occupied + p.blocks > line.size else 0
        if r.state < STATE_ARMED:
            return DROP_STATE
        if not line:
            return DROP_LANE
        if p.size > r.max_size:
            return DROP_MTU
        return 0

    @cython.final
    def arrive(self, r, p, stamp):
        """A packet's head may be forwarded, or its tail has reached an endnode."""
        reason: cython.int
        if stamp != r.epoch:
            self.drop(r, p, DROP_LINK)
            return
        reason = self.refused(r, p)
        if reason:
            if p.lane != VL15 and r.peer:
                self.credit_back(r, p.lane, p.blocks)
            self.drop(r, p, reason)
            return
        r.lane[p.lane].occupied += p.blocks
        if p.lane != VL15 and r.lane[p.lane].occupied > r.lane[p.lane].size:
            r.counters[BUFFER_OVERRUN] += 1
        if r.tapped:
            self.note_tap(r, p, False, p.tail_ps)
        self.enter(r, p)

    @cython.final
    def enter(self, r, p):
        """A packet is in the receive buffer of a port."""
        line = r.lane[p.lane]
        line.rcv_packets += 1
        line.rcv_bytes += p.size
        self.packet_hops += 1
        p.in_port = r.number
        p.entered_ps = self.now_ps
        if r.node.kind == ENDNODE:
            self.reach_end(r, p)
            return
        if self.trace_mask & TRACE_ARRIVE:
            self.trace(TRACE_ARRIVE, r, p.lane, 0, p.size, p.id, 0, self.now_ps)
        if r.pkeys_in and not self.pkey_fits(r, p):
            self.report(PKEY_VIOLATION, r, self.pkey_of(p))
            self.free_blocks(r, p.lane, p.blocks)
            p.gone = True
            self.drop(r, p, DROP_PKEY)
            return
        self.enter_buffer(r, p)

    @cython.final
    def reach_end(self, r, p):
        """All of it has reached its end; a receiver that is stalled leaves it in the buffer."""
        line = r.lane[p.lane]
        if r.stalled or line.inbox.head:
            self.append(line.inbox, p)
        else:
            self.deliver(r, p)

    @cython.final
    def deliver(self, r, p):
        """Hand a packet that has reached its end to the node's software, with or without its place in the buffer."""
        held: cython.bint = r.hold and (r.visible or not p.phantom)
        if p.bad or (p.data and not vcrc_right(p.data, p.size)):
            self.free_blocks(r, p.lane, p.blocks)
            self.drop(r, p, DROP_VCRC)
            return
        if not held:
            self.free_blocks(r, p.lane, p.blocks)
        if self.is_directed(p):
            self.smi_arrive(r, p)
        self.to_software(r, p)

    @cython.final
    def to_software(self, r, p):
        r.counters[DELIVERED] += 1
        self.delivered += 1
        self.delivered_bytes += p.size
        self.measure(self.now_ps - p.born_ps)
        if p.source:
            self.measure_source(p.source, p.size, self.now_ps - p.born_ps)
        if self.trace_mask & TRACE_DELIVER:
            self.trace(TRACE_DELIVER, r, p.lane, 0, p.size, p.id, 0, self.now_ps)
        self.inside -= 1
        if p.phantom and not r.visible:
            self.release_packet(p)
            return
        p.tail_ps = self.now_ps
        p.received = r.index
        p.next = NO_PACKET
        if self.delivered_first:
            self.delivered_last.next = p
        else:
            self.delivered_first = p
        self.delivered_last = p
        if not r.coupled:
            self.stop = True

    # --- credits --------------------------------------------------------------------------------------------

    @cython.final
    def free_blocks(self, r, lane, blocks):
        r.lane[lane].occupied -= blocks
        self.credit_back(r, lane, blocks)

    @cython.final
    def credit_back(self, r, lane, blocks):
        """The sender has those blocks again after the cable and an empty flit.

        A sender that still has credit is not told: it looks when it has not enough (`look_for_credit`), which costs no
        event.  What comes before the last one was due, or while the sender waits for it, has an event of its own.
        """
        if self.flits:
            self.note_credit(r, lane)
            return
        if lane == VL15 or not r.peer:
            return
        line = r.lane[lane]
        if line and not line.wanted:
            if line.freed_ps <= self.now_ps:
                line.freed += line.freeing
                line.freeing = 0
            if line.freeing == 0:
                line.freeing = blocks
                line.freed_ps = self.now_ps + r.credit_ps
                return
        self.send_credit(r, lane, blocks, self.now_ps + r.credit_ps)

    def note_credit(self, r, lane):
        """The same in flit mode (see `flits`)."""

    @cython.final
    def send_credit(self, r, lane, blocks, when):
        e = self.schedule(when, EVENT_CREDIT, r.peer)
        e.lane = lane
        e.number = blocks
        e.stamp = r.far_epoch

    def look_for_credit(self, o, lane):
        far = o.peer.lane[lane] if o.peer else NO_LANE
        if not far:
            return
        line = o.lane[lane]
        if far.freeing and far.freed_ps <= self.now_ps:
            far.freed += far.freeing
            far.freeing = 0
        line.credits += far.freed
        far.freed = 0
        if line.credits < line.first.head.blocks:
            far.wanted = True
            if far.freeing:
                self.send_credit(o.peer, lane, far.freeing, far.freed_ps)
                far.freeing = 0

    @cython.final
    def credit(self, o, lane, blocks):
        """Credit that the sender waits for, or may wait for, has come."""
        o.lane[lane].credits += blocks
        o.peer.lane[lane].wanted = False
        if not o.busy and o.waiting:
            self.serve(o)

    @cython.final
    def credits_of(self, o, lane):
        """The blocks that a port may send on a lane now."""
        line = o.lane[lane]
        far = o.peer.lane[lane] if o.peer else NO_LANE
        if self.flits or not far:
            return line.credits
        return line.credits + far.freed + (far.freeing if far.freed_ps <= self.now_ps else 0)

    # --- links that break -----------------------------------------------------------------------------------

    @cython.final
    def begin_epoch(self, o):
        """What was scheduled for this end of the link means nothing any more."""
        o.epoch += 1
        if o.peer:
            o.peer.far_epoch = o.epoch

    def come_up(self, o):
        """One end of a link begins: it may send what is free in the other end's receive buffers."""
        lane: cython.int
        self.begin_epoch(o)  # credits that came back while the link was down are in the sum below
        o.state = STATE_INIT
        o.wait_since_ps = -1
        for lane in range(VL15):
            if o.lane[lane]:
                o.lane[lane].credits = 0
                if o.peer and o.peer.lane[lane]:
                    far = o.peer.lane[lane]
                    o.lane[lane].credits = far.size - far.occupied
                    far.freed = far.freeing = far.wanted = 0
        self.report(LINK_UP, o, 0)

    @cython.final
    def go_down(self, o, reason):
        """One end of a link is down: what was being sent is cut off, what waits is dropped."""
        self.begin_epoch(o)
        o.state = STATE_DOWN
        o.counters[LINK_DOWNED] += 1
        o.wait_since_ps = -1
        self.cut(o)
        self.flush_output(o, reason)
        self.report(LINK_DOWN, o, 0)

    def cut(self, o):
        """What is in the middle of leaving or entering by this port ends there."""
        lane: cython.int
        number: cython.int
        if o.busy:
            q = o.tx_queue
            p = q.sending
            o.busy = False
            o.busy_ps -= o.free_ps - self.now_ps
            o.free_ps = self.now_ps
            o.tx_queue = NO_QUEUE
            self.sent(q, p)
        for lane in range(LANES):
            line = o.lane[lane]
            if not line:
                continue
            self.cut_queue(line.inbox)
            if line.voq:
                for number in range(1, o.node.ports + 1):
                    if line.voq[number]:
                        self.cut_queue(line.voq[number])

    @cython.final
    def cut_queue(self, q):
        """Packets whose last byte has not arrived will not be whole."""
        if q.sending and q.sending.came_ps > self.now_ps:
            q.sending.bad = True
        p = q.head
        while p:
            if p.tail_ps > self.now_ps:
                p.bad = True
            p = p.next

    @cython.final
    def flush_output(self, o, reason):
        """Drop the heads that wait for an output, and look at what is behind them."""
        lane: cython.int
        for lane in range(LANES):
            if not o.lane[lane] or (lane == VL15 and o.state != STATE_DOWN):
                continue
            while o.lane[lane].first:
                q = o.lane[lane].first
                self.give_up(q, reason)
                if q.is_copy:
                    self.copy_gone(q)
                else:
                    self.enlist(q)
