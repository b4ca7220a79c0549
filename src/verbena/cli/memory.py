"""`verbena memory TARGET`: a host's segment and page tables, its adapters' keys, and who used which key when.

TARGET is a fabric file, which is run in virtual time; the folder of a run; or the socket of a running program
(`runtime.memory_service`).
"""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from verbena.errors import FabricFileError, SystemLimitError, VerbenaError
from verbena.runtime.memory_service import ask
from verbena.scenario.load import load_fabric
from verbena.scenario.outcome import NoWatcher, duration
from verbena.scenario.report import MEMORY
from verbena.scenario.virtual import run_virtual

EXIT_OK, EXIT_FAILED, EXIT_WRONG_USE = 0, 1, 2
View = dict[str, Any]
WITHOUT_LIMIT = 1 << 63
WIDTH = 150  # of what goes to a file


def memory(
    target: str, *, host: str | None = None, newest: int = 10, as_json: bool = False, seed: int | None = None
) -> int:
    """Show it, and return the exit status.

    host: one of several.  newest: so many uses, refusals and verbs.  seed: of the run, instead of the file's.

    0: shown; 1: the run failed; 2: the target or the host is wrong.
    """
    try:
        views = _views(target, seed)
    except (FabricFileError, SystemLimitError) as error:
        return _wrong(str(error), EXIT_WRONG_USE)
    except VerbenaError as error:
        return _wrong(f"verbena memory: {error}", EXIT_FAILED)
    if host is not None:
        if host not in views:
            return _wrong(
                f"verbena memory: no host {host}; there are: {', '.join(views) or 'none'}", EXIT_WRONG_USE
            )
        views = {host: views[host]}
    if not views:
        return _wrong(
            f"verbena memory: {target} has no host with the key memory whose tables a workload shows",
            EXIT_WRONG_USE,
        )
    if as_json:
        print(json.dumps(views, indent=1))
        return EXIT_OK
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, soft_wrap=not terminal, width=None if terminal else WIDTH)
    for view in views.values():
        _print(console, view, newest)
    return EXIT_OK


def _wrong(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)
    return status


def _views(target: str, seed: int | None) -> dict[str, View]:
    path = Path(target)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SystemLimitError(f"verbena memory: {target}: {error.strerror or error}") from None
    if stat.S_ISSOCK(mode):
        view = ask(path)
        return {view["host"]: view}
    if stat.S_ISDIR(mode):
        return _of_run(path / MEMORY)
    fabric = load_fabric(target, lambda sentence: print(f"warning: {sentence}", file=sys.stderr))
    if seed is not None:
        fabric = fabric.model_copy(update={"seed": seed})
    return run_virtual(fabric, NoWatcher(), capture=None, data=None, folder=path.parent).memory


def _of_run(path: Path) -> dict[str, View]:
    try:
        found: dict[str, View] = json.loads(path.read_text())
    except OSError as error:
        raise SystemLimitError(f"verbena memory: {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise SystemLimitError(f"verbena memory: {path} is no view of memory: {error}") from None
    return found


# --- printing -----------------------------------------------------------------------------------------------------


def _print(console: Console, view: View, newest: int) -> None:
    memory, bits = view["memory"], 0
    if memory is None:
        console.print(f"host {view['host']}: a real process; its buffers are shown by their regions and keys")
    else:
        bits = memory["page_number_bits"] + memory["page_bytes"].bit_length() - 1
        _print_memory(console, view["host"], memory, bits)
    for adapter in view["adapters"]:
        _print_adapter(console, adapter, newest)
    if memory is not None and newest:
        rows = [
            (f"{e['time_ns']:,}", e["step"] or "", e["verb"], e["process"], e["detail"])
            for e in memory["trace"][-newest:]
        ]
        _table(console, "the newest verbs", "ns|step|verb|process|about", rows, right=(0, 1))


def _print_memory(console: Console, host: str, memory: View, bits: int) -> None:
    form = "inverted" if memory["inverted"] else "plain"
    console.print(
        f"host {host}: {memory['frames']:,} frames of {memory['page_bytes']:,} bytes, "
        f"{memory['free_frames']:,} free, {memory['pinned_frames']:,} pinned; "
        f"{memory['stored_pages']:,} pages in the store; {form} page table of {memory['table_size']:,} entries"
    )
    segments = [
        (
            process["name"] + (" (kernel)" if process["kernel"] else ""),
            f"{entry['segment']:#x}",
            f"{entry['segment'] << bits:#x}",
            f"{entry['length']:,}",
            f"{entry['upper']:#x}",
            "yes" if entry["valid"] else "no",
            entry["protection"],
        )
        for process in memory["processes"]
        for entry in process["segments"]
    ]
    head = "process|segment|effective address|bytes|upper virtual bits|valid|protection"
    _table(console, "segment tables (figure 14)", head, segments, right=(3,))
    pages = [
        (
            f"{page['upper']:#x}",
            f"{page['page']:#x}",
            "-" if page["frame"] is None else page["frame"],
            "yes" if page["valid"] else "no",
            page["protection"],
            " ".join(name for name in ("referenced", "dirty") if page[name]),
            page["pins"] or "",
            "-" if page["slot"] is None else page["slot"],
        )
        for page in memory["pages"]
    ]
    head = "upper virtual bits|page|frame|valid|protection|state|pins|stored in slot"
    _table(console, "page table (figure 16)", head, pages, right=(1, 2, 6, 7))
    counts = ", ".join(f"{name} {count:,}" for name, count in memory["verbs"].items())
    console.print(f"verbs since the beginning: {counts or 'none'}")


def _print_adapter(console: Console, adapter: View, newest: int) -> None:
    name, protection = adapter["name"], adapter["protection"]
    if protection is not None:
        cached = ", ".join(
            f"{each['pages']:,} of {each['process']} ({each['addresses']})"
            for each in protection["cached_pages"]
        )
        console.print(
            f"adapter {name}: {protection['page_table']} page table of {protection['table_size']:,} entries, "
            f"{protection['swap_ins']:,} pages brought in for it, cached pages: {cached or 'none'}"
        )
        saved = [
            (
                f"{state['qp_num']:#x}",
                state["process"],
                state["service"],
                f"{state['send_requests']} + {state['receive_requests']}",
                f"{state['segments']} entries, {state['segment_table']}",
            )
            for state in protection["queue_pairs"]
        ]
        head = "queue pair|process|service|requests|segment table"
        _table(console, f"saved state of queue pairs at {name}", head, saved)
    _print_keys(console, adapter)
    _print_accesses(console, adapter, newest)


def _print_keys(console: Console, adapter: View) -> None:
    keys = [
        (
            key["kind"].replace("_", " ") + (", one-shot" if key["one_shot"] else ""),
            key["state"],
            f"{key['remote_key']:#010x}",
            key["domain"],
            "all" if key["length"] >= WITHOUT_LIMIT else f"{key['address']:#x} + {key['length']:,}",
            " ".join(key["access"]) or "local read",
            f"{key['uses']:,}",
            f"{key['bytes']:,}",
            f"{key['refusals']:,}",
            duration(key["last_used_ns"]) if key["uses"] else "-",
        )
        for key in adapter["keys"]
    ]
    head = "what|state|remote key|domain|range|rights|uses|bytes|refused|last use"
    _table(console, f"keys at {adapter['name']}", head, keys, right=(6, 7, 8, 9))


def _print_accesses(console: Console, adapter: View, newest: int) -> None:
    """What peers did, and what was refused."""
    uses = [
        (
            duration(use["when"]),
            f"{use['key']:#010x}",
            " ".join(use["access"]),
            f"{use['address']:#x} + {use['length']:,}",
            f"queue pair {use['peer_qp_num']:#x} at {use['peer']}",
            f"{use['qp_num']:#x}",
        )
        for use in _newest(adapter["uses"], newest)
    ]
    head = "when|key|operation|range|by|came to queue pair"
    _table(console, f"who used which key at {adapter['name']}", head, uses, right=(0,))
    refusals = [
        (
            duration(each["when"]),
            f"{each['key']:#010x}",
            " ".join(each["access"]),
            f"{each['address']:#x} + {each['length']:,}",
            "a peer" if each["remote"] else "a work request",
            f"{each['qp_num']:#x}",
            each["reason"].replace("_", " "),
        )
        for each in _newest(adapter["refusals"], newest)
    ]
    head = "when|key|operation|range|asked by|queue pair|reason"
    _table(console, f"what was refused at {adapter['name']}", head, refusals, right=(0,))


def _newest(rows: list[View], count: int) -> list[View]:
    return rows[-count:] if count else []


def _table(
    console: Console,
    title: str,
    head: str,
    rows: Iterable[tuple[Any, ...]],
    right: tuple[int, ...] = (),
) -> None:
    """Print a table, if it has rows.  head: the columns, with | between.  right: which of them are numbers."""
    rows = list(rows)
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for at, name in enumerate(head.split("|")):
        table.add_column(name, justify="right" if at in right else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)
