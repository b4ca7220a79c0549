"""The ports that a switch file declares, and the switch that `verbena vswitch up` makes of them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from verbena.errors import InvalidAttributeError
from verbena.runtime.real_vswitch import LARGEST_OFFLOADED, TAGGED_HEADER, PortPlace, station_mac
from verbena.runtime.tap import LARGEST_MTU
from verbena.scenario.lan_schema import Interface, InterfaceAddress, Namespace
from verbena.scenario.schema_types import Name, Path, Size, Strict
from verbena.vswitch.config import Marks, PortConfig, SwitchConfig
from verbena.vswitch.kinds import CLASSES, MOST_PORTS
from verbena.wire.errors import DecodeError
from verbena.wire.ethernet import parse_mac
from verbena.wire.vxlan import LARGEST_VNI, VXLAN_PORT

Class = Annotated[int, Field(ge=0, lt=CLASSES)]
Vlan = Annotated[int, Field(ge=1, le=4094)]
Frames = Annotated[int, Field(ge=0, le=1 << 20)]
Octets = Annotated[int, Size, Field(ge=0, le=1 << 32)]
NEEDED = {
    "tap": {"interface"},
    "qemu": {"listen"},
    "card": {"listen"},
    "interface": {"interface"},
    "overlay": {"local", "peer", "vni"},
}
ALLOWED = {
    "tap": {"interface", "namespace", "addresses", "paced", "rate_gbps"},
    "qemu": {"listen"},
    "card": {"listen"},
    "interface": {"interface", "namespace", "signal", "rate_gbps", "physical"},
    "overlay": {"local", "peer", "vni", "physical"},
}
UDP_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?")
ANY = {"name", "kind", "macs", "input", "output", "pvid", "vlans", "tagged"}


class MarksModel(Strict):
    """Thresholds of a queue, as `vswitch.config.Marks`."""

    low: Frames = 128
    high: Frames = 256
    room: Frames = 320
    low_bytes: Octets | None = None
    high_bytes: Octets | None = None
    room_bytes: Octets | None = None

    def marks(self) -> Marks:
        return Marks(self.low, self.high, self.room, self.low_bytes, self.high_bytes, self.room_bytes)


class PortModel(Strict):
    """A port.  Which keys it has, its kind decides (`NEEDED`, `ALLOWED`)."""

    name: Name
    kind: Literal["tap", "qemu", "card", "interface", "overlay"]
    macs: Annotated[tuple[str, ...], Field(max_length=256, strict=False)] = ()
    input: MarksModel = MarksModel()
    output: MarksModel = MarksModel()
    pvid: Vlan = 1
    vlans: Annotated[tuple[Vlan, ...], Field(max_length=4094, strict=False)] = ()
    tagged: bool = False
    interface: Interface | None = None
    namespace: Namespace | None = None
    addresses: Annotated[tuple[InterfaceAddress, ...], Field(max_length=64, strict=False)] = ()
    paced: bool = True
    listen: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    signal: Literal["none", "pfc", "pause"] = "none"
    rate_gbps: Annotated[float, Field(gt=0, le=10_000)] | None = None
    physical: bool = False
    local: str | None = None
    peer: str | None = None
    vni: Annotated[int, Field(ge=0, le=LARGEST_VNI)] | None = None

    def place(self, switch: str) -> PortPlace:
        """Raises `InvalidAttributeError`, `DecodeError` for what does not fit."""
        macs = tuple(parse_mac(each) for each in self.macs)
        if self.kind == "tap" and not macs:
            macs = (station_mac(switch, self.name),)
        config = PortConfig(
            self.name,
            macs,
            input=self.input.marks(),
            output=self.output.marks(),
            may_pause=self.signal != "none",
            pvid=self.pvid,
            vlans=frozenset(self.vlans) or frozenset({self.pvid}),
            tagged=self.tagged,
        )
        return PortPlace(
            config,
            self.kind,
            interface=self.interface or "",
            namespace=self.namespace,
            addresses=self.addresses,
            paced=self.paced,
            listen=self.listen or "",
            signal=self.signal,
            rate_bps=(self.rate_gbps or (10.0 if self.kind == "interface" else 0.0)) * 1e9,
            local=udp_address(self.local) if self.local else ("", 0),
            peer=udp_address(self.peer) if self.peer else ("", 0),
            vni=self.vni or 0,
            physical=self.physical,
        )


def udp_address(text: str) -> tuple[str, int]:
    """``192.0.2.1``, ``192.0.2.1:4789``, ``2001:db8::1`` or ``[2001:db8::1]:4789``; raises `InvalidAttributeError`."""
    found = UDP_ADDRESS.fullmatch(text)
    number = int((found and found["port"]) or VXLAN_PORT)
    try:
        host = str(ipaddress.ip_address((found["v6"] or found["v4"]) if found else text))
        if 0 < number < 1 << 16:
            return host, number
    except ValueError:
        pass
    raise InvalidAttributeError(
        f"{text!r} is no address of an overlay: write 192.0.2.1, 192.0.2.1:4789 or [2001:db8::1]:4789"
    )


class LiveModel(Strict):
    """What `verbena vswitch up` makes.  offload: frames stay uncut within the switch; needs ports that can do that.

    watchdog_ms: after which an output that takes nothing is declared dead; 0: never.
    """

    ports: Annotated[tuple[PortModel, ...], Field(min_length=1, max_length=MOST_PORTS, strict=False)]
    mtu: Annotated[int, Field(ge=576, le=LARGEST_MTU)] = 1500
    offload: bool = False
    learning: bool = False
    separate_vlans: bool = False
    voq: bool = True
    lossless: Annotated[tuple[Class, ...], Field(strict=False)] = (0,)
    watchdog_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 0

    def config(self) -> SwitchConfig:
        return SwitchConfig(
            max_frame=LARGEST_OFFLOADED if self.offload else self.mtu + TAGGED_HEADER,
            lossless=frozenset(self.lossless),
            voq=self.voq,
            vlans=self.separate_vlans,
            learning=self.learning,
            ports=min(MOST_PORTS, 2 * len(self.ports) + 2),
        )


def live_problems(switch: str, live: LiveModel) -> Iterator[tuple[Path, str]]:
    """What does not fit together: where, and a sentence."""
    top: Path = ("vswitch", "live")
    if live.offload and live.separate_vlans:
        yield (
            (*top, "offload"),
            "offload and separate_vlans exclude each other: tags would move what is to be cut",
        )
    if sum(port.physical for port in live.ports) > 1:
        yield (
            (*top, "ports"),
            "several ports are physical: one leads to the addresses that are not in the table",
        )
    names: set[str] = set()
    for number, port in enumerate(live.ports):
        where = (*top, "ports", number)
        if port.name in names:
            yield (*where, "name"), f"there is a port {port.name} already"
        names.add(port.name)
        given = port.model_fields_set - ANY
        for key in sorted(NEEDED[port.kind] - given):
            yield where, f"a port of kind {port.kind} needs the key {key}"
        for key in sorted(given - ALLOWED[port.kind]):
            yield (*where, key), f"a port of kind {port.kind} has no key {key}"
        if port.kind == "card" and live.offload:
            yield (*where, "kind"), "cards cannot take uncut frames: leave offload out"
        if port.kind in ("qemu", "card") and not port.macs and not live.learning:
            yield where, f"nobody finds port {port.name}: it needs macs, or the switch learning: true"
        try:
            place = port.place(switch)
            if port.kind == "overlay" and (":" in place.local[0]) != (":" in place.peer[0]):
                yield (
                    where,
                    f"{place.local[0]} and {place.peer[0]}: both are IPv4 addresses, or both IPv6 ones",
                )
        except (InvalidAttributeError, DecodeError) as error:
            yield where, str(error)
