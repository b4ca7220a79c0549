"""listen, connect, accept, reject and disconnect, as a program uses them, in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

import verbena
from verbena import Context, QPState, QPType, RecvRequest, VirtualNetwork, WorkRequest
from verbena.verbs.completion import CompletionQueue
from verbena.verbs.queue_pair import QueuePair
from verbena.verbs.regions import MemoryRegion

HERE, THERE = "10.0.0.1", "10.0.0.2"
PORT = 7174


@dataclass
class Side:
    qp: QueuePair
    cq: CompletionQueue
    mr: MemoryRegion


def side(ctx: Context, qp_type: QPType = QPType.RC) -> Side:
    pd, cq = ctx.alloc_pd(), ctx.create_cq(64)
    return Side(pd.create_qp(qp_type, cq), cq, pd.alloc_mr(4096, verbena.Access(15)))


@pytest.fixture
def net() -> VirtualNetwork:
    return VirtualNetwork(seed=5)


@pytest.fixture
def a(net: VirtualNetwork) -> Context:
    return net.open_device(HERE)


@pytest.fixture
def b(net: VirtualNetwork) -> Context:
    return net.open_device(THERE)


async def accept_one(ctx: Context, mine: Side, port: int = PORT) -> verbena.Connection:
    with ctx.listen(port) as listener:
        request = await listener.request()
        return await request.accept_async(mine.qp)


@pytest.mark.requirement("VRB-05")
@pytest.mark.parametrize("qp_type", [QPType.RC, QPType.UC])
@pytest.mark.parametrize("begins", ["a", "b"])
def test_either_end_begins_and_data_passes_both_ways(
    net: VirtualNetwork, a: Context, b: Context, qp_type: QPType, begins: str
) -> None:
    active, passive = (a, b) if begins == "a" else (b, a)
    address = {a: HERE, b: THERE}

    async def serve(mine: Side) -> verbena.Connection:
        with passive.listen(PORT) as listener:
            request = await listener.request()
            assert (request.remote_address, request.private_data) == (address[active], b"hello")
            assert request.qp_type is qp_type
            connection = await request.accept_async(mine.qp, b"welcome")
            assert connection.peer == (address[active], request.remote_port)
            assert connection.local == (address[passive], PORT)
            return connection

    async def main() -> None:
        mine, theirs = side(active, qp_type), side(passive, qp_type)
        connection, other = await asyncio.gather(
            active.connect_async(address[passive], PORT, mine.qp, b"hello"), serve(theirs)
        )
        assert connection.private_data == b"welcome"
        assert connection.local == other.peer
        assert connection.is_connected
        assert other.is_connected
        for sender, receiver in ((mine, theirs), (theirs, mine)):
            assert sender.qp.state is QPState.RTS
            receiver.qp.post_recv(RecvRequest(7, [receiver.mr.sge()]))
            sender.mr.buf[:4] = b"data"
            sender.qp.post_send(WorkRequest(8, sg_list=[sender.mr.sge(0, 4)]))
            (got,) = await receiver.cq
            assert (got.wr_id, got.byte_len) == (7, 4)
            assert (await sender.cq)[0].raise_for_status().wr_id == 8

    net.run(main())


@pytest.mark.requirement("VRB-05")
def test_a_send_before_the_connection_is_an_error(a: Context) -> None:
    mine = side(a)
    for _ in range(2):
        with pytest.raises(verbena.InvalidStateError, match="connect it first"):
            mine.qp.post_send(WorkRequest(1, sg_list=[mine.mr.sge(0, 4)]))
        if mine.qp.state is QPState.RESET:
            mine.qp.modify(QPState.INIT, port_num=1, pkey_index=0, access_flags=0)
    assert mine.cq.poll() == []


@pytest.mark.requirement("VRB-05")
def test_a_refused_request_is_reported_to_who_made_it(net: VirtualNetwork, a: Context, b: Context) -> None:
    async def refuse(listener: verbena.Listener) -> None:
        (await listener.request()).reject(b"no room", reason=28)

    async def main() -> None:
        mine = side(a)
        with pytest.raises(verbena.ConnectionRefused, match=r"nobody listens at .* port 7174") as refused:
            await a.connect_async(THERE, PORT, mine.qp)
        assert refused.value.reason == 8
        with b.listen(PORT) as listener:
            task = asyncio.create_task(refuse(listener))
            with pytest.raises(verbena.ConnectionRefused, match="the program at") as refused:
                await a.connect_async(THERE, PORT, mine.qp)
            assert (refused.value.reason, refused.value.private_data) == (28, b"no room")
            await task
            # The queue pair was not used up by that.
            theirs = side(b)
            _, request = await asyncio.gather(
                a.connect_async(THERE, PORT, mine.qp), accept_next(listener, theirs)
            )
            assert request.is_connected

    async def accept_next(listener: verbena.Listener, theirs: Side) -> verbena.Connection:
        return await (await listener.request()).accept_async(theirs.qp)

    b.listen(1).close()  # a listener elsewhere: the connection manager is there, and nobody at the port
    net.run(main())


@pytest.mark.requirement("VRB-05")
@pytest.mark.parametrize("where", ["10.0.0.9", THERE])
def test_an_unanswered_request_is_reported_to_who_made_it(
    net: VirtualNetwork, a: Context, b: Context, where: str
) -> None:
    # Nobody has the one address; at the other there is an adapter whose program never used connections.
    mine = side(a)
    with pytest.raises(verbena.ConnectionTimeout, match=f"{where} port 7174 did not answer"):
        a.connect(where, PORT, mine.qp, timeout=3.0)
    assert 3_000_000_000 <= net.now < 3_001_000_000
    assert mine.qp.state is QPState.INIT
    net.run_until_idle()
    assert a._connections is not None
    assert a._connections.manager.known == 0


def test_all_retries_are_over_before_a_long_timeout(a: Context) -> None:
    with pytest.raises(verbena.ConnectionTimeout, match="does not answer"):
        a.connect("10.0.0.9", PORT, side(a).qp, timeout=100.0)


def test_the_blocking_calls(net: VirtualNetwork, a: Context, b: Context) -> None:
    mine, theirs = side(a), side(b)
    listener = b.listen(PORT)
    made: list[verbena.Connection] = []

    def accept_when_asked() -> None:
        made.append(listener.get_request(timeout=1.0).accept(theirs.qp))

    net.clock.call_at(100, accept_when_asked)
    with a.connect(THERE, PORT, mine.qp) as connection:
        assert connection.is_connected
        assert not connection.wait_disconnected(timeout=0.5)
    assert made[0].wait_disconnected()
    assert mine.qp.state is theirs.qp.state is QPState.ERR
    with pytest.raises(verbena.ConnectionLost):
        made[0].check()
    with pytest.raises(verbena.ConnectionTimeout, match="nobody asked"):
        listener.get_request(timeout=1.0)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_disconnect_flushes_both_sides(net: VirtualNetwork, a: Context, b: Context, who: str) -> None:
    async def main() -> None:
        mine, theirs = side(a), side(b)
        client, server = await asyncio.gather(a.connect_async(THERE, PORT, mine.qp), accept_one(b, theirs))
        for end in (mine, theirs):
            end.qp.post_recv(RecvRequest(5, [end.mr.sge()]))
        (client if who == "client" else server).disconnect()
        await asyncio.gather(client.disconnected(), server.disconnected())
        for end in (mine, theirs):
            assert end.qp.state is QPState.ERR
            (entry,) = await end.cq
            assert (entry.wr_id, entry.status) == (5, verbena.CompletionStatus.WR_FLUSH_ERR)
        client.disconnect()
        server.disconnect()

    net.run(main())
    net.run_until_idle()
    for ctx in (a, b):
        assert ctx._connections is not None
        assert ctx._connections.manager.known == 0


def test_closing_an_adapter_ends_its_connections(net: VirtualNetwork, a: Context, b: Context) -> None:
    async def main() -> None:
        mine, theirs = side(a), side(b)
        _, server = await asyncio.gather(a.connect_async(THERE, PORT, mine.qp), accept_one(b, theirs))
        a.close()
        await server.disconnected()
        assert theirs.qp.state is QPState.ERR

    net.run(main())


def test_closing_an_adapter_wakes_who_waits(net: VirtualNetwork, a: Context, b: Context) -> None:
    async def main() -> None:
        listener = a.listen(PORT)
        waiting = [
            asyncio.create_task(listener.request()),
            asyncio.create_task(a.connect_async("10.0.0.9", PORT, side(a).qp)),
        ]
        await asyncio.sleep(0.001)
        a.close()
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, verbena.ClosedError)

    net.run(main())


def test_a_hundred_connections_at_once_from_both_sides(net: VirtualNetwork, a: Context, b: Context) -> None:
    async def take(ctx: Context, listener: verbena.Listener, count: int) -> list[verbena.Connection]:
        requests = [await listener.request() for _ in range(count)]
        return await asyncio.gather(*(request.accept_async(side(ctx).qp) for request in requests))

    async def main() -> None:
        with a.listen(PORT, backlog=64) as at_a, b.listen(PORT, backlog=64) as at_b:
            takers = [asyncio.create_task(take(a, at_a, 50)), asyncio.create_task(take(b, at_b, 50))]
            ways = [(a, THERE), (b, HERE)] * 50
            active = await asyncio.gather(
                *(ctx.connect_async(host, PORT, side(ctx).qp) for ctx, host in ways)
            )
            passive = [c for taker in takers for c in await taker]
        assert len({c.qp.query().dest_qp_num | id(c.qp.context) << 32 for c in active + passive}) == 200
        for connection in active:
            peer = next(c for c in passive if c.peer == connection.local)
            assert connection.qp.query().dest_qp_num == peer.qp.qp_num
            connection.disconnect()
        await asyncio.gather(*(c.disconnected() for c in passive))

    net.run(main())
    net.run_until_idle()
    for ctx in (a, b):
        assert ctx._connections is not None
        assert ctx._connections.manager.known == 0
        assert not ctx._connections.connecting


def test_beyond_the_backlog_requests_are_refused(net: VirtualNetwork, a: Context, b: Context) -> None:
    async def main() -> None:
        with b.listen(PORT, backlog=2):
            results = await asyncio.gather(
                *(a.connect_async(THERE, PORT, side(a).qp, timeout=0.1) for _ in range(4)),
                return_exceptions=True,
            )
        kinds = [type(result) for result in results]
        assert kinds.count(verbena.ConnectionTimeout) == 2
        assert kinds.count(verbena.ConnectionRefused) == 2
        assert all("no room" in str(r) for r in results if isinstance(r, verbena.ConnectionRefused))

    net.run(main())


def test_a_closed_listener_refuses_and_says_so(net: VirtualNetwork, a: Context, b: Context) -> None:
    async def main() -> None:
        listener = b.listen(PORT)
        asking = asyncio.create_task(a.connect_async(THERE, PORT, side(a).qp))
        await asyncio.sleep(0.001)
        waiting = [request async for request in closed_soon(listener)]
        assert waiting == []
        with pytest.raises(verbena.ConnectionRefused):
            await asking
        with pytest.raises(verbena.ConnectionRefused, match="nobody listens"):
            await a.connect_async(THERE, PORT, side(a).qp)
        with pytest.raises(verbena.ClosedError):
            await listener.request()
        b.listen(PORT).close()

    def closed_soon(listener: verbena.Listener) -> verbena.Listener:
        listener.close()
        return listener

    net.run(main())


def test_a_request_whose_sender_gave_up_cannot_be_accepted(
    net: VirtualNetwork, a: Context, b: Context
) -> None:
    async def main() -> None:
        with b.listen(PORT) as listener:
            asking = asyncio.create_task(a.connect_async(THERE, PORT, side(a).qp, timeout=0.2))
            request = await listener.request()
            with pytest.raises(verbena.ConnectionTimeout):
                await asking
            await asyncio.sleep(0.001)
            assert not request.is_open
            theirs = side(b)
            with pytest.raises(verbena.ConnectionLost, match="given up"):
                await request.accept_async(theirs.qp)
            assert theirs.qp.state is QPState.RESET
            with pytest.raises(verbena.ConnectionLost):
                request.reject()

    net.run(main())


def test_a_cancelled_connect_is_taken_back(net: VirtualNetwork, a: Context, b: Context) -> None:
    async def main() -> None:
        with b.listen(PORT) as listener:
            mine = side(a)
            asking = asyncio.create_task(a.connect_async(THERE, PORT, mine.qp))
            request = await listener.request()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await asyncio.sleep(0.001)
            assert not request.is_open
            # The same queue pair, once more.
            await asyncio.gather(a.connect_async(THERE, PORT, mine.qp), accept_next(listener))

    async def accept_next(listener: verbena.Listener) -> None:
        await (await listener.request()).accept_async(side(b).qp)

    net.run(main())


def test_what_is_agreed_on_is_in_the_queue_pairs(net: VirtualNetwork, b: Context) -> None:
    small = net.open_device("10.0.0.3", mtu=1024)

    async def main() -> None:
        mine, theirs = side(b), side(small)
        with small.listen(PORT) as listener:
            asking = asyncio.create_task(
                b.connect_async(
                    "10.0.0.3",
                    PORT,
                    mine.qp,
                    responder_resources=3,
                    initiator_depth=5,
                    rnr_retry=2,
                    retry_count=4,
                    traffic_class=8,
                    hop_limit=9,
                )
            )
            request = await listener.request()
            await request.accept_async(theirs.qp, responder_resources=4, initiator_depth=128)
            await asking
        here, there = mine.qp.query(), theirs.qp.query()
        assert here.path_mtu == there.path_mtu == 1024
        assert (here.max_rd_atomic, here.max_dest_rd_atomic) == (4, 3)
        assert (there.max_rd_atomic, there.max_dest_rd_atomic) == (3, 4)
        assert here.retry_cnt == there.retry_cnt == 4
        assert (there.rnr_retry, here.rnr_retry) == (2, 7)
        assert there.ah_attr is not None
        assert (there.ah_attr.traffic_class, there.ah_attr.hop_limit) == (8, 9)
        assert (here.dest_qp_num, there.dest_qp_num) == (theirs.qp.qp_num, mine.qp.qp_num)

    net.run(main())


def test_wrong_calls_say_so_and_change_nothing(net: VirtualNetwork, a: Context, b: Context) -> None:
    mine, datagrams, foreign = side(a), side(a, QPType.UD), side(b)
    connect = a.connect
    with pytest.raises(verbena.InvalidAttributeError, match="no IP address"):
        connect("example.org", PORT, mine.qp)
    with pytest.raises(verbena.InvalidAttributeError, match="cannot reach"):
        connect("fd00::1", PORT, mine.qp)
    for port in (0, 65_536, "7174"):
        with pytest.raises(verbena.InvalidAttributeError, match="port"):
            connect(THERE, port, mine.qp)  # type: ignore[arg-type]
    with pytest.raises(verbena.InvalidAttributeError, match=r"57 bytes .* at most 56"):
        connect(THERE, PORT, mine.qp, bytes(57))
    with pytest.raises(verbena.InvalidAttributeError, match="bytes are needed"):
        connect(THERE, PORT, mine.qp, "hello")  # type: ignore[arg-type]
    with pytest.raises(verbena.InvalidAttributeError, match="use RC or UC"):
        connect(THERE, PORT, datagrams.qp)
    with pytest.raises(verbena.InvalidAttributeError, match="another adapter"):
        connect(THERE, PORT, foreign.qp)
    with pytest.raises(verbena.InvalidAttributeError, match="initiator_depth"):
        connect(THERE, PORT, mine.qp, initiator_depth=1000)
    with pytest.raises(verbena.InvalidAttributeError, match="rnr_retry"):
        connect(THERE, PORT, mine.qp, rnr_retry=8)
    assert mine.qp.state is QPState.RESET
    with pytest.raises(verbena.InvalidAttributeError, match="port"):
        a.listen(-1)
    with pytest.raises(verbena.InvalidAttributeError, match="backlog"):
        a.listen(PORT, backlog=0)
    with a.listen(PORT), pytest.raises(verbena.SystemLimitError, match="in use"):
        a.listen(PORT)
    with a.listen(0) as one, a.listen(0) as other:
        assert 32_768 <= one.port != other.port
    a.close()
    with pytest.raises(verbena.ClosedError):
        a.listen(PORT)


def test_wrong_answers_leave_the_request_open(net: VirtualNetwork, a: Context, b: Context) -> None:
    async def main() -> None:
        with b.listen(PORT) as listener:
            mine = side(a)
            asking = asyncio.create_task(a.connect_async(THERE, PORT, mine.qp, bytes(range(1, 57))))
            request = await listener.request()
            assert request.private_data == bytes(range(1, 57))
            with pytest.raises(verbena.InvalidStateError, match="being connected"):
                a.connect(THERE, PORT, mine.qp)
            with pytest.raises(verbena.InvalidAttributeError, match="asks for RC"):
                request.accept(side(b, QPType.UC).qp)
            with pytest.raises(verbena.InvalidAttributeError, match="at most 196"):
                request.accept(side(b).qp, bytes(197))
            with pytest.raises(verbena.InvalidAttributeError, match="at most 148"):
                request.reject(bytes(149))
            with pytest.raises(verbena.InvalidAttributeError, match="reason"):
                request.reject(reason=0)
            await request.accept_async(side(b).qp, bytes([9]) * 196)
            assert (await asking).private_data == bytes([9]) * 196
            with pytest.raises(verbena.InvalidStateError, match="decided on already"):
                request.reject()
            with pytest.raises(verbena.InvalidStateError, match="in RTS"):
                a.connect(THERE, PORT, mine.qp)

    net.run(main())


def test_ipv6_adapters(net: VirtualNetwork) -> None:
    one, other = net.open_device("fd00::1"), net.open_device("fd00::2")

    async def main() -> None:
        mine, theirs = side(one), side(other)
        client, server = await asyncio.gather(
            one.connect_async("fd00::2", PORT, mine.qp), accept_one(other, theirs)
        )
        assert client.peer == ("fd00::2", PORT)
        assert server.peer[0] == "fd00::1"

    net.run(main())


def test_an_adapter_connects_to_itself(net: VirtualNetwork, a: Context) -> None:
    async def main() -> None:
        client, server = await asyncio.gather(a.connect_async(HERE, PORT, side(a).qp), accept_one(a, side(a)))
        assert client.qp.query().dest_qp_num == server.qp.qp_num
        client.disconnect()
        await server.disconnected()

    net.run(main())


def test_the_counters_tell_of_messages(net: VirtualNetwork, a: Context, b: Context) -> None:
    async def main() -> None:
        assert not any(name.startswith("cm.") for name in a.counters())
        await asyncio.gather(a.connect_async(THERE, PORT, side(a).qp), accept_one(b, side(b)))

    net.run(main())
    assert a.counters()["cm.sent.req"] == a.counters()["cm.sent.rtu"] == b.counters()["cm.sent.rep"] == 1
