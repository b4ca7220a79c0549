"""What the manager writes into the nodes it has found: addresses, limits, keys, lanes, forwarding tables, port states.

Each method yields the SMPs that are needed to bring the subnet from what it reports to what the configuration wants;
what is right already is not written again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from verbena.management.port_settings import is_sane
from verbena.management.profile import LANES_OF_CODE, lane_code
from verbena.management.subnet import Subnet, SubnetNode, SubnetPort
from verbena.management.subnet_manager.config import FULL_MEMBER, Partition, SubnetManagerConfig
from verbena.management.subnet_manager.events import Statistics, SubnetEventKind
from verbena.management.subnet_manager.routing import multicast_ports
from verbena.management.subnet_manager.smp_client import Question, tell
from verbena.wire.smp import AttributeId
from verbena.wire.smp_attributes import (
    LFT_BLOCK,
    MFT_BLOCK,
    NO_PORT,
    PKEY_BLOCK,
    MulticastForwardingTable,
    PKeyTable,
    PortCapability,
    PortInfo,
    PortState,
    SLtoVLMappingTable,
    SwitchInfo,
    VLArbitrationTable,
)

FIRST_MULTICAST_LID = 0xC000
_EXTENDED_SPEEDS = 1 << 31
_UNCHANGED: dict[str, Any] = {
    "port_physical_state": 0,
    "link_down_default_state": 0,
    "link_width_enabled": 0,
    "link_speed_enabled": 0,
    "link_speed_ext_enabled": 0,
    "mkey_violations": 0xFFFF,  # only a zero has an effect
    "pkey_violations": 0xFFFF,
    "qkey_violations": 0xFFFF,
}
"""What a SubnSet(PortInfo) sends where it changes nothing."""
_EMPTY_BLOCK = bytes([NO_PORT]) * LFT_BLOCK
EMPTY_MASKS = MulticastForwardingTable(()).pack()
UNKNOWN = b""
"""Of a block of a multicast table, while nobody can say what the switch has there."""


def _held(info: SwitchInfo, ports: int) -> list[tuple[int, int]]:
    """The places of a multicast table in which something may be, of this manager or an earlier one.

    14.2.5.4, MulticastFDBTop: 0 in a switch that nobody has written to since it came up.
    """
    if info.multicast_fdb_top < FIRST_MULTICAST_LID:
        return []
    held = min(info.multicast_fdb_top - FIRST_MULTICAST_LID + 1, info.multicast_fdb_cap)
    return [
        (block, position) for block in range(-(-held // MFT_BLOCK)) for position in range(ports // 16 + 1)
    ]


class Programmer:
    """Writes one finished sweep's subnet.

    own: the manager's port.  reregister: clients everywhere must register again, because the manager is new.
    failed(kind,
    text): an SMP was not answered, or refused.  warn(text): something else is not as wanted.
    """

    def __init__(
        self,
        subnet: Subnet,
        config: SubnetManagerConfig,
        own: SubnetPort,
        reregister: bool,
        statistics: Statistics,
        failed: Callable[[SubnetEventKind, str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._subnet = subnet
        self._config = config
        self._own = own
        self._reregister = reregister
        self._statistics = statistics
        self._report = failed
        self._warn = warn
        self.lids: Mapping[int, tuple[int, int]] = {}

    # --- PortInfo -----------------------------------------------------------------------------------------------

    def addresses(self, lids: Mapping[int, tuple[int, int]]) -> Iterator[Question]:
        """Base LID, LMC, the manager's LID, keys: adapters' and routers' ports, and the switches' ports 0."""
        self.lids = lids
        config = self._config
        for port in self._subnet.end_ports():
            if port.guid not in lids:
                continue
            lid, lmc = lids[port.guid]
            wanted: dict[str, Any] = {
                "lid": lid,
                "lmc": lmc,
                "master_sm_lid": lids[self._own.guid][0],
                "master_sm_sl": config.sm_sl,
                "gid_prefix": config.gid_prefix,
                "mkey": config.mkey,
                "mkey_protect_bits": config.mkey_protect_bits,
                "mkey_lease_period": config.mkey_lease_s,
                "subnet_timeout": config.subnet_timeout,
            }
            if not port.node.is_switch:
                wanted |= self._link_limits(port)
            yield from self._write_port(port, wanted)

    def links(self) -> Iterator[Question]:
        """MTU, lanes and time limits of the switches' ends of all links."""
        for node in self._subnet.switches:
            for port in node.ports.values():
                if port.number and port.peer is not None:
                    wanted = self._link_limits(port)
                    wanted["hoq_life"] = self._config.hoq_life
                    if self._config.enforce_partitions and not port.peer.node.is_switch:
                        wanted["partition_enforcement_inbound"] = True
                        wanted["partition_enforcement_outbound"] = True
                    yield from self._write_port(port, wanted)

    def _link_limits(self, port: SubnetPort) -> dict[str, Any]:
        peer = port.peer.info if port.peer is not None else port.info
        return {
            "neighbor_mtu": max(min(port.info.mtu_cap, peer.mtu_cap, self._config.mtu_code), 1),
            "operational_vls": min(port.info.vl_cap, peer.vl_cap, lane_code(self._config.lanes)) or 1,
            "vl_high_limit": self._config.high_limit,
        }

    def _write_port(self, port: SubnetPort, wanted: dict[str, Any]) -> Iterator[Question]:
        info = port.info
        new = port.is_end and (self._reregister or not info.lid or info.port_state == PortState.INIT)
        able = info.capability_mask & PortCapability.CLIENT_REREGISTRATION
        again = bool(new and able)
        if again or any(getattr(info, name) != value for name, value in wanted.items()):
            yield self._set_port(port, PortState.NO_CHANGE, wanted | {"client_reregister": again})

    def _set_port(self, port: SubnetPort, state: int, wanted: dict[str, Any]) -> Question:
        """Everything that is not meant is sent as "no change"."""
        sent = replace(port.info, **_UNCHANGED, **wanted, port_state=state)
        return tell(
            AttributeId.PORT_INFO,
            port.number | _EXTENDED_SPEEDS,
            port.path,
            sent.pack(),
            partial(self._port_is, port),
        )

    def _port_is(self, port: SubnetPort, status: int | None, data: bytes) -> None:
        if status != 0:
            self._failed(port, status)
        elif is_sane(info := PortInfo.unpack(data)):
            port.info = info
        else:
            self._report(SubnetEventKind.REFUSED, f"{port} answers nonsense")

    def _failed(self, what: object, status: int | None) -> None:
        if status is None:
            self._report(SubnetEventKind.NO_ANSWER, f"{what} does not answer")
        else:
            self._report(SubnetEventKind.REFUSED, f"{what} answers with status {status:#x}")

    def leave_out(self) -> None:
        """Ports that did not take their addresses have none: nothing is routed to them, and they are not activated."""
        for port in self._subnet.end_ports():
            lid, lmc = self.lids.get(port.guid, (0, 0))
            if (port.info.lid, port.info.lmc) != (lid, lmc):
                port.info = replace(port.info, lid=0, lmc=0)

    def states(self, before: PortState, after: PortState) -> Iterator[Question]:
        """Bring all configured ports with a link from one state to the next: INIT to ARMED, then ARMED to ACTIVE."""
        for node in self._subnet.nodes.values():
            for port in node.ports.values():
                peer = port.peer
                if (
                    peer is not None
                    and port.info.port_state == before
                    and self._is_addressed(port)
                    and self._is_addressed(peer)
                    and peer.info.port_state >= before
                ):
                    yield self._set_port(port, after, {})

    @staticmethod
    def _is_addressed(port: SubnetPort) -> bool:
        return bool(port.lid)

    # --- partitions ---------------------------------------------------------------------------------------------

    def keys(self, partitions: tuple[Partition, ...]) -> Iterator[Question]:
        """P_Key tables of all ends, and, if switches enforce, of the switch ports that lead to them."""
        for port in self._subnet.end_ports():
            wanted = self._keys_of(port, partitions)
            yield from self._write_keys(port, wanted, 0)
            leaf = port.peer if self._config.enforce_partitions and not port.node.is_switch else None
            if leaf is not None and leaf.node.is_switch:
                yield from self._write_keys(leaf, wanted, leaf.number)

    def _keys_of(self, port: SubnetPort, partitions: tuple[Partition, ...]) -> tuple[int, ...]:
        keys = [partition.key_of(port.guid) for partition in partitions]
        if port is self._own:
            keys = [key | FULL_MEMBER if key & 0x7FFF == 0x7FFF else key for key in keys]
        found = tuple(key for key in keys if key)
        room = port.node.info.partition_cap
        if len(found) > room:
            self._warn(f"{port} is in {len(found)} partitions; its table takes the first {room}")
        return found[:room]

    def _write_keys(self, port: SubnetPort, wanted: tuple[int, ...], number: int) -> Iterator[Question]:
        if port.pkeys == wanted:
            return
        blocks = -(-max(len(wanted), len(port.pkeys), 1) // PKEY_BLOCK)
        for block in range(blocks):
            data = PKeyTable(wanted[block * PKEY_BLOCK : (block + 1) * PKEY_BLOCK]).pack()
            yield tell(
                AttributeId.PKEY_TABLE,
                (number if port.node.is_switch else 0) << 16 | block,
                port.path,
                data,
                partial(self._keys_are, port, wanted),
            )

    def _keys_are(self, port: SubnetPort, wanted: tuple[int, ...], status: int | None, data: bytes) -> None:
        if status != 0:
            self._failed(port, status)
        else:
            port.pkeys = wanted

    # --- lanes --------------------------------------------------------------------------------------------------

    def lanes(self) -> Iterator[Question]:
        """Of each port that has come up: service level n on lane n, as far as there are lanes; and lane arbitration."""
        for node in self._subnet.nodes.values():
            for port in node.ports.values():
                if port.peer is None or port.info.port_state != PortState.INIT:
                    continue
                if port.is_end and port.info.capability_mask & PortCapability.SL_MAPPING:
                    lanes = LANES_OF_CODE.get(port.info.operational_vls, 1)
                    table = SLtoVLMappingTable(tuple(level % lanes for level in range(16)))
                    done = partial(self._checked, port)
                    yield tell(AttributeId.SL_TO_VL, 0, port.path, table.pack(), done)
                yield from self._arbitration(port)

    def _arbitration(self, port: SubnetPort) -> Iterator[Question]:
        config, info = self._config, port.info
        if not config.arbitration_high and not config.arbitration_low:
            return
        lanes = LANES_OF_CODE.get(info.operational_vls, 1)
        for entries, first, room in (
            (config.arbitration_low, 1, info.vl_arbitration_low_cap),
            (config.arbitration_high, 3, info.vl_arbitration_high_cap),
        ):
            used = [entry for entry in entries if entry[0] < lanes][:room]
            for at in range(0, min(room, 64), 32):
                number = port.number if port.node.is_switch else 0
                modifier = (first + at // 32) << 16 | number
                table = VLArbitrationTable(tuple(used[at : at + 32]))
                done = partial(self._checked, port)
                yield tell(AttributeId.VL_ARBITRATION, modifier, port.path, table.pack(), done)

    def _checked(self, port: SubnetPort, status: int | None, data: bytes) -> None:
        if status != 0:
            self._failed(port, status)

    # --- forwarding ---------------------------------------------------------------------------------------------

    def forwarding(self, tables: Mapping[int, bytes | bytearray]) -> Iterator[Question]:
        """The blocks of the linear forwarding tables that have changed, and what goes with them in SwitchInfo."""
        for node in self._subnet.switches:
            table = bytes(tables.get(node.guid, b""))
            last = len(table.rstrip(b"\xff"))
            top = node.switch_info.linear_fdb_top if node.switch_info is not None else 0
            # What a switch held before this manager knew it may be anything; after power-up it is empty.
            unknown = _EMPTY_BLOCK if not top else b""
            for block in range(
                max(-(-last // LFT_BLOCK), max(node.lft, default=-1) + 1, top // LFT_BLOCK + 1)
            ):
                data = table[block * LFT_BLOCK : (block + 1) * LFT_BLOCK].ljust(LFT_BLOCK, b"\xff")
                if data != node.lft.get(block, unknown):
                    self._statistics.lft_blocks += 1
                    done = partial(self._block_is, node, block, data)
                    yield tell(AttributeId.LINEAR_FORWARDING, block, node.path, data, done)
            yield from self._write_switch(node, max(last - 1, 0))

    def _block_is(self, node: SubnetNode, block: int, sent: bytes, status: int | None, data: bytes) -> None:
        if status != 0:
            self._failed(node, status)
        else:
            node.lft[block] = sent

    def _write_switch(self, node: SubnetNode, top: int) -> Iterator[Question]:
        info = node.switch_info
        life = self._config.packet_life
        if info is not None and (info.linear_fdb_top, info.life_time_value) != (top, life):
            sent = replace(info, linear_fdb_top=top, life_time_value=life, port_state_change=False)
            yield tell(AttributeId.SWITCH_INFO, 0, node.path, sent.pack(), partial(self._switch_is, node))

    def _switch_is(self, node: SubnetNode, status: int | None, data: bytes) -> None:
        if status != 0:
            self._failed(node, status)
        else:
            node.switch_info = SwitchInfo.unpack(data)

    def multicast(self, groups: Mapping[int, frozenset[int]]) -> Iterator[Question]:
        """The parts of the multicast forwarding tables that have changed.  groups: members' port GUIDs by LID."""
        wanted: dict[int, dict[tuple[int, int], list[int]]] = {}
        for mlid, guid, ports, unreached in multicast_ports(self._subnet, groups):
            block, entry = divmod(mlid - FIRST_MULTICAST_LID, MFT_BLOCK)
            for port in ports:
                masks = wanted.setdefault(guid, {}).setdefault((block, port // 16), [0] * MFT_BLOCK)
                masks[entry] |= 1 << port % 16
            if unreached:
                self._warn(f"multicast LID {mlid:#x}: LIDs {unreached} cannot be reached")
        for node in self._subnet.switches:
            places = wanted.get(node.guid, {})
            yield from self._raise_top(node, places)
            held = _held(node.switch_info, node.info.num_ports) if node.switch_info is not None else []
            for place in sorted({*places, *node.mft, *held}):
                data = MulticastForwardingTable(tuple(places.get(place, ()))).pack()
                if data != node.mft.get(place):
                    node.mft[place] = UNKNOWN  # until it is confirmed
                    self._statistics.mft_blocks += 1
                    modifier = place[1] << 28 | place[0]
                    done = partial(self._masks_are, node, place, data)
                    yield tell(AttributeId.MULTICAST_FORWARDING, modifier, node.path, data, done)

    def _raise_top(self, node: SubnetNode, places: Iterable[tuple[int, int]]) -> Iterator[Question]:
        """Let the switch say how far its multicast table is used, for the next manager."""
        info = node.switch_info
        top = max((FIRST_MULTICAST_LID + (block + 1) * MFT_BLOCK - 1 for block, _ in places), default=0)
        if info is not None and top > info.multicast_fdb_top:
            sent = replace(info, multicast_fdb_top=top, port_state_change=False)
            held = set(_held(info, node.info.num_ports))
            for place in _held(sent, node.info.num_ports):
                if place not in held:
                    node.mft.setdefault(place, EMPTY_MASKS)
            yield tell(AttributeId.SWITCH_INFO, 0, node.path, sent.pack(), partial(self._switch_is, node))

    def _masks_are(
        self, node: SubnetNode, place: tuple[int, int], sent: bytes, status: int | None, data: bytes
    ) -> None:
        if status != 0:
            self._failed(node, status)
        else:
            node.mft[place] = sent
