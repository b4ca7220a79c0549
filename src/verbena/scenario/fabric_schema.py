"""The parts of a fabric file that say what joins the adapters: topology, links, switches, routing; and scale traffic.

`schema` has the rest.  Names of nodes are adapters' names; a port is written ``name[3]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from verbena.errors import InvalidAttributeError
from verbena.fabric.rates import LinkRate
from verbena.fabric.topology import LARGEST_SWITCH, PortId
from verbena.scenario.schema_types import Common, Name, Path, Probability, Size, Strict

LONGEST_NS = 10_000_000_000


def _rate(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no link rate: write for example 4xEDR")
    try:
        LinkRate.parse(value)
    except InvalidAttributeError as error:
        raise ValueError(str(error)) from None
    return value


def port_id(text: str) -> PortId | None:
    """``name[3]`` as a port; None for a name alone."""
    found = re.fullmatch(r"(.+)\[([0-9]{1,3})\]", text)
    return None if found is None else PortId(found[1], int(found[2]))


def node_of(text: str) -> str:
    """The node of ``name[3]`` or ``name``."""
    found = port_id(text)
    return text if found is None else found.node


End = Annotated[
    str, Field(min_length=1, max_length=70, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]*(\[[0-9]{1,3}\])?$")
]
Rate = Annotated[str, BeforeValidator(_rate)]
Delay = Annotated[int, Field(ge=0, le=LONGEST_NS)]


class SwitchModel(Strict):
    """A switch.  group: the package that it is managed with."""

    name: Name
    ports: Annotated[int, Field(ge=1, le=LARGEST_SWITCH)]
    guid: Annotated[int, Field(ge=1, lt=1 << 64)] | None = None
    group: Name | None = None


class RouterModel(Strict):
    """A router between subnets."""

    name: Name
    ports: Annotated[int, Field(ge=2, le=255)] = 2
    guid: Annotated[int, Field(ge=1, lt=1 << 64)] | None = None


class LinkModel(Strict):
    """A cable; without a port's number, the lowest free port.  What is not said is as in `fabric.link`."""

    source: Annotated[End, Field(alias="from")]
    to: End
    rate: Rate | None = None
    delay_ns: Delay | None = None
    bit_error_rate: Probability | None = None


class LinkDefaults(Strict):
    """What every link is like unless it says otherwise."""

    rate: Rate = "4xEDR"
    delay_ns: Delay = 100
    bit_error_rate: Probability = 0.0


Weight = tuple[Annotated[int, Field(ge=0, le=14)], Annotated[int, Field(ge=0, le=255)]]


def _weight(value: Any) -> Any:
    """YAML has lists where the model has pairs."""
    return tuple(value) if isinstance(value, list) else value


Weights = Annotated[
    tuple[Annotated[Weight, BeforeValidator(_weight)], ...], Field(max_length=64, strict=False)
]


class Arbitration(Strict):
    """Whose turn it is at every port (IBA vol. 1, 7.6.9): two tables of [lane, weight in units of 64 bytes].

    The high table goes first; limit: units of 4 KiB that it may send before the low table has a turn; 0: a packet, 255:
    no limit.
    """

    high: Weights = ()
    low: Weights = ()
    limit: Annotated[int, Field(ge=0, le=255)] = 255


class Change(Strict):
    """Something that happens to the fabric at a time: exactly one of the other keys."""

    at_us: Annotated[float, Field(ge=0, le=1e12)]
    pull: End | None = None
    plug: End | None = None
    power_off: Name | None = None
    power_on: Name | None = None

    def what(self) -> list[tuple[str, str]]:
        """The keys that were given, with their values: one, in a right file."""
        keys = ("pull", "plug", "power_off", "power_on")
        return [(key, value) for key in keys if (value := getattr(self, key)) is not None]


class FabricModel(Strict):
    """What joins the adapters: a generated topology, one from an ``ibnetdiscover`` dump, or switches and links by hand.

    generate, parameters: see `fabric.generators`.  dump: a file, relative to the fabric file.  lanes: data lanes.
    buffer_bytes: of each lane at each input of a switch.  flits: each flit by itself in emulation (scale traffic always
    goes in trains).  arbitration: of lanes; without it they take turns.  lids: LIDs by port, for those that shall have
    certain ones; of a switch by its name.  managers: adapters that run a subnet manager, the first is the master.
    """

    generate: str | None = None
    parameters: dict[str, int | str | list[int]] = {}
    dump: str | None = None
    switches: Annotated[tuple[SwitchModel, ...], Field(strict=False)] = ()
    routers: Annotated[tuple[RouterModel, ...], Field(strict=False)] = ()
    links: Annotated[tuple[LinkModel, ...], Field(strict=False)] = ()
    link: LinkDefaults = LinkDefaults()
    lanes: Annotated[int, Field(ge=1, le=15)] = 4
    buffer_bytes: Annotated[int, Size, Field(ge=384, le=1 << 30)] = 32 << 10
    switch_latency_ns: Delay = 100
    cut_through: bool = True
    voq: bool = False
    mtu: Literal[256, 512, 1024, 2048, 4096] = 4096
    routing: Literal["minhop", "updn", "ftree", "dor", "layered"] = "minhop"
    flits: bool = True
    arbitration: Arbitration | None = None
    lids: dict[End, Annotated[int, Field(ge=1, le=0xBFFF)]] = {}
    managers: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    changes: Annotated[tuple[Change, ...], Field(strict=False)] = ()

    @property
    def by_hand(self) -> bool:
        return self.generate is None and self.dump is None


# --- scale traffic ----------------------------------------------------------------------------------------------

Pattern = Literal["uniform", "permutation", "shift", "incast", "hotspot", "all-to-all", "pairs", "trace"]


class Flow(Strict):
    """Traffic of one kind.  load: of each sender's link, 1 = as much as it carries, packets and flit headers counted.

    uniform: each packet to any other host.  permutation: each host to one other, drawn from the seed.  shift: host i to
    host i + `by`.  incast: all `sources` to the one of `destinations`.  hotspot: a `share` of the packets to the
    destinations, the rest anywhere.  all-to-all: each to all others in turn.  pairs: sources[i] to destinations[i].
    trace: from `file`, CSV with the columns time_ns, source, destination, bytes.

    name: in the report; the pattern's name by default.

    sources, destinations: adapters; all, if none are named.  process: when packets are made; burst_packets: mean length
    of a burst.  level: service level, 0 to 15.  bytes: payload of a packet.
    """

    pattern: Pattern
    name: Name | None = None
    load: Annotated[float, Field(gt=0, le=100)] = 0.5
    bytes: Annotated[int, Size, Field(ge=0, le=4096)] = 4096
    process: Literal["poisson", "periodic", "bursty"] = "poisson"
    burst_packets: Annotated[int, Field(ge=1, le=10_000)] = 16
    level: Annotated[int, Field(ge=0, le=15)] = 0
    sources: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    destinations: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    by: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    file: str | None = None
    start_us: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    stop_us: Annotated[float, Field(gt=0, le=1e9)] | None = None


class Traffic(Common):
    """Scale simulation: packets without bytes through the fabric's own links, switches and tables.

    duration_us: simulated, from 0.  warmup_us: what happens before is not counted.  samples: points of the curves over
    time.
    """

    kind: Literal["traffic"]
    flows: Annotated[tuple[Flow, ...], Field(min_length=1, max_length=64, strict=False)]
    duration_us: Annotated[float, Field(gt=0, le=1e9)] = 1000.0
    warmup_us: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    samples: Annotated[int, Field(ge=1, le=10_000)] = 100

    def ends(self) -> Iterator[tuple[Path, str]]:
        for at, flow in enumerate(self.flows):
            for key in ("sources", "destinations"):
                for i, name in enumerate(getattr(flow, key)):
                    yield ("flows", at, key, i), name
