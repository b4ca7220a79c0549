"""From one picture of a subnet to the next: which LIDs stay, which tables still hold, who has come and who has gone."""

from __future__ import annotations

from verbena.management.subnet import Subnet, SubnetPort
from verbena.management.subnet_manager.lids import LidTable, NoLidError
from verbena.wire.smp_attributes import PortState


def assign_lids(
    subnet: Subnet, own: SubnetPort, lids: LidTable, lmc: int
) -> tuple[dict[int, tuple[int, int]], list[tuple[SubnetPort, str]]]:
    """(base LID, LMC) by port GUID of all ends; and the ports for which none was left, with the reason.

    Those that have LIDs keep them; those that say that they have some come next, then the manager's port, then all
    others in the order in which they were found.  A switch has one LID.
    """
    given: dict[int, tuple[int, int]] = {}
    refused = []
    present = frozenset(subnet.ports_by_guid)
    ends = sorted(
        subnet.end_ports(), key=lambda port: (lids.get(port.guid) is None, not port.info.lid, port is not own)
    )
    for port in ends:
        bits = 0 if port.node.is_switch else lmc
        try:
            given[port.guid] = (lids.assign(port.guid, bits, port.info.lid, present), bits)
        except NoLidError as error:
            refused.append((port, str(error)))
    return given, refused


def carry_over(before: Subnet, now: Subnet) -> None:
    """What was written into a node holds, unless it has restarted since: then it has lost its LID."""
    for guid, old in before.nodes.items():
        node = now.nodes.get(guid)
        if node is None:
            continue
        if node.is_switch and node.lid and node.lid == old.lid:
            node.lft, node.mft = old.lft, old.mft
        for number, port in node.ports.items():
            known = old.ports.get(number)
            if known is not None and port.lid and port.info.port_state >= PortState.ARMED:
                port.pkeys = known.pkeys


def in_service(subnet: Subnet | None) -> dict[int, SubnetPort]:
    """The ports that can be reached, by GUID: with an active link and a LID; switches once they have one."""
    if subnet is None or not subnet.sm_lid:
        return {}
    return {
        port.guid: port
        for port in subnet.end_ports()
        if port.lid and (port.node.is_switch or port.state == PortState.ACTIVE)
    }
