"""Links under real RDMA traffic: flits and their acknowledgment, errors, credits, lanes."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import pytest

from lab import pattern
from system.world import (
    FAST,
    MS,
    FabricOptions,
    Hop,
    PortId,
    SubnetManagerConfig,
    TraceKind,
    World,
    decoded,
    exchange,
    finish,
    star,
    write,
)
from verbena import AckPolicy, InvalidAttributeError, RecvRequest, WorkRequest, WROpcode
from verbena.fabric.topology import Link
from verbena.runtime.pairs import Side
from verbena.wire.flit import FlitKind

PER_PACKET = {"ack_policy": AckPolicy.PER_PACKET}
LINKS = {"314": "host-302", "316": "switch-310", "318": "switch-312"}


def transaction(**options: Any) -> World:
    """Document 003, Figure 8: two hosts, two switches, three links."""
    return World("transaction", **options)


def hurt(world: World, port: str, rate: float) -> None:
    """Give one cable a bit error rate, and let the subnet manager take it up again."""
    link = world.pull(port)
    world.run_for(200 * MS)  # a port's traps come at least 67 ms apart
    world.plug(Link(link.a, link.b, link.rate, link.delay_ns, rate))
    world.run_for(200 * MS)
    assert world.settled


# --- messages, packets, flits --------------------------------------------------------------------------------


@pytest.mark.requirement("LNK-01")
def test_gather_entries_and_packets_are_cut_independently() -> None:
    world = transaction()
    a, b = world.pair("host-302", "host-304", mtu=256)
    parts = [pattern(100, 1), pattern(250, 2), pattern(7, 3), pattern(93, 4)]
    places = [0, 1000, 2000, 3000]
    for place, part in zip(places, parts, strict=True):
        a.mr.buf[place : place + len(part)] = part
    b.qp.post_recv(RecvRequest(7, [b.mr.sge(0, 1000)]))
    out = world.assembly.ports[PortId("host-302", 1)]
    world.core.tap(out, True)
    gather = [a.mr.sge(place, len(part)) for place, part in zip(places, parts, strict=True)]
    a.qp.post_send(WorkRequest(1, WROpcode.SEND, gather))
    assert finish(a) == ["SUCCESS"]
    (got,) = b.cq.wait(1)
    message = b"".join(parts)
    assert bytes(b.mr.buf[: got.byte_len]) == message
    payloads = [decoded(p).transport.payload for _, _, outbound, p in world.core.take_taps() if outbound]
    assert [len(p) for p in payloads] == [256, len(message) - 256]  # the border lies within part 1
    assert b"".join(payloads) == message

    # A message of no bytes is one packet of no bytes.
    b.qp.post_recv(RecvRequest(8, []))
    a.qp.post_send(WorkRequest(2, WROpcode.SEND, []))
    assert finish(a) == ["SUCCESS"]
    empty = [decoded(p).transport.payload for _, _, outbound, p in world.core.take_taps() if outbound]
    assert empty == [b""]
    world.check_laws()


@pytest.mark.requirement("LNK-03")
@pytest.mark.parametrize("mtu", [256, 512, 1024, 2048, 4096])
def test_sizes_of_packets(mtu: int) -> None:
    world = transaction(options=FabricOptions(mtu=mtu))
    a, b = world.pair("host-302", "host-304")
    assert a.ctx.query_port().active_mtu == mtu
    world.core.tap(world.assembly.ports[PortId("host-304", 1)], True)
    data = write(a, b, 10_001)
    assert finish(a) == ["SUCCESS"]
    assert b.mr.buf[:10_001] == data
    sizes = [
        len(decoded(p).transport.payload) for _, _, outbound, p in world.core.take_taps() if not outbound
    ]
    whole, rest = divmod(10_001, mtu)
    assert sizes == [mtu] * whole + [rest] * bool(rest)
    world.check_laws()


@pytest.mark.requirement("LNK-03")
@pytest.mark.parametrize("mtu", [300, 8192, 128, 0])
def test_other_sizes_are_refused(mtu: int) -> None:
    with pytest.raises(InvalidAttributeError, match="mtu"):
        FabricOptions(mtu=mtu)
    world = transaction()
    a, b = world.side("host-302"), world.side("host-304")
    if mtu:  # 0 stands for the port's own
        with pytest.raises(InvalidAttributeError, match="path_mtu"):
            a.qp.connect(b.qp.endpoint, mtu=mtu)


@pytest.mark.requirement("LNK-04", "LNK-05")
def test_packets_cross_switches_unchanged_and_flits_are_made_anew() -> None:
    world = transaction()
    a, b = world.pair("host-302", "host-304", mtu=1024)
    ports = [("host-302", 1), ("switch-310", 1), ("switch-310", 2), ("switch-312", 1), ("switch-312", 2)]
    ports.append(("host-304", 1))
    for node, number in ports:
        world.core.tap(world.assembly.ports[PortId(node, number)], True)
    write(a, b, 20_000)
    finish(a)  # its own flits are not traced: the links' sequence numbers go apart
    exchange(b, a)
    world.core.take_taps()
    world.trace(TraceKind.FLIT_SENT)
    write(a, b, 20_000, seed=2)
    assert finish(a) == ["SUCCESS"]
    seen: dict[tuple[PortId, bool], list[bytes]] = defaultdict(list)
    for _, port, outbound, packet in world.core.take_taps():
        seen[world.assembly.ids[port], outbound].append(packet)
    # Everything along the way saw the same bytes, LRH to VCRC, in the same order.
    forward = [(PortId(n, i), at % 2 == 0) for at, (n, i) in enumerate(ports)]
    reference = seen[forward[0]]
    assert len(reference) == 20
    for place in forward:
        assert seen[place] == reference, place
    assert all(decoded(p).grh is None for p in reference)  # within a subnet: no global header
    # The flits that carried them are the links' own: each link numbers them by itself.
    numbers: dict[PortId, list[int]] = defaultdict(list)
    for hop in world.hops():
        if hop.detail == FlitKind.DATA:
            numbers[hop.port].append(hop.sequence)
    row = [numbers[PortId(n, i)] for n, i in (ports[0], ports[2], ports[4])]
    assert len(row[0]) == len(row[1]) == len(row[2]) > 20 * 12
    assert len({flits[0] for flits in row}) == 3, (
        "links number their flits alike: the test must part them first"
    )
    for flits in row:
        assert flits == [(flits[0] + i) % 4096 for i in range(len(flits))]
    world.check_laws()


@pytest.mark.requirement("LNK-10", "LNK-09")
def test_the_documents_transaction_flit_by_flit() -> None:
    """Two packets of four flits over three links, each acknowledged by one flit; two ACK packets of one flit back."""
    world = transaction()
    a, b = world.pair("host-302", "host-304", mtu=256, device=PER_PACKET)
    parts = [150, 200, 60, 102]  # four parts, two packets of 256 bytes
    message = pattern(sum(parts))
    a.mr.buf[: len(message)] = message
    b.qp.post_recv(RecvRequest(7, [b.mr.sge(0, 1000)]))
    world.run_for(MS)
    world.trace(TraceKind.FLIT_SENT | TraceKind.FLIT_RECEIVED | TraceKind.DELIVER)
    gather, at = [], 0
    for size in parts:
        gather.append(a.mr.sge(at, size))
        at += size
    a.qp.post_send(WorkRequest(1, WROpcode.SEND, gather))
    (done,) = a.cq.wait(1)
    assert done.ok
    world.run_for(MS)
    hops = world.hops(data=False)
    sent = [hop for hop in hops if hop.kind is TraceKind.FLIT_SENT]
    forward = [PortId("host-302", 1), PortId("switch-310", 2), PortId("switch-312", 2)]
    backward = [PortId("host-304", 1), PortId("switch-312", 1), PortId("switch-310", 1)]
    expected = {(port, FlitKind.DATA): 8 for port in forward}
    expected |= {(port, FlitKind.DATA): 2 for port in backward}
    expected |= {(port, FlitKind.ACK): 1 for port in (*forward, *backward)}
    counted = Counter((hop.port, FlitKind(hop.detail)) for hop in sent)
    assert counted == expected  # 24 + 3 + 6 + 3, and nothing else
    assert sum(counted.values()) == 36
    _check_causes(hops, forward, backward)
    (got,) = b.cq.wait(1)
    assert bytes(b.mr.buf[: got.byte_len]) == message
    assert not a.cq.poll()
    assert b.ctx.counters()["tx.acks"] == 2
    assert a.ctx.counters()["tx.retransmitted"] == 0
    world.check_laws()


def _check_causes(hops: list[Hop], forward: list[PortId], backward: list[PortId]) -> None:
    """Each flit leaves a switch after it came in, an acknowledgment after all that it acknowledges came in, an ACK
    packet after its request was delivered."""
    came: dict[tuple[PortId, int], int] = {}
    left: dict[tuple[PortId, int, int], int] = {}
    order: dict[tuple[PortId, int], int] = Counter()
    delivered = {hop.packet: hop.time_ps for hop in hops if hop.kind is TraceKind.DELIVER}
    for hop in hops:
        if hop.kind is TraceKind.FLIT_SENT and hop.detail == FlitKind.DATA:
            order[hop.port, hop.packet] += 1
            left[hop.port, hop.packet, order[hop.port, hop.packet]] = hop.time_ps
    for way in (forward, backward):
        for (port, packet, number), time in left.items():
            if port in way[1:]:
                before = way[way.index(port) - 1]
                assert left[before, packet, number] < time
    requests = sorted({packet for port, packet, _ in left if port in forward})
    acks = sorted({packet for port, packet, _ in left if port in backward})
    assert len(requests) == len(acks) == 2
    for request, ack in zip(requests, acks, strict=True):
        assert delivered[request] <= left[backward[0], ack, 1]
    # The acknowledgments of a hop: after the last flit of that hop had come in at the other end.
    peers = dict(zip(forward, reversed(backward), strict=True))
    for hop in hops:
        if hop.kind is TraceKind.FLIT_RECEIVED and hop.detail == FlitKind.DATA:
            came[hop.port, hop.sequence] = hop.time_ps
    for hop in hops:
        if hop.kind is TraceKind.FLIT_SENT and hop.detail == FlitKind.ACK:
            acknowledged = [t for (port, _), t in came.items() if port == hop.port]
            assert len(acknowledged) in (2, 8)
            assert max(acknowledged) <= hop.time_ps
    assert set(peers) == set(forward)


# --- errors --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("LNK-08", "LNK-11")
@pytest.mark.parametrize("hurt_link", ["314", "316", "318"])
def test_errors_of_one_link_are_repaired_there(hurt_link: str) -> None:
    """Bit errors on one link: its two ends send again, nobody else does, and the transport never notices."""
    world = transaction(seed=5)
    a, b = world.pair("host-302", "host-304", memory=1 << 18)
    world.run_for(MS)
    port = {"314": "host-302[1]", "316": "switch-310[2]", "318": "host-304[1]"}[hurt_link]
    hurt(world, port, 2e-6)
    ends = {port, str(world.topology.peer(next(p for p in world.topology.at if str(p) == port)))}
    before = world.counter("flit_retries")
    messages = [write(a, b, 1 << 15, seed=n, wr_id=n, at=n << 15) for n in range(8)]
    assert finish(a, 8) == ["SUCCESS"] * 8
    for n, message in enumerate(messages):
        assert b.mr.buf[n << 15 : (n + 1) << 15] == message
    repaired = world.counter("flit_retries")
    assert set(before) <= ends  # the subnet manager's packets were hit, too
    assert sum(repaired.values()) > sum(before.values())
    assert set(repaired) <= ends, "flits were sent again on a link without errors"
    assert set(world.counter("flit_errors")) | set(world.counter("sequence_errors")) <= ends
    assert set(world.counter("bit_errors")) <= ends
    for side in (a, b):
        counters = side.ctx.counters()
        for name in ("tx.retransmitted", "timeouts", "rx.duplicate", "rx.out_of_sequence", "rx.naks"):
            assert counters[name] == 0, name
    assert not {k: v for k, v in world.dropped().items() if "link_down" not in k and "state" not in k}
    world.check_laws()


@pytest.mark.requirement("LNK-11", "LNK-08")
def test_one_flit_in_ten_thousand_is_hit() -> None:
    """The row's rate: 1e-4 of all flits (92 bytes: 736 bits) on every link; the client sees nothing of it.

    Uncompiled: ten times as many of an eighth of the flits.
    """
    size, rate = (1 << 20, 1e-4) if FAST else (1 << 17, 1e-3)
    world = transaction(seed=3)
    a, b = world.pair("host-302", "host-304", memory=1 << 20, mtu=4096)
    for port in ("host-302[1]", "switch-310[2]", "host-304[1]"):
        hurt(world, port, rate / 736)
    data = [write(a, b, size, seed=n, wr_id=n) for n in range(3)]
    assert finish(a, 3) == ["SUCCESS"] * 3
    assert b.mr.buf[:size] == data[-1]
    flits = sum(world.counter("xmit_flits").values())
    hit = sum(world.counter("bit_errors").values())
    assert 0.3 * rate < hit / flits < 3 * rate
    assert sum(world.counter("flit_retries").values()) >= hit  # the links repaired it,
    assert a.ctx.counters()["tx.retransmitted"] == 0  # not the adapters
    world.check_laws()


@pytest.mark.requirement("LNK-11")
def test_what_the_link_cannot_repair_the_transport_does() -> None:
    """A cable that is pulled takes packets with it; the client sees normal completions all the same."""
    world = transaction(seed=2)
    a, b = world.pair("host-302", "host-304", memory=1 << 20, timeout=10)
    data = write(a, b, 1 << 20)
    world.run_for(20_000)
    link = world.pull("switch-310[2]")
    world.run_for(MS)
    world.plug(link)
    assert finish(a) == ["SUCCESS"]
    assert b.mr.buf[: 1 << 20] == data
    assert sum(world.dropped().values()) > 0
    assert a.ctx.counters()["tx.retransmitted"] > 0
    assert not world.counter("flit_retries")
    world.check_laws()


# --- congestion ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("LNK-19")
@pytest.mark.parametrize("flits", [True, False])
def test_incast_slows_the_senders_down_and_loses_nothing(flits: bool) -> None:
    """Eight hosts write to one at full rate; the sum of them is that one link's rate, and no packet is dropped."""
    size, rounds = (1 << 17, 1) if flits or not FAST else (1 << 20, 2)
    world = star(9, flits=flits, options=FabricOptions(buffer_bytes=16 << 10))
    # The transport may not mistake waiting for loss: 4.096 us * 2^16 is more than all of it takes.
    pairs = [world.pair(f"h{n}", "h8", memory=size, mtu=4096, timeout=16) for n in range(8)]
    alone_begin = world.now
    write(*pairs[0], size)
    assert finish(pairs[0][0]) == ["SUCCESS"]
    alone = world.now - alone_begin
    begin = world.now
    data = [write(*pair, size, seed=r * 8 + n) for r in range(rounds) for n, pair in enumerate(pairs)]
    for a, _ in pairs:
        assert finish(a, rounds) == ["SUCCESS"] * rounds
    took = world.now - begin
    for n, (_, b) in enumerate(pairs):
        assert b.mr.buf == data[(rounds - 1) * 8 + n]
    assert not world.dropped()
    for side in (side for pair in pairs for side in pair):
        c = side.ctx.counters()
        assert c["tx.retransmitted"] == c["timeouts"] == c["rx.duplicate"] == 0
    least = 8 * rounds * size * 8 * 92 / 80 / 100  # at 100 Gb/s, as flits, without any header
    assert took > least
    assert took < 1.2 * least, "the link to the receiver was not kept busy"
    assert took > 7 * rounds * alone * 0.9
    waited = world.counter("xmit_wait_ns")
    assert all(waited.get(f"h{n}[1]", 0) > took / 2 for n in range(8)), waited
    world.check_laws()


def lanes(world: World) -> dict[int, set[int]]:
    """The lanes on which each packet was seen."""
    found: dict[int, set[int]] = defaultdict(set)
    for hop in world.hops():
        found[hop.packet].add(hop.lane)
    return dict(found)


@pytest.mark.requirement("LNK-13")
def test_a_packet_keeps_its_lane() -> None:
    world = World("line switches=4", options=FabricOptions(lanes=4))
    for sl in range(8):
        a, b = world.pair("h0", "h3", sl=sl, mtu=256)
        world.trace(TraceKind.SEND)
        write(a, b, 2000, seed=sl)
        assert finish(a) == ["SUCCESS"]
        world.run_for(MS)
        hops = world.hops()
        ways = world.ways(hops)
        assert {len(way) for way in ways.values()} == {5}
        assert {hop.lane for hop in hops} == {sl % 4}  # request and acknowledgment, on all hops
        # the packet itself tells the same lane
    world.core.tap(world.assembly.ports[PortId("h3", 1)], True)
    write(a, b, 100)
    finish(a)
    taps = [packet for _, _, outbound, packet in world.core.take_taps() if not outbound]
    assert [packet[0] >> 4 for packet in taps] == [7 % 4]
    world.check_laws()


@pytest.mark.requirement("LNK-14", "LNK-17")
def test_a_stalled_lane_does_not_stop_the_other() -> None:
    """Two flows through one link, one of whose receivers takes nothing: that lane stops, the other goes on as if
    alone; on the same lane, both stop."""

    def run(sl_free: int, stall: bool) -> tuple[World, int, Side]:
        world = World("line switches=2 hosts=2", options=FabricOptions(lanes=2, buffer_bytes=8 << 10))
        stuck = world.pair("h0.0", "h1.0", sl=1, memory=1 << 17, timeout=0, retry_cnt=7)
        free = world.pair("h0.1", "h1.1", sl=sl_free, memory=1 << 17, timeout=0)
        if stall:
            world.core.stall(world.assembly.ports[PortId("h1.0", 1)], True)
            write(*stuck, 1 << 17)
            world.run_for(200_000)
        begin = world.now
        data = write(*free, 1 << 17, seed=9)
        if sl_free == 1 and stall:
            world.run_for(2 * MS)
            assert not free[0].cq.poll()
            return world, -1, stuck[0]
        assert finish(free[0]) == ["SUCCESS"]
        assert free[1].mr.buf == data
        return world, world.now - begin, stuck[0]

    _, alone, _ = run(0, False)
    world, beside, stuck = run(0, True)
    assert beside == alone
    assert not stuck.cq.poll()
    waiting = {world.assembly.ids[at].node for at, lane, _, _ in world.core.waiting() if lane == 1}
    assert waiting == {"h0.0", "s0", "s1"}, "the stall must reach back to its sender"
    assert {lane for _, lane, _, _ in world.core.waiting()} == {1}
    world.check_laws()
    # Taken up again, the stalled flow goes on and ends well: nothing was lost.
    world.core.stall(world.assembly.ports[PortId("h1.0", 1)], False)
    assert finish(stuck) == ["SUCCESS"]
    assert not world.dropped()
    world.check_laws()
    blocked, _, _ = run(1, True)  # the negative part: one lane for both
    assert {lane for _, lane, _, _ in blocked.core.waiting()} == {1}


@pytest.mark.requirement("LNK-14", "LNK-18")
def test_flits_of_two_packets_never_mix_on_a_lane() -> None:
    """Traffic on several lanes over one link: lanes take turns by flits, one lane's packets follow each other whole."""
    world = World("line switches=2 hosts=3", options=FabricOptions(lanes=4))
    pairs = [world.pair(f"h0.{n}", f"h1.{n}", sl=n, mtu=1024, memory=1 << 15) for n in range(3)]
    world.trace(TraceKind.FLIT_SENT)
    for pair in pairs:
        write(*pair, 1 << 15)
    for a, _ in pairs:
        assert finish(a) == ["SUCCESS"]
    by_port: dict[PortId, list[Hop]] = defaultdict(list)
    for hop in world.hops():
        if hop.detail == FlitKind.DATA:
            by_port[hop.port].append(hop)
    shared = [flits for flits in by_port.values() if len({f.lane for f in flits}) == 3]
    assert shared, "no link carried all three lanes"
    for flits in by_port.values():
        flits.sort(key=lambda f: f.time_ps)
        for before, after in pairwise(flits):
            assert after.time_ps >= before.time_ps + before.size * 80  # 80 ps a byte: never two at once
        for lane in range(3):
            order = [f.packet for f in flits if f.lane == lane]
            runs = 1 + sum(x != y for x, y in pairwise(order))
            assert runs == len(set(order)) or not order, "flits of two packets are mixed on one lane"
    switches = sum(x.packet != y.packet for x, y in pairwise(shared[0]))
    assert switches > 2 * len({f.packet for f in shared[0]}), "lanes do not take turns by flits"
    world.check_laws()


@pytest.mark.requirement("LNK-15")
def test_a_reserved_lane_keeps_its_latency_under_load() -> None:
    """Best-effort writes fill a link; messages on the lane of high priority wait for about a flit a hop."""

    def latency(load: bool, high: bool) -> int:
        config = SubnetManagerConfig(
            lanes=2,
            arbitration_high=((1, 255),) if high else (),
            arbitration_low=((0, 32), (1, 32)) if not high else ((0, 32),),
            high_limit=255 if high else 0,
        )
        world = World("line switches=2 hosts=3", config=config, options=FabricOptions(lanes=2))
        noise = [world.pair(f"h0.{n}", f"h1.{n}", sl=0, memory=1 << 18, timeout=0) for n in range(2)]
        a, b = world.pair("h0.2", "h1.2", sl=1, mtu=4096)
        if load:
            for pair in noise:
                write(*pair, 1 << 18)
            world.run_for(10_000)
        worst = 0
        for n in range(5):
            begin = world.now
            write(a, b, 8, seed=n)
            finish(a)
            worst = max(worst, world.now - begin)
            world.run_for(500)
        if load:
            assert not noise[0][0].cq.poll(), "the load ended too early"
        world.check_laws()
        return worst

    quiet, loaded = latency(False, True), latency(True, True)
    # 3 links there and back: a flit of the other lane (7.4 ns at 100 Gb/s), and its turn, on each.
    assert loaded <= quiet + 6 * 2 * 8
    same = latency(True, False)
    assert same >= loaded
