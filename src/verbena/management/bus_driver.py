"""The bus driver of a host: what there is becomes plug-and-play objects, for which drivers are loaded.

Two kinds of things (document 000:106-110): the host's own ports, and I/O controllers somewhere in the subnet.  A driver
is registered by vendor id and device id.  It is loaded while its port is active, or its controller there, and held by
this host if the subnet has a configuration manager; what nobody is registered for stays unclaimed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol

from verbena.errors import InvalidAttributeError, InvalidStateError
from verbena.management.configuration_manager import ConfigurationClient
from verbena.management.datagrams import MadAddress, Pending
from verbena.management.device_management import DeviceManagementClient
from verbena.management.sa_client import SaClient
from verbena.wire.dm import DEVICE_MANAGEMENT_CAPABILITY, IOControllerProfile, Ownership, OwnershipMode
from verbena.wire.notice import GmpNotice
from verbena.wire.sa_nodes import PortInfoRecord
from verbena.wire.smp_attributes import PortState, Trap


class LocalPort(Protocol):
    """A port of an adapter of this host, such as `adapter.port.AdapterPort`."""

    @property
    def number(self) -> int: ...
    @property
    def guid(self) -> int: ...
    @property
    def lid(self) -> int: ...
    @property
    def lmc(self) -> int: ...
    @property
    def state(self) -> int:
        """PortInfo:PortState."""


class ObjectKind(Enum):
    PORT = "port"
    CONTROLLER = "I/O controller"


@dataclass(eq=False, slots=True)
class PlugAndPlayObject:
    """Something that a driver can be loaded for.

    guid: the port's, or the controller's.  port: of a local port.  profile, slot: of a controller; lid: where that
    is, or the LID for which the driver of a port was loaded.  driver: what was loaded, None while nothing is.  stale:
    the thing is gone, the object means nothing any more.
    """

    kind: ObjectKind
    vendor_id: int
    device_id: int
    guid: int
    port: LocalPort | None = None
    profile: IOControllerProfile | None = None
    lid: int = 0
    slot: int = 0
    driver: Driver | None = None
    stale: bool = False


@dataclass(frozen=True, slots=True)
class LocalEndPointInfo:
    """What a driver needs to know of its port.  lid_mask: 2^LMC - 1, the bits of the LID that choose a path."""

    port_number: int
    port_guid: int
    lid: int
    lid_mask: int


class Driver(Protocol):
    """A driver's instance."""

    def unload(self) -> None:
        """Its object is not usable any more."""


Load = Callable[["BusDriver", PlugAndPlayObject], Driver]


@dataclass(frozen=True, slots=True)
class _Registration:
    kind: ObjectKind
    load: Load
    mode: OwnershipMode


class BusDriver:
    """The objects of one host.

    host_guid: the host's system image GUID.  sa, devices: clients for looking at the subnet; without them there are
    local ports only.  configuration: asks for controllers at the configuration manager, at `manager`; without it they
    are everybody's.  `counters`: drivers loaded, unloaded, refused.
    """

    def __init__(
        self,
        host_guid: int,
        *,
        sa: SaClient | None = None,
        devices: DeviceManagementClient | None = None,
        configuration: ConfigurationClient | None = None,
        manager: MadAddress | None = None,
    ) -> None:
        self.host_guid = host_guid
        self.counters: Counter[str] = Counter()
        self._sa = sa
        self._devices = devices
        self._configuration = configuration
        self._manager = manager
        self._objects: dict[tuple[ObjectKind, int], PlugAndPlayObject] = {}
        self._registered: dict[tuple[ObjectKind, int, int], _Registration] = {}
        self._claiming: set[int] = set()

    @property
    def objects(self) -> list[PlugAndPlayObject]:
        """Everything that there is now."""
        return list(self._objects.values())

    # --- drivers ------------------------------------------------------------------------------------------------

    def register(
        self,
        kind: ObjectKind,
        vendor_id: int,
        device_id: int,
        load: Load,
        *,
        mode: OwnershipMode = OwnershipMode.EXCLUSIVE,
    ) -> None:
        """Let `load(bus, object)` make a driver for each object of these ids; raises `InvalidStateError` if one is.

        mode: how a controller is to be held.
        """
        key = (kind, vendor_id, device_id)
        if key in self._registered:
            raise InvalidStateError(f"a driver for {kind.value} {vendor_id:#x}:{device_id:#x} is registered")
        self._registered[key] = _Registration(kind, load, mode)
        for found in self.objects:
            self._match(found)

    def unregister(self, kind: ObjectKind, vendor_id: int, device_id: int) -> None:
        """Unload a driver wherever it is, and forget it."""
        self._registered.pop((kind, vendor_id, device_id), None)
        for found in self.objects:
            if (found.kind, found.vendor_id, found.device_id) == (kind, vendor_id, device_id):
                self._unload(found)

    def _match(self, found: PlugAndPlayObject) -> None:
        """Load the driver of an object, if there is one and the object is usable."""
        registered = self._registered.get((found.kind, found.vendor_id, found.device_id))
        if registered is None or found.driver is not None or found.stale:
            return
        if found.port is not None:
            if found.port.state == PortState.ACTIVE and found.port.lid:
                found.lid = found.port.lid
                self._load(found, registered)
        elif self._configuration is None or self._manager is None:
            self._load(found, registered)
        elif found.guid not in self._claiming:
            self._claiming.add(found.guid)
            claim = self._configuration.claim(self._manager, found.guid, self.host_guid, registered.mode)
            claim.when_done(lambda answer: self._claimed(found, registered, answer))

    def _claimed(
        self, found: PlugAndPlayObject, registered: _Registration, answer: Pending[Ownership]
    ) -> None:
        self._claiming.discard(found.guid)
        if answer.error is not None:
            self.counters["refused"] += 1  # another host holds it: tried again at the next look
        elif found.driver is None and not found.stale and registered in self._registered.values():
            self._load(found, registered)
        elif found.driver is None:  # it is not wanted any more
            self._release(found)

    def _load(self, found: PlugAndPlayObject, registered: _Registration) -> None:
        found.driver = registered.load(self, found)
        self.counters["loaded"] += 1

    def _unload(self, found: PlugAndPlayObject) -> None:
        driver, found.driver = found.driver, None
        if driver is None:
            return
        self.counters["unloaded"] += 1
        driver.unload()
        self._release(found)

    def _release(self, found: PlugAndPlayObject) -> None:
        """Let other hosts have a controller."""
        held = found.kind is ObjectKind.CONTROLLER
        if held and self._configuration is not None and self._manager is not None:
            self._configuration.release(self._manager, found.guid, self.host_guid)

    def _remove(self, found: PlugAndPlayObject) -> None:
        del self._objects[found.kind, found.guid]
        found.stale = True
        self._unload(found)

    # --- local ports --------------------------------------------------------------------------------------------

    def add_adapter(self, vendor_id: int, device_id: int, ports: Iterable[LocalPort]) -> None:
        """An adapter of this host: an object for each of its ports.  Raises `InvalidAttributeError` for one twice."""
        for port in ports:
            if (ObjectKind.PORT, port.guid) in self._objects:
                raise InvalidAttributeError(f"the port with GUID {port.guid:#018x} is there already")
            made = PlugAndPlayObject(ObjectKind.PORT, vendor_id, device_id, port.guid, port)
            self._objects[made.kind, made.guid] = made
            self._match(made)

    def remove_adapter(self, ports: Iterable[LocalPort]) -> None:
        """An adapter is taken away."""
        for port in ports:
            if (found := self._objects.get((ObjectKind.PORT, port.guid))) is not None:
                self._remove(found)

    def port_changed(self, port: LocalPort) -> None:
        """A port has become active, or is so no more, or has another LID: a driver is loaded for what it is now."""
        found = self._objects.get((ObjectKind.PORT, port.guid))
        if found is None:
            return
        found.port = port
        if port.state != PortState.ACTIVE or not port.lid or (found.driver and found.lid != port.lid):
            self._unload(found)
        self._match(found)

    def get_local_endpoint_info_by_pdo(self, found: PlugAndPlayObject) -> LocalEndPointInfo:
        """A driver's port: GUID, LID and LID mask.

        Raises `InvalidStateError` for an object that is stale, `InvalidAttributeError` for one that is no local port's.
        """
        if found.stale or self._objects.get((found.kind, found.guid)) is not found:
            raise InvalidStateError(f"the object of {found.kind.value} {found.guid:#018x} is stale")
        if found.port is None:
            raise InvalidAttributeError(f"an object of a local port is needed, not of an {found.kind.value}")
        port = found.port
        return LocalEndPointInfo(port.number, port.guid, port.lid, (1 << port.lmc) - 1)

    IbaBdGetLocalEndPointInfoByPdo = get_local_endpoint_info_by_pdo
    """The documents' name of the same (000:106, 122)."""

    # --- controllers --------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Look for controllers now, and whenever a port comes or goes."""
        if self._sa is not None:

            def told(_: GmpNotice) -> None:
                self.rescan()

            for trap in (Trap.GID_IN_SERVICE, Trap.GID_OUT_OF_SERVICE):
                self._sa.subscribe(told, trap)
        self.rescan()

    def rescan(self) -> Pending[int]:
        """Look for I/O controllers in the subnet; the answer is how many there are.

        Controllers of a unit that does not answer are kept until it leaves the subnet.
        """
        made: Pending[int] = Pending()
        if self._sa is None or self._devices is None:
            made.resolve(0)
            return made
        self._sa.ports().when_done(lambda found: self._units(found, made))
        return made

    def _units(self, found: Pending[list[PortInfoRecord]], made: Pending[int]) -> None:
        if found.error is not None:
            made.fail(found.error)
            return
        assert self._devices is not None
        units = [
            record.info.lid
            for record in found.result()
            if record.info.capability_mask & DEVICE_MANAGEMENT_CAPABILITY and record.info.lid
        ]
        for gone in [o for o in self.objects if o.kind is ObjectKind.CONTROLLER and o.lid not in units]:
            self._remove(gone)
        left = set(units)
        if not left:
            made.resolve(0)

        def looked(lid: int, answer: Pending[dict[int, IOControllerProfile]]) -> None:
            left.discard(lid)
            if answer.error is None:
                self._controllers(lid, answer.result())
            if not left:
                made.resolve(sum(o.kind is ObjectKind.CONTROLLER for o in self.objects))

        for lid in units:
            self._devices.controllers(MadAddress(lid)).when_done(partial(looked, lid))

    def _controllers(self, lid: int, controllers: dict[int, IOControllerProfile]) -> None:
        guids = {profile.guid for profile in controllers.values()}
        for gone in [
            o for o in self.objects if o.lid == lid and o.profile is not None and o.guid not in guids
        ]:
            self._remove(gone)
        for slot, profile in controllers.items():
            found = self._objects.get((ObjectKind.CONTROLLER, profile.guid))
            if found is None:
                found = PlugAndPlayObject(
                    ObjectKind.CONTROLLER, profile.vendor_id, profile.device_id, profile.guid, profile=profile
                )
                self._objects[found.kind, found.guid] = found
            found.lid, found.slot = lid, slot
            self._match(found)

    def close(self) -> None:
        """Unload all drivers; controllers are released."""
        for found in self.objects:
            self._unload(found)
            found.stale = True
        self._objects.clear()
