"""What is wrong with a topology: what could not exist is an error, what a real fabric would run with is a warning.

`Topology` refuses what it is told wrongly at once; this looks at a whole topology as it stands, wherever it came from.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from verbena.fabric.addressing import (
    FIRST_UNICAST,
    LARGEST_LMC,
    LAST_UNICAST,
    AddressError,
    LidSpace,
    subnets,
)
from verbena.fabric.topology import LARGEST_SWITCH, Link, NodeKind, PortId, Topology, TopologyError

MOST_HOPS = 63  # a directed route names at most 63 ports (IBA vol. 1, 14.2.1.2)


class Severity(Enum):
    """Whether a fabric could be built like that."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding.  element: the node, port or link, or "" for the whole fabric."""

    severity: Severity
    element: str
    text: str

    def __str__(self) -> str:
        return f"{self.element}: {self.text}" if self.element else self.text


def check(topology: Topology) -> list[Problem]:
    """All that is wrong, errors first."""
    errors = [*_nodes(topology), *_links(topology)]
    if not errors:  # LIDs and ways are looked for only where the links make sense
        errors += _lids(topology)
    found = [Problem(Severity.ERROR, element, text) for element, text in errors]
    if not found:
        found += [Problem(Severity.WARNING, element, text) for element, text in _warnings(topology)]
    return found


def require(topology: Topology, warn: Callable[[str], None] | None = None) -> None:
    """Raise `TopologyError` for the first error; call `warn` with each warning."""
    for problem in check(topology):
        if problem.severity is Severity.ERROR:
            raise TopologyError(str(problem))
        if warn is not None:
            warn(str(problem))


Findings = Iterator[tuple[str, str]]


def _nodes(topology: Topology) -> Findings:
    owners: dict[int, str] = {}
    for name, node in topology.nodes.items():
        most = LARGEST_SWITCH if node.kind is NodeKind.SWITCH else 255
        if not 1 <= node.ports <= most:
            yield repr(node), f"{node.ports} ports; it must have 1 to {most}"
            continue
        if node.name != name:
            yield repr(node), f"it is listed as {name}"
        for guid in {node.guid, *(node.port_guid(port) for port in range(1, node.ports + 1))}:
            if not 0 < guid < 1 << 64:
                yield repr(node), f"GUID {guid:#x} is not from 1 to 2^64 - 1"
            elif guid in owners:
                yield repr(node), f"GUID {guid:#018x} is also {owners[guid]}'s"
            owners[guid] = repr(node)


def _links(topology: Topology) -> Findings:
    used: dict[PortId, Link] = {}
    for link in topology.links:
        what = f"link {link.a} - {link.b}"
        for end in (link.a, link.b):
            node = topology.nodes.get(end.node)
            if node is None:
                yield what, f"there is no node {end.node}"
            elif not 1 <= end.port <= node.ports:
                yield what, f"{node!r} has ports 1 to {node.ports}"
            elif topology.at.get(end) is not link:
                yield what, f"{end} does not know of it"
        if link.a == link.b:
            yield what, "it leads to itself"
        for end in {link.a, link.b}:
            if end in used:
                yield what, f"{end} is also connected to {used[end].other(end)}"
            used[end] = link
        if link.delay_ns < 0 or not 0 <= link.bit_error_rate < 1:
            yield what, f"delay {link.delay_ns} ns, error rate {link.bit_error_rate}: one of them cannot be"


def _lids(topology: Topology) -> Findings:
    room = LAST_UNICAST - FIRST_UNICAST + 1
    for number, ports in enumerate(subnets(topology), 1):
        given = {port: topology.nodes[port.node].lid(port.port) for port in ports}
        wanted = sum(1 << min(lmc, LARGEST_LMC) for _, lmc in given.values())
        if wanted > room:
            yield f"subnet {number}", f"its {len(ports):,} ports need {wanted:,} LIDs, and there are {room:,}"
        space = LidSpace()
        for port, (base, lmc) in given.items():
            if base:
                try:
                    space.keep(str(port), base, lmc)
                except AddressError as error:
                    element, _, text = str(error).partition(": ")
                    yield element, text


def _warnings(topology: Topology) -> Findings:
    for node in topology.nodes.values():
        if not topology.links_of(node.name):
            yield repr(node), "it is not connected to anything"
    for link in topology.links:
        if link.a.node == link.b.node:
            yield f"link {link.a} - {link.b}", "both ends are at the same node"
    yield from _parts(topology)
    rates = Counter(str(link.rate) for link in topology.links)
    if len(rates) > 1:
        counts = ", ".join(f"{count:,} {rate}" for rate, count in rates.most_common())
        yield "", f"links of different rates: {counts}; senders may fill the slower ones"
    if topology.hosts and (hops := _farthest(topology, topology.hosts[0].name)) > MOST_HOPS:
        text = f"the farthest node is {hops} hops away; directed routes, as discovery uses them, go {MOST_HOPS} far"
        yield repr(topology.hosts[0]), text


def _parts(topology: Topology) -> Findings:
    """Connected parts that nothing joins: routers join the subnets that they touch."""
    connected = [name for name in topology.nodes if topology.links_of(name)]
    left, sizes = set(connected), []
    for name in connected:
        if name in left:
            reached = set(_distances(topology, name, through=tuple(NodeKind)))
            sizes.append(len(reached))
            left -= reached
    if len(sizes) > 1:
        told = ", ".join(str(size) for size in sizes[:10]) + (", ..." if len(sizes) > 10 else "")
        yield "", f"the fabric falls into {len(sizes)} parts ({told} nodes) that no link joins"


def _farthest(topology: Topology, name: str) -> int:
    return max(_distances(topology, name, through=(NodeKind.SWITCH,)).values())


def _distances(topology: Topology, start: str, through: tuple[NodeKind, ...]) -> dict[str, int]:
    """Hops from a node to those that it reaches, passing on only through nodes of some kinds."""
    found, edge = {start: 0}, deque([start])
    while edge:
        name = edge.popleft()
        if name != start and topology.nodes[name].kind not in through:
            continue
        for link in topology.links_of(name):
            for end in (link.a, link.b):
                if end.node not in found:
                    found[end.node] = found[name] + 1
                    edge.append(end.node)
    return found
