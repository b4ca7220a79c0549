"""Local and global addresses: which LIDs, LMCs and GIDs the ports of a topology have.

A LID is 16 bits and unique in its subnet only; a port has 2^LMC of them, from an aligned base on (IBA vol. 1, 4.1.3 and
3.5.10; document 003:573, 640).  Unicast LIDs are 0x0001 to 0xBFFF, multicast LIDs 0xC000 to 0xFFFE; 0 and 0xFFFF (the
permissive LID) are nobody's.  A GID is the subnet's 64-bit prefix and the port's GUID (IBA vol. 1, 4.1.1), so that all
of a subnet share their high-order bits (document 003:575).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

from verbena.adapter.gid import Gid
from verbena.fabric.topology import NodeKind, PortId, Topology, TopologyError

FIRST_UNICAST, LAST_UNICAST = 0x0001, 0xBFFF
FIRST_MULTICAST, LAST_MULTICAST = 0xC000, 0xFFFE
PERMISSIVE = 0xFFFF
LARGEST_LMC = 7
DEFAULT_PREFIX = 0xFE80_0000_0000_0000  # IBA vol. 1, 4.1.1: the default subnet prefix

Addresses = dict[PortId, tuple[int, int]]
"""(base LID, LMC) of each adapter or router port that is connected, and of each switch, as its port 0."""


class AddressError(TopologyError):
    """An address that cannot be had; the message names the port."""


class LidSpace:
    """The LIDs of one subnet, and whose they are.  What is freed is the last to be taken again."""

    def __init__(self, first: int = FIRST_UNICAST, last: int = LAST_UNICAST) -> None:
        self.first, self.last = first, last
        self._owner: list[str | None] = [None] * (last - first + 1)
        self._ranges: dict[str, tuple[int, int]] = {}
        self._next = [first] * (LARGEST_LMC + 1)  # where to look next, by LMC

    def __len__(self) -> int:
        """How many LIDs are taken."""
        return sum(1 << lmc for _, lmc in self._ranges.values())

    def of(self, owner: str) -> tuple[int, int] | None:
        """Base LID and LMC of an owner."""
        return self._ranges.get(owner)

    def owner(self, lid: int) -> str | None:
        return self._owner[lid - self.first] if self.first <= lid <= self.last else None

    def keep(self, owner: str, base: int, lmc: int = 0) -> None:
        """Give the owner just these LIDs.  Raises `AddressError`: not aligned, out of range, or somebody else's."""
        _check_lmc(owner, lmc)
        size = 1 << lmc
        if not self.first <= base <= self.last or base + size - 1 > self.last:
            raise AddressError(
                f"{owner}: LID {base:#x} with LMC {lmc} is not in {self.first:#06x} to {self.last:#06x}"
            )
        if base % size:
            raise AddressError(f"{owner}: base LID {base:#x} is not a multiple of {size}, as LMC {lmc} needs")
        for lid in range(base, base + size):
            other = self.owner(lid)
            if other is not None:
                raise AddressError(f"{owner}: LID {lid:#x} is {other}'s")
        self._claim(owner, base, lmc)

    def take(self, owner: str, lmc: int = 0) -> int:
        """Give the owner 2^lmc LIDs that are free, and return the first.  Raises `AddressError` when none are left."""
        _check_lmc(owner, lmc)
        size = 1 << lmc
        lowest = -(-self.first // size) * size
        start = max(lowest, -(-self._next[lmc] // size) * size)
        for base in chain(range(start, self.last + 2 - size, size), range(lowest, start, size)):
            if not any(self._owner[base - self.first : base - self.first + size]):
                self._claim(owner, base, lmc)
                self._next[lmc] = base + size
                return base
        raise AddressError(
            f"{owner}: no LID is left: of {self.last - self.first + 1:,} {len(self):,} are taken, "
            f"and {size} in a row are needed"
        )

    def free(self, owner: str) -> None:
        """Take the owner's LIDs away; nothing happens if it has none."""
        base, lmc = self._ranges.pop(owner, (0, 0))
        if base:
            self._owner[base - self.first : base - self.first + (1 << lmc)] = [None] * (1 << lmc)

    def _claim(self, owner: str, base: int, lmc: int) -> None:
        if owner in self._ranges:
            raise AddressError(f"{owner}: it already has LID {self._ranges[owner][0]:#x}")
        self._owner[base - self.first : base - self.first + (1 << lmc)] = [owner] * (1 << lmc)
        self._ranges[owner] = (base, lmc)


def multicast_lids() -> LidSpace:
    """The multicast LIDs of one subnet; owners are groups."""
    return LidSpace(FIRST_MULTICAST, LAST_MULTICAST)


def _check_lmc(owner: str, lmc: int) -> None:
    if not 0 <= lmc <= LARGEST_LMC:
        raise AddressError(f"{owner}: LMC {lmc} is not from 0 to {LARGEST_LMC}")


def subnets(topology: Topology) -> list[list[PortId]]:
    """The ports that need LIDs, subnet by subnet: port 0 of switches, connected ports of adapters and routers.

    Only switches forward inside a subnet: an adapter with ports in two fabrics joins them as little as a router does.
    The subnets, and the ports in each, are in the topology's order.
    """
    part: dict[PortId, int] = {}
    found: list[list[PortId]] = []
    for node in topology.nodes.values():
        for port in _end_ports(topology, node.name):
            if port not in part:
                number = len(found)
                found.append([])
                for member in _reach(topology, port):
                    part[member] = number
            found[part[port]].append(port)
    return found


def _end_ports(topology: Topology, name: str) -> Iterable[PortId]:
    node = topology.nodes[name]
    if node.kind is NodeKind.SWITCH:
        return [PortId(name, 0)]
    return [port for n in range(1, node.ports + 1) if (port := PortId(name, n)) in topology.at]


def _reach(topology: Topology, start: PortId) -> set[PortId]:
    """The end ports that `start` reaches over links and switches."""
    seen, edge = {start}, [start]
    while edge:
        port = edge.pop()
        if topology.nodes[port.node].kind is NodeKind.SWITCH:
            links = topology.links_of(port.node)
        else:
            links = [topology.at[port]]
        for link in links:
            for end in (link.a, link.b):
                if topology.nodes[end.node].kind is NodeKind.SWITCH:
                    end = PortId(end.node, 0)
                if end not in seen:
                    seen.add(end)
                    edge.append(end)
    return seen


def given_lids(topology: Topology) -> Addresses:
    """The LIDs that the nodes have noted."""
    found: Addresses = {}
    for ports in subnets(topology):
        for port in ports:
            base, lmc = topology.nodes[port.node].lid(port.port)
            if base:
                found[port] = (base, lmc)
    return found


def assign_lids(
    topology: Topology,
    *,
    lmc: int = 0,
    switch_lmc: int = 0,
    given: Mapping[PortId, tuple[int, int]] | None = None,
) -> Addresses:
    """LIDs for every port that needs them, subnet by subnet, the lowest free ones in the topology's order.

    lmc: of adapter and router ports; switch_lmc: of switches (for their port 0 it is 0 unless that port is enhanced).
    given: ports whose LIDs are settled; by default those that the nodes have noted.  Raises `AddressError` for a given
    LID that cannot be, or is another port's, and when a subnet has none left.
    """
    given = given_lids(topology) if given is None else given
    result: Addresses = {}
    for ports in subnets(topology):
        space = LidSpace()
        for port in ports:
            if port in given:
                space.keep(str(port), *given[port])
                result[port] = given[port]
        for port in ports:
            if port not in result:
                wanted = switch_lmc if port.port == 0 else lmc
                result[port] = (space.take(str(port), wanted), wanted)
    return result


def note_lids(topology: Topology, addresses: Mapping[PortId, tuple[int, int]]) -> None:
    """Write LIDs into the nodes; raises `AddressError` for a port that the topology does not have."""
    for port, (base, lmc) in addresses.items():
        node = topology.nodes.get(port.node)
        if node is None or not (port.port == 0 or 1 <= port.port <= node.ports):
            raise AddressError(f"{port}: there is no such port")
        node.set_lid(port.port, base, lmc)


def gid(prefix: int, guid: int) -> Gid:
    """The GID of a port: 64 bits of subnet prefix, 64 bits of GUID.  Raises `AddressError`."""
    if not 0 <= prefix < 1 << 64 or not 0 < guid < 1 << 64:
        raise AddressError(
            f"GID of prefix {prefix:#x} and GUID {guid:#x}: both have 64 bits, and no GUID is 0"
        )
    return Gid(prefix.to_bytes(8, "big") + guid.to_bytes(8, "big"))


def default_prefixes(count: int) -> list[int]:
    """Subnet prefixes: the default one if there is one subnet, else site-local ones, numbered from 1."""
    return [DEFAULT_PREFIX] if count == 1 else [0xFEC0_0000_0000_0000 + n for n in range(1, count + 1)]


def assign_gids(topology: Topology, prefixes: Iterable[int] | None = None) -> dict[PortId, Gid]:
    """GID 0 of each port that has a LID.  prefixes: of the subnets, in the order of `subnets`, all different.

    Raises `AddressError` for prefixes that are too few or not different.
    """
    parts = subnets(topology)
    wanted = default_prefixes(len(parts)) if prefixes is None else list(prefixes)
    if len(wanted) != len(parts) or len(set(wanted)) != len(wanted):
        raise AddressError(f"{len(parts)} subnets need as many prefixes, all different, not {wanted}")
    return {
        port: gid(prefix, topology.nodes[port.node].port_guid(port.port))
        for prefix, ports in zip(wanted, parts, strict=True)
        for port in ports
    }
