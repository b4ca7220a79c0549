"""One run of `verbena perf`: the loops that are timed, for both ends.

All requests of an end use the same bytes of one region (its first half is sent, its second half written to), so the
memory footprint is twice the message size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from verbena.adapter.attributes import Endpoint
from verbena.errors import CompletionStatus, ConnectionLost
from verbena.memory.access import Access
from verbena.transport.kinds import CompletionOpcode, QPType, SendFlags, WROpcode
from verbena.transport.work import RecvRequest, WorkRequest
from verbena.verbs.context import Context
from verbena.verbs.queue_pair import QueuePair

ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC
OPCODES = {
    "write": WROpcode.RDMA_WRITE,
    "read": WROpcode.RDMA_READ,
    "send": WROpcode.SEND,
    "atomic": WROpcode.ATOMIC_FETCH_AND_ADD,
}
RECEIVES = 4  # receive buffers for each request that a client may have outstanding
PEAK_PARTS = 10  # the peak is that of the best tenth of a run
SILENCE_S = 10.0
POLLS_PER_LOOK = 4096


@dataclass(slots=True)
class Plan:
    """A test: what all of its runs have in common.  largest: bytes of the largest message."""

    operation: str
    latency: bool
    largest: int
    queue_pairs: int
    depth: int
    mtu: int


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Messages a second: over the whole run, and in its best part."""

    average: float
    peak: float


@dataclass(frozen=True, slots=True)
class Latency:
    """The time of each message, in microseconds: one way (half of to and fro), of READ and atomics all of it."""

    times_us: list[float]


class End:
    """Queue pairs, a completion queue and a region."""

    def __init__(self, context: Context, plan: Plan) -> None:
        self.plan = plan
        self.gid = context.query_gid(1, 0)
        self.half = max(8, plan.largest)
        receives = min(context.query_device().max_qp_wr, RECEIVES * plan.depth)
        self.receives = receives if plan.operation == "send" else 1
        self.pd = context.alloc_pd()
        self.cq = context.create_cq(plan.queue_pairs * (plan.depth + self.receives) + 1)
        self.region = self.pd.alloc_mr(2 * self.half, ACCESS)
        self.qps: list[QueuePair] = [
            self.pd.create_qp(QPType.RC, self.cq, max_send_wr=plan.depth, max_recv_wr=self.receives)
            for _ in range(plan.queue_pairs)
        ]
        self.endpoints = [qp.endpoint for qp in self.qps]
        self.posted = [0] * plan.queue_pairs
        self.index = {qp.qp_num: at for at, qp in enumerate(self.qps)}
        self._recv = RecvRequest(0, [self.region.sge(self.half, self.half)])
        self.remote_address = self.remote_key = 0

    def connect(self, peers: list[Endpoint], address: int, key: int) -> None:
        """Connect each queue pair with the peer's of the same place."""
        self.remote_address, self.remote_key = address, key
        for qp, peer in zip(self.qps, peers, strict=True):
            qp.connect(peer, mtu=self.plan.mtu)

    def prepare(self, size: int) -> None:
        """Make ready for a run: receive queues full, no mark where the peer's writes will end."""
        self.region.buf[self.half + size - 1] = 0
        if self.plan.operation == "send":
            for at in range(len(self.qps)):
                self.fill(at)

    def fill(self, at: int) -> None:
        self.qps[at].post_recv_many([self._recv] * (self.receives - self.posted[at]))
        self.posted[at] = self.receives

    def request(self, size: int, signaled: bool = True, wr_id: int = 0) -> WorkRequest:
        """The operation of this test, from the first half of the region to the second half of the peer's."""
        return WorkRequest(
            wr_id,
            OPCODES[self.plan.operation],
            sg_list=[self.region.sge(0, size)],
            flags=SendFlags.SIGNALED if signaled else SendFlags.NONE,
            remote_addr=self.remote_address + self.half,
            rkey=self.remote_key,
            compare_add=1,
        )

    def wait(self) -> list[Any]:
        """The next completions, all of them successful."""
        entries: list[Any] = self.cq.wait(SILENCE_S, 64)
        if not entries:
            raise ConnectionLost(f"nothing arrived for {SILENCE_S:g} s: the peer is gone")
        return check(entries)

    def close(self) -> None:
        """Free what was made."""
        self.pd.__exit__()
        self.cq.close()

    def __enter__(self) -> End:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check(entries: list[Any]) -> list[Any]:
    """The entries; raises `ConnectionLost` if one of them failed."""
    for entry in entries:
        if not entry.ok:
            status = entry.status
            hint = ": the peer does not acknowledge" if status is CompletionStatus.RETRY_EXC_ERR else ""
            raise ConnectionLost(f"a request ended with {status.name}{hint}")
    return entries


def run_client(end: End, size: int, iterations: int) -> Bandwidth | Latency:
    """The side that measures."""
    if not end.plan.latency:
        return _bandwidth(end, size, iterations)
    return {"write": _write_latency, "send": _send_latency}.get(end.plan.operation, _round_trips)(
        end, size, iterations
    )


def run_server(end: End, size: int, iterations: int) -> None:
    """The other side; READ, atomics and the bandwidth of WRITE need nothing of it."""
    if end.plan.operation == "send":
        (_echo if end.plan.latency else _sink)(end, size, iterations)
    elif end.plan.operation == "write" and end.plan.latency:
        _write_back(end, size, iterations)


# --- bandwidth --------------------------------------------------------------------------------------------------


def _bandwidth(end: End, size: int, iterations: int) -> Bandwidth:
    """`iterations` on each queue pair, up to the plan's depth at a time; one completion for a quarter of that."""
    batch = max(1, end.plan.depth // 4)
    quiet = end.request(size, signaled=False)
    # A completion's wr_id tells how many requests it stands for.
    whole = [quiet] * (batch - 1) + [end.request(size, wr_id=batch)]
    left = [iterations] * len(end.qps)
    flying = [0] * len(end.qps)

    def refill(at: int) -> None:
        while left[at] and flying[at] + min(batch, left[at]) <= end.plan.depth:
            count = min(batch, left[at])
            last = whole if count == batch else [quiet] * (count - 1) + [end.request(size, wr_id=count)]
            end.qps[at].post_send_many(last)
            left[at] -= count
            flying[at] += count

    done, total = 0, iterations * len(end.qps)
    marks: list[tuple[float, int]] = [(time.perf_counter(), 0)]
    for at in range(len(end.qps)):
        refill(at)
    while done < total:
        for entry in end.wait():
            at = end.index[entry.qp_num]
            flying[at] -= entry.wr_id
            done += entry.wr_id
            refill(at)
        marks.append((time.perf_counter(), done))
    return Bandwidth(total / (marks[-1][0] - marks[0][0]), _peak(marks))


def _peak(marks: list[tuple[float, int]]) -> float:
    span = max(1, (len(marks) - 1) // PEAK_PARTS)
    pairs = zip(marks, marks[span:], strict=False)
    return max((b[1] - a[1]) / max(b[0] - a[0], 1e-9) for a, b in pairs)


def _sink(end: End, size: int, iterations: int) -> None:
    """Take messages, and post receive buffers again."""
    left = iterations * len(end.qps)
    while left:
        for entry in end.wait():
            at = end.index[entry.qp_num]
            end.posted[at] -= 1
            left -= 1
            if end.posted[at] <= end.receives // 2:
                end.fill(at)


# --- latency ----------------------------------------------------------------------------------------------------


def _timed(iterations: int, once: Callable[[int], None], share: float) -> Latency:
    times = []
    before = time.perf_counter_ns()
    for number in range(iterations):
        once(number)
        now = time.perf_counter_ns()
        times.append((now - before) * share / 1e3)
        before = now
    return Latency(times)


def _round_trips(end: End, size: int, iterations: int) -> Latency:
    qp, request = end.qps[0], end.request(size)

    def once(_: int) -> None:
        qp.post_send(request)
        end.wait()

    return _timed(iterations, once, 1.0)


def _send_latency(end: End, size: int, iterations: int) -> Latency:
    qp, request = end.qps[0], end.request(size)

    def once(_: int) -> None:
        qp.post_send(request)
        _take_both(end)

    return _timed(iterations, once, 0.5)


def _echo(end: End, size: int, iterations: int) -> None:
    qp, request = end.qps[0], end.request(size)
    for number in range(iterations):
        _take(end, {CompletionOpcode.RECV} if number == 0 else {CompletionOpcode.RECV, CompletionOpcode.SEND})
        qp.post_send(request)
    _take(end, {CompletionOpcode.SEND})


def _take_both(end: End) -> None:
    _take(end, {CompletionOpcode.RECV, CompletionOpcode.SEND})


def _take(end: End, wanted: set[CompletionOpcode]) -> None:
    """Wait for one completion of each kind."""
    while wanted:
        for entry in end.wait():
            wanted.discard(entry.opcode)
            if entry.opcode is CompletionOpcode.RECV:
                end.posted[0] -= 1
                if end.posted[0] <= end.receives // 2:
                    end.fill(0)


def _write_latency(end: End, size: int, iterations: int) -> Latency:
    step = _marker(end, size)

    def once(number: int) -> None:
        mark = number % 255 + 1
        step(mark, True)
        step(mark, False)

    result = _timed(iterations, once, 0.5)
    _settle(end)
    return result


def _write_back(end: End, size: int, iterations: int) -> None:
    step = _marker(end, size)
    for number in range(iterations):
        mark = number % 255 + 1
        step(mark, False)
        step(mark, True)
    _settle(end)


def _marker(end: End, size: int) -> Callable[[int, bool], None]:
    """A function that writes a message whose last byte is a mark, or waits until one stands in this end's memory."""
    data, last_out, last_in = end.region.buf, size - 1, end.half + size - 1
    qp, cq = end.qps[0], end.cq
    often = max(1, min(end.plan.depth, 64) // 4)
    quiet, loud = end.request(size, signaled=False), end.request(size)
    sent = 0

    def step(mark: int, is_ours: bool) -> None:
        nonlocal sent
        if is_ours:
            data[last_out] = mark
            sent += 1
            qp.post_send(loud if sent % often == 0 else quiet)
            return
        polls = 0
        deadline = 0.0
        while data[last_in] != mark:
            check(cq.poll())
            polls += 1
            if polls % POLLS_PER_LOOK == 0:
                now = time.monotonic()
                deadline = deadline or now + SILENCE_S
                if now > deadline:
                    raise ConnectionLost(f"nothing arrived for {SILENCE_S:g} s: the peer is gone")

    return step


def _settle(end: End) -> None:
    """Wait until the last write is acknowledged: a signaled one behind it, that changes nothing."""
    cq = end.cq
    check(cq.poll(64))
    end.qps[0].post_send(
        WorkRequest(1, WROpcode.RDMA_WRITE, remote_addr=end.remote_address, rkey=end.remote_key)
    )
    while not any(entry.wr_id == 1 for entry in end.wait()):
        pass
