"""The virtual memory manager: processes, segments, pages, sharing, and what a user process may not do."""

from __future__ import annotations

import pytest

from verbena.errors import (
    InvalidAttributeError,
    PageFault,
    PrivilegeError,
    ProtectionFault,
    ResourceError,
    SegmentFault,
)
from verbena.memory.addresses import AddressFormat, EffectiveAddress
from verbena.memory.manager import VirtualMemoryManager
from verbena.memory.process import Process
from verbena.memory.protection import Protection

PAGE = 4096
READ, BOTH, NONE = Protection.READ, Protection.READ_WRITE, Protection.NONE
SMALL = AddressFormat(
    segment_bits=6, upper_bits=10, page_number_bits=2, offset_bits=12
)  # 4 pages in a segment


@pytest.fixture
def memory() -> VirtualMemoryManager:
    return VirtualMemoryManager(64)


@pytest.mark.requirement("MEM-01", "MEM-06")
def test_a_process_works_with_effective_addresses(memory: VirtualMemoryManager) -> None:
    """The same effective address in two processes is two places, with two virtual addresses."""
    a, b = memory.create_process("a"), memory.create_process("b")
    at = a.allocate(10_000)
    assert b.allocate(10_000) == at
    a.write(at + 4090, b"of process a")
    b.write(at + 4090, b"of process b")
    assert a.read(at + 4090, 12) == b"of process a"
    assert b.read(at + 4090, 12) == b"of process b"
    tables = {p.name: p.segments for p in memory.snapshot().processes}
    assert tables["a"][0].segment == tables["b"][0].segment
    assert tables["a"][0].upper != tables["b"][0].upper


@pytest.mark.requirement("MEM-03", "MEM-06")
def test_addresses_that_the_process_was_not_given(memory: VirtualMemoryManager) -> None:
    a, b = memory.create_process("a"), memory.create_process("b")
    at = a.allocate(PAGE)
    b.allocate(PAGE)
    others = b.allocate(PAGE)
    b.write(others, b"secret")
    form = memory.form
    forged = form.encode(EffectiveAddress(form.effective(others).segment, 0))
    for address in (forged, at + PAGE, 0, form.encode(EffectiveAddress((1 << form.segment_bits) - 1, 0))):
        with pytest.raises(SegmentFault):
            a.read(address, 1)
        with pytest.raises(SegmentFault):
            a.write(address, b"x")
    with pytest.raises(SegmentFault):
        a.write(at + PAGE - 1, b"xy")
    assert a.read(at + PAGE - 1, 1) == b"\0"  # not even the byte that would have been allowed
    assert b.read(others, 6) == b"secret"
    for address in (-1, 1 << form.effective_bits, "0"):
        with pytest.raises(InvalidAttributeError):
            a.read(address, 1)  # type: ignore[arg-type]


@pytest.mark.requirement("MEM-06")
def test_nothing_that_a_process_holds_edits_a_table(memory: VirtualMemoryManager) -> None:
    """What a process object shows is its name, its kind and system calls; what reports show is frozen."""
    a, other = memory.create_process("a"), VirtualMemoryManager()
    a.allocate(PAGE)
    public = {name for name in dir(a) if not name.startswith("_")}
    assert public == {
        *("name", "kernel", "allocate", "resize", "free", "protect", "pin", "unpin", "read", "write"),
        *("virtual_address", "physical_address"),
    }
    for name in ("kernel", "name", "_calls", "more"):
        with pytest.raises(AttributeError):
            setattr(a, name, True)
    with pytest.raises(AttributeError):
        del a.kernel
    (entry,) = memory.snapshot().processes[0].segments
    with pytest.raises(AttributeError):
        entry.upper = 0  # type: ignore[misc]
    forged = Process(memory, "a", True)  # a process object that the host did not make
    for stranger in (forged, other.create_process("a"), None):
        with pytest.raises(InvalidAttributeError, match="no process of this host"):
            memory.allocate(stranger, PAGE)  # type: ignore[arg-type]


@pytest.mark.requirement("MEM-04", "MEM-16")
def test_virtual_and_physical_addresses_are_for_kernel_processes(memory: VirtualMemoryManager) -> None:
    user, kernel = memory.create_process("user"), memory.create_process("driver", kernel=True)
    at, own = user.allocate(PAGE), kernel.allocate(2 * PAGE)
    with pytest.raises(PrivilegeError, match="user process"):
        user.virtual_address(at)
    virtual = kernel.virtual_address(own + PAGE + 100)
    place = memory.form.virtual(virtual)
    assert (place.page, place.offset) == (1, 100)  # they stay as they were
    with pytest.raises(SegmentFault):
        user.read(virtual, 1)
    with pytest.raises(PageFault):
        kernel.physical_address(virtual)
    kernel.write(own + PAGE + 100, b"data")
    with pytest.raises(InvalidAttributeError, match="pin the page"):
        kernel.physical_address(virtual)
    kernel.pin(own + PAGE, PAGE)
    physical = kernel.physical_address(virtual)
    frame, offset = divmod(physical, PAGE)
    assert bytes(memory.frame_view(frame)[offset : offset + 4]) == b"data"
    with pytest.raises(PrivilegeError):
        user.physical_address(virtual)
    kernel.protect(own + PAGE, PAGE, READ)
    with pytest.raises(ProtectionFault):
        kernel.physical_address(virtual, write=True)


@pytest.mark.requirement("MEM-05")
def test_page_protection(memory: VirtualMemoryManager) -> None:
    a = memory.create_process("a")
    at = a.allocate(3 * PAGE)
    a.write(at, b"0" * (3 * PAGE))
    a.protect(at + PAGE, PAGE, READ)
    with pytest.raises(ProtectionFault, match="written"):
        a.write(at + PAGE, b"x")
    with pytest.raises(ProtectionFault):
        a.write(at, b"x" * (2 * PAGE))
    assert a.read(at, 3 * PAGE) == b"0" * (3 * PAGE)
    a.protect(at + PAGE, PAGE, NONE)
    with pytest.raises(ProtectionFault, match="read"):
        a.read(at + PAGE, 1)
    memory.page_out(a, at, 3 * PAGE)  # the protection outlives the frame
    with pytest.raises(ProtectionFault):
        a.read(at + PAGE, 1)
    a.protect(at + PAGE, PAGE, BOTH)
    a.write(at + PAGE, b"x")
    for address, length, protection in ((at + 1, 1, READ), (at, 0, READ), (at, 1, 2)):
        with pytest.raises(InvalidAttributeError):
            a.protect(address, length, protection)  # type: ignore[arg-type]
    with pytest.raises(SegmentFault):
        a.protect(at, 4 * PAGE, READ)
    a.write(at, b"x")  # nothing was protected


@pytest.mark.requirement("MEM-03")
def test_a_segment_that_is_not_valid(memory: VirtualMemoryManager) -> None:
    a = memory.create_process("a")
    at = a.allocate(PAGE)
    a.write(at, b"data")
    memory.set_segment(a, at, valid=False)
    for call in (lambda: a.read(at, 4), lambda: a.write(at, b"x"), lambda: memory.page_in(a, at)):
        with pytest.raises(SegmentFault, match="valid"):
            call()
    memory.set_segment(a, at, valid=True, protection=READ)
    assert a.read(at, 4) == b"data"
    with pytest.raises(ProtectionFault):
        a.write(at, b"x")


@pytest.mark.requirement("MEM-07")
def test_shared_memory(memory: VirtualMemoryManager) -> None:
    """A writes by its address, B reads by its own; what B does with its mapping leaves A's alone."""
    a, b, c = (memory.create_process(name) for name in "abc")
    b.allocate(PAGE)
    at = a.allocate(2 * PAGE)
    there = memory.share(at, a, b)
    read_only = memory.share(at, a, c, READ)
    assert there != at
    a.write(at + PAGE - 2, b"from a")
    assert b.read(there + PAGE - 2, 6) == b"from a"
    b.write(there, b"from b")
    memory.page_out(b, there, 2 * PAGE)
    assert a.read(at, 6) == c.read(read_only, 6) == b"from b"
    with pytest.raises(ProtectionFault):
        c.write(read_only, b"x")
    with pytest.raises(InvalidAttributeError, match="share with less"):
        memory.share(read_only, c, b, BOTH)
    for call in (lambda: b.protect(there, PAGE, READ), lambda: b.resize(there, PAGE)):
        with pytest.raises(InvalidAttributeError, match="only the process that allocated it"):
            call()
    b.free(there)
    with pytest.raises(SegmentFault):
        b.read(there, 1)
    assert a.read(at, 6) == b"from b"
    a.free(at)
    assert c.read(read_only, 6) == b"from b"
    memory.end_process(c)
    assert memory.snapshot().free_frames == 64
    assert [p.name for p in memory.processes] == ["a", "b"]
    with pytest.raises(InvalidAttributeError):
        c.allocate(1)


def test_memory_grows_and_shrinks_over_segments() -> None:
    memory = VirtualMemoryManager(64, form=SMALL)
    a, b = memory.create_process("a"), memory.create_process("b")
    at = a.allocate(3 * PAGE)
    a.write(at, b"1" * (3 * PAGE))
    there = memory.share(at, a, b)
    a.resize(at, 11 * PAGE)  # three segments
    assert [e.length // PAGE for e in memory.snapshot().processes[0].segments] == [4, 4, 3]
    a.write(at + 9 * PAGE, b"far")
    assert b.read(there + 9 * PAGE, 3) == b"far"
    assert a.read(at, 4 * PAGE) == b"1" * (3 * PAGE) + bytes(PAGE)
    a.resize(at, 2 * PAGE)
    assert [e.length // PAGE for e in memory.snapshot().processes[1].segments] == [2]
    with pytest.raises(SegmentFault):
        b.read(there + 9 * PAGE, 3)
    a.resize(at, 11 * PAGE)
    assert a.read(at + 2 * PAGE, 9 * PAGE) == bytes(9 * PAGE)  # what was cut off is lost
    next_one = b.allocate(PAGE)
    with pytest.raises(ResourceError, match="taken in b"):
        a.resize(at, 13 * PAGE)
    b.free(next_one)
    a.resize(at, 13 * PAGE)
    with pytest.raises(InvalidAttributeError, match="begins at"):
        a.resize(at + PAGE, PAGE)
    for length in (0, -1, 1.5, True, 1 << 60):
        with pytest.raises(InvalidAttributeError):
            a.resize(at, length)  # type: ignore[arg-type]


def test_address_spaces_end() -> None:
    memory = VirtualMemoryManager(4, form=AddressFormat(2, 3, 2, 12))
    a, b = memory.create_process("a"), memory.create_process("b")
    first = [a.allocate(PAGE) for _ in range(3)]  # ids 1 to 3; 0 is left alone, so that address 0 is nobody's
    with pytest.raises(ResourceError, match="effective segments"):
        a.allocate(PAGE)
    b.allocate(PAGE)
    with pytest.raises(ResourceError, match="virtual address space"):
        b.allocate(PAGE)
    a.free(first[1])
    assert a.allocate(PAGE) == first[1]
    with pytest.raises(InvalidAttributeError, match="process a already"):
        memory.create_process("a")
    for name in ("", 5):
        with pytest.raises(InvalidAttributeError):
            memory.create_process(name)  # type: ignore[arg-type]
