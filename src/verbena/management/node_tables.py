"""The tables that a subnet manager writes in a node: partitions, GUIDs, lanes, arbitration, forwarding.

IBA vol. 1, 14.2.5.  They remember what was written, so that it can be read back, check it, and hand it to the hardware.
A write that is not valid raises `Refused`, before anything has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from verbena.fabric.rates import LinkRate
from verbena.management.profile import NodeProfile
from verbena.wire.mad import MadStatus
from verbena.wire.smp_attributes import (
    GUID_BLOCK,
    LFT_BLOCK,
    MFT_BLOCK,
    NO_PORT,
    PKEY_BLOCK,
    GUIDInfo,
    MulticastForwardingTable,
    PKeyTable,
    PortInfo,
    SLtoVLMappingTable,
    VLArbitrationTable,
)

DEFAULT_PKEY = 0xFFFF
PORTS_PER_POSITION = 16


class Refused(Exception):
    """The status with which a request is answered instead; never leaves the agent."""

    def __init__(self, status: MadStatus) -> None:
        super().__init__(status)
        self.status = status


INVALID = Refused(MadStatus.INVALID_VALUE)
UNSUPPORTED = Refused(MadStatus.UNSUPPORTED_METHOD_ATTRIBUTE)


class Hardware(Protocol):
    """What an agent acts on: the node's ports and tables."""

    def apply_port(self, port: int, info: PortInfo) -> None:
        """LID, LMC, state, MTU, operational lanes, head-of-queue life time or others of a port have changed."""

    def physical_state(self, port: int) -> int:
        """PortInfo:PortPhysicalState: 2 Polling (nothing is plugged in), 5 LinkUp."""

    def rate(self, port: int) -> LinkRate:
        """What the link at a port runs at."""

    def set_lft(self, block: int, ports: bytes) -> None:
        """The output ports of LIDs 64 * block and on; 255: none."""

    def set_mft(self, block: int, position: int, masks: Sequence[int]) -> None:
        """Masks of ports 16 * position and on, for multicast LIDs 0xC000 + 32 * block and on."""

    def set_sl2vl(self, port: int, table: bytes) -> None:
        """The lane of each of the sixteen service levels, one in each byte."""

    def set_arbitration(
        self, port: int, high: Sequence[tuple[int, int]], low: Sequence[tuple[int, int]], limit: int
    ) -> None:
        """Pairs of lane and weight (64 bytes), and the high-priority limit (4,096 bytes; 255: none)."""

    def set_pkeys(self, port: int, block: int, keys: Sequence[int]) -> None:
        """Partition keys 32 * block and on of a port; 0: none."""

    def set_lifetime(self, life_ns: int) -> None:
        """How long a packet may stay in the switch; 0: no limit."""

    def port_counters(self, port: int) -> dict[str, int]:
        """The port's counters by name."""

    def clear_counters(self, port: int, names: Sequence[str]) -> None:
        """Set these counters to zero."""


class NodeTables:
    """All tables of one node."""

    def __init__(self, profile: NodeProfile, hardware: Hardware) -> None:
        self._profile = profile
        self._hardware = hardware
        ports = profile.port_numbers
        self._pkeys = {port: [DEFAULT_PKEY] + [0] * (profile.pkeys - 1) for port in ports}
        self._guids = {port: [0] * profile.guids for port in ports}
        self._lanes = {port: SLtoVLMappingTable((0,) * 15 + (15,)) for port in ports}
        self._arbitration: dict[tuple[int, int], VLArbitrationTable] = {}
        self._lft: dict[int, bytes] = {}
        self._mft: dict[tuple[int, int], bytes] = {}

    # --- partitions ---------------------------------------------------------------------------------------------

    def pkeys(self, port: int) -> list[int]:
        """A port's partition table; 0: empty entry."""
        return list(self._pkeys[port])

    def get_pkeys(self, port: int, block: int) -> bytes:
        return PKeyTable(tuple(self._pkeys[port][self._pkey_slice(block)])).pack()

    def set_pkeys(self, port: int, block: int, data: bytes) -> bool:
        """Whether anything changed."""
        where = self._pkey_slice(block)
        room = len(self._pkeys[port][where])
        entries = PKeyTable.unpack(data).entries
        if any(entries[room:]):
            raise INVALID
        keys = list(entries[:room])
        if keys == self._pkeys[port][where]:
            return False
        self._pkeys[port][where] = keys
        self._hardware.set_pkeys(port, block, keys)
        return True

    def _pkey_slice(self, block: int) -> slice:
        if block * PKEY_BLOCK >= self._profile.pkeys:
            raise INVALID
        return slice(block * PKEY_BLOCK, (block + 1) * PKEY_BLOCK)

    # --- GUIDs --------------------------------------------------------------------------------------------------

    def guids(self, port: int) -> list[int]:
        """A port's GUIDs, its own first; 0: none."""
        return [self._profile.port_guid(port), *self._guids[port][1:]]

    def get_guids(self, port: int, block: int) -> bytes:
        self._check_guids(block)
        return GUIDInfo(tuple(self.guids(port)[block * GUID_BLOCK : (block + 1) * GUID_BLOCK])).pack()

    def set_guids(self, port: int, block: int, data: bytes) -> bool:
        """Whether anything changed; the port's own GUID, entry 0, cannot be written and is passed over."""
        self._check_guids(block)
        start = block * GUID_BLOCK
        room = len(self._guids[port][start : start + GUID_BLOCK])
        entries = GUIDInfo.unpack(data).entries
        if any(entries[room:]):
            raise INVALID
        before = list(self._guids[port])
        self._guids[port][start : start + room] = entries[:room]
        self._guids[port][0] = 0
        return before != self._guids[port]

    def _check_guids(self, block: int) -> None:
        if block * GUID_BLOCK >= self._profile.guids:
            raise INVALID

    # --- lanes --------------------------------------------------------------------------------------------------

    def get_lanes(self, port: int) -> bytes:
        return self._lanes[port].pack()

    def set_lanes(self, port: int, data: bytes) -> None:
        table = SLtoVLMappingTable.unpack(data)
        self._lanes[port] = table
        self._hardware.set_sl2vl(port, bytes(table.lanes))

    def get_arbitration(self, port: int, block: int) -> bytes:
        self._arbitration_room(block)
        return self._arbitration.get((port, block), VLArbitrationTable()).pack()

    def set_arbitration(self, port: int, block: int, data: bytes, limit: int) -> None:
        room = self._arbitration_room(block)
        entries = VLArbitrationTable.unpack(data).entries
        if any(lane == 15 for lane, weight in entries if weight) or any(w for _, w in entries[room:]):
            raise INVALID  # lane 15 is not arbitrated
        self._arbitration[port, block] = VLArbitrationTable(entries[:room])
        self.apply_arbitration(port, limit)

    def apply_arbitration(self, port: int, limit: int) -> None:
        """Hand both tables of a port to the hardware; nothing while none was written."""

        def entries(*blocks: int) -> list[tuple[int, int]]:
            tables = [self._arbitration.get((port, block), VLArbitrationTable()) for block in blocks]
            return [entry for table in tables for entry in table.entries if entry[1]]

        if any((port, block) in self._arbitration for block in (1, 2, 3, 4)):
            self._hardware.set_arbitration(port, entries(3, 4), entries(1, 2), limit)

    def _arbitration_room(self, block: int) -> int:
        """Entries of a block: 1 and 2 are the low-priority table, 3 and 4 the high-priority one."""
        if block not in (1, 2, 3, 4):
            raise INVALID
        room = self._profile.arbitration_entries - (32 if block in (2, 4) else 0)
        if room <= 0:
            raise INVALID
        return min(room, 32)

    # --- forwarding ---------------------------------------------------------------------------------------------

    def output_port(self, lid: int) -> int:
        """Where a unicast LID leaves the switch; 255: nowhere."""
        block = self._lft.get(lid // LFT_BLOCK)
        return NO_PORT if block is None else block[lid % LFT_BLOCK]

    def get_lft(self, block: int) -> bytes:
        self._check_lft(block)
        return self._lft.get(block, bytes([NO_PORT]) * LFT_BLOCK)

    def set_lft(self, block: int, data: bytes) -> None:
        self._check_lft(block)
        ports = data[:LFT_BLOCK]
        if any(self._profile.ports < port != NO_PORT for port in set(ports)):
            raise INVALID
        self._lft[block] = ports
        self._hardware.set_lft(block, ports)

    def _check_lft(self, block: int) -> None:
        if block * LFT_BLOCK >= self._profile.linear_cap:
            raise INVALID

    def multicast_ports(self, mlid: int) -> list[int]:
        """Where a multicast LID leaves the switch."""
        block, entry = divmod(mlid - 0xC000, MFT_BLOCK)
        ports = []
        for position in range(self._profile.ports // PORTS_PER_POSITION + 1):
            data = self._mft.get((block, position))
            mask = 0 if data is None else MulticastForwardingTable.unpack(data).entries[entry]
            ports += [
                position * PORTS_PER_POSITION + bit for bit in range(PORTS_PER_POSITION) if mask >> bit & 1
            ]
        return ports

    def get_mft(self, block: int, position: int) -> bytes:
        self._check_mft(block, position)
        return self._mft.get((block, position), bytes(2 * MFT_BLOCK))

    def set_mft(self, block: int, position: int, data: bytes) -> None:
        self._check_mft(block, position)
        masks = MulticastForwardingTable.unpack(data).entries
        last = self._profile.ports - position * PORTS_PER_POSITION
        if any(mask >> (last + 1) for mask in masks if mask):
            raise INVALID  # a port beyond the switch
        self._mft[block, position] = data[: 2 * MFT_BLOCK]
        self._hardware.set_mft(block, position, masks)

    def _check_mft(self, block: int, position: int) -> None:
        if (
            block * MFT_BLOCK >= self._profile.multicast_cap
            or position * PORTS_PER_POSITION > self._profile.ports
        ):
            raise INVALID
