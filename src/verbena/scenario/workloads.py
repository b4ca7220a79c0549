"""The workloads with connections: asyncio programs against the verbs, the same in real and in virtual time.

A workload has roles (source and sink, client and server); each runs where its adapter is, and returns what it saw.  The
`judge` of its kind puts that together and says whether the workload did what it should (`programs`).
"""

from __future__ import annotations

import hashlib
import statistics
from collections import deque
from collections.abc import Iterable
from typing import Any

from verbena.memory.access import Access
from verbena.scenario.outcome import Outcome, Row, duration, rate
from verbena.scenario.part import Part, Side
from verbena.scenario.schema import AtomicCounter, FileTransfer, PingPong
from verbena.transport.kinds import QPType, WROpcode
from verbena.transport.work import RecvRequest, WorkRequest

Seen = dict[str, Any]
SAMPLES = 200
SCATTER = 0x9E3779B97F4A7C15
GATHER = pow(SCATTER, -1, 1 << 64)


def generated(seed: int, length: int) -> bytes:
    """The same bytes for the same seed, on every machine."""
    return hashlib.shake_128(f"verbena {seed}".encode()).digest(length)


def sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


async def pipelined(
    part: Part, side: Side, requests: Iterable[WorkRequest], depth: int, phase: str, total: int
) -> tuple[int, list[list[int]]]:
    """Post requests, `depth` at a time, until all are completed; how long it took, and how far it was when.

    `WorkRequest.wr_id` is the request's length.
    """
    start, done, flying = part.now(), 0, 0
    samples, every = [[0, 0]], max(1, total // SAMPLES)
    waiting = iter(requests)
    while True:
        batch: list[WorkRequest] = []
        while flying + len(batch) < depth and (request := next(waiting, None)) is not None:
            batch.append(request)
        if batch:
            side.qp.post_send_many(batch)
            flying += len(batch)
        if not flying:
            return part.now() - start, samples
        for entry in await part.completions(side.cq):
            flying -= 1
            done += entry.wr_id
        if done - samples[-1][1] >= every or not flying:
            samples.append([part.now() - start, done])
            part.progress(phase, done, total, "bytes")


def pieces(length: int, size: int) -> Iterable[tuple[int, int]]:
    """Offsets and lengths of a message's parts; a single empty one of nothing."""
    if not length:
        yield 0, 0
    for at in range(0, length, size):
        yield at, min(size, length - at)


# --- file transfer ----------------------------------------------------------------------------------------------


async def file_source(part: Part, spec: FileTransfer) -> Seen:
    """WRITEs the file into the sink's memory, and READs it back."""
    data = part.data if part.data is not None else generated(part.fabric.seed, spec.bytes)
    size = len(data)
    part.write("size", size)
    async with part.side(QPType.RC, spec.depth + 1) as side:
        region = side.pd.reg_mr(data, Access.NONE)
        back = side.pd.alloc_mr(size if spec.read_back else 0, Access.LOCAL_WRITE)
        await part.connect(side, "source", "sink", part.path_mtu(spec.source, spec.to))
        address, rkey = await part.read("memory")

        def requests(opcode: WROpcode, local: Any) -> Iterable[WorkRequest]:
            for at, length in pieces(size, spec.message_bytes):
                sge = [local.sge(at, length)] if length else []
                yield WorkRequest(length, opcode, sge, remote_addr=address + at, rkey=rkey)

        seen: Seen = {"bytes": size, "sent": sha256(data)}
        seen["write_ns"], seen["write_samples"] = await pipelined(
            part, side, requests(WROpcode.RDMA_WRITE, region), spec.depth, "write", size
        )
        # The end is told over the fabric, too: an immediate comes after the data that was written before it.
        side.qp.post_send(WorkRequest(0, WROpcode.RDMA_WRITE_WITH_IMM, imm_data=size & 0xFFFFFFFF))
        await part.completions(side.cq)
        if spec.read_back:
            seen["read_ns"], seen["read_samples"] = await pipelined(
                part, side, requests(WROpcode.RDMA_READ, back), spec.depth, "read back", size
            )
            seen["read_back"] = sha256(back.buf)
        part.write("done", True)
        await part.read("seen")
    return seen


async def file_sink(part: Part, spec: FileTransfer) -> Seen:
    """Lends its memory, and looks at it when told that all has come."""
    size = await part.read("size")
    async with part.side(QPType.RC, 16) as side:
        memory = side.pd.alloc_mr(size, Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ)
        side.qp.post_recv(RecvRequest(1))
        part.write("memory", [memory.addr, memory.rkey])
        await part.connect(side, "sink", "source", part.path_mtu(spec.source, spec.to))
        (told,) = await part.completions(side.cq)
        seen: Seen = {"arrived": sha256(memory.buf), "told": told.imm_data}
        part.write("seen", True)
        await part.read("done")
    return seen


def judge_file(spec: FileTransfer, seen: dict[str, Seen]) -> Outcome:
    source, sink = seen["source"], seen["sink"]
    size = source["bytes"]
    rows = [Row("RDMA WRITE", size, source["write_ns"], rate(size, source["write_ns"], "B/s"))]
    sums = {"sent": source["sent"], "arrived": sink["arrived"]}
    samples = {"write": source["write_samples"]}
    if spec.read_back:
        rows.append(Row("RDMA READ", size, source["read_ns"], rate(size, source["read_ns"], "B/s")))
        sums["read back"] = source["read_back"]
        samples["read back"] = source["read_samples"]
    wrong = [name for name, value in sums.items() if value != sums["sent"]]
    if sink["told"] != size & 0xFFFFFFFF:
        wrong.append("the immediate value")
    verdict = f"{', '.join(wrong)}: differs from what was sent" if wrong else "SHA-256 equal"
    return Outcome(spec.name, spec.kind, not wrong, verdict, rows, {"sha256": sums}, samples)


# --- ping-pong --------------------------------------------------------------------------------------------------


def ball(number: int, length: int) -> bytes:
    """What flies: other bytes in every round, which look like no protocol's header."""
    word = ((number + 1) * SCATTER % (1 << 64)).to_bytes(8, "big")
    return (word * (length // 8 + 1))[:length]


def number_of(content: bytes) -> int:
    """Which ball that is."""
    return int.from_bytes(content[:8], "big") * GATHER % (1 << 64) - 1


async def ping(part: Part, spec: PingPong) -> Seen:
    """Sends, and waits for the answer."""
    times: list[int] = []
    wrong = 0
    async with part.side(QPType.RC, 8) as side:
        out, into = side.pd.alloc_mr(spec.bytes), side.pd.alloc_mr(spec.bytes)
        side.qp.post_recv(RecvRequest(0, [into.sge()]))
        await part.connect(side, "client", "server", part.path_mtu(spec.client, spec.server))
        for number in range(spec.iterations):
            out.buf[:] = ball(number, spec.bytes)
            start = part.now()
            side.qp.post_send(WorkRequest(1, WROpcode.SEND, [out.sge()]))
            waiting = {1, 0}
            while waiting:
                waiting -= {entry.wr_id for entry in await part.completions(side.cq)}
            times.append(part.now() - start)
            wrong += into.buf != ball(number ^ 0xFF, spec.bytes)
            if number + 1 < spec.iterations:
                side.qp.post_recv(RecvRequest(0, [into.sge()]))
            part.progress("ping-pong", number + 1, spec.iterations, "rounds")
        part.write("done", True)
        await part.read("seen")
    return {"times": times, "wrong": wrong}


async def pong(part: Part, spec: PingPong) -> Seen:
    """Answers each message with another one."""
    wrong = 0
    async with part.side(QPType.RC, 8) as side:
        out, into = side.pd.alloc_mr(spec.bytes), side.pd.alloc_mr(spec.bytes)
        side.qp.post_recv(RecvRequest(0, [into.sge()]))
        await part.connect(side, "server", "client", part.path_mtu(spec.client, spec.server))
        arrived = sent = 0
        while sent < spec.iterations:
            for entry in await part.completions(side.cq):
                if entry.wr_id:
                    sent += 1
                    continue
                wrong += into.buf != ball(arrived, spec.bytes)
                out.buf[:] = ball(arrived ^ 0xFF, spec.bytes)
                arrived += 1
                if arrived < spec.iterations:
                    side.qp.post_recv(RecvRequest(0, [into.sge()]))
                side.qp.post_send(WorkRequest(1, WROpcode.SEND, [out.sge()]))
        part.write("seen", True)
        await part.read("done")
    return {"wrong": wrong}


def judge_ping(spec: PingPong, seen: dict[str, Seen]) -> Outcome:
    times = sorted(seen["client"]["times"])
    total, count = sum(times), spec.iterations
    wrong = seen["client"]["wrong"] + seen["server"]["wrong"]
    half = {
        "min": times[0] / 2,
        "median": statistics.median(times) / 2,
        "99 %": times[min(count - 1, count * 99 // 100)] / 2,
        "max": times[-1] / 2,
    }
    facts = {"half round trip": {name: duration(ns) for name, ns in half.items()}}
    ok = not wrong and len(times) == count
    verdict = f"{wrong} messages had wrong bytes" if wrong else f"{count} rounds, every byte right"
    rows = [Row("SEND both ways", 2 * count * spec.bytes, total, f"{duration(half['median'])} one way")]
    return Outcome(spec.name, spec.kind, ok, verdict, rows, facts, {"half round trip": times})


# --- atomic counter ---------------------------------------------------------------------------------------------


async def counter_server(part: Part, spec: AtomicCounter) -> Seen:
    """Lends eight bytes, with a queue pair for each client."""
    pd = part.ctx.alloc_pd()
    cq = part.ctx.create_cq(64)
    try:
        memory = pd.alloc_mr(8, Access.LOCAL_WRITE | Access.REMOTE_ATOMIC)
        part.write("memory", [memory.addr, memory.rkey])
        sides = [Side(pd, cq, pd.create_qp(QPType.RC, cq)) for _ in spec.clients]
        for at, (side, client) in enumerate(zip(sides, spec.clients, strict=True)):
            await part.connect(side, f"server {at}", f"client {at}", part.path_mtu(spec.server, client))
        for at in range(len(sides)):
            await part.read(f"done {at}")
        value = int.from_bytes(memory.buf, "little")
    finally:
        pd.__exit__()
        cq.close()
    part.write("seen", True)
    return {"value": value}


async def counter_client(part: Part, spec: AtomicCounter, at: int) -> Seen:
    """Adds, and remembers what was there before."""
    before: list[int] = []
    async with part.side(QPType.RC, spec.depth) as side:
        memory = side.pd.alloc_mr(8 * spec.depth, Access.LOCAL_WRITE)
        mtu = part.path_mtu(spec.server, spec.clients[at])
        await part.connect(side, f"client {at}", f"server {at}", mtu)
        address, rkey = await part.read("memory")
        free, posted, start = deque(range(spec.depth)), 0, part.now()
        while len(before) < spec.operations:
            while free and posted < spec.operations:
                slot = free.popleft()
                request = WorkRequest(slot, WROpcode.ATOMIC_FETCH_AND_ADD, [memory.sge(8 * slot, 8)])
                request.remote_addr, request.rkey, request.compare_add = address, rkey, spec.add
                side.qp.post_send(request)
                posted += 1
            for entry in await part.completions(side.cq):
                slot = entry.wr_id
                before.append(int.from_bytes(memory.buf[8 * slot : 8 * slot + 8], "little"))
                free.append(slot)
            part.progress("fetch and add", len(before), spec.operations, "additions")
        took = part.now() - start
        part.write(f"done {at}", True)
        await part.read("seen")
    return {"before": before, "ns": took}


def judge_counter(spec: AtomicCounter, seen: dict[str, Seen]) -> Outcome:
    clients = [seen[f"client {at}"] for at in range(len(spec.clients))]
    count = spec.operations * len(clients)
    expected = count * spec.add
    value = seen["server"]["value"]
    each = sorted(number for client in clients for number in client["before"])
    ok = value == expected % (1 << 64) and each == list(range(0, expected, spec.add))
    took = max(client["ns"] for client in clients)
    if ok:
        verdict = f"{count} additions make {value}, each happened once"
    else:
        verdict = f"the counter has {value}, and {count} additions of {spec.add} make {expected}"
    rows = [Row(f"FETCH_ADD by {len(clients)}", 8 * count, took, rate(count, took, "op/s"))]
    return Outcome(spec.name, spec.kind, ok, verdict, rows, {"counter": value, "expected": expected})
