"""Everybody talks to everybody: full meshes of reliable connections and of reliable datagrams.

M processes on each of N nodes, all to reach all those of other nodes, need M^2 x (N - 1) queue pairs on each node by
reliable connections (document 003:519), and M queue pairs with N - 1 end-to-end contexts by reliable datagrams
(document 003:544).  The functions here build both for real; the adapters tell what they then hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from verbena.runtime.pairs import Side, make_side
from verbena.transport.kinds import QPType, WROpcode
from verbena.transport.work import RecvRequest, WorkRequest
from verbena.verbs.context import Context
from verbena.verbs.end_to_end import EndToEndContext, ReliableDatagramDomain
from verbena.verbs.queue_pair import QueuePair

QKEY = 0x1D1D


def connect_contexts(a: EndToEndContext, b: EndToEndContext, **attributes: Any) -> None:
    """Connect two end-to-end contexts of this process; `attributes` are those of `EndToEndContext.connect`."""
    there, here = b.endpoint, a.endpoint
    a.connect(there, **attributes)
    b.connect(here, **attributes)


@dataclass(slots=True)
class Node:
    """One node of a mesh of reliable datagrams.

    sides: one for each process, each with its queue pair, completion queue and region.  contexts: the end-to-end
    context for each other node, by that node's place in the mesh.
    """

    ctx: Context
    rdd: ReliableDatagramDomain
    sides: list[Side]
    contexts: dict[int, EndToEndContext] = field(default_factory=dict)


def datagram_mesh(
    adapters: Sequence[Context],
    processes: int,
    *,
    memory: int = 1 << 16,
    depth: int = 4096,
    sizes: dict[str, Any] | None = None,
    activate: dict[str, Any] | None = None,
    **attributes: Any,
) -> list[Node]:
    """A node for each adapter, with a queue pair for each process, and a context for each pair of nodes.

    memory: bytes of each side's region.  sizes: as for `ProtectionDomain.create_qp`.  activate: as for
    `QueuePair.activate`.  attributes: of the contexts, as for `EndToEndContext.connect`.
    """
    nodes = []
    for ctx in adapters:
        rdd = ctx.alloc_rdd()
        sides = [
            make_side(ctx, QPType.RD, memory, depth=depth, rdd=rdd, **(sizes or {})) for _ in range(processes)
        ]
        for side in sides:
            side.qp.activate(QKEY, **(activate or {}))
        nodes.append(Node(ctx, rdd, sides))
    for (i, a), (k, b) in combinations(enumerate(nodes), 2):
        a.contexts[k], b.contexts[i] = a.rdd.create_eec(), b.rdd.create_eec()
        connect_contexts(a.contexts[k], b.contexts[i], **attributes)
    return nodes


def addressed(request: WorkRequest, context: EndToEndContext, qp: QueuePair, qkey: int = QKEY) -> WorkRequest:
    """The request itself, addressed to a queue pair by way of a context."""
    request.ee, request.remote_qpn, request.remote_qkey = context, qp.qp_num, qkey
    return request


@dataclass(slots=True)
class Process:
    """One process of a mesh of reliable connections: a queue pair for each process of each other node."""

    ctx: Context
    base: Side
    ends: dict[tuple[int, int], QueuePair] = field(default_factory=dict)


def connection_mesh(
    adapters: Sequence[Context], processes: int, *, memory: int = 1 << 12, **attributes: Any
) -> list[list[Process]]:
    """For each adapter its processes, each connected with every one of every other adapter."""
    mesh: list[list[Process]] = []
    for ctx in adapters:
        row = []
        for _ in range(processes):
            pd = ctx.alloc_pd()
            cq = ctx.create_cq(4096)
            mr = pd.alloc_mr(memory)
            row.append(Process(ctx, Side(ctx, pd, cq, None, mr)))  # type: ignore[arg-type]
        mesh.append(row)
    for (i, here), (k, there) in combinations(enumerate(mesh), 2):
        for p, a in enumerate(here):
            for r, b in enumerate(there):
                mine = a.base.pd.create_qp(QPType.RC, a.base.cq, max_send_wr=16, max_recv_wr=16)
                other = b.base.pd.create_qp(QPType.RC, b.base.cq, max_send_wr=16, max_recv_wr=16)
                ends = mine.endpoint, other.endpoint
                mine.connect(ends[1], **attributes)
                other.connect(ends[0], **attributes)
                a.ends[k, r], b.ends[i, p] = mine, other
    return mesh


def _pairs(nodes: int, processes: int) -> Iterator[tuple[int, int, int, int]]:
    """Sender's node and process, receiver's node and process: all that are on different nodes."""
    for i in range(nodes):
        for p in range(processes):
            for k in range(nodes):
                for r in range(processes):
                    if i != k:
                        yield i, p, k, r


def _name(i: int, p: int, k: int, r: int) -> bytes:
    return b"%d.%d to %d.%d" % (i, p, k, r)


def talk_by_datagrams(nodes: Sequence[Node]) -> int:
    """Every process sends a message to every one of every other node; returns how many arrived as they were sent."""
    arrived = 0
    for i, p, k, r in _pairs(len(nodes), len(nodes[0].sides)):
        here, there = nodes[i].sides[p], nodes[k].sides[r]
        text = _name(i, p, k, r)
        here.mr.buf[: len(text)] = text
        there.qp.post_recv(RecvRequest(1, [there.mr.sge(1000, 100)]))
        request = WorkRequest(2, WROpcode.SEND, [here.mr.sge(0, len(text))])
        here.qp.post_send(addressed(request, nodes[i].contexts[k], there.qp))
        arrived += _took(here, there, here.qp, text)
    return arrived


def talk_by_connections(mesh: Sequence[Sequence[Process]]) -> int:
    """The same over reliable connections."""
    arrived = 0
    for i, p, k, r in _pairs(len(mesh), len(mesh[0])):
        here, there = mesh[i][p], mesh[k][r]
        text = _name(i, p, k, r)
        here.base.mr.buf[: len(text)] = text
        there.ends[i, p].post_recv(RecvRequest(1, [there.base.mr.sge(1000, 100)]))
        here.ends[k, r].post_send(WorkRequest(2, WROpcode.SEND, [here.base.mr.sge(0, len(text))]))
        arrived += _took(here.base, there.base, here.ends[k, r], text)
    return arrived


def _took(here: Side, there: Side, sender: QueuePair, text: bytes) -> bool:
    """Did the message arrive, whole, and from the right queue pair?"""
    sent, got = here.cq.wait(timeout=10), there.cq.wait(timeout=10)
    return (
        [e.ok for e in sent] == [True]
        and [(e.ok, e.byte_len, e.src_qp) for e in got] == [(True, len(text), sender.qp_num)]
        and bytes(there.mr.buf[1000 : 1000 + len(text)]) == text
    )
