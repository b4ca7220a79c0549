"""Device management: an I/O unit tells which controllers it has (IBA vol. 1, 16.3).

The agent is an I/O unit's; the client looks at units over the fabric.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from verbena.errors import InvalidAttributeError, ManagementError
from verbena.management.class_agent import INVALID, UNSUPPORTED, ClassAgent, ClassClient, Refusal
from verbena.management.datagrams import MadAddress, Pending, Send
from verbena.wire import Method
from verbena.wire.dm import (
    DEVICE_CLASS,
    DM_CLASS_VERSION,
    MOST_CONTROLLERS,
    NO_CONTROLLER,
    DmAttribute,
    IOControllerProfile,
    IOUnitInfo,
)
from verbena.wire.layout import Layout
from verbena.wire.notice import ClassPortInfo


class IOUnit(ClassAgent):
    """An I/O unit.  controllers: by slot, 1 to `slots`; `install` and `remove` change them."""

    management_class = DEVICE_CLASS
    class_version = DM_CLASS_VERSION

    def __init__(
        self, send: Send, controllers: Mapping[int, IOControllerProfile] | None = None, *, slots: int = 16
    ) -> None:
        super().__init__(send)
        if not 1 <= slots <= MOST_CONTROLLERS:
            raise InvalidAttributeError(f"slots = {slots}: 1 to {MOST_CONTROLLERS}")
        self._slots = slots
        self._controllers: dict[int, IOControllerProfile] = {}
        self._change = 0
        for slot, profile in (controllers or {}).items():
            self.install(slot, profile)

    def install(self, slot: int, profile: IOControllerProfile) -> None:
        """Put a controller into a slot; raises `InvalidAttributeError` if there is no such slot, or it is taken."""
        if not 1 <= slot <= self._slots or slot in self._controllers:
            raise InvalidAttributeError(f"slot {slot}: a free one of 1 to {self._slots} is needed")
        self._controllers[slot] = profile
        self._change = (self._change + 1) & 0xFFFF

    def remove(self, slot: int) -> None:
        """Take a controller out."""
        if self._controllers.pop(slot, None) is not None:
            self._change = (self._change + 1) & 0xFFFF

    def handle(
        self, source: MadAddress, method: int, attribute_id: int, modifier: int, body: bytes
    ) -> Layout:
        """Get of what the unit is and has."""
        if method != Method.GET:
            raise UNSUPPORTED
        if attribute_id == DmAttribute.CLASS_PORT_INFO:
            return ClassPortInfo(class_version=DM_CLASS_VERSION)
        if attribute_id == DmAttribute.IO_UNIT_INFO:
            present = IOUnitInfo.packed(set(self._controllers), self._slots)
            return IOUnitInfo(self._change, self._slots, controllers=present)
        if attribute_id == DmAttribute.IO_CONTROLLER_PROFILE:
            if not 1 <= modifier <= self._slots:
                raise INVALID
            profile = self._controllers.get(modifier)
            if profile is None:
                raise Refusal(NO_CONTROLLER)
            return profile
        raise UNSUPPORTED


class DeviceManagementClient(ClassClient):
    """Looks at I/O units."""

    management_class = DEVICE_CLASS
    class_version = DM_CLASS_VERSION

    def unit(self, to: MadAddress) -> Pending[IOUnitInfo]:
        """What slots a unit has, and which are taken."""
        return self.ask(to, Method.GET, DmAttribute.IO_UNIT_INFO, IOUnitInfo)

    def controller(self, to: MadAddress, slot: int) -> Pending[IOControllerProfile]:
        """The controller in a slot; fails with `ManagementError` if there is none."""
        return self.ask(to, Method.GET, DmAttribute.IO_CONTROLLER_PROFILE, IOControllerProfile, modifier=slot)

    def controllers(self, to: MadAddress) -> Pending[dict[int, IOControllerProfile]]:
        """All controllers of a unit, by slot."""
        made: Pending[dict[int, IOControllerProfile]] = Pending()
        found: dict[int, IOControllerProfile] = {}

        def looked(unit: Pending[IOUnitInfo]) -> None:
            if unit.error is not None:
                made.fail(unit.error)
                return
            left = set(unit.result().present)
            if not left:
                made.resolve(found)

            def take(slot: int, profile: Pending[IOControllerProfile]) -> None:
                left.discard(slot)
                if profile.error is None:
                    found[slot] = profile.result()
                elif not isinstance(profile.error, ManagementError) or profile.error.status != NO_CONTROLLER:
                    made.fail(profile.error)  # else it was taken out meanwhile
                if not left:
                    made.resolve(dict(sorted(found.items())))

            for slot in sorted(left):
                self.controller(to, slot).when_done(partial(take, slot))

        self.unit(to).when_done(looked)
        return made
