"""Striping over the InfiniBand ports of one adapter: all at once, and without the ones that fail (document 003:565)."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from lab import drops, pattern, read, statuses, take, write
from native_lab import NativeLab
from verbena import (
    AddressVector,
    Context,
    InvalidAttributeError,
    PathMigrationState,
    PortStateError,
    QPState,
    QPType,
    RecvRequest,
    WorkRequest,
    WROpcode,
)
from verbena.adapter.port import PortState
from verbena.runtime.meshes import addressed, datagram_mesh
from verbena.runtime.pairs import Side, make_side

RC = QPType.RC
SIZE = 1 << 18
MTU = 512  # 512 packets, of which 256 may be under way
HALFWAY = 1_500  # the first of them have arrived, their answers are on the way


def further(there: Context, ports: int = 2, **attributes: Any) -> list[AddressVector]:
    """Paths from each further port to the peer's port of the same number."""
    return [
        AddressVector(there.query_gid(n), dlid=there.query_port(n).lid, port_num=n, **attributes)
        for n in range(2, ports + 1)
    ]


def striped(lab: NativeLab, ports: int = 2, vector: dict[str, Any] | None = None, **attributes: Any) -> Any:
    """A connection that uses all ports of both adapters."""
    a, b = (make_side(lab.adapter(ports), RC, SIZE) for _ in range(2))
    given: dict[str, Any] = {"mtu": MTU, "timeout": 4, "max_rd_atomic": 4} | attributes
    there, here = b.qp.endpoint, a.qp.endpoint
    a.qp.connect(there, stripe_ah_attrs=further(b.ctx, ports, **(vector or {})), **given)
    b.qp.connect(here, stripe_ah_attrs=further(a.ctx, ports, **(vector or {})), **given)
    return a, b


def move(a: Side, b: Side, operation: str) -> Side:
    """Post a message of `SIZE` bytes; returns the side where it is to arrive."""
    source, target = (b, a) if operation == "read" else (a, b)
    source.mr.buf[:] = pattern(SIZE)
    if operation == "send":
        b.qp.post_recv(RecvRequest(7, [b.mr.sge()]))
        a.qp.post_send(WorkRequest(1, WROpcode.SEND, [a.mr.sge()]))
    else:
        a.qp.post_send((read if operation == "read" else write)(a, b, SIZE, 1))
    return target


def down(side: Side, number: int) -> None:
    """The port's link is lost; nobody tells a connection."""
    adapter = side.ctx.adapter
    adapter.ports[number - 1].state = PortState.DOWN
    adapter.port_changed(number)


def up(side: Side, number: int) -> None:
    port = side.ctx.adapter.ports[number - 1]
    port.bring_up(port.lid)
    side.ctx.adapter.port_changed(number)


def shares(lab: NativeLab, side: Side, since: int = 0) -> dict[int, int]:
    """Bytes that left by each port."""
    found: dict[int, int] = {}
    for sent in lab.log:
        if sent.driver is side.ctx.driver and sent.when >= since:
            found[sent.port] = found.get(sent.port, 0) + len(sent.data)
    return found


@pytest.mark.requirement("NOD-15")
@pytest.mark.parametrize("operation", ["write", "read", "send"])
@pytest.mark.parametrize("ports", [2, 4])
@pytest.mark.parametrize("vector", [{}, {"is_global": True}])
def test_one_message_over_all_ports(ports: int, operation: str, vector: dict[str, Any]) -> None:
    """The first path is local; where the others are global, headers differ in length from packet to packet."""
    lab = NativeLab()
    a, b = striped(lab, ports, vector)
    target = move(a, b, operation)
    lab.run()
    assert statuses(a.cq.poll()) == [(1, "SUCCESS")]
    assert len(b.cq.poll()) == (operation == "send")
    assert bytes(target.mr.buf) == pattern(SIZE)
    found = shares(lab, b if operation == "read" else a)
    assert set(found) == set(range(1, ports + 1))
    assert min(found.values()) > 0.9 * sum(found.values()) / ports
    for sent in lab.log:
        ours, theirs = (a, b) if sent.driver is a.ctx.driver else (b, a)
        assert sent.packet.lrh.slid == ours.ctx.query_port(sent.port).lid
        assert sent.packet.lrh.dlid == theirs.ctx.query_port(sent.port).lid
        assert (sent.packet.grh is not None) == (sent.port > 1 and bool(vector))
    for side in (a, b):
        assert drops(side.ctx) == {}
        assert side.ctx.counters()["tx.retransmitted"] == side.ctx.counters()["timeouts"] == 0
    lab.check_laws()


@pytest.mark.requirement("NOD-16")
@pytest.mark.parametrize("operation", ["write", "read", "send"])
@pytest.mark.parametrize("who", ["requester", "responder"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_port_goes_down_in_mid_message(operation: str, who: str, number: int) -> None:
    lab = NativeLab()
    a, b = striped(lab, timeout=6)
    target = move(a, b, operation)
    lab.run(HALFWAY)
    assert a.cq.poll() == [], "in mid-message"
    failed = a if who == "requester" else b
    down(failed, number)
    since = lab.clock.now() + 1
    lab.run(1_000_000_000)
    assert statuses(a.cq.poll()) == [(1, "SUCCESS")]
    assert len(b.cq.poll()) == (operation == "send")
    assert bytes(target.mr.buf) == pattern(SIZE)
    assert set(shares(lab, failed, since)) == {3 - number}
    assert failed.ctx.counters()["drop.tx_port_down"] == 0, "what is made afterwards takes the other port"
    # The port comes back, and is used again.
    up(failed, number)
    since = lab.clock.now()
    target = move(a, b, operation)
    lab.run()
    assert statuses(a.cq.poll()) == [(1, "SUCCESS")]
    assert min(shares(lab, b if operation == "read" else a, since).values()) > SIZE // 3
    lab.check_laws()


@pytest.mark.requirement("NOD-16")
@pytest.mark.parametrize("operation", ["write", "read", "send"])
def test_all_ports_go_down(operation: str) -> None:
    lab = NativeLab()
    a, b = striped(lab)
    move(a, b, operation)
    lab.run(HALFWAY)
    down(a, 1)
    down(a, 2)
    lab.settle()
    assert statuses(a.cq.poll()) == [(1, "RETRY_EXC_ERR")]
    assert a.qp.state is QPState.ERR
    # While no port can send, nothing is taken.
    other, there = striped_to(lab, a, b)
    with pytest.raises(PortStateError, match="port 1 is DOWN"):
        other.qp.post_send(write(other, there, 8))
    up(a, 2)
    other.qp.post_send(write(other, there, 8, 3))
    lab.run()
    assert statuses(other.cq.poll()) == [(3, "SUCCESS")], (
        "the first path's port is down, and the other is enough"
    )
    lab.check_laws()


def striped_to(lab: NativeLab, a: Side, b: Side) -> tuple[Side, Side]:
    """Another striped connection of the same adapters; for its making the first one's ports are up for a moment."""
    up(a, 1)
    up(a, 2)
    ends = make_side(a.ctx, RC), make_side(b.ctx, RC)
    endpoints = [end.qp.endpoint for end in ends]
    ends[0].qp.connect(endpoints[1], stripe_ah_attrs=further(b.ctx))
    ends[1].qp.connect(endpoints[0], stripe_ah_attrs=further(a.ctx))
    down(a, 1)
    down(a, 2)
    return ends


@pytest.mark.parametrize("seed", range(1, 7))
def test_ports_come_and_go(seed: int) -> None:
    """Ports of both sides, at random, while packets are lost, doubled, delayed and damaged; one is always up.

    Of ten such runs, one has more bad luck than seven retries can mend; these have not.
    """
    lab = NativeLab(seed)
    random = Random(seed)
    a, b = striped(lab, 3, timeout=6, retry_cnt=7)
    lab.disturb(random, 0.01)
    for round_ in range(4):
        target = move(a, b, random.choice(["write", "read", "send"]))
        for _ in range(4):
            lab.run(random.randrange(200_000))
            number = random.choice([2, 3])
            side = random.choice([a, b])
            state = side.ctx.adapter.ports[number - 1].state
            (down if state is PortState.ACTIVE else up)(side, number)
        assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")], round_
        assert bytes(target.mr.buf) == pattern(SIZE)
        a.mr.buf[:] = b.mr.buf[:] = bytes(SIZE)
        b.cq.poll()
    lab.settle()
    lab.check_laws()


# --- closed service levels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opened", [1, 2])
def test_closed_paths_are_passed_over_and_any_that_opens_is_enough(opened: int) -> None:
    lab = NativeLab()
    a, b = striped(lab, vector={"sl": 5}, sl=3)
    engine = a.ctx.adapter.engine
    engine.set_open(2, 0xFFFF & ~(1 << 5))
    move(a, b, "write")
    lab.run()
    assert statuses(a.cq.poll()) == [(1, "SUCCESS")]
    assert set(shares(lab, a)) == {1}
    engine.set_open(1, 0xFFFF & ~(1 << 3))
    move(a, b, "write")
    since = lab.clock.now()
    lab.run()
    assert a.cq.poll() == []
    assert shares(lab, a, since) == {}
    assert a.ctx.counters()["timeouts"] == 0, "what may not leave cannot be late"
    engine.set_open(opened, 0xFFFF)
    a.ctx.driver.kick()
    lab.run()
    assert statuses(a.cq.poll()) == [(1, "SUCCESS")]
    assert set(shares(lab, a, since)) == {opened}
    assert bytes(b.mr.buf) == pattern(SIZE)
    assert drops(b.ctx) == {}
    lab.check_laws()


def test_the_last_open_port_fails_while_the_other_is_closed() -> None:
    lab = NativeLab()
    a, b = striped(lab, timeout=6)
    engine = a.ctx.adapter.engine
    engine.set_open(1, 0)
    move(a, b, "write")
    lab.run(HALFWAY)
    down(a, 2)
    since = lab.clock.now() + 1
    lab.run(50_000_000)
    assert a.cq.poll() == [], "it waits, for as long as it must"
    assert shares(lab, a, since) == {}
    engine.set_open(1, 0xFFFF)
    a.ctx.driver.kick()
    lab.run()
    assert statuses(a.cq.poll()) == [(1, "SUCCESS")]
    assert bytes(b.mr.buf) == pattern(SIZE)


def test_a_waiting_connection_goes_on_by_paths_that_it_is_given_meanwhile() -> None:
    lab = NativeLab()
    a, b = (make_side(lab.adapter(2), RC, SIZE) for _ in range(2))
    there, here = b.qp.endpoint, a.qp.endpoint
    a.qp.connect(there)
    b.qp.connect(here, stripe_ah_attrs=further(a.ctx))
    a.ctx.adapter.engine.set_open(1, 0)
    a.qp.post_send(write(a, b, 8, 1))
    lab.run()
    assert lab.log == []
    a.qp.modify(QPState.SQD)
    a.qp.modify(stripe_ah_attrs=further(b.ctx))
    a.qp.modify(QPState.RTS)
    lab.run()
    assert statuses(a.cq.poll()) == [(1, "SUCCESS")]
    assert set(shares(lab, a)) == {2}


def test_a_waiting_connection_can_be_closed() -> None:
    lab = NativeLab()
    a, b = striped(lab)
    for number in (1, 2):
        a.ctx.adapter.engine.set_open(number, 0)
    move(a, b, "write")
    lab.run()
    a.qp.close()
    for number in (1, 2):
        a.ctx.adapter.engine.set_open(number, 0xFFFF)
    a.ctx.driver.kick()
    lab.settle()
    assert shares(lab, a) == {}


# --- what is refused ------------------------------------------------------------------------------------------------


def test_what_the_further_ports_must_be() -> None:
    lab = NativeLab()
    a, b = striped(lab)
    a.qp.modify(QPState.SQD)
    adapter = a.ctx.adapter
    (vector,) = further(b.ctx)
    alternate = further(b.ctx)[0]
    before = a.qp.query()
    with pytest.raises(InvalidAttributeError, match="no alternate one"):
        a.qp.modify(alt_ah_attr=alternate)
    adapter.ports[1].mtu = 256
    with pytest.raises(InvalidAttributeError, match="active MTU of port 2"):
        a.qp.modify(stripe_ah_attrs=[vector])
    adapter.ports[1].mtu = 4096
    adapter.ports[1].set_pkeys([0x8005])
    with pytest.raises(InvalidAttributeError, match="P_Key 0xffff is not in the table of port 2"):
        a.qp.modify(stripe_ah_attrs=[vector])
    adapter.ports[1].set_pkeys([0xFFFF])
    with pytest.raises(InvalidAttributeError, match="ports 1 to 2"):
        a.qp.modify(stripe_ah_attrs=[AddressVector(vector.gid, dlid=1, port_num=3)])
    assert a.qp.query() == before
    # The other way round: one that has an alternate path is not striped, before that is taken away.
    x, y = (make_side(context, RC) for context in (a.ctx, b.ctx))
    x.qp.connect(y.qp.endpoint, alternate=alternate)
    x.qp.modify(QPState.SQD)
    with pytest.raises(InvalidAttributeError, match="no alternate one"):
        x.qp.modify(stripe_ah_attrs=[vector])
    assert x.qp.query().path_mig_state is PathMigrationState.REARM


@pytest.mark.requirement("NOD-15")
def test_a_path_that_the_peer_was_not_given_brings_nothing() -> None:
    lab = NativeLab()
    a, b = (make_side(lab.adapter(2), RC, SIZE) for _ in range(2))
    a.qp.connect(b.qp.endpoint, stripe_ah_attrs=further(b.ctx), mtu=MTU, timeout=6)
    b.qp.connect(a.qp.endpoint, mtu=MTU)
    a.qp.post_send(write(a, b, 4 * MTU, 1))
    lab.run(1_000)
    assert drops(b.ctx) == {"drop.source": 2}
    assert b.ctx.counters()["rx.out_of_sequence"] == 2, "those that came by the first path"


# --- end-to-end contexts --------------------------------------------------------------------------------------------


def striped_mesh(lab: NativeLab, **attributes: Any) -> tuple[Any, Any]:
    """Two nodes, and one end-to-end context over both ports."""
    contexts = [lab.adapter(2) for _ in range(2)]
    nodes = [datagram_mesh([ctx], 2, memory=SIZE)[0] for ctx in contexts]
    ends = [node.rdd.create_eec() for node in nodes]
    there, here = ends[1].endpoint, ends[0].endpoint
    ends[0].connect(there, stripe_ah_attrs=further(contexts[1]), mtu=MTU, **attributes)
    ends[1].connect(here, stripe_ah_attrs=further(contexts[0]), mtu=MTU, **attributes)
    nodes[0].contexts[1], nodes[1].contexts[0] = ends
    return nodes[0], nodes[1]


@pytest.mark.requirement("NOD-16")
@pytest.mark.parametrize("who", [0, 1])
def test_a_context_goes_on_by_its_other_port(who: int) -> None:
    lab = NativeLab()
    nodes = striped_mesh(lab, timeout=6)
    a, b = nodes[0].sides[0], nodes[1].sides[1]
    a.mr.buf[:] = pattern(SIZE)
    a.qp.post_send(addressed(write(a, b, SIZE, 1), nodes[0].contexts[1], b.qp))
    lab.run(HALFWAY)
    assert set(shares(lab, a)) == {1, 2}
    assert a.cq.poll() == []
    failed = (a, b)[who]
    down(failed, 2)
    since = lab.clock.now() + 1
    assert statuses(take(a.cq, 1)) == [(1, "SUCCESS")]
    lab.settle()
    assert bytes(b.mr.buf) == pattern(SIZE)
    assert set(shares(lab, failed, since)) == {1}
    assert all(sent.packet.transport.info.name.startswith("RD") for sent in lab.log)
    lab.check_laws()


@pytest.mark.requirement("NOD-16")
def test_a_context_without_ports_ends() -> None:
    lab = NativeLab()
    nodes = striped_mesh(lab, timeout=4)
    (a, other), b = nodes[0].sides, nodes[1].sides[1]
    context = nodes[0].contexts[1]
    a.qp.post_send(addressed(write(a, b, SIZE, 1), context, b.qp))
    other.qp.post_send(addressed(write(other, b, 8, 2), context, b.qp))
    lab.run(HALFWAY)
    down(a, 1)
    down(a, 2)
    lab.settle()
    assert statuses(a.cq.poll()) == [(1, "RETRY_EXC_ERR")]
    assert statuses(other.cq.poll()) == [(2, "INV_EEC_STATE_ERR")]
    assert context.state is QPState.ERR
    a.qp.modify(QPState.RTS)
    with pytest.raises(PortStateError, match="is DOWN"):
        a.qp.post_send(addressed(write(a, b, 8), context, b.qp))
    lab.check_laws()


def test_contexts_are_connected_by_any_port() -> None:
    """From port 2 to port 2, and queried."""
    lab = NativeLab()
    nodes = [datagram_mesh([lab.adapter(2)], 1)[0] for _ in range(2)]
    ends = [node.rdd.create_eec() for node in nodes]
    there, here = ends[1].endpoint_at(2), ends[0].endpoint_at(2)
    ends[0].connect(there, port_num=2, sl=4)
    ends[1].connect(here, port_num=2, sl=4)
    found = ends[0].query()
    assert (found.port_num, found.ah_attr.port_num, found.ah_attr.dlid) == (2, 2, there.lid)
    a, b = nodes[0].sides[0], nodes[1].sides[0]
    a.qp.post_send(addressed(write(a, b, 5000, 1), ends[0], b.qp))
    lab.run()
    assert statuses(a.cq.poll()) == [(1, "SUCCESS")]
    assert {(sent.port, sent.packet.lrh.sl) for sent in lab.log} == {(2, 4)}
