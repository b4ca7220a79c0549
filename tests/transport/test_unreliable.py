"""Unreliable connection and unreliable datagram: what loss does there, and what it does not (IBA vol. 1, 9.8)."""

from __future__ import annotations

import pytest

from lab import RC, UC, UD, Lab, drops, pattern, statuses, take, write
from verbena import AddressVector, InvalidAttributeError, QPState, RecvRequest, WorkRequest, WROpcode
from verbena.runtime.pairs import Side, make_side

QKEY = 0x11111111


def send(side: Side, n: int, wr_id: int = 0, at: int = 0, **more: object) -> WorkRequest:
    return WorkRequest(wr_id, WROpcode.SEND, [side.mr.sge(at, n)], **more)


def datagram(a: Side, b: Side, n: int, wr_id: int = 0, **more: object) -> WorkRequest:
    handle = a.pd.create_ah(AddressVector(b.ctx.query_gid()))
    fields = {"ah": handle, "remote_qpn": b.qp.qp_num, "remote_qkey": QKEY} | more
    return send(a, n, wr_id, **fields)


def lose(*indices: int) -> object:
    seen = iter(range(1_000_000))
    return lambda packet: [] if next(seen) in indices else [packet.data]


# --- unreliable connection ----------------------------------------------------------------------------------------


@pytest.mark.requirement("TRN-21")
@pytest.mark.parametrize("lost", range(12))
def test_a_lost_packet_loses_its_message_only(lost: int) -> None:
    """Three messages of four packets each; one packet is lost."""
    lab = Lab()
    a, b = lab.pair(UC, mtu=256)
    a.mr.buf[:3000] = pattern(3000)
    for i in range(3):
        b.qp.post_recv(RecvRequest(i, [b.mr.sge(1000 * i, 1000)]))
    lab.taps[0].gate = lose(lost)
    a.qp.post_send_many([send(a, 1000, i, 1000 * i) for i in range(3)])
    assert statuses(take(a.cq, 3)) == [(0, "SUCCESS"), (1, "SUCCESS"), (2, "SUCCESS")]
    lab.settle()
    got = b.cq.poll()
    arrived = [i for i in range(3) if i != lost // 4]
    assert statuses(got) == [(0, "SUCCESS"), (1, "SUCCESS")], (
        "the broken message's buffer serves the next one"
    )
    for place, i in enumerate(arrived):
        assert b.mr.buf[1000 * place : 1000 * place + 1000] == pattern(3000)[1000 * i : 1000 * i + 1000]
    assert lab.taps[1].out == [], "nothing is acknowledged"
    assert len(lab.taps[0].out) == 12, "nothing is sent again"
    assert b.qp.state is QPState.RTS


@pytest.mark.requirement("TRN-21")
@pytest.mark.parametrize("lost", range(4))
def test_a_lost_packet_of_a_write(lost: int) -> None:
    lab = Lab()
    a, b = lab.pair(UC, mtu=256)
    a.mr.buf[:1000] = pattern(1000)
    b.qp.post_recv(RecvRequest(5))
    lab.taps[0].gate = lose(lost)
    request = write(a, b, 1000, 1)
    request.opcode, request.imm_data = WROpcode.RDMA_WRITE_WITH_IMM, 3
    a.qp.post_send_many([request, write(a, b, 100, 2, to=2000)])
    lab.settle()
    assert statuses(a.cq.poll()) == [(1, "SUCCESS"), (2, "SUCCESS")]
    assert len(b.cq) == 0
    assert b.mr.buf[2000:2100] == pattern(1000)[:100], "the next message arrives"
    assert b.mr.buf[: 256 * lost] == pattern(1000)[: 256 * lost]
    assert not any(b.mr.buf[256 * (lost + 1) : 1000])
    lab.taps[0].gate = None
    a.qp.post_send(request)
    assert take(b.cq, 1)[0].imm_data == 3
    assert b.mr.buf[:1000] == pattern(1000)


@pytest.mark.requirement("TRN-21")
def test_what_an_unreliable_connection_drops() -> None:
    lab = Lab()
    a, b = lab.pair(UC, mtu=256)
    a.qp.post_send(send(a, 1000))  # no receive
    lab.settle()
    assert drops(b.ctx) == {"drop.no_receive": 1, "drop.message_broken": 3}
    b.qp.post_recv(RecvRequest(1, [b.mr.sge(0, 300)]))
    a.qp.post_send(send(a, 1000))  # too long
    lab.settle()
    assert drops(b.ctx) == {"drop.no_receive": 1, "drop.message_broken": 5, "drop.too_long": 1}
    a.qp.post_send(denied(a, b))
    lab.settle()
    assert drops(b.ctx)["drop.protection"] == 1
    assert b.qp.state is QPState.RTS
    a.qp.post_send(send(a, 300, 7))
    assert statuses(take(b.cq, 1)) == [(1, "SUCCESS")], "none of this cost the buffer"
    assert all(e.ok for e in a.cq.poll())
    lab.check_laws()


def denied(a: Side, b: Side) -> WorkRequest:
    request = write(a, b, 100)
    request.rkey ^= 1
    return request


@pytest.mark.parametrize(
    "opcode", [WROpcode.RDMA_READ, WROpcode.ATOMIC_FETCH_AND_ADD, WROpcode.SEND_WITH_INV]
)
def test_operations_that_an_unreliable_connection_has_not(opcode: WROpcode) -> None:
    lab = Lab()
    a, _ = lab.pair(UC)
    with pytest.raises(InvalidAttributeError, match="UC does not carry"):
        a.qp.post_send(WorkRequest(1, opcode, [a.mr.sge(0, 8)]))


# --- unreliable datagram ------------------------------------------------------------------------------------------


@pytest.mark.requirement("TRN-16")
def test_a_lost_datagram_is_lost() -> None:
    lab = Lab()
    a, b = lab.pair(UD)
    for i in range(3):
        b.qp.post_recv(RecvRequest(i, [b.mr.sge(100 * i, 100)]))
    lab.taps[0].gate = lose(1)
    a.qp.post_send_many([datagram(a, b, 20 + i, i) for i in range(3)])
    lab.settle()
    assert statuses(a.cq.poll()) == [(0, "SUCCESS"), (1, "SUCCESS"), (2, "SUCCESS")]
    assert [e.byte_len for e in b.cq.poll()] == [60, 62]
    assert lab.taps[1].out == [], "nothing is acknowledged"
    assert len(lab.taps[0].out) == 3


@pytest.mark.requirement("TRN-16")
def test_a_datagram_is_one_packet() -> None:
    lab = Lab()
    lab.adapter(mtu=1024), lab.adapter(mtu=1024)
    a, b = lab.pair(UD)
    with pytest.raises(InvalidAttributeError, match="1024 bytes, not 1025"):
        a.qp.post_send(datagram(a, b, 1025))
    for opcode in (WROpcode.RDMA_WRITE, WROpcode.RDMA_READ, WROpcode.ATOMIC_CMP_AND_SWP):
        request = datagram(a, b, 8)
        request.opcode = opcode
        with pytest.raises(InvalidAttributeError, match="UD does not carry"):
            a.qp.post_send(request)


@pytest.mark.requirement("TRN-16")
def test_one_datagram_queue_pair_reaches_many() -> None:
    lab = Lab()
    ends = [make_side(lab.adapter(), UD) for _ in range(4)]
    for i, end in enumerate(ends):
        end.qp.activate()
        for k in range(3):
            end.qp.post_recv(RecvRequest(k, [end.mr.sge(1000 + 100 * k, 100)]))
        end.mr.buf[:10] = bytes([i]) * 10
    for a in ends:
        for b in ends:
            if a is not b:
                a.qp.post_send(datagram(a, b, 10))
    lab.settle()
    for i, end in enumerate(ends):
        got = [e for e in end.cq.poll() if e.opcode >= 128]
        whose = {e.src_qp for e in got}
        assert len(got) == 3
        assert whose == {0x10}, "each adapter numbers its own"
        senders = {bytes(end.mr.buf[1040 + 100 * e.wr_id : 1050 + 100 * e.wr_id])[0] for e in got}
        assert senders == set(range(4)) - {i}
    lab.check_laws()


def test_what_a_datagram_queue_pair_drops() -> None:
    lab = Lab()
    a, b = lab.pair(UD)
    b.qp.post_recv(RecvRequest(1, [b.mr.sge(0, 139)]))
    a.qp.post_send(datagram(a, b, 10, remote_qkey=QKEY + 1))
    a.qp.post_send(datagram(a, b, 10, remote_qpn=b.qp.qp_num + 1))
    a.qp.post_send(datagram(a, b, 100))
    lab.settle()
    assert drops(b.ctx) == {"drop.qkey": 1, "drop.no_qp": 1, "drop.too_long": 1}
    a.qp.post_send_many([datagram(a, b, 99), datagram(a, b, 99)])
    lab.settle()
    assert statuses(b.cq.poll()) == [(1, "SUCCESS")]
    assert drops(b.ctx)["drop.no_receive"] == 1
    lab.check_laws()


def test_a_q_key_with_its_top_bit_set_is_the_queue_pairs_own() -> None:
    lab = Lab()
    a, b = lab.pair(UD)
    b.qp.modify(qkey=5)
    a.qp.modify(qkey=5)
    b.qp.post_recv(RecvRequest(1, [b.mr.sge(0, 100)]))
    a.qp.post_send(datagram(a, b, 10, remote_qkey=0x80000000))
    assert statuses(take(b.cq, 1)) == [(1, "SUCCESS")]


@pytest.mark.parametrize("service", [UC, UD])
def test_a_send_error_stops_the_sending_half_only(service: object) -> None:
    """SQE: the receive queue goes on; back in RTS, the send queue does, too (IBA vol. 1, 10.3.1.7)."""
    lab = Lab()
    a, b = lab.pair(service)
    make = (lambda a, b, n, i: datagram(a, b, n, i)) if service is UD else (lambda a, b, n, i: send(a, n, i))
    bad = make(a, b, 10, 2)
    bad.sg_list = [a.mr.sge(0, 10)]
    bad.sg_list[0].lkey ^= 1
    b.qp.post_recv_many([RecvRequest(i, [b.mr.sge(0, 100)]) for i in range(3)])
    a.qp.post_recv_many([RecvRequest(i, [a.mr.sge(0, 100)]) for i in range(3)])
    a.qp.post_send_many([make(a, b, 10, 1), bad, make(a, b, 10, 3)])
    lab.settle()
    assert statuses(a.cq.poll()) == [(1, "SUCCESS"), (2, "LOC_PROT_ERR"), (3, "WR_FLUSH_ERR")]
    assert a.qp.state is QPState.SQE
    a.qp.post_send(make(a, b, 10, 4))
    assert statuses(a.cq.poll()) == [(4, "WR_FLUSH_ERR")]
    b.qp.post_send(make(b, a, 10, 5))
    assert statuses(take(a.cq, 1)) == [(0, "SUCCESS")], "it still receives"
    a.qp.modify(QPState.RTS)
    a.qp.post_send(make(a, b, 10, 6))
    assert statuses(take(a.cq, 1)) == [(6, "SUCCESS")]
    lab.settle()
    assert [e.wr_id for e in b.cq.poll() if e.opcode >= 128] == [0, 1]


def test_an_address_handle_may_be_closed_under_its_datagrams() -> None:
    lab = Lab(rate_bps=1e6)
    a, b = lab.pair(UD)
    for i in range(5):
        b.qp.post_recv(RecvRequest(i, [b.mr.sge(0, 100)]))
    handle = a.pd.create_ah(AddressVector(b.ctx.query_gid()))
    request = send(a, 10, 1, ah=handle, remote_qpn=b.qp.qp_num, remote_qkey=QKEY)
    a.qp.post_send_many([request] * 5)
    handle.close()
    lab.settle()
    assert all(e.ok for e in a.cq.poll())
    assert len(b.cq) == 5
    with pytest.raises(InvalidAttributeError, match="address handle is closed"):
        a.qp.post_send(request)


@pytest.mark.parametrize("wrong", ["none", "type", "domain", "adapter", "qpn"])
def test_what_is_no_destination(wrong: str) -> None:
    lab = Lab()
    a, b = lab.pair(UD)
    vector = AddressVector(b.ctx.query_gid())
    request = datagram(a, b, 10)
    if wrong == "qpn":
        request.remote_qpn = 1 << 24
    else:
        request.ah = {
            "none": None,
            "type": vector,
            "domain": a.ctx.alloc_pd().create_ah(vector),
            "adapter": b.pd.create_ah(AddressVector(a.ctx.query_gid())),
        }[wrong]
    with pytest.raises(InvalidAttributeError, match=r"destination|AddressHandle|protection domain|24 bits"):
        a.qp.post_send(request)
    assert lab.taps[0].out == []


# --- each packet to its service -------------------------------------------------------------------------------


@pytest.mark.requirement("TRN-01")
@pytest.mark.parametrize("sender", [RC, UC, UD])
@pytest.mark.parametrize("receiver", [RC, UC, UD])
def test_services_do_not_mix(sender: object, receiver: object) -> None:
    lab = Lab()
    a, b = (make_side(lab.adapter(), service) for service in (sender, receiver))
    for here, there in ((a, b), (b, a)):
        if here.qp.type is UD:
            here.qp.activate()
        elif here.qp.type is UC:
            here.qp.connect(there.qp.endpoint)
        else:
            here.qp.connect(there.qp.endpoint, timeout=1, retry_cnt=0)
    b.qp.post_recv(RecvRequest(1, [b.mr.sge(0, 100)]))
    a.qp.post_send(datagram(a, b, 10) if sender is UD else send(a, 10))
    lab.settle()
    if sender is receiver:
        assert statuses(b.cq.poll()) == [(1, "SUCCESS")]
        assert drops(b.ctx) == {}
    else:
        assert len(b.cq) == 0
        assert drops(b.ctx) == {"drop.service": 1}
    lab.check_laws()
