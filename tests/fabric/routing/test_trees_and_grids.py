"""Fat trees and grids: what is recognized, what each promises, and what happens where there is none."""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random

import pytest

import routing_lab as lab
from verbena.fabric.routing import RoutingGraph, find_cycle, route, trace
from verbena.fabric.routing.grid import Grid, grid_of
from verbena.fabric.topology import Topology


def most_flows(graph: RoutingGraph, routing: object, order: list[str], shifts: range) -> int:
    """The most flows on one channel when every host sends to the one `shift` places on."""
    at = {end.name: end for end in graph.ends}
    hosts = [at[name] for name in order]
    worst = 0
    for shift in shifts:
        flows: Counter[int] = Counter()
        for i, source in enumerate(hosts):
            dest = hosts[(i + shift) % len(hosts)]
            flows.update(lab.walk(graph, routing, source.switch, dest.lid))
        worst = max(worst, *flows.values())
    return worst


def names(topology: Topology) -> list[str]:
    return [f"{host.name}[1]" for host in topology.hosts]


# --- fat trees --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [None, 1, 2])
@pytest.mark.parametrize("k", [4, 6, 8])
def test_a_shift_of_all_hosts_meets_on_no_link_of_a_full_fat_tree(k: int, shuffle: int | None) -> None:
    """However the upper switches are named and the cables plugged in."""
    topology = lab.fat_tree(k, Random(shuffle) if shuffle else None)
    graph = lab.graph_of(topology)
    routing = route(graph, "ftree")
    assert routing.engine == "ftree"
    assert most_flows(graph, routing, names(topology), range(1, k**3 // 4)) == 1
    assert find_cycle(graph, routing) is None


@pytest.mark.parametrize(("leaves", "spines", "hosts", "cables"), [(4, 4, 4, 1), (4, 2, 4, 2), (5, 3, 6, 2)])
def test_a_shift_in_two_levels_with_several_cables(leaves: int, spines: int, hosts: int, cables: int) -> None:
    topology = lab.two_level(leaves, spines, hosts, cables)
    graph = lab.graph_of(topology)
    assert most_flows(graph, route(graph, "ftree"), names(topology), range(1, leaves * hosts)) == 1


def test_fewer_links_up_than_hosts_are_shared_evenly() -> None:
    topology = lab.two_level(4, 2, 6)
    graph = lab.graph_of(topology)
    assert most_flows(graph, route(graph, "ftree"), names(topology), range(6, 19)) == 3


def test_min_hop_alone_does_not_do_that() -> None:
    """The test above can fail: a routing that is balanced, but not by the hosts' order, has two flows on a link."""
    topology = lab.fat_tree(8, Random(5))
    graph = lab.graph_of(topology)
    assert most_flows(graph, route(graph, "minhop"), names(topology), range(1, 128, 7)) > 1


@pytest.mark.requirement("SUB-05")
@pytest.mark.parametrize("seed", range(6))
def test_a_tree_with_missing_links_and_switches_is_still_routed_as_one(seed: int) -> None:
    random = Random(seed)
    topology = lab.fat_tree(6)
    before = route(lab.graph_of(topology), "ftree")
    inner = [link for link in topology.links if not link.a.node.startswith("h")]
    for link in random.sample(inner, 4):
        topology.disconnect(link.a)
    topology.remove(f"c{random.randrange(9)}")
    graph = lab.graph_of(topology)
    for routing in (route(graph, "ftree"), route(graph, "ftree", previous=before)):
        assert routing.engine == "ftree"
        for s, end in itertools.product(range(len(graph.switches)), graph.ends):
            assert lab.walk(graph, routing, s, end.lid) is not None
        assert find_cycle(graph, routing) is None
        assert lab.is_acyclic(lab.dependencies(graph, routing))


def test_hosts_above_the_leaves_need_the_leaves_named() -> None:
    topology = lab.two_level(3, 2, 2)
    spine = topology.add_switch("spine2", 4)
    for i in range(3):
        topology.disconnect(topology.links_of(f"leaf{i}")[0].a)
        topology.connect(f"leaf{i}", spine.name)
    topology.connect(topology.add_host("manager").name, spine.name)
    graph = lab.graph_of(topology)
    fallen = route(graph, "ftree")
    assert fallen.engine == "updn"
    assert "no fat tree" in fallen.warnings[0]
    named = route(graph, "ftree", leaves=["leaf0", "leaf1", "leaf2"])
    assert named.engine == "ftree"
    assert find_cycle(graph, named) is None


@pytest.mark.parametrize("topology", [lab.ring(5), lab.dragonfly(), lab.torus((3, 3))])
def test_what_is_no_tree_is_routed_up_and_down_and_told(topology: Topology) -> None:
    graph = lab.graph_of(topology)
    routing = route(graph, "ftree")
    assert routing.engine == "updn"
    assert "no fat tree" in routing.warnings[0]


def test_a_ring_with_hosts_at_every_second_switch_looks_like_a_tree_and_is_none() -> None:
    topology = Topology()
    for i in range(8):
        topology.add_switch(f"s{i}", 4)
    for i in range(8):
        topology.connect(f"s{i}", f"s{(i + 1) % 8}")
    for i in range(0, 8, 2):
        topology.connect(topology.add_host(f"h{i}").name, f"s{i}")
    routing = route(lab.graph_of(topology), "ftree")
    assert routing.engine == "updn"
    assert "no way that goes up and then down" in routing.warnings[0]


# --- meshes and tori --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["coordinates", "wiring"])
@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("sizes", [(5,), (3, 5), (5, 6), (3, 5, 6), (2, 3, 5)])
def test_grids_are_recognized(sizes: tuple[int, ...], wrap: bool, told: str) -> None:
    shuffle = Random(len(sizes)) if told == "wiring" else None
    graph = lab.graph_of(lab.torus(sizes, wrap=wrap, coordinates=told == "coordinates", shuffle=shuffle))
    grid = grid_of(graph)
    assert isinstance(grid, Grid)
    assert sorted(grid.sizes) == sorted(sizes)
    assert all(ring == (wrap and n > 2) for n, ring in zip(grid.sizes, grid.wraps, strict=True))
    for s, here in enumerate(grid.places):
        for _, t, _ in graph.neighbours(s):
            assert grid.step(here, grid.places[t]) is not None


@pytest.mark.parametrize("sizes", [(5,), (5, 6), (3, 5, 4), (4, 4)])
def test_dimension_order_in_a_torus(sizes: tuple[int, ...]) -> None:
    graph = lab.graph_of(lab.torus(sizes, coordinates=True))
    routing = route(graph, "dor")
    assert routing.engine == "dor"
    assert routing.lanes == 2 ** sum(n > 3 for n in sizes)
    grid = grid_of(graph)
    assert isinstance(grid, Grid)
    used = set()
    for s, end in itertools.product(range(len(graph.switches)), graph.ends):
        way = lab.walk(graph, routing, s, end.lid)
        assert len(way) - 1 == lab.hops(graph, s)[end.switch]
        places = [grid.places[graph.owner[c]] for c in way]
        order = [grid.step(a, b)[0] for a, b in itertools.pairwise(places)]
        assert order == sorted(order), "one dimension after the other"
        used.add(routing.layers[s][end.lid])
    assert used == set(range(routing.lanes))
    assert lab.is_acyclic(lab.dependencies(graph, routing))


def test_the_same_torus_with_all_paths_on_one_lane_can_deadlock() -> None:
    graph = lab.graph_of(lab.torus((5, 5)))
    routing = route(graph, "dor")
    assert find_cycle(graph, routing) is None
    routing.layers = None
    assert find_cycle(graph, routing) is not None


def test_dimension_order_without_enough_lanes_is_routed_in_layers() -> None:
    graph = lab.graph_of(lab.torus((5, 5, 5), coordinates=True))
    routing = route(graph, "dor", lanes=4)
    assert routing.engine == "layered"
    assert "needs 8 lanes here and there are 4" in routing.warnings[0]
    assert routing.lanes <= 4
    assert find_cycle(graph, routing) is None


def test_a_torus_with_a_missing_cable_or_switch_is_routed_in_layers() -> None:
    for hurt in ("cable", "switch"):
        topology = lab.torus((4, 5), coordinates=True)
        if hurt == "cable":
            topology.disconnect(topology.links_of("s0")[0].a)
        else:
            topology.remove("s7")
        graph = lab.graph_of(topology)
        routing = route(graph, "dor")
        assert routing.engine == "layered"
        assert "missing" in routing.warnings[0]
        assert find_cycle(graph, routing) is None


@pytest.mark.parametrize("topology", [lab.dragonfly(), lab.fat_tree(4), lab.random_fabric(Random(1), 9, 7)])
def test_what_is_no_grid_is_routed_in_layers_and_told(topology: Topology) -> None:
    graph = lab.graph_of(topology)
    routing = route(graph, "dor")
    assert routing.engine == "layered"
    assert "no mesh or torus" in routing.warnings[0]


def test_coordinates_that_the_cables_contradict() -> None:
    topology = lab.torus((3, 3), wrap=False, coordinates=True)
    place = topology.nodes["s0"].extras
    place["coordinates"], topology.nodes["s8"].extras["coordinates"] = [2, 2], [0, 0]
    routing = route(lab.graph_of(topology), "dor")
    assert "does not join neighbours" in routing.warnings[0]


def test_side_by_side_cables_share_the_lids() -> None:
    graph = lab.graph_of(lab.torus((5, 5), hosts=4, cables=2, coordinates=True))
    routing = route(graph, "dor")
    row = routing.tables[0]
    used = Counter(row[end.lid] for end in graph.ends if end.port and end.switch)
    steps: Counter[int] = Counter()
    for port, t, _ in graph.neighbours(0):
        steps[t] += used[port]
    for port, t, _ in graph.neighbours(0):
        assert abs(used[port] - steps[t] / 2) <= 1
    assert trace(graph, routing, graph.ends[-1].lid, graph.ends[30].lid).arrives
