"""What a reliable connection refuses, and what becomes of it: access, lengths, faulty buffers (IBA vol. 1, 9.7.5.2)."""

from __future__ import annotations

import pytest

from lab import RC, Lab, fetch_add, pattern, read, sending, statuses, take, write
from verbena import (
    Access,
    AsyncEventType,
    QPState,
    RecvRequest,
    WorkRequest,
    WROpcode,
)
from verbena.runtime.pairs import connect_sides, make_side

SEQUENCE_NAK, INVALID_NAK, ACCESS_NAK, OPERATION_NAK = 0x60, 0x61, 0x62, 0x63


@pytest.mark.requirement("TRN-03", "TRN-10", "VRB-04", "VRB-08", "VRB-09")
@pytest.mark.parametrize("kind", ["write", "read", "fetch_add"])
@pytest.mark.parametrize(
    "wrong", ["key", "local key", "below", "above", "over", "rights", "qp rights", "other domain", "closed"]
)
def test_denied_access_changes_no_byte(kind: str, wrong: str) -> None:
    lab = Lab()
    lab.adapter(), lab.adapter()
    need = {"write": Access.REMOTE_WRITE, "read": Access.REMOTE_READ, "fetch_add": Access.REMOTE_ATOMIC}[kind]
    everything = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC
    a, b = (make_side(ctx, RC) for ctx in lab.contexts)
    connect_sides(a, b, access=everything & ~need if wrong == "qp rights" else everything)
    domain = b.ctx.alloc_pd() if wrong == "other domain" else b.pd
    mr = domain.alloc_mr(4096, everything & ~need if wrong == "rights" else everything)
    mr.buf[:] = pattern(4096)
    n = 8 if kind == "fetch_add" else 64
    request = {"write": write, "read": read, "fetch_add": lambda a, b, n: fetch_add(a, b, 1)}[kind](a, b, n)
    request.rkey = {"key": mr.rkey ^ 0x7F, "local key": mr.lkey}.get(wrong, mr.rkey)
    request.remote_addr = mr.addr + {"below": -8, "above": 4096, "over": 4096 - n + 8}.get(wrong, 0)
    a.mr.buf[:64] = b"\xaa" * 64
    if wrong == "closed":
        b.pd.alloc_mr(4096, everything)
        mr.close()
    a.qp.post_send_many([request, write(a, b, 8, 2)])
    lab.settle()
    assert statuses(a.cq.poll()) == [(0, "REM_ACCESS_ERR"), (2, "WR_FLUSH_ERR")]
    assert a.qp.state is b.qp.state is QPState.ERR
    assert lab.taps[1].answers()[-1].syndrome == ACCESS_NAK
    if wrong != "closed":
        assert bytes(mr.buf) == pattern(4096)
    assert a.mr.buf[:64] == b"\xaa" * 64
    assert not any(b.mr.buf[:64])
    assert len(b.cq) == 0
    event = b.ctx.get_async_event(0)
    assert event
    assert (event.type, event.source) == (AsyncEventType.QP_ACCESS_ERR, b.qp)
    lab.check_laws()


@pytest.mark.parametrize("kind", ["misaligned atomic", "too many reads"])
def test_invalid_requests(kind: str) -> None:
    lab = Lab(rate_bps=1e8)
    lab.adapter(), lab.adapter()
    a, b = (make_side(ctx, RC) for ctx in lab.contexts)
    there, here = b.qp.endpoint, a.qp.endpoint
    a.qp.connect(there, max_rd_atomic=4)
    b.qp.connect(here, max_rd_atomic=1)
    if kind == "misaligned atomic":
        a.qp.post_send(fetch_add(a, b, 1, to=4))
    else:
        a.qp.post_send_many([read(a, b, 50_000, i) for i in range(4)])
    lab.settle()
    entries = statuses(a.cq.poll())
    assert "REM_INV_REQ_ERR" in [s for _, s in entries]
    assert [p.syndrome for p in lab.taps[1].answers() if "ACK" in p.name][-1] == INVALID_NAK
    event = b.ctx.get_async_event(0)
    assert event
    assert event.type is AsyncEventType.QP_REQ_ERR
    lab.check_laws()


@pytest.mark.requirement("VRB-13")
def test_a_message_longer_than_its_buffer_is_an_error_on_both_sides() -> None:
    lab = Lab()
    a, b = lab.pair(mtu=256)
    b.mr.buf[:2000] = b"\xee" * 2000
    b.qp.post_recv_many([RecvRequest(1, [b.mr.sge(0, 500), b.mr.sge(600, 99)]), RecvRequest(2)])
    a.qp.post_send_many([sending(a, 600, 1), sending(a, 0, 2)])
    lab.settle()
    assert statuses(a.cq.poll()) == [(1, "REM_INV_REQ_ERR"), (2, "WR_FLUSH_ERR")]
    assert statuses(b.cq.poll()) == [(1, "LOC_LEN_ERR"), (2, "WR_FLUSH_ERR")]
    assert bytes(b.mr.buf[500:600]) == b"\xee" * 100
    assert bytes(b.mr.buf[699:2000]) == b"\xee" * 1301


@pytest.mark.requirement("VRB-06", "VRB-14")
@pytest.mark.parametrize("wrong", ["key", "remote key", "range", "read only", "closed", "other domain"])
def test_a_receive_buffer_that_may_not_be_written(wrong: str) -> None:
    lab = Lab()
    a, b = lab.pair()
    rights = Access.NONE if wrong == "read only" else Access.LOCAL_WRITE
    mr = (b.ctx.alloc_pd() if wrong == "other domain" else b.pd).alloc_mr(100, rights)
    sge = mr.sge()
    if wrong == "range":
        sge.addr += 1
    sge.lkey = {"key": mr.lkey ^ 0x40, "remote key": mr.rkey}.get(wrong, mr.lkey)
    b.qp.post_recv(RecvRequest(1, [sge]))
    if wrong == "closed":
        mr.close()
    a.qp.post_send(sending(a, 100, 2))
    lab.settle()
    assert statuses(a.cq.poll()) == [(2, "REM_OP_ERR")]
    assert statuses(b.cq.poll()) == [(1, "LOC_PROT_ERR")]
    assert lab.taps[1].answers()[-1].syndrome == OPERATION_NAK


@pytest.mark.requirement("VRB-06", "VRB-07", "VRB-14")
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("opcode", [WROpcode.SEND, WROpcode.RDMA_WRITE, WROpcode.RDMA_READ])
@pytest.mark.parametrize("wrong", ["key", "remote key", "range", "closed", "other domain"])
def test_a_bad_local_buffer_sends_nothing(wrong: str, opcode: WROpcode, place: int) -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = (a.ctx.alloc_pd() if wrong == "other domain" else a.pd).alloc_mr(100)
    sge = mr.sge()
    if wrong == "range":
        sge.length += 1
    sge.lkey = {"key": mr.lkey ^ 0x40, "remote key": mr.rkey}.get(wrong, mr.lkey)
    if wrong == "closed":
        mr.close()
    entries = [a.mr.sge(0, 10), a.mr.sge(20, 10)]
    entries.insert(place, sge)
    b.qp.post_recv(RecvRequest(1, [b.mr.sge()]))
    a.qp.post_send(write(a, b, 50, 1))
    a.qp.post_send(WorkRequest(2, opcode, entries, remote_addr=b.mr.addr, rkey=b.mr.rkey))
    a.qp.post_send(write(a, b, 50, 3))
    lab.settle()
    assert statuses(a.cq.poll()) == [(1, "SUCCESS"), (2, "LOC_PROT_ERR"), (3, "WR_FLUSH_ERR")]
    assert len(lab.taps[0].requests()) == 1
    assert len(b.cq) == 0


def test_a_region_closed_under_a_message_ends_that_message_only_in_its_turn() -> None:
    """What was posted before it succeeds, though the fault is found while that is still on its way."""
    lab = Lab(rate_bps=1e9)
    lab.adapter(window_bytes=1 << 14), lab.adapter()
    a, b = lab.pair(mtu=256)
    mr = a.pd.alloc_mr(200_000)
    a.qp.post_send(write(a, b, 3000, 1))
    there = {"remote_addr": b.mr.addr, "rkey": b.mr.rkey}
    a.qp.post_send(WorkRequest(2, WROpcode.RDMA_WRITE, [mr.sge(0, 60_000)], **there))
    while len(lab.taps[0].out) < 14:
        lab.net.run_for(1000)
    mr.close()
    lab.settle()
    assert statuses(a.cq.poll()) == [(1, "SUCCESS"), (2, "LOC_PROT_ERR")]


def test_a_region_closed_while_it_is_read_from() -> None:
    lab = Lab(rate_bps=1e9)
    a, b = lab.pair(mtu=256, memory=1 << 18)
    mr = b.pd.alloc_mr(200_000, Access.REMOTE_READ)
    a.qp.post_send(
        WorkRequest(1, WROpcode.RDMA_READ, [a.mr.sge(0, 200_000)], remote_addr=mr.addr, rkey=mr.rkey)
    )
    while len(lab.taps[1].out) < 100:
        lab.net.run_for(1000)
    mr.close()
    lab.settle()
    assert statuses(a.cq.poll()) == [(1, "REM_ACCESS_ERR")]
    assert b.ctx.counters()["reads.withdrawn"] == 1
    lab.check_laws()


def test_send_with_invalidate_closes_the_remote_key() -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = b.pd.alloc_mr(100, b.mr.access)
    b.qp.post_recv_many([RecvRequest(1, [mr.sge()]), RecvRequest(2, [mr.sge()])])
    there = {"remote_addr": mr.addr, "rkey": mr.rkey}
    a.qp.post_send(WorkRequest(0, WROpcode.RDMA_WRITE, [a.mr.sge(0, 9)], **there))
    a.qp.post_send(WorkRequest(1, WROpcode.SEND_WITH_INV, [a.mr.sge(0, 9)], invalidate_rkey=mr.rkey))
    assert all(e.ok for e in take(a.cq, 2))
    (got,) = take(b.cq, 1)
    assert got.ok
    assert got.invalidated_rkey == mr.rkey
    a.qp.post_send(sending(a, 9, 5))
    assert take(b.cq, 1)[0].ok, "the local key still opens it"
    a.qp.post_send(WorkRequest(2, WROpcode.RDMA_WRITE, [a.mr.sge(0, 9)], **there))
    assert [s for _, s in statuses(take(a.cq, 2))] == ["SUCCESS", "REM_ACCESS_ERR"]


def test_send_with_invalidate_of_a_key_that_opens_nothing() -> None:
    lab = Lab()
    a, b = lab.pair()
    b.qp.post_recv(RecvRequest(1, [b.mr.sge()]))
    a.qp.post_send(WorkRequest(1, WROpcode.SEND_WITH_INV, [a.mr.sge(0, 9)], invalidate_rkey=b.mr.lkey))
    assert statuses(take(a.cq, 1)) == [(1, "REM_OP_ERR")]
    assert not take(b.cq, 1)[0].ok
