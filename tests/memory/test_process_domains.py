"""Processes of a host work through the verbs: their addresses in work requests, and who keeps the tables current."""

from __future__ import annotations

import contextlib
import itertools
import types
from typing import Any

import pytest

from lab import Lab, pattern, take
from memory.host_lab import PAGE, REMOTE, add_end, another, connect, fresh, host, settle, tried, two_ends
from verbena import (
    Access,
    InvalidAttributeError,
    InvalidStateError,
    QPState,
    QPType,
    WorkRequest,
    WROpcode,
)
from verbena.adapter.local_protection import LocalProtection
from verbena.adapter.protection_options import AddressKind, ProtectionOptions
from verbena.errors import PrivilegeError
from verbena.memory.addresses import EffectiveAddress
from verbena.memory.frames import Frames
from verbena.memory.manager import VirtualMemoryManager
from verbena.memory.pages import PageTable
from verbena.memory.protection import Protection
from verbena.memory.report import SavedState
from verbena.memory.segments import SegmentTable, SegmentTableEntry
from verbena.memory.trace import MemoryVerb
from verbena.runtime.host_memory import HostMemory

READ, BOTH, NONE = Protection.READ, Protection.READ_WRITE, Protection.NONE
TABLES = [ProtectionOptions(), ProtectionOptions(segment_tables="shared")]


@pytest.mark.requirement("MEM-01", "MEM-20", "VRB-01", "VRB-14")
@pytest.mark.parametrize("kernel", [False, True], ids=["user", "kernel"])
def test_the_queue_pair_decides_whose_addresses_are_meant(kernel: bool) -> None:
    """No verb takes a process; the same number, posted by two processes, is two places."""
    lab = Lab()
    memory, ctx = host(lab)
    elsewhere, far = host(lab)
    first, second = memory.create_process("first", kernel=kernel), memory.create_process("second")
    peer = elsewhere.create_process("peer")
    at = first.allocate(PAGE)
    assert second.allocate(PAGE) == at
    there = peer.allocate(PAGE)
    for process in (first, second):
        process.write(at + 7, b"of " + process.name.encode())
        end, other = add_end(ctx, memory, process), add_end(far, elsewhere, peer)
        connect(end, other)
        other.receive(there, 100)
        end.send(at + 7, 8)
        assert take(end.cq, 1)[0].ok
        assert take(other.cq, 1)[0].byte_len == 8
        assert peer.read(there, 8) == (b"of " + process.name.encode())[:8]
        end.receive(at + 100, 9)
        other.send(there + 50, 9)
        assert take(end.cq, 1)[0].ok
        assert process.read(at + 100, 9) == bytes(9)
    settle(lab)


@pytest.mark.requirement("MEM-01", "MEM-04", "MEM-08")
def test_a_user_process_has_effective_addresses_only() -> None:
    lab = Lab()
    _, b = two_ends(lab)
    at = b.process.allocate(PAGE)
    (key,) = b.pd.allocate_rkey()
    for kind in (AddressKind.VIRTUAL, AddressKind.PHYSICAL):
        with pytest.raises(PrivilegeError, match="user process"):
            b.pd.sge(at, 1, kind)
        with pytest.raises(PrivilegeError, match="user process"):
            b.pd.reg_range(at, 1, kind=kind)
    with pytest.raises(InvalidAttributeError, match="invalid parameter"):
        b.qp.bind_rkey(key, at, 1, virtual=True)
    # Forged in the work request, the reserved key of virtual addresses opens nothing.
    forged = b.sge(at, 8)
    forged.lkey = 1
    b.qp.post_send(WorkRequest(1, WROpcode.SEND, [forged]))
    assert take(b.cq, 1)[0].status.name == "LOC_PROT_ERR"
    for method in (b.pd.reg_mr, b.pd.alloc_mr):
        with pytest.raises(InvalidAttributeError, match="reg_range"):
            method(bytearray(8))  # type: ignore[arg-type]


@pytest.mark.requirement("MEM-08", "MEM-12", "VRB-06", "VRB-14")
@pytest.mark.parametrize(
    "opcode,foreign",
    [
        *itertools.product(
            ("SEND", "RDMA_READ", "RECV"), ("other process", "virtual", "physical", "behind", "unmapped")
        ),
        ("RDMA_READ", "no write"),
        ("RECV", "no write"),
    ],
)
def test_foreign_addresses_in_work_requests(opcode: str, foreign: str) -> None:
    """Each kind of address that the process was not given ends its request, and nothing is read or written."""
    lab = Lab()
    a, b = two_ends(lab)
    there = b.process.allocate(PAGE)
    b.process.write(there, b"secret" * 8)
    key = b.bind(there, 48)
    kernel, other = a.memory.create_process("kernel", kernel=True), a.memory.create_process("other")
    other.allocate(PAGE)
    others = other.allocate(PAGE)
    own = kernel.allocate(PAGE)
    kernel.pin(own, 1)
    mine = a.process.allocate(2 * PAGE)
    virtual = kernel.virtual_address(own)
    address = {
        "other process": others,
        "virtual": virtual,
        "physical": kernel.physical_address(virtual),
        "behind": mine + 2 * PAGE - 8,  # its first bytes would be allowed
        "unmapped": a.memory.form.encode(EffectiveAddress(1000, 0)),
        "no write": mine + PAGE - 8,
    }[foreign]
    if foreign == "no write":
        a.process.protect(mine + PAGE, PAGE, READ)
    before = [other.read(others, PAGE), kernel.read(own, PAGE), a.process.read(mine, 2 * PAGE)]
    if opcode == "RECV":
        a.receive(address, 16)
        b.send(there, 16)
        assert take(a.cq, 1)[0].status.name == "LOC_PROT_ERR"
        assert take(b.cq, 1)[0].status.name == "REM_OP_ERR"
    else:
        b.receive(there, 16)
        a.qp.post_send(
            WorkRequest(1, WROpcode[opcode], [a.sge(address, 16)], remote_addr=there, rkey=key.rkey)
        )
        assert take(a.cq, 1)[0].status.name == "LOC_PROT_ERR"
        assert not b.cq.poll()
    settle(lab)
    assert [other.read(others, PAGE), kernel.read(own, PAGE), a.process.read(mine, 2 * PAGE)] == before
    assert b.process.read(there, 48) == b"secret" * 8


@pytest.mark.requirement("MEM-08", "RKY-04", "RKY-05", "RKY-16")
@pytest.mark.parametrize("foreign", ["other process", "virtual", "behind", "read-only", "unmapped"])
def test_foreign_addresses_in_binds(foreign: str) -> None:
    """Such a bind is an invalid parameter; posted as a work request it fails in its turn; the key stays as it was."""
    lab = Lab()
    a, b = two_ends(lab)
    own, other = b.process.allocate(2 * PAGE), b.memory.create_process("other")
    other.allocate(PAGE)
    b.process.protect(own + PAGE, PAGE, READ)
    mine = a.process.allocate(PAGE)
    key = b.bind(own, 8)
    address = {
        "other process": other.allocate(PAGE),
        "virtual": b.memory.snapshot().processes[0].segments[0].upper << 28,
        "behind": own + 2 * PAGE - 1,
        "read-only": own + PAGE - 1,
        "unmapped": own + (50 << 28),
    }[foreign]
    with pytest.raises(InvalidAttributeError, match="invalid parameter"):
        b.qp.bind_rkey(key, address, 2)
    if foreign == "read-only":  # but it may be bound for reading
        assert b.qp.bind_rkey(key, address, 2, Access.REMOTE_READ) == key.rkey
        assert take(b.cq, 1)[0].ok
        assert tried(a, b, "write", mine, 1, address, key.rkey) == "REM_ACCESS_ERR"
        assert tried(a, b, "read", mine, 2, address, key.rkey) == "SUCCESS"
    else:
        assert a.attempt("write", mine, 8, own, key.rkey) == "SUCCESS"
    settle(lab)


@pytest.mark.requirement("MEM-10", "MEM-11", "VRB-18")
@pytest.mark.parametrize("options", TABLES, ids=str)
def test_a_process_with_a_hundred_queue_pairs(options: ProtectionOptions) -> None:
    lab = Lab()
    memory, ctx = host(lab, options)
    process = memory.create_process("many")
    pds = [ctx.alloc_pd(process) for _ in range(2)]
    cq = ctx.create_cq(16)
    assert memory.trace.count(MemoryVerb.FETCH_SEGMENT_TABLE) == 0  # not before a queue pair is opened
    qps = [pds[i % 2].create_qp(QPType.RC, cq, max_send_wr=i + 1) for i in range(100)]
    for verb in (MemoryVerb.FETCH_SEGMENT_TABLE, MemoryVerb.REGISTER_DRIVER):
        assert memory.trace.count(verb) == 1
    assert memory.trace.count(MemoryVerb.OPEN_QP) == 100
    states = [memory.saved_state(qp.qp_num) for qp in qps]
    assert len({state.common for state in states}) == 1
    assert [state.sizes[0] for state in states] == [qp.capabilities.max_send_wr for qp in qps]
    assert {(state.process, state.service) for state in states} == {("many", "RC")}
    process.allocate(PAGE)
    expected = 0 if options.segment_tables == "shared" else 1
    assert memory.trace.count(MemoryVerb.SEGMENT_TABLE_UPDATE) == expected
    assert all(len(memory.saved_state(qp.qp_num).segments) == 1 for qp in qps)
    for qp in qps[1:]:
        qp.close()
    assert memory.trace.count(MemoryVerb.UNREGISTER_DRIVER) == 0
    qps[0].close()
    assert memory.trace.count(MemoryVerb.UNREGISTER_DRIVER) == 1
    before = memory.trace.count(MemoryVerb.SEGMENT_TABLE_UPDATE)
    process.allocate(PAGE)  # nobody is told any more
    assert memory.trace.count(MemoryVerb.SEGMENT_TABLE_UPDATE) == before
    with pytest.raises(InvalidAttributeError, match="no queue pair"):
        memory.saved_state(qps[0].qp_num)


@pytest.mark.requirement("MEM-10")
def test_open_qp_fails_when_the_memory_manager_refuses() -> None:
    """No queue pair is left behind."""
    lab = Lab()
    memory, ctx = host(lab)
    barred = memory.create_process("barred", adapters=False)
    pd, cq = ctx.alloc_pd(barred), ctx.create_cq(16)
    with pytest.raises(PrivilegeError, match="may not use channel adapters"):
        pd.create_qp(QPType.RC, cq)
    assert ctx.queue_pairs == {}
    assert memory.snapshot().adapters[0].queue_pairs == ()
    with pytest.raises(InvalidAttributeError, match="no process of this adapter's host"):
        ctx.alloc_pd(HostMemory().create_process("elsewhere"))
    with pytest.raises(InvalidStateError, match="attach_memory"):
        lab.adapter().alloc_pd(barred)
    with pytest.raises(InvalidStateError, match="already"):
        ctx.attach_memory(memory)


@pytest.mark.requirement("VRB-03")
def test_the_saved_state_of_a_queue_pair_is_out_of_the_callers_reach() -> None:
    """Neither the handles nor the process lead to it: it is the driver's, and who runs the host gets copies."""
    lab = Lab()
    _, b = two_ends(lab)
    b.process.allocate(PAGE)
    region = b.pd.reg_range(b.process.allocate(PAGE), 10)
    key = b.bind(region.addr, 10)
    kept = (
        *(SavedState, SegmentTable, SegmentTableEntry, LocalProtection, VirtualMemoryManager),
        *(PageTable, Frames),
    )
    reached: dict[int, Any] = {}
    todo: list[Any] = [b.qp, b.pd, b.process, region, key, b.cq, b.sge(region.addr, 1)]
    while todo:
        found = todo.pop()
        if id(found) in reached or isinstance(found, (str, bytes, int, float, type, types.ModuleType)):
            continue
        reached[id(found)] = found
        assert not isinstance(found, kept), found
        if isinstance(found, dict):
            todo += found.values()
        elif isinstance(found, (list, tuple, set, frozenset)):
            todo += found
        elif type(found).__module__.startswith("verbena"):
            for name in dir(found):
                if not name.startswith("_"):
                    with contextlib.suppress(Exception):  # what does not exist on this kind of adapter
                        todo.append(getattr(found, name))
    assert len(reached) > 100
    for handle, name in ((b.qp, "pd"), (b.qp, "type"), (b.qp, "qp_num"), (b.qp, "capabilities")):
        with pytest.raises(AttributeError):
            setattr(handle, name, None)
    state = b.memory.saved_state(b.qp.qp_num)
    with pytest.raises(AttributeError):
        state.segments = ()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        state.segments[0].upper = 0  # type: ignore[misc]
    assert b.memory.saved_state(b.qp.qp_num) == state


@pytest.mark.requirement("MEM-12", "MEM-13", "MEM-14")
@pytest.mark.parametrize("options", TABLES, ids=str)
def test_segments_that_come_grow_and_go_under_open_queue_pairs(options: ProtectionOptions) -> None:
    lab = Lab()
    a, b = two_ends(lab, options)
    other = add_end(b.ctx, b.memory, b.memory.create_process("other"))
    others = other.process.allocate(PAGE)
    mine, at = a.process.allocate(4 * PAGE), b.process.allocate(PAGE)
    data = pattern(4 * PAGE)
    a.process.write(mine, data)
    whole = b.pd.reg_address_space(REMOTE | Access.LOCAL_WRITE)
    reach = [fresh(a, b) for _ in range(3)]
    assert all(x.attempt("write", mine, PAGE, at, whole.rkey) == "SUCCESS" for x, _ in reach)  # cached
    assert tried(a, b, "write", mine, PAGE + 1, at, whole.rkey) == "REM_ACCESS_ERR"
    b.process.resize(at, 3 * PAGE)
    for x, _ in reach:
        assert x.attempt("write", mine, 3 * PAGE, at, whole.rkey) == "SUCCESS"
    assert b.process.read(at, 3 * PAGE) == data[: 3 * PAGE]
    new = b.process.allocate(PAGE)
    assert reach[0][0].attempt("write", mine, PAGE, new, whole.rkey) == "SUCCESS"
    b.memory.set_segment(b.process, new, valid=False)
    assert tried(a, b, "read", mine, 1, new, whole.rkey) == "REM_ACCESS_ERR"
    b.memory.set_segment(b.process, new, valid=True, protection=READ)
    assert tried(a, b, "write", mine, 1, new, whole.rkey) == "REM_ACCESS_ERR"
    assert tried(a, b, "read", mine, 1, new, whole.rkey) == "SUCCESS"
    b.process.free(new)
    b.process.resize(at, PAGE)
    for x, y in reach:
        x.operate("read", mine, 1, at + PAGE, whole.rkey)
        assert take(x.cq, 1)[0].status.name == "REM_ACCESS_ERR"
        assert y.qp.state is QPState.ERR
    assert tried(a, b, "read", mine, 1, new, whole.rkey) == "REM_ACCESS_ERR"
    # The other process of the host was never disturbed.
    peer = another(a)
    connect(peer, other)
    other.receive(others, 10)
    peer.send(mine, 10)
    assert take(other.cq, 1)[0].ok
    updates = b.memory.trace.entries(MemoryVerb.SEGMENT_TABLE_UPDATE)
    assert (updates == ()) == (options.segment_tables == "shared")
    assert [u.process for u in updates] == ["other"] * bool(updates) + ["b"] * 7 * bool(updates)
    settle(lab)
