"""A light sweep: has anything changed since the last heavy one (IBA vol. 1, 14.4.6)?

Each switch is asked whether one of its ports has changed state, and the manager's own port is looked at, because there
may be no switch that could tell of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from verbena.management.subnet import Subnet
from verbena.management.subnet_manager.smp_client import Question, ask
from verbena.wire.smp import AttributeId
from verbena.wire.smp_attributes import PortInfo, SwitchInfo


class LightSweep:
    """One light sweep over a subnet.  changed: a heavy sweep is needed; final when all questions are answered."""

    def __init__(self, subnet: Subnet, manager_port: int) -> None:
        self.changed = False
        self._subnet = subnet
        self._manager_port = manager_port

    def questions(self) -> Iterator[Question]:
        for node in self._subnet.switches:
            yield ask(AttributeId.SWITCH_INFO, 0, node.path, self._switch)
        yield ask(AttributeId.PORT_INFO, self._manager_port, b"", self._own)

    def _switch(self, status: int | None, data: bytes) -> None:
        if status != 0 or SwitchInfo.unpack(data).port_state_change:
            self.changed = True

    def _own(self, status: int | None, data: bytes) -> None:
        own = self._subnet.port_of_lid(self._subnet.sm_lid)
        info = PortInfo.unpack(data) if status == 0 else PortInfo()
        if own is None or (info.lid, info.port_state) != (own.lid, own.info.port_state):
            self.changed = True
