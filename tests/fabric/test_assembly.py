"""Cables and nodes of a built topology: what is plugged in stays plugged in, on or off."""

from __future__ import annotations

import pytest

from verbena.fabric.assembly import Assembly
from verbena.fabric.topology import Link, PortId, Topology, TopologyError

FIRST, SECOND = PortId("s0", 1), PortId("s0", 4)


def ring() -> tuple[Topology, Assembly]:
    """Three switches in a ring, each with a host and a port to spare."""
    topology = Topology()
    for number in range(3):
        topology.add_switch(f"s{number}", ports=4)
        topology.add_host(f"h{number}")
    for number in range(3):
        topology.connect(PortId(f"s{number}", 1), PortId(f"s{(number + 1) % 3}", 2))
        topology.connect(f"h{number}", PortId(f"s{number}", 3))
    return topology, Assembly(topology)


def up(assembly: Assembly) -> set[str]:
    return {str(port) for port in assembly.ports if port.port and assembly.is_up(port)}


def test_a_node_that_was_off_is_as_before() -> None:
    topology, assembly = ring()
    before, links = up(assembly), {frozenset((link.a, link.b)) for link in topology.links}
    for name in ("s0", "s1", "h0"):
        assembly.power_off(name)
    assert up(assembly) == {"s2[3]", "h2[1]"}
    for name in ("s0", "h0", "s1"):
        assembly.power_on(name)
    assert up(assembly) == before
    assert {frozenset((link.a, link.b)) for link in topology.links} == links


def test_the_cable_of_a_node_that_is_off_is_still_in_its_ports() -> None:
    topology, assembly = ring()
    assembly.power_off("s0")
    for other in (PortId("s2", 4), PortId("h2", 1)):
        with pytest.raises(
            TopologyError, match=r"s1\[2\]: the port has a cable already, to s0\[1\]; s0 is off"
        ):
            assembly.plug(Link(PortId("s1", 2), other))
    assembly.power_on("s0")
    assert len(topology.links) == 6
    assert "s1[2]" in up(assembly)


def test_the_cable_of_a_node_that_is_off_can_be_pulled_and_plugged_elsewhere() -> None:
    _, assembly = ring()
    assembly.power_off("s0")
    pulled = assembly.pull(PortId("s1", 2))
    assert {pulled.a, pulled.b} == {FIRST, PortId("s1", 2)}
    with pytest.raises(TopologyError, match=r"s1\[2\] is not connected"):
        assembly.pull(PortId("s1", 2))
    assembly.plug(Link(PortId("s1", 2), PortId("s2", 4)))
    assert {"s1[2]", "s2[4]"} <= up(assembly)
    assembly.power_on("s0")
    assert "s0[1]" not in up(assembly)
    assert {"s0[2]", "s0[3]"} <= up(assembly)


def test_a_cable_to_a_node_that_is_off_is_dead_until_it_is_on() -> None:
    _, assembly = ring()
    assembly.power_off("s0")
    assembly.plug(Link(SECOND, PortId("s2", 4)))
    assert not up(assembly) & {"s0[4]", "s2[4]"}
    with pytest.raises(TopologyError, match=r"s2\[4\]: the port has a cable already"):
        assembly.plug(Link(PortId("s1", 4), PortId("s2", 4)))
    with pytest.raises(TopologyError, match="has ports 1 to 4"):
        assembly.plug(Link(PortId("s0", 5), PortId("s1", 4)))
    assembly.power_on("s0")
    assert {"s0[4]", "s2[4]"} <= up(assembly)


def test_changes_that_cannot_be() -> None:
    _, assembly = ring()
    assembly.power_off("s0")
    with pytest.raises(TopologyError, match="s0 is off already"):
        assembly.power_off("s0")
    with pytest.raises(TopologyError, match="s1 is on"):
        assembly.power_on("s1")
    for change in (assembly.power_off, assembly.power_on):
        with pytest.raises(TopologyError, match="there is no node s9"):
            change("s9")
