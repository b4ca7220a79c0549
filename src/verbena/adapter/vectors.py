"""Interrupt vectors, in the manner of MSI-X: for each handler a write of its own data to its own address.

Document 001, paragraph 28; PCI Local Bus 3.0, 6.8.2: each vector has an address, data, a mask and a pending bit, and
the function has a mask for all of them.  Addresses are those of x86 (Intel SDM vol. 3, 11.11.1): 0xFEE00000, and the
processor in bits 12 to 19.  The data is the handler's identifier, by which a processor tells handlers apart.

What happens for each event stands in `transport.notification`; here software sets it up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from verbena.errors import InvalidAttributeError, ResourceError

MESSAGE_ADDRESS = 0xFEE0_0000
ANY_PROCESSOR = 0xFF
MOST_PROCESSORS = 255
LONGEST_MODERATION_NS = 10_000_000_000


@dataclass(frozen=True, slots=True)
class VectorState:
    """A vector as software reads it, with what was counted.

    held: events that moderation keeps back.  waiting: queues whose event nobody has taken.  Of the `events`, `merged`
    came while one of the same queue waited, `taken` went to the handler, `discarded` ended with their queue's binding.
    """

    address: int
    data: int
    masked: bool
    pending: bool
    most: int
    longest_ns: int
    held: int
    waiting: int
    events: int
    merged: int
    interrupts: int
    taken: int
    discarded: int


def message_address(processor: int | None) -> int:
    """Where a processor (0 to 254; None: whichever) takes interrupts."""
    number = ANY_PROCESSOR if processor is None else processor
    return MESSAGE_ADDRESS | number << 12


def processor_at(address: int) -> int | None:
    """The processor that an address is for; None = whichever."""
    number = (address >> 12) & 0xFF
    return None if number == ANY_PROCESSOR else number


def check_processor(processor: object) -> None:
    """Raise `InvalidAttributeError` unless it is a processor's number, or None."""
    if processor is not None and (
        not isinstance(processor, int) or isinstance(processor, bool) or not 0 <= processor < MOST_PROCESSORS
    ):
        raise InvalidAttributeError(f"processor = {processor!r}: 0 to {MOST_PROCESSORS - 1}, or None for any")


class VectorTable:
    """The vectors of one adapter; `number` of them, handed out one for each handler."""

    def __init__(self, engine: Any, number: int) -> None:
        self._engine = engine
        self._free = list(range(number))
        engine.make_vectors(number)

    def allocate(self, identifier: int, processor: int | None, descriptor: int) -> int:
        """A vector for a handler, unmasked; returns its place.  No two handlers share one."""
        check_processor(processor)
        with self._engine:
            if not self._free:
                raise ResourceError("all interrupt vectors of the adapter are in use: remove a handler")
            place = self._free.pop(0)
            self._engine.open_vector(place, identifier, message_address(processor), identifier, descriptor)
        return place

    def release(self, place: int) -> None:
        """The handler is gone."""
        with self._engine:
            self._engine.close_vector(place)
            self._free.append(place)

    def move(self, place: int, processor: int | None, descriptor: int) -> None:
        """To another processor: the address is written anew.  What waits already is announced there, too."""
        check_processor(processor)
        with self._engine:
            data = self._engine.vector(place)["data"]
            self._engine.set_vector(place, message_address(processor), data, descriptor)

    def mask(self, place: int, masked: bool = True) -> None:
        """Keep interrupts back: while masked, they set the pending bit, and unmasking makes one write for them all."""
        with self._engine:
            self._engine.mask(place, masked)

    def mask_all(self, masked: bool = True) -> None:
        """The function's mask, beside each vector's."""
        with self._engine:
            self._engine.mask_function(masked)

    def moderate(self, place: int, count: int, longest_ns: int) -> None:
        """One interrupt for `count` events, and `longest_ns` after the first of them at the latest; (1, 0): for each.

        Raises `InvalidAttributeError`: a count without a time could keep an event back for ever.
        """
        for name, value, low, high in (
            ("count", count, 1, 65_535),
            ("longest_ns", longest_ns, 0, LONGEST_MODERATION_NS),
        ):
            if not isinstance(value, int) or not low <= value <= high:
                raise InvalidAttributeError(f"{name} = {value!r}: {low} to {high}")
        if count > 1 and not longest_ns:
            raise InvalidAttributeError(
                f"count = {count} needs a longest_ns: the last events would wait for ever"
            )
        with self._engine:
            self._engine.moderate(place, count, longest_ns)

    def query(self, place: int) -> VectorState:
        """The vector's state and counters."""
        with self._engine:
            return VectorState(**self._engine.vector(place))
