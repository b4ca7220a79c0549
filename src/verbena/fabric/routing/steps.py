"""Dimension-order steps in a mesh or torus, as candidates for `Paths.assign`, and the lanes of the ways.

See dor.py for the rule.
"""

from __future__ import annotations

from array import array

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.fabric.routing.paths import Paths


class Steps(Paths):
    """A graph with a place for every switch.

    sizes, wraps: of each dimension.  places: coordinates by switch.  bits: of the lane, what crossing the dateline of a
    dimension adds (0 where nothing is needed).  cables: the channels by switch, dimension and direction (0 = towards
    smaller coordinates, 1 = larger), as lists.
    """

    def __init__(self, graph, sizes, wraps, bits, places, cables):
        Paths.__init__(self, graph)
        self.dimensions = len(sizes)
        self.size = array("i", [*sizes, 0])
        self.bit = array("i", [*bits, 0])
        self.wraps = bytearray([*map(bool, wraps), 0])
        self.place = array("i", [x for place in places for x in place] or [0])
        first, flat = array("i", [0]), array("i")
        for channels in cables:
            flat.extend(channels)
            first.append(len(flat))
        flat.append(-1)
        self.step_first = first
        self.step = flat
        self.lane = bytearray(max(1, self.switches))

    def dimension_order(self, dest: cython.int):
        """Candidates: the cables of the one step that the rule allows.  Returns how many switches have none."""
        s: cython.int
        i: cython.int
        a: cython.int
        b: cython.int
        n: cython.int
        ahead: cython.int
        distance: cython.int
        way: cython.int
        taken: cython.int
        lane: cython.int
        broken: cython.int = 0
        k: cython.int = 0
        m: cython.int
        for s in range(self.switches):
            self.candidates_first[s] = k
            lane = 0
            distance = 0
            taken = -1
            for i in range(self.dimensions):
                a = self.place[s * self.dimensions + i]
                b = self.place[dest * self.dimensions + i]
                if a == b:
                    continue
                n = self.size[i]
                way = 1 if b > a else 0
                ahead = b - a if b > a else a - b
                if self.wraps[i] and (2 * ahead > n or (2 * ahead == n and (a & 1))):
                    way = 1 - way  # around the end is shorter; of two halves, odd places take that one
                    ahead = n - ahead
                    lane |= self.bit[i]
                distance += ahead
                if taken < 0:
                    taken = (s * self.dimensions + i) * 2 + way
            self.hops[s] = distance
            self.lane[s] = lane
            if taken < 0:
                continue
            if self.step_first[taken] == self.step_first[taken + 1]:
                broken += 1
            for m in range(self.step_first[taken], self.step_first[taken + 1]):
                self.candidates[k] = self.step[m]
                k += 1
        self.candidates_first[self.switches] = k
        return broken

    def enter_lanes(self, layers: cython.uchar[::1], width: cython.int, base: cython.int, count: cython.int):
        """Enter the lanes of the ways to the last destination into the tables of lanes, for some of its LIDs."""
        s: cython.int
        lid: cython.int
        for s in range(self.switches):
            for lid in range(base, base + count):
                layers[s * width + lid] = self.lane[s]
