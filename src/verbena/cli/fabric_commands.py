"""Commands that take files: fabric files that are run, captures, topologies."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class TimeMode(StrEnum):
    """The clock that a fabric file runs by."""

    real = "real"
    virtual = "virtual"


class ShowFormat(StrEnum):
    """What a topology is shown as."""

    table = "table"
    svg = "svg"
    ibnetdiscover = "ibnetdiscover"


def run(
    file: Annotated[Path, typer.Argument(help="A fabric file (YAML).", show_default=False)],
    time: Annotated[TimeMode, typer.Option("--time", help="The clock to run by.")] = TimeMode.virtual,
    input: Annotated[
        Path | None,
        typer.Option("--input", help="The file to transfer (default: one is generated).", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The run folder (default: a new one in runs).", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Instead of the fabric file's.", show_default=False)
    ] = None,
    capture: Annotated[
        bool | None,
        typer.Option(
            "--capture/--no-capture", help="Write a capture, whatever the file says.", show_default=False
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only the results.")] = False,
) -> int:
    """Run a fabric file, in real or virtual time."""
    from verbena.cli.run import run as run_file

    return run_file(
        str(file),
        time=time.value,
        input=None if input is None else str(input),
        out=None if out is None else str(out),
        seed=seed,
        capture=capture,
        quiet=quiet,
    )


def fabric(
    file: Annotated[
        Path | None, typer.Argument(help="A fabric file (YAML) with fabric.", show_default=False)
    ] = None,
    generate: Annotated[
        str | None,
        typer.Option(
            "--generate", help='Instead of FILE, a shape, such as "fat-tree k=4".', show_default=False
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDRESS:PORT", help="Where hosts join; port 0: a free one.")
    ] = "127.0.0.1:18600",
    capture: Annotated[
        Path | None,
        typer.Option("-w", "--capture", help="Write what passes to a pcapng file.", show_default=False),
    ] = None,
    port: Annotated[
        list[str] | None,
        typer.Option("--port", help="Capture at this port, such as s1[3], only.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No status lines.")] = False,
) -> int:
    """Run a fabric's switches, routers and subnet managers in real time.

    Programs in other processes open its hosts with verbena.open_fabric_device.  Ends with Ctrl-C.
    """
    if (file is None) == (generate is None):
        raise typer.BadParameter("give either FILE or --generate")
    from verbena.cli.fabric import fabric as run_fabric

    return run_fabric(
        None if file is None else str(file),
        generate=generate,
        listen=listen,
        quiet=quiet,
        capture=capture,
        ports=port or [],
    )


def sweep(
    file: Annotated[Path, typer.Argument(help="A fabric file (YAML).", show_default=False)],
    vary: Annotated[
        list[str],
        typer.Option(
            "--vary",
            help="A key and its values: load=0.1:0.9:0.1 or fabric.lanes=1,2,4; may be given several times.",
            show_default=False,
        ),
    ],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each combination.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="The study's folder (default: runs/FILE-sweep).", show_default=False
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", help="A Dask scheduler, such as tcp://head:8786.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes here (default: a core each).", show_default=False),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Write the results as CSV, too.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only what went wrong.")] = False,
) -> int:
    """Run a fabric file many times, with other values and seeds, on all cores or a cluster.

    What is done already is not done again: the same command goes on after an interruption.
    """
    from verbena.cli.sweep import sweep as run_sweep

    return run_sweep(
        str(file),
        vary=vary,
        seeds=seeds,
        out=None if out is None else str(out),
        scheduler=scheduler,
        workers=workers,
        csv=csv,
        quiet=quiet,
    )


def dump(
    capture: Annotated[Path, typer.Argument(help="A pcap, pcapng or ERF file.", show_default=False)],
    count: Annotated[
        int | None, typer.Option("-n", "--count", min=1, help="Only the first N packets.")
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Every header, and the payload.")] = False,
) -> int:
    """Decode a capture, and check every CRC.

    Exit status 0 only if every packet decodes and every CRC is right.
    """
    from verbena.cli.dump import dump as run_dump

    return run_dump(str(capture), count=count, verbose=verbose)


def show(
    file: Annotated[
        Path | None, typer.Argument(help="A topology: what ibnetdiscover printed.", show_default=False)
    ] = None,
    generate: Annotated[
        str | None,
        typer.Option(
            "--generate", help='Instead of FILE, a shape, such as "fat-tree k=4".', show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write it there (default: the terminal).", show_default=False),
    ] = None,
    format: Annotated[
        ShowFormat | None,
        typer.Option(
            "--format", help="Default: svg for an OUTPUT that ends so, else table.", show_default=False
        ),
    ] = None,
) -> int:
    """Draw or list a topology, or write it as ibnetdiscover does."""
    if (file is None) == (generate is None):
        raise typer.BadParameter("give either FILE or --generate")
    from verbena.cli.show import show as run_show

    return run_show(
        None if file is None else str(file),
        generate=generate,
        output=None if output is None else str(output),
        format=None if format is None else format.value,
    )


COMMANDS = (run, fabric, sweep, dump, show)
