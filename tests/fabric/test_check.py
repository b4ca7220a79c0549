"""What is wrong with a topology: errors and warnings, each naming its element."""

from __future__ import annotations

from dataclasses import replace

import pytest

from verbena.fabric.check import Severity, check, require
from verbena.fabric.generators import generate
from verbena.fabric.rates import LinkRate
from verbena.fabric.topology import Link, PortId, Topology, TopologyError


def only(topology: Topology, severity: Severity) -> str:
    """The one problem of a topology."""
    problems = check(topology)
    assert [problem.severity for problem in problems] == [severity]
    assert list(topology.problems()) == [str(problems[0])]
    return str(problems[0])


def refused(topology: Topology) -> str:
    said = only(topology, Severity.ERROR)
    with pytest.raises(TopologyError) as caught:
        require(topology)
    assert str(caught.value) == said
    return said


def warned(topology: Topology) -> str:
    said: list[str] = []
    require(topology, said.append)
    assert said == [only(topology, Severity.WARNING)]
    return said[0]


def by_hand(topology: Topology, a: PortId, b: PortId) -> Link:
    """A link that nobody checked."""
    link = Link(a, b)
    topology.links.append(link)
    topology.at[a] = topology.at[b] = link
    return link


def test_a_sound_fabric_has_no_problems() -> None:
    assert check(generate("fat-tree", k=4)) == []
    assert check(Topology()) == []
    require(Topology())


def test_a_duplicate_guid() -> None:
    topology = generate("star", hosts=3)
    topology.nodes["h2"].guid = topology.nodes["h0"].guid - 1  # its port has the GUID of h0
    assert refused(topology) == "CA h2: GUID 0x0276620000000100 is also CA h0's"


@pytest.mark.parametrize("guid", [0, -1, 1 << 64])
def test_a_guid_that_is_none(guid: int) -> None:
    topology = generate("star", hosts=2)
    topology.switches[0].guid = guid
    assert refused(topology) == f"SWITCH s1-0: GUID {guid:#x} is not from 1 to 2^64 - 1"


def test_two_lids_alike() -> None:
    topology = generate("star", hosts=3)
    topology.nodes["h0"].set_lid(1, 4, 1)
    topology.nodes["h2"].set_lid(1, 5)
    assert refused(topology) == "h2[1]: LID 0x5 is h0[1]'s"
    topology.nodes["h2"].set_lid(1, 6)
    assert check(topology) == []


def test_lids_alike_in_two_subnets_are_well() -> None:
    topology = generate("two-subnets")
    topology.nodes["host-256"].set_lid(1, 5)
    topology.nodes["host-260"].set_lid(1, 5)
    assert check(topology) == []


def test_a_lid_out_of_range() -> None:
    topology = generate("star", hosts=3)
    topology.nodes["h0"].set_lid(1, 0x1_0000)
    assert refused(topology) == "h0[1]: LID 0x10000 with LMC 0 is not in 0x0001 to 0xbfff"


def test_more_than_a_subnet_has_lids_for() -> None:
    topology = generate("fat-tree", k=12)
    for host in topology.hosts:
        host.lmc = 7
    assert refused(topology) == "subnet 1: its 612 ports need 55,476 LIDs, and there are 49,151"


@pytest.mark.parametrize("port", [0, 4, -1])
def test_a_port_beyond_the_switch(port: int) -> None:
    topology = generate("star", hosts=3)
    topology.add_host("h3")
    by_hand(topology, PortId("h3", 1), PortId("s1-0", port))
    assert refused(topology) == f"link h3[1] - s1-0[{port}]: SWITCH s1-0 has ports 1 to 3"


def test_a_dangling_link() -> None:
    topology = generate("star", hosts=3)
    del topology.nodes["h1"]
    assert refused(topology) == "link h1[1] - s1-0[2]: there is no node h1"


def test_a_port_in_two_links() -> None:
    topology = generate("star", hosts=3)
    topology.add_host("h3")
    link = topology.links[0]
    topology.links.append(Link(PortId("h3", 1), link.b))
    topology.at[PortId("h3", 1)] = topology.links[-1]
    said = [str(problem) for problem in check(topology)]
    assert "link h3[1] - s1-0[1]: s1-0[1] is also connected to h0[1]" in said


def test_a_link_to_itself() -> None:
    topology = generate("line", switches=2)
    by_hand(topology, PortId("s0", 2), PortId("s0", 2))
    assert refused(topology) == "link s0[2] - s0[2]: it leads to itself"


def test_a_cable_between_two_ports_of_a_switch_is_odd_but_possible() -> None:
    topology = Topology()
    topology.add_switch("s0", 4)
    topology.connect("s0", "s0")
    assert warned(topology) == "link s0[1] - s0[2]: both ends are at the same node"


def test_a_link_that_cannot_be() -> None:
    topology = generate("star", hosts=2)
    link = topology.links[0]
    worse = replace(link, delay_ns=-1)
    topology.links[0] = topology.at[link.a] = topology.at[link.b] = worse
    assert "delay -1 ns" in refused(topology)


@pytest.mark.parametrize("ports", [0, 255])
def test_a_switch_with_too_many_ports_or_none(ports: int) -> None:
    topology = Topology()
    topology.add_switch("s0", 4).ports = ports
    assert refused(topology) == f"SWITCH s0: {ports} ports; it must have 1 to 254"


def test_an_unreachable_node() -> None:
    topology = generate("star", hosts=2)
    topology.add_host("lonely")
    assert warned(topology) == "CA lonely: it is not connected to anything"


def test_parts_that_nothing_joins() -> None:
    topology = generate("ring", switches=4)
    for a, b in (("s0", "s1"), ("s2", "s3")):
        link = next(link for link in topology.links if {link.a.node, link.b.node} == {a, b})
        topology.disconnect(link.a)
    assert warned(topology) == "the fabric falls into 2 parts (4, 4 nodes) that no link joins"
    assert check(generate("two-subnets")) == []  # routers join


def test_mixed_rates() -> None:
    topology = generate("star", hosts=3)
    link = topology.disconnect(PortId("h1", 1))
    topology.connect(link.a, link.b, rate=LinkRate.parse("4xQDR"))
    assert warned(topology) == "links of different rates: 2 4xEDR, 1 4xQDR; senders may fill the slower ones"


def test_a_fabric_too_long_for_directed_routes() -> None:
    assert check(generate("line", switches=62)) == []
    said = warned(generate("line", switches=70))
    assert said.startswith("CA h0: the farthest node is 71 hops away; directed routes")
