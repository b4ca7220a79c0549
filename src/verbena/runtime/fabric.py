"""A fabric in virtual time: hosts, switches and routers, managed as a real one is.

`Fabric` builds what a `Topology` describes, gives each node its management agent, and runs a subnet manager on one host
of each subnet (more, for stand-by).  Programs open the hosts' adapters and run in the fabric's time; cables can be
pulled and nodes switched off meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from verbena.adapter.attributes import DeviceAttributes
from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.errors import SystemLimitError
from verbena.fabric.assembly import Assembly, FabricOptions
from verbena.fabric.generators import generate_from
from verbena.fabric.topology import Topology
from verbena.management.store import TopologyStore
from verbena.management.subnet_manager.config import SubnetManagerConfig
from verbena.runtime.core_ports import CorePorts
from verbena.runtime.fabric_base import FabricBase
from verbena.runtime.virtual import EngineDriver
from verbena.runtime.virtual_time import VirtualClock, VirtualTime
from verbena.transport.kinds import AckPolicy
from verbena.verbs.context import Context

START_NS = 60_000_000_000


class CoreEvents:
    """A core's events in a `VirtualClock`.  Implements `virtual_time.EventSource`.

    deliver(port, packet, in_port, handle) and report(kind, port, detail) are called with what becomes visible.
    """

    def __init__(
        self,
        assembly: Assembly,
        deliver: Callable[[int, bytes, int, int], None],
        report: Callable[[int, int, int], None],
    ) -> None:
        self._core = assembly.core
        self._deliver = deliver
        self._report = report

    def next_time(self) -> int | None:
        when = self._core.next_time()
        return None if when < 0 else when

    def run(self, until_ns: int) -> int:
        self._core.run(until_ns)
        now: int = self._core.now
        return now

    def dispatch(self) -> bool:
        delivered = self._core.deliveries()
        for _, port, packet, in_port, handle, _ in delivered:
            self._deliver(port, packet, in_port, handle)
        reports = self._core.reports()
        for kind, port, detail in reports:
            self._report(kind, port, detail)
        return bool(delivered or reports)


class VirtualFabricDriver(EngineDriver):
    """Runs an adapter on the ports of a fabric's core."""

    def __init__(self, adapter: ChannelAdapter, clock: VirtualClock, ports: CorePorts) -> None:
        super().__init__(adapter, clock)
        self._ports = ports

    def _send(self) -> None:
        self._ports.send(self.clock.now())

    def arrived(self, port: int, packet: bytes) -> None:
        """A packet came out of the fabric at the core's port."""
        if self._open:
            self._ports.deliver(port, packet, self.clock.now())
            self.kick()

    def room(self, port: int) -> None:
        """A port takes packets again."""
        if self._open:
            self._ports.room(port)
            self.kick()

    def port_changed(self) -> None:
        """In virtual time whoever waits looks at every event."""


class Fabric(FabricBase, VirtualTime):
    """A fabric of hosts, switches and routers in virtual time.

    managers: names of the adapters (or switches) that run a subnet manager; by default the first host of each subnet.
    The other arguments are those of `FabricBase`.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        seed: int = 0,
        options: FabricOptions | None = None,
        flits: bool = True,
        managers: Sequence[str] = (),
        config: SubnetManagerConfig | None = None,
        store: TopologyStore | None = None,
    ) -> None:
        VirtualTime.__init__(self)
        FabricBase.__init__(
            self, topology, seed=seed, options=options, flits=flits, config=config, store=store
        )
        self._events = CoreEvents(self.assembly, self._deliver, self._report)
        self.clock.attach(self._events)
        self._make_nodes(self.clock)
        self._make_managers(managers or self._default_managers())

    @classmethod
    def generate(cls, shape: str, **options: Any) -> Fabric:
        """The fabric of a shape such as ``fat-tree k=4`` (see `fabric.generators`); options: as for `Fabric`."""
        return cls(generate_from(shape), **options)

    def _changed(self) -> None:
        self._events.dispatch()

    def start(self, timeout_ns: int = START_NS) -> None:
        """Let the subnet managers bring the fabric up; raises `SystemLimitError` if they do not within that time."""
        fresh = [manager for manager in self.managers.values() if not manager.running]
        for manager in fresh:
            manager.start()
        end = self.clock.now() + timeout_ns
        while not self.settled:
            following = self.clock.next_time()
            if following is None or following > end:
                raise SystemLimitError(
                    f"the subnet managers have not brought the fabric up within {timeout_ns / 1e9:g} simulated seconds"
                )
            self.clock.step(end)

    def open_device(
        self,
        name: str,
        *,
        limits: DeviceAttributes | None = None,
        window_bytes: int = 1 << 20,
        ack_policy: AckPolicy = AckPolicy.COALESCED,
    ) -> Context:
        """The channel adapter of a host, by the name of its node.  The fabric is brought up first, if it is not.

        Raises `SystemLimitError` for an adapter that is open already, `InvalidAttributeError` for what is no host.
        """
        node = self._host(name)
        self.start()
        adapter = self._make_adapter(
            node, self.clock, Random(f"{self.seed} adapter {name}"), limits, window_bytes, ack_policy
        )
        ports = self._core_ports(adapter, node)
        driver = VirtualFabricDriver(adapter, self.clock, ports)
        self._ride(node, adapter, driver, ports)
        context = Context(adapter, driver)
        context.on_close(lambda: self._closed(name))
        self._serve(node, context)
        return context
