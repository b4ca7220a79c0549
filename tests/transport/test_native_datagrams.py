"""Reliable datagrams and DELAY on InfiniBand ports: headers, keys, closed lanes, faults (document 003:542)."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest

from lab import drops, fetch_add, pattern, read, statuses, take, write
from native_lab import NativeLab, Sent
from verbena import InvalidAttributeError, QPState, QPType, RecvRequest, WorkRequest, WROpcode
from verbena.runtime.meshes import QKEY, Node, addressed, connect_contexts, datagram_mesh, talk_by_datagrams
from verbena.runtime.pairs import Side, make_side
from verbena.wire.headers import AETH, DETH, RDETH

SIZE = 1 << 16
GLOBAL = {"is_global": True}


def mesh(lab: NativeLab, nodes: int = 2, processes: int = 1, **attributes: Any) -> list[Node]:
    return datagram_mesh([lab.adapter() for _ in range(nodes)], processes, memory=SIZE, **attributes)


def to(nodes: list[Node], request: WorkRequest, i: int = 0, k: int = 1, process: int = 0) -> WorkRequest:
    """The request, addressed from node i to a process of node k."""
    return addressed(request, nodes[i].contexts[k], nodes[k].sides[process].qp)


def done(lab: NativeLab, side: Side) -> list[tuple[int, str]]:
    lab.run()
    return statuses(side.cq.poll())


@pytest.mark.requirement("TRN-15")
@pytest.mark.parametrize("attributes", [{}, GLOBAL])
def test_what_is_on_the_wire(attributes: dict[str, Any]) -> None:
    """RDETH and DETH behind LRH or GRH, RDETH in answers; the lab decodes every packet, and checks its CRC."""
    lab = NativeLab()
    nodes = mesh(lab, mtu=1024, **attributes)
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    there, here = nodes[0].contexts[1], nodes[1].contexts[0]
    b.mr.buf[:] = pattern(SIZE)
    a.qp.post_send(to(nodes, write(a, b, 5000, 1)))
    a.qp.post_send(to(nodes, read(a, b, 5000, 2, at=10_000, to=10_000)))
    a.qp.post_send(to(nodes, fetch_add(a, b, 5, 3, at=0, to=2 * 8)))
    b.qp.post_recv(RecvRequest(4, [b.mr.sge(20_000, 5000)]))
    a.qp.post_send(to(nodes, WorkRequest(4, WROpcode.SEND, [a.mr.sge(10_000, 5000)])))
    assert done(lab, a) == [(n, "SUCCESS") for n in (1, 2, 3, 4)]
    (got,) = b.cq.poll()
    assert (got.src_qp, got.ee_num, got.byte_len, got.port) == (a.qp.qp_num, here.ee_num, 5000, 1)
    assert (got.slid, got.sl) == (a.ctx.query_port(1).lid, 0)
    assert bytes(b.mr.buf[20_000:25_000]) == pattern(SIZE)[10_000:15_000]
    for sent in lab.log:
        assert (sent.packet.grh is not None) == bool(attributes)
        transport = sent.packet.transport
        assert transport.info.name.startswith("RD ")
        own = sent.driver is a.ctx.driver
        assert transport.get(RDETH).ee_context == (there if not own else here).ee_num
        if sent.is_answer:
            assert sent.bth.dest_qp == a.qp.qp_num
            assert transport.get(DETH) is None
        else:
            assert (transport.get(DETH).qkey, transport.get(DETH).src_qp) == (QKEY, a.qp.qp_num)
            assert sent.bth.dest_qp == b.qp.qp_num
    assert any(sent.packet.transport.get(AETH) for sent in lab.log if sent.is_answer)
    assert drops(a.ctx) == drops(b.ctx) == {}
    lab.check_laws()


@pytest.mark.requirement("TRN-15")
@pytest.mark.parametrize("attributes", [{}, GLOBAL])
def test_everybody_talks_to_everybody(attributes: dict[str, Any]) -> None:
    lab = NativeLab()
    nodes = mesh(lab, 4, 3, **attributes)
    assert talk_by_datagrams(nodes) == 4 * 3 * 3 * 3
    assert [node.ctx.count_contexts().ee_contexts for node in nodes] == [3] * 4
    lab.check_laws()


@pytest.mark.parametrize("seed", range(4))
def test_each_message_is_done_once_whatever_happens(seed: int) -> None:
    lab = NativeLab(seed)
    random = Random(seed)
    nodes = mesh(lab, 3, 2, mtu=512, timeout=6)
    lab.disturb(random, 0.02)
    sides = [side for node in nodes for side in node.sides]
    total = 0
    for number in range(120):
        i, k = random.sample(range(3), 2)
        a, b = random.choice(nodes[i].sides), nodes[k].sides[0]
        kind = random.choice(["write", "add"])
        if kind == "write":
            n = random.randrange(1, 6000)
            request = write(a, b, n, number, to=1000 + 8000 * nodes[i].sides.index(a))
        else:
            request = fetch_add(a, b, 1, number, at=0, to=8)
            total += 1
        a.qp.post_send(to(nodes, request, i, k))
    lab.settle()
    found = [entry for side in sides for entry in side.cq.poll(1000)]
    assert sorted(statuses(found)) == [(n, "SUCCESS") for n in range(120)]
    counted = [int.from_bytes(node.sides[0].mr.buf[8:16], "little") for node in nodes]
    assert sum(counted) == total
    lab.check_laws()


# --- keys --------------------------------------------------------------------------------------------------------


def test_a_wrong_q_key_is_refused_counted_and_told() -> None:
    lab = NativeLab()
    nodes = mesh(lab)
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    request = to(nodes, write(a, b, 8, 1))
    request.remote_qkey = 0x777
    a.qp.post_send(request)
    assert done(lab, a) == [(1, "REM_INV_RD_REQ_ERR")]
    assert b.ctx.query_port(1).qkey_viol_cntr == 1
    (violation,) = lab.violations
    assert (violation.trap, violation.key, violation.port) == (258, 0x777, 1)
    assert (violation.src_qp, violation.dest_qp) == (a.qp.qp_num, b.qp.qp_num)
    assert violation.slid == a.ctx.query_port(1).lid
    assert nodes[0].contexts[1].state is QPState.RTS


def test_a_context_is_of_a_partition_and_follows_the_table() -> None:
    lab = NativeLab()
    nodes = mesh(lab)
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    for side in (a, b):
        side.ctx.adapter.ports[0].set_pkeys([0x8005])
    a.ctx.adapter.port_changed(1)
    a.qp.post_send(to(nodes, write(a, b, 8, 1)))
    lab.run(1_000_000)
    assert a.cq.poll() == []
    assert drops(b.ctx) == {"drop.pkey": 1}
    assert lab.violations[0].src_qp == a.qp.qp_num
    assert lab.violations[0].key == 0x8005
    b.ctx.adapter.port_changed(1)
    assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
    assert {sent.bth.pkey for sent in lab.log} == {0x8005}
    with pytest.raises(InvalidAttributeError, match="P_Key table"):
        nodes[0].rdd.create_eec().modify(QPState.INIT, port_num=1, pkey_index=1)


def test_a_context_that_was_closed_follows_nothing() -> None:
    lab = NativeLab()
    nodes = mesh(lab)
    nodes[0].contexts[1].close()
    port = nodes[0].ctx.adapter.ports[0]
    port.set_pkeys([0x8005, 0xFFFF])
    nodes[0].ctx.adapter.port_changed(1)
    context, peer = nodes[0].rdd.create_eec(), nodes[1].rdd.create_eec()
    ends = peer.endpoint, context.endpoint
    context.connect(ends[0], pkey_index=1)
    peer.connect(ends[1])
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    a.qp.post_send(addressed(write(a, b, 8, 1), context, b.qp))
    assert done(lab, a) == [(1, "SUCCESS")]


# --- closed service levels -----------------------------------------------------------------------------------------


def test_a_closed_context_waits_and_others_do_not() -> None:
    lab = NativeLab()
    nodes = mesh(lab)
    second = [node.rdd.create_eec() for node in nodes]
    connect_contexts(*second, sl=5)
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    engine = a.ctx.adapter.engine
    engine.set_open(1, 0xFFFF & ~(1 << 5))
    other = make_side(a.ctx, QPType.RD, SIZE, rdd=nodes[0].rdd)
    other.qp.activate(QKEY)
    a.qp.post_send(addressed(write(a, b, 8, 1), second[0], b.qp))
    other.qp.post_send(addressed(write(other, b, 8, 2), nodes[0].contexts[1], b.qp))
    lab.run(50_000_000)
    assert a.cq.poll() == []
    assert statuses(other.cq.poll()) == [(2, "SUCCESS")]
    assert {sent.packet.lrh.sl for sent in lab.log if sent.driver is a.ctx.driver} == {0}
    engine.set_open(1, 0xFFFF)
    a.ctx.driver.kick()
    assert done(lab, a) == [(1, "SUCCESS")]
    assert a.ctx.counters()["timeouts"] == 0


def test_a_closed_context_can_be_freed() -> None:
    lab = NativeLab()
    nodes = mesh(lab)
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    a.ctx.adapter.engine.set_open(1, 0)
    a.qp.post_send(to(nodes, write(a, b, 8, 1)))
    lab.run(1_000)
    nodes[0].contexts[1].close()
    a.ctx.adapter.engine.set_open(1, 0xFFFF)
    a.ctx.driver.kick()
    assert done(lab, a) == [(1, "INV_EEC_STATE_ERR")]
    assert lab.log == []


# --- DELAY ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("VRB-12")
def test_delay_meters_and_raw_datagrams_have_none() -> None:
    lab = NativeLab()
    a, b = lab.pair()
    for number in range(3):
        a.qp.post_send(write(a, b, 8, number))
        a.qp.post_send(WorkRequest(10 + number, WROpcode.DELAY, delay_ns=1_000_000))
    lab.settle()
    assert [wr for wr, _ in statuses(a.cq.poll())] == [0, 10, 1, 11, 2, 12]
    times = [sent.when for sent in lab.log if is_request(sent)]
    assert all(later - sooner >= 1_000_000 for sooner, later in pairwise(times))
    raw = make_side(a.ctx, QPType.RAW_IPV6)
    raw.qp.activate()
    with pytest.raises(InvalidAttributeError, match="does not carry DELAY: it has SEND"):
        raw.qp.post_send(WorkRequest(1, WROpcode.DELAY, delay_ns=1))


def is_request(sent: Sent) -> bool:
    return not sent.is_answer
