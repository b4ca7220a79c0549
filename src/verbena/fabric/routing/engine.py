"""`route`: a routing of a graph, by the name of an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verbena.fabric.routing.dor import dor
from verbena.fabric.routing.ftree import ftree
from verbena.fabric.routing.given import given
from verbena.fabric.routing.graph import RoutingError, RoutingGraph
from verbena.fabric.routing.layered import layered
from verbena.fabric.routing.minhop import minhop
from verbena.fabric.routing.routing import LANES, USUAL_LANES, Routing, unreachable
from verbena.fabric.routing.updn import updn

ENGINES: dict[str, Callable[..., Routing]] = {
    "minhop": minhop,
    "updn": updn,
    "ftree": ftree,
    "dor": dor,
    "layered": layered,
    "file": given,
}


def route(
    graph: RoutingGraph,
    engine: str = "minhop",
    *,
    lanes: int = USUAL_LANES,
    previous: Routing | None = None,
    **options: Any,
) -> Routing:
    """Forwarding tables for all LIDs of a graph, and the lane of each path.

    engine: minhop, updn, ftree, dor, layered or file.  lanes: data lanes that there are, 1 to 15.  previous: the
    routing before a failure, whose entries are kept where they still fit.  options: of the engine, see its module.

    LIDs that cannot be reached have the entry 255, and a warning.  Raises `RoutingError` for an engine or option that
    there is not, and where the lanes do not suffice.
    """
    if engine not in ENGINES:
        raise RoutingError(f"routing engine {engine!r}: there are {', '.join(ENGINES)}")
    if not 1 <= lanes <= LANES:
        raise RoutingError(f"{lanes} lanes: data lanes are 1 to {LANES}")
    try:
        routing = ENGINES[engine](graph, lanes, previous, **options)
    except TypeError as mistake:
        if "argument" not in str(mistake):
            raise
        raise RoutingError(f"routing engine {engine}: {mistake}") from None
    routing.warnings += unreachable(graph, routing.tables)
    return routing
