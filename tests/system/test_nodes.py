"""Nodes of a whole fabric: the documents' figures, adapters with several ports, names and addresses."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations
from types import ModuleType
from typing import Any

import pytest

from lab import pattern, read
from system.world import (
    MS,
    PortId,
    SubnetManagerConfig,
    World,
    exchange,
    finish,
    write,
)
from verbena import HOST_ADAPTER, IO_ADAPTER, InvalidAttributeError, _pure
from verbena.fabric.addressing import AddressError, LidSpace
from verbena.fabric.generators import generate
from verbena.fabric.topology import Topology, TopologyError
from verbena.management.subnet_manager.events import SubnetEvent, SubnetEventKind
from verbena.runtime.pairs import make_side
from verbena.wire import LRH


@pytest.mark.requirement("NOD-01", "NOD-19")
@pytest.mark.parametrize(("figure", "ends", "switches"), [("san", 9, 5), ("cascade", 6, 3)])
def test_all_nodes_of_the_figures_talk(figure: str, ends: int, switches: int) -> None:
    """Document 003, Figure 1, and document 001, Figure 1: every endnode sends a message to every other."""
    world = World(figure)
    hosts = [node.name for node in world.topology.hosts]
    assert (len(hosts), len(world.topology.switches)) == (ends, switches)
    for a, b in permutations(hosts, 2):
        exchange(*world.pair(a, b), text=f"from {a} to {b}".encode())
    for name in [node.name for node in world.topology.switches]:
        with pytest.raises(InvalidAttributeError, match="no host"):  # a switch has no queue pairs to post to
            world.open_device(name)
    # Switches passed all of it on, and neither made nor took any data.
    for node in world.topology.switches:
        own = world.core.port_counters(world.assembly.ports[PortId(node.name, 0)])
        assert set(own["lanes"]) <= {0, 15}
        assert world.managed[node.name] == 0
    assert not world.dropped()
    world.check_laws()


def two_adapters() -> Topology:
    """Document 003, Figure 5: a host with two adapters of two ports each; and two hosts to talk to."""
    topology = Topology("figure-5")
    for name in ("a", "b"):
        topology.add_switch(f"switch-{name}", 8)
    for name in ("sanic-208", "sanic-210"):
        topology.add_host(name, 2, host="host-200")
    for name in ("p", "q"):
        topology.add_host(name)
    for name in ("sanic-208", "sanic-210"):
        topology.connect(name, "switch-a")
        topology.connect(name, "switch-b")
    topology.connect("p", "switch-a")
    topology.connect("q", "switch-b")
    topology.connect("switch-a", "switch-b")
    return topology


@pytest.mark.requirement("NOD-02", "NOD-03")
def test_a_host_with_two_adapters_of_two_ports() -> None:
    world = World(two_adapters())
    first, second = world.device("sanic-208"), world.device("sanic-210")
    guids = [ctx.query_device().node_guid for ctx in (first, second)]
    subnet = world.manager_of("p").subnet_manager.subnet
    assert subnet is not None
    assert set(first.subnet.nodes_of_host("host-200").get(1)) == set(guids)
    lids = [ctx.query_port(port).lid for ctx in (first, second) for port in (1, 2)]
    assert len(set(lids)) == 4  # four links, a LID for each
    # Queue pairs of process B on both: the client uses both adapters by itself.
    a, p = make_side(first, world.side("p").qp.type), world.side("p")
    world.connect(a, p)
    b, q = make_side(second, a.qp.type), world.side("q")
    world.connect(b, q, port_num=2, back={"port_num": 1, "dlid": second.query_port(2).lid})
    world.settle()
    world.trace()
    write(a, p, 10_000)
    assert finish(a) == ["SUCCESS"]
    starts = {way[0] for way in world.ways().values()}
    assert starts == {PortId("sanic-208", 1), PortId("p", 1)}  # none of it on the other adapter's links
    write(b, q, 10_000)
    assert finish(b) == ["SUCCESS"]
    assert {way[0] for way in world.ways().values()} == {PortId("sanic-210", 2), PortId("q", 1)}
    # What belongs to one adapter means nothing to the other.
    from verbena import WorkRequest

    with pytest.raises(InvalidAttributeError):
        second.post_send(a.qp, WorkRequest(1, sg_list=[a.mr.sge(0, 4)]))
    world.check_laws()


@contextmanager
def uncompiled() -> Iterator[dict[str, ModuleType]]:
    """A second copy of the package whose hot modules are plain Python, beside the one in use."""
    mine = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "verbena"}
    before = list(sys.meta_path)
    try:
        os.environ["VERBENA_PURE"] = "1"
        for name in ("verbena", "verbena.adapter.channel_adapter", "verbena.runtime.fabric"):
            importlib.import_module(name)
        yield {name: module for name, module in sys.modules.items() if name.split(".")[0] == "verbena"}
    finally:
        del os.environ["VERBENA_PURE"]
        for name in [name for name in sys.modules if name.split(".")[0] == "verbena"]:
            del sys.modules[name]
        sys.modules.update(mine)
        sys.meta_path[:] = before


@pytest.mark.requirement("NOD-05")
@pytest.mark.skipif(
    not _pure.compiled(), reason="nothing here is compiled, so that all adapters are software alike"
)
def test_an_adapter_whose_transport_is_plain_software(monkeypatch: pytest.MonkeyPatch) -> None:
    """One adapter runs the transport and network layers in plain Python beside compiled ones; nobody can tell."""
    with uncompiled() as modules:
        plain = modules["verbena"]
        adapter_module = modules["verbena.adapter.channel_adapter"]
        fabric_module = modules["verbena.runtime.fabric"]
        pairs = modules["verbena.runtime.pairs"]
    world = World("san")
    engine = modules["verbena.transport.engine"].__file__
    assert engine is not None
    assert engine.endswith(".py")
    with monkeypatch.context() as patch:
        import verbena.runtime.fabric as here
        import verbena.runtime.fabric_base as base
        import verbena.runtime.fabric_node as node_module

        ports = modules["verbena.adapter.port"]
        patch.setattr(node_module, "AdapterPort", ports.AdapterPort)
        patch.setattr(node_module, "PortState", ports.PortState)
        patch.setattr(base, "ChannelAdapter", adapter_module.ChannelAdapter)
        patch.setattr(here, "Context", fabric_module.Context)
        soft_ctx = world.open_device("io-35a-scsi")
    full = world.side("host-34a")
    soft = pairs.make_side(soft_ctx, plain.QPType.RC, 1 << 16)
    there, here_ = full.qp.endpoint, soft.qp.endpoint

    def endpoint(package: Any, e: Any) -> Any:
        return package.Endpoint(package.Gid(e.gid.raw), e.qp_num, e.psn, e.lid)

    import verbena

    soft.qp.connect(endpoint(plain, there))
    full.qp.connect(endpoint(verbena, here_))
    for port in ("host-34a", "io-35a-scsi"):
        world.core.tap(world.assembly.ports[PortId(port, 1)], True)
    data = pattern(30_000)
    full.mr.buf[:30_000] = data
    request = verbena.WorkRequest(1, verbena.WROpcode.RDMA_WRITE, [full.mr.sge(0, 30_000)])
    request.remote_addr, request.rkey = soft.mr.addr, soft.mr.rkey
    full.qp.post_send(request)
    assert finish(full) == ["SUCCESS"]
    assert soft.mr.buf[:30_000] == data
    soft.mr.buf[:20_000] = data[::-1][:20_000]
    request = plain.WorkRequest(2, plain.WROpcode.RDMA_WRITE, [soft.mr.sge(0, 20_000)])
    request.remote_addr, request.rkey = full.mr.addr, full.mr.rkey
    soft.qp.post_send(request)
    assert [entry.status.name for entry in soft.cq.wait(1)] == ["SUCCESS"]
    assert full.mr.buf[:20_000] == data[::-1][:20_000]
    # One decoder reads the packets of both.
    from system.world import decoded

    sources = {decoded(packet).lrh.slid for _, _, _, packet in world.core.take_taps()}
    assert sources == {there.lid, here_.lid}
    world.check_laws()


@pytest.mark.requirement("NOD-06")
def test_adapters_talk_while_no_host_runs() -> None:
    """Two I/O adapters send to each other and work on each other's memory; no host processor's adapter is open."""
    from dataclasses import replace

    world = World("san")
    rdma = replace(IO_ADAPTER, incoming_rdma=True, max_qp_rd_atom=4)
    options = {"limits": rdma}
    a, b = world.pair("io-35a-scsi", "io-35b-ethernet", device=options, max_rd_atomic=4)
    assert set(world._drivers) == {"io-35a-scsi", "io-35b-ethernet"}
    exchange(a, b)
    exchange(b, a)
    data = write(a, b, 9000)
    assert finish(a) == ["SUCCESS"]
    assert b.mr.buf[:9000] == data
    b.qp.post_send(read(b, a, 5000, at=20_000))
    assert finish(b) == ["SUCCESS"]
    assert b.mr.buf[20_000:25_000] == data[:5000]
    # Each also reaches a host's memory by its R_Key; a low-end one that forbids it is not reached in turn.
    host = world.side("host-34c", device={"limits": HOST_ADAPTER})
    again = world.side("io-35a-scsi", memory=1 << 12)
    world.connect(again, host, max_rd_atomic=4)
    host.mr.buf[:500] = pattern(500, 3)
    again.qp.post_send(read(again, host, 500))
    assert finish(again) == ["SUCCESS"]
    assert again.mr.buf[:500] == host.mr.buf[:500]
    world.check_laws()


@pytest.mark.requirement("NOD-17")
def test_loopback_moves_no_counter_of_a_link() -> None:
    world = World("transaction")
    world.device("host-302")
    a, b = world.pair("host-302", "host-302")
    world.settle()
    before = {port: world.core.port_counters(port) for port in world.assembly.ids}
    exchange(a, b)
    data = write(a, b, 30_000)
    assert finish(a) == ["SUCCESS"]
    assert b.mr.buf[:30_000] == data
    assert {port: world.core.port_counters(port) for port in world.assembly.ids} == before
    assert a.ctx.counters()["looped.packets"] > 0
    world.check_laws()


# --- names and addresses -------------------------------------------------------------------------------------


@pytest.mark.requirement("NOD-08")
def test_guids_stay_where_lids_change() -> None:
    topology = generate("san")
    world = World(topology)
    world.start()
    guids = [node.guid for node in topology.nodes.values()]
    guids += [node.port_guid(n) for node in topology.hosts for n in range(1, node.ports + 1)]
    assert len(set(guids)) == len(guids)
    with pytest.raises(TopologyError, match="host-34a"):
        topology.add_host("twin", guid=topology.nodes["host-34a"].guid)
    # A cable is pulled; meanwhile the manager begins anew, with another range of LIDs.
    device = world.device("host-34d")
    before = device.query_port()
    link = world.pull("host-34d[1]")
    world.run_for(200 * MS)
    manager = world.managers["host-34a"]
    manager.stop()
    manager.config = SubnetManagerConfig(first_lid=100)
    manager.start()
    world.run_for(200 * MS)
    world.plug(link)
    world.run_for(300 * MS)
    after = device.query_port()
    assert after.state == "ACTIVE"
    assert after.lid != before.lid
    assert after.lid >= 100
    assert device.query_device().node_guid == topology.nodes["host-34d"].guid
    assert device.query_gid().raw[8:] == topology.nodes["host-34d"].port_guid(1).to_bytes(8, "big")


@pytest.mark.requirement("NOD-09", "NOD-10")
def test_lids_end_where_their_range_ends() -> None:
    """A manager with five LIDs for eight ports: each LID once, the rest is told, and never gets another's."""
    events: list[SubnetEvent] = []
    world = World("star hosts=7", config=SubnetManagerConfig(first_lid=0xBFFB, last_lid=0xBFFF))
    world.managers["h0"].subnet_manager.listen(events.append)
    world.start()
    subnet = world.manager_of("h0").subnet_manager.subnet
    assert subnet is not None
    given = [port.lid for port in subnet.end_ports() if port.lid]
    assert sorted(given) == [0xBFFB, 0xBFFC, 0xBFFD, 0xBFFE, 0xBFFF]
    refused = {event.guid for event in events if event.kind is SubnetEventKind.NO_LID}
    assert len(refused) == 3
    # Those with a LID work as ever.
    having = [node.name for node in world.topology.hosts if world.nodes[node.name].agent.lid(1)]
    assert len(having) == 4  # and the switch
    exchange(*world.pair(having[0], having[-1]))
    world.check_laws()


@pytest.mark.requirement("NOD-10", "NOD-09")
def test_all_49151_lids_of_a_subnet() -> None:
    space = LidSpace()
    taken = {space.take(f"port {n}") for n in range(0xBFFF)}
    assert taken == set(range(1, 0xC000))
    with pytest.raises(AddressError, match="port 49152"):
        space.take("port 49152")
    with pytest.raises(AddressError):
        LidSpace().keep("x", 0x1_0005)
    other = LidSpace()
    other.keep("a", 5)
    with pytest.raises(AddressError, match="a"):
        other.keep("b", 5)
    assert LRH(dlid=0xBFFF).pack()[2:4] == b"\xbf\xff"


@pytest.mark.requirement("NOD-12")
def test_two_lids_of_a_port_take_different_switches() -> None:
    """LMC 1 in a fat tree: the same queue pair types, the two LIDs of one port, two ways through the tree."""
    config = SubnetManagerConfig(lmc=1, engine="minhop", engine_options={"disjoint": True})
    try:
        world = World("fat-tree k=4", flits=False, config=config)
        world.start()
    except Exception:  # the engine's option has another name: its way of telling paths apart is the default
        world = World("fat-tree k=4", flits=False, config=SubnetManagerConfig(lmc=1))
    far = world.device("h15")
    base = far.query_port().lid
    assert far.query_port().lmc == 1
    ways = []
    for bits in (0, 1):
        a, b = world.side("h0"), world.side("h15")
        b.qp.connect(a.qp.endpoint, src_path_bits=bits)
        a.qp.connect(b.qp.endpoint_at(1, path_bits=bits))
        world.settle()
        world.trace()
        write(a, b, 20_000, seed=bits)
        assert finish(a) == ["SUCCESS"]
        hops = world.hops()
        taken = {tuple(p.node for p in way) for way in world.ways(hops).values() if way[0].node == "h0"}
        assert len(taken) == 1
        ways.append(next(iter(taken)))
        assert b.mr.buf[:20_000] == pattern(20_000, bits)
    assert base % 2 == 0
    assert ways[0] != ways[1]
    world.check_laws()
