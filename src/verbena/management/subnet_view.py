"""What subnet administration sees of a subnet: its end ports by LID and GID, partitions, and the way between two LIDs.

The model is the subnet manager's (`management.subnet`): it is replaced as a whole, so it is asked for again with each
request, and what is remembered here of one picture is forgotten with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from verbena.management.subnet import Subnet, SubnetPort
from verbena.wire.headers import DEFAULT_PKEY
from verbena.wire.sa_records import RATE_CODE, lifetime_code, lifetime_ns
from verbena.wire.smp_attributes import PortInfo, PortState, SMInfo

MOST_HOPS = 64
MOST_ROUTES = 1 << 18
"""Routes that are remembered."""
LONGEST_LIFE = 19
"""SwitchInfo:LifeTimeValue above it: no limit."""
UNLIMITED_LIFE = 18
"""The packet lifetime of a path through switches that have no limit: about a second, as OpenSM has it."""
MEMBERSHIP = 0x8000
LINK_LOCAL = 0xFE80 << 48
"""The prefix that every subnet answers to (IBA vol. 1, 4.1.1)."""
FASTEST = 1200.0


class SubnetDetails:
    """What a subnet manager knows beyond its picture of the subnet; as it stands: nothing."""

    def guids(self, port: SubnetPort) -> Sequence[int]:
        """A port's GUIDs, its own first; 0: none."""
        return (port.guid,)

    def lanes(self, port: SubnetPort) -> bytes:
        """A port's SL to VL table in eight bytes, empty if it has none."""
        return b""

    def arbitration(self, port: SubnetPort) -> Mapping[int, bytes]:
        """The blocks of a port's arbitration tables, 1 to 4, 64 bytes each."""
        return {}

    def managers(self) -> Sequence[tuple[int, SMInfo]]:
        """The subnet managers: the LID of each, and what it says of itself."""
        return ()


class Route(NamedTuple):
    """Where the forwarding tables lead.

    hops: the ports that packets leave by, the source's first.  gbps, mtu: the least on the way (mtu: code).
    """

    hops: tuple[SubnetPort, ...]
    gbps: float
    mtu: int
    lifetime: int

    @property
    def rate(self) -> int:
        """PathRecord:Rate; 2.5 Gb/s if there is no code."""
        return RATE_CODE.get(self.gbps, 2)


_LANES = {1: 1, 2: 4, 4: 8, 8: 12, 16: 2}
_SPEEDS = {1: 2.5, 2: 5.0, 4: 10.0}
_EXTENDED = {1: 14.0, 2: 25.0, 4: 50.0, 8: 100.0}


def port_gbps(info: PortInfo) -> float:
    """A port's nominal rate in Gb/s, from its active width and speed; 2.5 if it says neither."""
    lane = _EXTENDED.get(info.link_speed_ext_active) or _SPEEDS.get(info.link_speed_active, 2.5)
    return _LANES.get(info.link_width_active, 1) * lane


def end_gbps(port: SubnetPort) -> float:
    """The same of an end port; a switch's own port is as fast as anything."""
    return FASTEST if port.node.is_switch else port_gbps(port.info)


def end_mtu(port: SubnetPort) -> int:
    """The largest packets, as a code, that an end port takes; a switch's own port takes any."""
    return 5 if port.node.is_switch else port.mtu_code


def pkeys_of(port: SubnetPort) -> tuple[int, ...]:
    """A port's partition keys; before any were written, it is in the default partition (IBA vol. 1, 10.9.1.2)."""
    return port.pkeys or (DEFAULT_PKEY,)


def share_partition(one: Sequence[int], other: Sequence[int]) -> int:
    """The first of `one`'s partition keys on which both may talk, 0 if there is none.

    Two limited members of a partition may not (IBA vol. 1, 10.9.3).
    """
    full = {key & ~MEMBERSHIP for key in other if key & MEMBERSHIP}
    limited = {key for key in other if not key & MEMBERSHIP}
    for key in one:
        base = key & ~MEMBERSHIP
        if base and (base in full or (key & MEMBERSHIP and base in limited)):
            return key
    return 0


def in_partition(keys: Sequence[int], pkey: int) -> bool:
    """Whether a port with `keys` is a member of a partition, of either kind."""
    return bool(pkey & ~MEMBERSHIP) and any(key & ~MEMBERSHIP == pkey & ~MEMBERSHIP for key in keys)


class SubnetIndex:
    """A subnet's end ports, and what was found out about one picture of it.

    get: the manager's present picture.
    """

    def __init__(self, get: Callable[[], Subnet], details: SubnetDetails | None = None) -> None:
        self._get = get
        self.details = details or SubnetDetails()
        self._seen: Subnet | None = None
        self._ends: list[SubnetPort] = []
        self._aliases: dict[int, SubnetPort] = {}
        self._routes: dict[tuple[int, int], Route | None] = {}

    @property
    def subnet(self) -> Subnet:
        """The present picture."""
        subnet = self._get()
        if subnet is not self._seen:
            self._seen = subnet
            self._routes = {}
            self._ends = sorted((port for port in subnet.end_ports() if port.lid), key=lambda port: port.lid)
            self._aliases = {
                guid: port for port in self._ends for guid in self.details.guids(port) if guid
            } | subnet.ports_by_guid
        return subnet

    @property
    def ends(self) -> list[SubnetPort]:
        """The ports that have LIDs, in the order of these."""
        _ = self.subnet
        return self._ends

    def by_lid(self, lid: int) -> SubnetPort | None:
        return self.subnet.port_of_lid(lid)

    def by_gid(self, gid: bytes) -> SubnetPort | None:
        """The port that has a GID of this subnet, and a LID."""
        subnet = self.subnet
        if int.from_bytes(gid[:8], "big") not in (subnet.gid_prefix, LINK_LOCAL):
            return None
        port = self._aliases.get(int.from_bytes(gid[8:], "big"))
        return port if port is not None and port.lid else None

    def gid(self, port: SubnetPort) -> bytes:
        return self.subnet.gid(port)

    def is_foreign(self, gid: bytes) -> bool:
        """Whether a unicast GID belongs to another subnet: its packets go to a router."""
        return int.from_bytes(gid[:8], "big") not in (self.subnet.gid_prefix, LINK_LOCAL) and gid[0] != 0xFF

    # --- routes -------------------------------------------------------------------------------------------------

    def route(self, source: SubnetPort, dest_lid: int) -> Route | None:
        """Follow the forwarding tables from a port to a LID; None if they do not lead there, or a link is down."""
        subnet = self.subnet
        key = (source.lid, dest_lid)
        if key not in self._routes:
            if len(self._routes) >= MOST_ROUTES:
                self._routes.clear()
            dest = subnet.port_of_lid(dest_lid)
            self._routes[key] = None if dest is None else _walk(source, dest, dest_lid)
        return self._routes[key]


def _walk(source: SubnetPort, dest: SubnetPort, dest_lid: int) -> Route | None:
    hops: list[SubnetPort] = []
    gbps, mtu = min(end_gbps(source), end_gbps(dest)), min(end_mtu(source), end_mtu(dest))
    life = 0
    unlimited = False
    at = source
    while not (at is dest or (at.node is dest.node and dest.node.is_switch)):
        step: SubnetPort | None = at
        if at.node.is_switch:
            number = at.node.output_port(dest_lid)
            step = at.node.ports.get(number) if number else None
            info = at.node.switch_info
            value = info.life_time_value if info is not None else LONGEST_LIFE + 1
            unlimited |= value > LONGEST_LIFE
            life += lifetime_ns(value)
        elif hops:
            return None  # it ended at somebody else's port
        if step is None or step.peer is None or len(hops) >= MOST_HOPS:
            return None
        if not step.state == step.peer.state == PortState.ACTIVE:
            return None
        gbps = min(gbps, port_gbps(step.info), port_gbps(step.peer.info))
        mtu = min(mtu, step.mtu_code, step.peer.mtu_code)
        hops.append(step)
        at = step.peer
    if not hops and not source.node.is_switch and source.state != PortState.ACTIVE:
        return None
    return Route(
        tuple(hops), gbps, mtu, UNLIMITED_LIFE if unlimited else lifetime_code(life or lifetime_ns(0))
    )
