"""What protection domains and reliable datagram domains have in common: they hold objects that may use one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from verbena.errors import ClosedError, InvalidStateError

if TYPE_CHECKING:
    from verbena.verbs.context import Context


class Domain:
    """A set of objects of an adapter, closed after all that is in it; as a context manager it closes that, too."""

    KIND: ClassVar[str]

    def __init__(self, context: Context, number: int) -> None:
        self.context = context
        self.number = number
        self.members: set[Any] = set()
        self._open = True
        context.hold(self)

    def checked(self) -> Self:
        """Itself; raises `ClosedError` when it is closed."""
        if not self._open:
            raise ClosedError(f"this {self.KIND} is closed")
        return self

    def close(self) -> None:
        """Free the domain.  Raises `InvalidStateError` while something in it is open."""
        with self.context.adapter.engine:
            self._close()

    def _close(self) -> None:
        if not self._open:
            return
        if self.members:
            kinds = ", ".join(sorted({type(m).__name__ for m in self.members}))
            raise InvalidStateError(f"the {self.KIND} still holds {len(self.members)} objects ({kinds})")
        self._free()
        self.context.let_go(self)

    def _free(self) -> None:
        """Give the number back, and be closed.  With the engine's lock held."""
        raise NotImplementedError

    def _in_order(self) -> list[Any]:
        """The members, those first that use others; other threads may still open and close some."""
        return list(self.members)

    def abandon(self) -> None:
        """`close` in the child of a fork, with all that is in it."""
        self._open = False
        for member in self.members:
            member.abandon()
        self.members.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._in_order():
            member.close()
        self.close()
