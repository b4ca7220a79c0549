"""Runs an adapter on a fabric's core in real time."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.clock import Clock
from verbena.runtime.core_loop import CoreLoop
from verbena.runtime.core_ports import CorePorts
from verbena.runtime.descriptors import ServedWaiting
from verbena.runtime.service import Service


class RealFabricDriver(ServedWaiting):
    """Implements `verbs.driver.Driver`, `core_loop.Rider` and `fabric_base.FabricDriver`."""

    def __init__(
        self,
        adapter: ChannelAdapter,
        service: Service,
        loop: CoreLoop,
        ports: CorePorts,
    ) -> None:
        super().__init__(service)
        self.clock: Clock = service
        self._adapter = adapter
        self._engine = adapter.engine
        self._loop = loop
        self._ports = ports
        self._at_end: list[Callable[[], None]] = []
        self._open = True
        self.kick = loop.kick
        self.progress = loop.kick
        adapter.on_work = loop.kick

    # --- with the core's lock -----------------------------------------------------------------------------

    def work(self) -> int:
        engine, now = self._engine, time.monotonic_ns()
        with engine:
            if not self._open:
                return 0
            engine.tick(now)
            self._ports.send(now)
            when: int = engine.tick(now)
            self._adapter.send_messages()
        self.tell()
        return when

    def look(self) -> None:
        """Look at what the adapter reports in this thread, which holds no lock."""
        if self._open and self._engine.has_reports():
            self._adapter.dispatch()

    def tell(self) -> None:
        if not self._open or not self._engine.has_reports():
            return
        if self._loop.attendant == threading.get_ident():
            self._loop.reporting.append(self)
        else:
            os.eventfd_write(self._service.report_fd, 1)

    def arrived(self, port: int, packet: bytes) -> None:
        self._ports.deliver(port, packet, time.monotonic_ns())

    def room(self, port: int) -> None:
        self._ports.room(port)

    def port_changed(self) -> None:
        self._service.wake()

    # --- with no lock -------------------------------------------------------------------------------------

    def at_end(self, function: Callable[[], None]) -> None:
        """Call `function`, without any lock, when the adapter has been closed."""
        self._at_end.append(function)

    def wait_cq(self, index: int, timeout_ns: int | None) -> bool:
        return self._loop.wait(lambda: bool(self._engine.has_entries(index)), timeout_ns)

    def refresh_counters(self) -> None:
        """They are always up to date."""

    def close(self) -> None:
        self._loop.flush()
        with self._loop.held():
            self._open = False
            with contextlib.suppress(ValueError):
                self._loop.riders.remove(self)
        self._service.end()
        for function in self._at_end:
            function()

    def abandon(self) -> None:
        """`close` in the child of a fork: the sockets are the parent's, and nothing is sent."""
        self._open = False
        self._engine.renew_lock()
        self._service.abandon()
        self._forget_descriptors()
        self._loop.abandon()
