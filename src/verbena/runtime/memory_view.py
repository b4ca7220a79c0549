"""A host's memory and its adapters' keys, as data: for `verbena memory`, run folders and programs that look on.

Everything is a copy, of numbers and texts only, so that it can be written as JSON and sent elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from verbena.adapter.address_spaces import KeyUse
from verbena.memory.access import Access
from verbena.memory.manager import VirtualMemoryManager
from verbena.memory.protection import Protection
from verbena.memory.report import AdapterSnapshot
from verbena.verbs.context import Context

NEWEST_VERBS = 256


def memory_view(
    name: str, adapters: Mapping[str, Context], memory: VirtualMemoryManager | None = None
) -> dict[str, Any]:
    """What a host's tables say now.

    name: of the host, for people.  adapters: by their names; their keys, and who used which when.  memory: the
    host's modelled memory; None for a real process, whose registered buffers and keys are shown alone.
    """
    attached = {} if memory is None else {state.name: state for state in memory.snapshot().adapters}
    view: dict[str, Any] = {
        "host": name,
        "memory": None if memory is None else _memory(memory),
        "adapters": [
            _adapter(each, ctx, attached.get(each) or attached.get(ctx.adapter.limits.name))
            for each, ctx in adapters.items()
        ],
    }
    return view


def _memory(memory: VirtualMemoryManager) -> dict[str, Any]:
    seen, form = memory.snapshot(), memory.form
    return {
        "page_bytes": seen.page_size,
        "segment_bits": form.segment_bits,
        "upper_bits": form.upper_bits,
        "page_number_bits": form.page_number_bits,
        "frames": seen.frames,
        "free_frames": seen.free_frames,
        "pinned_frames": seen.pinned_frames,
        "stored_pages": seen.slots,
        "inverted": seen.inverted,
        "table_size": seen.table_size,
        "adapter_page_tables": seen.adapter_page_tables,
        "processes": [
            {
                "name": process.name,
                "kernel": process.kernel,
                "segments": [
                    asdict(entry) | {"protection": protection_name(entry.protection)}
                    for entry in process.segments
                ],
            }
            for process in seen.processes
        ],
        "pages": [asdict(page) for page in seen.pages],
        "verbs": seen.verbs,
        "trace": [
            {
                "time_ns": entry.time_ns,
                "verb": entry.verb.title,
                "step": entry.verb.step,
                "process": entry.process,
                "detail": entry.detail,
            }
            for entry in memory.trace.entries()[-NEWEST_VERBS:]
        ],
    }


def protection_name(protection: int) -> str:
    """How people write a protection."""
    return (Protection(protection).name or "").lower().replace("_", "-")


def _adapter(name: str, ctx: Context, state: AdapterSnapshot | None) -> dict[str, Any]:
    memory = ctx.adapter.memory
    keys = memory.list_keys()
    return {
        "name": name,
        "protection": None if state is None else _protection(state),
        "keys": [key | {"access": access_names(key["access"])} for key in keys],
        "uses": [_use(use) for use in memory.uses()],
        "refusals": [asdict(r) | {"access": access_names(r.access)} for r in memory.refusals()],
        "counters": {
            key: value for key, value in ctx.counters().items() if key.startswith("memory.") and value
        },
    }


def _use(use: KeyUse) -> dict[str, Any]:
    peer = str(use.peer.ip if use.peer.is_ip4 else use.peer)
    return asdict(use) | {"peer": peer, "access": access_names(use.access)}


def access_names(access: int) -> list[str]:
    """The names of rights, in lower case."""
    return [right.name.lower() for right in Access if right.name and access & right]


def _protection(state: AdapterSnapshot) -> dict[str, Any]:
    return {
        "page_table": "private" if state.private else "shared",
        "table_size": state.table_size,
        "swap_ins": state.swap_ins,
        "cached_pages": [
            {"process": process, "addresses": kind, "pages": pages} for process, kind, pages in state.spaces
        ],
        "queue_pairs": [
            {
                "qp_num": saved.qp_num,
                "process": saved.process,
                "service": saved.service,
                "send_requests": saved.sizes[0],
                "receive_requests": saved.sizes[1],
                "segments": len(saved.segments),
                "segment_table": "shared" if saved.shared else "copied",
            }
            for saved in state.queue_pairs
        ],
    }
