"""Spanning trees of multicast groups: everybody gets one copy, wherever it is sent; nothing more is used."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import routing_lab as lab
from verbena.fabric.routing import MulticastTree, RoutingError, RoutingGraph, multicast_tree


def delivered(graph: RoutingGraph, tree: MulticastTree, source: int) -> list[int]:
    """LIDs of the members that a packet from one of them gets to; each as often as it does."""
    start = graph.end_of(source)
    at = {(end.switch, end.port): end.lid for end in graph.ends}
    got = []
    edge = [(start.switch, start.port)]
    for steps, (s, came_by) in enumerate(edge):
        assert steps <= len(graph.switches), "the packet goes in circles"
        for port in tree[s] - {came_by}:
            if (s, port) in at:
                got.append(at[s, port])
            else:
                edge.append(graph.neighbour(s, port))
    return got


@given(
    seed=st.integers(0, 2**32),
    switches=st.integers(1, 14),
    extra=st.integers(0, 15),
    count=st.integers(1, 9),
    choice=st.integers(0, 9),
)
def test_every_member_gets_one_copy(seed: int, switches: int, extra: int, count: int, choice: int) -> None:
    random = Random(seed)
    graph = lab.graph_of(lab.random_fabric(random, switches, extra, hosts=2))
    lids = [end.lid for end in graph.ends]
    members = random.sample(lids, min(count, len(lids)))
    tree = multicast_tree(graph, members, choice=choice)
    assert tree.unreached == []
    for source in members:
        assert sorted(delivered(graph, tree, source)) == sorted(set(members) - {source})
    used = sum(graph.neighbour(s, port) is not None for s, ports in tree.items() for port in ports)
    assert used == 2 * (len(tree) - 1), "a tree has a cable less than switches"
    for s, ports in tree.items():  # nothing hangs in it that leads to no member
        end_ports = {end.port for end in graph.ends if end.switch == s and end.lid in members}
        assert end_ports <= ports
        assert len(ports) > 1 or ports == end_ports


def test_groups_take_turns_with_the_roots() -> None:
    graph = lab.graph_of(lab.two_level(4, 3, 2))
    hosts = [end.lid for end in graph.ends if end.port]
    spines = []
    for choice in range(6):
        tree = multicast_tree(graph, hosts, choice=choice)
        spines += [graph.switches[s] for s in tree if graph.switches[s].startswith("spine")]
    assert sorted(spines) == sorted(["spine0", "spine1", "spine2"] * 2)


def test_members_on_one_switch_need_no_other() -> None:
    graph = lab.graph_of(lab.two_level(3, 2, 3))
    here = [end for end in graph.ends if end.port and end.switch == 1]
    assert multicast_tree(graph, [end.lid for end in here]) == {1: {end.port for end in here}}
    assert multicast_tree(graph, []) == {}


def test_members_that_cannot_be_reached_are_told() -> None:
    topology = lab.torus((4,), wrap=False)
    topology.disconnect(next(li.a for li in topology.links if {li.a.node, li.b.node} == {"s2", "s3"}))
    graph = lab.graph_of(topology)
    hosts = {end.name: end.lid for end in graph.ends if end.port}
    tree = multicast_tree(graph, hosts.values())
    assert tree.unreached == [hosts["h3[1]"]]
    assert sorted(tree) == [0, 1, 2]
    with pytest.raises(RoutingError, match="0x1ff belongs to nobody"):
        multicast_tree(graph, [0x1FF])
