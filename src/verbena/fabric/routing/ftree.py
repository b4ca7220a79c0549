"""Fat tree: all traffic to one destination climbs to one root, and a shift of all hosts meets on no cable.

The rule: "d-mod-k" for parallel-port generalized fat trees (Zahavi, "Fat-tree routing and node ordering providing
contention free traffic for MPI global collectives", 2012; Leiserson's trees, k-ary n-trees and trees with fewer
cables upward are such); as an engine, OpenSM's ``ftree`` (doc/current-routing.txt, "Fat-tree Routing Algorithm").
Hosts are numbered leaf by leaf, leaves subtree by subtree, on a leaf by port.  Host number j is reached, seen from
itself, over port (j / (w1 ... wl)) mod u of the switch on level l, where w1 ... wl are the numbers of different
parents on the levels below, and u is the number of its ports upward.  That climb is the destination's trunk; every
switch beside it goes up towards the trunk where it can.  So every link down to a leaf carries one destination for as
many hosts as there are links, and hosts that send with any fixed distance of their numbers use different links up.

What is a tree is told by the wiring: switches with adapters are leaves (or those named by the option `leaves`), the
others are ranked by their distance from these, and no cable may join switches of one rank.  Equal parents are found by
what they have above them, so that names and port numbers need no order.  Missing cables and switches are gone around,
by other ways up and down.  Where that leaves a pair without a way, or the fabric is no tree, up*/down* is used, with a
warning.

LIDs of one port with LMC > 0 take neighbouring ports upward, and so different parents, where there are several.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from verbena.fabric.routing.fill import blank, ends_by_switch
from verbena.fabric.routing.graph import End, RoutingGraph
from verbena.fabric.routing.levels import levels, no_tree
from verbena.fabric.routing.routing import Routing, cut
from verbena.fabric.routing.trunks import Trunks
from verbena.fabric.routing.updn import updn


def ftree(
    graph: RoutingGraph,
    lanes: int,
    previous: Routing | None = None,
    leaves: Iterable[str] | None = None,
) -> Routing:
    """Route a fat tree; one lane.  leaves: names of the leaf switches, where not all adapters are at leaves.

    previous: of before a failure; what does not touch the failure keeps its ways.
    """
    level = levels(graph, leaves)
    why = no_tree(graph, level)
    if not why:
        tree = Tree(graph, level, previous)
        broken = sum(tree.paths.updown(s) for s in range(len(graph.switches)) if graph.has_hosts[s])
        if not broken:
            flat = tree.tables()
            return Routing(
                graph, "ftree", cut(flat, graph.width), slots=tree.remember(), numbers=tree.numbers
            )
        why = f"{broken} pairs of switches have no way that goes up and then down"
    routing = updn(graph, lanes, previous)
    routing.warnings.insert(0, f"this is no fat tree: {why}; routed up*/down* instead")
    return routing


class Tree:
    """A ranked fabric: the order of parents, of ports upward, and of hosts."""

    def __init__(self, graph: RoutingGraph, level: list[int], previous: Routing | None = None) -> None:
        remembered = {} if previous is None else previous.slots
        self.graph = graph
        self.level = level
        self.paths = Trunks(graph)
        n = len(graph.switches)
        self.up: list[list[tuple[int, int]]] = [
            [(t, port) for port, t, _ in graph.neighbours(s) if level[t] > level[s]] for s in range(n)
        ]
        self.order = sorted(range(n), key=lambda s: (-level[s], s))
        position = [0] * n
        for place, s in enumerate(self.order):
            position[s] = place
        self.paths.set_order(position)
        self.standing = self._standings()
        self.slots = [self._slots(s, remembered.get(graph.switches[s], [])) for s in range(n)]
        self._divide()
        self.numbers = self._number({} if previous is None else previous.numbers)

    def _standings(self) -> list[int]:
        """A number for each switch by which siblings are in the same order wherever they are.

        From the top: switches with the same parents follow one another, in the order of those parents.
        """
        standing = [0] * len(self.level)
        above: dict[int, list[int]] = {}
        for s in self.order:
            above.setdefault(self.level[s], []).append(s)
        for rank in sorted(above, reverse=True):
            line = sorted(above[rank], key=lambda s: (sorted({standing[t] for t, _ in self.up[s]}), s))
            for place, s in enumerate(line):
                standing[s] = place
        return standing

    def _slots(self, s: int, remembered: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """The ports upward as (parent, port): first one to each parent, then the second ones, and so on.

        The order before a failure stays, with gaps, until something comes that was not there.
        """
        copies: dict[int, int] = {}
        line = []
        for t, port in sorted(self.up[s], key=lambda at: (self.standing[at[0]], at[1])):
            copies[t] = copies.get(t, -1) + 1
            line.append((copies[t], self.standing[t], t, port))
        now = [(self.graph.switches[t], port) for _, _, t, port in sorted(line)]
        return remembered if set(now) <= set(remembered) else now

    def _divide(self) -> None:
        """Parents of each switch, and by what a destination's number is divided on its level."""
        names = [{parent for parent, _ in slots} for slots in self.slots]
        self.parents = array("i", [max(1, len(those)) for those in names])
        most: dict[int, int] = {}
        for s, rank in enumerate(self.level):
            most[rank] = max(most.get(rank, 1), self.parents[s])
        product, by = 1, {}
        for rank in sorted(most):
            by[rank] = min(product, 1 << 20)
            if rank >= 0:
                product *= most[rank]
        self.divisor = array("i", [by[rank] for rank in self.level])

    def remember(self) -> dict[str, list[tuple[str, int]]]:
        return {self.graph.switches[s]: slots for s, slots in enumerate(self.slots) if slots}

    def _flat_slots(self) -> tuple[array[int], array[int]]:
        """Channels of the slots of all switches, one after another; -1 where the cable is gone."""
        first, flat = array("i", [0]), array("i")
        for s, slots in enumerate(self.slots):
            alive = {(self.graph.switches[t], port) for t, port in self.up[s]}
            flat.extend(self.graph.first[s] + slot[1] if slot in alive else -1 for slot in slots)
            first.append(len(flat))
        flat.append(-1)  # never empty
        return first, flat

    def leaf_order(self) -> list[int]:
        """All switches, those of one subtree together: of one part of what is left without the levels above."""
        n = len(self.level)
        key: list[tuple[int, ...]] = [() for _ in range(n)]
        for rank in range(max(self.level), -1, -1):
            head = [-1] * n
            for s in range(n):
                if head[s] < 0 and 0 <= self.level[s] <= rank:
                    head[s] = s
                    edge = [s]
                    for u in edge:
                        for _, t, _ in self.graph.neighbours(u):
                            if head[t] < 0 and self.level[t] <= rank:
                                head[t] = s
                                edge.append(t)
            for s in range(n):
                key[s] = (*key[s], head[s])
        return sorted(range(n), key=lambda s: (key[s], s))

    def tables(self) -> bytearray:
        """All switches' entries for all LIDs."""
        graph = self.graph
        flat = blank(graph)
        first, slots = self._flat_slots()
        order = array("i", self.order)
        for s, numbered in self.numbered():
            self.paths.updown(s)
            for number, end in numbered:
                self.paths.assign_tree(
                    flat,
                    graph.width,
                    s,
                    end.port,
                    end.lid,
                    1 << end.lmc,
                    number,
                    order,
                    first,
                    slots,
                    self.divisor,
                    self.parents,
                )
        return flat

    def numbered(self) -> list[tuple[int, list[tuple[int, End]]]]:
        """The destinations of each switch, with their numbers."""
        return [
            (s, [(self.numbers[end.name], end) for end in ends]) for s, ends in ends_by_switch(self.graph)
        ]

    def _number(self, remembered: dict[str, int]) -> dict[str, int]:
        """Number the adapters leaf by leaf, and likewise the switches, which have LIDs, too.

        The numbers before a failure stay, until an end comes that was not there.
        """
        at = dict(ends_by_switch(self.graph))
        numbers: dict[str, int] = {}
        adapters = switches = 0
        for s in self.leaf_order():
            for end in at.get(s, []):
                if end.port:
                    numbers[end.name] = adapters
                    adapters += 1
                else:
                    numbers[end.name] = switches
                    switches += 1
        return remembered if numbers.keys() <= remembered.keys() else numbers
