"""What a simulation reads of the whole fabric at once: counters, busy times, buffers, sources; and whether it is stuck.

Each of these is one call for all ports or sources, so that taking many samples costs little.
"""

from __future__ import annotations

from array import array
from copy import copy

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError
from verbena.fabric.configuration import Configuration
from verbena.fabric.ledger import COUNTER_NAMES

if cython.compiled:
    from cython.cimports.verbena.fabric.sources import FROM_TRACE
    from cython.cimports.verbena.fabric.tables import *
else:
    from verbena.fabric.sources import FROM_TRACE
    from verbena.fabric.tables import *

COUNTED_BY_LANE = ("xmit_packets", "xmit_bytes", "rcv_packets", "rcv_bytes")


class Meters(Configuration):
    """The fabric, with what is read of all of it at once."""

    # --- ports ----------------------------------------------------------------------------------------------

    def counter_of_all(self, name):
        """One counter of all ports, by the ports' indices: array of 64-bit integers."""
        at: cython.int
        if name not in COUNTER_NAMES:
            raise InvalidAttributeError(f"a port has no counter {name!r}")
        if name in COUNTED_BY_LANE:
            return array("q", [self._of_lanes(i, name) for i in range(self.port_count)])
        at = COUNTER_NAMES.index(name)
        return array("q", [self.ports[i].counters[at] for i in range(self.port_count)])

    def _of_lanes(self, index, name):
        lane: cython.int
        total: cython.longlong = 0
        port = self.port_at(index)
        for lane in range(LANES):
            line = port.lane[lane]
            if not line:
                continue
            if name == "xmit_packets":
                total += line.xmit_packets
            elif name == "xmit_bytes":
                total += line.xmit_bytes
            elif name == "rcv_packets":
                total += line.rcv_packets
            else:
                total += line.rcv_bytes
        return total

    def busy_of_all(self):
        """How long each port has been sending until now, in ps, by the ports' indices.

        Of a transmission under way only what has passed counts: samples that are taken one after another add up.
        """
        i: cython.int
        left: cython.longlong
        result = array("q", bytes(8 * self.port_count))
        for i in range(self.port_count):
            left = self.ports[i].free_ps - self.now_ps
            result[i] = self.ports[i].busy_ps - (left if left > 0 else 0)
        return result

    def buffered(self):
        """Bytes (whole blocks) in the input buffers of all switches, by data lane: 15 numbers."""
        i: cython.int
        lane: cython.int
        result = [0] * VL15
        for i in range(self.port_count):
            if self.ports[i].node.kind != SWITCH or self.ports[i].number == 0:
                continue
            for lane in range(self.ports[i].lanes):
                if self.ports[i].lane[lane]:
                    result[lane] += self.ports[i].lane[lane].occupied * BLOCK
        return result

    def lane_of(self, port, sl):
        """The lane on which packets of a service level leave a port; -1: it has none for them."""
        return self.lane_for(self.port_at(port), sl)

    # --- sources --------------------------------------------------------------------------------------------

    def due(self, s):
        """How many packets a source should have made by now and has not: draws them, and so uses `s` up."""
        at: cython.int
        count: cython.longlong = 0
        while s.left != 0 and s.next_ps <= self.now_ps and (s.stop_ps < 0 or s.next_ps <= s.stop_ps):
            count += 1
            at = self.choose(s)
            if s.left > 0:
                s.left -= 1
            if s.process != FROM_TRACE:
                s.next_ps += self.gap(s)
            elif s.left != 0:
                s.next_ps = s.time[at + 1]
        return count

    def source_statistics(self):
        """What the sources did: arrays by name, each by the sources' indices.

        ``made``, ``delivered``, ``dropped``: packets since the beginning; ``delivered_bytes``: likewise, LRH to VCRC.
        ``unsent``: packets that are due, but wait in front of the send queue and are not made yet.  ``latency_sum_ps``,
        ``latency_max_ps``: since `clear_statistics`.
        """
        i: cython.int
        scratch: Source
        names = (
            "made",
            "delivered",
            "dropped",
            "delivered_bytes",
            "latency_sum_ps",
            "latency_max_ps",
            "unsent",
        )
        result = {name: array("q", bytes(8 * self.source_count)) for name in names}
        made, delivered, dropped, octets, total, largest, unsent = result.values()
        for i in range(self.source_count):
            s = self.sources[i]
            made[i], delivered[i], dropped[i] = s.made, s.delivered, s.dropped
            octets[i], total[i], largest[i] = s.delivered_bytes, s.latency_sum, s.latency_max
            if s.waiting:
                if cython.compiled:
                    scratch = s[0]
                    unsent[i] = self.due(cython.address(scratch))
                else:
                    unsent[i] = self.due(copy(s))
        return result

    def clear_statistics(self):
        """Begin to measure anew: latencies, delivered bytes and packet-hops (the warm-up has passed)."""
        i: cython.int
        super().clear_statistics()
        for i in range(self.source_count):
            self.sources[i].latency_sum = self.sources[i].latency_max = 0

    # --- standing still -------------------------------------------------------------------------------------

    def moves(self, q, lane, dead):
        """Will a queue's head leave some day, if those buffers marked in `dead` do not move?"""
        if q.sending or not q.waiting or q.copies > 0:
            return True
        o = q.output
        far = o.peer
        if not far or far.node.kind != SWITCH or self.credits_of(o, lane) >= q.head.blocks:
            return True
        if self.credits_of(o, lane) + far.lane[lane].occupied != far.lane[lane].size:
            return True  # a packet or a credit is on the cable
        return not dead[far.index * LANES + lane]

    def buffer_moves(self, r, lane, dead):
        """The same for a whole buffer: one queue that moves is enough."""
        number: cython.int
        heads: cython.int = 0
        line = r.lane[lane]
        if not r.node.voq:
            return not line.inbox.head or self.moves(line.inbox, lane, dead)
        for number in range(1, r.node.ports + 1):
            if line.voq and line.voq[number] and (line.voq[number].head or line.voq[number].sending):
                heads += 1
                if self.moves(line.voq[number], lane, dead):
                    return True
        return heads == 0

    def stuck_queue(self, r, lane):
        """A queue of a buffer that stands still."""
        number: cython.int
        line = r.lane[lane]
        if r.node.voq:
            for number in range(1, r.node.ports + 1):
                if line.voq[number] and line.voq[number].waiting:
                    return line.voq[number]
        return line.inbox

    def standstill(self):
        """A deadlock: [(port, lane, output)], a circle of buffers each of which waits for room in the next; or [].

        `port` is where a packet lies, `output` the port of the same switch by which it wants to leave, both as
        indices.  What is found will never move again (while the cables stay as they are): every buffer that can move,
        because a head has credit, because something is on its cable, or because the buffer behind its cable can move,
        was left out first.  In train mode; [] otherwise.
        """
        i: cython.int
        lane: cython.int
        changed: cython.bint = True
        dead: cython.uchar[::1]
        if self.flits:
            return []
        marks = bytearray(self.port_count * LANES + 1)
        dead = marks
        for i in range(self.port_count):
            r = self.ports[i]
            if r.node.kind != SWITCH or r.number == 0 or not r.peer:
                continue
            for lane in range(VL15):
                if r.lane[lane] and r.lane[lane].occupied > 0:
                    dead[i * LANES + lane] = 1
        while changed:
            changed = False
            for i in range(self.port_count):
                for lane in range(VL15):
                    if dead[i * LANES + lane] and self.buffer_moves(
                        self.ports[i],
                        lane,
                        cython.address(dead[0]) if cython.compiled else dead,
                    ):
                        dead[i * LANES + lane] = 0
                        changed = True
        at = marks.find(1)
        way = []
        while at >= 0 and at not in way:
            way.append(at)
            at = self.stuck_queue(self.ports[at // LANES], at % LANES).output.peer.index * LANES + at % LANES
        way = way[way.index(at) :] if way else []
        return [
            (at // LANES, at % LANES, self.stuck_queue(self.ports[at // LANES], at % LANES).output.index)
            for at in way
        ]
