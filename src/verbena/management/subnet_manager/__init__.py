"""The subnet manager: discovery, LIDs, forwarding tables, activation, and who of several is master.

`SubnetManager` (`manager`) drives; `SubnetManagerConfig` (`config`) tells it what is wanted; `SubnetEvent` (`events`)
is what it tells.  What it knows is a `verbena.management.subnet.Subnet`.
"""

from verbena.management.subnet_manager.config import Partition, SubnetManagerConfig
from verbena.management.subnet_manager.events import Statistics, SubnetEvent, SubnetEventKind
from verbena.management.subnet_manager.lids import LidTable, NoLidError
from verbena.management.subnet_manager.manager import SubnetManager
from verbena.management.subnet_manager.routing import EngineRouter, Router, Tables

__all__ = [
    "EngineRouter",
    "LidTable",
    "NoLidError",
    "Partition",
    "Router",
    "Statistics",
    "SubnetEvent",
    "SubnetEventKind",
    "SubnetManager",
    "SubnetManagerConfig",
    "Tables",
]
