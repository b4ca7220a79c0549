"""`verbena ibnetdiscover`, `iblinkinfo`, `ibstat`, `perfquery` and `ibtracert`: what the tools of these names print.

The fabric of a file, of a dump or of a generator is brought up in virtual time by its subnet manager, and looked at by
management datagrams.  With ``--run``, the file's workloads run first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[
    Path | None,
    typer.Option("-f", "--file", help="A fabric file, or what ibnetdiscover printed.", show_default=False),
]
Generate = Annotated[
    str | None,
    typer.Option(
        "--generate", help='Instead of a file, a shape, such as "fat-tree k=4".', show_default=False
    ),
]
Run = Annotated[bool, typer.Option("--run", help="First run the fabric file's workloads.")]
Subnet = Annotated[int, typer.Option("--subnet", min=0, help="Which subnet, where routers join several.")]


def ibnetdiscover(file: File = None, generate: Generate = None, subnet: Subnet = 0) -> int:
    """Discover a fabric, and print its topology."""

    from verbena.cli import diag_views as views

    return views.observe(file, generate, False, subnet, views.discovered)


def iblinkinfo(
    file: File = None,
    generate: Generate = None,
    line: Annotated[bool, typer.Option("-l", "--line", help="All of a link on one line.")] = False,
    down: Annotated[bool, typer.Option("-d", "--down", help="Only links that are down.")] = False,
    subnet: Subnet = 0,
) -> int:
    """Print every link of a fabric with its state, width and speed."""

    from verbena.cli import diag_views as views

    return views.observe(file, generate, False, subnet, views.links(line, down))


def ibstat(
    host: Annotated[str | None, typer.Argument(help="Only this adapter.", show_default=False)] = None,
    port: Annotated[int | None, typer.Argument(min=1, help="Only this port.", show_default=False)] = None,
    file: File = None,
    generate: Generate = None,
    subnet: Subnet = 0,
) -> int:
    """Print the state of channel adapters and their ports."""

    from verbena.cli import diag_views as views

    return views.observe(file, generate, False, subnet, views.adapters(host, port))


def perfquery(
    node: Annotated[str, typer.Argument(help="A LID, or a node's name.", show_default=False)],
    port: Annotated[int, typer.Argument(min=1, max=255, help="255: all ports.")] = 1,
    file: File = None,
    generate: Generate = None,
    extended: Annotated[bool, typer.Option("-x", "--extended", help="The 64-bit counters.")] = False,
    run: Run = False,
    subnet: Subnet = 0,
) -> int:
    """Ask a node for the performance counters of a port."""

    from verbena.cli import diag_views as views

    return views.observe(file, generate, run, subnet, views.counters(node, port, extended))


def ibtracert(
    source: Annotated[str, typer.Argument(help="A LID, or a node's name.", show_default=False)],
    destination: Annotated[str, typer.Argument(help="A LID, or a node's name.", show_default=False)],
    file: File = None,
    generate: Generate = None,
    numeric: Annotated[bool, typer.Option("-n", help="Without descriptions.")] = False,
    subnet: Subnet = 0,
) -> int:
    """Trace the path that packets take from one LID to another."""

    from verbena.cli import diag_views as views

    return views.observe(file, generate, False, subnet, views.path(source, destination, numeric))


COMMANDS = (ibnetdiscover, iblinkinfo, ibstat, perfquery, ibtracert)
