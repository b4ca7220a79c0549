"""`verbena show FILE`: a topology as tables, as a picture, or as `ibnetdiscover` prints it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verbena.errors import FabricFileError
from verbena.fabric.addressing import assign_lids, note_lids, subnets
from verbena.fabric.check import check
from verbena.fabric.generators import generate_from
from verbena.fabric.ibnetdiscover import write
from verbena.fabric.topology import Node, NodeKind, PortId, Topology, TopologyError
from verbena.scenario.draw import counted, draw
from verbena.scenario.topologies import open_topology

EXIT_OK, EXIT_WRONG_USE = 0, 2
_WORDS = {NodeKind.CA: "adapter", NodeKind.SWITCH: "switch", NodeKind.ROUTER: "router"}


def show(
    file: str | None, *, generate: str | None = None, output: str | None = None, format: str | None = None
) -> int:
    """Show a topology from a file or a generator; return the exit status.

    output: a file to write; by default it goes to the terminal.  format: "table", "svg" or "ibnetdiscover"; by default
    svg for an output that ends so, else table.

    0: shown; 2: the file or the generator is wrong.  Raises `SystemLimitError` where there is no matplotlib, and
    OSError for an output that cannot be written.
    """
    if format is None:
        format = "svg" if output is not None and output.lower().endswith(".svg") else "table"
    try:
        topology = _topology(file, generate)
    except FabricFileError as error:
        return _wrong(str(error))
    except TopologyError as error:
        return _wrong(f"verbena show: --generate: {error}")
    match format:
        case "svg":
            _put(draw(topology), output)
        case "ibnetdiscover":
            note_lids(topology, assign_lids(topology))
            _put("".join(write(topology, generated=time.ctime())).encode(), output)
        case _:
            _tables(topology, output)
    return EXIT_OK


def _topology(file: str | None, generate: str | None) -> Topology:
    if file is not None:
        return open_topology(file, warn=lambda sentence: print(f"warning: {sentence}", file=sys.stderr))
    topology = generate_from(generate or "")
    for problem in check(topology):
        print(f"warning: {problem}", file=sys.stderr)
    return topology


def _wrong(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return EXIT_WRONG_USE


def _put(data: bytes, output: str | None) -> None:
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        Path(output).write_bytes(data)


# --- tables -----------------------------------------------------------------------------------------------------


def _tables(topology: Topology, output: str | None) -> None:
    if output is not None:
        with Path(output).open("w", encoding="utf-8") as file:
            _print(Console(file=file, highlight=False, width=160), topology)
    elif sys.stdout.isatty():
        _print(Console(highlight=False), topology)
    else:
        _print(Console(highlight=False, width=160), topology)


def _print(console: Console, topology: Topology) -> None:
    console.print(_nodes(topology))
    console.print(_links(topology))
    console.print(", ".join(_totals(topology)), soft_wrap=True)


def _nodes(topology: Topology) -> Table:
    table = Table("node", "kind", "host", "ports", "GUID", "LID", title=topology.name)
    for column in (table.columns[3], table.columns[5]):
        column.justify = "right"
    for kind in (NodeKind.SWITCH, NodeKind.CA, NodeKind.ROUTER):
        for node in topology.of_kind(kind):
            used = len(
                {
                    end
                    for link in topology.links_of(node.name)
                    for end in (link.a, link.b)
                    if end.node == node.name
                }
            )
            host = "" if node.host == node.name else node.host
            table.add_row(
                Text(node.name),
                _WORDS[kind],
                Text(host),
                f"{used}/{node.ports}",
                f"0x{node.guid:016x}",
                _lids(node),
            )
    return table


def _lids(node: Node) -> str:
    ports = (0,) if node.kind is NodeKind.SWITCH else range(1, node.ports + 1)
    shown = []
    for port in ports:
        base, lmc = node.lid(port)
        if base:
            shown.append(str(base) if lmc == 0 else f"{base}-{base + (1 << lmc) - 1}")
    return " ".join(shown)


def _links(topology: Topology) -> Table:
    table = Table("link", "", "rate", "Gb/s", "delay, ns")
    for column in table.columns[3:]:
        column.justify = "right"
    for link in topology.links:
        ends = (Text(_end(link.a)), Text(_end(link.b)))
        table.add_row(*ends, str(link.rate), f"{link.rate.bps / 1e9:g}", f"{link.delay_ns:,}")
    return table


def _end(end: PortId) -> str:
    return f"{end.node} port {end.port}"


def _totals(topology: Topology) -> Iterator[str]:
    for kind in (NodeKind.SWITCH, NodeKind.CA, NodeKind.ROUTER):
        if number := len(topology.of_kind(kind)):
            yield counted(number, _WORDS[kind])
    yield counted(len(topology.links), "link")
    yield counted(len(subnets(topology)), "subnet")
    yield f"{sum(link.rate.bps for link in topology.links) / 1e9:,.1f} Gb/s each way in all"
