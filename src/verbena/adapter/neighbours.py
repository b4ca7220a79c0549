"""Where the other ports are: from a GID, which programs name, to the way there, which packets need.

Whoever runs the adapter answers from the subnet administration's path records (`resolve`).  Besides, management
datagrams that arrive tell where their senders are, as the reversible path that a reply takes (IBA vol. 1, 13.5.4).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from verbena.adapter.attributes import AddressVector
from verbena.adapter.gid import Gid
from verbena.errors import InvalidAttributeError

LEARNT_AT_MOST = 4096


class Neighbours:
    """The ways that one adapter knows.

    `resolve` gives a path to a GID, or None as long as none is known; it must not wait.  `place` puts in what subnet
    administration has answered.
    """

    def __init__(self) -> None:
        self.resolve: Callable[[Gid], AddressVector | None] = self._asked_for
        self._placed: OrderedDict[Gid, AddressVector] = OrderedDict()
        self._learnt: OrderedDict[Gid, AddressVector] = OrderedDict()
        self._gids: dict[tuple[int, int], Gid] = {}

    def _asked_for(self, gid: Gid) -> AddressVector | None:
        return self._placed.get(gid)

    def place(self, gid: Gid, vector: AddressVector) -> None:
        """The way to a GID, as the subnet's administration says it; in the place of an older answer."""
        self._placed.pop(gid, None)
        while len(self._placed) >= LEARNT_AT_MOST:
            self._placed.popitem(last=False)
        self._placed[gid] = vector

    def vector_to(self, gid: Gid) -> AddressVector:
        """The way to a GID; raises `InvalidAttributeError` when none is known yet."""
        vector = self.resolve(gid) or self._learnt.get(gid)
        if vector is None:
            raise InvalidAttributeError(f"no path to {gid} is known")
        self._gids[vector.port_num, vector.dlid] = gid
        return vector

    def gid_at(self, port: int, lid: int) -> Gid | None:
        """Who has a LID in the subnet of a port, if that is known."""
        return self._gids.get((port, lid))

    def learn(self, gid: Gid, vector: AddressVector) -> bool:
        """A datagram came from there, and says that it is from this GID; False when it is known to be elsewhere."""
        known = self.resolve(gid)
        if known is not None and (known.dlid, known.port_num) != (vector.dlid, vector.port_num):
            return False
        self.learn_foreign(gid, vector)
        self._gids[vector.port_num, vector.dlid] = gid
        return True

    def learn_foreign(self, gid: Gid, vector: AddressVector) -> None:
        """A datagram came from another subnet, with its source's GID: the way back is by the router that brought it."""
        while len(self._learnt) >= LEARNT_AT_MOST:
            _, oldest = self._learnt.popitem(last=False)
            self._gids.pop((oldest.port_num, oldest.dlid), None)
        self._learnt[gid] = vector
