"""A LAN in real time, in one process: hosts on a fabric whose cards end in interfaces of the operating system.

`RealLan` adds hosts, each with a TAP device, perhaps in a network namespace of its own, and bridges to ordinary
interfaces; removes them; tells what is there; and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.errors import InvalidAttributeError, SystemLimitError
from verbena.lan.bridge import Bridge
from verbena.lan.config import LanConfig
from verbena.lan.node import LanNode
from verbena.lan.port import EthernetPort, PortEvent
from verbena.runtime.interface_port import InterfacePort
from verbena.runtime.interfaces import InterfaceReader
from verbena.runtime.made_namespaces import MadeNamespaces
from verbena.runtime.packet_socket import PacketInterface
from verbena.runtime.real_fabric import RealFabric
from verbena.runtime.tap import LARGEST_MTU, Tap
from verbena.runtime.tap_end import InterfaceEnd
from verbena.verbs.context import Context
from verbena.verbs.subnet import LockedClock
from verbena.wire.ethernet import mac_text

START_S = 60.0
PROBE_NS = 250_000_000
"""Longer than a process may have to wait for a processor; otherwise nodes seem to be down."""


@dataclass(frozen=True)
class Place:
    """Where a host's card ends.

    adapter: the node of the host in the fabric's topology.  interface: its name.  namespace: made if there is none of
    that name, and removed again; None: where the process is.  addresses: such as ``10.0.0.1/24``.  bridge: the host
    joins the LAN to that interface, which exists, or with `tap` is a TAP device that is made.  spanning_tree: does the
    bridge look for loops before it forwards?
    """

    adapter: str
    interface: str = "lan0"
    namespace: str | None = None
    addresses: tuple[str, ...] = ()
    bridge: bool = False
    tap: bool = True
    spanning_tree: bool = True


class _LockedBridge(Bridge):
    """A bridge to which several threads bring frames: it works under its adapter's lock."""

    def __init__(self, adapter: ChannelAdapter, *ports: EthernetPort, spanning_tree: bool) -> None:
        self._lock = adapter.engine
        with self._lock:
            super().__init__(LockedClock(adapter.clock, self._lock), *ports, spanning_tree=spanning_tree)

    def _received(self, number: int, frames: Sequence[bytes]) -> None:
        with self._lock:
            super()._received(number, frames)

    def _changed(self, number: int, event: PortEvent, detail: bytes) -> None:
        with self._lock:
            super()._changed(number, event, detail)

    def close(self) -> None:
        with self._lock:
            super().close()


class Member:
    """A host that is up.  `node`: its cards.  `interface`: what it ends in."""

    def __init__(
        self,
        place: Place,
        context: Context,
        node: LanNode,
        interface: Tap | PacketInterface,
        end: InterfaceEnd | InterfacePort,
        bridge: Bridge | None,
    ) -> None:
        self.place = place
        self.context = context
        self.node = node
        self.interface = interface
        self._end = end
        self.bridge = bridge

    def close(self) -> None:
        """Leave the LAN, and remove the interface if it was made."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.interface.close)
            stack.callback(self.context.close)
            stack.callback(self.node.close)
            stack.callback(self._end.close)
            if self.bridge is not None:
                stack.callback(self.bridge.close)

    def status(self) -> dict[str, Any]:
        """What `verbena lan status` shows of it, as plain data."""
        card = self.node.card
        peers: list[dict[str, Any]] = []
        for driver in self.node.drivers:
            if driver.card is card and driver.up:
                with self.context.adapter.engine:
                    peers = [_peer_status(peer, driver.station.prefix) for peer in driver.station.peers]
        neighbours = self.interface.neighbours() if isinstance(self.interface, Tap) else {}
        bridge = self.bridge
        return {
            "adapter": self.place.adapter,
            "role": "bridge" if self.place.bridge else "host",
            "interface": self.place.interface,
            "namespace": self.place.namespace,
            "addresses": list(self.place.addresses),
            "mac": mac_text(card.mac),
            "up": card.link,
            "mtu": card.mtu,
            "peers": peers,
            "neighbours": neighbours,
            "behind": {} if bridge is None else {mac_text(mac): at for mac, at in bridge.addresses().items()},
            "bridge_state": "" if bridge is None else bridge.state(1).name.lower(),
            "counters": dict(card.counters) | dict(bridge.counters if bridge is not None else {}),
            "interface_counters": dict(self.interface.counters),
        }


def _peer_status(peer: Any, prefix: bytes) -> dict[str, Any]:
    channel = peer.channel
    return {
        "lid": peer.lid,
        "mac": mac_text(prefix + peer.card.to_bytes(2, "big")),
        "state": "down" if peer.down else "up",
        "path": "secondary" if peer.active else "primary",
        "paths": len(peer.ways),
        "channel": channel.qp.qp_num if channel is not None and channel.ready else None,
        "datagram_qp": peer.qpn,
    }


class RealLan:
    """The hosts of a LAN that are in this process.  A context manager.

    fabric: has the hosts, in this process.  config: of all of them; its mtu is that of the interfaces, too.
    making: is called with the name of each namespace before it is made.
    """

    def __init__(
        self,
        fabric: RealFabric,
        config: LanConfig | None = None,
        *,
        making: Callable[[str], None] = lambda namespace: None,
    ) -> None:
        self.fabric = fabric
        self.config = config or LanConfig(offload=True, probe_interval_ns=PROBE_NS)
        if self.config.mtu > LARGEST_MTU:
            raise InvalidAttributeError(
                f"mtu = {self.config.mtu}: a LAN whose hosts end in TAP devices has {LARGEST_MTU} at most"
            )
        self.members: dict[str, Member] = {}
        self._reader = InterfaceReader()
        self._namespaces = MadeNamespaces(making)
        self._lock = threading.Lock()
        self._open = True

    # --- hosts --------------------------------------------------------------------------------------------

    def add(self, place: Place, timeout: float = START_S) -> Member:
        """Bring a host up.

        Raises `SystemLimitError` where the system, or the fabric, does not let it, `InvalidAttributeError` for what is
        no host of the fabric; then nothing of it is left.
        """
        with self._lock, contextlib.ExitStack() as undo:
            if not self._open:
                raise SystemLimitError("the LAN is being closed")
            if place.adapter in self.members:
                raise SystemLimitError(f"{place.adapter} is in the LAN already")
            if place.namespace is not None:
                self._namespaces.enter(place.namespace)
                undo.callback(self._namespaces.leave, place.namespace)
            context = self.fabric.open_device(place.adapter, timeout=timeout)
            undo.callback(context.close)
            node = LanNode(context, config=self.config)
            undo.callback(node.close)
            if not self.fabric.wait_until(lambda: node.card.link, timeout):
                raise SystemLimitError(
                    f"the card of {place.adapter} has not come up within {timeout:g} seconds"
                )
            interface = self._interface(place, node.card.mac)
            undo.callback(interface.close)
            member = self._join(place, context, node, interface)
            self.members[place.adapter] = member
            undo.pop_all()
            return member

    def _interface(self, place: Place, mac: bytes) -> Tap | PacketInterface:
        if place.bridge and not place.tap:
            return PacketInterface(place.interface, namespace=place.namespace, offload=self.config.offload)
        return Tap(
            place.interface,
            namespace=place.namespace,
            mac=None if place.bridge else mac,
            mtu=self.config.mtu,
            addresses=place.addresses,
            offload=self.config.offload,
        )

    def _join(
        self, place: Place, context: Context, node: LanNode, interface: Tap | PacketInterface
    ) -> Member:
        if not place.bridge:
            end = InterfaceEnd(
                node.card, interface, offload=self.config.offload, fabric=self.fabric, reader=self._reader
            )
            return Member(place, context, node, interface, end, None)
        port = InterfacePort(interface, node.card.mac, offload=self.config.offload, reader=self._reader)
        try:
            bridge = _LockedBridge(context.adapter, node.card, port, spanning_tree=place.spanning_tree)
        except BaseException:
            port.close()
            raise
        return Member(place, context, node, interface, port, bridge)

    def remove(self, adapter: str) -> None:
        """Take a host out; raises `InvalidAttributeError` for one that is not in."""
        with self._lock:
            member = self.members.pop(adapter, None)
            if member is None:
                raise InvalidAttributeError(f"{adapter} is not in the LAN")
            try:
                member.close()
            finally:
                if member.place.namespace is not None:
                    self._namespaces.leave(member.place.namespace)

    @property
    def made_namespaces(self) -> list[str]:
        """Those that will be removed again."""
        return self._namespaces.names

    # --- all of it ----------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What `verbena lan status` shows, as plain data."""
        with self.fabric.loop.held():
            masters = [name for name, manager in self.fabric.managers.items() if manager.is_master]
        return {
            "subnet_managers": masters,
            "config": {"mtu": self.config.mtu, "service": self.config.service, "policy": self.config.policy},
            "members": [member.status() for member in list(self.members.values())],
        }

    def close(self) -> None:
        """Take all hosts out; the fabric goes on."""
        with self._lock:
            self._open = False
        with contextlib.ExitStack() as stack:
            stack.callback(self._reader.close)
            for adapter in list(self.members):
                stack.callback(self.remove, adapter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
