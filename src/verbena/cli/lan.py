"""`verbena lan`: an Ethernet on an emulated fabric, for real programs: bring it up, look at it, take it down.

``up`` runs until it is interrupted, or ``down`` asks it to end.  Meanwhile it answers ``status`` on a socket in
`runtime.registry`'s folder; if it is killed, ``down`` removes what it could not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from verbena.cli.standing import ended, teller, until_interrupted
from verbena.errors import SystemLimitError

app = typer.Typer(
    name="lan",
    help="An Ethernet on an emulated fabric, with TAP devices that real programs use.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Which = Annotated[
    str | None, typer.Argument(help="The name that its file has; not needed while only one is up.")
]


@app.command()
def up(
    file: Annotated[Path, typer.Argument(help="A fabric file (YAML) with a lan.", show_default=False)],
    capture: Annotated[
        Path | None, typer.Option("-w", "--capture", help="Write what passes the fabric's ports, as pcapng.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say only what goes wrong.")] = False,
) -> int:
    """Bring a LAN up, and keep it until Ctrl-C or `verbena lan down`.

    Needs root, for TAP devices and network namespaces.
    """
    from verbena.runtime.registry import LANS, Registration
    from verbena.runtime.tap import missing_permission
    from verbena.scenario.lan_run import bring_up
    from verbena.scenario.load import load_fabric

    fabric = load_fabric(str(file))
    if (missing := missing_permission()) is not None:
        raise SystemLimitError(missing)
    told = teller(quiet)
    with until_interrupted() as over, Registration(LANS, fabric.name, over.set) as registration:
        with bring_up(
            fabric, file.parent, told=told, capture=capture, stop=over.is_set, making=registration.note
        ) as lan:
            registration.answer(lan.status)
            if not over.is_set():
                told(f"up: {fabric.name}, {len(lan.members)} nodes; Ctrl-C ends it")
            over.wait()
            told("going down")
        registration.cleared()
    return 0


@app.command()
def status(
    name: Which = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every counter.")] = False,
) -> int:
    """Show nodes, channels, ARP view and counters of a LAN that is up."""
    from verbena.cli.lan_views import show
    from verbena.runtime.registry import LANS

    found = LANS.ask(LANS.chosen(name))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    return 0


@app.command()
def down(name: Which = None) -> int:
    """Take a LAN down, and remove what one that was killed has left."""
    from verbena.runtime.registry import LANS

    print(ended(LANS, LANS.chosen(name)))
    return 0
