"""The subnet management agent of a node: answers SubnGet and SubnSet, guards the node by its M_Key, sends traps.

IBA vol. 1, 14.2 (attributes), 14.2.4 (M_Key), 14.3.  One agent serves an adapter, a switch or a router.  An SMP goes in
as its 256 bytes, the answer comes out likewise, or None.  What the subnet manager sets acts on the node through
`Hardware`, and is told to the node's adapter as `AgentEvent`.

A SubnSet is all or nothing: an invalid component is answered with the status "invalid value", and nothing changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from verbena.clock import Clock
from verbena.management.node_keys import KeyGuard
from verbena.management.node_ports import AgentEvent, NodePorts
from verbena.management.node_tables import INVALID, UNSUPPORTED, Hardware, NodeTables, Refused
from verbena.management.profile import NodeProfile
from verbena.management.traps import TrapSender, timeout_ns
from verbena.wire.errors import DecodeError
from verbena.wire.mad import MAD_SIZE, MadStatus, ManagementClass, Method
from verbena.wire.smp import DATA_OFFSET, AttributeId, Smp
from verbena.wire.smp_attributes import (
    BadKeyDetails,
    CapabilityDetails,
    LedInfo,
    LinkStateDetails,
    NodeDescription,
    Notice,
    NoticeType,
    PortDetails,
    PortInfo,
    PortState,
    SwitchInfo,
    Trap,
    VendorDiag,
)

NO_LIFETIME = 20
"""SwitchInfo:LifeTimeValue and PortInfo:HOQLife from here on: no limit."""

__all__ = ["AgentEvent", "Hardware", "SubnetManagementAgent"]

_Get = Callable[[int, int], bytes]
_Set = Callable[[int, int, bytes], bytes]


def life_ns(code: int) -> int:
    """SwitchInfo:LifeTimeValue or PortInfo:HOQLife in nanoseconds; 0: no limit."""
    return 0 if code >= NO_LIFETIME else timeout_ns(code)


class SubnetManagementAgent:
    """One node's agent.

    send(port, mad, dlid, sl) sends an SMP of the agent's own, a trap; it is set by the node's
    `SubnetManagementInterface`.  on_event(event, port): see `AgentEvent`.  `counters` names what was dropped and why.
    """

    def __init__(
        self,
        profile: NodeProfile,
        hardware: Hardware,
        clock: Clock,
        on_event: Callable[[AgentEvent, int], None] | None = None,
    ) -> None:
        self.profile = profile
        self.counters: Counter[str] = Counter()
        self.send: Callable[[int, bytes, int, int], None] | None = None
        self.tables = NodeTables(profile, hardware)
        self._hardware = hardware
        self._clock = clock
        self._on_event = on_event
        self._description = NodeDescription.of(profile.description)
        self._ports = NodePorts(profile, hardware, self.tables, clock, self._tell, self._link_changed)
        self._switch = profile.switch_info()
        self._leds: set[int] = set()
        self._node_infos: dict[int, bytes] = {}
        addressed = (0,) if profile.is_switch else tuple(profile.port_numbers)
        self._traps = {port: self._trap_sender(port) for port in addressed}
        self._guards = {port: KeyGuard(self, port, clock) for port in addressed}
        self._handlers = self._make_handlers()
        self._ports.start()

    def _make_handlers(self) -> dict[int, tuple[_Get, _Set | None]]:
        a = AttributeId
        both: dict[int, tuple[_Get, _Set | None]] = {
            a.NODE_DESCRIPTION: (lambda modifier, port: self._description.pack(), None),
            a.NODE_INFO: (self._get_node, None),
            a.GUID_INFO: (self._get_guids, self._set_guids),
            a.PORT_INFO: (self._get_port, self._set_port),
            a.PKEY_TABLE: (self._get_pkeys, self._set_pkeys),
            a.VL_ARBITRATION: (self._get_arbitration, self._set_arbitration),
            a.VENDOR_DIAG: (self._get_diagnostics, None),
            a.LED_INFO: (self._get_led, self._set_led),
        }
        if self.profile.is_switch:
            # A packet keeps its lane across a subnet: switches have no SLtoVLMappingTable.
            return both | {
                a.SWITCH_INFO: (lambda modifier, port: self._switch.pack(), self._set_switch),
                a.LINEAR_FORWARDING: (self._get_lft, self._set_lft),
                a.MULTICAST_FORWARDING: (self._get_mft, self._set_mft),
            }
        return both | {a.SL_TO_VL: (self._get_lanes, self._set_lanes)}

    # --- what the node asks and tells ---------------------------------------------------------------------------

    def port_info(self, port: int) -> PortInfo:
        """A port's present PortInfo; a switch's ports begin with 0."""
        return self._ports[port]

    def addressed(self, port: int) -> int:
        """The port that has the LID and the keys of `port`: a switch's is its port 0."""
        return 0 if self.profile.is_switch else port

    def lid(self, port: int) -> int:
        """The base LID, 0 if none was assigned."""
        return self._ports[self.addressed(port)].lid

    def owns(self, port: int, lid: int) -> bool:
        """Whether `lid` is one of the port's LIDs."""
        info = self._ports[self.addressed(port)]
        return bool(info.lid) and lid >> info.lmc == info.lid >> info.lmc

    def link_changed(self, port: int, up: bool) -> None:
        """The physical link of a port has come up, or gone."""
        self._ports.link_changed(port, up)

    def data_arrived(self, port: int) -> None:
        """A packet of data came to an armed port: its neighbour is active already (7.2.7)."""
        self._ports.data_arrived(port)

    def port_error(self, port: int, trap: Trap) -> None:
        """Trap 129 (link integrity), 130 (buffer overrun) or 131 (flow control) at a port."""
        details = PortDetails(lid=self.lid(port), port=port)
        self._notify(port, NoticeType.URGENT, trap, details.pack())

    def bad_pkey(self, port: int, *, pkey: int, slid: int, dlid: int, sl: int, qp1: int, qp2: int) -> None:
        """A packet from (`slid`, `qp1`) to (`dlid`, `qp2`) with a P_Key that the port does not have: trap 257."""
        info = self._ports[port]
        self._ports.store(
            port, replace(info, pkey_violations=min(info.pkey_violations + 1, 0xFFFF)), apply=False
        )
        details = BadKeyDetails(lid1=slid, lid2=dlid, key=pkey, sl=sl, qp1=qp1, qp2=qp2)
        self._notify(port, NoticeType.SECURITY, Trap.BAD_PKEY, details.pack())

    def rename(self, description: str) -> None:
        """Change the node's description: trap 144."""
        self._description = NodeDescription.of(description)
        self._local_change(node_description=True)

    def set_capability(self, capability: int, on: bool, port: int) -> None:
        """Set or clear a bit of a port's CapabilityMask, such as `PortCapability.SM`: trap 144."""
        info = self._ports[port]
        mask = info.capability_mask | capability if on else info.capability_mask & ~capability
        if mask != info.capability_mask:
            self._ports.store(port, replace(info, capability_mask=mask), apply=False)
            self._local_change(port)

    def _local_change(self, only: int | None = None, node_description: bool = False) -> None:
        for port in self._traps:
            if only in (None, port):
                info = self._ports[port]
                details = CapabilityDetails(
                    lid=info.lid,
                    other_local_changes=node_description,
                    capability_mask=info.capability_mask,
                    node_description=node_description,
                )
                self._notify(port, NoticeType.INFORMATIONAL, Trap.CAPABILITY, details.pack())

    # --- SMPs ---------------------------------------------------------------------------------------------------

    def receive(self, mad: bytes, in_port: int) -> bytes | None:
        """The answer to an SMP that arrived by `in_port` (0: from within the node).  Never raises."""
        if len(mad) != MAD_SIZE or mad[1] not in (
            ManagementClass.SUBN_LID_ROUTED,
            ManagementClass.SUBN_DIRECTED_ROUTE,
        ):
            self.counters["drop.malformed"] += 1
            return None
        method = mad[3]
        if method & 0x80 or method in (0, Method.SEND, Method.TRAP, Method.REPORT):
            self.counters["drop.method"] += 1  # no request: answering it could go on for ever
            return None
        if mad[0] != 1 or mad[2] != 1:
            return self._answer(mad, MadStatus.BAD_VERSION)
        if method not in (Method.GET, Method.SET, Method.TRAP_REPRESS):
            return self._answer(mad, MadStatus.UNSUPPORTED_METHOD)
        in_port = in_port if in_port in self._ports else next(iter(self._ports))
        guard = self._guards[self.addressed(in_port)]
        attribute = mad[16] << 8 | mad[17]
        if attribute != AttributeId.SM_INFO and not guard.allows(mad, method):
            self.counters["drop.mkey"] += 1
            return None
        if method == Method.TRAP_REPRESS:
            self._repress(mad, in_port)
            return None
        handlers = self._handlers.get(attribute)
        self.counters["get" if method == Method.GET else "set"] += 1
        try:
            modifier = int.from_bytes(mad[20:24], "big")
            if handlers is None:
                raise UNSUPPORTED
            if method == Method.GET:
                data = handlers[0](modifier, in_port)
                if attribute == AttributeId.PORT_INFO and guard.hides(mad):
                    data = bytes(8) + data[8:]
            elif handlers[1] is None:
                raise UNSUPPORTED
            else:
                data = handlers[1](modifier, in_port, mad[DATA_OFFSET : DATA_OFFSET + 64])
        except Refused as refused:
            self.counters["refused"] += 1
            return self._answer(mad, refused.status)
        return self._answer(mad, MadStatus.OK, data)

    def _answer(self, mad: bytes, status: int, data: bytes | None = None) -> bytes:
        answer = bytearray(mad)
        answer[3] = Method.GET_RESPONSE
        answer[4] = 0x80 if mad[1] == ManagementClass.SUBN_DIRECTED_ROUTE else 0
        answer[5] = status
        if data is not None:
            answer[DATA_OFFSET : DATA_OFFSET + 64] = data.ljust(64, b"\0")
        return bytes(answer)

    def _repress(self, mad: bytes, in_port: int) -> None:
        try:
            smp = Smp.unpack(mad)
            if smp.attribute_id == AttributeId.NOTICE:
                self._traps[self.addressed(in_port)].repress(Notice.unpack(smp.data))
        except DecodeError:
            self.counters["drop.malformed"] += 1

    # --- attributes ---------------------------------------------------------------------------------------------

    def _port_of(self, number: int) -> int:
        """A port by number; raises `Refused` if there is none."""
        if number not in self._ports:
            raise INVALID
        return number

    def _get_node(self, modifier: int, in_port: int) -> bytes:
        packed = self._node_infos.get(in_port)
        if packed is None:
            packed = self._node_infos[in_port] = self.profile.node_info(in_port).pack()
        return packed

    def _get_port(self, modifier: int, in_port: int) -> bytes:
        return self._ports.packed(self._info_port(modifier, in_port))

    def _set_port(self, modifier: int, in_port: int, data: bytes) -> bytes:
        port = self._info_port(modifier, in_port)
        self._ports.set(port, data)
        return self._ports.packed(port)

    def _info_port(self, modifier: int, in_port: int) -> int:
        """Bit 31 says that the manager knows extended speeds; an adapter's port 0 is the one that was asked."""
        number = modifier & 0x7FFFFFFF
        if not number and not self.profile.is_switch:
            return in_port
        port = self._port_of(number)
        self._ports.check_keys(in_port, port)
        return port

    def _set_switch(self, modifier: int, in_port: int, data: bytes) -> bytes:
        sent = SwitchInfo.unpack(data)
        if sent.linear_fdb_top >= self.profile.linear_cap or any(
            self.profile.ports < port != 255
            for port in (
                sent.default_port,
                sent.default_multicast_primary_port,
                sent.default_multicast_not_primary_port,
            )
        ):
            raise INVALID
        before = self._switch
        self._switch = replace(
            before,
            linear_fdb_top=sent.linear_fdb_top,
            default_port=sent.default_port,
            default_multicast_primary_port=sent.default_multicast_primary_port,
            default_multicast_not_primary_port=sent.default_multicast_not_primary_port,
            life_time_value=sent.life_time_value,
            port_state_change=before.port_state_change and not sent.port_state_change,  # 1 clears it
            multicast_fdb_top=sent.multicast_fdb_top,
        )
        if sent.life_time_value != before.life_time_value:
            self._hardware.set_lifetime(life_ns(sent.life_time_value))
        return self._switch.pack()

    def _table_port(self, modifier: int, in_port: int) -> int:
        """Whose table: a switch is told the port, an adapter means the one that was asked."""
        return self._port_of(modifier) if self.profile.is_switch else in_port

    def _get_guids(self, modifier: int, in_port: int) -> bytes:
        return self.tables.get_guids(self.addressed(in_port), modifier)

    def _set_guids(self, modifier: int, in_port: int, data: bytes) -> bytes:
        port = self.addressed(in_port)
        if self.tables.set_guids(port, modifier, data):
            self._tell(AgentEvent.GID_CHANGE, port)
        return self.tables.get_guids(port, modifier)

    def _get_pkeys(self, modifier: int, in_port: int) -> bytes:
        return self.tables.get_pkeys(self._table_port(modifier >> 16, in_port), modifier & 0xFFFF)

    def _set_pkeys(self, modifier: int, in_port: int, data: bytes) -> bytes:
        port = self._table_port(modifier >> 16, in_port)
        if self.tables.set_pkeys(port, modifier & 0xFFFF, data):
            self._tell(AgentEvent.PKEY_CHANGE, port)
        return self.tables.get_pkeys(port, modifier & 0xFFFF)

    def _get_lanes(self, modifier: int, in_port: int) -> bytes:
        return self.tables.get_lanes(in_port)

    def _set_lanes(self, modifier: int, in_port: int, data: bytes) -> bytes:
        self.tables.set_lanes(in_port, data)
        return self.tables.get_lanes(in_port)

    def _get_arbitration(self, modifier: int, in_port: int) -> bytes:
        return self.tables.get_arbitration(self._table_port(modifier & 0xFFFF, in_port), modifier >> 16)

    def _set_arbitration(self, modifier: int, in_port: int, data: bytes) -> bytes:
        port, block = self._table_port(modifier & 0xFFFF, in_port), modifier >> 16
        self.tables.set_arbitration(port, block, data, self._ports[port].vl_high_limit)
        return self.tables.get_arbitration(port, block)

    def _get_lft(self, modifier: int, in_port: int) -> bytes:
        return self.tables.get_lft(modifier)

    def _set_lft(self, modifier: int, in_port: int, data: bytes) -> bytes:
        self.tables.set_lft(modifier, data)
        return data

    def _get_mft(self, modifier: int, in_port: int) -> bytes:
        return self.tables.get_mft(modifier & 0x0FFFFFFF, modifier >> 28)

    def _set_mft(self, modifier: int, in_port: int, data: bytes) -> bytes:
        self.tables.set_mft(modifier & 0x0FFFFFFF, modifier >> 28, data)
        return data

    def _get_diagnostics(self, modifier: int, in_port: int) -> bytes:
        if modifier:
            raise INVALID
        return VendorDiag().pack()

    def _get_led(self, modifier: int, in_port: int) -> bytes:
        return LedInfo(on=self._table_port(modifier, in_port) in self._leds).pack()

    def _set_led(self, modifier: int, in_port: int, data: bytes) -> bytes:
        port = self._table_port(modifier, in_port)
        (self._leds.add if LedInfo.unpack(data).on else self._leds.discard)(port)
        return self._get_led(modifier, in_port)

    # --- inside -------------------------------------------------------------------------------------------------

    def update_keys(self, port: int, **fields: Any) -> None:
        """For the guard: M_Key violations and protection have changed."""
        self._ports.store(port, replace(self._ports[port], **fields), apply=False)

    def _link_changed(self, port: int, before: PortState, after: PortState) -> None:
        """The link did it, not the subnet manager: a switch tells (14.2.5.4, PortStateChange)."""
        if self.profile.is_switch:
            self._switch = replace(self._switch, port_state_change=True)
            details = LinkStateDetails(lid=self.lid(0))
            self._notify(0, NoticeType.URGENT, Trap.LINK_STATE, details.pack())
        elif after == PortState.DOWN:
            self._traps[port].close()

    def _tell(self, event: AgentEvent, port: int) -> None:
        if self._on_event is not None:
            self._on_event(event, port)

    def notify_security(self, port: int, trap: Trap, details: bytes) -> None:
        """For the guard: trap 256."""
        self._notify(port, NoticeType.SECURITY, trap, details)

    def _notify(self, port: int, kind: NoticeType, trap: Trap, details: bytes) -> None:
        port = self.addressed(port)
        notice = Notice(
            type=kind, producer=self.profile.kind, trap=trap, issuer_lid=self.lid(port), details=details
        )
        self._traps[port].notify(notice)

    def _trap_sender(self, port: int) -> TrapSender:
        def route() -> tuple[int, int, int] | None:
            info = self._ports[port]
            if not (info.lid and info.master_sm_lid and info.port_state > PortState.DOWN):
                return None
            return info.master_sm_lid, info.master_sm_sl, timeout_ns(info.subnet_timeout)

        def send(mad: bytes, dlid: int, level: int) -> None:
            if self.send is not None:
                self.send(port, mad, dlid, level)

        return TrapSender(self._clock, route, send, self.counters, self.profile.port_guid(port))
