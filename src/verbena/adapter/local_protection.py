"""Local memory protection: the driver of an adapter (SANIC driver 526, document 003) and the host's memory manager.

When the first queue pair of a process is opened, the driver gets the process's segment table from the memory manager,
and is told of its changes from then on (figure 17, steps 602 to 610).  The table, and what else the queue pairs of a
process have in common, is kept once for all of them.  What the adapter translates with is an address space
(`memory.spaces`): ranges for the segments, and pages for the translations that it has cached; the driver is the only
one that writes to it, and it keeps it so that nothing stale is ever in it: before a frame is given to another page, its
translation is gone.

A process has no way to any of this.  The state of a queue pair is reached from the memory manager alone, as a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from verbena.adapter.local_tables import LocalTables
from verbena.adapter.page_faults import PageFaults
from verbena.adapter.process_state import CommonState
from verbena.adapter.protection_options import AddressKind, ProtectionOptions
from verbena.adapter.translations import AddressSpaceTable
from verbena.clock import Clock
from verbena.errors import InvalidAttributeError, PrivilegeError
from verbena.memory.frames import PageKey
from verbena.memory.manager import VirtualMemoryManager
from verbena.memory.pinning import Pinned
from verbena.memory.process import Process
from verbena.memory.protection import allows
from verbena.memory.report import AdapterSnapshot, SavedState
from verbena.memory.trace import MemoryVerb

SMALLEST_OFFSET_BITS = 12  # an adapter's pages have 4 KiB or more
# An adapter waits until so many pages of a long access are in, before it begins: a small share of the frames, so that
# the pages that one access waits for never put one another out.
MOST_AHEAD = 64
SHARE_AHEAD = 8


@dataclass(frozen=True, slots=True)
class RegisteredRange:
    """A registered range: the adapter's address space that it is in, and the pages that are held for it."""

    process: Process
    space: int
    length: int
    pins: list[Pinned]


class LocalProtection(LocalTables):
    """The driver of one adapter, towards the memory manager of its host.

    spaces: the adapter's address spaces.  lock: held while they are changed.  kick: called when something changed that
    the adapter may wait for, without any lock.  name: for people.
    """

    def __init__(
        self,
        memory: VirtualMemoryManager,
        spaces: AddressSpaceTable,
        clock: Clock,
        options: ProtectionOptions,
        *,
        name: str = "adapter",
        lock: AbstractContextManager[Any],
        kick: Callable[[], None] = lambda: None,
    ) -> None:
        if memory.form.offset_bits < SMALLEST_OFFSET_BITS:
            raise InvalidAttributeError(
                f"pages of {memory.form.page_size} bytes: an adapter needs {1 << SMALLEST_OFFSET_BITS} or more"
            )
        super().__init__(memory, spaces, options, name, lock)
        self._clock = clock
        self._kick = kick
        self._faults = PageFaults(
            memory, clock, self._serve, self._key_of, self._bring, self._refuse, self._kick_later
        )
        self._kicking = False
        self._open = True
        self._made = 0
        memory.attach_driver(self, clock)

    def close(self) -> None:
        """The adapter is gone."""
        self._open = False
        self._faults.close()
        self._memory.detach_driver(self)

    def _kick_later(self) -> None:
        """Let the adapter look again, when the memory manager is done with what it is doing."""
        if not self._kicking:
            self._kicking = True
            self._clock.call_at(self._clock.now(), self._kick_now)

    def _kick_now(self) -> None:
        self._kicking = False
        if self._open:
            self._kick()

    # --- protection domains and queue pairs ---------------------------------------------------------------

    def open_domain(self, process: Process) -> dict[AddressKind, int]:
        """A protection domain of a process was made; returns the address spaces that it may use, by kind of address.

        A user process has effective addresses only (003:762).
        """
        with self._memory.held(), self._lock:
            state = self._states.get(process)
            if state is None:
                if process not in self._memory.processes:
                    raise InvalidAttributeError(f"{process!r} is no process of this adapter's host")
                state = self._states[process] = self._make_state(process)
            state.domains += 1
            return dict(state.spaces)

    def _make_state(self, process: Process) -> CommonState:
        demand = self._options.page_faults == "swap-in"
        bits = self._form.offset_bits
        ahead = max(1, min(MOST_AHEAD, self._memory.frame_count // SHARE_AHEAD))
        self._made += 1
        spaces = {AddressKind.EFFECTIVE: self._spaces.make_space(bits, demand, ahead)}
        state = CommonState(self._made, process, spaces)
        if process.kernel and self._form.virtual_bits <= 64:
            virtual = state.spaces[AddressKind.VIRTUAL] = self._spaces.make_space(bits, demand, ahead)
            self._spaces.add_range(virtual, 0, 1 << (self._form.virtual_bits - bits), True)
        if process.kernel:
            physical = state.spaces[AddressKind.PHYSICAL] = self._spaces.make_space(bits, False)
            for frame in range(self._memory.frame_count):
                self._spaces.set_page(physical, frame, self._memory.frame_view(frame), True)
        for kind, space in state.spaces.items():
            self._by_space[space] = state, kind
        return state

    def close_domain(self, process: Process) -> None:
        """A protection domain of the process is gone; with the last one, the process's address spaces."""
        with self._memory.held(), self._lock:
            state = self._states[process]
            state.domains -= 1
            if state.domains:
                return
            del self._states[process]
            for space in state.spaces.values():
                self._translations.forget(space, 0, 1 << 64)
                self._spaces.free_space(space)
                del self._by_space[space]

    def open_queue_pair(self, process: Process, number: int, service: str, sizes: tuple[int, int]) -> None:
        """Steps 602 and 604: a queue pair is opened, its state saved, with the process's segment table.

        Raises `InvalidAttributeError` and `PrivilegeError` when the memory manager refuses; then nothing was saved.
        """
        trace = self._memory.trace
        with self._memory.held():
            state = self._states[process]
            trace.note(MemoryVerb.OPEN_QP, process.name, f"{service} queue pair {number:#x} at {self._name}")
            if state.table is None:
                shared = self._options.segment_tables == "shared"
                state.table = self._memory.register_driver(process, self, shared=shared)
                with self._lock:
                    for entry in state.table.entries():
                        self._follow(state, entry.segment, entry)
                    self._show_virtual(state)
            state.queue_pairs[number] = (service, sizes)

    def close_queue_pair(self, process: Process, number: int) -> None:
        """The queue pair is gone; with the process's last one, the copy of its segment table."""
        with self._memory.held():
            state = self._states[process]
            del state.queue_pairs[number]
            self._memory.trace.note(
                MemoryVerb.CLOSE_QP, process.name, f"queue pair {number:#x} at {self._name}"
            )
            if not state.queue_pairs:
                self._memory.unregister_driver(process, self)
                self._forget_table(state)

    # --- page faults --------------------------------------------------------------------------------------

    def fault(self, space: int, number: int, write: bool, qp_num: int = 0) -> None:
        """The adapter misses a page of one of the spaces, for an operation of a queue pair (0: local memory).

        It is mapped, brought in, or refused, but not before this returns.
        """
        self._faults.add((space, number, write, qp_num))

    def _serve(self, space: int, number: int, write: bool) -> bool:
        """Map or refuse a page, if that can be done at once: False where it has to be brought in."""
        found = self._find(space, number, write)
        if found is None:
            return True
        state, key, writable = found
        trace, name = self._memory.trace, state.process.name
        kind = self._by_space[space][1]
        trace.note(
            MemoryVerb.PAGE_FAULT, name, f"page {number:#x} of its {kind.value} addresses at {self._name}"
        )
        if kind is AddressKind.EFFECTIVE:
            segment, page = divmod(number, self._form.segment_pages)
            trace.note(
                MemoryVerb.TRANSLATE_EFFECTIVE_ADDRESS,
                name,
                f"segment {segment:#x} page {page:#x} -> virtual page {key[0]:#x}:{key[1]:#x}",
            )
        with self._lock:
            return self._map(space, number, key, writable)

    def _find(self, space: int, number: int, write: bool) -> tuple[CommonState, PageKey, bool] | None:
        """Step 606: the virtual page behind a page of a space; None when it was refused, or the space is gone."""
        if not self._open or space not in self._by_space:
            return None
        state, kind = self._by_space[space]
        high, page = divmod(number, self._form.segment_pages)
        if kind is AddressKind.VIRTUAL:
            return state, (high, page), True
        entry = None if state.table is None else state.table.find(high)
        if (
            kind is not AddressKind.EFFECTIVE
            or entry is None
            or not entry.valid
            or page << self._form.offset_bits >= entry.length
            or not allows(entry.protection, write)
        ):
            self._refuse(space, number, "no valid segment")
            return None
        return state, (entry.upper, page), allows(entry.protection, True)

    def _key_of(self, space: int, number: int, write: bool) -> PageKey | None:
        found = self._find(space, number, write)
        return None if found is None else found[1]

    def _bring(self, space: int, number: int, write: bool) -> None:
        found = self._find(space, number, write)
        if found is not None:
            with self._lock:
                self._map(space, number, found[1], found[2])

    def _refuse(self, space: int, number: int, why: str) -> None:
        name = self._by_space[space][0].process.name
        self._memory.trace.note(MemoryVerb.FAULT_REFUSED, name, f"page {number:#x}: {why}")
        with self._lock:
            self._translations.fail((space, number))
        self._kick_later()

    # --- regions ------------------------------------------------------------------------------------------

    def register(
        self,
        process: Process,
        kind: AddressKind,
        address: int,
        length: int | None,
        *,
        write: bool,
        pinned: bool,
    ) -> RegisteredRange:
        """A process registers a range of its addresses (None: all of them).

        Raises `InvalidAttributeError` where the process may not do that, `PrivilegeError`, `PageFault`.
        """
        space = self.space_for(process, kind)
        whole = length is None
        length = 1 << 64 if length is None else length
        if not isinstance(address, int) or not isinstance(length, int) or address < 0 or length < 1:
            raise InvalidAttributeError(
                f"address = {address!r}, length = {length!r}: a range of 1 byte or more"
            )
        if address + length > 1 << 64:
            raise InvalidAttributeError("the range ends beyond 64-bit addresses")
        pins: list[Pinned] = []
        with self._memory.held():
            if kind is AddressKind.EFFECTIVE and not whole:
                self._memory.check_authority(process, address, length, write)
            if (
                kind is AddressKind.PHYSICAL
                and address + length > self._memory.frame_count << self._form.offset_bits
            ):
                raise InvalidAttributeError("the range is beyond the physical memory")
            if pinned and not whole and kind is not AddressKind.PHYSICAL:
                pin = self._memory.pin_pages if kind is AddressKind.EFFECTIVE else self._memory.pin_virtual
                pins = pin(process, address, length)
            self._memory.trace.note(
                MemoryVerb.REGISTER_MEMORY,
                process.name,
                f"{kind.value} {address:#x}, {length} bytes{', pinned' if pins else ''} at {self._name}",
            )
        return RegisteredRange(process, space, length, pins)

    def deregister(self, held: RegisteredRange) -> None:
        """The range is not registered any more."""
        self._memory.unpin_pages(held.pins)
        self._memory.trace.note(
            MemoryVerb.DEREGISTER_MEMORY, held.process.name, f"{held.length} bytes at {self._name}"
        )

    # --- for kernel processes -----------------------------------------------------------------------------

    def space_for(self, process: Process, kind: AddressKind) -> int:
        """The address space for a kind of address.  Raises `PrivilegeError` where the process has no such addresses."""
        space = self._states[process].spaces.get(kind)
        if space is not None:
            return space
        if process.kernel:
            raise InvalidAttributeError(
                f"{self._form.virtual_bits}-bit virtual addresses do not fit a work request: make them 64 bits wide"
            )
        raise PrivilegeError(
            f"{process.name} is a user process: it may use effective addresses, not {kind.value} ones"
        )

    # --- for who runs the host ----------------------------------------------------------------------------

    def saved_state(self, number: int) -> SavedState | None:
        """See `memory.drivers.MemoryDriver`."""
        shared = self._options.segment_tables == "shared"
        for state in self._states.values():
            if number in state.queue_pairs and state.table is not None:
                return state.saved(number, shared)
        return None

    def report(self) -> AdapterSnapshot:
        """See `memory.drivers.MemoryDriver`."""
        states = [
            self.saved_state(number)
            for state in self._states.values()
            for number in sorted(state.queue_pairs)
        ]
        return AdapterSnapshot(
            name=self._name,
            page_table=id(self._table),
            private=self._private is not None,
            table_size=self._table.size,
            queue_pairs=tuple(state for state in states if state is not None),
            spaces=tuple(
                (state.process.name, kind.value, self._translations.count(space))
                for space, (state, kind) in self._by_space.items()
                if kind is not AddressKind.PHYSICAL
            ),
            swap_ins=self._faults.swap_ins,
        )
