"""What an adapter's driver keeps of a process (queue pair state 531 of figure 12, document 003:803-808)."""

from __future__ import annotations

from dataclasses import dataclass, field

from verbena.adapter.protection_options import AddressKind
from verbena.memory.process import Process
from verbena.memory.report import SavedState
from verbena.memory.segments import SegmentTable


@dataclass(eq=False, slots=True)
class CommonState:
    """What all queue pairs of a process have in common, and is kept once (003:808).

    number: of this state at the adapter.  spaces: the adapter's address space for each kind of address.  queue_pairs:
    service and sizes of each, by number.  told: of each segment what the adapter's range says: pages, may the process
    write, upper virtual bits.
    """

    number: int
    process: Process
    spaces: dict[AddressKind, int]
    domains: int = 0
    table: SegmentTable | None = None
    queue_pairs: dict[int, tuple[str, tuple[int, int]]] = field(default_factory=dict)
    told: dict[int, tuple[int, bool, int]] = field(default_factory=dict)

    def saved(self, number: int, shared: bool) -> SavedState:
        """A copy of what is saved for one of the queue pairs.  shared: is the table the memory manager's own?"""
        assert self.table is not None
        service, sizes = self.queue_pairs[number]
        return SavedState(
            number, self.process.name, service, sizes, self.table.entries(), shared, self.number
        )
