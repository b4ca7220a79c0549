"""Connections and raw datagrams between subnets, with real transport at both ends (document 003, Fig. 6)."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from fabric.router_lab import PERIOD_NS, RouterLab
from fabric.routers import udp6
from native_lab import RC
from verbena import AddressVector, Gid, QPType, RecvRequest, WorkRequest, WROpcode
from verbena.runtime.pairs import Side, make_side
from verbena.wire import decode_infiniband

SIZE = 400_000


def connect(
    a: Side, b: Side, forth: int, back: int, alternates: Any = (None, None), **attributes: Any
) -> None:
    """RC between subnets: the first hop is a router's LID, the packets carry a global header."""
    for here, there, dlid, alternate in ((a, b, forth, alternates[0]), (b, a, back, alternates[1])):
        endpoint = there.qp.endpoint
        here.qp.connect(endpoint, dlid=dlid, alternate=alternate, mtu=1024, **attributes)


def write(a: Side, b: Side, size: int = SIZE) -> WorkRequest:
    return WorkRequest(1, WROpcode.RDMA_WRITE, [a.mr.sge(0, size)], remote_addr=b.mr.addr, rkey=b.mr.rkey)


def ends(lab: RouterLab, *subnets: str) -> list[Side]:
    sides = [make_side(lab.host(subnet), RC, 1 << 19) for subnet in subnets]
    sides[0].mr.buf[:SIZE] = Random(1).randbytes(SIZE)
    return sides


@pytest.mark.requirement("SWR-04")
def test_a_connection_between_subnets() -> None:
    lab = RouterLab()
    a, b = ends(lab, "A", "B")
    lab.router("r", "A", "B")
    connect(a, b, lab.lid_of("r", "A"), lab.lid_of("r", "B"))
    seen: list[bytes] = []
    inner = lab.into
    lab.into = lambda subnet, packet, sender="": (seen.append(packet), inner(subnet, packet, sender))[1]
    a.qp.post_send(write(a, b, 5000))
    b.qp.post_recv(RecvRequest(7, [b.mr.sge(100_000, 5000)]))
    a.qp.post_send(WorkRequest(2, sg_list=[a.mr.sge(0, 5000)]))
    a.qp.post_send(
        WorkRequest(3, WROpcode.RDMA_READ, [a.mr.sge(200_000, 5000)], remote_addr=b.mr.addr, rkey=b.mr.rkey)
    )
    lab.run()
    assert [e.ok for e in a.cq.poll()] == [True] * 3
    assert b.mr.buf[:5000] == b.mr.buf[100_000:105_000] == a.mr.buf[200_000:205_000] == a.mr.buf[:5000]
    packets = [decode_infiniband(p + b"\0\0") for p in seen]
    by_transport: dict[bytes, list] = {}
    for packet in packets:
        by_transport.setdefault(packet.transport.encode(), []).append(packet)
    for before, after in by_transport.values():  # each is seen twice: once in each subnet
        assert before.transport == after.transport, (
            "transport header, payload and end-to-end check are the same"
        )
        assert before.icrc_ok
        assert after.icrc_ok
        assert {before.lrh.slid, before.lrh.dlid}.isdisjoint({after.lrh.slid, after.lrh.dlid})
        assert before.grh.hop_limit == after.grh.hop_limit + 1
    # No route: dropped, counted, and the requester's retries end.
    lab.routers["r"].configure(2, active=False)
    dropped = lab.routers["r"].dropped
    a.qp.post_send(write(a, b, 100))
    lab.run(2_000_000_000)
    assert [e.status.name for e in a.cq.poll()] == ["RETRY_EXC_ERR"]
    assert lab.routers["r"].counters["drop.no_route"] == lab.routers["r"].dropped - dropped == 8
    lab.check()


def test_a_blocked_output_stalls_and_loses_nothing() -> None:
    """Back pressure: the router's output takes nothing for a while; no packet is sent again after that."""
    lab = RouterLab()
    a, b = ends(lab, "A", "B")
    router = lab.router("r", "A", "B")
    connect(a, b, lab.lid_of("r", "A"), lab.lid_of("r", "B"), timeout=20)
    plain, blocked = router._output, [True]
    router._output = lambda port, packet: not (blocked[0] and port == 2) and plain(port, packet)
    a.qp.post_send(write(a, b))
    lab.run(1_000_000)
    assert router.waiting == lab.held["r"] > 0, "what waits holds its input buffers"
    assert b.mr.buf[:SIZE] == bytes(SIZE)
    blocked[0] = False
    router.room(2)
    lab.run(5_000_000)
    assert [e.ok for e in a.cq.poll()] == [True]
    assert b.mr.buf[:SIZE] == a.mr.buf[:SIZE]
    assert a.ctx.counters()["tx.retransmitted"] == 0
    assert (router.dropped, lab.held["r"]) == (0, 0)
    lab.check()


def pairs() -> RouterLab:
    """Fig. 6: subnet A with routers a1 and a2, subnet B with b1 and b2, joined by what is between them."""
    lab = RouterLab()
    for name, subnet in (("a1", "A"), ("a2", "A"), ("b1", "B"), ("b2", "B")):
        lab.router(name, subnet, "T")
    return lab


def step_until(lab: RouterLab, condition: Any) -> None:
    while not condition():
        assert lab.clock.step()


@pytest.mark.requirement("SWR-05")
def test_the_far_router_in_use_dies_in_mid_transfer() -> None:
    """What the routers know leads to the other one; the connection repeats what was lost, and ends right."""
    lab = pairs()
    a, b = ends(lab, "A", "B")
    lab.start()
    used = {r.via for r in lab.routers["a1"].table if r.via} & {
        p.gid for p in lab.routers["b1"].ports.values()
    }
    first, second = ("b1", "b2") if used else ("b2", "b1")
    via = lab.routers["a1"].table.lookup(b.ctx.query_gid().raw, lambda r: True).via
    first, second = ("b1", "b2") if via == lab.routers["b1"].ports[2].gid else ("b2", "b1")
    # The way back goes through the router that stays: forth and back need not be the same (003:629).
    connect(a, b, lab.lid_of("a1", "A"), lab.lid_of(second, "B"))
    a.qp.post_send(write(a, b))
    step_until(lab, lambda: lab.crossed[first] > 150)
    assert not a.cq.poll()
    lab.kill(first)
    lab.run(40 * PERIOD_NS)
    assert [e.ok for e in a.cq.poll()] == [True]
    assert b.mr.buf[:SIZE] == a.mr.buf[:SIZE]
    assert lab.crossed[second] > 250
    assert a.ctx.counters()["tx.retransmitted"] > 0
    lab.kill(second)
    a.qp.post_send(write(a, b))
    lab.run(2_000_000_000)
    assert [e.status.name for e in a.cq.poll()] == ["RETRY_EXC_ERR"], "no way is left"
    lab.check()


@pytest.mark.requirement("SWR-05")
def test_the_near_router_in_use_dies_in_mid_transfer() -> None:
    """The first hop is the hosts' own choice: they migrate to the path by the other router."""
    lab = RouterLab()
    a, b = ends(lab, "A", "B")
    lab.router("r1", "A", "B")
    lab.router("r2", "A", "B")
    alternates = [
        AddressVector(gid=peer.ctx.query_gid(), dlid=lab.lid_of("r2", subnet))
        for peer, subnet in ((b, "A"), (a, "B"))
    ]
    connect(a, b, lab.lid_of("r1", "A"), lab.lid_of("r1", "B"), alternates, timeout=10, retry_cnt=2)
    a.qp.post_send(write(a, b, 4))
    assert a.cq.wait(1)[0].ok, "both sides know of each other that they have another path"
    a.qp.post_send(write(a, b))
    step_until(lab, lambda: lab.crossed["r1"] > 150)
    assert (a.cq.poll(), lab.crossed["r2"]) == ([], 0)
    lab.kill("r1")
    lab.run(1_000_000_000)
    assert [e.ok for e in a.cq.poll()] == [True]
    assert b.mr.buf[:SIZE] == a.mr.buf[:SIZE]
    assert lab.crossed["r2"] > 250
    lab.kill("r2")
    a.qp.post_send(write(a, b, 100))
    lab.run(1_000_000_000)
    assert [e.status.name for e in a.cq.poll()] == ["RETRY_EXC_ERR"]
    lab.check()


# --- raw datagrams and a LAN --------------------------------------------------------------------------------------

FAR = Gid.from_ip("2001:4860::8844")


def raw_side(lab: RouterLab, subnet: str) -> Side:
    side = make_side(lab.host(subnet), QPType.RAW_IPV6, 1 << 16)
    side.qp.activate()
    for slot in range(4):
        side.qp.post_recv(RecvRequest(slot, [side.mr.sge(4096 * (1 + slot), 4096)]))
    return side


def taken(side: Side) -> list[bytes]:
    received = [e for e in side.cq.poll() if e.opcode >= 128]
    return [bytes(side.mr.buf[4096 * (1 + e.wr_id) :][: e.byte_len]) for e in received]


def send(side: Side, dlid: int, datagram: bytes) -> None:
    side.mr.buf[: len(datagram)] = datagram
    handle = side.pd.create_ah(AddressVector(dlid=dlid))
    side.qp.post_send(WorkRequest(99, sg_list=[side.mr.sge(0, len(datagram))], ah=handle))


def hopped(datagram: bytes) -> bytes:
    return datagram[:7] + bytes([datagram[7] - 1]) + datagram[8:]


@pytest.mark.requirement("TRN-19")
@pytest.mark.requirement("SWR-09")
@pytest.mark.requirement("TRN-18")
@pytest.mark.parametrize("size", [0, 1, 77, 1452])
def test_a_native_frame_comes_to_the_registered_queue_pair_and_an_answer_goes_back(size: int) -> None:
    lab = RouterLab()
    first, other, stranger = (raw_side(lab, subnet) for subnet in "AAB")
    lab.router("r", "A", "B")
    lan = lab.lan("r", 3, "2001:4860::1")
    own = first.ctx.query_gid()
    first.ctx.register_protocol(first.qp, 17, own)
    other.ctx.register_protocol(other.qp, 6)
    stranger.ctx.register_protocol(stranger.qp)
    frame = udp6(FAR.raw, own.raw, Random(size).randbytes(size))
    lab.routers["r"].receive_lan(3, frame + bytes(max(0, 46 - len(frame))))
    lab.run()
    assert taken(first) == [hopped(frame)], "delivered directly to the queue pair, byte by byte"
    assert taken(other) == taken(stranger) == []
    answer = udp6(own.raw, FAR.raw, Random(size).randbytes(size))
    send(first, lab.lid_of("r", "A"), answer)
    lab.run()
    assert lan == [hopped(answer)]
    # Another protocol is nobody's; another address of the subnet has no port.
    lab.routers["r"].receive_lan(3, frame[:6] + b"\x3a" + frame[7:])
    lab.routers["r"].receive_lan(3, udp6(FAR.raw, own.raw[:8] + bytes(7) + b"\1", b"?"))
    lab.run()
    assert first.ctx.counters()["drop.no_protocol"] == 1
    assert lab.routers["r"].counters["drop.unreachable"] == 1
    assert lan[1][40:42] == b"\x01\x03", "and the sender is told: address unreachable"
    lab.check()


def test_raw_datagrams_between_subnets_and_the_reports_about_them() -> None:
    lab = RouterLab()
    a, b = (raw_side(lab, subnet) for subnet in "AB")
    lab.router("r", "A", "B")
    for side in (a, b):
        side.ctx.register_protocol(side.qp)
    here, there = a.ctx.query_gid().raw, b.ctx.query_gid().raw
    send(a, lab.lid_of("r", "A"), udp6(here, there, b"hello"))
    lab.run()
    assert taken(b) == [hopped(udp6(here, there, b"hello"))]
    late = udp6(here, there, b"too far", hops=1)
    send(a, lab.lid_of("r", "A"), late)
    lab.run()
    (report,) = taken(a)
    assert (report[6], report[40], report[41]) == (58, 3, 0), "ICMPv6: time exceeded in transit"
    assert report[48:] == late
    assert taken(b) == []
    lab.check()
