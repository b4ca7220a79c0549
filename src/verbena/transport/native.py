"""The transport on native InfiniBand: packets with LRH and perhaps GRH, through the ports of an adapter.

What arrives is checked in the order of IBA vol. 1, 7.8 and 9.6 (link header, global header, and then, as everywhere,
the transport's own), and handed to the queue pair, or to all that are attached to a multicast group.  What is for this
adapter itself never leaves it.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError
from verbena.transport.migration import Migration

if cython.compiled:
    from cython.cimports.libc.stdlib import free, realloc
    from cython.cimports.verbena.transport.engine import MULTICAST_QPN, Engine, is_response
    from cython.cimports.verbena.transport.ports import (
        FIRST_MULTICAST_LID,
        MAX_PORTS,
        PERMISSIVE_LID,
        PORT_ACTIVE,
        PORT_ARMED,
    )
    from cython.cimports.verbena.transport.route import (
        GRH_NEXT_IS_BTH,
        LRH_BYTES,
        NEXT_IS_BTH,
        NEXT_IS_GRH,
        ROUTE_BYTES,
        mask_route,
    )
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import (
        copy,
        crc32,
        fill,
        get16,
        get24,
        get32,
        packet_crc,
        same,
        sealed_with,
    )
else:
    from verbena._declarations import declarations
    from verbena.transport.engine import MULTICAST_QPN, Engine, is_response
    from verbena.transport.ports import (
        FIRST_MULTICAST_LID,
        MAX_PORTS,
        PERMISSIVE_LID,
        PORT_ACTIVE,
        PORT_ARMED,
    )
    from verbena.transport.route import (
        GRH_NEXT_IS_BTH,
        LRH_BYTES,
        NEXT_IS_BTH,
        NEXT_IS_GRH,
        ROUTE_BYTES,
        mask_route,
    )
    from verbena.transport.tables import *
    from verbena.wire.kernels import (
        copy,
        crc32,
        fill,
        get16,
        get24,
        get32,
        packet_crc,
        same,
        sealed_with,
    )

    globals().update(declarations(__file__))


class NativeEngine(Migration):
    """One adapter's transport behind InfiniBand ports: see the module.  Made by `adapter.ChannelAdapter`."""

    if not cython.compiled:
        member_count, violation_head, violation_tail = 0, 0, 0

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.members = []
            self.violation_ring = [Violation() for _ in range(VIOLATIONS)]
            self.masked = bytearray(48)

    def __dealloc__(self):
        if cython.compiled:
            free(self.members)

    # --- sending ------------------------------------------------------------------------------------------

    def stays_inside(self, b, n, now):
        p = self.paths[self.burst_path]
        if p.loop_port:
            self.loop(b, n, p.loop_port, False, now)
            return True
        if self.ports[p.port].state != PORT_ACTIVE:
            self.counters[DROP_TX_PORT_DOWN] += self.burst_packets
            return True
        if self.member_count and p.dlid >= FIRST_MULTICAST_LID and p.dlid != PERMISSIVE_LID:
            # The group's members on this adapter get their copy here: no switch sends one back to where it came from.
            self.loop(b, n, p.port, True, now)
        return False

    def loop(self, b, n, number, multicast, now):
        """Deliver the burst just made to a port of this adapter; multicast packets only if they have a member."""
        at: cython.size_t = 0
        length: cython.size_t
        segment: cython.size_t = self.burst_segment
        while at < n:
            length = min(segment, n - at)
            packet = part(b, at, length)
            if not multicast or self.has_member(packet, number):
                self.counters[LOOPED_PACKETS] += 1
                self.take_native(packet, length, number, now)
            at += length

    # --- receiving ----------------------------------------------------------------------------------------

    def take_native(self, b, n, number, now):
        """One packet from LRH to ICRC, that arrived at a port: checked, counted, executed."""
        reason: cython.int = self.route_fault(b, n, number)
        if reason:
            self.counters[RX_PACKETS] += 1
            self.counters[RX_BYTES] += n
            if reason == DROP_RAW:
                self.take_raw(b, n, number, now)
            else:
                self.counters[reason] += 1
            return
        self.counters[RX_BYTES] += self.rx_front
        self.take_packet(b, self.rx_front, n - self.rx_front, 0, now)

    def route_fault(self, b, n, number):
        """0 if the link header is right and the packet for this port, else the counter of the reason.

        The order of IBA vol. 1, 7.8 (version, length, lane, destination), then what follows the LRH.
        """
        following: cython.uint
        self.rx_number = number
        if n < LRH_BYTES:
            return DROP_SHORT
        if b[0] & 0x0F:
            return DROP_LINK_VERSION
        if 4 * (get16(b, 4) & 0x7FF) != n or n > self.ports[number].mtu + LARGEST_HEADERS:
            return DROP_LINK_LENGTH
        if self.ports[number].state < PORT_ARMED:
            return DROP_PORT_STATE
        if b[0] >> 4 == MANAGEMENT_LANE:
            return DROP_VL15  # of queue pair 0, which is not the transport's
        self.rx_dlid = get16(b, 2)
        self.rx_slid = get16(b, 6)
        self.rx_sl = b[1] >> 4
        self.rx_multicast = self.rx_dlid >= FIRST_MULTICAST_LID and self.rx_dlid != PERMISSIVE_LID
        self.rx_path_bits = self.rx_dlid & ((1 << self.ports[number].lmc) - 1)
        if (
            not self.rx_multicast
            and self.rx_dlid != PERMISSIVE_LID
            and not self.own_lid_of(number, self.rx_dlid)
        ):
            return DROP_DLID
        following = b[1] & 3
        if following < NEXT_IS_BTH:
            return DROP_RAW
        self.rx_front = LRH_BYTES
        if following == NEXT_IS_GRH:
            self.rx_front = ROUTE_BYTES
            return self.global_fault(b, n, number)
        return DROP_DGID if self.rx_multicast else 0

    def global_fault(self, b, n, number):
        """The same for the global header (IBA vol. 1, 9.6.1.2)."""
        if n < ROUTE_BYTES:
            return DROP_SHORT
        if b[8] >> 4 != 6:
            return DROP_GRH_VERSION
        if b[14] != GRH_NEXT_IS_BTH:
            return DROP_GRH_HEADER
        if get16(b, 12) != n - ROUTE_BYTES:
            return DROP_GRH_LENGTH
        if self.rx_multicast:
            return 0 if b[32] == MULTICAST_GID else DROP_DGID
        return 0 if self.own_gid_of(number, b, 32) else DROP_DGID

    def take_raw(self, b, n, number, now):
        """A packet without transport headers: nobody takes it here."""
        self.counters[DROP_RAW] += 1

    def check_crc(self, b, at, n, place, now):
        mask_route(self.masked, b, at)
        if packet_crc(crc32(0, self.masked, 0, at), b, at, n) == sealed_with(b, at, n):
            return 0
        return DROP_ICRC

    def execute(self, q, b, at, n, code, pad, now):
        if self.rx_multicast and get24(b, at + 5) != MULTICAST_QPN:
            self.counters[DROP_MULTICAST] += 1
            return
        if q.service == UD and q.state >= RTR and q.port != self.rx_number and q.qpn != 1:
            self.counters[DROP_WRONG_PORT] += 1
            return
        self.rx_migrated = (b[at + 1] & 0x40) != 0
        Engine.execute(self, q, b, at, n, code, pad, now)

    def violation(self, q, b, at, trap):
        if trap == VIOLATION_PKEY:
            self.ports[self.rx_number].pkey_violations += 1
        else:
            self.ports[self.rx_number].qkey_violations += 1
        if self.violation_tail - self.violation_head >= VIOLATIONS:
            return  # as many are told already as anybody can read
        if cython.compiled:
            v = cython.address(self.violation_ring[self.violation_tail % VIOLATIONS])
        else:
            v = self.violation_ring[self.violation_tail % VIOLATIONS]
        v.trap, v.port, v.sl = trap, self.rx_number, self.rx_sl
        v.slid, v.dlid = self.rx_slid, self.rx_dlid
        # The DETH begins behind the BTH, or behind the RDETH (IBA vol. 1, 9.3); answers have none.
        deth: cython.size_t = at + (16 if q.service == RD else 12)
        v.key = get16(b, at + 2) if trap == VIOLATION_PKEY else get32(b, deth)
        v.qpn = get24(b, at + 5)
        if q.service == UD or (q.service == RD and not is_response(b[at] & 0x1F)):
            v.source_qpn = get24(b, deth + 5)
        else:
            v.source_qpn = q.destination
        fill(v.gids, 0, 0, 32)
        if self.rx_front == ROUTE_BYTES and at:  # one that waited for its turn is kept from the BTH on
            copy(v.gids, 0, b, 16, 32)
        if self.violation_tail == self.violation_head:
            self.report(REPORT_VIOLATION, self.rx_number, 0)
        self.violation_tail += 1

    def violations(self):
        """Take what is to be told of wrong keys: (trap, port, key, SL, SLID, DLID, source QP, QP, SGID, DGID) each."""
        result = []
        self.acquire()
        while self.violation_head != self.violation_tail:
            v = self.violation_ring[self.violation_head % VIOLATIONS]
            gids = bytes([v.gids[i] for i in range(32)])
            result.append(
                (v.trap, v.port, v.key, v.sl, v.slid, v.dlid, v.source_qpn, v.qpn, gids[:16], gids[16:])
            )
            self.violation_head += 1
        self.release()
        return result

    def write_grh(self, b, n):
        if self.rx_front != ROUTE_BYTES:
            return 0
        copy(self.grh, 0, b, LRH_BYTES, GRH_SPACE)
        return WC_GRH

    # --- multicast (IBA vol. 1, 10.5) ---------------------------------------------------------------------

    def attach(self, index, gid, lid):
        """Attach a datagram queue pair to a multicast group: 16 bytes of GID, and LID (0 = whatever it is)."""
        at: cython.int = index
        self.acquire()
        try:
            self.qp_at(at)
            if self.find_member(index, gid, lid) >= 0:
                return
            if cython.compiled:
                if self.member_count == self.member_size:
                    self.member_size = max(16, 2 * self.member_size)
                    self.members = cython.cast(
                        cython.pointer(Member),
                        realloc(self.members, self.member_size * cython.sizeof(Member)),
                    )
                    if not self.members:
                        raise MemoryError
            else:
                self.members.append(Member())
            for i in range(16):
                self.members[self.member_count].gid[i] = gid[i]
            self.members[self.member_count].lid = lid
            self.members[self.member_count].index = at
            self.member_count += 1
        finally:
            self.release()

    def find_member(self, index, gid, lid):
        i: cython.uint
        for i in range(self.member_count):
            same_gid = bytes([self.members[i].gid[k] for k in range(16)]) == gid
            if self.members[i].index == index and self.members[i].lid == lid and same_gid:
                return int(i)
        return -1

    def detach(self, index, gid, lid):
        """Detach it again; False when it was not attached."""
        self.acquire()
        at: cython.int = self.find_member(index, gid, lid)
        if at >= 0:
            self.drop_member(at)
        self.release()
        return at >= 0

    def drop_member(self, at: cython.int):
        last: cython.int = self.member_count - 1
        for i in range(16):
            self.members[at].gid[i] = self.members[last].gid[i]
        self.members[at].lid, self.members[at].index = self.members[last].lid, self.members[last].index
        self.member_count -= 1
        if not cython.compiled:
            self.members.pop()

    def free_qp(self, index):
        i: cython.int
        for i in range(cython.cast(cython.int, self.member_count) - 1, -1, -1):
            if self.members[i].index == index:
                self.drop_member(i)
        Engine.free_qp(self, index)

    def joined(self, place, b):
        """Is the packet for the group that this entry of `members` names?"""
        if self.members[place].lid and self.members[place].lid != get16(b, 2):
            return False
        return same(b, 32, self.members[place].gid, 0, 16)

    def has_member(self, b, number):
        i: cython.uint
        if b[1] & 3 == NEXT_IS_GRH:
            for i in range(self.member_count):
                if self.qps[self.members[i].index].port == number and self.joined(i, b):
                    return True
        return False

    def to_members(self, b, at, n, code, pad):
        i: cython.uint
        copies: cython.uint = 0
        if not self.rx_multicast:
            return False
        for i in range(self.member_count):
            q = self.qps[self.members[i].index]
            if q.port == self.rx_number and self.joined(i, b):
                copies += 1
                self.execute(q, b, at, n, code, pad, 0)
        if copies == 0:
            self.counters[DROP_MULTICAST] += 1
        else:
            self.counters[RX_REPLICATED] += copies - 1
        return True

    # --- the same, for callers in Python ------------------------------------------------------------------

    def receive_native(self, packet, port, now):
        """Take a packet, LRH to ICRC without VCRC, from a writable buffer, which may be written to."""
        number: cython.int = port
        if not 1 <= number <= MAX_PORTS or not self.ports[number].live:
            raise InvalidAttributeError(f"port {port}: this adapter has none of that number")
        self.acquire()
        if cython.compiled:
            octets: cython.uchar[::1] = packet
            if octets.shape[0]:
                self.take_native(cython.address(octets[0]), octets.shape[0], number, now)
            else:
                self.counters[RX_PACKETS] += 1
                self.counters[DROP_SHORT] += 1
        else:
            self.take_native(packet, len(packet), number, now)
        self.release()


def part(b, at, n):
    """The n bytes of a buffer from `at` on."""
    if cython.compiled:
        return b + at
    else:
        return memoryview(b)[at : at + n]
