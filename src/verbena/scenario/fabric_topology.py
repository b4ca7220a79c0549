"""From what a fabric file says to a `Topology`, and what of it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as FilePath

from verbena.errors import FabricFileError, VerbenaError
from verbena.fabric import generators
from verbena.fabric.addressing import given_lids, subnets
from verbena.fabric.rates import LinkRate
from verbena.fabric.topology import Link, NodeKind, PortId, Topology, TopologyError
from verbena.scenario.dumps import read_dump
from verbena.scenario.fabric_schema import FabricModel, LinkModel, port_id
from verbena.scenario.schema import Adapter, FabricFile, Host
from verbena.scenario.schema_types import Path

Warn = Callable[[str], None]


class PlaceError(VerbenaError):
    """Something in a fabric file that cannot be; `where` is its place."""

    def __init__(self, where: Path, message: str) -> None:
        super().__init__(message)
        self.where = where


def build_topology(fabric: FabricFile, folder: FilePath = FilePath(), warn: Warn | None = None) -> Topology:
    """The topology of a file that has a `fabric`.

    folder: where the file is.  warn: is called with what a dump has that is odd.  Raises `PlaceError`.
    """
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
        try:
            topology = read_dump(folder / model.dump, warn or (lambda sentence: None))
        except FabricFileError as error:
            raise PlaceError(("fabric", "dump"), str(error)) from None
    else:
        topology = _by_hand(fabric, model)
    topology.name = fabric.name
    if not topology.hosts:
        raise PlaceError(("fabric",), "the topology has no host")
    _number(topology, model)
    return topology


def _generated(model: FabricModel) -> Topology:
    assert model.generate is not None
    common = {"rate": model.link.rate, "delay_ns": model.link.delay_ns}
    for key in common.keys() & model.parameters.keys():
        raise PlaceError(("fabric", "parameters", key), f"{key} of all links stands under link")
    try:
        topology = generators.generate(model.generate, **common, **model.parameters)
    except TopologyError as error:
        known = model.generate in generators.GENERATORS
        raise PlaceError(("fabric", "parameters" if known else "generate"), str(error)) from None
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


def _by_hand(fabric: FabricFile, model: FabricModel) -> Topology:
    topology = Topology(fabric.name)

    def add(where: Path, name: str, kind: NodeKind, ports: int, guid: int | None, host: str | None) -> None:
        if name in topology.nodes:
            raise PlaceError((*where, "name"), f"there is a node {name} already: each needs its own name")
        try:
            topology.add(name, kind, ports, guid=guid, host=host)
        except TopologyError as error:
            raise PlaceError((*where, "guid"), str(error)) from None

    for i, host in enumerate(fabric.hosts):
        for j, adapter in enumerate(host.adapters):
            at = ("hosts", i, "adapters", j)
            add(at, adapter.name, NodeKind.CA, adapter.ports, adapter.guid, host.name)
    for i, switch in enumerate(model.switches):
        where = ("fabric", "switches", i)
        add(where, switch.name, NodeKind.SWITCH, switch.ports, switch.guid, switch.group)
    for i, router in enumerate(model.routers):
        add(("fabric", "routers", i), router.name, NodeKind.ROUTER, router.ports, router.guid, None)
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


def _number(topology: Topology, model: FabricModel) -> None:
    """Note the LIDs that ports shall have; those of one subnet differ."""
    part = {port: i for i, ports in enumerate(subnets(topology) if model.lids else ()) for port in ports}
    owners = {(part.get(port, -1), lid): port for port, (lid, _) in given_lids(topology).items()}
    for text, lid in model.lids.items():
        where = ("fabric", "lids", text)
        port = port_id(text) or PortId(text, 0 if _is_switch(topology, text) else 1)
        if port.node not in topology.nodes:
            raise PlaceError(where, f"there is no node {port.node}")
        if port not in part:
            hint = (
                "a switch has its own at port 0" if _is_switch(topology, port.node) else "no cable is there"
            )
            raise PlaceError(where, f"{port} has no LID: {hint}")
        owner = owners.setdefault((part[port], lid), port)
        if owner != port:
            raise PlaceError(where, f"LID {lid} is {owner}'s already: each port of a subnet needs its own")
        topology.nodes[port.node].set_lid(port.port, lid)


def _is_switch(topology: Topology, name: str) -> bool:
    node = topology.nodes.get(name)
    return node is not None and node.kind is NodeKind.SWITCH


def with_hosts(fabric: FabricFile, topology: Topology) -> FabricFile:
    """The file with the topology's own hosts as its hosts, where it names none."""
    if fabric.hosts:
        return fabric
    of_host: dict[str, list[Adapter]] = {}
    for node in topology.hosts:
        of_host.setdefault(node.host, []).append(Adapter.model_construct(name=node.name, ports=node.ports))
    hosts = tuple(Host.model_construct(name=name, adapters=tuple(a)) for name, a in of_host.items())
    return fabric.model_copy(update={"hosts": hosts})


def port_of(text: str) -> PortId:
    """A port from its text, which was checked before."""
    found = port_id(text)
    assert found is not None
    return found
