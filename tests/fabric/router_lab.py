"""Adapters with real transport in subnets that routers join: the native laboratory, with routers in it.

A first name for each subnet, and its prefix; packets go by DLID within a subnet, through routers between them, each
hop a microsecond.  A router that is killed takes and gives nothing.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any

from native_lab import DELAY_NS, NativeDriver, NativeLab, Sent
from verbena import Context, Gid
from verbena.fabric.router import Hop, LanPort, RouteExchange, Router, RouterPort
from verbena.fabric.router.exchange import ALL_ROUTERS

PREFIXES = {name: 0x2001_0DB8_0000_0000 | i for i, name in enumerate("ABT", 1)}
ROUTERS_LID = 0xC000
PERIOD_NS = 20_000_000


class RouterLab(NativeLab):
    """`routers` by name; `crossed` counts the packets that each sent."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.routers: dict[str, Router] = {}
        self.exchanges: dict[str, RouteExchange] = {}
        self.at: dict[tuple[str, int], tuple[str, int]] = {}  # (subnet, LID) -> router and port
        self.dead: set[str] = set()
        self.crossed: dict[str, int] = {}
        self.held: dict[str, int] = {}

    def host(self, subnet: str, **options: Any) -> Context:
        return self.adapter(subnets=(subnet,) * options.get("ports", 1), prefix=PREFIXES[subnet], **options)

    def router(self, name: str, *subnets: str) -> Router:
        """A router with a port in each of these subnets, numbered in that order."""
        guid = 0x02_76_62_02 << 32 | (len(self.routers) + 1) << 8
        ports = []
        for number, subnet in enumerate(subnets, 1):
            lid = self._lid
            self._lid += 8
            ports.append(
                RouterPort(number, guid + number, PREFIXES[subnet].to_bytes(8, "big"), lid=lid, active=True)
            )
            self.at[subnet, lid] = (name, number)
        self.crossed[name] = self.held[name] = 0
        made = self.routers[name] = Router(
            name,
            ports,
            clock=self.clock,
            resolve=lambda port, gid: self.find(subnets[port - 1], gid),
            output=lambda port, packet: self.cross(name, subnets[port - 1], packet),
            release=lambda port, handle: self.freed(name),
        )
        self.exchanges[name] = RouteExchange(made, guid, period_ns=PERIOD_NS)
        return made

    def freed(self, name: str) -> None:
        self.held[name] -= 1

    def find(self, subnet: str, gid: bytes) -> Hop | None:
        """What subnet administration would say of a GID of the subnet."""
        if gid == ALL_ROUTERS:
            return Hop(ROUTERS_LID)
        for (driver, number), name in self.subnets.items():
            if name == subnet and Gid(gid) in driver.adapter.ports[number - 1].gids:
                return Hop(driver.adapter.ports[number - 1].lid)
        for (name, lid), (router, number) in self.at.items():
            if name == subnet and self.routers[router].ports[number].gid == gid:
                return Hop(lid)
        return None

    def cross(self, name: str, subnet: str, packet: bytes) -> bool:
        if name not in self.dead:
            self.crossed[name] += 1
            self.into(subnet, packet, sender=name)
        return True

    def deliver(self, sent: Sent, data: bytes) -> None:
        self.into(self.subnets[sent.driver, sent.port], data)

    def into(self, subnet: str, packet: bytes, sender: str = "") -> None:
        """A packet is on its way within a subnet."""
        dlid = int.from_bytes(packet[2:4], "big")
        found = False
        for (name, lid), (router, number) in self.at.items():
            if name == subnet and dlid in (lid, ROUTERS_LID) and router not in self.dead and router != sender:
                found = True
                self.later(lambda r=router, n=number: self.arrive(r, n, packet))
        for (driver, number), name in self.subnets.items():
            if name == subnet and dlid in driver.adapter.ports[number - 1].lids:
                found = True
                self.later(lambda d=driver, n=number: d.arrived(packet, n))
        self.lost += not found

    def arrive(self, router: str, number: int, packet: bytes) -> None:
        if router not in self.dead:
            self.held[router] += 1
            self.routers[router].receive(number, packet, handle=number)

    def later(self, function: Any) -> None:
        self.clock.call_at(self.clock.now() + DELAY_NS, function)

    def start(self) -> None:
        """Let the routers learn of one another."""
        for exchange in self.exchanges.values():
            exchange.start()
        self.run(3 * PERIOD_NS)

    def kill(self, name: str) -> None:
        """The router is gone, with what it holds."""
        self.dead.add(name)
        self.exchanges[name].stop()

    def lid_of(self, router: str, subnet: str) -> int:
        return next(lid for (name, lid), (r, _) in self.at.items() if (name, r) == (subnet, router))

    def lan(self, router: str, number: int, address: str, prefix: str | None = "::/0") -> list[bytes]:
        """Give a router a LAN port; returns the list of what it sends there."""
        out: list[bytes] = []
        self.routers[router].attach_lan(
            LanPort(number, IPv6Address(address).packed, lambda datagram: not out.append(datagram)), prefix
        )
        return out

    def check(self) -> None:
        for name, router in self.routers.items():
            c = router.counters
            assert (
                c["received"] + c["originated"] + c["copied"]
                == c["sent"] + c["local"] + router.dropped + router.waiting
            ), (name, dict(c))
            assert self.held[name] == 0 or router.waiting


__all__ = ["NativeDriver", "RouterLab"]
