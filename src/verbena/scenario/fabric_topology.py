"""From what a fabric file says to a `Topology`, and what of it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath

from verbena.errors import VerbenaError
from verbena.fabric import generators, ibnetdiscover
from verbena.fabric.rates import LinkRate
from verbena.fabric.topology import Link, NodeKind, PortId, Topology, TopologyError
from verbena.scenario.fabric_schema import FabricModel, LinkModel, node_of, port_id
from verbena.scenario.schema import Adapter, FabricFile, Host
from verbena.scenario.schema_types import Path


class PlaceError(VerbenaError):
    """Something in a fabric file that cannot be; `where` is its place."""

    def __init__(self, where: Path, message: str) -> None:
        super().__init__(message)
        self.where = where


def build_topology(fabric: FabricFile, folder: FilePath = FilePath()) -> Topology:
    """The topology of a file that has a `fabric`.  folder: where the file is.  Raises `PlaceError`."""
    model = fabric.fabric
    assert model is not None
    sources = [key for key in ("generate", "dump") if getattr(model, key) is not None]
    if len(sources) > 1:
        raise PlaceError(("fabric", "dump"), "a topology is generated or read from a dump: not both")
    for key in ("switches", "routers", "links") if sources else ():
        if getattr(model, key):
            raise PlaceError(
                ("fabric", key), f"{key} belong to a topology by hand, and this one has {sources[0]}"
            )
    if model.parameters and model.generate is None:
        raise PlaceError(("fabric", "parameters"), "parameters are for generate, which is not there")
    if model.generate is not None:
        topology = _generated(model)
    elif model.dump is not None:
        topology = _read(folder / model.dump)
    else:
        topology = _by_hand(fabric, model)
    topology.name = fabric.name
    if not topology.hosts:
        raise PlaceError(("fabric",), "the topology has no host")
    return topology


def _generated(model: FabricModel) -> Topology:
    assert model.generate is not None
    try:
        topology = generators.generate(
            model.generate, rate=model.link.rate, delay_ns=model.link.delay_ns, **model.parameters
        )
    except TopologyError as error:
        raise PlaceError(("fabric", "generate"), str(error)) from None
    if model.link.bit_error_rate:
        for link in list(topology.links):
            topology.disconnect(link.a)
            topology.connect(
                link.a,
                link.b,
                rate=link.rate,
                delay_ns=link.delay_ns,
                bit_error_rate=model.link.bit_error_rate,
            )
    return topology


def _read(path: FilePath) -> Topology:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return ibnetdiscover.read(file)
    except OSError as error:
        raise PlaceError(("fabric", "dump"), f"{path} cannot be read: {error.strerror or error}") from None
    except TopologyError as error:
        raise PlaceError(("fabric", "dump"), f"{path}: {error}") from None


def _by_hand(fabric: FabricFile, model: FabricModel) -> Topology:
    topology = Topology(fabric.name)

    def add(where: Path, name: str, kind: NodeKind, ports: int, guid: int | None, host: str | None) -> None:
        try:
            topology.add(name, kind, ports, guid=guid, host=host)
        except TopologyError as error:
            raise PlaceError(where, str(error)) from None

    for i, host in enumerate(fabric.hosts):
        for j, adapter in enumerate(host.adapters):
            where = ("hosts", i, "adapters", j, "name")
            add(where, adapter.name, NodeKind.CA, adapter.ports, None, host.name)
    for i, switch in enumerate(model.switches):
        add(
            ("fabric", "switches", i, "name"),
            switch.name,
            NodeKind.SWITCH,
            switch.ports,
            switch.guid,
            switch.group,
        )
    for i, router in enumerate(model.routers):
        add(("fabric", "routers", i, "name"), router.name, NodeKind.ROUTER, router.ports, router.guid, None)
    for i, link in enumerate(model.links):
        try:
            _connect(topology, link, model)
        except TopologyError as error:
            raise PlaceError(("fabric", "links", i), str(error)) from None
    return topology


def _connect(topology: Topology, link: LinkModel, model: FabricModel) -> Link:
    default = model.link
    return topology.connect(
        port_id(link.source) or link.source,
        port_id(link.to) or link.to,
        rate=LinkRate.parse(link.rate or default.rate),
        delay_ns=default.delay_ns if link.delay_ns is None else link.delay_ns,
        bit_error_rate=default.bit_error_rate if link.bit_error_rate is None else link.bit_error_rate,
    )


def with_hosts(fabric: FabricFile, topology: Topology) -> FabricFile:
    """The file with the topology's own hosts as its hosts, where it names none."""
    if fabric.hosts:
        return fabric
    of_host: dict[str, list[Adapter]] = {}
    for node in topology.hosts:
        of_host.setdefault(node.host, []).append(Adapter.model_construct(name=node.name, ports=node.ports))
    hosts = tuple(Host.model_construct(name=name, adapters=tuple(a)) for name, a in of_host.items())
    return fabric.model_copy(update={"hosts": hosts})


def fabric_problems(fabric: FabricFile, topology: Topology) -> Iterator[tuple[Path, str]]:
    """What a topology that can be built makes impossible: names and ports that are not there."""
    model = fabric.fabric
    assert model is not None
    hosts = {node.name for node in topology.hosts}
    if not model.by_hand:
        for i, host in enumerate(fabric.hosts):
            for j, adapter in enumerate(host.adapters):
                if adapter.name not in hosts:
                    yield (
                        ("hosts", i, "adapters", j, "name"),
                        f"the topology has no host {adapter.name}; it has {_some(sorted(hosts))}",
                    )
    for i, name in enumerate(model.managers):
        if name not in hosts:
            yield ("fabric", "managers", i), f"there is no adapter {name} that could run the subnet manager"
    for i, change in enumerate(model.changes):
        given = change.what()
        if len(given) != 1:
            yield ("fabric", "changes", i), "a change is one of pull, plug, power_off, power_on"
        for key, value in given:
            yield from _change(topology, ("fabric", "changes", i, key), key, value)


def _change(topology: Topology, where: Path, key: str, value: str) -> Iterator[tuple[Path, str]]:
    node = topology.nodes.get(node_of(value))
    if node is None:
        yield where, f"there is no node {node_of(value)}"
    elif key in ("pull", "plug"):
        port = port_id(value)
        if port is None:
            yield where, f"name a port, such as {value}[1]"
        elif topology.peer(port) is None:
            yield where, f"{value}: no cable is there"


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:7])} … {names[-1]}"


def port_of(text: str) -> PortId:
    """A port from its text, which was checked before."""
    found = port_id(text)
    assert found is not None
    return found
