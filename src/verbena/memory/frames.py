"""Physical memory: frames in one buffer, which are free, whose they are, who is pinned, who goes next.

A frame belongs to one virtual page at most.  A pinned one stays.  Which of the others goes is told by a replacement
policy: the second-chance clock, or the least recently used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from verbena.errors import InvalidAttributeError

PageKey = tuple[int, int]  # upper virtual bits, page number
Replacement = Literal["clock", "lru"]


class Frames:
    """`count` frames of `page_size` bytes each.

    buffer: the physical memory, a writable buffer of as many bytes (an array, a file that is mapped, memory that
    operating system processes share); by default an own one.  Raises `InvalidAttributeError`.
    """

    def __init__(
        self, count: int, page_size: int, replacement: Replacement = "clock", buffer: Any = None
    ) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InvalidAttributeError(f"frames = {count!r}: a host has 1 or more frames of memory")
        if replacement not in ("clock", "lru"):
            raise InvalidAttributeError(f"replacement = {replacement!r}: clock or lru")
        self.count = count
        self.page_size = page_size
        self.replacement = replacement
        self._memory = _bytes_of(bytearray(count * page_size) if buffer is None else buffer)
        if len(self._memory) != count * page_size:
            raise InvalidAttributeError(
                f"a buffer of {len(self._memory)} bytes: {count} frames of {page_size} bytes have {count * page_size}"
            )
        self._free = list(range(count - 1, -1, -1))
        self._owner: list[PageKey | None] = [None] * count
        self._pins = [0] * count
        self._hand = 0
        self._used: dict[int, None] = {}  # in the order of their last use

    def view(self, frame: int) -> memoryview:
        """The frame's bytes."""
        at = frame * self.page_size
        return self._memory[at : at + self.page_size]

    def take(self, owner: PageKey) -> int | None:
        """A free frame, filled with zeros, for a virtual page; None when there is none."""
        if not self._free:
            return None
        frame = self._free.pop()
        self.view(frame)[:] = bytes(self.page_size)
        self._owner[frame] = owner
        self.use(frame)
        return frame

    def give_back(self, frame: int) -> None:
        """The frame is free again.  Raises `InvalidAttributeError` when it is pinned, or free already."""
        if self._owner[frame] is None:
            raise InvalidAttributeError(f"frame {frame} is free already")
        if self._pins[frame]:
            raise InvalidAttributeError(f"frame {frame} is pinned {self._pins[frame]} times")
        self._owner[frame] = None
        self._used.pop(frame, None)
        self._free.append(frame)

    def use(self, frame: int) -> None:
        """Note a use, for the policy that asks who was used last."""
        self._used.pop(frame, None)
        self._used[frame] = None

    def owner(self, frame: int) -> PageKey | None:
        """The virtual page that is in a frame."""
        return self._owner[frame]

    def pin(self, frame: int) -> None:
        self._pins[frame] += 1

    def unpin(self, frame: int) -> None:
        """Take one pin off; raises `InvalidAttributeError` when there is none."""
        if not self._pins[frame]:
            raise InvalidAttributeError(f"frame {frame} is not pinned")
        self._pins[frame] -= 1

    def pins(self, frame: int) -> int:
        return self._pins[frame]

    def victims(self, second_chance: Callable[[int], bool]) -> Iterator[int]:
        """Frames that may be emptied, each once, the best first.

        second_chance: says whether a frame was referenced since it was last asked, and forgets it (clock only).
        """
        if self.replacement == "lru":
            yield from [frame for frame in self._used if not self._pins[frame]]
            return
        offered: set[int] = set()
        for _ in range(2 * self.count):
            frame, self._hand = self._hand, (self._hand + 1) % self.count
            taken = self._owner[frame] is not None and not self._pins[frame]
            if taken and frame not in offered and not second_chance(frame):
                offered.add(frame)
                yield frame

    # --- numbers ------------------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Frames that hold nothing."""
        return len(self._free)

    @property
    def pinned(self) -> int:
        """Frames that are pinned at least once."""
        return sum(1 for pins in self._pins if pins)


def _bytes_of(buffer: Any) -> memoryview:
    try:
        view = memoryview(buffer).cast("B")
    except (TypeError, ValueError, BufferError) as error:
        raise InvalidAttributeError(f"this {type(buffer).__name__} is no buffer of bytes: {error}") from None
    if view.readonly:
        raise InvalidAttributeError("a read-only buffer: physical memory is written to")
    return view
