"""What a routing engine sees of a subnet: switches, the cables between them, and the LIDs behind their ports.

A `RoutingGraph` is made from a `Topology` and the addresses that were given out, or from what a subnet manager found
(the constructor).  It does not change; after a failure a new one is made.  Everything is kept in flat arrays for the
compiled loops: port `p` of switch `s` is *channel* ``first[s] + p``, the direction in which that port sends.

LIDs: 1 to 0xBFFF, 2^LMC of them for each port (IBA vol. 1, 4.1.3 and 7.11.1).
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from verbena.errors import VerbenaError
from verbena.fabric.topology import LARGEST_SWITCH, NodeKind, PortId, Topology

LARGEST_LID = 0xBFFF
LARGEST_LMC = 7
BLOCK = 64  # entries of a block of a forwarding table (IBA vol. 1, 14.2.5.10)
NO_PORT = 255  # of a forwarding table: drop


class RoutingError(VerbenaError):
    """A graph, a table or an option from which no routing can be made; the message names the element."""


@dataclass(frozen=True, slots=True)
class End:
    """Something with LIDs: a port of an adapter or router, or a switch itself (`port` 0).

    lid: the base LID; 2^lmc LIDs from there on lead here.  switch, port: where its cable is plugged in, by the
    switch's index; switch -1 = into no switch of this graph.  name: ``host[1]``, or the switch's name.
    """

    lid: int
    lmc: int
    switch: int
    port: int
    name: str

    @property
    def is_switch(self) -> bool:
        return self.switch >= 0 and self.port == 0

    @property
    def lids(self) -> range:
        return range(self.lid, self.lid + (1 << self.lmc))


class RoutingGraph:
    """One subnet.  switches: names, whose order gives the indices.  ends: in the order of their LIDs.

    first[s] + p: the channel of a port; peer[c]: the channel of the cable's other end, -1 where that is no switch;
    owner[c]: the switch that it belongs to; adjacent[adjacent_first[s]:adjacent_first[s + 1]]: the channels of a
    switch that lead to other switches, by port number.  width: entries of a forwarding table, a multiple of 64.
    """

    def __init__(
        self,
        switches: Sequence[tuple[str, int]],
        links: Iterable[tuple[int, int, int, int]] = (),
        ends: Iterable[End] = (),
        *,
        direct: Iterable[tuple[str, str]] = (),
        coordinates: Sequence[tuple[int, ...] | None] | None = None,
        guids: Sequence[int] | None = None,
    ) -> None:
        """switches: (name, number of ports).  links: (switch, port, switch, port).  direct: names of ends without a
        switch that one cable joins.  coordinates: of each switch in a mesh or torus, where they are known.

        Raises `RoutingError` for a port that does not exist or is used twice, and for LIDs out of range or given twice.
        """
        self.switches = [name for name, _ in switches]
        self.port_count = [ports for _, ports in switches]
        self.index = {name: i for i, name in enumerate(self.switches)}
        if len(self.index) != len(self.switches):
            raise RoutingError("two switches of one name: each needs a name of its own")
        self.coordinates = list(coordinates) if coordinates is not None else [None] * len(self.switches)
        self.guids = list(guids) if guids is not None else [0] * len(self.switches)
        self.first = array("i", [0])
        self.owner = array("i")
        for s, ports in enumerate(self.port_count):
            if not 1 <= ports <= LARGEST_SWITCH:
                raise RoutingError(
                    f"switch {self.switches[s]}: {ports} ports; it must have 1 to {LARGEST_SWITCH}"
                )
            self.first.append(self.first[-1] + ports + 1)
            self.owner.extend([s] * (ports + 1))
        self.channels = self.first[-1]
        self.peer = array("i", [-1]) * self.channels
        self._taken: dict[int, str] = {}
        for link in links:
            self._link(*link)
        self._list_neighbours()
        self.ends = sorted(ends, key=lambda end: (end.lid, end.name))
        self._place_ends()
        self.direct = {a: b for pair in direct for a, b in (pair, pair[::-1])}

    # --- making -------------------------------------------------------------------------------------------------

    def _claim(self, s: int, port: int, what: str) -> int:
        if not 0 <= s < len(self.switches):
            raise RoutingError(f"{what}: there is no switch number {s}")
        name = self.switches[s]
        if not 0 <= port <= self.port_count[s]:
            raise RoutingError(f"{what}: switch {name} has ports 1 to {self.port_count[s]}, not {port}")
        channel = self.first[s] + port
        if channel in self._taken:
            raise RoutingError(f"{what}: {name}[{port}] is already connected, to {self._taken[channel]}")
        self._taken[channel] = what
        return channel

    def _link(self, s: int, port: int, t: int, other: int) -> None:
        if port == 0 or other == 0:
            raise RoutingError("a link at port 0 of a switch: cables are plugged into ports 1 and up")
        a = self._claim(s, port, f"link from port {port} of switch number {s}")
        b = self._claim(t, other, f"link to {self.switches[s]}[{port}]")
        self.peer[a], self.peer[b] = b, a

    def _list_neighbours(self) -> None:
        self.adjacent_first = array("i", [0])
        self.adjacent = array("i")
        peer, owner = self.peer, self.owner
        for s in range(len(self.switches)):
            for channel in range(self.first[s] + 1, self.first[s + 1]):
                if peer[channel] >= 0 and owner[peer[channel]] != s:  # a cable back to itself leads nowhere
                    self.adjacent.append(channel)
            self.adjacent_first.append(len(self.adjacent))

    def _place_ends(self) -> None:
        self.has_hosts = bytearray(len(self.switches))  # adapters or routers at this switch
        self.has_lid = bytearray(len(self.switches))
        top = max((end.lid + (1 << end.lmc) for end in self.ends), default=1)
        self.width = -(-top // BLOCK) * BLOCK
        self._end_at = array("i", [-1]) * self.width if top <= LARGEST_LID + 1 else array("i")
        for i, end in enumerate(self.ends):
            if not 0 <= end.lmc <= LARGEST_LMC or end.lid % (1 << end.lmc):
                raise RoutingError(
                    f"{end.name}: LID {end.lid:#x} with LMC {end.lmc}; the LMC is 0 to 7, and that many low bits are 0"
                )
            if end.lid < 1 or end.lids[-1] > LARGEST_LID:
                raise RoutingError(f"{end.name}: LID {end.lid:#x}; unicast LIDs are 1 to {LARGEST_LID:#x}")
            if end.switch >= 0:
                self._claim(end.switch, end.port, end.name)
                (self.has_hosts if end.port else self.has_lid)[end.switch] = 1
            for lid in end.lids:
                if self._end_at[lid] >= 0:
                    raise RoutingError(
                        f"{end.name}: LID {lid:#x} is {self.ends[self._end_at[lid]].name}'s already"
                    )
                self._end_at[lid] = i

    @classmethod
    def from_topology(
        cls,
        topology: Topology,
        addresses: Mapping[PortId, tuple[int, int]],
        nodes: Collection[str] | None = None,
    ) -> RoutingGraph:
        """A subnet of a topology.  addresses: (base LID, LMC) by port; port 0 of a switch is the switch itself.

        nodes: the names of those that belong to the subnet; all by default.  A switch's coordinates are read from
        ``extras["coordinates"]``, a sequence of integers.
        """
        inside = topology.nodes if nodes is None else nodes
        switches = [node for node in topology.switches if node.name in inside]
        index = {node.name: i for i, node in enumerate(switches)}
        links = [
            (index[link.a.node], link.a.port, index[link.b.node], link.b.port)
            for link in topology.links
            if link.a.node in index and link.b.node in index
        ]
        ends = []
        direct = []
        for at, (lid, lmc) in addresses.items():
            node = topology.nodes.get(at.node)
            if node is None or not (0 if node.kind is NodeKind.SWITCH else 1) <= at.port <= node.ports:
                raise RoutingError(f"LID {lid:#x}: there is no {at}")
            if node.name not in inside:
                continue
            if node.kind is NodeKind.SWITCH:
                if at.port:
                    raise RoutingError(f"LID {lid:#x}: a switch has LIDs at its port 0, not at {at}")
                ends.append(End(lid, lmc, index[node.name], 0, node.name))
                continue
            peer = topology.peer(at)
            if peer is not None and peer.node in index:
                ends.append(End(lid, lmc, index[peer.node], peer.port, str(at)))
            else:
                ends.append(End(lid, lmc, -1, 0, str(at)))
                if peer is not None and peer in addresses:
                    direct.append((str(at), str(peer)))
        places = [node.extras.get("coordinates") for node in switches]
        return cls(
            [(node.name, node.ports) for node in switches],
            links,
            ends,
            direct=direct,
            coordinates=[tuple(map(int, p)) if isinstance(p, (list, tuple)) else None for p in places],
            guids=[node.guid for node in switches],
        )

    # --- asking -------------------------------------------------------------------------------------------------

    def neighbour(self, s: int, port: int) -> tuple[int, int] | None:
        """The switch and its port at the other end of a switch's port; None where there is no switch."""
        if not 1 <= port <= self.port_count[s]:
            return None
        channel = self.peer[self.first[s] + port]
        return None if channel < 0 else (t := self.owner[channel], channel - self.first[t])

    def neighbours(self, s: int) -> list[tuple[int, int, int]]:
        """(port, other switch, its port) for all cables of a switch to other switches."""
        found = []
        for channel in self.adjacent[self.adjacent_first[s] : self.adjacent_first[s + 1]]:
            other = self.peer[channel]
            t = self.owner[other]
            found.append((channel - self.first[s], t, other - self.first[t]))
        return found

    def end_of(self, lid: int) -> End | None:
        """Whose LID this is."""
        at = self._end_at[lid] if 0 < lid < len(self._end_at) else -1
        return None if at < 0 else self.ends[at]

    def channel_name(self, channel: int) -> str:
        """``s1[3] -> s2[1]``, as cables are written."""
        s = self.owner[channel]
        text = f"{self.switches[s]}[{channel - self.first[s]}]"
        other = self.peer[channel]
        if other < 0:
            return text
        t = self.owner[other]
        return f"{text} -> {self.switches[t]}[{other - self.first[t]}]"
