"""Every operation of every service, with every size that could matter, for every path MTU."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random

import pytest

from lab import MTUS, RC, UC, UD, Lab, fetch_add, pattern, statuses, take
from verbena import (
    AddressVector,
    CompletionFlags,
    CompletionOpcode,
    QPType,
    RecvRequest,
    SendFlags,
    WorkRequest,
    WROpcode,
    _pure,
)
from verbena.runtime.pairs import Side, connect_sides, make_side

LARGE = (3 << 20) + 5 if _pure.compiled() else (1 << 19) + 5
ROOM = LARGE + 8192
W, S = WROpcode.RDMA_WRITE, WROpcode.SEND
MESSAGES = {
    RC: (S, WROpcode.SEND_WITH_IMM, WROpcode.SEND_WITH_INV, WROpcode.RDMA_WRITE_WITH_IMM),
    UC: (S, WROpcode.SEND_WITH_IMM, WROpcode.RDMA_WRITE_WITH_IMM),
}


def sizes(mtu: int) -> Iterator[int]:
    yield from (
        0,
        1,
        2,
        3,
        4,
        mtu - 1,
        mtu,
        mtu + 1,
        2 * mtu,
        2 * mtu + 1,
        5 * mtu - 1,
        64 * mtu,
        65 * mtu + 3,
    )
    if mtu in (256, 4096):
        yield LARGE


def cut(random: Random, side: Side, at: int, n: int, entries: int) -> list:
    """n bytes of the region as that many list entries, some of them perhaps empty."""
    borders = sorted([0, n, *(random.randrange(n + 1) for _ in range(entries - 1))])
    return [side.mr.sge(at + a, b - a) for a, b in itertools.pairwise(borders)]


@pytest.mark.requirement("VRB-07", "VRB-08", "VRB-09", "TRN-02", "TRN-03")
@pytest.mark.parametrize("mtu", MTUS)
@pytest.mark.parametrize("service", [RC, UC])
def test_connected_operations_of_every_size(seed: int, service: QPType, mtu: int) -> None:
    random = Random(seed)
    lab = Lab(seed, record=False)
    a, b = lab.pair(service, mtu=mtu, memory=ROOM)
    data = random.randbytes(LARGE)
    a.mr.buf[:LARGE] = data
    for i, n in enumerate(sizes(mtu)):
        at = random.randrange(LARGE - n + 1)
        to = 16 + random.randrange(64)
        want = data[at : at + n]
        for opcode in (W, *MESSAGES[service], *((WROpcode.RDMA_READ,) if service is RC else ())):
            for side in (a, b):
                side.mr.buf[LARGE:] = bytes(ROOM - LARGE)
            b.mr.buf[: n + 200] = b"\xee" * (n + 200)
            request = WorkRequest(i, opcode, cut(random, a, at, n, 1 + i % 4), imm_data=0xABCD0000 + i)
            request.remote_addr, request.rkey = b.mr.addr + to, b.mr.rkey
            spare = b.pd.alloc_mr(8)
            request.invalidate_rkey = spare.rkey
            if opcode in MESSAGES[service]:
                b.qp.post_recv(RecvRequest(100 + i, cut(random, b, to, n, 1 + (i + 1) % 4)))
            if opcode is WROpcode.RDMA_READ:
                b.mr.buf[to : to + n] = want
                request.sg_list = cut(random, a, LARGE + 3, n, 1 + i % 4) if n < 4096 else [a.mr.sge(0, n)]
                a.qp.post_send(request)
                (entry,) = take(a.cq, 1)
                place = LARGE + 3 if n < 4096 else 0
                assert a.mr.buf[place : place + n] == want
                if n < 4096:
                    assert not any(a.mr.buf[LARGE : LARGE + 3])
                    assert not any(a.mr.buf[place + n :])
                else:
                    a.mr.buf[:LARGE] = data
                assert len(b.cq) == 0, "the process that is read from is not involved"
            else:
                a.qp.post_send(request)
                (entry,) = take(a.cq, 1)
                if opcode is W and service is UC:
                    lab.settle()
            assert (entry.wr_id, entry.status.name, entry.qp_num) == (i, "SUCCESS", a.qp.qp_num)
            assert entry.byte_len == n
            if opcode in MESSAGES[service]:
                (got,) = take(b.cq, 1)
                assert (got.wr_id, got.status.name, got.byte_len) == (100 + i, "SUCCESS", n)
                assert got.qp_num == b.qp.qp_num
                assert got.imm_data == (
                    request.imm_data if opcode not in (S, WROpcode.SEND_WITH_INV) else None
                )
                write_imm = opcode is WROpcode.RDMA_WRITE_WITH_IMM
                assert (got.opcode is CompletionOpcode.RECV_RDMA_WITH_IMM) == write_imm
                invalidated = request.invalidate_rkey if opcode is WROpcode.SEND_WITH_INV else None
                assert got.invalidated_rkey == invalidated
            assert b.mr.buf[to : to + n] == want, (opcode, n)
            assert bytes(b.mr.buf[:to]) == b"\xee" * to, "bytes in front of the range are unchanged"
            assert bytes(b.mr.buf[to + n : n + 200]) == b"\xee" * (200 - to), "bytes behind it are unchanged"
            spare.close()
    lab.settle()
    assert len(a.cq) == len(b.cq) == 0
    lab.check_laws()


@pytest.mark.requirement("TRN-02")
@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
@pytest.mark.parametrize("mtu", MTUS)
def test_datagrams_of_every_size(seed: int, mtu: int, address: str) -> None:
    random = Random(seed)
    lab = Lab(seed)
    other = address[:-1] + "2"
    lab.adapter(address, mtu=mtu), lab.adapter(other, mtu=mtu)
    a, b = lab.pair(UD)
    b.qp.modify(qkey=5)
    handle = a.pd.create_ah(AddressVector(b.ctx.query_gid()))
    for n in (0, 1, 3, 4, mtu - 41, mtu - 1, mtu):
        for opcode in (S, WROpcode.SEND_WITH_IMM):
            a.mr.buf[:n] = pattern(n, n)
            b.mr.buf[: mtu + 100] = b"\xee" * (mtu + 100)
            b.qp.post_recv(RecvRequest(9, cut(random, b, 7, n + 40, 4)))
            a.qp.post_send(
                WorkRequest(
                    8,
                    opcode,
                    cut(random, a, 0, n, 3),
                    imm_data=77,
                    ah=handle,
                    remote_qpn=b.qp.qp_num,
                    remote_qkey=5,
                )
            )
            (got,) = take(b.cq, 1)
            assert statuses(take(a.cq, 1)) == [(8, "SUCCESS")]
            assert (got.wr_id, got.status.name, got.byte_len) == (9, "SUCCESS", n + 40)
            assert got.src_qp == a.qp.qp_num
            assert got.flags & CompletionFlags.GRH
            assert got.imm_data == (77 if opcode is not S else None)
            assert b.mr.buf[47 : 47 + n] == pattern(n, n)
            header = bytes(b.mr.buf[7:47])
            if ":" in address:
                assert header[0] >> 4 == 6
                assert header[8:24] == a.ctx.query_gid().raw
                assert header[24:40] == b.ctx.query_gid().raw
            else:
                assert header[20] == 0x45
                assert (header[32:36], header[36:40]) == (
                    a.ctx.query_gid().raw[12:],
                    b.ctx.query_gid().raw[12:],
                )
            assert bytes(b.mr.buf[:7]) == b"\xee" * 7
            assert bytes(b.mr.buf[47 + n : mtu + 100]) == b"\xee" * (mtu + 53 - n)
    lab.check_laws()


@pytest.mark.requirement("VRB-10")
def test_atomics(seed: int) -> None:
    lab = Lab(seed)
    a, b = lab.pair()
    b.mr.buf[64:72] = (41).to_bytes(8, "little")
    a.qp.post_send(fetch_add(a, b, 1, to=64))
    (entry,) = take(a.cq, 1)
    assert (entry.opcode, entry.byte_len) == (CompletionOpcode.FETCH_ADD, 8)
    assert int.from_bytes(a.mr.buf[:8], "little") == 41
    assert int.from_bytes(b.mr.buf[64:72], "little") == 42
    for compare, swap, after in ((42, 7, 7), (42, 9, 7), (7, 1 << 63, 1 << 63)):
        request = fetch_add(a, b, compare, to=64)
        request.opcode, request.swap = WROpcode.ATOMIC_CMP_AND_SWP, swap
        before = int.from_bytes(b.mr.buf[64:72], "little")
        a.qp.post_send(request)
        assert take(a.cq, 1)[0].opcode is CompletionOpcode.COMP_SWAP
        assert int.from_bytes(a.mr.buf[:8], "little") == before
        assert int.from_bytes(b.mr.buf[64:72], "little") == after
    a.qp.post_send(fetch_add(a, b, 1 << 63, to=64))
    take(a.cq, 1)
    assert bytes(b.mr.buf[64:72]) == bytes(8), "it wraps at 64 bits"
    # An atomic's answer may be scattered, too.
    request = fetch_add(a, b, 5, to=64)
    request.sg_list = [a.mr.sge(1000, 3), a.mr.sge(2000, 5)]
    a.qp.post_send(request)
    a.qp.post_send(fetch_add(a, b, 0x0102030405060708, to=64))
    a.qp.post_send(request)
    take(a.cq, 3)
    word = (0x0102030405060708 + 5).to_bytes(8, "little")
    assert (bytes(a.mr.buf[1000:1003]), bytes(a.mr.buf[2000:2005])) == (word[:3], word[3:])


@pytest.mark.requirement("VRB-10")
def test_fetch_adds_of_eight_clients_add_up() -> None:
    lab = Lab(5, record=False)
    target = lab.adapter("10.0.0.100")
    keeper = target.alloc_pd()
    counter = keeper.alloc_mr(8, make_side(target, RC).mr.access)
    clients = []
    for _ in range(8):
        side = make_side(lab.adapter(), RC)
        cq = target.create_cq(16)
        end = keeper.create_qp(RC, cq)
        connect_sides(side, Side(target, keeper, cq, end, counter))
        clients.append(side)
    rounds = 1000 if _pure.compiled() else 100
    old = []
    for step in range(0, rounds, 20):
        for i, side in enumerate(clients):
            for k in range(20):
                side.qp.post_send(
                    WorkRequest(
                        step + k,
                        WROpcode.ATOMIC_FETCH_AND_ADD,
                        [side.mr.sge(8 * (step + k), 8)],
                        remote_addr=counter.addr,
                        rkey=counter.rkey,
                        compare_add=i + 1,
                    )
                )
        lab.net.run_for(10_000)
    for side in clients:
        assert all(e.ok for e in take(side.cq, rounds))
        old += [int.from_bytes(side.mr.buf[8 * k : 8 * k + 8], "little") for k in range(rounds)]
    assert int.from_bytes(counter.buf, "little") == rounds * sum(range(1, 9))
    assert len(set(old)) == len(old), "each saw another old value"


@pytest.mark.parametrize("mtu", [256, 4096])
@pytest.mark.parametrize("first", [0xFFFFFF, 0xFFFFFE, 0xFFFFF0, 0x7FFFFF, 0])
def test_packet_numbers_wrap(first: int, mtu: int) -> None:
    lab = Lab()
    lab.adapter(), lab.adapter()
    a, b = (make_side(ctx, RC) for ctx in lab.contexts)
    a.qp._psn = b.qp._psn = first
    connect_sides(a, b, mtu=mtu, max_rd_atomic=2)
    for i in range(30):
        n = 3 * mtu + i
        a.mr.buf[:n] = pattern(n, i)
        a.qp.post_send(WorkRequest(1, W, [a.mr.sge(0, n)], remote_addr=b.mr.addr, rkey=b.mr.rkey))
        read_back = [a.mr.sge(100_000, n)]
        a.qp.post_send(WorkRequest(2, WROpcode.RDMA_READ, read_back, remote_addr=b.mr.addr, rkey=b.mr.rkey))
        a.qp.post_send(fetch_add(a, b, 1, 3, at=200_000, to=300_000))
        assert statuses(take(a.cq, 3)) == [(1, "SUCCESS"), (2, "SUCCESS"), (3, "SUCCESS")]
        assert a.mr.buf[100_000 : 100_000 + n] == pattern(n, i)
    assert int.from_bytes(b.mr.buf[300_000:300_008], "little") == 30
    numbers = sum(2 * -(-(3 * mtu + i) // mtu) + 1 for i in range(30))
    assert a.qp.query().sq_psn == (first + numbers) & 0xFFFFFF
    lab.check_laws()


def test_inline_data_is_taken_when_it_is_posted() -> None:
    lab = Lab()
    a, b = lab.pair(sizes={"max_inline": 100})
    for n in (0, 1, 99, 100):
        a.mr.buf[:100] = pattern(100, n)
        a.qp.post_send(
            WorkRequest(
                n,
                W,
                [a.mr.sge(0, n // 2), a.mr.sge(n // 2, n - n // 2)],
                SendFlags.SIGNALED | SendFlags.INLINE,
                remote_addr=b.mr.addr,
                rkey=b.mr.rkey,
            )
        )
        a.mr.buf[:100] = bytes(100)
        assert take(a.cq, 1)[0].ok
        assert b.mr.buf[:n] == pattern(100, n)[:n]


def test_unsignaled_requests_leave_no_entry_unless_they_fail() -> None:
    lab = Lab()
    a, b = lab.pair()
    for i in range(10):
        flags = SendFlags.SIGNALED if i % 5 == 4 else SendFlags.NONE
        a.qp.post_send(WorkRequest(i, W, [a.mr.sge(0, 9)], flags, remote_addr=b.mr.addr, rkey=b.mr.rkey))
    lab.settle()
    assert statuses(a.cq.poll()) == [(4, "SUCCESS"), (9, "SUCCESS")]
    a.qp.post_send(WorkRequest(10, W, [a.mr.sge(0, 9)], SendFlags.NONE, remote_addr=b.mr.addr, rkey=1))
    lab.settle()
    assert statuses(a.cq.poll()) == [(10, "REM_ACCESS_ERR")]


def test_all_signaled_queue_pairs_report_everything() -> None:
    lab = Lab()
    a, b = lab.pair(sizes={"sq_sig_all": True})
    a.qp.post_send(WorkRequest(1, W, [a.mr.sge(0, 9)], SendFlags.NONE, remote_addr=b.mr.addr, rkey=b.mr.rkey))
    assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]


def test_a_fence_waits_for_earlier_reads() -> None:
    """Without it a WRITE's packet leaves at once behind the READ's; with it, only when the answer has come."""
    for flag, waits in ((SendFlags.NONE, False), (SendFlags.FENCE, True)):
        lab = Lab()
        a, b = lab.pair(mtu=256)
        remote = {"remote_addr": b.mr.addr, "rkey": b.mr.rkey}
        b.mr.buf[:1000] = pattern(1000)
        a.qp.post_send(WorkRequest(1, WROpcode.RDMA_READ, [a.mr.sge(0, 1000)], **remote))
        # What was read is written elsewhere: right only behind a fence.
        remote["remote_addr"] += 5000
        a.qp.post_send(WorkRequest(2, W, [a.mr.sge(0, 1000)], SendFlags.SIGNALED | flag, **remote))
        lab.settle()
        assert statuses(a.cq.poll()) == [(1, "SUCCESS"), (2, "SUCCESS")]
        sent = next(p.when for p in lab.taps[0].out if p.name.startswith("RC RDMA_WRITE"))
        answered = max(p.when for p in lab.taps[1].out if "READ_RESPONSE" in p.name)
        assert (sent > answered) == waits
        assert (b.mr.buf[5000:6000] == pattern(1000)) == waits


@pytest.mark.parametrize(
    ("opcode", "solicits"), [(S, True), (WROpcode.RDMA_WRITE_WITH_IMM, True), (W, False)]
)
def test_the_solicited_bit_travels_in_the_last_packet(opcode: WROpcode, solicits: bool) -> None:
    lab = Lab()
    a, b = lab.pair(mtu=256)
    b.qp.post_recv(RecvRequest(1, [b.mr.sge()]))
    flags = SendFlags.SIGNALED | SendFlags.SOLICITED
    a.qp.post_send(WorkRequest(1, opcode, [a.mr.sge(0, 700)], flags, remote_addr=b.mr.addr, rkey=b.mr.rkey))
    take(a.cq, 1)
    assert [bool(p.data[1] & 0x80) for p in lab.taps[0].requests()] == [False, False, solicits]
