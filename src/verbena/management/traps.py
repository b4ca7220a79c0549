"""Traps of a node's agent: sent to the subnet manager again and again until it represses them (IBA vol. 1, 13.4.9).

Notices about the same thing are one trap: while it is outstanding, nothing new is sent.  Two traps of one port come at
least PortInfo:SubnetTimeOut apart.  After `REPEATS` times in vain a trap is given up and counted; the subnet manager's
sweep finds what it missed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from verbena.clock import Clock, Timer
from verbena.wire.mad import Method
from verbena.wire.smp import AttributeId, lid_routed_smp
from verbena.wire.smp_attributes import Notice

REPEATS = 10
WAITING = 64
"""Most different notices that wait at one port; more are counted and forgotten."""


def timeout_ns(code: int) -> int:
    """4.096 us * 2^code, as PortInfo:SubnetTimeOut and others count."""
    return 4096 << code


def _key(notice: Notice) -> tuple[int, bytes]:
    """What makes two notices the same trap."""
    return notice.trap, notice.details.ljust(54, b"\0")


@dataclass(slots=True)
class _Outstanding:
    mad: bytes
    sent: int = 0


class TrapSender:
    """The traps of one port.

    route() gives (LID of the subnet manager, service level, interval in ns), None when there is nobody to tell.
    send(mad, dlid, sl) sends.
    """

    def __init__(
        self,
        clock: Clock,
        route: Callable[[], tuple[int, int, int] | None],
        send: Callable[[bytes, int, int], None],
        counters: Counter[str],
        first_transaction: int,
    ) -> None:
        self._clock = clock
        self._route = route
        self._send = send
        self._counters = counters
        self._transaction = first_transaction
        self._outstanding: dict[tuple[int, bytes], _Outstanding] = {}
        self._timer: Timer | None = None
        self._next_ns = 0

    @property
    def outstanding(self) -> int:
        """How many different traps nobody has repressed yet."""
        return len(self._outstanding)

    def notify(self, notice: Notice) -> None:
        """Tell the subnet manager, now or as soon as the rate allows; does nothing while it is being told already."""
        key = _key(notice)
        if key in self._outstanding:
            self._counters["trap.merged"] += 1
            return
        if self._route() is None:
            self._counters["trap.no_manager"] += 1
            return
        if len(self._outstanding) >= WAITING:
            self._counters["trap.overflow"] += 1
            return
        self._transaction = (self._transaction + 1) & (2**64 - 1)
        self._outstanding[key] = _Outstanding(
            lid_routed_smp(
                Method.TRAP,
                AttributeId.NOTICE,
                0,
                data=notice.pack(),
                transaction_id=self._transaction,
            )
        )
        self._schedule()

    def repress(self, notice: Notice) -> None:
        """The subnet manager has heard it."""
        if self._outstanding.pop(_key(notice), None) is not None:
            self._counters["trap.repressed"] += 1
        self._schedule()

    def close(self) -> None:
        """Forget all of them: the port went down."""
        self._outstanding.clear()
        self._schedule()

    def _schedule(self) -> None:
        if not self._outstanding:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None:
            self._timer = self._clock.call_at(max(self._clock.now(), self._next_ns), self._fire)

    def _fire(self) -> None:
        self._timer = None
        route = self._route()
        if route is None:
            self._counters["trap.no_manager"] += len(self._outstanding)
            self._outstanding.clear()
            return
        lid, level, interval = route
        key = min(self._outstanding, key=lambda k: self._outstanding[k].sent)  # the oldest of the least told
        trap = self._outstanding[key]
        if trap.sent >= REPEATS:
            del self._outstanding[key]
            self._counters["trap.given_up"] += 1
        else:
            trap.sent += 1
            self._counters["trap.sent"] += 1
            self._next_ns = self._clock.now() + interval
            self._send(trap.mad, lid, level)
        self._schedule()
