"""Path records: which paths there are between two ports, and what they can carry (IBA vol. 1, 15.2.5.16).

A path follows the forwarding tables in force.  Each pair of LIDs of two ports (2^LMC each) is a path of its own; the
pairs of equal offsets come first.  A path that can carry more than was asked for is offered with what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from verbena.fabric.topology import NodeKind
from verbena.management.subnet import SubnetPort
from verbena.management.subnet_view import Route, SubnetIndex, in_partition, pkeys_of, share_partition
from verbena.wire.sa_records import MTU_BYTES, RATE_GBPS, PathRecord, Selector

ANY_HOPS = 255
"""HopLimit of a path that crosses routers."""


class PathQuery(NamedTuple):
    """A template, and the names of the components that count."""

    template: PathRecord
    names: frozenset[str]

    def asks(self, name: str) -> bool:
        return name in self.names

    def wanted(self, name: str) -> tuple[Selector, int] | None:
        """Selector and value of a limit; None if either is missing: anything will do."""
        selector = getattr(self.template, f"{name}_selector")
        if not self.asks(f"{name}_selector") or not (self.asks(name) or selector == Selector.LARGEST):
            return None
        return Selector(selector), getattr(self.template, name)


def limited(have: float, wanted: tuple[Selector, float] | None, steps: list[float]) -> float | None:
    """What a path offers that can carry `have` of something; None if that is not what is wanted.

    steps: all possible values, rising.
    """
    if wanted is None or wanted[0] is Selector.LARGEST:
        return have
    selector, value = wanted
    if selector is Selector.GREATER:
        return have if have > value else None
    if selector is Selector.EXACTLY:
        return value if have >= value and value in steps else None
    return max((step for step in steps if step < value and step <= have), default=None)


RATES: list[float] = sorted(RATE_GBPS.values())
MTUS: list[float] = sorted(MTU_BYTES)


class PathFinder:
    """The paths of one subnet."""

    def __init__(self, index: SubnetIndex) -> None:
        self._index = index

    def find(self, query: PathQuery, visible: list[int] | None) -> Iterator[PathRecord]:
        """All paths that match, the best of each pair of ports first.

        visible: the asker's partition keys, None for one that is trusted: paths between ports of other partitions are
        not shown.
        """
        index = self._index
        for source in self._ends(query, "slid", "sgid"):
            if visible is not None and not share_partition(visible, pkeys_of(source)):
                continue
            for dest in self._destinations(query):
                if visible is None or share_partition(visible, pkeys_of(dest)):
                    yield from self._between(index, query, source, dest)

    def _ends(self, query: PathQuery, lid_name: str, gid_name: str) -> list[SubnetPort]:
        """The ports that one end of a query can mean."""
        index = self._index
        found: list[SubnetPort] | None = None
        if query.asks(gid_name):
            end = index.by_gid(getattr(query.template, gid_name))
            found = [] if end is None else [end]
        if query.asks(lid_name):
            end = index.by_lid(getattr(query.template, lid_name))
            if end is None or (found is not None and end not in found):
                return []
            found = [end]
        return index.ends if found is None else found

    def _destinations(self, query: PathQuery) -> list[SubnetPort]:
        if query.asks("dgid") and self._index.is_foreign(query.template.dgid):
            routers = [end for end in self._index.ends if end.node.kind is NodeKind.ROUTER]
            if query.asks("dlid"):
                return [end for end in routers if query.template.dlid in end.lids]
            return routers
        return self._ends(query, "dlid", "dgid")

    def _between(
        self, index: SubnetIndex, query: PathQuery, source: SubnetPort, dest: SubnetPort
    ) -> Iterator[PathRecord]:
        pkey = self._partition(query, source, dest)
        if not pkey:
            return
        left = query.template.numb_path if query.asks("numb_path") else -1  # of each pair of ports
        for slid, dlid in lid_pairs(query, source, dest):
            if left == 0:
                return
            route = index.route(source, dlid)
            if route is not None and (record := self._record(query, source, dest, slid, dlid, route, pkey)):
                left -= 1
                yield record

    def _partition(self, query: PathQuery, source: SubnetPort, dest: SubnetPort) -> int:
        if not query.asks("pkey"):
            return share_partition(pkeys_of(source), pkeys_of(dest))
        wanted = query.template.pkey
        of_partition = [key for key in pkeys_of(source) if in_partition([key], wanted)]
        return share_partition(of_partition, pkeys_of(dest))

    def _record(
        self,
        query: PathQuery,
        source: SubnetPort,
        dest: SubnetPort,
        slid: int,
        dlid: int,
        route: Route,
        pkey: int,
    ) -> PathRecord | None:
        index, template = self._index, query.template
        sl = index.subnet.service_level(slid, dlid)
        back = index.route(dest, slid)
        reversible = back is not None and index.subnet.service_level(dlid, slid) == sl
        if (query.asks("sl") and template.sl != sl) or (
            query.asks("reversible") and template.reversible and not reversible
        ):
            return None
        wanted_rate = query.wanted("rate")
        if wanted_rate is not None:
            wanted_gbps = (wanted_rate[0], RATE_GBPS.get(wanted_rate[1], 0.0))
            gbps = limited(route.gbps, wanted_gbps, RATES)
        else:
            gbps = route.gbps
        mtu = limited(route.mtu, query.wanted("mtu"), MTUS)
        if gbps is None or mtu is None or not _lives(route.lifetime, query.wanted("packet_life")):
            return None
        foreign = query.asks("dgid") and self._index.is_foreign(template.dgid)
        return PathRecord(
            service_id_high=template.service_id_high if query.asks("service_id_high") else 0,
            service_id_low=template.service_id_low if query.asks("service_id_low") else 0,
            dgid=template.dgid if query.asks("dgid") else index.gid(dest),
            sgid=template.sgid if query.asks("sgid") else index.gid(source),
            dlid=dlid,
            slid=slid,
            flow_label=template.flow_label if query.asks("flow_label") else 0,
            hop_limit=ANY_HOPS if foreign else 0,
            tclass=template.tclass if query.asks("tclass") else 0,
            reversible=reversible,
            numb_path=0,
            pkey=pkey,
            sl=sl,
            mtu_selector=Selector.EXACTLY,
            mtu=int(mtu),
            rate_selector=Selector.EXACTLY,
            rate=route.rate if gbps == route.gbps else _code(gbps),
            packet_life_selector=Selector.EXACTLY,
            packet_life=route.lifetime,
        )


def _code(gbps: float) -> int:
    return next(code for code, rate in RATE_GBPS.items() if rate == gbps)


def _lives(lifetime: int, wanted: tuple[Selector, int] | None) -> bool:
    """Whether a path's packet lifetime (a code) is what is wanted; a shorter one is better."""
    if wanted is None or wanted[0] is Selector.LARGEST:
        return True
    selector, value = wanted
    if selector is Selector.GREATER:
        return lifetime > value
    return lifetime < value if selector is Selector.LESS else lifetime <= value


def lid_pairs(query: PathQuery, source: SubnetPort, dest: SubnetPort) -> Iterator[tuple[int, int]]:
    """Source and destination LIDs of the paths between two ports: equal offsets first."""
    sources = [query.template.slid] if query.asks("slid") else list(source.lids)
    dests = [query.template.dlid] if query.asks("dlid") else list(dest.lids)
    most = max(len(sources), len(dests))
    first = list(dict.fromkeys((sources[at % len(sources)], dests[at % len(dests)]) for at in range(most)))
    yield from first
    seen = set(first)
    yield from (pair for slid in sources for dlid in dests if (pair := (slid, dlid)) not in seen)
