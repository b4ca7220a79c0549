"""What a process may do to a segment or to a page: the protection fields of figures 14 and 16 (document 003)."""

from __future__ import annotations

from enum import IntFlag

from verbena.errors import InvalidAttributeError


class Protection(IntFlag):
    """Page protection (document 003, field 558).  Writing needs reading, as in processors' own tables."""

    NONE = 0
    READ = 1
    WRITE = 2
    READ_WRITE = 3


def known_protection(value: object) -> Protection:
    """The protection itself; raises `InvalidAttributeError` for what is none, and for writing without reading."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 3:
        raise InvalidAttributeError(f"protection = {value!r}: NONE, READ or READ_WRITE is needed")
    if value == Protection.WRITE:
        raise InvalidAttributeError(
            "protection WRITE alone: what may be written may be read, take READ_WRITE"
        )
    return Protection(value)


def allows(protection: Protection, write: bool) -> bool:
    """Does it let an access of this kind through?"""
    return bool(protection & (Protection.WRITE if write else Protection.READ))
