"""A topology, built: every node and port of a `Topology` in a `FabricCore`, by name.

Cables can be pulled and plugged, nodes taken down and up again, while packets are on their way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from verbena.errors import InvalidAttributeError
from verbena.fabric.core import FabricCore
from verbena.fabric.topology import MTUS, Link, NodeKind, PortId, Topology, TopologyError

ENDNODE, SWITCH = 0, 1
DOWN, INIT, ARMED, ACTIVE = 1, 2, 3, 4  # PortInfo:PortState


@dataclass(frozen=True, slots=True)
class FabricOptions:
    """How the elements of a fabric are made.

    lanes: data lanes of every port, 1 to 15.  buffer_bytes: of each lane at each input.  switch_latency_ns: from a
    packet's head in to its head out.  cut_through: False = store and forward.  voq: virtual output queues at a
    switch's inputs instead of one queue for each lane.  per_input_tables: a forwarding table for each input port.
    mtu: largest payload, bytes.
    """

    lanes: int = 4
    buffer_bytes: int = 32 << 10
    switch_latency_ns: int = 100
    cut_through: bool = True
    voq: bool = False
    per_input_tables: bool = False
    mtu: int = 4096

    def __post_init__(self) -> None:
        if not 1 <= self.lanes <= 15:
            raise InvalidAttributeError(f"lanes = {self.lanes}: a port has 1 to 15 data lanes")
        if self.mtu not in MTUS:
            raise InvalidAttributeError(f"mtu = {self.mtu}: one of {', '.join(map(str, MTUS))}")
        if self.switch_latency_ns < 0:
            raise InvalidAttributeError(f"switch_latency_ns = {self.switch_latency_ns}: 0 or more")
        if self.buffer_bytes < self.mtu + 128:
            raise InvalidAttributeError(
                f"buffer_bytes = {self.buffer_bytes}: at least a packet with its headers, {self.mtu + 128}"
            )


class Outside(Protocol):
    """What carries the cables that leave for nodes which are not in this core."""

    def plugged(self, port: PortId, link: Link) -> None:
        """A cable was plugged into a port that is here."""

    def pulled(self, port: PortId, link: Link) -> None:
        """It was pulled."""


class Assembly:
    """The elements of a topology in a core.

    `core` is the core; `nodes` and `ports` give its numbers by name and by `PortId` (a switch's own port is 0), `ids`
    the other way.  The topology given is followed when cables are pulled and plugged.  local: the nodes that are built
    here; None: all.  The others are elsewhere, and `outside` is told of the cables that lead there.
    """

    def __init__(
        self,
        topology: Topology,
        options: FabricOptions | None = None,
        *,
        seed: int = 0,
        flits: bool = True,
        local: Collection[str] | None = None,
        outside: Outside | None = None,
    ) -> None:
        if local is not None and (unknown := [name for name in local if name not in topology.nodes]):
            raise TopologyError(f"there is no node {unknown[0]}")
        self.topology = topology
        self._outside = outside
        self.options = options or FabricOptions()
        self.core = FabricCore(seed, flits)
        self.nodes: dict[str, int] = {}
        self.ports: dict[PortId, int] = {}
        self.ids: dict[int, PortId] = {}
        self._down: dict[str, list[Link]] = {}
        for name in topology.nodes:
            if local is None or name in local:
                self._build(name)
        for link in topology.links:
            self._join(link)

    def _build(self, name: str) -> None:
        node, options, core = self.topology.nodes[name], self.options, self.core
        is_switch = node.kind is NodeKind.SWITCH
        number = self.nodes[name] = core.add_node(
            SWITCH if is_switch else ENDNODE,
            latency_ns=options.switch_latency_ns if is_switch else 0,
            cut_through=options.cut_through,
            voq=options.voq,
            per_input=options.per_input_tables,
        )
        if is_switch:
            self._know(PortId(name, 0), core.port(number, 0))
        for port in range(1, node.ports + 1):
            made = core.add_port(
                number, lanes=options.lanes, buffer_bytes=options.buffer_bytes, mtu=options.mtu
            )
            self._know(PortId(name, port), made)

    def _know(self, port: PortId, number: int) -> None:
        self.ports[port] = number
        self.ids[number] = port

    def _join(self, link: Link) -> None:
        here = self._here(link)
        if len(here) < 2:
            if here and self._outside is not None:
                self._outside.plugged(here[0], link)
            return
        self.core.connect(
            self.ports[link.a],
            self.ports[link.b],
            link.rate.bps,
            link.delay_ns,
            bit_error_rate=link.bit_error_rate,
        )

    def _here(self, link: Link) -> list[PortId]:
        """Those ends of a cable that are in this core."""
        return [end for end in (link.a, link.b) if end in self.ports]

    def is_up(self, port: PortId) -> bool:
        """Is there a link?  A switch's own port always has one."""
        return port.port == 0 or self.core.port_state(self.ports[port]) != DOWN

    # --- changes while it runs ----------------------------------------------------------------------------

    def pull(self, end: PortId) -> Link:
        """Pull a cable: what is on it is lost, and counted.  Raises `TopologyError` if there is none."""
        if dead := self._dead_cable(end):
            name, link = dead
            self._down[name].remove(link)
            return link
        link = self.topology.disconnect(end)
        here = self._here(link)
        if len(here) == 2:
            self.core.disconnect(self.ports[link.a])
        elif here and self._outside is not None:
            self._outside.pulled(here[0], link)
        return link

    def plug(self, link: Link) -> Link:
        """Plug a cable in (again); at a node that is off it stays dead until that is on.

        Raises `TopologyError` for a port that does not exist, or that has a cable already, also a dead one.
        """
        for end in (link.a, link.b):
            if dead := self._dead_cable(end):
                raise TopologyError(
                    f"link to {end}: the port has a cable already, to {dead[1].other(end)}; {dead[0]} is off"
                )
        made = self.topology.connect(
            link.a, link.b, rate=link.rate, delay_ns=link.delay_ns, bit_error_rate=link.bit_error_rate
        )
        off = next((end.node for end in (made.a, made.b) if end.node in self._down), None)
        if off is None:
            self._join(made)
        else:
            self._down[off].append(self.topology.disconnect(made.a))
        return made

    def _dead_cable(self, end: PortId) -> tuple[str, Link] | None:
        """The cable in a port, if it is dead because a node is off, and that node."""
        for name, links in self._down.items():
            for link in links:
                if end in (link.a, link.b):
                    return name, link
        return None

    def add(self, name: str) -> None:
        """Build a node that was added to the topology after the start; its cables are plugged with `plug`."""
        if name in self.nodes:
            raise TopologyError(f"node {name} is built already")
        self._build(name)

    def power_off(self, name: str) -> None:
        """All of a node's cables go dead at once; they stay plugged in."""
        self._known(name)
        if name in self._down:
            raise TopologyError(f"node {name} is off already")
        links = self.topology.links_of(name)
        for link in links:
            self.pull(link.a)
        self._down[name] = links

    def power_on(self, name: str) -> None:
        """The node comes back, with those of its cables whose other end is on."""
        self._known(name)
        links = self._down.pop(name, None)
        if links is None:
            raise TopologyError(f"node {name} is on")
        for link in links:
            far = link.b.node if link.a.node == name else link.a.node
            if far in self._down:
                self._down[far].append(link)
            else:
                self.plug(link)

    def _known(self, name: str) -> None:
        if name not in self.topology.nodes:
            raise TopologyError(f"there is no node {name}")

    def is_on(self, name: str) -> bool:
        return name not in self._down

    # --- without management -------------------------------------------------------------------------------

    def load(
        self,
        addresses: dict[PortId, tuple[int, int]],
        tables: Iterable[tuple[str, bytes | bytearray]],
    ) -> None:
        """Set LIDs and forwarding tables directly, and all connected ports active: a fabric without its manager.

        addresses: (base LID, LMC) of each end port, and of each switch at its port 0.  tables: of each switch by name,
        the output port for each LID from 0 on, 255 = none.
        """
        for port, (lid, lmc) in addresses.items():
            self.core.set_lids(self.ports[port], lid, lmc)
        for name, table in tables:
            self.core.set_lft(self.nodes[name], 0, bytes(table))
        for port, number in self.ports.items():
            if port in self.topology.at or port.port == 0:
                self.core.set_state(number, ACTIVE)
