"""What `verbena lan status` prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from verbena.cli.tables import titled

MOST_COUNTERS = 12


def show(found: dict[str, Any]) -> None:
    """Print the tables of what a LAN has told of itself (`runtime.real_lan.RealLan.status`)."""
    console = Console()
    members = found["members"]
    for table in (_nodes(found), _channels(members), _resolved(members), _counters(members)):
        console.print(table)


def _nodes(found: dict[str, Any]) -> Table:
    masters = ", ".join(found["subnet_managers"]) or "nobody"
    config = found["config"]
    title = f"nodes: MTU {config['mtu']}, {config['service']}, channels: {config['policy']}, "
    table = titled(
        title + f"subnet manager on {masters}", "node", "card", "address", "interface", "link", "network"
    )
    for member in found["members"]:
        where = member["interface"] + (f" in {member['namespace']}" if member["namespace"] else "")
        table.add_row(
            member["adapter"],
            member["role"],
            member["mac"],
            where,
            "up" if member["up"] else "down",
            "\n".join(member["addresses"]),
        )
    return table


def _channels(members: Iterable[dict[str, Any]]) -> Table:
    table = titled("channels", "node", "to LID", "address", "state", "path", "channel", "datagram QP")
    for member in members:
        for peer in member["peers"]:
            channel = peer["channel"]
            table.add_row(
                member["adapter"],
                str(peer["lid"]),
                peer["mac"],
                peer["state"],
                f"{peer['path']} of {peer['paths']}",
                "datagrams" if channel is None else f"QP {channel:#x}",
                f"{peer['datagram_qp']:#x}",
            )
    return table


def _resolved(members: Iterable[dict[str, Any]]) -> Table:
    table = titled("ARP and neighbour tables", "node", "network address", "Ethernet address")
    for member in members:
        for address, mac in member["neighbours"].items():
            table.add_row(member["adapter"], address, mac)
    return table


def _counters(members: Iterable[dict[str, Any]]) -> Table:
    table = titled("counters", "node", "sent", "received", "dropped", "posts")
    for member in members:
        counters, interface = member["counters"], member["interface_counters"]
        drops = {name: n for each in (counters, interface) for name, n in each.items() if "drop" in name}
        table.add_row(
            member["adapter"],
            _amount(counters, "tx"),
            _amount(counters, "rx"),
            "\n".join(f"{n:,} {name}" for name, n in sorted(drops.items())[:MOST_COUNTERS]),
            "\n".join(f"{n:,} {name}" for name, n in sorted(counters.items()) if name.startswith("posts")),
        )
    return table


def _amount(counters: dict[str, int], way: str) -> str:
    return f"{counters.get(way + '.frames', 0):,} frames\n{counters.get(way + '.bytes', 0):,} bytes"
