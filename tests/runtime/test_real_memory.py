"""Hosts' memory in real time: several threads, real sockets, and memory that is a real buffer of the program."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

import pytest

from memory.host_lab import PAGE, REMOTE, End, add_end, connect
from scenario.fabrics import NET
from verbena import Access, InvalidAttributeError, WorkRequest, WROpcode, open_device
from verbena.adapter.protection_options import ProtectionOptions
from verbena.memory.frames import Frames
from verbena.runtime.host_memory import HostMemory

ROUNDS = 60


@pytest.mark.loopback
@pytest.mark.requirement("MEM-17", "MEM-19")
@pytest.mark.parametrize("pages", ["shared", "private"])
def test_pages_come_and_go_while_a_peer_writes_and_reads(pages: str, tmp_path: Path) -> None:
    """The adapters' threads use memory that this thread and another one put out and use at the same time."""
    options = ProtectionOptions(page_tables=pages)  # type: ignore[arg-type]
    with (
        HostMemory(6, backing_file=tmp_path / "pages") as there,
        HostMemory(64) as here,
        open_device(f"{NET}.31") as one,
        open_device(f"{NET}.32") as two,
    ):
        one.attach_memory(here)
        two.attach_memory(there, options)
        a = add_end(one, here, here.create_process("a"))
        b = add_end(two, there, there.create_process("b"))
        connect(a, b, min_rnr_timer=1)
        mine, at = a.process.allocate(8 * PAGE), b.process.allocate(8 * PAGE)
        key = b.pd.reg_range(at, 8 * PAGE, REMOTE | Access.LOCAL_WRITE, pinned=False)
        done = threading.Event()

        def pressure() -> None:
            other = there.create_process("other")
            own, count = other.allocate(4 * PAGE), 0
            while not done.is_set():
                count += 1
                other.write(own, bytes([count % 256]) * (4 * PAGE))
                assert other.read(own, 4 * PAGE) == bytes([count % 256]) * (4 * PAGE)
                there.page_out(b.process, at, 8 * PAGE)
                done.wait(0.002)

        thread = threading.Thread(target=pressure)
        thread.start()
        try:
            for number in range(ROUNDS):
                exchange(a, b, mine, at, key.rkey, number)
        finally:
            done.set()
            thread.join()
        assert there.snapshot().adapters[0].swap_ins > 0
        assert two.counters()["memory.kernel_calls"] < 20


def exchange(a: End, b: End, mine: int, at: int, rkey: int, number: int) -> None:
    """Write over the borders of pages, and read it back elsewhere."""
    data = bytes((number * 7 + i) % 256 for i in range(2 * PAGE + 100))
    offset = number * 331 % (5 * PAGE)
    a.process.write(mine, data)
    for opcode, local in ((WROpcode.RDMA_WRITE, mine), (WROpcode.RDMA_READ, mine + 4 * PAGE)):
        a.qp.post_send(WorkRequest(1, opcode, [a.sge(local, len(data))], remote_addr=at + offset, rkey=rkey))
        (entry,) = a.cq.wait(timeout=20)
        assert entry.ok, entry
    assert a.process.read(mine + 4 * PAGE, len(data)) == data
    assert b.process.read(at + offset, len(data)) == data


@pytest.mark.loopback
def test_physical_memory_that_is_a_real_buffer(tmp_path: Path) -> None:
    """A mapped file is the physical memory: what a peer writes is in the file."""
    path = tmp_path / "memory"
    path.write_bytes(bytes(4 * PAGE))
    with (
        path.open("r+b") as file,
        open_device(f"{NET}.33") as one,
        open_device(f"{NET}.34") as two,
    ):
        buffer = mmap.mmap(file.fileno(), 0)
        here, there = HostMemory(16), HostMemory(4, buffer=buffer)
        one.attach_memory(here)
        two.attach_memory(there)
        a = add_end(one, here, here.create_process("a"))
        b = add_end(two, there, there.create_process("b"))
        connect(a, b)
        mine, at = a.process.allocate(PAGE), b.process.allocate(PAGE)
        a.process.write(mine, b"to the very file")
        b.process.pin(at, PAGE)
        b.qp.bind_rkey(key := b.pd.allocate_rkey()[0], at, PAGE)
        assert b.cq.wait(timeout=20)[0].ok
        a.operate("write", mine, 16, at, key.rkey)
        assert a.cq.wait(timeout=20)[0].ok
        (page,) = [p for p in there.snapshot().pages if p.valid]
        assert page.frame is not None
        where = page.frame * PAGE
        assert buffer[where : where + 16] == b"to the very file"
        buffer.flush()
        assert path.read_bytes()[where : where + 16] == b"to the very file"


def test_buffers_that_are_no_physical_memory() -> None:
    with pytest.raises(InvalidAttributeError, match="have 8192"):
        Frames(2, PAGE, buffer=bytearray(PAGE))
    with pytest.raises(InvalidAttributeError, match="read-only"):
        Frames(1, PAGE, buffer=bytes(PAGE))
    with pytest.raises(InvalidAttributeError, match="no buffer of bytes"):
        Frames(1, PAGE, buffer=7)
