"""What the diagnostic commands show: a fabric from a file, a dump or a generator, brought up and looked at."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import typer

from verbena.errors import FabricFileError, SystemLimitError, VerbenaError
from verbena.fabric.generators import generate_from
from verbena.fabric.ibnetdiscover import write
from verbena.fabric.topology import PortId, Topology
from verbena.runtime.fabric import Fabric
from verbena.scenario import diags
from verbena.scenario.board import Board
from verbena.scenario.builder import Stage
from verbena.scenario.diagnose import Observer
from verbena.scenario.fabric_run import make_fabric, settle
from verbena.scenario.load import load_fabric
from verbena.scenario.outcome import NoWatcher
from verbena.scenario.topologies import FABRIC_FILES, open_topology

EXIT_OK, EXIT_WRONG_USE = 0, 2
Look = Callable[[Observer], str]


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr)


def _fabric(file: Path | None, generate: str | None, run: bool) -> Fabric:
    """The fabric, brought up."""
    if (file is None) == (generate is None):
        raise typer.BadParameter("give either --file or --generate")
    if file is not None and file.suffix.lower() in FABRIC_FILES:
        return _of_file(file, run)
    if run:
        raise typer.BadParameter("--run is for fabric files, which have workloads")
    topology: Topology = generate_from(generate or "") if file is None else open_topology(str(file), _warn)
    fabric = Fabric(topology, flits=False)
    fabric.start()
    return fabric


def _of_file(file: Path, run: bool) -> Fabric:
    spec = load_fabric(str(file))
    if spec.fabric is None:
        raise SystemLimitError(f"{file} has adapters on an ideal wire, and no fabric")
    if not run:
        fabric = make_fabric(spec, file.parent)
        fabric.start()
        return fabric
    hosts = [host.name for host in spec.hosts]
    with Stage(spec, hosts, Board(), NoWatcher(), real=False, folder=file.parent) as stage:
        assert isinstance(stage.net, Fabric)
        stage.net.start()
        stage.net.run(stage.run())
        settle(stage.net)
    return stage.net


def observe(file: Path | None, generate: str | None, run: bool, subnet: int, look: Look) -> int:
    """Bring a fabric up, print what is seen, and return the exit status: 2 for a file that is wrong."""
    try:
        text = look(Observer(_fabric(file, generate, run), subnet))
    except FabricFileError as error:
        print(error, file=sys.stderr)
        return EXIT_WRONG_USE
    print(text, end="")
    return EXIT_OK


def discovered(observer: Observer) -> str:
    """The topology, as `ibnetdiscover` prints it."""
    manager = observer.manager
    source = PortId(f"{manager.node.node.guid:016x}", manager.port)
    return "".join(write(observer.topology(), source=source, generated=time.ctime()))


def links(line: bool, down: bool) -> Look:
    """Every link, as `iblinkinfo` prints it."""
    return lambda observer: diags.iblinkinfo(observer.node_links(), line=line, down_only=down)


def adapters(host: str | None, port: int | None) -> Look:
    """Adapters, as `ibstat` prints them."""
    return lambda observer: "".join(diags.ibstat(each, port) for each in observer.adapters(host))


def counters(node: str, port: int, extended: bool) -> Look:
    """A port's counters, as `perfquery` prints them."""

    def look(observer: Observer) -> str:
        found = observer.counters(observer.lid_of(node), port, extended=extended)
        return diags.perfquery_extended(found) if extended else diags.perfquery(found)

    return look


def path(source: str, destination: str, numeric: bool) -> Look:
    """The way from one LID to another, as `ibtracert` prints it."""

    def look(observer: Observer) -> str:
        hops = observer.trace(observer.lid_of(source), observer.lid_of(destination))
        if len(hops) < 2:
            raise VerbenaError(f"{source} is {destination}: there is no way to trace")
        return diags.ibtracert(hops, numeric=numeric)

    return look
