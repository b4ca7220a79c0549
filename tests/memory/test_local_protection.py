"""The driver of local protection by itself: what the adapter's address spaces hold, against a plain model."""

from __future__ import annotations

import ctypes
import itertools
from contextlib import nullcontext
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from memory.plain_spaces import PlainSpaces, Refused
from verbena.adapter.local_protection import LocalProtection
from verbena.adapter.protection_options import AddressKind, ProtectionOptions
from verbena.errors import (
    InvalidAttributeError,
    PrivilegeError,
    ProtectionFault,
    ResourceError,
    SegmentFault,
)
from verbena.memory.addresses import AddressFormat
from verbena.memory.manager import VirtualMemoryManager
from verbena.memory.process import Process
from verbena.memory.protection import Protection
from verbena.memory.trace import MemoryVerb

PAGE = 4096
SMALL = AddressFormat(segment_bits=8, upper_bits=12, page_number_bits=2, offset_bits=12)
READ, BOTH, NONE = Protection.READ, Protection.READ_WRITE, Protection.NONE
OPTIONS = [
    ProtectionOptions(segments, pages, faults, inverted)
    for segments, pages, faults, inverted in itertools.product(
        ("copied", "shared"), ("private", "shared"), ("swap-in", "error"), (False, True)
    )
    if not (inverted and pages == "shared")
]


class Clock:
    def now(self) -> int:
        return 0

    def call_at(self, t: int, fn: Any) -> Any:
        """Nothing takes time here."""
        fn()


class Adapter:
    """An adapter's driver over plain address spaces; reads and writes as the adapter would for a process."""

    def __init__(
        self, memory: VirtualMemoryManager, options: ProtectionOptions, name: str = "adapter"
    ) -> None:
        self.spaces = PlainSpaces()
        self.driver = LocalProtection(memory, self.spaces, Clock(), options, name=name, lock=nullcontext())
        self.spaces.fault = self.driver.fault
        self.opened: dict[Process, dict[AddressKind, int]] = {}
        self.numbers: dict[Process, list[int]] = {}
        self.next = 1

    def open(self, process: Process, count: int = 1) -> None:
        if process not in self.opened:
            self.opened[process] = self.driver.open_domain(process)
        for _ in range(count):
            self.driver.open_queue_pair(process, self.next, "RC", (128, 128))
            self.numbers.setdefault(process, []).append(self.next)
            self.next += 1

    def close(self, process: Process) -> None:
        self.driver.close_queue_pair(process, self.numbers[process].pop())

    def read(self, process: Process, address: int, length: int, kind: Any = AddressKind.EFFECTIVE) -> bytes:
        return self.spaces.read(self.opened[process][kind], address, length)

    def write(self, process: Process, address: int, data: bytes, kind: Any = AddressKind.EFFECTIVE) -> None:
        self.spaces.write(self.opened[process][kind], address, data)


def titles(memory: VirtualMemoryManager) -> list[str]:
    return [entry.verb.title for entry in memory.trace.entries()]


@pytest.mark.requirement("MEM-10")
def test_opening_a_queue_pair_fetches_the_table_and_registers() -> None:
    memory = VirtualMemoryManager(8)
    a = memory.create_process("a")
    adapter = Adapter(memory, ProtectionOptions())
    adapter.open(a)
    assert titles(memory) == ["OpenQP", "FetchSegmentTable", "RegisterDriver"]
    steps = [entry.verb.step for entry in memory.trace.entries()]
    assert steps == [602, 604, 604]


@pytest.mark.requirement("MEM-10")
def test_what_the_memory_manager_refuses() -> None:
    """It refuses processes of other hosts, those that ended, and those that may not use adapters."""
    memory = VirtualMemoryManager(8)
    adapter = Adapter(memory, ProtectionOptions())
    with pytest.raises(InvalidAttributeError, match="no process of this adapter's host"):
        adapter.open(VirtualMemoryManager().create_process("a"))
    barred = memory.create_process("barred", adapters=False)
    with pytest.raises(PrivilegeError, match="may not use"):
        adapter.open(barred)
    ended = memory.create_process("ended")
    adapter.opened[ended] = adapter.driver.open_domain(ended)
    memory.end_process(ended)
    with pytest.raises(InvalidAttributeError):
        adapter.open(ended)
    assert memory.trace.count(MemoryVerb.REGISTER_DRIVER) == 0
    assert memory.snapshot().adapters[0].queue_pairs == ()
    with pytest.raises(InvalidAttributeError):
        memory.saved_state(1)


@pytest.mark.requirement("MEM-11")
@pytest.mark.parametrize("tables", ["copied", "shared"])
def test_a_hundred_queue_pairs_share_one_table(tables: Any) -> None:
    memory = VirtualMemoryManager(8)
    a = memory.create_process("a")
    at = a.allocate(PAGE)
    adapter = Adapter(memory, ProtectionOptions(segment_tables=tables))
    adapter.open(a, 100)
    saved = memory.snapshot().adapters[0].queue_pairs
    assert len(saved) == 100
    assert len({state.common for state in saved}) == 1
    assert memory.trace.count(MemoryVerb.REGISTER_DRIVER) == 1
    assert memory.trace.count(MemoryVerb.FETCH_SEGMENT_TABLE) == 1
    before = memory.trace.count(MemoryVerb.SEGMENT_TABLE_UPDATE)
    a.resize(at, 2 * PAGE)
    assert memory.trace.count(MemoryVerb.SEGMENT_TABLE_UPDATE) - before == (tables == "copied")
    for number in (1, 50, 100):
        assert [entry.length for entry in memory.saved_state(number).segments] == [2 * PAGE]
        assert memory.saved_state(number).shared == (tables == "shared")
    for _ in range(100):
        adapter.close(a)
    assert memory.trace.count(MemoryVerb.UNREGISTER_DRIVER) == 1
    with pytest.raises(Refused):
        adapter.read(a, at, 1)


@pytest.mark.requirement("MEM-13", "MEM-14")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_changes_of_segments_are_followed_at_once(options: ProtectionOptions) -> None:
    memory = VirtualMemoryManager(16)
    a, b = memory.create_process("a"), memory.create_process("b")
    at, others = a.allocate(PAGE), b.allocate(PAGE)
    a.write(at, b"one")
    b.write(others, b"b")
    adapter = Adapter(memory, options)
    adapter.open(a, 3)
    adapter.open(b)
    assert adapter.read(a, at, 3) == b"one"  # and now it is cached
    with pytest.raises(Refused, match="segment"):
        adapter.read(a, at + PAGE, 1)
    a.resize(at, 2 * PAGE)
    a.write(at + PAGE, b"two")
    assert adapter.read(a, at + PAGE, 3) == b"two"
    second = a.allocate(PAGE, BOTH)
    a.write(second, b"new")
    assert adapter.read(a, second, 3) == b"new"
    memory.set_segment(a, second, protection=READ)
    assert adapter.read(a, second, 3) == b"new"
    with pytest.raises(Refused, match="protected"):
        adapter.write(a, second, b"x")
    memory.set_segment(a, second, protection=BOTH)
    adapter.write(a, second, b"NEW")
    memory.set_segment(a, second, valid=False)
    with pytest.raises(Refused, match="segment"):
        adapter.read(a, second, 1)
    memory.set_segment(a, second, valid=True)
    assert adapter.read(a, second, 3) == b"NEW"
    a.resize(at, PAGE)
    a.free(second)
    for gone in (at + PAGE, second):
        with pytest.raises(Refused, match="segment"):
            adapter.read(a, gone, 1)
    assert adapter.read(a, at, 3) == b"one"
    assert adapter.read(b, others, 1) == b"b"
    updates = memory.trace.entries(MemoryVerb.SEGMENT_TABLE_UPDATE, MemoryVerb.UPDATE_QP_STATE)
    if options.segment_tables == "shared":
        assert updates == ()
    else:
        assert {entry.process for entry in updates} == {"a"}
        assert [entry.verb.step for entry in updates] == [608, 610] * (len(updates) // 2)


@pytest.mark.requirement("MEM-09", "MEM-17")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pages_that_move_and_are_withdrawn(options: ProtectionOptions) -> None:
    memory = VirtualMemoryManager(4)
    a, other = memory.create_process("a"), memory.create_process("other")
    at, noise = a.allocate(2 * PAGE), other.allocate(4 * PAGE)
    adapter = Adapter(memory, options)
    adapter.open(a)
    a.write(at, b"first")
    adapter.write(a, at, b"FIRST")
    before = next(p.frame for p in memory.snapshot().pages if p.valid)
    memory.page_out(a, at)
    other.write(noise, b"somebody else's")
    assert a.read(at, 5) == b"FIRST"
    after = [p.frame for p in memory.snapshot().pages if p.valid and p.slot is not None]
    assert after != [before]
    assert adapter.read(a, at, 5) == b"FIRST"
    a.protect(at, PAGE, READ)
    with pytest.raises(Refused, match="protected"):
        adapter.write(a, at, b"x")
    a.protect(at, PAGE, NONE)
    with pytest.raises(Refused, match="protected"):
        adapter.read(a, at, 1)
    memory.page_out(a, at)
    a.protect(at, PAGE, BOTH)  # while it is out
    memory.page_in(a, at)
    adapter.write(a, at, b"again")
    memory.page_out(a, at)
    if options.page_faults == "error":
        with pytest.raises(Refused, match="absent"):
            adapter.read(a, at, 1)
        assert memory.snapshot().adapters[0].swap_ins == 0
    else:
        assert adapter.read(a, at, 5) == b"again"
        assert memory.snapshot().adapters[0].swap_ins == 1
    assert a.read(at, 5) == b"again"


@pytest.mark.requirement("MEM-18")
def test_two_adapters_have_two_page_tables_or_one() -> None:
    for how, count in (("private", 2), ("shared", 1)):
        memory = VirtualMemoryManager(8)
        a = memory.create_process("a")
        at = a.allocate(PAGE)
        a.write(at, b"data")
        adapters = [Adapter(memory, ProtectionOptions(page_tables=how), str(i)) for i in range(2)]  # type: ignore[arg-type]
        for adapter in adapters:
            adapter.open(a)
            assert adapter.read(a, at, 4) == b"data"
        seen = memory.snapshot()
        assert seen.adapter_page_tables == count
        assert [s.private for s in seen.adapters] == [how == "private"] * 2


@pytest.mark.requirement("MEM-21")
def test_an_inverted_private_table_follows_the_physical_memory() -> None:
    sizes = {}
    for inverted in (False, True):
        memory = VirtualMemoryManager(4)
        a = memory.create_process("a")
        at = a.allocate(100 * PAGE)
        adapter = Adapter(memory, ProtectionOptions(page_tables="private", inverted=inverted))
        adapter.open(a)
        for page in range(100):
            adapter.write(a, at + page * PAGE, bytes([page]))
        assert b"".join(adapter.read(a, at + page * PAGE, 1) for page in range(100)) == bytes(range(100))
        sizes[inverted] = memory.snapshot().adapters[0].table_size
    assert sizes == {False: 100, True: 4}
    with pytest.raises(InvalidAttributeError, match="inverted"):
        ProtectionOptions(page_tables="shared", inverted=True)
    with pytest.raises(InvalidAttributeError, match="one of"):
        ProtectionOptions(page_tables="both")  # type: ignore[arg-type]


@pytest.mark.requirement("MEM-04", "MEM-15", "MEM-16")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_kernel_processes_have_virtual_and_physical_addresses(options: ProtectionOptions) -> None:
    memory = VirtualMemoryManager(8)
    user, kernel = memory.create_process("user"), memory.create_process("driver", kernel=True)
    adapter = Adapter(memory, options)
    adapter.open(kernel)
    adapter.open(user)
    assert set(adapter.opened[user]) == {AddressKind.EFFECTIVE}
    for kind in (AddressKind.VIRTUAL, AddressKind.PHYSICAL):
        with pytest.raises(PrivilegeError, match="user process"):
            adapter.driver.space_for(user, kind)
    own = kernel.allocate(2 * PAGE)
    kernel.pin(own, PAGE)
    virtual = kernel.virtual_address(own)
    adapter.write(kernel, virtual + 5, b"by virtual", AddressKind.VIRTUAL)
    assert kernel.read(own + 5, 10) == b"by virtual"
    physical = kernel.physical_address(virtual, write=True)
    adapter.write(kernel, physical + 5, b"physically", AddressKind.PHYSICAL)
    kernel.unpin(own, PAGE)
    memory.page_out(kernel, own)
    assert kernel.read(own + 5, 10) == b"physically"
    unmapped = kernel.virtual_address(own + PAGE) + (1 << 40)
    with pytest.raises(Refused, match="absent"):
        adapter.read(kernel, unmapped, 1, AddressKind.VIRTUAL)


def test_what_a_kernel_address_may_not_be() -> None:
    memory = VirtualMemoryManager(8, form=AddressFormat(24, 52, 16, 12))
    kernel = memory.create_process("driver", kernel=True)
    adapter = Adapter(memory, ProtectionOptions())
    adapter.open(kernel)
    with pytest.raises(InvalidAttributeError, match="do not fit a work request"):
        adapter.driver.space_for(kernel, AddressKind.VIRTUAL)
    with pytest.raises(InvalidAttributeError, match="an adapter needs 4096"):
        Adapter(VirtualMemoryManager(8, form=AddressFormat(24, 36, 16, 11)), ProtectionOptions())


# --- the model --------------------------------------------------------------------------------------------------


@dataclass
class View:
    process: int
    address: int
    protection: Protection
    valid: bool = True


@dataclass
class Piece:
    """Memory as the model has it: one byte of each page, and who may do what."""

    owner: int | None
    usual: Protection
    pages: list[int]
    protections: list[Protection]
    views: list[View] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)


class World:
    """A host with two adapters and three processes (the last one of the kernel), and the plain model of it."""

    def __init__(self, options: ProtectionOptions, seed: int) -> None:
        self.random = Random(seed)
        self.options = options
        self.memory = VirtualMemoryManager(
            6, form=SMALL, inverted=seed % 2 == 1, replacement=("clock", "lru")[seed // 2 % 2]
        )
        self.processes = [self.memory.create_process(n, kernel=n == "k") for n in ("a", "b", "k")]
        self.adapters = [Adapter(self.memory, options, str(i)) for i in range(2)]
        for adapter in self.adapters:
            for process in self.processes:
                adapter.open(process, 2)
        self.pieces: list[Piece] = []

    def step(self) -> None:
        names = ["allocate", "resize", "free", "share", "segment", "protect", "page_out", "pin", "unpin"]
        name = self.random.choice(names + ["load", "adapter_read", "adapter_write", "store"] * 4)
        if name == "allocate" or not self.pieces:
            self.allocate()
        else:
            piece = self.random.choice(self.pieces)
            getattr(self, name)(piece, self.random.choice(piece.views))

    def allocate(self) -> None:
        if len(self.pieces) >= 8:
            return
        owner, count = self.random.randrange(3), self.random.randint(1, 9)
        usual = self.random.choice([BOTH, BOTH, READ])
        address = self.processes[owner].allocate(count * PAGE - self.random.randrange(PAGE), usual)
        self.pieces.append(Piece(owner, usual, [0] * count, [usual] * count, [View(owner, address, usual)]))

    def resize(self, piece: Piece, view: View) -> None:
        count = self.random.randint(1, 9)
        mine = piece.owner == view.process and view is piece.views[0]
        try:
            self.processes[view.process].resize(view.address, count * PAGE)
        except ResourceError:
            assert mine
            return
        except InvalidAttributeError:
            assert not mine
            return
        assert piece.owner == view.process
        more = count - len(piece.pages)
        piece.pages = piece.pages[:count] + [0] * more
        piece.protections = piece.protections[:count] + [piece.usual] * more
        piece.pinned = {page for page in piece.pinned if page < count}

    def free(self, piece: Piece, view: View) -> None:
        self.processes[view.process].free(view.address)
        piece.views.remove(view)
        if piece.owner == view.process:
            piece.owner = None
        if not piece.views:
            self.pieces.remove(piece)

    def share(self, piece: Piece, view: View) -> None:
        to = self.random.randrange(3)
        protection = self.random.choice([READ, BOTH])
        if len(piece.views) > 3 or to == piece.owner or protection & ~view.protection:
            return
        address = self.memory.share(
            view.address, self.processes[view.process], self.processes[to], protection
        )
        piece.views.append(View(to, address, protection))

    def segment(self, piece: Piece, view: View) -> None:
        view.valid = self.random.random() < 0.7
        view.protection = self.random.choice([BOTH, READ, view.protection])
        self.memory.set_segment(
            self.processes[view.process], view.address, valid=view.valid, protection=view.protection
        )

    def protect(self, piece: Piece, view: View) -> None:
        first = self.random.randrange(len(piece.pages))
        count = self.random.randint(1, len(piece.pages) - first)
        protection = self.random.choice([NONE, READ, BOTH, BOTH])
        try:
            self.processes[view.process].protect(view.address + first * PAGE, count * PAGE, protection)
        except SegmentFault:
            assert not view.valid
        except InvalidAttributeError:
            assert piece.owner != view.process
        else:
            piece.protections[first : first + count] = [protection] * count

    def page_out(self, piece: Piece, view: View) -> None:
        page = self.random.randrange(len(piece.pages))
        try:
            self.memory.page_out(self.processes[view.process], view.address + page * PAGE)
        except SegmentFault:
            assert not view.valid
        except InvalidAttributeError:
            assert page in piece.pinned

    def pin(self, piece: Piece, view: View) -> None:
        page = self.random.randrange(len(piece.pages))
        if view.valid and page not in piece.pinned and sum(len(p.pinned) for p in self.pieces) < 3:
            self.processes[view.process].pin(view.address + page * PAGE, 1)
            piece.pinned.add(page)
            self.pins[id(piece), page] = view

    def unpin(self, piece: Piece, view: View) -> None:
        for page in list(piece.pinned):
            by = self.pins[id(piece), page]
            if by in piece.views and by.valid:
                self.processes[by.process].unpin(by.address + page * PAGE, 1)
                piece.pinned.discard(page)

    @property
    def pins(self) -> dict[tuple[int, int], View]:
        return self.__dict__.setdefault("_pins", {})

    def allowed(self, piece: Piece, view: View, page: int, write: bool) -> bool:
        need = Protection.WRITE if write else READ
        return bool(view.valid and view.protection & need and piece.protections[page] & need)

    def load(self, piece: Piece, view: View) -> None:
        page = self.random.randrange(len(piece.pages))
        process, address = self.processes[view.process], view.address + page * PAGE
        if self.allowed(piece, view, page, False):
            assert process.read(address, 1)[0] == piece.pages[page]
        else:
            with pytest.raises((SegmentFault, ProtectionFault)):
                process.read(address, 1)

    def store(self, piece: Piece, view: View) -> None:
        page, value = self.random.randrange(len(piece.pages)), self.random.randrange(256)
        process, address = self.processes[view.process], view.address + page * PAGE
        if self.allowed(piece, view, page, True):
            process.write(address, bytes([value]))
            piece.pages[page] = value
        else:
            with pytest.raises((SegmentFault, ProtectionFault)):
                process.write(address, bytes([value]))

    def adapter_read(self, piece: Piece, view: View) -> None:
        self.through_adapter(piece, view, False)

    def adapter_write(self, piece: Piece, view: View) -> None:
        self.through_adapter(piece, view, True)

    def through_adapter(self, piece: Piece, view: View, write: bool) -> None:
        page, value = self.random.randrange(len(piece.pages)), self.random.randrange(256)
        adapter, process = self.random.choice(self.adapters), self.processes[view.process]
        address, kind = view.address + page * PAGE, AddressKind.EFFECTIVE
        allowed = self.allowed(piece, view, page, write)
        if process.kernel and view.valid and self.random.random() < 0.5:
            if not view.protection & READ:
                return
            address, kind = process.virtual_address(address), AddressKind.VIRTUAL
            allowed = bool(piece.protections[page] & (Protection.WRITE if write else READ))
        resident = view.valid and self.memory.resident(process, view.address + page * PAGE)
        if not allowed or (self.options.page_faults == "error" and not resident):
            call = adapter.write if write else adapter.read
            with pytest.raises(Refused):
                call(process, address, bytes([value]) if write else 1, kind)  # type: ignore[operator]
        elif write:
            adapter.write(process, address, bytes([value]), kind)
            piece.pages[page] = value
        else:
            assert adapter.read(process, address, 1, kind)[0] == piece.pages[page]

    def check(self) -> None:
        """No translation is stale; every frame is free or holds one page; copies of tables are right."""
        seen = self.memory.snapshot()
        valid = [page for page in seen.pages if page.valid]
        assert seen.free_frames + len(valid) == seen.frames
        assert len({page.frame for page in valid}) == len(valid)
        frames = {(p.upper, p.page): p for p in valid}
        tables = {p.name: p.segments for p in seen.processes}
        for adapter in seen.adapters:
            for state in adapter.queue_pairs:
                assert state.segments == tables[state.process]
        for each in self.adapters:
            for process, spaces in each.opened.items():
                for kind in (AddressKind.EFFECTIVE, AddressKind.VIRTUAL):
                    if kind in spaces:
                        self.check_space(each.spaces.spaces[spaces[kind]], kind, tables[process.name], frames)

    def check_space(self, space: Any, kind: AddressKind, segments: Any, frames: Any) -> None:
        of = {entry.segment: entry for entry in segments if entry.valid}
        for number, page in space.pages.items():
            if page.view is None:
                continue
            high, low = divmod(number, SMALL.segment_pages)
            if kind is AddressKind.EFFECTIVE:
                assert high in of, "a segment that is gone is still cached"
                assert low * PAGE < of[high].length
                assert of[high].protection & Protection.WRITE or not page.writable
                high = of[high].upper
            known = frames[high, low]
            assert place_of(page.view) == place_of(self.memory.frame_view(known.frame)), "stale translation"
            assert not page.writable or known.protection == "read-write"
            assert not page.writable or known.dirty
            assert not page.readable or known.protection != "none"


def place_of(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@pytest.mark.requirement("MEM-06", "MEM-07", "MEM-08", "MEM-13", "MEM-17")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_random_histories_against_a_plain_model(options: ProtectionOptions, seed: int) -> None:
    for number in range(2):
        world = World(options, seed * 2 + number)
        for _ in range(250):
            world.step()
            world.check()
        for piece in list(world.pieces):
            for view in list(piece.views):
                world.free(piece, view)
        world.check()
        seen = world.memory.snapshot()
        assert (seen.free_frames, seen.slots, seen.pages) == (6, 0, ())
