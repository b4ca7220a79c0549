"""The fabric file: what may stand in it, as data.

Hosts with adapters, the wire between them, and workloads.  Every number has its unit in its name; a number of bytes may
also be written as text, ``64 MiB``.  `load.load_fabric` reads a file into a `FabricFile`; what one key alone cannot
tell (names that are referred to, addresses used twice) is checked by `problems`.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Path = tuple[str | int, ...]
UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
TIMES = ("real", "virtual")
LARGEST_MESSAGE = (1 << 31) - 1  # IBA vol. 1, 9.7.1: a message has at most 2^31 bytes; verbs hold one less
LARGEST_FILE = 1 << 36


def _bytes(value: Any) -> Any:
    """A number of bytes, which may be written as text with a unit."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"([0-9]{1,20}) ?([KMG]i?B|B|)", value.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(f"{value!r} is no number of bytes: write for example 4096, 64 KiB or 1 MiB")
    return int(found[1]) * UNITS[found[2].upper()]


def _address(value: Any) -> Any:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"{value!r} is no IP address: write for example 127.0.0.1") from None
    return value


def _both(value: Any) -> Any:
    if not isinstance(value, str | dict | BaseModel):
        raise ValueError(f"{value!r} is no IP address: write for example 127.0.0.1")
    return {"real": value, "virtual": value} if isinstance(value, str) else value


def _capture(value: Any) -> Any:
    if not isinstance(value, bool | dict | BaseModel):
        raise ValueError(f"{value!r} is neither true nor false, nor a mapping with the key packets")
    return {"enabled": value} if isinstance(value, bool) else value


Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
IPAddress = Annotated[str, BeforeValidator(_address)]
Probability = Annotated[float, Field(ge=0, le=1)]
Size = BeforeValidator(_bytes)


class Strict(BaseModel):
    """No unknown keys, no guessed types, nothing changes after it was read."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, populate_by_name=True
    )


class Addresses(Strict):
    """An adapter's IP address in real time (one of this machine's) and in virtual time (any)."""

    real: IPAddress
    virtual: IPAddress

    def at(self, time: str) -> str:
        return self.real if time == "real" else self.virtual


class Adapter(Strict):
    """A channel adapter.  mtu: active MTU of its port, in bytes."""

    name: Name
    address: Annotated[Addresses, BeforeValidator(_both)]
    mtu: Literal[256, 512, 1024, 2048, 4096] = 4096
    ack_policy: Literal["coalesced", "per-packet"] = "coalesced"


class Host(Strict):
    """A host: in real time an operating system process of its own."""

    name: Name
    adapters: Annotated[tuple[Adapter, ...], Field(min_length=1, strict=False)]


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


class Common(Strict):
    """What every workload has.  capture: do its packets go into the capture file (if there is one)?"""

    name: Name
    capture: bool = True


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


Workload = FileTransfer | PingPong | AtomicCounter | UdBurst
KINDS: dict[str, type[Workload]] = {
    "file-transfer": FileTransfer,
    "ping-pong": PingPong,
    "atomic-counter": AtomicCounter,
    "ud-burst": UdBurst,
}


class FabricFile(Strict):
    """A whole fabric file."""

    name: Name
    hosts: Annotated[tuple[Host, ...], Field(min_length=1, strict=False)]
    workloads: Annotated[
        tuple[Annotated[Workload, Field(discriminator="kind")], ...], Field(min_length=1, strict=False)
    ]
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
    wire: WireModel = WireModel()
    capture: Annotated[CaptureModel, BeforeValidator(_capture)] = CaptureModel()

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
    ("wire",): WireModel,
    ("wire", "faults"): FaultModel,
    ("capture",): CaptureModel,
    **{("workloads", kind): model for kind, model in KINDS.items()},
}


def problems(fabric: FabricFile) -> Iterator[tuple[Path, str]]:
    """What is wrong with a file whose every key is right: where, and what would be right."""
    yield from _twice("host", [(("hosts", i, "name"), h.name) for i, h in enumerate(fabric.hosts)])
    places = [
        (("hosts", i, "adapters", j), adapter)
        for i, host in enumerate(fabric.hosts)
        for j, adapter in enumerate(host.adapters)
    ]
    yield from _twice("adapter", [((*at, "name"), adapter.name) for at, adapter in places])
    for time in TIMES:
        found: list[tuple[Path, str]] = [((*at, "address"), a.address.at(time)) for at, a in places]
        yield from _twice("address", found)
    yield from _twice(
        "workload", [(("workloads", i, "name"), w.name) for i, w in enumerate(fabric.workloads)]
    )
    for i, workload in enumerate(fabric.workloads):
        for where, message in _ends(fabric, workload):
            yield ("workloads", i, *where), message


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
            host = next((h for h in fabric.hosts if h.name == name), None)
            hint = f"; {name} is a host, its adapters are {_names(host)}" if host else ""
            yield where, f"there is no adapter {name}: one of {known}{hint}"
            continue
        if first is None:
            first = name
        elif name == first:
            yield where, f"{name} is the other end, too: name two different adapters"
        else:
            for time in TIMES:
                versions = {ipaddress.ip_address(adapters[n].address.at(time)).version for n in (first, name)}
                if len(versions) > 1:
                    yield where, f"{first} and {name} have IPv4 and IPv6 addresses: use one kind"
        if isinstance(workload, UdBurst) and workload.bytes > adapters[name].mtu:
            yield (
                ("bytes",),
                f"a datagram of {workload.bytes} bytes does not fit the MTU of {name}, {adapters[name].mtu}",
            )


def _names(host: Host) -> str:
    return ", ".join(adapter.name for adapter in host.adapters)
