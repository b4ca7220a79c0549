"""`verbena lan`: an Ethernet on an emulated fabric, for real programs: bring it up, look at it, take it down.

``up`` runs until it is interrupted, or ``down`` asks it to end.  Meanwhile it answers ``status`` on a socket in
`runtime.lan_registry`'s folder; if it is killed, ``down`` removes what it could not.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from verbena.errors import NotFound, SystemLimitError

SWITCH_INTERVAL_S = 0.0002
"""How long a thread may keep others from running Python: frames wait for it."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

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
    from verbena.runtime.lan_registry import Registration
    from verbena.runtime.tap import keep_memory, missing_permission
    from verbena.scenario.lan_run import bring_up
    from verbena.scenario.load import load_fabric

    fabric = load_fabric(str(file))
    if (missing := missing_permission()) is not None:
        raise SystemLimitError(missing)
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in STOPS}
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keep_memory()

    def told(sentence: str) -> None:
        if not quiet:
            print(sentence, flush=True)

    try:
        with Registration(fabric.name, ended.set) as registration:
            with bring_up(
                fabric, file.parent, told=told, capture=capture, stop=ended.is_set, making=registration.note
            ) as lan:
                registration.answer(lan.status)
                if not ended.is_set():
                    told(f"up: {fabric.name}, {len(lan.members)} nodes; Ctrl-C ends it")
                ended.wait()
                told("going down")
            registration.cleared()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


@app.command()
def status(
    name: Which = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every counter.")] = False,
) -> int:
    """Show nodes, channels, ARP view and counters of a LAN that is up."""
    from verbena.cli.lan_views import show
    from verbena.runtime import lan_registry

    found = lan_registry.ask(_chosen(name))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    return 0


@app.command()
def down(name: Which = None) -> int:
    """Take a LAN down, and remove what one that was killed has left."""
    from verbena.runtime import lan_registry

    chosen = _chosen(name)
    removed = lan_registry.end(chosen)
    print(f"down: {chosen}" + (f"; removed what it had left: {', '.join(removed)}" if removed else ""))
    return 0


def _chosen(name: str | None) -> str:
    """The LAN that is meant; raises `NotFound`, `SystemLimitError`."""
    from verbena.runtime import lan_registry

    known = lan_registry.names()
    if name is not None:
        if name not in known:
            raise NotFound(f"no LAN {name} is up" + (f": up are {', '.join(known)}" if known else ""))
        return name
    if not known:
        raise NotFound("no LAN is up")
    if len(known) > 1:
        raise SystemLimitError(f"several LANs are up, name one: {', '.join(known)}")
    return known[0]
