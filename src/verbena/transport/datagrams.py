"""Reliable datagrams, the receiving side: what an end-to-end context does with the packets that name it.

Their order is the context's (`responder`, `completer`).  For the time of a message the queue pair that it is for lends
the context its protection domain, rights, receive queue and completion queue (IBA vol. 1, 9.7.8; document 003:542); so
a packet goes through `responder` as that of a connection does.  Behind its BTH it has 12 bytes more, RDETH and DETH, an
answer 4, the RDETH: what follows is looked for that much later.

A message that may not be is refused, with "invalid RD request" where queue pair, Q_Key or domain are wrong; neither the
context nor the queue pair ends by it.  The refusal is repeated until the requester gives the message up by RESYNC.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

if cython.compiled:
    from cython.cimports.verbena.transport.answers import refuse
    from cython.cimports.verbena.transport.completer import response
    from cython.cimports.verbena.transport.requester import after
    from cython.cimports.verbena.transport.responder import accept, duplicate, request
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import get24, get32
else:
    from verbena.transport.answers import refuse
    from verbena.transport.completer import response
    from verbena.transport.requester import after
    from verbena.transport.responder import accept, duplicate, request
    from verbena.transport.tables import *
    from verbena.wire.kernels import get24, get32


def refused(e, c, b, at):
    """0 if the packet's queue pair takes it, else the counter of the reason."""
    qpn: cython.uint = get24(b, at + 5)
    if (qpn & 0xFFFF) >= cython.cast(cython.uint, e.first_ee):
        return DROP_NO_QP
    q = e.qps[qpn & 0xFFFF]
    if not q or q.qpn != qpn:
        return DROP_NO_QP
    if q.service != RD:
        return DROP_SERVICE
    if q.state < RTR or q.state == ERROR:
        return DROP_QP_STATE
    if q.rdd != c.rdd:
        return DROP_RDD
    if get32(b, at + 16) != q.qkey:
        return DROP_QKEY
    return 0


def borrow(c, q):
    """What a message needs of the queue pair that it is for."""
    c.domain = q.domain
    c.access = q.access
    c.recv_queue = q.recv_queue
    c.recv_cq = q.recv_cq
    c.recv_qpn = q.qpn
    c.min_rnr_code = q.min_rnr_code
    c.holder = q.index


def datagram_request(e, c, b, at, n, opcode, psn, pad, solicited, asked):
    """A request packet for a context: n bytes at b[at], from the BTH on, CRC not counted."""
    reason: cython.int
    source: cython.uint = get24(b, at + 21)
    c.destination = source  # of the answer
    if opcode == RESYNC:
        resync(e, c, b, at, psn)
        return
    if psn == c.expected_psn:
        if c.open == REFUSED:
            e.counters[DROP_MESSAGE_BROKEN] += 1
            e.counters[TX_NAKS] += 1
            c.ack_due = True
            c.ack_syndrome = c.refusal
            c.ack_psn = psn
            e.enlist(c)
            return
        reason = refused(e, c, b, at)
        if reason:
            if reason == DROP_QKEY:
                e.violation(c, b, at, VIOLATION_QKEY)
            refuse(e, c, NAK_INVALID_RD_REQUEST, -1, reason)
            return
        q = e.qps[get24(b, at + 5) & 0xFFFF]
        if c.open != NOTHING_OPEN and (q.index != c.holder or source != c.recv_source):
            refuse(e, c, NAK_INVALID_REQUEST, -1, DROP_INVALID_REQUEST)
            return
        borrow(c, q)
        c.recv_source = source
    elif opcode == READ_REQUEST and after(c.expected_psn, psn):
        reason = refused(e, c, b, at)
        if reason:
            e.counters[reason] += 1
            return
        q = e.qps[get24(b, at + 5) & 0xFFFF]
        c.domain = q.domain
        c.access = q.access
    request(e, c, b, at + 12, n - 12, opcode, psn, pad, solicited, asked)


def resync(e, c, b, at, psn):
    """The requester has given a message up, and goes on behind this number (IBA vol. 1, 9.7.8.4)."""
    if psn != c.expected_psn and not after(psn, c.expected_psn):
        duplicate(e, c, b, at, SEND_ONLY, psn)
        return
    if c.recv_taken:
        e.complete_recv(c, REM_ABORT_ERR, WC_RECV, c.received, 0, 0, c.recv_source, False)
    e.discard_early(c)
    c.answers_head = c.answers_tail
    c.open = NOTHING_OPEN
    c.nak_sent = False
    c.ack_due = False
    c.holder = -1
    accept(e, c, psn, 1, False, True, True)


def datagram_response(e, c, b, at, n, opcode, psn, pad, now):
    """An answer to a context's message; it has to name the queue pair whose message that is."""
    if get24(b, at + 5) != c.lent_qpn:
        e.counters[DROP_STALE_RESPONSE] += 1
        return
    response(e, c, b, at + 4, n - 4, opcode, psn, pad, now)
