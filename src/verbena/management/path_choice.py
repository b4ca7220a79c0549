"""Which of several paths share no link: a client's own look at the forwarding tables (document 000:104, 122).

The links between switches that a path crosses are found as packets find them, from the switch at the source's port
on, one forwarding table's block after the other.  What was read is remembered until `forget`.
"""

from __future__ import annotations

from bisect import bisect_right

from verbena.management.datagrams import Pending
from verbena.management.sa_client import SaClient
from verbena.wire.sa_records import LinearForwardingTableRecord, LinkRecord, PathRecord
from verbena.wire.smp_attributes import LFT_BLOCK, NO_PORT

MOST_HOPS = 64
End = tuple[int, int]
Cable = frozenset[End]


class PathChooser:
    """Finds the cables that paths cross, and paths that cross others."""

    def __init__(self, client: SaClient) -> None:
        self._client = client
        self._far: dict[End, End] | None = None
        self._blocks: dict[tuple[int, int], bytes] = {}

    def forget(self) -> None:
        """The subnet has changed."""
        self._far = None
        self._blocks = {}

    def disjoint(self, primary: PathRecord, paths: list[PathRecord]) -> Pending[PathRecord | None]:
        """The first of `paths` that shares no cable between switches with `primary`; None if there is none.

        One whose way back does not share any either is preferred.
        """
        self.forget()
        made: Pending[PathRecord | None] = Pending()
        _Search(self, primary, paths, made).start()
        return made

    # --- reading ------------------------------------------------------------------------------------------------

    def links(self) -> Pending[dict[End, End]]:
        """All links: (LID, port) -> (LID, port)."""
        made: Pending[dict[End, End]] = Pending()
        if self._far is not None:
            made.resolve(self._far)
            return made

        def done(found: Pending[list[LinkRecord]]) -> None:
            if found.error is not None:
                made.fail(found.error)
                return
            records = found.result()
            self._far = {(r.from_lid, r.from_port): (r.to_lid, r.to_port) for r in records}
            made.resolve(self._far)

        self._client.links().when_done(done)
        return made

    def output_port(self, switch_lid: int, dest_lid: int) -> Pending[int]:
        """Where a switch forwards a LID; 255: nowhere."""
        block, at = divmod(dest_lid, LFT_BLOCK)
        made: Pending[int] = Pending()
        if (switch_lid, block) in self._blocks:
            made.resolve(self._blocks[switch_lid, block][at])
            return made

        def done(found: Pending[list[LinearForwardingTableRecord]]) -> None:
            if found.error is not None:
                made.fail(found.error)
                return
            records = found.result()
            ports = records[0].ports if records else bytes([NO_PORT]) * LFT_BLOCK
            self._blocks[switch_lid, block] = ports
            made.resolve(ports[at])

        template = LinearForwardingTableRecord(switch_lid, block)
        self._client.get_table(LinearForwardingTableRecord, template, ("lid", "block")).when_done(done)
        return made

    def cables(self, source_lid: int, dest_lid: int) -> Pending[frozenset[Cable]]:
        """The cables between switches on the way from a port to a LID."""
        made: Pending[frozenset[Cable]] = Pending()
        _Walk(self, source_lid, dest_lid, made).start()
        return made


def _base(lids: list[int], lid: int) -> int:
    """The base LID of the port that has a LID; `lids`: all base LIDs, rising."""
    at = bisect_right(lids, lid)
    return lids[at - 1] if at else lid


class _Walk:
    """One way through the subnet, a switch at a time."""

    def __init__(
        self, chooser: PathChooser, source_lid: int, dest_lid: int, made: Pending[frozenset[Cable]]
    ) -> None:
        self._chooser = chooser
        self._source, self._dest = source_lid, dest_lid
        self._end = dest_lid
        self._made = made
        self._found: set[Cable] = set()
        self._far: dict[End, End] = {}
        self._hops = 0

    def start(self) -> None:
        self._chooser.links().when_done(self._begin)

    def _begin(self, links: Pending[dict[End, End]]) -> None:
        if links.error is not None:
            self._made.fail(links.error)
            return
        self._far = links.result()
        lids = sorted({lid for lid, _ in self._far})
        source, self._end = _base(lids, self._source), _base(lids, self._dest)
        first = [far for (lid, _), far in self._far.items() if lid == source]
        # An adapter's port has one link; a switch that has but one, too, forwards to it as well.
        self._step(first[0][0] if len(first) == 1 and source != self._end else source)

    def _step(self, switch: int) -> None:
        self._hops += 1
        if switch == self._end or self._hops > MOST_HOPS:
            self._made.resolve(frozenset(self._found))
            return
        self._chooser.output_port(switch, self._dest).when_done(lambda port: self._leave(switch, port))

    def _leave(self, switch: int, port: Pending[int]) -> None:
        if port.error is not None:
            self._made.fail(port.error)
            return
        here = (switch, port.result())
        far = self._far.get(here)
        if far is None or far[0] == self._end:
            self._made.resolve(frozenset(self._found))
            return
        self._found.add(frozenset((here, far)))
        self._step(far[0])


class _Search:
    """Goes through the candidates until one is good enough."""

    def __init__(
        self,
        chooser: PathChooser,
        primary: PathRecord,
        paths: list[PathRecord],
        made: Pending[PathRecord | None],
    ) -> None:
        self._chooser = chooser
        self._primary = primary
        self._left = [path for path in paths if (path.slid, path.dlid) != (primary.slid, primary.dlid)]
        self._made = made
        self._forward: frozenset[Cable] = frozenset()
        self._back: frozenset[Cable] = frozenset()
        self._second_best: PathRecord | None = None

    def _cables(self, path: PathRecord, forward: bool) -> Pending[frozenset[Cable]]:
        source, dest = (path.slid, path.dlid) if forward else (path.dlid, path.slid)
        return self._chooser.cables(source, dest)

    def start(self) -> None:
        def forward(found: Pending[frozenset[Cable]]) -> None:
            if self._failed(found):
                return
            self._forward = found.result()
            self._cables(self._primary, False).when_done(back)

        def back(found: Pending[frozenset[Cable]]) -> None:
            if not self._failed(found):
                self._back = found.result()
                self._next()

        self._cables(self._primary, True).when_done(forward)

    def _failed(self, found: Pending[frozenset[Cable]]) -> bool:
        if found.error is not None:
            self._made.fail(found.error)
        return found.error is not None

    def _next(self) -> None:
        if not self._left or not self._forward:
            # Both ports at one switch: no link between switches that another path could avoid.
            self._made.resolve(self._second_best)
            return
        path = self._left.pop(0)

        def forward(found: Pending[frozenset[Cable]]) -> None:
            if self._failed(found):
                return
            if found.result() & self._forward:
                self._next()
                return
            self._second_best = self._second_best or path
            self._cables(path, False).when_done(back)

        def back(found: Pending[frozenset[Cable]]) -> None:
            if self._failed(found):
                return
            if found.result() & (self._back | self._forward):
                self._next()
            else:
                self._made.resolve(path)

        self._cables(path, True).when_done(forward)
