"""A fabric in real time, or the part of one that is in this process.

`RealFabric` is `fabric_base.FabricBase` driven by the monotonic clock.  Cables to nodes that are in other processes
carry their flits in datagrams (`link_end`).  One process listens: it has the switches, the routers and the subnet
managers, and tells the others what they need to know (`hello`).  Each of the others has a host, and joins (`join`).
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from random import Random, SystemRandom
from typing import Self

from verbena import _pure
from verbena.adapter.attributes import DeviceAttributes
from verbena.errors import InvalidAttributeError, SystemLimitError
from verbena.fabric.assembly import FabricOptions
from verbena.fabric.topology import Link, NodeKind, PortId, Topology
from verbena.management.datagrams import MadAddress
from verbena.management.store import TopologyStore
from verbena.management.subnet_manager.config import SubnetManagerConfig
from verbena.runtime.capture import Captures, FabricCapture
from verbena.runtime.core_loop import CoreLoop
from verbena.runtime.core_ports import CorePorts
from verbena.runtime.coupling import Couplings
from verbena.runtime.external_cables import ExternalCables
from verbena.runtime.fabric_base import FabricBase
from verbena.runtime.fabric_node import FabricNode
from verbena.runtime.link_end import LinkTimes
from verbena.runtime.real_driver import RealFabricDriver
from verbena.runtime.service import Service
from verbena.transport.kinds import AckPolicy
from verbena.verbs.context import Context

REAL_OPTIONS = FabricOptions(buffer_bytes=128 << 10)
"""A link between processes is long: more must fit into its buffers."""
START_S = 60.0
ACTIVE = 4
WRITE_EVERY_NS = 200_000_000


class RealFabric(FabricBase):
    """Nodes of a fabric that are in this process, in real time.  A context manager.

    local: the nodes that are here; None: all.  sock: a bound datagram socket for the cables that leave; closed at the
    end.  times: of these cables.  managers: as for `Fabric`, of the nodes here.  The other arguments are those of
    `FabricBase`.  What changes the fabric may be called from any thread, but not with an adapter's lock held.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        local: Collection[str] | None = None,
        sock: socket.socket | None = None,
        times: LinkTimes | None = None,
        seed: int | None = None,
        options: FabricOptions | None = None,
        managers: Sequence[str] | None = (),
        config: SubnetManagerConfig | None = None,
        store: TopologyStore | None = None,
        flits: bool = True,
    ) -> None:
        _pure.say_once()
        self.cables = ExternalCables(times or LinkTimes())
        super().__init__(
            topology,
            seed=SystemRandom().getrandbits(63) if seed is None else seed,
            options=options or REAL_OPTIONS,
            flits=flits,
            config=config,
            store=store,
            local=local,
            outside=self.cables,
        )
        self._seeded = seed is not None
        self._couplings = Couplings(self.core)
        self.loop = CoreLoop(
            self.core, sock, self._deliver, self._report, self._couplings, lambda: self.tap is not None
        )
        self.cables.begin(self.loop, self.assembly)
        self._captures = Captures(self.assembly, self.loop.held)
        self.clock = self.loop.clock
        self._make_nodes(self.clock)
        if managers is not None:
            self._make_managers(managers or self._default_managers())
        self.drivers: dict[str, RealFabricDriver] = {}
        self._started = False
        self._open = True

    def _default_managers(self) -> list[str]:
        """In each subnet the first switch that is here, or, where there is none, the first host."""
        found = []
        for part in self.topology.subnets():
            here = [node for node in self.topology.nodes.values() if node.name in part & self.nodes.keys()]
            switches = [node.name for node in here if node.kind is NodeKind.SWITCH]
            hosts = [node.name for node in here if node.kind is NodeKind.CA]
            found += (switches or hosts)[:1]
        return found

    # --- beginning and end --------------------------------------------------------------------------------

    def start(self, timeout: float = START_S) -> None:
        """Begin; wait until the subnet managers that are here have brought up what they see.

        Raises `SystemLimitError` if that takes longer than `timeout` seconds.
        """
        if not self._started:
            self._started = True
            self.loop.start()
        with self.loop.held():
            for manager in self.managers.values():
                if not manager.running:
                    manager.start()
        if not self.wait_until(lambda: self.settled, timeout):
            raise SystemLimitError(
                f"the subnet managers have not brought the fabric up within {timeout:g} seconds"
            )

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> bool:
        """Wait, for `timeout` seconds at most, until `ready()`, which is asked with the core's lock held."""
        end = time.monotonic() + timeout
        while True:
            with self.loop.held():
                if ready():
                    return True
            if time.monotonic() >= end or not self._open:
                return False
            time.sleep(0.005)

    def is_active(self, name: str) -> bool:
        """Has a host's first port that has a cable been configured?  With the core's lock held."""
        agent = self.nodes[name].agent
        ports = range(1, self.topology.nodes[name].ports + 1)
        return any(int(agent.port_info(port).port_state) == ACTIVE for port in ports)

    def close(self) -> None:
        """Stop all; links to other processes go down at once."""
        if not self._open:
            return
        self._open = False
        self._captures.close()
        with self.loop.held():
            for manager in self.managers.values():
                if manager.running:
                    manager.stop()
            self.cables.detach(list(self.cables.cables))
        self.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- hosts --------------------------------------------------------------------------------------------

    def open_device(
        self,
        name: str,
        *,
        limits: DeviceAttributes | None = None,
        window_bytes: int = 1 << 20,
        ack_policy: AckPolicy = AckPolicy.COALESCED,
        timeout: float = START_S,
    ) -> Context:
        """The channel adapter of a host that is in this process.  The fabric is started first, if it is not.

        Waits until a subnet manager has configured a port of it; raises `SystemLimitError` if that takes longer than
        `timeout` seconds, or if the adapter is open already; `InvalidAttributeError` for what is no host.
        """
        self._host(name)
        self.start(timeout)
        if not self.wait_until(lambda: self.is_active(name), timeout):
            raise SystemLimitError(
                f"no subnet manager has configured {name} within {timeout:g} seconds: is its cable plugged in?"
            )
        service = Service(name)
        random = Random(f"{self.seed} adapter {name}") if self._seeded else SystemRandom()
        with self.loop.held():
            node = self._host(name)
            adapter = self._make_adapter(
                node, service, random, limits, window_bytes, ack_policy, threading.RLock()
            )
            ports = self._core_ports(adapter, node)
            driver = RealFabricDriver(adapter, service, self.loop, ports)
            ports.join(driver.tell)
            driver.at_end(lambda: self._release(name, ports))
            self.drivers[name] = driver
            self._ride(node, adapter, driver, ports)
            self.loop.riders.append(driver)
        service.serve(adapter)
        context = Context(adapter, driver)
        self._serve(node, context)
        return context

    def _asked_itself(self, node: FabricNode, source: MadAddress, mad: bytes) -> None:
        """Who asks has the adapter's lock, and answering needs the core's: the loop does it."""
        self.clock.call_at(0, lambda: node.services.request(source, mad))

    def _release(self, name: str, ports: CorePorts) -> None:
        with self.loop.held():
            ports.part()
            self._closed(name)
            del self.drivers[name]

    def attend(self) -> None:
        """The calling thread will call `attended` soon: what becomes visible by its doing needs no other thread."""
        self.loop.attendant = threading.get_ident()

    def attended(self) -> None:
        """Hand the adapters' events to those who wait for them, in this thread.  With no lock held."""
        loop = self.loop
        while loop.reporting:
            reporting, loop.reporting = loop.reporting, []
            for driver in reporting:
                driver.look()
        loop.attendant = 0

    # --- while it runs ------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        """Nanoseconds since the start, without those in which the process did not run."""
        return self.clock.now()

    def pull(self, port: PortId | str) -> Link:
        with self.loop.held():
            return super().pull(port)

    def plug(self, link: Link) -> Link:
        with self.loop.held():
            return super().plug(link)

    def add(self, name: str) -> None:
        with self.loop.held():
            super().add(name)

    def power_off(self, name: str) -> None:
        with self.loop.held():
            super().power_off(name)

    def power_on(self, name: str) -> None:
        with self.loop.held():
            super().power_on(name)

    def capture(self, path: Path | str, ports: Sequence[PortId | str]) -> FabricCapture:
        with self.loop.held():
            if not self._captures:
                self.clock.call_at(self.now + WRITE_EVERY_NS, self._write_captures)
            return super().capture(path, ports)

    def _epoch_ns(self) -> int:
        return time.time_ns() - self.now

    def _write_captures(self) -> None:
        """What was captured shall not grow in memory."""
        if self._captures:
            self._captures.flush()
            self.clock.call_at(self.now + WRITE_EVERY_NS, self._write_captures)


def parse_address(text: str) -> tuple[str, int]:
    """``127.0.0.1:18600`` or ``[::1]:18600``; raises `InvalidAttributeError`."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not int(port) <= 65_535:
        raise InvalidAttributeError(f"{text!r} is no address: write for example 127.0.0.1:18600")
    return host.strip("[]") or "127.0.0.1", int(port)
