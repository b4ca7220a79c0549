"""What a subnet manager remembers beyond its own life: topology, LIDs, events, configuration (document 000:80, 104).

`TopologyStore` is the interface; `verbena.runtime.topology_store` keeps it in SQLite, where other nodes can read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from verbena.management.subnet import Subnet


class StoredNode(NamedTuple):
    """kind: NodeInfo:NodeType.  name: NodeDescription."""

    guid: int
    kind: int
    name: str
    ports: int
    system_guid: int
    vendor_id: int
    device_id: int


class StoredPort(NamedTuple):
    """number: of the node's port; 0: a switch itself.  guid: 0 for the other ports of a switch.  state: PortState."""

    node_guid: int
    number: int
    guid: int
    lid: int
    lmc: int
    state: int
    mtu_code: int
    rate: str


class StoredLink(NamedTuple):
    """A cable, once."""

    a_guid: int
    a_port: int
    b_guid: int
    b_port: int


class StoredEvent(NamedTuple):
    """time_ns: of the manager's clock.  kind: `SubnetEventKind`'s value."""

    time_ns: int
    kind: str
    guid: int
    lid: int
    trap: int
    text: str


@dataclass(frozen=True, slots=True)
class StoredTopology:
    """One finished sweep."""

    nodes: tuple[StoredNode, ...] = ()
    ports: tuple[StoredPort, ...] = ()
    links: tuple[StoredLink, ...] = ()

    @classmethod
    def of(cls, subnet: Subnet) -> StoredTopology:
        nodes, ports = [], []
        for node in subnet.nodes.values():
            info = node.info
            nodes.append(
                StoredNode(
                    node.guid,
                    info.node_type,
                    node.name,
                    info.num_ports,
                    info.system_image_guid,
                    info.vendor_id,
                    info.device_id,
                )
            )
            for port in node.ports.values():
                ports.append(
                    StoredPort(
                        node.guid,
                        port.number,
                        port.guid if port.is_end else 0,
                        port.lid if port.is_end else 0,
                        port.lmc if port.is_end else 0,
                        port.info.port_state,
                        port.mtu_code,
                        str(port.rate),
                    )
                )
        links = [StoredLink(a.node.guid, a.number, b.node.guid, b.number) for a, b in subnet.links()]
        return cls(tuple(sorted(nodes)), tuple(sorted(ports)), tuple(sorted(links)))


class TopologyStore(Protocol):
    """Each call is one transaction: it happens as a whole or not at all."""

    def save(self, topology: StoredTopology, lids: Mapping[int, tuple[int, int]]) -> None:
        """Replace topology and LIDs: (base LID, LMC) by port GUID, those of departed ports included."""

    def load_topology(self) -> StoredTopology:
        """The last one; empty if there is none."""

    def load_lids(self) -> dict[int, tuple[int, int]]:
        """(base LID, LMC) by port GUID."""

    def add_events(self, events: Iterable[StoredEvent]) -> None:
        """Append to the log."""

    def load_events(self, newest: int = 1000) -> Sequence[StoredEvent]:
        """The last ones, oldest first."""

    def save_configuration(self, settings: Mapping[str, str]) -> None:
        """Replace the configuration."""

    def load_configuration(self) -> dict[str, str]:
        """The configuration; empty if there is none."""
