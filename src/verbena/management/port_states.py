"""The states of a port's link layer, as one table (IBA vol. 1, 7.2: link states; 14.2.5.6: who may set what).

A port that has just come up is in INIT and carries subnet management only.  The subnet manager arms it when it is
configured, and makes it ACTIVE; an armed port also becomes active when the first data packet arrives, because then the
other end is active already.
"""

from __future__ import annotations

from enum import Enum, auto

from verbena.wire.smp_attributes import PortState


class PortInput(Enum):
    """What happens to a port: its physical link, a SubnSet(PortInfo), a data packet."""

    LINK_UP = auto()
    LINK_DOWN = auto()
    SET_DOWN = auto()
    SET_ARMED = auto()
    SET_ACTIVE = auto()
    DATA = auto()


_S, _I = PortState, PortInput

TRANSITIONS: dict[tuple[PortState, PortInput], PortState] = {
    (_S.DOWN, _I.LINK_UP): _S.INIT,
    (_S.DOWN, _I.LINK_DOWN): _S.DOWN,
    (_S.DOWN, _I.SET_DOWN): _S.DOWN,
    (_S.INIT, _I.LINK_UP): _S.INIT,
    (_S.INIT, _I.LINK_DOWN): _S.DOWN,
    (_S.INIT, _I.SET_DOWN): _S.DOWN,
    (_S.INIT, _I.SET_ARMED): _S.ARMED,
    (_S.INIT, _I.DATA): _S.INIT,
    (_S.ARMED, _I.LINK_UP): _S.ARMED,
    (_S.ARMED, _I.LINK_DOWN): _S.DOWN,
    (_S.ARMED, _I.SET_DOWN): _S.DOWN,
    (_S.ARMED, _I.SET_ARMED): _S.ARMED,
    (_S.ARMED, _I.SET_ACTIVE): _S.ACTIVE,
    (_S.ARMED, _I.DATA): _S.ACTIVE,
    (_S.ACTIVE, _I.LINK_UP): _S.ACTIVE,
    (_S.ACTIVE, _I.LINK_DOWN): _S.DOWN,
    (_S.ACTIVE, _I.SET_DOWN): _S.DOWN,
    (_S.ACTIVE, _I.SET_ACTIVE): _S.ACTIVE,
    (_S.ACTIVE, _I.DATA): _S.ACTIVE,
}
"""(state, input) -> next state.  A SubnSet that has no row is an invalid value, and nothing changes."""

REQUESTED: dict[int, PortInput] = {
    PortState.DOWN: PortInput.SET_DOWN,
    PortState.ARMED: PortInput.SET_ARMED,
    PortState.ACTIVE: PortInput.SET_ACTIVE,
}
"""PortInfo:PortState of a SubnSet -> input; INIT and the reserved values cannot be set, 0 changes nothing."""


def next_state(state: int, happened: PortInput) -> PortState | None:
    """The state after it; None if it is not allowed in that state."""
    return TRANSITIONS.get((PortState(state), happened))
