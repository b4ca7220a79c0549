"""Traps that come to a subnet manager: repressed at once, and what they are about looked at (IBA vol. 1, 13.4.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verbena.management.smi import SmpPort
from verbena.management.subnet_manager.events import SubnetEventKind
from verbena.wire.mad import ManagementClass, Method
from verbena.wire.smp import AttributeId, Smp, lid_routed_smp
from verbena.wire.smp_attributes import Notice, SmState, Trap

if TYPE_CHECKING:
    from verbena.management.subnet_manager.manager import SubnetManager

_CHANGES = {Trap.LINK_STATE, Trap.CAPABILITY, Trap.SYSTEM_IMAGE_GUID}
"""What a sweep must look at; the others are reported."""


class TrapReceiver:
    """Of one subnet manager."""

    def __init__(self, manager: SubnetManager, port: SmpPort) -> None:
        self._manager = manager
        self._port = port

    def receive(self, mad: bytes, slid: int) -> None:
        """A SubnTrap from a LID.  Whoever has no LID of this subnet is not believed, and gets no answer."""
        manager = self._manager
        smp = Smp.unpack(mad)
        if (
            smp.attribute_id != AttributeId.NOTICE
            or smp.management_class != ManagementClass.SUBN_LID_ROUTED
            or manager.state is not SmState.MASTER
        ):
            manager.statistics.malformed += 1
            return
        notice = Notice.unpack(smp.data)
        source = manager.subnet.port_of_lid(slid) if manager.subnet is not None else None
        if source is None:
            manager.statistics.forged_traps += 1
            return
        manager.statistics.traps += 1
        self._port.send(
            lid_routed_smp(
                Method.TRAP_REPRESS,
                AttributeId.NOTICE,
                smp.attribute_modifier,
                data=smp.data,
                mkey=manager.config.mkey,
                transaction_id=smp.transaction_id,
            ),
            path=None,
            dlid=slid,
        )
        name = Trap(notice.trap).name.lower().replace("_", " ") if notice.trap in set(Trap) else "?"
        manager.report(
            SubnetEventKind.TRAP, f"trap {notice.trap} ({name}) from {source}", source.guid, slid, notice.trap
        )
        if notice.generic and notice.trap in _CHANGES:
            manager.sweep_soon()
        elif notice.generic and notice.trap == Trap.BAD_MKEY:
            manager.renew_lease(source)  # or the port would give up its protection
