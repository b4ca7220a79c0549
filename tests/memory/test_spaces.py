"""Address spaces: pages in and out under operations of every kind, refused or waited for (document 003:740-900)."""

from __future__ import annotations

import pytest

from lab import Lab, pattern, sending, statuses, take
from verbena import (
    AsyncEventType,
    InvalidAttributeError,
    InvalidStateError,
    RecvRequest,
    WorkRequest,
    WROpcode,
)
from verbena.adapter.address_spaces import PageFault
from verbena.runtime.pairs import Side
from verbena.transport.work import ScatterGatherEntry

PAGE = 4096
BASE = 0x7000_0000_0000


class Process:
    """A process of a host: a space of some pages, each in a frame of its own, and a domain that is tied to it."""

    def __init__(
        self, side: Side, pages: int = 8, on_demand: bool = False, page_bits: int = 12, tie: bool = True
    ) -> None:
        self.side, self.size = side, 1 << page_bits
        self.memory = side.ctx.adapter.memory
        self.space = self.memory.make_space(page_bits, on_demand=on_demand)
        self.first = BASE >> page_bits
        self.frames = {self.first + i: bytearray(self.size) for i in range(pages)}
        self.memory.add_range(self.space, self.first, pages)
        for page, frame in self.frames.items():
            self.memory.set_page(self.space, page, frame)
        self.virtual = bytearray(2 * PAGE)
        if tie:
            self.memory.tie(side.pd.number, self.space)

    def read(self, offset: int, n: int) -> bytes:
        whole = b"".join(bytes(self.frames[p]) for p in sorted(self.frames))
        return whole[offset : offset + n]

    def sge(self, offset: int, n: int) -> ScatterGatherEntry:
        return ScatterGatherEntry(BASE + offset, n, 0)


def test_work_requests_name_addresses_of_their_domains_space() -> None:
    lab = Lab()
    a, b = lab.pair()
    mine, theirs = Process(a), Process(b)
    data = pattern(10_000)
    for i, page in enumerate(sorted(mine.frames)):
        mine.frames[page][:] = pattern(8 * PAGE)[i * PAGE : (i + 1) * PAGE]
    b.qp.post_recv(RecvRequest(1, [theirs.sge(100, 5000), theirs.sge(9000, 6000)]))
    a.qp.post_send(WorkRequest(2, WROpcode.SEND, [mine.sge(3, 10_000)]))
    assert take(a.cq, 1)[0].ok
    assert take(b.cq, 1)[0].byte_len == 10_000
    data = pattern(8 * PAGE)[3:10_003]
    assert theirs.read(100, 5000) + theirs.read(9000, 5000) == data
    assert not any(theirs.read(0, 100))
    assert not any(theirs.read(5100, 3900))
    lab.check_laws()


@pytest.mark.parametrize("on_demand", [False, True])
def test_an_absent_page_of_a_receive_buffer(on_demand: bool) -> None:
    lab = Lab()
    a, b = lab.pair()
    process = Process(b, on_demand=on_demand)
    gone = process.first + 1
    process.memory.clear_page(process.space, gone)
    faults: list[PageFault] = []

    def bring_in(fault: PageFault) -> None:
        faults.append(fault)
        process.memory.set_page(process.space, fault.page, process.frames[fault.page])

    process.memory.on_page_fault = bring_in
    a.mr.buf[:9000] = pattern(9000)
    b.qp.post_recv(RecvRequest(1, [process.sge(0, 9000)]))
    a.qp.post_send(sending(a, 9000, 2))
    (entry,) = take(a.cq, 1)
    (received,) = take(b.cq, 1)
    if on_demand:
        assert entry.ok
        assert received.ok
        assert process.read(0, 9000) == pattern(9000)
        assert [(f.page, f.write) for f in faults] == [(gone, True)]
        assert b.ctx.counters()["drop.page_awaited"] >= 1
        assert b.ctx.get_async_event(0) is None
    else:
        assert (entry.status.name, received.status.name) == ("REM_OP_ERR", "LOC_PROT_ERR")
        assert not any(process.read(PAGE, PAGE))
        event = b.ctx.get_async_event(0)
        assert event
        assert (event.type, event.address, event.key) == (AsyncEventType.PAGE_FAULT, BASE + PAGE, 0)
    lab.settle()
    lab.check_laws()


def test_an_absent_page_of_a_send_buffer_holds_the_send_queue() -> None:
    lab = Lab()
    a, b = lab.pair()
    process = Process(a, on_demand=True)
    process.memory.clear_page(process.space, process.first)
    process.frames[process.first][:5] = b"hello"
    faults: list[PageFault] = []
    process.memory.on_page_fault = faults.append
    b.qp.post_recv(RecvRequest(1, [b.mr.sge(0, 100)]))
    a.qp.post_send(WorkRequest(2, WROpcode.SEND, [process.sge(0, 5)]))
    lab.settle()
    assert not a.cq.poll()
    assert [f.page for f in faults] == [process.first]
    assert process.memory.pending_faults() == 1
    process.memory.set_page(process.space, process.first, process.frames[process.first])
    assert take(a.cq, 1)[0].ok
    assert b.mr.buf[:5] == b"hello"
    assert process.memory.pending_faults() == 0


def test_a_page_that_cannot_come_fails_the_request() -> None:
    lab = Lab()
    a, _ = lab.pair()
    process = Process(a, on_demand=True)
    process.memory.clear_page(process.space, process.first)
    process.memory.on_page_fault = lambda fault: process.memory.fail_page(fault.space, fault.page)
    a.qp.post_send(WorkRequest(2, WROpcode.SEND, [process.sge(0, 5)]))
    assert statuses(take(a.cq, 1)) == [(2, "LOC_PROT_ERR")]
    assert a.ctx.counters()["memory.local_refused.page_absent"] == 1


def test_what_the_space_does_not_have() -> None:
    for offset in (-1, 8 * PAGE, 8 * PAGE - 4):
        lab = Lab()
        a, _ = lab.pair()
        process = Process(a)
        a.qp.post_send(WorkRequest(2, WROpcode.SEND, [process.sge(offset, 5)]))
        assert statuses(take(a.cq, 1)) == [(2, "LOC_PROT_ERR")]
        assert a.ctx.counters()["memory.local_refused.segment_invalid"] == 1


def test_making_and_freeing() -> None:
    lab = Lab()
    a, _ = lab.pair()
    process = Process(a)
    memory = process.memory
    with pytest.raises(InvalidStateError, match="still use"):
        memory.free_space(process.space)
    memory.untie(a.pd.number)
    memory.free_space(process.space)
    with pytest.raises(InvalidAttributeError, match="does not exist"):
        memory.set_page(process.space, 0, bytearray(PAGE))
    space = memory.make_space(21)
    with pytest.raises(InvalidAttributeError, match="frames of this space have 2097152"):
        memory.set_page(space, 0, bytearray(PAGE))
    with pytest.raises(InvalidAttributeError, match="writable"):
        memory.set_page(space, 0, bytes(1 << 21))
    for bits in (11, 41, "12"):
        with pytest.raises(InvalidAttributeError, match="page_bits"):
            memory.make_space(bits)
    memory.set_pages(space, 5, bytearray(3 << 21))
    assert memory.describe(space)["pages_in"] == 3
    memory.remove_range(space, 6, 1)
    assert [memory.page(space, n) for n in (5, 6, 7)] == [(True, True, True), None, (True, True, True)]
    with pytest.raises(InvalidAttributeError, match="pages 0 to"):
        memory.set_page(space, 1 << 43, bytearray(1 << 21))
