"""Random reliable datagrams between many queue pairs, under faults, against a plain model of memory and of queues."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from lab import Lab, drops, pattern, sealed, statuses, take, write
from transport.test_faults import MILD, ROUGH
from transport.traffic import OPERATIONS, pieces
from verbena import (
    AckPolicy,
    CompletionOpcode,
    Faults,
    QPState,
    RecvRequest,
    SendFlags,
    VerbError,
    WorkRequest,
    WROpcode,
    _pure,
)
from verbena.runtime.meshes import QKEY, Node, addressed, connect_contexts, datagram_mesh
from verbena.runtime.pairs import Side
from verbena.verbs.queue_pair import ALL_REMOTE
from verbena.wire.opcodes import OPCODES

FAST = _pure.compiled()
MASK = (1 << 64) - 1
MESSAGES = (WROpcode.SEND, WROpcode.SEND_WITH_IMM, WROpcode.RDMA_WRITE_WITH_IMM)


@dataclass
class Message:
    """What a receiver must find: bytes in its buffer (none for a WRITE), length, immediate."""

    data: bytes
    length: int
    immediate: int | None
    opcode: CompletionOpcode


@dataclass
class Flow:
    """From one queue pair to another: their requests happen in the order in which they were posted."""

    here: Side
    there: Side
    context: Any
    target: Any
    source: Any
    sink: Any
    model: bytearray
    sink_model: bytearray
    sink_at: int = 0
    messages: deque[Message] = field(default_factory=deque)


@dataclass
class Box:
    """A queue pair's receive buffers, and what its sends must complete as."""

    side: Side
    region: Any
    sent: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    posted: int = 0
    owed: int = 0  # messages on their way, less buffers posted


class Traffic:
    def __init__(self, lab: Lab, random: Random, nodes: list[Node], mtu: int, largest: int) -> None:
        self.lab, self.random, self.mtu, self.largest = lab, random, mtu, largest
        self.boxes = {
            side.qp.qp_num | n << 24: Box(side, side.pd.alloc_mr(400 * largest, ALL_REMOTE))
            for n, node in enumerate(nodes)
            for side in node.sides
        }
        self.nodes = nodes
        self.flows: dict[tuple[int, int], Flow] = {}
        self.keys = list(self.boxes)

    def flow(self, a: int, b: int) -> Flow:
        if (a, b) not in self.flows:
            here, there = self.boxes[a].side, self.boxes[b].side
            room = 2 * self.largest + 64
            random = self.random
            target = there.pd.alloc_mr(room, ALL_REMOTE)
            target.buf[:] = random.randbytes(room)
            source = here.pd.alloc_mr(room)
            source.buf[:] = random.randbytes(room)
            sink = here.pd.alloc_mr(60 * self.largest)
            context = self.nodes[a >> 24].contexts[b >> 24]
            self.flows[a, b] = Flow(
                here, there, context, target, source, sink, bytearray(target.buf), bytearray(sink.length)
            )
        return self.flows[a, b]

    def post_receive(self, box: Box) -> None:
        if (box.posted + 1) * self.largest > box.region.length:
            return
        sge = pieces(self.random, box.region, box.posted * self.largest, self.largest)
        box.side.qp.post_recv(RecvRequest(box.posted, sge))
        box.posted += 1
        box.owed -= 1

    def post(self) -> None:
        r, m = self.random, self.mtu
        a = r.choice(self.keys)
        b = r.choice([k for k in self.keys if k >> 24 != a >> 24])
        flow, box = self.flow(a, b), self.boxes[a]
        operation = r.choice(OPERATIONS)
        n = r.choice((0, 1, 3, m - 1, m, m + 1, 2 * m + 3, r.randrange(self.largest)))
        n = min(n, self.largest)
        atomic = operation in (WROpcode.ATOMIC_FETCH_AND_ADD, WROpcode.ATOMIC_CMP_AND_SWP)
        n = 8 if atomic else n
        request = WorkRequest(len(box.sent), operation, flags=SendFlags.SIGNALED, rkey=flow.target.rkey)
        if r.random() < 0.1:
            request.flags |= SendFlags.FENCE
        if atomic or operation is WROpcode.RDMA_READ:
            if flow.sink_at + n > flow.sink.length:
                return
            request.sg_list = pieces(r, flow.sink, flow.sink_at, n)
            place = 8 * r.randrange(8) if atomic else r.randrange(flow.target.length - n + 1)
            old = bytes(flow.model[place : place + n])
            flow.sink_model[flow.sink_at : flow.sink_at + n] = old
            flow.sink_at += n
            if atomic:
                self.change(request, flow, place, int.from_bytes(old, "little"))
        else:
            start = r.randrange(flow.source.length - n + 1)
            request.sg_list = pieces(r, flow.source, start, n)
            data = bytes(flow.source.buf[start : start + n])
            place = r.randrange(flow.target.length - n + 1)
            if operation in MESSAGES:
                if operation is not WROpcode.SEND:
                    request.imm_data = r.getrandbits(32)
                wrote = operation is WROpcode.RDMA_WRITE_WITH_IMM
                kind = CompletionOpcode.RECV_RDMA_WITH_IMM if wrote else CompletionOpcode.RECV
                immediate = None if operation is WROpcode.SEND else request.imm_data
                flow.messages.append(Message(b"" if wrote else data, n, immediate, kind))
                self.boxes[b].owed += 1
            if operation in (WROpcode.RDMA_WRITE, WROpcode.RDMA_WRITE_WITH_IMM):
                flow.model[place : place + n] = data
        request.remote_addr = flow.target.addr + place
        box.sent.append(len(box.sent))
        box.side.qp.post_send(addressed(request, flow.context, flow.there.qp))

    def change(self, request: WorkRequest, flow: Flow, place: int, old: int) -> None:
        r = self.random
        if request.opcode == WROpcode.ATOMIC_FETCH_AND_ADD:
            request.compare_add = r.getrandbits(64)
            new = (old + request.compare_add) & MASK
        else:
            request.compare_add, request.swap = r.choice((old, r.getrandbits(64))), r.getrandbits(64)
            new = request.swap if request.compare_add == old else old
        flow.model[place : place + 8] = new.to_bytes(8, "little")

    def collect(self) -> None:
        for key, box in self.boxes.items():
            for entry in box.side.cq.poll(1000):
                assert entry.ok, entry
                if entry.opcode < CompletionOpcode.RECV:
                    box.done.append(entry.wr_id)
                    continue
                (n,) = (
                    n for n, e in self.nodes[key >> 24].contexts.items() if e.ee_num == entry.ee_num
                )  # the receiver learns the source
                message = self.flows[entry.src_qp | n << 24, key].messages.popleft()
                assert (entry.byte_len, entry.imm_data, entry.opcode) == (
                    message.length,
                    message.immediate,
                    message.opcode,
                )
                at = entry.wr_id * self.largest
                assert bytes(box.region.buf[at : at + len(message.data)]) == message.data

    def run(self, requests: int) -> None:
        r = self.random
        for _ in range(requests):
            self.post()
            for box in self.boxes.values():
                while box.owed > 6 or (box.owed > 0 and r.random() < 0.2):
                    self.post_receive(box)
            if r.random() < 0.3:
                self.lab.net.run_for(r.randrange(60_000))
            self.collect()
            while any(len(b.sent) - len(b.done) > 100 for b in self.boxes.values()):
                self.lab.net.run_for(1_000_000)
                self.serve()
        self.serve()
        self.lab.settle()
        self.collect()
        for box in self.boxes.values():
            assert box.done == box.sent
        for flow in self.flows.values():
            assert not flow.messages
            assert bytes(flow.target.buf) == flow.model
            assert bytes(flow.sink.buf) == flow.sink_model
        self.lab.check_laws()

    def serve(self) -> None:
        for box in self.boxes.values():
            while box.owed > 0:
                self.post_receive(box)
        self.collect()


def run(
    seed: int,
    faults: Faults | None,
    *,
    nodes: int = 3,
    processes: int = 2,
    mtu: int = 256,
    requests: int = 300,
    policy: AckPolicy = AckPolicy.COALESCED,
    **attributes: Any,
) -> Lab:
    random = Random(seed)
    lab = Lab(seed, faults)
    contexts = [lab.adapter(ack_policy=policy) for _ in range(nodes)]
    made = datagram_mesh(
        contexts,
        processes,
        memory=64,
        mtu=mtu,
        timeout=8,
        retry_cnt=7,
        activate={"min_rnr_timer": 1, "rnr_retry": 7},
        sizes={"max_recv_wr": 512},
        **attributes,
    )
    Traffic(lab, random, made, mtu, 8 * mtu).run(requests if FAST else requests // 3)
    return lab


@pytest.mark.requirement("TRN-12", "TRN-13")
@pytest.mark.parametrize("mtu", [256, 1024])
def test_memory_equals_the_model_without_faults(seed: int, mtu: int) -> None:
    lab = run(seed, None, mtu=mtu)
    assert all(ctx.counters()["timeouts"] == 0 for ctx in lab.contexts)


@pytest.mark.requirement("TRN-13")
@pytest.mark.parametrize("policy", list(AckPolicy))
@pytest.mark.parametrize("round_", range(3))
def test_memory_equals_the_model_under_mild_faults(seed: int, round_: int, policy: AckPolicy) -> None:
    run(seed, MILD, policy=policy, max_rd_atomic=1 + round_)


@pytest.mark.requirement("TRN-13")
@pytest.mark.parametrize("policy", list(AckPolicy))
@pytest.mark.parametrize("round_", range(4))
def test_memory_equals_the_model_under_rough_faults(seed: int, round_: int, policy: AckPolicy) -> None:
    run(seed, ROUGH, policy=policy, nodes=4 - round_ % 2, processes=1 + round_, mtu=(256, 1024)[round_ % 2])


@pytest.mark.requirement("TRN-14")
def test_a_run_can_be_repeated(seed: int) -> None:
    assert run(seed, MILD, requests=90).digest() == run(seed, MILD, requests=90).digest()


# --- packets that nobody should send ------------------------------------------------------------------------------


def corpus(seed: int) -> list[Any]:
    """What is on the wire when reliable datagrams do all that they can."""
    lab = run(seed, ROUGH, nodes=2, requests=60)
    return [p for tap in lab.taps for p in tap.out]


def mutate(random: Random, packet: Any, target: Node, place: int) -> bytes:
    """A packet that somebody might have sent to that node of two, with some of its fields changed."""
    data = bytearray(packet.data)
    context = target.contexts[1 - place]
    side = random.choice(target.sides)
    for _ in range(random.choice((1, 1, 2, 3))):
        kind = random.randrange(9)
        if len(data) < 28:
            break
        if kind == 0:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[0] = random.choice([code for code in OPCODES if code >> 5 == 2] + [random.randrange(256)])
        elif kind == 2:
            data[5:8] = random.choice((side.qp.qp_num, 1, random.getrandbits(24))).to_bytes(3, "big")
        elif kind == 3:
            found = context.query()
            near = random.choice((found.rq_psn, found.sq_psn, random.getrandbits(24)))
            data[9:12] = ((near + random.randrange(-4, 5)) & 0xFFFFFF).to_bytes(3, "big")
        elif kind == 4:
            data = data[: random.randrange(len(data) + 1)]
        elif kind == 5:
            data += random.randbytes(random.choice((1, 4, 32, 256)))
        elif kind == 6:
            data[16] = random.getrandbits(8)  # an AETH's syndrome, or a Q_Key
        elif kind == 7:
            data[21:24] = random.choice((side.qp.qp_num, random.getrandbits(24))).to_bytes(3, "big")
        else:
            data[24:] = random.randbytes(len(data) - 24)
    if len(data) >= 20 and random.random() < 0.8:
        data[13:16] = context.ee_num.to_bytes(3, "big")
        if len(data) >= 24 and random.random() < 0.6:
            data[5:8] = side.qp.qp_num.to_bytes(3, "big")
            data[16:20] = QKEY.to_bytes(4, "big")
    return bytes(data)


@pytest.mark.requirement("TRN-13")
def test_mutated_packets_do_no_harm(seed: int) -> None:
    random = Random(seed)
    packets = corpus(seed)
    lab = Lab(seed)
    contexts = [lab.adapter(mtu=256), lab.adapter(mtu=256)]
    attributes: dict[str, Any] = {"mtu": 256, "timeout": 3, "retry_cnt": 2}
    nodes = datagram_mesh(
        contexts, 2, memory=1 << 14, activate={"min_rnr_timer": 1, "rnr_retry": 1}, **attributes
    )
    closed = [node.sides[0].pd.alloc_mr(4096) for node in nodes]
    for mr in closed:
        mr.buf[:] = pattern(4096)
    injected = 0
    for _ in range(4000 if FAST else 500):
        i = random.randrange(2)
        target, peer = nodes[i], nodes[1 - i]
        if random.random() < 0.4:
            here, there = random.choice(peer.sides), random.choice(target.sides)
            try:
                if random.random() < 0.6:
                    there.qp.post_recv(RecvRequest(1, [there.mr.sge(0, 3000)]))
                request = WorkRequest(2, random.choice(OPERATIONS), [here.mr.sge(0, 8)])
                if random.random() < 0.5 and request.opcode < WROpcode.RDMA_READ:
                    request.sg_list = [here.mr.sge(0, 2000)]
                request.remote_addr, request.rkey = there.mr.addr + 4096, there.mr.rkey
                here.qp.post_send(addressed(request, peer.contexts[i], there.qp))
            except VerbError:
                pass
        data = mutate(random, random.choice(packets), target, i)
        if data:
            source = peer.ctx.query_gid().raw
            if len(data) > 16 and random.random() < 0.9:
                data = sealed(data, source, target.ctx.query_gid().raw)
            target.ctx.adapter.engine.receive(bytearray(data), len(data), source, 4791, lab.net.now, 0)
            target.ctx.driver.kick()
            injected += 1
        if random.random() < 0.4:
            lab.net.run_for(random.randrange(200_000))
        revive(nodes, random, attributes)
    lab.settle()
    revive(nodes, Random(1), attributes, always=True)
    lab.settle()
    lab.check_laws(injected)
    for mr in closed:
        assert bytes(mr.buf) == pattern(4096)
    for ctx in contexts:
        assert ctx.counters()["rx.accepted"] > 0
        assert len(drops(ctx)) > 5
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    a.cq.poll(5000)
    a.qp.post_send(addressed(write(a, b, 5000, 7), nodes[0].contexts[1], b.qp))
    assert statuses(take(a.cq, 1)) == [(7, "SUCCESS")]


def revive(nodes: list[Node], random: Random, attributes: dict[str, Any], always: bool = False) -> None:
    """Bring back what forged packets have brought down, now and then."""
    for node in nodes:
        for side in node.sides:
            side.cq.poll(5000)
            if side.qp.state is QPState.SQE:
                side.qp.modify(QPState.RTS)
        while node.ctx.get_async_event(0):
            pass
    broken = any(c.state is not QPState.RTS for node in nodes for c in node.contexts.values())
    if always or (broken and random.random() < 0.2):
        for node in nodes:
            for context in node.contexts.values():
                context.modify(QPState.RESET)
        connect_contexts(nodes[0].contexts[1], nodes[1].contexts[0], **attributes)
        for node in nodes:
            for side in node.sides:
                if side.qp.state is not QPState.RTS:
                    side.qp.modify(QPState.RESET)
                    side.qp.activate(QKEY, min_rnr_timer=1, rnr_retry=1)
