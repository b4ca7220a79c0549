"""Striping, the receiving side: packets of one connection that came over several paths are put in order again.

The packets of a message leave over all the paths of a striped connection at once (document 003:565; `Contexts.
next_path`), so that one may overtake another.  What comes early waits in a window, requests and answers apart: a slot
for each packet number, `REORDER_PACKETS` of them from the number on that is next.  When that one has come, what follows
it is handed on, in order; `responder`, `completer` and `datagrams` never see that there was any other.

What is too far ahead for the window, and a gap that stays open longer than the connection's reorder time, is taken for
loss, and answered as without striping: a sequence NAK (IBA vol. 1, 9.7.5.2.4), or the requester goes back.  What waits
in the window stays there; copies of it that come later are duplicates.

This is also where packets are handed on that name an end-to-end context, striped or not.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

if cython.compiled:
    from cython.cimports.verbena.transport.completer import missing, response
    from cython.cimports.verbena.transport.core import send_at
    from cython.cimports.verbena.transport.datagrams import datagram_request, datagram_response
    from cython.cimports.verbena.transport.requester import after, is_read_or_atomic
    from cython.cimports.verbena.transport.responder import out_of_sequence, request
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import copy, get24
else:
    from verbena.transport.completer import missing, response
    from verbena.transport.core import send_at
    from verbena.transport.datagrams import datagram_request, datagram_response
    from verbena.transport.requester import after, is_read_or_atomic
    from verbena.transport.responder import out_of_sequence, request
    from verbena.transport.tables import *
    from verbena.wire.kernels import copy, get24


def early_at(window, psn):
    """The slot of a packet number."""
    if cython.compiled:
        return cython.address(window[psn & (REORDER_PACKETS - 1)])
    else:
        return window[psn & (REORDER_PACKETS - 1)]


def arrived(e, q, b, at, n, answer, now):
    """A packet, checked: n bytes at b[at] from the BTH on, CRC not counted."""
    if not q.stripes:
        hand_on(e, q, b, at, n, answer, now)
    elif answer:
        arrived_response(e, q, b, at, n, get24(b, at + 9), now)
    else:
        arrived_request(e, q, b, at, n, get24(b, at + 9), now)


def hand_on(e, q, b, at, n, answer, now):
    """To requester or responder, of a connection or of an end-to-end context."""
    opcode: cython.uint = b[at] & 0x1F
    psn: cython.uint = get24(b, at + 9)
    pad: cython.uint = (b[at + 1] >> 4) & 3
    solicited: cython.bint = (b[at + 1] & 0x80) != 0
    asked: cython.bint = (b[at + 8] & 0x80) != 0
    if answer:
        if q.end_to_end:
            datagram_response(e, q, b, at, n, opcode, psn, pad, now)
        else:
            response(e, q, b, at, n, opcode, psn, pad, now)
    elif q.end_to_end:
        datagram_request(e, q, b, at, n, opcode, psn, pad, solicited, asked)
    else:
        request(e, q, b, at, n, opcode, psn, pad, solicited, asked)


def keep(e, slot, b, at, n, psn):
    """Put a packet into its slot; False if it is there already."""
    if slot.live and slot.psn == psn:
        e.counters[RX_DUPLICATE] += 1
        return False
    slot.psn = psn
    slot.length = n
    slot.live = True
    copy(slot.data, 0, b, at, n)
    e.counters[RX_REORDERED] += 1
    return True


# --- requests ---------------------------------------------------------------------------------------------


def arrived_request(e, q, b, at, n, psn, now):
    """A request packet of a striped connection."""
    if after(psn, q.expected_psn) and b[at] & 0x1F != RESYNC:
        if ((psn - q.expected_psn) & PSN_MASK) >= REORDER_PACKETS or n > REORDER_BYTES:
            e.counters[REORDER_OVERFLOW] += 1
            out_of_sequence(e, q)
            return
        slot = early_at(q.early_requests, psn)
        if slot.live and slot.psn != psn:  # left behind by a jump of the packet numbers
            e.counters[DROP_REORDER] += 1
            slot.live = False
            q.early_request_count -= 1
        if keep(e, slot, b, at, n, psn):
            q.early_request_count += 1
        if not q.request_gap_ns and not q.nak_sent:
            q.request_gap_ns = now + q.reorder_ns
            e.schedule(q, q.request_gap_ns)
        return
    hand_on(e, q, b, at, n, False, now)
    if q.early_request_count:
        follow_requests(e, q, now)


def follow_requests(e, q, now):
    """Hand on what has come before and is next now."""
    expected: cython.uint = q.expected_psn
    while q.early_request_count:
        slot = early_at(q.early_requests, q.expected_psn)
        if not slot.live or slot.psn != q.expected_psn:
            break
        expected = q.expected_psn
        slot.live = False
        q.early_request_count -= 1
        hand_on(e, q, slot.data, 0, slot.length, False, now)
        if q.expected_psn == expected:
            break  # it was refused, or the receiver is not ready
    q.request_gap_ns = 0
    if q.early_request_count and not q.nak_sent:
        q.request_gap_ns = now + q.reorder_ns
        e.schedule(q, q.request_gap_ns)


# --- answers ----------------------------------------------------------------------------------------------


def is_early(q, b, at, psn):
    """Is an answer still to come that belongs before this one?

    Only READs and atomics need one of their own: an answer stands for every SEND and WRITE before it.
    """
    place: cython.uint = q.sq_una
    syndrome: cython.uint
    if b[at] & 0x1F == ACKNOWLEDGE:
        syndrome = b[at + 16] if q.service == RD else b[at + 12]
        if not syndrome & 0x60:
            psn = (psn + 1) & PSN_MASK  # it says that its own packet is answered, too
    if psn == q.una_psn:
        return False
    while place != q.sq_head:
        w = send_at(q, place)
        if not w.started or not after(psn, w.first_psn):
            return False
        if is_read_or_atomic(w):
            return True
        place += 1
    return False


def arrived_response(e, q, b, at, n, psn, now):
    """An answer of a striped connection."""
    if q.sq_una != q.sq_head and not after(q.una_psn, psn) and after(q.max_psn, psn):
        if is_early(q, b, at, psn):
            if ((psn - q.una_psn) & PSN_MASK) < REORDER_PACKETS and n <= REORDER_BYTES:
                slot = early_at(q.early_responses, psn)
                if slot.live and slot.psn != psn:
                    e.counters[DROP_STALE_RESPONSE] += 1
                    slot.live = False
                    q.early_response_count -= 1
                if keep(e, slot, b, at, n, psn):
                    q.early_response_count += 1
                if not q.response_gap_ns:
                    q.response_gap_ns = now + q.reorder_ns
                    e.schedule(q, q.response_gap_ns)
                return
            e.counters[REORDER_OVERFLOW] += 1
    hand_on(e, q, b, at, n, True, now)
    if q.early_response_count:
        follow_responses(e, q, now)


def earliest_response(e, q):
    """The kept answer that is nearest; those that are not wanted any more are thrown away."""
    i: cython.uint
    nearest: cython.uint = PSN_MASK
    found: cython.int = -1
    for i in range(REORDER_PACKETS):
        slot = early_at(q.early_responses, i)
        if not slot.live:
            continue
        if q.sq_una == q.sq_head or after(q.una_psn, slot.psn):
            e.counters[DROP_STALE_RESPONSE] += 1
            slot.live = False
            q.early_response_count -= 1
        elif ((slot.psn - q.una_psn) & PSN_MASK) < nearest:
            nearest = (slot.psn - q.una_psn) & PSN_MASK
            found = i
    if found >= 0:
        return early_at(q.early_responses, found)
    if cython.compiled:
        return cython.NULL
    else:
        return None


def follow_responses(e, q, now):
    """Hand on the answers that have come before and whose turn it is now."""
    before: cython.uint = q.una_psn
    while True:
        slot = earliest_response(e, q)
        if not slot or is_early(q, slot.data, 0, slot.psn):
            break
        slot.live = False
        q.early_response_count -= 1
        before = (q.una_psn - 1) & PSN_MASK
        hand_on(e, q, slot.data, 0, slot.length, True, now)
    if not q.early_response_count:
        q.response_gap_ns = 0
    elif before != q.una_psn or not q.response_gap_ns:
        q.response_gap_ns = now + q.reorder_ns
        e.schedule(q, q.response_gap_ns)


# --- gaps that stay open ------------------------------------------------------------------------------------


def gap_tick(e, q, now):
    """The reorder time may be over: what is missing is lost."""
    if q.state == ERROR or q.state == RESET:
        return
    if q.request_gap_ns and q.request_gap_ns <= now:
        q.request_gap_ns = 0
        if q.early_request_count and not q.nak_sent:
            e.counters[REORDER_EXPIRED] += 1
            e.counters[RX_OUT_OF_SEQUENCE] -= 1  # no packet came
            out_of_sequence(e, q)
    if q.response_gap_ns and q.response_gap_ns <= now:
        q.response_gap_ns = 0
        slot = earliest_response(e, q)
        if slot:
            e.counters[REORDER_EXPIRED] += 1
            missing(e, q, slot.psn)
            q.response_gap_ns = now + q.reorder_ns
    if q.request_gap_ns:
        e.schedule(q, q.request_gap_ns)
    if q.response_gap_ns:
        e.schedule(q, q.response_gap_ns)
