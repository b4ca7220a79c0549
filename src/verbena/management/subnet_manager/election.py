"""Which of several subnet managers is master: SMInfo negotiation, as one table (IBA vol. 1, 14.4.1).

Whoever finds a master, or a manager above itself, stands by and polls it.  A master that finds a manager above itself
in standby hands over to it.  Above is who has the higher priority, or the same and the lower GUID.
"""

from __future__ import annotations

from enum import Enum, auto

from verbena.wire.smp_attributes import SmControl, SMInfo, SmState


class SmInput(Enum):
    """What happens to a subnet manager's role."""

    NOBODY_ABOVE = auto()  # discovery is through
    SOMEBODY_ABOVE = auto()  # discovery has found a master, or somebody above this one
    MASTER_SILENT = auto()
    HANDOVER = auto()
    ACKNOWLEDGE = auto()
    DISABLE = auto()
    STANDBY = auto()
    DISCOVER = auto()


_S, _I = SmState, SmInput

TRANSITIONS: dict[tuple[SmState, SmInput], SmState] = {
    (_S.DISCOVERING, _I.NOBODY_ABOVE): _S.MASTER,
    (_S.DISCOVERING, _I.SOMEBODY_ABOVE): _S.STANDBY,
    (_S.STANDBY, _I.MASTER_SILENT): _S.DISCOVERING,
    (_S.STANDBY, _I.HANDOVER): _S.MASTER,
    (_S.STANDBY, _I.DISCOVER): _S.DISCOVERING,
    (_S.STANDBY, _I.DISABLE): _S.NOT_ACTIVE,
    (_S.NOT_ACTIVE, _I.STANDBY): _S.STANDBY,
    (_S.MASTER, _I.NOBODY_ABOVE): _S.MASTER,
    (_S.MASTER, _I.ACKNOWLEDGE): _S.STANDBY,  # who was handed over to has accepted
    (_S.MASTER, _I.HANDOVER): _S.MASTER,  # another master gives up its part
}
"""(state, input) -> next state; without a row: refused with "invalid value", and nothing changes."""

CONTROLS: dict[int, SmInput] = {
    SmControl.HANDOVER: SmInput.HANDOVER,
    SmControl.ACKNOWLEDGE: SmInput.ACKNOWLEDGE,
    SmControl.DISABLE: SmInput.DISABLE,
    SmControl.STANDBY: SmInput.STANDBY,
    SmControl.DISCOVER: SmInput.DISCOVER,
}


def is_above(other: SMInfo, priority: int, guid: int) -> bool:
    """Whether another manager goes before one with this priority and GUID."""
    return (other.priority, -other.guid) > (priority, -guid)
