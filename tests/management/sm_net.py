"""A network that carries subnet management only, for the tests beside this file.

Nodes of a `Topology`, each with its agent over fake hardware; switches that forward directed routes as IBA vol. 1,
14.2.2 says, written down here a second time; a virtual clock, delays, losses, cables that are pulled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

from verbena.fabric.rates import LinkRate
from verbena.fabric.topology import NodeKind, PortId, Topology, TopologyError
from verbena.management.agent import AgentEvent, SubnetManagementAgent
from verbena.management.profile import NodeProfile, profiles
from verbena.management.smi import SubnetManagementInterface
from verbena.management.subnet_manager import SubnetManager, SubnetManagerConfig
from verbena.runtime.virtual import VirtualClock
from verbena.wire.smp import parse_smp_packet, smp_packet
from verbena.wire.smp_attributes import PortInfo, PortState

HOP_NS = 100


class FakeHardware:
    """Remembers what the agent did to it."""

    def __init__(self, net: Net, name: str) -> None:
        self.net, self.name = net, name
        self.applied: dict[int, PortInfo] = {}
        self.lft: dict[int, bytes] = {}
        self.mft: dict[tuple[int, int], list[int]] = {}
        self.lanes: dict[int, bytes] = {}
        self.arbitration: dict[int, tuple[list[tuple[int, int]], list[tuple[int, int]], int]] = {}
        self.pkeys: dict[tuple[int, int], list[int]] = {}
        self.life_ns: int | None = None
        self.calls = 0

    def apply_port(self, port: int, info: PortInfo) -> None:
        self.calls += 1
        self.applied[port] = info

    def physical_state(self, port: int) -> int:
        return 5 if port == 0 or self.net.link_up(PortId(self.name, port)) else 2

    def rate(self, port: int) -> LinkRate:
        return self.net.topology.at[PortId(self.name, port)].rate

    def set_lft(self, block: int, ports: bytes) -> None:
        self.calls += 1
        self.lft[block] = ports

    def set_mft(self, block: int, position: int, masks: Sequence[int]) -> None:
        self.calls += 1
        self.mft[block, position] = list(masks)

    def set_sl2vl(self, port: int, table: bytes) -> None:
        self.calls += 1
        self.lanes[port] = table

    def set_arbitration(
        self, port: int, high: Sequence[tuple[int, int]], low: Sequence[tuple[int, int]], limit: int
    ) -> None:
        self.calls += 1
        self.arbitration[port] = (list(high), list(low), limit)

    def set_pkeys(self, port: int, block: int, keys: Sequence[int]) -> None:
        self.calls += 1
        self.pkeys[port, block] = list(keys)

    def set_lifetime(self, life_ns: int) -> None:
        self.calls += 1
        self.life_ns = life_ns

    def port_counters(self, port: int) -> dict[str, int]:
        return {}

    def clear_counters(self, port: int, names: Sequence[str]) -> None:
        pass


class Net:
    """All nodes of a topology.  loss: probability that a packet is lost, each time it is sent."""

    def __init__(
        self,
        topology: Topology,
        *,
        loss: float = 0.0,
        seed: int = 0,
        change: Callable[[NodeProfile], NodeProfile] = lambda profile: profile,
    ) -> None:
        self.topology = topology
        self.clock = VirtualClock()
        self.random = Random(seed)
        self.loss = loss
        self.dead: set[str] = set()
        self.hardware: dict[str, FakeHardware] = {}
        self.agents: dict[str, SubnetManagementAgent] = {}
        self.interfaces: dict[str, SubnetManagementInterface] = {}
        self.events: list[tuple[str, AgentEvent, int]] = []
        self.sent: Counter[str] = Counter()
        self.log: list[tuple[int, str, bytes]] | None = None
        self.before_send: Callable[[], None] = lambda: None
        self._change = change
        for name, profile in profiles(topology).items():
            self._add(name, profile)

    # --- plugging -----------------------------------------------------------------------------------------------

    def _add(self, name: str, profile: NodeProfile) -> None:
        hardware = self.hardware[name] = FakeHardware(self, name)

        def event(what: AgentEvent, port: int) -> None:
            self.events.append((name, what, port))

        agent = self.agents[name] = SubnetManagementAgent(self._change(profile), hardware, self.clock, event)
        self.interfaces[name] = SubnetManagementInterface(
            agent, lambda port, packet: self._transmit(name, port, packet), self.clock
        )

    def join(self) -> None:
        """Take up nodes and cables that were added to the topology."""
        known = profiles(self.topology)
        for name in known:
            if name not in self.agents:
                self._add(name, known[name])
        for link in self.topology.links:
            for end in (link.a, link.b):
                if self.link_up(end):
                    self.agents[end.node].link_changed(end.port, True)

    def reset(self, name: str) -> None:
        """Restart a node: it forgets everything that was set."""
        self.kill(name)
        self.revive(name)

    def revive(self, name: str) -> None:
        self.dead.discard(name)
        self._add(name, profiles(self.topology)[name])
        self._tell(name, True)

    def link_up(self, end: PortId) -> bool:
        link = self.topology.at.get(end)
        return link is not None and not self.dead & {link.a.node, link.b.node}

    def pull(self, end: PortId) -> None:
        """Pull a cable."""
        link = self.topology.disconnect(end)
        for side in (link.a, link.b):
            self.agents[side.node].link_changed(side.port, False)

    def kill(self, name: str) -> None:
        """A node loses its power."""
        self.dead.add(name)
        self._tell(name, False)

    def _tell(self, name: str, up: bool) -> None:
        for link in self.topology.links_of(name):
            for end in (link.a, link.b):
                if up == self.link_up(end):
                    self.agents[end.node].link_changed(end.port, up)

    # --- packets ------------------------------------------------------------------------------------------------

    def _transmit(self, name: str, port: int, packet: bytes) -> None:
        """Find where a packet ends, and let it arrive there when it has made all its hops."""
        self.before_send()
        self.sent["packets"] += 1
        if self.log is not None:
            self.log.append((self.clock.now(), name, packet))
        if name in self.dead or (self.loss and self.random.random() < self.loss):
            self.sent["lost"] += 1
            return
        route = parse_smp_packet(packet)
        mad = bytearray(route.mad)
        directed = mad[1] == 0x81
        hops, in_port = 0, 0
        out = port
        while True:
            if self.topology.nodes[name].kind is NodeKind.SWITCH:
                if directed:
                    out = self.forward_directed(mad, in_port)
                elif in_port and self.agents[name].owns(0, route.dlid):
                    out = 0
                else:
                    out = self.agents[name].tables.output_port(route.dlid)
            elif hops:
                out = 0
            if out == 0:
                break
            there = self.topology.peer(PortId(name, out))
            if there is None or not self.link_up(there) or hops > 64:
                self.sent["lost"] += 1
                return
            name, in_port = there.node, there.port
            hops += 1
        arrived = smp_packet(mad, route.slid, route.dlid, route.sl)
        self.clock.call_at(self.clock.now() + HOP_NS * hops, lambda: self._arrive(name, in_port, arrived))

    def _arrive(self, name: str, port: int, packet: bytes) -> None:
        if name not in self.dead:
            self.interfaces[name].receive(packet, port)

    @staticmethod
    def forward_directed(mad: bytearray, in_port: int) -> int:
        """A switch's output port, 0 for itself; what ends here is left for the node's own interface to finish."""
        back, pointer, count = mad[4] >= 0x80, mad[6], mad[7]
        if not back and (pointer == 0 or pointer < count):
            if pointer:
                mad[192 + pointer] = in_port
            if pointer or count:
                mad[6] += 1
                return mad[128 + mad[6]]
        if back and 1 < pointer <= count + 1:
            mad[6] -= 1
            return mad[192 + mad[6]]
        return 0

    # --- questions ----------------------------------------------------------------------------------------------

    def run(self, duration_ns: int = 10_000_000_000) -> None:
        end = self.clock.now() + duration_ns
        while (following := self.clock.next_time()) is not None and following <= end:
            self.clock.step()
        self.clock.advance(end)

    def run_until(self, done: Callable[[], bool], limit_ns: int = 600_000_000_000) -> None:
        end = self.clock.now() + limit_ns
        while not done():
            following = self.clock.next_time()
            assert following is not None, "nothing is scheduled"
            assert following <= end, "it takes too long"
            self.clock.step()

    def flood(self, source: PortId, mlid: int) -> set[PortId]:
        """Where a multicast packet arrives; fails if it arrives anywhere twice."""
        first = self.topology.peer(source)
        assert first is not None
        edge, arrived = [first], set()
        for _ in range(100):
            if not edge:
                return arrived
            at = edge.pop()
            if self.topology.nodes[at.node].kind is not NodeKind.SWITCH:
                assert at not in arrived
                arrived.add(at)
                continue
            for port in self.agents[at.node].tables.multicast_ports(mlid):
                if port != at.port:
                    there = self.topology.peer(PortId(at.node, port))
                    assert there is not None
                    edge.append(there)
        raise AssertionError("the packet runs in circles")

    def data_path(self, source: PortId, dlid: int) -> list[str] | None:
        """The nodes that a data packet crosses from an adapter's port to a LID; None if it does not arrive."""
        name, port, seen = source.node, source.port, [source.node]
        while len(seen) < 70:
            if self.agents[name].port_info(port).port_state != PortState.ACTIVE:
                return None
            there = self.topology.peer(PortId(name, port))
            if (
                there is None
                or not self.link_up(there)
                or self.agents[there.node].port_info(there.port).port_state != PortState.ACTIVE
            ):
                return None
            name = there.node
            seen.append(name)
            if self.topology.nodes[name].kind is not NodeKind.SWITCH:
                return seen if self.agents[name].owns(there.port, dlid) else None
            if self.agents[name].owns(0, dlid):
                return seen
            port = self.agents[name].tables.output_port(dlid)
            if port == 255:
                return None
        return None

    def end_ports(self) -> list[PortId]:
        """The adapters' and routers' connected ports."""
        return [
            end
            for link in self.topology.links
            for end in (link.a, link.b)
            if self.topology.nodes[end.node].kind is not NodeKind.SWITCH and self.link_up(end)
        ]


# --- what the tests build -----------------------------------------------------------------------------------------


def redundant_topology() -> Topology:
    """Three switches in a ring, and four adapters; h4 is at two of the switches."""
    topology = Topology()
    for name in ("h1", "h2", "h3"):
        topology.add_host(name)
    topology.add_host("h4", 2)
    for name in ("s1", "s2", "s3"):
        topology.add_switch(name, 8)
    for pair in ("s1 s2", "s2 s3", "s3 s1", "h1 s1", "h2 s2", "h3 s3", "h4 s1", "h4 s2"):
        topology.connect(*pair.split())
    return topology


def random_topology(random: Random, switches: int, hosts: int) -> Topology:
    """Connected switches with loops, several cables between two of them, adapters with one or two ports."""
    topology = Topology()
    for s in range(switches):
        topology.add_switch(f"s{s}", 12)
    for s in range(1, switches):
        topology.connect(f"s{random.randrange(s)}", f"s{s}")
    for _ in range(switches):
        a, b = random.randrange(switches), random.randrange(switches)
        with suppress(TopologyError):
            topology.connect(f"s{a}", f"s{b}")
    for h in range(hosts):
        topology.add_host(f"h{h}", random.choice((1, 1, 2)))
        for _ in range(random.randrange(1, topology.nodes[f"h{h}"].ports + 1)):
            with suppress(TopologyError):
                topology.connect(f"h{h}", f"s{random.randrange(switches)}")
    return topology


def manager_on(
    net: Net, name: str, config: SubnetManagerConfig | None = None, port: int = 1, **more: Any
) -> SubnetManager:
    """A started subnet manager on a node."""
    interface = net.interfaces[name]
    smp_port = interface.attach(port)
    number = interface.manager_port
    guid = interface.agent.profile.port_guid(number)
    manager = SubnetManager(smp_port, guid, net.clock, config, port_number=number, **more)
    manager.start()
    return manager


def settle(net: Net, *managers: SubnetManager, sweeps: int = 1) -> None:
    """Until every manager has finished, and has made this many heavy sweeps."""
    net.run_until(lambda: all(m.is_settled and m.statistics.heavy_sweeps >= sweeps for m in managers))


def cables(topology: Topology, net: Net | None = None) -> set[frozenset[tuple[int, int]]]:
    """All cables, as pairs of (node GUID, port)."""
    return {
        frozenset((topology.nodes[end.node].guid, end.port) for end in (link.a, link.b))
        for link in topology.links
        if net is None or net.link_up(link.a)
    }


def found_cables(manager: SubnetManager) -> set[frozenset[tuple[int, int]]]:
    """The same of what a manager has found."""
    assert manager.subnet is not None
    return {frozenset((p.node.guid, p.number) for p in pair) for pair in manager.subnet.links()}


def assert_all_reachable(net: Net) -> None:
    """Data packets go from every adapter's port to every LID of every other, and to the switches' LIDs."""
    ends = net.end_ports()
    targets = [lid for end in ends for lid in lids_of(net, end)]
    targets += [net.agents[node.name].lid(0) for node in net.topology.switches if node.name not in net.dead]
    for source in ends:
        for lid in targets:
            if not net.agents[source.node].owns(source.port, lid):
                assert net.data_path(source, lid) is not None, f"{source} cannot reach LID {lid}"


def lids_of(net: Net, end: PortId) -> range:
    info = net.agents[end.node].port_info(end.port)
    return range(info.lid, info.lid + (1 << info.lmc))
