"""The workload of ring buffers: producers write into a consumer's memory, by remote keys.

The consumer's process has a ring for each producer, and beside it the number of messages that were taken out.  It binds
two keys, one for writing to the ring, one for reading that number, and sends both with their addresses to the producer
(document 003, messages 748 and 750).  From then on the producer does all by itself: it writes a message and tells its
number by an immediate value, and it reads how far the consumer is when the ring is full.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from verbena.memory.access import Access
from verbena.memory.process import Process
from verbena.memory.trace import MemoryVerb
from verbena.scenario.memory_schema import RingBuffer
from verbena.scenario.outcome import Outcome, Row, rate
from verbena.scenario.part import Part, Side
from verbena.scenario.workloads import Seen, generated
from verbena.transport.kinds import QPType, WROpcode
from verbena.transport.work import RecvRequest, WorkRequest
from verbena.verbs.process_domain import ProcessDomain
from verbena.verbs.windows import MemoryWindow

INVITATION = struct.Struct("!QIQI")  # ring: address, key; number taken: address, key
WORD = 8
FULL_NS = 20_000  # how long a producer waits before it looks again whether there is room


def message(seed: int, producer: int, number: int, length: int) -> bytes:
    """What a producer writes, message by message."""
    return generated(seed << 64 | producer << 32 | number, length)


async def consumer(part: Part, spec: RingBuffer) -> Seen:
    """Serves all producers, each with a ring of its own."""
    seen: Seen = {"wrong": 0, "taken": 0}
    all_taken = asyncio.Barrier(len(spec.producers))
    trace = part.host_memory.memory.trace
    before = {verb: trace.count(verb) for verb in (MemoryVerb.PAGE_OUT, MemoryVerb.PAGE_IN)}
    async with asyncio.TaskGroup() as group:
        for number in range(len(spec.producers)):
            group.create_task(_serve(part, spec, number, seen, all_taken))
    seen["pages"] = {verb.title: trace.count(verb) - count for verb, count in before.items()}
    return seen


async def _serve(part: Part, spec: RingBuffer, number: int, seen: Seen, all_taken: asyncio.Barrier) -> None:
    process = part.process(spec.process)
    async with part.side(QPType.RC, spec.slots + 2, process=process) as side:
        ring = process.allocate(spec.slots * spec.bytes)
        taken = process.allocate(WORD)
        process.write(taken, bytes(WORD))
        for _ in range(spec.slots + 1):
            side.qp.post_recv(RecvRequest(0))
        await part.connect(side, f"consumer {number}", f"producer {number}", _mtu(part, spec, number))
        await _invite(part, spec, side, process, ring, taken)
        for count in range(spec.messages):
            entry = await _arrival(part, side)
            slot = ring + count % spec.slots * spec.bytes
            expected = message(part.fabric.seed, number, count, spec.bytes)
            seen["wrong"] += entry.imm_data != count or process.read(slot, spec.bytes) != expected
            process.write(taken, (count + 1).to_bytes(WORD, "big"))
            seen["taken"] += 1
            side.qp.post_recv(RecvRequest(0))
            if spec.page_out_every and count % spec.page_out_every == spec.page_out_every - 1:
                part.host_memory.memory.page_out(process, ring, spec.slots * spec.bytes)
                part.host_memory.memory.page_out(process, taken)
        if await all_taken.wait() == 0:
            part.look()  # before the keys are given back
        await all_taken.wait()
        part.write(f"taken all {number}", True)
        await part.read(f"done {number}")


async def _arrival(part: Part, side: Side) -> Any:
    while True:
        (entry,) = await part.completions(side.cq, 1)
        if entry.opcode.name.startswith("RECV"):
            return entry


async def _invite(part: Part, spec: RingBuffer, side: Side, process: Process, ring: int, taken: int) -> None:
    """Bind the two keys, and send them."""
    assert isinstance(side.pd, ProcessDomain)
    ring_key, taken_key = side.pd.allocate_rkey(2)
    await _bound(part, side, ring_key, ring, spec.slots * spec.bytes, Access.REMOTE_WRITE)
    await _bound(part, side, taken_key, taken, WORD, Access.REMOTE_READ)
    letter = process.allocate(INVITATION.size)
    process.write(letter, INVITATION.pack(ring, ring_key.rkey, taken, taken_key.rkey))
    side.qp.post_send(WorkRequest(1, WROpcode.SEND, [side.pd.sge(letter, INVITATION.size)]))


async def _bound(
    part: Part, side: Side, key: MemoryWindow, address: int, length: int, access: Access
) -> None:
    side.qp.bind_rkey(key, address, length, access)
    await part.completions(side.cq, 1)


async def producer(part: Part, spec: RingBuffer, number: int) -> Seen:
    """Writes its messages as there is room for them."""
    process = part.process(spec.process)
    full = 0
    async with part.side(QPType.RC, 4, process=process) as side:
        assert isinstance(side.pd, ProcessDomain)
        letter, there, own = (
            process.allocate(INVITATION.size),
            process.allocate(WORD),
            process.allocate(spec.bytes),
        )
        side.qp.post_recv(RecvRequest(1, [side.pd.sge(letter, INVITATION.size)]))
        await part.connect(side, f"producer {number}", f"consumer {number}", _mtu(part, spec, number))
        await part.completions(side.cq, 1)
        ring, ring_key, taken, taken_key = INVITATION.unpack(process.read(letter, INVITATION.size))
        look = WorkRequest(
            2, WROpcode.RDMA_READ, [side.pd.sge(there, WORD)], remote_addr=taken, rkey=taken_key
        )
        known, start = 0, part.now()
        for count in range(spec.messages):
            while count - known >= spec.slots:
                side.qp.post_send(look)
                await part.completions(side.cq, 1)
                known = int.from_bytes(process.read(there, WORD), "big")
                if count - known >= spec.slots:
                    full += 1
                    await asyncio.sleep(FULL_NS / 1e9)
            process.write(own, message(part.fabric.seed, number, count, spec.bytes))
            side.qp.post_send(
                WorkRequest(
                    3,
                    WROpcode.RDMA_WRITE_WITH_IMM,
                    [side.pd.sge(own, spec.bytes)],
                    remote_addr=ring + count % spec.slots * spec.bytes,
                    rkey=ring_key,
                    imm_data=count,
                )
            )
            await part.completions(side.cq, 1)
            part.progress("ring buffer", count + 1, spec.messages, "messages")
        took = part.now() - start
        part.write(f"done {number}", True)
        await part.read(f"taken all {number}")
    return {"ns": took, "full": full}


def _mtu(part: Part, spec: RingBuffer, number: int) -> int:
    return part.path_mtu(spec.consumer, spec.producers[number])


def judge(spec: RingBuffer, seen: dict[str, Seen]) -> Outcome:
    there = seen["consumer"]
    count = spec.messages * len(spec.producers)
    rows = []
    for number, name in enumerate(spec.producers):
        ns = seen[f"producer {number}"]["ns"]
        size = spec.messages * spec.bytes
        rows.append(Row(f"{name} writes", size, ns, rate(size, ns, "B/s")))
    ok = there["taken"] == count and not there["wrong"]
    verdict = (
        f"{count:,} messages, every byte equal"
        if ok
        else f"{there['taken']:,} of {count:,} messages, {there['wrong']:,} of them wrong"
    )
    waits = [seen[f"producer {number}"]["full"] for number in range(len(spec.producers))]
    facts = {"memory": there["pages"] | {"waits for room": sum(waits)}}
    return Outcome(spec.name, spec.kind, ok, verdict, rows, facts)
