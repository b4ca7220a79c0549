"""The numbers that the fabric simulator takes and gives, with names; the same values as in ``tables.pxd``."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class NodeRole(IntEnum):
    """What a node of the simulator does."""

    ENDNODE = 0
    SWITCH = 1


class PortState(IntEnum):
    """PortInfo:PortState (IBA vol. 1, 14.2.5.6)."""

    DOWN = 1
    INIT = 2
    ARMED = 3
    ACTIVE = 4


class ReportKind(IntEnum):
    """The first element of a report; the third is given in parentheses."""

    LINK_UP = 1
    LINK_DOWN = 2
    ROOM = 3
    """A send queue has room again (its lane, as a bit)."""
    PKEY_VIOLATION = 4
    """A packet of a foreign partition was dropped (its P_Key)."""
    FLITS_READY = 5
    """An external port has flits to be taken."""


class TraceKind(IntFlag):
    """What `trace_on` records."""

    SEND = 1
    """A packet begins to leave a port."""
    ARRIVE = 2
    """A packet's head may be forwarded by the switch."""
    DELIVER = 4
    DROP = 8
    FLIT_SENT = 16
    """A flit begins to leave a port."""
    FLIT_RECEIVED = 32
    """A flit's last byte has reached a port."""
    SENT = 64
    """A packet's last byte has left a port."""
