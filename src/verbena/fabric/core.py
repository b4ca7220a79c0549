"""The fabric simulator: links with lanes and credits, switches, and what travels between them.

`FabricCore` is the whole of it, without clock, socket or randomness of its own: packets and the time go in, packets
and reports come out.  Its parts, each built on the one before: `tables` (what there is), `wheel` (events), `ledger`
(counters, traces, latencies), `arbitration` (whose turn it is), `smi` (directed routes), `crossbar` (from input to
output), `trains` (links, and the timing model), `flits` (links flit by flit), `sources` (load), `configuration`,
`meters` (what is read of all of it at once).

Time: integer nanoseconds outside, picoseconds inside.  What happens at a picosecond counts as happening at the next
whole nanosecond: ``run(t)`` works off everything up to t x 1000 ps.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError
from verbena.fabric.ledger import COUNTER_NAMES
from verbena.fabric.meters import Meters

if cython.compiled:
    from cython.cimports.libc.string import memcpy
    from cython.cimports.verbena.fabric.smi import seal_vcrc
    from cython.cimports.verbena.fabric.tables import *
else:
    from verbena.fabric.smi import seal_vcrc
    from verbena.fabric.tables import *

SMALLEST_PACKET = 8 + 12 + 2
LARGEST_PACKET = 2047 * 4 + 2


class FabricCore(Meters):
    """A fabric of nodes and links in virtual time.

    `flits`: every flit is an event, with its bytes, error checks and retransmissions; otherwise a packet is a train of
    flits, with the same times on a path without errors and contention, for scale.  `seed`: of the sources and the bit
    errors.
    """

    def __init__(self, seed=0, flits=True):
        super().__init__(bool(flits), seed)
        self._held = {}
        self._next_handle = 0
        self.tap_first = self.tap_last = NO_PACKET

    # --- time -----------------------------------------------------------------------------------------------

    @property
    def now(self):
        """The present, in ns."""
        return self.now_ps // 1000

    def next_time(self):
        """When `run` next has something to do, in ns; -1: nothing is scheduled."""
        at: cython.longlong = self.earliest()
        if at < 0:
            return -1
        return max((at + 999) // 1000, self.now_ps // 1000)

    def run(self, until_ns):
        """Work off all events up to `until_ns`; earlier if something became visible: after all events of that ns.

        `now` is then that time.  Visible are deliveries and reports.  A time in the past does nothing.
        """
        limit: cython.longlong = until_ns * 1000
        if limit < self.now_ps:
            return
        self.stop = False
        with cython.nogil:
            self.loop(limit)

    def loop(self, limit):
        e = self.next_event(limit)
        while e:
            if e.time > self.now_ps:
                self.now_ps = e.time
            self.events += 1
            self.handle(e)
            if self.stop and limit - self.now_ps >= 1000:
                limit = (self.now_ps + 999) // 1000 * 1000
            e = self.next_event(limit)
        self.now_ps = limit

    def handle(self, e):
        if e.kind == EVENT_ARRIVE:
            self.arrive(e.port, cython.cast(cython.pointer(Packet), e.what), e.stamp)
        elif e.kind == EVENT_SENT:
            if e.stamp == e.port.epoch:
                self.train_sent(e.port)
        elif e.kind == EVENT_CREDIT:
            if e.stamp == e.port.epoch:
                self.credit(e.port, e.lane, e.number)
        elif e.kind == EVENT_SOURCE:
            self.produce(cython.cast(cython.pointer(Source), e.what))
        elif e.kind == EVENT_TIMEOUT:
            self.timed_out(cython.cast(cython.pointer(Queue), e.what), e.stamp)
        elif e.kind == EVENT_WAKE:
            self.wake(cython.cast(cython.pointer(Queue), e.what), e.stamp)
        else:
            self.link_event(e)

    # --- packets in -----------------------------------------------------------------------------------------

    def room(self, port, sl):
        """Would `inject` take a packet of that service level now?"""
        p = self.port_at(port)
        lane: cython.int = self.lane_for(p, sl)
        if lane < 0:
            return True
        return p.lane[lane].outbox.length < p.send_queue

    def inject(self, port, packet, tag=0):
        """Send a packet from a port: its bytes from LRH to ICRC, without VCRC.  `tag` comes back at its delivery.

        The lane is chosen by the port's table from the service level, and written into the LRH; a packet whose LRH
        says lane 15 stays there.  The VCRC is made here.  False: the send queue of that lane is full; a ROOM report
        follows when it is not.  A packet that the port cannot send (it is not ACTIVE, the service level has no lane,
        the packet is too long) is dropped and counted, as a packet on its way would be.
        """
        octets: cython.const[cython.uchar][::1]
        size: cython.int = len(packet)
        port_ = self.port_at(port)
        octets = packet
        if (
            size + VCRC_BYTES < SMALLEST_PACKET
            or size + VCRC_BYTES > LARGEST_PACKET
            or ((octets[4] & 7) << 8 | octets[5]) * 4 != size
        ):
            raise InvalidAttributeError(
                f"a packet of {len(packet)} bytes whose LRH does not say so, in words of 4 bytes (LRH to ICRC)"
            )
        if cython.compiled:
            return bool(self.admit(port_, cython.address(octets[0]), size, tag))
        else:
            return self.admit(port_, octets, size, tag)

    def admit(self, port, octets, size, tag):
        """`inject` for `size` bytes whose LRH says so."""
        lane: cython.int = octets[0] >> 4
        whole: cython.int = size + VCRC_BYTES
        if lane != VL15:
            lane = self.lane_for(port, octets[1] >> 4)
        if lane >= 0 and port.lane[lane].outbox.length >= port.send_queue:
            port.lane[lane].room_wanted = True
            return False
        p = self.new_packet()
        self.injected += 1
        p.born_ps = p.entered_ps = self.now_ps
        p.size, p.blocks, p.tag = whole, (whole + BLOCK - 1) // BLOCK, tag
        self.give_bytes(p)
        if cython.compiled:
            memcpy(p.data, octets, size)
        else:
            p.data[:size] = octets
        p.received = p.ready = whole
        p.dlid = (octets[2] << 8) | octets[3]
        p.sl = octets[1] >> 4
        if lane < 0:
            self.drop(port, p, DROP_LANE)
            return True
        p.lane = lane
        p.data[0] = (p.data[0] & 0x0F) | (lane << 4)
        if port.node.kind == ENDNODE and self.is_directed(p) and self.smi_leave(p):
            p.in_port = port.number
            self.to_software(port, p)
            return True
        seal_vcrc(p.data, whole)
        self.queue_packet(port, p)
        return True

    def inject_phantom(self, port, size, dlid, sl=0, tag=0):
        """Send a packet that is only a length: `size` bytes from LRH to VCRC.  Otherwise like `inject`."""
        lane: cython.int
        port_ = self.port_at(port)
        if not SMALLEST_PACKET <= size <= LARGEST_PACKET or size % 4 != VCRC_BYTES:
            raise InvalidAttributeError(
                f"{size} is no packet's size: words of 4 bytes and the VCRC, 22 to 8190"
            )
        if not 0 < dlid < PERMISSIVE or not 0 <= sl < 16:
            raise InvalidAttributeError(f"LID {dlid}, service level {sl}: it must be 1 to 65534, 0 to 15")
        lane = self.lane_for(port_, sl)
        if lane >= 0 and port_.lane[lane].outbox.length >= port_.send_queue:
            port_.lane[lane].room_wanted = True
            return False
        p = self.new_packet()
        self.injected += 1
        p.born_ps = p.entered_ps = self.now_ps
        p.size, p.blocks, p.tag = size, (size + BLOCK - 1) // BLOCK, tag
        p.received = p.ready = size
        p.dlid, p.sl, p.phantom = dlid, sl, True
        if lane < 0:
            self.drop(port_, p, DROP_LANE)
            return True
        p.lane = lane
        if self.flits:
            self.dress(p)
        self.queue_packet(port_, p)
        return True

    # --- packets out ----------------------------------------------------------------------------------------

    def deliveries(self):
        """What was delivered since the last call: [(time_ns, port, packet, in port, handle, tag)].

        `packet` is bytes, LRH to VCRC; of a phantom, its size.  `in port` is the number of the port by which it came
        in: of an endnode's own, or of the switch's for a packet to its port 0.  `handle` is for `release` if the port
        holds its packets, else 0.
        """
        result = []
        p = self.delivered_first
        while p:
            following = p.next
            port = self.ports[p.received]
            if not p.data:
                packet = p.size
            elif cython.compiled:
                packet = p.data[: p.size]
            else:
                packet = bytes(p.data)
            handle = 0
            if port.hold and port.number != 0:
                self._next_handle += 1
                handle = self._next_handle
                self._held[handle] = (p.received, p.lane, p.blocks)
            result.append(((p.tail_ps + 999) // 1000, p.received, packet, p.in_port, handle, p.tag))
            self.release_packet(p)
            p = following
        self.delivered_first = self.delivered_last = NO_PACKET
        return result

    def release(self, handle):
        """The software has taken a packet out of the receive buffer: its place is free.  Unknown handles raise."""
        held = self._held.pop(handle, None)
        if held is None:
            raise InvalidAttributeError(f"no delivered packet with the handle {handle} is held")
        port, lane, blocks = held
        self.free_blocks(self.port_at(port), lane, blocks)

    # --- what is going on -----------------------------------------------------------------------------------

    def port_counters(self, port):
        """A port's counters by name; ``lanes`` has those of each lane: {lane: {xmit_packets, ...}}."""
        lane: cython.int
        p = self.port_at(port)
        result = {name: p.counters[i] for i, name in enumerate(COUNTER_NAMES)}
        if p.wait_since_ps >= 0:
            result["xmit_wait_ps"] += self.now_ps - p.wait_since_ps
        result["xmit_wait_ns"] = result.pop("xmit_wait_ps") // 1000
        lanes = {}
        for lane in range(LANES):
            line = p.lane[lane]
            if line:
                lanes[lane] = {
                    "xmit_packets": line.xmit_packets,
                    "xmit_bytes": line.xmit_bytes,
                    "rcv_packets": line.rcv_packets,
                    "rcv_bytes": line.rcv_bytes,
                    "credits": self.credits_of(p, lane),
                }
        for name in COUNTER_NAMES[:4]:  # kept by lane
            result[name] = sum(counters[name] for counters in lanes.values())
        result["lanes"] = lanes
        return result

    def clear_counters(self, port, names):
        """Set some of a port's counters, by name, to 0."""
        at: cython.int
        lane: cython.int
        p = self.port_at(port)
        for name in names:
            wanted = "xmit_wait_ps" if name == "xmit_wait_ns" else name
            if wanted not in COUNTER_NAMES:
                raise InvalidAttributeError(f"a port has no counter {name!r}")
            at = COUNTER_NAMES.index(wanted)
            p.counters[at] = 0
            for lane in range(LANES):
                line = p.lane[lane]
                if not line:
                    continue
                if at == XMIT_PACKETS:
                    line.xmit_packets = 0
                elif at == XMIT_BYTES:
                    line.xmit_bytes = 0
                elif at == RCV_PACKETS:
                    line.rcv_packets = 0
                elif at == RCV_BYTES:
                    line.rcv_bytes = 0

    def node_counters(self, node):
        """The sums of its ports' counters by name."""
        number: cython.int
        n = self.node_at(node)
        total = dict.fromkeys(COUNTER_NAMES, 0)
        total["xmit_wait_ns"] = total.pop("xmit_wait_ps")
        for number in range(0 if n.kind == SWITCH else 1, n.ports + 1):
            for name, value in self.port_counters(n.port[number].index).items():
                if name != "lanes":
                    total[name] += value
        return total

    def occupancy(self, port):
        """Bytes of each data lane's receive buffer in use (in whole blocks), and of VL15's as the last one."""
        p = self.port_at(port)
        used = [p.lane[lane].occupied * BLOCK for lane in range(VL15) if p.lane[lane]]
        return [*used, p.lane[VL15].occupied * BLOCK]

    def waiting(self):
        """The heads that wait: [(port, lane, since_ns, output)]; `port` is where the packet lies, both are indices.

        A deadlock is a cycle: the output's peer is a port where a head waits on the same lane, and so on.
        """
        i: cython.int
        lane: cython.int
        result = []
        for i in range(self.port_count):
            for lane in range(LANES):
                if not self.ports[i].lane[lane]:
                    continue
                q = self.ports[i].lane[lane].first
                while q:
                    result.append((q.port.index, lane, q.head.since_ps // 1000, i))
                    q = q.next
        return result

    # --- taps -----------------------------------------------------------------------------------------------

    def tap(self, port, on):
        """From now on, keep a copy of every packet that passes a port, out or in, for `take_taps`."""
        self.port_at(port).tapped = bool(on)

    def take_taps(self):
        """What has passed the tapped ports since the last call: [(time_ns, port, outbound, packet)].

        `packet` is bytes, LRH to VCRC, as on the cable; the time is that of its last byte.  What a port refused, what
        was cut off, and phantoms of train mode, which have no bytes, are not there.
        """
        result = []
        p = self.tap_first
        while p:
            following = p.next
            packet = p.data[: p.size] if cython.compiled else bytes(p.data)
            result.append(((p.tail_ps + 999) // 1000, p.received, bool(p.in_port), packet))
            self.release_packet(p)
            p = following
        self.tap_first = self.tap_last = NO_PACKET
        return result
