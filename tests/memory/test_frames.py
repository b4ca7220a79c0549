"""Physical memory and paging: frames are conserved, nothing is lost on its way out and in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena.errors import (
    BackingStoreError,
    BackingStoreFullError,
    InvalidAttributeError,
    PageFault,
)
from verbena.memory.backing import MemoryBackingStore
from verbena.memory.frames import Frames
from verbena.memory.manager import VirtualMemoryManager

PAGE = 4096


def test_frames_are_taken_given_back_and_zero() -> None:
    frames = Frames(2, PAGE)
    a, b = frames.take((1, 0)), frames.take((1, 1))
    assert a is not None
    assert b is not None
    assert {a, b} == {0, 1}
    assert frames.take((1, 2)) is None
    frames.view(a)[:3] = b"abc"
    frames.give_back(a)
    with pytest.raises(InvalidAttributeError, match="free already"):
        frames.give_back(a)
    again = frames.take((1, 2))
    assert again == a
    assert bytes(frames.view(a)) == bytes(PAGE)
    frames.pin(a)
    with pytest.raises(InvalidAttributeError, match="pinned"):
        frames.give_back(a)
    frames.unpin(a)
    with pytest.raises(InvalidAttributeError, match="not pinned"):
        frames.unpin(a)
    for wrong in (0, -1, "8", True):
        with pytest.raises(InvalidAttributeError):
            Frames(wrong, PAGE)  # type: ignore[arg-type]
    with pytest.raises(InvalidAttributeError):
        Frames(1, PAGE, "fifo")  # type: ignore[arg-type]


def test_the_clock_gives_a_second_chance() -> None:
    frames = Frames(3, PAGE, "clock")
    for page in range(3):
        frames.take((1, page))
    referenced = {0: True, 1: False, 2: True}

    def chance(frame: int) -> bool:
        was, referenced[frame] = referenced[frame], False
        return was

    frames.pin(1)
    assert list(frames.victims(chance)) == [0, 2]


def test_the_least_recently_used_goes_first() -> None:
    frames = Frames(3, PAGE, "lru")
    for page in range(3):
        frames.take((1, page))
    frames.use(0)
    frames.pin(1)
    assert list(frames.victims(lambda frame: True)) == [2, 0]


def test_a_backing_store_in_memory_keeps_pages() -> None:
    store = MemoryBackingStore(1)
    slot = store.allocate()
    store.write(slot, b"page")
    assert store.read(slot) == b"page"
    with pytest.raises(BackingStoreFullError):
        store.allocate()
    store.release(slot)
    for call in (lambda: store.read(slot), lambda: store.write(slot, b""), lambda: store.release(slot)):
        with pytest.raises(BackingStoreError):
            call()
    assert store.used == 0


class Failing(MemoryBackingStore):
    """A store that fails when it is told to."""

    reads = writes = True

    def read(self, slot: int) -> bytes:
        if not self.reads:
            raise BackingStoreError("the disk cannot be read")
        return super().read(slot)

    def write(self, slot: int, page: bytes | memoryview) -> None:
        if not self.writes:
            raise BackingStoreError("the disk cannot be written")
        super().write(slot, page)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("replacement", ["clock", "lru"])
def test_more_memory_than_frames(inverted: bool, replacement: str) -> None:
    """Twenty pages in three frames: every byte is still there, and the store is empty after it was all freed."""
    store = MemoryBackingStore()
    memory = VirtualMemoryManager(3, store=store, inverted=inverted, replacement=replacement)  # type: ignore[arg-type]
    process = memory.create_process("a")
    at = process.allocate(20 * PAGE)
    for page in range(20):
        process.write(at + page * PAGE + 5, bytes([page]) * 7)
    for page in range(20):
        assert process.read(at + page * PAGE, 16) == bytes(5) + bytes([page]) * 7 + bytes(4)
    seen = memory.snapshot()
    assert seen.free_frames == 0
    assert seen.slots >= 17
    assert sum(page.valid for page in seen.pages) == 3
    process.free(at)
    seen = memory.snapshot()
    assert (seen.free_frames, seen.slots, seen.pages) == (3, 0, ())


def test_a_page_that_was_not_written_again_is_not_stored_again() -> None:
    writes = []

    class Counting(MemoryBackingStore):
        def write(self, slot: int, page: bytes | memoryview) -> None:
            writes.append(slot)
            super().write(slot, page)

    memory = VirtualMemoryManager(2, store=Counting())
    process = memory.create_process("a")
    at = process.allocate(PAGE)
    assert process.read(at, 1) == b"\0"
    memory.page_out(process, at)
    assert writes == []  # it reads as zeros, in a slot or not
    process.write(at, b"x")
    memory.page_out(process, at)
    assert process.read(at, 1) == b"x"
    memory.page_out(process, at)
    assert len(writes) == 1
    assert process.read(at, 1) == b"x"


def test_a_store_that_fails_loses_nothing() -> None:
    store = Failing()
    memory = VirtualMemoryManager(1, store=store)
    process = memory.create_process("a")
    at = process.allocate(2 * PAGE)
    process.write(at, b"first")
    store.writes = False
    with pytest.raises(PageFault, match="cannot be written"):
        process.write(at + PAGE, b"second")
    assert process.read(at, 5) == b"first"
    assert store.used == 0
    store.writes = True
    process.write(at + PAGE, b"second")
    store.reads = False
    with pytest.raises(PageFault, match="cannot be read"):
        process.read(at, 5)
    store.reads = True
    assert process.read(at, 5) == b"first"
    assert process.read(at + PAGE, 6) == b"second"
    assert memory.snapshot().free_frames == 0


def test_a_full_store_and_pinned_frames_say_so() -> None:
    memory = VirtualMemoryManager(2, store=MemoryBackingStore(0))
    process = memory.create_process("a")
    at = process.allocate(4 * PAGE)
    process.write(at, b"x")
    process.write(at + PAGE, b"y")
    with pytest.raises(PageFault, match="backing store are in use"):
        process.write(at + 2 * PAGE, b"z")
    process.pin(at, 2 * PAGE)
    with pytest.raises(PageFault, match="every frame is pinned"):
        process.read(at + 2 * PAGE, 1)
    with pytest.raises(InvalidAttributeError, match="pinned"):
        memory.page_out(process, at)
    with pytest.raises(PageFault):
        process.pin(at, 3 * PAGE)
    assert [page.pins for page in memory.snapshot().pages if page.valid] == [1, 1]
    process.unpin(at, 2 * PAGE)
    with pytest.raises(InvalidAttributeError, match="not pinned"):
        process.unpin(at, 1)
    assert process.read(at, 1) + process.read(at + PAGE, 1) == b"xy"


@given(
    st.lists(st.tuples(st.integers(0, 11), st.booleans(), st.integers(0, 255)), max_size=80),
    st.integers(1, 5),
)
def test_any_order_of_loads_and_stores(todo: list[tuple[int, bool, int]], frames: int) -> None:
    memory = VirtualMemoryManager(frames)
    process = memory.create_process("a")
    at = process.allocate(12 * PAGE)
    model = bytearray(12)
    for page, write, value in todo:
        if write:
            process.write(at + page * PAGE, bytes([value]))
            model[page] = value
        assert process.read(at + page * PAGE, 1)[0] == model[page]
        seen = memory.snapshot()
        assert seen.free_frames + sum(p.valid for p in seen.pages) == frames
    assert bytes(process.read(at + page * PAGE, 1)[0] for page in range(12)) == bytes(model)
