"""Connections on a bad network, real packets and all: made or reported, and nothing left behind."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

import verbena
from verbena import FaultInjector, Faults, QPState, QPType, RecvRequest, VirtualNetwork, WorkRequest

CLIENTS = 12
DELAY_NS = 200_000_000


def bad_network(seed: int, faults: Faults) -> VirtualNetwork:
    def wrap(wire: Any, clock: Any, random: Random) -> FaultInjector:
        return FaultInjector(wire, faults, random, clock)

    return VirtualNetwork(seed=seed, wrap=wrap)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(loss=0.02, duplication=0.02, reordering=0.02, corruption=0.02, delay_ns=DELAY_NS),
        Faults(loss=0.15, duplication=0.3, reordering=0.2, delay=0.3, delay_ns=DELAY_NS),
    ],
    ids=["2 percent", "15 percent and worse"],
)
def test_connections_are_made_and_carry_data(faults: Faults, seed: int) -> None:
    net = bad_network(seed, faults)
    a, b = net.open_device("10.0.0.1"), net.open_device("10.0.0.2")

    async def serve(request: verbena.ConnectionRequest) -> None:
        pd, cq = b.alloc_pd(), b.create_cq(16)
        qp, mr = pd.create_qp(QPType.RC, cq), pd.alloc_mr(64)
        qp.modify(QPState.INIT, port_num=1, pkey_index=0, access_flags=0)
        qp.post_recv(RecvRequest(1, [mr.sge()]))
        connection = await request.accept_async(qp, timeout=60.0)
        (entry,) = await cq
        assert entry.raise_for_status().byte_len == 64
        assert bytes(mr.buf) == request.private_data.ljust(64)
        await connection.disconnected()

    async def server(listener: verbena.Listener) -> None:
        async with asyncio.TaskGroup() as group:
            async for request in listener:
                group.create_task(serve(request))

    async def client(number: int) -> None:
        pd, cq = a.alloc_pd(), a.create_cq(16)
        qp, mr = pd.create_qp(QPType.RC, cq), pd.alloc_mr(64)
        name = f"client {number}".encode()
        connection = await a.connect_async("10.0.0.2", 7174, qp, name, timeout=60.0)
        with connection:
            mr.buf[:] = name.ljust(64)
            qp.post_send(WorkRequest(2, sg_list=[mr.sge()]))
            (await cq)[0].raise_for_status()
            await asyncio.sleep(1)

    async def main() -> None:
        listener = b.listen(7174, backlog=CLIENTS)
        serving = asyncio.create_task(server(listener))
        await asyncio.gather(*(client(i) for i in range(CLIENTS)))
        listener.close()
        await serving

    net.run(main())
    net.run_until_idle()
    for ctx in (a, b):
        assert ctx._connections is not None
        assert ctx._connections.manager.known == 0
        assert not ctx._connections.connecting


def test_a_network_that_loses_everything(seed: int) -> None:
    net = bad_network(seed, Faults(loss=1.0))
    a, b = net.open_device("10.0.0.1"), net.open_device("10.0.0.2")
    b.listen(7174)
    qp = a.alloc_pd().create_qp(QPType.RC, a.create_cq(4))
    with pytest.raises(verbena.ConnectionTimeout):
        a.connect("10.0.0.2", 7174, qp)
    net.run_until_idle()
    assert a._connections is not None
    assert a._connections.manager.known == 0


def test_the_same_seed_gives_the_same_packets(seed: int) -> None:
    def run() -> tuple[int, dict[str, int]]:
        net = bad_network(seed, Faults(loss=0.3, duplication=0.3))
        a, b = net.open_device("10.0.0.1"), net.open_device("10.0.0.2")

        async def main() -> None:
            listener = b.listen(7174)
            qp, other = (c.alloc_pd().create_qp(QPType.RC, c.create_cq(4)) for c in (a, b))
            asking = asyncio.create_task(a.connect_async("10.0.0.2", 7174, qp, timeout=60.0))
            await (await listener.request()).accept_async(other, timeout=60.0)
            await asking

        net.run(main())
        return net.now, {**a.counters(), **b.counters()}

    assert run() == run()
