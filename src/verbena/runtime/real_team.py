"""A team in real time: interfaces below, TAP devices above, and connections that its RDMA card offloads."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from verbena.errors import InvalidAttributeError
from verbena.runtime.direct import DirectNode
from verbena.runtime.real_loop import RealLoop
from verbena.runtime.tap import Tap
from verbena.runtime.team_ports import LinkWatch, PacketPort, TapBinding
from verbena.team.card import BusDriver
from verbena.team.config import TeamConfig
from verbena.team.driver import IntermediateDriver, TeamEvent
from verbena.team.offload.states import Path
from verbena.team.trace import PathTrace


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """TCP connections to `listen` are carried to the node and port `via`; those carried to the port `accept` go on to
    the program at `to`.  All but accept: ``ADDRESS:PORT``."""

    listen: str | None = None
    via: str | None = None
    accept: int | None = None
    to: str | None = None


@dataclass(frozen=True, slots=True)
class RealTeamConfig:
    """name: of the TAP devices, with ``.VLAN`` behind it.  members: interfaces.  rdma: those that are RDMA cards, with
    the address of each one's adapter.  addresses: of the VLAN groups; upload_address: of
    R-virtual.  proxies: for unmodified programs."""

    name: str
    team: TeamConfig
    members: tuple[str, ...]
    addresses: dict[int, str]
    rdma: dict[str, str]
    upload_address: str | None = None
    proxies: tuple[ProxyConfig, ...] = ()


class RealTeam:
    """A running team.  node: sockets direct, where there is an RDMA card.  A context manager."""

    def __init__(self, config: RealTeamConfig) -> None:
        self.config = config
        self.loop = RealLoop("verbena team", urgent=True)
        self.trace = PathTrace(self.loop)
        self.ports: dict[str, PacketPort] = {}
        self.bindings: list[TapBinding] = []
        self.node: DirectNode | None = None
        self.watch = LinkWatch(self.loop)
        try:
            with self.loop.lock:
                self._build()
            self._start_node()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        config = self.config
        first = self._port(config.members[0]) if config.members else None
        if first is None:
            raise InvalidAttributeError("a team begins with one member at least")
        self.ports[first.name] = first
        self.driver = IntermediateDriver(self.loop, config.team, self.trace, first.mac)
        for vlan, address in config.addresses.items():
            card = self.driver.team.cards.get(vlan)
            if card is None:
                raise InvalidAttributeError(f"VLAN {vlan} has an address, and is no group of the team")
            name = f"{config.name}.{vlan}" if vlan else config.name
            tap = Tap(name, mac=card.mac, mtu=config.team.mtu, addresses=[address])
            self.bindings.append(TapBinding(self.loop, self.driver, card, tap))
        upload = self.driver.rdma_miniport
        if upload is not None and config.upload_address is not None:
            tap = Tap(
                f"{config.name}.r", mac=upload.mac, mtu=config.team.mtu, addresses=[config.upload_address]
            )
            self.bindings.append(TapBinding(self.loop, self.driver, upload, tap))
        for name in config.members:
            self.add(name)

    def _port(self, name: str) -> PacketPort:
        return PacketPort(self.loop, self.watch, name, rdma=name in self.config.rdma)

    def add(self, name: str) -> None:
        """Take an interface into the team while traffic flows.

        Raises `SystemLimitError` where there is none that can be a member, `InvalidAttributeError` where it cannot be
        one of this team.
        """
        with self.loop.lock:
            if any(member.name == name for member in self.driver.members):
                raise InvalidAttributeError(f"{name} is in the team already")
            port = self.ports.get(name) or self._port(name)
            bus = BusDriver(port, self.trace) if name in self.config.rdma else None
            try:
                self.driver.add(port, bus=bus)
            except BaseException:
                self.ports.pop(name, None)
                port.close()
                raise
            self.ports[name] = port

    def remove(self, name: str) -> None:
        """Take an interface out of the team; raises `NotFound`."""
        with self.loop.lock:
            self.driver.remove(name)
            self.ports.pop(name).close()

    def _start_node(self) -> None:
        config = self.config
        if not config.rdma or config.upload_address is None:
            return
        team = next(iter(config.addresses.values()), "")
        self.node = DirectNode(
            config.upload_address.split("/")[0],
            team.split("/")[0],
            list(config.rdma.values()),
        )
        self.driver.on_members = self._members_changed
        self._members_changed()

    def _members_changed(self) -> None:
        """The cards of sockets direct follow the members.  Not under this loop's lock: the node has one of its own."""
        usable = {member.name: member.is_usable for member in self.driver.members}
        for number, name in enumerate(self.config.rdma):
            up, card, node = usable.get(name, False), f"rnic{number}", self.node
            if node is not None:
                node.loop.call_soon(partial(node.recover if up else node.fail, card))

    # --- the administrator --------------------------------------------------------------------------------

    def fail(self, member: str) -> None:
        with self.loop.lock:
            self.driver.fail(member)

    def recover(self, member: str) -> None:
        with self.loop.lock:
            self.driver.recover(member)

    def pin(self, connection: str, path: Path | None) -> None:
        """Put a connection on a path, None: as the policy says; connection: the beginning of its identity."""
        if self.node is None:
            raise InvalidAttributeError("this team has no RDMA card: there is nothing to offload to")
        with self.node.loop.lock:
            self.node.sockets.pin(self.node.sockets.session(connection), path)

    def status(self) -> dict[str, Any]:
        """Everything that is to be shown, as plain values."""
        with self.loop.lock:
            now, driver = self.loop.now(), self.driver
            members = [
                {
                    "name": member.name,
                    "state": member.state.name,
                    "rdma": member.branch.is_rdma,
                    "load_bps": 8 * member.meter.rate(now),
                    "tx": sum(
                        n for k, n in member.counters.items() if k.startswith("tx.") and k.count(".") == 1
                    ),
                    "rx": sum(
                        n for k, n in member.counters.items() if k.startswith("rx.") and k.count(".") == 1
                    ),
                    "dropped": sum(n for k, n in member.counters.items() if k.startswith("drop.")),
                    "drops": {k: n for k, n in member.counters.items() if k.startswith("drop.") and n},
                    "receives": member is driver.receiver,
                }
                for member in driver.members
            ]
            cards = [*driver.team.cards.values(), *([driver.rdma_miniport] if driver.rdma_miniport else [])]
            groups = [
                {
                    "name": c.name,
                    "vlan": c.vlan,
                    "up": c.is_up,
                    "tx": c.counters["tx"],
                    "rx": c.counters["rx"],
                }
                for c in cards
            ]
            events = [_event(event, now) for event in list(driver.events)[-10:]]
        return {"members": members, "groups": groups, "connections": self._connections(), "events": events}

    def _connections(self) -> list[dict[str, Any]]:
        node = self.node
        if node is None:
            return []
        with node.loop.lock:
            now = node.loop.now()
            return [
                {
                    "identity": key.hex()[:8],
                    "path": session.path.name,
                    "state": session.state.name,
                    "sent": session.tx.base,
                    "received": session.rx.expected,
                    "load_bps": 8 * session.meter.rate(now),
                    "moves": session.moves,
                    "stall_ms": session.stall_ns / 1e6,
                }
                for key, session in node.sockets.sessions.items()
            ]

    def close(self) -> None:
        """Give everything back."""
        if self.node is not None:
            self.node.close()
        with self.loop.lock:
            driver = getattr(self, "driver", None)
            if driver is not None:
                driver.on_members = lambda: None
                driver.close()
            for binding in self.bindings:
                binding.close()
            for port in self.ports.values():
                port.close()
            with contextlib.suppress(OSError):
                self.watch.close()
        self.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _event(event: TeamEvent, now: int) -> dict[str, Any]:
    return {"ago_s": (now - event.when_ns) / 1e9, "kind": event.kind, "text": event.text}
