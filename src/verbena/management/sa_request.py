"""A request to subnet administration, checked, and what it can be refused with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from verbena.management.datagrams import MadAddress
from verbena.management.subnet import SubnetPort
from verbena.management.subnet_view import pkeys_of
from verbena.wire.rmpp import RmppMad
from verbena.wire.sa import SaHeader


class Denied(Exception):
    """The status that a request is answered with instead; never leaves subnet administration."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True, slots=True)
class SaRequest:
    """Who asks for what.

    end: the asker's port.  trusted: the request carries the manager's key.  template: the attribute that came, of the
    kind that its id says; names: its components that count.
    """

    source: MadAddress
    mad: RmppMad
    header: SaHeader
    end: SubnetPort
    trusted: bool
    template: Any
    names: tuple[str, ...]

    @property
    def pkeys(self) -> list[int]:
        """The asker's partition keys."""
        return list(pkeys_of(self.end))

    @property
    def visible(self) -> list[int] | None:
        """The asker's partition keys; None if it is shown everything."""
        return None if self.trusted else self.pkeys


class Store(Protocol):
    """Where a subnet manager keeps what must survive it: bytes under a kind and a key."""

    def load(self, kind: str) -> list[tuple[bytes, bytes]]:
        """All keys and values of a kind."""

    def save(self, kind: str, key: bytes, value: bytes) -> None:
        """Keep a value, in place of the one before."""

    def remove(self, kind: str, key: bytes) -> None:
        """Forget a value; nothing if there is none."""


class MemoryStore:
    """A `Store` that lasts as long as the process."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[bytes, bytes]] = {}

    def load(self, kind: str) -> list[tuple[bytes, bytes]]:
        return list(self._kinds.get(kind, {}).items())

    def save(self, kind: str, key: bytes, value: bytes) -> None:
        self._kinds.setdefault(kind, {})[key] = value

    def remove(self, kind: str, key: bytes) -> None:
        self._kinds.get(kind, {}).pop(key, None)
