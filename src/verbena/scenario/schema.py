"""The fabric file: what may stand in it, as data.

Hosts with adapters, the wire between them, and workloads.  Every number has its unit in its name; a number of bytes may
also be written as text, ``64 MiB``.  `load.load_fabric` reads a file into a `FabricFile`; what one key alone cannot
tell (names that are referred to, addresses used twice) is checked by `problems`.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from verbena.scenario.fabric_schema import (
    Arbitration,
    Change,
    FabricModel,
    Flow,
    LinkDefaults,
    LinkModel,
    RouterModel,
    SwitchModel,
    Traffic,
)
from verbena.scenario.lan_schema import LanBridgeModel, LanModel, LanNodeModel, lan_problems
from verbena.scenario.memory_schema import MemoryModel, ProcessModel, RingBuffer, memory_problems
from verbena.scenario.schema_types import (
    LARGEST_FILE,
    LARGEST_MESSAGE,
    TIMES,
    Addresses,
    Common,
    Name,
    Path,
    Probability,
    Size,
    Strict,
    capture_or_flag,
    one_or_both,
)


class Adapter(Strict):
    """A channel adapter.  address: on an ideal wire only.  ports, guid: on a fabric.  mtu: active MTU, in bytes."""

    name: Name
    address: Annotated[Addresses, BeforeValidator(one_or_both)] | None = None
    ports: Annotated[int, Field(ge=1, le=255)] = 1
    guid: Annotated[int, Field(ge=1, lt=1 << 64)] | None = None
    mtu: Literal[256, 512, 1024, 2048, 4096] = 4096
    ack_policy: Literal["coalesced", "per-packet"] = "coalesced"


class Host(Strict):
    """A host: in real time an operating system process of its own.  memory: a modelled one, for its processes."""

    name: Name
    adapters: Annotated[tuple[Adapter, ...], Field(min_length=1, strict=False)]
    memory: MemoryModel | None = None


class FaultModel(Strict):
    """Probabilities of what happens to a packet; delay_ns: how late a delayed or reordered one is at most."""

    loss: Probability = 0.0
    duplication: Probability = 0.0
    reordering: Probability = 0.0
    corruption: Probability = 0.0
    delay: Probability = 0.0
    delay_ns: Annotated[int, Field(ge=0, le=10_000_000_000)] = 1_000_000

    @property
    def any(self) -> bool:
        return any((self.loss, self.duplication, self.reordering, self.corruption, self.delay))


class WireModel(Strict):
    """What joins the adapters.  rate_bps (0: no limit) and delay_ns hold in virtual time, udp_port in real time."""

    rate_bps: Annotated[float, Field(ge=0, le=1e15)] = 100e9
    delay_ns: Annotated[int, Field(ge=0, le=10_000_000_000)] = 1_000
    udp_port: Annotated[int, Field(ge=1, le=65_535)] = 4791
    faults: FaultModel = FaultModel()


class CaptureModel(Strict):
    """packets: how many of each adapter's sent packets go into the capture file, from the first on."""

    enabled: bool = True
    packets: Annotated[int, Field(ge=1, le=10_000_000)] = 2_000


class FileTransfer(Common):
    """A file goes from one adapter's memory into another's by RDMA WRITE, and is read back by RDMA READ.

    bytes: how much is made up when no file is given.  message_bytes: of each WRITE and READ.  depth: how many are in
    flight.
    """

    kind: Literal["file-transfer"]
    source: Annotated[Name, Field(alias="from")]
    to: Name
    bytes: Annotated[int, Size, Field(ge=0, le=LARGEST_FILE)] = 64 << 20
    message_bytes: Annotated[int, Size, Field(ge=1, le=LARGEST_MESSAGE)] = 1 << 20
    depth: Annotated[int, Field(ge=1, le=1024)] = 16
    read_back: bool = True

    def ends(self) -> Iterator[tuple[Path, str]]:
        yield ("from",), self.source
        yield ("to",), self.to


class PingPong(Common):
    """A message goes there and back by SEND, again and again; every byte is compared."""

    kind: Literal["ping-pong"]
    client: Name
    server: Name
    bytes: Annotated[int, Size, Field(ge=0, le=64 << 20)] = 64
    iterations: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000

    def ends(self) -> Iterator[tuple[Path, str]]:
        yield ("client",), self.client
        yield ("server",), self.server


class AtomicCounter(Common):
    """Clients add to one 64-bit counter by FETCH_ADD; each addition must happen exactly once."""

    kind: Literal["atomic-counter"]
    server: Name
    clients: Annotated[tuple[Name, ...], Field(min_length=1, max_length=256, strict=False)]
    operations: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    add: Annotated[int, Field(ge=1, le=1 << 32)] = 1
    depth: Annotated[int, Field(ge=1, le=64)] = 8

    def ends(self) -> Iterator[tuple[Path, str]]:
        yield ("server",), self.server
        for at, client in enumerate(self.clients):
            yield ("clients", at), client


class UdBurst(Common):
    """Datagrams; they may be lost, and then each loss must have been counted under its reason.

    receive_buffers: how many the receiver has posted; a datagram that finds none is dropped.
    """

    kind: Literal["ud-burst"]
    source: Annotated[Name, Field(alias="from")]
    to: Name
    datagrams: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    bytes: Annotated[int, Size, Field(ge=8, le=4096)] = 1_024
    receive_buffers: Annotated[int, Field(ge=1, le=16_384)] = 1_024

    def ends(self) -> Iterator[tuple[Path, str]]:
        yield ("from",), self.source
        yield ("to",), self.to


Workload = FileTransfer | PingPong | AtomicCounter | UdBurst | RingBuffer | Traffic
KINDS: dict[str, type[Workload]] = {
    "file-transfer": FileTransfer,
    "ping-pong": PingPong,
    "atomic-counter": AtomicCounter,
    "ud-burst": UdBurst,
    "ring-buffer": RingBuffer,
    "traffic": Traffic,
}


class FabricFile(Strict):
    """A whole fabric file.

    workloads: may be left out where there is a `lan`, which programs use.  What joins the adapters is a `fabric`, or
    else an ideal `wire`.  hosts: may be left out when the fabric's topology is generated or read, which has hosts.
    """

    name: Name
    hosts: Annotated[tuple[Host, ...], Field(strict=False)] = ()
    fabric: FabricModel | None = None
    workloads: Annotated[
        tuple[Annotated[Workload, Field(discriminator="kind")], ...], Field(min_length=1, strict=False)
    ] = ()
    lan: LanModel | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
    wire: WireModel = WireModel()
    capture: Annotated[CaptureModel, BeforeValidator(capture_or_flag)] = CaptureModel()

    def adapters(self) -> dict[str, Adapter]:
        """All adapters by name."""
        return {adapter.name: adapter for host in self.hosts for adapter in host.adapters}

    def host_of(self, adapter: str) -> str:
        """The host that has an adapter."""
        return next(h.name for h in self.hosts if any(a.name == adapter for a in h.adapters))


# Where in a file which model stands (list positions left out): for messages that name the keys that are known.
MODELS: dict[tuple[str, ...], type[Strict]] = {
    (): FabricFile,
    ("hosts",): Host,
    ("hosts", "adapters"): Adapter,
    ("hosts", "adapters", "address"): Addresses,
    ("hosts", "memory"): MemoryModel,
    ("hosts", "memory", "processes"): ProcessModel,
    ("wire",): WireModel,
    ("fabric",): FabricModel,
    ("fabric", "link"): LinkDefaults,
    ("fabric", "arbitration"): Arbitration,
    ("fabric", "links"): LinkModel,
    ("fabric", "switches"): SwitchModel,
    ("fabric", "routers"): RouterModel,
    ("fabric", "changes"): Change,
    ("lan",): LanModel,
    ("lan", "nodes"): LanNodeModel,
    ("lan", "bridges"): LanBridgeModel,
    ("workloads", "traffic", "flows"): Flow,
    ("wire", "faults"): FaultModel,
    ("capture",): CaptureModel,
    **{("workloads", kind): model for kind, model in KINDS.items()},
}


def problems(fabric: FabricFile) -> Iterator[tuple[Path, str]]:
    """What is wrong with a file whose every key is right: where, and what would be right."""
    yield from _twice("host", [(("hosts", i, "name"), h.name) for i, h in enumerate(fabric.hosts)])
    places: list[tuple[Path, Adapter]] = [
        (("hosts", i, "adapters", j), adapter)
        for i, host in enumerate(fabric.hosts)
        for j, adapter in enumerate(host.adapters)
    ]
    yield from _twice("adapter", [((*at, "name"), adapter.name) for at, adapter in places])
    for i, host in enumerate(fabric.hosts):
        if host.memory is not None:
            yield from memory_problems(host.memory, ("hosts", i, "memory"))
    if fabric.fabric is None:
        yield from _on_a_wire(fabric, places)
    else:
        yield from _on_a_fabric(fabric, places)
    yield from _twice(
        "workload", [(("workloads", i, "name"), w.name) for i, w in enumerate(fabric.workloads)]
    )
    for i, workload in enumerate(fabric.workloads):
        for where, message in _ends(fabric, workload):
            yield ("workloads", i, *where), message
    if not fabric.workloads and fabric.lan is None:
        yield (), "the key workloads is missing here"
    if fabric.lan is not None:
        if fabric.fabric is None:
            yield ("lan",), "a LAN rides on a fabric: the key fabric is missing"
        yield from lan_problems(fabric.lan, set(fabric.adapters()))


def _on_a_wire(fabric: FabricFile, places: list[tuple[Path, Adapter]]) -> Iterator[tuple[Path, str]]:
    """Every adapter has an address of its own, and one port."""
    if not fabric.hosts:
        yield (), "hosts: at least one is needed (only a fabric's topology brings its own)"
    for at, adapter in places:
        if adapter.address is None:
            yield at, "the key address is missing here"
        if adapter.ports != 1:
            yield (*at, "ports"), "several ports need a fabric: on an ideal wire an adapter has one"
    for time in TIMES:
        found: list[tuple[Path, str]] = [
            ((*at, "address"), a.address.at(time)) for at, a in places if a.address is not None
        ]
        yield from _twice("address", found)
    for i, workload in enumerate(fabric.workloads):
        if isinstance(workload, Traffic):
            yield ("workloads", i, "kind"), "traffic needs a fabric to run through: the key fabric is missing"


def _on_a_fabric(fabric: FabricFile, places: list[tuple[Path, Adapter]]) -> Iterator[tuple[Path, str]]:
    """Adapters on a fabric have LIDs, and the fabric's links in the wire's place."""
    for at, adapter in places:
        if adapter.address is not None:
            yield (
                (*at, "address"),
                "an adapter on a fabric has no IP address: the subnet manager gives it LIDs",
            )
    if "wire" in fabric.model_fields_set:
        yield ("wire",), "the adapters are joined by the fabric: a wire has no place beside it"


def _twice(what: str, names: list[tuple[Path, str]]) -> Iterator[tuple[Path, str]]:
    counted = Counter(name for _, name in names)
    seen: set[str] = set()
    for where, name in names:
        if name in seen:
            yield where, f"{what} {name} stands here a second time: each needs its own"
        elif counted[name] > 1:
            seen.add(name)


def _ends(fabric: FabricFile, workload: Workload) -> Iterator[tuple[Path, str]]:
    """The adapters that a workload names exist, differ, and speak the same version of IP."""
    adapters = fabric.adapters()
    known = ", ".join(adapters)
    first: str | None = None
    for where, name in workload.ends():
        if name not in adapters:
            if not fabric.hosts:
                continue  # the topology's hosts are not known yet
            host = next((h for h in fabric.hosts if h.name == name), None)
            hint = f"; {name} is a host, its adapters are {_names(host)}" if host else ""
            yield where, f"there is no adapter {name}: one of {known}{hint}"
            continue
        if isinstance(workload, Traffic):
            continue
        if isinstance(workload, RingBuffer):
            yield from ((where, m) for m in _without_memory(fabric, name))
        if first is None:
            first = name
        elif name == first:
            yield where, f"{name} is the other end, too: name two different adapters"
        else:
            yield from ((where, m) for m in _versions(adapters[first], adapters[name]))
        if isinstance(workload, UdBurst) and workload.bytes > adapters[name].mtu:
            yield (
                ("bytes",),
                f"a datagram of {workload.bytes} bytes does not fit the MTU of {name}, {adapters[name].mtu}",
            )


def _without_memory(fabric: FabricFile, adapter: str) -> Iterator[str]:
    host = next(h for h in fabric.hosts if any(a.name == adapter for a in h.adapters))
    if host.memory is None:
        yield f"host {host.name}, whose adapter {adapter} is, has no modelled memory: give it the key memory"


def _names(host: Host) -> str:
    return ", ".join(adapter.name for adapter in host.adapters)


def _versions(a: Adapter, b: Adapter) -> Iterator[str]:
    for time in TIMES:
        if a.address is not None and b.address is not None:
            versions = {
                ipaddress.ip_address(each.address.at(time)).version for each in (a, b) if each.address
            }
            if len(versions) > 1:
                yield f"{a.name} and {b.name} have IPv4 and IPv6 addresses: use one kind"
