"""Regular topologies: star, mesh, torus, trees, dragonfly.  Pure functions: sizes in, a `Topology` out.

Each node says in its `extras` where it stands in the shape, for routing engines and pictures:

* trees: ``level`` (0: the hosts, 1: the switches they are plugged into, ...), ``position`` (within the level),
  ``digits`` (most significant first), and in a three-level tree ``pod``;
* mesh and torus: ``coordinates``, ``dimensions``, ``wraps`` (a torus); a host has those of its switch and ``slot``;
* dragonfly: ``group``, ``router`` (within the group); a host has those of its switch and ``slot``.

Sources: extended generalized fat trees: Öhring et al., IPPS 1995; k-ary n-trees: Petrini and Vanneschi, IPPS 1997;
three-level fat tree of k-port switches: Al-Fares et al., SIGCOMM 2008; tori: Dally and Towles, Principles and Practices
of Interconnection Networks, chapter 5; dragonfly: Kim et al., ISCA 2008, its palm-tree wiring: Camarero et al., ACM
TACO 11(4), 2014.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from verbena.fabric.rates import LinkRate
from verbena.fabric.topology import DEFAULT_RATE, LARGEST_SWITCH, Node, PortId, Topology, TopologyError

LARGEST_FABRIC = 0xBFFF  # unicast LIDs of one subnet (IBA vol. 1, 4.1.3)


@dataclass(frozen=True, slots=True)
class Cable:
    """What all links of a generated topology have in common.  delay_ns: one way."""

    rate: LinkRate = DEFAULT_RATE
    delay_ns: int = 100


def at_least(parameter: str, value: int, least: int, most: int = LARGEST_FABRIC) -> None:
    """Raises `TopologyError`, naming the parameter, unless least <= value <= most."""
    if not least <= value <= most:
        raise TopologyError(f"{parameter} is {value}; it must be from {least} to {most}")


def room(parameter: str, nodes: int) -> None:
    """Raises `TopologyError` for more nodes than a subnet has LIDs; `parameter` names what made them so many."""
    if nodes > LARGEST_FABRIC:
        raise TopologyError(
            f"{parameter} would make {nodes:,} nodes; a subnet has room for {LARGEST_FABRIC:,} LIDs"
        )


def radix(parameter: str, ports: int) -> None:
    """Raises `TopologyError` for a switch with more ports than a forwarding table can name."""
    if ports > LARGEST_SWITCH:
        raise TopologyError(
            f"{parameter} would need switches with {ports} ports; there are at most {LARGEST_SWITCH}"
        )


def _link(topology: Topology, cable: Cable, a: Node, a_port: int, b: Node, b_port: int) -> None:
    topology.connect(PortId(a.name, a_port), PortId(b.name, b_port), rate=cable.rate, delay_ns=cable.delay_ns)


def back_to_back(cable: Cable, ports: int = 1) -> Topology:
    """Two hosts, port n of one joined to port n of the other."""
    at_least("ports", ports, 1, 255)
    topology = Topology("back-to-back")
    a, b = topology.add_host("h0", ports), topology.add_host("h1", ports)
    for port in range(1, ports + 1):
        _link(topology, cable, a, port, b, port)
    for position, node in enumerate((a, b)):
        node.extras.update(level=0, position=position)
    return topology


def star(cable: Cable, hosts: int) -> Topology:
    """One switch with `hosts` hosts: host n is at port n + 1."""
    at_least("hosts", hosts, 1, LARGEST_SWITCH)
    topology = xgft(cable, [hosts], [1])
    topology.name = "star"
    return topology


def grid(cable: Cable, dimensions: Sequence[int], wraps: bool, hosts: int = 1) -> Topology:
    """A mesh, or a torus if `wraps`, with `hosts` hosts at each switch.

    dimensions: number of switches along each.  In dimension i port 2i + 1 of a switch leads up, port 2i + 2 down; hosts
    follow.  A dimension of 2 has one link, wrapped or not (a k-ary n-cube with k = 2 is a hypercube).
    """
    if not dimensions or min(dimensions) < 1:
        raise TopologyError(f"dimensions is {list(dimensions)}; it must be sizes of 1 or more, such as 4x4")
    at_least("hosts", hosts, 0, LARGEST_SWITCH)
    room("dimensions", math.prod(dimensions) * (1 + hosts))
    radix("dimensions", 2 * len(dimensions) + hosts)
    topology = Topology("torus" if wraps else "mesh")
    shape = tuple(dimensions)
    switches: dict[tuple[int, ...], Node] = {}
    for at in itertools.product(*map(range, shape)):
        label = "-".join(map(str, at))
        switch = topology.add_switch(f"s{label}", max(1, 2 * len(shape) + hosts))
        switch.extras.update(coordinates=at, dimensions=shape, wraps=wraps)
        switches[at] = switch
        for slot in range(hosts):
            host = topology.add_host(f"h{label}" if hosts == 1 else f"h{label}.{slot}")
            host.extras.update(coordinates=at, dimensions=shape, wraps=wraps, slot=slot)
            _link(topology, cable, host, 1, switch, 2 * len(shape) + 1 + slot)
    for at, switch in switches.items():
        for axis, size in enumerate(shape):
            if at[axis] + 1 < size or (wraps and size > 2):
                up = (*at[:axis], (at[axis] + 1) % size, *at[axis + 1 :])
                _link(topology, cable, switch, 2 * axis + 1, switches[up], 2 * axis + 2)
    return topology


def line(cable: Cable, switches: int, hosts: int = 1) -> Topology:
    """Switches one after another: port 1 leads on, port 2 back."""
    at_least("switches", switches, 1)
    topology = grid(cable, [switches], False, hosts)
    topology.name = "line"
    return topology


def ring(cable: Cable, switches: int, hosts: int = 1) -> Topology:
    """Switches in a circle: port 1 leads on, port 2 back."""
    at_least("switches", switches, 3)
    topology = grid(cable, [switches], True, hosts)
    topology.name = "ring"
    return topology


def fat_tree(cable: Cable, k: int, oversubscription: int = 1) -> Topology:
    """Three levels of k-port switches: k^3 / 4 hosts, 5 k^2 / 4 switches, 3 k^3 / 4 links.

    oversubscription: r to 1 at the lowest switches: each has k r / (r + 1) hosts and k / (r + 1) ways up.
    """
    if k < 2 or k % 2:
        raise TopologyError(f"k is {k}; a fat tree has switches with an even number of ports, 2 or more")
    radix("k", k)
    at_least("oversubscription", oversubscription, 1)
    if k % (oversubscription + 1):
        raise TopologyError(
            f"oversubscription is {oversubscription}; oversubscription + 1 must divide the {k} ports of a switch"
        )
    up = k // (oversubscription + 1)
    down, ups = [k - up, k // 2, k], [1, up, k // 2]
    room("k", sum(_sizes(down, ups)))
    topology = xgft(cable, down, ups)
    topology.name = "fat-tree"
    for node in topology.nodes.values():
        digits = node.extras["digits"]
        if node.extras["level"] != 3 and isinstance(digits, tuple):
            node.extras["pod"] = digits[0]
    return topology


def k_ary_n_tree(cable: Cable, k: int, n: int, oversubscription: int = 1) -> Topology:
    """n levels of k^(n-1) switches with k ports down and, but for the highest, k ports up; k^n hosts.

    oversubscription: r to 1 at the lowest switches, which have r k hosts each.
    """
    at_least("k", k, 1)
    at_least("n", n, 1, 16)
    at_least("oversubscription", oversubscription, 1)
    down, up = [k * oversubscription, *[k] * (n - 1)], [1, *[k] * (n - 1)]
    room("k, n", sum(_sizes(down, up)))
    radix("k", k * oversubscription + (k if n > 1 else 0))
    topology = xgft(cable, down, up)
    topology.name = "k-ary-n-tree"
    return topology


def xgft(cable: Cable, down: Sequence[int], up: Sequence[int]) -> Topology:
    """An extended generalized fat tree, XGFT(n; m_1 ... m_n; w_1 ... w_n).

    down: m_i, the children of each switch of level i; up: w_i, the parents of each node of level i - 1 (w_1: ports of a
    host).  Ports of a switch: 1 to m_i down, those behind up.  Level i has w_1 ... w_i * m_(i+1) ... m_n nodes.
    """
    n = len(down)
    if not down or len(up) != n or min(*down, *up) < 1:
        raise TopologyError(
            f"down is {list(down)}, up is {list(up)}; they must be as long as the tree has levels, of 1 or more each"
        )
    room("down, up", sum(_sizes(down, up)))
    radix("down", max(m + w for m, w in zip(down, [*up[1:], 0], strict=True)))
    at_least("up", up[0], 1, 255)
    topology = Topology("xgft")
    levels: list[dict[tuple[int, ...], Node]] = []
    for level in range(n + 1):
        bases = [
            *down[level:][::-1],
            *up[:level][::-1],
        ]  # a node's digits: x_n ... x_(level+1), y_level ... y_1
        nodes: dict[tuple[int, ...], Node] = {}
        for position, digits in enumerate(itertools.product(*map(range, bases))):
            if level == 0:
                node = topology.add_host(f"h{position}", up[0])
            else:
                node = topology.add_switch(
                    f"s{level}-{position}", down[level - 1] + (up[level] if level < n else 0)
                )
            node.extras.update(level=level, position=position, digits=digits)
            nodes[digits] = node
        levels.append(nodes)
    for level in range(n):
        above, first = n - level - 1, 0 if level == 0 else down[level - 1]
        for digits, node in levels[level].items():
            for way in range(up[level]):
                parent = levels[level + 1][(*digits[:above], way, *digits[above + 1 :])]
                _link(topology, cable, node, first + way + 1, parent, digits[above] + 1)
    return topology


def _sizes(down: Sequence[int], up: Sequence[int]) -> list[int]:
    """How many nodes each level of a tree has."""
    return [math.prod(up[:level]) * math.prod(down[level:]) for level in range(len(down) + 1)]


def dragonfly(
    cable: Cable, p: int, a: int, h: int, groups: int = 0, arrangement: str = "palmtree"
) -> Topology:
    """Groups of `a` switches, each with p hosts, a link to each other switch of its group, and h links to other groups.

    groups: at most (and by default) a h + 1; with fewer, each pair of groups is joined by the same number of links, and
    what is left of the ports stays free.  arrangement: which global link joins which groups, "palmtree" or
    "consecutive".  Ports of a switch: hosts, then its group, then other groups.  Balanced: a = 2 p = 2 h.
    """
    for name, value, least in (("p", p, 0), ("a", a, 1), ("h", h, 1)):
        at_least(name, value, least, LARGEST_SWITCH)
    radix("p + a - 1 + h", p + a - 1 + h)
    if groups == 0:
        groups = a * h + 1
    at_least("groups", groups, 2, a * h + 1)
    room("groups", groups * a * (p + 1))
    if arrangement not in ("palmtree", "consecutive"):
        raise TopologyError(f"arrangement is {arrangement!r}; it must be palmtree or consecutive")
    topology = Topology("dragonfly")
    switches: list[list[Node]] = []
    for group in range(groups):
        switches.append([])
        for router in range(a):
            switch = topology.add_switch(f"g{group}-r{router}", p + a - 1 + h)
            switch.extras.update(group=group, router=router)
            switches[group].append(switch)
            for slot in range(p):
                host = topology.add_host(f"g{group}-r{router}-h{slot}")
                host.extras.update(group=group, router=router, slot=slot)
                _link(topology, cable, host, 1, switch, slot + 1)
        for one, other in itertools.combinations(range(a), 2):
            _link(topology, cable, switches[group][one], p + other, switches[group][other], p + one + 1)
    first = p + a
    for group, near in itertools.product(range(groups), range((a * h) // (groups - 1) * (groups - 1))):
        other, far = _global_link(group, near, groups, arrangement)
        if group < other:
            ends = switches[group][near // h], switches[other][far // h]
            _link(topology, cable, ends[0], first + near % h, ends[1], first + far % h)
    return topology


def _global_link(group: int, near: int, groups: int, arrangement: str) -> tuple[int, int]:
    """Where the global link number `near` of a group leads: to which group, and which number it has there."""
    turn, step = divmod(near, groups - 1)
    if arrangement == "palmtree":
        other, far = (group - step - 1) % groups, groups - 2 - step
    else:
        other = step if step < group else step + 1
        far = group if group < other else group - 1
    return other, turn * (groups - 1) + far
