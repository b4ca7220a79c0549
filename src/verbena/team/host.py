"""A host with everything of document 004, Fig. 3: stack, intermediate driver, cards, RDMA cards, sockets direct.

All it needs is handed in: clock, random stream, cards, and the contexts of the RDMA cards.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from verbena.clock import Clock
from verbena.errors import InvalidAttributeError
from verbena.team.card import BusDriver, EthernetPort
from verbena.team.config import TeamConfig
from verbena.team.driver import IntermediateDriver
from verbena.team.member import Member
from verbena.team.offload.channel import Channel, TcpChannel
from verbena.team.offload.manager import Address, SocketsDirect
from verbena.team.offload.policy import Policy, default_policy
from verbena.team.offload.rdma import RdmaCard
from verbena.team.offload.states import OffloadConfig, Path
from verbena.team.stack.host import HostStack, Interface
from verbena.team.stack.tcp import TcpConnection
from verbena.team.stack.tcp_states import TcpOptions
from verbena.team.trace import PathTrace
from verbena.verbs.context import Context

if TYPE_CHECKING:
    from random import Random


class StackNetwork:
    """Implements `offload.manager.Network` on the built-in stack: UPLOAD by R-virtual, TEAM by T-virtual."""

    def __init__(self, stack: HostStack, interfaces: dict[Path, Interface], config: OffloadConfig) -> None:
        self.stack = stack
        self.config = config
        self.interfaces = interfaces

    def address(self, path: Path) -> bytes:
        interface = self.interfaces.get(path)
        return bytes(4) if interface is None else interface.packed

    def is_up(self, path: Path) -> bool:
        interface = self.interfaces.get(path)
        return interface is not None and interface.port.is_up

    def dial(self, path: Path, to: Address) -> Channel:
        interface = self.interfaces.get(path)
        if interface is None:
            raise InvalidAttributeError(f"this host has no interface for {path.name}")
        peer = (str(ipaddress.IPv4Address(to[0])), to[1])
        return TcpChannel(self.stack.connect(interface, peer), path, self.config.tcp_in_flight)


class TeamHost:
    """A host.

    addresses: of the VLAN groups, VLAN -> such as ``10.0.0.1/24``; the first one is what sockets direct calls TEAM.
    upload_address: of R-virtual.  stack, driver, sockets: the parts; trace: the layers that frames and messages pass.
    """

    def __init__(
        self,
        clock: Clock,
        random: Random,
        config: TeamConfig,
        *,
        mac: bytes,
        addresses: dict[int, str],
        upload_address: str | None = None,
        offload: OffloadConfig | None = None,
        policy: Policy = default_policy,
        tcp: TcpOptions | None = None,
    ) -> None:
        self.trace = PathTrace(clock)
        self.driver = IntermediateDriver(clock, config, self.trace, mac)
        self.stack = HostStack(clock, random, self.trace, tcp)
        self.interfaces: dict[int, Interface] = {}
        paths: dict[Path, Interface] = {}
        for vlan, address in addresses.items():
            card = self.driver.team.cards.get(vlan)
            if card is None:
                raise InvalidAttributeError(f"VLAN {vlan} has an address, and is no group of the team")
            self.interfaces[vlan] = self.stack.bind(card, address)
            paths.setdefault(Path.TEAM, self.interfaces[vlan])
        if upload_address is not None:
            if self.driver.rdma_miniport is None:
                raise InvalidAttributeError(
                    "an address for R-virtual needs rdma_vlan in the team's configuration"
                )
            paths[Path.UPLOAD] = self.stack.bind(self.driver.rdma_miniport, upload_address)
        self.paths = paths
        offload = offload or OffloadConfig()
        network = StackNetwork(self.stack, paths, offload)
        self.sockets = SocketsDirect(clock, random, network, self.trace, offload, policy)
        self.rdma: dict[str, RdmaCard] = {}
        self.driver.on_members = self._members_changed
        for path, interface in paths.items():
            self._serve(path, interface)

    def _serve(self, path: Path, interface: Interface) -> None:
        def accept(connection: TcpConnection, peer: tuple[str, int]) -> None:
            self.sockets.arrived(TcpChannel(connection, path, self.sockets.config.tcp_in_flight))
            connection.on_change()

        self.stack.listen(interface, self.sockets.config.service_port, accept)

    def _members_changed(self) -> None:
        usable = {member.name: member.is_usable for member in self.driver.members}
        upload = self.driver.upload_member
        self.sockets.cards_changed(usable, None if upload is None else upload.name)

    def add(self, card: EthernetPort, *, context: Context | None = None, priority: int = 0) -> Member:
        """Take a card into the team; with the context of its adapter, it also offloads."""
        if context is None:
            return self.driver.add(card, priority=priority)
        bus = BusDriver(card, self.trace)
        rdma = self.rdma.get(card.name)
        if rdma is None or rdma.context is not context:
            rdma = self.rdma[card.name] = RdmaCard(card.name, context, bus, self.sockets.config)
        rdma.bus = bus
        if card.name not in self.sockets.drivers:
            self.sockets.add_card(rdma)
        rdma.is_up = False
        return self.driver.add(card, bus=bus, priority=priority)

    def remove(self, name: str) -> None:
        """Take a card out of the team while traffic flows."""
        self.driver.remove(name)
        self.sockets.remove_card(name)

    def close(self) -> None:
        """Stop everything."""
        self.sockets.close()
        self.driver.close()
