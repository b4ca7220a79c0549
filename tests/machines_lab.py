"""Servers with virtual machines: virtual switch, team, LAN emulation, one fabric, and an Ethernet behind a bridge."""

from __future__ import annotations

from random import Random
from typing import Any

from system.world import MS, World
from verbena import DeviceAttributes
from verbena.fabric.topology import NodeKind, Topology
from verbena.lan import LanConfig, LanNode
from verbena.lan.bridge import Bridge
from verbena.lan.segment import Segment
from verbena.runtime.ethernet_joints import LanMember, SwitchCard, TeamUplink
from verbena.team.card import BurstMember
from verbena.team.config import TeamConfig
from verbena.team.host import TeamHost
from verbena.team.offload.states import OffloadConfig
from verbena.team.stack.host import HostStack
from verbena.team.stack.tcp_states import TcpOptions
from verbena.vswitch.config import PortConfig
from verbena.vswitch.switch import VirtualSwitch

LIMITS = DeviceAttributes(max_qp=256, max_cq=128, max_ah=256, max_srq=8, max_mr=128, phys_port_cnt=2)
TCP = TcpOptions(least_rto_ns=5 * MS)
GBPS = 1e9
OWN_VLAN, UPLOAD_VLAN = 10, 20
REFUSED = (
    *("link_down", "runt", "too_long", "group_source", "offload", "forged_source", "loop", "no_such_lid"),
    *("no_destination", "alone", "peer_down", "peer_gone", "unresolved", "no_message"),
)
"""Why a LAN card drops a frame that it was given; what is lost later was counted as sent before."""
ETHERNET = bytes.fromhex("005056000052")


def machine_mac(server: int, machine: int) -> bytes:
    return bytes((2, 0x56, 0x4D, 0, server, machine))


class Machine:
    """A virtual machine: a stack on a card of the server's switch.  Address: 10.0.SERVER.MACHINE."""

    def __init__(self, server: Server, number: int) -> None:
        self.mac = machine_mac(server.number, number)
        port = server.switch.add_port(PortConfig(f"vm{number}", (self.mac,)))
        self.card = SwitchCard(server.clock, port, self.mac)
        self.stack = HostStack(server.clock, Random(f"{server.name} {number}"), options=TCP)
        self.interface = self.stack.bind(self.card, f"10.0.{server.number}.{number}/16")


class Server:
    """A host with two LAN-emulation cards in a team, of which the first is an RDMA card, and a virtual switch above.

    VLAN 0 of the team is the switch's physical port, VLAN 10 the server's own interface, VLAN 20 R-virtual.
    """

    def __init__(self, site: Site, name: str, number: int, machines: int, *, bridged: bool = True) -> None:
        self.name, self.number, self.clock = name, number, site.clock
        context = site.device(name, limits=LIMITS)
        self.node = site.lan_nodes[name]
        self.host = TeamHost(
            self.clock,
            Random(f"{site.seed} {name}"),
            TeamConfig(vlans=(0, OWN_VLAN), rdma_vlan=UPLOAD_VLAN, bridged=bridged),
            mac=bytes((2, 0x54, 0x4D, 0, number, 0)),
            addresses={OWN_VLAN: f"10.10.0.{number}/24"},
            upload_address=f"10.20.0.{number}/24",
            offload=OffloadConfig(most_queue_pairs=8, slots=8, slot_size=4096),
            tcp=TCP,
        )
        self.driver = self.host.driver
        self.switch = VirtualSwitch(clock=self.clock)
        physical = self.switch.add_port(PortConfig("physical"), physical=True)
        self.uplink = TeamUplink(self.clock, physical, self.driver.team.cards[0], rate_bps=8 * GBPS)
        self.machines = [Machine(self, n + 1) for n in range(machines)]
        self.members = [
            LanMember(self.clock, f"lan{place}", card) for place, card in enumerate(self.node.cards)
        ]
        self.host.add(self.members[0], context=context)
        self.host.add(self.members[1])

    def check_conservation(self) -> None:
        """Every frame that entered a part of this server left it, is in it, or was counted as dropped."""
        switch, driver = self.switch, self.driver
        assert switch.losses() == {}
        came, went = switch.balance()
        assert came == went
        for machine in self.machines:
            state, card = machine.card.port.state(), machine.card
            assert card.counters["tx"] == state["rx_frames"]
            assert card.counters["rx"] == state["tx_frames"]
            assert machine.stack.counters["tx"] == card.counters["tx"] + card.waiting + drops(card, "tx")
            assert machine.stack.counters["rx"] == card.counters["rx"]
        physical, virtual = self.uplink.port.state(), driver.team.cards[0]
        assert self.uplink.counters["tx"] == physical["tx_frames"]
        assert self.uplink.counters["rx"] == physical["rx_frames"] == virtual.counters["rx"]
        refused = sum(n for key, n in virtual.counters.items() if key.startswith("drop.tx."))
        assert self.uplink.counters["tx"] == virtual.counters["tx"] + refused
        sent = sum(member.counters["tx.team"] for member in driver.members)
        assert driver.counters["stack.team"] == sent + driver.counters["drop.tx.no_member"]
        for member in driver.members:
            counters, card, port = member.counters, member.card, member.card.port
            out = counters["tx.team"] + counters["tx.upload"] + counters["tx.announce"]
            assert out == card.counters["tx"] + card.waiting + drops(card, "tx")
            refused = sum(port.counters[f"drop.tx.{reason}"] for reason in REFUSED)
            assert card.counters["tx"] == port.counters["tx.frames"] + refused
            assert port.counters["rx.frames"] == card.counters["rx"] + port.counters["drop.rx.nobody"]
            assert card.counters["rx"] == counters["rx.team"] + counters["rx.upload"] + drops(member, "rx")


class Site(World):
    """Servers a and b with two ports each, at two switches; gate, a bridge to an Ethernet with one host; a manager."""

    def __init__(
        self, machines: int = 2, *, seed: int = 0, bridged: bool = True, bridge: bool = True
    ) -> None:
        made = Topology()
        for name in ("s1", "s2"):
            made.add_switch(name, 8)
        for name, switch in (("manager", "s2"), ("gate", "s1")):
            made.add_host(name)
            made.connect(name, switch)
        for name in ("a", "b"):
            made.add(name, NodeKind.CA, 2)
            made.connect(name, "s1")
            made.connect(name, "s2")
        made.connect("s1", "s2")
        super().__init__(made, seed=seed, flits=False, managers=("manager",))
        self.start()
        config = LanConfig()
        self.lan_nodes = {
            name: LanNode(self.device(name, limits=LIMITS), config=config) for name in ("a", "b", "gate")
        }
        self.settle(20 * MS)
        self.ethernet = Segment(self.clock)
        self.outside = HostStack(self.clock, Random(seed), options=TCP)
        card = BurstMember("eth0", self.ethernet.port(ETHERNET))
        self.outside_interface = self.outside.bind(card, "10.0.9.9/16")
        if bridge:
            port = self.ethernet.port(bytes.fromhex("00505600ff00"), filtering=False)
            self.bridge = Bridge(self.clock, self.lan_nodes["gate"].card, port, spanning_tree=False)
        self.a = Server(self, "a", 1, machines, bridged=bridged)
        self.b = Server(self, "b", 2, machines, bridged=bridged)
        self.settle(500 * MS)  # announcements are over

    def until(self, ready: Any, milliseconds: float = 20_000) -> None:
        """Let time pass until it is so; fails if it never is."""
        end = self.now + round(milliseconds * MS)
        while not ready():
            assert self.now < end, "it did not happen in time"
            self.run_for(MS)


def drops(of: Any, way: str) -> int:
    """All that was dropped in one direction."""
    return sum(n for key, n in of.counters.items() if key.startswith(f"drop.{way}."))
