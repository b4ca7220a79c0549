"""LIDs, LMCs and GIDs of the ports of a topology."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verbena.fabric.addressing import (
    DEFAULT_PREFIX,
    LAST_UNICAST,
    AddressError,
    LidSpace,
    assign_gids,
    assign_lids,
    gid,
    given_lids,
    multicast_lids,
    note_lids,
    subnets,
)
from verbena.fabric.generators import generate
from verbena.fabric.topology import NodeKind, PortId, Topology, TopologyError


def two_islands() -> Topology:
    """Two subnets, and an adapter with a port in each."""
    topology = Topology()
    for name in ("s0", "s1"):
        topology.add_switch(name, 4)
        topology.connect(topology.add_host(f"{name}-host").name, name)
    both = topology.add_host("both", 2)
    topology.connect(PortId(both.name, 1), "s0")
    topology.connect(PortId(both.name, 2), "s1")
    return topology


def test_subnets_end_at_adapters_and_routers() -> None:
    assert [[str(port) for port in part] for part in subnets(two_islands())] == [
        ["s0[0]", "s0-host[1]", "both[1]"],
        ["s1[0]", "s1-host[1]", "both[2]"],
    ]
    parts = subnets(generate("two-subnets"))
    assert [len(part) for part in parts] == [7, 2, 2, 7]
    assert [str(port) for port in parts[1]] == ["router-268a[2]", "router-270a[2]"]


def test_an_unconnected_port_needs_no_lid() -> None:
    topology = Topology()
    topology.add_host("h", 2)
    topology.add_switch("s", 2)
    assert assign_lids(topology) == {PortId("s", 0): (1, 0)}


@pytest.mark.requirement("NOD-08")
def test_guids_differ_and_outlast_their_lids() -> None:
    topology = generate("two-subnets")
    guids = [node.port_guid(n) for node in topology.nodes.values() for n in range(1, node.ports + 1)]
    per_element = {node.guid for node in topology.nodes.values()}
    assert len(per_element) == len(topology.nodes)
    note_lids(topology, assign_lids(topology))
    node = topology.nodes["host-258"]
    before, lid = node.port_guid(1), node.lid(1)
    note_lids(topology, assign_lids(topology, given={PortId("host-256", 1): lid}))  # the port starts anew
    assert node.lid(1) != lid
    assert (node.guid, node.port_guid(1)) == (before - 1, before)
    assert guids == [node.port_guid(n) for node in topology.nodes.values() for n in range(1, node.ports + 1)]
    for taken in (node.guid, node.port_guid(1), topology.switches[0].guid):
        with pytest.raises(TopologyError, match=f"newcomer: GUID {taken:#018x} is "):
            topology.add("newcomer", NodeKind.CA, 1, guid=taken)
    assert "newcomer" not in topology.nodes


@pytest.mark.requirement("NOD-09")
def test_lids_are_unique_in_their_subnet_only() -> None:
    topology = generate("two-subnets")
    parts = subnets(topology)
    addresses = assign_lids(topology, lmc=1)
    for part in parts:
        taken = [lid for port in part for lid in lids(addresses[port])]
        assert len(set(taken)) == len(taken)
        assert all(1 <= lid <= LAST_UNICAST for lid in taken)
    five = [port for port, address in addresses.items() if 5 in lids(address)]
    assert {number for number, part in enumerate(parts) for port in five if port in part} >= {0, 3}
    a, b = PortId("host-256", 1), PortId("host-258", 1)
    with pytest.raises(AddressError, match=r"host-258\[1\]: LID 0x5 is host-256\[1\]'s"):
        assign_lids(topology, given={a: (5, 0), b: (5, 0)})
    assign_lids(topology, given={a: (5, 0), PortId("host-260", 1): (5, 0)})
    for wrong in (0x1_0000, 0xFFFF, 0xC000, 0, -1):
        with pytest.raises(AddressError, match=r"host-256\[1\]: LID .* is not in 0x0001 to 0xbfff"):
            assign_lids(topology, given={a: (wrong, 0)})


def lids(address: tuple[int, int]) -> range:
    return range(address[0], address[0] + (1 << address[1]))


@pytest.mark.requirement("NOD-10")
def test_a_subnet_has_a_lid_for_each_until_none_is_left() -> None:
    space = LidSpace()
    taken = {space.take(f"node {n}") for n in range(49_151)}
    assert taken == set(range(1, 0xC000))
    assert len(space) == 49_151
    for _ in range(2):
        with pytest.raises(AddressError, match=r"^one more: no LID is left: of 49,151 49,151 are taken"):
            space.take("one more")
    assert space.of("one more") is None
    space.free("node 77")
    assert space.take("one more") == 78
    assert space.owner(78) == "one more"


@pytest.mark.requirement("NOD-10")
def test_the_node_that_finds_no_lid_is_named() -> None:
    topology = generate("fat-tree", k=16)
    with pytest.raises(AddressError, match=r"^h\d+\[1\]: no LID is left"):
        assign_lids(topology, lmc=6)
    assert len(assign_lids(topology, lmc=5)) == 1024 + 320


@pytest.mark.parametrize("lmc", range(8))
def test_ranges_are_aligned_and_apart(lmc: int) -> None:
    addresses = assign_lids(generate("fat-tree", k=4), lmc=lmc, switch_lmc=min(lmc, 1))
    taken = [lid for address in addresses.values() for lid in lids(address)]
    assert len(set(taken)) == len(taken)
    assert all(base % (1 << width) == 0 for base, width in addresses.values())


def test_given_lids_are_kept() -> None:
    topology = two_islands()
    topology.nodes["both"].set_lid(2, 64, 3)
    topology.nodes["s0"].set_lid(0, 100)
    addresses = assign_lids(topology)
    assert addresses[PortId("both", 2)] == (64, 3)
    assert addresses[PortId("s0", 0)] == (100, 0)
    note_lids(topology, addresses)
    assert given_lids(topology) == addresses == assign_lids(topology)


@pytest.mark.parametrize(
    ("base", "lmc", "said"),
    [
        (3, 1, "not a multiple of 2"),
        (0xBFFF, 1, "is not in"),
        (8, 8, "LMC 8 is not from 0 to 7"),
        (8, -1, "LMC -1 is not"),
        (16, 2, "LID 0x12 is other's"),
    ],
)
def test_a_given_lid_that_cannot_be(base: int, lmc: int, said: str) -> None:
    space = LidSpace()
    space.keep("other", 18)
    with pytest.raises(AddressError, match=f"port: .*{said}"):
        space.keep("port", base, lmc)
    assert space.of("port") is None
    with pytest.raises(AddressError, match="other: it already has LID 0x12"):
        space.take("other")


def test_a_port_that_is_not_there() -> None:
    with pytest.raises(AddressError, match=r"s0\[9\]: there is no such port"):
        note_lids(two_islands(), {PortId("s0", 9): (1, 0)})


@given(st.randoms(use_true_random=False), st.integers(40, 300))
@settings(max_examples=50)
def test_a_lid_space_against_a_plain_set(rng: random.Random, last: int) -> None:
    space, model = LidSpace(1, last), dict[str, range]()
    for step in range(200):
        owner = f"{rng.randrange(30)}"
        if owner in model and rng.random() < 0.5:
            space.free(owner)
            del model[owner]
        elif owner not in model:
            lmc = rng.randrange(4)
            used = {lid for taken in model.values() for lid in taken}
            free = [
                base
                for base in range(0, last + 1, 1 << lmc)
                if base and base + (1 << lmc) - 1 <= last and used.isdisjoint(range(base, base + (1 << lmc)))
            ]
            if free and step % 3 == 0:
                base = rng.choice(free)
                space.keep(owner, base, lmc)
            elif free:
                base = space.take(owner, lmc)
                assert base in free
            else:
                with pytest.raises(AddressError, match="no LID is left"):
                    space.take(owner, lmc)
                continue
            model[owner] = range(base, base + (1 << lmc))
        assert len(space) == sum(map(len, model.values()))
        lid = rng.randrange(last + 2)
        assert space.owner(lid) == next((name for name, taken in model.items() if lid in taken), None)


def test_multicast_lids() -> None:
    space = multicast_lids()
    taken = [space.take(f"group {n}") for n in range(0x3FFF)]
    assert taken == list(range(0xC000, 0xFFFF))
    with pytest.raises(AddressError, match="no LID is left"):
        space.take("group")


def test_gids_share_their_subnets_prefix() -> None:
    topology = generate("two-subnets")
    gids = assign_gids(topology)
    for part in subnets(topology):
        assert len({gids[port].raw[:8] for port in part}) == 1
    assert len({gid.raw[:8] for gid in gids.values()}) == 4
    one = generate("transaction")
    assert str(assign_gids(one)[PortId("host-302", 1)]) == "fe80::276:6200:0:101"
    assert gid(DEFAULT_PREFIX, 1).raw == b"\xfe\x80" + bytes(13) + b"\1"
    for prefixes in ([], [1, 1, 2, 3]):
        with pytest.raises(AddressError, match="4 subnets need as many prefixes"):
            assign_gids(topology, prefixes)
    for prefix, guid in ((1 << 64, 1), (0, 0), (0, 1 << 64)):
        with pytest.raises(AddressError, match="64 bits"):
            gid(prefix, guid)
