"""The receiving half of a connected queue pair: requests are executed and answered.

Reliable connection (IBA vol. 1, 9.7): a request with the expected packet number is executed once; a later one is
answered with a sequence-error NAK, once for each gap; an earlier one is a duplicate, and is answered again: SEND and
WRITE by the newest acknowledgement, READ by reading again, an atomic from its saved result.  Faulty requests get the
NAK of 9.7.5.2 and end the queue pair (table 58).

Unreliable connection (9.8): nothing is answered; a gap drops the message it falls into, and the next First or Only
packet starts afresh, in the same receive buffer.

Everything is checked before a byte is placed: length, key, range, rights, room.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

if cython.compiled:
    from cython.cimports.verbena.memory.entries import (
        LOCAL_WRITE,
        REMOTE_ATOMIC,
        REMOTE_READ,
        REMOTE_WRITE,
        Region,
    )
    from cython.cimports.verbena.memory.spaces import PAGE_AWAITED, QP_RIGHTS
    from cython.cimports.verbena.transport.answers import (
        acknowledge_request,
        answer,
        not_granted,
        not_ready,
        refuse,
        too_many,
    )
    from cython.cimports.verbena.transport.core import answer_at
    from cython.cimports.verbena.transport.requester import after, read_chunk
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import get32, get64
else:
    from verbena.memory.entries import LOCAL_WRITE, REMOTE_ATOMIC, REMOTE_READ, REMOTE_WRITE
    from verbena.memory.spaces import PAGE_AWAITED, QP_RIGHTS
    from verbena.transport.answers import (
        acknowledge_request,
        answer,
        not_granted,
        not_ready,
        refuse,
        too_many,
    )
    from verbena.transport.core import answer_at
    from verbena.transport.requester import after, read_chunk
    from verbena.transport.tables import *
    from verbena.wire.kernels import get32, get64


def too_long(length):
    """A message has at most 2^31 bytes (IBA vol. 1, 9.4.3)."""
    return (length >> 31) != 0 and (length & 0x7FFFFFFF) != 0


def request(e, q, b, at, n, opcode, psn, pad, solicited, asked):
    """A request packet came: n bytes at b[at], CRC not counted."""
    if q.reliable:
        if psn != q.expected_psn:
            if after(psn, q.expected_psn):
                out_of_sequence(e, q)
            else:
                duplicate(e, q, b, at, opcode, psn)
            return
        q.nak_sent = False
        if not in_order(q, opcode):
            refuse(e, q, NAK_INVALID_REQUEST, ASYNC_QP_REQ_ERR, DROP_INVALID_REQUEST)
            return
    else:
        if psn != q.expected_psn:
            q.open = SKIPPING
        q.expected_psn = (psn + 1) & PSN_MASK
        if end_bits(opcode) & 1:
            q.open = NOTHING_OPEN
        elif not in_order(q, opcode):
            e.counters[DROP_MESSAGE_BROKEN] += 1
            return
    if not q.established:
        q.established = True
        if q.state == RTR:
            e.report(REPORT_ASYNC, ASYNC_COMM_EST, q.index)
    if opcode == READ_REQUEST:
        read_request(e, q, b, at, psn, False)
    elif opcode == COMPARE_SWAP or opcode == FETCH_ADD:
        atomic_request(e, q, b, at, opcode, psn)
    elif opcode >= WRITE_FIRST and opcode <= WRITE_ONLY_IMM:
        write_packet(e, q, b, at, n, opcode, psn, pad, solicited, asked)
    else:
        send_packet(e, q, b, at, n, opcode, psn, pad, solicited, asked)


def out_of_sequence(e, q):
    """A packet from beyond a gap: one NAK for each gap (IBA vol. 1, 9.7.5.2.4)."""
    e.counters[RX_OUT_OF_SEQUENCE] += 1
    if q.nak_sent:
        return
    q.nak_sent = True
    q.ack_due = True
    q.ack_syndrome = AETH_NAK | NAK_SEQUENCE
    q.ack_psn = q.expected_psn
    e.counters[TX_NAKS] += 1
    e.enlist(q)


def end_bits(opcode):
    """1: the packet begins a message, 2: it ends one."""
    if opcode == SEND_FIRST or opcode == WRITE_FIRST:
        return 1
    if opcode == SEND_MIDDLE or opcode == WRITE_MIDDLE:
        return 0
    if (
        opcode == SEND_LAST
        or opcode == SEND_LAST_IMM
        or opcode == SEND_LAST_INV
        or opcode == WRITE_LAST
        or opcode == WRITE_LAST_IMM
    ):
        return 2
    return 3


def in_order(q, opcode):
    """Does the packet continue what is open (IBA vol. 1, 9.7.4.1.2)?"""
    if end_bits(opcode) & 1:
        return q.open == NOTHING_OPEN
    if opcode >= WRITE_MIDDLE and opcode <= WRITE_LAST_IMM:
        return q.open == WRITE_OPEN
    return q.open == SEND_OPEN


def accept(e, q, psn, packets, message_ends, by_ack, asked):
    """The packet was executed; it is answered by an acknowledgement, or else by a response of its own."""
    e.counters[RX_ACCEPTED] += 1
    q.expected_psn = (psn + packets) & PSN_MASK
    if message_ends:
        q.msn = (q.msn + 1) & PSN_MASK
        q.open = NOTHING_OPEN
    if q.reliable:
        if by_ack:
            acknowledge_request(e, q, psn, asked)
        elif q.ack_syndrome == AETH_ACK:
            # The response acknowledges everything before it.
            q.ack_due = False


def send_packet(e, q, b, at, n, opcode, psn, pad, solicited, asked):
    """A packet of a SEND: into the oldest receive buffer."""
    ends: cython.uint = end_bits(opcode)
    extended: cython.uint = 0
    flags: cython.int = 0
    immediate: cython.uint = 0
    payload: cython.ulonglong
    if opcode == SEND_LAST_IMM or opcode == SEND_ONLY_IMM:
        extended = 4
        flags = WC_WITH_IMM
    elif opcode == SEND_LAST_INV or opcode == SEND_ONLY_INV:
        extended = 4
        flags = WC_WITH_INV
    payload = n - 12 - extended - pad
    if payload > q.mtu or (not ends & 2 and payload != q.mtu) or (ends == 2 and payload == 0):
        refuse(e, q, NAK_INVALID_REQUEST, ASYNC_QP_REQ_ERR, DROP_INVALID_REQUEST)
        return
    if ends & 1:
        if not e.take_receive(q):
            if q.service == UC:
                q.open = SKIPPING
            not_ready(e, q, DROP_NO_RECEIVE)
            return
        q.received = 0
        q.open = SEND_OPEN
    if q.received + payload > q.recv_length:
        if q.reliable:
            e.complete_recv(q, LOC_LEN_ERR, WC_RECV, q.received, 0, 0, q.destination, False)
        refuse(e, q, NAK_INVALID_REQUEST, -1, DROP_TOO_LONG)
        return
    if payload and not e.scatter(
        q.domain, q.recv_sge, 0, q.recv_sges, q.received, b, at + 12 + extended, payload
    ):
        if e.regions.reason == PAGE_AWAITED:
            # The receive request stays with the message, which comes again.
            e.report(REPORT_FAULT, 0, 0)
            if not q.reliable:
                q.open = SKIPPING
            elif ends & 1:
                q.open = NOTHING_OPEN
            not_ready(e, q, DROP_PAGE)
            return
        e.denied_here(q, LOCAL_WRITE)
        e.complete_recv(q, LOC_PROT_ERR, WC_RECV, q.received, 0, 0, q.destination, False)
        if q.reliable:
            refuse(e, q, NAK_REMOTE_OPERATION, -1, DROP_PROTECTION)
        else:
            e.counters[DROP_PROTECTION] += 1
            e.fail(q)
        return
    q.received += payload
    if ends & 2:
        if extended:
            immediate = get32(b, at + 12)
        if flags == WC_WITH_INV and not e.regions.invalidate(q.domain, q.recv_qpn, immediate):
            e.regions.deny(True, immediate, 0, 0, q.recv_qpn, 0)
            refuse(e, q, NAK_REMOTE_OPERATION, ASYNC_QP_ACCESS_ERR, DROP_PROTECTION)
            return
        accept(e, q, psn, 1, True, True, asked)
        e.complete_recv(q, SUCCESS, WC_RECV, q.received, flags, immediate, q.destination, solicited)
    else:
        accept(e, q, psn, 1, False, True, asked)


def write_packet(e, q, b, at, n, opcode, psn, pad, solicited, asked):
    """A packet of an RDMA WRITE: to the address that the message's first packet names."""
    ends: cython.uint = end_bits(opcode)
    extended: cython.uint = 16 if ends & 1 else 0
    immediate: cython.bint = opcode == WRITE_LAST_IMM or opcode == WRITE_ONLY_IMM
    payload: cython.ulonglong
    if immediate:
        extended += 4
    payload = n - 12 - extended - pad
    if ends & 1:
        q.write_address = get64(b, at + 12)
        q.write_key = get32(b, at + 20)
        q.write_left = get32(b, at + 24)
        q.write_length = q.write_left
        q.write_psn = psn
        if too_long(q.write_left):
            refuse(e, q, NAK_INVALID_REQUEST, ASYNC_QP_REQ_ERR, DROP_INVALID_REQUEST)
            return
        if not q.access & REMOTE_WRITE:
            e.regions.reason = QP_RIGHTS
            not_granted(e, q, q.write_key, q.write_address, q.write_left, REMOTE_WRITE)
            return
        q.open = WRITE_OPEN
    if (
        payload > q.mtu
        or payload > q.write_left
        or (not ends & 2 and (payload != q.mtu or payload == q.write_left))
        or (ends & 2 and payload != q.write_left)
    ):
        refuse(e, q, NAK_INVALID_REQUEST, ASYNC_QP_REQ_ERR, DROP_INVALID_REQUEST)
        return
    if payload:
        # The first packet answers for the whole message: nothing is placed of one that would be refused later.
        r = e.regions.find_remote(
            q.domain,
            q.recv_qpn,
            q.write_key,
            q.write_address,
            q.write_left if ends & 1 else payload,
            payload,
            REMOTE_WRITE,
            q.write_psn,
            (ends & 1) != 0,
        )
        if not r:
            if ends & 1:
                q.open = NOTHING_OPEN
            not_granted(e, q, q.write_key, q.write_address, q.write_left, REMOTE_WRITE)
            return
    if immediate and not e.take_receive(q):
        if q.service == UC or ends & 1:
            q.open = NOTHING_OPEN
        not_ready(e, q, DROP_NO_RECEIVE)
        return
    if payload:
        if ends & 1:
            e.regions.use(
                r,
                q.recv_qpn,
                q.destination,
                e.paths[q.path].remote,
                psn,
                (cython.cast(cython.uint, q.write_left) + q.mtu - 1) // q.mtu,
                q.write_address,
                q.write_left,
                REMOTE_WRITE,
                False,
            )
        e.regions.put(r, q.write_address, b, at + 12 + extended, payload)
        q.write_address += payload
        q.write_left -= payload
    accept(e, q, psn, 1, (ends & 2) != 0, True, asked)
    if immediate:
        e.complete_recv(
            q,
            SUCCESS,
            WC_RECV_RDMA_WITH_IMM,
            q.write_length,
            WC_WITH_IMM,
            get32(b, at + 12 + extended - 4),
            q.destination,
            solicited,
        )


def read_request(e, q, b, at, psn, repeated):
    """An RDMA READ: its answer is queued, and read from memory when it is sent (IBA vol. 1, 9.7.5.1.4)."""
    address: cython.ulonglong = get64(b, at + 12)
    key: cython.uint = get32(b, at + 20)
    length: cython.ulonglong = get32(b, at + 24)
    packets: cython.uint = 1
    place: cython.uint
    if length:
        packets = (length + q.mtu - 1) // q.mtu
    if repeated:
        # It must lie within what was executed.
        if too_long(length) or packets > ((q.expected_psn - psn) & PSN_MASK):
            e.counters[DROP_INVALID_REQUEST] += 1
            return
    elif too_long(length) or too_many(q):
        refuse(e, q, NAK_INVALID_REQUEST, ASYNC_QP_REQ_ERR, DROP_INVALID_REQUEST)
        return
    if cython.compiled:
        r: cython.pointer(Region) = cython.NULL
    else:
        r = None
    if not q.access & REMOTE_READ:
        e.regions.reason = QP_RIGHTS
    elif length:
        r = e.regions.find_remote(
            q.domain,
            q.recv_qpn,
            key,
            address,
            length,
            min(length, cython.cast(cython.ulonglong, q.mtu)),
            REMOTE_READ,
            psn,
            not repeated,
        )
    if not q.access & REMOTE_READ or (length and not r):
        if repeated and e.regions.reason == PAGE_AWAITED:
            e.counters[DROP_PAGE] += 1
            e.report(REPORT_FAULT, 0, 0)
        elif not_granted(e, q, key, address, length, REMOTE_READ):
            q.ack_psn = psn
        return
    if repeated:
        place = q.answers_head
        while place != q.answers_tail:
            a = answer_at(q, place)
            if a.kind == ANSWER_READ and a.last_psn == ((psn + packets - 1) & PSN_MASK):
                # Its answer is being sent: start it again from where the requester lost it.
                a.psn, a.address, a.left, a.key, a.started = psn, address, length, key, False
                e.counters[RX_DUPLICATE] += 1
                return
            place += 1
    if not answer(q, ANSWER_READ, AETH_ACK, psn):
        e.counters[DROP_ANSWERS_FULL] += 1
        return
    if repeated:
        e.counters[RX_DUPLICATE] += 1
    else:
        if length:
            e.regions.use(
                r,
                q.recv_qpn,
                q.destination,
                e.paths[q.path].remote,
                psn,
                packets,
                address,
                length,
                REMOTE_READ,
                packets == read_chunk(q),
            )
        accept(e, q, psn, packets, True, False, False)
    a = answer_at(q, q.answers_tail - 1)
    a.last_psn = (psn + packets - 1) & PSN_MASK
    a.address = address
    a.left = length
    a.key = key
    a.msn = q.msn
    a.repeated = repeated
    e.enlist(q)


def atomic_request(e, q, b, at, opcode, psn):
    """A compare-and-swap or fetch-and-add on an aligned 64-bit word (IBA vol. 1, 9.4.5)."""
    address: cython.ulonglong = get64(b, at + 12)
    key: cython.uint = get32(b, at + 20)
    operand: cython.ulonglong = get64(b, at + 24)
    compare: cython.ulonglong = get64(b, at + 32)
    old: cython.ulonglong = 0
    new: cython.ulonglong
    i: cython.int
    word_mask: cython.ulonglong = (cython.cast(cython.ulonglong, 1) << 63 << 1) - 1
    if address & 7 or too_many(q):
        refuse(e, q, NAK_INVALID_REQUEST, ASYNC_QP_REQ_ERR, DROP_INVALID_REQUEST)
        return
    r = e.regions.find_remote(q.domain, q.recv_qpn, key, address, 8, 8, REMOTE_ATOMIC, psn, True)
    if not r or not q.access & REMOTE_ATOMIC:
        if not q.access & REMOTE_ATOMIC:
            e.regions.reason = QP_RIGHTS
        not_granted(e, q, key, address, 8, REMOTE_ATOMIC)
        return
    if not answer(q, ANSWER_ATOMIC, AETH_ACK, psn):
        e.counters[DROP_ANSWERS_FULL] += 1
        return
    e.regions.use(
        r, q.recv_qpn, q.destination, e.paths[q.path].remote, psn, 1, address, 8, REMOTE_ATOMIC, False
    )
    e.regions.get(r, address, e.word, 0, 8)
    for i in range(8):
        old |= cython.cast(cython.ulonglong, e.word[i]) << (8 * i)
    if opcode == FETCH_ADD:
        new = (old + operand) & word_mask
    else:
        new = operand if old == compare else old
    for i in range(8):
        e.word[i] = (new >> (8 * i)) & 0xFF
    e.regions.put(r, address, e.word, 0, 8)
    q.atomics[q.atomics_next].psn = psn
    q.atomics[q.atomics_next].value = old
    q.atomics[q.atomics_next].live = True
    q.atomics_next = (q.atomics_next + 1) % q.atomics_size
    accept(e, q, psn, 1, True, False, False)
    a = answer_at(q, q.answers_tail - 1)
    a.value = old
    a.msn = q.msn
    e.enlist(q)


def duplicate(e, q, b, at, opcode, psn):
    """A request that was executed before: answer it again, execute nothing twice (IBA vol. 1, 9.7.5.1.3, 9.7.5.1.5)."""
    i: cython.uint
    if q.stripes:
        # The answers leave by other paths than the last time, or one that is dead would get the same ones every time.
        # All that is asked for again at once is one round, which begins where the numbers do not go on.
        if not after(psn, q.repeated_psn):
            e.turn_stripes(q)
        q.repeated_psn = psn
    if opcode == READ_REQUEST:
        read_request(e, q, b, at, psn, True)
        return
    if opcode == COMPARE_SWAP or opcode == FETCH_ADD:
        for i in range(q.atomics_size):
            if q.atomics[i].live and q.atomics[i].psn == psn:
                if answer(q, ANSWER_ATOMIC, AETH_ACK, psn):
                    a = answer_at(q, q.answers_tail - 1)
                    a.value = q.atomics[i].value
                    a.repeated = True
                    e.counters[RX_DUPLICATE] += 1
                    e.enlist(q)
                else:
                    e.counters[DROP_ANSWERS_FULL] += 1
                return
        e.counters[DROP_NO_ATOMIC_RESULT] += 1
        return
    e.counters[RX_DUPLICATE] += 1
    if q.ack_each and answer(q, ANSWER_ACK, AETH_ACK, psn):
        pass
    elif not q.ack_due:
        q.ack_due = True
        q.ack_syndrome = AETH_ACK
        q.ack_psn = (q.expected_psn - 1) & PSN_MASK
    e.enlist(q)
