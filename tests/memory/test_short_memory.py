"""Hosts with hardly any memory: operations need more pages than there are frames, and all come through."""

from __future__ import annotations

import asyncio

import pytest

from lab import Lab, pattern
from memory.host_lab import PAGE, REMOTE, End, another, connect, two_ends
from verbena import Access
from verbena.memory.trace import MemoryVerb

PAGES = 12


def several(lab: Lab, frames: int, count: int) -> list[tuple[End, End]]:
    a, b = two_ends(lab, frames=frames, page_in_ns=2_000)
    ends = [(a, b)]
    for _ in range(count - 1):
        ends.append((another(a), another(b)))
        connect(*ends[-1])
    return ends


@pytest.mark.requirement("MEM-19", "RKY-13")
@pytest.mark.parametrize("frames,pairs,pages", [(2, 1, 12), (2, 4, 3), (3, 3, 12), (4, 4, 3), (6, 4, 12)])
def test_operations_that_need_one_anothers_frames(frames: int, pairs: int, pages: int) -> None:
    """Peers that wait for pages do not put one another's out for ever."""
    lab = Lab(record=False)
    ends = several(lab, frames, pairs)
    a, b = ends[0]
    length = pages * PAGE - 10
    mine, at = a.process.allocate(pairs * PAGES * PAGE), b.process.allocate(pairs * (PAGES + 1) * PAGE)
    data = pattern(pairs * PAGES * PAGE)
    a.process.write(mine, data)
    key = b.pd.reg_range(at, pairs * (PAGES + 1) * PAGE, REMOTE | Access.LOCAL_WRITE, pinned=False)
    places = [(mine + i * PAGES * PAGE, at + i * (PAGES + 1) * PAGE + 50) for i in range(pairs)]
    for (x, _), (local, remote) in zip(ends, places, strict=True):
        x.operate("write", local, length, remote, key.rkey)
        x.operate("read", local, length, remote, key.rkey)
    done = 0
    while done < 2 * pairs:
        lab.net.run(asyncio.sleep(0.001))
        for x, _ in ends:
            for entry in x.cq.poll():
                assert entry.ok, entry
                done += 1
        assert lab.net.now < 2_000_000_000, "operations put one another's pages out"
    for i, (_, remote) in enumerate(places):
        assert b.process.read(remote, length) == data[i * PAGES * PAGE :][:length]
    assert a.process.read(mine, len(data)) == data
    # Of each page that an operation went over, few came more than once.
    assert b.memory.trace.count(MemoryVerb.MAP_LOCAL_PAGE) <= 4 * 2 * pairs * (pages + 1)
    lab.settle()
    lab.check_laws()


def test_local_buffers_that_are_larger_than_memory() -> None:
    """Both ends send and receive 12 pages at once, with 4 frames."""
    lab = Lab()
    a, b = two_ends(lab, frames=4)
    mine, at = a.process.allocate(PAGES * PAGE), b.process.allocate(2 * PAGES * PAGE)
    data = pattern(PAGES * PAGE)
    a.process.write(mine, data)
    b.process.write(at + PAGES * PAGE, data)
    key = a.bind(mine, PAGES * PAGE)
    b.receive(at, PAGES * PAGE)
    a.send(mine, PAGES * PAGE)
    b.operate("write", at + PAGES * PAGE, PAGES * PAGE, mine, key.rkey)
    b.operate("read", at + PAGES * PAGE, PAGES * PAGE, mine, key.rkey)
    found = []
    while len(found) < 3:
        found += b.cq.wait()
    assert all(entry.ok for entry in found)
    assert b.process.read(at, 2 * PAGES * PAGE) == data * 2
    lab.settle()
    lab.check_laws()


def test_a_segment_that_grows_ever_again_stays_one_range() -> None:
    """5,000 times by a page, then every other page withdrawn in turn: no table of the adapter overflows."""
    lab = Lab(record=False)
    a, b = two_ends(lab)
    at, mine = b.process.allocate(PAGE), a.process.allocate(PAGE)
    for pages in range(2, 5_002):
        b.process.resize(at, pages * PAGE)
    space = b.ctx.adapter.regions.tied(b.pd.number)[0]
    assert len(b.ctx.adapter.memory.describe(space)["ranges"]) == 1
    key = b.bind(at + 5_000 * PAGE, PAGE)
    assert a.attempt("write", mine, PAGE, at + 5_000 * PAGE, key.rkey) == "SUCCESS"
    b.process.resize(at, PAGE)
    assert a.attempt("write", mine, PAGE, at + 5_000 * PAGE, key.rkey) == "REM_ACCESS_ERR"
