"""An Ethernet on a fabric: ARP and ping between cards, a bridge to ordinary Ethernet hosts, a cable that is pulled."""

from verbena import Fabric, SubnetManagerConfig
from verbena.fabric.topology import Topology
from verbena.lan import LanAddress, LanConfig, LanNode
from verbena.lan.bridge import Bridge
from verbena.lan.host import Host
from verbena.lan.segment import Segment
from verbena.wire.ethernet import mac_text

MILLISECOND = 1_000_000

# Nodes 12 and 14 at one switch, 16 at another, two cables between the switches; two LIDs for each port, so that there
# are two paths.
topology = Topology()
topology.add_switch("left", 8)
topology.add_switch("right", 8)
for name, switch in (("node12", "left"), ("node14", "left"), ("node16", "right")):
    topology.add_host(name)
    topology.connect(name, switch)
topology.connect("left", "right")
topology.connect("left", "right")
fabric = Fabric(topology, config=SubnetManagerConfig(lmc=1, settle_ns=10_000 * MILLISECOND))

config = LanConfig(mtu=1500)
nodes = {host.name: LanNode(fabric.open_device(host.name), config=config) for host in topology.hosts}
fabric.run_for(20 * MILLISECOND)
for name, node in nodes.items():
    print(name, "has", mac_text(node.card.mac), "for LID", LanAddress.unpack(node.card.mac).lid)
print("node16 was set up by")
for call, _ in list(nodes["node16"].drivers[0].calls)[:6]:
    print("   ", call)

# Hosts on the cards of 12 and 14; 16 is a bridge to an ordinary Ethernet with host 82.
hosts = {
    12: Host(nodes["node12"].card, fabric.clock, "10.0.0.12/24"),
    14: Host(nodes["node14"].card, fabric.clock, "10.0.0.14/24"),
}
ethernet = Segment(fabric.clock)
hosts[82] = Host(ethernet.port(bytes.fromhex("005056000052")), fabric.clock, "10.0.0.82/24")
outside = ethernet.port(bytes.fromhex("00505600ff00"), filtering=False)
bridge = Bridge(fabric.clock, nodes["node16"].card, outside, spanning_tree=False)


def ping(source: int, to: int, size: int = 56) -> None:
    answer = hosts[source].ping(f"10.0.0.{to}", size)
    fabric.run_for(5 * MILLISECOND)
    what = f"{answer.result()} ns" if answer.done and answer.error is None else "no answer yet"
    print(f"{source} pings {to}, {size} bytes: {what}")


fabric.run_for(5 * MILLISECOND)
ping(12, 14)
ping(12, 14, 1400)
ping(12, 82)
ping(82, 14)
for ip, mac in hosts[12].neighbours.entries().items():
    print("12 knows", ".".join(map(str, ip)), "at", mac_text(mac))

# The primary path from 12 to 16 loses its cable; the subnet manager notices ten seconds later, the driver at once.
peer = nodes["node12"].drivers[0].station.peers.at(LanAddress.unpack(nodes["node16"].card.mac).lid)
left = fabric.manager_of("node12").subnet_manager.subnet.nodes[topology.nodes["left"].guid]
lid = peer.ways[peer.active].vector.dlid
fabric.pull(f"left[{left.lft[lid // 64][lid % 64]}]")
pulled = fabric.now
while not nodes["node12"].card.counters["failovers"]:
    hosts[12].ping("10.0.0.82")
    fabric.run_for(MILLISECOND)
print("the other path was taken after", (fabric.now - pulled) // MILLISECOND, "ms")
fabric.run_for(100 * MILLISECOND)
ping(12, 82)

card = nodes["node12"].card
for name in ("tx.frames", "tx.broadcast", "tx.unicast_datagrams", "posts.channel", "rx.frames"):
    print(name, card.counters[name])
