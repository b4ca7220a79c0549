"""How an adapter protects memory: the embodiments of document 003, and the kinds of addresses that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from verbena.errors import InvalidAttributeError


class AddressKind(Enum):
    """What an address of a work request or of a key is: a user process has effective ones, and no others."""

    EFFECTIVE = "effective"
    VIRTUAL = "virtual"
    PHYSICAL = "physical"


@dataclass(frozen=True, slots=True)
class ProtectionOptions:
    """The embodiments of document 003.

    segment_tables: "copied", kept current by SegmentTableUpdate, or "shared": a pointer to the memory manager's own
    (003:808, 817).  page_tables: "private" to the adapter, or "shared" with the memory manager (003:832).
    page_faults: the adapter brings a missing page in through the memory manager ("swap-in", 003:833), or refuses, with
    an asynchronous error ("error", 003:882).  inverted: a private page table is an inverted one (003:837).
    """

    segment_tables: Literal["copied", "shared"] = "copied"
    page_tables: Literal["private", "shared"] = "shared"
    page_faults: Literal["swap-in", "error"] = "swap-in"
    inverted: bool = False

    def __post_init__(self) -> None:
        for name, known in (
            ("segment_tables", ("copied", "shared")),
            ("page_tables", ("private", "shared")),
            ("page_faults", ("swap-in", "error")),
        ):
            if getattr(self, name) not in known:
                raise InvalidAttributeError(f"{name} = {getattr(self, name)!r}: one of {', '.join(known)}")
        if self.inverted and self.page_tables == "shared":
            raise InvalidAttributeError(
                "inverted: a shared page table has the memory manager's form; give that to the memory manager"
            )


DEFAULT_PROTECTION = ProtectionOptions()
