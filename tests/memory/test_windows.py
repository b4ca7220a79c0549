"""Memory windows of type 1 and 2, invalidation, fast and changed registration (IBA vol. 1, 10.6)."""

from __future__ import annotations

from typing import Any

import pytest

from lab import Lab, pattern, statuses, take
from memory.keys_lab import REMOTE, attempt, bindable, more_pairs, one, refused, request
from verbena import (
    Access,
    BindInfo,
    ClosedError,
    DeviceAttributes,
    FastRegistration,
    InvalidAttributeError,
    InvalidStateError,
    QPState,
    QPType,
    RecvRequest,
    ScatterGatherEntry,
    SendFlags,
    WindowType,
    WorkRequest,
    WROpcode,
)

SECOND = [WindowType.TYPE_2A, WindowType.TYPE_2B]
PAGE = 4096


def window_on(side: Any, mr: Any, kind: WindowType, offset: int, length: int, **options: Any) -> Any:
    window = side.pd.alloc_mw(kind)
    side.qp.bind_mw(window, mr, mr.addr + offset, length, **options)
    assert one(side).ok
    return window


@pytest.mark.requirement("RKY-09", "RKY-10")
def test_a_type_1_window_gets_a_new_key_with_each_bind() -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    window = window_on(b, mr, WindowType.TYPE_1, 10, 100)
    old = [window.rkey]
    for offset in range(1000, 1008):
        assert b.qp.bind_mw(window, mr, mr.addr + offset, 100) == window.rkey
        assert one(b).ok
        assert window.rkey not in old
        assert window.rkey >> 8 == old[0] >> 8
        mine, _ = more_pairs(lab, a, b)  # any queue pair of the domain
        assert attempt(mine, "write", window.rkey, mr.addr + offset, 100) == "SUCCESS"
        for address in (mr.addr + offset, mr.addr + 10):
            mine, _ = more_pairs(lab, a, b)
            assert attempt(mine, "write", old[-1], address, 1) == "REM_ACCESS_ERR"
        old.append(window.rkey)
    assert refused(b.ctx) == {"key_stale": 16}
    b.qp.unbind_rkey(window)
    assert one(b).ok
    assert attempt(a, "write", window.rkey, mr.addr + 1007, 1) == "REM_ACCESS_ERR"


@pytest.mark.requirement("RKY-09")
def test_a_key_of_an_earlier_bind_does_not_open_the_new_one() -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    (key,) = b.pd.allocate_rkey()
    seen = set()
    for i in range(256):
        assert b.qp.bind_rkey(key, mr.addr + i, 64, mr=mr) == key.rkey
        assert one(b).ok
        assert key.rkey not in seen
        seen.add(key.rkey)
    stale = sorted(seen - {key.rkey})
    before = bytes(mr.buf)
    for rkey in (stale[0], stale[100], stale[-1]):
        mine, _ = more_pairs(lab, a, b)
        assert attempt(mine, "write", rkey, mr.addr + 255, 1) == "REM_ACCESS_ERR"
    assert bytes(mr.buf) == before
    last = key.rkey
    b.qp.bind_rkey(key, mr.addr, 64, mr=mr, renew=False)  # a value that stays, for who wants that
    assert one(b).ok
    assert key.rkey == last
    assert attempt(a, "write", last, mr.addr, 64) == "SUCCESS"
    assert len({b - a for a, b in zip(sorted(seen), sorted(seen)[1:], strict=False)}) == 1  # all 256 tags


@pytest.mark.requirement("RKY-10")
@pytest.mark.parametrize("kind", SECOND)
def test_a_type_2_window_serves_the_queue_pair_that_bound_it(kind: WindowType) -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    window = window_on(b, mr, kind, 10, 100)
    assert attempt(a, "write", window.rkey, mr.addr + 10, 100) == "SUCCESS"
    mine, theirs = more_pairs(lab, a, b)
    before = bytes(mr.buf)
    a.mr.buf[:100] = b"\xee" * 100
    assert attempt(mine, "write", window.rkey, mr.addr + 10, 100) == "REM_ACCESS_ERR"
    assert bytes(mr.buf) == before
    assert refused(b.ctx) == {"key_queue_pair": 1}
    assert window.query().state == "bound"
    # Bound, it is bound by nobody again, and unbound by nobody; invalidated, it is.
    with pytest.raises(InvalidAttributeError, match="LOCAL_INV"):
        b.qp.unbind_rkey(window)
    b.qp.invalidate(window.rkey)
    assert one(b).ok
    assert window.query().state == "disabled"
    old = window.rkey
    chosen = (old & ~0xFF) | 0x5A
    with pytest.raises(InvalidAttributeError, match="last eight bits"):
        b.qp.bind_mw(window, mr, mr.addr, 8, rkey=chosen ^ 0x100)
    assert b.qp.bind_mw(window, mr, mr.addr, 8, rkey=chosen) == chosen
    assert one(b).ok
    assert attempt(a, "read", chosen, mr.addr, 8) == "SUCCESS"
    b.qp.bind_mw(window, mr, mr.addr, 16)
    assert statuses(take(b.cq, 1)) == [(0, "MW_BIND_ERR")]
    assert b.qp.state is QPState.ERR
    assert window.query().length == 8
    assert theirs.qp.state is QPState.ERR


@pytest.mark.parametrize("kind", SECOND)
def test_a_type_2_window_ends_with_its_queue_pair(kind: WindowType) -> None:
    """Numbers of queue pairs are used again: the next one of that number has no right to the window."""
    lab = Lab()
    lab.adapter(), lab.adapter(limits=DeviceAttributes(max_qp=2))
    a, b = lab.pair()
    mr = bindable(b)
    mine, theirs = more_pairs(lab, a, b)
    window = window_on(theirs, mr, kind, 0, 100)
    number = theirs.qp.qp_num
    theirs.qp.close()
    mine, theirs = more_pairs(lab, a, b)
    assert theirs.qp.qp_num & 0xFFFF == number & 0xFFFF, "the same place"
    assert attempt(mine, "write", window.rkey, mr.addr, 100) == "REM_ACCESS_ERR"
    assert window.query().state == "disabled"
    mr.close()


@pytest.mark.parametrize("kind", [WindowType.TYPE_1, *SECOND])
def test_zero_based_windows(kind: WindowType) -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    window = window_on(b, mr, kind, 77, 1000, access=REMOTE | Access.ZERO_BASED)
    assert attempt(a, "read", window.rkey, 0, 1000) == "SUCCESS"
    assert a.mr.buf[:1000] == mr.buf[77:1077]
    assert attempt(a, "read", window.rkey, 1, 1000) == "REM_ACCESS_ERR"


def test_the_rights_of_a_window() -> None:
    kinds = {"write": Access.REMOTE_WRITE, "read": Access.REMOTE_READ, "fetch_add": Access.REMOTE_ATOMIC}
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    for given in kinds.values():
        window = window_on(b, mr, WindowType.TYPE_1, 0, 64, access=given)
        for kind, needed in kinds.items():
            mine, _ = more_pairs(lab, a, b)
            before = bytes(mr.buf)
            status = attempt(mine, kind, window.rkey, mr.addr, 8)
            assert status == ("SUCCESS" if given == needed else "REM_ACCESS_ERR")
            if given != needed:
                assert bytes(mr.buf) == before
    assert refused(b.ctx) == {"key_rights": 6}


@pytest.mark.requirement("VRB-11")
@pytest.mark.parametrize("kind", SECOND)
def test_a_send_with_invalidate_closes_the_peers_window(kind: WindowType) -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    window = window_on(b, mr, kind, 0, 100)
    b.qp.post_recv(RecvRequest(4))
    a.qp.post_send_many(
        [
            request(a, "write", window.rkey, mr.addr, 100, wr_id=1),
            WorkRequest(2, WROpcode.SEND_WITH_INV, invalidate_rkey=window.rkey),
        ]
    )
    assert [e.ok for e in take(a.cq, 2)] == [True, True]
    entry = one(b)
    assert entry.ok
    assert entry.invalidated_rkey == window.rkey
    before = bytes(mr.buf)
    a.mr.buf[:8] = b"\xee" * 8
    assert attempt(a, "write", window.rkey, mr.addr, 8) == "REM_ACCESS_ERR"
    assert bytes(mr.buf) == before
    assert refused(b.ctx) == {"key_disabled": 1}


@pytest.mark.parametrize(
    "wrong", ["key of document 003", "type 1", "another queue pair's", "unknown", "twice"]
)
def test_invalidations_that_are_refused(wrong: str) -> None:
    """By the owner: MW_BIND_ERR; by the peer: REM_OP_ERR, and the receiver's queue pair ends."""
    for remote in (False, True):
        lab = Lab()
        a, b = lab.pair()
        mr = bindable(b)
        owner = b
        if wrong == "another queue pair's":
            owner = more_pairs(lab, a, b)[1]
        kind = {"key of document 003": WindowType.RKEY, "type 1": WindowType.TYPE_1}.get(wrong, SECOND[0])
        window = window_on(owner, mr, kind, 0, 100)
        rkey = window.rkey ^ (0x10000 if wrong == "unknown" else 0)
        if wrong == "twice":
            b.qp.invalidate(rkey)
            assert one(b).ok
        state = window.query().state
        if remote:
            b.qp.post_recv(RecvRequest(4))
            a.qp.post_send(WorkRequest(2, WROpcode.SEND_WITH_INV, invalidate_rkey=rkey))
            assert one(a).status.name == "REM_OP_ERR"
            assert sum(refused(b.ctx).values()) == 1
        else:
            b.qp.invalidate(rkey)
            assert one(b).status.name == "MW_BIND_ERR"
        assert b.qp.state is QPState.ERR
        assert window.query().state == state


@pytest.mark.requirement("VRB-11")
def test_local_requests_keep_their_place() -> None:
    """Also with FENCE; a local invalidate waits for what stands before it, and all complete in order."""
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    window = b.pd.alloc_mw(WindowType.TYPE_2A)
    keys = [(window.rkey & ~0xFF) | ((window.rkey + i) & 0xFF) for i in range(1, 7)]
    work = []
    for i, key in enumerate(keys):
        bind = BindInfo(mr, mr.addr + i, 50, REMOTE, rkey=key)
        work.append(WorkRequest(len(work), WROpcode.BIND_MW, mw=window, bind=bind, flags=SendFlags(0b11)))
        work.append(request(b, "read", a.mr.rkey, a.mr.addr, 9000, wr_id=len(work)))
        work.append(WorkRequest(len(work), WROpcode.LOCAL_INV, invalidate_rkey=key))
    b.qp.post_send_many(work)
    entries = take(b.cq, len(work))
    assert [(e.wr_id, e.ok) for e in entries] == [(i, True) for i in range(len(work))]
    names = ["BIND_MW", "RDMA_READ", "LOCAL_INV"]
    assert [e.opcode.name for e in entries] == names * 6
    assert b.ctx.counters()["memory.invalidates"] == 6
    assert window.query().state == "disabled"
    # One that fails ends the queue; what stands behind it is flushed, what stands before it is not.
    wrong = BindInfo(mr, mr.addr + mr.length - 1, 2, REMOTE)
    b.qp.post_send_many(
        [
            request(b, "write", a.mr.rkey, a.mr.addr, 9000, wr_id=1),
            WorkRequest(2, WROpcode.BIND_MW, mw=window, bind=wrong),
            request(b, "write", a.mr.rkey, a.mr.addr, 9, wr_id=3),
        ]
    )
    assert statuses(take(b.cq, 3)) == [(1, "SUCCESS"), (2, "MW_BIND_ERR"), (3, "WR_FLUSH_ERR")]


def test_binds_on_datagram_queue_pairs() -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    qp = b.pd.create_qp(QPType.UD, b.cq)
    qp.activate()
    (key,) = b.pd.allocate_rkey()
    qp.bind_rkey(key, mr.addr, 9, mr=mr)
    assert one(b).ok
    assert attempt(a, "write", key.rkey, mr.addr, 9) == "SUCCESS"


# --- registration ---------------------------------------------------------------------------------------------------


def test_fast_registration() -> None:
    """A list of pages becomes a region's memory when the send queue comes to it."""
    lab = Lab()
    a, b = lab.pair()
    pages = [bytearray(PAGE) for _ in range(3)]
    mr = b.pd.alloc_fast_reg_mr(4)
    unregistered = mr.rkey
    access = Access.LOCAL_WRITE | REMOTE
    what = FastRegistration(mr, pages, 10_000, 0x5000_0000_0000, access, 100)
    told = WorkRequest(2, WROpcode.SEND)
    a.qp.post_recv(RecvRequest(1))
    b.qp.post_send_many([WorkRequest(1, WROpcode.REG_MR, bind=what), told])
    assert mr.rkey != unregistered
    assert one(a).ok
    assert [e.ok for e in take(b.cq, 2)] == [True, True]
    a.mr.buf[:10_000] = pattern(10_000)
    assert attempt(a, "write", mr.rkey, mr.addr, 10_000) == "SUCCESS"
    lab.settle()
    assert b"".join(pages)[100:10_100] == pattern(10_000)
    assert not any(b"".join(pages)[:100])
    assert not any(b"".join(pages)[10_100:])
    b.qp.post_recv(RecvRequest(1, [ScatterGatherEntry(mr.addr, 10_000, mr.lkey)]))
    a.qp.post_send(WorkRequest(1, WROpcode.SEND, [a.mr.sge(100, 50)]))
    assert one(a).ok
    assert one(b).ok
    assert b"".join(pages)[100:150] == pattern(10_000)[100:150]
    # It takes no other memory before it is invalidated; then it does, and the old key is stale.
    old = mr.rkey
    b.qp.invalidate(old)
    assert one(b).ok
    fresh = [bytearray(PAGE)]
    b.qp.post_send(WorkRequest(3, WROpcode.REG_MR, bind=FastRegistration(mr, fresh, access=access)))
    assert one(b).ok
    mine, _ = more_pairs(lab, a, b)
    assert attempt(mine, "write", old, mr.addr, 1) == "REM_ACCESS_ERR"
    assert attempt(a, "write", mr.rkey, 0, PAGE) == "SUCCESS"
    lab.settle()
    assert bytes(fresh[0]) == pattern(10_000)[:PAGE]
    assert attempt(a, "write", mr.rkey, 1, PAGE) == "REM_ACCESS_ERR"
    assert refused(b.ctx) == {"key_stale": 1, "key_range": 1}
    assert b.ctx.counters()["memory.fast_registrations"] == 2


def test_fast_registrations_that_cannot_be() -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = b.pd.alloc_fast_reg_mr(2)
    assert attempt(a, "write", mr.rkey, 0, 1) == "REM_ACCESS_ERR"
    a, b = lab.pair()
    mr = b.pd.alloc_fast_reg_mr(2)
    plain = b.pd.alloc_mr(PAGE)
    page = bytearray(PAGE)
    for wrong, message in (
        (FastRegistration(mr, [page] * 3), "takes 1 to 2"),
        (FastRegistration(mr, [bytearray(100)]), "have 4096 each"),
        (FastRegistration(mr, [page], access=Access.REMOTE_WRITE), "need LOCAL_WRITE"),
        (FastRegistration(plain, [page]), "alloc_fast_reg_mr"),
        (FastRegistration(mr, [page], rkey=mr.rkey ^ 0x100), "last eight bits"),
    ):
        with pytest.raises(InvalidAttributeError, match=message):
            b.qp.post_send(WorkRequest(1, WROpcode.REG_MR, bind=wrong))
    with pytest.raises(InvalidAttributeError, match="the page list has 4096"):
        FastRegistration(mr, [page], 100, offset=4000)
    with pytest.raises(InvalidAttributeError, match="fit into 64 bits"):
        FastRegistration(mr, [page], iova=(1 << 64) - 1)
    b.qp.post_send(WorkRequest(1, WROpcode.REG_MR, bind=FastRegistration(mr, [page])))
    assert one(b).ok
    b.qp.post_send(WorkRequest(2, WROpcode.REG_MR, bind=FastRegistration(mr, [page])))
    assert statuses(take(b.cq, 1)) == [(2, "MW_BIND_ERR")]
    mr.close()
    with pytest.raises(InvalidAttributeError):
        b.qp.post_send(WorkRequest(3, WROpcode.REG_MR, bind=FastRegistration(mr, [page])))


def test_changed_registration() -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = b.pd.alloc_mr(100, Access.LOCAL_WRITE | REMOTE)
    old = mr.rkey, mr.lkey
    mr.rereg(access=Access.LOCAL_WRITE | Access.REMOTE_READ)
    assert mr.rkey != old[0]
    assert mr.lkey != old[1]
    mine, _ = more_pairs(lab, a, b)
    assert attempt(mine, "read", mr.rkey, mr.addr, 100) == "SUCCESS"
    for rkey, reason in ((mr.rkey, "key_rights"), (old[0], "key_stale")):
        mine, _ = more_pairs(lab, a, b)
        count = refused(b.ctx).get(reason, 0)
        assert attempt(mine, "write", rkey, mr.addr, 1) == "REM_ACCESS_ERR"
        assert refused(b.ctx)[reason] == count + 1
    buffer = bytearray(pattern(300))
    mr.rereg(buffer)
    assert mr.length == 300
    mine, _ = more_pairs(lab, a, b)
    assert attempt(mine, "read", mr.rkey, mr.addr, 300) == "SUCCESS"
    assert a.mr.buf[:300] == pattern(300)
    other = b.ctx.alloc_pd()
    mr.rereg(pd=other)
    assert mr.pd is other
    assert attempt(a, "read", mr.rkey, mr.addr, 300) == "REM_ACCESS_ERR"
    with pytest.raises(InvalidStateError):
        other.close()
    with pytest.raises(InvalidAttributeError, match="read-only"):
        mr.rereg(b"constant", Access.LOCAL_WRITE)
    with pytest.raises(InvalidAttributeError, match="another adapter"):
        mr.rereg(pd=a.pd)
    with pytest.raises(InvalidAttributeError, match="together with the buffer"):
        mr.rereg(iova=5)
    assert bytes(mr.buf) == pattern(300)
    mr.close()
    with pytest.raises(ClosedError):
        mr.rereg(access=Access.NONE)
    other.close()
