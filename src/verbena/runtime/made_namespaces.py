"""Namespaces that are made when the first interface needs them, and removed with the last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from verbena.runtime import namespaces


class MadeNamespaces:
    """making: is called with a name before its namespace is made.  What somebody else has made stays."""

    def __init__(self, making: Callable[[str], None] = lambda namespace: None) -> None:
        self._making = making
        self._users: Counter[str] = Counter()

    def enter(self, name: str) -> None:
        """One more interface in a namespace; it is made for the first, unless somebody else has made it."""
        if not self._users[name]:
            if namespaces.exists(name):
                return
            self._making(name)
            namespaces.create(name)
        self._users[name] += 1

    def leave(self, name: str) -> None:
        """One interface less."""
        if not self._users[name]:
            return
        self._users[name] -= 1
        if not self._users[name]:
            namespaces.remove(name)

    @property
    def names(self) -> list[str]:
        """Those that will be removed again."""
        return [name for name, count in self._users.items() if count]
