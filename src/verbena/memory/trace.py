"""What was done to a host's memory, verb by verb, with the times: figure 17 (document 003) made visible."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class MemoryVerb(Enum):
    """The verbs and calls of figure 17, with its step numbers, and what the memory manager does by itself."""

    OPEN_QP = ("OpenQP", 602)
    CLOSE_QP = ("CloseQP", 0)
    FETCH_SEGMENT_TABLE = ("FetchSegmentTable", 604)
    REGISTER_DRIVER = ("RegisterDriver", 604)
    UNREGISTER_DRIVER = ("UnregisterDriver", 0)
    TRANSLATE_EFFECTIVE_ADDRESS = ("TranslateEffectiveAddress", 606)
    SEGMENT_TABLE_UPDATE = ("SegmentTableUpdate", 608)
    UPDATE_QP_STATE = ("UpdateQPState", 610)
    MAP_LOCAL_PAGE = ("MapLocalPage", 612)
    UNMAP_LOCAL_PAGE = ("UnmapLocalPage", 612)
    PASS_ADDRESS = ("PassAddress", 614)
    REGISTER_MEMORY = ("RegisterMemory", 0)
    DEREGISTER_MEMORY = ("DeregisterMemory", 0)
    TRANSLATE_FOR_KERNEL = ("TranslateForKernel", 0)
    PAGE_FAULT = ("PageFault", 0)
    FAULT_REFUSED = ("FaultRefused", 0)
    PAGE_IN = ("PageIn", 0)
    PAGE_OUT = ("PageOut", 0)
    PAGE_PROTECTION = ("PageProtection", 0)

    def __init__(self, title: str, step: int) -> None:
        self.title = title
        self.step = step


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """One verb: when (nanoseconds of the host's clock), of which process ("" for none), and what it was about."""

    time_ns: int
    verb: MemoryVerb
    process: str
    detail: str

    def __str__(self) -> str:
        step = f"{self.verb.step}" if self.verb.step else "   "
        return f"{self.time_ns:>12,} ns  {step}  {self.verb.title:<26}{self.process:<10}{self.detail}"


class VerbTrace:
    """The last `length` verbs, and how often each was executed in all.  `now` tells the time."""

    def __init__(self, now: Callable[[], int], length: int = 4096) -> None:
        self.now = now
        self._entries: deque[TraceEntry] = deque(maxlen=length)
        self._counts: Counter[MemoryVerb] = Counter()

    def note(self, verb: MemoryVerb, process: str = "", detail: str = "") -> None:
        """A verb was executed."""
        self._counts[verb] += 1
        self._entries.append(TraceEntry(self.now(), verb, process, detail))

    def entries(self, *verbs: MemoryVerb) -> tuple[TraceEntry, ...]:
        """The last entries, of these verbs or of all."""
        return tuple(e for e in self._entries if not verbs or e.verb in verbs)

    def count(self, *verbs: MemoryVerb) -> int:
        """How often these verbs were executed since the beginning."""
        return sum(self._counts[verb] for verb in verbs)

    def counts(self) -> dict[str, int]:
        """The number of each verb that was executed."""
        return {verb.title: self._counts[verb] for verb in MemoryVerb if self._counts[verb]}
