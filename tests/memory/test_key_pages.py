"""Keys over an address space: who may bind what, pages and segments that go away, records of uses and refusals."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

from lab import Lab, pattern
from memory.keys_lab import REMOTE, attempt, key_of, more_pairs, one, refused
from memory.test_spaces import BASE, PAGE, Process
from verbena import (
    Access,
    AsyncEventType,
    InvalidAttributeError,
    InvalidStateError,
    RecvRequest,
    WorkRequest,
    WROpcode,
)
from verbena.adapter.address_spaces import PageFault
from verbena.adapter.gid import Gid

VIRTUAL = 0x9_0000_0000


def ends(on_demand: bool = False, kernel: bool = False, **more: Any) -> tuple[Lab, Any, Any, Process]:
    """Two ends, the second with a process of 8 pages; `kernel`: and with two pages of virtual addresses."""
    lab = Lab(**more)
    a, b = lab.pair(memory=1 << 17)
    process = Process(b, on_demand=on_demand, tie=not kernel)
    if kernel:
        virtual = process.memory.make_space(12)
        process.memory.set_pages(virtual, VIRTUAL // PAGE, process.virtual)
        b.pd.use_space(process.space, virtual)
    return lab, a, b, process


def bound_at(b: Any, address: int, length: int, access: Access = REMOTE, **options: Any) -> Any:
    key = key_of(b)
    b.qp.bind_rkey(key, address, length, access, **options)
    assert one(b).ok
    return key


@pytest.mark.requirement("RKY-04", "RKY-05")
def test_user_processes_bind_effective_addresses_kernel_processes_virtual_ones_too() -> None:
    for kernel in (False, True):
        lab, a, b, process = ends(kernel=kernel)
        key = bound_at(b, BASE + 4000, 200)
        a.mr.buf[:200] = pattern(200)
        assert attempt(a, "write", key.rkey, BASE + 4000, 200) == "SUCCESS"
        lab.settle()
        assert process.read(4000, 200) == pattern(200)
        mine, _ = more_pairs(lab, a, b)
        assert attempt(mine, "write", key.rkey, BASE + 3999, 1) == "REM_ACCESS_ERR"
        if kernel:
            key = bound_at(b, VIRTUAL + 4000, 200, virtual=True)
            assert attempt(a, "write", key.rkey, VIRTUAL + 4000, 200) == "SUCCESS"
            lab.settle()
            assert process.virtual[4000:4200] == pattern(200)
        else:
            with pytest.raises(InvalidAttributeError, match="invalid parameter"):
                b.qp.bind_rkey(key, VIRTUAL + 4000, 200, virtual=True)
        with pytest.raises(InvalidAttributeError, match=r"invalid parameter.*segment_invalid"):
            b.qp.bind_rkey(key, VIRTUAL + 4000, 200)  # as an effective address it is none of the process's
        assert key.query().state == "bound"
        lab.settle()
        assert not b.cq.poll()


@pytest.mark.requirement("RKY-05", "RKY-16")
@pytest.mark.parametrize("wrong", ["behind", "before", "hole", "page read-only", "segment read-only"])
def test_authority_down_to_the_last_byte(wrong: str) -> None:
    _, a, b, process = ends()
    key = bound_at(b, BASE + 10, 100)
    access = REMOTE
    address, length = BASE + 7 * PAGE, PAGE + 1
    if wrong == "before":
        address = BASE - 1
    elif wrong == "hole":
        process.memory.remove_range(process.space, process.first + 5, 1)
        address, length = BASE + 4 * PAGE, PAGE + 1
    elif wrong == "page read-only":
        process.memory.protect_page(process.space, process.first + 5, False)
        address, length = BASE + 4 * PAGE, PAGE + 1
    elif wrong == "segment read-only":
        process.memory.add_range(process.space, process.first + 8, 1, writable=False)
    with pytest.raises(InvalidAttributeError, match="invalid parameter"):
        b.qp.bind_rkey(key, address, length, access)
    assert (key.query().address, key.query().length) == (BASE + 10, 100)
    if "read-only" in wrong:
        b.qp.bind_rkey(key, address, length, Access.REMOTE_READ)
    else:
        b.qp.bind_rkey(key, address + (wrong == "before"), length - 1, access)
    assert one(b).ok
    assert attempt(a, "read", key.rkey, key.query().address, length - 1) == "SUCCESS" or "segment" in wrong


@pytest.mark.requirement("RKY-12", "RKY-16")
@pytest.mark.parametrize("kind", ["write", "read", "fetch_add", "swap"])
@pytest.mark.parametrize("change", ["segment", "page", "protection", "unreadable"])
def test_what_is_withdrawn_later_is_refused(kind: str, change: str) -> None:
    """Also where it is only the last byte: not one byte changes, nothing is read."""
    lab, a, b, process = ends()
    key = bound_at(b, BASE, 8 * PAGE)
    n = 8 if kind in ("fetch_add", "swap") else 3 * PAGE + 1
    address = BASE + 3 * PAGE if n == 8 else BASE
    a.mr.buf[:n] = b"\xee" * n
    page = process.first + 3
    if change == "segment":
        process.memory.remove_range(process.space, page, 1)
    elif change == "page":
        process.memory.clear_page(process.space, page)
    else:
        process.memory.protect_page(process.space, page, False, readable=change == "protection")
    fine = change == "protection" and kind == "read"
    before = process.read(0, 8 * PAGE)
    assert attempt(a, kind, key.rkey, address, n) == ("SUCCESS" if fine else "REM_ACCESS_ERR")
    lab.settle()
    assert process.read(0, 8 * PAGE) == before
    assert a.mr.buf[:n] == (before[:n] if fine else b"\xee" * n)
    reason = {"segment": "segment_invalid", "page": "page_absent"}.get(change, "page_protected")
    assert refused(b.ctx) == ({} if fine else {reason: 1})
    lab.check_laws()


@pytest.mark.requirement("RKY-13")
@pytest.mark.parametrize("kind", ["write", "read", "fetch_add"])
def test_a_page_that_is_not_mapped_is_an_asynchronous_error(kind: str) -> None:
    """The default error handler learns of it once: key, address, queue pair; the requester is refused (003:882)."""
    lab, a, b, process = ends()
    key = bound_at(b, BASE + 100, 3 * PAGE)
    process.memory.clear_page(process.space, process.first + 1)
    start = PAGE if kind == "fetch_add" else PAGE - 50
    assert attempt(a, kind, key.rkey, BASE + start, 100) == "REM_ACCESS_ERR"
    lab.settle()
    event = b.ctx.get_async_event(0)
    assert event
    assert event.type is AsyncEventType.PAGE_FAULT
    assert (event.key, event.address, event.source) == (key.rkey, BASE + PAGE, b.qp)
    rest = [b.ctx.get_async_event(0) for _ in range(2)]
    assert [e and e.type for e in rest] == [AsyncEventType.QP_ACCESS_ERR, None]
    (found,) = process.memory.refusals()
    assert (found.reason, found.key, found.remote) == ("page_absent", key.rkey, True)
    # The handler maps the page; the next operation of the same key succeeds.
    process.memory.set_page(process.space, process.first + 1, process.frames[process.first + 1])
    mine, _ = more_pairs(lab, a, b)
    assert attempt(mine, kind, key.rkey, BASE + start, 100) == "SUCCESS"
    assert b.ctx.get_async_event(0) is None


@pytest.mark.requirement("RKY-13")
@pytest.mark.parametrize("kind", ["write", "read", "fetch_add"])
@pytest.mark.parametrize("how", ["key", "implicit"])
def test_a_page_is_brought_in_on_demand(kind: str, how: str) -> None:
    """The peer sees a delay only, also in the middle of a message; the whole address space may be one region."""
    lab, a, b, process = ends(on_demand=True)
    if how == "key":
        rkey = bound_at(b, BASE, 8 * PAGE).rkey
    else:
        rkey = b.pd.reg_space(access=REMOTE | Access.LOCAL_WRITE).rkey
    n = 8 if kind == "fetch_add" else 7 * PAGE
    for i, page in enumerate(process.frames):
        process.frames[page][:] = pattern(PAGE, i)
        process.memory.clear_page(process.space, page)
    asked: list[PageFault] = []

    def bring_in(fault: PageFault) -> None:
        asked.append(fault)
        later = lab.net.now + 300_000

        def come() -> None:
            process.memory.set_page(fault.space, fault.page, process.frames[fault.page])

        lab.net.clock.call_at(later, come)

    process.memory.on_page_fault = bring_in
    before = process.read(0, 8 * PAGE)
    start = lab.net.now
    a.mr.buf[:n] = b"\xee" * n
    assert attempt(a, kind, rkey, BASE, n) == "SUCCESS"
    assert lab.net.now - start >= 300_000
    lab.settle()
    assert sorted(f.page for f in asked) == sorted(process.frames)[: 1 if n == 8 else 7]
    assert {(f.key, f.qp_num, f.write) for f in asked} == {(rkey, b.qp.qp_num, kind != "read")}
    if kind == "write":
        assert process.read(0, 8 * PAGE) == b"\xee" * n + before[n:]
    elif kind == "read":
        assert a.mr.buf[:n] == before[:n]
    else:
        old = int.from_bytes(before[:8], "little")
        assert int.from_bytes(process.read(0, 8), "little") == (old + 5) % (1 << 64)
    assert b.ctx.get_async_event(0) is None
    assert refused(b.ctx) == {}
    assert a.ctx.counters()["rx.rnr_naks"] >= 1
    # What is not in the space is refused, also with the whole space registered.
    assert attempt(a, kind, rkey, BASE + 8 * PAGE, 8) == "REM_ACCESS_ERR"
    lab.check_laws()


@pytest.mark.requirement("RKY-13")
def test_a_page_that_goes_out_under_a_read_is_fetched_again() -> None:
    lab, a, b, process = ends(on_demand=True)
    key = bound_at(b, BASE, 8 * PAGE)
    for i, page in enumerate(process.frames):
        process.frames[page][:] = pattern(PAGE, i)
    data = process.read(0, 8 * PAGE)
    taken = []

    def take_out(packet: Any) -> list[bytes]:
        if "READ_RESPONSE" in packet.name and len(taken) < 8:
            page = process.first + len(taken)
            taken.append(page)
            process.memory.clear_page(process.space, page)
        return [packet.data]

    lab.taps[1].gate = take_out
    process.memory.on_page_fault = lambda f: process.memory.set_page(f.space, f.page, process.frames[f.page])
    assert attempt(a, "read", key.rkey, BASE, 8 * PAGE) == "SUCCESS"
    assert a.mr.buf[: 8 * PAGE] == data
    assert len(taken) == 8


@pytest.mark.requirement("RKY-15")
def test_registered_buffers_have_opaque_addresses() -> None:
    """No address of the process's memory is on the wire, nor in any table that a program can see."""
    lab = Lab()
    a, b = lab.pair()
    array = numpy.zeros(4096, numpy.uint8)
    pointer = array.ctypes.data
    mr = b.pd.reg_mr(array, Access.LOCAL_WRITE | Access.WINDOW_BIND)
    other = b.pd.reg_mr(numpy.zeros(4096, numpy.uint8), Access.LOCAL_WRITE | Access.WINDOW_BIND)
    key, second = (bound_at(b, region.addr, 4096, mr=region) for region in (mr, other))
    assert attempt(a, "write", key.rkey, mr.addr, 4096) == "SUCCESS"
    lab.settle()
    assert not any(pointer.to_bytes(8, "big") in p.data for tap in lab.taps for p in tap.out)
    assert pointer not in {entry["address"] for entry in b.ctx.adapter.memory.list_keys()}
    for rkey, address in ((key.rkey, pointer), (key.rkey, mr.addr + 4096), (second.rkey, mr.addr)):
        mine, _ = more_pairs(lab, a, b)
        assert attempt(mine, "read", rkey, address, 1) == "REM_ACCESS_ERR"
    assert refused(b.ctx) == {"key_range": 3}


@pytest.mark.requirement("RKY-08", "RKY-12")
def test_who_used_which_key_when() -> None:
    lab, a, b, process = ends()
    key = bound_at(b, BASE, PAGE)
    assert attempt(a, "write", key.rkey, BASE + 5, 700) == "SUCCESS"
    then = lab.net.now
    lab.net.run_for(1_000_000)
    assert attempt(a, "fetch_add", key.rkey, BASE + 8, 8) == "SUCCESS"
    assert attempt(a, "read", key.rkey, BASE + PAGE - 1, 2) == "REM_ACCESS_ERR"
    lab.settle()
    first, second = process.memory.uses()
    assert first.when < then < second.when < lab.net.now
    assert (first.key, first.address, first.length, first.access) == (
        key.rkey,
        BASE + 5,
        700,
        Access.REMOTE_WRITE,
    )
    assert (first.qp_num, first.peer_qp_num, first.peer) == (
        b.qp.qp_num,
        a.qp.qp_num,
        Gid.from_ip("10.0.0.1"),
    )
    assert (second.access, second.length) == (Access.REMOTE_ATOMIC, 8)
    (refusal,) = process.memory.refusals()
    assert refusal.when > second.when
    assert (refusal.key, refusal.address, refusal.length) == (key.rkey, BASE + PAGE - 1, 2)
    assert (refusal.reason, refusal.qp_num) == ("key_range", b.qp.qp_num)
    found = key.query()
    assert (found.uses, found.bytes, found.refusals) == (2, 708, 1)
    assert (found.last_qp, found.last_peer_qp) == (b.qp.qp_num, a.qp.qp_num)
    assert found.last_used_ns == second.when
    (entry,) = [k for k in process.memory.list_keys() if k["remote_key"] == key.rkey]
    assert (entry["kind"], entry["state"], entry["space"]) == ("rkey", "bound", process.space)
    b.pd.deallocate_rkey(key)
    assert key.rkey not in {k["remote_key"] for k in process.memory.list_keys()}


def test_only_the_newest_uses_and_refusals_are_remembered() -> None:
    lab, a, b, process = ends()
    key = bound_at(b, BASE, PAGE)
    for i in range(300):
        assert attempt(a, "write", key.rkey, BASE + i, 1) == "SUCCESS"
    lab.settle()
    assert [u.address - BASE for u in process.memory.uses()] == list(range(44, 300))


def test_a_space_stays_while_it_is_used() -> None:
    _, _, b, process = ends()
    key = bound_at(b, BASE, PAGE)
    whole = b.pd.reg_space()
    with pytest.raises(InvalidStateError, match="1 windows are bound"):
        process.memory.untie(b.pd.number)
    key.close()
    process.memory.untie(b.pd.number)
    with pytest.raises(InvalidStateError, match="still use"):
        process.memory.free_space(process.space)
    with pytest.raises(InvalidAttributeError, match="no address space"):
        b.pd.reg_space()
    whole.close()
    process.memory.free_space(process.space)
    with pytest.raises(InvalidAttributeError, match="no region of the domain"):
        b.qp.bind_rkey(key_of(b), BASE, 1)


def test_ranges_of_a_space_as_regions() -> None:
    lab, a, b, process = ends()
    for address, n in ((BASE + 7 * PAGE, PAGE + 1), (BASE - 1, 2), ((1 << 64) - 1, 2)):
        with pytest.raises(InvalidAttributeError):
            b.pd.reg_space(address, n)
    region = b.pd.reg_space(BASE + 10, 5000, REMOTE | Access.LOCAL_WRITE, iova=0x1_0000)
    a.mr.buf[:5000] = pattern(5000)
    assert attempt(a, "write", region.rkey, 0x1_0000, 5000) == "SUCCESS"
    lab.settle()
    assert process.read(10, 5000) == pattern(5000)
    b.qp.post_recv(RecvRequest(1, [region.sge(100, 50)]))
    a.qp.post_send(WorkRequest(1, WROpcode.SEND, [a.mr.sge(0, 50)]))
    assert [one(end).ok for end in (a, b)] == [True, True]
    assert process.read(110, 50) == pattern(5000)[:50]
    assert attempt(a, "write", region.rkey, 0x1_0000 - 1, 1) == "REM_ACCESS_ERR"
