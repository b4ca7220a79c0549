"""The transition table of queue pairs: every way from state to state, and what each needs, allows and refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lab import ETHERNET_SERVICES, RC, SERVICES, UC, UD, Lab, statuses, take, write
from verbena import (
    Access,
    AddressVector,
    AsyncEventType,
    Gid,
    InvalidAttributeError,
    InvalidStateError,
    QPState,
    QPType,
    QueuePair,
    RecvRequest,
    SendFlags,
    WorkRequest,
    WROpcode,
)
from verbena.adapter.states import RANGES, TRANSITIONS
from verbena.runtime.pairs import make_side

RESET, INIT, RTR, RTS, SQD, SQE, ERR = QPState
RD = QPType.RD
GOOD: dict[str, Any] = {
    "port_num": 1,
    "pkey_index": 0,
    "qkey": 7,
    "access_flags": Access.LOCAL_WRITE,
    "path_mtu": 512,
    "dest_qp_num": 0x20,
    "rq_psn": 5,
    "sq_psn": 6,
    "max_rd_atomic": 3,
    "max_dest_rd_atomic": 4,
    "min_rnr_timer": 8,
    "timeout": 9,
    "retry_cnt": 2,
    "rnr_retry": 3,
    "ah_attr": AddressVector(Gid.from_ip("10.0.0.9")),
    "stripe_ah_attrs": (AddressVector(Gid.from_ip("10.0.0.9")),),
    "reorder_ns": 1000,
}
# From IBA vol. 1, table 91, written down again, not read from the code: (from, to) and for each service what it needs.
NEEDS = {
    (RESET, INIT): {
        RC: {"pkey_index", "port_num", "access_flags"},
        UC: {"pkey_index", "port_num", "access_flags"},
        RD: {"pkey_index", "port_num", "access_flags", "qkey"},
        UD: {"pkey_index", "port_num", "qkey"},
    },
    (INIT, INIT): {RC: set(), UC: set(), RD: set(), UD: set()},
    (INIT, RTR): {
        RC: {"ah_attr", "path_mtu", "dest_qp_num", "rq_psn", "max_dest_rd_atomic", "min_rnr_timer"},
        UC: {"ah_attr", "path_mtu", "dest_qp_num", "rq_psn"},
        RD: {"min_rnr_timer"},
        UD: set(),
    },
    (RTR, RTS): {
        RC: {"sq_psn", "timeout", "retry_cnt", "rnr_retry", "max_rd_atomic"},
        UC: {"sq_psn"},
        RD: {"rnr_retry"},
        UD: {"sq_psn"},
    },
    (RTS, RTS): {RC: set(), UC: set(), RD: set(), UD: set()},
    (RTS, SQD): {RC: set(), UC: set(), RD: set(), UD: set()},
    (SQD, SQD): {RC: set(), UC: set(), RD: set(), UD: set()},
    (SQD, RTS): {RC: set(), UC: set(), RD: set(), UD: set()},
    (SQE, RTS): {UC: set(), RD: set(), UD: set()},
}
SERVICE_HAS = {
    RC: set(GOOD) - {"qkey"},
    UC: set(GOOD)
    - {"qkey", "max_rd_atomic", "max_dest_rd_atomic", "min_rnr_timer", "timeout", "retry_cnt", "rnr_retry"}
    - {"stripe_ah_attrs", "reorder_ns"},
    RD: {"port_num", "pkey_index", "qkey", "access_flags", "min_rnr_timer", "rnr_retry"},
    UD: {"port_num", "pkey_index", "qkey", "sq_psn"},
}


def in_state(service: QPType, state: QPState) -> QueuePair:
    """A queue pair that was brought to a state by the shortest way."""
    lab = Lab()
    ctx = lab.adapter()
    side = make_side(ctx, service, **({"rdd": ctx.alloc_rdd()} if service is RD else {}))
    lab.adapter("10.0.0.9")
    qp = side.qp
    ways = [RESET, INIT, RTR, RTS, SQD]
    if state is ERR:
        qp.modify(ERR)
        return qp
    for a, b in itertools.pairwise(ways):
        if qp.state is state:
            break
        if state is SQE and a is RTS:
            bad = WorkRequest(1, WROpcode.SEND, [side.mr.sge(0, 4)])
            bad.sg_list[0].lkey ^= 1
            if service is UD:
                bad.ah = side.pd.create_ah(AddressVector(Gid.from_ip("10.0.0.9")))
            bad.ee = 0x123456
            qp.post_send(bad)
            side.cq.poll()
            break
        qp.modify(b, **{n: GOOD[n] for n in NEEDS[a, b][service]})
    assert qp.state is state
    return qp


def everything(qp: QueuePair) -> dict[str, Any]:
    found = qp.query()
    return {name: getattr(found, name) for name in found.__dataclass_fields__}


REACHABLE = [(s, k) for s in QPState for k in ETHERNET_SERVICES if not (s is SQE and k is RC)]


@pytest.mark.parametrize(("start", "service"), REACHABLE)
def test_every_way(start: QPState, service: QPType) -> None:
    for target in QPState:
        qp = in_state(service, start)
        before = everything(qp)
        legal = target in (RESET, ERR) or service in NEEDS.get((start, target), {})
        if not legal:
            for given in ({}, GOOD):
                with pytest.raises(InvalidStateError, match=f"no way from {start.name} to {target.name}"):
                    qp.modify(target, **given)
                assert everything(qp) == before
            continue
        needs = NEEDS.get((start, target), {}).get(service, set())
        for missing in needs:
            with pytest.raises(InvalidAttributeError, match=f"also needs {missing}"):
                qp.modify(target, **{n: GOOD[n] for n in needs - {missing}})
            assert everything(qp) == before
        allows = TRANSITIONS[start, target, service].allows
        for extra in set(GOOD) - needs - allows:
            with pytest.raises(InvalidAttributeError, match=f"does not take {extra}"):
                qp.modify(target, **{n: GOOD[n] for n in needs | {extra}})
            assert everything(qp) == before
        assert allows <= SERVICE_HAS[service]
        given = {n: GOOD[n] for n in needs | allows}
        qp.modify(target, **given)
        assert qp.state is target
        after = everything(qp)
        assert {n: after[n] for n in given} == given
        kept = set(after) - set(given) - {"state"}
        if target is RTR and service in (RD, UD):
            kept.discard("path_mtu")  # a datagram's is the port's
        if target is not RESET:
            assert {n: after[n] for n in kept} == {n: before[n] for n in kept}


@pytest.mark.requirement("VRB-02")
@pytest.mark.parametrize("name", sorted(RANGES))
def test_values_out_of_range_change_nothing(name: str) -> None:
    low, high = RANGES[name]
    for service in ETHERNET_SERVICES:
        for (start, target, kind), row in TRANSITIONS.items():
            if kind is not service or name not in row.needs | row.allows:
                continue
            qp = in_state(service, start)
            before = everything(qp)
            for wrong in (low - 1, high + 1, "1", None, 1.5):
                given = {n: GOOD[n] for n in row.needs | {name}} | {name: wrong}
                with pytest.raises(InvalidAttributeError, match=name):
                    qp.modify(target, **given)
                assert everything(qp) == before


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"path_mtu": 300}, "path_mtu = 300: one of 256, 512"),
        ({"path_mtu": 8192}, "path_mtu = 8192: one of"),
        ({"path_mtu": 4096}, "active MTU is 2048"),
        ({"max_dest_rd_atomic": 200}, "at most 128"),
        ({"pkey_index": 1}, "P_Key table has 1 entries"),
        ({"ah_attr": "10.0.0.9"}, "an AddressVector is needed, not str"),
        ({"ah_attr": AddressVector("10.0.0.9")}, "gid must be a Gid"),  # type: ignore[arg-type]
        ({"ah_attr": AddressVector(Gid.from_ip("fd00::1"))}, "both must be IPv4, or both IPv6"),
        ({"ah_attr": AddressVector(Gid.from_ip("10.0.0.9"), sgid_index=1)}, "GID table has 1 entries"),
        ({"ah_attr": AddressVector(Gid.from_ip("10.0.0.9"), sgid_index=-1)}, "sgid_index = -1"),
        ({"ah_attr": AddressVector(Gid.from_ip("10.0.0.9"), hop_limit=0)}, "hop_limit = 0"),
        ({"ah_attr": AddressVector(Gid.from_ip("10.0.0.9"), traffic_class=256)}, "traffic_class = 256"),
        ({"ah_attr": AddressVector(Gid.from_ip("10.0.0.9"), flow_label=1 << 20)}, "flow_label"),
        ({"ah_attr": AddressVector(Gid.from_ip("10.0.0.9"), sl=16)}, "sl = 16"),
        ({"ah_attr": AddressVector(Gid.from_ip("10.0.0.9"), port_num=2)}, "port 1 only"),
    ],
)
def test_what_the_port_cannot_do(attributes: dict[str, Any], message: str) -> None:
    lab = Lab()
    qp = make_side(lab.adapter(mtu=2048), RC).qp
    qp.modify(INIT, **{n: GOOD[n] for n in NEEDS[RESET, INIT][RC]})
    before = everything(qp)
    with pytest.raises(InvalidAttributeError, match=message):
        qp.modify(RTR, **({n: GOOD[n] for n in NEEDS[INIT, RTR][RC]} | attributes))
    assert everything(qp) == before


@pytest.mark.requirement("VRB-04")
def test_query_shows_all_that_was_set() -> None:
    lab = Lab()
    handler = lab.adapter().set_completion_handler(lambda cq: None)[0]
    ctx = lab.contexts[0]
    lab.adapter("10.0.0.9")
    pd, cq1, cq2 = ctx.alloc_pd(), ctx.create_cq(8, handler), ctx.create_cq(8)
    qp = pd.create_qp(
        RC, cq1, cq2, max_send_wr=3, max_recv_wr=4, max_send_sge=5, max_recv_sge=6, max_inline=7
    )
    for a, b in ((RESET, INIT), (INIT, RTR), (RTR, RTS)):
        qp.modify(b, **{n: GOOD[n] for n in NEEDS[a, b][RC]})
    found = qp.query()
    for name in SERVICE_HAS[RC] - {"stripe_ah_attrs", "reorder_ns"}:
        assert getattr(found, name) == GOOD[name], name
    assert (found.qp_num, found.qp_type, found.state) == (qp.qp_num, RC, RTS)
    caps = found.capabilities
    assert (caps.max_send_wr, caps.max_recv_wr, caps.max_send_sge, caps.max_recv_sge, caps.max_inline) == (
        3,
        4,
        5,
        6,
        7,
    )
    assert found.completion_handlers == (handler, None)
    assert (qp.pd, qp.send_cq, qp.recv_cq) == (pd, cq1, cq2)


@pytest.mark.requirement("VRB-05")
def test_posting_before_the_connection() -> None:
    for state in (RESET, INIT, RTR):
        qp = in_state(RC, state)
        with pytest.raises(InvalidStateError, match=f"in {state.name}, and sending needs RTS"):
            qp.post_send(WorkRequest(1))
        if state is RESET:
            with pytest.raises(InvalidStateError, match="move it to INIT"):
                qp.post_recv(RecvRequest(1))
        else:
            qp.post_recv(RecvRequest(1))


# --- what the states mean ----------------------------------------------------------------------------------------


def test_reset_forgets_everything_without_completions() -> None:
    lab = Lab()
    a, b = lab.pair()
    a.qp.post_recv(RecvRequest(1))
    lab.taps[0].gate = lambda packet: []
    a.qp.post_send(write(a, b, 8, 1))
    lab.net.run_for(1000)
    a.qp.modify(RESET)
    b.qp.modify(RESET)
    lab.taps[0].gate = None
    lab.settle()
    assert len(a.cq) == 0
    there, here = b.qp.endpoint, a.qp.endpoint
    a.qp.connect(there)
    b.qp.connect(here)
    a.qp.post_send(write(a, b, 8, 2))
    assert statuses(take(a.cq, 1)) == [(2, "SUCCESS")]


@pytest.mark.parametrize("service", SERVICES)
def test_draining(service: QPType) -> None:
    """SQD: what has begun is finished, what has not waits; SQ_DRAINED says when (IBA vol. 1, 10.3.1.5)."""
    lab = Lab(rate_bps=1e9)
    lab.adapter(window_bytes=1 << 13), lab.adapter()
    a, b = lab.pair(service, **({} if service is UD else {"mtu": 256}))
    n = 2000 if service is UD else 50_000
    posted = [WorkRequest(i, WROpcode.SEND, [a.mr.sge(0, n)]) for i in range(4)]
    for i, request in enumerate(posted):
        b.qp.post_recv(RecvRequest(i, [b.mr.sge()]))
        if service is UD:
            request.ah = a.pd.create_ah(AddressVector(b.ctx.query_gid()))
            request.remote_qpn, request.remote_qkey = b.qp.qp_num, 0x11111111
    b.qp.post_recv(RecvRequest(4, [b.mr.sge()]))
    a.qp.post_send_many(posted)
    lab.net.run_for(20_000)
    a.qp.modify(SQD)
    early = a.ctx.get_async_event(0)
    sent_then = len(lab.taps[0].out)
    lab.settle()
    event = early or a.ctx.get_async_event(0)
    assert event
    assert (event.type, event.source) == (AsyncEventType.SQ_DRAINED, a.qp)
    assert a.ctx.get_async_event(0) is None, "said once"
    if service is not UD:
        assert early is None, "not before the message that had begun is done"
        assert len(lab.taps[0].requests()) >= 196 > sent_then
        assert [e.wr_id for e in a.cq.poll()] == [0]
    assert a.qp.state is SQD
    a.qp.modify(SQD, **({"qkey": 0x11111111} if service is UD else {"ah_attr": a.qp.query().ah_attr}))
    a.qp.post_send(posted[0])
    lab.settle()
    done = len(a.cq)
    a.qp.modify(RTS)
    lab.settle()
    assert len(a.cq) > done
    assert all(e.ok for e in a.cq.poll())
    lab.check_laws()


def test_drained_is_not_said_while_a_message_waits_for_its_answer() -> None:
    """Everything is sent, the window was used up on the way, and the acknowledgement of the rest is missing."""
    lab = Lab()
    lab.adapter(window_bytes=1 << 13), lab.adapter()
    a, b = lab.pair(mtu=256, timeout=7)
    a.qp.post_send(write(a, b, 60_000, 1))
    lab.net.run_for(1_000)
    a.qp.modify(SQD)
    lab.taps[1].gate = lambda packet: [] if lab.net.now < 2_000_000 else [packet.data]
    lab.net.run_for(1_000_000)
    assert a.ctx.get_async_event(0) is None
    assert take(a.cq, 1)[0].ok
    event = a.ctx.get_async_event(0)
    assert event
    assert event.type is AsyncEventType.SQ_DRAINED


def test_responder_resources_change_while_drained() -> None:
    lab = Lab()
    a, b = lab.pair(max_rd_atomic=1)
    for qp in (a.qp, b.qp):
        qp.modify(SQD)
        qp.modify(SQD, max_dest_rd_atomic=8, max_rd_atomic=8)
        qp.modify(RTS)
    add = WorkRequest(
        1, WROpcode.ATOMIC_FETCH_AND_ADD, [a.mr.sge(0, 8)], remote_addr=b.mr.addr, rkey=b.mr.rkey
    )
    add.compare_add = 1
    lab.taps[1].gate = lambda packet: [] if lab.net.now < 1_000_000 else [packet.data]
    a.qp.post_send_many([add] * 8)
    assert all(e.ok for e in take(a.cq, 8))
    assert int.from_bytes(b.mr.buf[:8], "little") == 8, "eight results were kept for replay"


@pytest.mark.requirement("VRB-18")
def test_the_error_state_flushes_in_order() -> None:
    lab = Lab()
    a, b = lab.pair()
    lab.taps[0].gate = lambda packet: []
    a.qp.post_recv_many([RecvRequest(10 + i) for i in range(3)])
    a.qp.post_send_many([write(a, b, 8, i, flags=SendFlags(2 * (i % 2))) for i in range(4)])
    a.qp.modify(ERR)
    flushed = [(i, "WR_FLUSH_ERR") for i in (0, 1, 2, 3, 10, 11, 12)]
    assert statuses(a.cq.poll()) == flushed, "unsignaled ones, too"
    a.qp.post_send(write(a, b, 8, 4))
    a.qp.post_recv(RecvRequest(13))
    assert statuses(a.cq.poll()) == [(4, "WR_FLUSH_ERR"), (13, "WR_FLUSH_ERR")]
    lab.settle()
    assert len(a.cq) == 0


def test_communication_established() -> None:
    """A message before RTS: the event tells the passive side that the peer is there (IBA vol. 1, 11.6.3)."""
    lab = Lab()
    a, b = (make_side(lab.adapter(), RC) for _ in range(2))
    b.qp.modify(INIT, port_num=1, pkey_index=0, access_flags=Access(15))
    b.qp.modify(
        RTR,
        ah_attr=AddressVector(a.ctx.query_gid()),
        path_mtu=1024,
        dest_qp_num=a.qp.qp_num,
        rq_psn=a.qp.endpoint.psn,
        max_dest_rd_atomic=1,
        min_rnr_timer=1,
    )
    a.qp.connect(b.qp.endpoint, mtu=1024)
    a.qp.post_send_many([write(a, b, 8, 1), write(a, b, 8, 2)])
    assert all(e.ok for e in take(a.cq, 2))
    event = b.ctx.get_async_event(0)
    assert event
    assert (event.type, event.source) == (AsyncEventType.COMM_EST, b.qp)
    assert b.ctx.get_async_event(0) is None


def test_unreliable_services_have_no_retry_attributes() -> None:
    for service in (UC, UD):
        assert "timeout" not in {
            n for row in (t for t in TRANSITIONS.items() if t[0][2] is service) for n in row[1].allows
        }
