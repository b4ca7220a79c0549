"""The ports of a node, as its agent keeps them: PortInfo, link events, and what SubnSet(PortInfo) does to them.

Which state follows which is `port_states`' table; which components may be set, `port_settings` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum

from verbena.clock import Clock
from verbena.management.node_tables import INVALID, Hardware, NodeTables
from verbena.management.port_settings import changed, with_rate
from verbena.management.port_states import PortInput, next_state
from verbena.management.profile import NodeProfile
from verbena.wire.smp_attributes import PhysicalState, PortInfo, PortState

RETRAIN_NS = 10_000
"""How long a link that was set down takes to come up again."""


class AgentEvent(Enum):
    """What an adapter should know about one of its ports (IBA vol. 1, 11.6.3: asynchronous events)."""

    PORT_ACTIVE = "port_active"
    PORT_ERR = "port_err"
    LID_CHANGE = "lid_change"
    PKEY_CHANGE = "pkey_change"
    SM_CHANGE = "sm_change"
    CLIENT_REREGISTER = "client_reregister"
    GID_CHANGE = "gid_change"


class NodePorts:
    """PortInfo by port number; a switch's begin with port 0.

    on_event(event, port): see `AgentEvent`.  on_link(port, before, after): the link, not a SubnSet, changed a state.
    """

    def __init__(
        self,
        profile: NodeProfile,
        hardware: Hardware,
        tables: NodeTables,
        clock: Clock,
        on_event: Callable[[AgentEvent, int], None],
        on_link: Callable[[int, PortState, PortState], None],
    ) -> None:
        self._is_switch = profile.is_switch
        self._hardware = hardware
        self._tables = tables
        self._clock = clock
        self._on_event = on_event
        self._on_link = on_link
        self._ports = {port: profile.port_info(port) for port in profile.port_numbers}
        self._packed: dict[int, bytes] = {}

    def __getitem__(self, port: int) -> PortInfo:
        return self._ports[port]

    def __contains__(self, port: int) -> bool:
        return port in self._ports

    def __iter__(self) -> Iterator[int]:
        return iter(self._ports)

    def packed(self, port: int) -> bytes:
        """The PortInfo as it travels."""
        packed = self._packed.get(port)
        if packed is None:
            packed = self._packed[port] = self._ports[port].pack()
        return packed

    def start(self) -> None:
        """Take up the links that are up already."""
        for port in self._ports:
            if self._hardware.physical_state(port) == PhysicalState.LINK_UP:
                self.link_changed(port, True)

    def store(self, port: int, info: PortInfo, apply: bool = True) -> None:
        """Remember a PortInfo; with `apply` the hardware is told, if it differs."""
        if info != self._ports[port]:
            self._ports[port] = info
            self._packed.pop(port, None)
            if apply:
                self._hardware.apply_port(port, info)

    # --- the link -----------------------------------------------------------------------------------------------

    def link_changed(self, port: int, up: bool) -> None:
        """The physical link of a port has come up, or gone."""
        info = self._ports[port]
        if (self._is_switch and port == 0) or (
            up and info.port_physical_state in (PhysicalState.DISABLED, PhysicalState.SLEEP)
        ):
            return
        before = PortState(info.port_state)
        after = next_state(before, PortInput.LINK_UP if up else PortInput.LINK_DOWN)
        if after is None or after is before:
            return
        physical = PhysicalState.LINK_UP if up else info.link_down_default_state
        info = replace(info, port_state=after, port_physical_state=physical)
        self.store(port, with_rate(info, self._hardware.rate(port)) if up else info)
        if before == PortState.ACTIVE:
            self._on_event(AgentEvent.PORT_ERR, port)
        self._on_link(port, before, after)

    def data_arrived(self, port: int) -> None:
        """A packet of data came in."""
        info = self._ports[port]
        after = next_state(info.port_state, PortInput.DATA)
        if after is not None and after != info.port_state:
            self.store(port, replace(info, port_state=after))
            self._on_event(AgentEvent.PORT_ACTIVE, port)

    # --- the subnet manager -------------------------------------------------------------------------------------

    def check_keys(self, asked: int, port: int) -> None:
        """An SMP that came to port `asked` of an adapter is about another port: that one's M_Key guards it, too."""
        if (
            not self._is_switch
            and port != asked
            and self._ports[port].mkey not in (0, self._ports[asked].mkey)
        ):
            raise INVALID

    def set(self, port: int, data: bytes) -> None:
        """SubnSet(PortInfo); raises `Refused`, and then nothing has changed."""
        sent = PortInfo.unpack(data)
        now = self._ports[port]
        external = not (self._is_switch and port == 0)
        info = changed(now, sent, addressed=not self._is_switch or port == 0, external=external)
        if external:
            info = self._physical(port, info, now, sent)
        self.store(port, info)
        if info.vl_high_limit != now.vl_high_limit:
            self._tables.apply_arbitration(port, info.vl_high_limit)
        self._tell_changes(port, now, info, sent.client_reregister)

    def _physical(self, port: int, info: PortInfo, now: PortInfo, sent: PortInfo) -> PortInfo:
        """What a command does to the physical link; a link that goes down by command comes up again if it may."""
        command = sent.port_physical_state
        if command in (PhysicalState.DISABLED, PhysicalState.SLEEP):
            return replace(info, port_physical_state=command, port_state=PortState.DOWN)
        if sent.port_state == PortState.DOWN or (
            command == PhysicalState.POLLING and now.port_physical_state != PhysicalState.LINK_UP
        ):
            resting = command or info.link_down_default_state
            if resting == PhysicalState.POLLING:
                self._clock.call_at(self._clock.now() + RETRAIN_NS, lambda: self._retrained(port))
            return replace(info, port_physical_state=resting)
        return info

    def _retrained(self, port: int) -> None:
        if self._hardware.physical_state(port) == PhysicalState.LINK_UP:
            self.link_changed(port, True)

    def _tell_changes(self, port: int, before: PortInfo, after: PortInfo, reregister: bool) -> None:
        if after.port_state != before.port_state:
            if after.port_state == PortState.ACTIVE:
                self._on_event(AgentEvent.PORT_ACTIVE, port)
            elif before.port_state == PortState.ACTIVE:
                self._on_event(AgentEvent.PORT_ERR, port)
        if (after.lid, after.lmc) != (before.lid, before.lmc):
            self._on_event(AgentEvent.LID_CHANGE, port)
        if after.gid_prefix != before.gid_prefix:
            self._on_event(AgentEvent.GID_CHANGE, port)
        if (after.master_sm_lid, after.master_sm_sl) != (before.master_sm_lid, before.master_sm_sl):
            self._on_event(AgentEvent.SM_CHANGE, port)
        if reregister:
            self._on_event(AgentEvent.CLIENT_REREGISTER, port)
