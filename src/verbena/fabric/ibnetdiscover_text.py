"""A topology as `ibnetdiscover` prints it (infiniband-diags; the tabs, blanks and blank lines are the tool's own)."""

from __future__ import annotations

from collections.abc import Iterator

from verbena.fabric.addressing import subnets
from verbena.fabric.topology import Node, NodeKind, PortId, Topology, TopologyError

EPOCH = "Thu Jan  1 00:00:00 1970"
_LETTERS = {NodeKind.SWITCH: "S", NodeKind.CA: "H", NodeKind.ROUTER: "R"}
_KEYS = {NodeKind.SWITCH: "switchguid", NodeKind.CA: "caguid", NodeKind.ROUTER: "rtguid"}
_ORDER = (NodeKind.SWITCH, NodeKind.CA, NodeKind.ROUTER)


def write(topology: Topology, *, source: PortId | None = None, generated: str = EPOCH) -> Iterator[str]:
    """The lines, each with its line end: switches, adapters, routers, each in the topology's order.

    A node that nothing is plugged into is not printed, as nobody could discover it.

    source: the port that the fabric is looked at from; only its subnet is printed, as the tool would.  None:
    everything, as seen from the first adapter that is connected.  generated: the date in the heading, as `time.ctime`
    has it.  Raises `TopologyError` for a source that the topology does not have.
    """
    start = source or _first(topology)
    seen = None if source is None else _visible(topology, source)
    node = topology.nodes[start.node]
    yield "#\n"
    yield f"# Topology file: generated on {generated}\n"
    yield "#\n"
    yield f"# Initiated from node {node.guid:016x} port {node.port_guid(start.port):016x}\n"
    for kind in _ORDER:
        for node in topology.of_kind(kind):
            ports = [
                port
                for number in range(1, node.ports + 1)
                if (port := PortId(node.name, number)) in topology.at and _in(seen, node, number)
            ]
            if ports:
                yield from _node(node)
                for port in ports:
                    yield _port(topology, node, port)


def _first(topology: Topology) -> PortId:
    for node in (*topology.hosts, *topology.nodes.values()):
        for number in range(1, node.ports + 1):
            if PortId(node.name, number) in topology.at:
                return PortId(node.name, 0 if node.kind is NodeKind.SWITCH else number)
    raise TopologyError("a topology without links has nothing to print")


def _visible(topology: Topology, source: PortId) -> set[PortId]:
    for ports in subnets(topology):
        if source in ports:
            return set(ports)
    raise TopologyError(f"{source} is not a connected adapter port, nor a switch's port 0")


def _in(seen: set[PortId] | None, node: Node, number: int) -> bool:
    return seen is None or PortId(node.name, 0 if node.kind is NodeKind.SWITCH else number) in seen


def label(node: Node) -> str:
    """How links name a node: a letter and the GUID."""
    return f'"{_LETTERS[node.kind]}-{node.guid:016x}"'


def clean(description: str) -> str:
    """A description as the tools print it: 63 characters, blanks for what cannot be printed."""
    return "".join(letter if " " <= letter <= "~" else " " for letter in description[:63])


def _node(node: Node) -> Iterator[str]:
    yield f"\nvendid=0x{node.vendor_id:x}\n"
    yield f"devid=0x{node.device_id:x}\n"
    if node.system_guid:
        yield f"sysimgguid=0x{node.system_guid:x}\n"
    if node.kind is NodeKind.SWITCH:
        yield f"switchguid=0x{node.guid:x}({node.guid:x})\n"
        port_0 = "enhanced" if node.extras.get("enhanced_port_0") else "base"
        yield (
            f'Switch\t{node.ports} {label(node)}\t\t# "{clean(node.description)}" '
            f"{port_0} port 0 lid {node.base_lid} lmc {node.lmc}\n"
        )
    else:
        word = "Ca" if node.kind is NodeKind.CA else "Rt"
        yield f"{_KEYS[node.kind]}=0x{node.guid:x}\n"
        yield f'{word}\t{node.ports} {label(node)}\t\t# "{clean(node.description)}"\n'


def _port(topology: Topology, node: Node, port: PortId) -> str:
    link = topology.at[port]
    far = link.other(port)
    peer = topology.nodes[far.node]
    guid = "" if peer.kind is NodeKind.SWITCH else f"({peer.port_guid(far.port):x}) "
    rest = f'"{clean(peer.description)}" lid {peer.lid(far.port)[0]} {link.rate}\n'
    if node.kind is NodeKind.SWITCH:
        return f"[{port.port}]\t{label(peer)}[{far.port}]{guid}\t\t# {rest}"
    lid, lmc = node.lid(port.port)
    mine = f"[{port.port}]({node.port_guid(port.port):x}) \t{label(peer)}[{far.port}]"
    return f"{mine}{' ' if guid else ''}{guid}\t\t# lid {lid} lmc {lmc} {rest}"
