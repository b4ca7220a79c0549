"""InfiniBand ports of an adapter: states, addresses, partitions, events, profiles."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import verbena
from lab import Lab, drops
from native_lab import RC, UC, UD, NativeLab, join
from verbena import (
    HOST_ADAPTER,
    IO_ADAPTER,
    AddressVector,
    AsyncEventType,
    CompletionStatus,
    Gid,
    InvalidAttributeError,
    InvalidStateError,
    RecvRequest,
    ResourceError,
    WorkRequest,
    WROpcode,
)
from verbena.adapter.port import GID_CAPACITY, TRANSITIONS, AdapterPort, PortState
from verbena.runtime.pairs import make_side

PREFIX = 0xFEC0_0000_0000_0009
GUID = 0x0276_6200_0000_0101


def gid_of(guid: int, prefix: int = PREFIX) -> Gid:
    return Gid(((prefix << 64) | guid).to_bytes(16, "big"))


# --- the port by itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", PortState)
def test_every_way_from_state_to_state(start: PortState) -> None:
    # IBA vol. 1, 7.2.7, written down again.
    ways = {
        "DOWN": {"INIT"},
        "INIT": {"DOWN", "ARMED"},
        "ARMED": {"DOWN", "INIT", "ACTIVE"},
        "ACTIVE": {"DOWN", "INIT"},
    }
    assert {s.name: {t.name for t in TRANSITIONS[s]} for s in PortState} == ways
    for target in PortState:
        port = AdapterPort(1, GUID)
        for state in (PortState.INIT, PortState.ARMED, PortState.ACTIVE):
            if state <= start:
                port.state = state
        if target is start or target.name in ways[start.name]:
            port.state = target
            assert port.state is target
        else:
            with pytest.raises(InvalidStateError, match=f"is {start.name}"):
                port.state = target
            assert port.state is start


@given(st.integers(-2, 0x1_0001), st.integers(-1, 9))
def test_lids_of_a_port(lid: int, lmc: int) -> None:
    port = AdapterPort(1, GUID)
    right = 0 <= lmc <= 7 and 0 <= lid <= 0xBFFF and lid % (1 << max(lmc, 0)) == 0
    if right:
        port.set_lid(lid, lmc)
        assert list(port.lids) == (list(range(lid, lid + (1 << lmc))) if lid else [])
    else:
        with pytest.raises(InvalidAttributeError):
            port.set_lid(lid, lmc)
        assert (port.lid, port.lmc) == (0, 0)


def test_keys_and_sizes_out_of_range() -> None:
    port = AdapterPort(1, GUID, mtu=2048)
    for keys in ([], [0x10000], [-1], [1] * 129, ["x"]):
        with pytest.raises(InvalidAttributeError):
            port.set_pkeys(keys)
    for mtu in (0, 100, 4096, 8192):
        with pytest.raises(InvalidAttributeError):
            port.mtu = mtu
    for prefix in (0, 1 << 64, 0xFF02 << 48):
        with pytest.raises(InvalidAttributeError):
            port.gid_prefix = prefix
    for number, guid in ((0, 1), (17, 1), (1, 0), (1, 1 << 64)):
        with pytest.raises(InvalidAttributeError):
            AdapterPort(number, guid)
    assert (port.pkeys, port.mtu) == ((0xFFFF,), 2048)


@pytest.mark.requirement("NOD-11")
def test_a_port_with_three_addresses_and_one_lid_receives_on_all_three() -> None:
    lab = NativeLab()
    a, b = lab.adapter(prefix=PREFIX + 1), lab.adapter(prefix=PREFIX)
    port = b.adapter.ports[0]
    more = [gid_of(0x1111), gid_of(0x2222)]
    assert [port.add_gid(gid) for gid in more] == [1, 2]
    b.adapter.port_changed(1)
    u, v = make_side(a, UD), make_side(b, UD)
    join(u, v)
    lid = b.query_port().lid
    assert b.gids == (gid_of(port.guid), *more)
    for i, gid in enumerate(b.gids):
        assert b.query_gid(1, i) == gid
        v.qp.post_recv(RecvRequest(i, [v.mr.sge(0, 4136)]))
        post_datagram(u, v, AddressVector(gid=gid, dlid=lid))
        (got,) = v.cq.wait(1)
        assert got.ok
        assert v.mr.buf[24:40] == gid.raw
    # An address that it has not, of its own subnet, and one that was taken away.
    port.remove_gid(more[1])
    b.adapter.port_changed(1)
    for gid in (gid_of(0x3333), more[1]):
        post_datagram(u, v, AddressVector(gid=gid, dlid=lid))
    lab.run()
    assert drops(b) == {"drop.dgid": 2}
    for wrong in (gid_of(0x4444, PREFIX + 1), Gid.from_ip("10.0.0.1"), gid_of(0x1111), gid_of(0)):
        with pytest.raises(InvalidAttributeError):
            port.add_gid(wrong)
    with pytest.raises(InvalidAttributeError):
        port.remove_gid(port.gids[0])
    with pytest.raises(InvalidAttributeError):
        b.query_gid(1, 2)


def test_the_gid_table_has_an_end() -> None:
    port = AdapterPort(1, GUID, gid_prefix=PREFIX)
    for i in range(1, GID_CAPACITY):
        port.add_gid(gid_of(i))
    with pytest.raises(ResourceError):
        port.add_gid(gid_of(GID_CAPACITY))
    port.gid_prefix = PREFIX + 1
    assert all(gid.raw[:8] == (PREFIX + 1).to_bytes(8, "big") for gid in port.gids)


def post_datagram(
    u: Any, v: Any, vector: AddressVector, data: bytes = b"datagram", qpn: int | None = None
) -> None:
    there = u.pd.create_ah(vector)
    u.mr.buf[: len(data)] = data
    number = v.qp.qp_num if qpn is None else qpn
    u.qp.post_send(
        WorkRequest(
            1, WROpcode.SEND, [u.mr.sge(0, len(data))], ah=there, remote_qpn=number, remote_qkey=0x11111111
        )
    )
    there.close()


# --- several ports, several LIDs ---------------------------------------------------------------------------------


@pytest.mark.requirement("NOD-02")
@pytest.mark.requirement("NOD-03")
def test_a_node_with_two_adapters_of_two_ports_each() -> None:
    """Document 003, figure 5: processes A, B, C; B has queue pairs on both adapters."""
    lab = NativeLab()
    first, second = lab.adapter(2), lab.adapter(2)
    peer = lab.adapter(1)
    assert [len(ctx.adapter.ports) for ctx in (first, second)] == [2, 2]
    owners = {"A": [(first, 1)], "B": [(first, 2), (second, 1)], "C": [(second, 2)]}
    ends = {}
    for process, places in owners.items():
        for ctx, number in places:
            x, y = make_side(ctx, RC), make_side(peer, RC)
            there, here = y.qp.endpoint, x.qp.endpoint_at(number)
            x.qp.connect(there, port_num=number)
            y.qp.connect(here)
            ends[process, ctx] = (x, y, number)
    assert len(first.queue_pairs) == len(second.queue_pairs) == 2
    for (_, ctx), (x, y, number) in ends.items():
        lab.log.clear()
        x.mr.buf[:9] = b"of figure"
        x.qp.post_send(
            WorkRequest(1, WROpcode.RDMA_WRITE, [x.mr.sge(0, 9)], remote_addr=y.mr.addr, rkey=y.mr.rkey)
        )
        assert x.cq.wait(1)[0].ok
        assert y.mr.buf[:9] == b"of figure"
        mine = {(s.driver, s.port) for s in lab.log if s.driver is not peer.driver}
        assert mine == {(ctx.driver, number)}, "its traffic is on its own adapter's port"
    x, y, _ = ends["A", first]
    request = WorkRequest(1, WROpcode.SEND, [x.mr.sge(0, 4)])
    for post, what in ((second.post_send, request), (second.post_recv, RecvRequest(1))):
        with pytest.raises(InvalidAttributeError, match="invalid queue pair"):
            post(x.qp, what)
    y.qp.post_recv(RecvRequest(2, [y.mr.sge(0, 16)]))
    first.post_send(x.qp, request)
    assert x.cq.wait(1)[0].ok


@pytest.mark.requirement("NOD-12")
def test_each_lid_of_a_port_is_an_address_of_its_own() -> None:
    lab = NativeLab()
    a, b = lab.adapter(lmc=2), lab.adapter(lmc=3)
    base = b.query_port().lid
    assert (b.query_port().lmc, a.query_port().lmc) == (3, 2)
    services = {}
    for bits in (0, 5):
        x, y = make_side(a, RC), make_side(b, RC)
        there, here = y.qp.endpoint_at(1, path_bits=bits), x.qp.endpoint_at(1, path_bits=1)
        x.qp.connect(there, src_path_bits=1)
        y.qp.connect(here, src_path_bits=bits)
        services[bits] = (x, y)
    for bits, (x, y) in services.items():
        lab.log.clear()
        y.qp.post_recv(RecvRequest(2, [y.mr.sge(0, 16)]))
        x.qp.post_send(WorkRequest(1, WROpcode.SEND, [x.mr.sge(0, 4)]))
        assert x.cq.wait(1)[0].ok
        (got,) = y.cq.wait(1)
        assert (got.path_bits, got.slid) == (bits, a.query_port().lid + 1)
        request, answer = lab.log
        assert (request.packet.lrh.dlid, answer.packet.lrh.slid) == (base + bits, base + bits)
    # The service at one LID cannot be reached by the other.
    x, y = make_side(a, RC), make_side(b, RC)
    there, here = y.qp.endpoint_at(1, path_bits=5), x.qp.endpoint
    y.qp.connect(here, src_path_bits=5)
    x.qp.connect(replace(there, lid=base), timeout=1, retry_cnt=1)
    x.qp.post_send(WorkRequest(1, WROpcode.SEND, [x.mr.sge(0, 4)]))
    assert x.cq.wait(1)[0].status is CompletionStatus.RETRY_EXC_ERR
    assert drops(b)["drop.source"] >= 2
    with pytest.raises(InvalidAttributeError, match="src_path_bits"):
        x.pd.create_ah(AddressVector(dlid=base, src_path_bits=4))
    # Datagrams to each of them arrive, and say which it was; to the next LID, they do not.
    u, v = make_side(a, UD), make_side(b, UD)
    join(u, v)
    for bits in range(8):
        v.qp.post_recv(RecvRequest(bits, [v.mr.sge(0, 4136)]))
        post_datagram(u, v, AddressVector(dlid=base + bits))
        assert v.cq.wait(1)[0].path_bits == bits


@pytest.mark.requirement("NOD-13")
@pytest.mark.parametrize("alike", [False, True])
def test_redundant_ports_may_carry_the_same_lid_and_address(alike: bool) -> None:
    lab = NativeLab()
    a, b = (lab.adapter(2, subnets=("A", "B")) for _ in range(2))
    if alike:
        for ctx in (a, b):
            one, two = ctx.adapter.ports
            two.set_lid(one.lid)
            two.add_gid(one.gids[0])
            ctx.adapter.port_changed(2)
        assert a.query_port(1).lid == a.query_port(2).lid
        assert a.query_gid(2, 1) == a.query_gid(1, 0)
    for number in (1, 2):
        x, y = make_side(a, RC), make_side(b, RC)
        there, here = y.qp.endpoint_at(number), x.qp.endpoint_at(number)
        x.qp.connect(there, port_num=number)
        y.qp.connect(here, port_num=number)
        lab.log.clear()
        x.qp.post_send(
            WorkRequest(1, WROpcode.RDMA_WRITE, [x.mr.sge(0, 9000)], remote_addr=y.mr.addr, rkey=y.mr.rkey)
        )
        assert x.cq.wait(1)[0].ok
        assert {s.port for s in lab.log} == {number}


def test_a_connection_takes_packets_at_its_own_port_only() -> None:
    lab = NativeLab()
    a, b = (lab.adapter(2, subnets=("A", "B")) for _ in range(2))
    for ctx in (a, b):
        one, two = ctx.adapter.ports
        two.set_lid(one.lid)
        ctx.adapter.port_changed(2)
    for service, counter in ((RC, "drop.source"), (UD, "drop.wrong_port")):
        x, y = make_side(a, service), make_side(b, service)
        join(x, y)
        lab.log.clear()
        if service is UD:
            post_datagram(x, y, AddressVector(dlid=b.query_port().lid))
        else:
            x.qp.post_send(WorkRequest(1, WROpcode.SEND, [x.mr.sge(0, 4)]))
        lab.run(1000)
        b.adapter.engine.receive_native(bytearray(lab.log[0].data), 2, lab.clock.now())
        assert drops(b)[counter] == 1


@pytest.mark.requirement("NOD-14")
def test_link_level_engines_are_enumerated_by_management_and_shown_to_nobody_else() -> None:
    lab = NativeLab()
    ctx = lab.adapter(3)
    assert list(ctx.adapter.link_engines()) == [0, 1, 2]
    hidden = ("AdapterPort", "link_engine", "LinkEngine")
    for kind in (verbena.Context, verbena.QueuePair, verbena.ProtectionDomain, verbena.CompletionQueue):
        for name, verb in inspect.getmembers(kind):
            if not name.startswith("_") and callable(verb):
                assert not any(word in str(inspect.signature(verb)) for word in hidden), (kind, name)
    assert not set(hidden) & set(verbena.__all__)
    told = ctx.query_port(2)
    values = [getattr(told, name) for name in told.__dataclass_fields__]
    assert all(isinstance(value, (int, str)) for value in values)
    with pytest.raises(InvalidAttributeError, match="ports 1 to 3"):
        ctx.query_port(0)


# --- partitions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "yours", "talk"),
    [
        (0xFFFF, 0xFFFF, True),
        (0xFFFF, 0x7FFF, True),
        (0x7FFF, 0xFFFF, True),
        (0x7FFF, 0x7FFF, False),
        (0x8123, 0x0123, True),
        (0x8123, 0x8124, False),
    ],
)
def test_who_may_talk_to_whom(mine: int, yours: int, talk: bool) -> None:
    lab = NativeLab()
    a, b = lab.adapter(), lab.adapter()
    for ctx, key in ((a, mine), (b, yours)):
        ctx.adapter.ports[0].set_pkeys([0xFFFF, 0, key])
        ctx.adapter.port_changed(1)
        assert ctx.query_pkey(1, 2) == key
        assert ctx.get_async_event(0).type is AsyncEventType.PKEY_CHANGE
    x, y = make_side(a, UD), make_side(b, UD)
    join(x, y, pkey_index=2)
    y.qp.post_recv(RecvRequest(1, [y.mr.sge(0, 4136)]))
    post_datagram(x, y, AddressVector(dlid=b.query_port().lid))
    lab.run()
    assert len(y.cq.poll()) == talk
    assert drops(b) == ({} if talk else {"drop.pkey": 1})
    assert [v.trap for v in lab.violations] == ([] if talk else [257])
    assert lab.log[0].bth.pkey == mine
    with pytest.raises(InvalidAttributeError, match="empty"):
        make_side(a, UD).qp.activate(pkey_index=1)
    with pytest.raises(InvalidAttributeError, match="3 entries"):
        make_side(a, UD).qp.activate(pkey_index=3)


def test_a_changed_table_changes_the_keys_of_queue_pairs() -> None:
    lab = NativeLab()
    x, y = lab.pair(RC)
    for side in (x, y):
        side.ctx.adapter.ports[0].set_pkeys([0x8005])
        side.ctx.adapter.port_changed(1)
    x.qp.post_send(
        WorkRequest(1, WROpcode.RDMA_WRITE, [x.mr.sge(0, 9)], remote_addr=y.mr.addr, rkey=y.mr.rkey)
    )
    assert x.cq.wait(1)[0].ok
    assert {s.bth.pkey for s in lab.log} == {0x8005}
    y.ctx.adapter.ports[0].set_pkeys([0])  # out of every partition
    y.ctx.adapter.port_changed(1)
    x.qp.post_send(
        WorkRequest(1, WROpcode.RDMA_WRITE, [x.mr.sge(0, 9)], remote_addr=y.mr.addr, rkey=y.mr.rkey)
    )
    lab.run()
    assert drops(y.ctx) == {"drop.pkey": 1}


# --- events ------------------------------------------------------------------------------------------------------


def test_events_say_what_has_changed_at_which_port() -> None:
    lab = NativeLab()
    ctx = lab.adapter(2, up=False)
    port = ctx.adapter.ports[1]
    kinds = AsyncEventType

    def changed() -> list[AsyncEventType]:
        ctx.adapter.port_changed(2)
        found = []
        while event := ctx.get_async_event(0):
            assert (event.port, event.qp_num, event.source) == (2, None, None)
            found.append(event.type)
        return found

    assert changed() == []
    port.state = PortState.INIT
    assert changed() == []
    port.set_lid(7)
    port.sm_lid = 1
    assert changed() == [kinds.LID_CHANGE, kinds.SM_CHANGE]
    port.state = PortState.ARMED
    assert changed() == []
    port.state = PortState.ACTIVE
    assert changed() == [kinds.PORT_ACTIVE]
    port.add_gid(gid_of(1, port.gid_prefix))
    assert changed() == [kinds.GID_CHANGE]
    port.set_pkeys([0xFFFF, 5])
    assert changed() == [kinds.PKEY_CHANGE]
    port.state = PortState.DOWN
    assert changed() == [kinds.PORT_ERR]
    with pytest.raises(InvalidAttributeError):
        ctx.adapter.port_changed(3)


# --- profiles ----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("NOD-04")
def test_a_host_adapter_has_thousands_of_queue_pairs() -> None:
    lab = NativeLab()
    ctx = lab.adapter(4, limits=HOST_ADAPTER)
    assert ctx.query_device().phys_port_cnt == 4
    pd, cq = ctx.alloc_pd(), ctx.create_cq(16)
    made = [pd.create_qp(RC, cq, max_send_wr=1, max_recv_wr=1) for _ in range(2000)]
    assert len({qp.qp_num for qp in made}) == 2000
    with pytest.raises(InvalidAttributeError, match="5 ports"):
        lab.adapter(5, limits=HOST_ADAPTER)


@pytest.mark.requirement("NOD-04")
def test_an_io_adapter_has_tens_of_queue_pairs_and_lets_nobody_into_its_memory() -> None:
    lab = NativeLab()
    host, io = lab.adapter(), lab.adapter(2, limits=IO_ADAPTER)
    pd, cq = io.alloc_pd(), io.create_cq(64)
    made = [pd.create_qp(RC, cq) for _ in range(IO_ADAPTER.max_qp)]
    with pytest.raises(ResourceError, match="queue pairs"):
        pd.create_qp(RC, cq)
    for qp in made:
        qp.close()
    with pytest.raises(InvalidAttributeError, match="3 ports"):
        lab.adapter(3, limits=IO_ADAPTER)
    for opcode, size in (
        (WROpcode.RDMA_WRITE, 64),
        (WROpcode.RDMA_READ, 64),
        (WROpcode.ATOMIC_FETCH_AND_ADD, 8),
    ):
        x, y = make_side(host, RC), make_side(io, RC)
        join(x, y)
        y.mr.buf[:64] = b"m" * 64
        x.mr.buf[:64] = b"x" * 64
        x.qp.post_send(
            WorkRequest(1, opcode, [x.mr.sge(0, size)], remote_addr=y.mr.addr, rkey=y.mr.rkey, compare_add=1)
        )
        assert x.cq.wait(1)[0].status is CompletionStatus.REM_ACCESS_ERR
        assert y.mr.buf[:64] == b"m" * 64
        assert x.mr.buf[:64] == b"x" * 64
        x.qp.close()
        y.qp.close()
    assert io.counters()["tx.naks"] == 3
    # What it asks for itself, it gets; and channel semantics work both ways.
    x, y = make_side(host, RC), make_side(io, RC)
    join(x, y)
    y.qp.post_send(
        WorkRequest(1, WROpcode.RDMA_READ, [y.mr.sge(0, 64)], remote_addr=x.mr.addr, rkey=x.mr.rkey)
    )
    assert y.cq.wait(1)[0].ok
    y.qp.post_recv(RecvRequest(2, [y.mr.sge(0, 64)]))
    x.qp.post_send(WorkRequest(3, WROpcode.SEND, [x.mr.sge(0, 64)]))
    assert y.cq.wait(1)[0].ok


def test_attributes_that_do_not_fit() -> None:
    lab = NativeLab()
    a, b = lab.adapter(2, mtu=2048), lab.adapter()
    x, y = make_side(a, UC), make_side(b, UC)
    with pytest.raises(InvalidAttributeError, match="active MTU is 2048"):
        x.qp.connect(y.qp.endpoint, mtu=4096)
    z = make_side(a, UC)
    with pytest.raises(InvalidAttributeError, match="ports 1 to 2"):
        z.qp.connect(y.qp.endpoint, port_num=3)
    with pytest.raises(InvalidAttributeError, match="dlid = 0"):
        x.pd.create_ah(AddressVector(gid=b.gids[0]))
    u = make_side(a, UD)
    u.qp.activate(port_num=2)
    with pytest.raises(InvalidAttributeError, match="leaves from port 1"):
        post_datagram(u, y, AddressVector(dlid=b.query_port().lid))
    with pytest.raises(InvalidAttributeError, match="on Ethernet"):
        make_side(Lab().adapter(), UD).pd.create_ah(AddressVector(gid=Gid.from_ip("10.0.0.2"), dlid=4))


def test_a_port_is_changed_only_to_one_that_has_the_key() -> None:
    lab = NativeLab()
    ctx = lab.adapter(2)
    ctx.adapter.ports[0].set_pkeys([0xFFFF, 0x8001])
    ctx.adapter.port_changed(1)
    side = make_side(ctx, RC)
    side.qp.modify(verbena.QPState.INIT, port_num=1, pkey_index=1, access_flags=verbena.Access.LOCAL_WRITE)
    with pytest.raises(InvalidAttributeError, match="P_Key table of port 2 has 1"):
        side.qp.modify(port_num=2)
    assert (side.qp.query().port_num, side.qp.query().pkey_index) == (1, 1)
    side.qp.modify(port_num=2, pkey_index=0)
    assert (side.qp.query().port_num, side.qp.query().pkey_index) == (2, 0)


def test_keys_follow_a_connection_that_has_migrated() -> None:
    lab = NativeLab()
    a, b = (lab.adapter(2, subnets=("A", "B")) for _ in range(2))
    x, y = make_side(a, RC), make_side(b, RC)
    there, here = y.qp.endpoint, x.qp.endpoint
    for side, to, other in ((x, there, b), (y, here, a)):
        side.ctx.adapter.ports[1].set_pkeys([0xFFFF, 0x8002])
        side.ctx.adapter.port_changed(2)
        side.qp.connect(to)
        way = AddressVector(dlid=other.query_port(2).lid, port_num=2)
        side.qp.modify(alt_ah_attr=way, alt_pkey_index=1, path_mig_state=verbena.PathMigrationState.REARM)
    for side in (x, y):  # before migration, and after it
        side.ctx.adapter.ports[1].set_pkeys([0xFFFF, 0x8003])
        side.ctx.adapter.port_changed(2)
    work = WorkRequest(1, WROpcode.RDMA_WRITE, [x.mr.sge(0, 9)], remote_addr=y.mr.addr, rkey=y.mr.rkey)
    x.qp.post_send(work)
    assert x.cq.wait(1)[0].ok
    x.qp.modify(path_mig_state=verbena.PathMigrationState.MIGRATED)
    for key in (0x8003, 0x8004):
        for side in (x, y):
            side.ctx.adapter.ports[1].set_pkeys([0xFFFF, key])
            side.ctx.adapter.port_changed(2)
        lab.log.clear()
        x.qp.post_send(work)
        assert x.cq.wait(1)[0].ok
        assert {(s.port, s.bth.pkey) for s in lab.log} == {(2, key)}
    assert (x.qp.query().pkey_index, y.qp.query().pkey_index) == (1, 1)
