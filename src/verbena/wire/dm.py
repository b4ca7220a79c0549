"""Device management: the controllers of an I/O unit (IBA vol. 1, 16.3.3), and who may use them.

The second is the configuration manager of release 0.9 (document 000:108), which later releases do not have: its class
number is device administration's, its attribute is our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from verbena.wire.layout import Layout, data, raw, uint

DEVICE_CLASS = 0x06
CONFIGURATION_CLASS = 0x10
DM_CLASS_VERSION = 1
DEVICE_MANAGEMENT_CAPABILITY = 1 << 19
"""PortInfo:CapabilityMask: there is an I/O unit behind this port."""
MOST_CONTROLLERS = 255
NO_CONTROLLER = 0x0100
"""MAD:Status of device management: no controller in that slot."""


class DmAttribute(IntEnum):
    """Attribute ids (16.3.3)."""

    CLASS_PORT_INFO = 0x0001
    IO_UNIT_INFO = 0x0010
    IO_CONTROLLER_PROFILE = 0x0011
    SERVICE_ENTRIES = 0x0012


@dataclass(frozen=True, slots=True)
class IOUnitInfo(Layout):
    """IOUnitInfo (16.3.3.3): which slots have a controller."""

    ATTRIBUTE_ID: ClassVar[int] = DmAttribute.IO_UNIT_INFO

    change_id: int = uint(16, at=0)
    max_controllers: int = uint(8, at=2)
    reserved3: int = uint(6, at=3)
    diag_device_id: int = uint(1)
    option_rom: int = uint(1)
    controllers: bytes = raw(128, at=4)
    """Four bits for each slot from 1 on: 0 none, 1 present, 15 no such slot."""

    @property
    def present(self) -> list[int]:
        """The slots that have a controller."""
        nibbles = (value for byte in self.controllers for value in (byte >> 4, byte & 15))
        return [slot for slot, value in enumerate(nibbles, 1) if value == 1 and slot <= self.max_controllers]

    @staticmethod
    def packed(present: set[int], slots: int) -> bytes:
        """`controllers` of a unit with so many slots."""
        values = [(1 if slot in present else 0) if slot <= slots else 15 for slot in range(1, 257)]
        return bytes(values[at] << 4 | values[at + 1] for at in range(0, 256, 2))


@dataclass(frozen=True, slots=True)
class IOControllerProfile(Layout):
    """IOControllerProfile (16.3.3.4): what a controller is."""

    ATTRIBUTE_ID: ClassVar[int] = DmAttribute.IO_CONTROLLER_PROFILE

    guid: int = uint(64, at=0)
    vendor_id: int = uint(24, at=8)
    reserved11: int = uint(8)
    device_id: int = uint(32, at=12)
    device_version: int = uint(16, at=16)
    reserved18: int = uint(16)
    subsystem_vendor_id: int = uint(24, at=20)
    reserved23: int = uint(8)
    subsystem_id: int = uint(32, at=24)
    io_class: int = uint(16, at=28)
    io_subclass: int = uint(16, at=30)
    protocol: int = uint(16, at=32)
    protocol_version: int = uint(16, at=34)
    service_connections: int = uint(16, at=36)
    initiators_supported: int = uint(16, at=38)
    send_queue_depth: int = uint(16, at=40)
    reserved42: int = uint(8, at=42)
    rdma_read_depth: int = uint(8, at=43)
    send_size: int = uint(32, at=44)
    rdma_size: int = uint(32, at=48)
    operations: int = uint(8, at=52)
    services: int = uint(8, at=53)
    service_entries: int = uint(8, at=54)
    reserved55: bytes = raw(9, at=55)
    id_string: bytes = data(64, at=64)


class OwnershipMode(IntEnum):
    """How a host holds a controller."""

    NONE = 0
    EXCLUSIVE = 1
    SHARED = 2


class ConfigurationStatus(IntEnum):
    """The class's own part of MAD:Status."""

    NO_CONTROLLER = 0x0100
    """The configuration database has no such controller."""
    OWNED = 0x0200
    """Another host holds it, or not in this way."""
    NOT_OWNER = 0x0300
    NO_SUCH_HOST = 0x0400
    """The host is not the one that asks."""


@dataclass(frozen=True, slots=True)
class Ownership(Layout):
    """Who holds an I/O controller.  Get: reads; Set: claims; Delete: releases, for the host that asks."""

    ATTRIBUTE_ID: ClassVar[int] = 0x0010
    MOST_HOLDERS: ClassVar[int] = 20

    controller_guid: int = uint(64, at=0)
    host_guid: int = uint(64, at=8)
    """System image GUID of the host that claims or releases."""
    mode: int = uint(8, at=16)
    holder_count: int = uint(8, at=17)
    reserved18: int = uint(48, at=18)
    holders: bytes = data(8 * 20, at=24)
    """System image GUIDs, at most twenty."""

    @property
    def holder_guids(self) -> list[int]:
        count = min(self.holder_count, self.MOST_HOLDERS)
        return [int.from_bytes(self.holders[at * 8 : at * 8 + 8], "big") for at in range(count)]
