"""Subnets that change under way: nodes that come and go, failures, managers that hand over, keys."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from lab import fetch_add, pattern
from lab import write as writing
from system.world import (
    FAST,
    MS,
    RC,
    SECOND,
    UC,
    PortId,
    SubnetManagerConfig,
    World,
    exchange,
    finish,
    write,
)
from verbena import AsyncEventType, PortStateError
from verbena.errors import ManagementError
from verbena.fabric.assembly import TopologyError
from verbena.fabric.generators import generate
from verbena.fabric.topology import Link
from verbena.runtime.pairs import Side

QUICK = SubnetManagerConfig(
    sweep_interval_ns=50 * MS, poll_interval_ns=20 * MS, poll_tries=3, timeout_ns=2 * MS
)


@pytest.mark.requirement("SUB-02")
def test_a_port_is_of_no_use_before_it_is_active() -> None:
    world = World("transaction")
    a, b = world.pair("host-302", "host-304")
    assert b.ctx.query_port().state == "ACTIVE"
    assert b.ctx.query_port().lid
    link = world.pull("host-304[1]")
    assert b.ctx.query_port().state == "DOWN"
    events = []
    while event := b.ctx.get_async_event(0):
        events.append(event.type)
    assert AsyncEventType.PORT_ERR in events
    other = world.side("host-304")
    with pytest.raises(PortStateError):
        other.qp.connect(a.qp.endpoint)
    world.plug(link)
    assert b.ctx.query_port().state == "INIT"  # up, and not yet seen by the subnet manager
    with pytest.raises(PortStateError):
        other.qp.connect(a.qp.endpoint)
    world.run_for(200 * MS)
    assert b.ctx.query_port().state == "ACTIVE"
    exchange(a, b)
    world.check_laws()


def lids(world: World) -> dict[str, int]:
    return {name: node.agent.lid(node.agent.addressed(1)) for name, node in world.nodes.items()}


@pytest.mark.requirement("SUB-05", "SUB-15", "TRN-08")
def test_failures_while_data_is_on_its_way() -> None:
    """8 MiB (uncompiled: 2) through a fat tree; a cable is pulled, the master dies, a core switch goes off."""
    size = (8 if FAST else 2) << 20
    world = World("fat-tree k=4", flits=False, managers=["h0", "h15"], config=QUICK)
    a, b = world.pair("h1", "h9", memory=size, timeout=14)
    before = lids(world)
    world.trace()
    data = write(a, b, size)
    world.run_for(50_000)
    way = next(way for way in world.ways().values() if way[0].node == "h1" and len(way) == 6)
    world.core.trace_on(0)
    world.pull(way[1])
    world.run_for(300_000)
    world.power_off("h0")  # the master
    world.run_for(100 * MS)
    world.power_off(way[3].node)  # a core switch
    assert finish(a) == ["SUCCESS"]
    assert b.mr.buf == data
    world.run_for(SECOND)
    assert world.manager_of("h1") is world.managers["h15"]
    after = lids(world)
    gone = {"h0", way[3].node}
    assert {n: lid for n, lid in after.items() if n not in gone} == {
        n: lid for n, lid in before.items() if n not in gone
    }
    exchange(*world.pair("h2", "h14"))
    world.check_laws()


@pytest.mark.requirement("SUB-05")
def test_every_cable_of_a_redundant_fabric_may_fail_and_of_a_tree_none() -> None:
    world = World("ring switches=4", flits=False, config=QUICK)
    pairs = [world.pair(*names) for names in itertools.combinations(["h0", "h1", "h2", "h3"], 2)]
    cables = [link for link in world.topology.links if {link.a.node[0], link.b.node[0]} == {"s"}]
    for cable in cables:
        world.pull(cable.a)
        world.run_for(300 * MS)
        for a, b in pairs:
            exchange(a, b)
        world.plug(cable)
        world.run_for(300 * MS)
    assert len(cables) == 4
    world.pull(cables[0].a)
    world.pull(cables[2].a)
    world.run_for(500 * MS)
    subnet = world.manager_of("h0").subnet_manager.subnet
    assert subnet is not None
    reach = [port for port in subnet.end_ports() if port.node.kind == 1]
    assert len(reach) == 2
    near = {port.lid for port in reach}
    far = world.side("h1") if world.nodes["h1"].agent.lid(1) not in near else world.side("h2")
    paths = world.device("h0").subnet.paths(slid=world.nodes["h0"].agent.lid(1), dlid=far.qp.endpoint.lid)
    try:
        found = paths.get(2)
    except ManagementError:
        found = []
    assert found == [], "a path that does not exist was told"
    world.check_laws()


@pytest.mark.requirement("SUB-04")
def test_a_switch_with_two_hosts_is_added_and_taken_away() -> None:
    world = World("star hosts=3", config=QUICK)
    a, b = world.pair("h0", "h1")
    before = lids(world)
    topology = world.topology
    hub = topology.switches[0].name
    topology.add_switch("new-switch", 4)
    topology.add_host("new-1")
    topology.add_host("new-2")
    for name in ("new-switch", "new-1", "new-2"):
        world.add(name)
    with pytest.raises(TopologyError, match="new-1"):
        world.add("new-1")
    free = next(n for n in range(1, 99) if PortId(hub, n) not in topology.at)
    if free > topology.nodes[hub].ports:  # a star's switch has no port left: one host makes room
        free = topology.at[PortId("h2", 1)].other(PortId("h2", 1)).port
        world.pull("h2[1]")
    world.plug(Link(PortId(hub, free), PortId("new-switch", 1)))
    world.plug(Link(PortId("new-switch", 2), PortId("new-1", 1)))
    world.plug(Link(PortId("new-switch", 3), PortId("new-2", 1)))
    world.run_for(300 * MS)
    exchange(a, b)  # nobody restarted anything
    after = lids(world)
    assert {n: after[n] for n in ("h0", "h1", hub)} == {n: before[n] for n in ("h0", "h1", hub)}
    assert len({after[n] for n in ("h0", "h1", hub, "new-switch", "new-1", "new-2")}) == 6
    exchange(*world.pair("new-1", "h1"))
    exchange(*world.pair("new-1", "new-2"))
    # Taken away, they leave no entries in the tables.
    world.pull(PortId(hub, free))
    world.run_for(300 * MS)
    subnet = world.manager_of("h0").subnet_manager.subnet
    assert subnet is not None
    assert not {node.name for node in subnet.nodes.values()} & {"new-switch", "new-1", "new-2"}
    switch = next(node for node in subnet.nodes.values() if node.name == hub)
    for name in ("new-switch", "new-1", "new-2"):
        assert switch.output_port(after[name]) == 255
    exchange(a, b)
    world.check_laws()


@pytest.mark.requirement("SUB-11")
def test_subscribers_and_pollers_learn_of_nodes_that_come_and_go() -> None:
    world = World("fat-tree k=4", flits=False, config=QUICK)
    watcher, poller = world.device("h1"), world.device("h2")
    leaving, coming = watcher.subnet.notices(65), watcher.subnet.notices(64)
    leaving.accepted.get(1)
    coming.accepted.get(1)
    assert len(poller.subnet.nodes().get(1)) == 36
    gone = world.topology.nodes["h9"].port_guid(1)
    world.power_off("h9")
    begin = world.now
    out = leaving.get(1)
    assert out.trap == 65
    assert world.now - begin < 100 * MS  # the trap, a sweep, the report
    assert gone.to_bytes(8, "big") in out.gid
    assert len(poller.subnet.nodes().get(1)) == 35
    world.power_on("h9")
    back = coming.get(1)
    assert back.trap == 64
    assert gone.to_bytes(8, "big") in back.gid
    assert len(poller.subnet.nodes().get(1)) == 36
    exchange(*world.pair("h9", "h1"))


@pytest.mark.requirement("SUB-14")
def test_switches_answer_management_and_drop_data() -> None:
    world = World("transaction")
    a, b = world.pair("host-302", "host-304", timeout=10, retry_cnt=1)
    switch = world.nodes["switch-310"].agent.lid(0)
    nodes = {record.lid: record for record in a.ctx.subnet.nodes().get(1)}
    assert switch in nodes
    a2 = world.side("host-302")
    a2.qp.connect(b.qp.endpoint, dlid=switch, timeout=10, retry_cnt=1)
    before = world.dropped()
    write(a2, b, 100)
    assert finish(a2) == ["RETRY_EXC_ERR"]
    after = world.dropped()
    assert set(after) - set(before) == {"switch-310[1] drop_node"}
    assert after["switch-310[1] drop_node"] == 2
    world.check_laws()


@pytest.mark.requirement("SUB-16")
def test_a_node_without_the_key_changes_nothing() -> None:
    """A second manager with another M_Key, of higher priority, cannot take the fabric over or set a port."""
    from dataclasses import replace

    config = replace(QUICK, mkey=0x1234_5678, mkey_protect_bits=1)
    world = World("star hosts=4", config=config)
    a, b = world.pair("h1", "h2")
    before = lids(world)
    intruder = world.nodes["h3"]
    from verbena.runtime.manager import Manager

    rogue = Manager(intruder, world.clock, replace(QUICK, mkey=0xBAD, first_lid=500, priority=15), None, 1, 1)
    rogue.start()
    world.run_for(500 * MS)
    assert rogue.subnet_manager.statistics.refused + rogue.subnet_manager.statistics.timeouts > 0
    after = lids(world)
    for name in ("h0", "h1", "h2", world.topology.switches[0].name):
        assert after[name] == before[name]
    exchange(a, b)
    world.check_laws()


# --- everything at once ---------------------------------------------------------------------------------------

SHAPES = ["ring switches=4 hosts=2", "fat-tree k=4", "mesh dimensions=2x3", "san", "line switches=3 hosts=2"]


class Storm:
    """Random traffic between random pairs while cables and switches come and go, beside a model of all memory.

    Each pair has its own regions, so that one message after another, each acknowledged, tells exactly what the far
    region holds.  A pair whose connection breaks (its retries end while there is no way) is connected anew.
    """

    def __init__(self, seed: int, flits: bool) -> None:
        self.random = Random(seed)
        self.seed = seed
        shape = self.random.choice(SHAPES)
        topology = generate(shape.split()[0], **dict(word.split("=") for word in shape.split()[1:]))
        hosts = [node.name for node in topology.hosts]
        self.managers = self.random.sample(hosts, 2)
        self.world = World(topology, seed=seed, flits=flits, managers=self.managers, config=QUICK)
        users = [host for host in hosts if host not in self.managers]
        self.names = [tuple(self.random.sample(users, 2)) for _ in range(4)]
        services = [RC, RC, RC, UC]
        self.pairs: list[tuple[Side, Side]] = []
        for (a, b), service in zip(self.names, services, strict=True):
            attributes = {"timeout": 12, "retry_cnt": 7} if service is RC else {}
            self.pairs.append(self.world.pair(a, b, service, 1 << 15, **attributes))
        self.model = [bytearray(1 << 15) for _ in self.pairs]
        self.sums = [0] * len(self.pairs)
        self.out: list[Link] = []
        self.off: list[str] = []
        self.broken = 0

    def disturb(self) -> None:
        world, random = self.world, self.random
        what = random.randrange(6)
        if what == 0 and len(self.out) < 2:
            inner = [
                link
                for link in world.topology.links
                if link.a.node not in self.off and link.b.node not in self.off
            ]
            self.out.append(world.pull(random.choice(inner).a))
        elif what == 1 and self.out:
            self.out, links = [], self.out
            for link in links:
                if link.a.node in self.off or link.b.node in self.off:
                    self.out.append(link)
                else:
                    world.plug(link)
        elif what == 2 and not self.off:
            self.off.append(random.choice([node.name for node in world.topology.switches]))
            world.power_off(self.off[0])
        elif what == 3 and self.off:
            world.power_on(self.off.pop())
        elif what == 4 and not self.off:
            name = next(n for n in self.managers)  # the managers take turns at dying
            self.off.append(name)
            world.power_off(name)
            self.managers.reverse()

    def work(self, number: int) -> None:
        """One message; when it is acknowledged, the far memory holds it, once."""
        a, b = self.pairs[number]
        random = self.random
        if a.qp.type is UC:
            data = pattern(random.randrange(1, 8000), random.randrange(1 << 30))
            a.mr.buf[: len(data)] = data
            a.qp.post_send(writing(a, b, len(data)))
            assert finish(a, timeout=30) == ["SUCCESS"]  # sent; whether it arrives is the network's affair
            self.world.run_for(100_000)
            return
        if random.random() < 0.3:
            a.qp.post_send(fetch_add(a, b, 1, to=0))
            status = finish(a, timeout=30)[0]
            if status == "SUCCESS":
                # Whatever was repeated on the way, it was added once.
                assert int.from_bytes(a.mr.buf[:8], "little") == self.sums[number], self.told()
                self.sums[number] += 1
        else:
            size, at = random.randrange(1, 12_000), random.randrange(8, 16_000)
            data = pattern(size, random.randrange(1 << 30))
            a.mr.buf[16_384 : 16_384 + size] = data
            a.qp.post_send(writing(a, b, size, at=16_384, to=at))
            status = finish(a, timeout=30)[0]
            if status == "SUCCESS":
                self.model[number][at : at + size] = data
        if status == "SUCCESS":
            self.model[number][:8] = self.sums[number].to_bytes(8, "little")
            assert b.mr.buf == self.model[number], self.told()
        else:
            assert status == "RETRY_EXC_ERR", (status, self.told())
            self.reconnect(number)

    def reconnect(self, number: int) -> None:
        """After an error nobody knows how much of the message arrived: begin with what is there."""
        self.broken += 1
        a, b = self.names[number]
        self.heal()
        self.pairs[number] = self.world.pair(a, b, RC, 1 << 15, timeout=12, retry_cnt=7)
        self.model[number] = bytearray(1 << 15)
        self.sums[number] = 0

    def heal(self) -> None:
        while self.off:
            self.world.power_on(self.off.pop())
        out, self.out = self.out, []
        for link in out:
            self.world.plug(link)
        self.world.run_for(2 * SECOND)

    def told(self) -> str:
        return f"storm of seed {self.seed} on {self.world.topology.name}, managers {self.managers}"

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            if self.random.random() < 0.5:
                self.disturb()
            try:
                self.work(self.random.randrange(len(self.pairs)))
            except (
                PortStateError
            ):  # its own cable is out, or its only switch off: the adapter says so at once
                self.heal()
            self.world.run_for(self.random.choice([1000, 1 * MS, 100 * MS]))
        self.heal()
        assert self.world.settled, self.told()
        for a, b in itertools.combinations(sorted({name for pair in self.names for name in pair}), 2):
            exchange(*self.world.pair(a, b))
        self.world.check_laws()


@pytest.mark.requirement("SUB-05", "SUB-15", "TRN-06", "LNK-11", "SYS-06")
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("flits", [True, False])
def test_storms(number: int, flits: bool, seed: int) -> None:
    """Whatever happens meanwhile: every acknowledged byte arrived, once, and afterwards everybody can talk again."""
    Storm(seed + number, flits).run(25 if FAST else 8)
