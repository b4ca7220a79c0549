"""Protection domains of a process of a host with modelled memory, and what is registered in them.

Work requests of such a domain name addresses of the process: effective ones, by the domain's own local key, and, for a
kernel process, virtual and physical ones (document 003:823).  They are translated at each request, with what the memory
manager says then.  Nothing here lets a process reach memory that the memory manager did not give it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from verbena.adapter.local_protection import LocalProtection
from verbena.adapter.protection_options import AddressKind
from verbena.errors import InvalidAttributeError
from verbena.memory.access import Access
from verbena.memory.process import Process
from verbena.transport.work import ScatterGatherEntry
from verbena.verbs.memory import ProtectionDomain
from verbena.verbs.regions import MemoryRegion, RegisteredMemory, require_access

if TYPE_CHECKING:
    from verbena.verbs.context import Context
    from verbena.verbs.queue_pair import QueuePair

RESERVED_KEYS = {AddressKind.EFFECTIVE: 0, AddressKind.VIRTUAL: 1}  # local keys of whole address spaces
REMOTE_WRITES = Access.REMOTE_WRITE | Access.REMOTE_ATOMIC


class ProcessDomain(ProtectionDomain):
    """A protection domain of a process.  Made by `Context.alloc_pd(process=…)`.

    process: whose addresses its work requests name.
    """

    def __init__(self, context: Context, protection: LocalProtection, process: Process) -> None:
        spaces = protection.open_domain(process)
        try:
            super().__init__(context)
            with context.adapter.engine:
                context.adapter.regions.tie(
                    self.number, spaces[AddressKind.EFFECTIVE], spaces.get(AddressKind.VIRTUAL)
                )
        except BaseException:
            protection.close_domain(process)
            raise
        self.process = process
        self._protection = protection

    # --- queue pairs --------------------------------------------------------------------------------------

    def create_qp(self, *arguments: Any, **options: Any) -> QueuePair:
        """`ProtectionDomain.create_qp`: OpenQP of figure 17.

        The driver gets the process's segment table from the memory manager.  When that refuses, its error is raised,
        and no queue pair was made.
        """
        made = super().create_qp(*arguments, **options)
        caps = made.capabilities
        try:
            self._protection.open_queue_pair(
                self.process, made.qp_num, made.type.name, (caps.max_send_wr, caps.max_recv_wr)
            )
        except BaseException:
            made.close()
            raise
        made.when_closed(partial(self._protection.close_queue_pair, self.process, made.qp_num))
        return made

    # --- addresses ----------------------------------------------------------------------------------------

    def sge(self, address: int, length: int, kind: AddressKind = AddressKind.EFFECTIVE) -> ScatterGatherEntry:
        """A piece of the process's memory for a work request's list, by its address.

        Whether the process may use it is seen when the request is executed.  kind: virtual addresses are for kernel
        processes (`PrivilegeError`); physical ones are registered first (`reg_range`).
        """
        self.checked()
        return ScatterGatherEntry(address, length, self.lkey(kind))

    def lkey(self, kind: AddressKind = AddressKind.EFFECTIVE) -> int:
        """The local key of all of the process's addresses of a kind.  Raises `PrivilegeError`."""
        self._protection.space_for(self.process, kind)
        if kind not in RESERVED_KEYS:
            raise InvalidAttributeError("physical addresses are registered first: reg_range(…, kind=…)")
        return RESERVED_KEYS[kind]

    # --- regions ------------------------------------------------------------------------------------------

    def reg_range(
        self,
        address: int,
        length: int,
        access: Access = Access.LOCAL_WRITE,
        *,
        kind: AddressKind = AddressKind.EFFECTIVE,
        pinned: bool = True,
        opaque: bool | None = None,
    ) -> ProcessRegion:
        """Register a range of the process's addresses: memory region with a local and a remote key (003:833).

        pinned: its pages are brought in, and stay in memory until it is closed; else they come when they are needed.
        opaque: peers name it by an address that tells nothing of the process's own (003:827); by default physical
        ranges are, others are not.

        Raises `InvalidAttributeError` for a range that the process may not use so, `PrivilegeError` for virtual and
        physical addresses of a user process, `PageFault` when there is no room to pin it.
        """
        if opaque is None:
            opaque = kind is AddressKind.PHYSICAL
        return ProcessRegion(self, self._protection, address, length, access, kind, pinned, opaque)

    def reg_address_space(self, access: Access) -> ProcessRegion:
        """Register all of the process's effective addresses at once, those that it will get included."""
        return ProcessRegion(self, self._protection, 0, None, access, AddressKind.EFFECTIVE, False, False)

    def reg_mr(self, buffer: Any, access: Access = Access.NONE, *, iova: int | None = None) -> MemoryRegion:
        """Not here: what a process of the host has is its addresses.  Raises `InvalidAttributeError`."""
        raise InvalidAttributeError(
            f"the domain is one of process {self.process.name}: it has that process's memory, take reg_range"
        )

    def alloc_mr(
        self, length: int, access: Access = Access.LOCAL_WRITE, *, iova: int | None = None
    ) -> MemoryRegion:
        """Not here: let the process allocate memory.  Raises `InvalidAttributeError`."""
        raise InvalidAttributeError(
            f"the domain is one of process {self.process.name}: take process.allocate, and reg_range"
        )

    # --- end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the domain.  Raises `InvalidStateError` while something in it is open."""
        with self.context.adapter.engine:
            if not self._open:
                return
            self._close()
        self._protection.close_domain(self.process)


class ProcessRegion(RegisteredMemory):
    """A range of a process's addresses, registered.  Made by `ProcessDomain.reg_range`; a context manager.

    addr: what work requests and peers call its first byte: the process's own address, or an opaque one.  kind: of
    address.  pinned: are its pages kept in memory until it is closed?
    """

    def __init__(
        self,
        pd: ProcessDomain,
        protection: LocalProtection,
        address: int,
        length: int | None,
        access: Access,
        kind: AddressKind,
        pinned: bool,
        opaque: bool,
    ) -> None:
        super().__init__(pd.checked())
        rights = require_access(access)
        self.kind = kind
        self.pinned = pinned
        self._protection = protection
        held = self._protection.register(
            pd.process, kind, address, length, write=bool(rights & Access.LOCAL_WRITE), pinned=pinned
        )
        try:
            with self._engine:
                pd.checked()
                named = _opaque(pd.context.adapter.random.getrandbits(48), address) if opaque else address
                found = self.table.register_pages(held.space, address, held.length, pd.number, rights, named)
                self._take(found, rights)
        except BaseException:
            self._protection.deregister(held)
            raise
        self._held = held

    def close(self) -> None:
        """Deregister: its keys open nothing from now on, and its pages may leave.

        Raises `InvalidStateError` while windows are bound to it; then nothing was changed.
        """
        if self._open:
            super().close()
            self._protection.deregister(self._held)


def _opaque(random: int, address: int) -> int:
    """A name for an address that tells nothing of it but how it is aligned to words, which atomic operations need."""
    return 1 << 63 | random << 12 | address & 7
