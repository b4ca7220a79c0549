"""What a topology that can be built makes impossible: names, ports, traffic that do not fit.  Where, and a sentence."""

from __future__ import annotations

from collections.abc import Iterator

from verbena.errors import VerbenaError
from verbena.fabric.topology import Topology
from verbena.scenario.fabric_schema import FabricModel, Traffic, node_of, port_id
from verbena.scenario.patterns import check_flow
from verbena.scenario.schema import FabricFile
from verbena.scenario.schema_types import Path

Found = Iterator[tuple[Path, str]]


def fabric_problems(fabric: FabricFile, topology: Topology) -> Found:
    """All of them."""
    model = fabric.fabric
    assert model is not None
    hosts = {node.name for node in topology.hosts}
    if not model.by_hand:
        yield from _foreign(fabric, hosts)
    yield from _settings(model, hosts)
    if model.changes and all(isinstance(workload, Traffic) for workload in fabric.workloads):
        yield (
            ("fabric", "changes"),
            "changes happen to workloads that move bytes, and here is only traffic, which has a fabric of its own",
        )
    for i, change in enumerate(model.changes):
        given = change.what()
        if len(given) != 1:
            yield ("fabric", "changes", i), "a change is one of pull, plug, power_off, power_on"
        for key, value in given:
            yield from _change(topology, ("fabric", "changes", i, key), key, value)
    for i, workload in enumerate(fabric.workloads):
        where: Path = ("workloads", i)
        for at, name in workload.ends():
            if name in hosts and not topology.links_of(name):
                yield (*where, *at), f"no cable is plugged into {name}: nothing reaches it"
        if isinstance(workload, Traffic):
            yield from _traffic(model, workload, topology, where)


def _foreign(fabric: FabricFile, hosts: set[str]) -> Found:
    for i, host in enumerate(fabric.hosts):
        for j, adapter in enumerate(host.adapters):
            if adapter.name not in hosts:
                yield (
                    ("hosts", i, "adapters", j, "name"),
                    f"the topology has no host {adapter.name}; it has {_some(sorted(hosts))}",
                )


def _settings(model: FabricModel, hosts: set[str]) -> Found:
    if model.buffer_bytes < model.mtu + 128:
        yield (
            ("fabric", "buffer_bytes"),
            f"buffer_bytes: {model.buffer_bytes} holds no packet of MTU {model.mtu}: at least {model.mtu + 128}",
        )
    for i, name in enumerate(model.managers):
        if name not in hosts:
            yield ("fabric", "managers", i), f"there is no adapter {name} that could run the subnet manager"
        elif name in model.managers[:i]:
            yield ("fabric", "managers", i), f"{name} runs a subnet manager already: one is enough"
    if model.arbitration is None:
        return
    for table in ("high", "low"):
        for i, (lane, _) in enumerate(getattr(model.arbitration, table)):
            if lane >= model.lanes:
                yield (
                    ("fabric", "arbitration", table, i),
                    f"there is no lane {lane}: lanes are 0 to {model.lanes - 1}",
                )
    served = {lane for lane, weight in (*model.arbitration.high, *model.arbitration.low) if weight}
    if missing := set(range(model.lanes)) - served:
        yield (
            ("fabric", "arbitration"),
            f"lane {min(missing)} has no weight in either table: its packets would never have their turn",
        )


def _change(topology: Topology, where: Path, key: str, value: str) -> Found:
    node = topology.nodes.get(node_of(value))
    if node is None:
        yield where, f"there is no node {node_of(value)}"
    elif key in ("pull", "plug"):
        port = port_id(value)
        if port is None:
            yield where, f"name a port, such as {value}[1]"
        elif topology.peer(port) is None:
            yield where, f"{value}: no cable is there"


def _traffic(model: FabricModel, spec: Traffic, topology: Topology, where: Path) -> Found:
    if spec.warmup_us >= spec.duration_us:
        yield (*where, "warmup_us"), f"warmup_us: nothing is left of {spec.duration_us:g} us to measure"
    hosts = [node.name for node in topology.hosts if topology.links_of(node.name)]
    if (parts := sum(1 for part in topology.subnets() if part & set(hosts))) > 1:
        yield where, f"traffic runs within one subnet, and this topology has {parts}"
    for i, flow in enumerate(spec.flows):
        at = (*where, "flows", i)
        if flow.bytes > model.mtu:
            yield (*at, "bytes"), f"bytes: {flow.bytes} do not fit the fabric's MTU, {model.mtu}"
        if flow.start_us >= min(flow.stop_us or spec.duration_us, spec.duration_us):
            yield (*at, "start_us"), "start_us: it would end before it begins"
        try:
            check_flow(flow, hosts)
        except VerbenaError as error:
            yield at, str(error)


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:7])} … {names[-1]}"
