"""The link protocol of flit mode: numbers, acknowledgments, retransmission, credit (formats: `wire.flit`).

**Go-back-N**, as PCI Express' data link layer has it.  DATA flits are numbered modulo 4096 and kept until they are
acknowledged.  The receiver takes them in order; it acknowledges 8 at once, or what has come when the first of them has
waited for 32 flit times.  A damaged flit, or one that follows a lost one, is answered by a NAK (once, until the right
one comes), upon which the sender sends everything unacknowledged again; so it does when nothing is acknowledged within
the replay time (twice the longest an acknowledgment may take).  When the same flit has been sent again four times
without progress, the link trains again: both ends lose what is on the link and come up in INIT, and count it.  ACK, NAK
and CREDIT flits are not numbered; a damaged one is dropped.

**Credit**: every flit carries the limit of one lane: blocks received since the link came up, plus blocks free in the
buffer (at most 2,047, half of the numbers), modulo 4096.  A limit that is behind the one known is old and is ignored.
A flit of its own is sent only where the peer may run short, that is when less than half of the buffer, or of two of the
largest packets, is open to it, and nothing else is on its way.  What a lost flit would have told is told by a later
one; and a sender that waits for credit asks for it, again and again (CREDIT with `first`), so that a loss always heals.

**Bit errors** are drawn as distances between wrong bits, exponentially distributed with the mean that the link's bit
error rate gives, from a stream of the port's own; the bits are flipped in the flit's bytes as they leave.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.fabric.trains import Trains

if cython.compiled:
    from cython.cimports.verbena.fabric.chance import GAMMA, MASK64, exponential, scramble
    from cython.cimports.verbena.fabric.codec import (
        ACK,
        CREDIT,
        DATA,
        NAK,
        credit_lane_of,
        credit_limit_of,
        decode_flit,
        encode_flit,
    )
    from cython.cimports.verbena.fabric.tables import *
    from cython.cimports.verbena.wire.kernels import copy
else:
    from verbena._declarations import declarations
    from verbena.fabric.chance import GAMMA, MASK64, exponential, scramble
    from verbena.fabric.codec import (
        ACK,
        CREDIT,
        DATA,
        NAK,
        credit_lane_of,
        credit_limit_of,
        decode_flit,
        encode_flit,
    )
    from verbena.fabric.tables import *
    from verbena.wire.kernels import copy

    globals().update(declarations(__file__))


class Retry(Trains):
    """The two ends of every link, in flit mode."""

    def accept(self, r, f):
        """A DATA flit has arrived in order (module `flits`)."""

    def retrain(self, o):
        """The link begins anew (module `flits`)."""

    # --- credit ---------------------------------------------------------------------------------------------

    def limit_of(self, line):
        """What this side allows on a lane: blocks sent since the link came up, modulo 4096."""
        free: cython.int = line.size - line.occupied
        if free > LARGEST_LIMIT:
            free = LARGEST_LIMIT
        return (line.arrived + (free if free > 0 else 0)) & SEQUENCE_MASK

    def room_of(self, line):
        """Blocks that may still be sent on a lane."""
        room: cython.int = (line.limit - line.sent) & SEQUENCE_MASK
        return room if room < HALF else 0

    def credit_lane(self, o, f):
        """The lane whose limit a flit carries: one that is due, else the lanes in turn."""
        k = o.link
        tries: cython.int
        lane: cython.int = k.credit_turn
        if f.kind == CREDIT:
            lane = f.lane
        elif k.credit_due:
            lane = 0
            while not (k.credit_due >> lane) & 1:
                lane += 1
        else:
            for tries in range(VL15):
                if lane >= VL15:
                    lane = 0
                if o.lane[lane]:
                    break
                lane += 1
            k.credit_turn = lane + 1
        k.credit_due &= ~(cython.cast(cython.uint, 1) << lane)
        return lane

    # --- sending --------------------------------------------------------------------------------------------

    def transmit(self, o, f):
        """Send a flit: it occupies the link, and reaches the peer after the cable.  The flit is the link's now."""
        end: cython.longlong
        lane: cython.int = self.credit_lane(o, f)
        limit: cython.int = self.limit_of(o.lane[lane])
        size: cython.int = f.size + FLIT_HEADER
        o.lane[lane].told = limit
        encode_flit(f, lane, limit)
        o.counters[XMIT_FLITS] += 1
        if self.trace_mask & TRACE_FLIT_SENT:
            self.trace(TRACE_FLIT_SENT, o, f.lane, f.sequence, size, f.packet_id, f.kind, self.now_ps)
        if o.link.error_distance:
            self.damage(o, f)
        end = self.occupy(o, size)
        o.busy = True
        e = self.schedule(end, EVENT_SENT, o)
        e.what = NOTHING
        e.stamp = o.epoch
        if o.external:
            o.link.leaving = f
            return
        e = self.schedule(end + o.delay_ps, EVENT_FLIT, o.peer)
        e.what = f
        e.number = size
        e.stamp = o.peer.epoch

    def draw_error(self, o):
        """Draw the distance to the next bit that is flipped."""
        k = o.link
        k.random = (k.random + GAMMA) & MASK64
        if k.error_distance < 1 << 30:
            k.bits_to_error = (k.error_distance * exponential(scramble(k.random))) >> 20
        else:
            k.bits_to_error = (k.error_distance >> 20) * exponential(scramble(k.random))

    def damage(self, o, f):
        """Flip the bits that the link's errors hit."""
        k = o.link
        at: cython.int
        left: cython.longlong = (f.size + FLIT_HEADER) * 8
        bit: cython.longlong = 0
        while k.bits_to_error < left:
            bit += k.bits_to_error
            left -= k.bits_to_error + 1
            at = cython.cast(cython.int, bit)
            f.data[at >> 3] ^= 1 << (at & 7)
            bit += 1
            o.counters[BIT_ERRORS] += 1
            self.draw_error(o)
        k.bits_to_error -= left

    def send_control(self, o, kind, lane, sequence, first):
        """Send an ACK, NAK or CREDIT flit."""
        f = self.new_flit()
        f.kind, f.lane, f.sequence, f.size = kind, lane, sequence, 0
        f.first = first
        if kind == ACK:
            o.counters[XMIT_ACKS] += 1
        elif kind == NAK:
            o.counters[XMIT_NAKS] += 1
        else:
            o.counters[XMIT_CREDITS] += 1
        self.transmit(o, f)

    def keep(self, o, f):
        """Number a new DATA flit, keep it for retransmission, and send a copy."""
        k = o.link
        f.sequence = k.next_sequence
        k.next_sequence = (k.next_sequence + 1) & SEQUENCE_MASK
        if k.replay:
            k.replay_last.next = f
        else:
            k.replay = f
            k.progress_ps = self.now_ps
        k.replay_last = f
        k.unacknowledged += 1
        self.send_copy(o, f)

    def send_copy(self, o, f):
        k = o.link
        sent = self.new_flit()
        sent.kind, sent.lane, sent.sequence, sent.size = DATA, f.lane, f.sequence, f.size
        sent.first, sent.last, sent.phantom = f.first, f.last, f.phantom
        sent.packet_id, sent.tag, sent.born_ps = f.packet_id, f.tag, f.born_ps
        copy(sent.data, FLIT_HEADER, f.data, FLIT_HEADER, f.size)
        self.transmit(o, sent)
        if not k.replay_timer:
            k.replay_timer = True
            e = self.schedule(k.progress_ps + self.replay_wait(o), EVENT_REPLAY, o)
            e.stamp = o.epoch

    def resend_next(self, o):
        """Send the next of the flits that must be sent again."""
        f = o.link.resend
        o.link.resend = f.next
        o.counters[FLIT_RETRIES] += 1
        self.send_copy(o, f)

    # --- receiving ------------------------------------------------------------------------------------------

    def flit_arrived(self, r, f, total):
        """The last byte of a flit has reached a port; the flit is the port's now."""
        r.counters[RCV_FLITS] += 1
        if not decode_flit(f, total):
            r.counters[FLIT_ERRORS] += 1
            self.want_nak(r)
        else:
            if self.trace_mask & TRACE_FLIT_RECEIVED:
                self.trace(
                    TRACE_FLIT_RECEIVED, r, f.lane, f.sequence, total, f.packet_id, f.kind, self.now_ps
                )
            self.take_credit(r, f)
            if f.kind == DATA:
                self.take_data(r, f)
            elif f.kind == ACK:
                self.acknowledged_to(r, f.sequence)
            elif f.kind == NAK:
                self.acknowledged_to(r, f.sequence)
                self.replay(r)
            elif f.first and f.lane < VL15 and r.lane[f.lane]:
                r.link.credit_due |= cython.cast(cython.uint, 1) << f.lane
        self.free_flit(f)
        if r.state != STATE_DOWN:
            self.serve(r)

    def take_credit(self, r, f):
        limit: cython.int
        lane: cython.int = credit_lane_of(f)
        if lane == VL15 or not r.lane[lane]:
            return
        line = r.lane[lane]
        limit = credit_limit_of(f)
        if ((limit - line.limit) & SEQUENCE_MASK) < HALF:
            line.limit = limit

    def take_data(self, r, f):
        k = r.link
        if f.sequence == k.expected:
            k.expected = (k.expected + 1) & SEQUENCE_MASK
            k.nak_sent = k.nak_due = False
            k.to_acknowledge += 1
            if k.to_acknowledge == 1:
                k.first_ps = self.now_ps
            if k.to_acknowledge >= ACK_AFTER:
                k.ack_due = True
            elif not k.ack_timer:
                k.ack_timer = True
                e = self.schedule(self.now_ps + k.ack_ps, EVENT_ACK, r)
                e.stamp = r.epoch
            self.accept(r, f)
            return
        r.counters[SEQUENCE_ERRORS] += 1
        if ((f.sequence - k.expected) & SEQUENCE_MASK) >= HALF:
            k.ack_due = True  # it has been here already: the sender did not hear of it
        else:
            self.want_nak(r)

    def want_nak(self, r):
        if not r.link.nak_sent:
            r.link.nak_due = True

    def acknowledged_to(self, o, sequence):
        """The peer has everything up to that number."""
        k = o.link
        count: cython.int = (sequence - k.acknowledged) & SEQUENCE_MASK
        if count == 0 or count > k.unacknowledged:
            return
        k.acknowledged = sequence
        k.unacknowledged -= count
        k.replays = 0
        k.progress_ps = self.now_ps
        while count > 0:
            f = k.replay
            k.replay = f.next
            if k.resend == f:
                k.resend = f.next
            self.free_flit(f)
            count -= 1

    def replay(self, o):
        """Send everything again that is not acknowledged; give the link up if that did not help four times."""
        k = o.link
        if not k.replay:
            return
        if k.replays >= REPLAYS and not (o.external and k.patient):
            self.retrain(o)
            return
        if k.replays < REPLAYS:
            k.replays += 1
        k.resend = k.replay
        k.progress_ps = self.now_ps
        o.counters[REPLAYED] += 1

    def ack_timeout(self, r):
        k = r.link
        k.ack_timer = False
        if k.to_acknowledge == 0:
            return
        if self.now_ps >= k.first_ps + k.ack_ps:
            k.ack_due = True
            self.serve(r)
        else:
            k.ack_timer = True
            e = self.schedule(k.first_ps + k.ack_ps, EVENT_ACK, r)
            e.stamp = r.epoch

    def replay_wait(self, o):
        """How long to wait for progress: of a patient port twice as long after each time in vain, up to 16 times."""
        if o.external and o.link.patient:
            return o.link.replay_ps << o.link.replays
        return o.link.replay_ps

    def replay_timeout(self, o):
        k = o.link
        k.replay_timer = False
        if not k.replay:
            return
        if self.now_ps >= k.progress_ps + self.replay_wait(o):
            self.replay(o)
            if o.state == STATE_DOWN or not k.replay:
                return
            self.serve(o)
        if k.replay and not k.replay_timer:
            k.replay_timer = True
            e = self.schedule(k.progress_ps + self.replay_wait(o), EVENT_REPLAY, o)
            e.stamp = o.epoch

    # --- beginning and end ----------------------------------------------------------------------------------

    def begin_link(self, o):
        """A port's end of a link that comes up: nothing sent, nothing received."""
        k = o.link
        flit: cython.longlong = self.span(o, FLIT_PAYLOAD + FLIT_HEADER)
        self.forget_flits(o)
        k.next_sequence = k.expected = k.to_acknowledge = k.replays = 0
        k.acknowledged = SEQUENCE_MASK
        k.ack_due = k.nak_due = k.nak_sent = False
        k.ack_timer = k.replay_timer = k.ask_timer = False
        k.active = k.credit_due = k.asks = 0
        k.credit_turn = 0
        k.ack_ps = ACK_WAIT_FLITS * flit
        k.replay_ps = 2 * (2 * o.delay_ps + k.ack_ps + 4 * flit)
        k.ask_ps = 2 * o.delay_ps + k.ack_ps
        if o.external:
            if k.given_ack_ps:
                k.ack_ps = k.given_ack_ps
            if k.given_replay_ps:
                k.replay_ps = k.given_replay_ps
            if k.given_ask_ps:
                k.ask_ps = k.given_ask_ps

    def forget_flits(self, o):
        """Free what was kept for retransmission."""
        k = o.link
        while k.replay:
            f = k.replay
            k.replay = f.next
            self.free_flit(f)
        k.replay_last = NO_FLIT
        k.resend = NO_FLIT
        if k.leaving:
            self.free_flit(k.leaving)
            k.leaving = NO_FLIT
        k.unacknowledged = 0
        k.out_size = 0
        if not cython.compiled:
            k.out = None
