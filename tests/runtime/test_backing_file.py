"""Pages in a real file, and what becomes of a host's memory when the file fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from verbena.errors import (
    BackingStoreError,
    BackingStoreFullError,
    InvalidAttributeError,
    PageFault,
    SystemLimitError,
)
from verbena.runtime.backing_file import BackingFile
from verbena.runtime.host_memory import HostMemory

PAGE = 4096


def test_slots_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "swap"
    with BackingFile(path, PAGE, capacity=2) as store:
        a, b = store.allocate(), store.allocate()
        store.write(b, b"b" * PAGE)
        store.write(a, memoryview(b"a" * PAGE))
        assert path.read_bytes() == b"a" * PAGE + b"b" * PAGE
        assert (store.read(a)[:1], store.read(b)[:1], store.used) == (b"a", b"b", 2)
        with pytest.raises(BackingStoreFullError):
            store.allocate()
        store.release(a)
        for call in (lambda: store.read(a), lambda: store.release(a), lambda: store.write(b, b"short")):
            with pytest.raises(BackingStoreError):
                call()
        assert store.allocate() == a
        os.truncate(path, 10)
        with pytest.raises(BackingStoreError, match="ends within"):
            store.read(b)
        with pytest.raises(SystemLimitError, match="cannot be made"):
            BackingFile(path)
    assert not path.exists()
    store.close()
    for wrong in ({"page_size": 0}, {"capacity": -1}):
        with pytest.raises(InvalidAttributeError):
            BackingFile(tmp_path / "other", **wrong)  # type: ignore[arg-type]
    with pytest.raises(SystemLimitError):
        BackingFile(tmp_path / "no" / "folder")


def test_a_disk_that_is_full_loses_nothing(tmp_path: Path) -> None:
    """/dev/full refuses every write, as a full disk does."""
    path = tmp_path / "swap"
    store = BackingFile(path, PAGE)
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, store._file)
    os.close(full)
    memory = HostMemory(1, store=store)
    process = memory.create_process("a")
    at = process.allocate(2 * PAGE)
    process.write(at, b"kept")
    with pytest.raises(PageFault, match="No space left"):
        process.write(at + PAGE, b"x")
    assert process.read(at, 4) == b"kept"
    assert store.used == 0
    store.close()


def test_a_hosts_memory_on_a_file(tmp_path: Path) -> None:
    path = tmp_path / "swap"
    with HostMemory(2, page_size=8192, backing_file=path, swap_pages=4) as memory:
        process = memory.create_process("a")
        at = process.allocate(7 * 8192)
        for page in range(5):
            process.write(at + page * 8192, bytes([page + 1]) * 8192)
        assert path.stat().st_size == 3 * 8192
        for page in range(5):
            assert process.read(at + page * 8192, 8192) == bytes([page + 1]) * 8192
        os.truncate(path, 0)
        lost = next(page for page in range(5) if not memory.resident(process, at + page * 8192))
        with pytest.raises(PageFault, match="ends within"):
            process.read(at + lost * 8192, 1)
        process.write(at + 5 * 8192, b"x")
        with pytest.raises(PageFault, match="cannot be brought in"):
            process.write(at + 6 * 8192, b"x")
    assert not path.exists()
    with pytest.raises(InvalidAttributeError):
        HostMemory(0, backing_file=path)
    assert not path.exists()
    for wrong in (
        {"page_size": 5000},
        {"page_size": 8},
        {"store": memory._pager.store, "backing_file": path},
    ):
        with pytest.raises(InvalidAttributeError):
            HostMemory(1, **wrong)
