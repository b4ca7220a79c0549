"""Commands that show what is in adapters: memory, contexts, completion handlers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Seconds = Annotated[
    float, typer.Option("--timeout", min=0.1, help="Give up when nothing arrives for so many seconds.")
]


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


COMMANDS = (memory, contexts, handlers)
