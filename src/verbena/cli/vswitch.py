"""`verbena vswitch`: virtual switches.  ``report FILE``: what a switch file's path and workloads do in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXIT_OK, EXIT_FAILED = 0, 1

app = typer.Typer(
    name="vswitch",
    help="Lossless virtual switches.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _vswitch() -> None:
    """Lossless virtual switches."""


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="A switch file (YAML).", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="The report's folder (default: runs/NAME-vswitch).", show_default=False
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only the results.")] = False,
) -> int:
    """Where frames are lost on the way from socket to socket, and what that costs workloads; in virtual time.

    Exit status 1 if a lossless run lost something.
    """
    from rich.console import Console
    from rich.table import Table

    from verbena.scenario import vswitch_report as reports

    loaded = reports.load_switch_file(str(file))
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 110
    done = reports.run_report(
        loaded, (lambda _: None) if quiet else (lambda what: console.print(f"{what} ..."))
    )
    tables = (
        ("from socket to socket", reports.LOSS_HEAD, reports.loss_lines(done.losses)),
        ("workloads", reports.QUERY_HEAD, reports.query_lines(done.comparisons)),
    )
    for title, head, lines in tables:
        if lines:
            table = Table(title=title, title_justify="left")
            for at, heading in enumerate(head):
                table.add_column(
                    heading, justify="left" if at in (0, len(head) * (len(head) == 5) - 1) else "right"
                )
            for line in lines:
                table.add_row(*line)
            console.print(table)
    for each in done.comparisons:
        console.print(each.verdict)
    folder = out or Path("runs") / f"{done.name}-vswitch"
    reports.write_report(done, folder)
    console.print(f"report folder: {folder}")
    return EXIT_OK if done.ok else EXIT_FAILED
