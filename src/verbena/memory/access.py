"""Access rights of memory regions, in the values that Linux' verbs use."""

from __future__ import annotations

from enum import IntFlag


class Access(IntFlag):
    """What may be done to a region (IBA vol. 1, 10.6.3.1).  Local reading is always allowed.

    REMOTE_WRITE and REMOTE_ATOMIC need LOCAL_WRITE.  WINDOW_BIND: windows may be bound to it.  ZERO_BASED, of a window
    only: peers count its bytes from 0 (IBA vol. 1, 10.6.7.2.1).
    """

    NONE = 0
    LOCAL_WRITE = 1
    REMOTE_WRITE = 2
    REMOTE_READ = 4
    REMOTE_ATOMIC = 8
    WINDOW_BIND = 16
    ZERO_BASED = 32
