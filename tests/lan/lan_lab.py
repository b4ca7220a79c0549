"""LANs on simulated fabrics, for tests: nodes with cards, and a record of what each of them heard."""

from __future__ import annotations

from collections import Counter
from typing import Any

from system.world import MS, SECOND, World
from verbena import DeviceAttributes
from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.fabric.topology import NodeKind, Topology
from verbena.lan import LanConfig, LanNode, LanPort
from verbena.lan.host import Host
from verbena.lan.port import EthernetPort, PortEvent
from verbena.wire.ethernet import BROADCAST

SMALL = DeviceAttributes(max_qp=64, max_cq=32, max_ah=256, max_srq=8, max_mr=64, phys_port_cnt=2)
TYPE = 0x88B5
"""Local experimental EtherType (IEEE 802, 9.2.4)."""


def ethernet(to: bytes, source: bytes, size: int = 60, kind: int = TYPE, seed: int = 1) -> bytes:
    """A frame of `size` bytes, with a payload that looks different everywhere."""
    head = to + source + kind.to_bytes(2, "big")
    return (head + bytes((seed * 31 + n * 7 + (n >> 8) * 13) & 0xFF for n in range(size - len(head))))[:size]


class Ear:
    """Stands on a port; `frames` and `events`: what it was given."""

    def __init__(self, port: EthernetPort) -> None:
        self.port = port
        self.frames: list[bytes] = []
        self.events: list[PortEvent] = []
        port.attach(self.frames.extend, lambda event, detail: self.events.append(event))

    def take(self) -> list[bytes]:
        taken = self.frames[:]
        self.frames.clear()
        return taken

    def send(self, to: bytes, size: int = 60, **more: Any) -> bytes:
        frame = ethernet(to, self.port.mac, size, **more)
        assert self.port.send_frames((frame,)) == 1
        return frame


class Lan(World):
    """A fabric; hosts join its LAN by `join`, and are listened to by `ear`."""

    def __init__(self, shape: Topology | str, *, lan: LanConfig | None = None, **options: Any) -> None:
        super().__init__(shape, **options)
        self.lan = lan or LanConfig()
        self.lan_nodes: dict[str, LanNode] = {}
        self.ears: dict[str, Ear] = {}
        self.start()

    def join(self, *names: str, limits: DeviceAttributes = SMALL, wait: bool = True, **changes: Any) -> None:
        """Let hosts take part (all of them by default), with an ear on each first card."""
        for name in names or [node.name for node in self.topology.hosts]:
            context = self.device(name, limits=limits)
            node = LanNode(context, config=changes.get("config", self.lan), ports=changes.get("ports", ()))
            self.lan_nodes[name] = node
            self.ears[name] = Ear(node.card)
        if wait:
            self.settle(20 * MS)

    def leave(self, name: str) -> None:
        self.lan_nodes.pop(name).close()
        self.settle(5 * MS)

    def card(self, name: str, place: int = 0) -> LanPort:
        return self.lan_nodes[name].cards[place]

    def mac(self, name: str) -> bytes:
        return self.card(name).mac

    def driver(self, name: str) -> Any:
        return self.card(name).driver

    def adapter(self, name: str) -> ChannelAdapter:
        return self.adapters[name][0]

    def lid(self, name: str, port: int = 1) -> int:
        return self.device(name).query_port(port).lid

    def send(self, source: str, to: str | bytes, size: int = 60, **more: Any) -> bytes:
        """A frame from one host's card to another's, or to any address."""
        return self.ears[source].send(self.mac(to) if isinstance(to, str) else to, size, **more)

    def heard(self, ns: int = 1 * MS) -> dict[str, list[bytes]]:
        """What everybody hears in that time."""
        self.settle(ns)
        return {name: ear.take() for name, ear in self.ears.items()}

    def reaches(self, source: str, to: str, ns: int = 1 * MS) -> bool:
        """Does a frame arrive, there and nowhere else?"""
        self.heard(0)
        frame = self.send(source, to)
        heard = self.heard(ns)
        assert all(not frames for name, frames in heard.items() if name != to)
        return heard[to] == [frame]

    def drops(self, name: str) -> dict[str, int]:
        return {key: n for key, n in self.card(name).counters.items() if key.startswith("drop.") and n}


def star(hosts: int = 4, **options: Any) -> Lan:
    made = Lan(f"star hosts={hosts}", **options)
    made.join()
    return made


def two_trunks() -> Topology:
    """h1 and h2 at one switch, h3 at another; two cables between the switches."""
    made = Topology()
    made.add_switch("s1", 8)
    made.add_switch("s2", 8)
    for name, switch in (("h1", "s1"), ("h2", "s1"), ("h3", "s2")):
        made.add_host(name)
        made.connect(name, switch)
    made.connect("s1", "s2")
    made.connect("s1", "s2")
    return made


def two_ports(subnets: int = 1) -> Topology:
    """Hosts d1 and d2 with two ports each, at two switches; one subnet, or (2) one for each switch."""
    made = Topology()
    made.add_switch("s1", 8)
    made.add_switch("s2", 8)
    for name in ("d1", "d2"):
        made.add(name, NodeKind.CA, 2)
        made.connect(name, "s1")
        made.connect(name, "s2")
    made.add_host("h3")
    made.connect("h3", "s1")
    if subnets == 1:
        made.connect("s1", "s2")
    else:
        made.add_host("m2")
        made.connect("m2", "s2")
    return made


def host(world: Any, port: EthernetPort, number: int, **neighbours: int) -> Host:
    """A built-in host, 10.0.0.number and fd00::number."""
    return Host(port, world.clock, f"10.0.0.{number}/24", f"fd00::{number:x}/64", neighbours=neighbours)


def total(counters: Counter[str], prefix: str) -> int:
    return sum(n for key, n in counters.items() if key.startswith(prefix))


__all__ = ["BROADCAST", "MS", "SECOND", "SMALL", "TYPE", "Ear", "Lan", "ethernet", "host", "star", "total"]
