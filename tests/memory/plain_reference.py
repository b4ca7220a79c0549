"""Who may touch what: a plain reference for hosts, processes, keys and remote operations.

It knows nothing of tables, caches, frames or packets.  Memory is pieces of bytes that processes have views of; a key is
a range of a process's addresses; and an operation is allowed, or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from verbena import Access
from verbena.memory.protection import Protection

PAGE = 4096


@dataclass(eq=False)
class Piece:
    """Memory: its bytes, and what each page may be used for.  owner: the process that may resize it."""

    owner: int | None
    usual: Protection
    data: bytearray
    pages: list[Protection]
    views: list[View] = field(default_factory=list)


@dataclass(eq=False)
class View:
    """A process's mapping of a piece, at an address."""

    process: int
    piece: Piece
    address: int
    protection: Protection
    valid: bool = True

    @property
    def end(self) -> int:
        return self.address + len(self.piece.data)


@dataclass(eq=False)
class Key:
    """A remote key of a process.  bound: address, length and rights, or None.  spent: a one-shot key, after its use."""

    process: int
    one_shot: bool
    bound: tuple[int, int, Access] | None = None
    spent: bool = False


class Reference:
    """All pieces of a host, and what each of its processes may do."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []

    def views(self) -> list[View]:
        return [view for piece in self.pieces for view in piece.views]

    def parts(self, process: int, address: int, length: int) -> list[tuple[View, int, int]] | None:
        """A range of a process's addresses in pieces: view, offset, length; None where a byte is in none."""
        found = []
        while length:
            view = next(
                (
                    v
                    for v in self.views()
                    if v.process == process and v.valid and v.address <= address < v.end
                ),
                None,
            )
            if view is None:
                return None
            part = min(length, view.end - address)
            found.append((view, address - view.address, part))
            address += part
            length -= part
        return found

    def may(self, process: int, address: int, length: int, write: bool) -> bool:
        """May a process touch all of a range so?"""
        need = Protection.WRITE if write else Protection.READ
        parts = self.parts(process, address, length)
        return parts is not None and all(
            view.protection & need
            and all(view.piece.pages[page] & need for page in range(at // PAGE, (at + n - 1) // PAGE + 1))
            for view, at, n in parts
        )

    def get(self, process: int, address: int, length: int) -> bytes:
        parts = self.parts(process, address, length)
        assert parts is not None
        return b"".join(bytes(view.piece.data[at : at + n]) for view, at, n in parts)

    def put(self, process: int, address: int, data: bytes) -> None:
        parts = self.parts(process, address, len(data))
        assert parts is not None
        done = 0
        for view, at, n in parts:
            view.piece.data[at : at + n] = data[done : done + n]
            done += n

    def may_bind(self, process: int, address: int, length: int, access: Access) -> bool:
        """Has a process authority over a range, for these remote rights?"""
        write = bool(access & (Access.REMOTE_WRITE | Access.REMOTE_ATOMIC))
        return self.may(process, address, length, write)

    def may_use(
        self, key: Key, queue_pair_of: int, address: int, length: int, right: Access, *, look: bool = True
    ) -> bool:
        """May a peer, by a queue pair of a process, use a key so?  look: at the memory behind it, too."""
        if key.bound is None or key.spent or key.process != queue_pair_of:
            return False
        begin, size, rights = key.bound
        if not rights & right or not begin <= address or address + length > begin + size:
            return False
        return not look or self.may(key.process, address, length, right is not Access.REMOTE_READ)
