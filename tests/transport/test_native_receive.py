"""What an adapter does with native packets that are not as they should be: nothing, and it counts them."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import check_received
from native_lab import RC, UC, UD, NativeLab, Sent
from verbena import AddressVector, Gid, QPType, RecvRequest, WorkRequest, WROpcode
from verbena.adapter.port import PortState
from verbena.errors import InvalidAttributeError
from verbena.runtime.pairs import Side, make_side
from verbena.wire import BTH, DETH, GRH, LRH, AethKind, DecodeError, NativePacket, Opcode, TransportPacket
from verbena.wire.crc import vcrc
from verbena.wire.packet import RawPacket, decode_infiniband

QKEY = 0x11111111
HERE, ABROAD = 0xFEC0_0000_0000_0001, 0xFEC0_0000_0000_0002
# Bytes and masks that the invariant CRC leaves out: VL, and with a GRH all of the LRH, traffic class, flow label, hop
# limit (IBA vol. 1, 7.8.1); the resv8a byte of the BTH (FECN, BECN).
LOCAL_VARIANT = {0: 0xF0, 12: 0xFF}
GLOBAL_VARIANT = {**dict.fromkeys(range(8), 0xFF), 8: 0x0F, 9: 0xFF, 10: 0xFF, 11: 0xFF, 15: 0xFF, 52: 0xFF}


def body(packet: NativePacket) -> bytes:
    """LRH to ICRC."""
    return packet.encode()[:-2]


class Target:
    """A queue pair that receives, and packets that would reach it."""

    def __init__(self, service: QPType = UD, *, is_global: bool = False) -> None:
        self.lab = NativeLab()
        prefix = ABROAD if is_global else HERE
        self.a, self.b = self.lab.adapter(prefix=prefix), self.lab.adapter(prefix=HERE)
        self.side, self.here = self._ends(service, is_global)
        self.port = self.b.adapter.ports[0]
        self.peer = self.a.adapter.ports[0]
        self.service = service
        self.is_global = is_global

    def _ends(self, service: QPType, is_global: bool) -> tuple[Side, Side]:
        here, there = make_side(self.a, service, 8192), make_side(self.b, service, 8192)
        if service is UD:
            there.qp.activate(QKEY)
        else:
            to = here.qp.endpoint
            there.qp.connect(to, mtu=1024)
            here.qp.connect(there.qp.endpoint, mtu=1024)
        for _ in range(8):
            there.qp.post_recv(RecvRequest(1, [there.mr.sge(0, 4136)]))
        return there, here

    def good(self, payload: bytes = b"payload!") -> NativePacket:
        """A packet that is delivered."""
        code = {
            RC: Opcode.RC_SEND_ONLY,
            UC: Opcode.UC_SEND_ONLY,
            UD: Opcode.UD_SEND_ONLY,
        }[self.service]
        psn = self.b.adapter.engine.attributes(self.side.qp._index)["expected_psn"]
        bth = BTH(opcode=code, dest_qp=self.side.qp.qp_num, psn=psn, mig_req=True)
        headers = (DETH(qkey=QKEY, src_qp=self.here.qp.qp_num),) if self.service is UD else ()
        grh = GRH(sgid=self.a.gids[0].raw, dgid=self.b.gids[0].raw) if self.is_global else None
        lrh = LRH(dlid=self.port.lid, slid=self.peer.lid)
        return NativePacket(lrh, grh, TransportPacket.build(bth, *headers, payload=payload)).sealed()

    def take(self, data: bytes, port: int = 1) -> dict[str, int]:
        """What was counted for a packet."""
        before = self.b.counters()
        self.b.adapter.engine.receive_native(bytearray(data), port, self.lab.clock.now())
        self.b.adapter.dispatch()
        after = self.b.counters()
        check_received(after)
        return {name: n - before[name] for name, n in after.items() if n != before[name]}

    def delivered(self) -> list[Any]:
        return self.side.cq.poll(64)


@pytest.mark.requirement("LNK-02")
@pytest.mark.parametrize("is_global", [False, True])
@pytest.mark.parametrize("service", [RC, UC, UD])
def test_no_flipped_bit_is_delivered(service: QPType, is_global: bool) -> None:
    target = Target(service, is_global=is_global)
    good = target.good()
    decoded = decode_infiniband(good.encode())
    assert isinstance(decoded, NativePacket)
    assert decoded.icrc_ok
    assert decoded.vcrc_ok
    assert decoded.transport.bth.psn == good.transport.bth.psn
    whole = good.encode()
    variant = GLOBAL_VARIANT if is_global else LOCAL_VARIANT
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        # The link's own CRC finds every one ...
        assert vcrc(flipped[:-2]) != int.from_bytes(flipped[-2:], "big")
        # ... and the adapter all but those in fields that change on the way, without the link's help.
        if bit // 8 >= len(whole) - 2 or variant.get(bit // 8, 0) >> bit % 8 & 1:
            continue
        counted = target.take(flipped[:-2])
        assert sum(n for name, n in counted.items() if name.startswith("drop.")) == 1, (bit, counted)
        assert target.delivered() == []
    assert target.take(body(good))["rx.accepted"] == 1
    assert [c.byte_len for c in target.delivered()] == [
        len(good.transport.payload) + (40 if service is UD else 0)
    ]


def wrong(target: Target, reason: str) -> bytes:
    """A well-formed packet, right in all but one thing."""
    p = target.good()
    lrh, grh, bth = p.lrh, p.grh, p.transport.bth

    def sealed(**changes: Any) -> bytes:
        return body(replace(p, **changes).sealed())

    def with_bth(**changes: Any) -> bytes:
        return sealed(transport=replace(p.transport, bth=replace(bth, **changes)))

    raw = body(p)
    changed = bytearray(raw)
    if reason == "drop.short":
        return raw[:7]
    if reason == "drop.link_version":
        return sealed(lrh=replace(lrh, link_version=1))
    if reason == "drop.link_length":
        return raw + bytes(4)
    if reason == "drop.vl15":
        return sealed(lrh=replace(lrh, vl=15))
    if reason == "drop.dlid":
        return sealed(lrh=replace(lrh, dlid=lrh.dlid + 1))
    if reason == "drop.raw":
        return RawPacket(lrh, None, bytes(40)).sealed().encode()[:-2]
    if reason == "drop.grh_version":
        return sealed(grh=replace(grh, ip_version=4))
    if reason == "drop.grh_header":
        changed[14] = 0x11
    if reason == "drop.grh_length":
        changed[13] ^= 4
    if reason == "drop.dgid":
        return sealed(grh=replace(grh, dgid=bytes(15) + b"\x01"))
    if reason == "drop.version":
        changed[len(raw) - len(p.transport.encode()) + 1] |= 1
    if reason == "drop.opcode":
        changed[len(raw) - len(p.transport.encode())] = 0xE0
    if reason == "drop.icrc":
        changed[-1] ^= 1
    if reason == "drop.no_qp":
        return with_bth(dest_qp=bth.dest_qp + 1)
    if reason == "drop.service":
        return with_bth(dest_qp=make_other(target))
    if reason == "drop.pkey":
        return with_bth(pkey=0x8001)
    if reason == "drop.qkey":
        deth = DETH(qkey=QKEY + 1, src_qp=5)
        return sealed(transport=replace(p.transport, headers=(deth,)))
    if reason == "drop.source":
        if grh is not None:
            return sealed(grh=replace(grh, sgid=bytes(15) + b"\x07"))
        return sealed(lrh=replace(lrh, slid=lrh.slid + 1))
    return bytes(changed)


def make_other(target: Target) -> int:
    """A queue pair of another service, in RTS."""
    if target.service is UD:
        other = make_side(target.b, RC, 64)
        other.qp.connect(replace(target.here.qp.endpoint, qp_num=99), mtu=256)
    else:
        other = make_side(target.b, UD, 64)
        other.qp.activate()
    return other.qp.qp_num


EVERYWHERE = (
    *(
        "drop.short",
        "drop.link_version",
        "drop.link_length",
        "drop.vl15",
        "drop.dlid",
        "drop.raw",
        "drop.version",
    ),
    *("drop.opcode", "drop.icrc", "drop.no_qp", "drop.service", "drop.pkey"),
)
WITH_GRH = ("drop.grh_version", "drop.grh_header", "drop.grh_length", "drop.dgid")
CASES = [
    *(
        (service, is_global, reason)
        for service in (RC, UD)
        for is_global in (False, True)
        for reason in EVERYWHERE
    ),
    *((service, True, reason) for service in (RC, UD) for reason in WITH_GRH),
    *((UD, is_global, "drop.qkey") for is_global in (False, True)),
    *((RC, is_global, "drop.source") for is_global in (False, True)),
]


@pytest.mark.parametrize(("service", "is_global", "reason"), CASES)
def test_each_fault_is_counted_under_its_own_name(service: QPType, is_global: bool, reason: str) -> None:
    target = Target(service, is_global=is_global)
    counted = target.take(wrong(target, reason))
    assert {name: n for name, n in counted.items() if name.startswith("drop.")} == {reason: 1}
    assert counted["rx.packets"] == 1
    assert target.delivered() == []
    assert target.take(body(target.good()))["rx.accepted"] == 1


@pytest.mark.parametrize("state", ["DOWN", "INIT"])
def test_nothing_is_received_before_the_port_is_armed(state: str) -> None:
    target = Target()
    good = body(target.good())
    target.port.state = PortState[state]
    target.b.adapter.port_changed(1)
    assert "drop.port_state" in target.take(good)
    if state == "DOWN":
        target.port.state = PortState.INIT
    target.port.state = PortState.ARMED
    target.b.adapter.port_changed(1)
    assert "rx.accepted" in target.take(good)


def test_a_packet_longer_than_the_mtu_allows_is_dropped() -> None:
    target = Target()
    target.port.mtu = 256
    target.b.adapter.port_changed(1)
    assert "drop.link_length" in target.take(body(target.good(bytes(512))))
    assert "rx.accepted" in target.take(body(target.good(bytes(256))))


def test_a_local_connection_takes_no_global_packet_and_the_other_way_round() -> None:
    for is_global in (False, True):
        target = Target(RC, is_global=is_global)
        good = target.good()
        grh = None if is_global else GRH(sgid=target.a.gids[0].raw, dgid=target.b.gids[0].raw)
        assert "drop.source" in target.take(body(replace(good, grh=grh).sealed()))


@pytest.mark.parametrize("service", [RC, UC, UD])
def test_permissive_lid_reaches_the_port(service: QPType) -> None:
    target = Target(service)
    good = target.good()
    counted = target.take(body(replace(good, lrh=replace(good.lrh, dlid=0xFFFF)).sealed()))
    # A connection's packets come to the LID that it was made with.
    assert counted.get("rx.accepted", 0) == (1 if service is UD else 0)


def test_partition_and_key_violations_are_told_to_management() -> None:
    target = Target(UD, is_global=True)
    good = target.good()
    target.take(
        body(
            replace(
                good, transport=replace(good.transport, bth=replace(good.transport.bth, pkey=0x1234))
            ).sealed()
        )
    )
    target.take(wrong(target, "drop.qkey"))
    first, second = target.lab.violations
    assert (first.trap, first.port, first.key, first.src_qp) == (257, 1, 0x1234, target.here.qp.qp_num)
    assert (first.slid, first.dlid) == (target.peer.lid, target.port.lid)
    assert (first.sgid, first.dgid) == (target.a.gids[0], target.b.gids[0])
    assert (second.trap, second.key, second.dest_qp) == (258, QKEY + 1, target.side.qp.qp_num)
    port = target.b.query_port()
    assert (port.bad_pkey_cntr, port.qkey_viol_cntr) == (1, 1)


def test_a_flood_of_violations_costs_a_bounded_amount() -> None:
    target = Target(UD)
    bad = wrong(target, "drop.pkey")
    for _ in range(1000):
        target.b.adapter.engine.receive_native(bytearray(bad), 1, 0)
    target.b.adapter.dispatch()
    assert 0 < len(target.lab.violations) <= 64
    assert target.b.query_port().bad_pkey_cntr == 1000
    target.take(bad)  # told again, once there is room
    assert len(target.lab.violations) <= 65


def test_ports_that_are_not_there() -> None:
    target = Target()
    for port in (0, 2, 17, 99):
        with pytest.raises(InvalidAttributeError):
            target.b.adapter.engine.receive_native(bytearray(60), port, 0)
    assert target.take(b"") == {"rx.packets": 1, "drop.short": 1}


# --- anything at all -------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), st.sampled_from([RC, UD]))
def test_arbitrary_bytes_are_dropped_and_counted(data: bytes, service: QPType) -> None:
    target = shared(service)
    counted = target.take(data)
    assert counted["rx.packets"] == 1
    assert target.delivered() == []


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([RC, UC, UD]),
    st.booleans(),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_mutated_packets_never_raise_and_add_up(
    service: QPType, is_global: bool, seed: int, seal: bool
) -> None:
    random = Random(seed)
    target = shared(service, is_global)
    data = bytearray(target.good(random.randbytes(random.choice((0, 4, 60, 1024)))).encode())
    for _ in range(random.randrange(1, 6)):
        data[random.randrange(min(len(data), 80))] = random.randrange(256)
    if random.random() < 0.3:
        del data[random.randrange(len(data)) :]
    if random.random() < 0.2:
        data += random.randbytes(random.randrange(200))
    if seal:  # a sender that means it
        try:
            made = decode_infiniband(bytes(data))
            data = bytearray(made.sealed().encode())
        except (DecodeError, ValueError):
            pass
    counted = target.take(data[:-2])
    assert counted["rx.packets"] == 1
    if target.side.qp.state.name != "RTS":  # a request that was refused ends the connection
        _SHARED.clear()
    target.delivered()


_SHARED: dict[tuple[QPType, bool], Target] = {}


def shared(service: QPType, is_global: bool = False) -> Target:
    """One target for many packets."""
    if (service, is_global) not in _SHARED:
        _SHARED[service, is_global] = Target(service, is_global=is_global)
    target = _SHARED[service, is_global]
    queue = target.b.adapter.engine.queue_depth(target.b.adapter.engine.recv_queue_of(target.side.qp._index))
    if queue < 4:
        for _ in range(4):
            target.side.qp.post_recv(RecvRequest(1, [target.side.mr.sge(0, 4136)]))
    return target


# --- local and global ------------------------------------------------------------------------------------------


@pytest.mark.requirement("LNK-04")
def test_global_header_exactly_where_the_destination_is_in_another_subnet() -> None:
    lab = NativeLab()
    a = lab.adapter(prefix=HERE)
    near, far = lab.adapter(prefix=HERE), lab.adapter(prefix=ABROAD)
    for there, is_global in ((near, False), (far, True)):
        x, y = make_side(a, RC), make_side(there, RC)
        x.qp.connect(y.qp.endpoint)
        y.qp.connect(x.qp.endpoint)
        lab.log.clear()
        x.qp.post_send(
            WorkRequest(1, WROpcode.RDMA_WRITE, [x.mr.sge(0, 9000)], remote_addr=y.mr.addr, rkey=y.mr.rkey)
        )
        assert x.cq.wait(1)[0].ok
        lab.run()
        assert len(lab.log) >= 4
        assert all((s.packet.grh is not None) is is_global for s in lab.log)
        for s in lab.log:
            if s.packet.grh is not None:
                assert s.packet.grh.payload_length == len(s.data) - 48
                assert {s.packet.grh.sgid, s.packet.grh.dgid} == {a.gids[0].raw, far.gids[0].raw}
    lids = near.query_port().lid
    with pytest.raises(InvalidAttributeError, match="takes a global header"):
        x.pd.create_ah(AddressVector(gid=far.gids[0], dlid=far.query_port().lid, is_global=False))
    with pytest.raises(InvalidAttributeError, match="gid is needed"):
        x.pd.create_ah(AddressVector(dlid=lids, is_global=True))


def test_global_datagrams_show_their_header() -> None:
    lab = NativeLab()
    a, b = lab.adapter(prefix=ABROAD), lab.adapter(prefix=HERE)
    x, y = make_side(a, UD), make_side(b, UD)
    x.qp.activate()
    y.qp.activate()
    y.qp.post_recv(RecvRequest(1, [y.mr.sge(0, 4136)]))
    there = x.pd.create_ah(
        AddressVector(
            gid=b.gids[0], dlid=b.query_port().lid, traffic_class=0xA5, flow_label=0x54321, hop_limit=9, sl=3
        )
    )
    x.qp.post_send(
        WorkRequest(1, WROpcode.SEND, [x.mr.sge(0, 6)], ah=there, remote_qpn=y.qp.qp_num, remote_qkey=QKEY)
    )
    (got,) = y.cq.wait(1)
    assert got.flags & 1
    grh = GRH.unpack(memoryview(bytes(y.mr.buf[:40])))
    assert (grh.sgid, grh.dgid) == (a.gids[0].raw, b.gids[0].raw)
    assert (grh.traffic_class, grh.flow_label, grh.hop_limit) == (0xA5, 0x54321, 9)
    assert Gid(grh.sgid) == a.gids[0]


def test_answers_come_the_same_way() -> None:
    lab = NativeLab()
    x, y = lab.pair(RC, sl=4)
    x.qp.post_send(
        WorkRequest(1, WROpcode.RDMA_WRITE, [x.mr.sge(0, 100)], remote_addr=y.mr.addr, rkey=y.mr.rkey)
    )
    x.cq.wait(1)
    request, answer = lab.log
    assert isinstance(request, Sent)
    assert answer.is_answer
    assert (answer.packet.lrh.slid, answer.packet.lrh.dlid) == (
        request.packet.lrh.dlid,
        request.packet.lrh.slid,
    )
    assert answer.packet.lrh.sl == request.packet.lrh.sl == 4
    assert answer.data[8 + 12] >> 5 == AethKind.ACK
