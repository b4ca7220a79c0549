"""Performance management: an agent that shows a node's counters, and a client that asks for them (IBA vol. 1, 16.1).

The hardware counts without end; what a Set writes is kept here as a difference, of the 32-bit and of the 64-bit
counters apart, as the standard has two sets.  Data are shown in units of four bytes, `xmit_wait` in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from verbena.management.class_agent import INVALID, UNSUPPORTED, ClassAgent, ClassClient
from verbena.management.datagrams import MadAddress, Pending, Send
from verbena.wire import ManagementClass, Method
from verbena.wire.layout import Layout
from verbena.wire.notice import ClassPortInfo
from verbena.wire.pm import (
    ALL_PORTS,
    DATA_UNIT,
    PM_CLASS_VERSION,
    PmAttribute,
    PmCapability,
    PortCounters,
    PortCountersExtended,
)

SOURCES: dict[str, tuple[str, ...]] = {
    "symbol_error": ("flit_errors",),
    "link_error_recovery": ("link_recovered",),
    "link_downed": ("link_downed",),
    "rcv_errors": ("drop_vcrc", "drop_lane", "drop_node"),
    "rcv_switch_relay_errors": ("drop_lft", "drop_mft"),
    "xmit_discards": ("drop_hoq", "drop_lifetime", "drop_link_down", "drop_state", "drop_mtu"),
    "rcv_constraint_errors": ("drop_pkey",),
    "local_link_integrity_errors": ("replays",),
    "excessive_buffer_overrun_errors": ("buffer_overrun",),
    "vl15_dropped": ("drop_vl15",),
    "xmit_data": ("xmit_bytes",),
    "rcv_data": ("rcv_bytes",),
    "xmit_pkts": ("xmit_packets",),
    "rcv_pkts": ("rcv_packets",),
    "unicast_xmit_pkts": ("xmit_packets",),
    "unicast_rcv_pkts": ("rcv_packets",),
    "multicast_xmit_pkts": ("xmit_multicast_packets",),
    "multicast_rcv_pkts": ("rcv_multicast_packets",),
    "xmit_wait": ("xmit_wait_ns",),
}
"""Which of the hardware's counters each of the standard's is the sum of; unicast is without multicast."""
LESS = {"unicast_xmit_pkts": "xmit_multicast_packets", "unicast_rcv_pkts": "rcv_multicast_packets"}
NAMES: dict[int, tuple[str, ...]] = {
    PmAttribute.PORT_COUNTERS: PortCounters.SELECT + PortCounters.SELECT2,
    PmAttribute.PORT_COUNTERS_EXTENDED: PortCountersExtended.SELECT,
}


def standard_count(name: str, hardware: Mapping[str, int]) -> int:
    """One of the standard's counters, from the hardware's."""
    count = sum(hardware.get(source, 0) for source in SOURCES.get(name, ()))
    if name in LESS:
        count -= hardware.get(LESS[name], 0)
    return count // DATA_UNIT if name in ("xmit_data", "rcv_data") else count


class PerformanceAgent(ClassAgent):
    """The agent of a node.

    ports: numbers of its ports.  read: the hardware's counters of a port, by name (`Hardware.port_counters`).
    """

    management_class = ManagementClass.PERFORMANCE
    class_version = PM_CLASS_VERSION

    def __init__(self, send: Send, ports: Iterable[int], read: Callable[[int], Mapping[str, int]]) -> None:
        super().__init__(send)
        self._ports = sorted(ports)
        self._read = read
        self._written: dict[tuple[int, int, str], int] = {}

    def handle(
        self, source: MadAddress, method: int, attribute_id: int, modifier: int, body: bytes
    ) -> Layout:
        """Get and Set of the counters, Get of ClassPortInfo."""
        if attribute_id == PmAttribute.CLASS_PORT_INFO and method == Method.GET:
            able = PmCapability.ALL_PORT_SELECT | PmCapability.EXTENDED_WIDTH | PmCapability.XMIT_WAIT
            return ClassPortInfo(class_version=PM_CLASS_VERSION, capability_mask=able)
        if attribute_id not in NAMES or method not in (Method.GET, Method.SET):
            raise UNSUPPORTED
        asked: PortCounters | PortCountersExtended
        if attribute_id == PmAttribute.PORT_COUNTERS:
            asked = PortCounters.unpack(body)
        else:
            asked = PortCountersExtended.unpack(body)
        ports = self._ports if asked.port_select == ALL_PORTS else [asked.port_select]
        if not set(ports) <= set(self._ports):
            raise INVALID
        if method == Method.SET:
            for port in ports:
                self._write(port, attribute_id, asked)
        return self._show(ports, attribute_id, asked.port_select)

    def counts(self, port: int, attribute_id: int) -> dict[str, int]:
        """A port's counters since they were written, of any size."""
        hardware = self._read(port)
        found = {}
        for name in NAMES[attribute_id]:
            count = standard_count(name, hardware) - self._written.get((port, attribute_id, name), 0)
            if count < 0:  # the hardware itself was reset
                count = standard_count(name, hardware)
                self._written.pop((port, attribute_id, name), None)
            found[name] = count
        return found

    def _show(self, ports: list[int], attribute_id: int, port_select: int) -> Layout:
        total = dict.fromkeys(NAMES[attribute_id], 0)
        for port in ports:
            for name, count in self.counts(port, attribute_id).items():
                total[name] += count
        if attribute_id == PmAttribute.PORT_COUNTERS:
            return PortCounters.saturated(port_select, total)
        return PortCountersExtended.wrapped(port_select, total)

    def _write(self, port: int, attribute_id: int, asked: PortCounters | PortCountersExtended) -> None:
        """Set the selected counters to what came, which is zero as a rule."""
        hardware = self._read(port)
        chosen = [name for bit, name in enumerate(asked.SELECT) if asked.counter_select >> bit & 1]
        if isinstance(asked, PortCounters):
            chosen += [name for bit, name in enumerate(asked.SELECT2) if asked.counter_select2 >> bit & 1]
        for name in chosen:
            self._written[port, attribute_id, name] = standard_count(name, hardware) - getattr(asked, name)


class PerformanceClient(ClassClient):
    """Asks agents for counters."""

    management_class = ManagementClass.PERFORMANCE
    class_version = PM_CLASS_VERSION

    def counters_of(self, to: MadAddress, port: int) -> Pending[PortCounters]:
        """A port's 32-bit counters; `ALL_PORTS`: the sum of all ports."""
        return self.ask(
            to, Method.GET, PmAttribute.PORT_COUNTERS, PortCounters, PortCounters(port_select=port)
        )

    def extended_of(self, to: MadAddress, port: int) -> Pending[PortCountersExtended]:
        """A port's 64-bit counters."""
        asked = PortCountersExtended(port_select=port)
        return self.ask(to, Method.GET, PmAttribute.PORT_COUNTERS_EXTENDED, PortCountersExtended, asked)

    def clear(self, to: MadAddress, port: int) -> Pending[PortCounters]:
        """Set all 32-bit counters of a port to zero."""
        asked = PortCounters(port_select=port, counter_select=0xFFFF, counter_select2=0xFF)
        return self.ask(to, Method.SET, PmAttribute.PORT_COUNTERS, PortCounters, asked)

    def clear_extended(self, to: MadAddress, port: int) -> Pending[PortCountersExtended]:
        """Set all 64-bit counters of a port to zero."""
        asked = PortCountersExtended(port_select=port, counter_select=0xFF)
        return self.ask(to, Method.SET, PmAttribute.PORT_COUNTERS_EXTENDED, PortCountersExtended, asked)

    def class_port_info(self, to: MadAddress) -> Pending[ClassPortInfo]:
        """What an agent can do."""
        return self.ask(to, Method.GET, PmAttribute.CLASS_PORT_INFO, ClassPortInfo)
