"""The example systems that the source documents draw, as topologies.  Names carry the figures' reference numerals.

Each node's ``extras["role"]`` says what the figure shows there: ``processor``, ``raid``, ``io card``, ``io device``,
``switch``, ``backplane``, ``router``.
"""

from __future__ import annotations

from verbena.fabric.shapes import Cable
from verbena.fabric.topology import Node, Topology


class _Builder:
    """A topology under construction, all of whose cables are alike."""

    def __init__(self, name: str, cable: Cable) -> None:
        self.topology = Topology(name)
        self._cable = cable

    def _note(self, node: Node, role: str) -> str:
        node.extras["role"] = role
        return node.name

    def endnode(self, name: str, role: str, ports: int = 1, host: str | None = None) -> str:
        return self._note(self.topology.add_host(name, ports, host=host), role)

    def switch(self, name: str, ports: int = 8, role: str = "switch", host: str | None = None) -> str:
        return self._note(self.topology.add_switch(name, ports, host=host), role)

    def router(self, name: str, ports: int = 2) -> str:
        return self._note(self.topology.add_router(name, ports), "router")

    def join(self, *pairs: tuple[str, str]) -> None:
        for a, b in pairs:
            self.topology.connect(a, b, rate=self._cable.rate, delay_ns=self._cable.delay_ns)


def san(cable: Cable) -> Topology:
    """Document 003, Figure 1: host processors 34a to 34d, RAID subsystem 33, I/O adapters 35a and 35b, router 38.

    Three switches 36 make up the fabric, each joined to both others.  An I/O adapter is a backplane with a switch of
    its own and adapter cards (SCSI, Fibre Channel; Ethernet, graphics), which are endnodes under the adapter's host
    name (document 003:448-455).  The RAID subsystem has two ports, on two switches; the router keeps a port for the
    world.
    """
    build = _Builder("san", cable)
    a, b, c = (build.switch(f"switch-36{letter}") for letter in "abc")
    build.join((a, b), (b, c), (c, a))
    for letter, switch in zip("abcd", (a, a, b, b), strict=True):
        build.join((build.endnode(f"host-34{letter}", "processor"), switch))
    raid = build.endnode("raid-33", "raid", 2)
    build.join((raid, b), (raid, c))
    cards = {"a": ("scsi", "fibre-channel"), "b": ("ethernet", "graphics")}
    for letter in "ab":
        adapter = f"io-35{letter}"
        backplane = build.switch(f"{adapter}-switch", 4, "backplane", adapter)
        build.join((backplane, c))
        for card in cards[letter]:
            build.join((build.endnode(f"{adapter}-{card}", "io card", host=adapter), backplane))
    build.join((build.router("router-38"), c))
    return build.topology


def two_subnets(cable: Cable) -> Topology:
    """Document 003, Figure 6: subnets A (252) and B (254), joined by the router pairs 268a-270a and 268b-270b.

    Each subnet has two host processors and three cascaded switches, joined in a circle (document 003:579-583).
    """
    build = _Builder("two-subnets", cable)
    for hosts, number, routers in (((256, 258), 264, 268), ((260, 262), 266, 270)):
        a, b, c = (build.switch(f"switch-{number}{letter}") for letter in "abc")
        build.join((a, b), (b, c), (c, a))
        build.join(*((build.endnode(f"host-{host}", "processor"), a) for host in hosts))
        for letter, switch in (("a", b), ("b", c)):
            build.join((build.router(f"router-{routers}{letter}"), switch))
    build.join(("router-268a", "router-270a"), ("router-268b", "router-270b"))
    return build.topology


def transaction(cable: Cable) -> Topology:
    """Document 003, Figure 8: hosts 302 and 304 over switches 310 and 312 and links 314, 316, 318 (003:672)."""
    build = _Builder("transaction", cable)
    hosts = [build.endnode(f"host-{number}", "processor") for number in (302, 304)]
    switches = [build.switch(f"switch-{number}") for number in (310, 312)]
    build.join((hosts[0], switches[0]), (switches[0], switches[1]), (hosts[1], switches[1]))
    return build.topology


def cascade(cable: Cable) -> Topology:
    """Document 001, Figure 1: processors 102 and 110, I/O devices 126 to 138, cascaded switches 120A to 120C."""
    build = _Builder("cascade", cable)
    a, b, c = (build.switch(f"switch-120{letter}") for letter in "ABC")
    build.join((a, b), (b, c))
    for name, role, switch in (
        ("processor-102", "processor", a),
        ("io-126", "io device", a),
        ("io-130", "io device", a),
        ("io-134", "io device", b),
        ("processor-110", "processor", c),
        ("io-138", "io device", c),
    ):
        build.join((build.endnode(name, role), switch))
    return build.topology
