"""The part of a fabric file that says what LAN rides on the fabric: whose cards end in which interfaces."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from verbena.errors import InvalidAttributeError
from verbena.lan.config import LanConfig
from verbena.scenario.schema_types import Name, Path, Strict

LARGEST_MTU = 65_521
"""Of an interface in Linux that a card can end in."""
MILLISECOND = 1_000_000


def _interface_address(value: Any) -> Any:
    try:
        if not isinstance(value, str) or "/" not in value:
            raise ValueError
        ipaddress.ip_interface(value)
    except ValueError:
        raise ValueError(f"{value!r} is no address of an interface: write for example 10.0.0.1/24") from None
    return value


Interface = Annotated[str, Field(min_length=1, max_length=15, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Namespace = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
InterfaceAddress = Annotated[str, BeforeValidator(_interface_address)]
Milliseconds = Annotated[float, Field(ge=0, le=3_600_000)]


class LanNodeModel(Strict):
    """A host of the LAN: a TAP device is made for its card.

    namespace: made if there is none of that name, and removed at the end; left out: where the command runs.
    """

    adapter: Name
    interface: Interface = "lan0"
    namespace: Namespace | None = None
    addresses: Annotated[tuple[InterfaceAddress, ...], Field(max_length=64, strict=False)] = ()


class LanBridgeModel(Strict):
    """A host that joins the LAN to an ordinary Ethernet.

    interface: one that exists in `namespace`; with tap, a TAP device that is made.  spanning_tree: look for loops
    before anything is forwarded, which takes some seconds.
    """

    adapter: Name
    interface: Interface
    namespace: Namespace | None = None
    tap: bool = False
    spanning_tree: bool = True


class LanModel(Strict):
    """An Ethernet on the fabric.  What is not said is as in `lan.config.LanConfig`, whose times are here in ms.

    probe_interval_ms: longer than a process may have to wait for a processor; otherwise nodes seem to be down.
    """

    nodes: Annotated[tuple[LanNodeModel, ...], Field(strict=False)] = ()
    bridges: Annotated[tuple[LanBridgeModel, ...], Field(strict=False)] = ()
    mtu: Annotated[int, Field(ge=576, le=LARGEST_MTU)] = 1500
    number: Annotated[int, Field(ge=0, le=255)] = 0
    service: Literal["UC", "RC"] = "UC"
    policy: Literal["keep", "age", "limited", "datagram"] = "keep"
    max_channels: Annotated[int, Field(ge=0, le=16_384)] = 1024
    discovery: Literal["eager", "lazy"] = "eager"
    fabric_multicast: Literal["auto", "off"] = "auto"
    offload: bool = True
    storm_rate: Annotated[int, Field(ge=0, le=1_000_000_000)] = 20_000
    query_interval_ms: Milliseconds = 5_000
    channel_age_ms: Milliseconds = 60_000
    probe_interval_ms: Annotated[float, Field(ge=1, le=3_600_000)] = 250

    def config(self) -> LanConfig:
        """What each of its nodes is told."""
        return LanConfig(
            mtu=self.mtu,
            number=self.number,
            service=self.service,
            policy=self.policy,
            max_channels=self.max_channels,
            discovery=self.discovery,
            fabric_multicast=self.fabric_multicast,
            offload=self.offload,
            storm_rate=self.storm_rate,
            query_interval_ns=int(self.query_interval_ms * MILLISECOND),
            channel_age_ns=int(self.channel_age_ms * MILLISECOND),
            probe_interval_ns=int(self.probe_interval_ms * MILLISECOND),
        )


def lan_problems(lan: LanModel, adapters: set[str]) -> Iterator[tuple[Path, str]]:
    """What of it does not fit the rest of the file; adapters: those that it has, none while they are not known yet."""
    try:
        lan.config()
    except InvalidAttributeError as error:
        yield ("lan",), str(error)
    if not lan.nodes and not lan.bridges:
        yield ("lan",), "a LAN has nodes or bridges: neither is here"
    users: set[str] = set()
    places: set[tuple[str | None, str]] = set()
    members: list[tuple[Path, LanNodeModel | LanBridgeModel]] = [
        *((("lan", "nodes", i), node) for i, node in enumerate(lan.nodes)),
        *((("lan", "bridges", i), bridge) for i, bridge in enumerate(lan.bridges)),
    ]
    for where, member in members:
        if adapters and member.adapter not in adapters:
            yield (*where, "adapter"), f"there is no adapter {member.adapter}"
        if member.adapter in users:
            yield (*where, "adapter"), f"{member.adapter} is in the LAN already: each adapter once"
        users.add(member.adapter)
        place = (member.namespace, member.interface)
        if place in places:
            at = f" in namespace {member.namespace}" if member.namespace else ""
            yield (*where, "interface"), f"interface {member.interface}{at} is somebody else's already"
        places.add(place)
