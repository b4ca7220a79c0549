"""The verbs as a program meets them: queries, handles, what a wrong call gets."""

from __future__ import annotations

import dataclasses
import ipaddress

import pytest

import verbena
from lab import RC, SERVICES, UC, UD, Lab, pattern, statuses, take, write
from verbena import (
    Access,
    AddressVector,
    ClosedError,
    DeviceAttributes,
    Endpoint,
    Gid,
    InvalidAttributeError,
    InvalidStateError,
    QPState,
    RecvRequest,
    VerbenaError,
    VerbError,
    VirtualNetwork,
    WorkRequest,
    WROpcode,
    connected_pair,
)
from verbena.runtime.pairs import make_side


def test_queries() -> None:
    ctx = Lab().adapter("10.1.2.3", mtu=2048)
    device = ctx.query_device()
    assert device == ctx.query_device()
    assert device.max_qp > 1000
    assert device.node_guid
    port = ctx.query_port()
    assert (port.state, port.active_mtu, port.max_mtu, port.link_layer) == ("ACTIVE", 2048, 4096, "Ethernet")
    assert (port.gid_tbl_len, port.pkey_tbl_len) == (1, 1)
    gid = ctx.query_gid()
    assert (str(gid), gid.ip) == ("::ffff:10.1.2.3", ipaddress.ip_address("10.1.2.3"))
    assert ctx.gids == (gid,)
    assert ctx.query_pkey() == 0xFFFF
    for call in (lambda: ctx.query_port(2), lambda: ctx.query_gid(1, 1), lambda: ctx.query_pkey(1, -1)):
        with pytest.raises(InvalidAttributeError):
            call()
    with pytest.raises(dataclasses.FrozenInstanceError):
        device.max_qp = 5  # type: ignore[misc]


def test_gids() -> None:
    for text in ("127.0.0.1", "fd00::1", "::1"):
        gid = Gid.from_ip(text)
        assert str(gid.ip) == text
        assert Gid(gid.raw) == gid
    for wrong in ("localhost", "1.2.3", "1.2.3.4.5", ""):
        with pytest.raises(InvalidAttributeError, match="is no IP address"):
            Gid.from_ip(wrong)
    with pytest.raises(InvalidAttributeError, match="16 bytes"):
        Gid(b"short")


@pytest.mark.requirement("TRN-01", "VRB-02")
@pytest.mark.parametrize("service", SERVICES)
def test_every_service_opens_and_carries_a_message(service: verbena.QPType) -> None:
    with connected_pair(service) as pair:
        a, b = pair.a, pair.b
        assert a.qp.type is service
        b.qp.post_recv(RecvRequest(1, [b.mr.sge(0, 1000)]))
        a.mr.buf[:500] = pattern(500)
        request = WorkRequest(2, WROpcode.SEND, [a.mr.sge(0, 500)])
        if service is UD:
            request.ah = a.pd.create_ah(AddressVector(b.ctx.query_gid()))
            request.remote_qpn, request.remote_qkey = b.qp.qp_num, 0x11111111
        a.qp.post_send(request)
        assert statuses(a.cq.wait()) == [(2, "SUCCESS")]
        (got,) = take(b.cq, 1)
        skip = 40 if service is UD else 0
        assert got.byte_len == 500 + skip
        assert b.mr.buf[skip : skip + 500] == pattern(500)


@pytest.mark.requirement("VRB-03")
def test_a_handle_does_not_reach_the_queue_pairs_state() -> None:
    with connected_pair() as pair:
        qp = pair.a.qp
        for name in ("type", "qp_num", "capabilities", "pd", "context", "send_cq", "recv_cq", "srq", "state"):
            with pytest.raises(AttributeError):
                setattr(qp, name, None)
        told = qp.query()
        for name in told.__dataclass_fields__:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(told, name, 1)
        with pytest.raises(dataclasses.FrozenInstanceError):
            told.capabilities.max_send_wr = 10_000  # type: ignore[misc]
        with pytest.raises(dataclasses.FrozenInstanceError):
            qp.endpoint.psn = 5  # type: ignore[misc]
        assert qp.query() == told, "what was tried changed nothing"
        with pytest.raises(InvalidAttributeError):
            qp.modify(dest_qp_num=5)
        assert qp.query() == told
        pair.a.qp.post_send(write(pair.a, pair.b, 100, 1))
        assert pair.a.cq.wait()[0].ok


@pytest.mark.requirement("VRB-06")
def test_after_posting_nothing_else_is_needed() -> None:
    """Time passes, the program does nothing: the data arrives."""
    lab = Lab()
    a, b = lab.pair()
    a.mr.buf[:60_000] = pattern(60_000)
    a.qp.post_send(write(a, b, 60_000))
    lab.net.run_for(1_000_000)
    assert b.mr.buf[:60_000] == pattern(60_000)


def test_connecting_by_hand() -> None:
    lab = Lab()
    a, b = (make_side(lab.adapter(), RC) for _ in range(2))
    where = b.qp.endpoint
    assert where == Endpoint(b.ctx.query_gid(), b.qp.qp_num, where.psn)
    assert b.qp.endpoint == where, "it does not change between the exchange and the connection"
    a.qp.connect(where, mtu=512, max_rd_atomic=2, timeout=10, retry_cnt=3, rnr_retry=2)
    b.qp.connect(a.qp.endpoint, mtu=512)
    found = a.qp.query()
    assert (found.state, found.path_mtu, found.dest_qp_num) == (QPState.RTS, 512, b.qp.qp_num)
    assert (found.max_rd_atomic, found.timeout, found.retry_cnt, found.rnr_retry) == (2, 10, 3, 2)
    a.qp.post_send(write(a, b, 8))
    assert take(a.cq, 1)[0].ok
    c = make_side(a.ctx, UD)
    with pytest.raises(InvalidAttributeError, match=r"use activate\(\)"):
        c.qp.connect(where)
    with pytest.raises(InvalidAttributeError, match=r"use connect\(\)"):
        a.qp.activate()
    with pytest.raises(InvalidAttributeError, match="both must be IPv4"):
        make_side(a.ctx, UC).qp.connect(Endpoint(Gid.from_ip("fd00::1"), 5, 5))


def test_every_misuse_is_a_verb_error() -> None:
    lab = Lab()
    a, b = lab.pair()
    a.qp.close()
    for call in (
        lambda: a.qp.post_send(write(a, b, 8)),
        lambda: a.qp.post_recv(RecvRequest(1)),
        lambda: a.qp.post_recv_many([RecvRequest(1)]),
        lambda: a.qp.post_send_many([]),
        lambda: a.qp.state,
        lambda: a.qp.endpoint,
    ):
        with pytest.raises(ClosedError):
            call()
    assert issubclass(ClosedError, VerbError)
    assert issubclass(VerbError, VerbenaError)
    a.qp.close()


def test_posting_many_stops_where_one_is_wrong() -> None:
    lab = Lab()
    a, b = lab.pair(sizes={"max_recv_wr": 2})
    bad = write(a, b, 8, 3)
    bad.opcode = 77
    with pytest.raises(InvalidAttributeError):
        a.qp.post_send_many([write(a, b, 8, 1), write(a, b, 8, 2), bad, write(a, b, 8, 4)])
    lab.settle()
    assert statuses(a.cq.poll()) == [(1, "SUCCESS"), (2, "SUCCESS")], "those before it are posted, and sent"
    with pytest.raises(verbena.QueueFullError):
        a.qp.post_recv_many(RecvRequest(i) for i in range(3))


def test_what_a_program_looks_at() -> None:
    """Objects say what they are."""
    with connected_pair() as pair:
        a = pair.a
        for thing, words in (
            (a.qp, "RC RTS"),
            (a.cq, "CompletionQueue"),
            (a.mr, "bytes at"),
            (a.ctx, "10.0.0.1"),
            (WorkRequest(5), "wr_id=5"),
            (RecvRequest(6), "wr_id=6"),
            (a.mr.sge(), "lkey="),
        ):
            assert words in repr(thing)
        assert a.cq, "an empty queue is no false value"
        assert a.pd.create_srq(1)


def test_limits_that_no_adapter_can_have() -> None:
    with pytest.raises(InvalidAttributeError, match="max_sge = 17"):
        VirtualNetwork().open_device("10.0.0.1", limits=DeviceAttributes(max_qp=1, max_cq=1, max_sge=17))


def test_wrong_objects() -> None:
    lab = Lab()
    ctx = lab.adapter()
    pd, cq = ctx.alloc_pd(), ctx.create_cq(4)
    with pytest.raises(InvalidAttributeError, match="send_cq: a CompletionQueue is needed, not int"):
        pd.create_qp(RC, 5)  # type: ignore[arg-type]
    closed = ctx.create_cq(4)
    closed.close()
    with pytest.raises(InvalidStateError, match="recv_cq is closed"):
        pd.create_qp(RC, cq, closed)
    for depth in (0, -1, 1 << 23, "4", None):
        with pytest.raises(InvalidAttributeError, match="depth"):
            ctx.create_cq(depth)  # type: ignore[arg-type]
    with pytest.raises(InvalidAttributeError, match="an AddressVector is needed"):
        pd.create_ah("10.0.0.1")  # type: ignore[arg-type]


def test_rights_come_from_the_queue_pair_too() -> None:
    lab = Lab()
    a, b = lab.pair(access=Access.LOCAL_WRITE | Access.REMOTE_READ)
    a.qp.post_send(write(a, b, 8))
    assert statuses(take(a.cq, 1)) == [(0, "REM_ACCESS_ERR")]
