"""A process of a host: a consumer's view of the host's memory (document 003, 508, 510, 516 of figure 12).

All that a process has is effective addresses, and the system calls below; the tables behind them belong to the memory
manager.  A kernel process may also ask for virtual and physical addresses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from verbena.memory.protection import Protection

if TYPE_CHECKING:
    from verbena.memory.manager import VirtualMemoryManager


class Process:
    """Made by `VirtualMemoryManager.create_process`.  name: for people.  kernel: a kernel process.

    Addresses are effective ones, 64-bit numbers as they stand in work requests.  Loads and stores go through the
    process's segment table and the page table, and bring pages in that are not in memory.
    """

    __slots__ = ("__weakref__", "_calls", "kernel", "name")
    name: str
    kernel: bool
    _calls: VirtualMemoryManager

    def __init__(self, calls: VirtualMemoryManager, name: str, kernel: bool) -> None:
        object.__setattr__(self, "_calls", calls)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "kernel", kernel)

    def __setattr__(self, name: str, value: object) -> None:
        """A process cannot make itself a kernel process, nor change what the memory manager knows it by."""
        raise AttributeError(f"{name} of a process cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name} of a process cannot be deleted")

    # --- memory -------------------------------------------------------------------------------------------

    def allocate(self, length: int, protection: Protection = Protection.READ_WRITE) -> int:
        """New memory, all zero, in segments of its own; returns its effective address.  length: bytes.

        It is made of whole pages, and takes up physical memory only when it is used.  Raises `ResourceError`,
        `InvalidAttributeError`.
        """
        return self._calls.allocate(self, length, protection)

    def resize(self, address: int, length: int) -> None:
        """Let memory that this process allocated grow or shrink; what is cut off is lost.

        Raises `ResourceError` when the segment behind it is taken, `InvalidAttributeError`.
        """
        self._calls.resize(self, address, length)

    def free(self, address: int) -> None:
        """Give memory back.  Other processes that share it keep it."""
        self._calls.free(self, address)

    def protect(self, address: int, length: int, protection: Protection) -> None:
        """Change the page protection of whole pages that this process allocated."""
        self._calls.protect(self, address, length, protection)

    def pin(self, address: int, length: int) -> None:
        """Keep pages in memory.  Raises `PageFault` when there is no room; then none was pinned."""
        self._calls.pin(self, address, length)

    def unpin(self, address: int, length: int) -> None:
        """Undo one `pin` of the same pages."""
        self._calls.unpin(self, address, length)

    def read(self, address: int, length: int) -> bytes:
        """Load bytes.  Raises `SegmentFault`, `ProtectionFault`, `PageFault`."""
        return self._calls.load(self, address, length)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes.  Raises `SegmentFault`, `ProtectionFault` (nothing was stored), `PageFault`."""
        self._calls.store(self, address, data)

    # --- kernel processes ---------------------------------------------------------------------------------

    def virtual_address(self, address: int) -> int:
        """The virtual address of one of this process's effective ones.  Raises `PrivilegeError` for a user process."""
        return self._calls.virtual_address(self, address)

    def physical_address(self, virtual: int, *, write: bool = False) -> int:
        """The physical address behind a virtual one, by a kernel call (document 003:823); its page must be pinned.

        Raises `PrivilegeError` for a user process, `PageFault`, `ProtectionFault`.
        """
        return self._calls.physical_address(self, virtual, write=write)

    def __repr__(self) -> str:
        return f"<Process {self.name}{', kernel' if self.kernel else ''}>"
