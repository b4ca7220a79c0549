"""Pages that an adapter misses, and has brought in through the memory manager (document 003:833).

Peers that wait for a page ask again after a while (the timer of "receiver not ready").  Where memory is short, that
gives each of several operations the time to put the others' pages out, for ever.  So frames are taken from others for
one operation at a time: it has its turn until it has not missed a page for a while, or has had it for long; whoever
else needs somebody's frame waits.  An operation that misses a page again that it had asked for in its last turn comes
again too late: turns become longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verbena.clock import Clock
from verbena.errors import PageFault
from verbena.memory.frames import PageKey
from verbena.memory.manager import VirtualMemoryManager

SHORTEST_TURN_NS = 1_000_000
LONGEST_TURN_NS = 2_000_000_000
LONG = 32  # so many times the while

Fault = tuple[int, int, bool, int]  # space, page of it, will it be written to, queue pair (0: local memory)
Operation = tuple[int, int]  # space, queue pair


class PageFaults:
    """The faults of one adapter.

    serve: map or refuse a page at once; False where it has to be brought in.  find: the virtual page behind a page of a
    space, or None when it was refused.  bring: map a page that is in memory now.  refuse: with what is wrong.  kick:
    let the adapter look again.
    """

    def __init__(
        self,
        memory: VirtualMemoryManager,
        clock: Clock,
        serve: Callable[[int, int, bool], bool],
        find: Callable[[int, int, bool], PageKey | None],
        bring: Callable[[int, int, bool], None],
        refuse: Callable[[int, int, str], None],
        kick: Callable[[], None],
    ) -> None:
        self._memory = memory
        self._clock = clock
        self._serve = serve
        self._find = find
        self._bring = bring
        self._refuse = refuse
        self._kick = kick
        self._new: list[Fault] = []
        self._waiting: list[Fault] = []
        self._turn: Operation | None = None
        self._turn_ns = SHORTEST_TURN_NS
        self._turn_ends = 0
        self._had: set[tuple[int, int]] = set()
        self._had_before: dict[Operation, set[tuple[int, int]]] = {}
        self._alarm: Any = None
        self.swap_ins = 0

    def add(self, fault: Fault) -> None:
        """A page is missed.  It is mapped, brought in, or refused, but not before this returns."""
        self._new.append(fault)
        if len(self._new) == 1:
            self._clock.call_at(self._clock.now(), self._serve_new)

    def close(self) -> None:
        """The adapter is gone: nobody misses anything."""
        self._new, self._waiting = [], []

    def _serve_new(self) -> None:
        """Serve the faults of a moment: what is not in memory comes after the memory manager's time."""
        faults, self._new = self._new, []
        with self._memory.held():
            wanted = [fault for fault in faults if not self._serve(*fault[:3])]
            self._kick()
        if wanted:
            self._clock.call_at(
                self._clock.now() + self._memory.page_in_ns, lambda: self._swap_in_all(wanted)
            )

    def _swap_in_all(self, wanted: list[Fault]) -> None:
        with self._memory.held():
            for fault in wanted:
                if self._memory.free_frames or self._has_turn(fault):
                    self._swap_in(fault)
                else:
                    self._waiting.append(fault)
            self._kick()

    def _swap_in(self, fault: Fault) -> None:
        space, number, write, _ = fault
        key = self._find(space, number, write)
        if key is None:
            return
        try:
            self._memory.swap_in(*key)
        except PageFault as error:
            self._refuse(space, number, str(error))
            return
        self.swap_ins += 1
        self._bring(space, number, write)

    # --- turns --------------------------------------------------------------------------------------------

    def _has_turn(self, fault: Fault) -> bool:
        """May frames be taken from others for this fault now?"""
        space, number, _, qp_num = fault
        operation = (space, qp_num)
        if self._turn is None:
            self._turn, self._had = operation, set()
            if (space, number) in self._had_before.get(operation, ()):
                self._turn_ns = min(2 * self._turn_ns, LONGEST_TURN_NS)
            else:
                self._turn_ns = SHORTEST_TURN_NS
            self._turn_ends = self._clock.now() + LONG * self._turn_ns
        if self._turn != operation:
            return False
        self._had.add((space, number))
        if self._alarm is not None:
            self._alarm.cancel()
        when = min(self._clock.now() + self._turn_ns, self._turn_ends)
        self._alarm = self._clock.call_at(when, self._next_turn)
        return True

    def _next_turn(self) -> None:
        """The operation that had the turn needs no more pages, or comes again: the next one that waits has it."""
        if self._turn is not None:
            self._had_before[self._turn] = self._had
        self._turn = self._alarm = None
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._swap_in_all(waiting)
        else:
            self._had_before.clear()
