"""A router of a fabric: its element, joined to the core's links and to the management of the subnets that it joins.

Each port is configured by the manager of its subnet; where a packet goes there, its subnet administration is asked, and
the answers are kept until it reports a change.  Routers of one subnet find each other by the multicast group of all
routers, and tell each other their routes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from verbena.clock import Clock
from verbena.fabric.assembly import Assembly
from verbena.fabric.router import PENDING, Hop, Pending, RouteExchange, Router, RouterPort
from verbena.fabric.router.attachment import RouterAttachment
from verbena.fabric.router.exchange import ALL_ROUTERS
from verbena.fabric.topology import Node, PortId
from verbena.management import datagrams
from verbena.management.datagrams import MadAddress
from verbena.management.profile import NodeProfile
from verbena.management.sa_client import SaClient
from verbena.runtime.fabric_node import MTU_OF_CODE, FabricNode
from verbena.wire.mad import ManagementClass, Method
from verbena.wire.sa_records import MCMemberRecord, PathRecord
from verbena.wire.smp import AttributeId, lid_routed_smp
from verbena.wire.smp_attributes import PortInfo, PortState

ROUTERS_QKEY = 0x0B1B
JOIN_AGAIN_NS = 50_000_000
PERIOD_NS = 100_000_000
MOST_PENDING = 65_536  # packets that wait hold their senders' credits: the buffers are the limit
Answer = Hop | None


@dataclass(frozen=True, slots=True)
class Transit:
    """A cable from router to router, which no subnet manager manages: a subnet of two ports.

    lid, peer_lid: of this port and the one at the other end.  prefix: of both GIDs.
    """

    lid: int
    peer_lid: int
    prefix: int


class RouterNode(FabricNode):
    """A router with its agents.  period_ns: between two announcements of its routes."""

    def __init__(
        self,
        assembly: Assembly,
        node: Node,
        profile: NodeProfile,
        clock: Clock,
        send: Callable[[int, bytes], None],
        random: Random,
        period_ns: int = PERIOD_NS,
    ) -> None:
        self._clock = clock
        self._random = random
        self._clients: dict[int, SaClient] = {}
        self._answers: dict[tuple[int, bytes], Answer] = {}
        self._asked: set[tuple[int, bytes]] = set()
        self._groups: dict[int, int] = {}
        self._transit: dict[int, Transit] = {}
        numbers = [n for n in range(1, node.ports + 1) if PortId(node.name, n) in assembly.topology.at]
        self.attachment = RouterAttachment(
            assembly.core, {number: assembly.ports[PortId(node.name, number)] for number in numbers}
        )
        prefix = bytes.fromhex("fe80000000000000")
        self.router = self.attachment.router = Router(
            node.name,
            [RouterPort(number, profile.port_guid(number), prefix) for number in numbers],
            clock=clock,
            resolve=self._resolve,
            output=self.attachment.output,
            release=self.attachment.release,
            pending_packets=MOST_PENDING,
        )
        self.exchange = RouteExchange(self.router, node.guid, period_ns=period_ns)
        super().__init__(assembly, node, profile, clock, send, random)
        self.hardware.port_listener = self._port_set
        self.services.expect(ManagementClass.SUBN_ADM, self._answered)

    # --- management ---------------------------------------------------------------------------------------

    def join_transit(self, number: int, transit: Transit) -> None:
        """Manage a port whose cable leads to another router."""
        self._transit[number] = transit
        if self.agent.port_info(number).port_state == PortState.INIT:
            self._clock.call_at(self._clock.now(), lambda: self._manage(number))

    def _manage(self, number: int) -> None:
        """What a subnet manager does to a port that has come up: addresses, sizes, ARMED, ACTIVE."""
        info, transit = self.agent.port_info(number), self._transit[number]
        if info.port_state != PortState.INIT:
            return
        wanted = replace(
            info,
            lid=transit.lid,
            master_sm_lid=transit.lid,
            gid_prefix=transit.prefix,
            neighbor_mtu=info.mtu_cap,
            operational_vls=info.vl_cap,
            port_physical_state=0,
        )
        for state in (0, PortState.ARMED, PortState.ACTIVE):
            data = replace(wanted, port_state=state).pack()
            smp = lid_routed_smp(Method.SET, AttributeId.PORT_INFO, number, data=data)
            self.agent.receive(smp, number)

    def _port_set(self, number: int, info: PortInfo) -> None:
        port = self.router.ports.get(number)
        if not isinstance(port, RouterPort):
            return
        if number in self._transit and info.port_state == PortState.INIT:
            self._clock.call_at(self._clock.now(), lambda: self._manage(number))
        was_active = port.active
        self.router.configure(
            number,
            prefix=info.gid_prefix.to_bytes(8, "big"),
            lid=info.lid,
            lmc=info.lmc,
            mtu=MTU_OF_CODE.get(info.neighbor_mtu, 256),
            active=info.port_state == PortState.ACTIVE,
        )
        if port.active and not was_active:
            self._came_up(number, info)
        elif port.active and number in self._clients:
            self._clients[number].sa = MadAddress(info.master_sm_lid, sl=info.master_sm_sl)
        elif not port.active:
            self._groups.pop(number, None)
            self._forget(number)

    def _came_up(self, number: int, info: PortInfo) -> None:
        if number in self._transit:
            self._clock.call_at(self._clock.now(), self.exchange.start)
            return
        self._clients[number] = SaClient(
            partial(self.services.send_from, number),
            self._clock,
            self._random,
            MadAddress(info.master_sm_lid, sl=info.master_sm_sl),
        )
        self._clock.call_at(self._clock.now(), lambda: self._join(number))

    def _answered(self, source: MadAddress, mad: bytes) -> None:
        client = self._clients.get(self.services.port)
        if client is not None:
            client.receive(source, mad)

    def _join(self, number: int) -> None:
        """Become a member of the group of all routers of the subnet, which the first one makes."""
        port = self.router.ports[number]
        if not isinstance(port, RouterPort) or not port.active or number in self._groups:
            return
        pending = self._clients[number].join(
            ALL_ROUTERS, port.gid, qkey=ROUTERS_QKEY, pkey=0xFFFF, sl=0, tclass=0, flow_label=0
        )
        pending.when_done(partial(self._joined, number))

    def _joined(self, number: int, pending: datagrams.Pending[MCMemberRecord]) -> None:
        if pending.error is not None:
            # The administration has not seen this port active yet, or there is no multicast.
            self._clock.call_at(self._clock.now() + JOIN_AGAIN_NS, lambda: self._join(number))
            return
        self._groups[number] = pending.result().mlid
        self._clients[number].remember_paths()
        self.exchange.start()

    def _forget(self, number: int) -> None:
        for key in [key for key in self._answers if key[0] == number]:
            del self._answers[key]

    # --- where a packet goes ------------------------------------------------------------------------------

    def _resolve(self, number: int, gid: bytes) -> Hop | Pending | None:
        if number in self._transit:
            return Hop(self._transit[number].peer_lid)
        if gid == ALL_ROUTERS:
            mlid = self._groups.get(number)
            return None if mlid is None else Hop(mlid)
        key = (number, gid)
        if key in self._answers:
            return self._answers[key]
        client, port = self._clients.get(number), self.router.ports[number]
        if client is None or not isinstance(port, RouterPort):
            return None
        if key not in self._asked:
            self._asked.add(key)
            client.path(sgid=port.gid, dgid=gid).when_done(partial(self._found, key))
        return self._answers.get(key, PENDING)  # a path that is remembered has answered meanwhile

    def _found(self, key: tuple[int, bytes], pending: datagrams.Pending[PathRecord]) -> None:
        self._asked.discard(key)
        if pending.error is None:
            record = pending.result()
            self._answers[key] = Hop(record.dlid, record.sl, MTU_OF_CODE.get(record.mtu, 256))
        else:
            self._answers[key] = None
        # An answer holds for a while only: hosts come, go, and get other LIDs.
        self._clock.call_at(self._clock.now() + PERIOD_NS, partial(self._expire, key))
        self.router.resolved(*key)

    def _expire(self, key: tuple[int, bytes]) -> None:
        self._answers.pop(key, None)

    # --- packets ------------------------------------------------------------------------------------------

    def deliver(self, port: int, packet: bytes, handle: int) -> None:
        """A packet on a data lane came out of the core at one of the router's ports."""
        self.attachment.deliver(port, packet, handle)

    def room(self, port: int, lanes: int) -> None:
        """The core has room at one of its ports again, on these lanes (bits)."""
        self.attachment.report(3, port, lanes)

    def stop(self) -> None:
        """Fall silent: the router was switched off."""
        self.exchange.stop()
