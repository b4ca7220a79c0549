"""How a fabric is put together and what management sets in it: nodes, cables, states, tables, limits.

Everything here happens once per object or management datagram, at the present of the simulation.  Arguments are
checked here, once; errors are `InvalidAttributeError`.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError
from verbena.fabric.sources import Sources

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, free, realloc
    from cython.cimports.libc.string import memset
    from cython.cimports.verbena.fabric.tables import *
else:
    from verbena.fabric.tables import *

MTUS = (256, 512, 1024, 2048, 4096)
LARGEST_RATE_BPS = 4_000_000_000_000
LARGEST_BUFFER = 1 << 30


def _within(value, low, high, what):
    if not isinstance(value, int) or not low <= value <= high:
        raise InvalidAttributeError(f"{what} is {value!r}; it must be an integer from {low} to {high}")
    return value


class Configuration(Sources):
    """A fabric's nodes, links and tables."""

    # --- nodes and ports ------------------------------------------------------------------------------------

    def add_node(self, kind, *, latency_ns=0, cut_through=True, voq=False, per_input=False):
        """A node: 0 = endnode (its ports send and receive), 1 = switch (forwards).  Returns its index.

        `latency_ns`: from the arrival of a packet's first flit (store-and-forward: of all of it) until it may leave
        the switch; of an endnode: from the arrival of all of it to its delivery.  `voq`: a queue for each output behind
        each input and lane instead of one.  `per_input`: a forwarding table for each input port (see `set_lft`).
        A switch has its port 0, for its own software, at once.
        """
        _within(kind, ENDNODE, SWITCH, "the kind of a node")
        _within(latency_ns, 0, 1_000_000_000, "latency_ns")
        index = self._make_node(kind, latency_ns * 1000, bool(cut_through), bool(voq), bool(per_input))
        if kind == SWITCH:
            own = self.port_at(self._make_port(index, 0, 1, 1 << 20, 4096 + OVERHEAD))
            own.state = STATE_ACTIVE
            own.visible = True
        return index

    def add_port(self, node, *, lanes=1, buffer_bytes=16384, mtu=4096):
        """A port of a node: `lanes` data lanes (and VL15), each with a receive buffer.  Returns its index.

        Its number in its node is 1, 2, ...; see `port`.  `buffer_bytes` of each lane count in whole blocks of 64.  The
        port is down until it is connected.  Service levels map to lanes by their number modulo `lanes`.
        """
        n = self.node_at(node)
        _within(lanes, 1, VL15, "the number of lanes")
        _within(buffer_bytes, BLOCK, LARGEST_BUFFER, "buffer_bytes")
        if mtu not in MTUS:
            raise InvalidAttributeError(f"the MTU is {mtu}; it must be one of {', '.join(map(str, MTUS))}")
        if n.ports >= 254:
            raise InvalidAttributeError("a node has at most 254 ports")
        index = self._make_port(node, n.ports + 1, lanes, buffer_bytes // BLOCK, mtu + OVERHEAD)
        n.ports += 1
        self._default_lanes(index)
        return index

    def _default_lanes(self, port):
        sl: cython.int
        p = self.port_at(port)
        for sl in range(16):
            p.sl2vl[sl] = sl % p.lanes

    def port(self, node, number):
        """The index of a node's port; 0 is a switch's own."""
        at: cython.int
        n = self.node_at(node)
        first = 0 if n.kind == SWITCH else 1
        at = _within(number, first, n.ports, f"a port's number in node {node}")
        return n.port[at].index

    def port_number(self, port):
        """The number of a port in its node."""
        return self.port_at(port).number

    def node_of(self, port):
        """The index of a port's node."""
        return self.port_at(port).node.index

    def peer_of(self, port):
        """The port at the other end of the cable; -1: none."""
        p = self.port_at(port)
        return p.peer.index if p.peer else -1

    # --- cables ---------------------------------------------------------------------------------------------

    def connect(self, a, b, rate_bps, delay_ns, bit_error_rate=0.0):
        """Plug a cable into two ports: full duplex, `rate_bps` data bits a second and `delay_ns` in each direction.

        Both ports come up in state INIT, and report LINK_UP.  Ports of one node may be connected, a port with itself
        not.  `bit_error_rate` has an effect in flit mode only.
        """
        one, two = self.port_at(a), self.port_at(b)
        _within(delay_ns, 0, 1_000_000_000, "delay_ns")
        if a == b:
            raise InvalidAttributeError(f"port {a} cannot be connected with itself")
        for p in (a, b):
            self._plug(p, rate_bps, bit_error_rate)
        one.peer, two.peer = two, one
        for end, far in ((a, b), (b, a)):
            self._face(end, far)
        one.delay_ps = two.delay_ps = delay_ns * 1000
        one.credit_ps = two.credit_ps = delay_ns * 1000 + self.span(one, FLIT_HEADER)
        self.come_up(one)
        self.come_up(two)

    def _face(self, port, other):
        """Note at a port what it must know of its peer's node for every packet."""
        p = self.port_at(port)
        node = self.port_at(other).node
        p.far_cuts = node.kind == SWITCH and node.cut_through
        p.far_latency_ps = node.latency_ps

    def _plug(self, port, rate_bps, bit_error_rate):
        p = self.port_at(port)
        if p.peer or p.external:
            raise InvalidAttributeError(f"port {port} is connected already: disconnect it first")
        if p.number == 0:
            raise InvalidAttributeError(f"port {port} is a switch's port 0: no cable goes there")
        _within(rate_bps, 1_000_000, LARGEST_RATE_BPS, "rate_bps")
        if not 0 <= bit_error_rate < 0.5:
            raise InvalidAttributeError(f"bit_error_rate is {bit_error_rate}; it must be from 0 to below 0.5")
        p.rate_bps = rate_bps
        if p.node.rate_bps == 0:
            p.node.rate_bps = rate_bps
        elif p.node.rate_bps != rate_bps:
            p.node.mixed = True
        p.byte_ps = BYTE_PS // rate_bps if BYTE_PS % rate_bps == 0 else 0
        p.free_ps, p.remainder = self.now_ps, 0
        if self.flits:
            self.make_link(p)
            p.link.error_distance = round(1 / bit_error_rate) if bit_error_rate > 0 else 0
            if p.link.error_distance > 1 << 50:
                p.link.error_distance = 0
            self.draw_error(p)

    def make_external(self, port, rate_bps, bit_error_rate=0.0, *, ack_ns=0, replay_ns=0, ask_ns=0):
        """The other half of the link is elsewhere: flits leave by `take_flits` and come in by `put_flits`.

        The port comes up in state INIT at once; its flits leave at `rate_bps`.  Flit mode only.

        Where the flits take longer than on a cable, say how long: `ack_ns`, that an acknowledgment may wait for more to
        acknowledge; `replay_ns`, until what was not acknowledged is sent again, longer after each time in vain;
        `ask_ns`, until missing credit is asked for.  0: as on a cable.  A port with `replay_ns` never trains again by
        itself: whoever carries its flits disconnects it when the peer is gone.
        """
        p = self.port_at(port)
        if not self.flits:
            raise InvalidAttributeError("external ports need flit mode: make the fabric with flits=True")
        times = [
            _within(given, 0, 1 << 40, name) * 1000
            for name, given in (("ack_ns", ack_ns), ("replay_ns", replay_ns), ("ask_ns", ask_ns))
        ]
        self._plug(port, rate_bps, bit_error_rate)
        p.link.given_ack_ps, p.link.given_replay_ps, p.link.given_ask_ps = times
        p.link.patient = replay_ns > 0
        p.external = True
        p.delay_ps = 0
        p.credit_ps = 0
        self.come_up(p)

    def disconnect(self, port):
        """Pull the cable: what is on it or half received is lost and counted; both ends report LINK_DOWN."""
        p = self.port_at(port)
        if p.external:
            p.state = STATE_DOWN
            self.go_down(p, DROP_LINK)
            p.external = False
            return
        if not p.peer:
            raise InvalidAttributeError(f"port {port} is not connected")
        other = p.peer
        # Both ends are down before what waits there looks for another way.
        p.state = other.state = STATE_DOWN
        self.go_down(p, DROP_LINK)
        self.go_down(other, DROP_LINK)
        p.peer = NO_PORT
        other.peer = NO_PORT

    # --- what management sets -------------------------------------------------------------------------------

    def set_state(self, port, state):
        """PortInfo:PortState: DOWN = 1, INIT = 2 (only VL15 passes), ARMED = 3 (receives data), ACTIVE = 4.

        DOWN makes the link train again: both ends go down, lose what is on the cable, and come up in INIT.
        """
        p = self.port_at(port)
        _within(state, STATE_DOWN, STATE_ACTIVE, "a port's state")
        if p.number == 0 or state == p.state:
            return
        if p.state == STATE_DOWN:
            raise InvalidAttributeError(f"port {port} is down: it comes up when it is connected")
        if state == STATE_DOWN:
            self.retrain(p)
            return
        p.state = state
        if state != STATE_ACTIVE:
            self.flush_output(p, DROP_STATE)

    def port_state(self, port):
        """PortInfo:PortState of a port."""
        return self.port_at(port).state

    def set_lids(self, port, base, lmc):
        """The LIDs of a port (of a switch: those of its port 0): 2^lmc from `base` on; 0: none."""
        p = self.port_at(port)
        p.lid = _within(base, 0, FIRST_MULTICAST - 1, "a LID")
        p.lmc = _within(lmc, 0, 7, "an LMC")
        if p.number == 0:
            p.node.lid, p.node.lmc = p.lid, p.lmc

    def set_lft(self, node, first_lid, ports, in_port=0):
        """Part of a switch's forwarding table: the output for each LID from `first_lid` on; 255: none.

        `in_port` (nodes made with ``per_input``): the table of that input; inputs without one use table 0.
        """
        octets: cython.const[cython.uchar][::1]
        at: cython.int
        n = self._switch_at(node)
        ports = bytes(ports)
        _within(first_lid, 0, FIRST_MULTICAST - len(ports), "the first LID of a piece of table")
        which: cython.int = _within(in_port, 0, n.ports, "in_port")
        if which and not n.per_input:
            raise InvalidAttributeError(
                f"node {node} has one table for all inputs: make it with per_input=True"
            )
        size: cython.int = n.lft_size if which == 0 else (n.table_sizes[which] if n.tables else 0)
        wanted: cython.int = first_lid + len(ports)
        start: cython.int = first_lid
        if cython.compiled:
            if which and not n.tables:
                n.tables = cython.cast(
                    cython.pointer(cython.pointer(uint8_t)), calloc(256, cython.sizeof(cython.p_void))
                )
                n.table_sizes = cython.cast(cython.pointer(int32_t), calloc(256, 4))
                if not n.tables or not n.table_sizes:
                    raise MemoryError
            table = n.tables[which] if which else n.lft
            if wanted > size:
                table = cython.cast(cython.pointer(uint8_t), realloc(table, wanted))
                if not table:
                    raise MemoryError
                memset(table + size, NO_ROUTE, wanted - size)
            octets = ports
            for at in range(len(ports)):
                table[start + at] = octets[at]
        else:
            if which and not n.tables:
                n.tables, n.table_sizes = [None] * 256, [0] * 256
            table = (n.tables[which] if which else n.lft) or bytearray()
            table.extend(bytes([NO_ROUTE]) * (wanted - size))
            table[start:wanted] = ports
        if which:
            n.tables[which] = table
            n.table_sizes[which] = max(size, wanted)
        else:
            n.lft = table
            n.lft_size = max(size, wanted)

    def _switch_at(self, node):
        n = self.node_at(node)
        if n.kind != SWITCH:
            raise InvalidAttributeError(f"node {node} is an endnode: only switches have forwarding tables")
        return n

    def set_mft(self, node, mlid, ports):
        """A switch's ports of a multicast group (LID 0xC000..0xFFFE): packets go to all but the one they came by."""
        number: cython.int
        i: cython.int
        n = self._switch_at(node)
        at: cython.int = _within(mlid, FIRST_MULTICAST, PERMISSIVE - 1, "a multicast LID") - FIRST_MULTICAST
        numbers = [_within(p, 0, n.ports, "a port of a multicast group") for p in ports]
        if at >= n.mft_size:
            if cython.compiled:
                table = cython.cast(cython.pointer(uint8_t), realloc(n.mft, (at + 1) * MASK_BYTES))
                if not table:
                    raise MemoryError
                memset(table + n.mft_size * MASK_BYTES, 0, (at + 1 - n.mft_size) * MASK_BYTES)
                n.mft = table
            else:
                n.mft = n.mft or bytearray()
                n.mft.extend(bytes((at + 1 - n.mft_size) * MASK_BYTES))
            n.mft_size = at + 1
        for i in range(MASK_BYTES):
            n.mft[at * MASK_BYTES + i] = 0
        for number in numbers:
            n.mft[at * MASK_BYTES + (number >> 3)] |= 1 << (number & 7)

    def set_sl2vl(self, port, table):
        """The lane of each of the 16 service levels, for packets that are injected here; 15: none (dropped)."""
        sl: cython.int
        p = self.port_at(port)
        if len(table) != 16 or any(not 0 <= v <= 15 for v in table):
            raise InvalidAttributeError("a table of lanes has 16 entries from 0 to 15")
        for sl in range(16):
            p.sl2vl[sl] = table[sl]

    def set_lanes(self, port, count):
        """PortInfo:OperationalVLs: use the first `count` data lanes of those the port has."""
        p = self.port_at(port)
        number: cython.int = _within(count, 1, VL15, "the number of lanes")
        if not p.lane[number - 1]:
            raise InvalidAttributeError(f"port {port} has fewer than {count} data lanes")
        p.lanes = number
        self._default_lanes(port)

    def set_pkeys(self, port, pkeys, enforce_in, enforce_out):
        """The partitions of a port, and whether packets of others are dropped when they enter or leave by it."""
        i: cython.int
        p = self.port_at(port)
        keys = [_within(key, 0, 0xFFFF, "a P_Key") for key in pkeys]
        if cython.compiled:
            table = cython.cast(cython.pointer(uint16_t), calloc(max(len(keys), 1), 2))
            if not table:
                raise MemoryError
            free(p.pkeys)
            p.pkeys = table
        else:
            p.pkeys = [0] * len(keys)
        for i in range(len(keys)):
            p.pkeys[i] = keys[i]
        p.pkey_count = len(keys)
        p.pkeys_in, p.pkeys_out = bool(enforce_in), bool(enforce_out)

    def set_mtu(self, port, mtu):
        """The largest payload a packet may have that leaves or enters by this port."""
        if mtu not in MTUS:
            raise InvalidAttributeError(f"the MTU is {mtu}; it must be one of {', '.join(map(str, MTUS))}")
        self.port_at(port).max_size = mtu + OVERHEAD

    def set_limits(self, port, hoq_ns):
        """How long a head may wait for this output before it is dropped (head-of-queue lifetime limit); 0: for ever."""
        p = self.port_at(port)
        p.hoq_ps = _within(hoq_ns, 0, 1 << 40, "hoq_ns") * 1000
        p.limited = hoq_ns > 0

    def set_lifetime(self, node, ns):
        """How long a packet may be in a switch before it is dropped; 0: for ever."""
        self._switch_at(node).lifetime_ps = _within(ns, 0, 1 << 40, "the lifetime limit") * 1000

    def set_send_queue(self, port, packets):
        """How many packets of a lane `inject` takes before it answers False."""
        self.port_at(port).send_queue = _within(packets, 1, 1 << 30, "the size of a send queue")

    # --- the software at a port -----------------------------------------------------------------------------

    def visible(self, port, on):
        """Are packets without bytes (phantoms) delivered to the software like others?  Otherwise only counted."""
        self.port_at(port).visible = bool(on)

    def hold(self, port, on):
        """From now on a delivered packet keeps its place in the receive buffer until `release`."""
        self.port_at(port).hold = bool(on)

    def stall(self, port, on):
        """The receiver takes nothing (True), or goes on with what has come in meanwhile (False)."""
        lane: cython.int
        p = self.port_at(port)
        p.stalled = bool(on)
        if on or p.node.kind != ENDNODE:
            return
        for lane in range(LANES):
            while p.lane[lane] and p.lane[lane].inbox.head:
                self.deliver(p, self.take_head(p.lane[lane].inbox))
