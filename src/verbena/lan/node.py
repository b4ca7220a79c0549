"""A host's part in a LAN: its bus driver, with a card for each of its adapters' ports (document 000:76, 106-110)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from verbena.adapter.channel_adapter import AsyncEvent
from verbena.clock import Clock
from verbena.errors import InvalidAttributeError
from verbena.lan.config import LanConfig
from verbena.lan.driver import Driver
from verbena.lan.port import LanPort
from verbena.management.bus_driver import BusDriver, LocalPort, ObjectKind, PlugAndPlayObject
from verbena.transport.kinds import AsyncEventType
from verbena.verbs.context import Context

if TYPE_CHECKING:
    from random import Random

ADAPTER_IDS = 0x76_62_00, 0
"""Vendor and device of this project's adapters, as their NodeInfo tells them: what the driver is registered for."""
PORT_EVENTS = (AsyncEventType.PORT_ACTIVE, AsyncEventType.PORT_ERR, AsyncEventType.LID_CHANGE)


class LanNode:
    """The cards of one host.  `cards`: in the order of adapters and ports; `card` is the first.

    contexts: the host's open adapters, on InfiniBand.  clock, random: the only time and chance that it uses; those of
    the first adapter by default.  ports: the numbers of the ports that take part; all by default.  platform: a number
    of the whole host, 64 bits; the first adapter's node GUID by default.

    A context manager; closing an adapter closes its cards, too.  Raises `InvalidAttributeError` for an adapter that has
    no InfiniBand ports.
    """

    def __init__(
        self,
        *contexts: Context,
        config: LanConfig | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        ports: tuple[int, ...] = (),
        platform: int = 0,
    ) -> None:
        if not contexts:
            raise InvalidAttributeError("a node of a LAN needs one or more adapters")
        first = contexts[0].adapter
        self.config = config or LanConfig()
        self.cards: list[LanPort] = []
        self.bus = BusDriver(platform or contexts[0].query_device().node_guid)
        self._clock = clock or first.clock
        self._random = random or first.random
        self._of_guid: dict[int, tuple[LanPort, Context]] = {}
        self._watching: list[tuple[Context, Any]] = []
        for context in contexts:
            self._add(context, ports)

    @property
    def card(self) -> LanPort:
        """The first card."""
        return self.cards[0]

    @property
    def drivers(self) -> list[Driver]:
        """The driver instances that are loaded, ready or not."""
        return [found.driver for found in self.bus.objects if isinstance(found.driver, Driver)]

    def _add(self, context: Context, wanted: tuple[int, ...]) -> None:
        """An adapter: the bus driver finds its ports, and loads a driver for each that is active."""
        native = context.adapter.native
        if native is None:
            raise InvalidAttributeError(
                "an emulated LAN needs InfiniBand ports: this adapter's is on Ethernet"
            )
        ports: list[LocalPort] = [port for port in native.ports if not wanted or port.number in wanted]
        for port in ports:
            card = LanPort(port.number, self.config.mtu)
            self.cards.append(card)
            self._of_guid[port.guid] = card, context
        with context.adapter.engine:
            if not self._watching:
                self.bus.register(ObjectKind.PORT, *ADAPTER_IDS, self._load)
            self.bus.add_adapter(*ADAPTER_IDS, ports)
        watcher = partial(self._event, context)
        context.watch_events(watcher)
        self._watching.append((context, watcher))
        context.on_close(self.close)

    def _load(self, bus: BusDriver, found: PlugAndPlayObject) -> Driver:
        """An instance for a port that has become active."""
        card, context = self._of_guid[found.guid]
        return Driver(card, context, self.config, self._clock, self._random, bus, found)

    def _event(self, context: Context, event: AsyncEvent) -> None:
        if event.port is None or context.adapter.native is None:
            return
        port = context.adapter.native.port(event.port)
        if event.type is AsyncEventType.SM_CHANGE and port.guid in self._of_guid:
            driver = self._of_guid[port.guid][0].driver
            if isinstance(driver, Driver):
                driver.register()
        if event.type not in PORT_EVENTS:
            return
        if port.guid in self._of_guid:
            with context.adapter.engine:
                self.bus.port_changed(port)

    def close(self) -> None:
        """Leave the LAN: the peers are told, all drivers unloaded."""
        for context, watcher in self._watching:
            context.unwatch_events(watcher)
        self._watching.clear()
        self.bus.close()

    def __enter__(self) -> LanNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
