"""The translation interface: how a host's memory manager keeps an adapter's address spaces current.

`ChannelAdapter.memory` is the driver's privileged side (document 003:776-800): processes have no way to it.  A space
holds the translation of one process, page by page; a protection domain that is tied to it lets its work requests name
the process's addresses by the reserved local key, and bind remote keys to them, without registration.

Who manages the memory sets `on_page_fault` to learn which pages to bring in, in spaces that page on demand; it is
called outside the adapter's lock, may call anything here at once or later, and answers each fault with `set_page` or
`fail_page`. Accesses that are refused because a page is absent are asynchronous errors, `AsyncEventType.PAGE_FAULT`
(003:882).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from verbena.adapter.gid import Gid
from verbena.memory.access import Access

if TYPE_CHECKING:
    from verbena.memory.windows import WindowTable


@dataclass(frozen=True, slots=True)
class PageFault:
    """A page that the host shall bring in.

    space, page: which; page is the address divided by the page size.  write: will it be written to?  key, qp_num: the
    key that it was met by, and the queue pair (0 for the adapter's own access to local memory).
    """

    space: int
    page: int
    write: bool
    key: int
    qp_num: int


@dataclass(frozen=True, slots=True)
class PageError:
    """An access that was refused because a page was absent: by which key, on which queue pair.

    address: what the key calls the first byte that was missing; it is in that page of that space.
    """

    key: int
    address: int
    qp_num: int
    remote: bool
    space: int
    page: int


@dataclass(frozen=True, slots=True)
class RefusedAccess:
    """An access that was not granted: when (ns), by a peer or by a local work request, why, and what was asked for."""

    when: int
    remote: bool
    reason: str
    key: int
    address: int
    length: int
    qp_num: int
    access: int


@dataclass(frozen=True, slots=True)
class KeyUse:
    """An operation of a peer that a key granted: when (ns), and to whom.

    key, address, length: as the operation named them.  qp_num: the queue pair that it came by.  peer_qp_num, peer: who
    asked, a queue pair of the adapter with this GID.  access: REMOTE_READ, REMOTE_WRITE or REMOTE_ATOMIC.
    """

    when: int
    key: int
    address: int
    length: int
    qp_num: int
    peer_qp_num: int
    peer: Gid
    access: Access


class AddressSpaces:
    """An adapter's address spaces (see `memory.spaces`).  All calls take its lock and may come from any thread.

    on_work: called when queue pairs may go on.
    """

    def __init__(self, engine: Any, table: WindowTable, on_work: Callable[[], None]) -> None:
        self._engine = engine
        self._table: Any = table
        self._on_work = on_work
        self.on_page_fault: Callable[[PageFault], None] | None = None

    # --- spaces ---------------------------------------------------------------------------------------------

    def make_space(self, page_bits: int = 12, *, on_demand: bool = False) -> int:
        """A new space without pages of 2^page_bits bytes each (12 to 40); returns its number.

        on_demand: an access to a page that is out waits for the host; else it is refused, with an asynchronous error.
        Raises `InvalidAttributeError`, `ResourceError`.
        """
        with self._engine:
            return int(self._table.make_space(page_bits, on_demand))

    def free_space(self, space: int) -> None:
        """Forget a space; raises `InvalidStateError` while domains, regions or keys use it."""
        with self._engine:
            self._table.free_space(space)

    def set_on_demand(self, space: int, on_demand: bool) -> None:
        """Change what becomes of an access to a page that is out."""
        with self._engine:
            self._table.set_on_demand(space, on_demand)
        self._resume()

    def add_range(self, space: int, first: int, pages: int, writable: bool = True) -> None:
        """A segment appears: these pages belong to the space, and are out until they are set."""
        with self._engine:
            self._table.add_range(space, first, pages, writable)

    def remove_range(self, space: int, first: int, pages: int) -> None:
        """A segment, or a part of one, goes: at once, its addresses are invalid."""
        with self._engine:
            self._table.remove_range(space, first, pages)
        self._resume()

    # --- pages ----------------------------------------------------------------------------------------------

    def set_page(
        self, space: int, page: int, frame: Any, writable: bool = True, *, readable: bool = True
    ) -> None:
        """A page is in, in this frame: a writable buffer of a page's size, held until the page is set or taken again.

        readable, writable: its protection.  Whoever waited for the page goes on.
        """
        with self._engine:
            self._table.set_page(space, page, frame, writable, readable)
        self._resume()

    def set_pages(self, space: int, page: int, buffer: Any, writable: bool = True) -> None:
        """Consecutive pages are in, one behind the other in one buffer, whose size is a multiple of theirs."""
        with self._engine:
            self._table.set_pages(space, page, buffer, writable)
        self._resume()

    def clear_page(self, space: int, page: int) -> None:
        """A page is swapped out: it has no frame, and keeps its protection."""
        with self._engine:
            self._table.clear_page(space, page)

    def fail_page(self, space: int, page: int) -> None:
        """A page cannot be brought in: who waits for it is refused, as an absent page is."""
        with self._engine:
            self._table.fail_page(space, page)
        self._resume()

    def protect_page(self, space: int, page: int, writable: bool, *, readable: bool = True) -> None:
        """Change a page's protection, in or out; raises `InvalidAttributeError` when the space has none such."""
        with self._engine:
            self._table.protect_page(space, page, writable, readable)
        self._resume()

    def drop_page(self, space: int, page: int) -> None:
        """Forget a page: unless a range holds it, its addresses are invalid from now on."""
        with self._engine:
            self._table.drop_page(space, page)
        self._resume()

    def page(self, space: int, page: int) -> tuple[bool, bool, bool] | None:
        """(in, readable, writable) of a page; None where the space has no entry for it."""
        with self._engine:
            found: tuple[bool, bool, bool] | None = self._table.page(space, page)
        return found

    def describe(self, space: int) -> dict[str, Any]:
        """page_bits, on_demand, pages (entries), pages_in, users, ranges (first, pages, writable) of a space."""
        with self._engine:
            found: dict[str, Any] = self._table.describe_space(space)
        return found

    # --- protection domains ---------------------------------------------------------------------------------

    def tie(self, domain: int, space: int, virtual: int | None = None) -> None:
        """Tie a protection domain (its number) to a space; virtual: for kernel consumers, that of virtual addresses."""
        with self._engine:
            self._table.tie(domain, space, virtual)

    def untie(self, domain: int) -> None:
        """Undo `tie`; raises `InvalidStateError` while keys are bound in the space."""
        with self._engine:
            self._table.untie(domain)

    # --- what people look at ----------------------------------------------------------------------------------

    def list_keys(self) -> list[dict[str, Any]]:
        """Every key of the adapter: what it opens, to whom, and who used it last.

        Of each: kind, state, local_key, remote_key, domain, address, length, access, space, qp_num (type 2), one_shot,
        parent and index (the parent's index), windows (bound to it), uses, bytes, refusals, last_used_ns, last_qp,
        last_peer_qp.
        """
        with self._engine:
            found: list[dict[str, Any]] = self._table.list_keys()
        return found

    def refusals(self) -> list[RefusedAccess]:
        """The newest accesses that were not granted, at most 256, oldest first."""
        with self._engine:
            return [RefusedAccess(*refusal) for refusal in self._table.refusals()]

    def uses(self) -> list[KeyUse]:
        """The newest operations that keys have granted to peers, at most 256, oldest first."""
        with self._engine:
            uses: list[tuple[int, int, int, int, int, int, bytes, int]] = self._table.uses()
        return [
            KeyUse(when, key, address, length, qp_num, peer, Gid(gid), Access(access))
            for when, key, address, length, qp_num, peer, gid, access in uses
        ]

    # --- reports --------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Who waits for a page looks again."""
        with self._engine:
            parked = self._engine.pages_came()
        if parked:
            self._on_work()

    def dispatch(self) -> list[PageError]:
        """Tell the host which pages to bring in; returns the accesses that were refused for want of one."""
        handler = self.on_page_fault
        if handler is not None:
            for fault in self._engine.take_faults():
                handler(PageFault(*fault))
        return [PageError(*error) for error in self._engine.page_errors()]

    def pending_faults(self) -> int:
        """How many pages are waited for."""
        return int(self._table.pending_faults())
