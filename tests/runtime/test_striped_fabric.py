"""Striping and reliable datagrams over a whole simulated fabric: subnet manager, switches, lanes, credits, flits."""

from __future__ import annotations

from typing import Any

import pytest

from lab import drops, pattern, read, statuses, take, write
from verbena import AddressVector, QPState, QPType, RecvRequest, WorkRequest, WROpcode, _pure
from verbena.fabric.topology import PortId, Topology
from verbena.runtime.fabric import Fabric
from verbena.runtime.meshes import (
    addressed,
    connection_mesh,
    datagram_mesh,
    talk_by_connections,
    talk_by_datagrams,
)
from verbena.runtime.pairs import Side, make_side
from verbena.verbs.context import Context

RC, RD = QPType.RC, QPType.RD
FAST = _pure.compiled()
SIZE = 1 << 20 if FAST else 1 << 18
RATE = "4xQDR"


def two_rails(switches: int = 1, hosts: int = 2) -> Fabric:
    """Hosts of two ports each, both plugged into one switch, or each into a switch of its rail; rails are joined."""
    topology = Topology()
    for s in range(switches):
        topology.add_switch(f"s{s + 1}", 8)
    for h in range(hosts):
        name = "abcdef"[h]
        topology.add_host(name, ports=2)
        topology.connect(PortId(name, 1), "s1", rate=RATE)
        topology.connect(PortId(name, 2), f"s{switches}", rate=RATE)
    if switches > 1:
        topology.connect("s1", "s2", rate=RATE)
    return Fabric(topology, seed=5)


def opened(fabric: Fabric) -> list[Side]:
    return [make_side(fabric.open_device(host.name), RC, SIZE) for host in fabric.topology.hosts]


def other_port(there: Context) -> list[AddressVector]:
    """The path from port 2 to the peer's port 2."""
    return [AddressVector(there.query_gid(2), dlid=there.query_port(2).lid, port_num=2)]


def connect(a: Side, b: Side, striped: bool = True, **attributes: Any) -> None:
    there, here = b.qp.endpoint, a.qp.endpoint
    given: dict[str, Any] = {"mtu": 2048, "timeout": 8} | attributes
    a.qp.connect(there, stripe_ah_attrs=other_port(b.ctx) if striped else [], **given)
    b.qp.connect(here, stripe_ah_attrs=other_port(a.ctx) if striped else [], **given)


def sent(fabric: Fabric, host: str) -> list[int]:
    """Bytes that have left by each port of a host."""
    ports = (fabric.assembly.ports[PortId(host, n)] for n in (1, 2))
    return [int(fabric.core.port_counters(port)["xmit_bytes"]) for port in ports]


def move(a: Side, b: Side, operation: str = "write") -> Side:
    """Post a message of `SIZE` bytes; returns where it arrives."""
    source, target = (b, a) if operation == "read" else (a, b)
    source.mr.buf[:] = pattern(SIZE)
    if operation == "send":
        b.qp.post_recv(RecvRequest(7, [b.mr.sge()]))
        a.qp.post_send(WorkRequest(1, WROpcode.SEND, [a.mr.sge()]))
    else:
        a.qp.post_send((read if operation == "read" else write)(a, b, SIZE, 1))
    return target


@pytest.mark.requirement("NOD-15")
@pytest.mark.parametrize("operation", ["write", "read", "send"])
@pytest.mark.parametrize("switches", [1, 2])
def test_one_message_over_both_links(operation: str, switches: int) -> None:
    times = {}
    for striped in (False, True):
        fabric = two_rails(switches)
        a, b = opened(fabric)
        connect(a, b, striped)
        before = sent(fabric, "b" if operation == "read" else "a")
        start = fabric.now
        target = move(a, b, operation)
        assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
        times[striped] = fabric.now - start
        fabric.run_for(1_000_000)
        assert a.cq.poll() == [], "one completion"
        assert len(b.cq.poll()) == (operation == "send")
        assert bytes(target.mr.buf) == pattern(SIZE)
        after = sent(fabric, "b" if operation == "read" else "a")
        shares = [new - old for new, old in zip(after, before, strict=True)]
        if striped:
            assert min(shares) >= 0.25 * sum(shares), shares
        else:
            assert shares[1] < 0.01 * shares[0], "management only"
        for side in (a, b):
            # Acknowledgements that were overtaken say nothing new.
            assert set(drops(side.ctx)) <= {"drop.stale_response"}
            assert side.ctx.counters()["timeouts"] == 0
        a.ctx.close()
        b.ctx.close()
    assert times[True] < 0.65 * times[False], times


@pytest.mark.requirement("NOD-16")
@pytest.mark.parametrize("operation", ["write", "read", "send"])
@pytest.mark.parametrize("cable", ["a[1]", "a[2]", "b[1]", "b[2]"])
def test_a_cable_is_pulled_in_mid_message(operation: str, cable: str) -> None:
    fabric = two_rails(2)
    a, b = opened(fabric)
    connect(a, b)
    target = move(a, b, operation)
    fabric.run_for(40_000 if FAST else 15_000)
    assert a.cq.poll() == [], "in mid-message"
    assert bytes(target.mr.buf) != pattern(SIZE)
    link = fabric.pull(cable)
    assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
    assert bytes(target.mr.buf) == pattern(SIZE)
    fabric.run_for(10_000_000)
    assert a.cq.poll() == [], "one completion"
    assert len(b.cq.poll()) == (operation == "send")
    # Plugged in again, and brought up by the subnet manager, it is used again, without anybody saying so.
    fabric.plug(link)
    fabric.run_for(2_000_000_000)
    before = sent(fabric, "a")
    move(a, b)
    assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
    shares = [new - old for new, old in zip(sent(fabric, "a"), before, strict=True)]
    assert min(shares) >= 0.25 * sum(shares), shares


@pytest.mark.requirement("NOD-16")
@pytest.mark.parametrize("operation", ["write", "read"])
def test_both_cables_are_pulled(operation: str) -> None:
    fabric = two_rails()
    a, b = opened(fabric)
    connect(a, b, retry_cnt=3)
    move(a, b, operation)
    fabric.run_for(15_000)
    fabric.pull("a[1]")
    fabric.pull("a[2]")
    start = fabric.now
    assert statuses(take(a.cq, 1)) == [(1, "RETRY_EXC_ERR")]
    assert fabric.now - start < 100_000_000
    assert a.qp.state is QPState.ERR


@pytest.mark.requirement("TRN-15")
def test_meshes_over_a_fabric() -> None:
    fabric = two_rails(2, 4)
    adapters = [fabric.open_device(host.name) for host in fabric.topology.hosts]
    nodes = datagram_mesh(adapters, 2, memory=1 << 12)
    assert talk_by_datagrams(nodes) == 4 * 3 * 2 * 2
    for ctx in adapters:
        counts = ctx.count_contexts()
        assert (counts.queue_pairs[RD], counts.queue_pairs[RC], counts.ee_contexts) == (2, 0, 3)
        assert drops(ctx) == {}
    assert talk_by_connections(connection_mesh(adapters, 1)) == 4 * 3


@pytest.mark.requirement("NOD-16")
def test_a_context_goes_on_by_its_other_cable() -> None:
    fabric = two_rails()
    nodes = [datagram_mesh([fabric.open_device(name)], 2, memory=SIZE)[0] for name in "ab"]
    ends = [node.rdd.create_eec() for node in nodes]
    there, here = ends[1].endpoint, ends[0].endpoint
    ends[0].connect(there, stripe_ah_attrs=other_port(nodes[1].ctx), timeout=8)
    ends[1].connect(here, stripe_ah_attrs=other_port(nodes[0].ctx), timeout=8)
    a, b = nodes[0].sides[0], nodes[1].sides[1]
    a.mr.buf[:] = pattern(SIZE)
    a.qp.post_send(addressed(write(a, b, SIZE, 1), ends[0], b.qp))
    fabric.run_for(15_000)
    assert a.cq.poll() == []
    fabric.pull("a[1]")
    assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
    assert bytes(b.mr.buf) == pattern(SIZE)
    # Another queue pair's message finds the context as it was.
    other = nodes[0].sides[1]
    other.qp.post_send(addressed(read(other, b, SIZE, 2), ends[0], b.qp))
    assert statuses(take(other.cq, 1)) == [(2, "SUCCESS")]
    assert bytes(other.mr.buf) == pattern(SIZE)
