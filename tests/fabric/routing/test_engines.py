"""Every engine on every kind of fabric: everybody is reached, nothing loops, what is promised holds."""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import routing_lab as lab
from verbena.fabric.routing import ENGINES, RoutingError, RoutingGraph, find_cycle, route, trace
from verbena.fabric.topology import Topology

FABRICS = {
    "star": lambda: lab.star(5),
    "ring": lambda: lab.ring(6, hosts=2),
    "ring of double cables": lambda: lab.ring(5, cables=2),
    "mesh": lambda: lab.torus((3, 4), wrap=False),
    "torus": lambda: lab.torus((4, 5)),
    "torus of three dimensions": lambda: lab.torus((3, 4, 5), coordinates=True),
    "fat tree": lambda: lab.fat_tree(4),
    "two levels": lambda: lab.two_level(4, 2, 3, cables=2),
    "dragonfly": lambda: lab.dragonfly(),
    "random": lambda: lab.random_fabric(Random(7), 14, 9),
}
COMPUTED = [name for name in ENGINES if name != "file"]
MINIMAL = ("minhop", "layered")
DEADLOCK_FREE = [name for name in COMPUTED if name != "minhop"]


@pytest.fixture(params=FABRICS, scope="module")
def fabric(request: pytest.FixtureRequest) -> RoutingGraph:
    return lab.graph_of(FABRICS[request.param](), lmc=1)


def reaches_all(graph: RoutingGraph, routing: object) -> None:
    for end in graph.ends:
        for lid, s in itertools.product(end.lids, range(len(graph.switches))):
            assert lab.walk(graph, routing, s, lid) is not None, f"{graph.switches[s]} -> {lid}"


@pytest.mark.requirement("SUB-05")
@pytest.mark.parametrize("engine", COMPUTED)
def test_every_lid_is_reached_from_every_switch(fabric: RoutingGraph, engine: str) -> None:
    routing = route(fabric, engine)
    reaches_all(fabric, routing)
    assert not [w for w in routing.warnings if "reached" in w]


@pytest.mark.parametrize("engine", COMPUTED)
def test_the_deadlock_check_agrees_with_a_plain_one(fabric: RoutingGraph, engine: str) -> None:
    routing = route(fabric, engine)
    free = lab.is_acyclic(lab.dependencies(fabric, routing))
    assert (find_cycle(fabric, routing) is None) == free
    if engine in DEADLOCK_FREE:
        assert free


@pytest.mark.parametrize("engine", MINIMAL)
def test_ways_are_the_shortest(fabric: RoutingGraph, engine: str) -> None:
    routing = route(fabric, engine)
    for s in range(len(fabric.switches)):
        far = lab.hops(fabric, s)
        for end in fabric.ends:
            for lid in end.lids:
                assert len(lab.walk(fabric, routing, s, lid)) - 1 == far[end.switch]


def test_lanes_stay_within_what_the_routing_says(fabric: RoutingGraph) -> None:
    for engine in COMPUTED:
        routing = route(fabric, engine)
        lids = [end.lid for end in fabric.ends]
        used = {routing.sl(a, b) for a in lids for b in lids}
        assert used <= set(range(routing.lanes)), engine


# --- up and down ------------------------------------------------------------------------------------------------


def order_from(graph: RoutingGraph, root: int) -> list[tuple[int, int]]:
    far = lab.hops(graph, root)
    return [(far[s], s) for s in range(len(graph.switches))]


def turns(graph: RoutingGraph, channels: list[int], order: list[tuple[int, int]]) -> list[bool]:
    """For each cable on the way: does it go up?"""
    return [order[graph.owner[graph.peer[c]]] < order[graph.owner[c]] for c in channels[:-1]]


@pytest.mark.parametrize("root", [0, 3])
def test_no_way_goes_up_after_it_went_down(root: int) -> None:
    for topology in (lab.ring(7), lab.torus((4, 4)), lab.dragonfly(), lab.random_fabric(Random(3), 15, 12)):
        graph = lab.graph_of(topology)
        order = order_from(graph, root)
        routing = route(graph, "updn", roots=[graph.switches[root]])
        for end in graph.ends:
            for s in range(len(graph.switches)):
                ups = turns(graph, lab.walk(graph, routing, s, end.lid), order)
                assert ups == sorted(ups, reverse=True)


def test_up_and_down_takes_all_the_spines_for_roots() -> None:
    graph = lab.graph_of(lab.two_level(4, 3, 3))
    routing = route(graph, "updn")
    used = Counter(
        routing.tables[graph.index["leaf0"]][end.lid]
        for end in graph.ends
        if not end.is_switch and graph.switches[end.switch] != "leaf0"
    )
    assert sorted(used.values()) == [3, 3, 3]


def test_roots_that_leave_pairs_without_a_way_are_told() -> None:
    topology = lab.two_level(3, 2, 1)
    for leaf, spine in (("leaf0", "spine0"), ("leaf1", "spine1")):
        link = next(li for li in topology.links_of(leaf) if spine in (li.a.node, li.b.node))
        topology.disconnect(link.a)
    graph = lab.graph_of(topology)
    routing = route(graph, "updn", roots=["spine0", "spine1"])
    assert "without a legal way" in routing.warnings[0]
    reaches_all(graph, routing)
    assert find_cycle(graph, routing) is None


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        ("updn", {"roots": ["nobody"]}, "root nobody"),
        ("updn", {"roots": []}, "no roots"),
        ("ftree", {"leaves": ["nobody"]}, "leaf nobody"),
        ("minhop", {"speed": 3}, "speed"),
        ("minhop", {"lanes": 0}, "0 lanes"),
        ("minhop", {"lanes": 16}, "16 lanes"),
        ("magic", {}, "minhop, updn, ftree"),
    ],
)
def test_options_that_cannot_be_are_refused(engine: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(RoutingError, match=message):
        route(lab.graph_of(lab.ring(4)), engine, **options)


# --- balance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cables", [1, 2, 3])
def test_min_hop_balances_the_lids_over_equal_ports(cables: int) -> None:
    graph = lab.graph_of(lab.two_level(4, 4, 7, cables=cables))
    routing = route(graph, "minhop")
    for leaf in range(4):
        used = Counter(routing.tables[leaf][end.lid] for end in graph.ends if end.port and end.switch != leaf)
        assert len(used) == min(4 * cables, 21)
        assert max(used.values()) - min(used.values()) <= 1


def test_lanes_of_layers_are_balanced() -> None:
    graph = lab.graph_of(lab.ring(8, hosts=2))
    routing = route(graph, "layered")
    lids = [end.lid for end in graph.ends if end.port]
    used = Counter(routing.sl(a, b) for a in lids for b in lids)
    assert routing.lanes == len(used) == 2
    assert min(used.values()) > 0.3 * sum(used.values())


# --- rings and lanes --------------------------------------------------------------------------------------------


@pytest.mark.requirement("LNK-16")
@pytest.mark.parametrize("length", [4, 5, 6, 9])
def test_a_ring_on_one_lane_can_deadlock_and_on_two_cannot(length: int) -> None:
    graph = lab.graph_of(lab.ring(length))
    one = route(graph, "minhop")
    cycle = find_cycle(graph, one)
    assert cycle is not None
    assert cycle.lid is None
    for here, there in itertools.pairwise([*cycle, cycle[0]]):
        assert (here.peer, here.lane) == (there.switch, 0)
    assert len({channel.switch for channel in cycle}) == length
    assert f"{cycle[0].switch}[{cycle[0].port}] -> {cycle[0].peer}[{cycle[0].peer_port}] lane 0" in str(cycle)
    for engine in ("layered", "dor"):
        two = route(graph, engine, lanes=2)
        assert two.lanes <= 2
        assert find_cycle(graph, two) is None
        assert all(two.tables[s][end.lid] != 255 for s in range(length) for end in graph.ends)


def test_layers_name_the_number_of_lanes_that_they_need() -> None:
    graph = lab.graph_of(lab.ring(6))
    with pytest.raises(RoutingError, match="needs 2 lanes and there are 1"):
        route(graph, "layered", lanes=1)
    assert route(lab.graph_of(lab.fat_tree(4)), "layered", lanes=1).lanes == 1


def test_a_packet_keeps_its_lane() -> None:
    """The lane depends on source and destination only, so it is the same at every switch on the way."""
    graph = lab.graph_of(lab.torus((5, 5)))
    routing = route(graph, "dor")
    hosts = [end.lid for end in graph.ends if end.port]
    for a, b in itertools.product(hosts, hosts):
        assert trace(graph, routing, a, b).lane == routing.sl(a, b)


# --- random fabrics ---------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    switches=st.integers(1, 16),
    extra=st.integers(0, 20),
    hosts=st.integers(0, 2),
    engine=st.sampled_from(COMPUTED),
)
def test_random_fabrics(seed: int, switches: int, extra: int, hosts: int, engine: str) -> None:
    graph = lab.graph_of(lab.random_fabric(Random(seed), switches, extra, hosts))
    routing = route(graph, engine)
    reaches_all(graph, routing)
    free = lab.is_acyclic(lab.dependencies(graph, routing))
    assert (find_cycle(graph, routing) is None) == free
    assert free or engine == "minhop"


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), switches=st.integers(2, 12), cables=st.integers(0, 12))
def test_fabrics_in_parts_have_no_invented_ways(seed: int, switches: int, cables: int) -> None:
    random = Random(seed)
    topology = Topology()
    for i in range(switches):
        topology.add_switch(f"s{i}", 60)
    for _ in range(cables):
        topology.connect(*(f"s{i}" for i in random.sample(range(switches), 2)))
    graph = lab.graph_of(lab.with_hosts(topology))
    for engine in COMPUTED:
        routing = route(graph, engine)
        told = "\n".join(routing.warnings)
        for s, end in itertools.product(range(switches), graph.ends):
            connected = end.switch in lab.hops(graph, s)
            assert (lab.walk(graph, routing, s, end.lid) is not None) == connected
            assert (routing.tables[s][end.lid] == 255) != connected
            assert connected or f"({end.name}) cannot be reached from" in told
