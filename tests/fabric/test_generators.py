"""Generated topologies, against the formulas of their shapes."""

from __future__ import annotations

import contextlib
import math
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.graphs import cut, diameter, distances, neighbours
from verbena.fabric.check import check, require
from verbena.fabric.generators import COMMON, GENERATORS, generate, generate_from, parameters
from verbena.fabric.rates import LinkRate
from verbena.fabric.topology import NodeKind, PortId, Topology, TopologyError

EXAMPLES = {
    "back-to-back": "ports=2",
    "star": "hosts=5",
    "line": "switches=4",
    "ring": "switches=6",
    "mesh": "dimensions=3x4",
    "torus": "dimensions=3x4x2",
    "fat-tree": "k=4",
    "k-ary-n-tree": "k=3 n=2",
    "xgft": "down=3,2,2 up=1,2,1",
    "dragonfly": "p=2 a=4 h=2",
    "san": "",
    "two-subnets": "",
    "transaction": "",
    "cascade": "",
}


def names(topology: Topology, kind: NodeKind = NodeKind.CA) -> list[str]:
    return [node.name for node in topology.of_kind(kind)]


def counts(topology: Topology) -> tuple[int, int, int]:
    """Hosts, switches, links."""
    return len(topology.hosts), len(topology.switches), len(topology.links)


def uplinks(topology: Topology, name: str) -> int:
    return sum(1 for link in topology.links_of(name) if topology.nodes[link.a.node].kind is NodeKind.SWITCH)


@pytest.mark.parametrize("kind", GENERATORS)
def test_every_generator_makes_a_sound_fabric(kind: str) -> None:
    topology = generate_from(f"{kind} {EXAMPLES[kind]} rate=4xHDR delay_ns=25")
    require(topology)
    assert check(topology) == []
    assert topology.name == kind
    assert {(link.rate, link.delay_ns) for link in topology.links} == {(LinkRate.parse("4xHDR"), 25)}
    assert all(node.extras for node in topology.nodes.values())
    assert len(set(distances(neighbours(topology), next(iter(topology.nodes))))) == len(topology.nodes)


@pytest.mark.parametrize("kind", GENERATORS)
def test_generating_twice_gives_the_same(kind: str) -> None:
    one, other = (generate_from(f"{kind} {EXAMPLES[kind]}") for _ in range(2))
    assert one.links == other.links
    assert [(n.name, n.guid, n.ports, n.extras) for n in one.nodes.values()] == [
        (n.name, n.guid, n.ports, n.extras) for n in other.nodes.values()
    ]


def test_back_to_back() -> None:
    topology = generate("back-to-back", ports=3)
    assert [(str(link.a), str(link.b)) for link in topology.links] == [
        ("h0[1]", "h1[1]"),
        ("h0[2]", "h1[2]"),
        ("h0[3]", "h1[3]"),
    ]


def test_star() -> None:
    topology = generate("star", hosts=254)
    assert counts(topology) == (254, 1, 254)
    assert topology.peer(PortId("h9", 1)) == PortId(topology.switches[0].name, 10)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 2))
def test_mesh_formulas(dimensions: list[int], hosts: int) -> None:
    topology = generate("mesh", dimensions=dimensions, hosts=hosts)
    n = math.prod(dimensions)
    links = sum(n // size * (size - 1) for size in dimensions)
    assert counts(topology) == (n * hosts, n, links + n * hosts)
    assert diameter(neighbours(topology, hosts=False)) == sum(size - 1 for size in dimensions)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 2))
def test_torus_formulas(dimensions: list[int], hosts: int) -> None:
    topology = generate("torus", dimensions=dimensions, hosts=hosts)
    n = math.prod(dimensions)
    links = sum(n if size > 2 else n // 2 if size == 2 else 0 for size in dimensions)
    assert counts(topology) == (n * hosts, n, links + n * hosts)
    assert diameter(neighbours(topology, hosts=False)) == sum(size // 2 for size in dimensions)


def test_torus_bisection_is_2_n_over_k() -> None:
    topology = generate("torus", dimensions=[6, 3, 3], hosts=0)
    halves: tuple[list[str], list[str]] = ([], [])
    for switch in topology.switches:
        at = switch.extras["coordinates"]
        assert isinstance(at, tuple)
        halves[at[0] >= 3].append(switch.name)
    assert cut(neighbours(topology), *halves) == 2 * 54 // 6


def test_a_torus_leads_up_by_odd_ports_and_down_by_even_ones() -> None:
    topology = generate("torus", dimensions="4x3")
    assert topology.peer(PortId("s3-1", 1)) == PortId("s0-1", 2)
    assert topology.peer(PortId("s3-1", 3)) == PortId("s3-2", 4)
    assert topology.peer(PortId("s3-1", 5)) == PortId("h3-1", 1)


def test_line_and_ring() -> None:
    assert counts(generate("line", switches=5)) == (5, 5, 9)
    assert counts(generate("ring", switches=5, hosts=2)) == (10, 5, 15)
    assert diameter(neighbours(generate("line", switches=5), hosts=False)) == 4
    assert diameter(neighbours(generate("ring", switches=5), hosts=False)) == 2


@pytest.mark.parametrize("k", [2, 4, 6, 8])
def test_fat_tree_formulas(k: int) -> None:
    topology = generate("fat-tree", k=k)
    assert counts(topology) == (k**3 // 4, 5 * k**2 // 4, 3 * k**3 // 4)
    assert all(switch.ports == len(topology.links_of(switch.name)) == k for switch in topology.switches)
    graph = neighbours(topology)
    hosts = names(topology)
    assert max(distances(graph, hosts[0])[host] for host in hosts) == 6
    assert cut(graph, hosts[: len(hosts) // 2], hosts[len(hosts) // 2 :]) == k**3 // 8


def test_the_two_hosts_of_a_pod_or_leaf_are_nearer() -> None:
    topology = generate("fat-tree", k=4)
    graph = neighbours(topology)
    for one, other in combinations(topology.hosts, 2):
        x, y = one.extras["digits"], other.extras["digits"]
        assert isinstance(x, tuple)
        assert isinstance(y, tuple)
        expected = 6 if x[0] != y[0] else 4 if x[1] != y[1] else 2
        assert distances(graph, one.name)[other.name] == expected


@pytest.mark.parametrize(("k", "ratio"), [(4, 1), (4, 3), (6, 2), (8, 3), (12, 5)])
def test_oversubscribed_fat_tree(k: int, ratio: int) -> None:
    topology = generate("fat-tree", k=k, oversubscription=ratio)
    up = k // (ratio + 1)
    assert len(topology.hosts) == k * (k // 2) * (k - up)
    for switch in topology.switches:
        assert len(topology.links_of(switch.name)) == k
        if switch.extras["level"] == 1:
            links = topology.links_of(switch.name)
            below = sum(topology.nodes[link.a.node].kind is NodeKind.CA for link in links)
            assert (below, k - below) == (ratio * up, up)


@pytest.mark.parametrize(("k", "n"), [(2, 1), (2, 2), (2, 4), (3, 3), (4, 2), (1, 3)])
def test_k_ary_n_tree_formulas(k: int, n: int) -> None:
    topology = generate("k-ary-n-tree", k=k, n=n)
    assert counts(topology) == (k**n, n * k ** (n - 1), n * k**n)
    hosts = names(topology)
    graph = neighbours(topology)
    if k > 1:
        assert diameter(graph, hosts) == 2 * n
        if k % 2 == 0:
            assert cut(graph, hosts[: len(hosts) // 2], hosts[len(hosts) // 2 :]) == k**n // 2


def place(topology: Topology, name: str) -> tuple[int, tuple[int, ...]]:
    """A node's level and digits in its tree."""
    extras = topology.nodes[name].extras
    level, digits = extras["level"], extras["digits"]
    assert isinstance(level, int)
    assert isinstance(digits, tuple)
    return level, digits


def test_k_ary_n_tree_wiring_changes_one_digit_a_level() -> None:
    topology = generate("k-ary-n-tree", k=3, n=3)
    for link in topology.links:
        (low, below), (high, above) = sorted(place(topology, end.node) for end in (link.a, link.b))
        assert high == low + 1
        changed = [at for at, (x, y) in enumerate(zip(below, above, strict=True)) if x != y]
        assert changed in ([], [2 - low])


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3))
@settings(max_examples=40)
def test_xgft_formulas(levels: list[tuple[int, int]]) -> None:
    down, up = [m for m, _ in levels], [w for _, w in levels]
    topology = generate("xgft", down=down, up=up)
    n = len(down)
    for level in range(n + 1):
        nodes = [node for node in topology.nodes.values() if node.extras["level"] == level]
        assert len(nodes) == math.prod(up[:level]) * math.prod(down[level:])
        below = down[level - 1] if level else 0
        assert all(
            len(topology.links_of(node.name)) == below + (up[level] if level < n else 0) for node in nodes
        )


@pytest.mark.parametrize("arrangement", ["palmtree", "consecutive"])
@pytest.mark.parametrize(("p", "a", "h"), [(1, 2, 1), (2, 4, 2), (1, 3, 2), (3, 6, 3), (0, 1, 3)])
def test_dragonfly_formulas(p: int, a: int, h: int, arrangement: str) -> None:
    topology = generate("dragonfly", p=p, a=a, h=h, arrangement=arrangement)
    g = a * h + 1
    assert counts(topology) == (a * p * g, a * g, g * a * (a - 1) // 2 + g * (g - 1) // 2 + a * p * g)
    pairs = [group_pair(topology, link.a.node, link.b.node) for link in topology.links]
    assert sorted(pair for pair in pairs if pair is not None) == list(combinations(range(g), 2))
    assert all(len(topology.links_of(switch.name)) == switch.ports for switch in topology.switches)
    assert diameter(neighbours(topology, hosts=False)) == (3 if a > 1 else 1)


def group_pair(topology: Topology, a: str, b: str) -> tuple[int, int] | None:
    one, other = topology.nodes[a].extras["group"], topology.nodes[b].extras["group"]
    assert isinstance(one, int)
    assert isinstance(other, int)
    return None if one == other else (min(one, other), max(one, other))


@pytest.mark.parametrize("arrangement", ["palmtree", "consecutive"])
@pytest.mark.parametrize("groups", range(2, 9))
def test_a_dragonfly_with_fewer_groups_joins_all_pairs_alike(groups: int, arrangement: str) -> None:
    topology = generate("dragonfly", p=1, a=4, h=2, groups=groups, arrangement=arrangement)
    pairs = [group_pair(topology, link.a.node, link.b.node) for link in topology.links]
    each = 8 // (groups - 1)
    assert sorted(pair for pair in pairs if pair is not None) == sorted(
        each * list(combinations(range(groups), 2))
    )


def test_palm_tree_arrangement() -> None:
    """Global link j of group i leads to group i - j - 1 (Camarero et al.)."""
    topology = generate("dragonfly", p=1, a=4, h=2)
    for group in range(9):
        for j in range(8):
            peer = topology.peer(PortId(f"g{group}-r{j // 2}", 1 + 3 + 1 + j % 2))
            assert peer is not None
            assert topology.nodes[peer.node].extras["group"] == (group - j - 1) % 9


def test_the_system_area_network_of_document_003() -> None:
    topology = generate("san")
    roles = [node.extras["role"] for node in topology.nodes.values()]
    assert {role: roles.count(role) for role in roles} == {
        "switch": 3,
        "processor": 4,
        "raid": 1,
        "backplane": 2,
        "io card": 4,
        "router": 1,
    }
    assert {node.host for node in topology.hosts if node.extras["role"] == "io card"} == {"io-35a", "io-35b"}
    for adapter in ("io-35a", "io-35b"):
        inside = {node.name for node in topology.nodes.values() if node.host == adapter}
        links = [link for link in topology.links if (link.a.node in inside) != (link.b.node in inside)]
        assert len(inside) == 3
        assert len(links) == 1  # everything goes over the backplane's switch
    assert len(topology.links_of("raid-33")) == 2
    graph = neighbours(topology)
    assert set(distances(graph, "host-34a")) == set(topology.nodes)


def test_the_two_subnets_of_document_003() -> None:
    topology = generate("two-subnets")
    assert len(topology.of_kind(NodeKind.ROUTER)) == 4
    parts = [{name for name in part if not name.startswith("router")} for part in topology.subnets()]
    assert parts == [
        {"host-256", "host-258", "switch-264a", "switch-264b", "switch-264c"},
        {"host-260", "host-262", "switch-266a", "switch-266b", "switch-266c"},
    ]
    for letter in "ab":
        assert neighbours(topology)[f"router-268{letter}"][f"router-270{letter}"] == 1


def test_the_transaction_of_document_003() -> None:
    assert [str(link.a.node) + " " + str(link.b.node) for link in generate("transaction").links] == [
        "host-302 switch-310",
        "switch-310 switch-312",
        "host-304 switch-312",
    ]


def test_the_cascade_of_document_001() -> None:
    graph = neighbours(generate("cascade"))
    assert set(graph["switch-120A"]) == {"switch-120B", "processor-102", "io-126", "io-130"}
    assert set(graph["switch-120B"]) == {"switch-120A", "switch-120C", "io-134"}
    assert set(graph["switch-120C"]) == {"switch-120B", "processor-110", "io-138"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "name a kind of topology"),
        ("blob", "'blob' is no kind of topology: write one of back-to-back"),
        ("fat-tree", "fat-tree needs the parameter k"),
        ("fat-tree k", "'k' is no parameter"),
        ("fat-tree k=4 k=4", "write each once"),
        ("fat-tree k=4 hosts=3", "no parameter 'hosts': it takes k, oversubscription, rate, delay_ns"),
        ("fat-tree k=5", "k is 5; a fat tree has switches with an even number of ports"),
        ("fat-tree k=0", "k is 0"),
        ("fat-tree k=four", "k is 'four'; it must be a whole number"),
        ("fat-tree k=256", "k would need switches with 256 ports"),
        ("fat-tree k=8 oversubscription=2", "oversubscription is 2"),
        ("k-ary-n-tree k=100 n=4", "k, n would make 104,000,000 nodes"),
        ("k-ary-n-tree k=200 n=1 oversubscription=2", "k would need switches with 400 ports"),
        ("fat-tree k=100", "k would make 262,500 nodes"),
        ("k-ary-n-tree k=2 n=0", "n is 0"),
        ("star hosts=255", "hosts is 255; it must be from 1 to 254"),
        ("ring switches=2", "switches is 2; it must be from 3"),
        ("line switches=0", "switches is 0"),
        ("torus dimensions=4x", "dimensions is '4x'; it must be whole numbers, such as 4x4"),
        ("torus dimensions=4x0", "dimensions is [4, 0]"),
        ("torus dimensions=400x400", "320,000 nodes; a subnet has room for 49,151 LIDs"),
        ("mesh dimensions=2x2 hosts=253", "dimensions would need switches with 257 ports"),
        ("mesh dimensions=2x2 hosts=-1", "hosts is -1"),
        ("xgft down=2,2 up=1", "up is [1]"),
        ("dragonfly p=1 a=2 h=1 groups=4", "groups is 4; it must be from 2 to 3"),
        ("dragonfly p=1 a=2 h=1 arrangement=random", "arrangement is 'random'"),
        ("dragonfly p=200 a=50 h=10", "p + a - 1 + h would need switches with 259 ports"),
        ("back-to-back ports=0", "ports is 0"),
        ("star hosts=2 rate=5xEDR", "rate: '5xEDR' is no link rate"),
        ("star hosts=2 delay_ns=-1", "delay_ns is -1"),
        ("star hosts=99999999999999999999999999", "hosts"),
    ],
)
def test_a_wrong_parameter_is_named(text: str, said: str) -> None:
    with pytest.raises(TopologyError) as caught:
        generate_from(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [True, 1.5, None, [1], "1.0", "１"])
def test_a_value_of_the_wrong_kind(value: object) -> None:
    with pytest.raises(TopologyError, match="hosts is "):
        generate("star", hosts=value)


def test_parameters_can_be_listed() -> None:
    assert [(p.name, p.default) for p in parameters("dragonfly")] == [
        ("p", None),
        ("a", None),
        ("h", None),
        ("groups", 0),
        ("arrangement", "palmtree"),
    ]
    assert [p.name for p in COMMON] == ["rate", "delay_ns"]


@given(st.text(max_size=40))
def test_any_text_gives_a_topology_or_a_sentence(text: str) -> None:
    with contextlib.suppress(TopologyError):
        assert generate_from(text).nodes


def test_sizes_of_real_machines() -> None:
    topology = generate("fat-tree", k=32)
    assert counts(topology) == (8192, 1280, 24576)
    assert uplinks(topology, "s3-0") == 32
