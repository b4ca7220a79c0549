"""The filling of lanes, path by path, so that no lane has a cycle of channels (see channels.py).

`Layering` puts each path on the first lane in which it closes no cycle (Skeie, Lysne and Theiss, "Layered shortest
path (LASH) routing in irregular system area networks", 2002).  It keeps a topological order of each lane's channels up
to date while dependencies come (Pearce and Kelly, "A dynamic topological sort algorithm for directed acyclic graphs",
2006), and remembers which dependencies a lane can never take, so that each is searched for once.
"""

from __future__ import annotations

from array import array

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.fabric.routing.channels import Dependencies


class Layering(Dependencies):
    """Lanes that are filled path by path.  `limit`: of lanes."""

    def __init__(self, graph, limit):
        Dependencies.__init__(self, graph, limit)
        n = max(1, self.channels)
        self.barred = array("Q", [0]) * max(1, limit * n * self.words)
        self.place = array("i", range(n)) * limit  # of each channel in its lane's order, and back
        self.channel_at = array("i", range(n)) * limit
        self.seen = array("i", [0]) * n
        self.seen_stamp = 0
        self.ahead = array("i", [0]) * (n + 1)
        self.behind = array("i", [0]) * (n + 1)
        self.stack = array("i", [0]) * (n + 1)
        self.at = array("i", [0]) * (n + 1)
        self.pool = array("i", [0]) * (2 * n + 2)
        self.path = array("i", [0]) * (self.switches + 2)
        self.paths = array("q", [0]) * limit

    def read(self, table, width, lid, source):
        """The channels from a switch to a LID into `path`; returns how many lead to other switches."""
        s: cython.int = source
        p: cython.int
        c: cython.int
        n: cython.int = 0
        while n <= self.switches:
            p = table[s * width + lid]
            c = self.first[s] + p
            if p == 0 or c >= self.first[s + 1] or self.peer[c] < 0:
                return n
            self.path[n] = c
            n += 1
            s = self.owner[self.peer[c]]
        return 0

    def assign(
        self,
        table: cython.uchar[::1],
        layers: cython.uchar[::1],
        width: cython.int,
        lid: cython.int,
        sources: cython.uchar[::1],
    ):
        """Enter the lane of the path from each of the sources to one LID; returns how many found none."""
        source: cython.int
        lane: cython.int
        n: cython.int
        homeless: cython.int = 0
        for source in range(self.switches):
            if not sources[source]:
                continue
            n = self.read(table, width, lid, source)
            for lane in range(self.lanes):
                if self.fits(lane, n):
                    layers[source * width + lid] = lane
                    self.paths[lane] += 1
                    break
            else:
                homeless += 1
        return homeless

    def even_out(
        self,
        table: cython.uchar[::1],
        layers: cython.uchar[::1],
        width: cython.int,
        lid: cython.int,
        sources: cython.uchar[::1],
        lanes: cython.int,
    ):
        """Move paths to a lane with fewer of them, of the first `lanes`, which has all their dependencies already."""
        source: cython.int
        lane: cython.int
        best: cython.int
        n: cython.int
        for source in range(self.switches):
            if not sources[source]:
                continue
            n = self.read(table, width, lid, source)
            best = layers[source * width + lid]
            self.paths[best] -= 1
            for lane in range(lanes):
                if self.paths[lane] < self.paths[best] and self.holds(lane, n):
                    best = lane
            self.paths[best] += 1
            layers[source * width + lid] = best

    def admit(
        self,
        table: cython.uchar[::1],
        layers: cython.uchar[::1],
        width: cython.int,
        lid: cython.int,
        sources: cython.uchar[::1],
        lanes: cython.int,
    ):
        """Enter for each path the first lane, of the first `lanes`, that has all its dependencies; else leave it."""
        source: cython.int
        lane: cython.int
        n: cython.int
        for source in range(self.switches):
            if sources[source]:
                n = self.read(table, width, lid, source)
                for lane in range(lanes):
                    if self.holds(lane, n):
                        layers[source * width + lid] = lane
                        break

    def lanes_used(self):
        """How many lanes have a path."""
        return sum(1 for n in self.paths if n)

    def holds(self, lane, length):
        """Does a lane have all dependencies of the path?"""
        i: cython.int
        c: cython.int
        for i in range(1, length):
            c = self.path[i]
            if not self.has(self.present, lane, self.path[i - 1], c - self.first[self.owner[c]]):
                return False
        return True

    def fits(self, lane, length):
        """Add the path's dependencies to a lane; if that would close a cycle, none of them."""
        i: cython.int
        k: cython.int
        x: cython.int
        y: cython.int
        port: cython.int
        added: cython.int = 0
        for i in range(1, length):
            x, y = self.path[i - 1], self.path[i]
            port = y - self.first[self.owner[y]]
            if self.has(self.present, lane, x, port):
                self.at[i] = 0
                continue
            if not self.has(self.barred, lane, x, port):
                if self.join(lane, x, y):
                    self.at[i] = 1
                    added += 1
                    continue
                if added == 0:  # the lane will never take this one; it only ever gets more
                    self.put(self.barred, lane, x, port, True)
            for k in range(1, i):
                if self.at[k]:
                    y = self.path[k]
                    self.put(self.present, lane, self.path[k - 1], y - self.first[self.owner[y]], False)
            return False
        return True

    def join(self, lane, x, y):
        """Add one dependency, keeping the lane's channels in order; False if y already leads to x."""
        base: cython.int = lane * self.channels
        ahead: cython.int
        behind: cython.int
        if self.place[base + y] < self.place[base + x]:
            ahead = self.search_ahead(lane, y, self.place[base + x], x)
            if ahead < 0:
                return False
            behind = self.search_behind(lane, x, self.place[base + y])
            self.settle(lane, ahead, behind)
        self.put(self.present, lane, x, y - self.first[self.owner[y]], True)
        return True

    def search_ahead(self, lane, start, bound, goal):
        """What `start` leads to, up to the place `bound`; -1 if that includes the goal."""
        base: cython.int = lane * self.channels
        depth: cython.int = 0
        found: cython.int = 0
        c: cython.int
        d: cython.int
        p: cython.int
        self.seen_stamp += 1
        self.seen[start] = self.seen_stamp
        self.stack[0] = start
        self.pool[0] = 0
        while depth >= 0:
            c = self.stack[depth]
            p = self.next_channel(lane, c, self.pool[depth])
            if p < 0:
                self.ahead[found] = c
                found += 1
                depth -= 1
                continue
            self.pool[depth] = p
            d = self.first[self.owner[self.peer[c]]] + p
            if d == goal:
                return -1
            if self.seen[d] != self.seen_stamp and self.place[base + d] < bound:
                self.seen[d] = self.seen_stamp
                depth += 1
                self.stack[depth] = d
                self.pool[depth] = 0
        return found

    def search_behind(self, lane, start, bound):
        """What leads to `start`, down to the place `bound`."""
        base: cython.int = lane * self.channels
        depth: cython.int = 0
        found: cython.int = 0
        c: cython.int
        d: cython.int
        p: cython.int
        s: cython.int
        self.seen_stamp += 1
        self.seen[start] = self.seen_stamp
        self.stack[0] = start
        self.pool[0] = 0
        while depth >= 0:
            c = self.stack[depth]
            s = self.owner[c]
            d = -1
            for p in range(self.adjacent_first[s] + self.pool[depth], self.adjacent_first[s + 1]):
                d = self.peer[self.adjacent[p]]  # a channel that leads into the switch
                if (
                    self.seen[d] != self.seen_stamp
                    and self.place[base + d] > bound
                    and self.has(self.present, lane, d, c - self.first[s])
                ):
                    break
                d = -1
            if d < 0:
                self.behind[found] = c
                found += 1
                depth -= 1
                continue
            self.pool[depth] = p + 1 - self.adjacent_first[s]
            self.seen[d] = self.seen_stamp
            depth += 1
            self.stack[depth] = d
            self.pool[depth] = 0
        return found

    def settle(self, lane, ahead, behind):
        """Give the places of both sets out again: first to what is behind, then to what is ahead.

        Each set keeps its order, so that those behind only move down and those ahead only up: what is in neither set
        stays right with them.
        """
        base: cython.int = lane * self.channels
        i: cython.int
        for i in range(behind):
            self.pool[i] = self.place[base + self.behind[i]]
            self.behind[i] = self.pool[i]
        for i in range(ahead):
            self.pool[behind + i] = self.place[base + self.ahead[i]]
            self.ahead[i] = self.pool[behind + i]
        self.sort(self.behind, behind)
        self.sort(self.ahead, ahead)
        self.sort(self.pool, behind + ahead)
        for i in range(behind):  # by place, back to channels
            self.behind[i] = self.channel_at[base + self.behind[i]]
        for i in range(ahead):
            self.ahead[i] = self.channel_at[base + self.ahead[i]]
        for i in range(behind):
            self.place[base + self.behind[i]] = self.pool[i]
            self.channel_at[base + self.pool[i]] = self.behind[i]
        for i in range(ahead):
            self.place[base + self.ahead[i]] = self.pool[behind + i]
            self.channel_at[base + self.pool[behind + i]] = self.ahead[i]

    def sort(self, values, n):
        """Shell's sort of the first `n` numbers."""
        i: cython.int
        k: cython.int
        value: cython.int
        gap: cython.int = 1
        while gap < n // 3:
            gap = 3 * gap + 1
        while gap > 0:
            for i in range(gap, n):
                value = values[i]
                k = i
                while k >= gap and values[k - gap] > value:
                    values[k] = values[k - gap]
                    k -= gap
                values[k] = value
            gap //= 3
