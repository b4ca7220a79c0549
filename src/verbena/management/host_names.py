"""Who has which name: one for each host, one for each switch package (document 003:567-569, 601-602).

A name is the first word of the node descriptions of all adapters of a host ("host adapter"), and of the switches of a
package; they share a system image GUID.  The first platform that is seen with a name keeps it; another platform's claim
to it is refused, and its nodes are shown without a name.
"""

from __future__ import annotations

from verbena.fabric.topology import NodeKind
from verbena.management.sa_request import MemoryStore, Store
from verbena.management.subnet import Subnet, SubnetNode

KIND = "host-name"
Key = tuple[bool, str]


def name_of(description: str) -> str:
    """The host's, or package's, part of a node description."""
    return description.split(" ", 1)[0]


def platform_of(node: SubnetNode) -> int:
    """The GUID that all nodes of one host, or of one package, share."""
    return node.system_guid or node.guid


class HostNames:
    """The names of a subnet.  They are kept in the store: a name stays its owner's while it is away."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = MemoryStore() if store is None else store
        self._owners: dict[Key, int] = {}
        self._nodes: dict[Key, list[int]] = {}
        self.refused: dict[int, str] = {}
        """Node GUIDs whose platform claims a name that is another's."""
        for key, value in self._store.load(KIND):
            if len(key) > 1 and len(value) == 8:
                name = key[1:].decode(errors="replace")
                self._owners[key[0] == 1, name] = int.from_bytes(value, "big")

    def update(self, subnet: Subnet) -> None:
        """The subnet manager has a newer picture."""
        self._nodes, self.refused = {}, {}
        for node in sorted(subnet.nodes.values(), key=lambda node: node.guid):
            name = name_of(node.name)
            if not name:
                continue
            key = (node.kind is NodeKind.SWITCH, name)
            owner = self._owners.setdefault(key, platform_of(node))
            if owner != platform_of(node):
                self.refused[node.guid] = name
                continue
            self._nodes.setdefault(key, []).append(node.guid)
        for (is_switch, name), nodes in self._nodes.items():
            if nodes:
                self._store.save(
                    KIND, bytes([is_switch]) + name.encode(), self._owners[is_switch, name].to_bytes(8, "big")
                )

    def resolve(self, name: str) -> list[int]:
        """The GUIDs of a host's adapters, or of a package's switches; empty for a name that nobody has."""
        return self._nodes.get((False, name)) or self._nodes.get((True, name)) or []

    def release(self, name: str) -> None:
        """Forget who had a name: the next platform that is seen with it gets it."""
        for is_switch in (False, True):
            self._owners.pop((is_switch, name), None)
            self._nodes.pop((is_switch, name), None)
            self._store.remove(KIND, bytes([is_switch]) + name.encode())

    def shown(self, node: SubnetNode) -> str:
        """A node's description as others see it."""
        return "" if node.guid in self.refused else node.name
