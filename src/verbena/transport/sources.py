"""Who sends: the headers that a packet's invariant CRC covers but a socket does not show, and the checking of that CRC.

For the sender of the present burst the masked headers are prepared once.  Of every IPv4 sender it is remembered how it
numbers its packets, because the one field that cannot be known beforehand, the identification, is covered, too: see
`wire.kernels`.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.transport.work import Work

if cython.compiled:
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import (
        NOT_AN_IDENT,
        copy,
        ident_seed,
        inverse_power,
        packet_crc,
        prefix,
        same,
        sealed_with,
        seed,
        solve_ident,
    )
else:
    from verbena._declarations import declarations
    from verbena.transport.tables import *
    from verbena.wire.kernels import (
        NOT_AN_IDENT,
        copy,
        ident_seed,
        inverse_power,
        packet_crc,
        prefix,
        same,
        sealed_with,
        seed,
        solve_ident,
    )

    globals().update(declarations(__file__))


class Sources(Work):
    """One adapter's queues, with what it knows of those who send to it."""

    if not cython.compiled:
        rx_elsewhere = False
        rx_known, rx_straight, rx_is_ip4, rx_port, rx_length, rx_seed, solve_length, solve_power = (
            False,
            False,
            False,
            0,
            0,
            0,
            0,
            0,
        )

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.rx_prefix = bytearray(64)
            self.rx_source = bytearray(16)

    def know_source(self, source, port):
        """Prepare the masked headers of a sender, unless they are prepared."""
        if self.rx_known and port == self.rx_port and same(source, 0, self.rx_source, 0, 16):
            return
        i: cython.int
        self.rx_known = True
        self.rx_straight = False
        self.rx_port = port
        self.rx_length = 0
        copy(self.rx_source, 0, source, 0, 16)
        self.rx_is_ip4 = source[10] == 0xFF and source[11] == 0xFF
        for i in range(10):
            if source[i]:
                self.rx_is_ip4 = False
        prefix(self.rx_prefix, self.rx_is_ip4, self.rx_source, self.rx_own, port, self.udp_port)

    def came_to(self, own):
        """The next bursts came to this one of the adapter's GIDs; None is the first."""
        i: cython.int
        octet: cython.uchar
        self.rx_elsewhere = own is not None
        for i in range(16):
            octet = self.own_gid[i] if own is None else own[i]
            if self.rx_own[i] != octet:
                self.rx_own[i] = octet
                self.rx_known = False

    def check_crc(self, b, at, n, place, now):
        """0 if the invariant CRC is right, else the counter of the reason (see `wire.kernels` on identifications)."""
        crc: cython.uint
        sealed: cython.uint
        change: cython.int
        if n != self.rx_length:
            self.rx_length = n
            self.rx_seed = seed(self.rx_prefix, self.rx_is_ip4, n)
        crc = packet_crc(ident_seed(self.rx_seed, place) if self.rx_is_ip4 else self.rx_seed, b, at, n)
        sealed = sealed_with(b, at, n)
        if crc == sealed:
            if not self.rx_straight and self.rx_is_ip4:
                self.straight()
            return 0
        if not self.rx_is_ip4:
            return DROP_ICRC
        if self.solve_length != n:
            self.solve_length = n
            self.solve_power = inverse_power(n)
        change = solve_ident(crc ^ sealed, self.solve_power)
        if change == NOT_AN_IDENT:
            return DROP_ICRC
        if not self.follows(cython.cast(cython.uint, change) ^ place, now):
            return DROP_IDENT
        self.counters[IDENT_SOLVED] += 1
        return 0

    def flow_place(self):
        """Where in `flows` the source stands."""
        mixed: cython.uint = self.rx_source[15] ^ (self.rx_source[14] * 31) ^ (self.rx_source[13] * 17)
        return mixed & (FLOWS - 1)

    def straight(self):
        """The source's identifications were as assumed: from now on, another one is first taken for damage."""
        slot: cython.uint = self.flow_place()
        if cython.compiled:
            flow = cython.address(self.flows[slot])
        else:
            flow = self.flows[slot]
        if not same(flow.source, 0, self.rx_source, 0, 16):
            copy(flow.source, 0, self.rx_source, 0, 16)
            flow.known = False
        flow.straight, flow.guessed = True, False
        self.rx_straight = True

    def follows(self, ident, now):
        """Is this a believable next identification of the source?

        Linux draws them in order, with a gap of up to the clock ticks since the last one; a single stray one is
        taken for damage, two that agree for a new beginning.  About one in 2^15 damaged packets has a solution, so
        that a source known to number its bursts from 0 gets no first one for nothing.
        """
        slot: cython.uint = self.flow_place()
        ahead: cython.uint
        reach: cython.ulonglong
        if cython.compiled:
            flow = cython.address(self.flows[slot])
        else:
            flow = self.flows[slot]
        if not same(flow.source, 0, self.rx_source, 0, 16):
            copy(flow.source, 0, self.rx_source, 0, 16)
            flow.known, flow.straight, flow.guessed = False, False, False
        if not flow.known and not flow.straight and ident >= BURST_PACKETS:
            flow.known, flow.last, flow.seen_ns = True, ident, now
            return True
        if flow.known:
            ahead = (ident - flow.last) & 0xFFFF
            reach = IDENT_REACH + (now - flow.seen_ns) // 1_000_000
            if ahead <= reach:
                flow.last, flow.seen_ns, flow.guessed = ident, now, False
                return True
            if ahead >= 0x10000 - IDENT_REACH:
                return True
        # Not the same one again: that is the damaged packet, duplicated.
        if ident >= BURST_PACKETS and flow.guessed and ((ident - flow.guess - 1) & 0xFFFF) < IDENT_REACH:
            flow.known, flow.last, flow.seen_ns, flow.guessed = True, ident, now, False
            return True
        flow.guessed, flow.guess = True, ident
        self.rx_straight = False  # an intact packet in between refutes the guess
        return ident < BURST_PACKETS  # somewhere in a burst that was taken apart, or put together, on the way
