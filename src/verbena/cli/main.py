"""The command `verbena`: its subcommands, their options, and how failures are told.

What fails ends in one sentence on stderr: exit status 1, 2 when the command line is wrong, 130 after Ctrl-C.  Each
subcommand lives in its own module, imported when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

import verbena
from verbena.cli import adapter_commands, endpoint_commands, fabric_commands
from verbena.cli.diags import COMMANDS as DIAGNOSTICS
from verbena.cli.lan import app as lan_app
from verbena.cli.team_commands import proxy, team_app
from verbena.cli.vswitch import app as vswitch_app

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="verbena",
    help="An RDMA fabric in software: verbs, RoCEv2 and InfiniBand, for real over UDP or in virtual time.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"verbena {verbena.__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(EXIT_USAGE)


_COMMANDS: tuple[Callable[..., Any], ...] = (
    *endpoint_commands.COMMANDS,
    *fabric_commands.COMMANDS,
    *adapter_commands.COMMANDS,
    *DIAGNOSTICS,
    proxy,
)
for _command in _COMMANDS:
    app.command()(_command)
app.add_typer(lan_app, name="lan")
app.add_typer(team_app, name="team")
app.add_typer(vswitch_app, name="vswitch")


# --- how it ends ------------------------------------------------------------------------------------------------


def _say(name: str, message: str) -> None:
    """One sentence on stderr, on one line, that names the command."""
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)


def _name(arguments: Sequence[str]) -> str:
    """The command that runs, with its subcommand."""
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    if arguments[:1] and arguments[0] in {group.name for group in app.registered_groups}:
        return " ".join(["verbena", *(word for word in arguments[:2] if not word.startswith("-"))])
    return " ".join(["verbena", *(word for word in arguments[:1] if word in known)])


def _usage(error: Any) -> str:
    """What is wrong with the command line, and where to read what would be right."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "verbena"
    message = error.format_message().removeprefix("Invalid value: ").rstrip(".")
    return f"{message}; see {command} --help"


def _describe(error: OSError) -> str:
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename else what


def execute(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = _name(arguments)
    try:
        status = app(arguments, prog_name="verbena", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Who reads our output has seen enough; nothing more is written to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except verbena.VerbenaError as error:
        _say(name, str(error))
        return EXIT_FAILED
    except OSError as error:
        _say(name, _describe(error))
        return EXIT_FAILED
    except MemoryError:
        _say(name, "there is not enough memory for that")
        return EXIT_FAILED
    except Exception as error:
        # Errors of the command line; typer brings its own click, or uses the one installed.
        if not hasattr(error, "format_message"):
            raise
        _say(name, _usage(error))
        return EXIT_USAGE
    return int(status or 0)


def main() -> None:
    """The console script."""
    sys.exit(execute())


if __name__ == "__main__":
    main()
