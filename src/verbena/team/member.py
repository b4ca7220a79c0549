"""A member of a team: its state, as one table, its load, its counters."""

from __future__ import annotations

from collections import Counter
from enum import Enum, auto
from typing import Any

from verbena.errors import InvalidStateError
from verbena.team.card import Branch


class MemberState(Enum):
    """Where a member is.  Only in ACTIVE does it carry the team's frames."""

    DOWN = auto()
    """No link."""
    JOINING = auto()
    """It has a link, and probing (or the aggregation protocol) has not shown yet that it leads anywhere."""
    ACTIVE = auto()
    SUSPECT = auto()
    """It has a link, and probing says that it leads nowhere."""
    DISABLED = auto()
    """The administrator took it out."""
    REMOVED = auto()


class MemberEvent(Enum):
    """What happens to a member."""

    LINK_UP = auto()
    LINK_DOWN = auto()
    PROVED = auto()
    """An answer came, or nothing has to be proved."""
    LOST = auto()
    """Probes stayed without an answer, or the partner no longer aggregates the link."""
    DISABLE = auto()
    ENABLE = auto()
    """The administrator lets it in again; it then has no link until it says otherwise."""
    REMOVE = auto()


_S, _E = MemberState, MemberEvent

TRANSITIONS: dict[tuple[MemberState, MemberEvent], MemberState] = {
    (_S.DOWN, _E.LINK_UP): _S.JOINING,
    (_S.DOWN, _E.LINK_DOWN): _S.DOWN,
    (_S.DOWN, _E.PROVED): _S.DOWN,  # an answer that was under way when the link went
    (_S.DOWN, _E.LOST): _S.DOWN,
    (_S.JOINING, _E.LINK_UP): _S.JOINING,
    (_S.JOINING, _E.LINK_DOWN): _S.DOWN,
    (_S.JOINING, _E.PROVED): _S.ACTIVE,
    (_S.JOINING, _E.LOST): _S.SUSPECT,
    (_S.ACTIVE, _E.LINK_UP): _S.ACTIVE,
    (_S.ACTIVE, _E.LINK_DOWN): _S.DOWN,
    (_S.ACTIVE, _E.PROVED): _S.ACTIVE,
    (_S.ACTIVE, _E.LOST): _S.SUSPECT,
    (_S.SUSPECT, _E.LINK_UP): _S.SUSPECT,
    (_S.SUSPECT, _E.LINK_DOWN): _S.DOWN,
    (_S.SUSPECT, _E.PROVED): _S.ACTIVE,
    (_S.SUSPECT, _E.LOST): _S.SUSPECT,
    (_S.DISABLED, _E.ENABLE): _S.DOWN,
    (_S.DISABLED, _E.LINK_UP): _S.DISABLED,
    (_S.DISABLED, _E.LINK_DOWN): _S.DISABLED,
    (_S.DISABLED, _E.PROVED): _S.DISABLED,
    (_S.DISABLED, _E.LOST): _S.DISABLED,
    (_S.DISABLED, _E.DISABLE): _S.DISABLED,
    **{
        (state, _E.DISABLE): _S.DISABLED
        for state in _S
        if state not in (MemberState.REMOVED, MemberState.DISABLED)
    },
    **{(state, _E.ENABLE): state for state in (_S.DOWN, _S.JOINING, _S.ACTIVE, _S.SUSPECT)},
    **{(state, _E.REMOVE): _S.REMOVED for state in _S if state is not MemberState.REMOVED},
}


class Meter:
    """Bytes a second over two halves of a sliding window.  window_ns: its length."""

    __slots__ = ("_half_ns", "_last", "_start_ns", "_this")

    def __init__(self, window_ns: int) -> None:
        self._half_ns = max(1, window_ns // 2)
        self._start_ns = 0
        self._this = 0
        self._last = 0

    def _roll(self, now: int) -> None:
        passed = (now - self._start_ns) // self._half_ns
        if passed:
            self._last = self._this if passed == 1 else 0
            self._this = 0
            self._start_ns += passed * self._half_ns

    def count(self, size: int, now: int) -> None:
        """A frame passed."""
        self._roll(now)
        self._this += size

    def rate(self, now: int) -> float:
        """Bytes a second, of late."""
        self._roll(now)
        return (self._last + self._this) * 1e9 / (self._half_ns + max(1, now - self._start_ns))


class Member:
    """One card in the team.

    counters: ``tx.team``, ``tx.upload``, ``rx.team``, ``rx.upload`` (frames), the same with ``.bytes``, and drops by
    reason.  priority: of active-backup, the lowest is preferred; at a tie the one that came first.  passages: of
    `team.passages`.
    """

    def __init__(self, branch: Branch, priority: int, window_ns: int) -> None:
        self.branch = branch
        self.card = branch.card
        self.name = branch.card.name
        self.priority = priority
        self.state = MemberState.DOWN
        self.counters: Counter[str] = Counter()
        self.meter = Meter(window_ns)
        self.passages: dict[Any, Any] = {}

    @property
    def is_usable(self) -> bool:
        return self.state is MemberState.ACTIVE

    def apply(self, event: MemberEvent) -> bool:
        """Take an event; did the state change?  Raises `InvalidStateError` for what the state does not allow."""
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise InvalidStateError(f"{self.name} is {self.state.name}: {event.name} is not possible")
        changed = following is not self.state
        self.state = following
        return changed

    def count(self, what: str, size: int, now: int) -> None:
        """A frame passed; what: ``tx.team``, …"""
        counters = self.counters
        counters[what] += 1
        counters[what + ".bytes"] += size
        self.meter.count(size, now)

    def __repr__(self) -> str:
        return f"<Member {self.name}, {self.state.name}>"
