"""Names of hosts and switches: from a name to the GUIDs of all adapters or elements that go by it (document 003:567,
601).

An adapter's description begins with its host's name, as Linux writes it ("host1 HCA-2"); a switch or router is
described by its name alone.  What belongs to one host, or to one package of switches, has the same system image
GUID.  A second host with a name that is taken is refused: the name goes on meaning the first.
"""

from __future__ import annotations

from verbena.errors import VerbenaError
from verbena.fabric.topology import NodeKind
from verbena.management.subnet import Subnet, SubnetNode


class UnknownNameError(VerbenaError, LookupError):
    """Nothing on the subnet has this name."""


def host_name(node: SubnetNode) -> str:
    """The name of the host, or of the package of switches, that a node belongs to; may be empty."""
    if node.kind is NodeKind.CA:
        return node.name.split(" ", 1)[0]
    return node.name


class NodeNames:
    """The names on a subnet.  Whoever had a name at the last `update` keeps it as long as it is there."""

    def __init__(self) -> None:
        self._owner: dict[str, int] = {}
        self._guids: dict[str, list[int]] = {}

    def update(self, subnet: Subnet) -> dict[int, str]:
        """Take over a new picture of the subnet; returns, by node GUID and in words, which names were refused."""
        systems: dict[str, dict[int, list[SubnetNode]]] = {}
        for node in subnet.nodes.values():
            if name := host_name(node):
                systems.setdefault(name, {}).setdefault(node.system_guid, []).append(node)
        before, self._owner, self._guids = self._owner, {}, {}
        refused: dict[int, str] = {}
        for name, claims in systems.items():
            owner = before.get(name, 0)
            if owner not in claims:
                owner = min(claims)
            self._owner[name] = owner
            self._guids[name] = sorted(node.guid for node in claims[owner])
            for system, nodes in claims.items():
                if system != owner:
                    for node in nodes:
                        refused[node.guid] = (
                            f"{node.kind.name} {node.guid:#018x} calls itself {name}, "
                            f"which is the name of {self._guids[name][0]:#018x}; the name is refused"
                        )
        return refused

    def resolve(self, name: str) -> list[int]:
        """The node GUIDs of a host's adapters, or of a package's switches; raises `UnknownNameError`."""
        guids = self._guids.get(name)
        if guids is None:
            raise UnknownNameError(f"nothing on the subnet is called {name!r}")
        return list(guids)
