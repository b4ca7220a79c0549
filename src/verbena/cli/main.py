"""The command `verbena`: its subcommands, their options, and how failures are told.

What fails ends in one sentence on stderr: exit status 1, 2 when the command line is wrong, 130 after Ctrl-C.  Each
subcommand lives in its own module, imported when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import verbena
from verbena.cli.diags import COMMANDS
from verbena.cli.lan import app as lan_app
from verbena.cli.team_commands import proxy, team_app
from verbena.cli.vswitch import app as vswitch_app

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
LARGEST_MESSAGE = (1 << 31) - 1

app = typer.Typer(
    name="verbena",
    help="An RDMA fabric in software: verbs, RoCEv2 and InfiniBand, for real over UDP or in virtual time.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Service(StrEnum):
    """Transport services that pingpong speaks."""

    rc = "rc"
    uc = "uc"
    ud = "ud"


class Mtu(StrEnum):
    """Path MTUs (IBA vol. 1, 9.6.3)."""

    m256 = "256"
    m512 = "512"
    m1024 = "1024"
    m2048 = "2048"
    m4096 = "4096"


class TimeMode(StrEnum):
    """The clock that a fabric file runs by."""

    real = "real"
    virtual = "virtual"


class ShowFormat(StrEnum):
    """What a topology is shown as."""

    table = "table"
    svg = "svg"
    ibnetdiscover = "ibnetdiscover"


class Operation(StrEnum):
    """Operations that perf measures."""

    write = "write"
    read = "read"
    send = "send"
    atomic = "atomic"


Port = Annotated[int, typer.Option("-p", "--port", min=1, max=65535, help="TCP port of the server.")]
Address = Annotated[
    str | None,
    typer.Option("-d", "--address", help="Local IP address; by default the one that routes to the peer."),
]
Iterations = Annotated[int, typer.Option("-n", "--iters", min=1, help="Number of exchanges.")]
Seconds = Annotated[
    float, typer.Option("--timeout", min=0.1, help="Give up when nothing arrives for so many seconds.")
]
Host = Annotated[str | None, typer.Argument(help="Server to connect to; without it, be the server.")]


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


@app.command()
def pingpong(
    service: Annotated[Service, typer.Argument(help="Transport service.", show_default=False)],
    host: Host = None,
    port: Port = 18515,
    address: Address = None,
    size: Annotated[
        int | None,
        typer.Option(
            "-s",
            "--size",
            min=0,
            max=LARGEST_MESSAGE,
            help="Bytes of a message (default 4096; ud 1024).",
        ),
    ] = None,
    mtu: Annotated[Mtu, typer.Option("-m", "--mtu", help="Path MTU (rc, uc).")] = Mtu.m1024,
    rx_depth: Annotated[
        int, typer.Option("-r", "--rx-depth", min=1, max=16384, help="Receive buffers to post at a time.")
    ] = 500,
    iters: Iterations = 1000,
    gid_idx: Annotated[int, typer.Option("-g", "--gid-idx", min=0, help="Index of the local GID.")] = 0,
    events: Annotated[
        bool, typer.Option("-e", "--events", help="Sleep until a completion event (default: poll first).")
    ] = False,
    chk: Annotated[
        bool, typer.Option("-c", "--chk", help="Compare what arrives; both ends need it.")
    ] = False,
    timeout: Seconds = 10.0,
) -> int:
    """Messages to and fro, also with ibv_*_pingpong.

    Without HOST, wait for a client.  The peer may be ibv_rc_pingpong, ibv_uc_pingpong or ibv_ud_pingpong.
    """
    from verbena.cli.pingpong import Options
    from verbena.cli.pingpong import pingpong as run_pingpong
    from verbena.transport.kinds import QPType

    return run_pingpong(
        Options(
            service=QPType[service.value.upper()],
            host=host,
            port=port,
            size=size,
            mtu=int(mtu.value),
            iterations=iters,
            depth=rx_depth,
            gid_index=gid_idx,
            events=events,
            check=chk,
            address=address,
            timeout=timeout,
        )
    )


@app.command()
def perf(
    operation: Annotated[
        Operation | None, typer.Argument(help="What to measure (a server does what clients ask for).")
    ] = None,
    host: Host = None,
    bw: Annotated[
        bool, typer.Option("--bw", help="Bandwidth: many messages at a time (the default).")
    ] = False,
    lat: Annotated[bool, typer.Option("--lat", help="Latency: one message at a time.")] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Both ends, as two processes on 127.0.0.1 and 127.0.0.2.")
    ] = False,
    size: Annotated[
        int | None,
        typer.Option("-s", "--size", min=1, max=1 << 30, help="Bytes of a message (default 65536; --lat 2)."),
    ] = None,
    sweep: Annotated[bool, typer.Option("-a", "--all", help="All sizes from 2 to 2^23.")] = False,
    iters: Iterations = 1000,
    port: Port = 18515,
    address: Address = None,
    mtu: Annotated[Mtu | None, typer.Option("-m", "--mtu", help="Path MTU (default: the port's).")] = None,
    qp: Annotated[int, typer.Option("-q", "--qp", min=1, max=1024, help="Number of queue pairs (--bw).")] = 1,
    depth: Annotated[
        int,
        typer.Option("-t", "--depth", min=1, max=4096, help="Outstanding messages of a queue pair (--bw)."),
    ] = 128,
    persistent: Annotated[
        bool, typer.Option("-P", "--persistent", help="Be a server for one client after the other.")
    ] = False,
    listener: Annotated[int | None, typer.Option("--listener", hidden=True)] = None,
) -> int:
    """Measure RDMA operations between two ends.

    Without HOST, be the server, which does what its client asks for; --local runs both ends here.
    """
    from verbena.cli.perf import Options
    from verbena.cli.perf import perf as run_perf

    if bw and lat:
        raise typer.BadParameter("--bw and --lat exclude each other")
    if (host is not None or local) and operation is None:
        raise typer.BadParameter("say what to measure: write, read, send or atomic")
    if host is not None and local:
        raise typer.BadParameter("--local runs both ends here: give no HOST")
    if lat and qp > 1:
        raise typer.BadParameter("--lat uses one queue pair")
    return run_perf(
        Options(
            operation=None if operation is None else operation.value,
            latency=lat,
            host=host,
            local=local,
            size=size,
            sweep=sweep,
            iterations=iters,
            port=port,
            address=address,
            mtu=None if mtu is None else int(mtu.value),
            queue_pairs=qp,
            depth=depth,
            persistent=persistent,
            listener=listener,
        )
    )


@app.command()
def rping(
    server: Annotated[bool, typer.Option("-s", "--server", help="Be the server.")] = False,
    client: Annotated[bool, typer.Option("-c", "--client", help="Be the client.")] = False,
    address: Annotated[
        str | None,
        typer.Option("-a", "--server-address", help="Address of the server; there, the one to listen at."),
    ] = None,
    port: Annotated[int, typer.Option("-p", "--port", min=1, max=65535, help="Port of the server.")] = 7174,
    count: Annotated[
        int, typer.Option("-C", "--count", min=0, help="Number of pings; 0: until interrupted.")
    ] = 0,
    size: Annotated[int, typer.Option("-S", "--size", help="Bytes of a ping.")] = 64,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the data.")] = False,
    validate: Annotated[bool, typer.Option("-V", "--validate", help="Compare what comes back.")] = False,
    persistent: Annotated[
        bool, typer.Option("-P", "--persistent", help="Be a server for one client after the other.")
    ] = False,
    local: Annotated[
        str | None,
        typer.Option(
            "-d", "--address", help="The client's own address; by default the one that routes there."
        ),
    ] = None,
) -> int:
    """Ping by RDMA READ and WRITE, also with rping.

    The connection is made by the connection manager; the peer may be the rping of librdmacm.
    """
    if server == client:
        raise typer.BadParameter("say either -s (server) or -c (client)")
    if address is None:
        if client:
            raise typer.BadParameter("name the server's address with -a")
        address = local or "0.0.0.0"
    from verbena.cli.rping import rping as run_rping

    return run_rping(server, client, address, port, count or None, size, verbose, validate, persistent, local)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def memory(
    target: Annotated[
        Path,
        typer.Argument(
            help="A fabric file, the folder of a run, or the socket of a running program.",
            show_default=False,
        ),
    ],
    host: Annotated[
        str | None, typer.Option("--host", help="One of several hosts.", show_default=False)
    ] = None,
    newest: Annotated[
        int, typer.Option("-n", "--newest", min=0, help="So many uses, refusals and verbs of each.")
    ] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="As data for programs.")] = False,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Of the run, instead of the file's.", show_default=False),
    ] = None,
) -> int:
    """Show a host's memory: segment and page tables, regions, keys, who used which key when.

    A fabric file is run in virtual time first.
    """
    from verbena.cli.memory import memory as show_memory

    return show_memory(str(target), host=host, newest=newest, as_json=as_json, seed=seed)


@app.command()
def contexts(
    nodes: Annotated[int, typer.Option("-N", "--nodes", min=2, max=64, help="Number of nodes.")] = 3,
    processes: Annotated[
        int, typer.Option("-M", "--processes", min=1, max=32, help="Processes on each node.")
    ] = 2,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 0,
    fabric: Annotated[
        bool, typer.Option("--fabric", help="Over an InfiniBand fabric: switch, subnet manager, credits.")
    ] = False,
) -> int:
    """Count what a full mesh takes, by reliable connections and by reliable datagrams.

    Both meshes are built in virtual time; every process sends a message to every one of every other node, and the
    adapters tell how many queue pairs and end-to-end contexts they hold.
    """
    from verbena.cli.contexts import contexts as count_contexts

    return count_contexts(nodes, processes, seed, fabric)


@app.command()
def handlers(
    study: Annotated[
        bool, typer.Option("--study", help="Measure 1, 2, 4, 8 handlers on simulated processors instead.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Look once, not until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option("-i", "--interval", min=0.01, help="Seconds between looks.")
    ] = 1.0,
    json: Annotated[bool, typer.Option("--json", help="As JSON: all that is known, once.")] = False,
    numbers: Annotated[
        str, typer.Option("-n", "--handlers", help="Of the study: how many, with commas.")
    ] = "1,2,4,8",
    processors: Annotated[
        int, typer.Option("--processors", min=1, max=64, help="Of the study: simulated processors.")
    ] = 8,
    work: Annotated[
        int, typer.Option("--work", min=0, help="Of the study: a consumer's nanoseconds for a message.")
    ] = 1_000,
    messages: Annotated[
        int, typer.Option("--messages", min=100, help="Of the study: messages of each run.")
    ] = 8_000,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Of the study: draw it there (svg, png, pdf).")
    ] = None,
) -> int:
    """Show the completion handlers of running programs: bindings, processors, rates, latencies.

    Seen are programs of the same user, on adapters in real time, from their first completion handler on.
    """
    from verbena.cli import handlers as shown
    from verbena.scenario.handler_study import StudyOptions

    if not study:
        return shown.handlers(once=once, interval=interval, as_json=json)
    try:
        wanted = [int(number) for number in numbers.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{numbers!r}: numbers with commas, such as 1,2,4,8") from None
    if not all(1 <= number <= 64 for number in wanted):
        raise typer.BadParameter(f"{numbers!r}: 1 to 64 handlers")
    options = StudyOptions(processors=processors, consumers=2 * processors, messages=messages, work_ns=work)
    return shown.study(wanted, options, plot, json)


app.add_typer(lan_app, name="lan")
for _command in COMMANDS:
    app.command(rich_help_panel=None)(_command)
app.command()(proxy)
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
