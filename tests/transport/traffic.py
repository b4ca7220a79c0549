"""Random work between many queue pairs, and the plain model of what it must do to memory.

A `Flow` is one direction of one connection.  The model executes each request when it is posted: what the requests of a
flow may touch is theirs alone, and a request that must not overtake an earlier READ carries FENCE.
"""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

from lab import Lab
from verbena import (
    CompletionOpcode,
    RecvRequest,
    ScatterGatherEntry,
    SendFlags,
    WorkRequest,
    WROpcode,
)
from verbena.runtime.pairs import Side

WORDS = 8  # for atomics, at the beginning of each flow's target
OPERATIONS = (
    *(WROpcode.RDMA_WRITE, WROpcode.RDMA_WRITE_WITH_IMM, WROpcode.RDMA_READ),
    *(WROpcode.SEND, WROpcode.SEND_WITH_IMM),
    *(WROpcode.ATOMIC_FETCH_AND_ADD, WROpcode.ATOMIC_CMP_AND_SWP),
)
READS = (WROpcode.RDMA_READ, WROpcode.ATOMIC_FETCH_AND_ADD, WROpcode.ATOMIC_CMP_AND_SWP)
MASK = (1 << 64) - 1


def pieces(random: Random, region: Any, at: int, n: int) -> list[ScatterGatherEntry]:
    """A list of one to four entries that covers n bytes, cut anywhere."""
    cuts = sorted(random.randrange(n + 1) for _ in range(random.randrange(4)))
    borders = [0, *cuts, n]
    return [region.sge(at + a, b - a) for a, b in itertools.pairwise(borders)]


class Flow:
    """Requests from `here` to `there`, over one queue pair each."""

    def __init__(self, random: Random, here: Side, there: Side, room: int, largest: int, mtu: int) -> None:
        self.random, self.here, self.there = random, here, there
        self.largest, self.mtu = largest, mtu
        pd = here.pd
        rights = there.mr.access
        self.source = pd.alloc_mr(room, rights)
        self.source.buf[:] = random.randbytes(room)
        self.sink = pd.alloc_mr(4 * room, rights)
        self.target = there.pd.alloc_mr(room, rights)
        self.target.buf[:] = random.randbytes(room)
        self.inbox = there.pd.alloc_mr(4 * room, rights)
        self.model = bytearray(self.target.buf)
        self.sink_model = bytearray(self.sink.length)
        self.inbox_model = bytearray(self.inbox.length)
        self.sink_at = self.inbox_at = 0
        self.sent: list[tuple[int, int, int]] = []  # (wr_id, bytes, opcode) of those that will be reported
        self.messages: list[tuple[int, int | None, int]] = []  # (bytes, immediate, opcode), in order
        self.receives: list[tuple[int, int]] = []  # (place in the inbox, size), in order
        self.posted = self.reads_open = self.added = 0

    def size(self) -> int:
        m, r = self.mtu, self.random
        n = r.choice(
            (0, 1, 3, 8, m - 1, m, m + 1, 2 * m, 3 * m + 5, r.randrange(m), r.randrange(self.largest))
        )
        return min(n, self.largest)

    def post_receive(self) -> None:
        n = self.largest
        at = self.inbox_at
        self.inbox_at += n
        sge = pieces(self.random, self.inbox, at, n)
        self.there.qp.post_recv(RecvRequest(len(self.receives), sge))
        self.receives.append((at, n))

    def post(self, operation: WROpcode) -> None:
        r = self.random
        atomic = operation in (WROpcode.ATOMIC_FETCH_AND_ADD, WROpcode.ATOMIC_CMP_AND_SWP)
        n = 8 if atomic else self.size()
        flags = r.choice((SendFlags.SIGNALED, SendFlags.SIGNALED, SendFlags.NONE))
        request = WorkRequest(self.posted, operation, flags=flags, rkey=self.target.rkey)
        if operation in READS:
            if self.sink_at + n > self.sink.length:
                return
            request.sg_list = pieces(r, self.sink, self.sink_at, n)
        else:
            start = r.randrange(self.source.length - n + 1)
            request.sg_list = pieces(r, self.source, start, n)
            data = self.source.buf[start : start + n]
            if self.reads_open:
                request.flags |= SendFlags.FENCE
                self.reads_open = 0
        if atomic:
            self._atomic(request)
        elif operation in (WROpcode.SEND, WROpcode.SEND_WITH_IMM):
            self._message(request, n, CompletionOpcode.RECV)
            at = self.receives[len(self.messages) - 1][0]
            self.inbox_model[at : at + n] = data
        else:
            place = r.randrange(8 * WORDS, self.target.length - n + 1)
            request.remote_addr = self.target.addr + place
            if operation is WROpcode.RDMA_READ:
                self.sink_model[self.sink_at : self.sink_at + n] = self.model[place : place + n]
            else:
                self.model[place : place + n] = data
                if operation is WROpcode.RDMA_WRITE_WITH_IMM:
                    self._message(request, n, CompletionOpcode.RECV_RDMA_WITH_IMM)
        if operation in READS:
            self.sink_at += n
            self.reads_open += 1
        if request.flags & SendFlags.SIGNALED:
            self.sent.append((self.posted, n, int(operation)))
        self.posted += 1
        self.here.qp.post_send(request)

    def _message(self, request: WorkRequest, n: int, opcode: CompletionOpcode) -> None:
        if len(self.receives) == len(self.messages):
            self.post_receive()
        immediate = None
        if request.opcode in (WROpcode.SEND_WITH_IMM, WROpcode.RDMA_WRITE_WITH_IMM):
            immediate = request.imm_data = self.random.getrandbits(32)
        self.messages.append((n, immediate, opcode))

    def _atomic(self, request: WorkRequest) -> None:
        r = self.random
        place = 8 * r.randrange(WORDS)
        request.remote_addr = self.target.addr + place
        old = int.from_bytes(self.model[place : place + 8], "little")
        if request.opcode == WROpcode.ATOMIC_FETCH_AND_ADD:
            request.compare_add = r.getrandbits(64)
            new = (old + request.compare_add) & MASK
        else:
            request.compare_add = r.choice((old, r.getrandbits(64)))
            request.swap = r.getrandbits(64)
            new = request.swap if request.compare_add == old else old
        self.model[place : place + 8] = new.to_bytes(8, "little")
        self.sink_model[self.sink_at : self.sink_at + 8] = old.to_bytes(8, "little")

    def free(self) -> int:
        """How many more requests the inbox has room for."""
        return (self.inbox.length - self.inbox_at) // self.largest

    def check(self) -> None:
        assert bytes(self.target.buf) == bytes(self.model), "the target's memory differs from the model"
        assert bytes(self.sink.buf) == bytes(self.sink_model), "what was read differs from the model"
        assert bytes(self.inbox.buf) == bytes(self.inbox_model), "what was received differs from the model"


class Traffic:
    """Several connections, both directions of each, posted and polled at random times."""

    def __init__(
        self, lab: Lab, random: Random, connections: list[tuple[Side, Side]], mtu: int, largest: int
    ):
        self.lab, self.random = lab, random
        room = 4 * largest + 4096
        self.flows = [
            Flow(random, here, there, room, largest, mtu)
            for a, b in connections
            for here, there in ((a, b), (b, a))
        ]
        self.done: dict[int, list[Any]] = {}
        self.got: dict[int, list[Any]] = {}

    def run(self, operations: int) -> None:
        """Post that many requests a flow, letting time pass in between; then wait for all of them, and check."""
        left = dict.fromkeys(range(len(self.flows)), operations)
        while left:
            i = self.random.choice(sorted(left))
            flow = self.flows[i]
            for _ in range(min(left[i], self.random.randrange(1, 6))):
                left[i] -= 1
                if flow.free() > 2 and self.room(i):
                    if self.random.random() < 0.3:
                        flow.post_receive()
                    flow.post(self.random.choice(OPERATIONS))
            if left[i] <= 0:
                del left[i]
            if self.random.random() < 0.5:
                self.lab.net.run_for(self.random.randrange(50_000))
            self.collect()
        self.lab.settle()
        self.collect()
        self.check()

    def room(self, i: int) -> bool:
        self.collect()
        flow = self.flows[i]
        return len(flow.sent) - len(self.done.get(i, ())) < 48 and flow.posted < 100_000

    def collect(self) -> None:
        for i, flow in enumerate(self.flows):
            for entry in flow.here.cq.poll(1000):
                recv = entry.opcode >= CompletionOpcode.RECV
                # A completion queue serves both directions: the receives belong to the flow that comes in.
                (self.got.setdefault(i ^ 1, []) if recv else self.done.setdefault(i, [])).append(entry)

    def check(self) -> None:
        for i, flow in enumerate(self.flows):
            done, got = self.done.get(i, []), self.got.get(i, [])
            assert all(e.ok for e in done + got), [e for e in done + got if not e.ok][:3]
            assert [e.wr_id for e in done] == [w for w, _, _ in flow.sent]
            assert [(e.byte_len, e.imm_data, e.opcode) for e in got] == flow.messages
            assert [e.wr_id for e in got] == list(range(len(flow.messages)))
            assert all(e.qp_num == flow.here.qp.qp_num for e in done)
            assert all(e.qp_num == flow.there.qp.qp_num for e in got)
            flow.check()
        self.lab.check_laws()
