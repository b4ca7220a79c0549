"""A virtual switch in real time: one loop that serves the drivers of its ports.

A **driver** joins a port of the switch to something outside: shared memory, a socket, a TAP device.  It has its frames
where they are and moves them when the loop asks it to; it owns no thread.  To write one, implement `PortDriver`:

1. `attach` is called once with the `SwitchPort`.  `port.switch.engine` and `port.number` are there for compiled code;
   everything else uses `port.send` (False: the frame was not taken, keep it and offer it again), `port.arrive` (for
   what cannot wait: it is dropped and counted when there is no room) and `port.receive(sleep=False)`.
2. `feed` moves frames in, `drain` moves frames out, each at most so many; both return how many they moved, never wait,
   and never raise for what the other side did: what is wrong is dropped and counted, what cannot go on sets `closed`.
   A producer that can be stopped is stopped by not reading from it while `port.send` says False.
3. `flush` is called after each round in which something was moved: tell the other side now.
4. `may_sleep` says that there is nothing to do until one of `filenos` is readable.  It must look again *after* it asked
   to be woken.  A driver whose frames the switch does not take may sleep: the loop goes round when there is room again.
5. `counters`: what was lost on the other side (a kernel's interface statistics), told as the other side's.
6. `close` gives everything back.

The loop runs rounds while there is something to do, spins for a moment, and then sleeps in the kernel.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from verbena.errors import InvalidAttributeError
from verbena.vswitch.config import PortConfig, SwitchConfig
from verbena.vswitch.switch import SwitchPort, VirtualSwitch

BATCH = 4096
SPINS = 2
AGE_EVERY_NS = 1_000_000_000


class PortDriver(Protocol):
    """What joins a port of a switch to the outside world; see above."""

    @property
    def closed(self) -> bool:
        """Has the other side gone, or broken what they share?"""

    def attach(self, port: SwitchPort) -> None:
        """This is its port."""

    def feed(self, most: int) -> int:
        """Frames from outside into the switch."""

    def drain(self, most: int) -> int:
        """Frames from the switch to the outside."""

    def flush(self) -> None:
        """Something was moved: wake the other side if it sleeps."""

    def may_sleep(self) -> bool:
        """Is there nothing to do until one of the descriptors is readable?"""

    def woken(self) -> None:
        """The loop goes on."""

    def filenos(self) -> Sequence[int]:
        """Descriptors that become readable when there is something to do."""

    def counters(self) -> dict[str, int]:
        """What the other side says of itself."""

    def close(self) -> None:
        """Give everything back."""


class MonotonicClock:
    """Real time for a switch: its loop asks for the time and calls what is due."""

    def __init__(self) -> None:
        self._due: list[_Due] = []

    def now(self) -> int:
        return time.monotonic_ns()

    def call_at(self, when_ns: int, function: Callable[[], None]) -> _Due:
        due = _Due(when_ns, function)
        self._due.append(due)
        return due

    def run_due(self) -> int | None:
        """Call what is due; nanoseconds until the next one, None: there is none.

        0: something was called, so there may be work for the drivers again.
        """
        now = self.now()
        called = False
        for due in sorted((d for d in self._due if d.when_ns <= now), key=lambda d: d.when_ns):
            self._due.remove(due)
            if not due.cancelled:
                due.function()
                called = True
        if called:
            return 0
        self._due = [d for d in self._due if not d.cancelled]
        return min((d.when_ns - now for d in self._due), default=None)


class _Due:
    def __init__(self, when_ns: int, function: Callable[[], None]) -> None:
        self.when_ns, self.function, self.cancelled = when_ns, function, False

    def cancel(self) -> None:
        self.cancelled = True


class SwitchLoop:
    """A switch, its drivers, and the thread that serves them.

    Use it as a context manager, or call `start` and `close`; `run` serves in the calling thread instead.  A driver
    whose other side has gone is taken out, its port removed, and `on_gone` called with its name.
    """

    def __init__(
        self, config: SwitchConfig | None = None, *, on_gone: Callable[[str], None] | None = None
    ) -> None:
        self.clock = MonotonicClock()
        self.switch = VirtualSwitch(config, self.clock)
        self.drivers: dict[str, PortDriver] = {}
        self.lock = threading.RLock()
        self.rounds = self.sleeps = 0
        self._on_gone = on_gone or (lambda _: None)
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._poll = select.poll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.POLLIN)
        self._aged = self.clock.now()
        self._waiting = 0

    def __enter__(self) -> SwitchLoop:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, driver: PortDriver, config: PortConfig, *, physical: bool = False) -> SwitchPort:
        """A port with a driver; may be called while the loop runs."""
        with self._locked():
            port = self.switch.add_port(config, physical=physical)
            driver.attach(port)
            self.drivers[config.name] = driver
            for descriptor in driver.filenos():
                self._poll.register(descriptor, select.POLLIN)
            return port

    def remove(self, name: str) -> None:
        """Take a port out, with its driver."""
        with self._locked():
            driver = self.drivers.pop(name, None)
            if driver is None:
                raise InvalidAttributeError(f"there is no port {name} with a driver")
            for descriptor in driver.filenos():
                with contextlib.suppress(KeyError):
                    self._poll.unregister(descriptor)
            self.switch.remove_port(name)
            driver.close()

    @contextlib.contextmanager
    def _locked(self) -> Any:
        """The switch, for a thread that is not the loop's: the loop lets go of it as soon as it is asked to."""
        self._waiting += 1
        os.eventfd_write(self._wake, 1)
        try:
            with self.lock:
                yield self.switch
        finally:
            self._waiting -= 1

    def status(self) -> dict[str, Any]:
        """The switch's status, and what the drivers tell of their other sides."""
        with self._locked():
            found = self.switch.status()
            found["drivers"] = {name: driver.counters() for name, driver in self.drivers.items()}
            found["loop"] = {"rounds": self.rounds, "sleeps": self.sleeps}
            return found

    def start(self) -> None:
        """Serve in a thread of its own."""
        if self._thread is None:
            self._thread = threading.Thread(target=self.run, name="verbena-vswitch", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the loop, remove all ports, give everything back."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for name in list(self.drivers):
            self.remove(name)
        os.close(self._wake)

    def run(self) -> None:
        """Serve until `close`."""
        idle = 0
        while not self._stopping:
            if self._waiting:
                time.sleep(0)
            with self.lock:
                moved = self._round()
                idle = 0 if moved else idle + 1
                rest = idle >= SPINS and all(d.may_sleep() for d in self.drivers.values())
                due = self.clock.run_due() if rest else None
            if not rest:
                if idle:
                    os.sched_yield()
                continue
            self.sleeps += 1
            timeout = 1000 if due is None else min(1000, max(0, due // 1_000_000))
            self._poll.poll(timeout)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            with self.lock:
                for driver in self.drivers.values():
                    driver.woken()

    def _round(self) -> int:
        """Serve every driver once; returns how many frames moved."""
        self.rounds += 1
        moved = 0
        for driver in self.drivers.values():
            count = driver.feed(BATCH)
            if count:
                self.switch.dispatch()
            moved += count
        for driver in self.drivers.values():
            moved += driver.drain(BATCH)
        self.switch.dispatch()
        for driver in self.drivers.values():
            driver.flush()
        for name in [n for n, d in self.drivers.items() if d.closed]:
            self.remove(name)
            self._on_gone(name)
        if self.clock.run_due() == 0:
            moved += 1
        if self.switch.config.learning and self.clock.now() - self._aged > AGE_EVERY_NS:
            self._aged = self.clock.now()
            self.switch.age()
        return moved
