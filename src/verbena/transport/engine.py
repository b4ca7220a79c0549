"""The transport of one channel adapter, without socket and clock: bursts and the time go in, bursts come out.

``take_burst`` checks each packet once, in the order of IBA vol. 1, 9.6 (length, version, operation, CRC, queue pair,
service, state, partition, source), counts what it drops under the reason, and hands the rest to requester or
responder.  ``make_burst`` lets the queue pairs that want to send take turns.  ``run_timers`` serves those whose time
has come.  All three run without the interpreter lock when compiled.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.transport.sources import Sources
from verbena.transport.tables import COUNTERS

if cython.compiled:
    from cython.cimports.verbena.memory.entries import LOCAL_WRITE
    from cython.cimports.verbena.memory.spaces import PAGE_AWAITED
    from cython.cimports.verbena.transport.answers import answer_burst
    from cython.cimports.verbena.transport.completer import response, tick
    from cython.cimports.verbena.transport.reorder import arrived, gap_tick
    from cython.cimports.verbena.transport.requester import send_burst
    from cython.cimports.verbena.transport.responder import request
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import (
        copy,
        fill,
        get16,
        get24,
        get32,
        put16,
        same,
    )
else:
    from verbena._declarations import declarations
    from verbena.memory.entries import LOCAL_WRITE
    from verbena.memory.spaces import PAGE_AWAITED
    from verbena.transport.answers import answer_burst
    from verbena.transport.completer import response, tick
    from verbena.transport.reorder import arrived, gap_tick
    from verbena.transport.requester import send_burst
    from verbena.transport.responder import request
    from verbena.transport.tables import *
    from verbena.wire.kernels import (
        copy,
        fill,
        get16,
        get24,
        get32,
        put16,
        same,
    )

    globals().update(declarations(__file__))
    _heads = bytearray(256)
    _bodies = bytearray(256)


def _know_opcodes():
    """Fill `_heads` (header bytes of each operation code known, else 0) and `_bodies` (may it carry a payload?)."""
    code: cython.int
    from verbena.wire.opcodes import OPCODES

    for opcode, info in OPCODES.items():
        code = int(opcode)
        if code >> 5 in (RC, UC, RD, UD):
            _heads[code] = 12 + sum(header.SIZE for header in info.headers)
            _bodies[code] = bool(info.has_payload)
    _heads[0x81] = 12 + 16


_know_opcodes()


def is_response(opcode):
    return opcode >= READ_RESPONSE_FIRST and opcode <= ATOMIC_ACKNOWLEDGE


class Engine(Sources):
    """One adapter's transport: see the module.  Made by `adapter.ChannelAdapter`."""

    if not cython.compiled:

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.grh = bytearray(40)

    def take_burst(self, b, n, segment, source, port, first, now):
        """Packets of `segment` bytes each (the last perhaps shorter) from one GID and UDP port.

        `first` is the IPv4 identification to expect in the first of them.
        """
        at: cython.size_t = 0
        place: cython.uint = first
        length: cython.size_t
        i: cython.uint
        if n == 0:
            # A datagram without a byte is a packet, too.
            self.counters[RX_PACKETS] += 1
            self.counters[DROP_SHORT] += 1
            return
        if segment == 0:
            segment = n
        self.know_source(source, port)
        self.regions.now = now
        for i in range(1, AHEAD_PACKETS):
            self.look_ahead(b, i * segment, n)
        while at < n:
            length = min(segment, n - at)
            self.look_ahead(b, at + AHEAD_PACKETS * segment, n)
            self.take_packet(b, at, length, place, now)
            at += length
            place += 1

    def look_ahead(self, b, at, n):
        """The key of a later request of a burst of n bytes is looked up while the ones before it are executed."""
        code: cython.uint
        if at + 32 > n:
            return
        code = b[at] & 0x1F
        if code == WRITE_FIRST or (code >= WRITE_ONLY and code <= READ_REQUEST):
            self.regions.expect(get32(b, at + 20))

    def take_packet(self, b, at, n, place, now):
        """One packet: checked, counted, executed."""
        code: cython.uint
        head: cython.uint
        pad: cython.uint
        qpn: cython.uint
        dropped: cython.int
        self.now_ns = now
        self.counters[RX_PACKETS] += 1
        self.counters[RX_BYTES] += n
        if n < 16:
            self.counters[DROP_SHORT] += 1
            return
        if b[at + 1] & 0x0F:
            self.counters[DROP_VERSION] += 1
            return
        code = b[at]
        head = _heads[code]
        if head == 0:
            self.counters[DROP_OPCODE] += 1
            return
        pad = (b[at + 1] >> 4) & 3
        if (
            n & 3
            or n < head + pad + 4
            or (n > head + 4 and not _bodies[code])
            or n > head + LARGEST_PAYLOAD + 4
        ):
            self.counters[DROP_LENGTH] += 1
            return
        if self.icrc_checked:
            dropped = self.check_crc(b, at, n, place, now)
            if dropped:
                self.counters[dropped] += 1
                return
        if code == 0x81:
            self.counters[RX_CONGESTION] += 1
            return
        # A reliable datagram names an end-to-end context, and its queue pair is looked for when its turn comes.
        rd: cython.bint = code >> 5 == RD
        qpn = get24(b, at + 13) if rd else get24(b, at + 5)
        if qpn == MULTICAST_QPN and not rd and self.to_members(b, at, n, code, pad):
            return
        if (qpn & 0xFFFF) >= cython.cast(cython.uint, self.max_qp):
            self.counters[DROP_NO_EE if rd else DROP_NO_QP] += 1
            return
        q = self.qps[qpn & 0xFFFF]
        if not q or q.qpn != qpn:
            if self.tracing:
                self.step(416, -1, qpn, 0)
            self.counters[DROP_NO_EE if rd else DROP_NO_QP] += 1
            return
        self.execute(q, b, at, n, code, pad, now)

    def execute(self, q, b, at, n, code, pad, now):
        """A whole packet for this queue pair: is it one that it may take, and does it come from where it should?"""
        opcode: cython.uint
        if q.service != code >> 5 or q.end_to_end != (q.service == RD):
            self.counters[DROP_SERVICE] += 1
            return
        opcode = code & 0x1F
        if q.state < RTR or q.state == ERROR or (q.state < RTS and q.reliable and is_response(opcode)):
            self.counters[DROP_QP_STATE] += 1
            return
        if not self.right_partition(q, get16(b, at + 2)):
            self.counters[DROP_PKEY] += 1
            self.violation(q, b, at, VIOLATION_PKEY)
            return
        if q.service == UD:
            self.datagram(q, b, at, n - 4, opcode, pad, (b[at + 1] & 0x80) != 0)
            return
        if not self.from_peer(q, b):
            self.counters[DROP_SOURCE] += 1
            return
        if q.end_to_end or q.stripes:
            arrived(self, q, b, at, n - 4, is_response(opcode), now)
            return
        if is_response(opcode):
            response(self, q, b, at, n - 4, opcode, get24(b, at + 9), pad, now)
        else:
            request(
                self,
                q,
                b,
                at,
                n - 4,
                opcode,
                get24(b, at + 9),
                pad,
                (b[at + 1] & 0x80) != 0,
                (b[at + 8] & 0x80) != 0,
            )

    def from_peer(self, q, b):
        """Does the packet come from the peer that the queue pair is connected to?"""
        return same(self.rx_source, 0, self.paths[q.path].remote, 0, 16) or (
            q.stripes != 0 and self.by_other_path(q, b)
        )

    def by_other_path(self, q, b):
        """Does one of the connection's further paths lead to the sender?"""
        i: cython.int
        for i in range(1, q.stripes):
            if same(self.rx_source, 0, self.paths[q.stripe[i]].remote, 0, 16):
                return True
        return False

    def to_members(self, b, at, n, code, pad):
        """Execute a multicast packet for its group's members; False where there is no multicast (see `native`)."""
        return False

    def right_partition(self, q, pkey):
        """Same partition, and not limited members both (IBA vol. 1, 10.9.3)."""
        return (pkey & 0x7FFF) == (q.pkey & 0x7FFF) and ((pkey | q.pkey) & 0x8000) != 0

    def datagram(self, q, b, at, n, opcode, pad, solicited):
        """A datagram: into the oldest receive buffer, behind 40 bytes of header (IBA vol. 1, 9.8.2, 11.4.1.2)."""
        immediate: cython.bint = opcode == SEND_ONLY_IMM
        head: cython.uint = 24 if immediate else 20
        payload: cython.uint = cython.cast(cython.uint, n - head - pad)
        flags: cython.int
        if opcode != SEND_ONLY and not immediate:
            self.counters[DROP_OPCODE] += 1
            return
        if get32(b, at + 12) != q.qkey:
            self.counters[DROP_QKEY] += 1
            self.violation(q, b, at, VIOLATION_QKEY)
            return
        if payload > q.mtu:
            self.counters[DROP_LENGTH] += 1
            return
        if not self.take_receive(q):
            self.counters[DROP_NO_RECEIVE] += 1
            return
        if payload + GRH_SPACE > q.recv_length:
            self.counters[DROP_TOO_LONG] += 1
            return
        flags = self.write_grh(b, n)
        if (
            flags and not self.scatter(q.domain, q.recv_sge, 0, q.recv_sges, 0, self.grh, 0, GRH_SPACE)
        ) or not self.scatter(q.domain, q.recv_sge, 0, q.recv_sges, GRH_SPACE, b, at + head, payload):
            if self.regions.reason == PAGE_AWAITED:
                self.counters[DROP_PAGE] += 1
                self.report(REPORT_FAULT, 0, 0)
                return
            self.denied_here(q, LOCAL_WRITE)
            self.counters[DROP_PROTECTION] += 1
            self.complete_recv(q, LOC_PROT_ERR, WC_RECV, 0, 0, 0, 0, False)
            self.fail(q)
            return
        self.counters[RX_ACCEPTED] += 1
        self.complete_recv(
            q,
            SUCCESS,
            WC_RECV,
            payload + GRH_SPACE,
            flags | (WC_WITH_IMM if immediate else 0),
            get32(b, at + 20) if immediate else 0,
            get24(b, at + 17),
            solicited,
        )

    def write_grh(self, b, n):
        """The global header that goes in front of a datagram of n bytes (CRC not counted), and whether there is one.

        The socket does not show the IP header: what it said of source, destination and length is known, the fields
        that a network may change are not, and are set to their usual values.
        """
        fill(self.grh, 0, 0, GRH_SPACE)
        if self.rx_is_ip4:
            self.grh[20] = 0x45
            put16(self.grh, 22, cython.cast(cython.uint, n) + 4 + 28)
            self.grh[28] = 64
            self.grh[29] = 17
            copy(self.grh, 32, self.rx_source, 12, 4)
            copy(self.grh, 36, self.rx_own, 12, 4)
        else:
            self.grh[0] = 0x60
            put16(self.grh, 4, cython.cast(cython.uint, n) + 4 + 8)
            self.grh[6] = 17
            self.grh[7] = 64
            copy(self.grh, 8, self.rx_source, 0, 16)
            copy(self.grh, 24, self.rx_own, 0, 16)
        return WC_GRH

    def must_wait(self, q):
        """Is the queue pair's way out closed for now?  It is called when that opens again (see `native`)."""
        return False

    def stays_inside(self, b, n, now):
        """Is the burst just made not for the wire?  Then it is delivered, or dropped, already (see `native`)."""
        return False

    def make_requests(self, q, b, size, now):
        return send_burst(self, q, b, size, now)

    def make_answers(self, q, b, size):
        q.answers_turn = False
        return answer_burst(self, q, b, size) if q.state >= RTR else 0

    def make_burst(self, b, size, now):
        """The next burst to send, of whatever queue pair's turn it is; 0 when nobody has anything.

        A queue pair's requests and answers take turns, too; after a silence its requests go first, so that an
        acknowledgement does not hold up the program's own message.

        Its packets and destination are in ``burst_segment``, ``burst_packets`` and ``burst_path``.
        """
        n: cython.size_t
        self.now_ns = self.regions.now = now
        while True:
            q = self.next_ready()
            if not q:
                return 0
            if self.must_wait(q):
                continue
            n = 0
            if q.service == RD:
                if not q.end_to_end:
                    self.offer(q, now)
                    continue
                self.take_up(q)
            if q.answers_turn:
                n = self.make_answers(q, b, size)
            if n == 0 and (q.state == RTS or q.state == SQD) and not q.parked:
                n = self.make_requests(q, b, size, now)
                q.answers_turn = True
            if n == 0:
                n = self.make_answers(q, b, size)
            if n:
                self.enlist(q)
                self.counters[TX_PACKETS] += self.burst_packets
                self.counters[TX_BYTES] += n
                if not self.stays_inside(b, n, now):
                    return n

    def run_timers(self, now):
        """Serve the queue pairs whose timers are over, and the vectors whose moderation is."""
        self.now_ns = now
        if self.moderated:
            self.expire(now)
        while True:
            q = self.next_due(now)
            if not q:
                return
            tick(self, q, now)
            if q.stripes:
                gap_tick(self, q, now)

    # --- pages (see `memory.spaces`) ------------------------------------------------------------------------

    def take_faults(self):
        """Pages that the host shall bring in: (space, page, to write?, key, queue pair)."""
        self.acquire()
        result = self.regions.take_faults()
        self.release()
        return result

    def page_errors(self):
        """Accesses that were refused because a page was missing, each once: (key, address, queue pair, remote?)."""
        self.acquire()
        result = self.regions.page_errors()
        self.release()
        return result

    # --- the same, for callers in Python ------------------------------------------------------------------

    def receive(self, data, segment, source, port, now, first=0, own=None):
        """Take a burst from a writable buffer (it is restored, but written to on the way).

        own: the GID that it came to, where the adapter has several; by default the first.
        """
        if cython.compiled:
            octets: cython.uchar[::1] = data
            gid: cython.const[cython.uchar][::1] = source
            self.acquire()
            if own is not None or self.rx_elsewhere:
                self.came_to(own)
            self.take_burst(
                cython.address(octets[0]) if octets.shape[0] else cython.NULL,
                octets.shape[0],
                segment,
                cython.cast(cython.pointer(uint8_t), cython.address(gid[0])),
                port,
                first,
                now,
            )
            self.release()
        else:
            self.acquire()
            if own is not None or self.rx_elsewhere:
                self.came_to(own)
            self.take_burst(data, len(data), segment, source, port, first, now)
            self.release()

    def transmit(self, buffer, now):
        """Make a burst in a buffer; returns (bytes, segment, path) or None."""
        n: cython.size_t
        self.acquire()
        if cython.compiled:
            octets: cython.uchar[::1] = buffer
            n = self.make_burst(cython.address(octets[0]), min(octets.shape[0], BURST_BYTES), now)
        else:
            n = self.make_burst(buffer, min(len(buffer), BURST_BYTES), now)
        result = (n, self.burst_segment, self.burst_path) if n else None
        self.release()
        return result

    def tick(self, now):
        """Serve the timers; returns when to come again, 0 if no timer runs."""
        self.acquire()
        self.run_timers(now)
        when = self.earliest()
        self.release()
        return when

    def reports(self):
        """Take the reports that wait: (kind, a, b)."""
        result = []
        self.acquire()
        while self.report_head != self.report_tail:
            r = self.report_ring[self.report_head & (self.report_size - 1)]
            result.append((r.kind, r.a, r.b))
            self.report_head += 1
        self.release()
        return result

    def has_reports(self):
        """Do reports wait, or interrupts?"""
        return self.report_head != self.report_tail or self.first_due >= 0

    def count(self, name, packets):
        """Add to a counter that whoever runs the adapter keeps."""
        at: cython.int = COUNTERS.index(name)
        self.counters[at] += packets

    def set_counter(self, name, value):
        """Set a counter that is counted elsewhere."""
        at: cython.int = COUNTERS.index(name)
        self.counters[at] = value

    def read_counters(self):
        """All counters by name."""
        return {COUNTERS[i]: self.counters[i] for i in range(COUNTER_COUNT)} | self.regions.read_counters()

    def path_source(self, index):
        """The GID, of this adapter, that a path begins at."""
        at: cython.int = index
        p = self.path_at(at)
        return bytes([p.own[i] for i in range(16)])

    def path_destination(self, index):
        """(GID, traffic class, hop limit, is it this adapter?) of a path."""
        at: cython.int = index
        p = self.path_at(at)
        return (bytes([p.remote[i] for i in range(16)]), p.traffic_class, p.hop_limit, bool(p.loopback))
