"""Which way packets leave: closed service levels, ports that are down, loopback, multicast, alternate paths."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from lab import check_received, drops
from native_lab import RC, UC, UD, NativeLab, Sent, join
from verbena import (
    AddressVector,
    AsyncEventType,
    CompletionStatus,
    Context,
    Gid,
    InvalidAttributeError,
    PathMigrationState,
    PortStateError,
    QPState,
    RecvRequest,
    WorkRequest,
    WROpcode,
)
from verbena.adapter.port import PortState
from verbena.runtime.pairs import Side, make_side

ARMED, REARM, MIGRATED = PathMigrationState.ARMED, PathMigrationState.REARM, PathMigrationState.MIGRATED
GROUP = Gid(b"\xff\x12" + bytes(13) + b"\x07")


def write(side: Side, to: Side, n: int, wr_id: int = 1) -> WorkRequest:
    return WorkRequest(
        wr_id, WROpcode.RDMA_WRITE, [side.mr.sge(0, n)], remote_addr=to.mr.addr, rkey=to.mr.rkey
    )


def events(ctx: Context) -> list[AsyncEventType]:
    found = []
    while event := ctx.get_async_event(0):
        found.append(event.type)
    return found


# --- closed service levels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", [RC, UC])
def test_a_closed_service_level_holds_its_queue_pairs_and_no_others(service):
    lab = NativeLab()
    x, y = lab.pair(service, sl=3)
    u, v = lab.pair(service, sl=4)
    engine = x.ctx.adapter.engine
    engine.set_open(1, 0xFFFF & ~(1 << 3))
    x.mr.buf[:] = u.mr.buf[:] = Random(1).randbytes(x.mr.length)
    x.qp.post_send(write(x, y, 20_000))
    u.qp.post_send(write(u, v, 20_000))
    lab.run()
    assert {s.packet.lrh.sl for s in lab.log if s.driver is x.ctx.driver} == {4}
    assert len(u.cq.poll()) == 1
    assert x.cq.poll() == []
    engine.set_open(1, 0xFFFF)
    x.ctx.driver.kick()
    lab.run()
    assert [c.status for c in x.cq.poll()] == [CompletionStatus.SUCCESS]
    assert bytes(y.mr.buf[:20_000]) == bytes(x.mr.buf[:20_000])


def test_waiting_for_the_link_costs_no_retries():
    lab = NativeLab()
    x, y = lab.pair(RC, timeout=1, retry_cnt=1)  # 8 us
    engine = x.ctx.adapter.engine
    lab.gate = lambda sent: []
    x.qp.post_send(write(x, y, 100))
    engine.set_open(1, 0)
    lab.run(1_000_000)
    assert x.cq.poll() == []
    lab.gate = None
    engine.set_open(1, 0xFFFF)
    x.ctx.driver.kick()
    lab.run(1_000_000)
    assert x.cq.poll()[0].ok


def test_a_queue_pair_that_waits_may_be_closed_reset_or_fail():
    lab = NativeLab()
    sides = [lab.pair(RC) for _ in range(3)]
    engine = sides[0][0].ctx.adapter.engine
    engine.set_open(1, 0)
    for x, y in sides:
        x.qp.post_send(write(x, y, 100))
    sides[1][0].qp.close()
    sides[0][0].qp.modify(QPState.ERR)
    engine.set_open(1, 0xFFFF)
    sides[0][0].ctx.driver.kick()
    lab.run()
    assert sides[2][0].cq.poll()[0].ok
    assert sides[0][0].cq.poll()[0].status is CompletionStatus.WR_FLUSH_ERR


@pytest.mark.parametrize("seed", range(5))
def test_service_levels_that_open_and_close_at_random_lose_nothing(seed):
    random = Random(seed)
    lab = NativeLab(seed)
    pairs = [lab.pair(RC, sl=sl, mtu=256) for sl in range(4)]
    engine = pairs[0][0].ctx.adapter.engine
    done = [0] * 4
    for step in range(200):
        i = random.randrange(4)
        x, y = pairs[i]
        x.qp.post_send(write(x, y, random.randrange(1, 3000), step))
        engine.set_open(1, random.randrange(16))
        x.ctx.driver.kick()
        lab.run(random.randrange(20_000))
        for j, (end, _) in enumerate(pairs):
            found = end.cq.poll(64)
            assert all(c.ok for c in found)
            done[j] += len(found)
    engine.set_open(1, 0xFFFF)
    pairs[0][0].ctx.driver.kick()
    lab.run(10_000_000_000)
    assert sum(done) + sum(len(end.cq.poll(4096)) for end, _ in pairs) == 200
    for x, y in pairs:
        check_received(x.ctx.counters())
        check_received(y.ctx.counters())


# --- port states -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("SUB-02")
def test_a_port_is_used_only_when_it_is_active_with_a_lid():
    lab = NativeLab()
    a, b = lab.adapter(up=False), lab.adapter()
    x, y = make_side(a, RC), make_side(b, RC)
    u, v = make_side(a, UD), make_side(b, UD)
    u.qp.activate()
    v.qp.activate()
    v.qp.post_recv(RecvRequest(1, [v.mr.sge(0, 4136)]))
    port = a.adapter.ports[0]
    there = u.pd.create_ah(AddressVector(dlid=b.query_port().lid))
    datagram = WorkRequest(
        1, WROpcode.SEND, [u.mr.sge(0, 8)], ah=there, remote_qpn=v.qp.qp_num, remote_qkey=0x11111111
    )
    seen = []
    for state, lid in ((PortState.DOWN, 0), (PortState.INIT, 0), (PortState.ARMED, 5), (PortState.ACTIVE, 0)):
        port.state = state
        port.set_lid(lid)
        a.adapter.port_changed(1)
        seen.append(a.query_port().state)
        with pytest.raises(PortStateError, match=state.name):
            x.qp.connect(y.qp.endpoint)
        with pytest.raises(PortStateError, match=state.name):
            u.qp.post_send(datagram)
        assert x.qp.state.name == "RESET"
    port.set_lid(5)
    a.adapter.port_changed(1)
    assert seen == ["DOWN", "INIT", "ARMED", "ACTIVE"]
    assert (a.query_port().state, a.query_port().lid) == ("ACTIVE", 5)
    join(x, y)
    u.qp.post_send(datagram)
    x.qp.post_send(write(x, y, 100))
    assert x.cq.wait(1)[0].ok
    assert v.cq.wait(1)[0].slid == 5
    port.state = PortState.DOWN
    a.adapter.port_changed(1)
    with pytest.raises(PortStateError, match="DOWN"):
        x.qp.post_send(write(x, y, 100))
    assert AsyncEventType.PORT_ERR in events(a)


def test_a_new_lid_is_used_by_what_was_made_before():
    lab = NativeLab()
    a, b = lab.adapter(), lab.adapter()
    u, v = make_side(a, UD), make_side(b, UD)
    join(u, v)
    for _ in range(2):
        v.qp.post_recv(RecvRequest(1, [v.mr.sge(0, 4136)]))
    there = u.pd.create_ah(AddressVector(dlid=b.query_port().lid))
    for lid in (40, 41):
        a.adapter.ports[0].set_lid(lid)
        a.adapter.port_changed(1)
        u.qp.post_send(
            WorkRequest(
                1, WROpcode.SEND, [u.mr.sge(0, 8)], ah=there, remote_qpn=v.qp.qp_num, remote_qkey=0x11111111
            )
        )
        assert v.cq.wait(1)[0].slid == lid
    assert events(a).count(AsyncEventType.LID_CHANGE) == 2


def test_an_open_message_fails_when_its_only_port_stays_down():
    lab = NativeLab()
    x, y = lab.pair(RC, timeout=4, retry_cnt=2)
    x.ctx.adapter.ports[0].state = PortState.DOWN
    lab.gate = lambda sent: []
    x.qp._engine.post_send(x.qp._index, write(x, y, 5000))
    x.ctx.adapter.port_changed(1)
    lab.run(1_000_000_000)
    assert x.cq.poll()[0].status is CompletionStatus.RETRY_EXC_ERR
    assert drops(x.ctx)["drop.tx_port_down"] >= 3
    assert [s for s in lab.log if s.driver is x.ctx.driver] == []


# --- loopback ----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("NOD-17")
@pytest.mark.parametrize("ports", [(1, 1), (1, 2)])
@pytest.mark.parametrize("service", [RC, UC])
def test_queue_pairs_of_one_adapter_talk_without_a_link(service, ports):
    lab = NativeLab()
    ctx = lab.adapter(2)
    x, y = make_side(ctx, service), make_side(ctx, service)
    there, here = y.qp.endpoint_at(ports[1]), x.qp.endpoint_at(ports[0])
    x.qp.connect(there, port_num=ports[0], mtu=1024)
    y.qp.connect(here, port_num=ports[1], mtu=1024)
    data = Random(3).randbytes(50_000)
    x.mr.buf[:50_000] = data
    x.qp.post_send(write(x, y, 50_000))
    assert x.cq.wait(1)[0].ok
    assert y.mr.buf[:50_000] == data
    x.qp.post_send(WorkRequest(2, WROpcode.SEND, [x.mr.sge(0, 9000)]))
    y.qp.post_recv(RecvRequest(3, [y.mr.sge(0, 9000)]))
    if service is UC:
        x.qp.post_send(WorkRequest(2, WROpcode.SEND, [x.mr.sge(0, 9000)]))
    lab.run(100_000_000)
    assert [c.wr_id for c in y.cq.poll()] == [3]
    assert lab.log == []
    assert ctx.counters()["looped.packets"] > 50
    check_received(ctx.counters())


def test_datagrams_to_oneself_stay_inside_too():
    lab = NativeLab()
    ctx = lab.adapter()
    u, v = make_side(ctx, UD), make_side(ctx, UD)
    join(u, v)
    v.qp.post_recv(RecvRequest(1, [v.mr.sge(0, 4136)]))
    there = u.pd.create_ah(AddressVector(dlid=ctx.query_port().lid))
    u.qp.post_send(
        WorkRequest(
            1, WROpcode.SEND, [u.mr.sge(0, 8)], ah=there, remote_qpn=v.qp.qp_num, remote_qkey=0x11111111
        )
    )
    assert v.cq.wait(1)[0].src_qp == u.qp.qp_num
    assert lab.log == []


def test_the_same_lid_on_another_fabric_is_somebody_else():
    """NOD-13's trap: by its LID alone a packet of another port's fabric must not be taken for one's own."""
    lab = NativeLab()
    a = lab.adapter(2, subnets=("A", "B"))
    b = lab.adapter(1, subnets=("A",))
    a.adapter.ports[1].set_lid(b.query_port().lid)  # the same LID, on the other fabric
    a.adapter.port_changed(2)
    x, y = make_side(a, RC), make_side(b, RC)
    join(x, y)
    x.qp.post_send(write(x, y, 100))
    assert x.cq.wait(1)[0].ok
    assert {s.port for s in lab.log if s.driver is a.driver} == {1}


# --- multicast ---------------------------------------------------------------------------------------------------


def send_to_group(side: Side, dlid: int = 0xC005, gid: Gid = GROUP, data: bytes = b"to all") -> None:
    group = side.pd.create_ah(AddressVector(gid=gid, dlid=dlid))
    side.mr.buf[: len(data)] = data
    side.qp.post_send(
        WorkRequest(
            9,
            WROpcode.SEND,
            [side.mr.sge(0, len(data))],
            ah=group,
            remote_qpn=0xFFFFFF,
            remote_qkey=0x11111111,
        )
    )


def listener(ctx: Context, **attributes: Any) -> Side:
    side = make_side(ctx, UD)
    side.qp.activate(**attributes)
    for _ in range(4):
        side.qp.post_recv(RecvRequest(1, [side.mr.sge(0, 4136)]))
    return side


def test_a_multicast_packet_goes_to_every_member():
    lab = NativeLab()
    a, b, c = lab.adapter(), lab.adapter(2, subnets=("A", "B")), lab.adapter()
    sender = listener(a)
    here = listener(a)
    members = [listener(b), listener(b), listener(c)]
    other, deaf, far = listener(b), listener(b, qkey=5), listener(b, port_num=2)
    for member in (*members, here, deaf, far):
        member.qp.attach_mcast(GROUP, 0xC005)
    other.qp.attach_mcast(GROUP, 0xC006)
    send_to_group(sender)
    lab.run()
    for member in (*members, here):
        (got,) = member.cq.poll()
        assert (got.ok, got.byte_len, got.flags & 1, got.src_qp) == (True, 46, 1, sender.qp.qp_num)
        assert member.mr.buf[40:46] == b"to all"
        assert member.mr.buf[24:40] == GROUP.raw
    assert [end.cq.poll() for end in (other, deaf, far)] == [[], [], []]
    assert [s.packet.transport.bth.dest_qp for s in lab.log] == [0xFFFFFF]
    assert b.counters()["rx.replicated"] == 2
    assert drops(b) == {"drop.qkey": 1}
    for ctx in (a, b, c):
        check_received(ctx.counters())


def test_who_has_left_a_group_gets_nothing():
    lab = NativeLab()
    a, b = lab.adapter(), lab.adapter()
    sender, member, closed = listener(a), listener(b), listener(b)
    for end in (member, closed):
        end.qp.attach_mcast(GROUP)
    member.qp.attach_mcast(GROUP)  # twice is once
    closed.qp.close()
    send_to_group(sender)
    lab.run()
    assert len(member.cq.poll()) == 1
    member.qp.detach_mcast(GROUP)
    send_to_group(sender)
    lab.run()
    assert member.cq.poll() == []
    assert drops(b) == {"drop.multicast": 1}
    with pytest.raises(InvalidAttributeError, match="not attached"):
        member.qp.detach_mcast(GROUP)


def test_what_is_no_group():
    lab = NativeLab()
    ctx = lab.adapter()
    side = listener(ctx)
    for gid, lid in ((Gid(bytes(16)), 0xC000), (GROUP, 5), (GROUP, 0xFFFF)):
        with pytest.raises(InvalidAttributeError):
            side.qp.attach_mcast(gid, lid)
    with pytest.raises(InvalidAttributeError, match="datagram"):
        make_side(ctx, RC).qp.attach_mcast(GROUP)
    with pytest.raises(InvalidAttributeError, match="multicast LID"):
        side.pd.create_ah(AddressVector(dlid=0xC000))


# --- alternate paths ---------------------------------------------------------------------------------------------


class TwoFabrics:
    """Two adapters with ports on two fabrics; a connection over the first, with the second as its alternate."""

    def __init__(self, service: Any = RC, **attributes: Any) -> None:
        self.lab = NativeLab()
        self.a, self.b = (self.lab.adapter(2, subnets=("A", "B")) for _ in range(2))
        self.x, self.y = make_side(self.a, service), make_side(self.b, service)
        there, here = self.y.qp.endpoint, self.x.qp.endpoint
        more = {"timeout": 4, "retry_cnt": 2, "mtu": 1024, **attributes}
        self.x.qp.connect(there, **more, alternate=self.to(self.b))
        self.y.qp.connect(here, **more, alternate=self.to(self.a))
        self.data = Random(5).randbytes(60_000)
        self.x.mr.buf[:60_000] = self.data

    def to(self, ctx: Context) -> AddressVector:
        return AddressVector(dlid=ctx.query_port(2).lid, gid=ctx.query_gid(2), port_num=2)

    def states(self) -> tuple[PathMigrationState, PathMigrationState]:
        return self.x.qp.query().path_mig_state, self.y.qp.query().path_mig_state

    def arm(self) -> None:
        for _ in range(2):
            self.x.qp.post_send(write(self.x, self.y, 8))
            assert self.x.cq.wait(1)[0].ok
        self.lab.run()
        assert self.states() == (ARMED, ARMED)

    def cut(self, *ports: int) -> None:
        for driver in self.lab.drivers:
            self.lab.cut |= {(driver, port) for port in ports}

    def last(self, n: int = 1) -> list[Sent]:
        return self.lab.log[-n:]


def test_both_sides_are_armed_by_each_other():
    f = TwoFabrics()
    assert f.states() == (REARM, REARM)
    f.x.qp.post_send(write(f.x, f.y, 8))
    assert f.x.cq.wait(1)[0].ok
    assert f.states() == (ARMED, ARMED)
    assert not any(s.bth.mig_req for s in f.lab.log)
    assert f.x.qp.query().alt_ah_attr == f.to(f.b)
    assert f.x.qp.query().alt_port_num == 2


def test_one_side_alone_is_never_armed():
    lab = NativeLab()
    a, b = (lab.adapter(2, subnets=("A", "B")) for _ in range(2))
    x, y = make_side(a, RC), make_side(b, RC)
    there, here = y.qp.endpoint, x.qp.endpoint
    x.qp.connect(there, alternate=AddressVector(dlid=b.query_port(2).lid, port_num=2), timeout=1, retry_cnt=1)
    y.qp.connect(here)
    x.qp.post_send(write(x, y, 8))
    assert x.cq.wait(1)[0].ok
    assert (x.qp.query().path_mig_state, y.qp.query().path_mig_state) == (REARM, MIGRATED)
    lab.cut = {(d, 1) for d in lab.drivers}
    x.qp.post_send(write(x, y, 8))
    lab.run(100_000_000)
    assert x.cq.poll()[0].status is CompletionStatus.RETRY_EXC_ERR


@pytest.mark.requirement("TRN-08")
@pytest.mark.parametrize("how", ["retries", "port", "peer's port", "verb", "peer's verb"])
def test_a_connection_migrates_in_the_middle_of_a_message(how):
    f = TwoFabrics()
    f.arm()
    seen = []

    def gate(sent: Sent) -> list[bytes]:
        seen.append(sent)
        if len(seen) == 20:
            f.cut(1)
            f.lab.clock.call_at(f.lab.clock.now(), fail)
        return [sent.data]

    def fail() -> None:
        mine = f.x if how in ("port", "verb") else f.y
        if how.endswith("port"):
            mine.ctx.adapter.ports[0].state = PortState.DOWN
            mine.ctx.adapter.port_changed(1)
        elif how.endswith("verb"):
            mine.qp.modify(path_mig_state=MIGRATED)

    f.lab.gate = gate
    f.x.qp.post_send(write(f.x, f.y, 60_000))
    f.lab.run(100_000_000)
    assert [c.status for c in f.x.cq.poll()] == [CompletionStatus.SUCCESS]
    assert f.y.mr.buf[:60_000] == f.data
    assert f.states() == (MIGRATED, MIGRATED)
    for side, there in ((f.x, f.b), (f.y, f.a)):
        assert events(side.ctx).count(AsyncEventType.PATH_MIG) == 1
        assert side.ctx.counters()["path.migrations"] == 1
        now = side.qp.query()
        assert (now.port_num, now.ah_attr, now.alt_ah_attr) == (2, f.to(there), None)
        check_received(side.ctx.counters())
    assert all(s.port == 2 and s.bth.mig_req for s in f.last(5))


@pytest.mark.requirement("TRN-08")
def test_without_an_alternate_the_same_failure_ends_the_connection():
    lab = NativeLab()
    x, y = lab.pair(RC, timeout=4, retry_cnt=2)
    x.qp.post_send(write(x, y, 8))
    assert x.cq.wait(1)[0].ok
    lab.cut = {(d, 1) for d in lab.drivers}
    x.qp.post_send(write(x, y, 60_000))
    lab.run(100_000_000)
    assert x.cq.poll()[0].status is CompletionStatus.RETRY_EXC_ERR
    assert x.ctx.counters()["path.migrations"] == 0


def test_a_connection_can_be_rearmed_and_go_back():
    f = TwoFabrics()
    f.arm()
    f.cut(1)
    f.x.qp.post_send(write(f.x, f.y, 60_000))
    f.lab.run(100_000_000)
    assert f.x.cq.poll()[0].ok
    f.lab.cut.clear()
    for side, there in ((f.x, f.b), (f.y, f.a)):
        back = AddressVector(dlid=there.query_port(1).lid, port_num=1)
        side.qp.modify(alt_ah_attr=back, alt_port_num=1, alt_timeout=5, path_mig_state=REARM)
        assert side.qp.query().alt_timeout == 5
    f.arm()
    f.cut(2)
    f.x.qp.post_send(write(f.x, f.y, 60_000))
    f.lab.run(100_000_000)
    assert f.x.cq.poll()[0].ok
    assert f.x.qp.query().port_num == 1
    assert f.x.qp.query().timeout == 5
    assert f.x.ctx.counters()["path.migrations"] == 2


def test_both_paths_gone_is_an_error_and_no_hang():
    f = TwoFabrics()
    f.arm()
    f.cut(1, 2)
    f.x.qp.post_send(write(f.x, f.y, 60_000))
    f.lab.run(1_000_000_000)
    assert f.x.cq.poll()[0].status is CompletionStatus.RETRY_EXC_ERR


def test_an_unreliable_connection_follows_its_peer():
    f = TwoFabrics(UC)
    f.x.qp.post_send(write(f.x, f.y, 8))
    f.y.qp.post_send(write(f.y, f.x, 8))
    f.lab.run()
    f.x.qp.post_send(write(f.x, f.y, 8))
    f.lab.run()
    assert f.states() == (ARMED, ARMED)
    f.y.qp.modify(path_mig_state=MIGRATED)
    f.y.qp.post_send(write(f.y, f.x, 8))
    f.lab.run()
    assert f.states() == (MIGRATED, MIGRATED)
    assert events(f.a) == [AsyncEventType.PATH_MIG]


def test_a_request_to_migrate_by_the_wrong_path_is_refused():
    f = TwoFabrics()
    f.arm()
    before = len(f.lab.log)
    f.x.qp.post_send(write(f.x, f.y, 8))
    good = f.lab.log[before]
    bth = replace(good.bth, mig_req=True, psn=(good.bth.psn + 1) % (1 << 24))
    forged = replace(good.packet, transport=replace(good.packet.transport, bth=bth)).sealed().encode()[:-2]
    for _ in range(100):
        f.b.adapter.engine.receive_native(bytearray(forged), 1, f.lab.clock.now())
    f.b.adapter.dispatch()
    assert events(f.b) == [AsyncEventType.PATH_MIG_ERR]
    assert drops(f.b)["drop.source"] == 100
    f.lab.run()
    assert f.states() == (ARMED, ARMED)


def test_what_alternate_paths_are_refused():
    f = TwoFabrics()
    plain = make_side(f.a, RC)
    for wrong, words in (
        ({"path_mig_state": ARMED}, "set REARM"),
        ({"alt_timeout": 5}, "only together with alt_ah_attr"),
        ({"alt_ah_attr": f.to(f.b), "alt_port_num": 1}, "alt_ah_attr.port_num = 2"),
        ({"alt_ah_attr": AddressVector(dlid=5, port_num=3)}, "ports 1 to 2"),
        ({"alt_ah_attr": f.to(f.b), "alt_pkey_index": 1}, "P_Key table"),
        ({"alt_ah_attr": f.to(f.b), "alt_timeout": 32}, "0 to 31"),
    ):
        with pytest.raises(InvalidAttributeError, match=words):
            f.x.qp.modify(**wrong)
    plain.qp.connect(f.y.qp.endpoint)
    with pytest.raises(InvalidAttributeError, match="alternate path first"):
        plain.qp.modify(path_mig_state=REARM)
    f.arm()
    f.a.adapter.ports[1].state = PortState.DOWN
    f.a.adapter.port_changed(2)
    with pytest.raises(PortStateError, match="port 2"):
        f.x.qp.modify(path_mig_state=MIGRATED)
    assert f.states()[0] is ARMED


@pytest.mark.parametrize("seed", range(4))
def test_paths_that_fail_again_and_again_lose_and_double_nothing(seed):
    random = Random(seed)
    f = TwoFabrics(timeout=3)
    sent = 0
    for round_ in range(12):
        f.arm()
        active = f.x.qp.query().port_num
        f.lab.clock.call_at(f.lab.clock.now() + random.randrange(30_000), lambda active=active: f.cut(active))
        n = random.randrange(1, 60_000)
        f.x.mr.buf[:n] = random.randbytes(n)
        f.x.qp.post_send(write(f.x, f.y, n, round_))
        f.lab.run(400_000_000)
        (done,) = f.x.cq.poll()
        assert done.ok
        assert f.y.mr.buf[:n] == f.x.mr.buf[:n]
        f.x.qp.post_send(write(f.x, f.y, 8))
        f.lab.run(400_000_000)
        assert f.x.cq.poll()[0].ok
        sent += 1
        f.lab.cut.clear()
        other = 3 - f.x.qp.query().port_num
        for side, there in ((f.x, f.b), (f.y, f.a)):
            alternate = AddressVector(dlid=there.query_port(other).lid, port_num=other)
            side.qp.modify(alt_ah_attr=alternate, path_mig_state=REARM)
    assert f.x.ctx.counters()["path.migrations"] == sent
    check_received(f.b.counters())


def test_a_refused_migration_changes_nothing_else():
    f = TwoFabrics()
    f.arm()
    f.a.adapter.ports[1].state = PortState.DOWN
    f.a.adapter.port_changed(2)
    before = f.x.qp.query()
    with pytest.raises(PortStateError):
        f.x.qp.modify(min_rnr_timer=30, path_mig_state=MIGRATED)
    assert f.x.qp.query() == before


def test_datagrams_wait_for_the_service_level_of_the_next_one():
    lab = NativeLab()
    u, v = lab.pair(UD)
    engine, lid = u.ctx.adapter.engine, v.ctx.query_port().lid
    engine.set_open(1, 0b0001)
    for i, sl in enumerate((0, 1, 0)):
        v.qp.post_recv(RecvRequest(i, [v.mr.sge(0, 4136)]))
        there = u.pd.create_ah(AddressVector(dlid=lid, sl=sl))
        u.qp.post_send(
            WorkRequest(
                i, WROpcode.SEND, [u.mr.sge(0, 8)], ah=there, remote_qpn=v.qp.qp_num, remote_qkey=0x11111111
            )
        )
    lab.run()
    assert [c.sl for c in v.cq.poll()] == [0]  # in order: the second one is next
    assert u.ctx.counters()["tx.held"] == 1
    engine.set_open(1, 0b0010)
    u.ctx.driver.kick()
    lab.run()
    assert [c.sl for c in v.cq.poll()] == [1]
    engine.set_open(1, 0b0001)
    u.ctx.driver.kick()
    lab.run()
    assert [c.sl for c in v.cq.poll()] == [0]
    for port in (0, 17):
        with pytest.raises(InvalidAttributeError):
            engine.set_open(port, 1)


def test_the_last_in_line_leaves_it_and_the_line_goes_on():
    lab = NativeLab()
    first, last, late = (lab.pair(RC) for _ in range(3))
    engine = first[0].ctx.adapter.engine
    engine.set_open(1, 0)
    for x, y in (first, last):
        x.qp.post_send(write(x, y, 100))
    last[0].qp.close()
    late[0].qp.post_send(write(*late, 100))
    engine.set_open(1, 0xFFFF)
    first[0].ctx.driver.kick()
    lab.run()
    assert [end[0].cq.poll()[0].ok for end in (first, late)] == [True, True]


@pytest.mark.parametrize("wrong", ["no global header", "unicast GID", "unicast queue pair", "unicast LID"])
def test_half_a_multicast_packet_reaches_nobody(wrong):
    lab = NativeLab()
    a, b = lab.adapter(), lab.adapter()
    sender, member = listener(a), listener(b)
    member.qp.attach_mcast(GROUP)
    send_to_group(sender)
    good = lab.log[0].packet
    lrh, grh, bth = good.lrh, good.grh, good.transport.bth
    reason = "drop.dgid"
    if wrong == "no global header":
        bad = replace(good, grh=None)
    elif wrong == "unicast GID":
        bad = replace(good, grh=replace(grh, dgid=b.gids[0].raw))
    elif wrong == "unicast LID":
        bad = replace(good, lrh=replace(lrh, dlid=b.query_port().lid))
    else:
        reason = "drop.multicast"
        bad = replace(good, transport=replace(good.transport, bth=replace(bth, dest_qp=member.qp.qp_num)))
    b.adapter.engine.receive_native(bytearray(bad.sealed().encode()[:-2]), 1, 0)
    assert drops(b) == {reason: 1}
    assert member.cq.poll() == []
