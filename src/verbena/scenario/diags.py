"""What iblinkinfo, ibstat, perfquery, ibtracert, ibhosts and ibswitches of infiniband-diags print, from plain data.

Byte for byte in their habit (iblinkinfo.c, ibstat.c, perfquery.c, ibtracert.c and the scripts of infiniband-diags;
values as libibmad's dump.c prints them), so that what reads their output reads this.  Where the data comes from,
management datagrams or counters of a simulation, is the caller's business.  Every function returns the whole text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from verbena.errors import InvalidAttributeError
from verbena.fabric.ibnetdiscover_text import clean
from verbena.fabric.rates import SIGNAL_GBPS, LinkRate, Speed, Width
from verbena.fabric.topology import DEFAULT_RATE, Node, NodeKind

PORT_DOWN, PORT_INIT, PORT_ARMED, PORT_ACTIVE = 1, 2, 3, 4  # PortInfo:PortState
POLLING, LINK_UP = 2, 5  # PortInfo:PortPhysicalState

_STATES = ("NoChange", "Down", "Initialize", "Armed", "Active")
_IBSTAT_STATES = ("???", "Down", "Initializing", "Armed", "Active")
_PHYSICAL = (
    "NoChange",
    "Sleep",
    "Polling",
    "Disabled",
    "PortConfigurationTraining",
    "LinkUp",
    "LinkErrorRecovery",
    "PhyTest",
)
_IBSTAT_PHYSICAL = ("No state change", *_PHYSICAL[1:])
_KINDS = {NodeKind.CA: "CA", NodeKind.SWITCH: "Switch", NodeKind.ROUTER: "Router"}
_LINUX_RATE = {
    Speed.SDR: 25,
    Speed.DDR: 50,
    Speed.QDR: 100,
    Speed.FDR10: 100,
    Speed.FDR: 140,
    Speed.EDR: 250,
    Speed.HDR: 500,
    Speed.NDR: 1000,
}  # tenths of a Gb/s of one lane, as Linux counts (drivers/infiniband/core/sysfs.c)


@dataclass(frozen=True, slots=True)
class PortStatus:
    """A port of an adapter, a switch or a router.

    state: of PORT_DOWN to PORT_ACTIVE; physical_state: PortInfo:PortPhysicalState, 0 to 7.  lid, lmc: of the port, for
    a switch of its port 0.  widths, speeds: those that it supports.  capability_mask: PortInfo:CapabilityMask.
    """

    number: int
    guid: int
    state: int = PORT_DOWN
    physical_state: int = POLLING
    rate: LinkRate = DEFAULT_RATE
    lid: int = 0
    lmc: int = 0
    sm_lid: int = 0
    capability_mask: int = 0
    widths: frozenset[Width] = frozenset()
    speeds: frozenset[Speed] = frozenset()
    link_layer: str = "InfiniBand"


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """A port, and the port at the other end of its link with the name of its node; None: not seen."""

    port: PortStatus
    peer: PortStatus | None = None
    peer_name: str = ""


@dataclass(frozen=True, slots=True)
class NodeLinks:
    """A node and its links, by port."""

    kind: NodeKind
    guid: int
    name: str
    links: Sequence[LinkStatus]


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """A channel adapter.  type: of the device; firmware, hardware: versions."""

    name: str
    node_guid: int
    system_guid: int
    ports: Sequence[PortStatus]
    type: str = "Verbena"
    firmware: str = ""
    hardware: str = "0"


@dataclass(frozen=True, slots=True)
class CounterSet:
    """Performance counters of a port, by the names of `COUNTERS` and `EXTENDED_COUNTERS`; those left out are 0.

    capability_mask, capability_mask2: of the performance manager's ClassPortInfo.
    """

    lid: int
    port: int
    values: Mapping[str, int] = field(default_factory=dict)
    capability_mask: int = 0
    capability_mask2: int = 0


@dataclass(frozen=True, slots=True)
class Hop:
    """A port on a path.  out_port: the port by which the node before was left (0 for the first).

    port, guid: where the node was entered; for a switch the port's GUID is the node's.  lid, lmc: of that port, or of
    the switch.
    """

    out_port: int
    kind: NodeKind
    node_guid: int
    guid: int
    port: int
    lid: int
    lmc: int
    name: str


# --- iblinkinfo -------------------------------------------------------------------------------------------------


def iblinkinfo(nodes: Iterable[NodeLinks], *, line: bool = False, down_only: bool = False) -> str:
    """Every port and what it is linked to.  line: as with -l, everything in a line; down_only: as with -d."""
    text = []
    for node in nodes:
        shown = [link for link in node.links if not down_only or link.port.state == PORT_DOWN]
        if shown and not line:
            guid = f" 0x{node.guid:016x}" if node.kind is NodeKind.SWITCH else ""
            text.append(f"{_KINDS[node.kind]}:{guid} {clean(node.name)}:\n")
        text += [_linkinfo(node, link, line) for link in shown]
    return "".join(text)


def _linkinfo(node: NodeLinks, link: LinkStatus, line: bool) -> str:
    port = link.port
    if line:
        start = f'0x{port.guid:016x} "{clean(node.name):>30}" '
    else:
        start = "      " + (f"0x{port.guid:016x} " if node.kind is not NodeKind.SWITCH else "")
    state = f"{_named(_STATES, port.state):>6}/{_named(_PHYSICAL, port.physical_state):>8}"
    if port.state == PORT_DOWN:
        how = f"(              {state})"
    else:
        how = f"({_width(port.rate.width):>3} {_speed(port.rate.speed):>18} {state})"
    if link.peer is not None:
        guid = f"0x{link.peer.guid:016x} " if line else ""
        could = " ".join(_could_be(port, link.peer))
        there = f'{guid}{link.peer.lid:6} {link.peer.number:4}[  ] "{clean(link.peer_name)}" ({could})'
    else:
        there = '           [  ] "" ( )' if port.state == PORT_DOWN else '    "Port not available"'
    return f"{start}{port.lid:6} {port.number:4}[  ] =={how}==>  {there}\n"


def _named(names: Sequence[str], value: int, other: str = "?({})") -> str:
    return names[value] if 0 <= value < len(names) else other.format(value)


def _width(width: Width) -> str:
    return f"{width.lanes}X"


def _speed(speed: Speed) -> str:
    return "10.0 Gbps (FDR10)" if speed is Speed.FDR10 else f"{SIGNAL_GBPS[speed]} Gbps"


def _could_be(port: PortStatus, peer: PortStatus) -> tuple[str, str]:
    """What the link falls short of, by width and by speed; nothing of what both ends do not support."""
    width = speed = ""
    widths = port.widths & peer.widths
    if widths:
        # The tools look for 12x, 8x, 4x, then 2x.
        best = max(widths, key=lambda width: width.lanes)
        if best is not port.rate.width:
            width = f"Could be {_width(best)}"
    speeds = port.speeds & peer.speeds
    if speeds and (fastest := max(speeds)) is not port.rate.speed:
        speed = f"Could be {'FDR10' if fastest is Speed.FDR10 else _speed(fastest)}"
        if fastest is Speed.FDR10 and port.rate.speed is Speed.QDR:
            speed += " (Found link at QDR but expected speed is FDR10)"
    return width, speed


# --- ibstat -----------------------------------------------------------------------------------------------------


def ibstat(adapter: AdapterStatus, port: int | None = None) -> str:
    """An adapter with all its ports, or only one port of it; raises `InvalidAttributeError` if it has no such port."""
    if port is not None:
        found = next((status for status in adapter.ports if status.number == port), None)
        if found is None:
            raise InvalidAttributeError(f"{adapter.name} has no port {port}: it has {len(adapter.ports)}")
        return f"CA: '{adapter.name}'\n" + _ibstat_port(found, "", "")
    head = (
        f"CA '{adapter.name}'\n"
        f"\tCA type: {adapter.type}\n"
        f"\tNumber of ports: {len(adapter.ports)}\n"
        f"\tFirmware version: {adapter.firmware}\n"
        f"\tHardware version: {adapter.hardware}\n"
        f"\tNode GUID: 0x{adapter.node_guid:016x}\n"
        f"\tSystem image GUID: 0x{adapter.system_guid:016x}\n"
    )
    return head + "".join(_ibstat_port(status, "\t", "\t\t") for status in adapter.ports)


def _ibstat_port(port: PortStatus, outer: str, inner: str) -> str:
    rows = (
        f"State: {_named(_IBSTAT_STATES, port.state, '???')}",
        f"Physical state: {_named(_IBSTAT_PHYSICAL, port.physical_state, '???')}",
        f"Rate: {_rate(port.rate)}",
        f"Base lid: {port.lid}",
        f"LMC: {port.lmc}",
        f"SM lid: {port.sm_lid}",
        f"Capability mask: 0x{port.capability_mask:08x}",
        f"Port GUID: 0x{port.guid:016x}",
        f"Link layer: {port.link_layer}",
    )
    return f"{outer}Port {port.number}:\n" + "".join(f"{inner}{row}\n" for row in rows)


def _rate(rate: LinkRate) -> str:
    """Gb/s as Linux rounds them down; only 1x SDR keeps its fraction."""
    if rate == LinkRate(Width.X1, Speed.SDR):
        return "2.5"
    number = _LINUX_RATE[rate.speed] * rate.width.lanes // 10
    return f"{number} (FDR10)" if rate.speed is Speed.FDR10 else str(number)


# --- perfquery --------------------------------------------------------------------------------------------------

EXTENDED_WIDTH = 0x0200  # ClassPortInfo:CapabilityMask: all extended counters, not only the first four
ADDITIONAL_EXTENDED = 0x2  # CapabilityMask2: extended error counters

COUNTERS: dict[str, int] = {
    "SymbolErrorCounter": 16,
    "LinkErrorRecoveryCounter": 8,
    "LinkDownedCounter": 8,
    "PortRcvErrors": 16,
    "PortRcvRemotePhysicalErrors": 16,
    "PortRcvSwitchRelayErrors": 16,
    "PortXmitDiscards": 16,
    "PortXmitConstraintErrors": 8,
    "PortRcvConstraintErrors": 8,
    "CounterSelect2": 8,
    "LocalLinkIntegrityErrors": 4,
    "ExcessiveBufferOverrunErrors": 4,
    "QP1Dropped": 16,
    "VL15Dropped": 16,
    "PortXmitData": 32,
    "PortRcvData": 32,
    "PortXmitPkts": 32,
    "PortRcvPkts": 32,
    "PortXmitWait": 32,
}
"""Fields of PortCounters in the order in which they are shown, with their bits (IBA vol. 1, 16.1.3.5)."""

EXTENDED_COUNTERS: dict[str, int] = dict.fromkeys(
    (
        "PortXmitData",
        "PortRcvData",
        "PortXmitPkts",
        "PortRcvPkts",
        "PortUnicastXmitPkts",
        "PortUnicastRcvPkts",
        "PortMulticastXmitPkts",
        "PortMulticastRcvPkts",
    ),
    64,
)
"""Fields of PortCountersExtended (IBA vol. 1, 16.1.4.11); the last four need `EXTENDED_WIDTH`."""

EXTENDED_ERRORS: dict[str, int] = {
    "CounterSelect2": 32,
    **dict.fromkeys([name for name, _ in list(COUNTERS.items())[:9]], 64),
    "LocalLinkIntegrityErrors": 64,
    "ExcessiveBufferOverrunErrors": 64,
    "VL15Dropped": 64,
    "PortXmitWait": 64,
    "QP1Dropped": 64,
}
"""Further fields of PortCountersExtended; they need `ADDITIONAL_EXTENDED`."""


def perfquery(counters: CounterSet) -> str:
    """PortCounters.  A counter that would not fit stands at its greatest value, as in the datagram."""
    head = f"# Port counters: Lid {counters.lid} port {counters.port} (CapMask: 0x{counters.capability_mask:02X})\n"
    return head + _selects(counters) + _fields(COUNTERS, counters.values)


def perfquery_extended(counters: CounterSet) -> str:
    """PortCountersExtended, as with -x."""
    fields = list(EXTENDED_COUNTERS.items())
    text = (
        f"# Port extended counters: Lid {counters.lid} port {counters.port} "
        f"(CapMask: 0x{counters.capability_mask:02X} CapMask2: 0x{counters.capability_mask2:07X})\n"
    )
    text += _selects(counters) + _fields(dict(fields[:4]), counters.values)
    if counters.capability_mask & EXTENDED_WIDTH:
        text += _fields(dict(fields[4:]), counters.values)
    if counters.capability_mask2 & ADDITIONAL_EXTENDED:
        text += _fields(EXTENDED_ERRORS, counters.values)
    return text


def _selects(counters: CounterSet) -> str:
    select = counters.values.get("CounterSelect", 0)
    return dotted("PortSelect", str(counters.port)) + dotted("CounterSelect", f"0x{select:04x}")


def _fields(fields: Mapping[str, int], values: Mapping[str, int]) -> str:
    text = []
    for name, bits in fields.items():
        value = min(values.get(name, 0), (1 << bits) - 1)
        text.append(dotted(name, f"0x{value:0{bits // 4}x}" if name == "CounterSelect2" else str(value)))
    return "".join(text)


def dotted(name: str, value: str) -> str:
    """A field as libibmad prints it: the value in column 34, dots before it."""
    return f"{name}:{'.' * (32 - len(name))}{value}\n"


# --- ibtracert, ibhosts, ibswitches, ibrouters ------------------------------------------------------------------


def ibtracert(hops: Sequence[Hop], *, numeric: bool = False) -> str:
    """A path from its first port to its last, of at least one hop.  numeric: as with -n, no descriptions.

    A path that ends at a switch ends at its port 0.
    """
    return "".join(
        [
            _end("From", hops[0], numeric),
            *(_hop(hop, numeric) for hop in hops[1:]),
            _end("To", hops[-1], numeric),
        ]
    )


def _end(prompt: str, hop: Hop, numeric: bool) -> str:
    port = 0 if hop.kind is NodeKind.SWITCH else hop.port
    if numeric:
        return f"{prompt} {{0x{hop.node_guid:016x}}}[{port}]\n"
    return f"{prompt} {_KINDS[hop.kind].lower()} {{0x{hop.node_guid:016x}}} portnum {port} {_lids(hop)}\n"


def _hop(hop: Hop, numeric: bool) -> str:
    kind = "" if numeric else f"{_KINDS[hop.kind].lower()} port "
    rest = "" if numeric else f" {_lids(hop)}"
    return f"[{hop.out_port}] -> {kind}{{0x{hop.guid:016x}}}[{hop.port}]{rest}\n"


def _lids(hop: Hop) -> str:
    return f'lid {hop.lid}-{hop.lid + (1 << hop.lmc) - 1} "{clean(hop.name)}"'


def ibhosts(nodes: Iterable[Node]) -> str:
    """The channel adapters among some nodes."""
    return "".join(_listed("Ca", node) + "\n" for node in nodes if node.kind is NodeKind.CA)


def ibrouters(nodes: Iterable[Node]) -> str:
    """The routers among some nodes."""
    return "".join(_listed("Rt", node) + "\n" for node in nodes if node.kind is NodeKind.ROUTER)


def ibswitches(nodes: Iterable[Node]) -> str:
    """The switches among some nodes."""
    return "".join(
        f"{_listed('Switch', node)} {'enhanced' if node.extras.get('enhanced_port_0') else 'base'} port 0 "
        f"lid {node.base_lid} lmc {node.lmc}\n"
        for node in nodes
        if node.kind is NodeKind.SWITCH
    )


def _listed(word: str, node: Node) -> str:
    return f'{word}\t: 0x{node.guid:016x} ports {node.ports} "{clean(node.description)}"'
