"""Flit mode: packets become flits at every output and packets again at every input (document 003:658-662, 689-708).

Every flit is an event with its bytes.  A packet is put together anew at each input, from the bytes of the flits that
arrived; a switch begins to send it as soon as its first flit is there (cut-through), and goes on as the others come.
The lanes of a link take turns flit by flit, the flits of one packet follow each other on a lane.  Times are those of
train mode (module `trains`) on a path without errors and contention.

An *external* port has no peer in this fabric: its flits are taken and put as bytes, in datagrams that may be lost or
repeated.  What the link protocol needs is the same; the first credits are told by flits instead of by the cable's
coming up.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError
from verbena.fabric.chance import mixed
from verbena.fabric.retry import Retry

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, realloc
    from cython.cimports.libc.string import memmove
    from cython.cimports.verbena.fabric.codec import ACK, CREDIT, DATA, NAK
    from cython.cimports.verbena.fabric.retry import HALF, LARGEST_LIMIT, SEQUENCE_MASK, WINDOW
    from cython.cimports.verbena.fabric.smi import seal_vcrc
    from cython.cimports.verbena.fabric.tables import *
    from cython.cimports.verbena.fabric.trains import Trains
    from cython.cimports.verbena.fabric.wheel import lowest_bit
    from cython.cimports.verbena.wire.kernels import copy, fill, get16, put16
else:
    from verbena.fabric.codec import ACK, CREDIT, DATA, NAK
    from verbena.fabric.retry import HALF, LARGEST_LIMIT, SEQUENCE_MASK, WINDOW
    from verbena.fabric.smi import seal_vcrc
    from verbena.fabric.tables import *
    from verbena.fabric.trains import Trains
    from verbena.fabric.wheel import lowest_bit
    from verbena.wire.kernels import copy, fill, get16, put16


class Flits(Retry):
    """The links of a fabric, in either mode."""

    def __init__(self, flits, seed):
        super().__init__(flits)
        self.link_seed = mixed(~seed & 0xFFFFFFFFFFFFFFFF)

    def dress(self, p):
        """Bytes for a packet that is only a length: a raw packet of zeros."""
        self.give_bytes(p)
        fill(p.data, 0, 0, p.size)
        p.received = p.ready = p.size
        p.data[0] = p.lane << 4
        p.data[1] = p.sl << 4
        put16(p.data, 2, p.dlid)
        put16(p.data, 4, ((p.size - VCRC_BYTES) >> 2) & 0x7FF)
        seal_vcrc(p.data, p.size)

    def link_event(self, e):
        if e.kind == EVENT_READY:
            self.ready(e.port, cython.cast(cython.pointer(Packet), e.what), e.number)
        elif e.stamp != e.port.epoch:
            if e.kind == EVENT_FLIT:
                self.free_flit(cython.cast(cython.pointer(Flit), e.what))
        elif e.kind == EVENT_FLIT:
            self.flit_arrived(e.port, cython.cast(cython.pointer(Flit), e.what), e.number)
        elif e.kind == EVENT_ACK:
            self.ack_timeout(e.port)
        elif e.kind == EVENT_REPLAY:
            self.replay_timeout(e.port)
        elif e.kind == EVENT_ASK:
            self.ask_timeout(e.port)

    # --- packets into flits ---------------------------------------------------------------------------------

    def may_send_flit(self, o, lane):
        """Credit for a whole packet, or the next flit of the one that is on its way."""
        line = o.lane[lane]
        if line.active:
            p = line.active.sending
            return p.ready >= p.size or p.ready >= line.offset + FLIT_PAYLOAD
        if not line.first:
            return False
        return lane == VL15 or self.room_of(line) >= line.first.head.blocks

    def pump(self, o):
        """Send the next flit: acknowledgments first, then what must be sent again, then packets, then credit."""
        k = o.link
        lane: cython.int
        if o.state == STATE_DOWN:
            return
        if k.nak_due or k.ack_due:
            lane = NAK if k.nak_due else ACK
            k.nak_sent = k.nak_sent or k.nak_due
            k.nak_due = k.ack_due = False
            k.to_acknowledge = 0
            self.send_control(o, lane, 0, (k.expected - 1) & SEQUENCE_MASK, False)
            return
        if k.resend:
            self.resend_next(o)
            return
        if (o.waiting | k.active) and k.unacknowledged < WINDOW:
            lane = self.pick(o, o.waiting | k.active)
            if lane >= 0:
                self.send_piece(o, lane)
                return
            if o.wait_since_ps < 0:
                o.wait_since_ps = self.now_ps
            if o.waiting and not k.ask_timer:
                k.ask_timer = True
                e = self.schedule(self.now_ps + k.ask_ps, EVENT_ASK, o)
                e.stamp = o.epoch
        if k.credit_due or k.asks:
            lane = lowest_bit(cython.cast(cython.ulonglong, k.credit_due | k.asks))
            self.send_control(o, CREDIT, lane, 0, (k.asks >> lane) & 1)
            k.asks &= ~(cython.cast(cython.uint, 1) << lane)

    def ask_timeout(self, o):
        """Ask for credit on the lanes where a packet has waited for it for long."""
        k = o.link
        lane: cython.int
        k.ask_timer = False
        for lane in range(VL15):
            line = o.lane[lane]
            if not line or not line.first or line.active or self.may_send(o, lane):
                continue
            if line.first.head.since_ps + k.ask_ps <= self.now_ps:
                k.asks |= cython.cast(cython.uint, 1) << lane
        self.serve(o)
        if o.waiting and not k.ask_timer:
            k.ask_timer = True
            e = self.schedule(self.now_ps + k.ask_ps, EVENT_ASK, o)
            e.stamp = o.epoch

    def send_piece(self, o, lane):
        """The next flit of a lane; the first one of a packet takes the credit for all of it."""
        k = o.link
        size: cython.int
        line = o.lane[lane]
        if not line.active:
            q = self.take_turn(o, lane)
            p = self.take_head(q)
            q.sending = p
            p.came_ps = p.tail_ps
            p.output = o
            line.active = q
            line.offset = 0
            k.active |= cython.cast(cython.uint, 1) << lane
            if lane != VL15:
                if self.room_of(line) < p.blocks:
                    o.counters[WITHOUT_CREDIT] += 1
                line.sent = (line.sent + p.blocks) & SEQUENCE_MASK
            self.begun(o, p)
        p = line.active.sending
        size = p.size - line.offset
        if size > FLIT_PAYLOAD:
            size = FLIT_PAYLOAD
        f = self.new_flit()
        f.kind, f.lane, f.size = DATA, lane, size
        f.first = line.offset == 0
        f.packet_id, f.tag, f.born_ps, f.phantom = p.id, p.tag, p.born_ps, p.phantom
        copy(f.data, FLIT_HEADER, p.data, line.offset, size)
        line.offset += size
        f.last = line.offset >= p.size
        self.charge(o, lane, size)
        if f.last:
            o.tx_queue = line.active
            line.active = NO_QUEUE
            k.active &= ~(cython.cast(cython.uint, 1) << lane)
        self.keep(o, f)

    def train_sent(self, o):
        """The last byte of a train, or of a flit, has left a port."""
        if self.flits:
            self.flit_sent(o)
        else:
            Trains.train_sent(self, o)

    def flit_sent(self, o):
        q = o.tx_queue
        o.busy = False
        if o.external:
            self.export(o)
        if q:
            o.tx_queue = NO_QUEUE
            p = q.sending
            p.output = NO_PORT
            if self.trace_mask & TRACE_SENT:
                self.trace(TRACE_SENT, o, p.lane, 0, p.size, p.id, 0, self.now_ps)
            if o.tapped:
                self.note_tap(o, p, True, self.now_ps)
            if o.external:
                self.exported += 1
                self.inside -= 1
            self.sent(q, p)
        self.serve(o)

    # --- flits into packets ---------------------------------------------------------------------------------

    def accept(self, r, f):
        """A DATA flit has arrived in order: its bytes join the packet that is arriving on its lane."""
        line = r.lane[f.lane]
        if not line:
            if f.first:
                if r.external:
                    self.imported += 1
                    self.inside += 1
                self.lose(r, f.lane, f.size, f.packet_id)
            return
        if f.first:
            if line.arriving:  # only a faulty peer begins another one
                self.truncate(r, line.arriving)
                self.release_packet(line.arriving)
            line.arriving = self.begin_packet(r, f)
        p = line.arriving
        if not p:  # the rest of one that was refused
            return
        if p.received + f.size > p.size or (f.last and p.received + f.size < p.size):
            self.truncate(r, p)
        elif not p.bad:
            copy(p.data, p.received, f.data, FLIT_HEADER, f.size)
            p.received += f.size
            self.get_ready(r, p)
        if f.last:
            line.arriving = NO_PACKET
            if r.tapped and not p.bad:
                self.note_tap(r, p, False, self.now_ps)
            self.release_packet(p)

    def begin_packet(self, r, f):
        """The packet that begins with a flit: its size stands in its LRH.  Nothing if the port does not take it."""
        reason: cython.int
        rest: cython.int
        line = r.lane[f.lane]
        p = self.new_packet()
        if r.external:
            self.imported += 1
            p.born_ps = self.now_ps
        else:
            self.inside -= 1  # it has been counted since it was sent
            p.id, p.tag, p.born_ps, p.phantom = f.packet_id, f.tag, f.born_ps, f.phantom
        p.lane, p.sl, p.dlid = f.lane, f.data[13] >> 4, get16(f.data, 14)
        p.size = (get16(f.data, 16) & 0x7FF) * 4 + VCRC_BYTES
        p.blocks = (p.size + BLOCK - 1) // BLOCK
        if p.lane != VL15:
            line.arrived = (line.arrived + p.blocks) & SEQUENCE_MASK
        reason = self.refused(r, p)
        if reason:
            self.note_credit(r, p.lane)
            self.drop(r, p, reason)
            return NO_PACKET
        line.occupied += p.blocks
        if p.lane != VL15 and line.occupied > line.size:
            r.counters[BUFFER_OVERRUN] += 1
        if p.lane != VL15:
            self.note_credit(r, p.lane)
        rest = p.size - f.size
        p.tail_ps = self.now_ps
        if rest > 0:
            p.tail_ps += self.span(r, rest + (rest + FLIT_PAYLOAD - 1) // FLIT_PAYLOAD * FLIT_HEADER)
        self.give_bytes(p)
        fill(p.data, 0, 0, p.size)
        p.refs += 1  # of the lane on which it arrives
        return p

    def get_ready(self, r, p):
        """What has arrived may be sent on after the node's latency; what is stored first, only when it is complete."""
        if p.received < p.size and (r.node.kind == ENDNODE or self.is_stored(r.node, p)):
            return
        p.refs += 1
        e = self.schedule(self.now_ps + r.node.latency_ps, EVENT_READY, r)
        e.what = p
        e.number = p.received

    def truncate(self, r, p):
        """No more of it will come: the rest is zeros, and its VCRC says that it is not whole."""
        if p.bad:
            return
        p.bad = True
        seal_vcrc(p.data, p.size)
        p.data[p.size - 1] ^= 0xFF
        p.received = p.size
        if not p.gone:
            self.get_ready(r, p)

    def ready(self, r, p, number):
        """So many bytes of a packet may be sent on."""
        if not p.gone:
            if number > p.ready:
                p.ready = number
            if not p.entered:
                p.entered = True
                self.enter(r, p)
            elif p.output:
                if not p.output.busy:
                    self.serve(p.output)
            elif p.ready >= p.size:
                q = self.inbox_of(r, p)
                if q.head == p:
                    self.enlist(q)
        self.release_packet(p)

    # --- credits --------------------------------------------------------------------------------------------

    def note_credit(self, r, lane):
        """Tell the peer its limit if it may run short of credit."""
        still_open: cython.int
        least: cython.int = 2 * ((cython.cast(cython.int, r.max_size) + BLOCK - 1) // BLOCK)
        if lane == VL15 or r.state == STATE_DOWN or not r.link:
            return
        line = r.lane[lane]
        still_open = (line.told - line.arrived) & SEQUENCE_MASK
        if still_open >= HALF:
            still_open = 0
        if self.limit_of(line) != line.told and (still_open * 2 <= line.size or still_open < least):
            r.link.credit_due |= cython.cast(cython.uint, 1) << lane
            if not r.busy:
                self.serve(r)

    # --- links that come and go -----------------------------------------------------------------------------

    def make_link(self, o):
        """What a port needs for flit mode, once."""
        if o.link:
            return
        if cython.compiled:
            o.link = cython.cast(cython.pointer(LinkLayer), calloc(1, cython.sizeof(LinkLayer)))
            if not o.link:
                raise MemoryError
        else:
            o.link = LinkLayer()
        o.link.random = mixed(self.link_seed ^ mixed(o.index))

    def come_up(self, o):
        lane: cython.int
        Trains.come_up(self, o)
        if not self.flits:
            return
        self.begin_link(o)
        for lane in range(VL15):
            line = o.lane[lane]
            if not line:
                continue
            line.arrived = line.sent = line.limit = line.told = 0
            if o.external:
                o.link.credit_due |= cython.cast(cython.uint, 1) << lane
                continue
            line.told = self.limit_of(line)
            other = o.peer.lane[lane]
            if other:  # the two ends tell each other when the cable comes up
                line.limit = other.size - other.occupied
                if line.limit > LARGEST_LIMIT:
                    line.limit = LARGEST_LIMIT
                if line.limit < 0:
                    line.limit = 0
        self.serve(o)

    def cut(self, o):
        if self.flits:
            self.cut_flits(o)
        else:
            Trains.cut(self, o)

    def lose(self, o, lane, size, packet_id):
        """Count a packet of which nothing has arrived."""
        self.dropped += 1
        self.inside -= 1
        o.counters[DROP_LINK] += 1
        if self.trace_mask & TRACE_DROP:
            self.trace(TRACE_DROP, o, lane, DROP_LINK, size, packet_id, 0, self.now_ps)

    def cut_flits(self, o):
        """What is in the middle of leaving or entering by this port ends there."""
        k = o.link
        lane: cython.int
        f = k.replay
        if not o.external:
            while f:
                # Of what the peer has not taken the beginning, it has nothing.
                if f.first and ((f.sequence - o.peer.link.expected) & SEQUENCE_MASK) < HALF:
                    self.lose(o, f.lane, f.size, f.packet_id)
                f = f.next
        self.forget_flits(o)
        k.active = 0
        if o.free_ps > self.now_ps:
            o.busy_ps -= o.free_ps - self.now_ps
        o.free_ps = self.now_ps
        q = o.tx_queue
        o.tx_queue = NO_QUEUE
        o.busy = False
        if q:
            q.sending.output = NO_PORT
            if o.external:
                self.lose(o, q.lane, q.sending.size, q.sending.id)
            self.sent(q, q.sending)
        for lane in range(LANES):
            line = o.lane[lane]
            if not line:
                continue
            if line.active:
                q = line.active
                line.active = NO_QUEUE
                q.sending.output = NO_PORT
                if o.external:
                    self.lose(o, q.lane, q.sending.size, q.sending.id)
                self.sent(q, q.sending)
            if line.arriving:
                p = line.arriving
                line.arriving = NO_PACKET
                self.truncate(o, p)
                self.release_packet(p)

    def retrain(self, o):
        """The link begins anew: both ends lose what is on the cable and come up in INIT."""
        r = o.peer
        o.state = STATE_DOWN
        o.counters[LINK_RECOVERED] += 1
        if r:
            r.state = STATE_DOWN
            r.counters[LINK_RECOVERED] += 1
        self.go_down(o, DROP_LINK)
        if r:
            self.go_down(r, DROP_LINK)
        self.come_up(o)
        if r:
            self.come_up(r)

    # --- external ports -------------------------------------------------------------------------------------

    def export(self, o):
        """A flit has left by an external port: its bytes wait to be taken."""
        k = o.link
        f = k.leaving
        size: cython.int = f.size + FLIT_HEADER
        if k.out_size == 0:
            self.report(FLITS_READY, o, 0)
        if cython.compiled:
            if k.out_size + size > k.out_room:
                k.out_room = k.out_room * 2 + 4096
                k.out = cython.cast(cython.pointer(uint8_t), realloc(k.out, k.out_room))
                if not k.out:
                    Py_FatalError("verbena: no memory left for the fabric")
            copy(k.out, k.out_size, f.data, 0, size)
        else:
            k.out = (k.out or bytearray()) + f.data[:size]
        k.out_size += size
        k.leaving = NO_FLIT
        self.free_flit(f)

    def take_flits(self, port, most=0):
        """The bytes of the flits that have left by an external port since the last call.

        `most`: whole flits of that many bytes together, at most (92 or more); the rest is for the next call.  0: all.
        """
        end: cython.longlong = 0
        size: cython.longlong
        limit: cython.longlong = most
        p = self.port_at(port)
        if not p.external:
            raise InvalidAttributeError(f"port {port} is not external")
        if limit and limit < FLIT_HEADER + FLIT_PAYLOAD:
            raise InvalidAttributeError(f"most is {most}; it must be 0, or at least a flit: 92")
        k = p.link
        if not k.out_size:
            return b""
        if not limit or k.out_size <= limit:
            end = k.out_size
        else:
            while True:
                size = FLIT_HEADER + (k.out[end + 1] & 0x7F)
                if end + size > limit:
                    break
                end += size
        octets = bytes(k.out[:end])
        if cython.compiled:
            memmove(k.out, k.out + end, k.out_size - end)
        else:
            k.out = k.out[end:] or None
        k.out_size -= end
        return octets

    def put_flits(self, port, octets):
        """Flits arrive at an external port: one after another, as `take_flits` gave them.

        Damaged ones are counted and asked for again; so is what follows a header whose size cannot be right.
        """
        source: cython.const[cython.uchar][::1]
        at: cython.Py_ssize_t = 0
        size: cython.int
        i: cython.int
        end: cython.Py_ssize_t = len(octets)
        r = self.port_at(port)
        if not r.external:
            raise InvalidAttributeError(f"port {port} is not external")
        source = octets
        while at < end and r.state != STATE_DOWN:
            size = FLIT_HEADER
            if at + 1 < end:
                size += source[at + 1] & 0x7F
            if size > FLIT_HEADER + FLIT_PAYLOAD or at + size > end:
                r.counters[FLIT_ERRORS] += 1
                r.counters[RCV_FLITS] += 1
                self.want_nak(r)
                self.serve(r)
                return
            f = self.new_flit()
            for i in range(size):
                f.data[i] = source[at + i]
            at += size
            self.flit_arrived(r, f, size)
