"""A fabric in virtual time: hosts, switches and routers, managed as a real one is.

`Fabric` builds what a `Topology` describes, gives each node its management agent, and runs a subnet manager on one host
of each subnet (more, for stand-by).  Programs open the hosts' adapters and run in the fabric's time; cables can be
pulled and nodes switched off meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.fabric.assembly import Assembly
from verbena.runtime.core_ports import CorePorts
from verbena.runtime.virtual import EngineDriver
from verbena.runtime.virtual_time import VirtualClock

LINK_UP, LINK_DOWN, ROOM = 1, 2, 3  # reports of a core
VL15 = 15


class CoreEvents:
    """A core's events in a `VirtualClock`.  Implements `virtual_time.EventSource`.

    deliver(port, packet, in_port, handle) and report(kind, port) are called with what becomes visible.
    """

    def __init__(
        self,
        assembly: Assembly,
        deliver: Callable[[int, bytes, int, int], None],
        report: Callable[[int, int], None],
    ) -> None:
        self._core = assembly.core
        self._deliver = deliver
        self._report = report

    def next_time(self) -> int | None:
        when = self._core.next_time()
        return None if when < 0 else when

    def run(self, until_ns: int) -> int:
        self._core.run(until_ns)
        return self._core.now

    def dispatch(self) -> bool:
        delivered = self._core.deliveries()
        for _, port, packet, in_port, handle, _ in delivered:
            self._deliver(port, packet, in_port, handle)
        reports = self._core.reports()
        for kind, port, *_ in reports:
            self._report(kind, port)
        return bool(delivered or reports)


class FabricDriver(EngineDriver):
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
