"""The subnet manager (document 000:78-80; IBA vol. 1, 14.4).

A heavy sweep discovers the subnet, and if this manager is master brings it to what the configuration wants, stage by
stage: LIDs, links, partitions, lanes, forwarding tables, port states.  Each stage's SMPs are on the way many at once;
the next begins when all are answered or given up.  Light sweeps only ask whether anything has changed.  Traps start a
heavy sweep soon; several at once, one.

Nothing here waits: SMPs and timers come in, SMPs go out.  `subnet` is the picture of the last finished sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from itertools import chain

from verbena.clock import Clock, Timer
from verbena.errors import InvalidAttributeError, VerbenaError
from verbena.fabric.routing import Routing
from verbena.management.names import NodeNames
from verbena.management.smi import SmpPort
from verbena.management.store import StoredEvent, StoredTopology, TopologyStore
from verbena.management.subnet import Subnet, SubnetPort
from verbena.management.subnet_manager.config import SubnetManagerConfig
from verbena.management.subnet_manager.discovery import Discovery
from verbena.management.subnet_manager.events import Statistics, SubnetEvent, SubnetEventKind
from verbena.management.subnet_manager.group_writer import GroupWriter
from verbena.management.subnet_manager.lids import LidTable
from verbena.management.subnet_manager.light_sweep import LightSweep
from verbena.management.subnet_manager.pictures import assign_lids, carry_over, in_service
from verbena.management.subnet_manager.programming import Programmer
from verbena.management.subnet_manager.roles import Roles
from verbena.management.subnet_manager.routing import EngineRouter, Router, Tables
from verbena.management.subnet_manager.smp_client import Question, SmpClient, ask
from verbena.management.subnet_manager.traps import TrapReceiver
from verbena.wire.mad import MAD_SIZE, Method
from verbena.wire.smp import AttributeId
from verbena.wire.smp_attributes import PortState, SmState

_Kind = SubnetEventKind


class SubnetManager:
    """One subnet manager on one port.

    port: how SMPs are sent (`SubnetManagementInterface.attach`).  guid: of that port.  port_number: of an adapter; 0
    on a switch.  router: makes forwarding tables; by default the configuration's engine.  on_event: told of each
    `SubnetEvent`.
    """

    def __init__(
        self,
        port: SmpPort,
        guid: int,
        clock: Clock,
        config: SubnetManagerConfig | None = None,
        *,
        port_number: int = 1,
        router: Router | None = None,
        store: TopologyStore | None = None,
        on_event: Callable[[SubnetEvent], None] | None = None,
    ) -> None:
        self.config = config = config or SubnetManagerConfig()
        self.guid = guid
        self.statistics = Statistics()
        self.subnet: Subnet | None = None
        self.lids = LidTable(config.first_lid, config.last_lid)
        self.names = NodeNames()
        self.groups: dict[int, frozenset[int]] = {}
        self.events: list[SubnetEvent] = []
        """Of the sweep that is under way, or since the last."""
        self._port = port
        self._port_number = port_number
        self._clock = clock
        self._router = router or EngineRouter(config.engine, config.lanes, config.engine_options)
        self._store = store
        self._listeners = [on_event] if on_event is not None else []
        self._client = SmpClient(port, clock, config, self.statistics, guid)
        self._writer = GroupWriter(self._client, self._repair)
        self._roles = Roles(self, self._client, port, clock)
        self._traps = TrapReceiver(self, port)
        self._discovery: Discovery | None = None
        self._programmer: Programmer | None = None
        self._tables: Tables | None = None
        self._sweeping = False
        self._again = False
        self._faults = 0
        self._imperfect = 0
        self._reported: set[str] = set()
        self._seen: set[str] = set()
        self._known_conflicts: dict[int, str] = {}
        self._new_master = True
        self._began_ns = 0
        self._timer: Timer | None = None
        self._soon: Timer | None = None
        self._running = False

    @property
    def routing(self) -> Routing | None:
        """What the routing engine made last; None before, and with a router of another kind."""
        return self._router.routing if isinstance(self._router, EngineRouter) else None

    # --- from outside -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; raises `InvalidAttributeError` if two configured LIDs are alike or out of range."""
        for guid, (lid, lmc) in self.config.lids.items():
            self.lids.reserve(guid, lid, lmc)
        if self._store is not None:
            stored = {g: v for g, v in self._store.load_lids().items() if g not in self.config.lids}
            for problem in self.lids.load(stored):
                self.report(_Kind.ROUTING, f"the store is wrong: {problem}")
            self._store.save_configuration(self.settings())
        self._running = self._new_master = True
        self._roles.begin()
        self._port.set_receiver(self._receive)
        self.sweep()

    def stop(self) -> None:
        """Fall silent: nothing is sent or answered any more."""
        self._running = False
        self._abandon()
        self._roles.end()
        for timer in (self._timer, self._soon):
            if timer is not None:
                timer.cancel()
        self._timer = self._soon = None
        self._sweeping = False
        self._port.set_receiver(lambda mad, slid: None)

    @property
    def state(self) -> SmState:
        """Discovering, standby, master or not active."""
        return self._roles.state

    @property
    def is_settled(self) -> bool:
        """Nothing is under way, or waits to begin soon."""
        return not self._sweeping and self._soon is None and not self._writer.busy

    def settings(self) -> dict[str, str]:
        """The configuration in words, keys left out, as the store keeps it."""
        secret = ("mkey", "sm_key")
        return {
            f.name: str(getattr(self.config, f.name)) for f in fields(self.config) if f.name not in secret
        }

    def listen(self, on_event: Callable[[SubnetEvent], None]) -> None:
        """Tell this one of events, too."""
        self._listeners.append(on_event)

    def sweep(self) -> None:
        """A heavy sweep: now, or after the one that is under way."""
        if not self._running or self._roles.state in (SmState.STANDBY, SmState.NOT_ACTIVE):
            return
        if self._sweeping:
            self._again = True
            return
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        self._start_sweep()

    def sweep_soon(self) -> None:
        """A heavy sweep when what is happening has settled."""
        if self._soon is None and self._running:
            self._soon = self._clock.call_at(self._clock.now() + self.config.settle_ns, self._sweep_now)

    def _sweep_now(self) -> None:
        self._soon = None
        self.sweep()

    def set_groups(self, groups: Mapping[int, frozenset[int]]) -> None:
        """Multicast groups: port GUIDs of the members by multicast LID; the tables are written at once.

        Raises `InvalidAttributeError` for a LID that is not 0xC000 to 0xFFFE.
        """
        for lid in groups:
            if not 0xC000 <= lid <= 0xFFFE:
                raise InvalidAttributeError(f"{lid:#x} is no multicast LID: they are 0xc000 to 0xfffe")
        self.groups = dict(groups)
        if not self._sweeping:
            self._write_groups()

    def _write_groups(self) -> None:
        if self._programmer is not None and self.state is SmState.MASTER:
            self._writer.write(partial(self._programmer.multicast, self.groups))

    def _repair(self) -> None:
        """A switch has not taken a group: look at everything again, some times at once, then with the next look."""
        self._imperfect += 1
        if self._imperfect <= self.config.resweeps:
            self.sweep_soon()

    def _abandon(self) -> None:
        """Whatever has been asked is of no use any more."""
        self._client.abandon()
        self._writer.forget()

    def report(self, kind: SubnetEventKind, text: str, guid: int = 0, lid: int = 0, trap: int = 0) -> None:
        """Tell the listeners, and remember it for the store."""
        event = SubnetEvent(kind, self._clock.now(), text, guid, lid, trap)
        self.events.append(event)
        for listener in self._listeners:
            listener(event)

    # --- SMPs ---------------------------------------------------------------------------------------------------

    def _receive(self, mad: bytes, slid: int) -> None:
        """An SMP for a subnet manager.  Never raises."""
        if not self._running:
            return
        if len(mad) != MAD_SIZE or mad[0] != 1 or mad[2] != 1:
            self.statistics.malformed += 1
        elif mad[3] == Method.GET_RESPONSE:
            self._client.receive(mad)
        elif mad[3] == Method.TRAP:
            self._traps.receive(mad, slid)
        elif mad[3] in (Method.GET, Method.SET):
            self._roles.answer(mad, slid)
        else:
            self.statistics.malformed += 1

    # --- heavy sweep --------------------------------------------------------------------------------------------

    def _start_sweep(self) -> None:
        self._sweeping, self._again = True, False
        self._faults = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._abandon()  # a light sweep's, whose answers are of no use any more
        self.statistics.heavy_sweeps += 1
        self._began_ns = self._clock.now()
        self._discovery = Discovery(
            self._client,
            self._port_number,
            self.config.gid_prefix,
            self.subnet,
            self._roles.state is SmState.MASTER,
            self._count_malformed,
        )
        self._discovery.start()
        self._client.feed(iter(()), self._discovered)

    def _count_malformed(self) -> None:
        self.statistics.malformed += 1

    def _discovered(self) -> None:
        discovery = self._discovery
        if discovery is None or discovery.own is None:
            self._finish_sweep()
            return
        subnet = discovery.finish()
        self.statistics.discovery_ns = self._clock.now() - self._began_ns
        self._tell_problems(discovery)
        own = discovery.own.ports.get(0 if discovery.own.is_switch else self._port_number)
        if own is None or discovery.own.guid not in subnet.nodes:
            self._finish_sweep()
            return
        self._roles.meet(subnet, own, partial(self._decided, subnet, own))

    def _tell_problems(self, discovery: Discovery) -> None:
        for text in discovery.silent:
            self._faults += 1
            self._once(_Kind.NO_ANSWER, text)
        for guid, text in discovery.duplicates.items():
            self._once(_Kind.DUPLICATE_GUID, text, guid)
        for guid, text in discovery.conflicts.items():
            # A cable that was moved during the sweep looks like this, too, but not twice.
            if guid in self._known_conflicts:
                self._once(_Kind.DUPLICATE_GUID, text, guid)
            else:
                self._faults += 1
        self._known_conflicts = discovery.conflicts

    def _once(self, kind: SubnetEventKind, text: str, guid: int = 0) -> None:
        """Report what was not true in the last sweep already."""
        if text not in self._reported and text not in self._seen:
            self.report(kind, text, guid)
        self._seen.add(text)

    def _decided(self, subnet: Subnet, own: SubnetPort) -> None:
        """The other managers are known: go on as master, or stand by."""
        if self._roles.state is not SmState.MASTER:
            self.subnet = subnet
            self._sweeping = False
            self._roles.stand_by()
            return
        lids = self._assign(subnet, own)
        if own.guid not in lids:
            self._finish_sweep()
            return
        if self.subnet is not None and not self._new_master:
            carry_over(self.subnet, subnet)
        subnet.sm_lid = lids[own.guid][0]
        programmer = self._programmer = Programmer(
            subnet, self.config, own, self._new_master, self.statistics, self._failed, self._warn
        )
        self._run(
            [
                partial(programmer.addresses, lids),
                partial(self._route, subnet, programmer),
                programmer.links,
                partial(programmer.keys, self.config.partitions),
                programmer.lanes,
                self._forward,
                partial(programmer.multicast, self.groups),
                partial(programmer.states, PortState.INIT, PortState.ARMED),
                partial(programmer.states, PortState.ARMED, PortState.ACTIVE),
            ],
            partial(self._programmed, subnet),
        )

    def _run(self, stages: list[Callable[[], Iterator[Question]]], then: Callable[[], None]) -> None:
        if stages:
            self._client.feed(stages[0](), partial(self._run, stages[1:], then))
        else:
            then()

    def _failed(self, kind: SubnetEventKind, text: str) -> None:
        """The sweep was not perfect: it is repeated."""
        self._faults += 1
        self._once(kind, text)

    def _warn(self, text: str) -> None:
        self._once(_Kind.REFUSED, text)

    def _assign(self, subnet: Subnet, own: SubnetPort) -> dict[int, tuple[int, int]]:
        given, refused = assign_lids(subnet, own, self.lids, self.config.lmc)
        for port, text in refused:
            self._once(_Kind.NO_LID, f"{port}: {text}", port.guid)
        return given

    def _route(self, subnet: Subnet, programmer: Programmer) -> Iterator[Question]:
        """No SMPs: the LIDs are written, so the tables can be computed."""
        self.statistics.lids_ns = self._clock.now() - self._began_ns
        programmer.leave_out()
        subnet.index()
        try:
            self._tables = self._router(subnet)
        except VerbenaError as error:
            self._faults += 1
            self._tables = None
            self._once(_Kind.ROUTING, f"no routing: {error}")
        else:
            subnet.service_level = self._tables.service_level
            subnet.engine, subnet.lanes = self._tables.engine, self._tables.lanes
            for warning in self._tables.warnings:
                self._once(_Kind.ROUTING, warning)
        yield from ()

    def _forward(self) -> Iterator[Question]:
        if self._tables is not None and self._programmer is not None:
            yield from self._programmer.forwarding(self._tables.by_switch)

    def _programmed(self, subnet: Subnet) -> None:
        subnet.index()
        before, self.subnet = self.subnet, subnet
        self._new_master = False
        for guid, text in self.names.update(subnet).items():
            self._once(_Kind.DUPLICATE_NAME, text, guid)
        self._tell_services(before, subnet)
        self._finish_sweep()

    def _tell_services(self, before: Subnet | None, now: Subnet) -> None:
        old, new = in_service(before), in_service(now)
        for guid, port in old.items():
            if guid not in new:
                self.report(_Kind.OUT_OF_SERVICE, f"{port} is gone", guid, port.lid)
        for guid, port in new.items():
            if guid not in old:
                self.report(_Kind.IN_SERVICE, f"{port} has LID {port.lid:#x}", guid, port.lid)

    def _finish_sweep(self) -> None:
        self.statistics.sweep_ns = self._clock.now() - self._began_ns
        self._sweeping = False
        if self.state is SmState.MASTER and self.subnet is not None:
            self._write_groups()  # they may have changed since their stage
            self.report(
                _Kind.SWEPT, f"{len(self.subnet.nodes)} nodes, {sum(1 for _ in self.subnet.links())} links"
            )
            if self._store is not None:
                self._store.save(StoredTopology.of(self.subnet), self.lids.all())
        self._save_events()
        self._imperfect = self._imperfect + 1 if self._faults else 0
        self._reported, self._seen = self._seen, set()
        if self._again or 0 < self._imperfect <= self.config.resweeps:
            self.sweep_soon()
        else:
            self._look_later()
        self._roles.swept()

    def _save_events(self) -> None:
        if self._store is not None:
            self._store.add_events(
                StoredEvent(e.time_ns, e.kind.value, e.guid, e.lid, e.trap, e.text) for e in self.events
            )
        self.events = []

    # --- light sweep --------------------------------------------------------------------------------------------

    def _look_later(self) -> None:
        if self.config.sweep_interval_ns:
            when = self._clock.now() + self.config.sweep_interval_ns
            self._timer = self._clock.call_at(when, self._look)

    def _look(self) -> None:
        """A light sweep, or a heavy one if the last was not perfect."""
        self._timer = None
        if self.state is not SmState.MASTER or self.subnet is None or self._imperfect:
            self.sweep()
            return
        self.statistics.light_sweeps += 1
        light = LightSweep(self.subnet, self._port_number)
        self._client.feed(chain(light.questions(), self._roles.questions()), partial(self._looked, light))

    def _looked(self, light: LightSweep) -> None:
        if light.changed:
            self.sweep()
        elif not self._sweeping:
            self._look_later()

    def renew_lease(self, port: SubnetPort) -> None:
        """Show a port the right M_Key: the lease that a wrong one has started ends (14.2.4)."""
        self._client.put(ask(AttributeId.PORT_INFO, port.number, port.path, lambda status, data: None))

    # --- for the roles ------------------------------------------------------------------------------------------

    def become_master(self) -> None:
        """This manager has just become master: everything is looked at and written again."""
        self._new_master = True
        self.report(_Kind.STATE, "this subnet manager is master now")

    def step_down(self) -> None:
        """Another one is master: stop whatever is under way."""
        self._abandon()
        self._sweeping = self._again = False
        for timer in (self._timer, self._soon):
            if timer is not None:
                timer.cancel()
        self._timer = self._soon = None
        self.report(_Kind.STATE, "another subnet manager is master now")
