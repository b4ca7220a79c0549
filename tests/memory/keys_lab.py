"""Two hosts of which one gives keys away: what the tests of remote keys share."""

from __future__ import annotations

from typing import Any

from lab import Lab, take
from verbena import (
    Access,
    CompletionQueueEntry,
    MemoryRegion,
    MemoryWindow,
    QPType,
    ScatterGatherEntry,
    WorkRequest,
    WROpcode,
)
from verbena.runtime.pairs import Side

REMOTE = Access.REMOTE_READ | Access.REMOTE_WRITE | Access.REMOTE_ATOMIC
BINDABLE = Access.LOCAL_WRITE | Access.WINDOW_BIND
OPERATIONS = {
    "write": WROpcode.RDMA_WRITE,
    "read": WROpcode.RDMA_READ,
    "fetch_add": WROpcode.ATOMIC_FETCH_AND_ADD,
    "swap": WROpcode.ATOMIC_CMP_AND_SWP,
}


def bindable(side: Side, length: int = 16_384) -> MemoryRegion:
    """A region of the side for windows, filled with a pattern."""
    mr = side.pd.alloc_mr(length, BINDABLE)
    mr.buf[:] = bytes(i % 251 + 1 for i in range(length))
    return mr


def key_of(side: Side, **options: Any) -> MemoryWindow:
    """One remote key of document 003."""
    (window,) = side.pd.allocate_rkey(**options)
    return window


def bound(
    side: Side, mr: MemoryRegion, offset: int, length: int, access: Access = REMOTE, **options: Any
) -> MemoryWindow:
    """A key that is bound, and whose bind has completed."""
    window = key_of(side, **options)
    side.qp.bind_rkey(window, mr.addr + offset, length, access, mr=mr)
    assert take(side.cq, 1)[0].ok
    return window


def request(
    side: Side, kind: str, rkey: int, address: int, length: int, at: int = 0, wr_id: int = 7, **more: Any
) -> WorkRequest:
    """An operation of the side's first bytes against a remote range."""
    n = 8 if OPERATIONS[kind] >= WROpcode.ATOMIC_CMP_AND_SWP else length
    return WorkRequest(
        wr_id,
        OPERATIONS[kind],
        [ScatterGatherEntry(side.mr.addr + at, n, side.mr.lkey)],
        remote_addr=address,
        rkey=rkey,
        compare_add=5,
        swap=6,
        **more,
    )


def attempt(side: Side, kind: str, rkey: int, address: int, length: int, **more: Any) -> str:
    """The status that one operation ends with."""
    side.qp.post_send(request(side, kind, rkey, address, length, **more))
    return take(side.cq, 1)[0].status.name


def refused(ctx: Any) -> dict[str, int]:
    """What the adapter's keys did not grant to peers, by reason."""
    head = "memory.refused."
    return {name[len(head) :]: n for name, n in ctx.counters().items() if name.startswith(head) and n}


def more_pairs(lab: Lab, a: Side, b: Side, service: QPType = QPType.RC, **attributes: Any) -> tuple[Any, Any]:
    """Another connection between the two sides' domains, with completion queues of its own."""
    ends = []
    for side in (a, b):
        cq = side.ctx.create_cq(64)
        ends.append(Side(side.ctx, side.pd, cq, side.pd.create_qp(service, cq), side.mr))
    there, here = ends[1].qp.endpoint, ends[0].qp.endpoint
    ends[0].qp.connect(there, **attributes)
    ends[1].qp.connect(here, **attributes)
    return ends[0], ends[1]


def one(side: Side) -> CompletionQueueEntry:
    """The one completion that comes."""
    return take(side.cq, 1)[0]
