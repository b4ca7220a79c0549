"""Adapters on a fabric's core in the same process: their packets cross without being touched by Python.

A transport's bursts are cut into packets and put into the core's send queues, and what the core delivers to their
ports is executed where it lies, without the interpreter lock.  What is not the transport's own (management datagrams,
raw packets), and what has no room, is left to the caller, who knows what to do with it.

Checks and counters are the same as on the way through Python: `FabricCore.admit` and `NativeEngine.take_native` make
them.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

if cython.compiled:
    from cython.cimports.verbena.fabric.tables import *
else:
    from verbena._declarations import declarations
    from verbena.fabric.tables import *

    globals().update(declarations(__file__))


class Couplings:
    """The adapters of one core.  Everything with the core's lock held."""

    def __init__(self, core):
        self.core = core
        self._engines = {}
        self._adapters = []
        self._last = None
        self.first = self.last = NO_PACKET
        if not cython.compiled:
            self._burst = bytearray(BURST_ROOM)

    def join(self, port, engine, number, tell):
        """From now on, data packets for a port of the core are an engine's, whose port has that number.

        tell: is called when `pump` has brought it something, before all others that have reports.
        """
        p = self.core.port_at(port)
        self._engines[p.index] = (engine, number, tell)
        p.coupled = True

    def part(self, port):
        """No longer."""
        p = self.core.port_at(port)
        p.coupled = False
        self._engines.pop(p.index, None)

    def add(self, engine, ports, leave, tell):
        """Let `pump` serve an engine; `ports`: the core's port for each of its numbers.

        leave: is called with what found no room, as `send` returns it.  tell: is called when the engine has reports.
        """
        self._adapters.append((engine, ports, leave, tell))

    def remove(self, engine):
        """No longer."""
        self._adapters = [each for each in self._adapters if each[0] is not engine]

    # --- all of it ------------------------------------------------------------------------------------------

    def pump(self, until_ns, now):
        """Let what the engines have to send cross, until nothing moves or software has to look at something else.

        until_ns: how far the core's time may go.  Returns when the first of the engines' timers is over (0: none runs),
        and whether the core has something for software.
        """
        limit: cython.longlong = until_ns * 1000
        moved: cython.bint = True
        first: cython.ulonglong = 0
        when: cython.ulonglong
        while moved:
            moved = False
            for engine, ports, leave, _ in self._adapters:
                if cython.compiled:
                    e: NativeEngine = engine
                else:
                    e = engine
                if e.ready_head == e.ready_tail:
                    continue
                moved = True
                while (left := self.send(e, ports, now)) is not None:
                    leave(*left)
            if limit > self.core.now_ps:
                self.core.stop = False
                with cython.nogil:
                    self.core.loop(limit)
            if self.deliver(now):
                moved = True
            if not self.nothing_else():
                break
        told, self._last = self._last, None
        if told is not None:  # who has received something waits for it; what was sent is only done with
            told()
        for engine, _, _, tell in self._adapters:
            e = engine
            if e.report_head != e.report_tail and tell is not told:
                tell()
            when = e.earliest()
            if when and (first == 0 or when < first):
                first = when
        return first, not self.nothing_else()

    def nothing_else(self):
        """Has the core nothing for software?"""
        return not self.core.delivered_first and not self.core.report_count

    # --- out ------------------------------------------------------------------------------------------------

    def send(self, engine, ports, now):
        """Put everything an engine wants to send on the links; `ports`: the core's port for each of its numbers.

        None, or what found no room: (packets, bytes of each but the last, number of the port).  Call it again then.
        """
        n: cython.size_t
        segment: cython.size_t
        at: cython.size_t
        moment: cython.ulonglong = now
        if cython.compiled:
            e: NativeEngine = engine
        else:
            e = engine
        while True:
            e.acquire()
            with cython.nogil:
                n = e.make_burst(self._burst, BURST_ROOM, moment)
            segment = e.burst_segment if n else 0
            number = e.paths[e.burst_path].port if n else 0
            e.release()
            if n == 0:
                return None
            port = self.core.port_at(ports[number])
            with cython.nogil:
                at = self.put(port, n, segment)
            if at < n:
                return (bytes(self._burst[at:n]), segment, number)

    def put(self, port, n, segment):
        """Cut the burst into packets and queue them; returns how many bytes had room."""
        at: cython.size_t = 0
        size: cython.size_t
        while at < n:
            size = min(segment, n - at)
            if cython.compiled:
                taken: cython.bint = self.core.admit(port, self._burst + at, cython.cast(cython.int, size), 0)
            else:
                taken = self.core.admit(port, memoryview(self._burst)[at : at + size], size, 0)
            if not taken:
                break
            at += size
        return at

    # --- in -------------------------------------------------------------------------------------------------

    def deliver(self, now):
        """Hand the engines what was delivered to them; the rest stays for `FabricCore.deliveries`."""
        number: cython.uint
        moment: cython.ulonglong = now
        with cython.nogil:
            self.sort_out()
        if not self.first:
            return False
        while self.first:
            engine, number, self._last = self._engines[self.first.received]
            if cython.compiled:
                e: NativeEngine = engine
            else:
                e = engine
            e.acquire()
            with cython.nogil:
                self.feed(e, number, moment)
            e.release()
        return True

    def sort_out(self):
        """Move the data packets of coupled ports, in their order, from the core's list to our own."""
        p = self.core.delivered_first
        self.core.delivered_first = self.core.delivered_last = NO_PACKET
        while p:
            following = p.next
            p.next = NO_PACKET
            if self.is_data(p):
                if self.first:
                    self.last.next = p
                else:
                    self.first = p
                self.last = p
            else:
                if self.core.delivered_first:
                    self.core.delivered_last.next = p
                else:
                    self.core.delivered_first = p
                self.core.delivered_last = p
            p = following

    def is_data(self, p):
        """Is it for an engine's transport, and not for a management agent?"""
        start: cython.int
        port = self.core.ports[p.received]
        if not port.coupled or port.hold or not p.data or p.lane == VL15:
            return False
        b = p.data
        if (b[1] & 3) == BARE:
            start = LRH_SIZE
        elif (b[1] & 3) == WITH_GRH:
            start = ROUTE_SIZE
        else:
            return False
        if p.size < start + BTH_BYTES + VCRC_LENGTH:
            return False
        return b[start + 5] != 0 or b[start + 6] != 0 or b[start + 7] > MANAGEMENT_QP

    def feed(self, engine, number, now):
        """Execute the first of our packets and those after it that came to the same port."""
        port: cython.int = self.first.received
        while self.first and self.first.received == port:
            p = self.first
            self.first = p.next
            p.next = NO_PACKET
            engine.take_native(p.data, p.size - VCRC_LENGTH, number, now)
            self.core.release_packet(p)
