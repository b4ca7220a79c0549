"""Adapters of one process on a real-time fabric: what they send each other crosses without Python, and unchanged."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from lab import drops_unexplained
from verbena import Access, Context, QPType, RecvRequest, Topology, WorkRequest, WROpcode, _pure
from verbena.adapter.attributes import AddressVector
from verbena.adapter.gid import UNSPECIFIED
from verbena.fabric.topology import PortId
from verbena.runtime.real_fabric import RealFabric

SIZE = 1 << 20 if _pure.compiled() else 1 << 15


@pytest.fixture(params=[False, True], ids=["trains", "flits"])
def fabric(request: pytest.FixtureRequest) -> Iterator[RealFabric]:
    topology = Topology()
    topology.add_switch("s1", ports=4)
    for name in ("a", "b", "c"):
        topology.add_host(name)
        topology.connect(name, "s1")
    with RealFabric(topology, seed=1, flits=request.param) as made:
        yield made


def exchange(a: Context, b: Context, service: QPType, seed: int, size: int) -> None:
    """A message there and back; what comes is what was sent."""
    data = random.Random(seed).randbytes(size)
    sides = []
    for context in (a, b):
        pd, cq = context.alloc_pd(), context.create_cq(64)
        qp, mr = pd.create_qp(service, cq), pd.alloc_mr(size, Access.LOCAL_WRITE)
        sides.append((pd, cq, qp, mr))
    for (_, _, qp, _), (_, _, other, _) in (sides, sides[::-1]):
        qp.connect(other.endpoint)
    for _, _, qp, mr in sides:
        qp.post_recv(RecvRequest(7, [mr.sge(0, size)]))
    for (_, cq, qp, mr), (_, other_cq, _, other) in (sides, sides[::-1]):
        source = mr.pd.alloc_mr(size, Access.LOCAL_WRITE)
        source.buf[:] = data
        qp.post_send(WorkRequest(1, WROpcode.SEND, [source.sge(0, size)]))
        while not any(entry.raise_for_status().wr_id == 1 for entry in cq.wait(30)):
            pass
        (came,) = other_cq.wait(30)
        assert came.raise_for_status().byte_len == size
        assert bytes(other.buf) == data


def balance(fabric: RealFabric) -> None:
    """Everything that was put on the fabric was delivered, or dropped and counted."""
    assert fabric.wait_until(lambda: not fabric.core.statistics()["inside"], 10)
    with fabric.loop.held():
        total = fabric.core.statistics()
    assert total["injected"] + total["replicated"] == total["delivered"] + total["dropped"]


@pytest.mark.loopback
@pytest.mark.parametrize("service", [QPType.RC, QPType.UC])
def test_messages_cross(fabric: RealFabric, service: QPType, seed: int) -> None:
    with fabric.open_device("a") as a, fabric.open_device("b") as b:
        for size in (1, 4096, SIZE):
            exchange(a, b, service, seed, size)
        assert a.subnet.names is not None  # management passes the coupling by
        assert not drops_unexplained(b.counters())
    balance(fabric)


@pytest.mark.loopback
def test_whoever_watches_sees_every_packet(fabric: RealFabric, seed: int) -> None:
    seen: list[PortId] = []
    with fabric.open_device("a") as a, fabric.open_device("b") as b:
        exchange(a, b, QPType.UC, seed, 3 * 4096)
        fabric.tap = lambda port, packet: seen.append(port)
        exchange(a, b, QPType.UC, seed, 3 * 4096)
    assert sum(port.node == "a" for port in seen) >= 3
    assert sum(port.node == "b" for port in seen) >= 3
    balance(fabric)


@pytest.mark.loopback
def test_an_adapter_that_was_closed_gets_nothing_more(fabric: RealFabric, seed: int) -> None:
    with fabric.open_device("a") as a:
        with fabric.open_device("b") as b:
            exchange(a, b, QPType.UC, seed, 5000)
            lid = b.query_port(1).lid
        pd, cq = a.alloc_pd(), a.create_cq(8)
        qp = pd.create_qp(QPType.UD, cq)
        qp.activate(qkey=1)
        ah = pd.create_ah(AddressVector(gid=UNSPECIFIED, dlid=lid))
        mr = pd.alloc_mr(64)
        qp.post_send(WorkRequest(1, WROpcode.SEND, [mr.sge(0, 64)], ah=ah, remote_qpn=99, remote_qkey=1))
        (done,) = cq.wait(10)
        done.raise_for_status()
        with fabric.open_device("b") as again, fabric.open_device("c") as c:
            exchange(a, again, QPType.RC, seed, 5000)
            exchange(c, again, QPType.RC, seed, 5000)
    balance(fabric)
