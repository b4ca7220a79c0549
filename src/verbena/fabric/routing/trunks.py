"""The ways in a fat tree: towards the trunk of each destination.  See ftree.py for the rule."""

from __future__ import annotations

from array import array

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.fabric.routing.paths import Paths

if cython.compiled:
    from cython.cimports.verbena.fabric.routing.paths import DOWN, UP
else:
    from verbena.fabric.routing.paths import DOWN, UP

NONE = 255


class Trunks(Paths):
    """A graph whose switches are ordered from the roots."""

    def __init__(self, graph):
        Paths.__init__(self, graph)
        self.stamp = 0
        self.on_trunk = array("i", [0]) * self.switches
        self.trunk = array("i", [-1]) * self.switches

    def mark_trunk(self, s, number, offset, slots_first, slots, divisor):
        """Climb from a destination's switch to a root by its number; what is passed is the trunk."""
        n: cython.int
        q: cython.int
        k: cython.int
        c: cython.int
        d: cython.int
        self.stamp += 1
        self.on_trunk[s] = self.stamp
        while True:
            n = slots_first[s + 1] - slots_first[s]
            if n == 0:
                return
            q = (number // divisor[s] + offset) % n
            c = -1
            for k in range(n):  # a slot whose cable is gone: the next one
                d = slots[slots_first[s] + (q + k) % n]
                if d >= 0:
                    c = d
                    break
            if c < 0:
                return
            s = self.owner[self.peer[c]]
            self.trunk[s] = self.peer[c]
            self.on_trunk[s] = self.stamp

    def pick(self, s, number, width):
        """A candidate of `s`: one that leads to the trunk if there is one; of several, by the number."""
        i: cython.int
        n: cython.int = 0
        on: cython.int = 0
        c: cython.int
        lo: cython.int = self.candidates_first[s]
        hi: cython.int = self.candidates_first[s + 1]
        for i in range(lo, hi):
            c = self.candidates[i]
            if self.on_trunk[self.owner[self.peer[c]]] == self.stamp:
                on += 1
        if on:
            number = number // width % on
            for i in range(lo, hi):
                c = self.candidates[i]
                if self.on_trunk[self.owner[self.peer[c]]] == self.stamp:
                    if n == number:
                        break
                    n += 1
            if self.kind[s] == UP:
                self.on_trunk[s] = self.stamp
            return c
        return self.candidates[lo + number % (hi - lo)]

    def assign_tree(
        self,
        table: cython.uchar[::1],
        width: cython.int,
        dest: cython.int,
        port: cython.int,
        base: cython.int,
        count: cython.int,
        number: cython.int,
        order: cython.int[::1],
        slots_first: cython.int[::1],
        slots: cython.int[::1],
        divisor: cython.int[::1],
        parents: cython.int[::1],
    ):
        """As `assign`, for the destination `number` of a fat tree (see ftree.py); call `updown` first.

        order: the switches from the top.  slots: each switch's ports upward, in order, -1 = cable gone.  divisor: what
        the number is divided by at each switch.  parents: how many different switches are above each.
        """
        k: cython.int
        s: cython.int
        c: cython.int
        lid: cython.int
        for lid in range(base, base + count):
            self.mark_trunk(dest, number, lid - base, slots_first, slots, divisor)
            for k in range(self.switches):
                s = order[k]
                if s == dest:
                    table[s * width + lid] = port
                    continue
                if self.candidates_first[s] == self.candidates_first[s + 1]:
                    table[s * width + lid] = NONE
                    continue
                if self.on_trunk[s] == self.stamp and self.kind[s] == DOWN:
                    c = self.trunk[s]
                else:
                    c = self.pick(s, number // divisor[s] + lid - base, parents[s])
                table[s * width + lid] = c - self.first[s]
