"""What is to be seen of an adapter's completion handlers, as plain values: for tables, files and other processes."""

from __future__ import annotations

from typing import Any

from verbena.adapter.figures import Latencies
from verbena.adapter.handlers import HandlerRecord, HandlerTable

PERCENTS = (50, 99)


def report(table: HandlerTable) -> dict[str, Any]:
    """All handlers, in the order of their identifiers; times in nanoseconds of the adapter's clock.

    ``when_ns``, ``limit`` (of handlers), and ``handlers``: for each what `_one` says.
    """
    with table.engine:
        handlers = [_one(table, record) for _, record in sorted(table.records.items())]
    return {"when_ns": table.clock.now(), "limit": table.limit, "handlers": handlers}


def _one(table: HandlerTable, record: HandlerRecord) -> dict[str, Any]:
    """One handler: what it is, its queues with their depths, its vector, what it did."""
    vector = table.vectors.query(record.vector)
    figures = record.figures
    return {
        "id": record.identifier,
        "function": getattr(record.function, "__qualname__", type(record.function).__qualname__),
        "processor": record.processor,
        "priority": record.priority,
        "share": record.share,
        "queues": dict(sorted(record.queues.items())),
        "memory_bytes": record.used_bytes,
        "masked": vector.masked,
        "pending": vector.pending,
        "waiting": vector.waiting,
        "events": vector.events,
        "merged": vector.merged,
        "interrupts": vector.interrupts,
        "running": record.running,
        "calls": figures.calls,
        "failures": figures.failures,
        "stuck": figures.stuck,
        "busy_ns": figures.busy_ns,
        "longest_ns": figures.longest_ns,
        **waits(figures.waits),
    }


def waits(latencies: Latencies) -> dict[str, int | None]:
    """Percentiles by name: ``wait_p50_ns``, ``wait_p99_ns``; None where nothing was counted."""
    return {f"wait_p{percent}_ns": latencies.percentile(percent) for percent in PERCENTS}
