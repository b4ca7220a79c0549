"""Memory windows: remote keys that a program binds to a range, and takes back, by work requests."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from verbena.errors import ClosedError, InvalidAttributeError
from verbena.memory.access import Access
from verbena.transport.kinds import SendFlags, WROpcode
from verbena.transport.local import BindInfo, WindowHandle
from verbena.transport.work import WorkRequest

if TYPE_CHECKING:
    from verbena.verbs.memory import ProtectionDomain

REMOTE = Access.REMOTE_READ | Access.REMOTE_WRITE | Access.REMOTE_ATOMIC


class WindowType(IntEnum):
    """Kinds of windows (IBA vol. 1, 10.6.7.2), and the remote key of document 003; values as in memory/entries.pxd.

    TYPE_1: for all queue pairs of the domain; each bind gives it a new key.  TYPE_2A: for the queue pair that bound it.
    TYPE_2B: for that queue pair, in its domain.  RKEY: for all queue pairs of the domain; its key stays.
    """

    TYPE_1 = 3
    TYPE_2A = 4
    TYPE_2B = 5
    RKEY = 6


@dataclass(frozen=True, slots=True)
class WindowAttributes:
    """What the adapter's table says of a window (Query Memory Window: IBA vol. 1, 11.2.8.10).

    state: "unbound", "bound", "disabled" (invalidated) or "used" (a one-shot key, by its one operation).  address,
    length: the range as peers name it.  uses, bytes: operations granted; refusals: those that were not.  last_qp,
    last_peer_qp: the queue pair numbers of the last use, here and there; last_used_ns: when.
    """

    rkey: int
    state: str
    address: int
    length: int
    access: Access
    one_shot: bool
    uses: int
    bytes: int
    refusals: int
    last_qp: int
    last_peer_qp: int
    last_used_ns: int


class MemoryWindow(WindowHandle):
    """A remote key without memory of its own.  Made by `ProtectionDomain.allocate_rkey` and `alloc_mw`.

    rkey: what peers show, as the last bind posted leaves it (should that bind fail, `query` tells the key that the
    adapter has).  A context manager; closing it retires the key, and unbinds it if it is bound.
    """

    def __init__(self, pd: ProtectionDomain, kind: WindowType, one_shot: bool = False) -> None:
        try:
            self.type = WindowType(kind)
        except ValueError:
            names = ", ".join(t.name for t in WindowType)
            raise InvalidAttributeError(f"window type {kind!r}: one of {names}") from None
        if one_shot and self.type is not WindowType.RKEY:
            raise InvalidAttributeError("only keys of allocate_rkey are one-shot")
        self.pd = pd
        self.one_shot = one_shot
        self._engine = pd.context.adapter.engine
        table: Any = pd.context.adapter.regions
        with self._engine:
            index, serial, rkey = table.alloc_window(pd.checked().number, int(self.type), one_shot)
        super().__init__(table, index, serial, pd.number, int(self.type), rkey)
        pd.members.add(self)

    def query(self) -> WindowAttributes:
        """What the adapter has of it now; raises `ClosedError` when it was deallocated."""
        with self._engine:
            if self.freed:
                raise ClosedError("this memory window was deallocated")
            found = self.table.describe(self.index)
        return WindowAttributes(
            rkey=found["remote_key"],
            access=Access(found["access"]),
            **{
                name: found[name]
                for name in WindowAttributes.__slots__
                if name not in ("rkey", "access")  # the same names in the table, with other types
            },
        )

    def close(self) -> None:
        """DeallocateRKey, or Deallocate Memory Window (IBA vol. 1, 11.2.8.12): the key opens nothing any more.

        Bound, it is unbound by that.  A bind that is posted and not executed fails.
        """
        with self._engine:
            if self.freed:
                return
            self.freed = True
            self.table.free_window(self.index, self.serial)
            self.pd.members.discard(self)

    def abandon(self) -> None:
        """`close` in the child of a fork."""
        self.freed = True

    def __enter__(self) -> MemoryWindow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<MemoryWindow {self.type.name}, rkey {self.rkey:#x}{', deallocated' if self.freed else ''}>"


def require_window(value: object, pd: ProtectionDomain) -> MemoryWindow:
    """The window itself; raises a `VerbError` unless it is an open one of this domain."""
    if not isinstance(value, MemoryWindow):
        raise InvalidAttributeError(f"a MemoryWindow is needed, not {type(value).__name__}")
    if value.pd is not pd:
        raise InvalidAttributeError("invalid parameter: the key belongs to another protection domain")
    if value.freed:
        raise ClosedError("this memory window was deallocated")
    return value


def bind_request(
    pd: ProtectionDomain,
    window: MemoryWindow,
    what: BindInfo,
    *,
    wr_id: int,
    flags: SendFlags,
    check: bool,
) -> WorkRequest:
    """The work request of a bind; with `check`, raises `InvalidAttributeError` where it could not succeed now."""
    require_window(window, pd)
    if check and what.length:
        table: Any = pd.context.adapter.regions
        with pd.context.adapter.engine:
            reason = table.may_bind(pd.number, what.parent_key, what.address, what.length, what.access)
            if reason:
                raise InvalidAttributeError(
                    f"invalid parameter: {what.length} bytes at {what.address:#x} may not be bound with "
                    f"{Access(what.access).name}: {table.reason_name(reason)}"
                )
    return WorkRequest(wr_id, WROpcode.BIND_MW, mw=window, bind=what, flags=flags)
