"""Virtual machines, virtual switch, team, LAN emulation and fabric in one run, while cables are pulled."""

import hashlib
import random

from verbena import Fabric
from verbena.fabric.topology import NodeKind, Topology
from verbena.lan import LanNode
from verbena.lan.bridge import Bridge
from verbena.lan.segment import Segment
from verbena.runtime.ethernet_joints import LanMember, SwitchCard, TeamUplink
from verbena.team.card import BurstMember
from verbena.team.config import TeamConfig
from verbena.team.host import TeamHost
from verbena.team.offload.states import OffloadConfig, Path
from verbena.team.stack.host import HostStack
from verbena.team.stack.tcp_states import TcpOptions
from verbena.vswitch.config import PortConfig
from verbena.vswitch.switch import VirtualSwitch

MILLISECOND = 1_000_000
SIZE = 2 << 20
TCP = TcpOptions(least_rto_ns=5 * MILLISECOND)

# Servers a and b have adapters with two ports, one at each switch; gate is the bridge to an ordinary Ethernet.
topology = Topology()
topology.add_switch("left", 8)
topology.add_switch("right", 8)
for name, switch in (("manager", "right"), ("gate", "left")):
    topology.add_host(name)
    topology.connect(name, switch)
for name in ("a", "b"):
    topology.add(name, NodeKind.CA, 2)
    topology.connect(name, "left")
    topology.connect(name, "right")
topology.connect("left", "right")
fabric = Fabric(topology, flits=False)
contexts = {name: fabric.open_device(name) for name in ("a", "b", "gate")}
nodes = {name: LanNode(context) for name, context in contexts.items()}
fabric.run_for(20 * MILLISECOND)

ethernet = Segment(fabric.clock)
outside = HostStack(fabric.clock, random.Random(9), options=TCP)
outside.bind(BurstMember("eth0", ethernet.port(bytes.fromhex("005056000052"))), "10.0.9.9/16")
Bridge(
    fabric.clock,
    nodes["gate"].card,
    ethernet.port(bytes.fromhex("00505600ff00"), filtering=False),
    spanning_tree=False,
)


class Server:
    """Two machines on a virtual switch; its physical port is the team of the two cards, one of them an RDMA card."""

    def __init__(self, name: str, number: int) -> None:
        clock = fabric.clock
        self.host = TeamHost(
            clock,
            random.Random(number),
            TeamConfig(vlans=(0, 10), rdma_vlan=20, bridged=True),
            mac=bytes((2, 0x54, 0x4D, 0, number, 0)),
            addresses={10: f"10.10.0.{number}/24"},
            upload_address=f"10.20.0.{number}/24",
            offload=OffloadConfig(slot_size=4096),
            tcp=TCP,
        )
        self.switch = VirtualSwitch(clock=clock)
        physical = self.switch.add_port(PortConfig("physical"), physical=True)
        self.uplink = TeamUplink(clock, physical, self.host.driver.team.cards[0], rate_bps=2e8)
        self.machines = []
        for machine in (1, 2):
            mac = bytes((2, 0x56, 0x4D, 0, number, machine))
            card = SwitchCard(clock, self.switch.add_port(PortConfig(f"vm{machine}", (mac,))), mac)
            stack = HostStack(clock, random.Random(10 * number + machine), options=TCP)
            stack.bind(card, f"10.0.{number}.{machine}/16")
            self.machines.append(stack)
        for place, card in enumerate(nodes[name].cards[:2]):
            member = LanMember(clock, f"lan{place}", card)
            self.host.add(member, context=contexts[name] if place == 0 else None)


a, b = Server("a", 1), Server("b", 2)
fabric.run_for(10 * MILLISECOND)


class Stream:
    """A stream of bytes from one stack to another by TCP."""

    def __init__(self, name, source, target, port):
        self.name, self.data, self.got = name, random.Random(name).randbytes(SIZE), bytearray()
        self.sent = 0
        there = target.interfaces[0]
        target.listen(there, port, self.accept)
        self.connection = source.connect(source.interfaces[0], (there.address, port))
        self.connection.on_change = self.write

    def write(self):
        while self.sent < SIZE and self.connection.room:
            self.sent += self.connection.write(self.data[self.sent : self.sent + self.connection.room])

    def accept(self, connection, peer):
        connection.on_change = lambda: self.got.extend(connection.read() if connection.readable else b"")


streams = [
    Stream("machine 1 of a to the Ethernet's host", a.machines[0], outside, 80),
    Stream("machine 2 of a to machine 1 of b", a.machines[1], b.machines[0], 80),
    Stream("machine 2 of b to machine 1 of a", b.machines[1], a.machines[0], 81),
    Stream("machine 1 of a to machine 2 of a", a.machines[0], a.machines[1], 82),
]
data, received, sent = random.Random(7).randbytes(SIZE), bytearray(), 0


def accept(session):
    session.on_change = lambda: received.extend(session.read() if session.readable else b"")


def write():
    global sent
    sent += session.write(data[sent : sent + SIZE // 200])
    if sent < SIZE:
        fabric.clock.call_at(fabric.now + MILLISECOND, write)


b.host.sockets.listen(7000, accept)
session = a.host.sockets.connect(b.host.paths[Path.UPLOAD].packed, 7000)
fabric.run_for(2 * MILLISECOND)
a.host.sockets.pin(session, Path.OFFLOAD)
write()


def show(what):
    homes = {mac[5]: station.home.name for (_, mac), station in a.host.driver.stations.table.items()}
    share = sum(len(stream.got) for stream in streams) / SIZE / len(streams)
    print(
        f"{fabric.now / 1e6:6.1f} ms, {share:4.0%}: {what}; a's machines at {homes}, {session.path.name.lower()}"
    )


def pull(cable):
    link = fabric.pull(cable)
    fabric.run_for(5 * MILLISECOND)
    show(f"{cable} was pulled")
    fabric.plug(link)
    while len(a.host.driver.usable) + len(b.host.driver.usable) < 4:
        fabric.run_for(MILLISECOND)


fabric.run_for(5 * MILLISECOND)
show("all cables in")
for cable in ("a[2]", "b[1]", "a[1]"):
    pull(cable)
while any(len(stream.got) < SIZE for stream in streams) or len(received) < SIZE:
    fabric.run_for(MILLISECOND)
show("all has come")

for stream in streams:
    same = hashlib.sha256(stream.got).digest() == hashlib.sha256(stream.data).digest()
    print(f"{stream.name}: checksum right: {same}")
print("the servers' managed connection: checksum right:", bytes(received) == data)
print("bytes by path:", {path.name.lower(): n for path, n in session.bytes_by_path.items() if n})
fabric.run_for(500 * MILLISECOND)
for server in (a, b):
    came, went = server.switch.balance()
    sent, left = server.uplink.counters["tx"], server.host.driver.team.cards[0].counters["tx"]
    print(
        f"frames: {came} in and {went} out of the switch, {sent} down to the team, {left} taken by it,",
        end=" ",
    )
    print("lost in the switch:", sum(server.switch.losses().values()))
