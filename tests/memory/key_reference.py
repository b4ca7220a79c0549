"""The plain reference of remote keys: who may touch what, in few words.  It knows no tables and no packets.

A `Space` is what one domain's keys may be bound in; a `Key` is what its owner has done with it.  Both are told what the
owner does, and asked what a peer may do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WRITE, READ, ATOMIC = 2, 4, 8
NEEDED = {"write": WRITE, "read": READ, "fetch_add": ATOMIC}


@dataclass
class Space:
    """Bytes from `base` on; missing and constant: pages of 4096 bytes that are not there, or not to be written."""

    base: int
    size: int
    missing: set[int] = field(default_factory=set)
    constant: set[int] = field(default_factory=set)

    def allows(self, address: int, length: int, write: bool) -> bool:
        """May its owner use all of a range so, be it there or not?"""
        begin = address - self.base
        if not 0 <= begin <= begin + length <= self.size:
            return False
        return not (write and self._pages(address, length) & self.constant)

    def holds(self, address: int, length: int) -> bool:
        """Is all of a range there now?"""
        return not self._pages(address, length) & self.missing

    def _pages(self, address: int, length: int) -> set[int]:
        begin = address - self.base
        return set(range(begin // 4096, (begin + length - 1) // 4096 + 1))


@dataclass
class Key:
    """kind: "rkey", "type 1", "type 2A" or "type 2B".  state: "unbound", "bound", "used", "disabled" or "gone"."""

    kind: str
    domain: int
    value: int
    one_shot: bool
    state: str = "unbound"
    address: int = 0
    length: int = 0
    access: int = 0
    queue_pair: int = 0  # of type 2

    @property
    def second(self) -> bool:
        return self.kind.startswith("type 2")

    def may_bind(self, space: Space, address: int, length: int, access: int) -> bool:
        if self.state == "gone" or (self.second and self.state == "bound"):
            return False
        return space.allows(address, length, bool(access & (WRITE | ATOMIC)))

    def bind(self, value: int, address: int, length: int, access: int, queue_pair: int) -> None:
        self.value, self.address, self.length, self.access = value, address, length, access
        self.state, self.queue_pair = "bound", queue_pair if self.second else 0

    def grants(
        self, value: int, space: Space, domain: int, queue_pair: int, kind: str, address: int, length: int
    ) -> bool:
        return (
            value == self.value
            and self.state == "bound"
            and (self.domain == domain or self.kind == "type 2A")
            and self.queue_pair in (0, queue_pair)
            and self.access & NEEDED[kind] != 0
            and self.address <= address
            and address + length <= self.address + self.length
            and space.allows(address, length, kind != "read")
            and space.holds(address, length)
        )

    def used(self) -> None:
        if self.one_shot:
            self.state = "used"
