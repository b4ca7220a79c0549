"""The options of ``verbena team`` and ``verbena proxy``; what they do is in modules of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

team_app = typer.Typer(
    name="team",
    help="Teams of network cards that keep their RDMA card.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Control = Annotated[Path, typer.Option("-c", "--control", help="The running team's control socket.")]
CONTROL = Path("/run/verbena-team.sock")


@team_app.command()
def up(
    file: Annotated[Path, typer.Argument(help="A team file (YAML).", show_default=False)],
    control: Control = CONTROL,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No table, only events.")] = False,
) -> int:
    """Run a team in real time, until interrupted."""
    from verbena.cli.team import up as run_up

    return run_up(str(file), str(control), quiet)


@team_app.command()
def status(control: Control = CONTROL) -> int:
    """Show members, VLAN groups, load, connections and the path that each is on."""
    from verbena.cli.team import ask

    return ask(str(control), "status")


@team_app.command()
def fail(member: str, control: Control = CONTROL) -> int:
    """Take a member out of use."""
    from verbena.cli.team import ask

    return ask(str(control), "fail", member)


@team_app.command()
def recover(member: str, control: Control = CONTROL) -> int:
    """Let a member in again."""
    from verbena.cli.team import ask

    return ask(str(control), "recover", member)


@team_app.command()
def add(member: str, control: Control = CONTROL) -> int:
    """Take an interface into the team while traffic flows."""
    from verbena.cli.team import ask

    return ask(str(control), "add", member)


@team_app.command()
def remove(member: str, control: Control = CONTROL) -> int:
    """Take a member out of the team; its load goes to the others."""
    from verbena.cli.team import ask

    return ask(str(control), "remove", member)


@team_app.command()
def release(connection: str, control: Control = CONTROL) -> int:
    """Let the policy choose a connection's path again, after offload or upload."""
    from verbena.cli.team import ask

    return ask(str(control), "release", connection)


@team_app.command()
def offload(connection: str, control: Control = CONTROL) -> int:
    """Put a connection on the offload path; CONNECTION is the beginning of its identity, as status shows it."""
    from verbena.cli.team import ask

    return ask(str(control), "offload", connection)


@team_app.command()
def upload(connection: str, control: Control = CONTROL) -> int:
    """Put a connection on the upload path."""
    from verbena.cli.team import ask

    return ask(str(control), "upload", connection)


def proxy(
    upload: Annotated[str, typer.Option("--upload", help="Address of this host for the upload path.")],
    team: Annotated[str, typer.Option("--team", help="Address for the team path.")] = "",
    rdma: Annotated[
        list[str] | None, typer.Option("--rdma", help="Address of an RDMA adapter; may be repeated.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="ADDRESS:PORT", help="Take TCP connections here, …")
    ] = None,
    via: Annotated[
        str | None,
        typer.Option("--via", metavar="ADDRESS:PORT", help="… and carry them to this node's port."),
    ] = None,
    accept: Annotated[
        int | None,
        typer.Option("--accept", min=1, max=65535, help="Take carried connections at this port, …"),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="ADDRESS:PORT", help="… and connect them to this program.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only what went wrong.")] = False,
) -> int:
    """Let unmodified TCP programs profit from offload: one proxy at each end."""
    from verbena.cli.proxy import proxy as run_proxy

    return run_proxy(upload, team, rdma or [], listen, via, accept, to, quiet)
