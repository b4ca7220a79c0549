"""The memory of a host in a fabric file, and the workload that lives in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from verbena.scenario.schema_types import Common, Name, Path, Size, Strict


def _power_of_two(value: object) -> object:
    if isinstance(value, int) and value > 0 and value & (value - 1):
        raise ValueError(f"{value} is no power of two: write for example 4096")
    return value


class ProcessModel(Strict):
    """A process of the host.  kernel: a kernel process."""

    name: Name
    kernel: bool = False


class MemoryModel(Strict):
    """A host's memory (document 003, figure 12).

    frames: of physical memory.  page_bytes: of each.  page_table: the memory manager's.  store: where pages go that
    find no frame: into a temporary file, or into the program's own memory.  swap_pages: how many of them.  page_in_ns:
    how long an adapter waits for one.  segment_tables, page_tables, page_faults: the embodiments of document 003.
    """

    frames: Annotated[int, Field(ge=1, le=1 << 20)] = 1024
    page_bytes: Annotated[int, BeforeValidator(_power_of_two), Size, Field(ge=4096, le=1 << 22)] = 4096
    page_table: Literal["plain", "inverted"] = "plain"
    replacement: Literal["clock", "lru"] = "clock"
    store: Literal["file", "memory"] = "file"
    swap_pages: Annotated[int, Field(ge=0, le=1 << 24)] | None = None
    page_in_ns: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    segment_tables: Literal["copied", "shared"] = "copied"
    page_tables: Literal["private", "shared"] = "shared"
    page_faults: Literal["swap-in", "error"] = "swap-in"
    processes: Annotated[tuple[ProcessModel, ...], Field(strict=False)] = ()


class RingBuffer(Common):
    """Producers write messages into a ring in a consumer's memory, through remote keys; every byte is compared.

    messages: from each producer.  slots: of each producer in the ring.  page_out_every: after so many messages, the
    consumer's pages are put out of memory (0: never).  process: whose memory it is, on each host; made if the host has
    none of that name.
    """

    kind: Literal["ring-buffer"]
    consumer: Name
    producers: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64, strict=False)]
    process: Name = "ring"
    messages: Annotated[int, Field(ge=1, le=100_000)] = 100
    bytes: Annotated[int, Size, Field(ge=16, le=1 << 20)] = 1_000
    slots: Annotated[int, Field(ge=1, le=256)] = 8
    page_out_every: Annotated[int, Field(ge=0, le=100_000)] = 10

    def ends(self) -> Iterator[tuple[Path, str]]:
        yield ("consumer",), self.consumer
        for at, producer in enumerate(self.producers):
            yield ("producers", at), producer


def memory_problems(memory: MemoryModel, at: Path) -> Iterator[tuple[Path, str]]:
    """What is wrong with a host's memory whose every key is right."""
    seen: set[str] = set()
    for i, process in enumerate(memory.processes):
        if process.name in seen:
            yield (
                (*at, "processes", i, "name"),
                f"process {process.name} stands here a second time: each needs its own",
            )
        seen.add(process.name)
