"""Work queues, shared receive queues, completion queues: depths, limits, events, overflow."""

from __future__ import annotations

from random import Random

import pytest

import verbena
from lab import RC, UC, UD, Lab, statuses, take, write
from verbena import (
    AsyncEventType,
    ClosedError,
    DeviceAttributes,
    InvalidAttributeError,
    InvalidStateError,
    QPState,
    QueueFullError,
    RecvRequest,
    ResourceError,
    ScatterGatherEntry,
    SendFlags,
    WorkRequest,
    WROpcode,
)
from verbena.runtime.pairs import Side, connect_sides, make_side


def send(side: Side, n: int, wr_id: int = 0, **more: object) -> WorkRequest:
    return WorkRequest(wr_id, WROpcode.SEND, [side.mr.sge(0, n)], **more)


# --- depths and sizes -------------------------------------------------------------------------------------------


@pytest.mark.requirement("VRB-18")
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 100])
def test_a_full_queue_refuses(size: int) -> None:
    lab = Lab()
    a, b = lab.pair(sizes={"max_send_wr": size, "max_recv_wr": size})
    lab.taps[0].gate = lambda packet: []
    for i in range(size):
        a.qp.post_send(write(a, b, 8, i))
        a.qp.post_recv(RecvRequest(i))
    with pytest.raises(QueueFullError, match=f"holds its {size} requests"):
        a.qp.post_send(write(a, b, 8, size))
    with pytest.raises(QueueFullError, match=f"holds its {size} requests"):
        a.qp.post_recv(RecvRequest(size))
    lab.taps[0].gate = None
    assert [w for w, _ in statuses(take(a.cq, size))] == list(range(size))
    for i in range(3 * size):
        a.qp.post_send(write(a, b, 8, i))
        assert statuses(take(a.cq, 1)) == [(i, "SUCCESS")]


@pytest.mark.requirement("VRB-02")
@pytest.mark.parametrize(
    "wrong",
    [
        {"max_send_wr": 0},
        {"max_send_wr": 16_385},
        {"max_recv_wr": -1},
        {"max_recv_wr": 16_385},
        {"max_send_sge": 17},
        {"max_recv_sge": 17},
        {"max_inline": 1025},
        {"max_send_wr": "8"},
        {"max_inline": None},
    ],
)
def test_sizes_that_the_adapter_has_not(wrong: dict) -> None:
    lab = Lab()
    ctx = lab.adapter(limits=DeviceAttributes(max_qp=1, max_cq=2))
    pd, cq = ctx.alloc_pd(), ctx.create_cq(8)
    for service in (RC, UC, UD):
        with pytest.raises(InvalidAttributeError, match=next(iter(wrong))):
            pd.create_qp(service, cq, **wrong)
    assert not pd.members
    assert not ctx.queue_pairs
    qp = pd.create_qp(RC, cq)
    with pytest.raises(ResourceError, match="queue pairs"):
        pd.create_qp(RC, cq)
    qp.close()
    pd.create_qp(UD, cq).close()


@pytest.mark.requirement("VRB-02")
def test_the_service_is_fixed_when_it_is_created() -> None:
    lab = Lab()
    ctx = lab.adapter()
    pd, cq = ctx.alloc_pd(), ctx.create_cq(8)
    for wrong in (4, 99, "RC", None):
        with pytest.raises(InvalidAttributeError, match="one of RC, UC, RD, UD"):
            pd.create_qp(wrong, cq)  # type: ignore[arg-type]
    qp = pd.create_qp(RC, cq)
    with pytest.raises(AttributeError):
        qp.query().qp_type = UD  # type: ignore[misc]
    with pytest.raises((InvalidAttributeError, InvalidStateError)):
        qp.modify(QPState.INIT, port_num=1, pkey_index=0, qkey=1)


def test_numbers_come_back_late_and_changed() -> None:
    """A packet for a queue pair that was closed does not reach the one that has its place."""
    lab = Lab()
    ctx = lab.adapter(limits=DeviceAttributes(max_qp=2, max_cq=2))
    pd, cq = ctx.alloc_pd(), ctx.create_cq(8)
    numbers = []
    for _ in range(20):
        with pd.create_qp(RC, cq) as qp:
            numbers.append(qp.qp_num)
    assert len(set(numbers)) == 20


@pytest.mark.parametrize("post", ["send", "recv"])
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, "must be a list of ScatterGatherEntry, not a NoneType"),
        (ScatterGatherEntry(0, 1, 2), "must be a list of ScatterGatherEntry, not a ScatterGatherEntry"),
        ([1, 2], "must hold ScatterGatherEntry, not a int"),
        ([ScatterGatherEntry()] * 5, "5 entries in sg_list: the queue was created for 4"),
        ([ScatterGatherEntry(0, 1 << 32, 2)], "at most 2\\^32 - 1"),
    ],
)
def test_lists_that_are_none(post: str, entries: object, message: str) -> None:
    lab = Lab()
    a, _ = lab.pair()
    post_it, request = {
        "send": (a.qp.post_send, WorkRequest(1, WROpcode.SEND, entries)),
        "recv": (a.qp.post_recv, RecvRequest(1, entries)),
    }[post]
    with pytest.raises(InvalidAttributeError, match=message):
        post_it(request)
    lab.settle()
    assert lab.taps[0].out == []


@pytest.mark.requirement("VRB-13")
def test_each_queue_takes_its_own_kind_of_request() -> None:
    lab = Lab()
    a, b = lab.pair()
    srq = a.pd.create_srq(4)
    with pytest.raises(InvalidAttributeError, match="takes a RecvRequest, not a WorkRequest"):
        a.qp.post_recv(write(a, b, 8))
    with pytest.raises(InvalidAttributeError, match="takes a RecvRequest, not a WorkRequest"):
        srq.post_recv(write(a, b, 8))
    with pytest.raises(InvalidAttributeError, match="takes a WorkRequest, not a RecvRequest"):
        a.qp.post_send(RecvRequest(1))
    assert len(srq) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opcode": 10}, "unknown opcode 10"),
        ({"opcode": 99}, "unknown opcode 99"),
        ({"flags": 16}, "unknown flags 0x10"),
        ({"flags": 0x102}, "unknown flags"),
        ({"opcode": WROpcode.ATOMIC_FETCH_AND_ADD}, "must have 8, not 9"),
        ({"flags": SendFlags.INLINE}, "9 bytes inline, and the queue pair was created for max_inline=5"),
        (
            {"flags": SendFlags.INLINE, "opcode": WROpcode.RDMA_READ, "sg_list": []},
            "INLINE is for data that is sent",
        ),
    ],
)
def test_requests_that_cannot_be(change: dict, message: str) -> None:
    lab = Lab()
    a, b = lab.pair(sizes={"max_inline": 5})
    request = write(a, b, 9)
    for name, value in change.items():
        setattr(request, name, value)
    with pytest.raises(InvalidAttributeError, match=message):
        a.qp.post_send(request)
    a.qp.post_send(write(a, b, 9, 5))
    assert statuses(take(a.cq, 1)) == [(5, "SUCCESS")], "nothing was posted before"


def test_a_message_has_less_than_2_to_the_31_bytes() -> None:
    lab = Lab()
    a, _ = lab.pair()
    parts = [ScatterGatherEntry(a.mr.addr, 1 << 30, a.mr.lkey)] * 2
    with pytest.raises(InvalidAttributeError, match="2147483648 bytes in one message"):
        a.qp.post_send(WorkRequest(1, WROpcode.SEND, parts))
    parts = [ScatterGatherEntry(a.mr.addr, (1 << 32) - 1, a.mr.lkey)] * 4
    with pytest.raises(InvalidAttributeError, match="bytes in one message"):
        a.qp.post_send(WorkRequest(1, WROpcode.SEND, parts))


@pytest.mark.parametrize(
    "fields",
    [
        {"wr_id": -1},
        {"wr_id": 1 << 64},
        {"rkey": 1 << 32},
        {"imm_data": "x"},
        {"remote_addr": -1},
        {"opcode": -5},
    ],
)
def test_values_that_do_not_fit_their_fields(fields: dict) -> None:
    a, _ = Lab().pair()
    with pytest.raises(InvalidAttributeError, match=r"work request|unknown opcode|does not carry"):
        a.qp.post_send(WorkRequest(**fields))


# --- completion queues ------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-01")
@pytest.mark.parametrize("shared", [True, False])
def test_the_two_queues_complete_where_they_were_told(shared: bool) -> None:
    lab = Lab()
    a, b = (make_side(lab.adapter(), RC) for _ in range(2))
    other = a.cq if shared else a.ctx.create_cq(16)
    a.qp.close()
    a.qp = a.pd.create_qp(RC, a.cq, other)
    connect_sides(a, b)
    a.qp.post_recv(RecvRequest(2, [a.mr.sge(0, 8)]))
    b.qp.post_recv(RecvRequest(3, [b.mr.sge(0, 8)]))
    a.qp.post_send(send(a, 8, 1))
    b.qp.post_send(send(b, 8, 4))
    lab.settle()
    if shared:
        assert sorted(e.wr_id for e in a.cq.poll()) == [1, 2]
    else:
        assert [e.wr_id for e in a.cq.poll()] == [1]
        assert [e.wr_id for e in other.poll()] == [2]


@pytest.mark.requirement("CQN-02")
def test_one_completion_queue_for_ten_queue_pairs(seed: int) -> None:
    random = Random(seed)
    lab = Lab()
    here, there = lab.adapter(), lab.adapter()
    pd, cq = here.alloc_pd(), here.create_cq(1000)
    mr = pd.alloc_mr(4096, verbena.Access(15))
    ends = []
    for _ in range(10):
        far = make_side(there, RC)
        near = Side(here, pd, cq, pd.create_qp(RC, cq), mr)
        connect_sides(near, far)
        ends.append((near, far))
    posted = []
    for i in range(200):
        near, far = random.choice(ends)
        n = random.randrange(3000)
        near.qp.post_send(write(near, far, n, i))
        posted.append((i, near.qp.qp_num, n))
        if random.random() < 0.2:
            lab.net.run_for(5_000)
    found = take(cq, 200)
    assert sorted((e.wr_id, e.qp_num, e.byte_len) for e in found) == posted
    assert all(e.status.name == "SUCCESS" for e in found)
    for near, _ in ends:
        mine = [e.wr_id for e in found if e.qp_num == near.qp.qp_num]
        assert mine == sorted(mine), "each queue completes in order"


@pytest.mark.requirement("CQN-03")
@pytest.mark.parametrize("depth", [1, 3, 4, 10])
def test_overflow_is_an_event_and_overwrites_nothing(depth: int) -> None:
    lab = Lab()
    a, b = (make_side(lab.adapter(), RC, depth=depth) for _ in range(2))
    connect_sides(a, b)
    bystander = make_side(a.ctx, RC)
    assert a.cq.depth == depth
    for i in range(depth):
        a.qp.post_send(write(a, b, 8, i))
    lab.settle()
    assert len(a.cq) == depth, "as many as it is deep fit"
    assert a.ctx.get_async_event(0) is None
    for i in range(4):
        a.qp.post_send(write(a, b, 8, 100 + i))
    lab.settle()
    events = [a.ctx.get_async_event(0), a.ctx.get_async_event(0)]
    assert [(e.type, e.source) for e in events if e] == [
        (AsyncEventType.CQ_ERR, a.cq),
        (AsyncEventType.QP_FATAL, a.qp),
    ]
    assert a.ctx.get_async_event(0) is None
    assert a.cq.overrun
    assert a.qp.state is QPState.ERR
    assert bystander.qp.state is QPState.RESET
    assert [e.wr_id for e in a.cq.poll(100)] == list(range(depth)), "the oldest are all there"
    assert a.ctx.counters()["drop.cq_overflow"] == 4, "and the others are counted"
    lab.check_laws()


@pytest.mark.parametrize("requests", [20, 64])
def test_overflow_by_one_acknowledgement_for_many(requests: int) -> None:
    """The queue fails in the middle of what one ACK completes."""
    lab = Lab()
    a, b = (make_side(lab.adapter(), RC, depth=5) for _ in range(2))
    connect_sides(a, b)
    a.qp.post_send_many([write(a, b, 8, i) for i in range(requests)])
    lab.settle()
    assert [e.wr_id for e in a.cq.poll(100)] == [0, 1, 2, 3, 4]
    assert a.ctx.counters()["drop.cq_overflow"] == requests - 5
    assert a.qp.state is QPState.ERR
    a.qp.close()
    c = make_side(a.ctx, RC)
    d = make_side(b.ctx, RC)
    connect_sides(c, d)
    c.qp.post_send(write(c, d, 8, 1))
    assert take(c.cq, 1)[0].ok


def test_overflow_at_the_receiver() -> None:
    lab = Lab()
    a, b = (make_side(lab.adapter(), RC, depth=3) for _ in range(2))
    connect_sides(a, b, timeout=5, retry_cnt=1)
    b.qp.post_recv_many([RecvRequest(i, [b.mr.sge(0, 8)]) for i in range(6)])
    for i in range(6):
        a.qp.post_send(send(a, 8, i, flags=SendFlags.NONE))
        lab.net.run_for(10_000)
    lab.settle()
    assert [e.wr_id for e in b.cq.poll(100)] == [0, 1, 2]
    event = b.ctx.get_async_event(0)
    assert event
    assert event.type is AsyncEventType.CQ_ERR
    assert [e.status.name for e in a.cq.poll(100)] == ["RETRY_EXC_ERR", "WR_FLUSH_ERR", "WR_FLUSH_ERR"][:3]


def test_a_completion_queue_in_use_is_not_closed() -> None:
    lab = Lab()
    a, _ = lab.pair()
    with pytest.raises(InvalidStateError, match="2 work queues still complete"):
        a.cq.close()
    a.qp.close()
    a.cq.close()
    a.cq.close()
    for call in (a.cq.poll, a.cq.wait, a.cq.req_notify, a.cq.get_event, lambda: len(a.cq)):
        with pytest.raises(ClosedError):
            call()


# --- shared receive queues --------------------------------------------------------------------------------------


def shared(lab: Lab, peers: int, **options: int) -> tuple[verbena.SharedReceiveQueue, Side, list[Side]]:
    """One adapter whose queue pairs receive from one queue, and their peers."""
    ctx = lab.adapter()
    pd, cq = ctx.alloc_pd(), ctx.create_cq(100)
    srq = pd.create_srq(16, **options)
    mr = pd.alloc_mr(1 << 16)
    home = Side(ctx, pd, cq, None, mr)  # type: ignore[arg-type]
    far = []
    for _ in range(peers):
        side = make_side(lab.adapter(), RC)
        end = Side(ctx, pd, cq, pd.create_qp(RC, cq, srq=srq), mr)
        connect_sides(side, end)
        far.append(side)
    return srq, home, far


def test_queue_pairs_share_receive_buffers_in_order() -> None:
    lab = Lab()
    srq, home, far = shared(lab, 3)
    for i in range(9):
        srq.post_recv(RecvRequest(i, [home.mr.sge(100 * i, 100)]))
    assert len(srq) == 9
    for i in range(9):
        far[i % 3].qp.post_send(send(far[i % 3], 50 + i, i))
        lab.net.run_for(10_000)
    got = take(home.cq, 9)
    assert [e.wr_id for e in got] == list(range(9)), "the oldest buffer serves whoever comes first"
    assert [e.byte_len for e in got] == [50 + i for i in range(9)]
    assert len({e.qp_num for e in got}) == 3
    assert len(srq) == 0


def test_the_limit_event_comes_once_for_each_arming() -> None:
    lab = Lab()
    srq, home, (far,) = shared(lab, 1, limit=0)
    for i in range(6):
        srq.post_recv(RecvRequest(i, [home.mr.sge(0, 100)]))
    srq.modify(limit=4)
    seen = []
    for i in range(6):
        far.qp.post_send(send(far, 10, i))
        take(far.cq, 1)
        event = home.ctx.get_async_event(0)
        seen.append(event and (event.type, event.source))
    reached = (AsyncEventType.SRQ_LIMIT_REACHED, srq)
    assert seen == [None, None, reached, None, None, None]
    srq.modify(limit=2)
    event = home.ctx.get_async_event(0)
    assert event, "fewer were left already"
    assert (event.type, event.source) == reached
    for wrong in (-1, 17, "1"):
        with pytest.raises(InvalidAttributeError, match="0 to max_wr = 16"):
            srq.modify(limit=wrong)  # type: ignore[arg-type]


def test_the_last_wqe_event() -> None:
    """In ERR, a queue pair takes nothing more from the shared queue, and says so (IBA vol. 1, 10.2.9.3)."""
    lab = Lab()
    srq, home, far = shared(lab, 2)
    for i in range(3):
        srq.post_recv(RecvRequest(i, [home.mr.sge(0, 100)]))
    first, second = sorted(srq.queue_pairs, key=lambda qp: qp.qp_num)
    first.modify(QPState.ERR)
    event = home.ctx.get_async_event(0)
    assert event
    assert (event.type, event.source) == (AsyncEventType.QP_LAST_WQE_REACHED, first)
    assert len(srq) == 3, "what no queue pair had taken stays"
    assert len(home.cq) == 0
    far[1].qp.post_send(send(far[1], 10))
    assert [e.qp_num for e in take(home.cq, 1)] == [second.qp_num]
    second.close()
    assert home.ctx.get_async_event(0) is None, "nobody is left whom the event concerns"


def test_a_shared_queue_in_use_and_closed() -> None:
    lab = Lab()
    srq, home, _ = shared(lab, 1)
    (qp,) = srq.queue_pairs
    with pytest.raises(InvalidStateError, match="post there"):
        qp.post_recv(RecvRequest(1))
    with pytest.raises(InvalidStateError, match="1 queue pairs still receive"):
        srq.close()
    qp.close()
    srq.close()
    for call in (lambda: srq.post_recv(RecvRequest(1)), lambda: srq.modify(limit=1), lambda: len(srq)):
        with pytest.raises(ClosedError):
            call()
    with pytest.raises(ClosedError):
        home.pd.create_qp(RC, home.cq, srq=srq)
    for wrong in ({"max_wr": 0}, {"max_wr": 70_000}, {"max_wr": 1, "max_sge": 17}):
        with pytest.raises(InvalidAttributeError):
            home.pd.create_srq(**wrong)


# --- closing ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("VRB-18")
def test_closing_a_queue_pair_flushes_and_frees() -> None:
    lab = Lab()
    lab.adapter(limits=DeviceAttributes(max_qp=1, max_cq=4)), lab.adapter()
    a, b = lab.pair()
    lab.taps[0].gate = lambda packet: []
    a.qp.post_recv(RecvRequest(7))
    a.qp.post_send_many([write(a, b, 8, 1), write(a, b, 8, 2)])
    lab.net.run_for(1000)
    number = a.qp.qp_num
    a.qp.close()
    assert statuses(a.cq.poll()) == [(1, "WR_FLUSH_ERR"), (2, "WR_FLUSH_ERR"), (7, "WR_FLUSH_ERR")]
    for call in (a.qp.query, lambda: a.qp.post_send(write(a, b, 8)), lambda: a.qp.modify(QPState.RESET)):
        with pytest.raises(ClosedError, match=f"{number:#x} is closed"):
            call()
    again = a.pd.create_qp(RC, a.cq)
    assert again.qp_num != number
    lab.settle()
    assert len(a.cq) == 0


def test_closing_the_adapter_closes_everything() -> None:
    lab = Lab()
    a, _ = lab.pair()
    buffer = bytearray(100)
    mr = a.pd.reg_mr(buffer)
    with pytest.raises(InvalidStateError, match=r"holds 3 objects \(MemoryRegion, QueuePair\)"):
        a.pd.close()
    a.ctx.close()
    a.ctx.close()
    buffer.extend(b"grows again")
    for call in (a.ctx.alloc_pd, lambda: a.ctx.create_cq(1), a.ctx.query_device, a.pd.alloc_mr, a.cq.poll):
        with pytest.raises((ClosedError, TypeError)):
            call()
    with pytest.raises(ClosedError):
        a.pd.alloc_mr(5)
    mr.close()
    lab.net.open_device("10.0.0.1")
