"""Registered memory: buffers of this process, ranges of an address space, and regions that a work request registers."""

from __future__ import annotations

import contextlib
from types import NoneType
from typing import TYPE_CHECKING, Any

from verbena.errors import ClosedError, InvalidAttributeError
from verbena.memory.access import Access
from verbena.transport.local import FastRegistration
from verbena.transport.work import ScatterGatherEntry

if TYPE_CHECKING:
    from verbena.verbs.memory import ProtectionDomain


def require_access(value: object) -> int:
    """The rights as a number; raises `InvalidAttributeError` for anything else."""
    if not isinstance(value, int):
        raise InvalidAttributeError(f"access = {value!r}: combine members of Access")
    return int(value)


class RegisteredMemory:
    """What has a local and a remote key.  A context manager.

    addr: the I/O virtual address of its first byte (not the process's pointer).  length: bytes.  lkey, rkey: what work
    requests and peers show to use it.
    """

    addr: int
    length: int
    lkey: int
    rkey: int

    def __init__(self, pd: ProtectionDomain) -> None:
        self.pd = pd
        self._engine = pd.context.adapter.engine
        self.table: Any = pd.context.adapter.regions
        self.index = 0
        self.access = Access.NONE
        self._open = False

    def _take(self, found: tuple[int, int, int, int, int], access: int) -> None:
        """Note what the adapter's table gave."""
        self.index, self.addr, self.length, self.lkey, self.rkey = found
        self.access = Access(access)
        self._open = True
        self.pd.members.add(self)

    def _checked(self) -> None:
        if not self._open:
            raise ClosedError("this memory region is closed")

    def sge(self, offset: int = 0, length: int | None = None) -> ScatterGatherEntry:
        """A piece of the region for a work request's list; by default all of it.  Raises `InvalidAttributeError`."""
        self._checked()
        if not isinstance(offset, int) or not isinstance(length, (int, NoneType)):
            raise InvalidAttributeError(f"offset = {offset!r}, length = {length!r}: numbers of bytes")
        if length is None:
            length = self.length - offset
        if offset < 0 or length < 0 or offset + length > self.length:
            raise InvalidAttributeError(
                f"bytes {offset} to {offset + length} are not within the region's {self.length}"
            )
        return ScatterGatherEntry(self.addr + offset, length, self.lkey)

    def close(self) -> None:
        """Deregister: its keys open nothing from now on.

        Raises `InvalidStateError` while windows are bound to it; then nothing was changed.
        """
        with self._engine:
            if not self._open:
                return
            self.table.deregister(self.index)
            self._open = False
            self.pd.members.discard(self)
            self._release()

    def _release(self) -> None:
        """Let go of what is only of use while it is open."""

    def abandon(self) -> None:
        """`close` in the child of a fork."""
        self._open = False

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.length} bytes at {self.addr:#x}, rkey {self.rkey:#x}, {self.access!r}>"


class MemoryRegion(RegisteredMemory):
    """A registered buffer.  Made by `ProtectionDomain.reg_mr` and `alloc_mr`.  buf: its bytes."""

    def __init__(self, pd: ProtectionDomain, buffer: Any, access: Access, iova: int | None) -> None:
        super().__init__(pd)
        rights = require_access(access)
        view = _buffer_view(buffer, iova)
        with self._engine:
            pd.checked()
            self._take(self.table.register(view, pd.number, rights, iova), rights)
        self._look_at(view)

    def _look_at(self, view: memoryview) -> None:
        self.buf: memoryview = view.cast("B") if view.nbytes else memoryview(bytearray())
        self._view = view

    def rereg(
        self,
        buffer: Any = None,
        access: Access | None = None,
        pd: ProtectionDomain | None = None,
        *,
        iova: int | None = None,
    ) -> None:
        """Change its memory, its rights, its domain, or several of them (IBA vol. 1, 11.2.8.5); its keys are new.

        Raises `InvalidStateError` while windows are bound to it, `InvalidAttributeError`; then nothing was changed.
        """
        self._checked()
        domain = self.pd if pd is None else pd.checked()
        if domain.context is not self.pd.context:
            raise InvalidAttributeError("pd belongs to another adapter")
        rights = require_access(self.access if access is None else access)
        view = None if buffer is None else _buffer_view(buffer, iova)
        if view is None and iova is not None:
            raise InvalidAttributeError("iova: an address is changed together with the buffer")
        with self._engine:
            found = self.table.reregister(self.index, domain.number, rights, view, iova)
            self.pd.members.discard(self)
            self.pd = domain
            self._take(found, rights)
            if view is not None:
                self._release()
                self._look_at(view)

    def _release(self) -> None:
        for view in (self.buf, self._view):
            with contextlib.suppress(BufferError):  # the program looks into it, through an array for example
                view.release()


def _buffer_view(buffer: Any, iova: int | None) -> memoryview:
    """The bytes of a buffer; raises `InvalidAttributeError` for what cannot be registered."""
    if iova is not None and not isinstance(iova, int):
        raise InvalidAttributeError(f"iova = {iova!r}: a 64-bit address, or None")
    try:
        view = memoryview(buffer)
    except TypeError:
        raise InvalidAttributeError(
            f"a {type(buffer).__name__} has no buffer to register: use a bytearray, numpy array, mmap, …"
        ) from None
    except (BufferError, ValueError) as error:  # a closed mmap, an array of dates, …
        raise InvalidAttributeError(
            f"this {type(buffer).__name__} gives no access to its bytes: {error}"
        ) from None
    if "O" in view.format:
        raise InvalidAttributeError("an array of Python objects cannot be registered: peers exchange bytes")
    return view


class PagedRegion(RegisteredMemory):
    """A range of the address space that the protection domain is tied to.  Made by `ProtectionDomain.reg_space`.

    Its pages need not be in; whether an access waits for one that is out, or is refused, is the space's choice.
    """

    def __init__(
        self, pd: ProtectionDomain, address: int, length: int | None, access: Access, iova: int | None
    ) -> None:
        super().__init__(pd)
        rights = require_access(access)
        with self._engine:
            space, _ = self.table.tied(pd.checked().number)
            if space is None:
                raise InvalidAttributeError("the protection domain has no address space: use reg_mr")
            if length is not None and length and self.table.authority_of(space, address, length, rights):
                raise InvalidAttributeError(
                    f"invalid parameter: {length} bytes at {address:#x} are not all this process's to give away"
                )
            self._take(self.table.register_pages(space, address, length, pd.number, rights, iova), rights)


class FastMemoryRegion(RegisteredMemory):
    """A region that has no memory until REG_MR gives it a page list (IBA vol. 1, 10.6.4.2).

    Made by `ProtectionDomain.alloc_fast_reg_mr`.  LOCAL_INV, or a peer's SEND with invalidate, takes the memory away;
    only then it can be given another.  lkey and rkey are one, and with addr and length what the last REG_MR posted
    says.
    """

    def __init__(self, pd: ProtectionDomain, max_pages: int, page_bits: int) -> None:
        super().__init__(pd)
        if not isinstance(max_pages, int) or max_pages < 1:
            raise InvalidAttributeError(f"max_pages = {max_pages!r}: 1 or more")
        with self._engine:
            self._take(self.table.alloc_fast_region(pd.checked().number, page_bits, max_pages), 0)

    def posted(self, what: FastRegistration, key: int) -> None:
        """A REG_MR for it was posted."""
        self.addr, self.length, self.access = what.iova, what.length, Access(what.access)
        self.lkey = self.rkey = key
