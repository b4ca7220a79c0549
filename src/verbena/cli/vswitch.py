"""`verbena vswitch`: virtual switches.  ``report FILE``: what a switch file's path and workloads do in virtual time.

``up`` makes a file's ports for real and runs until it is interrupted, or ``down`` asks it to end; meanwhile it answers
``status``; if it is killed, ``down`` removes what it could not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from verbena.cli.standing import ended, teller, until_interrupted

EXIT_OK, EXIT_FAILED = 0, 1

app = typer.Typer(
    name="vswitch",
    help="Lossless virtual switches.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Which = Annotated[
    str | None, typer.Argument(help="The name that its file has; not needed while only one is up.")
]


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
    time: Annotated[
        str,
        typer.Option(
            "--time",
            metavar="virtual|real",
            help="real: the workloads between network namespaces, at a real switch; needs root.",
        ),
    ] = "virtual",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only the results.")] = False,
) -> int:
    """Where frames are lost on the way from socket to socket, and what that costs workloads.

    Exit status 1 if a lossless run lost something.
    """
    from rich.console import Console
    from rich.table import Table

    from verbena.errors import SystemLimitError
    from verbena.scenario import vswitch_report as reports
    from verbena.scenario.vswitch_real import run_query

    if time not in ("real", "virtual"):
        raise SystemLimitError(f"--time {time}: real or virtual")
    loaded = reports.load_switch_file(str(file))
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 110
    done = reports.run_report(
        loaded,
        (lambda _: None) if quiet else (lambda what: console.print(f"{what} ...")),
        run_query if time == "real" else None,
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


@app.command()
def up(
    file: Annotated[Path, typer.Argument(help="A switch file (YAML) with live ports.", show_default=False)],
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say only what goes wrong.")] = False,
) -> int:
    """Bring a switch up, and keep it until Ctrl-C or `verbena vswitch down`.

    Needs root, for TAP devices, network namespaces and interfaces with a cable.
    """
    from verbena.runtime.registry import SWITCHES, Registration
    from verbena.scenario.vswitch_report import load_switch_file
    from verbena.scenario.vswitch_run import bring_up

    loaded = load_switch_file(str(file))
    told = teller(quiet)
    with until_interrupted() as over, Registration(SWITCHES, loaded.name, over.set) as registration:
        with bring_up(loaded, told=told, stop=over.is_set, making=registration.note) as switch:
            registration.answer(switch.status)
            if not over.is_set():
                told(f"up: {loaded.name}, {len(switch.places)} ports; Ctrl-C ends it")
            over.wait()
            told("going down")
        registration.cleared()
    return EXIT_OK


@app.command()
def status(
    name: Which = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every counter.")] = False,
) -> int:
    """Show ports, queues, thresholds, pauses and losses of a switch that is up."""
    from verbena.cli.vswitch_views import show
    from verbena.runtime.registry import SWITCHES

    found = SWITCHES.ask(SWITCHES.chosen(name))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    return EXIT_OK


@app.command()
def down(name: Which = None) -> int:
    """Take a switch down, and remove what one that was killed has left."""
    from verbena.runtime.registry import SWITCHES

    print(ended(SWITCHES, SWITCHES.chosen(name)))
    return EXIT_OK
