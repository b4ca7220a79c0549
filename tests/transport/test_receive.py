"""What is checked of every packet that comes in: each fault is counted under its reason, and that is all."""

from __future__ import annotations

import os
import subprocess
import sys
from random import Random

import pytest

from lab import RC, UD, Lab, Packet, drops, fetch_add, pattern, read, sealed, statuses, take, write
from transport.test_faults import MILD, run
from verbena import AckPolicy, QPState, RecvRequest, WorkRequest, WROpcode
from verbena.wire import kernels
from verbena.wire.crc import roce_icrc


def one_packet(lab: Lab, n: int = 100) -> tuple[Packet, object]:
    """A WRITE's packet on its way from the first adapter to the second, held back; and the second's engine."""
    a, b = lab.pair()
    a.mr.buf[:n] = pattern(n)
    lab.taps[0].gate = lambda packet: []
    a.qp.post_send(write(a, b, n, 1))
    lab.net.run_for(1)
    return lab.taps[0].out[0], b


def feed(
    lab: Lab, data: bytes, source: bytes | None = None, ident: int = 0, port: int = 4791
) -> dict[str, int]:
    """Feed a packet to the second adapter; what it dropped since."""
    ctx = lab.contexts[1]
    before = drops(ctx)
    gid = lab.contexts[0].query_gid().raw if source is None else source
    ctx.adapter.engine.receive(bytearray(data), len(data), gid, port, lab.net.now, ident)
    return {name: n - before.get(name, 0) for name, n in drops(ctx).items() if n != before.get(name, 0)}


def resealed(packet: Packet, change: object) -> bytes:
    data = bytearray(packet.data)
    change(data)  # type: ignore[operator]
    return sealed(bytes(data), packet.burst.source, packet.burst.destination)


def put(at: int, value: bytes) -> object:
    def change(data: bytearray) -> None:
        data[at : at + len(value)] = value

    return change


@pytest.mark.requirement("TRN-01")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put(1, b"\x41"), "version"),
        (put(0, b"\x1f"), "opcode"),
        (put(0, b"\x40"), "no_ee"),  # reliable datagram
        (put(0, b"\xc0"), "opcode"),  # reserved for manufacturers
        (put(5, b"\x00\x00\x30"), "no_qp"),
        (put(5, b"\x07\x00\x10"), "no_qp"),  # the index, but not the generation
        (put(5, b"\xff\xff\xff"), "no_qp"),
        (put(0, b"\x2a"), "service"),
        (put(2, b"\x80\x01"), "pkey"),
        (put(2, b"\x7f\xfe"), "pkey"),
        (put(0, b"\x11"), "length"),  # an acknowledgement has no payload
        (put(9, b"\x00\x00\x00"), None),
    ],
)
def test_each_fault_has_its_counter(change: object, reason: str | None) -> None:
    lab = Lab()
    packet, b = one_packet(lab)
    found = feed(lab, resealed(packet, change))
    assert found == ({f"drop.{reason}": 1} if reason else {})
    assert not any(b.mr.buf[:100])
    assert feed(lab, packet.data) == {}, "the right one is still welcome"
    assert b.mr.buf[:100] == pattern(100)


@pytest.mark.parametrize("length", [0, 1, 4, 12, 15])
def test_short_packets(length: int) -> None:
    lab = Lab()
    packet, _ = one_packet(lab)
    assert feed(lab, packet.data[:length]) == {"drop.short": 1}


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_lengths_that_are_no_multiple_of_four(cut: int) -> None:
    lab = Lab()
    packet, _ = one_packet(lab)
    data = sealed(packet.data[:-cut], packet.burst.source, packet.burst.destination)
    assert feed(lab, data) == {"drop.length": 1}


def test_a_limited_member_is_heard_by_a_full_one() -> None:
    lab = Lab()
    packet, b = one_packet(lab)
    assert feed(lab, resealed(packet, put(2, b"\x7f\xff"))) == {}
    assert b.mr.buf[:100] == pattern(100)


@pytest.mark.requirement("TRN-04")
def test_the_wrong_source() -> None:
    lab = Lab()
    packet, b = one_packet(lab)
    for source in (b"\0" * 10 + b"\xff\xff\x0a\0\0\x09", b"\xfd" + bytes(14) + b"\1"):
        data = sealed(packet.data, source, packet.burst.destination)
        if source[0]:
            continue
        assert feed(lab, data, source) == {"drop.source": 1}
    assert not any(b.mr.buf[:100])


@pytest.mark.parametrize("state", [QPState.RESET, QPState.INIT, QPState.ERR])
def test_states_that_do_not_receive(state: QPState) -> None:
    lab = Lab()
    packet, b = one_packet(lab)
    b.qp.modify(QPState.RESET)
    if state is QPState.INIT:
        b.qp.modify(QPState.INIT, port_num=1, pkey_index=0, access_flags=15)
    elif state is QPState.ERR:
        b.qp.modify(QPState.ERR)
    assert feed(lab, packet.data) == {"drop.qp_state": 1}


def test_every_flipped_bit_of_a_packet_is_noticed() -> None:
    """Only byte 4 (FECN, BECN, reserved) is outside the invariant CRC: nothing is read from it."""
    lab = Lab()
    packet, b = one_packet(lab, 64)
    for i in range(len(packet.data)):
        if i == 4:
            continue
        for bit in range(8):
            data = bytearray(packet.data)
            data[i] ^= 1 << bit
            found = feed(lab, bytes(data))
            assert sum(found.values()) == 1, (i, bit)
    assert not any(b.mr.buf[:64])
    assert b.ctx.counters()["rx.accepted"] == 0
    assert feed(lab, packet.data) == {}
    assert b.mr.buf[:64] == pattern(64)


# --- message structure --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "length", "reth", "fine"),
    [
        (0x06, 256, 600, True),  # WRITE First
        (0x06, 255, 600, False),  # a First is full
        (0x06, 252, 600, False),
        (0x06, 260, 600, False),
        (0x06, 256, 256, False),  # what fits into one packet is an Only
        (0x06, 256, 0x80000001, False),
        (0x0A, 100, 100, True),  # WRITE Only
        (0x0A, 100, 101, False),
        (0x0A, 100, 99, False),
        (0x0A, 0, 0, True),
        (0x0A, 260, 260, False),
        (0x07, 256, 0, False),  # Middle and Last without First
        (0x08, 10, 0, False),
        (0x01, 256, 0, False),
        (0x02, 10, 0, False),
        (0x00, 256, 0, True),  # SEND First
        (0x00, 100, 0, False),
        (0x04, 256, 0, True),
        (0x04, 260, 0, False),
        (0x04, 0, 0, True),
        (0x0C, 0, 256, True),  # READ
        (0x0C, 0, 0x80000001, False),
    ],
)
def test_packets_that_begin_a_message(code: int, length: int, reth: int, fine: bool) -> None:
    lab = Lab()
    a, b = lab.pair(mtu=256)
    b.qp.post_recv(RecvRequest(1, [b.mr.sge(0, 1000)]))
    packet, _ = request(a, b, code, length, reth, b.qp.query().rq_psn)
    found = feed(lab, packet)
    assert found == ({} if fine else {"drop.invalid_request": 1})
    assert b.qp.state is (QPState.RTS if fine else QPState.ERR)
    lab.contexts[1].driver.kick()
    lab.settle()


def request(a: object, b: object, code: int, length: int, reth: int, psn: int) -> tuple[bytes, None]:
    pad = -length % 4
    head = bytes([code, 0x40 | pad << 4]) + b"\xff\xff\0" + b.qp.qp_num.to_bytes(3, "big") + b"\x80"
    head += psn.to_bytes(3, "big")
    if code in (0x06, 0x0A, 0x0C):
        head += b.mr.addr.to_bytes(8, "big") + b.mr.rkey.to_bytes(4, "big") + reth.to_bytes(4, "big")
    data = head + pattern(length) + bytes(pad) + bytes(4)
    return sealed(data, a.ctx.query_gid().raw, b.ctx.query_gid().raw), None


@pytest.mark.parametrize(
    "codes",
    [
        (0x00, 0x04),  # a new SEND inside of one
        (0x00, 0x06),
        (0x00, 0x07),  # a WRITE's Middle inside of a SEND
        (0x06, 0x01),
        (0x06, 0x06),
        (0x06, 0x0C),  # a READ inside of a WRITE
        (0x00, 0x13),  # an atomic inside of a SEND
    ],
)
def test_packets_in_the_wrong_order(codes: tuple[int, int]) -> None:
    lab = Lab()
    a, b = lab.pair(mtu=256)
    b.qp.post_recv(RecvRequest(1, [b.mr.sge(0, 1000)]))
    psn = b.qp.query().rq_psn
    assert feed(lab, request(a, b, codes[0], 256, 1000, psn)[0]) == {}
    data = request(a, b, codes[1], 256, 1000, psn + 1)[0]
    if codes[1] in (0x0C, 0x13):
        data = sealed(data[:12] + bytes(16 + 12 * (codes[1] == 0x13)) + bytes(4), *gids(lab))
        data = sealed(data, *gids(lab))
    assert feed(lab, data) == {"drop.invalid_request": 1}
    lab.settle()
    assert b.qp.state is QPState.ERR


def gids(lab: Lab) -> tuple[bytes, bytes]:
    return lab.contexts[0].query_gid().raw, lab.contexts[1].query_gid().raw


# --- identifications ----------------------------------------------------------------------------------------------


def numbered(packet: Packet, ident: int, psn: int) -> bytes:
    data = packet.data[:9] + psn.to_bytes(3, "big") + packet.data[12:]
    return sealed(data, packet.burst.source, packet.burst.destination, ident)


@pytest.mark.parametrize("first", [0, 1, 77, 0x8000, 0xFFF0])
def test_counting_identifications_are_solved(first: int) -> None:
    """As Linux' rxe sends them: they count up, wrap, and leave gaps; the socket does not show them."""
    lab = Lab()
    packet, b = one_packet(lab)
    ident = first
    for i in range(200):
        psn = (packet.psn + i) & 0xFFFFFF
        assert feed(lab, numbered(packet, ident & 0xFFFF, psn)) == {}, i
        ident += 1 + i % 7
    assert b.ctx.counters()["rx.accepted"] == 200
    assert b.ctx.counters()["rx.ident_solved"] >= 190


def test_a_pause_makes_room_for_more_identifications() -> None:
    lab = Lab()
    packet, _ = one_packet(lab)
    assert feed(lab, numbered(packet, 1000, packet.psn)) == {}
    assert feed(lab, numbered(packet, 9000, packet.psn + 1)) == {"drop.ident": 1}
    lab.net.run_for(10_000_000_000)
    assert feed(lab, numbered(packet, 9000, packet.psn + 1)) == {}


def test_a_stray_identification_is_damage_and_two_are_a_new_beginning() -> None:
    lab = Lab()
    packet, _ = one_packet(lab)
    for i in range(3):
        assert feed(lab, numbered(packet, 1000 + i, packet.psn + i)) == {}
    assert feed(lab, numbered(packet, 30_000, packet.psn + 3)) == {"drop.ident": 1}
    assert feed(lab, numbered(packet, 1003, packet.psn + 3)) == {}
    assert feed(lab, numbered(packet, 50_000, packet.psn + 4)) == {"drop.ident": 1}
    assert feed(lab, numbered(packet, 50_000, packet.psn + 4)) == {"drop.ident": 1}, "the same, duplicated"
    assert feed(lab, numbered(packet, 50_002, packet.psn + 4)) == {}


def test_damage_that_looks_like_an_identification_is_not_believed() -> None:
    """One bit in some 33,000 has a solution; from a source that numbers its bursts from 0, it is damage."""
    lab = Lab()
    packet, b = one_packet(lab, 600)
    assert feed(lab, numbered(packet, 0, packet.psn)) == {}
    solved = []
    for i in range(12, len(packet.data) - 4):
        for bit in range(8):
            data = bytearray(numbered(packet, 0, packet.psn + 1))
            data[i] ^= 1 << bit
            found = feed(lab, bytes(data))
            assert sum(found.values()) == 1
            solved += [found] if "drop.ident" in found else []
            found = feed(lab, bytes(data))  # duplicated
            assert sum(found.values()) == 1
    assert b.ctx.counters()["rx.accepted"] == 1
    assert solved, "there is such a bit in every packet of this size"


def test_no_identifications_in_ipv6() -> None:
    lab = Lab()
    lab.adapter("fd00::1"), lab.adapter("fd00::2")
    packet, b = one_packet(lab)
    data = bytearray(packet.data)
    data[50] ^= 1
    assert feed(lab, bytes(data)) == {"drop.icrc": 1}
    assert feed(lab, packet.data) == {}
    assert b.mr.buf[:100] == pattern(100)


def test_the_source_port_is_covered() -> None:
    lab = Lab()
    packet, _ = one_packet(lab)
    data = sealed(packet.data, *gids(lab))
    assert feed(lab, data, port=50_000) == {"drop.icrc": 1}
    assert feed(lab, data) == {}


@pytest.mark.skipif(not hasattr(kernels, "seal"), reason="compiled kernels are called from C only")
@pytest.mark.parametrize("ip6", [False, True])
def test_kernels_compute_the_invariant_crc(seed: int, ip6: bool) -> None:
    random = Random(seed)
    for _ in range(100):
        source, destination = (
            random.randbytes(16) if ip6 else b"\0" * 10 + b"\xff\xff" + random.randbytes(4) for _ in range(2)
        )
        n = 4 * random.randrange(4, 1100)
        ident = 0 if ip6 else random.randrange(256)
        sport, dport = random.getrandbits(16), random.getrandbits(16)
        data = bytearray(random.randbytes(n))
        want = headers_and_icrc(source, destination, sport, dport, ident, data)
        head = bytearray(64)
        kernels.prefix(head, not ip6, source, destination, sport, dport)
        base = kernels.seed(head, not ip6, n)
        kernels.seal(base if ip6 else kernels.ident_seed(base, ident), data, 0, n)
        assert bytes(data[-4:]) == want


def headers_and_icrc(
    source: bytes, destination: bytes, sport: int, dport: int, ident: int, data: bytes
) -> bytes:
    udp = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + (8 + len(data)).to_bytes(2, "big") + b"\0\0"
    if source[:12] == b"\0" * 10 + b"\xff\xff":
        ip = (
            b"\x45\0" + (28 + len(data)).to_bytes(2, "big") + ident.to_bytes(2, "big") + b"\x40\0\x40\x11\0\0"
        )
        ip += source[12:] + destination[12:]
    else:
        ip = b"\x60\0\0\0" + (8 + len(data)).to_bytes(2, "big") + b"\x11\x40" + source + destination
    return roce_icrc(ip + udp, bytes(data[:-4])).to_bytes(4, "big")


def test_resealed_packets_are_what_the_engine_sends(seed: int) -> None:
    """The compiled and the plain kernels agree with `wire.crc`: every packet sent carries the CRC computed there."""
    lab = run(seed, None, operations=10)
    for tap in lab.taps:
        for p in tap.out:
            assert sealed(p.data, p.burst.source, p.burst.destination, p.burst.first_ident) == p.data


# --- the same, compiled or not ------------------------------------------------------------------------------------

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from transport.test_receive import traced
print(traced(int(sys.argv[2])))
"""


def traced(seed: int) -> str:
    """A digest of every packet and its time, of every completion and counter, of three runs under faults."""
    parts = []
    for i, policy in enumerate((*AckPolicy, AckPolicy.COALESCED)):
        lab = run(seed + i, MILD, mtu=(256, 1024, 4096)[i], policy=policy, operations=25, connections=4)
        parts.append(f"{lab.digest()} {lab.net.now} {[sorted(c.counters().items()) for c in lab.contexts]}")
    lab = Lab(seed)
    a, b = lab.pair(UD)
    b.qp.post_recv(RecvRequest(1, [b.mr.sge(0, 100)]))
    from transport.test_unreliable import datagram

    a.qp.post_send_many([datagram(a, b, 50), datagram(a, b, 60)])
    lab.settle()
    return "\n".join([*parts, lab.digest()])


def test_compiled_and_plain_send_the_same_packets_at_the_same_times(seed: int) -> None:
    here = traced(seed)
    assert traced(seed) == here, "a run can be repeated"
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "VERBENA_PURE": "1"}
    command = [sys.executable, "-c", PROGRAM, tests, str(seed)]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


# --- loopback, and adapters that are not one's own ------------------------------------------------------------------


@pytest.mark.requirement("NOD-17")
@pytest.mark.parametrize("with_itself", [False, True])
def test_queue_pairs_of_one_adapter(with_itself: bool) -> None:
    """Two of one adapter, and one connected to itself: no link sees a packet of it."""
    from verbena.runtime.pairs import connect_sides, make_side

    lab = Lab()
    ctx = lab.adapter()
    a = make_side(ctx, RC)
    b = a if with_itself else make_side(ctx, RC)
    if with_itself:
        a.qp.connect(a.qp.endpoint)
    else:
        connect_sides(a, b)
    a.mr.buf[:20_000] = pattern(20_000)
    b.qp.post_recv(RecvRequest(5, [b.mr.sge(100_000, 20_000)]))
    a.qp.post_send_many(
        [
            WorkRequest(1, WROpcode.SEND, [a.mr.sge(0, 20_000)]),
            write(a, b, 20_000, 2, to=200_000),
            read(a, b, 20_000, 3, at=300_000, to=200_000),
            fetch_add(a, b, 5, 4, at=400_000, to=500_000),
        ]
    )
    found = take(a.cq, 4 + with_itself)
    assert [s for s in statuses(found) if s[0] != 5] == [(i, "SUCCESS") for i in (1, 2, 3, 4)]
    if not with_itself:
        assert statuses(take(b.cq, 1)) == [(5, "SUCCESS")]
    lab.settle()
    for region, at in ((b.mr, 100_000), (b.mr, 200_000), (a.mr, 300_000)):
        assert region.buf[at : at + 20_000] == pattern(20_000)
    assert int.from_bytes(b.mr.buf[500_000:500_008], "little") == 5
    wire = lab.net.wires[ctx.query_gid().raw]
    assert (lab.taps[0].out, wire.sent, wire.delivered) == ([], 0, 0)
    lab.check_laws()


@pytest.mark.requirement("NOD-03")
def test_a_queue_pair_belongs_to_one_adapter() -> None:
    from verbena import InvalidAttributeError
    from verbena.runtime.pairs import make_side

    lab = Lab()
    a, b = lab.pair()
    c = make_side(lab.adapter(), RC)
    with pytest.raises(InvalidAttributeError, match="send_cq belongs to another adapter"):
        c.pd.create_qp(RC, a.cq)
    with pytest.raises(InvalidAttributeError, match="recv_cq belongs to another adapter"):
        c.pd.create_qp(RC, c.cq, a.cq)
    with pytest.raises(InvalidAttributeError, match="another protection domain"):
        c.pd.create_qp(RC, c.cq, srq=a.pd.create_srq(4))
    # The other adapter has no queue pair of that number, and its keys open nothing here.
    assert a.qp.qp_num != c.ctx.alloc_pd().create_qp(RC, c.cq).qp_num
    a.qp.post_send(WorkRequest(1, WROpcode.SEND, [c.mr.sge(1, 9)]))
    assert statuses(take(a.cq, 1)) == [(1, "LOC_PROT_ERR")]
    lab.settle()
    assert lab.taps[2].out == [], "its traffic never appears on another adapter's link"
    assert c.ctx.counters()["rx.packets"] == 0
    assert b.ctx.counters()["rx.packets"] == 0
