"""DELAY: a request that holds up those behind it on its send queue (document 003:485, 497)."""

from __future__ import annotations

import itertools
import time

import pytest

import verbena
from lab import ETHERNET_SERVICES, RC, UD, Lab, pattern, read, sending, statuses, take, write
from verbena import (
    AddressVector,
    CompletionOpcode,
    InvalidAttributeError,
    QPState,
    QPType,
    RecvRequest,
    SendFlags,
    WorkRequest,
    WROpcode,
)
from verbena.runtime.meshes import QKEY, addressed, datagram_mesh
from verbena.runtime.pairs import connect_sides, make_side

RD = QPType.RD
MS = 1_000_000


def delay(ns: int, wr_id: int = 0, flags: SendFlags = SendFlags.SIGNALED) -> WorkRequest:
    return WorkRequest(wr_id, WROpcode.DELAY, delay_ns=ns, flags=flags)


@pytest.mark.requirement("VRB-12")
@pytest.mark.parametrize("service", ETHERNET_SERVICES)
def test_what_follows_a_delay_keeps_its_distance(service: QPType) -> None:
    lab = Lab()
    a, b, post = ends(lab, service)
    other = make_side(lab.contexts[0], RC), make_side(lab.contexts[1], RC)
    connect_sides(*other)
    for _ in range(2):
        b.qp.post_recv(RecvRequest(0, [b.mr.sge(0, 1000)]))
    start = lab.net.now
    post(sending(a, 500, 1))
    a.qp.post_send(delay(50 * MS, 2))
    post(sending(a, 500, 3))
    other[0].qp.post_send(write(*other, 100, 4))
    lab.net.run_for(49 * MS)
    assert statuses(a.cq.poll()) == [(1, "SUCCESS")]
    assert len(b.cq.poll()) == 1
    assert statuses(other[0].cq.poll()) == [(4, "SUCCESS")], "another queue pair is not delayed"
    lab.settle()
    ended, sent = a.cq.poll()
    assert (ended.wr_id, ended.status.name, ended.opcode) == (2, "SUCCESS", CompletionOpcode.DELAY)
    assert (sent.wr_id, sent.ok) == (3, True)
    times = [p.when for p in lab.taps[0].requests() if "SEND" in p.name]
    assert len(times) == 2
    assert times[1] - times[0] >= 50 * MS
    assert times[0] - start < MS
    assert times[1] - times[0] < 51 * MS
    lab.check_laws()


def ends(lab: Lab, service: QPType) -> tuple:
    """Two connected ends of a service, and how to post a message from the first to the second."""
    if service is RD:
        nodes = datagram_mesh([lab.adapter(), lab.adapter()], 1)
        a, b = nodes[0].sides[0], nodes[1].sides[0]
        return a, b, lambda w: a.qp.post_send(addressed(w, nodes[0].contexts[1], b.qp, QKEY))
    a, b = lab.pair(service)
    if service is not UD:
        return a, b, a.qp.post_send

    def datagram(request: WorkRequest) -> None:
        request.ah = a.pd.create_ah(AddressVector(b.ctx.query_gid()))
        request.remote_qpn, request.remote_qkey = b.qp.qp_num, 0x11111111
        a.qp.post_send(request)

    return a, b, datagram


@pytest.mark.requirement("VRB-12")
@pytest.mark.parametrize("service", [RC, RD])
def test_the_distance_holds_where_packets_are_lost(service: QPType) -> None:
    """The first message arrives late, by repetition: the delay begins only then."""
    lab = Lab()
    a, b, post = ends(lab, service)
    lost = []

    def lose(packet: object) -> list[bytes]:
        lost.append(packet)
        return [] if len(lost) == 1 else [packet.data]  # type: ignore[attr-defined]

    lab.taps[0].gate = lose
    post(write(a, b, 100, 1))
    a.qp.post_send(delay(5 * MS, 2))
    post(write(a, b, 100, 3))
    assert statuses(take(a.cq, 3)) == [(1, "SUCCESS"), (2, "SUCCESS"), (3, "SUCCESS")]
    first, again, last = lab.taps[0].requests()
    assert again.when - first.when > 50 * MS, "the retransmission timer"
    assert last.when - again.when >= 5 * MS


def test_delays_meter_a_flow() -> None:
    lab = Lab()
    a, b = lab.pair()
    for i in range(20):
        a.qp.post_send(write(a, b, 100, i, flags=SendFlags.NONE))
        a.qp.post_send(delay(10_000, 100 + i, SendFlags.NONE))
    lab.settle()
    assert a.cq.poll() == [], "unsignaled ones leave no entry"
    times = [p.when for p in lab.taps[0].requests()]
    gaps = [y - x for x, y in itertools.pairwise(times)]
    assert len(times) == 20
    assert min(gaps) >= 10_000
    assert max(gaps) < 13_000, "the delay, and the time to acknowledge"


def test_a_delay_waits_for_reads_and_delays_in_a_row_add_up() -> None:
    lab = Lab()
    a, b = lab.pair(mtu=256)
    b.mr.buf[:2000] = pattern(2000)
    a.qp.post_send(read(a, b, 2000, 1))
    a.qp.post_send(delay(1000, 2))
    a.qp.post_send(delay(0, 3))
    a.qp.post_send(delay(2000, 4))
    a.qp.post_send(write(a, b, 10, 5, to=5000))
    assert [w for w, _ in statuses(take(a.cq, 5))] == [1, 2, 3, 4, 5]
    answered = max(p.when for p in lab.taps[1].out if "READ" in p.name)
    written = next(p.when for p in lab.taps[0].out if "WRITE" in p.name)
    assert written - answered >= 3000
    assert a.mr.buf[:2000] == pattern(2000)


@pytest.mark.requirement("VRB-12")
@pytest.mark.parametrize("service", ETHERNET_SERVICES)
@pytest.mark.parametrize("how", ["error", "reset", "close"])
def test_a_delay_is_flushed(service: QPType, how: str) -> None:
    lab = Lab()
    a, _, post = ends(lab, service)
    a.qp.post_send(delay(50 * MS, 1))
    post(sending(a, 500, 2))
    lab.net.run_for(MS)
    if how == "error":
        a.qp.modify(QPState.ERR)
    elif how == "reset":
        a.qp.modify(QPState.RESET)
    else:
        a.qp.close()
    flushed = [(1, "WR_FLUSH_ERR"), (2, "WR_FLUSH_ERR")]
    assert statuses(a.cq.poll()) == ([] if how == "reset" else flushed)
    lab.settle()
    assert a.cq.poll() == []
    assert lab.taps[0].requests() == []


@pytest.mark.parametrize("service", [RC, RD])
def test_draining_waits_for_a_delay_that_runs_and_begins_none(service: QPType) -> None:
    lab = Lab()
    a, b, post = ends(lab, service)
    a.qp.post_send(delay(MS, 1))
    a.qp.post_send(delay(MS, 2))
    post(write(a, b, 100, 3))
    lab.net.run_for(1000)
    a.qp.modify(QPState.SQD)
    assert a.ctx.get_async_event(0) is None
    lab.settle()
    assert lab.net.now >= MS
    assert statuses(a.cq.poll()) == [(1, "SUCCESS")]
    event = a.ctx.get_async_event(0)
    assert event is not None
    assert event.type.name == "SQ_DRAINED"
    a.qp.modify(QPState.RTS)
    assert statuses(take(a.cq, 2)) == [(2, "SUCCESS"), (3, "SUCCESS")]


def test_a_failure_behind_nothing_and_an_endless_delay() -> None:
    lab = Lab()
    a, b = lab.pair()
    bad = write(a, b, 100, 1)
    bad.rkey ^= 1
    a.qp.post_send(bad)
    a.qp.post_send(delay((1 << 56) - 1, 2))
    assert statuses(take(a.cq, 2)) == [(1, "REM_ACCESS_ERR"), (2, "WR_FLUSH_ERR")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delay_ns": 1 << 56}, "delay_ns"),
        ({"delay_ns": -1}, "delay_ns"),
        ({"delay_ns": 1.5}, "delay_ns"),
        ({"flags": SendFlags.INLINE}, "moves no data"),
        ({"sg_list": "own"}, "moves no data"),
    ],
)
def test_delays_that_make_no_sense(change: dict, message: str) -> None:
    lab = Lab()
    a, _ = lab.pair(sizes={"max_inline": 8})
    if "sg_list" in change:
        change = {"sg_list": [a.mr.sge(0, 4)]}
    with pytest.raises(InvalidAttributeError, match=message):
        a.qp.post_send(WorkRequest(1, WROpcode.DELAY, **change))
    lab.settle()
    assert a.cq.poll() == []


@pytest.mark.loopback
@pytest.mark.requirement("VRB-12")
def test_a_delay_in_real_time() -> None:
    with verbena.open_device("127.0.74.1") as here, verbena.open_device("127.0.74.2") as there:
        a, b = make_side(here, RC), make_side(there, RC)
        connect_sides(a, b)
        start = time.monotonic()
        a.qp.post_send_many([write(a, b, 100, 1), delay(50 * MS, 2), write(a, b, 100, 3)])
        assert [e.wr_id for e in take(a.cq, 3)] == [1, 2, 3]
        assert time.monotonic() - start >= 0.05
