"""A responder's answers: queued when a request is taken, written when the queue pair's turn comes.

Answers leave in the order of their packet numbers (IBA vol. 1, 9.7.5.1): the responses to READs and atomics from a
ring, each read from memory when it is sent; then the newest acknowledgement, which stands for all before it, unless
every packet is acknowledged by itself.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

if cython.compiled:
    from cython.cimports.verbena.memory.entries import REMOTE_READ
    from cython.cimports.verbena.memory.spaces import PAGE_AWAITED
    from cython.cimports.verbena.transport.core import answer_at
    from cython.cimports.verbena.transport.requester import ask_and_seal, mig_request, write_bth
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import fill, put24, put32, put64
else:
    from verbena.memory.entries import REMOTE_READ
    from verbena.memory.spaces import PAGE_AWAITED
    from verbena.transport.core import answer_at
    from verbena.transport.requester import ask_and_seal, mig_request, write_bth
    from verbena.transport.tables import *
    from verbena.wire.kernels import fill, put24, put32, put64


def answer(q, kind, syndrome, psn):
    """Queue an answer; False when as many wait as there is room for."""
    if q.answers_tail - q.answers_head >= q.answers_size:
        return False
    a = answer_at(q, q.answers_tail)
    a.kind = kind
    a.syndrome = syndrome
    a.psn = psn
    a.last_psn = psn
    a.msn = q.msn
    a.destination = q.destination
    a.domain = q.domain
    a.qpn = q.recv_qpn
    a.started = False
    a.repeated = False
    q.answers_tail += 1
    return True


def too_many(q):
    """Are as many READs and atomics being answered as were agreed on (IBA vol. 1, 9.4.4)?

    Answers to duplicates do not count: what the requester asks for again, it may have got in the meantime.
    """
    place: cython.uint = q.answers_head
    waiting: cython.uint = 0
    while place != q.answers_tail:
        a = answer_at(q, place)
        if a.kind != ANSWER_ACK and not a.repeated:
            waiting += 1
        place += 1
    return waiting >= q.max_dest_rd_atomic


def acknowledge_request(e, q, psn, asked):
    """`psn` was executed: acknowledge it by itself, or when the requester asked, together with what came before."""
    if q.ack_each and answer(q, ANSWER_ACK, AETH_ACK, psn):
        pass
    elif asked or q.ack_each:
        q.ack_due = True
        q.ack_syndrome = AETH_ACK
        q.ack_psn = psn
    else:
        return
    e.enlist(q)


def not_ready(e, q, reason):
    """No receive request waits for this message (IBA vol. 1, 9.7.5.2.8), or a page that it needs is on its way in."""
    e.counters[reason] += 1
    if q.reliable:
        e.counters[TX_RNR_NAKS] += 1
        q.nak_sent = True
        q.ack_due = True
        q.ack_syndrome = AETH_RNR | q.min_rnr_code
        q.ack_psn = q.expected_psn
        e.enlist(q)


def not_granted(e, q, key, address, length, access):
    """The table of keys has not granted an access: refuse it, or have the peer wait for the page.  True if refused."""
    if e.regions.reason == PAGE_AWAITED:
        e.report(REPORT_FAULT, 0, 0)
        if not q.reliable:
            q.open = SKIPPING
        not_ready(e, q, DROP_PAGE)
        return False
    e.denied(q, key, address, length, access)
    refuse(e, q, NAK_REMOTE_ACCESS, ASYNC_QP_ACCESS_ERR, DROP_PROTECTION)
    return True


def refuse(e, q, code, event, reason):
    """A request must not be executed: answer what came before it, then the NAK, and end the queue pair.

    On an unreliable connection the message is dropped, and that is all (IBA vol. 1, 9.8.3).  An end-to-end context
    refuses the message and lives on, and so does the queue pair that it was for: others use them, too.
    """
    head: cython.uint = q.answers_head
    e.counters[reason] += 1
    if not q.reliable:
        q.open = SKIPPING
        return
    e.counters[TX_NAKS] += 1
    if q.end_to_end:
        if q.recv_taken:
            e.complete_recv(q, REM_ABORT_ERR, WC_RECV, q.received, 0, 0, q.recv_source, False)
        q.open = REFUSED
        q.refusal = AETH_NAK | code
        q.nak_sent = True
        q.ack_due = True
        q.ack_syndrome = q.refusal
        q.ack_psn = q.expected_psn
        e.enlist(q)
        return
    e.fail(q)
    q.answers_head = head
    q.ack_due = True
    q.ack_syndrome = AETH_NAK | code
    q.ack_psn = q.expected_psn
    if event >= 0:
        e.report(REPORT_ASYNC, event, q.index)
    e.enlist(q)


def write_aeth(e, q, b, opcode, syndrome, psn, msn, value, destination):
    """An acknowledgement or an atomic's answer, ready to be sealed; returns its size."""
    path: cython.int = e.next_path(q) if q.stripes else q.path
    at: cython.size_t = e.paths[path].front
    size: cython.size_t = at + 16
    write_bth(b, at, opcode | q.service << 5, mig_request(q), q.pkey, destination, psn)
    if q.service == RD:
        put32(b, at + 12, q.remote_ee)
        size += 4
    b[size - 4] = syndrome
    put24(b, size - 3, msn)
    if opcode == ATOMIC_ACKNOWLEDGE:
        put64(b, size, value)
        size += 8
    size += 4
    e.burst_segment = size
    e.burst_packets = 1
    e.burst_path = path
    if opcode == ACKNOWLEDGE and syndrome == AETH_ACK:
        e.counters[TX_ACKS] += 1
    ask_and_seal(e, q, b, size, False)
    return size


def answer_burst(e, q, b, size):
    """Write the next burst of answers; returns its bytes.  Answers leave in the order of their packet numbers."""
    n: cython.size_t
    while q.answers_head != q.answers_tail:
        a = answer_at(q, q.answers_head)
        if a.kind == ANSWER_READ:
            n = read_burst(e, q, a, b, size)
            if n or q.parked:
                return n
            continue
        q.answers_head += 1
        if a.kind == ANSWER_ATOMIC:
            return write_aeth(e, q, b, ATOMIC_ACKNOWLEDGE, a.syndrome, a.psn, a.msn, a.value, a.destination)
        return write_aeth(e, q, b, ACKNOWLEDGE, a.syndrome, a.psn, a.msn, 0, a.destination)
    if q.ack_due:
        q.ack_due = False
        return write_aeth(e, q, b, ACKNOWLEDGE, q.ack_syndrome, q.ack_psn, q.msn, 0, q.destination)
    return 0


def read_burst(e, q, a, b, size):
    """The next packets of a READ's answer: First, Middle… and Last, or Only; First and Last carry an AETH."""
    written: cython.size_t = 0
    payload: cython.uint
    pad: cython.uint
    total: cython.uint
    head: cython.uint
    path: cython.int = e.next_path(q) if q.stripes else q.path
    front: cython.uint = e.paths[path].front
    opcode: cython.uint
    last: cython.bint
    plain: cython.uint = 16 if q.service == RD else 12  # headers in front of an AETH
    limit: cython.uint = 1 if q.stripes else e.burst_limit
    e.burst_packets = 0
    e.burst_path = path
    while e.burst_packets < limit:
        last = a.psn == a.last_psn
        payload = cython.cast(cython.uint, a.left) if last else q.mtu
        if last:
            opcode = READ_RESPONSE_LAST if a.started else READ_RESPONSE_ONLY
        else:
            opcode = READ_RESPONSE_MIDDLE if a.started else READ_RESPONSE_FIRST
        head = front + (plain if opcode == READ_RESPONSE_MIDDLE else plain + 4)
        pad = (4 - (payload & 3)) & 3
        total = head + payload + pad + 4
        if e.burst_packets == 0:
            e.burst_segment = total
        elif total > e.burst_segment:
            break
        if written + total > size:
            break
        if payload:
            r = e.regions.find_remote(
                a.domain, a.qpn, a.key, a.address, payload, payload, REMOTE_READ, a.psn, False
            )
            if not r:
                # The region was closed, or a page of it taken out, while it was being read.
                if e.burst_packets == 0 and e.regions.reason == PAGE_AWAITED:
                    e.park(q)
                elif e.burst_packets == 0:
                    e.denied(q, a.key, a.address, payload, REMOTE_READ)
                    q.answers_head += 1
                    q.expected_psn = a.psn
                    refuse(e, q, NAK_REMOTE_ACCESS, ASYNC_QP_ACCESS_ERR, READS_WITHDRAWN)
                    q.answers_head = q.answers_tail
                    return 0
                break
            e.regions.get(r, a.address, b, written + head, payload)
        if pad:
            fill(b, written + head + payload, 0, pad)
        write_bth(
            b,
            written + front,
            opcode | q.service << 5,
            mig_request(q) | pad << 4,
            q.pkey,
            a.destination,
            a.psn,
        )
        if q.service == RD:
            put32(b, written + front + 12, q.remote_ee)
        if opcode != READ_RESPONSE_MIDDLE:
            b[written + front + plain] = a.syndrome
            put24(b, written + front + plain + 1, a.msn)
        written += total
        e.burst_packets += 1
        a.address += payload
        a.left -= payload
        a.psn = (a.psn + 1) & PSN_MASK
        a.started = True
        if last:
            q.answers_head += 1
            break
        if total < e.burst_segment:
            break
    if written:
        ask_and_seal(e, q, b, written, False)
    return written
