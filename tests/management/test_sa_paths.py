"""Path records: limits, several LIDs, partitions, routers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from management.sa_net import PREFIX, SaNet, chain, redundant
from verbena.errors import NotFound
from verbena.fabric.topology import PortId, Topology
from verbena.management.sa_paths import RATES, limited
from verbena.wire.sa_records import MTU_BYTES, RATE_CODE, RATE_GBPS, PathRecord, Selector


def slow_middle() -> Topology:
    """Two fast hosts with a slow link between their switches."""
    topology = Topology()
    for name in ("s1", "s2"):
        topology.add_switch(name, 8)
    topology.connect("s1", "s2", rate="4xQDR")
    for number in (1, 2):
        topology.add_host(f"h{number}")
        topology.connect(f"h{number}", f"s{number}", rate="4xHDR")
    return topology


def test_a_path_carries_what_its_weakest_link_does() -> None:
    net = SaNet(slow_middle())
    net.subnet.nodes[net.topology.nodes["s1"].guid].ports[1].info = _with(net, mtu=4)
    path = net.wait(net.client("h1").path(sgid=net.gid("h1"), dgid=net.gid("h2")))
    assert (path.rate_gbps, path.mtu_bytes) == (40, 2048)
    assert (path.slid, path.dlid) == (net.lid("h1"), net.lid("h2"))
    assert path.reversible
    assert path.hop_limit == 0
    assert path.packet_life == 5  # two switches of 4.096 us * 2^4


def _with(net: SaNet, mtu: int):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(net.subnet.nodes[net.topology.nodes["s1"].guid].ports[1].info, neighbor_mtu=mtu)


@pytest.mark.parametrize(
    ("name", "selector", "value", "offered"),
    [
        ("rate", Selector.GREATER, RATE_CODE[20], 40),
        ("rate", Selector.GREATER, RATE_CODE[40], None),
        ("rate", Selector.LESS, RATE_CODE[40], 30),
        ("rate", Selector.LESS, RATE_CODE[2.5], None),
        ("rate", Selector.EXACTLY, RATE_CODE[10], 10),
        ("rate", Selector.EXACTLY, RATE_CODE[56], None),
        ("rate", Selector.LARGEST, 0, 40),
        ("mtu", Selector.GREATER, 4, 4096),
        ("mtu", Selector.GREATER, 5, None),
        ("mtu", Selector.LESS, 3, 512),
        ("mtu", Selector.EXACTLY, 3, 1024),
        ("mtu", Selector.LARGEST, 1, 4096),
        ("packet_life", Selector.GREATER, 4, 5),
        ("packet_life", Selector.GREATER, 5, None),
        ("packet_life", Selector.LESS, 6, 5),
        ("packet_life", Selector.LESS, 5, None),
        ("packet_life", Selector.EXACTLY, 5, 5),
        ("packet_life", Selector.EXACTLY, 4, None),
    ],
)
def test_selectors(name: str, selector: Selector, value: int, offered: float | None) -> None:
    net = SaNet(slow_middle())
    asked = {"sgid": net.gid("h1"), "dgid": net.gid("h2"), f"{name}_selector": selector, name: value}
    paths = net.wait(net.client("h1").paths(**asked))
    if offered is None:
        assert paths == []
    else:
        attribute = {"rate": "rate_gbps", "mtu": "mtu_bytes", "packet_life": "packet_life"}[name]
        assert [getattr(path, attribute) for path in paths] == [offered]


@settings(max_examples=300)
@given(st.sampled_from(RATES), st.sampled_from(Selector), st.sampled_from(RATES))
def test_limits_against_their_definition(have: float, selector: Selector, wanted: float) -> None:
    """What is offered can be carried, is what was asked for, and is the best of that kind."""
    found = limited(have, (selector, wanted), RATES)
    fits = {
        Selector.GREATER: [have] if have > wanted else [],
        Selector.LESS: [rate for rate in RATES if rate < wanted and rate <= have],
        Selector.EXACTLY: [wanted] if wanted <= have else [],
        Selector.LARGEST: [have],
    }[selector]
    assert found == max(fits, default=None)


def test_each_pair_of_lids_is_a_path() -> None:
    net = SaNet(redundant(), lmc=1)
    client = net.client("h1")
    paths = net.wait(client.paths(sgid=net.gid("h1"), dgid=net.gid("h2")))
    a, b = net.lid("h1"), net.lid("h2")
    assert [(p.slid, p.dlid) for p in paths] == [(a, b), (a + 1, b + 1), (a, b + 1), (a + 1, b)]
    two = net.wait(client.paths(sgid=net.gid("h1"), dgid=net.gid("h2"), numb_path=2))
    assert two == paths[:2]
    assert net.wait(client.paths(slid=a + 1, dlid=b)) == [paths[3]]
    assert net.wait(client.paths(slid=a, dgid=net.gid("h2"), numb_path=0)) == []


def test_paths_follow_the_tables_in_force() -> None:
    """Where a table leads nowhere, in a circle, or over a dead link, there is no path."""
    net = SaNet(chain())
    client = net.client("h1")
    asked = {"sgid": net.gid("h1"), "dgid": net.gid("h2")}
    assert net.wait(client.path(**asked)).sl == 0
    net.subnet.service_level = lambda source, dest: 3 if source < dest else 4
    net.replace_subnet()
    net.subnet.service_level = lambda source, dest: 3 if source < dest else 4
    path = net.wait(client.path(**asked))
    assert path.sl == 3
    assert not path.reversible  # the way back needs another service level
    assert net.wait(client.paths(**asked, reversible=True)) == []
    assert net.wait(client.paths(**asked, sl=4)) == []
    s2 = net.port("s2").node
    link = next(p for p in s2.ports.values() if p.peer is not None and p.peer.node.is_switch)
    for wrong in (255, 0, link.number, 99):
        net.replace_subnet()
        from management.sa_net import set_port

        set_port(net.port("s2").node, net.lid("h2"), wrong)
        assert net.wait(client.paths(**asked)) == [], wrong


def test_partitions_choose_the_key() -> None:
    net = SaNet(redundant())
    net.set_pkeys("h1", 0x8001, 0x8002)
    net.set_pkeys("h2", 0x0002, 0x8003)
    client = net.client("h1")
    asked = {"sgid": net.gid("h1"), "dgid": net.gid("h2")}
    assert net.wait(client.path(**asked)).pkey == 0x8002
    assert net.wait(client.path(**asked, pkey=0x8002)).pkey == 0x8002
    for wrong in (0x8001, 0x8003, 0x8004):
        with pytest.raises(NotFound):
            net.wait(client.path(**asked, pkey=wrong))


def test_other_subnets_are_behind_routers() -> None:
    topology = chain()
    topology.add_router("r1")
    topology.connect(PortId("r1", 1), "s2")
    net = SaNet(topology)
    client = net.client("h1")
    far = (0x1234 << 64 | 99).to_bytes(16, "big")
    path = net.wait(client.path(sgid=net.gid("h1"), dgid=far))
    assert (path.dlid, path.dgid, path.hop_limit) == (net.lid("r1"), far, 255)
    unknown = (PREFIX << 64 | 99).to_bytes(16, "big")
    with pytest.raises(NotFound):
        net.wait(client.path(sgid=net.gid("h1"), dgid=unknown))


def test_to_oneself_and_to_switches() -> None:
    net = SaNet(chain())
    client = net.client("h1")
    own = net.wait(client.path(sgid=net.gid("h1"), dgid=net.gid("h1")))
    assert own.slid == own.dlid == net.lid("h1")
    for switch in ("s1", "s2"):
        path = net.wait(client.path(slid=net.lid("h1"), dlid=net.lid(switch)))
        assert path.reversible
        assert path.rate_gbps == 100


def test_the_memory_of_paths_follows_notices() -> None:
    net = SaNet(redundant())
    client = net.client("h1")
    net.wait(client.remember_paths())
    asked = {"sgid": net.gid("h1"), "dgid": net.gid("h2")}
    path = net.wait(client.path(**asked))
    sent = len(net.sent)
    assert net.wait(client.path(**asked)) == path
    assert len(net.sent) == sent
    assert client.counters["paths.remembered"] == 1
    net.replace_subnet(absent={"h2"})
    net.run(10_000_000)
    with pytest.raises(NotFound):
        net.wait(client.path(**asked))
    net.replace_subnet()
    net.run(10_000_000)
    assert net.wait(client.path(**asked)) == path


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_template_is_answered(data: st.DataObject) -> None:
    """Whatever is asked for, what comes agrees with it."""
    net = SaNet(redundant(3), lmc=1)
    gids = st.sampled_from([net.gid(n) for n in ("h1", "h2", "h3", "leaf1")] + [bytes(16)])
    lids = st.integers(0, 20)
    values = {"sgid": gids, "dgid": gids, "slid": lids, "dlid": lids, "numb_path": st.integers(0, 5)}
    values |= {"rate": st.integers(0, 63), "mtu": st.integers(0, 63), "packet_life": st.integers(0, 63)}
    values |= {f"{name}_selector": st.integers(0, 3) for name in ("rate", "mtu", "packet_life")}
    values |= {
        "pkey": st.sampled_from([0xFFFF, 0x7FFF, 1]),
        "sl": st.integers(0, 1),
        "reversible": st.booleans(),
    }
    asked = {name: data.draw(values[name]) for name in data.draw(st.sets(st.sampled_from(sorted(values))))}
    for path in net.wait(net.client("h1").paths(**asked)):
        assert isinstance(path, PathRecord)
        for name in ("slid", "dlid", "sgid", "dgid", "sl"):
            assert name not in asked or getattr(path, name) == asked[name]
        source = net.subnet.port_of_lid(path.slid)
        dest = net.subnet.port_of_lid(path.dlid)
        assert source is not None
        assert dest is not None
        truth = net.subnet.path(path.slid, path.dlid)
        assert truth is not None
        assert path.mtu <= 5
        assert path.mtu in MTU_BYTES
        assert RATE_GBPS[path.rate] <= 100 or source.node.is_switch
