"""Reliable datagrams: end-to-end contexts, who reaches whom, what fails and what lives on (document 003:536-546)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import verbena
from lab import RC, Lab, Packet, drops, fetch_add, pattern, read, sending, statuses, take, write
from verbena import (
    Access,
    AckPolicy,
    CompletionOpcode,
    InvalidAttributeError,
    InvalidStateError,
    QPState,
    QPType,
    RecvRequest,
    WorkRequest,
    WROpcode,
)
from verbena.runtime.meshes import QKEY, Node, addressed, connect_contexts, datagram_mesh
from verbena.runtime.pairs import Side, make_side
from verbena.verbs.queue_pair import ALL_REMOTE

RD = QPType.RD
INVALID_NAK, ACCESS_NAK, OPERATION_NAK, RD_NAK = 0x61, 0x62, 0x63, 0x64
RESYNC = "RD RESYNC"


def mesh(nodes: int, processes: int = 1, lab: Lab | None = None, **options: object) -> tuple[Lab, list[Node]]:
    lab = lab or Lab()
    while len(lab.contexts) < nodes:
        lab.adapter()
    options.setdefault("mtu", 256)
    return lab, datagram_mesh(lab.contexts, processes, **options)  # type: ignore[arg-type]


def post(nodes: list[Node], i: int, p: int, k: int, r: int, request: WorkRequest) -> None:
    """Post a request of process p of node i for process r of node k."""
    nodes[i].sides[p].qp.post_send(addressed(request, nodes[i].contexts[k], nodes[k].sides[r].qp))


def swallow(*names: str, first: int = 1 << 30) -> Callable[[Packet], list[bytes]]:
    """Lose the first so many packets whose name begins with one of these (any, if none is given)."""
    left = [first]

    def gate(packet: Packet) -> list[bytes]:
        if packet.name.startswith(names or "") and left[0]:
            left[0] -= 1
            return []
        return [packet.data]

    return gate


def syndromes(lab: Lab, at: int) -> list[int]:
    """What the acknowledgements of an adapter said (behind BTH and RDETH)."""
    return [p.data[16] for p in lab.taps[at].out if p.name == "RD ACKNOWLEDGE"]


@pytest.mark.requirement("TRN-12")
def test_one_queue_pair_reaches_all_and_hears_all() -> None:
    """QP 166 exchanges with 168 and 170 of one node and 172 of another (document 003, figure 4)."""
    lab, nodes = mesh(3, 2)
    one = nodes[0].sides[0]
    others = [(1, 0), (1, 1), (2, 0)]
    for at, (k, r) in enumerate(others):
        there = nodes[k].sides[r]
        one.mr.buf[:600] = pattern(600, at)
        there.qp.post_recv(RecvRequest(7, [there.mr.sge(1000, 700)]))
        post(nodes, 0, 0, k, r, sending(one, 600, at))
        (got,) = take(there.cq, 1)
        assert (got.wr_id, got.byte_len, got.src_qp) == (7, 600, one.qp.qp_num)
        assert got.ee_num == nodes[k].contexts[0].ee_num, "the receiver learns the source"
        assert there.mr.buf[1000:1600] == pattern(600, at)
        (sent,) = take(one.cq, 1)
        assert (sent.wr_id, sent.ok, sent.ee_num) == (at, True, nodes[0].contexts[k].ee_num)
        one.qp.post_recv(RecvRequest(9, [one.mr.sge(5000, 700)]))
        post(nodes, k, r, 0, 0, sending(there, 100, 3))
        (back,) = take(one.cq, 1)
        assert (back.wr_id, back.src_qp, back.ee_num) == (9, there.qp.qp_num, nodes[0].contexts[k].ee_num)
        take(there.cq, 1)
    assert [p.name for tap in lab.taps for p in tap.out if not p.name.startswith("RD ")] == []
    # Unlike a connection, it can also talk to itself's neighbour on its own node, if there is a context.
    lab.settle()
    lab.check_laws()
    # Negative: a datagram for somebody who shows another key, or is of another service, is refused.
    rc = make_side(nodes[1].ctx, RC)
    for qpn, key in ((nodes[1].sides[0].qp.qp_num, QKEY + 1), (rc.qp.qp_num, QKEY), (0xABCDE, QKEY)):
        request = addressed(sending(one, 8), nodes[0].contexts[1], one.qp)
        request.remote_qpn, request.remote_qkey = qpn, key
        one.qp.post_send(request)
        assert statuses(take(one.cq, 1)) == [(0, "REM_INV_RD_REQ_ERR")]
        one.qp.modify(QPState.RTS)


@pytest.mark.parametrize("mtu", [256, 1024, 4096])
def test_every_operation_of_every_size(mtu: int) -> None:
    lab, nodes = mesh(2, memory=1 << 18, mtu=mtu)
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    for n in (0, 1, 3, mtu - 1, mtu, mtu + 1, 3 * mtu + 2, 70 * mtu // 4):
        for opcode in (
            *(WROpcode.SEND, WROpcode.SEND_WITH_IMM, WROpcode.RDMA_WRITE),
            *(WROpcode.RDMA_WRITE_WITH_IMM, WROpcode.RDMA_READ),
        ):
            data = pattern(n, n + opcode)
            reads = opcode is WROpcode.RDMA_READ
            (b if reads else a).mr.buf[:n] = data
            b.mr.buf[100_000 : 100_000 + n + 8] = bytes(n + 8)
            request = WorkRequest(1, opcode, [a.mr.sge(100_000 if reads else 0, n)], imm_data=77)
            request.remote_addr = b.mr.addr + (0 if reads else 100_000)
            request.rkey = b.mr.rkey
            received = opcode not in (WROpcode.RDMA_WRITE, WROpcode.RDMA_READ)
            if received:
                b.qp.post_recv(RecvRequest(2, [b.mr.sge(100_000, n)]))
            post(nodes, 0, 0, 1, 0, request)
            assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
            if received:
                (got,) = take(b.cq, 1)
                assert (got.ok, got.byte_len, got.src_qp) == (True, n, a.qp.qp_num)
                assert got.imm_data == (None if opcode is WROpcode.SEND else 77)
            region = a.mr if reads else b.mr
            assert bytes(region.buf[100_000 : 100_000 + n]) == data, (opcode, n)
            assert not any(b.mr.buf[100_000 + n : 100_000 + n + 8])
    b.mr.buf[:8] = (5).to_bytes(8, "little")
    post(nodes, 0, 0, 1, 0, fetch_add(a, b, 6))
    assert take(a.cq, 1)[0].opcode is CompletionOpcode.FETCH_ADD
    assert (a.mr.buf[0], b.mr.buf[0]) == (5, 11)
    lab.settle()
    lab.check_laws()


@pytest.mark.requirement("TRN-10")
def test_each_request_packet_is_acknowledged_by_itself() -> None:
    lab = Lab()
    lab.adapter(ack_policy=AckPolicy.PER_PACKET), lab.adapter(ack_policy=AckPolicy.PER_PACKET)
    _, nodes = mesh(2, lab=lab)
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    post(nodes, 0, 0, 1, 0, write(a, b, 5000))
    take(a.cq, 1)
    lab.settle()
    requests, answers = lab.taps[0].out, lab.taps[1].out
    assert len(requests) == 20
    assert [p.psn for p in answers] == [p.psn for p in requests]
    assert syndromes(lab, 1) == [0x1F] * 20


@pytest.mark.requirement("TRN-13")
@pytest.mark.parametrize("lost", range(8))
def test_a_lost_packet_of_any_kind_is_sent_again(lost: int) -> None:
    lab, nodes = mesh(2, timeout=5)
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    a.mr.buf[:700] = pattern(700)
    b.mr.buf[2000:2700] = pattern(700, 2)
    b.qp.post_recv(RecvRequest(1, [b.mr.sge(0, 1000)]))

    def lose(packet: Packet) -> list[bytes]:
        counted.append(packet)
        return [] if len(counted) == lost + 1 else [packet.data]

    counted: list[Packet] = []
    lab.taps[lost % 2].gate = lose
    post(nodes, 0, 0, 1, 0, sending(a, 700, 1))
    post(nodes, 0, 0, 1, 0, read(a, b, 700, 2, at=5000, to=2000))
    post(nodes, 0, 0, 1, 0, fetch_add(a, b, 1, 3, at=8000, to=8000))
    assert statuses(take(a.cq, 3)) == [(1, "SUCCESS"), (2, "SUCCESS"), (3, "SUCCESS")]
    assert [e.byte_len for e in take(b.cq, 1)] == [700]
    assert b.mr.buf[:700] == pattern(700)
    assert a.mr.buf[5000:5700] == pattern(700, 2)
    assert b.mr.buf[8000] == 1, "the atomic happened once"


@pytest.mark.requirement("TRN-14")
def test_ten_queue_pairs_share_one_context_and_one_sequence() -> None:
    lab, nodes = mesh(2, 10)
    for p in range(10):
        post(nodes, 0, p, 1, p, write(nodes[0].sides[p], nodes[1].sides[p], 700, p))
    for side in nodes[0].sides:
        assert take(side.cq, 1)[0].ok
    lab.settle()
    assert nodes[0].ctx.count_contexts().ee_contexts == 1
    packets = lab.taps[0].out
    first = packets[0].psn
    assert [p.psn for p in packets] == [(first + i) & 0xFFFFFF for i in range(30)]
    assert {p.data[12:16] for p in packets} == {nodes[1].contexts[0].ee_num.to_bytes(4, "big")}
    assert len({p.qpn for p in packets}) == 10, "each packet names its own destination"


@pytest.mark.requirement("TRN-14")
def test_loss_at_one_node_stalls_no_other() -> None:
    lab, nodes = mesh(3, 3, timeout=14, retry_cnt=1)
    dead = nodes[1].ctx.query_gid().raw
    lab.taps[0].gate = lambda packet: [] if packet.burst.destination == dead else [packet.data]
    a = nodes[0].sides
    post(nodes, 0, 0, 1, 0, write(a[0], nodes[1].sides[0], 700, 1))
    for p in (0, 1, 2):  # the queue pair that waits for the dead node, too
        for i in range(5):
            post(nodes, 0, p, 2, p, write(a[p], nodes[2].sides[p], 700, 10 + i))
    lab.net.run_for(100_000)
    for side in a[1:]:
        assert statuses(side.cq.poll()) == [(10 + i, "SUCCESS") for i in range(5)]
    assert nodes[2].ctx.counters()["rx.accepted"] == 3 * 5 * 3, "all have arrived there"
    assert a[0].cq.poll() == [], "requests complete in their order"
    assert nodes[0].ctx.counters()["timeouts"] == 0
    lab.settle()
    assert statuses(a[0].cq.poll(10)) == [(1, "RETRY_EXC_ERR")] + [(10 + i, "WR_FLUSH_ERR") for i in range(5)]
    assert nodes[0].contexts[1].state is QPState.ERR
    assert nodes[0].contexts[2].state is QPState.RTS


def test_one_message_at_a_time_and_the_queue_pairs_take_turns() -> None:
    lab, nodes = mesh(2, 3)
    for p in range(3):
        for i in range(4):
            post(nodes, 0, p, 1, p, write(nodes[0].sides[p], nodes[1].sides[p], 600, i))
    lab.settle()
    for side in nodes[0].sides:
        assert statuses(side.cq.poll()) == [(i, "SUCCESS") for i in range(4)]
    order = [p.data[21:24] for p in lab.taps[0].out if p.name == "RD RDMA_WRITE_FIRST"]
    x, y, z = (side.qp.qp_num for side in nodes[0].sides)
    # The first begins when nobody else has posted anything; its second stands in line before the others' first.
    assert [int.from_bytes(q, "big") for q in order] == [x, x, y, z, x, y, z, x, y, z, y, z]
    # Each begins when the one before is acknowledged.
    acks = {p.psn: p.when for p in lab.taps[1].out}
    firsts = [p for p in lab.taps[0].out if p.name == "RD RDMA_WRITE_FIRST"]
    for packet in firsts[1:]:
        assert acks[(packet.psn - 1) & 0xFFFFFF] < packet.when


# --- what fails ---------------------------------------------------------------------------------------------------


@pytest.mark.requirement("TRN-13", "RKY-11")
@pytest.mark.parametrize(
    ("wrong", "status", "syndrome"),
    [
        ("key", "REM_ACCESS_ERR", ACCESS_NAK),
        ("rights", "REM_ACCESS_ERR", ACCESS_NAK),
        ("queue pair's rights", "REM_ACCESS_ERR", ACCESS_NAK),
        ("range", "REM_ACCESS_ERR", ACCESS_NAK),
        ("qkey", "REM_INV_RD_REQ_ERR", RD_NAK),
        ("closed", "REM_INV_RD_REQ_ERR", RD_NAK),
        ("domain", "REM_INV_RD_REQ_ERR", RD_NAK),
        ("state", "REM_INV_RD_REQ_ERR", RD_NAK),
        ("too long", "REM_INV_REQ_ERR", INVALID_NAK),
    ],
)
def test_a_refused_message_ends_neither_context_nor_receiver(wrong: str, status: str, syndrome: int) -> None:
    lab, nodes = mesh(2, 2)
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    memory = b.pd.alloc_mr(1000, Access.LOCAL_WRITE if wrong == "rights" else ALL_REMOTE)
    request = WorkRequest(1, WROpcode.RDMA_WRITE, [a.mr.sge(0, 700)], rkey=memory.rkey)
    request.remote_addr = memory.addr
    target: Side = b
    if wrong == "key":
        request.rkey ^= 1
    elif wrong == "queue pair's rights":
        b.qp.modify(access_flags=Access.REMOTE_READ)
    elif wrong == "range":
        request.remote_addr += 301
    elif wrong == "closed":
        b.qp.close()
    elif wrong == "domain":
        target = make_side(nodes[1].ctx, RD, rdd=nodes[1].ctx.alloc_rdd())
        target.qp.activate(QKEY)
    elif wrong == "state":
        b.qp.modify(QPState.ERR)
    elif wrong == "too long":
        b.qp.post_recv(RecvRequest(5, [b.mr.sge(0, 699)]))
        request = sending(a, 700, 1)
    a.qp.post_send(addressed(request, nodes[0].contexts[1], target.qp, QKEY + (wrong == "qkey")))
    post(nodes, 0, 0, 1, 1, write(a, nodes[1].sides[1], 8, 2))
    post(nodes, 0, 1, 1, 1, write(nodes[0].sides[1], nodes[1].sides[1], 700, 3))
    lab.settle()
    assert statuses(a.cq.poll()) == [(1, status), (2, "WR_FLUSH_ERR")]
    assert a.qp.state is QPState.SQE
    assert statuses(nodes[0].sides[1].cq.poll()) == [(3, "SUCCESS")], "the other queue pair is not concerned"
    assert syndromes(lab, 1)[0] == syndrome
    assert not any(memory.buf)
    assert sum(p.name == RESYNC for p in lab.taps[0].out) == 1
    assert nodes[0].contexts[1].state is nodes[1].contexts[0].state is QPState.RTS
    if wrong == "too long":
        assert statuses(b.cq.poll()) == [(5, "LOC_LEN_ERR")]
    if wrong not in ("closed", "state"):
        assert b.qp.state is QPState.RTS
    a.qp.modify(QPState.RTS)
    post(nodes, 0, 0, 1, 1, write(a, nodes[1].sides[1], 300, 4))
    assert statuses(take(a.cq, 1)) == [(4, "SUCCESS")]
    lab.settle()
    lab.check_laws()


@pytest.mark.requirement("RKY-11")
def test_one_key_for_three_connections_and_a_reliable_datagram() -> None:
    lab = Lab()
    target, *clients = (lab.adapter() for _ in range(5))
    pd = target.alloc_pd()
    mr = pd.alloc_mr(4096, ALL_REMOTE)
    cq = target.create_cq(100)
    for i, ctx in enumerate(clients[:3]):
        side = make_side(ctx, RC)
        qp = pd.create_qp(RC, cq)
        ends = side.qp.endpoint, qp.endpoint
        side.qp.connect(ends[1])
        qp.connect(ends[0])
        side.mr.buf[:100] = pattern(100, i)
        side.qp.post_send(
            WorkRequest(
                1, WROpcode.RDMA_WRITE, [side.mr.sge(0, 100)], remote_addr=mr.addr + 100 * i, rkey=mr.rkey
            )
        )
        assert take(side.cq, 1)[0].ok
    nodes = datagram_mesh([target, clients[3]], 1)
    mine = pd.create_qp(RD, cq, rdd=nodes[0].rdd)
    mine.activate(QKEY)
    peer = nodes[1].sides[0]
    peer.mr.buf[:100] = pattern(100, 3)
    request = WorkRequest(1, WROpcode.RDMA_WRITE, [peer.mr.sge(0, 100)], rkey=mr.rkey)
    request.remote_addr = mr.addr + 300
    peer.qp.post_send(addressed(request, nodes[1].contexts[0], mine))
    assert take(peer.cq, 1)[0].ok
    assert bytes(mr.buf[:400]) == b"".join(pattern(100, i) for i in range(4))
    # By a queue pair of another protection domain the key opens nothing; nor by one that allows no RDMA.
    for qp in (nodes[0].sides[0].qp, pd.create_qp(RD, cq, rdd=nodes[0].rdd)):
        if qp.state is QPState.RESET:
            qp.activate(QKEY, access=Access.LOCAL_WRITE)
        for operation in (WROpcode.RDMA_WRITE, WROpcode.RDMA_READ, WROpcode.ATOMIC_FETCH_AND_ADD):
            request = WorkRequest(2, operation, [peer.mr.sge(8, 8)], remote_addr=mr.addr, rkey=mr.rkey)
            peer.qp.post_send(addressed(request, nodes[1].contexts[0], qp))
            assert statuses(take(peer.cq, 1)) == [(2, "REM_ACCESS_ERR")]
            peer.qp.modify(QPState.RTS)
    assert bytes(mr.buf[:400]) == b"".join(pattern(100, i) for i in range(4))


@pytest.mark.requirement("TRN-15")
def test_a_node_without_context_is_out_of_reach() -> None:
    _lab, nodes = mesh(3, 2)
    side = nodes[0].sides[0]
    other = nodes[1].sides[0].qp
    stranger = nodes[0].ctx.create_eec(nodes[0].ctx.alloc_rdd())
    fresh = nodes[0].rdd.create_eec()
    closed = nodes[0].rdd.create_eec()
    closed.close()
    for context, status in (
        (0x123456, "INV_EECN_ERR"),
        (other.qp_num, "INV_EECN_ERR"),
        (side.qp.qp_num, "INV_EECN_ERR"),
        (closed, "INV_EECN_ERR"),
        (stranger, "LOC_RDD_VIOL_ERR"),
        (fresh, "INV_EEC_STATE_ERR"),
    ):
        request = WorkRequest(1, WROpcode.SEND, [side.mr.sge(0, 8)])
        request.ee, request.remote_qpn, request.remote_qkey = context, other.qp_num, QKEY
        side.qp.post_send(request)
        assert statuses(take(side.cq, 1)) == [(1, status)]
        assert side.qp.state is QPState.SQE
        side.qp.modify(QPState.RTS)
    for wrong in (None, "b", -1, 1 << 24):
        request.ee = wrong
        with pytest.raises(InvalidAttributeError):
            side.qp.post_send(request)
    # The peer knows nothing of a context that names it: its packets are dropped there, and the retries end.
    connect = fresh.connect
    connect(nodes[1].contexts[0].endpoint, timeout=3, retry_cnt=1)
    side.qp.post_send(addressed(sending(side, 8, 2), fresh, other))
    assert statuses(take(side.cq, 1)) == [(2, "RETRY_EXC_ERR")]
    assert fresh.state is QPState.ERR
    nodes[1].contexts[0].close()
    side.qp.modify(QPState.RTS)
    post(nodes, 0, 0, 1, 0, sending(side, 8, 3))
    assert statuses(take(side.cq, 1)) == [(3, "RETRY_EXC_ERR")]
    assert drops(nodes[1].ctx)["drop.no_ee"] >= 1


# --- receivers that are not ready ---------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [WROpcode.SEND, WROpcode.RDMA_WRITE_WITH_IMM])
def test_a_receiver_that_is_not_ready_holds_up_only_who_sends_to_it(opcode: WROpcode) -> None:
    lab, nodes = mesh(2, 2, activate={"min_rnr_timer": 14})  # 1.28 ms
    a, b = nodes[0].sides, nodes[1].sides
    a[0].mr.buf[:700] = pattern(700)
    request = write(a[0], b[0], 700, 1)
    request.opcode = opcode
    post(nodes, 0, 0, 1, 0, request)
    for i in range(10):
        post(nodes, 0, 1, 1, 1, write(a[1], b[1], 700, i))
    lab.net.run_for(200_000)
    assert statuses(a[1].cq.poll()) == [(i, "SUCCESS") for i in range(10)]
    assert a[0].cq.poll() == []
    b[0].qp.post_recv(RecvRequest(1, [b[0].mr.sge(0, 700)]))
    assert statuses(take(a[0].cq, 1)) == [(1, "SUCCESS")]
    assert take(b[0].cq, 1)[0].byte_len == 700
    assert b[0].mr.buf[:700] == pattern(700)
    assert nodes[0].ctx.counters()["rx.rnr_naks"] == 1
    lab.settle()
    lab.check_laws()


def test_patience_with_a_receiver_ends() -> None:
    _lab, nodes = mesh(2, 2, activate={"min_rnr_timer": 1, "rnr_retry": 3})
    a, b = nodes[0].sides, nodes[1].sides
    post(nodes, 0, 0, 1, 0, sending(a[0], 100, 1))
    post(nodes, 0, 0, 1, 1, write(a[0], b[1], 100, 2))
    assert statuses(take(a[0].cq, 2)) == [(1, "RNR_RETRY_EXC_ERR"), (2, "WR_FLUSH_ERR")]
    assert nodes[0].ctx.counters()["rx.rnr_naks"] == 4
    assert nodes[0].contexts[1].state is QPState.RTS
    post(nodes, 0, 1, 1, 1, write(a[1], b[1], 100, 3))
    assert statuses(take(a[1].cq, 1)) == [(3, "SUCCESS")]


# --- endings in the middle ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["error", "reset", "close"])
def test_a_sender_that_ends_in_the_middle_of_a_message_aborts_it(how: str) -> None:
    lab, nodes = mesh(2, 2, timeout=5)
    a, b = nodes[0].sides, nodes[1].sides
    b[0].qp.post_recv(RecvRequest(1, [b[0].mr.sge(0, 5000)]))
    lab.taps[0].gate = swallow("RD SEND_LAST")
    post(nodes, 0, 0, 1, 0, sending(a[0], 5000, 1))
    post(nodes, 0, 0, 1, 0, sending(a[0], 5000, 2))
    post(nodes, 0, 1, 1, 1, write(a[1], b[1], 5000, 3))
    lab.net.run_for(10_000)
    if how == "error":
        a[0].qp.modify(QPState.ERR)
        assert statuses(a[0].cq.poll()) == [(1, "WR_FLUSH_ERR"), (2, "WR_FLUSH_ERR")]
    elif how == "reset":
        a[0].qp.modify(QPState.RESET)
        assert a[0].cq.poll() == []
    else:
        a[0].qp.close()
    lab.settle()
    assert statuses(b[0].cq.poll()) == [(1, "REM_ABORT_ERR")]
    assert statuses(a[1].cq.poll()) == [(3, "SUCCESS")]
    assert b[0].qp.state is QPState.RTS
    lab.check_laws()


@pytest.mark.parametrize("how", ["error", "reset", "close"])
def test_a_receiver_that_ends_in_the_middle_of_a_message_refuses_the_rest(how: str) -> None:
    lab, nodes = mesh(2, 2, timeout=5)
    a, b = nodes[0].sides, nodes[1].sides
    b[0].qp.post_recv(RecvRequest(1, [b[0].mr.sge(0, 5000)]))
    lab.taps[0].gate = swallow("RD SEND_LAST", first=1)
    post(nodes, 0, 0, 1, 0, sending(a[0], 5000, 1))
    post(nodes, 0, 1, 1, 1, write(a[1], b[1], 5000, 3))
    lab.net.run_for(10_000)
    cq = b[0].cq
    if how == "error":
        b[0].qp.modify(QPState.ERR)
    elif how == "reset":
        b[0].qp.modify(QPState.RESET)
    else:
        b[0].qp.close()
    assert statuses(cq.poll()) == ([] if how == "reset" else [(1, "WR_FLUSH_ERR")])
    lab.settle()
    assert statuses(a[0].cq.poll()) == [(1, "REM_INV_RD_REQ_ERR")]
    assert statuses(a[1].cq.poll()) == [(3, "SUCCESS")]
    lab.check_laws()


@pytest.mark.parametrize("how", ["error", "reset", "close"])
def test_a_context_that_ends_takes_along_what_waits_for_it(how: str) -> None:
    lab, nodes = mesh(3, 3, timeout=5)
    a, b = nodes[0].sides, nodes[1].sides
    lab.taps[0].gate = lambda p: [] if p.burst.destination == nodes[1].ctx.query_gid().raw else [p.data]
    for p in (0, 1, 2):
        for i in range(3):
            post(nodes, 0, p, 1, p, write(a[p], b[p], 700, i))
    lab.net.run_for(1000)
    context = nodes[0].contexts[1]
    if how == "error":
        context.modify(QPState.ERR)
    elif how == "reset":
        context.modify(QPState.RESET)
    else:
        context.close()
    for side in a:
        assert statuses(side.cq.poll()) == [
            (0, "INV_EEC_STATE_ERR"),
            (1, "WR_FLUSH_ERR"),
            (2, "WR_FLUSH_ERR"),
        ]
        assert side.qp.state is QPState.SQE
        side.qp.modify(QPState.RTS)
    post(nodes, 0, 0, 2, 0, write(a[0], nodes[2].sides[0], 700, 9))
    assert statuses(take(a[0].cq, 1)) == [(9, "SUCCESS")]
    lab.taps[0].gate = None
    if how == "close":
        context = nodes[0].rdd.create_eec()
    else:
        context.modify(QPState.RESET)
    nodes[1].contexts[0].modify(QPState.RESET)
    connect_contexts(context, nodes[1].contexts[0], mtu=256)
    a[0].qp.post_send(addressed(write(a[0], b[0], 700, 10), context, b[0].qp))
    assert statuses(take(a[0].cq, 1)) == [(10, "SUCCESS")]


@pytest.mark.parametrize("kind", ["close region", "local key"])
def test_a_local_fault_ends_the_message_only(kind: str) -> None:
    lab, nodes = mesh(2, 2)
    a, b = nodes[0].sides, nodes[1].sides
    mr = a[0].pd.alloc_mr(100_000)
    request = write(a[0], b[0], 0, 1)
    request.sg_list = [mr.sge(0, 50_000)]
    if kind == "local key":
        request.sg_list[0].lkey ^= 1
    post(nodes, 0, 0, 1, 0, request)
    post(nodes, 0, 1, 1, 1, write(a[1], b[1], 700, 3))
    if kind == "close region":
        mr.close()
    lab.settle()
    assert statuses(a[0].cq.poll()) == [(1, "LOC_PROT_ERR")]
    assert statuses(a[1].cq.poll()) == [(3, "SUCCESS")]


def test_a_context_without_room_for_reads_refuses_them_here() -> None:
    _, nodes = mesh(2, max_rd_atomic=0)
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    post(nodes, 0, 0, 1, 0, read(a, b, 100, 1))
    assert statuses(take(a.cq, 1)) == [(1, "LOC_EEC_OP_ERR")]


def test_draining_a_queue_pair_and_a_context() -> None:
    lab, nodes = mesh(2, 2)
    a, b = nodes[0].sides, nodes[1].sides
    for i in range(3):
        post(nodes, 0, 0, 1, 0, write(a[0], b[0], 700, i))
    a[0].qp.modify(QPState.SQD)
    lab.settle()
    done = a[0].cq.poll()
    assert len(done) <= 1, "what had begun is finished, nothing else begins"
    event = nodes[0].ctx.get_async_event(0)
    assert event is not None
    assert (event.type.name, event.qp_num) == ("SQ_DRAINED", a[0].qp.qp_num)
    post(nodes, 0, 1, 1, 1, write(a[1], b[1], 700, 7))
    assert statuses(take(a[1].cq, 1)) == [(7, "SUCCESS")]
    a[0].qp.modify(QPState.RTS)
    assert [w for w, _ in statuses(done + take(a[0].cq, 3 - len(done)))] == [0, 1, 2]
    nodes[0].contexts[1].modify(QPState.SQD)
    post(nodes, 0, 0, 1, 0, write(a[0], b[0], 700, 8))
    lab.settle()
    assert a[0].cq.poll() == []
    nodes[0].contexts[1].modify(timeout=9)
    nodes[0].contexts[1].modify(QPState.RTS)
    assert statuses(take(a[0].cq, 1)) == [(8, "SUCCESS")]
    assert nodes[0].contexts[1].query().timeout == 9


def test_a_straggler_of_an_aborted_message_is_no_part_of_the_next() -> None:
    """A packet that was delayed until its message was given up must not be taken for one of another message."""
    lab, nodes = mesh(2, 2, activate={"min_rnr_timer": 1, "rnr_retry": 0})
    a, b = nodes[0].sides, nodes[1].sides
    a[0].mr.buf[:200] = b"\xaa" * 200
    a[1].mr.buf[:200] = b"\xbb" * 200
    post(nodes, 0, 0, 1, 0, sending(a[0], 200, 1))
    assert statuses(take(a[0].cq, 1)) == [(1, "RNR_RETRY_EXC_ERR")]
    straggler = lab.taps[0].out[0]
    b[0].qp.post_recv(RecvRequest(1, [b[0].mr.sge(0, 200)]))
    lab.settle()
    nodes[1].ctx.adapter.engine.receive(
        bytearray(straggler.data), len(straggler.data), straggler.burst.source, 4791, lab.net.now, 0
    )
    nodes[1].ctx.driver.kick()
    lab.settle()
    assert b[0].cq.poll() == []
    post(nodes, 0, 1, 1, 0, sending(a[1], 200, 2))
    (got,) = take(b[0].cq, 1)
    assert got.src_qp == a[1].qp.qp_num
    assert b[0].mr.buf[:200] == b"\xbb" * 200


# --- verbs --------------------------------------------------------------------------------------------------------


def test_states_and_attributes_of_a_context() -> None:
    lab = Lab()
    ctx = lab.adapter()
    rdd = ctx.alloc_rdd()
    eec = rdd.create_eec()
    assert eec.state is QPState.RESET
    assert eec.ee_num < 1 << 24
    with pytest.raises(InvalidStateError):
        eec.modify(QPState.RTS)
    with pytest.raises(InvalidAttributeError):
        eec.modify(QPState.INIT, port_num=1)
    with pytest.raises(InvalidAttributeError):
        eec.modify(QPState.INIT, port_num=1, pkey_index=0, qkey=3)
    with pytest.raises(InvalidStateError):
        rdd.close()
    eec.connect(eec.endpoint, mtu=512, timeout=9, retry_cnt=3, max_rd_atomic=5)
    found = eec.query()
    assert (found.state, found.path_mtu, found.dest_ee_num) == (QPState.RTS, 512, eec.ee_num)
    assert (found.timeout, found.retry_cnt, found.max_rd_atomic, found.max_dest_rd_atomic) == (9, 3, 5, 5)
    with pytest.raises(InvalidStateError):
        eec.modify(QPState.SQE)
    eec.close()
    eec.close()
    rdd.close()
    with pytest.raises(InvalidAttributeError):
        ctx.alloc_pd().create_qp(RD, ctx.create_cq(4))
    with pytest.raises(InvalidAttributeError):
        ctx.create_eec(None)  # type: ignore[arg-type]


def test_a_context_may_lead_to_its_own_adapter() -> None:
    lab = Lab()
    ctx = lab.adapter()
    rdd = ctx.alloc_rdd()
    eec = rdd.create_eec()
    eec.connect(eec.endpoint)
    sides = [make_side(ctx, RD, rdd=rdd) for _ in range(2)]
    for side in sides:
        side.qp.activate(QKEY)
    sides[0].qp.post_send(addressed(write(*sides, 5000, 1), eec, sides[1].qp))
    assert statuses(take(sides[0].cq, 1)) == [(1, "SUCCESS")]


def test_closing_the_adapter_closes_everything() -> None:
    lab, nodes = mesh(2, 2, timeout=5)
    post(nodes, 0, 0, 1, 0, write(nodes[0].sides[0], nodes[1].sides[0], 700))
    nodes[0].ctx.close()
    lab.settle()
    assert nodes[1].contexts[0].state is QPState.RTS


@pytest.mark.loopback
@pytest.mark.requirement("TRN-12", "TRN-13")
def test_between_sockets() -> None:
    """In real time, over UDP: large messages to two other adapters through one queue pair."""
    with (
        verbena.open_device("127.0.75.1") as one,
        verbena.open_device("127.0.75.2") as two,
        verbena.open_device("127.0.75.3") as three,
    ):
        nodes = datagram_mesh([one, two, three], 1, memory=1 << 21)
        a = nodes[0].sides[0]
        a.mr.buf[: 1 << 20] = pattern(1 << 20)
        for k in (1, 2):
            b = nodes[k].sides[0]
            b.qp.post_recv(RecvRequest(5, [b.mr.sge(1 << 20, 1 << 20)]))
            post(nodes, 0, 0, k, 0, write(a, b, 1 << 20, 1))
            post(nodes, 0, 0, k, 0, sending(a, 1 << 20, 2))
            post(nodes, 0, 0, k, 0, read(a, b, 1 << 20, 3, at=1 << 20))
        assert statuses(take(a.cq, 6)) == [(i, "SUCCESS") for i in (1, 2, 3)] * 2
        for k in (1, 2):
            b = nodes[k].sides[0]
            (got,) = take(b.cq, 1)
            assert (got.byte_len, got.src_qp) == (1 << 20, a.qp.qp_num)
            assert b.mr.buf[: 1 << 20] == pattern(1 << 20)
            assert b.mr.buf[1 << 20 :] == pattern(1 << 20)
        assert a.mr.buf[1 << 20 :] == pattern(1 << 20)


@pytest.mark.parametrize("shared", [False, True])
def test_receive_buffers_of_several_senders(shared: bool) -> None:
    """A receive queue takes messages of all nodes, in the order of their arrival; a shared one, too."""
    lab, nodes = mesh(4)
    target = nodes[0].sides[0]
    if shared:
        pool = target.pd.create_srq(64)
        target.qp = target.pd.create_qp(RD, target.cq, rdd=nodes[0].rdd, srq=pool)
        target.qp.activate(QKEY)
    receive = pool.post_recv if shared else target.qp.post_recv
    for i in range(30):
        receive(RecvRequest(i, [target.mr.sge(1000 * i, 1000)]))
    for k in (1, 2, 3):
        side = nodes[k].sides[0]
        side.mr.buf[:900] = pattern(900, k)
        for i in range(10):
            request = sending(side, 900, i)
            side.qp.post_send(addressed(request, nodes[k].contexts[0], target.qp))
    got = take(target.cq, 30)
    assert [e.wr_id for e in got] == list(range(30))
    places = {e.ee_num: k for k, e in nodes[0].contexts.items()}
    for entry in got:
        k = places[entry.ee_num]
        assert entry.src_qp == nodes[k].sides[0].qp.qp_num
        at = 1000 * entry.wr_id
        assert target.mr.buf[at : at + 900] == pattern(900, k)
    assert sorted(places[e.ee_num] for e in got) == [1] * 10 + [2] * 10 + [3] * 10
    lab.settle()
    lab.check_laws()
