"""A fabric file's LAN, brought up for real: `bring_up` builds the fabric, and adds host after host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from verbena.errors import FabricFileError, SystemLimitError
from verbena.runtime.real_fabric import RealFabric
from verbena.runtime.real_lan import Place, RealLan
from verbena.runtime.tap import missing_permission
from verbena.scenario.fabric_real import real_options
from verbena.scenario.fabric_run import manager_config, schedule_changes
from verbena.scenario.fabric_topology import build_topology
from verbena.scenario.lan_schema import LanModel
from verbena.scenario.schema import FabricFile

Told = Callable[[str], None]


def places(lan: LanModel) -> list[Place]:
    """The hosts of a file's LAN, bridges last."""
    found = [Place(n.adapter, n.interface, n.namespace, tuple(n.addresses)) for n in lan.nodes]
    for b in lan.bridges:
        place = Place(
            b.adapter, b.interface, b.namespace, bridge=True, tap=b.tap, spanning_tree=b.spanning_tree
        )
        found.append(place)
    return found


def make_fabric(file: FabricFile, folder: Path = Path()) -> RealFabric:
    """The file's fabric, all of it in this process, not yet started.

    Its packets go in trains of flits, unless the file says ``flits: true``: every flit by itself is many times slower.
    Subnet managers run on the file's `managers`, by default on the first switch of each subnet.
    """
    model = file.fabric
    assert model is not None
    return RealFabric(
        build_topology(file, folder),
        seed=None,
        options=real_options(model),
        config=manager_config(model),
        managers=model.managers,
        flits=model.flits and "flits" in model.model_fields_set,
    )


@contextlib.contextmanager
def bring_up(
    file: FabricFile,
    folder: Path = Path(),
    *,
    told: Told = lambda sentence: None,
    capture: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    making: Told = lambda namespace: None,
) -> Iterator[RealLan]:
    """A file's LAN while the context lasts; afterwards nothing of it is left.

    told: is called with each step.  capture: a pcapng file of what passes the fabric's ports.  stop: is asked between
    the steps; true ends it there.  making: is called with the name of each namespace before it is made.  The file's
    changes happen from the moment on when everything is up.

    Raises `FabricFileError` for a file without a LAN, `SystemLimitError` where the system does not let it.
    """
    if file.lan is None or file.fabric is None:
        raise FabricFileError(f"{file.name}: it declares no LAN: the key lan is missing")
    missing = missing_permission()
    if missing is not None:
        raise SystemLimitError(missing)
    with contextlib.ExitStack() as stack:
        fabric = stack.enter_context(make_fabric(file, folder))
        if capture is not None:
            stack.enter_context(fabric.capture(capture, sorted(fabric.topology.at, key=str)))
        fabric.start()
        nodes = fabric.topology
        told(f"fabric: {len(nodes.switches)} switches, {len(nodes.hosts)} hosts, {len(nodes.links)} cables")
        lan = stack.enter_context(RealLan(fabric, file.lan.config(), making=making))
        for place in places(file.lan):
            if stop():
                break
            member = lan.add(place)
            where = f" in namespace {place.namespace}" if place.namespace else ""
            what = "bridge to " if place.bridge else ""
            with_addresses = ", ".join(("", *place.addresses))
            mac = member.node.card.mac.hex(":")
            told(f"{place.adapter}: {what}{place.interface}{where}, {mac}{with_addresses}")
        else:
            with fabric.loop.held():
                schedule_changes(fabric, file)
        yield lan
