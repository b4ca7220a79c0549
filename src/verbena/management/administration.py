"""Subnet administration beside a subnet manager: it reads the manager's picture, and hears what the manager hears.

The two live on one port: `administer` joins them, and nothing else needs to know of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from verbena.clock import Clock
from verbena.management.datagrams import Send
from verbena.management.profile import LANES_OF_CODE
from verbena.management.sa_multicast import Tree
from verbena.management.sa_request import Store
from verbena.management.subnet import Subnet, SubnetPort
from verbena.management.subnet_administration import SubnetAdministration
from verbena.management.subnet_manager import SubnetManager
from verbena.management.subnet_manager.events import SubnetEvent, SubnetEventKind
from verbena.management.subnet_view import SubnetDetails
from verbena.wire.smp_attributes import (
    Notice,
    NoticeType,
    PortCapability,
    SLtoVLMappingTable,
    SMInfo,
    SmState,
    Trap,
    VLArbitrationTable,
)

if TYPE_CHECKING:
    from random import Random

_BLOCK = 32


class ManagerDetails(SubnetDetails):
    """What a manager has written into ports beyond its picture of them: as its configuration says."""

    def __init__(self, manager: SubnetManager) -> None:
        self._manager = manager

    def lanes(self, port: SubnetPort) -> bytes:
        if not port.is_end or not port.info.capability_mask & PortCapability.SL_MAPPING:
            return b""
        lanes = LANES_OF_CODE.get(port.info.operational_vls, 1)
        return SLtoVLMappingTable(tuple(level % lanes for level in range(16))).pack()

    def arbitration(self, port: SubnetPort) -> Mapping[int, bytes]:
        config, info = self._manager.config, port.info
        lanes = LANES_OF_CODE.get(info.operational_vls, 1)
        found: dict[int, bytes] = {}
        for entries, first, room in (
            (config.arbitration_low, 1, info.vl_arbitration_low_cap),
            (config.arbitration_high, 3, info.vl_arbitration_high_cap),
        ):
            used = [entry for entry in entries if entry[0] < lanes][:room]
            for at in range(0, len(used), _BLOCK):
                found[first + at // _BLOCK] = VLArbitrationTable(tuple(used[at : at + _BLOCK])).pack()
        return found

    def managers(self) -> Sequence[tuple[int, SMInfo]]:
        manager = self._manager
        if manager.subnet is None:
            return ()
        config = manager.config
        info = SMInfo(manager.guid, config.sm_key, 0, config.priority, manager.state)
        return [(manager.subnet.sm_lid, info)]


def administer(
    manager: SubnetManager,
    send: Send,
    clock: Clock,
    random: Random,
    *,
    sm_key: int | None = None,
    store: Store | None = None,
    multicast: bool = True,
    mlids: int = 1024,
) -> SubnetAdministration:
    """Make the subnet administration of a manager, active while that is master.

    send: how datagrams leave by queue pair 1 of the manager's port; those that arrive there go to `receive`.  sm_key:
    of trusted requests, by default the manager's.  Groups are handed to the manager, which writes the tables.
    """
    nothing = Subnet(manager.config.gid_prefix)
    groups: dict[int, frozenset[int]] = {}

    def get_subnet() -> Subnet:
        return nothing if manager.subnet is None else manager.subnet

    def build(tree: Tree) -> None:
        # A switch forwards a group's packets by its tables, whoever sends them: senders belong to the tree, too.
        if tree.senders:
            groups[tree.mlid] = tree.senders
        else:
            groups.pop(tree.mlid, None)
        manager.set_groups(groups)

    made = SubnetAdministration(
        get_subnet,
        send,
        clock,
        random,
        sm_key=manager.config.sm_key if sm_key is None else sm_key,
        store=store,
        details=ManagerDetails(manager),
        names=manager.names,
        multicast=multicast,
        mlids=mlids,
        on_tree=build,
    )

    def heard(event: SubnetEvent) -> None:
        made.active = manager.state is SmState.MASTER
        if not made.active:
            return
        if event.kind is SubnetEventKind.SWEPT:
            made.changed()
        elif event.kind is SubnetEventKind.TRAP:
            subnet = get_subnet()
            port = subnet.port_of_lid(event.lid)
            kind = NoticeType.SECURITY if event.trap >= Trap.BAD_MKEY else NoticeType.URGENT
            producer = 0 if port is None else port.node.info.node_type
            details = event.lid.to_bytes(2, "big")
            notice = Notice(True, kind, producer, event.trap, event.lid, details=details)
            made.trap(notice, bytes(16) if port is None else subnet.gid(port))

    made.active = manager.state is SmState.MASTER
    if made.multicast is not None:
        for tree in made.multicast.trees():
            build(tree)
    manager.listen(heard)
    return made
