"""A router's ports: into a subnet, or onto an ordinary IPv6 network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from verbena.errors import InvalidAttributeError

LINK_LOCAL_PREFIX = bytes.fromhex("fe80000000000000")
FIRST_MULTICAST_LID = 0xC000
LANES = bytes(range(15)) + b"\0"


class Pending(Enum):
    """What a resolver answers while it is still asking."""

    PENDING = auto()


PENDING = Pending.PENDING


@dataclass(frozen=True, slots=True)
class Hop:
    """Where a packet goes within a subnet: what a path record says of a destination GID.

    dlid: 1 to 0xFFFE.  sl: 0 to 15.  mtu: bytes of payload that the path carries.
    """

    dlid: int
    sl: int = 0
    mtu: int = 4096


Resolver = Callable[[int, bytes], Hop | Pending | None]
"""(port, GID) -> the way there in that port's subnet; PENDING until `Router.resolved` is called; None: not there."""


@dataclass(eq=False, slots=True)
class RouterPort:
    """A port into a subnet.

    number: 1 to 255.  guid: the port's own.  prefix: the subnet's, 8 bytes.  lid, lmc (it has 2^lmc LIDs), mtu (bytes),
    sl2vl (16 lanes, one for each service level) and active are the subnet manager's to set.  boundary: the largest
    multicast scope that does not leave the subnet (RFC 4007; 2 = what is local to the subnet).
    """

    number: int
    guid: int
    prefix: bytes
    lid: int = 0
    lmc: int = 0
    mtu: int = 4096
    sl2vl: bytes = LANES
    active: bool = False
    boundary: int = 2
    addresses: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not 1 <= self.number <= 255:
            raise InvalidAttributeError(f"router port {self.number}: ports are numbered from 1 to 255")
        if len(self.prefix) != 8:
            raise InvalidAttributeError(
                f"port {self.number}: a subnet prefix has 8 bytes, not {len(self.prefix)}"
            )
        self.addresses.add(self.gid)

    @property
    def gid(self) -> bytes:
        """The port's own GID: subnet prefix and GUID (IBA vol. 1, 4.1.1)."""
        return self.prefix + self.guid.to_bytes(8, "big")

    @property
    def link_local(self) -> bytes:
        """The port's GID by the link-local prefix, which is good within its subnet only."""
        return LINK_LOCAL_PREFIX + self.guid.to_bytes(8, "big")

    def takes(self, dlid: int) -> bool:
        """Is a packet with that destination LID for this port: one of its own, a multicast or the permissive one?"""
        return dlid >= FIRST_MULTICAST_LID or (self.lid != 0 and dlid >> self.lmc == self.lid >> self.lmc)

    def add_address(self, address: bytes) -> None:
        """A further IPv6 address of the port; raises `InvalidAttributeError` for one of another subnet."""
        if address[:8] != self.prefix:
            raise InvalidAttributeError(
                f"address {address.hex(':', 2)}: port {self.number} is in the subnet {self.prefix.hex(':', 2)}"
            )
        self.addresses.add(bytes(address))


@dataclass(eq=False, slots=True)
class LanPort:
    """A port onto an ordinary IPv6 network (document 003:612).

    output: sends an IPv6 packet; False when there is no room now (`Router.room` says when there is).  address: 16
    bytes, the router's own there.  mtu: largest IPv6 packet, bytes.  backlog: packets that came in from here and may
    wait for room in a subnet; more are dropped, as an Ethernet does.
    """

    number: int
    address: bytes
    output: Callable[[bytes], bool]
    mtu: int = 1500
    backlog: int = 256
    active: bool = True

    @property
    def addresses(self) -> set[bytes]:
        return {self.address}
