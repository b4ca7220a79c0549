"""The sending half of a queue pair: work requests become packets, answers become completions.

Reliable connection (IBA vol. 1, 9.7): packets are numbered, kept until acknowledged, and sent again from the oldest
unanswered one on (go-back-N) when a NAK, a gap in the answers or the timer says so.  Work requests complete in order.
Two indices say where things stand: ``una_psn`` with ``sq_una`` (the oldest that is not answered) and ``send_psn`` with
``sq_next``, ``next_packet`` (the next to send); going back means to set the second to the first.

An RDMA READ occupies as many packet numbers as its answer has packets (9.7.1.1).  A long one is asked for in several
requests, so that no more comes than the window allows; each counts against the outstanding READs agreed on.

Unreliable connection and datagram complete when the last packet is sent.
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
    from cython.cimports.verbena.transport.local import is_local, step_local
    from cython.cimports.verbena.transport.route import seal_route
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import (
        fill,
        ident_seed,
        put16,
        put24,
        put32,
        put64,
        seal,
        seed,
    )
else:
    from verbena.memory.entries import LOCAL_WRITE
    from verbena.memory.spaces import PAGE_AWAITED
    from verbena.transport.core import send_at
    from verbena.transport.local import is_local, step_local
    from verbena.transport.route import seal_route
    from verbena.transport.tables import *
    from verbena.wire.kernels import (
        fill,
        ident_seed,
        put16,
        put24,
        put32,
        put64,
        seal,
        seed,
    )


def after(a, b):
    """Does packet number a come after b?  Numbers wrap at 24 bits (IBA vol. 1, 9.7.2)."""
    distance: cython.uint = (a - b) & PSN_MASK
    return distance != 0 and distance < 0x800000


def is_read_or_atomic(w):
    return w.operation >= WR_RDMA_READ and w.operation <= WR_ATOMIC_FETCH_AND_ADD


def read_chunk(q):
    """How many packets each request of a long READ asks for, but the last: half a window.

    An odd number, so that a READ of its own is not likely to ask for as many: see `RegionTable.claimed`.
    """
    half: cython.uint = q.window_max >> 1
    return (half - 1) | 1 if half else 1


def chunk_end(q, w, packet):
    """The packet after the last one that the READ request covering `packet` asks for."""
    chunk: cython.uint = read_chunk(q)
    end: cython.uint = (packet // chunk + 1) * chunk
    return min(end, w.packets)


# --- sending ----------------------------------------------------------------------------------------------


def begin(e, q, w):
    """Give a work request its packet numbers; False when it must wait or has failed."""
    problem: cython.int = SUCCESS
    if q.state == SQD or (w.flags & FENCE and q.rd_outstanding):
        return False
    if w.operation == WR_RDMA_READ or is_read_or_atomic(w):
        if not q.max_rd_atomic:
            problem = LOC_EEC_OP_ERR if q.end_to_end else LOC_QP_OP_ERR
        elif not e.can_gather(q, q.sq_next, LOCAL_WRITE):
            problem = LOC_PROT_ERR
    elif not e.can_gather(q, q.sq_next, 0):
        problem = LOC_PROT_ERR
    if problem == LOC_PROT_ERR and e.regions.reason == PAGE_AWAITED:
        e.park(q)
        return False
    if problem != SUCCESS:
        # Requests complete in order: a faulty one waits until it is the oldest.
        if q.sq_una == q.sq_next:
            if problem == LOC_PROT_ERR:
                e.denied_here(q, LOCAL_WRITE if is_read_or_atomic(w) else 0)
            send_failed(e, q, problem)
        return False
    w.started = True
    w.first_psn = q.send_psn
    w.packets = 1
    if not (w.operation == WR_ATOMIC_CMP_AND_SWP or w.operation == WR_ATOMIC_FETCH_AND_ADD) and w.length:
        w.packets = (w.length + q.mtu - 1) // q.mtu
    q.next_packet = 0
    return True


def send_failed(e, q, status):
    """The oldest request failed here: a connection ends, a datagram queue pair stops sending (IBA vol. 1, 10.3.1.7)."""
    if q.end_to_end:
        e.message_failed(q, status)
        return
    e.complete_send(q, status)
    if q.service == RC:
        e.fail(q)
    else:
        q.state = SQE
        e.flush_send(q)


def may_send(e, q, w):
    """Do the window and the agreed number of outstanding READs let the next packet go?"""
    outstanding: cython.uint = (q.send_psn - q.una_psn) & PSN_MASK
    if not q.reliable:
        return True
    if q.resume_ns:
        return False
    if is_read_or_atomic(w):
        if q.rd_outstanding >= q.max_rd_atomic:
            return False
        return (
            outstanding == 0 or outstanding + chunk_end(q, w, q.next_packet) - q.next_packet <= q.window_max
        )
    return outstanding < q.window


def send_opcode(w, first, last):
    """The low five bits of the operation code."""
    code: cython.uint
    if w.operation == WR_RDMA_READ:
        return READ_REQUEST
    if w.operation == WR_ATOMIC_CMP_AND_SWP:
        return COMPARE_SWAP
    if w.operation == WR_ATOMIC_FETCH_AND_ADD:
        return FETCH_ADD
    if w.operation == WR_RESYNC:
        return RESYNC
    code = WRITE_FIRST if w.operation <= WR_RDMA_WRITE_WITH_IMM else SEND_FIRST
    if not last:
        return code if first else code + 1
    if w.operation == WR_SEND_WITH_INV:
        return SEND_ONLY_INV if first else SEND_LAST_INV
    code += 4 if first else 2
    if w.operation == WR_SEND_WITH_IMM or w.operation == WR_RDMA_WRITE_WITH_IMM:
        code += 1
    return code


def has_immediate(opcode):
    """Does an ImmDt or IETH stand in front of the payload?"""
    return (
        opcode == SEND_LAST_IMM
        or opcode == SEND_ONLY_IMM
        or opcode == WRITE_LAST_IMM
        or opcode == WRITE_ONLY_IMM
        or opcode == SEND_LAST_INV
        or opcode == SEND_ONLY_INV
    )


def header_size(opcode, service):
    """Bytes in front of the payload."""
    size: cython.uint = 12
    if service == UD:
        size = 20
    elif service == RD:
        size = 24
    if opcode == WRITE_FIRST or opcode == WRITE_ONLY or opcode == WRITE_ONLY_IMM or opcode == READ_REQUEST:
        size += 16
    if has_immediate(opcode):
        size += 4
    if opcode == COMPARE_SWAP or opcode == FETCH_ADD:
        size += 28
    return size


def write_bth(b, at, opcode, flags, pkey, qpn, psn):
    """The base transport header (IBA vol. 1, 9.2); `flags` is its second byte: SE, M, pad count, version."""
    b[at] = opcode
    b[at + 1] = flags
    put16(b, at + 2, pkey)
    b[at + 4] = 0
    put24(b, at + 5, qpn)
    b[at + 8] = 0
    put24(b, at + 9, psn)


def mig_request(q):
    """The BTH's MigReq bit: set while the connection has migrated (IBA vol. 1, 17.2.8.1), as it is from the start."""
    return 0x40 if q.mig_state == MIG_MIGRATED else 0


def write_extended(b, at, q, w, opcode, offset, length):
    """The headers between the BTH and the payload; `offset`, `length` are what a READ request asks for."""
    if q.service >= RD:
        if q.service == RD:
            b[at] = 0
            put24(b, at + 1, q.remote_ee)
            at += 4
        put32(b, at, w.remote_qkey)
        b[at + 4] = 0
        put24(b, at + 5, q.qpn if q.service == UD else q.lent_qpn)
        at += 8
    if opcode == WRITE_FIRST or opcode == WRITE_ONLY or opcode == WRITE_ONLY_IMM or opcode == READ_REQUEST:
        put64(b, at, w.remote_address + offset)
        put32(b, at + 8, w.remote_key)
        put32(b, at + 12, length)
        at += 16
    elif opcode == COMPARE_SWAP or opcode == FETCH_ADD:
        put64(b, at, w.remote_address)
        put32(b, at + 8, w.remote_key)
        put64(b, at + 12, w.swap if opcode == COMPARE_SWAP else w.compare_add)
        put64(b, at + 20, w.compare_add if opcode == COMPARE_SWAP else 0)
        return
    if has_immediate(opcode):
        put32(b, at, w.immediate)


def send_burst(e, q, b, size, now):
    """Write the next burst of requests: packets of one size and path, the last perhaps shorter.  Returns its bytes."""
    written: cython.size_t = 0
    packet: cython.uint
    front: cython.uint
    head: cython.uint
    payload: cython.uint
    pad: cython.uint
    total: cython.uint
    opcode: cython.uint
    path: cython.int
    covered: cython.uint
    offset: cython.ulonglong
    length: cython.ulonglong
    last: cython.bint
    limit: cython.uint = 1 if q.stripes else e.burst_limit
    e.burst_segment = 0
    e.burst_packets = 0
    while q.sq_next != q.sq_head and e.burst_packets < limit:
        w = send_at(q, q.sq_next)
        if w.operation > WR_ATOMIC_FETCH_AND_ADD:
            if w.operation == WR_DELAY:
                if e.burst_packets or not e.hold_back(q, w, now):
                    break
                continue
            if is_local(w):
                if step_local(e, q, w):
                    continue
                if w.refused and q.sq_una == q.sq_next and e.burst_packets == 0:
                    send_failed(e, q, MW_BIND_ERR)
                break
        if not w.started and not begin(e, q, w):
            break
        if not may_send(e, q, w):
            break
        packet = q.next_packet
        covered = 1
        offset = cython.cast(cython.ulonglong, packet) * q.mtu
        last = packet + 1 == w.packets
        payload = 0
        length = w.length
        if is_read_or_atomic(w):
            if w.operation == WR_RDMA_READ:
                covered = chunk_end(q, w, packet) - packet
                length = min(w.length - offset, cython.cast(cython.ulonglong, covered) * q.mtu)
            opcode = send_opcode(w, True, True)
        else:
            payload = cython.cast(cython.uint, w.length - offset) if last else q.mtu
            opcode = send_opcode(w, packet == 0, last)
        path = w.path if q.service == UD else e.next_path(q) if q.stripes else q.path
        front = e.paths[path].front
        head = front + header_size(opcode, q.service)
        pad = (4 - (payload & 3)) & 3
        total = head + payload + pad + 4
        if e.burst_packets == 0:
            e.burst_segment = total
            e.burst_path = path
        elif path != e.burst_path or total > e.burst_segment:
            break
        if written + total > size:
            break
        if payload and not e.gather(q, q.sq_next, offset, b, written + head, payload):
            # A region was closed under a message that had begun; what was sent of it cannot be taken back.  As in
            # `begin`, it waits until it is the oldest.
            if e.burst_packets == 0 and e.regions.reason == PAGE_AWAITED:
                e.park(q)
            elif e.burst_packets == 0 and q.sq_una == q.sq_next:
                e.denied_here(q, 0)
                send_failed(e, q, LOC_PROT_ERR)
            break
        if pad:
            fill(b, written + head + payload, 0, pad)
        write_bth(
            b,
            written + front,
            opcode | q.service << 5,
            (
                0x80
                if last and w.flags & SOLICITED and w.operation != WR_RDMA_WRITE and not is_read_or_atomic(w)
                else 0
            )
            | mig_request(q)
            | pad << 4,
            q.pkey,
            w.remote_qpn if q.service >= RD else q.destination,
            q.send_psn,
        )
        write_extended(b, written + front + 12, q, w, opcode, offset if opcode == READ_REQUEST else 0, length)
        written += total
        e.burst_packets += 1
        advance(e, q, w, covered)
        if total < e.burst_segment:
            break
    if written:
        ask_and_seal(e, q, b, written, q.reliable)
        if q.reliable and q.deadline_ns == 0 and q.timeout_ns:
            q.deadline_ns = now + q.timeout_ns
            e.schedule(q, q.deadline_ns)
    return written


def advance(e, q, w, packets):
    """The next `packets` numbers of the request are sent."""
    if after(q.max_psn, q.send_psn):
        e.counters[TX_RETRANSMITTED] += 1
    q.send_psn = (q.send_psn + packets) & PSN_MASK
    if after(q.send_psn, q.max_psn):
        q.max_psn = q.send_psn
    q.next_packet += packets
    if is_read_or_atomic(w):
        q.rd_outstanding += 1
    if q.next_packet >= w.packets:
        q.sq_next += 1
        q.next_packet = 0
        if not q.reliable:
            e.complete_send(q, SUCCESS)
            q.una_psn = q.send_psn
            e.drained(q)


def ask_and_seal(e, q, b, n, ask):
    """Ask for an acknowledgement with the burst's last packet, and close all packets with their CRC."""
    i: cython.uint
    at: cython.size_t = 0
    length: cython.size_t
    base: cython.uint
    crc: cython.uint
    p = e.paths[e.burst_path]
    if p.front:
        seal_route(e, p, b, n, ask)
        return
    base = seed(p.prefix, p.is_ip4, e.burst_segment)
    for i in range(e.burst_packets):
        length = e.burst_segment
        if at + length > n:
            length = n - at
            base = seed(p.prefix, p.is_ip4, length)
        if ask and i + 1 == e.burst_packets:
            b[at + 8] = 0x80
        crc = ident_seed(base, i) if p.is_ip4 else base
        seal(crc, b, at, length)
        at += length
