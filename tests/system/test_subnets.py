"""Two subnets joined by two pairs of routers (document 003, Fig. 6): real connections from one to the other."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from verbena import AddressVector, Context, InvalidAttributeError, QPType, RecvRequest, WorkRequest, WROpcode
from verbena.fabric.generators import generate
from verbena.runtime.fabric import Fabric
from verbena.runtime.pairs import Side, make_side
from verbena.runtime.router_node import PERIOD_NS, RouterNode

FIRST, LAST = "host-256", "host-262"
SIZE = 1 << 20
SETTLE_NS = 500_000_000


def joined(flits: bool = False) -> Fabric:
    """The fabric of Fig. 6, up, its routers having told each other their routes."""
    fabric = Fabric(generate("two-subnets"), seed=1, flits=flits)
    fabric.start()
    fabric.run_for(SETTLE_NS)
    return fabric


def routers(fabric: Fabric) -> dict[str, RouterNode]:
    return {name: node for name, node in fabric.nodes.items() if isinstance(node, RouterNode)}


def balanced(fabric: Fabric) -> None:
    total = fabric.core.statistics()
    assert total["injected"] + total["replicated"] == total["delivered"] + total["dropped"] + total["inside"]
    for node in routers(fabric).values():
        c = node.router.counters
        assert c["received"] + c["originated"] + c["copied"] == (
            c["sent"] + c["local"] + node.router.dropped + node.router.waiting
        )


async def connected(a: Context, b: Context) -> tuple[Side, Side]:
    """A reliable connection, made by the connection manager through the routers."""
    near, far = make_side(a, QPType.RC, SIZE), make_side(b, QPType.RC, SIZE)
    listener = b.listen(7000)

    async def accept() -> None:
        request = await listener.request()
        request.accept(far.qp)

    task = asyncio.create_task(accept())
    await a.connect_async(str(b.gids[0].ip), 7000, near.qp)
    await task
    listener.close()
    return near, far


@pytest.mark.requirement("SWR-04", "NOD-11", "LNK-04")
@pytest.mark.parametrize("flits", [False, True])
def test_a_connection_across_subnets(flits: bool) -> None:
    fabric = joined(flits)
    a, b = fabric.open_device(FIRST), fabric.open_device(LAST)
    assert a.gids[0].raw[:8] != b.gids[0].raw[:8]
    near, far = fabric.run(connected(a, b))
    data = Random(1).randbytes(SIZE)
    near.mr.buf[:] = data
    far.qp.post_recv(RecvRequest(7, [far.mr.sge(0, 100)]))
    write = WorkRequest(1, WROpcode.RDMA_WRITE, [near.mr.sge()], remote_addr=far.mr.addr, rkey=far.mr.rkey)
    near.qp.post_send(write)
    near.cq.wait(1)[0].raise_for_status()
    assert bytes(far.mr.buf) == data
    crossed = [name for name, node in routers(fabric).items() if node.router.counters["sent"] > 200]
    assert len(crossed) == 2
    balanced(fabric)


@pytest.mark.requirement("SWR-04")
def test_a_connection_across_subnets_outlives_what_routers_remember() -> None:
    """Long after the routers have forgotten where the host is, they know it at once: from a path they remember."""
    fabric = joined()
    a, b = fabric.open_device(FIRST), fabric.open_device(LAST)
    near, far = fabric.run(connected(a, b))
    write = WorkRequest(1, WROpcode.RDMA_WRITE, [near.mr.sge()], remote_addr=far.mr.addr, rkey=far.mr.rkey)
    for number in range(1, 5):
        near.mr.buf[:] = bytes([number]) * SIZE
        begin = fabric.now
        near.qp.post_send(write)
        near.cq.wait(1)[0].raise_for_status()
        assert bytes(far.mr.buf) == bytes(near.mr.buf)
        assert fabric.now - begin < 10_000_000  # nothing was sent again: that takes 67 ms
        fabric.run_for(2 * PERIOD_NS)
    assert not any(node.router.counters["drop.pending_timeout"] for node in routers(fabric).values())
    balanced(fabric)


@pytest.mark.requirement("SWR-05")
def test_a_router_that_comes_back_carries_again() -> None:
    fabric = joined()
    a, b = fabric.open_device(FIRST), fabric.open_device(LAST)
    off: list[str] = []
    for change in ("router-268a", "router-270a", None, "router-268b", "router-270b"):
        if change is None:
            while off:
                fabric.power_on(off.pop())
        else:
            fabric.power_off(change)
            off.append(change)
        fabric.run_for(10 * SETTLE_NS)
        near, far = fabric.run(connected(a, b))
        near.mr.buf[:] = Random(len(off)).randbytes(SIZE)
        near.qp.post_send(
            WorkRequest(1, WROpcode.RDMA_WRITE, [near.mr.sge()], remote_addr=far.mr.addr, rkey=far.mr.rkey)
        )
        near.cq.wait(1)[0].raise_for_status()
        assert bytes(far.mr.buf) == bytes(near.mr.buf)
    balanced(fabric)


@pytest.mark.requirement("SWR-05", "TRN-08", "NOD-16")
def test_losing_the_router_in_use_and_then_both() -> None:
    """The path by one pair of routers dies in mid-transfer: the other carries on; both dead end in an error."""
    fabric = joined()
    a, b = fabric.open_device(FIRST), fabric.open_device(LAST)
    near, far = make_side(a, QPType.RC, SIZE), make_side(b, QPType.RC, SIZE)
    lids = {name: node.agent.lid(1) for name, node in routers(fabric).items()}

    def way(to: Context, router: str) -> AddressVector:
        return AddressVector(to.gids[0], dlid=lids[router])

    options = {"timeout": 8, "retry_cnt": 3}
    for side, peer, here in ((near, far, "268"), (far, near, "270")):
        side.qp.connect(
            peer.qp.endpoint,
            dlid=lids[f"router-{here}a"],
            alternate=way(peer.ctx, f"router-{here}b"),
            **options,
        )
    data = Random(2).randbytes(SIZE)
    write = WorkRequest(1, WROpcode.RDMA_WRITE, [near.mr.sge()], remote_addr=far.mr.addr, rkey=far.mr.rkey)
    near.mr.buf[:] = data
    near.qp.post_send(write)
    near.cq.wait(1)[0].raise_for_status()  # a first exchange arms the alternate paths
    near.mr.buf[:] = data[::-1]
    near.qp.post_send(write)
    fabric.run_for(30_000)
    assert bytes(far.mr.buf) != data[::-1]
    fabric.power_off("router-268a")
    near.cq.wait(5)[0].raise_for_status()
    assert bytes(far.mr.buf) == data[::-1]
    fabric.power_off("router-268b")
    near.qp.post_send(write)
    (entry,) = near.cq.wait(5)
    assert entry.status.name == "RETRY_EXC_ERR"
    total = fabric.core.statistics()
    assert total["injected"] + total["replicated"] == total["delivered"] + total["dropped"] + total["inside"]


@pytest.mark.requirement("NOD-09", "NOD-11")
def test_lids_mean_something_in_their_own_subnet_only() -> None:
    fabric = joined()
    a, b = fabric.open_device(FIRST), fabric.open_device("host-260")
    assert a.query_port().lid == b.query_port().lid == 1  # both subnets use it, and traffic stays right
    near, far = fabric.run(connected(a, b))
    near.mr.buf[:4] = b"over"
    far.qp.post_recv(RecvRequest(7, [far.mr.sge(0, 100)]))
    near.qp.post_send(WorkRequest(1, WROpcode.SEND, [near.mr.sge(0, 4)]))
    assert far.cq.wait(1)[0].byte_len == 4
    assert bytes(far.mr.buf[:4]) == b"over"
    port = a.adapter.ports[0]
    with pytest.raises(InvalidAttributeError):
        port.add_gid(b.gids[0])  # an address of the other subnet


@pytest.mark.requirement("SUB-01")
def test_each_subnet_manager_knows_its_own_subnet_only() -> None:
    fabric = joined()
    seen = [set(m.subnet_manager.subnet.nodes) for m in fabric.managers.values() if m.subnet_manager.subnet]
    guids = {name: node.guid for name, node in fabric.topology.nodes.items()}
    names = [{name for name, guid in guids.items() if guid in part} for part in seen]
    assert names[0] & names[1] == set()
    assert {"router-268a", "router-268b", FIRST} <= names[0]
    assert {"router-270a", "router-270b", LAST} <= names[1]


def test_the_managers_host_asks_itself() -> None:
    fabric = Fabric(generate("transaction"), seed=1, flits=False)
    ctx = fabric.open_device("host-302")
    assert len(ctx.subnet.nodes().get(1)) == 4
    assert ctx.subnet.path(sgid=ctx.gids[0].raw, dlid=4).get(1).dlid == 4


def test_connect_by_name_and_to_nobody() -> None:
    fabric = Fabric(generate("transaction"), seed=1, flits=False)
    a, b = fabric.open_device("host-302"), fabric.open_device("host-304")

    async def meet() -> bytes:
        near, far = make_side(a, QPType.RC), make_side(b, QPType.RC)
        listener = b.listen(9)

        async def accept() -> None:
            (await listener.request()).accept(far.qp, b"welcome")

        task = asyncio.create_task(accept())
        connection = await a.connect_async("host-304", 9, near.qp)
        await task
        return connection.private_data[:7]

    assert fabric.run(meet()) == b"welcome"
    from verbena import ConnectionRefused
    from verbena.errors import NotFound

    side = make_side(a, QPType.RC)
    with pytest.raises(ConnectionRefused):
        a.connect("host-304", 10, side.qp)
    with pytest.raises(NotFound):
        a.connect("host-999", 10, side.qp)
