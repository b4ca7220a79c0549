"""The channel dependency graph of a routing, one for each lane.

A channel is a direction of a cable; a packet that holds the buffer behind one channel and has to go out of the next
makes the second a *dependency* of the first.  Without loss and with a fixed lane, a routing is free of deadlock if no
lane's graph has a cycle (Dally and Seitz, "Deadlock-free message routing in multiprocessor interconnection networks",
1987).  A dependency is one bit: of the channel's lane, and of the port of the switch that it leads into.
"""

from __future__ import annotations

from array import array

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython


class Dependencies:
    """The dependencies of up to 16 lanes of a `RoutingGraph`."""

    def __init__(self, graph, lanes):
        self.switches = len(graph.switches)
        self.channels = graph.channels
        self.lanes = lanes
        self.words = max(graph.port_count, default=1) // 64 + 1
        self.first = graph.first
        self.owner = graph.owner
        self.peer = graph.peer
        self.adjacent_first = graph.adjacent_first
        self.adjacent = graph.adjacent
        self.present = array("Q", [0]) * max(1, lanes * self.channels * self.words)
        self.used = bytearray(max(1, lanes * self.channels))
        self.stamped = array("i", [0]) * self.switches
        self.lanes_seen = array("i", [0]) * self.switches
        self.walked = array("i", [0]) * self.switches
        self.stamp = 0
        self.walk = 0

    def has(self, bits, lane, channel, port):
        at: cython.int = (lane * self.channels + channel) * self.words + (port >> 6)
        word: cython.ulonglong = bits[at]
        return ((word >> (port & 63)) & 1) != 0

    def put(self, bits, lane, channel, port, on):
        at: cython.int = (lane * self.channels + channel) * self.words + (port >> 6)
        one: cython.ulonglong = 1
        word: cython.ulonglong = bits[at]
        one = one << (port & 63)
        if on:
            bits[at] = word | one
        elif word & one:
            bits[at] = word ^ one

    def follow(
        self,
        table: cython.uchar[::1],
        layers: cython.uchar[::1],
        width: cython.int,
        lid: cython.int,
        sources: cython.uchar[::1],
    ):
        """Add what the paths from all `sources` (a byte for each switch) to one LID depend on.

        layers: the lane by switch and LID, or empty = lane 0.  Returns -1, or a switch from which packets to this LID
        go round in the tables for ever.  A path that ends nowhere is followed as far as it goes.
        """
        source: cython.int
        s: cython.int
        p: cython.int
        c: cython.int
        lane: cython.int = 0
        before: cython.int
        looping: cython.int = -1
        layered: cython.bint = len(layers) > 0
        self.stamp += 1
        for source in range(self.switches):
            if not sources[source]:
                continue
            if layered:
                lane = layers[source * width + lid]
            self.walk += 1
            s = source
            before = -1
            while True:
                p = table[s * width + lid]
                c = self.first[s] + p
                if p == 0 or c >= self.first[s + 1]:
                    break  # arrived at the switch itself, or dropped
                if before >= 0:
                    self.put(self.present, lane, before, p, True)
                self.used[lane * self.channels + c] = 1
                if self.stamped[s] != self.stamp:
                    self.stamped[s] = self.stamp
                    self.lanes_seen[s] = 0
                    self.walked[s] = 0
                if (self.lanes_seen[s] >> lane) & 1:
                    if self.walked[s] == self.walk:
                        looping = s
                    break  # from here on the path was followed before
                self.lanes_seen[s] |= 1 << lane
                self.walked[s] = self.walk
                if self.peer[c] < 0:
                    break
                before = c
                s = self.owner[self.peer[c]]
        return looping

    def next_channel(self, lane, channel, after):
        """The first dependency of a channel at a port above `after`; -1 = no more."""
        p: cython.int = after + 1
        base: cython.int = (lane * self.channels + channel) * self.words
        word: cython.ulonglong
        if self.peer[channel] < 0:
            return -1
        while p < 64 * self.words:
            word = self.present[base + (p >> 6)]
            word = word >> (p & 63)
            if word == 0:
                p = (p | 63) + 1
                continue
            while (word & 0xFF) == 0:
                word = word >> 8
                p += 8
            while (word & 1) == 0:
                word = word >> 1
                p += 1
            return p
        return -1

    def cycle(self):
        """(lane, channels) of a cycle, or None.  Depth first, without recursion."""
        lane: cython.int
        start: cython.int
        c: cython.int
        d: cython.int
        p: cython.int
        depth: cython.int
        state: cython.uchar[::1]
        stack: cython.int[::1] = array("i", [0]) * (self.channels + 1)
        port: cython.int[::1] = array("i", [0]) * (self.channels + 1)
        for lane in range(self.lanes):
            state = bytearray(self.channels)
            for start in range(self.channels):
                if state[start] or not self.used[lane * self.channels + start]:
                    continue
                depth = 0
                stack[0] = start
                port[0] = 0
                state[start] = 1
                while depth >= 0:
                    c = stack[depth]
                    p = self.next_channel(lane, c, port[depth])
                    if p < 0:
                        state[c] = 2
                        depth -= 1
                        continue
                    port[depth] = p
                    d = self.first[self.owner[self.peer[c]]] + p
                    if state[d] == 1:
                        found = list(stack[: depth + 1])
                        return lane, found[found.index(d) :]
                    if state[d] == 0:
                        depth += 1
                        stack[depth] = d
                        port[depth] = 0
                        state[d] = 1
        return None

    def totals(self):
        """(channels that carry something, dependencies), over all lanes."""
        i: cython.int
        channels: cython.int = 0
        found: cython.int = 0
        word: cython.ulonglong
        for i in range(self.lanes * self.channels):
            channels += self.used[i]
        for i in range(self.lanes * self.channels * self.words):
            word = self.present[i]
            while word:
                word = word & (word - 1)
                found += 1
        return channels, found
