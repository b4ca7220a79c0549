"""Routing of one subnet: which port each switch sends each LID out of, and on which lane.

`RoutingGraph` is what is routed, `route` does it by one of several engines (see docs/routing.md), `Routing` is the
result; `find_cycle` tells whether a routing can deadlock, `trace` follows a path, `multicast_tree` spans a group.
"""

from verbena.fabric.routing.deadlock import Channel, Check, Cycle, check, find_cycle
from verbena.fabric.routing.engine import ENGINES, route
from verbena.fabric.routing.given import dump_tables
from verbena.fabric.routing.graph import End, RoutingError, RoutingGraph
from verbena.fabric.routing.multicast import MulticastTree, multicast_tree
from verbena.fabric.routing.routing import Routing
from verbena.fabric.routing.trace import Hop, Trace, trace

__all__ = [
    "ENGINES",
    "Channel",
    "Check",
    "Cycle",
    "End",
    "Hop",
    "MulticastTree",
    "Routing",
    "RoutingError",
    "RoutingGraph",
    "Trace",
    "check",
    "dump_tables",
    "find_cycle",
    "multicast_tree",
    "route",
    "trace",
]
