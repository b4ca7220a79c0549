"""Two connected queue pairs in one line: for tests, examples and a first look."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from verbena.memory.access import Access
from verbena.runtime.virtual import VirtualNetwork
from verbena.transport.kinds import QPType
from verbena.verbs.completion import CompletionQueue
from verbena.verbs.context import Context
from verbena.verbs.memory import ProtectionDomain
from verbena.verbs.queue_pair import ALL_REMOTE, QueuePair
from verbena.verbs.regions import MemoryRegion


@dataclass(slots=True)
class Side:
    """One end: an adapter with a queue pair in RTS, its completion queue, and a region with all rights."""

    ctx: Context
    pd: ProtectionDomain
    cq: CompletionQueue
    qp: QueuePair
    mr: MemoryRegion


@dataclass(slots=True)
class ConnectedPair:
    """Two ends, connected; a context manager that closes both."""

    a: Side
    b: Side
    net: VirtualNetwork | None = None
    _contexts: list[Context] = field(default_factory=list)

    def close(self) -> None:
        self.a.ctx.close()
        self.b.ctx.close()

    def __enter__(self) -> ConnectedPair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_side(
    ctx: Context,
    qp_type: QPType,
    memory: int = 1 << 20,
    access: Access = ALL_REMOTE,
    depth: int = 4096,
    **sizes: Any,
) -> Side:
    """An end that is not connected yet."""
    pd = ctx.alloc_pd()
    cq = ctx.create_cq(depth)
    qp = pd.create_qp(qp_type, cq, **sizes)
    return Side(ctx, pd, cq, qp, pd.alloc_mr(memory, access))


def connect_sides(a: Side, b: Side, **attributes: Any) -> None:
    """Connect two ends of this process (for datagrams: bring both to RTS)."""
    if a.qp.type is QPType.UD:
        a.qp.activate(**attributes)
        b.qp.activate(**attributes)
    else:
        there, here = b.qp.endpoint, a.qp.endpoint
        a.qp.connect(there, **attributes)
        b.qp.connect(here, **attributes)


def connected_pair(
    qp_type: QPType = QPType.RC,
    *,
    net: VirtualNetwork | None = None,
    seed: int = 0,
    memory: int = 1 << 20,
    **sizes: Any,
) -> ConnectedPair:
    """Two adapters on a virtual network with a connected queue pair each.

    net: an own `VirtualNetwork` (with other delays, rates, faults); by default a new one with `seed`.  memory: bytes
    of each side's region.  sizes: as for `ProtectionDomain.create_qp`.
    """
    network = net or VirtualNetwork(seed)
    sides = [
        make_side(network.open_device(address), qp_type, memory, **sizes)
        for address in ("10.0.0.1", "10.0.0.2")
    ]
    connect_sides(*sides)
    return ConnectedPair(sides[0], sides[1], network)
