"""Message pools: registered memory in slots, handed out, counted and given back (document 000:102, figure 4).

A message is posted from where it lies, to as many destinations as it has: each posting takes a reference, each
completion gives one back, and the slot returns to the pool after the last one (document 000:38, 128: no copy for each
channel).
"""

from __future__ import annotations

from typing import Any

from verbena.memory.access import Access
from verbena.transport.work import RecvRequest, ScatterGatherEntry
from verbena.verbs.memory import ProtectionDomain
from verbena.verbs.regions import MemoryRegion


class Message:
    """A slot of a pool, while it is in use.

    at: where the slot begins in the pool's region.  length: bytes of message in it, with its header.  references:
    postings that have not completed, and whoever is still making it.
    """

    __slots__ = ("at", "length", "number", "place", "pool", "references")

    def __init__(self, pool: MessagePool, place: int) -> None:
        self.pool = pool
        self.place = place
        self.at = place * pool.size
        self.length = 0
        self.number = 0
        self.references = 0

    def hold(self) -> None:
        self.references += 1

    def release(self) -> None:
        """One posting has completed."""
        self.references -= 1
        if not self.references:
            self.pool._give_back(self)


class MessagePool:
    """`count` slots of `size` bytes in one memory region.  `taken`: how often one was handed out."""

    def __init__(self, domain: ProtectionDomain, count: int, size: int) -> None:
        self.count = count
        self.size = size
        self.taken = 0
        self.region: MemoryRegion = domain.alloc_mr(count * size, Access.LOCAL_WRITE)
        self.buf: Any = self.region.buf
        self.lkey = self.region.lkey
        self._slots = [Message(self, place) for place in range(count)]
        self._free = list(self._slots)

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> Message | None:
        """A slot with one reference; None when all are in use."""
        if not self._free:
            return None
        self.taken += 1
        message = self._free.pop()
        message.references = 1
        return message

    def _give_back(self, message: Message) -> None:
        self._free.append(message)

    def sge(self, message: Message, offset: int, length: int) -> ScatterGatherEntry:
        """A piece of a slot."""
        return ScatterGatherEntry(self.region.addr + message.at + offset, length, self.lkey)

    def close(self) -> None:
        self.region.close()


class ReceivePool:
    """`count` receive buffers of `size` bytes, with the request of each made beforehand.

    base: is added to a buffer's place to make the number of its request.
    """

    def __init__(self, domain: ProtectionDomain, count: int, size: int, base: int) -> None:
        self.count = count
        self.size = size
        self.region: MemoryRegion = domain.alloc_mr(count * size, Access.LOCAL_WRITE)
        self.buf: Any = self.region.buf
        self.requests = [
            RecvRequest(base | place, [self.region.sge(place * size, size)]) for place in range(count)
        ]

    def close(self) -> None:
        self.region.close()
