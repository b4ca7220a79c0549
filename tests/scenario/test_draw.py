"""Pictures of topologies: where nodes stand, what is drawn, and what happens without matplotlib."""

from __future__ import annotations

import math
import sys
from xml.etree import ElementTree

import pytest

from verbena.errors import SystemLimitError
from verbena.fabric.generators import GENERATORS, generate, generate_from
from verbena.fabric.ibnetdiscover import read, write
from verbena.fabric.topology import PortId, Topology
from verbena.scenario.draw import NO_MATPLOTLIB, counted, draw
from verbena.scenario.layout import Layout, lay_out

EXAMPLES = {
    "back-to-back": "ports=2",
    "star": "hosts=5",
    "line": "switches=4",
    "ring": "switches=6 hosts=3",
    "mesh": "dimensions=3x4",
    "torus": "dimensions=3x4x2",
    "fat-tree": "k=4",
    "k-ary-n-tree": "k=3 n=2",
    "xgft": "down=3,2,2 up=1,2,1",
    "dragonfly": "p=2 a=4 h=2",
}
SVG = "{http://www.w3.org/2000/svg}"


def texts(picture: bytes) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def from_dump(topology: Topology) -> Topology:
    """The same, without what the generator told of its shape."""
    return read(write(topology))


def distance(layout: Layout, a: str, b: str) -> float:
    return math.dist(layout.at[a], layout.at[b])


@pytest.mark.parametrize("kind", GENERATORS)
def test_no_two_nodes_stand_in_one_place(kind: str) -> None:
    pytest.importorskip("numpy")
    for topology in (first := generate_from(f"{kind} {EXAMPLES.get(kind, '')}"), from_dump(first)):
        layout = lay_out(topology)
        assert layout.at.keys() == topology.nodes.keys()
        places = list(layout.at.values())
        closest = min(math.dist(a, b) for at, a in enumerate(places) for b in places[:at])
        assert closest > 0.05
        assert lay_out(topology).at == layout.at


def test_trees_stand_in_levels_hosts_below() -> None:
    topology = generate("fat-tree", k=4)
    for shown in (topology, from_dump(topology)):
        layout = lay_out(shown)
        assert layout.shape == "levels"
        rows: dict[float, set[object]] = {}
        for name, (_, y) in layout.at.items():
            rows.setdefault(y, set()).add(topology.nodes[name].extras["level"])
        assert [rows[y] for y in sorted(rows)] == [{0}, {1}, {2}, {3}]


def test_a_found_tree_does_not_cross_more_than_it_must() -> None:
    """The two hosts of each edge switch stand side by side, and so do the switches of a pod."""
    topology = generate("fat-tree", k=4)
    layout = lay_out(from_dump(topology))
    hosts = sorted(topology.hosts, key=lambda host: layout.at[host.name][0])
    leaves = [topology.peer(PortId(host.name, 1)) for host in hosts]
    names = ["" if leaf is None else leaf.node for leaf in leaves]
    assert names[::2] == names[1::2]


def test_a_ring_is_round() -> None:
    layout = lay_out(generate("ring", switches=9))
    assert layout.shape == "ring"
    radii = {round(math.hypot(*layout.at[f"s{n}"]), 6) for n in range(9)}
    assert len(radii) == 1
    steps = {round(distance(layout, f"s{n}", f"s{(n + 1) % 9}"), 6) for n in range(9)}
    assert len(steps) == 1
    assert all(math.hypot(*layout.at[f"h{n}"]) > radii.copy().pop() for n in range(9))


def test_a_grid_is_square_and_what_wraps_is_bent() -> None:
    topology = generate("torus", dimensions=[4, 5])
    layout = lay_out(topology)
    assert layout.shape == "grid"
    assert layout.at["s2-3"] == (2.0, 3.0)
    bent = {frozenset((topology.links[n].a.node, topology.links[n].b.node)) for n in layout.curved}
    assert len(bent) == 4 + 5
    assert frozenset(("s0-2", "s3-2")) in bent
    assert lay_out(generate("mesh", dimensions=[4, 5])).curved == {}


def test_a_dragonfly_stands_in_groups() -> None:
    topology = generate("dragonfly", p=2, a=4, h=2)
    layout = lay_out(topology)
    assert layout.shape == "groups"
    assert len(layout.circles) == 9
    for node in topology.nodes.values():
        inside = [
            number
            for number, (x, y, r) in enumerate(layout.circles)
            if math.dist((x, y), layout.at[node.name]) < r
        ]
        assert inside == [node.extras["group"]]


def test_springs_keep_what_is_linked_together() -> None:
    pytest.importorskip("numpy")
    topology = from_dump(generate("two-subnets"))
    layout = lay_out(topology)
    assert layout.shape == "springs"
    near = [distance(layout, link.a.node, link.b.node) for link in topology.links]
    far = [distance(layout, a, b) for a in ("host-256", "host-258") for b in ("host-260", "host-262")]
    assert max(near) < min(far)


def test_parallel_links_are_bent_apart() -> None:
    layout = lay_out(generate("back-to-back", ports=3))
    assert sorted(layout.curved.values()) == [pytest.approx(-0.16), pytest.approx(0), pytest.approx(0.16)]


def test_a_picture_names_everything() -> None:
    pytest.importorskip("matplotlib")
    topology = generate("san")
    link = topology.disconnect(PortId("raid-33", 2))
    topology.connect(link.a, link.b, rate="1xHDR")
    picture = draw(topology)
    shown = texts(picture)
    assert set(topology.nodes) <= set(shown)
    assert "san: 9 adapters, 5 switches, 1 router, 16 links" in shown
    assert {"1xHDR (1 link)", "4xEDR (15 links)", "switch (5)", "adapter (9)", "router (1)"} <= set(shown)
    assert b"#3f8f3f" in picture  # the colour of HDR
    assert draw(topology) == picture


@pytest.mark.parametrize("kind", GENERATORS)
def test_every_kind_can_be_drawn(kind: str) -> None:
    pytest.importorskip("matplotlib")
    topology = generate_from(f"{kind} {EXAMPLES.get(kind, '')}")
    assert len(texts(draw(topology))) >= len(topology.nodes)


def test_odd_names_and_empty_fabrics() -> None:
    pytest.importorskip("matplotlib")
    topology = Topology("a $x$ <b> & \0")
    topology.add_host("$\\frac{1}{2}$ <&> \x1b[31m")
    topology.add_switch("s" * 60, 4)
    shown = texts(draw(topology))
    assert "s" * 23 + "…" in shown
    assert any("<&>" in text for text in shown)
    assert draw(Topology())


def test_a_great_fabric_is_drawn_without_names() -> None:
    pytest.importorskip("matplotlib")
    topology = generate("fat-tree", k=16)
    for shown in (topology, from_dump(topology), from_dump(generate("dragonfly", p=4, a=8, h=4))):
        assert len(texts(draw(shown))) < 10


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.collections"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemLimitError) as caught:
        draw(generate("star", hosts=2))
    assert str(caught.value) == NO_MATPLOTLIB


def test_counting_words() -> None:
    assert [counted(1, "switch"), counted(2, "switch"), counted(1_000, "link")] == [
        "1 switch",
        "2 switches",
        "1,000 links",
    ]
