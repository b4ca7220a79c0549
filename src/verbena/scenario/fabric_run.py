"""A fabric file's fabric, running: how it is made, what happens to it on the way, and its balance at the end."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from verbena.fabric.topology import Link, PortId
from verbena.management.subnet_manager.config import SubnetManagerConfig
from verbena.runtime.fabric import Fabric
from verbena.runtime.real_fabric import RealFabric
from verbena.scenario.fabric_topology import build_topology, port_of
from verbena.scenario.schema import FabricFile
from verbena.scenario.simulation import options_of

SETTLE_NS = 5_000_000


def make_fabric(fabric: FabricFile, folder: Path = Path()) -> Fabric:
    """The fabric of a file, not yet brought up.  Raises `VerbenaError`."""
    model = fabric.fabric
    assert model is not None
    return Fabric(
        build_topology(fabric, folder),
        seed=fabric.seed,
        options=options_of(model),
        flits=model.flits,
        managers=model.managers,
        config=SubnetManagerConfig(engine=model.routing, lanes=model.lanes),
    )


def schedule_changes(net: Fabric | RealFabric, fabric: FabricFile) -> None:
    """Let happen to the fabric what the file wants, counted from now."""
    model = fabric.fabric
    assert model is not None
    pulled: dict[PortId, Link] = {}

    def pull(port: PortId) -> None:
        link = net.pull(port)
        pulled[link.a] = pulled[link.b] = link

    def plug(port: PortId) -> None:
        if port in pulled:
            link = pulled.pop(port)
            pulled.pop(link.other(port), None)
            net.plug(link)

    for change in model.changes:
        ((key, value),) = change.what()
        when = net.now + round(change.at_us * 1000)
        if key in ("pull", "plug"):
            net.clock.call_at(when, partial(pull if key == "pull" else plug, port_of(value)))
        else:
            net.clock.call_at(when, partial(net.power_off if key == "power_off" else net.power_on, value))


def settle(net: Fabric) -> None:
    """Let what is on its way arrive."""
    net.run_for(SETTLE_NS)


def fabric_balance(net: Fabric) -> list[tuple[str, int, int]]:
    """What went into the fabric and what became of it: each pair of numbers must be equal."""
    total = net.core.statistics()
    return [
        (
            "sent + copied by switches = delivered + dropped + on their way",
            total["injected"] + total["replicated"],
            total["delivered"] + total["dropped"] + total["inside"],
        )
    ]
