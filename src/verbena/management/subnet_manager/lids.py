"""Which port has which LIDs (document 003:573; IBA vol. 1, 4.1.3: unicast LIDs are 0x0001 to 0xBFFF).

A port keeps its LIDs as long as the manager, its store, or the port itself remembers them.  Those of a port that has
departed stay reserved for it until nothing else is left.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from verbena.errors import InvalidAttributeError, ResourceError
from verbena.management.subnet_manager.config import FIRST_LID, LAST_LID

MAX_LMC = 7


class NoLidError(ResourceError):
    """All LIDs of the subnet are in use."""


class LidTable:
    """(base LID, LMC) by port GUID, each LID once."""

    def __init__(self, first: int = FIRST_LID, last: int = LAST_LID) -> None:
        self._first, self._last = first, last
        self._owner: list[int] = [0] * (LAST_LID + 1)
        self._given: dict[int, tuple[int, int]] = {}
        self._next: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._given)

    def get(self, guid: int) -> tuple[int, int] | None:
        """A port's base LID and LMC."""
        return self._given.get(guid)

    def all(self) -> dict[int, tuple[int, int]]:
        return dict(self._given)

    def owner(self, lid: int) -> int:
        """The GUID of the port that has a LID; 0: nobody."""
        return self._owner[lid] if 0 <= lid <= LAST_LID else 0

    def reserve(self, guid: int, lid: int, lmc: int = 0) -> None:
        """Give a port these LIDs; raises `InvalidAttributeError` if they are out of range or another's."""
        if not 0 <= lmc <= MAX_LMC or not lid >= FIRST_LID or lid + (1 << lmc) - 1 > LAST_LID:
            raise InvalidAttributeError(
                f"port {guid:#018x}: LID {lid:#x}, LMC {lmc}; LIDs are {FIRST_LID:#x} to {LAST_LID:#x}, LMCs 0 to 7"
            )
        if lid % (1 << lmc):
            raise InvalidAttributeError(f"port {guid:#018x}: LID {lid:#x} must end in {lmc} zero bits")
        for one in range(lid, lid + (1 << lmc)):
            if self._owner[one] not in (0, guid):
                raise InvalidAttributeError(
                    f"port {guid:#018x}: LID {one:#x} is that of port {self._owner[one]:#018x}"
                )
        self.release(guid)
        self._given[guid] = (lid, lmc)
        for one in range(lid, lid + (1 << lmc)):
            self._owner[one] = guid

    def release(self, guid: int) -> None:
        """Nobody has the port's LIDs any more."""
        given = self._given.pop(guid, None)
        if given is not None:
            lid, lmc = given
            for one in range(lid, lid + (1 << lmc)):
                self._owner[one] = 0
            self._next.clear()

    def assign(self, guid: int, lmc: int = 0, wanted: int = 0, present: Collection[int] = ()) -> int:
        """The port's base LID: the one it has, else `wanted` if it is free, else the lowest free one.

        present: GUIDs of the ports that are there; LIDs of others are taken when nothing else is left.  Raises
        `NoLidError`.
        """
        given = self._given.get(guid)
        if given is not None and given[1] == lmc:
            return given[0]
        size = 1 << lmc
        for lid in (given[0] if given else 0, wanted):
            if (
                lid
                and lid % size == 0
                and self._first <= lid <= self._last - size + 1
                and self._is_free(guid, lid, size)
            ):
                self.reserve(guid, lid, lmc)
                return lid
        lid = self._search(size)
        if not lid and present:
            for departed in [other for other in self._given.keys() - set(present) if other != guid]:
                self.release(departed)
            lid = self._search(size)
        if not lid:
            raise NoLidError(
                f"no LID left for port {guid:#018x}: {size} wanted, all of {self._first:#x} to {self._last:#x} in use"
            )
        self.reserve(guid, lid, lmc)
        if given is None:  # else the LIDs that it had are free now, and may be lower
            self._next[size] = lid + size
        return lid

    def _is_free(self, guid: int, lid: int, size: int) -> bool:
        return all(owner in (0, guid) for owner in self._owner[lid : lid + size])

    def _search(self, size: int) -> int:
        """The lowest free base LID, 0 if there is none."""
        start = max(self._next.get(size, 0), -(-self._first // size) * size)
        for lid in range(start, self._last - size + 2, size):
            if not any(self._owner[lid : lid + size]):
                return lid
        return 0

    def load(self, stored: Mapping[int, tuple[int, int]]) -> list[str]:
        """Take over what a store remembers; returns what it says that cannot be."""
        problems = []
        for guid, (lid, lmc) in stored.items():
            try:
                self.reserve(guid, lid, lmc)
            except InvalidAttributeError as error:
                problems.append(str(error))
        return problems
