"""A fabric file's fabric, running: how it is made, what happens to it on the way, and its balance at the end."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from verbena.fabric.routing import Channel, find_cycle
from verbena.fabric.topology import Link, PortId
from verbena.management.subnet_manager.config import SubnetManagerConfig
from verbena.runtime.fabric import Fabric
from verbena.runtime.real_fabric import RealFabric
from verbena.scenario.fabric_schema import FabricModel
from verbena.scenario.fabric_topology import build_topology, port_of
from verbena.scenario.schema import FabricFile
from verbena.scenario.simulation import cycle_warning, options_of

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
        config=manager_config(model),
    )


def manager_config(model: FabricModel) -> SubnetManagerConfig:
    """What the file tells its subnet managers."""
    turns = model.arbitration
    if turns is None:
        return SubnetManagerConfig(engine=model.routing, lanes=model.lanes)
    return SubnetManagerConfig(
        engine=model.routing,
        lanes=model.lanes,
        arbitration_high=turns.high,
        arbitration_low=turns.low,
        high_limit=turns.limit,
    )


def routing_warnings(net: Fabric) -> list[str]:
    """What a person should know about the tables that the subnet managers have written."""
    names = {f"{node.guid:016x}": node.name for node in net.topology.nodes.values()}
    found = []
    for manager in net.managers.values():
        routing = manager.subnet_manager.routing if manager.is_master else None
        if routing is None:
            continue
        found += routing.warnings
        if cycle := find_cycle(routing.graph, routing):
            named = [Channel(names[c.switch], c.port, names[c.peer], c.peer_port, c.lane) for c in cycle]
            found.append(cycle_warning(named))
    return found


def schedule_changes(net: Fabric | RealFabric, fabric: FabricFile) -> None:
    """Let happen to the fabric what the file wants, counted from now."""
    model = fabric.fabric
    assert model is not None
    pulled: dict[PortId, Link] = {}

    def pull(port: PortId) -> None:
        if port in net.topology.at:  # a node that is off has no cables to pull
            link = net.pull(port)
            pulled[link.a] = pulled[link.b] = link

    def plug(port: PortId) -> None:
        link = pulled.pop(port, None)
        if link is not None:
            pulled.pop(link.other(port), None)
            net.plug(link)

    def power(name: str, on: bool) -> None:
        if net.assembly.is_on(name) is not on:
            (net.power_on if on else net.power_off)(name)

    for change in model.changes:
        ((key, value),) = change.what()
        when = net.now + round(change.at_us * 1000)
        if key in ("pull", "plug"):
            net.clock.call_at(when, partial(pull if key == "pull" else plug, port_of(value)))
        else:
            net.clock.call_at(when, partial(power, value, key == "power_on"))


def settle(net: Fabric) -> None:
    """Let what is on its way arrive."""
    net.run_for(SETTLE_NS)


def port_counters(net: Fabric) -> dict[str, dict[str, int]]:
    """What each port of the fabric has counted, where it is not 0."""
    found: dict[str, dict[str, int]] = {}
    for port, number in net.assembly.ports.items():
        counted = {
            name: value
            for name, value in net.core.port_counters(number).items()
            if isinstance(value, int) and value
        }
        if counted:
            found[str(port)] = counted
    return found


def fabric_balance(net: Fabric) -> list[tuple[str, int, int]]:
    """What went into the fabric and what became of it: each pair of numbers must be equal."""
    total = net.core.statistics()
    ports = [net.core.port_counters(number) for number in net.assembly.ports.values()]
    dropped = sum(v for counted in ports for name, v in counted.items() if name.startswith("drop"))
    return [
        (
            "fabric: sent + copied by switches = delivered + dropped + on their way",
            total["injected"] + total["replicated"],
            total["delivered"] + total["dropped"] + total["inside"],
        ),
        ("fabric: dropped, by reason at the ports = in all", dropped, total["dropped"]),
    ]
