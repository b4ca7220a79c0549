"""A router's table of routes: the longest prefix wins (document 003:592, 658; IBA vol. 1, chapter 19).

Among routes of one prefix, a port on the subnet itself comes before a static route, that before a learnt one, and
fewer routers before more.  Routes through a port that is down are passed over, not removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address, IPv6Network

from verbena.errors import InvalidAttributeError


class Origin(IntEnum):
    """Where a route is from; of two for one prefix, the smaller value is used."""

    ATTACHED = 0
    STATIC = 1
    LEARNT = 2


def masked(prefix: bytes, length: int) -> bytes:
    """The first `length` bits of 16 bytes, the rest zero."""
    kept = int.from_bytes(prefix, "big") >> (128 - length) << (128 - length)
    return kept.to_bytes(16, "big")


@dataclass(frozen=True, slots=True)
class Route:
    """To addresses that begin with the first `length` bits of `prefix` (16 bytes), leave by `port`.

    via: the GID of the next router on that port's subnet; None when the destination itself is there.  metric: routers
    on the way, 1 to 15.
    """

    prefix: bytes
    length: int
    port: int
    via: bytes | None = None
    origin: Origin = Origin.STATIC
    metric: int = 1

    def __post_init__(self) -> None:
        if len(self.prefix) != 16 or not 0 <= self.length <= 128:
            raise InvalidAttributeError(
                f"a route's prefix has 16 bytes of which 0 to 128 bits count, not {len(self.prefix)} bytes and "
                f"{self.length} bits"
            )
        if masked(self.prefix, self.length) != self.prefix:
            raise InvalidAttributeError(f"route to {self}: the prefix has ones beyond its length")
        if self.via is not None and len(self.via) != 16:
            raise InvalidAttributeError(f"route to {self}: the next router's GID has 16 bytes")
        if not 1 <= self.metric <= 15:
            raise InvalidAttributeError(f"route to {self}: metric = {self.metric}, from 1 to 15")

    @classmethod
    def to(cls, network: str, port: int, via: str | None = None, metric: int = 1) -> Route:
        """A static route, as people write it: ``Route.to("2001:db8:2::/64", 1, "2001:db8:1::5")``.

        Raises `InvalidAttributeError` for a network or address that is none.
        """
        try:
            parsed = IPv6Network(network)
            hop = None if via is None else IPv6Address(via).packed
        except ValueError as error:
            raise InvalidAttributeError(f"route to {network} via {via}: {error}") from None
        return cls(parsed.network_address.packed, parsed.prefixlen, port, hop, Origin.STATIC, metric)

    @property
    def rank(self) -> tuple[int, int, int, bytes]:
        """Smaller is better, among routes of the same prefix."""
        return (self.origin, self.metric, self.port, self.via or b"")

    def __str__(self) -> str:
        return f"{IPv6Address(self.prefix)}/{self.length}"


class RouteTable:
    """Routes by prefix; at most one for each prefix, port and next router of an origin."""

    def __init__(self) -> None:
        self._by_length: dict[int, dict[bytes, list[Route]]] = {}
        self._lengths: list[tuple[int, int]] = []  # (length, shift), longest first

    def add(self, route: Route) -> None:
        """Add a route, or replace the one of its origin with the same prefix, port and next router."""
        routes = self._by_length.setdefault(route.length, {}).setdefault(route.prefix, [])
        routes[:] = [r for r in routes if not _same_way(r, route)] + [route]
        routes.sort(key=lambda r: r.rank)
        self._lengths = [(n, 128 - n) for n in sorted(self._by_length, reverse=True)]

    def remove(self, route: Route) -> bool:
        """Take a route out (whatever its metric); False when it is not there."""
        routes = self._by_length.get(route.length, {}).get(route.prefix, [])
        left = [r for r in routes if not _same_way(r, route)]
        if len(left) == len(routes):
            return False
        if left:
            routes[:] = left
        else:
            del self._by_length[route.length][route.prefix]
            if not self._by_length[route.length]:
                del self._by_length[route.length]
                self._lengths = [(n, 128 - n) for n in sorted(self._by_length, reverse=True)]
        return True

    def lookup(self, address: bytes, usable: Callable[[Route], bool]) -> Route | None:
        """The best usable route of the longest prefix of an address that has one."""
        number = int.from_bytes(address, "big")
        for length, shift in self._lengths:
            key = (number >> shift << shift).to_bytes(16, "big")
            for route in self._by_length[length].get(key, ()):
                if usable(route):
                    return route
        return None

    def best(self, usable: Callable[[Route], bool]) -> Iterator[Route]:
        """Of each prefix the route that is used, longest prefixes first."""
        for length, _ in self._lengths:
            for routes in self._by_length[length].values():
                route = next((r for r in routes if usable(r)), None)
                if route is not None:
                    yield route

    def __iter__(self) -> Iterator[Route]:
        for length, _ in self._lengths:
            for routes in self._by_length[length].values():
                yield from routes

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _same_way(a: Route, b: Route) -> bool:
    return a.port == b.port and a.via == b.via and a.origin is b.origin and a.prefix == b.prefix
