"""Several LIDs of a port, ways there and back, failures, tables that were given, hand-made mistakes."""

from __future__ import annotations

import itertools
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import routing_lab as lab
from verbena.fabric.routing import (
    End,
    RoutingError,
    RoutingGraph,
    check,
    dump_tables,
    find_cycle,
    route,
    trace,
)
from verbena.fabric.topology import PortId, Topology


def lid_of(graph: RoutingGraph, name: str) -> int:
    return next(end.lid for end in graph.ends if end.name == name)


# --- several LIDs -----------------------------------------------------------------------------------------------


@pytest.mark.requirement("NOD-12")
@pytest.mark.parametrize("engine", ["minhop", "ftree", "updn"])
def test_two_lids_of_a_port_are_reached_over_different_switches(engine: str) -> None:
    graph = lab.graph_of(lab.two_level(4, 4, 3), lmc=2)
    routing = route(graph, engine)
    hosts = [end for end in graph.ends if end.port]
    for a, b in itertools.permutations(hosts, 2):
        if a.switch == b.switch:
            continue
        over = [trace(graph, routing, a.lid, lid).switches[1] for lid in b.lids]
        assert len(set(over)) == 4, f"{a.name} to {b.name}: {over}"


@pytest.mark.requirement("NOD-12")
@pytest.mark.parametrize("engine", ["minhop", "ftree", "updn", "layered"])
def test_two_lids_share_no_link_in_a_fat_tree(engine: str) -> None:
    graph = lab.graph_of(lab.fat_tree(4), lmc=1)
    routing = route(graph, engine)
    hosts = [end for end in graph.ends if end.port]
    for a, b in itertools.permutations(hosts, 2):
        first, second = (set(lab.walk(graph, routing, a.switch, lid)[:-1]) for lid in b.lids)
        assert not first & second, f"{a.name} to {b.name}"


def test_with_a_single_way_two_lids_share_it() -> None:
    graph = lab.graph_of(lab.torus((3,), wrap=False), lmc=1)
    routing = route(graph, "minhop")
    for end in graph.ends:
        if end.port:
            first, second = (lab.walk(graph, routing, 1, lid) for lid in end.lids)
            assert first == second


@pytest.mark.requirement("NOD-12")
@pytest.mark.parametrize("engine", ["minhop", "layered"])
def test_asked_for_second_ways_share_no_cable_even_in_a_ring(engine: str) -> None:
    for topology in (lab.ring(4), lab.ring(7), lab.torus((4, 5)), lab.torus((3, 3), wrap=False)):
        graph = lab.graph_of(topology, lmc=2)
        routing = route(graph, engine, disjoint=True)
        hosts = [end for end in graph.ends if end.port]
        for a, b in itertools.permutations(hosts, 2):
            ways = [
                {min(c, graph.peer[c]) for c in lab.walk(graph, routing, a.switch, lid)[:-1]}
                for lid in b.lids
            ]
            assert len(ways[0]) == lab.hops(graph, a.switch)[b.switch]
            assert any(not ways[0] & way for way in ways[1:]), f"{a.name} to {b.name}"
        assert engine == "minhop" or find_cycle(graph, routing) is None


@given(seed=st.integers(0, 2**32), switches=st.integers(2, 10), extra=st.integers(0, 12))
def test_separating_ways_loses_nobody(seed: int, switches: int, extra: int) -> None:
    graph = lab.graph_of(lab.random_fabric(Random(seed), switches, extra), lmc=1)
    apart = []
    for disjoint in (False, True):
        routing = route(graph, "minhop", disjoint=disjoint)
        count = 0
        for s, end in itertools.product(range(switches), graph.ends):
            ways = [lab.walk(graph, routing, s, lid) for lid in end.lids]
            assert None not in ways
            if end.port:
                first, second = ({min(c, graph.peer[c]) for c in way[:-1]} for way in ways)
                count += not first & second
        apart.append(count)
    assert apart[1] >= apart[0]


# --- one table for all inputs; ways there and back --------------------------------------------------------------


@pytest.mark.requirement("SWR-06")
def test_one_table_for_all_inputs() -> None:
    """Packets to one LID that come into a switch by different ports leave by the same."""
    graph = lab.graph_of(lab.fat_tree(4))
    routing = route(graph, "minhop")
    dest = graph.ends[-1]
    left: dict[str, set[int]] = {}
    came: dict[str, set[int]] = {}
    for end in graph.ends:
        for hop in trace(graph, routing, end.lid, dest.lid):
            if hop.out_port:
                left.setdefault(hop.node, set()).add(hop.out_port)
                came.setdefault(hop.node, set()).add(hop.in_port)
    assert all(len(ports) == 1 for ports in left.values())
    assert sum(len(ports) > 1 for ports in came.values()) >= 4, "several inputs were tried"


@pytest.mark.requirement("SWR-08")
def test_the_way_back_may_be_another() -> None:
    graph = lab.graph_of(lab.two_level(2, 2, 2))
    tables = {name: dict(enumerate(route(graph).tables[s])) for s, name in enumerate(graph.switches)}
    there, back = lid_of(graph, "h3[1]"), lid_of(graph, "h0[1]")
    up = {t: port for port, t, _ in graph.neighbours(graph.index["leaf0"])}
    down = {t: port for port, t, _ in graph.neighbours(graph.index["leaf1"])}
    tables["leaf0"][there] = up[graph.index["spine0"]]
    tables["leaf1"][back] = down[graph.index["spine1"]]
    routing = route(graph, "file", tables=tables)
    assert trace(graph, routing, back, there).switches == ["leaf0", "spine0", "leaf1"]
    assert trace(graph, routing, there, back).switches == ["leaf1", "spine1", "leaf0"]


# --- failures ---------------------------------------------------------------------------------------------------


def entries(graph: RoutingGraph, tables: list[bytearray]) -> dict[tuple[str, int], int]:
    return {
        (name, end.lid): tables[s][end.lid] for s, name in enumerate(graph.switches) for end in graph.ends
    }


@pytest.mark.requirement("SUB-05")
@pytest.mark.parametrize("engine", ["minhop", "updn", "ftree"])
def test_a_failure_changes_only_what_led_over_it(engine: str) -> None:
    topology = lab.fat_tree(6)
    given = lab.addresses(topology)
    graph = RoutingGraph.from_topology(topology, given)
    before = route(graph, engine)
    link = topology.disconnect(next(li for li in topology.links_of("e2") if "a" in li.a.node + li.b.node).a)
    after_graph = RoutingGraph.from_topology(topology, given)
    after = route(after_graph, engine, previous=before)
    lost = {link.a, link.b}
    old, new = entries(graph, before.tables), entries(after_graph, after.tables)
    moved = {key for key in old if old[key] != new[key]}
    gone = {key for key in old if PortId(key[0], old[key]) in lost}
    assert gone <= moved
    led_over = {lid for _, lid in gone}  # of other destinations nothing changes
    assert sum(lid not in led_over for _, lid in moved) <= 0.01 * len(old)
    for s, end in itertools.product(range(len(after_graph.switches)), after_graph.ends):
        assert lab.walk(after_graph, after, s, end.lid) is not None
    # mended: as good as before
    topology.connect(link.a, link.b)
    mended = route(RoutingGraph.from_topology(topology, given), engine, previous=after)
    port = link.a.port if link.a.node == "e2" else link.b.port
    used = list(mended.tables[graph.index["e2"]]).count(port)
    assert used >= 0.5 * list(before.tables[graph.index["e2"]]).count(port)


@pytest.mark.requirement("SUB-05")
@pytest.mark.parametrize("engine", ["minhop", "updn", "ftree", "dor", "layered"])
def test_after_a_switch_has_gone_all_are_reached_or_told(engine: str) -> None:
    for topology, victim in (
        (lab.fat_tree(4), "a0"),
        (lab.torus((4, 4)), "s5"),
        (lab.two_level(3, 2, 2), "spine0"),
    ):
        given = lab.addresses(topology)
        before = route(RoutingGraph.from_topology(topology, given), engine)
        topology.remove(victim)
        left = {at: lids for at, lids in given.items() if at.node in topology.nodes}
        graph = RoutingGraph.from_topology(topology, left)
        routing = route(graph, engine, previous=before)
        told = [w for w in routing.warnings if "not connected to any switch" in w]
        cut_off = [end for end in graph.ends if end.switch < 0]
        assert len(told) == len(cut_off)
        for s, end in itertools.product(range(len(graph.switches)), graph.ends):
            if end.switch >= 0:
                assert lab.walk(graph, routing, s, end.lid) is not None


@pytest.mark.requirement("SUB-05")
def test_without_a_second_way_a_failure_cuts_off() -> None:
    topology = lab.torus((4,), wrap=False)
    given = lab.addresses(topology)
    between = next(li for li in topology.links if {li.a.node, li.b.node} == {"s1", "s2"})
    topology.disconnect(between.a)
    graph = RoutingGraph.from_topology(topology, given)
    routing = route(graph)
    way = trace(graph, routing, lid_of(graph, "h0[1]"), lid_of(graph, "h3[1]"))
    assert way.problem == f"dead end at s0: no entry for LID {lid_of(graph, 'h3[1]'):#x}"
    assert sum("cannot be reached" in w for w in routing.warnings) == len(graph.ends)


# --- tables by hand ---------------------------------------------------------------------------------------------


def hand_made(graph: RoutingGraph) -> dict[str, dict[int, int]]:
    routing = route(graph)
    return {name: dict(enumerate(routing.tables[s])) for s, name in enumerate(graph.switches)}


@pytest.mark.parametrize("to", ["h2[1]", "leaf2"])
def test_a_loop_in_the_tables_is_reported_as_one(to: str) -> None:
    graph = lab.graph_of(lab.two_level(3, 2, 1))
    tables = hand_made(graph)
    dest = lid_of(graph, to)
    to_leaf0 = next(p for p, t, _ in graph.neighbours(graph.index["spine0"]) if graph.switches[t] == "leaf0")
    to_spine0 = next(p for p, t, _ in graph.neighbours(graph.index["leaf0"]) if graph.switches[t] == "spine0")
    tables["spine0"][dest] = to_leaf0
    tables["leaf0"][dest] = to_spine0
    routing = route(graph, "file", tables=tables)
    cycle = find_cycle(graph, routing)
    assert cycle is not None
    assert cycle.lid == dest
    assert {channel.switch for channel in cycle} == {"leaf0", "spine0"}
    assert str(cycle).startswith(f"forwarding loop of 2 switches for LID {dest:#x}")
    way = trace(graph, routing, lid_of(graph, "h0[1]"), dest)
    assert way.problem.startswith(f"loop: LID {dest:#x} comes to leaf0 again")
    assert len(way) <= 5


def test_dead_ends_are_reported() -> None:
    graph = lab.graph_of(lab.two_level(2, 1, 2))
    tables = hand_made(graph)
    source, dest = lid_of(graph, "h0[1]"), lid_of(graph, "h3[1]")
    assert trace(graph, route(graph, "file", tables=tables), source, dest).arrives
    wrong = next(end for end in graph.ends if end.name == "h2[1]").port
    tables["leaf1"][dest] = wrong
    way = trace(graph, route(graph, "file", tables=tables), source, dest)
    assert way.problem == f"dead end at leaf1[{wrong}]: LID {dest:#x} is not there"
    del tables["spine0"][dest]
    way = trace(graph, route(graph, "file", tables=tables), source, dest)
    assert way.problem == f"dead end at spine0: no entry for LID {dest:#x}"
    assert [str(hop) for hop in way][:2] == ["[0] h0[1] [0]", f"[1] leaf0 [{way[1].out_port}]"]
    assert trace(graph, route(graph), source, 999).problem.startswith("dead end")
    with pytest.raises(RoutingError, match="0x3e7 belongs to nobody"):
        trace(graph, route(graph), 999, dest)


def test_lanes_that_are_given_are_checked_too() -> None:
    graph = lab.graph_of(lab.ring(6))
    layered = route(graph, "layered")
    tables = hand_made(graph)
    assert layered.layers is not None
    layers = {name: dict(enumerate(layered.layers[s])) for s, name in enumerate(graph.switches)}
    tables = {name: dict(enumerate(layered.tables[s])) for s, name in enumerate(graph.switches)}
    assert find_cycle(graph, route(graph, "file", tables=tables, layers=layers)) is None
    assert find_cycle(graph, route(graph, "file", tables=tables)) is not None
    with pytest.raises(RoutingError, match="use lane 1, and there are 1"):
        route(graph, "file", tables=tables, layers=layers, lanes=1)


@pytest.mark.parametrize("by", ["guid", "name"])
def test_a_dump_is_read_back(by: str) -> None:
    graph = lab.graph_of(lab.random_fabric(Random(4), 9, 6), lmc=1)
    routing = route(graph, "updn")
    text = dump_tables(graph, routing)
    if by == "name":
        graph.guids = [0] * len(graph.switches)
    again = route(graph, "file", text=text)
    assert again.tables == routing.tables
    assert again.warnings == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either the tables, or a text"),
        ({"text": "nothing"}, "no line 'Unicast lids"),
        ({"text": "0x0001 003"}, "line 1: an entry before"),
        (
            {"text": "# x\nUnicast lids [0x0-0x3] of switch Lid 1 guid 0x1234 (alien):"},
            "line 2: there is no switch",
        ),
        ({"text": "Unicast lids [0x0-0x3] of switch Lid 1 guid 0x9 (s0):\n0x0001 300"}, "line 2: port 300"),
        (
            {"text": "Unicast lids of guid 0x9 (s0):\nUnicast lids of guid 0x9 (s0):"},
            "line 2: a second table",
        ),
        ({"tables": {"alien": {}}}, "no switch of that name"),
        ({"tables": {"s0": {1: 77}}}, "port 77; it has ports 0 to 3"),
        ({"tables": {"s0": {1: 1000}}}, "not from 0 to 255"),
    ],
)
def test_tables_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(RoutingError, match=message):
        route(lab.graph_of(lab.ring(4)), "file", **options)


def test_a_table_that_is_missing_is_told() -> None:
    graph = lab.graph_of(lab.ring(4))
    tables = hand_made(graph)
    del tables["s2"]
    routing = route(graph, "file", tables=tables)
    assert "no table is given for switch s2" in routing.warnings
    assert any("cannot be reached from s2" in w for w in routing.warnings)


# --- the graph --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("links", "ends", "message"),
    [
        ([(0, 1, 1, 9)], [], "ports 1 to 4, not 9"),
        ([(0, 1, 5, 1)], [], "no switch number 5"),
        ([(0, 1, 1, 1), (0, 1, 1, 2)], [], "already connected"),
        ([(0, 0, 1, 1)], [], "port 0"),
        ([(0, 1, 1, 1)], [End(1, 0, 0, 1, "h")], "already connected"),
        ([], [End(0, 0, 0, 1, "h")], "LID 0x0; unicast"),
        ([], [End(0xC000, 0, 0, 1, "h")], "LID 0xc000; unicast"),
        ([], [End(0xBFFF, 0, 0, 1, "h"), End(0xBFFF, 0, 0, 2, "i")], "LID 0xbfff is h's already"),
        ([], [End(5, 1, 0, 1, "h")], "with LMC 1"),
        ([], [End(0x100, 8, 0, 1, "h")], "LMC is 0 to 7"),
        ([], [End(8, 2, 0, 1, "h"), End(10, 1, 0, 2, "i")], "LID 0xa is h's already"),
    ],
)
def test_graphs_that_cannot_be_are_refused(links: list[tuple], ends: list[End], message: str) -> None:
    with pytest.raises(RoutingError, match=message):
        RoutingGraph([("a", 4), ("b", 4)], links, ends)


def test_addresses_that_cannot_be_are_refused() -> None:
    topology = lab.ring(3)
    for at, message in (
        (PortId("s0", 1), "port 0"),
        (PortId("x", 1), "no x"),
        (PortId("h0", 0), r"no h0\[0\]"),
    ):
        with pytest.raises(RoutingError, match=message):
            RoutingGraph.from_topology(topology, {at: (1, 0)})


def test_what_a_subnet_manager_found_gives_the_same_graph() -> None:
    graph = lab.graph_of(lab.fat_tree(4))
    links = {
        tuple(sorted([(s, port), (t, other)]))
        for s in range(len(graph.switches))
        for port, t, other in graph.neighbours(s)
    }
    found = RoutingGraph(
        list(zip(graph.switches, graph.port_count, strict=True)),
        [(*a, *b) for a, b in sorted(links)],
        graph.ends,
    )
    assert route(found, "ftree").tables == route(graph, "ftree").tables


def test_two_hosts_back_to_back() -> None:
    topology = Topology()
    topology.connect(topology.add_host("a").name, topology.add_host("b").name)
    topology.add_host("c")
    graph = RoutingGraph.from_topology(
        topology, {PortId("a", 1): (1, 0), PortId("b", 1): (2, 0), PortId("c", 1): (3, 0)}
    )
    for engine in ("minhop", "updn", "ftree", "dor", "layered"):
        routing = route(graph, engine)
        assert routing.tables == []
        assert [w for w in routing.warnings if "LID" in w] == [
            "LID 0x3 (c[1]) is not connected to any switch"
        ]
        assert routing.sl(1, 2) == 0
        assert check(graph, routing).channels == 0
    assert [hop.node for hop in trace(graph, routing, 1, 2)] == ["a[1]", "b[1]"]
    assert not trace(graph, routing, 1, 3).arrives


def test_a_router_is_an_end_of_both_its_subnets() -> None:
    topology = Topology()
    topology.add_router("r")
    for side in "ab":
        topology.add_switch(f"s{side}", 4)
        topology.connect(topology.add_host(f"h{side}").name, f"s{side}")
        topology.connect(f"s{side}", "r")
    given = {PortId("sa", 0): (1, 0), PortId("ha", 1): (2, 0), PortId("r", 1): (3, 0)}
    graph = RoutingGraph.from_topology(topology, given, nodes={"sa", "ha", "r"})
    assert graph.switches == ["sa"]
    routing = route(graph)
    assert trace(graph, routing, 2, 3).switches == ["sa"]
    assert trace(graph, routing, 2, 3)[-1].node == "r[1]"


def test_every_unicast_lid_may_be_used() -> None:
    graph = RoutingGraph(
        [("a", 8), ("b", 8)],
        [(0, 1, 1, 1)],
        [End(1, 0, 0, 2, "x"), End(0xBFFF, 0, 1, 2, "y"), End(0xBF00, 7, 1, 3, "z")],
    )
    routing = route(graph)
    assert routing.tables[0][0xBFFF] == 1
    assert routing.tables[1][0xBF7F] == 3
    assert len(routing.tables[0]) == 0xC000
    assert routing.block(0, 0xBFFF // 64)[63] == 1
    assert routing.port(0, 0xFFFF) == 255
