"""Pages of a host under operations: moved, missing, shared, of kernel processes, of several adapters."""

from __future__ import annotations

from typing import Any

import pytest

from lab import Lab, pattern, take
from memory.host_lab import PAGE, REMOTE, End, add_end, another, connect, settle, tried, two_ends
from verbena import (
    Access,
    InvalidAttributeError,
    QPState,
    RecvRequest,
    WorkRequest,
    WROpcode,
)
from verbena.adapter.protection_options import AddressKind, ProtectionOptions
from verbena.memory.protection import Protection
from verbena.memory.trace import MemoryVerb
from verbena.runtime.host_memory import HostMemory

READ, BOTH, NONE = Protection.READ, Protection.READ_WRITE, Protection.NONE


@pytest.mark.requirement("MEM-09", "MEM-17", "MEM-05")
@pytest.mark.parametrize("tables", ["private", "shared"])
def test_pages_that_move_between_two_operations(tables: Any) -> None:
    lab = Lab()
    a, b = two_ends(lab, ProtectionOptions(page_tables=tables), frames=4)
    mine, at = a.process.allocate(PAGE), b.process.allocate(PAGE)
    noise = b.memory.create_process("noise")
    noises = noise.allocate(4 * PAGE)
    a.process.write(mine, b"first and second")
    key = b.bind(at, PAGE)
    assert a.attempt("write", mine, 5, at, key.rkey) == "SUCCESS"
    calls = b.memory.kernel_calls
    frame = next(p.frame for p in b.memory.snapshot().pages if p.valid)
    b.memory.page_out(b.process, at)
    noise.write(noises, bytes([7]) * 3 * PAGE)
    b.memory.page_in(b.process, at)
    seen = b.memory.snapshot()
    upper = seen.processes[0].segments[0].upper
    assert next(p.frame for p in seen.pages if p.valid and p.upper == upper) != frame
    assert a.attempt("write", mine + 5, 11, at + 5, key.rkey) == "SUCCESS"
    assert b.process.read(at, 16) == b"first and second"
    assert noise.read(noises, 3 * PAGE) == bytes([7]) * 3 * PAGE
    # The manager withdraws the page; the process did not call anything, and the driver neither.
    made = b.memory.trace.counts()
    b.memory.protect(b.process, at, PAGE, READ)
    assert tried(a, b, "write", mine, 16, at, key.rkey) == "REM_ACCESS_ERR"
    b.memory.protect(b.process, at, PAGE, NONE)
    assert tried(a, b, "read", mine, 16, at, key.rkey) == "REM_ACCESS_ERR"
    after = b.memory.trace.counts()
    assert {name for name in after if after[name] != made.get(name)} <= {
        *("PageProtection", "OpenQP", "CloseQP", "MapLocalPage")
    }
    b.memory.protect(b.process, at, PAGE, BOTH)
    assert b.process.read(at, 16) == b"first and second"
    assert b.memory.kernel_calls > calls
    settle(lab)


@pytest.mark.requirement("MEM-19", "RKY-13")
@pytest.mark.parametrize("how", ["bound", "registered", "all"])
@pytest.mark.parametrize("kind", ["read", "write", "fetch_add"])
def test_a_page_that_is_out_is_brought_in(how: str, kind: str) -> None:
    """The peer sees a delay, and nothing else."""
    lab = Lab()
    a, b = two_ends(lab, page_in_ns=50_000)
    mine, at = a.process.allocate(PAGE), b.process.allocate(2 * PAGE)
    a.process.write(mine, b"local   ")
    b.process.write(at + PAGE, b"remote  ")
    if how == "bound":
        rkey = b.bind(at, 2 * PAGE).rkey
    elif how == "registered":
        rkey = b.pd.reg_range(at, 2 * PAGE, REMOTE | Access.LOCAL_WRITE, pinned=False).rkey
    else:
        rkey = b.pd.reg_address_space(REMOTE | Access.LOCAL_WRITE).rkey
    b.memory.page_out(b.process, at + PAGE)
    start = lab.net.now
    assert a.attempt(kind, mine, 8, at + PAGE, rkey) == "SUCCESS"
    assert lab.net.now - start >= 50_000
    assert b.memory.snapshot().adapters[0].swap_ins == 1
    if kind == "write":
        assert b.process.read(at + PAGE, 8) == b"local   "
    elif kind == "read":
        assert a.process.read(mine, 8) == b"remote  "
    else:
        old = int.from_bytes(b"remote  ", "little")
        assert int.from_bytes(b.process.read(at + PAGE, 8), "little") == old + 1
    assert b.page_faults() == []
    settle(lab)


@pytest.mark.requirement("MEM-15", "MEM-19", "RKY-13")
@pytest.mark.parametrize("why", ["refused by choice", "no frame is free", "not in the store"])
def test_a_page_that_cannot_come_is_an_asynchronous_error(why: str) -> None:
    """The default error handler learns of key, address and queue pair, once; the requester is refused."""

    class Broken:
        def __init__(self) -> None:
            self.used, self.next = 0, 0

        def allocate(self) -> int:
            self.next += 1
            return self.next

        def release(self, slot: int) -> None: ...

        def write(self, slot: int, page: Any) -> None: ...

        def read(self, slot: int) -> bytes:
            return b""

    lab = Lab()
    faults = "error" if why == "refused by choice" else "swap-in"
    store = Broken() if why == "not in the store" else None
    a, b = two_ends(lab, ProtectionOptions(page_faults=faults), frames=2, store=store)  # type: ignore[arg-type]
    mine, at = a.process.allocate(PAGE), b.process.allocate(2 * PAGE)
    a.process.write(mine, bytes(range(1, 201)))
    b.process.write(at, bytes(2 * PAGE))
    key = b.bind(at, 2 * PAGE)
    b.memory.page_out(b.process, at + PAGE)
    if why == "no frame is free":
        other = b.memory.create_process("other")
        other.pin(other.allocate(PAGE), PAGE)
        b.process.pin(at, PAGE)
    address = at + PAGE - 100
    assert a.attempt("write", mine, 200, address, key.rkey) in ("REM_ACCESS_ERR", "REM_OP_ERR")
    lab.settle()
    (event,) = b.page_faults()
    assert (event.key, event.source) == (key.rkey, b.qp)
    assert event.address in (address, at + PAGE)
    assert b.memory.load(b.process, at, PAGE) == bytes(PAGE)  # not even the bytes before the missing page
    assert b.memory.snapshot().adapters[0].swap_ins == 0
    # Once there is room, the same key serves again.
    if why == "no frame is free":
        b.memory.end_process(other)
        assert tried(a, b, "write", mine, 200, address, key.rkey) == "SUCCESS"
    settle(lab)


@pytest.mark.requirement("MEM-15", "MEM-16", "RKY-13")
@pytest.mark.parametrize("faults", ["swap-in", "error"])
def test_a_virtual_address_that_was_never_mapped(faults: Any) -> None:
    """A kernel process binds what the operating system has not mapped: the error handler hears of its use."""
    lab = Lab()
    a, b = two_ends(lab, ProtectionOptions(page_faults=faults), kernel=True)
    mine, own = a.process.allocate(PAGE), b.process.allocate(PAGE)
    b.process.pin(own, PAGE)
    mapped = b.process.virtual_address(own)
    unmapped = mapped + (1 << 40)
    good, bad = b.bind(mapped, 16, virtual=True), b.bind(unmapped, 16, virtual=True)
    assert a.attempt("write", mine, 16, mapped, good.rkey) == "SUCCESS"
    mapping = b.memory.trace.entries(MemoryVerb.MAP_LOCAL_PAGE)
    assert {entry.verb.step for entry in mapping} == {612}
    assert tried(a, b, "write", mine, 8, unmapped + 3, bad.rkey) == "REM_ACCESS_ERR"
    (event,) = b.page_faults()
    assert (event.key, event.address) == (bad.rkey, unmapped + 3)
    assert b.ctx.counters()["memory.refused.page_absent"] == 1
    assert tried(a, b, "write", mine, 16, mapped, good.rkey) == "SUCCESS"
    settle(lab)


@pytest.mark.requirement("MEM-16", "VRB-01", "RKY-04")
@pytest.mark.parametrize("how", ["virtual", "physical", "effective"])
@pytest.mark.parametrize("direction", ["send", "receive", "remote"])
def test_a_disk_driver_does_io(how: str, direction: str) -> None:
    """A file system hands a kernel driver a virtual address; the driver passes it on, or translates it by itself."""
    lab = Lab()
    a, b = two_ends(lab, kernel=True)
    system = b.memory.create_process("file system", kernel=True)
    buffer = system.allocate(2 * PAGE)
    system.pin(buffer, 2 * PAGE)
    system.write(buffer + 100, b"a block of the disk")
    virtual = system.virtual_address(buffer + 100)
    mine = a.process.allocate(PAGE)
    a.process.write(mine, b"written by the peer")
    kind = AddressKind(how)
    if how == "physical":
        address = b.process.physical_address(virtual, write=True)
        region = b.pd.reg_range(address, 19, REMOTE | Access.LOCAL_WRITE, kind=kind)
        sge, rkey, named = region.sge(), region.rkey, region.addr
    elif how == "virtual":
        sge, rkey, named = b.sge(virtual, 19, kind), b.bind(virtual, 19, virtual=True).rkey, virtual
    else:
        named = b.memory.share(buffer, system, b.process) + 100
        sge, rkey = b.sge(named, 19, kind), b.bind(named, 19).rkey
    if direction == "send":
        a.receive(mine, 19)
        b.qp.post_send(WorkRequest(1, WROpcode.SEND, [sge]))
        assert take(a.cq, 1)[0].ok
        assert a.process.read(mine, 19) == b"a block of the disk"
    elif direction == "receive":
        b.qp.post_recv(RecvRequest(1, [sge]))
        a.send(mine, 19)
        assert take(b.cq, 1)[0].ok
        assert system.read(buffer + 100, 19) == b"written by the peer"
    else:
        assert a.attempt("write", mine, 19, named, rkey) == "SUCCESS"
        assert system.read(buffer + 100, 19) == b"written by the peer"
        assert tried(a, b, "write", mine, 20, named, rkey) == "REM_ACCESS_ERR"
    settle(lab)


@pytest.mark.requirement("RKY-15")
def test_opaque_addresses_tell_nothing_of_physical_ones() -> None:
    lab = Lab()
    a, b = two_ends(lab, kernel=True)
    before = b.process.allocate(3 * PAGE)
    b.process.pin(before, 3 * PAGE)  # so that the address is a number that no header has by chance
    at = b.process.allocate(3 * PAGE)
    b.process.pin(at, 3 * PAGE)
    b.process.write(at, b"opaque")
    physical = b.process.physical_address(b.process.virtual_address(at), write=True)
    access = REMOTE | Access.LOCAL_WRITE
    opaque = b.pd.reg_range(physical, 6, access, kind=AddressKind.PHYSICAL)
    other = b.pd.reg_range(physical + PAGE, 6, access, kind=AddressKind.PHYSICAL)
    plain = b.pd.reg_range(physical, 6, access, kind=AddressKind.PHYSICAL, opaque=False)
    assert plain.addr == physical
    mine = a.process.allocate(PAGE)
    assert a.attempt("read", mine, 6, opaque.addr, opaque.rkey) == "SUCCESS"
    assert a.process.read(mine, 6) == b"opaque"
    shown = physical.to_bytes(8, "big")
    assert not any(shown in packet.data for tap in lab.taps for packet in tap.out)
    assert opaque.addr != physical
    # Altered, or with another key, it opens nothing; and nor does it where it came from.
    wrong = [(opaque.addr - 1, opaque.rkey), (opaque.addr + 1, opaque.rkey), (opaque.addr, other.rkey)]
    for address, rkey in [*wrong, (physical, opaque.rkey), (opaque.addr, plain.rkey)]:
        assert tried(a, b, "read", mine, 6, address, rkey) == "REM_ACCESS_ERR"
    user = add_end(b.ctx, b.memory, b.memory.create_process("user"))
    peer = another(a)
    connect(peer, user)
    user.send(opaque.addr, 6)
    assert take(user.cq, 1)[0].status.name == "LOC_PROT_ERR"
    settle(lab)


@pytest.mark.requirement("MEM-07")
def test_shared_memory_under_remote_operations() -> None:
    """A peer writes by one process's address, the other reads by its own; when one lets go, the other keeps it."""
    lab = Lab()
    a, b = two_ends(lab)
    second = b.memory.create_process("second")
    second.allocate(PAGE)
    at = b.process.allocate(2 * PAGE)
    too = b.memory.share(at, b.process, second)
    assert at != too
    end = add_end(b.ctx, b.memory, second)
    peer = another(a)
    connect(peer, end)
    mine = a.process.allocate(PAGE)
    a.process.write(mine, b"one two")
    keys = [b.bind(at, PAGE), end.bind(too, PAGE)]
    assert a.attempt("write", mine, 3, at, keys[0].rkey) == "SUCCESS"
    assert second.read(too, 3) == b"one"
    b.memory.page_out(second, too)
    assert peer.attempt("write", mine + 4, 3, too + 4, keys[1].rkey) == "SUCCESS"
    assert b.process.read(at, 7) == b"one\0two"
    second.free(too)
    assert peer.attempt("write", mine, 3, too, keys[1].rkey) == "REM_ACCESS_ERR"
    assert a.attempt("write", mine + 4, 3, at, keys[0].rkey) == "SUCCESS"
    assert b.process.read(at, 7) == b"two\0two"
    settle(lab)


@pytest.mark.requirement("MEM-18")
@pytest.mark.parametrize("tables,count", [("private", 2), ("shared", 1)])
def test_two_adapters_of_a_host(tables: Any, count: int) -> None:
    lab = Lab()
    memory = HostMemory(frames=8)
    process = memory.create_process("both")
    at = process.allocate(2 * PAGE)
    ends = []
    for _ in range(2):
        ctx = lab.adapter()
        ctx.attach_memory(memory, ProtectionOptions(page_tables=tables))
        ends.append(add_end(ctx, memory, process))
    connect(*ends)
    process.write(at, b"from here to there")
    for _ in range(2):
        ends[1].receive(at + PAGE, PAGE)
        ends[0].send(at, 18)
        assert take(ends[1].cq, 1)[0].ok
        assert process.read(at + PAGE, 18) == b"from here to there"
        memory.page_out(process, at, 2 * PAGE)
        process.write(at + PAGE, bytes(18))
    seen = memory.snapshot()
    assert seen.adapter_page_tables == count
    assert [(s.private, s.table_size) for s in seen.adapters] == [(count == 2, 2)] * 2
    settle(lab)


@pytest.mark.requirement("MEM-21")
def test_an_inverted_page_table_gives_equal_results() -> None:
    """100 pages in 4 frames, written and read by a peer."""
    results = {}
    for inverted in (False, True):
        lab = Lab()
        options = ProtectionOptions(page_tables="private", inverted=inverted)
        a, b = two_ends(lab, options, frames=4, inverted=inverted)
        mine, at = a.process.allocate(100 * PAGE), b.process.allocate(100 * PAGE)
        data = pattern(100 * PAGE)
        a.process.write(mine, data)
        key = b.bind(at, 100 * PAGE)
        for page in range(0, 100, 5):
            assert a.attempt("write", mine + page * PAGE, 5 * PAGE, at + page * PAGE, key.rkey) == "SUCCESS"
        seen = b.memory.snapshot()
        results[inverted] = (seen.table_size, seen.adapters[0].table_size)
        assert b.process.read(at, 100 * PAGE) == data
        settle(lab)
    assert results == {False: (100, 100), True: (4, 4)}


@pytest.mark.requirement("RKY-10", "VRB-14")
def test_keys_and_requests_of_another_process() -> None:
    """A key is refused on another process's queue pair of the same node, and so is its local key."""
    lab = Lab()
    a, b = two_ends(lab)
    at = b.process.allocate(PAGE)
    key, region = b.bind(at, 8), b.pd.reg_range(at, 8, REMOTE | Access.LOCAL_WRITE)
    thief = add_end(b.ctx, b.memory, b.memory.create_process("thief"))
    thief.process.allocate(PAGE)
    mine = a.process.allocate(PAGE)
    for rkey in (key.rkey, region.rkey):
        peer, stolen = another(a), another(thief)
        connect(peer, stolen)
        assert peer.attempt("read", mine, 8, at, rkey) == "REM_ACCESS_ERR"
        assert tried(a, b, "read", mine, 8, at, rkey) == "SUCCESS"
    with pytest.raises(InvalidAttributeError, match="another protection domain"):
        thief.qp.unbind_rkey(key)
    peer = another(a)
    connect(peer, thief)
    thief.qp.post_send(WorkRequest(1, WROpcode.SEND, [region.sge()]))
    assert take(thief.cq, 1)[0].status.name == "LOC_PROT_ERR"
    # Whoever posts on b's queue pair names b's memory, whatever process's address it is.
    assert a.attempt("read", mine, 8, at, key.rkey) == "SUCCESS"
    settle(lab)


@pytest.mark.requirement("VRB-16", "RKY-06")
def test_no_call_of_the_kernel_once_all_is_set_up() -> None:
    """A thousand binds, unbinds and operations, and a counter that stays."""
    lab = Lab(record=False)
    a, b = two_ends(lab)
    mine, at = a.process.allocate(PAGE), b.process.allocate(4 * PAGE)
    a.process.pin(mine, PAGE)
    b.process.pin(at, 4 * PAGE)
    keys = b.pd.allocate_rkey(4)
    first = b.bind(at, PAGE)
    assert a.attempt("write", mine, 100, at, first.rkey) == "SUCCESS"

    def calls() -> list[Any]:
        tables = [end.ctx.counters()["memory.kernel_calls"] for end in (a, b)]
        return [*tables, a.memory.kernel_calls, b.memory.kernel_calls, b.memory.trace.counts()]

    before = calls()
    for i in range(500):
        key = keys[i % 4]
        b.qp.bind_rkey(key, at + i, 100)
        b.qp.unbind_rkey(key)
        assert [e.status.name for e in take(b.cq, 2)] == ["SUCCESS"] * 2
        if i % 10 == 0:
            assert a.attempt("write", mine, 100, at + i, first.rkey) == "SUCCESS"
    assert calls() == before
    settle(lab)


def test_regions_of_a_process_end_with_it_and_pins_with_them() -> None:
    lab = Lab()
    a, b = two_ends(lab, frames=8)
    at = b.process.allocate(4 * PAGE)
    region = b.pd.reg_range(at, 3 * PAGE, REMOTE | Access.LOCAL_WRITE)
    assert b.memory.snapshot().pinned_frames == 3
    with pytest.raises(InvalidAttributeError, match="pinned"):
        b.memory.page_out(b.process, at)
    mine = a.process.allocate(PAGE)
    assert a.attempt("write", mine, PAGE, at, region.rkey) == "SUCCESS"
    region.close()
    region.close()
    assert b.memory.snapshot().pinned_frames == 0
    assert tried(a, b, "write", mine, PAGE, at, region.rkey) == "REM_ACCESS_ERR"
    key = b.bind(at, 8)
    b.memory.end_process(b.process)
    assert tried_after_end(a, b, mine, at, key.rkey) == "REM_ACCESS_ERR"
    b.send(at, 1)
    assert take(b.cq, 1)[0].status.name in ("LOC_PROT_ERR", "WR_FLUSH_ERR")
    assert b.memory.snapshot().free_frames == 8
    for end in (a, b):
        end.ctx.close()
    assert b.memory.snapshot().adapters == ()


def tried_after_end(a: End, b: End, mine: int, at: int, rkey: int) -> str:
    """The process is gone, its queue pair still there: what a peer gets from it."""
    assert b.qp.state is QPState.RTS
    return a.attempt("write", mine, 8, at, rkey)
