"""Mutated packets into the receive path: nothing is raised, nothing outside a region is touched, all is counted.

The corpus is what two adapters really sent, in all services.  Half of the mutated packets get a new CRC, so that they
reach what stands behind the check.  The regions lie between guard bytes, in buffers of their own.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from lab import RC, SERVICES, UC, UD, Lab, Packet, drops, pattern, sealed, statuses, take, write
from verbena import (
    Access,
    AddressVector,
    QPState,
    QPType,
    RecvRequest,
    VerbError,
    WorkRequest,
    WROpcode,
    _pure,
)
from verbena.runtime.pairs import Side, connect_sides, make_side
from verbena.verbs.queue_pair import ALL_REMOTE
from verbena.wire.opcodes import OPCODES

ROUNDS = 4000 if _pure.compiled() else 500
GUARD = 8192
ROOM = 1 << 14
EDGES = (0, 1, 255, 256, 257, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF)


class Guarded:
    """A region in the middle of a buffer whose other bytes must not change."""

    def __init__(self, side: Side, access: Access, n: int = ROOM) -> None:
        self.whole = bytearray(pattern(2 * GUARD + n, n + int(access)))
        self.mr = side.pd.reg_mr(memoryview(self.whole)[GUARD : GUARD + n], access)
        self.before = bytes(self.whole)

    def check(self, inside: bool) -> None:
        now, n = bytes(self.whole), len(self.whole) - 2 * GUARD
        assert now[:GUARD] == self.before[:GUARD]
        assert now[GUARD + n :] == self.before[GUARD + n :]
        if inside:
            assert now == self.before


class End:
    """One adapter with a queue pair of a service, and regions with different rights."""

    def __init__(self, lab: Lab, index: int, service: QPType) -> None:
        self.ctx = lab.contexts[index]
        self.side = make_side(self.ctx, service, ROOM)
        self.open = Guarded(self.side, ALL_REMOTE)
        self.readable = Guarded(self.side, Access.REMOTE_READ)
        self.closed = Guarded(self.side, Access.LOCAL_WRITE)
        self.inbox = Guarded(self.side, Access.LOCAL_WRITE)
        self.peer: End

    def post(self, random: Random) -> None:
        """Something to do, if the state lets us; what becomes of it does not matter."""
        qp, there = self.side.qp, self.peer
        service = qp.type
        try:
            for _ in range(random.randrange(4)):
                n = random.randrange(3000)
                qp.post_recv(RecvRequest(1, [self.inbox.mr.sge(0, n), self.inbox.mr.sge(n, 2 * n)]))
            code = random.choice(
                {RC: list(WROpcode), UC: list(WROpcode)[:4], UD: [WROpcode.SEND, WROpcode.SEND_WITH_IMM]}[
                    service
                ]
            )
            atomic = code in (WROpcode.ATOMIC_CMP_AND_SWP, WROpcode.ATOMIC_FETCH_AND_ADD)
            n = 8 if atomic else random.randrange(256 if service is UD else 3000)
            request = WorkRequest(
                2, code, [self.open.mr.sge(0, n)], remote_addr=there.open.mr.addr, rkey=there.open.mr.rkey
            )
            if service is UD:
                request.ah = self.side.pd.create_ah(AddressVector(there.ctx.query_gid()))
                request.remote_qpn, request.remote_qkey = there.side.qp.qp_num, 0x11111111
            qp.post_send(request)
        except VerbError:
            pass

    def check(self) -> None:
        self.open.check(False)
        self.inbox.check(False)
        self.readable.check(True)
        self.closed.check(True)


def make_ends(lab: Lab, service: QPType) -> tuple[End, End]:
    a, b = End(lab, 0, service), End(lab, 1, service)
    a.peer, b.peer = b, a
    if service is UD:
        connect_sides(a.side, b.side)
    elif service is UC:
        connect_sides(a.side, b.side, mtu=256)
    else:
        connect_sides(a.side, b.side, mtu=256, timeout=3, retry_cnt=2, rnr_retry=1, min_rnr_timer=1)
    return a, b


def mutate(random: Random, packet: Packet, ends: tuple[End, ...], target: End) -> bytes:
    """A packet that somebody might have sent, with some of its fields changed."""
    data = bytearray(packet.data)
    for _ in range(random.choice((1, 1, 2, 3))):
        kind = random.randrange(10)
        if kind == 0:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[0] = random.choice((*OPCODES, random.randrange(256)))
        elif kind == 2:
            qpn = random.choice((target.side.qp.qp_num, 0, 1, 0xFFFFFF, random.getrandbits(24)))
            data[5:8] = qpn.to_bytes(3, "big")
        elif kind == 3:
            q = target.side.qp.query()
            near = random.choice((q.rq_psn, q.sq_psn, random.getrandbits(24)))
            data[9:12] = ((near + random.randrange(-4, 5)) & 0xFFFFFF).to_bytes(3, "big")
        elif kind == 4:
            data = data[: random.randrange(len(data) + 1)]
        elif kind == 5:
            data += random.randbytes(random.choice((1, 4, 32, 256, 5000)))
        elif kind == 6:
            data[1] = random.getrandbits(8) & random.choice((0xFF, 0xF0))
        elif kind == 7 and len(data) >= 28:  # as if a RETH were there
            mr = random.choice((target.open, target.readable, target.closed)).mr
            address = (mr.addr + random.choice((0, 1, ROOM - 8, ROOM, -8, 1 << 63))) & (1 << 64) - 1
            data[12:20] = random.choice((address, (1 << 64) - 8, 0)).to_bytes(8, "big")
            data[20:24] = random.choice((mr.rkey, mr.lkey, 0, 0xFFFFFFFF)).to_bytes(4, "big")
            data[24:28] = random.choice((*EDGES, ROOM, ROOM + 1, random.randrange(1200))).to_bytes(4, "big")
        elif kind == 8 and len(data) >= 16:  # as if an AETH were there
            data[12] = random.getrandbits(8)
        elif kind == 9:
            data[12:] = random.randbytes(max(len(data) - 12, 0))
        if len(data) < 16:
            break
    return bytes(data)


def inject(random: Random, lab: Lab, packet: Packet, ends: tuple[End, End]) -> int:
    """Feed a mutated packet to one of the ends, alone or several times; returns how many packets that were."""
    target = random.choice(ends)
    data = mutate(random, packet, ends, target)
    if not data:
        return 0
    source = random.choice((target.peer.ctx.query_gid().raw,) * 9 + (random.randbytes(16),))
    if random.random() < 0.7 and len(data) > 16:
        if random.random() < 0.7:  # to where it is looked at
            data = data[:5] + target.side.qp.qp_num.to_bytes(3, "big") + data[8:]
        data = sealed(data, source, target.ctx.query_gid().raw)
    copies = random.choice((1, 1, 1, 2, 70))
    segment = random.choice((len(data), len(data), max(len(data) // 2, 1)))
    burst = bytearray(data * copies)
    target.ctx.adapter.engine.receive(burst, segment, source, 4791, lab.net.now, 0)
    target.ctx.driver.kick()
    return -(-len(burst) // segment)


def corpus(seed: int, service: QPType) -> list[Packet]:
    """What is on the wire when the service does all that it can."""
    random = Random(seed)
    lab = Lab(seed)
    lab.adapter(mtu=256), lab.adapter(mtu=256)
    ends = make_ends(lab, service)
    for _ in range(40):
        for end in ends:
            end.post(random)
        lab.net.run_for(100_000)
    return [p for tap in lab.taps for p in tap.out]


@pytest.mark.parametrize("service", SERVICES)
def test_mutated_packets_do_no_harm(seed: int, service: QPType) -> None:
    random = Random(seed)
    packets = corpus(seed, service)
    lab = Lab(seed)
    lab.adapter(mtu=256), lab.adapter(mtu=256)
    ends = make_ends(lab, service)
    everything = list(ends)
    injected = 0
    for _ in range(ROUNDS):
        if random.random() < 0.3:
            random.choice(ends).post(random)
        injected += inject(random, lab, random.choice(packets), ends)
        if random.random() < 0.4:
            lab.net.run_for(random.randrange(200_000))
        for end in ends:
            end.side.cq.poll(5000)
            while end.ctx.get_async_event(0):
                pass
        if any(end.side.qp.state in (QPState.ERR, QPState.SQE) for end in ends) and random.random() < 0.2:
            for end in ends:
                end.side.qp.close()
                end.check()
            ends = make_ends(lab, service)
            everything += ends
            if len(everything) > 40:  # the old ones go, with their regions
                for end in everything[:20]:
                    with end.side.pd:
                        pass
                del everything[:20]
        elif random.random() < 0.01:
            random.choice(ends).side.qp.modify(random.choice((QPState.ERR, QPState.ERR, QPState.RESET)))
    lab.settle()
    for end in everything:
        end.check()
    lab.check_laws(injected)
    for ctx in lab.contexts:
        assert ctx.counters()["rx.accepted"] > 0
        assert len(drops(ctx)) > 5
    still_works(lab)


def still_works(lab: Lab) -> None:
    a, b = (make_side(ctx, RC) for ctx in lab.contexts)
    connect_sides(a, b, mtu=256)
    a.mr.buf[:5000] = pattern(5000)
    a.qp.post_send(write(a, b, 5000, 7))
    assert statuses(take(a.cq, 1)) == [(7, "SUCCESS")]
    assert b.mr.buf[:5000] == pattern(5000)


@pytest.mark.parametrize(
    "state", [QPState.RESET, QPState.INIT, QPState.RTR, QPState.RTS, QPState.SQD, QPState.ERR]
)
@pytest.mark.parametrize("service", SERVICES)
def test_every_packet_in_every_state(seed: int, service: QPType, state: QPState) -> None:
    """Every opcode of every service, sealed and to the right queue pair, with the PSN that it waits for."""
    random = Random(seed)
    lab = Lab(seed)
    ctx, other = lab.adapter(mtu=256), lab.adapter("10.0.0.9", mtu=256)
    gid = other.query_gid().raw
    injected = 0
    for code in range(256) if _pure.compiled() else OPCODES:
        for length in (16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 256 + 16, 256 + 44, 4096 + 44):
            side = one_in_state(ctx, service, state, other)
            body = bytearray(random.randbytes(length))
            body[0], body[1] = code, 0x40 | random.choice((0, 0, 0x10, 0x30))
            body[2:4] = b"\xff\xff"
            body[4] = 0
            body[5:8] = side.qp.qp_num.to_bytes(3, "big")
            body[9:12] = (100).to_bytes(3, "big")
            data = sealed(bytes(body), gid, ctx.query_gid().raw)
            ctx.adapter.engine.receive(bytearray(data), length, gid, 4791, lab.net.now, 0)
            injected += 1
            ctx.driver.kick()
            side.qp.close()
            side.mr.close()
            side.cq.close()
            side.pd.close()
    lab.settle()
    assert ctx.counters()["rx.packets"] == injected
    lab.check_laws(injected)


def one_in_state(ctx: Any, service: QPType, state: QPState, peer: Any) -> Side:
    side = make_side(ctx, service, 64, depth=4)
    qp = side.qp
    init: dict[str, Any] = {"port_num": 1, "pkey_index": 0}
    init |= {"qkey": 1} if service is UD else {"access_flags": ALL_REMOTE}
    rtr: dict[str, Any] = {}
    rts: dict[str, Any] = {"sq_psn": 100}
    if service is not UD:
        rtr = {"ah_attr": AddressVector(peer.query_gid()), "path_mtu": 256, "dest_qp_num": 77, "rq_psn": 100}
    if service is RC:
        rtr |= {"max_dest_rd_atomic": 1, "min_rnr_timer": 1}
        rts |= {"timeout": 0, "retry_cnt": 0, "rnr_retry": 0, "max_rd_atomic": 1}
    steps = [(QPState.INIT, init), (QPState.RTR, rtr), (QPState.RTS, rts), (QPState.SQD, {})]
    if state is QPState.ERR:
        steps = steps[:3] + [(QPState.ERR, {})]
    for step, attributes in steps:
        if qp.state is state:
            break
        qp.modify(step, **attributes)
        if step is QPState.INIT:
            qp.post_recv(RecvRequest(1, [side.mr.sge(0, 8)]))
    return side
