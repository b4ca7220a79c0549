"""A virtual switch in real time, with the ports that a file declares: made, served, told about, removed.

`RealSwitch` makes TAP devices (in network namespaces, if wanted), opens interfaces with a cable and overlays to other
hosts, and listens for virtual machines and for programs: their ports are there while they are connected.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from verbena.errors import InvalidAttributeError, VerbenaError
from verbena.runtime.made_namespaces import MadeNamespaces
from verbena.runtime.overlay_port import OverlayPort
from verbena.runtime.packet_port import PacketPort
from verbena.runtime.packet_socket import PacketInterface
from verbena.runtime.shm_port import CardListener
from verbena.runtime.stream_port import StreamListener
from verbena.runtime.tap import Tap, missing_permission
from verbena.runtime.tap_port import TapPort
from verbena.runtime.udp_socket import udp_text
from verbena.runtime.vswitch_loop import PortDriver, SwitchLoop
from verbena.vswitch.config import PortConfig, SwitchConfig
from verbena.vswitch.watchdog import Watchdog
from verbena.wire.ethernet import mac_text
from verbena.wire.offload import PLAIN

CABLE_BPS = 10e9
KINDS = ("tap", "qemu", "card", "interface", "overlay")
TAGGED_HEADER = 18
LARGEST_OFFLOADED = 65_535 + TAGGED_HEADER + len(PLAIN)
"""Bytes of the largest frame that a kernel hands over uncut, with its ``virtio_net_hdr``."""
Told = Callable[[str], None]


@dataclass(frozen=True)
class PortPlace:
    """A port, and what it ends in.

    kind tap: `interface`, `namespace`, `addresses`, `paced`, `rate_bps`: what goes out to it, 0: no limit.  qemu,
    card: `listen`, a path (for qemu also ``address:port``).  interface: `interface`, `namespace`, `signal`,
    `rate_bps`: of the cable.  overlay: `local`, `peer`, `vni`.  physical: every address that is not in the table is
    behind it.
    """

    config: PortConfig
    kind: str
    interface: str = ""
    namespace: str | None = None
    addresses: tuple[str, ...] = ()
    paced: bool = True
    listen: str = ""
    signal: str = "none"
    rate_bps: float = 0.0
    local: tuple[str, int] = ("", 0)
    peer: tuple[str, int] = ("", 0)
    vni: int = 0
    physical: bool = False

    @property
    def where(self) -> str:
        """For people."""
        if self.kind == "overlay":
            return f"{udp_text(self.local)} to {udp_text(self.peer)}, VNI {self.vni}"
        if self.listen:
            return self.listen
        return self.interface + (f" in namespace {self.namespace}" if self.namespace else "")


def station_mac(*names: str) -> bytes:
    """An address of a station, given by us, the same for the same names."""
    return b"\x02vs" + (zlib.crc32("/".join(names).encode()) & 0xFFFFFF).to_bytes(3, "big")


class RealSwitch:
    """A switch that is up from `start` until `close`.  A context manager.

    mtu: of the TAP devices.  offload: frames of TAP devices and interfaces stay uncut within the switch, with their
    ``virtio_net_hdr``; cards of programs cannot have that, nor can a switch whose VLANs change frames.
    watchdog_ms: after which an output that takes nothing is declared dead; 0: never.  told: hears what happens.
    making: is called with the name of each namespace before it is made.
    """

    def __init__(
        self,
        name: str,
        config: SwitchConfig,
        *,
        mtu: int = 1500,
        offload: bool = False,
        watchdog_ms: int = 0,
        told: Told = lambda sentence: None,
        making: Told = lambda namespace: None,
    ) -> None:
        if offload and config.vlans:
            raise InvalidAttributeError(
                "offload and vlans exclude each other: tags would move what is to be cut"
            )
        if config.max_frame < (LARGEST_OFFLOADED if offload else mtu + TAGGED_HEADER):
            raise InvalidAttributeError(f"max_frame = {config.max_frame}: too short for an mtu of {mtu}")
        self.name, self.mtu, self.offload = name, mtu, offload
        self.places: dict[str, PortPlace] = {}
        self.loop = SwitchLoop(config, on_gone=self._gone)
        self.announced: list[str] = []
        self._told = told
        self._namespaces = MadeNamespaces(making)
        self._listeners: dict[str, StreamListener | CardListener] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._open = True
        self._door: threading.Thread | None = None
        self.watchdog: Watchdog | None = None
        if watchdog_ms:
            nanoseconds = watchdog_ms * 1_000_000
            self.watchdog = Watchdog(
                self.loop.switch,
                self.loop.clock,
                self._announce,
                detect_ns=nanoseconds,
                restore_ns=nanoseconds,
            )

    # --- ports ------------------------------------------------------------------------------------------------

    def add(self, place: PortPlace) -> None:
        """Make a port.  Raises `SystemLimitError` where the system does not let it; then nothing of it is left."""
        name = place.config.name
        if place.kind not in KINDS:
            raise InvalidAttributeError(f"port {name}: kind {place.kind!r}; {', '.join(KINDS)} exist")
        if place.kind == "card" and self.offload:
            raise InvalidAttributeError(f"port {name}: a card, in a switch with offload")
        if name in self.places:
            raise InvalidAttributeError(f"the switch has a port {name} already")
        if place.kind == "qemu":
            self._listeners[name] = StreamListener(place.listen)
        elif place.kind == "card":
            self._listeners[name] = CardListener(place.listen)
        else:
            with contextlib.ExitStack() as undo:
                if place.namespace is not None and place.kind == "tap":
                    self._namespaces.enter(place.namespace)
                    undo.callback(self._namespaces.leave, place.namespace)
                driver = self._driver(place)
                undo.callback(driver.close)
                self.loop.add(driver, place.config, physical=place.physical)
                undo.pop_all()
        self.places[name] = place

    def _driver(self, place: PortPlace) -> PortDriver:
        if place.kind == "overlay":
            return OverlayPort(
                place.local,
                place.peer,
                vni=place.vni,
                max_frame=self.mtu + TAGGED_HEADER,
                trailer=self.offload,
            )
        if place.kind == "interface":
            interface = PacketInterface(place.interface, namespace=place.namespace)
            return PacketPort(
                interface,
                trailer=self.offload,
                signal=place.signal,
                rate_bps=place.rate_bps or CABLE_BPS,
            )
        tap = Tap(
            place.interface,
            namespace=place.namespace,
            mac=place.config.macs[0] if place.config.macs else station_mac(self.name, place.config.name),
            mtu=self.mtu,
            addresses=place.addresses,
            offload=self.offload,
        )
        try:
            return TapPort(tap, paced=place.paced, rate_bps=place.rate_bps)
        except BaseException:
            tap.close()
            raise

    def _gone(self, name: str) -> None:
        """Called by the loop: a port's other side has gone."""
        self._announce(name, "gone")

    def _announce(self, name: str, what: str) -> None:
        self.announced.append(f"{name}: {what}")
        self._told(self.announced[-1])

    # --- the door ---------------------------------------------------------------------------------------------

    def _watch_door(self) -> None:
        """Let virtual machines and programs in, one at each of their ports."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        by_descriptor = {listener.fileno(): name for name, listener in self._listeners.items()}
        for descriptor in by_descriptor:
            poller.register(descriptor, select.POLLIN)
        while self._open:
            for descriptor, _ in poller.poll():
                name = by_descriptor.get(descriptor)
                if name is not None and self._open:
                    self._let_in(name, self._listeners[name])

    def _let_in(self, name: str, listener: StreamListener | CardListener) -> None:
        try:
            if isinstance(listener, StreamListener):
                driver: PortDriver = listener.accept(trailer=self.offload, timeout=1)
            else:
                driver = listener.accept(timeout=1)
        except (OSError, VerbenaError):
            return  # whoever it was has gone already
        if name in self.loop.drivers:
            driver.close()
            self._announce(name, "somebody else wanted this port")
            return
        try:
            self.loop.add(driver, self.places[name].config)
        except VerbenaError as error:
            driver.close()
            self._announce(name, str(error))
            return
        self._announce(name, "connected")

    # --- all of it --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve, in threads of its own."""
        if self.watchdog is not None:
            self.watchdog.start()
        self.loop.start()
        self._door = threading.Thread(target=self._watch_door, name="verbena vswitch door", daemon=True)
        self._door.start()

    def status(self) -> dict[str, Any]:
        """What `verbena vswitch status` shows, as plain data."""
        found = self.loop.status()
        kernel = {
            f"{name}: {key.removeprefix('kernel.')}": count
            for name, counters in found["drivers"].items()
            for key, count in counters.items()
            if key.startswith("kernel.") and count
        }
        return {
            "name": self.name,
            "config": {
                "mtu": self.mtu,
                "offload": self.offload,
                "lossless": sorted(self.loop.switch.lossless),
                "learning": self.loop.switch.config.learning,
                "addresses": found["addresses"],
            },
            "ports": [self._port_status(name, found) for name in self.places],
            "gone": found["gone"],
            "losses": self.loop.switch.losses(),
            "kernel_losses": kernel,
            "announced": self.announced[-100:],
            "watchdog": None if self.watchdog is None else self.watchdog.detections,
            "loop": found["loop"],
        }

    def _port_status(self, name: str, found: dict[str, Any]) -> dict[str, Any]:
        place = self.places[name]
        return {
            "name": name,
            "kind": place.kind,
            "where": place.where,
            "physical": place.physical,
            "macs": [mac_text(mac) for mac in place.config.macs],
            "up": name in found["ports"],
            "state": found["ports"].get(name),
            "driver": found["drivers"].get(name, {}),
        }

    def close(self) -> None:
        """Take it down; nothing of it is left."""
        if not self._open:
            return
        self._open = False
        os.eventfd_write(self._wake, 1)
        if self._door is not None:
            self._door.join()
        for listener in self._listeners.values():
            listener.close()
        if self.watchdog is not None:
            self.watchdog.stop()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, self._wake)
            for place in self.places.values():
                if place.namespace is not None and place.kind == "tap":
                    stack.callback(self._namespaces.leave, place.namespace)
            stack.callback(self.loop.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def needs(places: list[PortPlace]) -> str | None:
    """The first right that these ports need and this process has not; None: it has them all."""
    if any(place.kind in ("tap", "interface") for place in places):
        return missing_permission()
    return None
