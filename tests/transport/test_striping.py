"""Striping: the packets of one connection over several paths at once, and in order again (document 003:565)."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from lab import Lab, Packet, check_received, fetch_add, pattern, read, sealed, statuses, take, write
from transport.test_datagram_faults import Traffic as DatagramTraffic
from transport.test_faults import MILD
from transport.traffic import Traffic
from verbena import (
    AckPolicy,
    AddressVector,
    Context,
    DeviceAttributes,
    Faults,
    Gid,
    InvalidAttributeError,
    QPState,
    QPType,
    RecvRequest,
    WorkRequest,
    WROpcode,
    _pure,
)
from verbena.runtime.meshes import QKEY, Node, addressed, datagram_mesh
from verbena.runtime.pairs import Side, connect_sides, make_side

RC, RD = QPType.RC, QPType.RD
FAST = _pure.compiled()
MEBIBYTE = 1 << 20 if FAST else 1 << 18


def adapters(lab: Lab, links: int, **options: Any) -> tuple[Context, Context]:
    """Two adapters with so many links each; link i of one leads to link i of the other."""
    made = []
    for n in (1, 2):
        names = [f"10.{i}.0.{n}" for i in range(links)]
        made.append(lab.adapter(names[0], further_addresses=names[1:], **options))
    return made[0], made[1]


def stripes(peer: Context) -> list[AddressVector]:
    """Paths to the peer's further links."""
    return [AddressVector(gid, sgid_index=i) for i, gid in enumerate(peer.gids) if i]


def connect(a: Side, b: Side, **attributes: Any) -> None:
    """`connect_sides`, with all links of both adapters."""
    there, here = b.qp.endpoint, a.qp.endpoint
    a.qp.connect(there, stripe_ah_attrs=stripes(b.ctx), **attributes)
    b.qp.connect(here, stripe_ah_attrs=stripes(a.ctx), **attributes)


def connected(lab: Lab, links: int, memory: int = 2 * MEBIBYTE, **attributes: Any) -> tuple[Side, Side]:
    a, b = (make_side(ctx, RC, memory) for ctx in adapters(lab, links))
    connect(a, b, **attributes)
    return a, b


def slow(lab: Lab, *delays_ns: int) -> None:
    """Delays of the links, from both adapters."""
    for i, delay in enumerate(delays_ns):
        for n in (1, 2):
            lab.net.wires[Gid.from_ip(f"10.{i}.0.{n}").raw].delay_ns = delay


def taps(lab: Lab, n: int) -> list[Any]:
    """The recorders of adapter n's links."""
    half = len(lab.taps) // 2
    return lab.taps[n * half : (n + 1) * half]


def counted(side: Side, name: str) -> int:
    return side.ctx.counters()[name]


@pytest.mark.requirement("NOD-15")
@pytest.mark.parametrize("operation", ["write", "read", "send"])
@pytest.mark.parametrize("links", [2, 4])
def test_one_message_over_all_links(links: int, operation: str) -> None:
    times = {}
    for used in (1, links):
        lab = Lab(rate_bps=10e9)
        if used == 1:
            a, b = (make_side(ctx, RC, 2 * MEBIBYTE) for ctx in adapters(lab, links))
            connect_sides(a, b, mtu=4096)
        else:
            a, b = connected(lab, links, mtu=4096)
        data = pattern(MEBIBYTE)
        (b if operation == "read" else a).mr.buf[:MEBIBYTE] = data
        start = lab.net.now
        if operation == "send":
            b.qp.post_recv(RecvRequest(7, [b.mr.sge()]))
            a.qp.post_send(WorkRequest(1, WROpcode.SEND, [a.mr.sge(0, MEBIBYTE)]))
        else:
            a.qp.post_send({"write": write, "read": read}[operation](a, b, MEBIBYTE, 1))
        assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
        times[used] = lab.net.now - start
        lab.settle()
        assert a.cq.poll() == [], "one completion"
        assert len(b.cq.poll()) == (operation == "send")
        assert (a if operation == "read" else b).mr.buf[:MEBIBYTE] == data
        shares = [sum(len(p.data) for p in tap.out) for tap in taps(lab, 1 if operation == "read" else 0)]
        if used > 1:
            assert min(shares) >= 0.8 * sum(shares) / links, shares
        else:
            assert shares[1:] == [0] * (links - 1)
        for side in (a, b):
            check_received(side.ctx.counters())
            assert counted(side, "tx.retransmitted") == counted(side, "timeouts") == 0
    assert times[links] < 1.2 * times[1] / links, times


@pytest.mark.requirement("NOD-15")
@pytest.mark.parametrize("operation", [write, read])
def test_a_slower_link_overtakes_nothing(operation: Any) -> None:
    """Links of very different delay: packets come out of order, and are handed on in order, without repetition."""
    lab = Lab()
    a, b = connected(lab, 3, mtu=1024)
    slow(lab, 1000, 3000, 7000)
    a.mr.buf[:200_000] = b.mr.buf[300_000:500_000] = pattern(200_000)
    if operation is write:
        b.mr.buf[:200_000] = bytes(200_000)
        a.qp.post_send(write(a, b, 200_000, 1))
    else:
        a.qp.post_send(read(a, b, 200_000, 1, at=300_000, to=300_000))
    assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
    lab.settle()
    side = b if operation is write else a
    assert counted(side, "rx.reordered") > 50
    assert counted(side, "reorder.expired") == counted(a, "tx.retransmitted") == 0
    assert (b.mr.buf[:200_000] if operation is write else a.mr.buf[300_000:500_000]) == pattern(200_000)
    check_received(side.ctx.counters())


def test_messages_stay_in_order_and_atomics_happen_once() -> None:
    lab = Lab()
    a, b = connected(lab, 2, mtu=256)
    slow(lab, 1000, 9000)
    for i in range(40):
        b.qp.post_recv(RecvRequest(i, [b.mr.sge(1000 * i, 1000)]))
        a.mr.buf[1000 * i : 1000 * i + 700] = pattern(700, i)
        a.qp.post_send(WorkRequest(3 * i, WROpcode.SEND, [a.mr.sge(1000 * i, 700)]))
        a.qp.post_send(fetch_add(a, b, 1, 3 * i + 1, at=100_000 + 8 * i, to=200_000))
        a.qp.post_send(read(a, b, 600, 3 * i + 2, at=300_000 + 600 * i, to=1000 * i))
    assert [e.wr_id for e in take(a.cq, 120)] == list(range(120))
    assert [(e.wr_id, e.byte_len) for e in take(b.cq, 40)] == [(i, 700) for i in range(40)]
    for i in range(40):
        assert b.mr.buf[1000 * i : 1000 * i + 700] == pattern(700, i)
        assert a.mr.buf[300_000 + 600 * i : 300_600 + 600 * i] == pattern(700, i)[:600]
        assert int.from_bytes(a.mr.buf[100_000 + 8 * i : 100_008 + 8 * i], "little") == i
    assert b.mr.buf[200_000] == 40


def test_a_packet_lost_on_one_path_is_asked_for_when_the_gap_is_old() -> None:
    lab = Lab()
    a, b = connected(lab, 2, mtu=1024, reorder_ns=50_000)
    gone: list[Packet] = []

    def lose(packet: Packet) -> list[bytes]:
        if len(gone) < 1 and packet.name == "RC RDMA_WRITE_MIDDLE":
            gone.append(packet)
            return []
        return [packet.data]

    taps(lab, 0)[1].gate = lose
    a.mr.buf[:60_000] = pattern(60_000)
    a.qp.post_send(write(a, b, 60_000, 1))
    assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
    assert b.mr.buf[:60_000] == pattern(60_000)
    assert counted(b, "reorder.expired") == counted(b, "tx.naks") == 1
    assert counted(a, "timeouts") == 0
    nak = next(p for tap in taps(lab, 1) for p in tap.out if p.syndrome == 0x60)
    assert nak.psn == gone[0].psn
    assert 50_000 <= nak.when - gone[0].when < 60_000
    lab.settle()
    check_received(b.ctx.counters())


@pytest.mark.parametrize("operation", [write, read])
def test_no_more_is_in_flight_than_the_peer_has_room_for(operation: Any) -> None:
    """However slow one of the links is, what comes by the other finds room; unless somebody else sends."""
    lab = Lab()
    a, b = connected(lab, 2, mtu=256)
    slow(lab, 1000, 80_000)
    data = (a if operation is write else b).mr.buf[:300_000] = pattern(300_000)
    a.qp.post_send(operation(a, b, 300_000, 1))
    assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
    assert (b if operation is write else a).mr.buf[:300_000] == data
    for side in (a, b):
        assert counted(side, "reorder.overflow") == counted(side, "tx.retransmitted") == 0
    lab.settle()
    # Forged: the right source, and packet numbers at the window's edge and behind it.
    packet = next(p for p in taps(lab, 0)[0].out if not p.is_answer)
    expected = b.qp.query().rq_psn
    for ahead, kept in ((255, 1), (256, 0), (70_000, 0)):
        before = counted(b, "rx.reordered"), counted(b, "reorder.overflow")
        data = bytearray(packet.data)
        data[9:12] = ((expected + ahead) & 0xFFFFFF).to_bytes(3, "big")
        data = sealed(bytes(data), packet.burst.source, packet.burst.destination)
        b.ctx.adapter.engine.receive(bytearray(data), len(data), packet.burst.source, 4791, lab.net.now, 0)
        assert (counted(b, "rx.reordered"), counted(b, "reorder.overflow")) == (
            before[0] + kept,
            before[1] + 1 - kept,
        )
    b.qp.close()
    assert counted(b, "drop.reorder") == 1
    check_received(b.ctx.counters())


@pytest.mark.requirement("NOD-16")
@pytest.mark.parametrize("operation", [write, read])
@pytest.mark.parametrize("reported", [True, False])
@pytest.mark.parametrize("cut", [0, 1])
def test_one_of_two_links_is_cut_in_the_middle(cut: int, reported: bool, operation: Any) -> None:
    """The message completes over the other, whether the adapters are told that a port is down or not."""
    lab = Lab(rate_bps=10e9)
    a, b = connected(lab, 2, mtu=4096, timeout=8)
    data = pattern(MEBIBYTE)
    (a if operation is write else b).mr.buf[:MEBIBYTE] = data
    a.qp.post_send(operation(a, b, MEBIBYTE, 1))
    lab.net.run_for(200_000 * MEBIBYTE >> 20)  # of about 420 us
    before = [len(tap.out) for tap in lab.taps]
    for n in (0, 1):
        taps(lab, n)[cut].gate = lambda packet: []
    if reported:
        for side in (a, b):
            report(side, cut, False)
    assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
    lab.settle()
    assert a.cq.poll() == []
    assert (b if operation is write else a).mr.buf[:MEBIBYTE] == data
    after = [len(tap.out) for tap in lab.taps]
    if reported:
        assert [after[i] - before[i] for i in (cut, 2 + cut)] == [0, 0]
    # And back again.
    for n in (0, 1):
        taps(lab, n)[cut].gate = None
    if reported:
        for side in (a, b):
            report(side, cut, True)
    a.qp.post_send(operation(a, b, 100_000, 2))
    assert statuses(take(a.cq, 1)) == [(2, "SUCCESS")]
    sender = taps(lab, 0 if operation is write else 1)[cut]
    assert len(sender.out) > after[lab.taps.index(sender)], "the link is used again"


def report(side: Side, link: int, up: bool) -> None:
    """Tell the adapter about the ports of the queue pair's paths."""
    engine = side.ctx.adapter.engine
    attributes = engine.attributes(side.qp._index)
    for path in attributes["stripes"]:
        if engine.path_source(path) == side.ctx.gids[link].raw:
            engine.set_path_usable(path, up)


@pytest.mark.requirement("NOD-16")
@pytest.mark.parametrize("reported", [True, False])
def test_both_links_cut_end_in_an_error(reported: bool) -> None:
    lab = Lab(rate_bps=10e9)
    a, b = connected(lab, 2, mtu=4096, timeout=6, retry_cnt=3)
    a.qp.post_send(write(a, b, MEBIBYTE, 1))
    a.qp.post_send(write(a, b, 8, 2))
    lab.net.run_for(200_000 * MEBIBYTE >> 20)
    for tap in lab.taps:
        tap.gate = lambda packet: []
    if reported:
        for link in (0, 1):
            report(a, link, False)
            report(b, link, False)
    lab.settle()
    assert statuses(a.cq.poll()) == [(1, "RETRY_EXC_ERR"), (2, "WR_FLUSH_ERR")]
    assert a.qp.state is QPState.ERR
    b.qp.close()
    check_received(b.ctx.counters())


@pytest.mark.requirement("TRN-13", "NOD-15")
def test_a_reliable_datagram_over_two_links() -> None:
    lab = Lab(rate_bps=10e9)
    nodes = striped_nodes(lab, 2, 1, mtu=4096)
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    slow(lab, 1000, 4000)
    a.mr.buf[:MEBIBYTE] = pattern(MEBIBYTE)
    for i, request in enumerate((write(a, b, MEBIBYTE), read(a, b, MEBIBYTE, at=MEBIBYTE))):
        a.qp.post_send(addressed(request, nodes[0].contexts[1], b.qp))
        assert statuses(take(a.cq, 1)) == [(0, "SUCCESS")]
        shares = [sum(len(p.data) for p in tap.out if len(p.data) > 100) for tap in taps(lab, i)]
        assert min(shares) > 0.4 * sum(shares)
    assert b.mr.buf[:MEBIBYTE] == pattern(MEBIBYTE)
    assert a.mr.buf[MEBIBYTE:] == pattern(MEBIBYTE)
    assert counted(a, "tx.retransmitted") == 0


def striped_nodes(lab: Lab, links: int, processes: int, **attributes: Any) -> list[Node]:
    """Two nodes of reliable datagrams whose context uses all links."""
    one, two = lab.contexts or adapters(lab, links)
    nodes = datagram_mesh(
        [one, two],
        processes,
        memory=2 * MEBIBYTE,
        activate={"min_rnr_timer": 1},
        sizes={"max_recv_wr": 512},
        mtu=attributes.get("mtu", 4096),
    )
    for here, there in ((0, 1), (1, 0)):
        context, peer = nodes[here].contexts[there], nodes[there].contexts[here].endpoint
        context.modify(QPState.RESET)
        context.connect(peer, stripe_ah_attrs=stripes(nodes[there].ctx), **attributes)
    return nodes


@pytest.mark.requirement("NOD-15")
@pytest.mark.parametrize("policy", list(AckPolicy))
@pytest.mark.parametrize("faults", [None, MILD], ids=["clean", "mild"])
@pytest.mark.parametrize("round_", range(3))
def test_memory_equals_the_model(seed: int, round_: int, faults: Faults | None, policy: AckPolicy) -> None:
    random = Random(seed)
    lab = Lab(seed, faults)
    links = 2 + round_
    contexts = adapters(lab, links, ack_policy=policy, window_bytes=random.choice((1 << 14, 1 << 20)))
    pairs = []
    for _ in range(3):
        ends = [make_side(ctx, RC, 64) for ctx in contexts]
        for end in ends:
            end.qp._psn = random.choice((random.getrandbits(24), 0xFFFFFF - random.randrange(40)))
        connect(
            *ends,
            mtu=512,
            timeout=9,
            retry_cnt=7,
            rnr_retry=7,
            min_rnr_timer=1,
            max_rd_atomic=1 + 2 * round_,
            reorder_ns=random.choice((20_000, 100_000)),
        )
        pairs.append((ends[0], ends[1]))
    slow(lab, *(random.choice((500, 2000, 10_000)) for _ in range(links)))
    Traffic(lab, random, pairs, 512, 12_000).run(60 if FAST else 20)


@pytest.mark.requirement("NOD-15", "TRN-13")
@pytest.mark.parametrize("faults", [None, MILD], ids=["clean", "mild"])
def test_datagrams_equal_the_model(seed: int, faults: Faults | None) -> None:
    random = Random(seed)
    lab = Lab(seed, faults)
    nodes = striped_nodes(lab, 2, 3, mtu=256, timeout=9)
    slow(lab, 500, 5000)
    DatagramTraffic(lab, random, nodes, 256, 2048).run(200 if FAST else 60)


def test_a_stranger_is_no_stripe() -> None:
    """Packets of a connection are taken from its own paths only."""
    lab = Lab()
    a, b = connected(lab, 2)
    c = make_side(lab.adapter("10.9.0.9"), RC)
    c.qp._psn = a.qp._psn
    c.qp.connect(b.qp.endpoint)
    c.qp.post_send(write(c, b, 100, 1))
    lab.net.run_for(20_000)
    assert counted(b, "drop.source") == 1
    a.qp.post_send(write(a, b, 100, 2))
    assert statuses(take(a.cq, 1)) == [(2, "SUCCESS")]


def test_how_stripes_are_set() -> None:
    lab = Lab()
    one, two = adapters(lab, 4)
    a, b = make_side(one, RC), make_side(two, RC)
    with pytest.raises(InvalidAttributeError, match="at most 3"):
        a.qp.connect(b.qp.endpoint, stripe_ah_attrs=stripes(two) + stripes(two))
    with pytest.raises(InvalidAttributeError, match="AddressVector"):
        a.qp.modify(QPState.RTR, **rtr(b), stripe_ah_attrs=["10.0.0.1"])
    with pytest.raises(InvalidAttributeError, match="reorder_ns"):
        a.qp.modify(QPState.RTR, **rtr(b), reorder_ns=0)
    with pytest.raises(InvalidAttributeError, match="GID table"):
        a.qp.modify(QPState.RTR, **rtr(b), stripe_ah_attrs=[AddressVector(two.gids[1], sgid_index=4)])
    assert a.qp.state is QPState.INIT
    connect(a, b, reorder_ns=5000)
    found = a.qp.query()
    assert found.stripe_ah_attrs == tuple(stripes(two))
    assert found.reorder_ns == 5000
    # Back to one path, and on to it, where the standard lets a path be changed.
    for side in (a, b):
        side.qp.modify(QPState.SQD)
        side.qp.modify(stripe_ah_attrs=[])
        side.qp.modify(QPState.RTS)
    a.qp.post_send(write(a, b, 100_000, 1))
    assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
    assert [bool(tap.out) for tap in taps(lab, 0)] == [True, False, False, False]
    a.qp.modify(QPState.RESET)
    assert a.qp.query().stripe_ah_attrs == ()


def rtr(peer: Side) -> dict[str, Any]:
    there = peer.qp.endpoint
    return {
        "ah_attr": AddressVector(there.gid),
        "path_mtu": 1024,
        "dest_qp_num": there.qp_num,
        "rq_psn": there.psn,
        "max_dest_rd_atomic": 1,
        "min_rnr_timer": 1,
    }


def test_paths_are_given_back() -> None:
    lab = Lab()
    one, two = adapters(lab, 4, limits=DeviceAttributes(max_qp=8, max_cq=8, max_ah=8))
    for _ in range(one.adapter.engine.max_path):
        a, b = make_side(one, RC, 64, depth=4), make_side(two, RC, 64, depth=4)
        connect(a, b)
        for side in (a, b):
            with side.pd:
                pass
            side.cq.close()


def test_the_q_key_is_still_asked_for() -> None:
    lab = Lab()
    nodes = striped_nodes(lab, 2, 1, mtu=1024)
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    a.qp.post_send(addressed(write(a, b, 9000, 1), nodes[0].contexts[1], b.qp, QKEY + 1))
    assert statuses(take(a.cq, 1)) == [(1, "REM_INV_RD_REQ_ERR")]
    lab.settle()
    check_received(b.ctx.counters())
