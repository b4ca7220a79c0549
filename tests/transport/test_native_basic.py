"""Connections and datagrams over native packets, from one adapter's engine to another's."""

from __future__ import annotations

from random import Random

import pytest

from native_lab import RC, UC, UD, NativeLab
from verbena import AddressVector, CompletionFlags, RecvRequest, WorkRequest, WROpcode


@pytest.mark.parametrize("size", [0, 1, 3, 256, 257, 5000, 60_000])
@pytest.mark.parametrize("mtu", [256, 4096])
def test_reliable_connection_moves_every_byte(size, mtu):
    lab = NativeLab()
    a, b = lab.pair(RC, mtu=mtu)
    data = Random(size).randbytes(size)
    a.mr.buf[:size] = data
    b.qp.post_recv(RecvRequest(7, [b.mr.sge(0, 60_000)]))
    a.qp.post_send(WorkRequest(1, WROpcode.SEND_WITH_IMM, [a.mr.sge(0, size)], imm_data=99))
    (sent,) = a.cq.wait(1)
    (got,) = b.cq.wait(1)
    assert sent.ok
    assert (got.ok, got.byte_len, got.imm_data) == (True, size, 99)
    assert (got.slid, got.sl, got.path_bits, got.port) == (a.ctx.query_port().lid, 0, 0, 1)
    assert b.mr.buf[:size] == data
    b.mr.buf[:size] = bytes(size)
    for opcode in (WROpcode.RDMA_WRITE, WROpcode.RDMA_READ):
        a.qp.post_send(WorkRequest(2, opcode, [a.mr.sge(0, size)], remote_addr=b.mr.addr, rkey=b.mr.rkey))
        assert a.cq.wait(1)[0].ok
        assert b.mr.buf[:size] == data
        assert a.mr.buf[:size] == data
    assert all(s.packet.grh is None for s in lab.log)


def test_atomics_and_invalidation():
    lab = NativeLab()
    a, b = lab.pair(RC)
    b.mr.buf[:8] = (41).to_bytes(8, "little")
    where = {"remote_addr": b.mr.addr, "rkey": b.mr.rkey}
    a.qp.post_send(WorkRequest(1, WROpcode.ATOMIC_FETCH_AND_ADD, [a.mr.sge(0, 8)], compare_add=1, **where))
    assert a.cq.wait(1)[0].ok
    assert int.from_bytes(a.mr.buf[:8], "little") == 41
    assert int.from_bytes(b.mr.buf[:8], "little") == 42


def test_unreliable_connection():
    lab = NativeLab()
    a, b = lab.pair(UC, mtu=1024)
    data = Random(1).randbytes(10_001)
    a.mr.buf[: len(data)] = data
    a.qp.post_send(
        WorkRequest(1, WROpcode.RDMA_WRITE, [a.mr.sge(0, len(data))], remote_addr=b.mr.addr, rkey=b.mr.rkey)
    )
    assert a.cq.wait(1)[0].ok
    lab.run()
    assert b.mr.buf[: len(data)] == data


def test_datagrams_leave_the_space_of_a_header_that_they_have_not():
    lab = NativeLab()
    a, b = lab.pair(UD)
    there = a.pd.create_ah(AddressVector(dlid=b.ctx.query_port().lid, sl=5))
    a.mr.buf[:5] = b"hello"
    b.mr.buf[:40] = b"x" * 40
    b.qp.post_recv(RecvRequest(3, [b.mr.sge(0, 4136)]))
    a.qp.post_send(
        WorkRequest(
            1, WROpcode.SEND, [a.mr.sge(0, 5)], ah=there, remote_qpn=b.qp.qp_num, remote_qkey=0x11111111
        )
    )
    (got,) = b.cq.wait(1)
    assert (got.ok, got.byte_len, got.src_qp) == (True, 45, a.qp.qp_num)
    assert not got.flags & CompletionFlags.GRH
    assert (got.slid, got.sl, got.path_bits, got.port) == (a.ctx.query_port().lid, 5, 0, 1)
    assert b.mr.buf[:45] == b"x" * 40 + b"hello"
