"""What the answers to a queue pair's requests do: acknowledge, complete, or send it back to an earlier packet.

Acknowledgements, NAKs and the responses to READs and atomics are taken in the order of their packet numbers
(IBA vol. 1, 9.7.5).  What is lost is asked for again from the oldest unanswered packet on: after a NAK, after a gap in
the answers, or when the timer is over (9.7.6).  A receiver that is not ready is given the time that it asks for.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

if cython.compiled:
    from cython.cimports.verbena.memory.entries import LOCAL_WRITE
    from cython.cimports.verbena.memory.spaces import PAGE_AWAITED
    from cython.cimports.verbena.transport.core import send_at
    from cython.cimports.verbena.transport.local import settle_local
    from cython.cimports.verbena.transport.requester import after, chunk_end, is_read_or_atomic, send_failed
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import get64
else:
    from verbena.memory.entries import LOCAL_WRITE
    from verbena.memory.spaces import PAGE_AWAITED
    from verbena.transport.core import send_at
    from verbena.transport.local import settle_local
    from verbena.transport.requester import after, chunk_end, is_read_or_atomic, send_failed
    from verbena.transport.tables import *
    from verbena.wire.kernels import get64

    _rnr_delay_us = [0] * 32

# IBA vol. 1, table 45, in microseconds.
_delays = (
    *(655360, 10, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960, 1280, 1920),
    *(2560, 3840, 5120, 7680, 10240, 15360, 20480, 30720, 40960, 61440, 81920, 122880),
    *(163840, 245760, 327680, 491520),
)
for _i in range(32):
    _rnr_delay_us[_i] = _delays[_i]


def rnr_delay_ns(code):
    """How long a receiver-not-ready NAK asks to wait."""
    return cython.cast(cython.ulonglong, _rnr_delay_us[code & 31]) * 1000


def go_back(e, q):
    """Send again from the oldest packet that is not answered."""
    w = send_at(q, q.sq_una)
    q.gone_back = True
    q.gone_back_psn = q.una_psn
    q.send_psn = q.una_psn
    q.sq_next = q.sq_una
    q.next_packet = (q.una_psn - w.first_psn) & PSN_MASK if w.started else 0
    q.rd_outstanding = 0
    q.window = max(q.window >> 1, 2)
    q.window_credit = 0
    if q.stripes:
        e.turn_stripes(q)
    e.enlist(q)


def missing(e, q, psn):
    """An answer for `psn` shows that an earlier READ's or atomic's answer is lost (IBA vol. 1, 9.7.5.1.1).

    Believed once for each gap, and only of packets sent since the requester last went back.
    """
    if q.state != ERROR and after(q.send_psn, psn) and not (q.gone_back and q.gone_back_psn == q.una_psn):
        go_back(e, q)


def progressed(e, q, packets, now):
    """Something new was answered: retries start afresh, the window grows, the timer runs for what is left."""
    if q.state == ERROR:  # the completion had no room
        return
    q.retries_left = q.retry_count
    q.rnr_left = q.rnr_retry
    q.gone_back = False
    q.window_credit += packets
    if q.window_credit >= q.window:
        q.window_credit = 0
        q.window = min(q.window + (q.window >> 2) + 1, q.window_max)
    if after(q.una_psn, q.send_psn):
        # Answers to what was sent before going back: there is less to send again.
        w = send_at(q, q.sq_una)
        q.send_psn = q.una_psn
        q.sq_next = q.sq_una
        q.next_packet = (q.una_psn - w.first_psn) & PSN_MASK if q.sq_una != q.sq_head and w.started else 0
        q.rd_outstanding = 0
    settle_local(e, q)
    q.deadline_ns = 0
    if q.una_psn != q.send_psn and q.timeout_ns:
        q.deadline_ns = now + q.timeout_ns
        e.schedule(q, q.deadline_ns)
    e.drained(q)
    if q.sq_next != q.sq_head:
        e.enlist(q)


def acknowledge(e, q, psn, now):
    """Everything up to `psn` has arrived; False when an unanswered READ or atomic is before it (or all failed)."""
    answered: cython.bint = True
    before: cython.uint = q.una_psn
    last: cython.uint
    while q.sq_una != q.sq_head and not after(q.una_psn, psn):
        w = send_at(q, q.sq_una)
        if is_read_or_atomic(w):
            answered = False
            break
        last = (w.first_psn + w.packets - 1) & PSN_MASK
        if after(last, psn):
            q.una_psn = (psn + 1) & PSN_MASK
        else:
            q.una_psn = (last + 1) & PSN_MASK
            e.complete_send(q, SUCCESS)
    if before != q.una_psn:
        progressed(e, q, (q.una_psn - before) & PSN_MASK, now)
    return answered and q.state != ERROR


def response(e, q, b, at, n, opcode, psn, pad, now):
    """An answer came: n bytes at b[at], CRC not counted."""
    if after(q.una_psn, psn) or not after(q.max_psn, psn) or q.sq_una == q.sq_head:
        e.counters[DROP_STALE_RESPONSE] += 1
        return
    e.counters[RX_ACCEPTED] += 1
    if opcode == ACKNOWLEDGE:
        acknowledgement(e, q, b[at + 12], psn, now)
        return
    if psn != q.una_psn and not acknowledge(e, q, (psn - 1) & PSN_MASK, now):
        missing(e, q, psn)
        return
    if opcode == ATOMIC_ACKNOWLEDGE:
        atomic_response(e, q, b, at, psn, now)
    elif opcode == READ_RESPONSE_MIDDLE:
        read_response(e, q, b, at + 12, n - 12 - pad, opcode, psn, now)
    else:
        read_response(e, q, b, at + 16, n - 16 - pad, opcode, psn, now)


def acknowledgement(e, q, syndrome, psn, now):
    """An ACK, a NAK or a receiver-not-ready NAK for `psn` (IBA vol. 1, 9.7.5.2)."""
    kind: cython.uint = syndrome & 0x60
    code: cython.uint = syndrome & 0x1F
    if kind == 0:
        if not acknowledge(e, q, psn, now):
            missing(e, q, psn)
        return
    if psn != q.una_psn and not acknowledge(e, q, (psn - 1) & PSN_MASK, now):
        missing(e, q, psn)
        return
    if kind == AETH_RNR:
        e.counters[RX_RNR_NAKS] += 1
        if q.end_to_end:
            e.message_not_ready(q, now + rnr_delay_ns(code))
            return
        if q.resume_ns:
            return  # said twice
        if q.rnr_left == 0:
            send_failed(e, q, RNR_RETRY_EXC_ERR)
            return
        if q.rnr_retry != 7:
            q.rnr_left -= 1
        go_back(e, q)
        q.deadline_ns = 0
        q.resume_ns = now + rnr_delay_ns(code)
        e.schedule(q, q.resume_ns)
        return
    e.counters[RX_NAKS] += 1
    if kind == AETH_NAK and code == NAK_SEQUENCE:
        if q.gone_back and q.gone_back_psn == q.una_psn:
            return
        if q.retries_left == 0 and not e.migrate(q):
            send_failed(e, q, RETRY_EXC_ERR)
            return
        if q.retries_left:
            q.retries_left -= 1
        go_back(e, q)
    elif kind != AETH_NAK:
        send_failed(e, q, BAD_RESP_ERR)
    elif code == NAK_INVALID_REQUEST:
        send_failed(e, q, REM_INV_REQ_ERR)
    elif code == NAK_REMOTE_ACCESS:
        send_failed(e, q, REM_ACCESS_ERR)
    elif code == NAK_REMOTE_OPERATION:
        send_failed(e, q, REM_OP_ERR)
    elif code == NAK_INVALID_RD_REQUEST and q.end_to_end:
        send_failed(e, q, REM_INV_RD_REQ_ERR)
    else:
        send_failed(e, q, BAD_RESP_ERR)


def read_response(e, q, b, at, n, opcode, psn, now):
    """A packet of a READ's answer, the one that is next: n bytes of payload at b[at]."""
    w = send_at(q, q.sq_una)
    packet: cython.uint = (psn - w.first_psn) & PSN_MASK
    offset: cython.ulonglong = cython.cast(cython.ulonglong, packet) * q.mtu
    expected: cython.ulonglong = q.mtu
    ends: cython.bint
    if w.operation != WR_RDMA_READ or not w.started:
        send_failed(e, q, BAD_RESP_ERR)
        return
    ends = packet + 1 == chunk_end(q, w, packet)
    if packet + 1 == w.packets:
        expected = w.length - offset
    if n != expected or ends != (opcode == READ_RESPONSE_LAST or opcode == READ_RESPONSE_ONLY):
        send_failed(e, q, BAD_RESP_ERR)
        return
    if n and not e.scatter(
        q.send_domain, q.sge, (q.sq_una & q.sq_mask) * q.max_send_sge, w.sges, offset, b, at, n
    ):
        not_placed(e, q)
        return
    if ends and after(q.send_psn, psn) and q.rd_outstanding:
        q.rd_outstanding -= 1
    q.una_psn = (psn + 1) & PSN_MASK
    if packet + 1 == w.packets:
        e.complete_send(q, SUCCESS)
    progressed(e, q, 1, now)


def not_placed(e, q):
    """What was read could not be written here: the request fails, or is sent again when the page has come."""
    if e.regions.reason == PAGE_AWAITED:
        go_back(e, q)
        e.park(q)
        return
    e.denied_here(q, LOCAL_WRITE)
    send_failed(e, q, LOC_PROT_ERR)


def atomic_response(e, q, b, at, psn, now):
    """The old value of a remote word goes to the local buffer, little-endian on every machine."""
    i: cython.int
    value: cython.ulonglong
    w = send_at(q, q.sq_una)
    if not is_read_or_atomic(w) or w.operation == WR_RDMA_READ or w.first_psn != psn:
        send_failed(e, q, BAD_RESP_ERR)
        return
    value = get64(b, at + 16)
    for i in range(8):
        b[at + 16 + i] = (value >> (8 * i)) & 0xFF
    if not e.scatter(q.send_domain, q.sge, (q.sq_una & q.sq_mask) * q.max_send_sge, w.sges, 0, b, at + 16, 8):
        not_placed(e, q)
        return
    if after(q.send_psn, psn) and q.rd_outstanding:
        q.rd_outstanding -= 1
    q.una_psn = (psn + 1) & PSN_MASK
    e.complete_send(q, SUCCESS)
    progressed(e, q, 1, now)


def tick(e, q, now):
    """A timer may be over: the receiver's pause, or the wait for an answer (IBA vol. 1, 9.7.6.1.3)."""
    if q.state == ERROR or q.state == RESET:
        return
    if q.resume_ns and q.resume_ns <= now:
        q.resume_ns = 0
        e.enlist(q)
    if q.delay_ns:
        if q.delay_ns <= now:
            e.enlist(q)
        else:
            e.schedule(q, q.delay_ns)
    if q.deadline_ns and q.deadline_ns <= now:
        if q.held or q.parked:
            # What was not allowed to leave, or could not be placed, has no answer yet: that costs no retry.
            q.deadline_ns = now + q.timeout_ns
        else:
            e.counters[TIMEOUTS] += 1
            q.deadline_ns = 0
            if q.retries_left == 0 and not e.migrate(q):
                send_failed(e, q, RETRY_EXC_ERR)
                return
            if q.retries_left:
                q.retries_left -= 1
            go_back(e, q)
            q.deadline_ns = now + q.timeout_ns if q.timeout_ns else 0
    if q.resume_ns:
        e.schedule(q, q.resume_ns)
    if q.deadline_ns:
        e.schedule(q, q.deadline_ns)
