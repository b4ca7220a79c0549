"""Connections in real time: blocking calls in threads, asyncio, and adapters on loopback sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

import verbena
from verbena import Context, FaultInjector, Faults, QPState, QPType, RecvRequest, WorkRequest

pytestmark = pytest.mark.loopback
HERE, THERE, PORT = "127.0.8.1", "127.0.8.2", 7174


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Context, Context]]:
    faults: Faults | None = getattr(request, "param", None)

    def wrap(wire, clock, random):  # type: ignore[no-untyped-def]
        return wire if faults is None else FaultInjector(wire, faults, random, clock)

    with (
        verbena.open_device(HERE, seed=1, wrap=None if faults is None else wrap) as here,
        verbena.open_device(THERE, seed=2, wrap=None if faults is None else wrap) as there,
    ):
        yield here, there


def new_qp(ctx: Context) -> verbena.QueuePair:
    return ctx.alloc_pd().create_qp(QPType.RC, ctx.create_cq(16))


@pytest.mark.requirement("VRB-05")
def test_blocking_calls_in_threads(pair: tuple[Context, Context]) -> None:
    here, there = pair
    listener = there.listen(PORT, backlog=64)
    made: list[verbena.Connection] = []

    def server() -> None:
        for _ in range(20):
            made.append(listener.get_request(timeout=30).accept(new_qp(there)))

    def client() -> None:
        for _ in range(5):
            made.append(here.connect(THERE, PORT, new_qp(here), timeout=30))

    threads = [threading.Thread(target=target) for target in (server, client, client, client, client)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(made) == 40
    assert all(connection.is_connected for connection in made)
    active = [c for c in made if c.qp.context is here]
    for connection in active:
        connection.disconnect()
    for connection in made:
        assert connection.wait_disconnected(timeout=30)
        assert connection.qp.state is QPState.ERR
    with pytest.raises(verbena.ConnectionTimeout):
        listener.get_request(timeout=0.01)


def test_asyncio(pair: tuple[Context, Context]) -> None:
    here, there = pair

    async def serve(listener: verbena.Listener) -> bytes:
        request = await listener.request()
        pd, cq = there.alloc_pd(), there.create_cq(16)
        qp, mr = pd.create_qp(QPType.RC, cq), pd.alloc_mr(64)
        qp.modify(QPState.INIT, port_num=1, pkey_index=0, access_flags=0)
        qp.post_recv(RecvRequest(1, [mr.sge()]))
        connection = await request.accept_async(qp)
        (entry,) = await cq
        await connection.disconnected()
        return bytes(mr.buf[: entry.raise_for_status().byte_len])

    async def ask() -> None:
        pd, cq = here.alloc_pd(), here.create_cq(16)
        qp, mr = pd.create_qp(QPType.RC, cq), pd.alloc_mr(64)
        with await here.connect_async(THERE, PORT, qp, timeout=30):
            mr.buf[:5] = b"hello"
            qp.post_send(WorkRequest(1, sg_list=[mr.sge(0, 5)]))
            (await cq)[0].raise_for_status()

    async def main() -> None:
        with there.listen(PORT) as listener:
            results = await asyncio.gather(serve(listener), ask())
        assert results[0] == b"hello"

    asyncio.run(main())


@pytest.mark.parametrize("pair", [Faults(loss=0.1, duplication=0.2, corruption=0.05)], indirect=True)
def test_on_a_bad_wire(pair: tuple[Context, Context]) -> None:
    here, there = pair

    async def main() -> None:
        with there.listen(PORT) as listener:
            for _ in range(3):
                asking = asyncio.create_task(here.connect_async(THERE, PORT, new_qp(here), timeout=60))
                server = await (await listener.request()).accept_async(new_qp(there), timeout=60)
                client = await asking
                server.disconnect()
                await client.disconnected()

    asyncio.run(main())


@pytest.mark.requirement("VRB-05")
def test_refused_and_unanswered(pair: tuple[Context, Context]) -> None:
    here, there = pair
    there.listen(PORT + 1)
    with pytest.raises(verbena.ConnectionRefused, match="nobody listens"):
        here.connect(THERE, PORT, new_qp(here))
    with pytest.raises(verbena.ConnectionTimeout):
        here.connect("127.0.8.3", PORT, new_qp(here), timeout=0.2)


def test_an_adapter_that_never_listened_refuses(pair: tuple[Context, Context]) -> None:
    here, _ = pair
    with pytest.raises(verbena.ConnectionRefused, match="nobody listens"):
        here.connect(THERE, PORT, new_qp(here), timeout=30)


def test_closing_while_others_wait(pair: tuple[Context, Context]) -> None:
    _, there = pair
    failures: list[BaseException] = []

    def expect_closed(function, *arguments):  # type: ignore[no-untyped-def]
        try:
            function(*arguments)
        except verbena.VerbenaError as error:
            failures.append(error)

    listener = there.listen(PORT)
    qp = new_qp(there)
    threads = [
        threading.Thread(target=expect_closed, args=(listener.get_request,)),
        threading.Thread(target=expect_closed, args=(there.connect, "127.0.8.3", PORT, qp)),
    ]
    for thread in threads:
        thread.start()
    there.close()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert len(failures) == 2


def test_closing_an_adapter_ends_its_connections(pair: tuple[Context, Context]) -> None:
    here, there = pair
    made: list[verbena.Connection] = []
    listener = there.listen(PORT)
    thread = threading.Thread(
        target=lambda: made.append(listener.get_request(timeout=30).accept(new_qp(there)))
    )
    thread.start()
    here.connect(THERE, PORT, new_qp(here), timeout=30)
    thread.join(timeout=30)
    here.close()
    assert made[0].wait_disconnected(timeout=30)
    assert made[0].qp.state is QPState.ERR
