"""A reliable connection's rules: acknowledgements, NAKs, retries, limits, replay (IBA vol. 1, 9.7)."""

from __future__ import annotations

import itertools

import pytest

from lab import RC, Lab, Packet, drops, fetch_add, pattern, read, sealed, sending, statuses, take, write
from verbena import (
    Access,
    AckPolicy,
    InvalidStateError,
    QPState,
    RecvRequest,
    SendFlags,
    WorkRequest,
    WROpcode,
)
from verbena.runtime.pairs import Side, connect_sides, make_side

SEQUENCE_NAK, INVALID_NAK, ACCESS_NAK, OPERATION_NAK = 0x60, 0x61, 0x62, 0x63


def swallow(_: Packet) -> list[bytes]:
    return []


def deliver(packet: Packet) -> list[bytes]:
    return [packet.data]


def lose_once(*indices: int) -> object:
    """A gate that swallows the packets with these places in the order of sending."""
    seen = iter(range(1_000_000))
    return lambda packet: [] if next(seen) in indices else [packet.data]


# --- acknowledgements ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("TRN-10")
def test_each_request_packet_is_acknowledged_by_itself() -> None:
    lab = Lab()
    lab.adapter(ack_policy=AckPolicy.PER_PACKET), lab.adapter(ack_policy=AckPolicy.PER_PACKET)
    a, b = lab.pair(mtu=256)
    for i in range(4):
        b.qp.post_recv(RecvRequest(i, [b.mr.sge(0, 5000)]))
    a.qp.post_send_many([write(a, b, 10_000), *(sending(a, 1000) for _ in range(4))])
    take(a.cq, 5)
    lab.settle()
    requests, answers = lab.taps[0].requests(), lab.taps[1].answers()
    assert len(requests) == 40 + 16
    assert [p.psn for p in answers] == [p.psn for p in requests]
    assert {(p.name, p.syndrome) for p in answers} == {("RC ACKNOWLEDGE", 0x1F)}
    assert b.ctx.counters()["tx.acks"] == len(requests)


def test_coalesced_acknowledgements_answer_those_that_ask() -> None:
    lab = Lab()
    a, b = lab.pair(mtu=256, memory=1 << 17)
    a.qp.post_send(write(a, b, 100_000))
    take(a.cq, 1)
    lab.settle()
    requests, answers = lab.taps[0].requests(), lab.taps[1].answers()
    assert len(requests) == 391
    asking = {p.psn for p in requests if p.asks}
    assert 0 < len(answers) < 20
    assert {p.psn for p in answers} <= asking
    assert requests[-1].asks, "the end of what there is to send asks"
    assert b.ctx.counters()["tx.acks"] == len(answers)


@pytest.mark.requirement("TRN-09")
def test_an_acknowledgement_says_arrived_not_consumed() -> None:
    lab = Lab()
    a, b = lab.pair()
    b.qp.post_recv(RecvRequest(1, [b.mr.sge(0, 100)]))
    a.qp.post_send(sending(a, 100, 9))
    assert statuses(take(a.cq, 1)) == [(9, "SUCCESS")]
    assert len(b.cq) == 1, "nobody has polled it"


# --- loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("TRN-10")
def test_a_gap_is_answered_by_one_sequence_nak() -> None:
    lab = Lab()
    a, b = lab.pair(mtu=256)
    a.mr.buf[:5000] = pattern(5000)
    lab.taps[0].gate = lose_once(3)
    a.qp.post_send(write(a, b, 5000, 1))
    assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
    assert b.mr.buf[:5000] == pattern(5000)
    requests = lab.taps[0].requests()
    naks = [p for p in lab.taps[1].answers() if p.syndrome >= 0x20]
    assert [(p.syndrome, p.psn) for p in naks] == [(SEQUENCE_NAK, requests[3].psn)]
    assert a.ctx.counters()["timeouts"] == 0, "the NAK spared the wait"
    assert b.ctx.counters()["rx.out_of_sequence"] == 16
    assert [p.psn for p in requests] == [p.psn for p in requests[:20]] + [p.psn for p in requests[3:20]]


@pytest.mark.parametrize("lost", [0, 1, 4, 18, 19])
def test_a_lost_read_response_is_asked_for_again_from_where_it_was_lost(lost: int) -> None:
    lab = Lab()
    a, b = lab.pair(mtu=256, timeout=5)
    b.mr.buf[:5000] = pattern(5000)
    lab.taps[1].gate = lose_once(lost)
    a.qp.post_send(read(a, b, 5000, 1))
    assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
    assert a.mr.buf[:5000] == pattern(5000)
    again = lab.taps[0].requests()[1]
    assert (again.psn - lab.taps[0].requests()[0].psn) & 0xFFFFFF == lost
    assert int.from_bytes(again.data[24:28], "big") == 5000 - 256 * lost
    lab.check_laws()


@pytest.mark.requirement("VRB-10")
def test_an_atomic_whose_answer_was_lost_is_not_executed_twice() -> None:
    lab = Lab()
    a, b = lab.pair(timeout=5)
    lab.taps[1].gate = lose_once(0, 1, 2)
    a.qp.post_send_many([fetch_add(a, b, 10, 1, at=0), fetch_add(a, b, 100, 2, at=8)])
    assert statuses(take(a.cq, 2)) == [(1, "SUCCESS"), (2, "SUCCESS")]
    assert int.from_bytes(b.mr.buf[:8], "little") == 110
    assert [int.from_bytes(a.mr.buf[i : i + 8], "little") for i in (0, 8)] == [0, 10]
    assert b.ctx.counters()["rx.duplicate"] >= 2


@pytest.mark.requirement("TRN-11")
@pytest.mark.parametrize("retry", [0, 1, 3, 7])
def test_retries_end_in_an_error_and_the_rest_is_flushed(retry: int) -> None:
    lab = Lab()
    a, b = lab.pair(retry_cnt=retry, timeout=6)
    lab.taps[1].gate = swallow
    a.qp.post_recv(RecvRequest(77, [a.mr.sge(0, 8)]))
    a.qp.post_send_many([write(a, b, 100, 1), write(a, b, 100, 2), read(a, b, 100, 3)])
    lab.settle()
    requests = lab.taps[0].requests()
    times = [p.when for p in requests if p.psn == requests[0].psn]
    assert len(times) == 1 + retry
    assert statuses(a.cq.poll()) == [
        (1, "RETRY_EXC_ERR"),
        (2, "WR_FLUSH_ERR"),
        (3, "WR_FLUSH_ERR"),
        (77, "WR_FLUSH_ERR"),
    ]
    assert a.qp.state is QPState.ERR
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert all(wait >= 4096 << 6 for wait in waits), "never before the time is over"


def test_progress_renews_the_retries() -> None:
    """Each packet is lost as often as may be, and the message still arrives."""
    lab = Lab()
    a, b = lab.pair(retry_cnt=2, timeout=4, mtu=256)
    counts: dict[int, int] = {}

    def third_time(packet: Packet) -> list[bytes]:
        counts[packet.psn] = counts.get(packet.psn, 0) + 1
        return [packet.data] if counts[packet.psn] > 2 else []

    lab.taps[0].gate = third_time
    for i in range(5):
        a.qp.post_send(write(a, b, 100, i))
        assert take(a.cq, 1)[0].ok


def test_timeout_0_waits_for_ever() -> None:
    lab = Lab()
    a, b = lab.pair(timeout=0)
    lab.taps[0].gate = swallow
    a.qp.post_send(write(a, b, 1))
    lab.settle()
    assert len(a.cq) == 0
    assert len(lab.taps[0].out) == 1


# --- receiver not ready -----------------------------------------------------------------------------------------


@pytest.mark.requirement("TRN-07")
@pytest.mark.parametrize("opcode", [WROpcode.SEND, WROpcode.RDMA_WRITE_WITH_IMM])
@pytest.mark.parametrize("n", [0, 100, 5000])
def test_a_late_receive_is_waited_for(opcode: WROpcode, n: int) -> None:
    lab = Lab()
    a, b = lab.pair(mtu=256, min_rnr_timer=14)
    a.mr.buf[:n] = pattern(n)
    request = WorkRequest(1, opcode, [a.mr.sge(0, n)], remote_addr=b.mr.addr, rkey=b.mr.rkey)
    a.qp.post_send_many([request, write(a, b, 8, 2, to=9000)])
    lab.net.run_for(100_000_000)
    assert len(a.cq) == 0
    b.qp.post_recv(RecvRequest(3, [b.mr.sge(0, n)]))
    assert statuses(take(a.cq, 2)) == [(1, "SUCCESS"), (2, "SUCCESS")]
    assert statuses(take(b.cq, 1)) == [(3, "SUCCESS")]
    assert b.mr.buf[:n] == pattern(n)
    naks = [p for p in lab.taps[1].answers() if p.syndrome & 0x60 == 0x20]
    assert {p.syndrome for p in naks} == {0x20 | 14}
    assert 70 <= len(naks) <= 79, "one every 1.28 ms"


@pytest.mark.requirement("TRN-07")
@pytest.mark.parametrize("limit", [0, 1, 3, 6])
def test_receiver_not_ready_too_often(limit: int) -> None:
    lab = Lab()
    a, _ = lab.pair(rnr_retry=limit, min_rnr_timer=1)
    a.qp.post_send_many([sending(a, 9, 1), sending(a, 9, 2)])
    lab.settle()
    assert statuses(a.cq.poll()) == [(1, "RNR_RETRY_EXC_ERR"), (2, "WR_FLUSH_ERR")]
    first = lab.taps[0].requests()[0].psn
    assert len([p for p in lab.taps[0].requests() if p.psn == first]) == 1 + limit
    assert a.ctx.counters()["rx.rnr_naks"] == 1 + limit
    lab.check_laws()


@pytest.mark.parametrize(("code", "delay_us"), [(1, 10), (5, 60), (14, 1280), (20, 10240), (0, 655360)])
def test_the_pause_is_as_long_as_the_receiver_asks(code: int, delay_us: int) -> None:
    lab = Lab()
    a, _ = lab.pair(rnr_retry=1, min_rnr_timer=code, timeout=20)
    a.qp.post_send(sending(a, 9, 1))
    lab.settle()
    nak = lab.taps[1].answers()[0].when
    again = lab.taps[0].requests()[1].when
    assert delay_us * 1000 <= again - nak < delay_us * 1000 + 10_000


# --- limits -----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("VRB-15")
def test_outstanding_reads_are_limited() -> None:
    lab = Lab()
    a, b = lab.pair(max_rd_atomic=4, timeout=0)
    lab.taps[1].gate = held = Held()
    a.qp.post_send_many(
        [*(read(a, b, 100, i) for i in range(3)), *(fetch_add(a, b, 1, i) for i in range(3, 9))]
    )
    lab.settle()
    assert len(lab.taps[0].requests()) == 4
    held.release(lab, 1)
    lab.net.run_for(10_000)
    assert len(lab.taps[0].requests()) == 5, "the fifth leaves after the first answer"
    held.hold = False
    held.release(lab, 100)
    assert [w for w, _ in statuses(take(a.cq, 9))] == list(range(9))


@pytest.mark.requirement("VRB-15")
def test_outstanding_requests_are_limited_by_the_window() -> None:
    lab = Lab()
    lab.adapter(window_bytes=4096 * 8), lab.adapter(ack_policy=AckPolicy.PER_PACKET)
    a, b = lab.pair(mtu=4096, timeout=0)
    lab.taps[1].gate = held = Held()
    a.qp.post_send_many([write(a, b, 4096, i) for i in range(20)])
    lab.settle()
    assert len(lab.taps[0].requests()) == 8
    held.release(lab, 1)
    lab.net.run_for(10_000)
    assert len(lab.taps[0].requests()) == 9, "the ninth leaves after the first ACK"
    assert statuses(a.cq.poll()) == [(0, "SUCCESS")]


class Held:
    """A gate that keeps packets until it is told to let some of them go."""

    def __init__(self) -> None:
        self.hold = True
        self.kept: list[Packet] = []

    def __call__(self, packet: Packet) -> list[bytes]:
        if self.hold:
            self.kept.append(packet)
            return []
        return [packet.data]

    def release(self, lab: Lab, n: int) -> None:
        for packet in self.kept[:n]:
            lab.taps[1].inner.send(packet.burst)
        del self.kept[:n]


def test_a_long_read_is_asked_for_in_parts_that_the_window_allows() -> None:
    lab = Lab()
    lab.adapter(window_bytes=1 << 14), lab.adapter()
    a, b = lab.pair(mtu=1024, memory=1 << 18, max_rd_atomic=2)
    b.mr.buf[:] = pattern(1 << 18)
    a.qp.post_send(read(a, b, 200_001, 1))
    assert take(a.cq, 1)[0].ok
    assert a.mr.buf[:200_001] == pattern(1 << 18)[:200_001]
    lengths = [int.from_bytes(p.data[24:28], "big") for p in lab.taps[0].requests()]
    assert lengths == [7168] * 27 + [200_001 - 27 * 7168]


def test_reads_with_max_rd_atomic_0_are_a_local_error() -> None:
    lab = Lab()
    a, b = lab.pair(max_rd_atomic=0)
    a.qp.post_send(read(a, b, 9, 1))
    assert statuses(take(a.cq, 1)) == [(1, "LOC_QP_OP_ERR")]


# --- duplicates, answers that come late -----------------------------------------------------------------------------


def replay(lab: Lab, packet: Packet, at: int) -> None:
    """A packet arrives at an adapter (again)."""
    burst = packet.burst
    engine = lab.contexts[at].adapter.engine
    engine.receive(bytearray(packet.data), 0, burst.source, 4791, lab.net.now, burst.first_ident)
    lab.contexts[at].driver.kick()


def test_a_duplicate_read_that_still_waits_does_not_use_up_the_agreed_number() -> None:
    """The answer to a repeated READ is still in line when the next READ comes: the requester has got the first one."""
    lab = Lab(rate_bps=1e8)
    a, b = lab.pair(max_rd_atomic=1, mtu=256)
    b.mr.buf[:5000] = pattern(5000)
    a.qp.post_send(read(a, b, 5000, 1))
    assert take(a.cq, 1)[0].ok
    repeated = lab.taps[0].requests()[0]
    replay(lab, repeated, 1)
    a.qp.post_send_many([read(a, b, 9, 2), fetch_add(a, b, 1, 3, at=100)])
    replay(lab, repeated, 1)
    assert statuses(take(a.cq, 2)) == [(2, "SUCCESS"), (3, "SUCCESS")]


def test_a_duplicate_read_of_a_region_that_was_closed() -> None:
    lab = Lab()
    a, b = lab.pair(timeout=5)
    mr = b.pd.alloc_mr(100, Access.REMOTE_READ)
    lab.taps[1].gate = lose_once(0)
    a.qp.post_send(WorkRequest(1, WROpcode.RDMA_READ, [a.mr.sge(0, 9)], remote_addr=mr.addr, rkey=mr.rkey))
    lab.net.run_for(10_000)
    mr.close()
    assert statuses(take(a.cq, 1)) == [(1, "REM_ACCESS_ERR")], (
        "refused, not silent until the retries are used up"
    )


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x80000000, 0x80000001, 600])
def test_a_duplicate_read_that_asks_for_more_than_was_executed(length: int) -> None:
    lab = Lab()
    a, b = lab.pair(mtu=256)
    a.qp.post_send(read(a, b, 300, 1))
    take(a.cq, 1)
    first = lab.taps[0].requests()[0]
    wrong = bytearray(first.data)
    wrong[24:28] = length.to_bytes(4, "big")
    burst = first.burst
    data = sealed(bytes(wrong), burst.source, burst.destination)
    b.ctx.adapter.engine.receive(bytearray(data), 0, burst.source, 4791, lab.net.now)
    lab.settle()
    assert drops(b.ctx) == {"drop.invalid_request": 1}
    assert b.qp.state is QPState.RTS


def test_duplicates_of_every_request_change_nothing() -> None:
    lab = Lab()
    a, b = lab.pair(mtu=256)
    b.qp.post_recv_many([RecvRequest(i, [b.mr.sge(8000, 1000)]) for i in range(3)])
    a.qp.post_send_many(
        [write(a, b, 600, 1), sending(a, 600, 2), fetch_add(a, b, 5, 3, to=4096), read(a, b, 600, 4)]
    )
    take(a.cq, 4)
    take(b.cq, 1)
    before = bytes(b.mr.buf)
    for packet in list(lab.taps[0].requests()):
        replay(lab, packet, 1)
        lab.settle()
    for packet in list(lab.taps[1].answers()):
        replay(lab, packet, 0)
        lab.settle()
    assert bytes(b.mr.buf) == before
    assert len(a.cq) == len(b.cq) == 0
    assert b.ctx.counters()["rx.duplicate"] == 8
    assert a.qp.state is b.qp.state is QPState.RTS
    assert (
        a.ctx.counters()["rx.packets"]
        == a.ctx.counters()["rx.accepted"] + drops(a.ctx)["drop.stale_response"]
    )


@pytest.mark.parametrize("syndrome", [0x40, 0x5F, 0x64, 0x7F])
def test_a_reserved_syndrome_is_a_bad_response(syndrome: int) -> None:
    lab = Lab()
    a, b = lab.pair()

    def spoil(packet: Packet) -> list[bytes]:
        data = bytearray(packet.data)
        data[12] = syndrome
        return [sealed(bytes(data), packet.burst.source, packet.burst.destination)]

    lab.taps[1].gate = spoil
    a.qp.post_send(write(a, b, 9, 1))
    assert statuses(take(a.cq, 1)) == [(1, "BAD_RESP_ERR")]


def test_a_receiver_not_ready_nak_that_comes_twice_counts_once() -> None:
    lab = Lab()
    a, b = lab.pair(rnr_retry=1, min_rnr_timer=14)
    a.qp.post_send(sending(a, 9, 1))
    lab.net.run_for(50_000)
    nak = lab.taps[1].answers()[0]
    for _ in range(3):
        replay(lab, nak, 0)
    b.qp.post_recv(RecvRequest(1, [b.mr.sge()]))
    assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]


# --- who may speak ------------------------------------------------------------------------------------------------


@pytest.mark.requirement("TRN-04")
def test_a_queue_pair_has_one_peer() -> None:
    lab = Lab()
    a, b = lab.pair()
    c = make_side(lab.adapter(), RC)
    c.qp.connect(b.qp.endpoint, timeout=5, retry_cnt=1)
    c.qp.post_send(write(c, b, 100, 1))
    assert statuses(take(c.cq, 1)) == [(1, "RETRY_EXC_ERR")], "it is not heard"
    assert drops(b.ctx) == {"drop.source": 2}
    assert not any(b.mr.buf[:100])
    with pytest.raises(InvalidStateError, match="no way from RTS to RTR"):
        b.qp.connect(c.qp.endpoint)
    assert b.qp.query().ah_attr.gid == a.ctx.query_gid()
    a.qp.post_send(write(a, b, 100, 2))
    assert take(a.cq, 1)[0].ok


@pytest.mark.requirement("TRN-04", "TRN-05")
def test_a_full_mesh_of_processes() -> None:
    """Three nodes with two processes each: M^2 x (N - 1) = 8 queue pairs a node, and all pairs talk."""
    lab = Lab()
    nodes = [lab.adapter() for _ in range(3)]
    processes = [(node, node.alloc_pd(), node.create_cq(100)) for node in nodes for _ in range(2)]
    links = []
    for i, (here, pd, cq) in enumerate(processes):
        for there, pd2, cq2 in processes[i + 1 :]:
            if here is not there:
                a = Side(here, pd, cq, pd.create_qp(RC, cq), pd.alloc_mr(64, Access(15)))
                b = Side(there, pd2, cq2, pd2.create_qp(RC, cq2), pd2.alloc_mr(64, Access(15)))
                connect_sides(a, b)
                links.append((a, b))
    assert [len(node.queue_pairs) for node in nodes] == [8, 8, 8]
    for i, (a, b) in enumerate(links):
        a.mr.buf[:] = pattern(64, i)
        b.qp.post_recv(RecvRequest(i, [b.mr.sge()]))
        a.qp.post_send(WorkRequest(i, WROpcode.SEND, [a.mr.sge()], SendFlags.SIGNALED))
        assert take(b.cq, 1)[0].qp_num == b.qp.qp_num
        assert take(a.cq, 1)[0].wr_id == i
        assert b.mr.buf[:] == pattern(64, i)
    lab.check_laws()
