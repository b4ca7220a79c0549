"""Remote keys as document 003 has them: allocate, bind, unbind, deallocate; who may use them, and who not."""

from __future__ import annotations

import pytest

from lab import Lab, pattern, sending, statuses, take
from memory.keys_lab import REMOTE, attempt, bindable, bound, key_of, more_pairs, one, refused, request
from verbena import (
    Access,
    ClosedError,
    DeviceAttributes,
    Faults,
    InvalidAttributeError,
    InvalidStateError,
    MemoryRegion,
    QPState,
    QPType,
    RecvRequest,
    ResourceError,
    WorkRequest,
    WROpcode,
)
from verbena.transport.local import BindInfo

KEYS = 1000


@pytest.mark.requirement("RKY-01", "RKY-11")
def test_a_key_and_an_address_are_sent_and_come_back() -> None:
    """Message 748 carries key and address over the fabric, message 750 carries them back (document 003:860)."""
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    key = bound(b, mr, 100, 1000)
    a.qp.post_recv(RecvRequest(1, [a.mr.sge(0, 12)]))
    b.mr.buf[:12] = (mr.addr + 100).to_bytes(8, "big") + key.rkey.to_bytes(4, "big")
    b.qp.post_send(sending(b, 12, 2))
    assert one(b).ok
    assert one(a).ok
    address, rkey = int.from_bytes(a.mr.buf[:8], "big"), int.from_bytes(a.mr.buf[8:12], "big")
    assert attempt(a, "read", rkey, address, 1000, at=100) == "SUCCESS"
    assert a.mr.buf[100:1100] == mr.buf[100:1100]
    message_748 = next(p for p in lab.taps[1].out if p.name.endswith("SEND_ONLY"))
    message_750 = next(p for p in lab.taps[0].out if p.name.endswith("READ_REQUEST"))
    named = address.to_bytes(8, "big") + rkey.to_bytes(4, "big")
    assert named in message_748.data
    assert named in message_750.data
    lab.check_laws()


@pytest.mark.requirement("RKY-02")
def test_one_or_several_keys() -> None:
    lab = Lab()
    lab.adapter(), lab.adapter(limits=DeviceAttributes(max_mw=12))
    a, b = lab.pair()
    (first,) = b.pd.allocate_rkey()
    ten = b.pd.allocate_rkey(10)
    assert len({first.rkey, *(k.rkey for k in ten)}) == 11
    with pytest.raises(ResourceError, match="all 12 memory windows"):
        b.pd.allocate_rkey(2)
    b.pd.allocate_rkey(1)  # the failed call left nothing behind
    for n in (0, -1, "2"):
        with pytest.raises(InvalidAttributeError, match="1 or more"):
            b.pd.allocate_rkey(n)  # type: ignore[arg-type]
    assert attempt(a, "write", first.rkey, 0, 1) == "REM_ACCESS_ERR"
    assert refused(b.ctx) == {"key_unbound": 1}


@pytest.mark.requirement("RKY-03", "RKY-12", "RKY-17")
@pytest.mark.parametrize("kind", ["write", "read"])
@pytest.mark.parametrize("offset,length", [(4090, 13), (1, 1), (0, 16_384), (16_383, 1), (5, 9001)])
def test_a_range_of_any_size_and_alignment(kind: str, offset: int, length: int) -> None:
    """The first and the last byte are reached, their neighbours are not, and nothing else changes."""
    cases = [(0, 1, True), (length - 1, 1, True), (0, length, True), (-1, 1, False), (length, 1, False)]
    cases += [(-1, length, False), (0, length + 1, False), (length - 1, 2, False), (-1, length + 2, False)]
    for start, n, fine in cases:
        lab = Lab()
        a, b = lab.pair()
        mr = bindable(b)
        key = bound(b, mr, offset, length)
        before = bytes(mr.buf)
        a.mr.buf[:] = b"\xee" * a.mr.length
        status = attempt(a, kind, key.rkey, mr.addr + offset + start, n)
        lab.settle()
        assert status == ("SUCCESS" if fine else "REM_ACCESS_ERR"), (start, n)
        expected = bytearray(before)
        if fine and kind == "write":
            expected[offset + start : offset + start + n] = b"\xee" * n
        assert bytes(mr.buf) == bytes(expected)
        want = before[offset + start : offset + start + n] if fine and kind == "read" else b"\xee" * n
        assert bytes(a.mr.buf[:n]) == want
        assert refused(b.ctx) == ({} if fine else {"key_range": 1})
        lab.check_laws()


@pytest.mark.requirement("RKY-05", "RKY-16")
@pytest.mark.parametrize(
    "wrong", ["below", "above", "far", "wrap", "rights", "no bind right", "read-only memory"]
)
def test_a_bind_without_authority_is_an_invalid_parameter(wrong: str) -> None:
    """It binds nothing, and the key stays as it was."""
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    key = bound(b, mr, 8, 64)
    other: MemoryRegion = mr
    access = REMOTE
    if wrong == "no bind right":
        other = b.pd.alloc_mr(64)
    if wrong == "read-only memory":
        other, access = b.pd.reg_mr(pattern(64), Access.WINDOW_BIND), Access.REMOTE_WRITE
    address, length = other.addr, 64
    address += {"below": -1, "above": 16_384 - 63, "far": 1 << 40}.get(wrong, 0)
    if wrong == "wrap":
        address, length = (1 << 64) - 8, 16
    if wrong == "rights":
        access = Access.LOCAL_WRITE
    with pytest.raises(InvalidAttributeError):
        b.qp.bind_rkey(key, address, length, access, mr=other)
    lab.settle()
    assert not b.cq.poll()
    assert attempt(a, "write", key.rkey, mr.addr + 8, 64) == "SUCCESS"
    # Posted as a work request, the same is refused in its turn.
    if wrong != "rights":
        b.qp.post_send(
            WorkRequest(1, WROpcode.BIND_MW, mw=key, bind=BindInfo(other, address, length, access))
        )
        assert one(b).status.name == "MW_BIND_ERR"
        assert b.qp.state is QPState.ERR
        assert key.query().address == mr.addr + 8
        assert key.query().state == "bound"


@pytest.mark.requirement("RKY-05", "RKY-07")
def test_keys_of_other_domains_are_refused() -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    key = bound(b, mr, 0, 64)
    stranger = b.ctx.alloc_pd()
    qp = stranger.create_qp(QPType.RC, b.cq)
    with pytest.raises(InvalidAttributeError, match="another protection domain"):
        qp.unbind_rkey(key)
    with pytest.raises(InvalidAttributeError, match="another protection domain"):
        qp.bind_rkey(key, mr.addr, 1, mr=mr)
    with pytest.raises(InvalidAttributeError, match="another protection domain"):
        stranger.deallocate_rkey(key)
    with pytest.raises(InvalidAttributeError, match="MemoryWindow"):
        b.qp.unbind_rkey(key.rkey)  # type: ignore[arg-type]
    assert attempt(a, "write", key.rkey, mr.addr, 64) == "SUCCESS"


@pytest.mark.requirement("RKY-06", "RKY-17", "VRB-16")
def test_binding_makes_no_call_into_the_kernel() -> None:
    lab = Lab()
    a, b = lab.pair(sizes={"max_send_wr": 2 * KEYS})
    mr = bindable(b)
    keys = b.pd.allocate_rkey(10)
    before = b.ctx.counters()
    assert before["memory.kernel_calls"] > 0
    for i in range(KEYS):
        b.qp.bind_rkey(keys[i % 10], mr.addr + i, 1 + i % 7, mr=mr, flags=0)
        b.qp.unbind_rkey(keys[i % 10], flags=0)
    lab.settle()
    after = b.ctx.counters()
    assert after["memory.binds"] == after["memory.unbinds"] == KEYS
    assert after["memory.kernel_calls"] == before["memory.kernel_calls"]
    b.pd.allocate_rkey()
    assert b.ctx.counters()["memory.kernel_calls"] == before["memory.kernel_calls"] + 1
    assert a.qp.state is QPState.RTS


@pytest.mark.requirement("RKY-07")
def test_unbinding() -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    key = bound(b, mr, 0, 64)
    b.qp.unbind_rkey(key, wr_id=3)
    assert statuses(take(b.cq, 1)) == [(3, "SUCCESS")]
    before = bytes(mr.buf)
    assert attempt(a, "write", key.rkey, mr.addr, 64) == "REM_ACCESS_ERR"
    assert bytes(mr.buf) == before
    assert refused(b.ctx) == {"key_unbound": 1}


@pytest.mark.requirement("RKY-08")
@pytest.mark.parametrize("state", ["unbound", "bound"])
def test_deallocating(state: str) -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    key = bound(b, mr, 0, 64) if state == "bound" else key_of(b)
    b.pd.deallocate_rkey(key)
    with pytest.raises(ClosedError, match="deallocated"):
        b.pd.deallocate_rkey(key)
    with pytest.raises(ClosedError, match="deallocated"):
        b.qp.bind_rkey(key, mr.addr, 1, mr=mr)
    with pytest.raises(ClosedError, match="deallocated"):
        b.qp.post_send(WorkRequest(1, WROpcode.BIND_MW, mw=key, bind=BindInfo(mr, mr.addr, 1)))
    before = bytes(mr.buf)
    assert attempt(a, "write", key.rkey, mr.addr, 64) == "REM_ACCESS_ERR"
    assert bytes(mr.buf) == before
    assert refused(b.ctx) == {"key_retired": 1}
    mr.close()  # no window holds it any more


@pytest.mark.requirement("RKY-09")
def test_a_key_protects_one_range_at_a_time() -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    key = bound(b, mr, 0, 64)
    for unbind in (False, True):
        if unbind:
            b.qp.unbind_rkey(key)
            assert one(b).ok
        b.qp.bind_rkey(key, mr.addr + 1000, 64, mr=mr)
        assert one(b).ok
        assert attempt(a, "write", key.rkey, mr.addr + 1000, 64) == "SUCCESS"
    assert key.query().uses == 2
    before = bytes(mr.buf)
    assert attempt(a, "write", key.rkey, mr.addr, 64) == "REM_ACCESS_ERR"
    assert bytes(mr.buf) == before


@pytest.mark.requirement("RKY-10", "RKY-11")
def test_a_key_works_on_all_queue_pairs_of_its_domain_and_on_no_others() -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    key = bound(b, mr, 0, 64)
    for service in (QPType.RC, QPType.UC) * 3:
        mine, _ = more_pairs(lab, a, b, service)
        assert attempt(mine, "write", key.rkey, mr.addr, 64) == "SUCCESS"
    lab.settle()
    assert key.query().uses == 6
    foreign = b.ctx.alloc_pd()
    b.pd = foreign
    mine, theirs = more_pairs(lab, a, b)
    before = bytes(mr.buf)
    a.mr.buf[:64] = b"\xee" * 64
    assert attempt(mine, "write", key.rkey, mr.addr, 64) == "REM_ACCESS_ERR"
    assert bytes(mr.buf) == before
    assert refused(b.ctx) == {"key_domain": 1}
    assert theirs.qp.state is QPState.ERR


@pytest.mark.requirement("VRB-11")
def test_binds_keep_their_place_in_the_send_queue() -> None:
    """[bind][send] opens the range before the peer knows the key; [unbind][send] closes it before the peer is told."""
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    key = key_of(b)
    told = [RecvRequest(1), RecvRequest(2)]
    a.qp.post_recv_many(told)
    bind = WorkRequest(1, WROpcode.BIND_MW, mw=key, bind=BindInfo(mr, mr.addr, 64, REMOTE))
    b.qp.post_send_many([bind, WorkRequest(2, WROpcode.SEND)])
    assert one(a).ok
    assert attempt(a, "write", key.rkey, mr.addr, 64) == "SUCCESS"
    unbind = WorkRequest(3, WROpcode.BIND_MW, mw=key, bind=BindInfo())
    b.qp.post_send_many([unbind, WorkRequest(4, WROpcode.SEND)])
    assert one(a).ok
    assert attempt(a, "write", key.rkey, mr.addr, 64) == "REM_ACCESS_ERR"
    lab.settle()
    assert statuses(b.cq.poll()) == [(1, "SUCCESS"), (2, "SUCCESS"), (3, "SUCCESS"), (4, "SUCCESS")]


def test_long_queues_of_binds_and_messages_complete_in_order() -> None:
    """Also where messages are lost, and sent again across binds that were executed once."""
    for seed in range(6):
        lab = Lab(seed=seed, faults=Faults(loss=0.05, duplication=0.05))
        a, b = lab.pair(mtu=256, sizes={"max_send_wr": 400, "max_recv_wr": 400}, timeout=8)
        mr = bindable(b)
        keys = b.pd.allocate_rkey(4)
        a.qp.post_recv_many([RecvRequest(i) for i in range(100)])
        work = []
        for i in range(100):
            work.append(
                WorkRequest(
                    len(work), WROpcode.BIND_MW, mw=keys[i % 4], bind=BindInfo(mr, mr.addr + i, 9, REMOTE)
                )
            )
            work.append(WorkRequest(len(work), WROpcode.SEND, imm_data=i))
            work.append(request(b, "read" if i % 3 else "write", a.mr.rkey, a.mr.addr, 700, wr_id=len(work)))
        b.qp.post_send_many(work)
        entries = take(b.cq, len(work))
        assert [(e.wr_id, e.ok) for e in entries] == [(i, True) for i in range(len(work))]
        assert b.ctx.counters()["memory.binds"] == 100
        assert [k.query().address - mr.addr for k in keys] == [96, 97, 98, 99]
        lab.settle()
        lab.check_laws()


@pytest.mark.requirement("RKY-12")
@pytest.mark.parametrize("kind", ["write", "read", "fetch_add", "swap"])
@pytest.mark.parametrize("service", [QPType.RC, QPType.UC])
def test_addresses_that_wrap_around(kind: str, service: QPType) -> None:
    if service is QPType.UC and kind != "write":
        return
    lab = Lab()
    a, b = lab.pair(service)
    mr = b.pd.alloc_mr(64, Access.LOCAL_WRITE | Access.WINDOW_BIND, iova=(1 << 64) - 64)
    mr.buf[:] = pattern(64)
    key = bound(b, mr, 32, 32)
    status = attempt(a, kind, key.rkey, (1 << 64) - 8, 16)
    lab.settle()
    atomic = kind in ("fetch_add", "swap")
    assert status == ("SUCCESS" if atomic or service is QPType.UC else "REM_ACCESS_ERR")
    if not atomic:
        assert bytes(mr.buf) == pattern(64)
        assert refused(b.ctx) == {"key_range": 1}


def test_regions_with_windows_stay() -> None:
    lab = Lab()
    _, b = lab.pair()
    mr = bindable(b)
    key = bound(b, mr, 0, 64)
    with pytest.raises(InvalidStateError, match="1 windows are bound"):
        mr.close()
    with pytest.raises(InvalidStateError, match="1 windows are bound"):
        mr.rereg(access=Access.LOCAL_WRITE)
    b.qp.unbind_rkey(key)
    assert one(b).ok
    mr.close()
