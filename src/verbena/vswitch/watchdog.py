"""The watchdog: a dead receiver, or one that pauses for ever, does not freeze the network.

An output that holds frames and has not delivered one for `detect_ns` is declared dead: what it holds is dropped, and so
is what comes for it, each frame counted under ``dead_output``; inputs that waited for it go on.  It lives again when,
for `restore_ns`, its peer has paused nothing; each time it dies again without having taken a frame, that time doubles,
up to 64 fold, so that one which never reads holds the others up for a smaller and smaller share of time.  (The method
of the PFC watchdogs of data-centre switches; the document leaves it open.)  Each declaration is counted and announced.
"""

from __future__ import annotations

from collections.abc import Callable

from verbena.clock import Clock, Timer
from verbena.errors import InvalidAttributeError
from verbena.vswitch.kinds import CLASSES
from verbena.vswitch.switch import VirtualSwitch

MOST_DOUBLED = 6
Announce = Callable[[str, str], None]
"""Called with the port's name and ``dead`` or ``restored``."""


class Watchdog:
    """Watches the outputs of a switch, from `start` to `stop`."""

    def __init__(
        self,
        switch: VirtualSwitch,
        clock: Clock,
        announce: Announce,
        *,
        detect_ns: int = 200_000_000,
        restore_ns: int = 200_000_000,
    ) -> None:
        if detect_ns <= 0 or restore_ns <= 0:
            raise InvalidAttributeError("detect_ns and restore_ns are more than 0")
        self.detections = 0
        self.restorations = 0
        self.dead: set[str] = set()
        self._switch, self._clock, self._announce = switch, clock, announce
        self._detect_ns, self._restore_ns = detect_ns, restore_ns
        self._seen: dict[str, tuple[int, int]] = {}
        self._quiet: dict[str, int] = {}
        self._deaths: dict[
            str, tuple[int, int]
        ] = {}  # frames sent when it last died, how often without one between
        self._timer: Timer | None = None

    def start(self) -> None:
        """Look from now on, four times in each `detect_ns`."""
        if self._timer is None:
            self._timer = self._clock.call_at(self._clock.now() + self._period(), self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _period(self) -> int:
        return max(1, min(self._detect_ns, self._restore_ns) // 4)

    def _look(self) -> None:
        now = self._clock.now()
        for name in list(self._switch.ports):
            if name in self.dead:
                self._maybe_restore(name, now)
            else:
                self._maybe_kill(name, now)
        for name in self.dead - set(self._switch.ports):
            self.dead.discard(name)
        self._timer = self._clock.call_at(now + self._period(), self._look)

    def _maybe_kill(self, name: str, now: int) -> None:
        port = self._switch.ports[name]
        sent = self._switch.engine.port_state(port.number)["tx_frames"]
        queued = sum(port.occupancy(c, outgoing=True)[0] for c in range(CLASSES))
        before = self._seen.get(name)
        if not queued or before is None or before[0] != sent:
            self._seen[name] = (sent, now)
        elif now - before[1] >= self._detect_ns:
            self.detections += 1
            self.dead.add(name)
            self._quiet.pop(name, None)
            self._seen.pop(name)
            sent_then, deaths = self._deaths.get(name, (-1, 0))
            self._deaths[name] = (sent, deaths + 1 if sent == sent_then else 0)
            self._switch.engine.set_dead(port.number, True)
            self._switch.dispatch()
            self._announce(name, "dead")

    def _maybe_restore(self, name: str, now: int) -> None:
        port = self._switch.ports[name]
        if port.paused:
            self._quiet.pop(name, None)
        elif now - self._quiet.setdefault(name, now) >= self._restore_ns << min(
            self._deaths[name][1], MOST_DOUBLED
        ):
            self.restorations += 1
            self.dead.discard(name)
            self._switch.engine.set_dead(port.number, False)
            self._switch.dispatch()
            self._announce(name, "restored")
