"""What `verbena vswitch status` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from verbena.cli.tables import titled

MOST = 1 << 59
"""A mark that stands for none."""


def show(found: dict[str, Any]) -> None:
    """Print the tables of what a switch has told of itself (`runtime.real_vswitch.RealSwitch.status`)."""
    console = Console(highlight=False)
    for table in (_ports(found), _queues(found), _losses(found)):
        console.print(table)
    for sentence in found.get("announced", [])[-10:]:
        console.print(sentence)


def _ports(found: dict[str, Any]) -> Table:
    config = found["config"]
    classes = ", ".join(map(str, config.get("lossless", []))) or "none"
    title = f"ports: MTU {config.get('mtu', 0)}, lossless classes: {classes}"
    table = titled(title, "port", "where", "up", "came", "went", "pauses", "slept and woken")
    for port in found["ports"]:
        state = port["state"] or {}
        kind = port["kind"] + (", physical" if port["physical"] else "")
        table.add_row(
            f"{port['name']}\n{kind}",
            port["where"],
            "yes" if port["up"] else "no",
            f"{state.get('rx_frames', 0):,}",
            f"{state.get('tx_frames', 0):,}",
            str(state.get("pauses", 0)),
            f"in {state.get('producer_slept', 0):,}, {state.get('producer_woken', 0):,}\n"
            f"out {state.get('consumer_slept', 0):,}, {state.get('consumer_woken', 0):,}",
        )
    return table


def _queues(found: dict[str, Any]) -> Table:
    table = titled(
        "queues", "port", "queue", "class", "frames", "stops at", "starts at", "most", "stops", "drops"
    )
    for port in found["ports"]:
        for side in ("input", "output"):
            for priority, queue in (port["state"] or {}).get(side, {}).items():
                table.add_row(
                    port["name"],
                    side,
                    f"{priority}" + ("" if queue["lossless"] else ", lossy"),
                    f"{queue['frames']:,}",
                    _mark(queue, "high"),
                    _mark(queue, "low"),
                    f"{queue['peak_frames']:,}",
                    f"{queue['stops']:,}" + (", now" if queue["stopped"] else ""),
                    f"{queue['drops']:,}",
                )
    return table


def _mark(queue: dict[str, Any], which: str) -> str:
    octets = queue[f"{which}_bytes"]
    return str(queue[f"{which}_frames"]) + ("" if octets >= MOST else f" or {octets:,} bytes")


def _losses(found: dict[str, Any]) -> Table:
    table = titled("losses", "whose", "where", "frames")
    for where, count in found["losses"].items():
        table.add_row("switch, no room", where, f"{count:,}")
    for port in [*found["ports"], *_gone(found)]:
        for name, count in sorted((port["state"] or {}).items()):
            if name.startswith("drop.") and f"{port['name']}: {name[5:]}" not in found["losses"]:
                table.add_row("switch", f"{port['name']}: {name[5:]}", f"{count:,}")
    for where, count in found["kernel_losses"].items():
        table.add_row("kernel", where, f"{count:,}")
    for port in found["ports"]:
        for name, count in sorted(port.get("driver", {}).items()):
            if count and name in (
                "lost_on_the_way",
                "refused_by_kernel",
                "not_granted",
                "bad_length",
                "cut_off",
            ):
                table.add_row("outside", f"{port['name']}: {name}", f"{count:,}")
    if not table.row_count:
        table.add_row("nobody", "nothing was lost", "0")
    return table


def _gone(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "state": state} for name, state in (found["gone"] or {}).items()]
