"""Transport services as a whole fabric shows them, and what it shows from outside."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest

from lab import pattern, sending
from system.world import (
    MS,
    UC,
    UD,
    FabricOptions,
    Link,
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
from verbena import (
    Access,
    AckPolicy,
    AddressVector,
    InvalidAttributeError,
    QPState,
    RecvRequest,
    VerbError,
    WorkRequest,
)
from verbena.fabric.topology import Topology
from verbena.runtime.pairs import Side
from verbena.wire import AETH, Opcode

SOURCES = Path(__file__).resolve().parents[2] / "src" / "verbena"


def packets(world: World, host: str) -> None:
    world.core.tap(world.assembly.ports[PortId(host, 1)], True)
    world.core.take_taps()


def taken(world: World, *, outbound: bool) -> list[object]:
    return [decoded(p).transport for _, _, out, p in world.core.take_taps() if out is outbound]


@pytest.mark.requirement("TRN-02", "TRN-03", "TRN-09")
def test_channel_and_memory_semantics() -> None:
    """A SEND lands in the oldest buffer; RDMA needs nobody there, only the grant; completions do not wait for the
    receiving process, which never runs."""
    world = World("transaction")
    a, b = world.pair("host-302", "host-304")
    for number in range(3):
        b.qp.post_recv(RecvRequest(number, [b.mr.sge(1000 * number, 1000)]))
    for number in range(3):
        a.mr.buf[:4] = b"no %d" % number
        a.qp.post_send(sending(a, 4))
        assert finish(a) == ["SUCCESS"]  # nobody has looked at what arrived
    assert [bytes(b.mr.buf[1000 * n : 1000 * n + 4]) for n in range(3)] == [b"no 0", b"no 1", b"no 2"]
    assert [entry.wr_id for entry in b.cq.poll()] == [0, 1, 2]
    data = write(a, b, 5000, at=8000)
    assert finish(a) == ["SUCCESS"]
    assert b.mr.buf[8000:13000] == data
    assert not b.cq.poll()
    # Without the grant: a NAK, and nothing changes.
    closed = b.pd.alloc_mr(100, Access.LOCAL_WRITE)
    request = WorkRequest(1, 0, [a.mr.sge(0, 4)], remote_addr=closed.addr, rkey=closed.rkey)
    a.qp.post_send(request)
    assert finish(a) == ["REM_ACCESS_ERR"]
    assert bytes(closed.buf[:4]) == bytes(4)
    assert b.ctx.counters()["tx.naks"] == 1
    world.check_laws()


@pytest.mark.requirement("TRN-04")
def test_a_connection_has_two_ends_and_no_third() -> None:
    world = star(3)
    a, b = world.pair("h0", "h1")
    with pytest.raises(VerbError):
        a.qp.connect(world.side("h2").qp.endpoint)
    third = world.side("h2")
    third.qp.connect(b.qp.endpoint, timeout=8, retry_cnt=1)
    before = bytes(b.mr.buf)
    write(third, b, 500)
    assert finish(third) == ["RETRY_EXC_ERR"]
    assert bytes(b.mr.buf) == before
    assert b.ctx.counters()["drop.source"] + b.ctx.counters()["rx.out_of_sequence"] > 0
    assert b.ctx.counters()["drop.source"] == 2
    exchange(a, b)
    world.check_laws()


@pytest.mark.requirement("TRN-05")
def test_a_full_mesh_of_connections() -> None:
    """M processes on N nodes: M^2 (N - 1) queue pairs on each node, all of which talk."""
    nodes, processes = 3, 2
    world = star(nodes)
    made: Counter[str] = Counter()
    for a, b in permutations(range(nodes), 2):
        if a < b:
            for _ in range(processes * processes):
                pair = world.pair(f"h{a}", f"h{b}", memory=4096)
                made.update([f"h{a}", f"h{b}"])
                exchange(*pair)
                exchange(*reversed(pair))
    assert made == {f"h{n}": processes**2 * (nodes - 1) for n in range(nodes)}
    world.check_laws()


@pytest.mark.requirement("TRN-07")
def test_a_message_waits_for_its_buffer() -> None:
    world = World("transaction")
    a, b = world.pair("host-302", "host-304")
    a.mr.buf[:5] = b"later"
    begin = world.now
    a.qp.post_send(sending(a, 5))
    world.run_for(100 * MS)
    assert not a.cq.poll()
    b.qp.post_recv(RecvRequest(1, [b.mr.sge(0, 100)]))
    assert finish(a) == ["SUCCESS"]
    assert world.now - begin < 110 * MS
    assert bytes(b.mr.buf[:5]) == b"later"
    assert b.ctx.counters()["tx.rnr_naks"] > 1
    c, _ = world.pair("host-302", "host-304", rnr_retry=2)
    c.qp.post_send(sending(c, 5))
    assert finish(c) == ["RNR_RETRY_EXC_ERR"]
    world.check_laws()


@pytest.mark.requirement("TRN-10")
def test_each_request_packet_is_acknowledged() -> None:
    world = World("transaction")
    device = {"ack_policy": AckPolicy.PER_PACKET}
    a, b = world.pair("host-302", "host-304", mtu=256, device=device)
    packets(world, "host-304")
    write(a, b, 20 * 256)
    assert finish(a) == ["SUCCESS"]
    world.settle()
    back = [t for t in taken(world, outbound=True) if t.opcode == Opcode.RC_ACKNOWLEDGE]  # type: ignore[attr-defined]
    assert len(back) == 20
    numbers = [t.bth.psn for t in back]  # type: ignore[attr-defined]
    assert numbers == [(numbers[0] + n) % (1 << 24) for n in range(20)]
    assert all(t.get(AETH).syndrome >> 5 == 0 for t in back)  # type: ignore[attr-defined]
    world.check_laws()


@pytest.mark.requirement("TRN-11")
def test_retries_are_bounded() -> None:
    """The way back is dead: the packet is sent 1 + retry_cnt times, then there is an error, and the rest is flushed."""
    world = World("transaction")
    a, b = world.pair("host-302", "host-304", timeout=10, retry_cnt=3)
    own = world.assembly.nodes["switch-312"]
    world.core.set_lft(own, a.qp.endpoint.lid, b"\xff")  # acknowledgments find no way
    packets(world, "host-304")
    write(a, b, 100)
    a.qp.post_send(sending(a, 4))
    assert finish(a, 2) == ["RETRY_EXC_ERR", "WR_FLUSH_ERR"]
    assert a.qp.state is QPState.ERR
    came = taken(world, outbound=False)
    first = came[0].bth.psn  # type: ignore[attr-defined]
    assert sum(t.bth.psn == first for t in came) == 4  # type: ignore[attr-defined]
    assert bytes(b.mr.buf[:100]) == pattern(100)  # it had arrived all along
    assert world.dropped().get("switch-312[2] drop_lft", 0) >= 4
    world.check_laws()


@pytest.mark.requirement("TRN-16", "TRN-21")
@pytest.mark.parametrize("service", [UD, UC])
def test_unreliable_services_lose_what_the_network_loses(service: object) -> None:
    """A message sent while the far cable is out is gone, its sender content; later ones arrive; no acknowledgments."""
    world = World("transaction")
    a, b = world.pair("host-302", "host-304", service)  # type: ignore[arg-type]
    there = b.qp.endpoint
    handle = a.pd.create_ah(AddressVector(dlid=there.lid)) if service is UD else None
    for number in range(3):
        b.qp.post_recv(RecvRequest(number, [b.mr.sge(1000 * number, 200)]))

    def send(text: bytes) -> None:
        a.mr.buf[: len(text)] = text
        request = WorkRequest(1, 2, [a.mr.sge(0, len(text))])
        if handle is not None:
            request.ah, request.remote_qpn, request.remote_qkey = handle, there.qp_num, 0x11111111
        a.qp.post_send(request)
        assert finish(a) == ["SUCCESS"]
        world.run_for(100_000)

    packets(world, "host-304")
    send(b"first")
    link = world.pull("switch-310[2]")
    send(b"second")
    world.plug(link)
    world.run_for(300 * MS)
    send(b"third")
    offset = 40 if service is UD else 0
    texts = [bytes(b.mr.buf[1000 * e.wr_id + offset : 1000 * e.wr_id + e.byte_len]) for e in b.cq.poll()]
    assert texts == [b"first", b"third"]
    assert not [t for t in taken(world, outbound=True) if t.bth.dest_qp == a.qp.qp_num]  # type: ignore[attr-defined]
    assert sum(world.dropped().values()) >= 1
    if service is UD:  # a datagram is one packet
        request = WorkRequest(1, 2, [a.mr.sge(0, 5000)], ah=handle)
        with pytest.raises(InvalidAttributeError):
            a.qp.post_send(request)
    world.check_laws()


# --- ways ----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("SWR-02")
def test_cut_through_and_store_and_forward() -> None:
    """The first flit leaves the second switch before the last has come in; stored packets take the sum of the hops."""
    took = {}
    for cut in (True, False):
        world = World("transaction", options=FabricOptions(cut_through=cut))
        a, b = world.pair("host-302", "host-304")
        world.trace(TraceKind.FLIT_SENT | TraceKind.FLIT_RECEIVED)
        begin = world.now
        write(a, b, 4000)
        assert finish(a) == ["SUCCESS"]
        took[cut] = world.now - begin
        hops = [hop for hop in world.hops() if hop.detail == 1]
        last_in = max(h.time_ps for h in hops if h.port == PortId("switch-310", 1) and h.kind == 32)
        first_out = min(h.time_ps for h in hops if h.port == PortId("switch-310", 2) and h.kind == 16)
        assert (first_out < last_in) is cut
    # 4,0xx bytes and their flits' headers at 100 Gb/s, once more at each of the two switches
    span = (4000 + 42) * 92 / 80 * 0.08
    assert 2 * span * 0.9 < took[False] - took[True] < 2 * span * 1.1


def ladder() -> Topology:
    """Two switches, between which two others make two ways."""
    topology = Topology("ladder")
    for name in ("left", "right", "upper", "lower"):
        topology.add_switch(name, 4)
    for name, switch in (("a", "left"), ("c", "left"), ("b", "right")):
        topology.add_host(name)
        topology.connect(name, switch)
    for middle in ("upper", "lower"):
        topology.connect("left", middle)
        topology.connect(middle, "right")
    return topology


def output(world: World, switch: str, to: str) -> int:
    """The port of a switch that leads to another."""
    return next(
        (link.a if link.a.node == switch else link.b).port
        for link in world.topology.links_of(switch)
        if to in (link.a.node, link.b.node)
    )


@pytest.mark.requirement("SWR-08", "SWR-07")
def test_request_and_acknowledgment_take_different_ways() -> None:
    world = World(ladder())
    a, b = world.pair("a", "b")
    core, nodes = world.core, world.assembly.nodes
    core.set_lft(nodes["left"], b.qp.endpoint.lid, bytes([output(world, "left", "upper")]))
    core.set_lft(nodes["right"], a.qp.endpoint.lid, bytes([output(world, "right", "lower")]))
    world.trace()
    data = write(a, b, 30_000)
    assert finish(a) == ["SUCCESS"]
    assert b.mr.buf[:30_000] == data
    ways = Counter(tuple(p.node for p in way) for way in world.ways().values())
    assert set(ways) == {("a", "left", "upper", "right"), ("b", "right", "lower", "left")}
    world.check_laws()


@pytest.mark.requirement("SWR-07")
def test_a_table_for_each_input() -> None:
    """The same DLID, from two inputs: by two ways, with real traffic; without the option, by one."""
    world = World(ladder(), options=FabricOptions(per_input_tables=True))
    a, b = world.pair("a", "b")
    c, d = world.pair("c", "b")
    left = world.assembly.nodes["left"]
    lid = b.qp.endpoint.lid
    for host, middle in (("a", "upper"), ("c", "lower")):
        table = bytes([output(world, "left", middle)])
        entry = world.topology.at[PortId(host, 1)].other(PortId(host, 1)).port
        whole = bytearray(b"\xff" * (lid + 1))
        whole[lid:] = table
        for other in ("a", "b", "c"):
            own = world.nodes[other].agent.lid(1)
            if own != lid:
                whole.extend(b"\xff" * (own + 1 - len(whole)))
                at = world.topology.at[PortId(other, 1)].other(PortId(other, 1))
                whole[own] = at.port
        world.core.set_lft(left, 0, bytes(whole), in_port=entry)
    world.trace()
    write(a, b, 3000)
    write(c, d, 3000, at=10_000)
    assert finish(a) == finish(c) == ["SUCCESS"]
    forward = {way[0].node: way[2].node for way in world.ways().values() if way[0].node != "b"}
    assert forward == {"a": "upper", "c": "lower"}
    with pytest.raises(InvalidAttributeError):
        World(ladder()).core.set_lft(left, 0, b"\xff", in_port=1)
    world.check_laws()


# --- deadlock ------------------------------------------------------------------------------------------------


def opposite(world: World, count: int, size: int) -> list[Side]:
    """Every host writes to the one at the other side of the ring, all at once, at the path's service level."""
    pairs = []
    for n in range(count):
        names = f"h{n}", f"h{(n + count // 2) % count}"
        here, there = (world.device(name).query_port().lid for name in names)
        levels = [
            world.device(names[0]).subnet.path(slid=s, dlid=d).get(1).sl
            for s, d in ((here, there), (there, here))
        ]
        pairs.append(
            world.pair(*names, memory=size, timeout=0, mtu=256, sl=levels[0], back={"sl": levels[1]})
        )
    for n, pair in enumerate(pairs):
        write(*pair, size, seed=n)
    return [a for a, _ in pairs]


@pytest.mark.requirement("LNK-16")
def test_a_ring_stands_still_on_one_lane_and_runs_on_several() -> None:
    """Real RC traffic to the opposite side of a ring of 5 with room for one packet in each buffer."""
    tiny = FabricOptions(lanes=4, buffer_bytes=448, mtu=256)
    endless = {"hoq_life": 20, "packet_life": 20}  # nothing is dropped for waiting
    count, size = 5, 1 << 15

    def build(engine: str, lanes: int) -> World:
        config = SubnetManagerConfig(engine=engine, lanes=lanes, **endless)
        return World(f"ring switches={count}", options=tiny, config=config)

    stuck = build("minhop", 1)
    senders = opposite(stuck, count, size)
    stuck.run_for(2 * MS)  # without a standstill, a tenth of that is enough
    still = [not side.cq.poll() for side in senders]
    assert all(still), "there was no deadlock: the test must be harder"
    before = stuck.core.statistics()["delivered_bytes"]
    blocked = stuck.core.waiting()
    assert {lane for _, lane, _, _ in blocked} == {0}
    assert _circle(stuck), "the detector must see the circle"
    assert stuck.core.statistics()["delivered_bytes"] == before
    assert not stuck.dropped()
    stuck.check_laws()

    free = build("layered", 4)
    senders = opposite(free, count, size)
    for side in senders:
        assert finish(side) == ["SUCCESS"]
    assert not _circle(free)
    assert not free.dropped()
    free.check_laws()


def _circle(world: World) -> bool:
    """Is there a circle of heads, each of which waits for the buffer in which the next one lies?"""
    core = world.core
    follows: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for port, lane, _, out in core.waiting():
        peer = core.peer_of(out)
        follows.setdefault((port, lane), set()).add((peer, lane))
    for start in follows:
        seen, edge = set(), {start}
        while edge:
            edge = {n for place in edge for n in follows.get(place, ())} - seen
            if start in edge:
                return True
            seen |= edge
    return False


# --- from outside --------------------------------------------------------------------------------------------

FORBIDDEN = ("transport", "adapter", "verbs", "memory", "management", "runtime", "scenario", "cli")


def imported(module: Path) -> set[str]:
    """The parts of the package that a module names in its imports."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.removeprefix("cython.cimports.").split(".")
            if parts[0] == "verbena" and len(parts) > 1:
                found.add(parts[1])
    return found


@pytest.mark.requirement("SYS-01")
def test_switches_know_nothing_of_transport() -> None:
    """No module of the switches' and links' code imports a layer above; nor does loading all of it load one."""
    core = [path for path in (SOURCES / "fabric").glob("*.py") if path.with_suffix(".pxd").exists()]
    assert {"core", "crossbar", "flits", "trains"} <= {path.stem for path in core}
    for path in core:
        assert not imported(path) & set(FORBIDDEN), path
        names = path.with_suffix(".pxd").read_text()
        assert not [part for part in FORBIDDEN if f"verbena.{part}" in names], path
    code = (
        "import sys, types; package = types.ModuleType('verbena');"
        f"package.__path__ = [{str(SOURCES)!r}]; sys.modules['verbena'] = package;"
        "import verbena.fabric.core;"
        "print(*sorted({name.split('.')[1] for name in sys.modules if name.startswith('verbena.')}))"
    )
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not set(loaded) & set(FORBIDDEN), loaded


@pytest.mark.requirement("SYS-06")
def test_every_counter_and_every_fault() -> None:
    """Faults are set by configuration, and each is seen from outside under its own name."""
    world = World("transaction")
    a, b = world.pair("host-302", "host-304", timeout=10, retry_cnt=7)
    port = world.assembly.ports[PortId("switch-310", 2)]
    assert {
        "flit_retries",
        "replays",
        "bit_errors",
        "xmit_wait_ns",
        "sent_without_credit",
        "link_recovered",
    } <= set(world.core.port_counters(port))
    # no way
    switch = world.assembly.nodes["switch-310"]
    world.core.set_lft(switch, b.qp.endpoint.lid, b"\xff")
    write(a, b, 10)
    world.run_for(1 * MS)
    world.core.set_lft(switch, b.qp.endpoint.lid, bytes([2]))
    assert finish(a) == ["SUCCESS"]
    assert a.ctx.counters()["timeouts"] == 1
    # another partition
    world.core.set_pkeys(port, [0x8001], False, True)
    write(a, b, 10)
    world.run_for(1 * MS)
    world.core.set_pkeys(port, [0xFFFF], False, False)
    assert finish(a) == ["SUCCESS"]
    # a limit of waiting, at a receiver that takes nothing
    far = world.assembly.ports[PortId("host-304", 1)]
    last = world.assembly.ports[PortId("switch-312", 2)]
    world.core.set_limits(last, 10_000)
    world.core.stall(far, True)
    write(a, b, 60_000)
    world.run_for(1 * MS)
    world.core.stall(far, False)
    world.core.set_limits(last, 0)
    assert finish(a) == ["SUCCESS"]
    # bit errors, and a cable that is pulled
    link = world.pull("switch-310[2]")
    world.plug(Link(link.a, link.b, link.rate, link.delay_ns, 1e-5))
    world.run_for(300 * MS)
    write(a, b, 60_000)
    assert finish(a) == ["SUCCESS"]
    reasons = {name.split(" ")[1] for name in world.dropped()}
    assert {"drop_lft", "drop_pkey", "drop_hoq"} <= reasons
    for name in ("bit_errors", "flit_errors", "flit_retries", "link_downed", "xmit_wait_ns"):
        assert world.counter(name), name
    assert a.ctx.counters()["tx.retransmitted"] > 0
    world.check_laws()
