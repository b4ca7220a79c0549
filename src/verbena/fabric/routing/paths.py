"""The loops that all routing engines share: which ports lead nearer to a switch, and which of them each LID takes.

An engine goes through the destination switches.  For each it first asks for candidates, the set of ports that the rule
allows at every switch (`minimal`, `updown`, or an engine's own: steps.py), and then has the LIDs there assigned,
balanced over the candidates (`assign`).  Every candidate leads to a switch with fewer hops to go, so whatever is chosen
has no loop.

Forwarding tables are one flat bytearray here: entry ``s * width + lid``.
"""

from __future__ import annotations

from array import array

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

if not cython.compiled:
    from verbena._declarations import declarations

    globals().update(declarations(__file__))

NONE = 255
STICKY = 2  # by how many LIDs a port may be fuller than the emptiest, and a re-routed LID still keep it


class Paths:
    """Distances, candidates and loads in one `RoutingGraph`."""

    def __init__(self, graph):
        n = len(graph.switches)
        self.switches = n
        self.first = graph.first
        self.owner = graph.owner
        self.peer = graph.peer
        self.adjacent_first = graph.adjacent_first
        self.adjacent = graph.adjacent
        self.to = array("i", [graph.owner[graph.peer[c]] for c in graph.adjacent])
        self.hops = array("i", [-1]) * n
        self.kind = array("b", [0]) * n
        self.queue = array("i", [0]) * (n + 1)
        self.queued = 0
        self.candidates_first = array("i", [0]) * (n + 1)
        self.candidates = array("i", [0]) * (len(graph.adjacent) + 1)
        self.load = array("i", [0]) * max(1, graph.channels)
        self.switch_load = array("i", [0]) * max(1, graph.channels)
        self.position = array("i", range(n))
        self.hosts = bytearray(graph.has_hosts)
        self.marked = array("i", [0]) * n

    # --- distances ----------------------------------------------------------------------------------------------

    def minimal(self, dest: cython.int):
        """Candidates: every port on a shortest way to the switch `dest`.  Returns how many switches have a way."""
        s: cython.int
        for s in range(self.switches):
            self.hops[s] = -1
            self.kind[s] = DOWN
        self.hops[dest] = 0
        self.queue[0] = dest
        self.queued = 1
        self.spread()
        self.gather(False)
        return self.queued

    def narrow(self, dest: cython.int):
        """As `minimal`, but only the ports to the one neighbour that is first in the order (see `set_order`).

        Fewer different turns, for fewer lanes, at the price of balance.
        """
        s: cython.int
        i: cython.int
        k: cython.int = 0
        lo: cython.int
        hi: cython.int
        best: cython.int
        t: cython.int
        self.minimal(dest)
        hi = 0
        for s in range(self.switches):
            lo, hi = hi, self.candidates_first[s + 1]
            best = self.switches
            for i in range(lo, hi):
                best = min(best, self.position[self.owner[self.peer[self.candidates[i]]]])
            self.candidates_first[s] = k
            for i in range(lo, hi):
                t = self.owner[self.peer[self.candidates[i]]]
                if self.position[t] == best:
                    self.candidates[k] = self.candidates[i]
                    k += 1
        self.candidates_first[self.switches] = k

    def distances(self, dest: cython.int):
        """Hops from each switch to one of them; -1 = no way."""
        self.minimal(dest)
        return list(self.hops)

    def sum_distances(self, dests):
        """Hops from each switch to all of `dests` together; -1 where one of them cannot be reached."""
        total: cython.int[::1] = array("i", [0]) * self.switches
        s: cython.int
        for dest in dests:
            self.minimal(dest)
            for s in range(self.switches):
                total[s] = -1 if self.hops[s] < 0 or total[s] < 0 else total[s] + self.hops[s]
        return list(total)

    def spread(self):
        """Breadth first from what is queued, over switches without a distance yet."""
        head: cython.int = 0
        v: cython.int
        u: cython.int
        i: cython.int
        hops: cython.int[::1] = self.hops
        queue: cython.int[::1] = self.queue
        to: cython.int[::1] = self.to
        tail: cython.int = self.queued
        while head < tail:
            v = queue[head]
            head += 1
            for i in range(self.adjacent_first[v], self.adjacent_first[v + 1]):
                u = to[i]
                if hops[u] < 0:
                    hops[u] = hops[v] + 1
                    queue[tail] = u
                    tail += 1
        self.queued = tail

    def gather(self, ruled):
        """List the candidates: ports to a switch with one hop less; `ruled`: up and down as `kind` says."""
        k: cython.int = 0
        s: cython.int
        u: cython.int
        i: cython.int
        h: cython.int
        up: cython.bint
        hops: cython.int[::1] = self.hops
        to: cython.int[::1] = self.to
        candidates: cython.int[::1] = self.candidates
        for s in range(self.switches):
            self.candidates_first[s] = k
            h = hops[s] - 1
            if h < 0:
                continue
            for i in range(self.adjacent_first[s], self.adjacent_first[s + 1]):
                u = to[i]
                if hops[u] != h:
                    continue
                if ruled and self.kind[s] != BEYOND:
                    up = self.position[u] < self.position[s]
                    if self.kind[u] == BEYOND:
                        continue
                    if up != (self.kind[s] == UP) or (not up and self.kind[u] != DOWN):
                        continue
                candidates[k] = self.adjacent[i]
                k += 1
        self.candidates_first[self.switches] = k

    def candidate_ports(self, s: cython.int):
        """The candidates of a switch, as port numbers."""
        lo, hi = self.candidates_first[s], self.candidates_first[s + 1]
        return [self.candidates[i] - self.first[s] for i in range(lo, hi)]

    # --- up and down --------------------------------------------------------------------------------------------

    def set_order(self, position):
        """Number the switches for `updown`: a lower number is nearer to the roots; no two alike."""
        i: cython.int
        for i in range(self.switches):
            self.position[i] = position[i]

    def updown(self, dest: cython.int):
        """Candidates: ports on ways that never go up after they went down.

        Returns the number of switches with adapters for which the rule is broken, if `dest` has adapters, too: data
        must not be led so.  To and from switches themselves only management travels.
        """
        broken: cython.int = self.refined(dest)
        if broken:
            broken = self.strict(dest)
        self.gather(True)
        return broken

    def refined(self, dest):
        """Level by level, the shortest legal way of each switch; of equal ones, one that only goes down."""
        s: cython.int
        u: cython.int
        v: cython.int
        i: cython.int
        head: cython.int = 0
        tail: cython.int = 1
        hops: cython.int[::1] = self.hops
        queue: cython.int[::1] = self.queue
        for s in range(self.switches):
            hops[s] = -1
        hops[dest] = 0
        self.kind[dest] = DOWN
        queue[0] = dest
        while head < tail:
            v = queue[head]
            head += 1
            for i in range(self.adjacent_first[v], self.adjacent_first[v + 1]):
                u = self.to[i]
                if hops[u] >= 0 and (hops[u] <= hops[v] or self.kind[u] == DOWN):
                    continue
                if self.position[u] < self.position[v]:  # u sends down to v
                    if self.kind[v] != DOWN:
                        continue
                    self.kind[u] = DOWN
                elif hops[u] < 0:
                    self.kind[u] = UP
                if hops[u] < 0:
                    hops[u] = hops[v] + 1
                    queue[tail] = u
                    tail += 1
        self.queued = tail
        return self.beyond(dest)

    def strict(self, dest):
        """Whoever can reach `dest` by going down only does so; all others go up to the nearest of those.

        Longer ways than `refined`, but every switch has one that can reach a root above `dest`.
        """
        s: cython.int
        u: cython.int
        v: cython.int
        i: cython.int
        k: cython.int
        best: cython.int
        head: cython.int = 0
        tail: cython.int = 1
        hops: cython.int[::1] = self.hops
        queue: cython.int[::1] = self.queue
        for s in range(self.switches):
            hops[s] = -1
        hops[dest] = 0
        self.kind[dest] = DOWN
        queue[0] = dest
        while head < tail:
            v = queue[head]
            head += 1
            for i in range(self.adjacent_first[v], self.adjacent_first[v + 1]):
                u = self.to[i]
                if hops[u] < 0 and self.position[u] < self.position[v]:
                    self.kind[u] = DOWN
                    hops[u] = hops[v] + 1
                    queue[tail] = u
                    tail += 1
        for s in range(self.switches):  # switches from the top: marked[] lists them by position
            self.marked[self.position[s]] = s
        for k in range(self.switches):
            s = self.marked[k]
            if hops[s] >= 0:
                continue
            best = -1
            for i in range(self.adjacent_first[s], self.adjacent_first[s + 1]):
                u = self.to[i]
                if self.position[u] < k and hops[u] >= 0 and (best < 0 or hops[u] < best):
                    best = hops[u]
            if best >= 0:
                hops[s] = best + 1
                self.kind[s] = UP
                queue[tail] = s
                tail += 1
        self.queued = tail
        for s in range(self.switches):
            self.marked[s] = 0
        return self.beyond(dest)

    def beyond(self, dest):
        """Give those without a legal way one that breaks the rule; returns for how many that matters."""
        s: cython.int
        broken: cython.int = 0
        for s in range(self.switches):
            if self.hops[s] < 0:
                self.kind[s] = BEYOND
        self.spread()
        for s in range(self.switches):
            if self.hops[s] > 0 and self.kind[s] == BEYOND and self.hosts[s] and self.hosts[dest]:
                broken += 1
        return broken

    # --- choosing -----------------------------------------------------------------------------------------------

    def shared(self, s, c, lid, base, table, width):
        """How much a candidate has in common with the ports of the end's other LIDs: 256 for a port, 1 for a switch."""
        k: cython.int
        p: cython.int
        same: cython.int = 0
        for k in range(base, lid):
            p = table[s * width + k]
            if p == NONE or p == 0:
                continue
            if self.first[s] + p == c:
                same += 256
            elif self.peer[self.first[s] + p] >= 0 and (
                self.owner[self.peer[self.first[s] + p]] == self.owner[self.peer[c]]
            ):
                same += 1
        return same

    def choose(self, s, lid, base, old, table, width, load):
        """One of the candidates of a switch: other ports and switches than the end's other LIDs, then the emptiest.

        Of equally empty ones, the first in a circle that begins one port later with each round, times the hops to go:
        if all switches chose alike, all LIDs that reach a switch of an upper level would leave it by one port.
        """
        i: cython.int
        c: cython.int
        same: cython.int
        begin: cython.int = self.candidates_first[s]
        count: cython.int = self.candidates_first[s + 1] - begin
        best: cython.int = -1
        best_same: cython.int = 0
        kept_same: cython.int = -1
        turn: cython.int
        for i in range(begin, begin + count):
            c = self.candidates[i]
            same = self.shared(s, c, lid, base, table, width)
            if best < 0 or same < best_same or (same == best_same and load[c] < load[best]):
                best, best_same = c, same
            if c == self.first[s] + old:
                kept_same = same
        if kept_same == best_same and load[self.first[s] + old] <= load[best] + STICKY:
            return self.first[s] + old
        turn = cython.cast(
            cython.int, cython.cast(cython.longlong, load[best]) * max(self.hops[s], 1) % count
        )
        for i in range(count):
            c = self.candidates[begin + (turn + i) % count]
            if load[c] == load[best] and (
                lid == base or self.shared(s, c, lid, base, table, width) == best_same
            ):
                return c
        return best

    def assign(
        self,
        table: cython.uchar[::1],
        width: cython.int,
        old: cython.uchar[::1],
        dest: cython.int,
        port: cython.int,
        base: cython.int,
        count: cython.int,
    ):
        """Enter the LIDs `base` to `base + count - 1`, at a port of the switch `dest`, into all switches' tables.

        old: the tables before a failure, whose entries are kept where they still lead there, or empty.  LIDs of
        switches (port 0) are balanced among themselves.
        """
        s: cython.int
        lid: cython.int
        c: cython.int
        was: cython.int = -1
        have_old: cython.bint = len(old) > 0
        load: cython.int[::1] = self.load if port else self.switch_load
        for lid in range(base, base + count):
            for s in range(self.switches):
                if s == dest:
                    table[s * width + lid] = port
                    continue
                if self.candidates_first[s] == self.candidates_first[s + 1]:
                    table[s * width + lid] = NONE
                    continue
                if have_old:
                    was = old[s * width + lid]
                c = self.choose(s, lid, base, was, table, width, load)
                load[c] += 1
                table[s * width + lid] = c - self.first[s]
