"""The transport on native InfiniBand: packets with LRH and perhaps GRH, through the ports of an adapter.

`NativeEngine` adds to the engine what lies between the transport headers and the link: which port a packet leaves
from and whether that may send now, whether a packet that arrives is for its port (checked in the order of IBA vol. 1,
7.8 and 9.6: link header, global header, then the transport's own), multicast groups, packets that never leave the
adapter, and the migration of a connection to its alternate path (17.2.8).

A port's state, addresses and keys are set by whoever manages it (`set_port`); what its link can take, by whoever
drives it (`set_open`).
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError, PortStateError
from verbena.transport.engine import Engine

if cython.compiled:
    from cython.cimports.libc.stdlib import free, realloc
    from cython.cimports.verbena.transport.completer import go_back
    from cython.cimports.verbena.transport.core import send_at
    from cython.cimports.verbena.transport.engine import MULTICAST_QPN, VIOLATION_PKEY
    from cython.cimports.verbena.transport.route import (
        GRH_NEXT_IS_BTH,
        LRH_BYTES,
        NEXT_IS_BTH,
        NEXT_IS_GRH,
        ROUTE_BYTES,
        mask_route,
        write_route,
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
    from verbena.transport.completer import go_back
    from verbena.transport.core import send_at
    from verbena.transport.engine import MULTICAST_QPN, VIOLATION_PKEY
    from verbena.transport.route import (
        GRH_NEXT_IS_BTH,
        LRH_BYTES,
        NEXT_IS_BTH,
        NEXT_IS_GRH,
        ROUTE_BYTES,
        mask_route,
        write_route,
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

ALL_LEVELS = 0xFFFF
STATE_NAMES = ("unknown", "DOWN", "INIT", "ARMED", "ACTIVE")


class NativeEngine(Engine):
    """One adapter's transport behind InfiniBand ports.  Made by `adapter.ChannelAdapter`.

    Every port must be made known with `set_port` before packets come or paths are made.
    """

    if not cython.compiled:
        member_count, violation_head, violation_tail = 0, 0, 0
        rx_front, rx_dlid, rx_migrated, rx_multicast = 0, 0, False, False

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.ports = [NativePort() for _ in range(PORT_PLACES)]
            self.members = []
            self.violation_ring = [Violation() for _ in range(VIOLATIONS)]
            self.masked = bytearray(48)

    def __dealloc__(self):
        if cython.compiled:
            free(self.members)

    # --- ports, as they are managed -----------------------------------------------------------------------

    def set_port(self, number, state, lid, lmc, mtu, gids, pkeys):
        """What a port is: state (PortInfo:PortState), base LID, LMC, MTU in bytes, GID table and P_Key table.

        Paths that leave from the port follow; connections that can, leave it when it is no longer active.
        """
        at: cython.int = number
        i: cython.int
        if not 1 <= at <= MAX_PORTS or len(gids) > MAX_GIDS or len(pkeys) > MAX_PKEYS:
            raise InvalidAttributeError(
                f"port {number}: 1 to {MAX_PORTS}, with {MAX_GIDS} GIDs and {MAX_PKEYS} P_Keys at most"
            )
        self.acquire()
        if cython.compiled:
            port = cython.address(self.ports[at])
        else:
            port = self.ports[at]
        if not port.live:
            port.live, port.open, port.held_first, port.held_last = True, ALL_LEVELS, -1, -1
        failed: cython.bint = port.state == PORT_ACTIVE and state != PORT_ACTIVE
        port.state, port.lid, port.lmc, port.mtu = state, lid, lmc, mtu
        port.gid_count, port.pkey_count = len(gids), len(pkeys)
        for i in range(len(gids)):
            for byte in range(16):
                port.gids[16 * i + byte] = gids[i][byte]
        for i in range(len(pkeys)):
            port.pkeys[i] = pkeys[i]
        for i in range(self.max_path):
            if self.paths[i] and self.paths[i].front:
                self.place_path(self.paths[i])
        if failed:
            self.port_failed(at)
        self.wake(at)
        self.release()

    def set_open(self, number, sl_mask):
        """Say which service levels may send on a port now (one bit each); what waits for them takes its turn again."""
        at: cython.int = number
        if not 1 <= at <= MAX_PORTS:
            raise InvalidAttributeError(f"port {number}: 1 to {MAX_PORTS}")
        self.acquire()
        self.ports[at].open = sl_mask
        self.wake(at)
        self.release()

    def wake(self, number):
        """Let all that wait for a port take their turn; those whose service level is still closed wait again."""
        at: cython.int = number
        while self.ports[at].held_first >= 0:
            q = self.qps[self.ports[at].held_first]
            self.let_go(q, at)
            self.enlist(q)

    def port_counters(self, number):
        """What a port counts of the keys that packets showed: (P_Key violations, Q_Key violations)."""
        at: cython.int = number
        return (self.ports[at].pkey_violations, self.ports[at].qkey_violations)

    # --- paths --------------------------------------------------------------------------------------------

    def make_native_path(
        self, number, dlid, sl, path_bits, gid, sgid_index, is_global, hop_limit, traffic_class, flow_label
    ):
        """A path from a port to a LID, with a global header if `is_global`; returns its index (see `free_path`).

        gid: the destination's, 16 bytes, zeros where it is not known.
        """
        at: cython.int = self.make_path(gid, hop_limit, traffic_class, flow_label)
        p = self.paths[at]
        p.is_ip4 = False
        p.port, p.dlid, p.sl, p.path_bits, p.sgid_index = number, dlid, sl, path_bits, sgid_index
        p.front = ROUTE_BYTES if is_global else LRH_BYTES
        self.place_path(p)
        return at

    def place_path(self, p):
        """Give a path the addresses that its port has now, and see whether it leads back to this adapter."""
        i: cython.uint
        p.slid = self.ports[p.port].lid | p.path_bits
        if p.sgid_index < self.ports[p.port].gid_count:
            copy(p.own, 0, self.ports[p.port].gids, 16 * p.sgid_index, 16)
        p.loop_port = 0
        if self.own_lid_of(p.port, p.dlid):
            p.loop_port = p.port
        else:
            # By its LID alone another port's packet is not known: that port may be on another fabric.
            for i in range(1, PORT_PLACES):
                if self.ports[i].live and self.own_lid_of(i, p.dlid) and self.own_gid_of(i, p.remote, 0):
                    p.loop_port = i
                    break
        p.loopback = p.loop_port != 0
        write_route(p)

    def path_port(self, index):
        """The number of the port that a path's packets leave from."""
        at: cython.int = index
        return self.path_at(at).port

    def own_lid_of(self, number, lid):
        """Is it one of a port's LIDs: its base LID with any of the low LMC bits (IBA vol. 1, 7.11.1)?"""
        if self.ports[number].lid == 0 or lid == 0 or lid >= FIRST_MULTICAST_LID:
            return False
        return lid >> self.ports[number].lmc == self.ports[number].lid >> self.ports[number].lmc

    def own_gid_of(self, number, b, at):
        """Is the GID at b[at] one of a port's, by its own or by the link-local prefix (IBA vol. 1, 4.1.1)?"""
        i: cython.uint
        for i in range(self.ports[number].gid_count):
            if same(b, at + 8, self.ports[number].gids, 16 * i + 8, 8) and (
                same(b, at, self.ports[number].gids, 16 * i, 8)
                or (
                    b[at] == LINK_LOCAL
                    and b[at + 1] == 0x80
                    and get24(b, at + 2) == 0
                    and get24(b, at + 5) == 0
                )
            ):
                return True
        return False

    # --- sending ------------------------------------------------------------------------------------------

    def must_wait(self, q):
        path: cython.int = q.path
        if q.held:
            return True
        if q.service == UD:
            if q.sq_next == q.sq_head:
                return False
            path = send_at(q, q.sq_next).path
        if path < 0 or self.paths[path].loopback or self.ports[self.paths[path].port].state != PORT_ACTIVE:
            return False
        if (self.ports[self.paths[path].port].open >> self.paths[path].sl) & 1:
            return False
        self.counters[TX_HELD] += 1
        self.hold(q, self.paths[path].port)
        return True

    def hold(self, q, number):
        """Put a queue pair at the end of the line of those that wait for a port."""
        q.held = True
        q.held_port = number
        q.held_next = -1
        if self.ports[number].held_first < 0:
            self.ports[number].held_first = q.index
        else:
            self.qps[self.ports[number].held_last].held_next = q.index
        self.ports[number].held_last = q.index

    def let_go(self, q, number):
        """Take a queue pair out of that line."""
        before: cython.int = -1
        at: cython.int = self.ports[number].held_first
        while at >= 0 and at != q.index:
            before = at
            at = self.qps[at].held_next
        if before < 0:
            self.ports[number].held_first = q.held_next
        else:
            self.qps[before].held_next = q.held_next
        if self.ports[number].held_last == q.index:
            self.ports[number].held_last = before
        q.held = False
        q.held_next = -1

    def forget(self, q):
        if q.held:
            self.let_go(q, q.held_port)
        Engine.forget(self, q)

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

    def may_post(self, q, path):
        number: cython.int = self.paths[path].port
        if self.ports[number].state != PORT_ACTIVE or self.ports[number].lid == 0:
            raise PortStateError(
                f"port {number} is {STATE_NAMES[self.ports[number].state]} with LID {self.ports[number].lid}: "
                "sending needs it ACTIVE, with a LID"
            )
        return True

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

    def right_partition(self, q, pkey):
        """As for every adapter; queue pair 1 takes any partition of its port (IBA vol. 1, 10.9.8)."""
        i: cython.uint
        own: cython.uint = q.pkey
        if q.qpn == 1:
            for i in range(self.ports[self.rx_number].pkey_count):
                if same_partition(self.ports[self.rx_number].pkeys[i], pkey):
                    return True
            return False
        if self.rx_migrated and q.mig_state == MIG_ARMED:
            own = q.alt_pkey
        return same_partition(own, pkey)

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
        v.key = get16(b, at + 2) if trap == VIOLATION_PKEY else get32(b, at + 12)
        v.qpn = get24(b, at + 5)
        v.source_qpn = get24(b, at + 17) if q.service == UD else q.destination
        fill(v.gids, 0, 0, 32)
        if self.rx_front == ROUTE_BYTES:
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

    # --- migration (IBA vol. 1, 17.2.8) -------------------------------------------------------------------

    def matches(self, path, b):
        """Did the packet come the way that a path leads (IBA vol. 1, 9.6.1.5)?

        By its LIDs within the subnet; from another subnet by its GIDs, because any router may have brought it.
        """
        if path < 0 or self.paths[path].port != self.rx_number or self.paths[path].front != self.rx_front:
            return False
        if self.rx_front == ROUTE_BYTES:
            return same(b, 16, self.paths[path].remote, 0, 16) and same(b, 32, self.paths[path].own, 0, 16)
        return self.rx_slid == self.paths[path].dlid and self.rx_dlid == self.paths[path].slid

    def from_peer(self, q, b):
        if q.mig_state == MIG_ARMED and self.rx_migrated:
            # The peer has migrated and asks the same of this side.
            if self.matches(q.alt_path, b) and self.migrate(q):
                return True
            if not q.mig_refused:
                q.mig_refused = True  # once: whoever sends these may go on for ever
                self.report(REPORT_ASYNC, ASYNC_PATH_MIG_ERR, q.index)
            return False
        if not self.matches(q.path, b):
            return False
        if q.mig_state == MIG_REARM and not self.rx_migrated:
            q.mig_state = MIG_ARMED  # both sides have an alternate path
        return True

    def migrate(self, q):
        if q.mig_state != MIG_ARMED or q.alt_path < 0:
            return False
        if self.ports[self.paths[q.alt_path].port].state != PORT_ACTIVE:
            return False
        if q.held:
            self.let_go(q, q.held_port)
        self.paths[q.path].users -= 1  # `make_path` reclaims it
        q.path, q.alt_path = q.alt_path, -1
        q.pkey, q.port = q.alt_pkey, self.paths[q.path].port
        if q.alt_timeout_ns != KEEP_TIMEOUT:
            q.timeout_ns = q.alt_timeout_ns
        q.mig_state = MIG_MIGRATED
        q.retries_left = q.retry_count
        self.counters[PATH_MIGRATIONS] += 1
        self.report(REPORT_ASYNC, ASYNC_PATH_MIG, q.index)
        self.enlist(q)
        return True

    def migrate_qp(self, index):
        """Migrate because the program wants it; False when the queue pair is not armed or the other port is down."""
        at: cython.int = index
        self.acquire()
        q = self.qp_at(at)
        done = bool(self.migrate(q))
        if done:
            self.send_again(q)
        self.release()
        return done

    def port_failed(self, number):
        """What can goes on by its alternate path."""
        i: cython.int
        for i in range(self.max_qp):
            q = self.qps[i]
            if (
                q
                and q.path >= 0
                and (q.state == RTR or q.state == RTS or q.state == SQD)
                and self.paths[q.path].port == number
                and self.migrate(q)
            ):
                self.send_again(q)

    def send_again(self, q):
        """What the old path may have lost need not wait for the timer."""
        if q.service == RC and q.una_psn != q.send_psn:
            go_back(self, q)

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


def same_partition(own, pkey):
    """Same partition, not that of no key, and not limited members both (IBA vol. 1, 10.9.3)."""
    return (pkey & 0x7FFF) == (own & 0x7FFF) and (own & 0x7FFF) != 0 and ((pkey | own) & 0x8000) != 0
