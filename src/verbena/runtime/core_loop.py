"""Drives a fabric's core in real time: the monotonic clock, datagrams in, datagrams out, and who may do it.

**Locks.**  There are two kinds, and one rule.

* `CoreLoop.lock`, one for each core, protects the core, the topology, the link ends, the agents and the managers.  It
  is not recursive.  Who holds it may take an engine's lock.
* An engine's lock (``with adapter.engine``), one for each adapter, protects queue pairs, completion queues and
  connections.  Who holds it never waits for a core's lock: posting kicks the loop, and `drive` only *tries* the lock.
  If somebody else has it, that one goes round once more.

So no two threads can wait for each other.  What programs call to change the fabric takes the core's lock by `held`, and
may not be called with an engine's lock held (from a completion handler it may: those run in the service thread, with no
lock).  The locks of clocks and services are leaves: nothing is taken under them.

**Threads.**  The program's own thread drives while it posts, polls or waits for completions.  The loop's thread drives
when the program does not, and parks while it does, so that a datagram wakes one thread, not two.  Each adapter has a
service thread besides (`service`), which hands out events.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from verbena.fabric.core import FabricCore
from verbena.runtime.core_clock import CoreClock
from verbena.runtime.coupling import Couplings
from verbena.runtime.link_end import LARGEST_DATAGRAM, LinkEnd, token_of

log = logging.getLogger("verbena")

LINK_UP, LINK_DOWN, ROOM, PKEY_VIOLATION, FLITS_READY = 1, 2, 3, 4, 5  # reports of a core
BUFFER = 65_536
AT_ONCE = 32  # datagrams that are taken before anything else happens,
RECEIVE_NS = 10_000_000  # if that does not take longer than this
PARK_S = 0.0002
SPIN_NS = 50_000
LONGEST_SLEEP_NS = 100_000_000
AHEAD_NS = 20_000
SHORT_NS = 30_000  # sleeping takes longer than that
TURNS = 32  # of one call of `drive`, while there is more to do


class Rider(Protocol):
    """An adapter that lives on the core."""

    def look(self) -> None:
        """Look at what the adapter reports."""

    def tell(self) -> None:
        """See to it that somebody looks at what the adapter reports."""

    def work(self) -> int:
        """Send what the core takes, serve timers; returns when to come back, of the monotonic clock, 0: never."""


class Cable:
    """A link that leaves this process: a port of the core, the end that carries its flits, and where its peer is."""

    def __init__(self, port: int, end: LinkEnd, address: Any) -> None:
        self.port = port
        self.end = end
        self.address = address


class CoreLoop:
    """One core, its clock, its socket and its thread.

    deliver(port, packet, in_port, handle), report(kind, port, detail): what becomes visible, with the lock held.
    attendant: the thread that will look at the adapters' reports itself, after what it does now; 0: there is none;
    reporting: these adapters, by then.
    sock: for the links that leave this process; None: there are none.  couplings: of the adapters in this process.
    watched: does somebody want to see each packet?
    """

    def __init__(
        self,
        core: FabricCore,
        sock: socket.socket | None,
        deliver: Callable[[int, bytes, int, int], None],
        report: Callable[[int, int, int], None],
        couplings: Couplings | None = None,
        watched: Callable[[], bool] = lambda: False,
    ) -> None:
        self.core = core
        self._couplings = couplings
        self._watched = watched
        self.sock = sock
        self.lock = threading.Lock()
        self.counters: Counter[str] = Counter()
        self.cables: dict[int, Cable] = {}  # by token
        self.riders: list[Rider] = []
        self._by_port: dict[int, Cable] = {}
        self._deliver = deliver
        self._report = report
        self._ready: set[int] = set()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.clock = CoreClock(self.wake)
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._owner = 0  # the thread that holds the lock
        self._wanted = False
        self._more = False
        self._closed = False
        self.attendant = 0
        self.reporting: list[Rider] = []
        self._due = 0  # when the next turn is due, of the core's clock
        self._sleeps_until = 0
        self._driven = 0
        self._waiting = 0
        self._waiting_guard = threading.Lock()
        self._nobody_waits = threading.Event()
        self._nobody_waits.set()
        self._thread = threading.Thread(target=self._run, name="verbena fabric", daemon=True)

    # --- cables -------------------------------------------------------------------------------------------

    def add_cable(self, cable: Cable) -> None:
        """Take what comes for a cable.  With the lock held."""
        self.cables[cable.end.token] = cable
        self._by_port[cable.port] = cable

    def remove_cable(self, cable: Cable) -> None:
        """With the lock held."""
        self.cables.pop(cable.end.token, None)
        self._by_port.pop(cable.port, None)

    def send_datagram(self, datagram: bytes, address: Any) -> None:
        """Send; what the kernel does not take is lost, and counted: the link repairs that."""
        if self.sock is None:
            return
        try:
            self.sock.sendto(datagram, address)
        except BlockingIOError:
            self.counters["drop.tx_full"] += 1
        except OSError:
            self.counters["drop.tx_refused"] += 1

    # --- turns --------------------------------------------------------------------------------------------

    def drive(self, *, lightly: bool = False) -> None:
        """Let happen what is due, unless another thread is at it: that one then goes round once more.

        lightly: only what adapters send to each other, if no timer is due.
        """
        self._wanted = True
        left = TURNS
        while self._wanted and left and self.lock.acquire(blocking=False):
            self._owner = threading.get_ident()
            try:
                self._wanted = False
                if lightly and self._pump():
                    continue
                self._turn()
                if self._more:
                    self._wanted, left = True, left - 1
            finally:
                self._owner = 0
                self.lock.release()
        if self._sleeps_until > self._due:
            self.wake()

    def kick(self) -> None:
        """The program has posted something: it drives."""
        self._driven = time.monotonic_ns()
        self.drive(lightly=self.sock is None)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The core's lock, for calls from outside; afterwards what they led to happens.  Not with an engine's lock.

        In what the loop itself calls, such as a timer, the lock is held already.
        """
        if self._owner == threading.get_ident():
            yield
            return
        with self.lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = 0
        self.drive()

    def _pump(self) -> bool:
        """Let what the adapters here send each other arrive; False if there is more to do, for a whole turn.

        What arrives within `AHEAD_NS` arrives now: no thread can wait for so short a time.
        """
        clock, moment = self.clock, time.monotonic_ns()
        now = moment - clock.zero
        if self._couplings is None or self._closed or self._watched() or now >= min(self._due, clock.first):
            return False
        due, visible = self._couplings.pump(now + AHEAD_NS, moment)
        if visible:
            return False
        if due and due - clock.zero < self._due:
            self._due = due - clock.zero
        core = self.core.next_time()
        if 0 <= core < self._due:
            self._due = core
        return True

    def _turn(self) -> None:
        self._more = False
        if self._closed:
            return
        if self._due:
            self.clock.stand_still(self._due)
        self._advance()
        self._receive()
        self._advance()
        due = [time for rider in list(self.riders) if (time := rider.work())]
        if self._advance():
            self._more = True  # the adapters have got something, and have not been looked at since
        self._send()
        self._due = self._next(due)
        if self.sock is None and self._due - self.clock.now() < SHORT_NS:
            self._more = (
                True  # what is on the links of this process arrives before another thread would wake up
            )

    def _advance(self) -> bool:
        """Let the core and the timers catch up with the clock; did anything happen?"""
        core, now = self.core, self.clock.now()
        happened = False
        while True:
            core.run(now)
            visible = self._dispatch()
            happened |= visible
            if not visible and core.now >= now and not self.clock.run_due(now):
                return happened

    def _dispatch(self) -> bool:
        handed = self._couplings is not None and self._couplings.deliver(time.monotonic_ns())
        delivered = self.core.deliveries()
        for _, port, packet, in_port, handle, _ in delivered:
            self._guarded(self._deliver, port, packet, in_port, handle)
        reports = self.core.reports()
        for kind, port, detail in reports:
            if kind == FLITS_READY:
                self._ready.add(port)
            else:
                self._guarded(self._report, kind, port, detail)
        return bool(handed or delivered or reports)

    def _guarded(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception:
            log.exception("a call in the fabric's loop failed")

    def _receive(self) -> None:
        if self.sock is None:
            return
        end = time.monotonic_ns() + RECEIVE_NS
        for _ in range(AT_ONCE):
            try:
                size, source = self.sock.recvfrom_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                self.counters["drop.rx_refused"] += 1
                return
            self._arrived(self._view[:size], source)
            if time.monotonic_ns() > end:
                break
        self._more = True

    def _arrived(self, datagram: memoryview, source: Any) -> None:
        cable = self.cables.get(token_of(datagram))
        if cable is None:
            self.counters["drop.rx_garbage"] += 1
        elif source != cable.address:
            self.counters["drop.rx_sender"] += 1
        else:
            flits = cable.end.receive(datagram, self.clock.now())
            if flits is not None:
                self.core.put_flits(cable.port, flits)

    def _send(self) -> None:
        now = self.clock.now()
        ready, self._ready = self._ready, set()
        for port in ready:
            cable = self._by_port.get(port)
            if cable is None or cable.end.state.name != "UP":
                continue
            while flits := self.core.take_flits(port, LARGEST_DATAGRAM):
                cable.end.send_flits(flits, now)

    def _next(self, riders: list[int]) -> int:
        """When the next turn is due."""
        now = self.clock.now()
        due = [now + LONGEST_SLEEP_NS]
        due += [when - self.clock.monotonic(0) for when in riders]
        due += [when for cable in list(self.cables.values()) if (when := cable.end.tick(now))]
        if (core := self.core.next_time()) >= 0:
            due.append(core)
        if (timer := self.clock.next_time()) is not None:
            due.append(timer)
        return min(due)

    # --- waiting ------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have the loop's thread look around."""
        if not self._closed:
            os.eventfd_write(self._wake_fd, 1)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            if not self._nobody_waits.is_set():
                self._nobody_waits.wait(0.1)
            elif time.monotonic_ns() - self._driven < PARK_S * 1e9:
                time.sleep(PARK_S)
            else:
                self._guarded(self.drive)
                self._sleep(None, is_loop=True)

    def _sleep(self, deadline: int | None, *, is_loop: bool = False) -> None:
        """Until something is due or arrives.  deadline: of the monotonic clock."""
        due = self._due
        if is_loop:
            self._sleeps_until = due
            if self._due < due:
                self._sleeps_until = 0
                return
        left = due - self.clock.now()
        if deadline is not None:
            left = min(left, deadline - time.monotonic_ns())
        if not is_loop and self._waiting > 1:
            left = min(left, 1_000_000)  # another thread may take what this one waits for
        if left > SHORT_NS:
            self._select(left / 1e9, is_loop)
        self._sleeps_until = 0

    def _select(self, seconds: float, is_loop: bool) -> None:
        watched: list[Any] = [self._wake_fd] if is_loop else []
        if self.sock is not None:
            watched.append(self.sock)
        try:
            found = select.select(watched, (), (), seconds)[0]
        except ValueError:  # a descriptor above 1023: in milliseconds then
            poller = select.poll()
            for each in watched:
                poller.register(each, select.POLLIN)
            found = [fd for fd, _ in poller.poll(max(1, int(seconds * 1e3)))]
        if self._wake_fd in found:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)

    def wait(self, ready: Callable[[], bool], timeout_ns: int | None) -> bool:
        """Drive until `ready()`, or until the time is over; returns `ready()`."""
        start = time.monotonic_ns()
        deadline = None if timeout_ns is None else start + timeout_ns
        with self._waiting_guard:
            self._waiting += 1
            self._nobody_waits.clear()
        try:
            while True:
                self.kick()
                if self._closed or ready():
                    return ready()
                now = time.monotonic_ns()
                if deadline is not None and now >= deadline:
                    return False
                if now - start >= SPIN_NS:
                    self._sleep(deadline)
        finally:
            with self._waiting_guard:
                self._waiting -= 1
                if not self._waiting:
                    self._nobody_waits.set()

    # --- the end ------------------------------------------------------------------------------------------

    def flush(self, timeout_ns: int = 20_000_000) -> None:
        """Let leave what has been handed to the core."""
        end = time.monotonic_ns() + timeout_ns
        while time.monotonic_ns() < end:
            self.drive()
            with self.lock:
                if not self.core.statistics()["inside"]:
                    return
            time.sleep(PARK_S)

    def close(self) -> None:
        """Stop the thread; nothing is driven any more.  The socket is closed, too."""
        with self.lock:
            self._closed = True
        os.eventfd_write(self._wake_fd, 1)
        self._nobody_waits.set()
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join()
        limit = time.monotonic() + 0.5
        while self._waiting and time.monotonic() < limit:
            time.sleep(PARK_S)
        self._forget()

    def abandon(self) -> None:
        """`close` in the child of a fork, where the thread does not exist."""
        self._closed = True
        self.lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        os.close(self._wake_fd)
        if self.sock is not None:
            self.sock.close()
