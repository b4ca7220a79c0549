"""The InfiniBand ports of an adapter, as the transport sees them: addresses, keys, and what may leave now.

A port's state, addresses and keys are set by whoever manages it (`set_port`); what its link can take, by whoever
drives it (`set_open`): a queue pair whose service level is closed waits in its port's line, and costs nothing.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError, PortStateError
from verbena.transport.engine import Engine

if cython.compiled:
    from cython.cimports.verbena.transport.core import loan_at, send_at
    from cython.cimports.verbena.transport.route import LRH_BYTES, ROUTE_BYTES, write_route
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import copy, get24, same
else:
    from verbena._declarations import declarations
    from verbena.transport.core import loan_at, send_at
    from verbena.transport.route import LRH_BYTES, ROUTE_BYTES, write_route
    from verbena.transport.tables import *
    from verbena.wire.kernels import copy, get24, same

    globals().update(declarations(__file__))

ALL_LEVELS = 0xFFFF
STATE_NAMES = ("unknown", "DOWN", "INIT", "ARMED", "ACTIVE")


class Ports(Engine):
    """An engine behind InfiniBand ports.

    Every port must be made known with `set_port` before packets come or paths are made.
    """

    if not cython.compiled:

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.ports = [NativePort() for _ in range(PORT_PLACES)]

    def port_failed(self, number):
        """A port is no longer active: what can leaves it (see `migration`)."""

    # --- ports, as they are managed -----------------------------------------------------------------------

    def set_port(self, number, state, lid, lmc, mtu, gids, pkeys):
        """What a port is: state (PortInfo:PortState), base LID, LMC, MTU in bytes, GID table and P_Key table.

        Paths that leave from the port follow: striped connections leave it alone while it is not active; connections
        with an alternate path leave it then.
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
        if not self.ports[ANY_PORT].live:
            self.ports[ANY_PORT].live = True
            self.ports[ANY_PORT].held_first = self.ports[ANY_PORT].held_last = -1
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
        self.wake_line(at)
        self.wake_line(ANY_PORT)

    def wake_line(self, number):
        while self.ports[number].held_first >= 0:
            q = self.qps[self.ports[number].held_first]
            self.let_go(q, number)
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
        p.usable = self.ports[p.port].state == PORT_ACTIVE
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

    # --- what may leave -----------------------------------------------------------------------------------

    def must_wait(self, q):
        path: cython.int = q.path
        if q.held:
            return True
        if q.stripes:
            return self.stripes_closed(q)
        if q.service >= UD:  # datagrams, raw ones too: each has a path of its own
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

    def stripes_closed(self, q):
        """Are all paths of a striped connection closed for now?  Then it waits for the first that opens.

        With none usable at all its packets are made, and lost, as those of other connections: retries run out.
        """
        i: cython.int
        some: cython.bint = False
        for i in range(q.stripes):
            if self.is_open(q.stripe[i]):
                return False
            some = some or self.paths[q.stripe[i]].usable
        if some:
            self.counters[TX_HELD] += 1
            self.hold(q, ANY_PORT)
        return some

    def is_open(self, path):
        p = self.paths[path]
        return p.usable and (p.loopback or ((self.ports[p.port].open >> p.sl) & 1) != 0)

    def hold(self, q, number):
        """Put a queue pair at the end of the line of those that wait for a port, or for any."""
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

    def set_attribute(self, index, name, value):
        if name == "path":
            self.leave_line(index)
        Engine.set_attribute(self, index, name, value)

    def set_stripes(self, index, paths):
        self.leave_line(index)
        Engine.set_stripes(self, index, paths)

    def leave_line(self, index):
        """A queue pair is given other paths: what it waited for counts no more."""
        at: cython.int = index
        q = self.qp_at(at)
        if q.held:
            self.let_go(q, q.held_port)
            self.enlist(q)

    def forget(self, q):
        if q.held:
            self.let_go(q, q.held_port)
        Engine.forget(self, q)

    def may_post(self, q, path):
        i: cython.int
        if (
            q.service == RD
        ):  # its context knows the way; whether there is such a one shows when the request begins
            path = loan_at(q, q.sq_head).number & 0xFFFF
            if path >= self.max_qp or not self.qps[path] or not self.qps[path].end_to_end:
                return True
            q = self.qps[path]
            path = q.path
            if path < 0:
                return True
        for i in range(q.stripes):
            if self.paths[q.stripe[i]].usable:
                return True
        number: cython.int = self.paths[path].port
        if q.service >= UD and q.port != self.paths[path].port and q.qpn != 1:
            raise InvalidAttributeError(
                f"the address handle leaves from port {number}, and the queue pair uses port {q.port}"
            )
        if self.ports[number].state != PORT_ACTIVE or self.ports[number].lid == 0:
            raise PortStateError(
                f"port {number} is {STATE_NAMES[self.ports[number].state]} with LID {self.ports[number].lid}: "
                "sending needs it ACTIVE, with a LID"
            )
        return True
