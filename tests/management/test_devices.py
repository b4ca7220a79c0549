"""Counters, I/O units, ownership of controllers, and the bus driver that puts them together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from management.sa_net import SaNet, redundant
from verbena.errors import InvalidAttributeError, InvalidStateError, ManagementError, ManagementTimeout
from verbena.management.bus_driver import BusDriver, ObjectKind, PlugAndPlayObject
from verbena.management.class_agent import ClassAgent
from verbena.management.configuration_manager import ConfigurationClient, ConfigurationManager
from verbena.management.datagrams import MadAddress
from verbena.management.device_management import DeviceManagementClient, IOUnit
from verbena.management.performance import PerformanceAgent, PerformanceClient
from verbena.management.sa_request import MemoryStore
from verbena.wire import Mad
from verbena.wire.dm import (
    DEVICE_MANAGEMENT_CAPABILITY,
    ConfigurationStatus,
    IOControllerProfile,
    IOUnitInfo,
    Ownership,
    OwnershipMode,
)
from verbena.wire.pm import ALL_PORTS, PmCapability, PortCounters, pm_mad
from wire.samples import layouts

# --- performance management -------------------------------------------------------------------------------------


class Counting:
    """An agent's and a client's datagrams on a network without delay, and hardware that counts."""

    def __init__(self) -> None:
        self.net = SaNet(redundant())
        self.hardware: dict[int, dict[str, int]] = {1: {}, 2: {}}
        self.agent = PerformanceAgent(
            lambda to, data: self.client.receive(MadAddress(9), data),
            (1, 2),
            lambda port: self.hardware[port],
        )
        self.client = PerformanceClient(
            lambda to, data: self.agent.receive(MadAddress(5), data), self.net.clock, Random(1)
        )
        self.to = MadAddress(9)

    def counters(self, port: int) -> PortCounters:
        return self.net.wait(self.client.counters_of(self.to, port))


def test_counters_saturate_and_extended_ones_do_not() -> None:
    lab = Counting()
    lab.hardware[1] = {"xmit_bytes": 40 << 32, "xmit_packets": 7, "flit_errors": 100_000, "link_downed": 3}
    lab.hardware[1] |= {"xmit_wait_ns": 55, "drop_hoq": 2, "drop_lifetime": 3, "drop_pkey": 4, "drop_vl15": 5}
    found = lab.counters(1)
    assert (found.xmit_data, found.xmit_pkts, found.symbol_error) == (0xFFFFFFFF, 7, 0xFFFF)
    assert (found.link_downed, found.xmit_wait, found.xmit_discards) == (3, 55, 5)
    assert (found.rcv_constraint_errors, found.vl15_dropped) == (4, 5)
    wide = lab.net.wait(lab.client.extended_of(lab.to, 1))
    assert (wide.xmit_data, wide.unicast_xmit_pkts) == (10 << 32, 7)


def test_all_ports_together_and_none_such() -> None:
    lab = Counting()
    lab.hardware = {1: {"rcv_packets": 3}, 2: {"rcv_packets": 4}}
    assert lab.counters(ALL_PORTS).rcv_pkts == 7
    assert lab.counters(2).rcv_pkts == 4
    for port in (0, 3):
        with pytest.raises(ManagementError) as caught:
            lab.counters(port)
        assert caught.value.status == 0x001C
    mask = lab.net.wait(lab.client.class_port_info(lab.to)).capability_mask
    assert mask & PmCapability.ALL_PORT_SELECT
    assert mask & PmCapability.XMIT_WAIT


def test_clearing_is_of_what_is_selected_and_of_one_set() -> None:
    lab = Counting()
    lab.hardware[1] = {"rcv_packets": 10, "xmit_packets": 20, "xmit_wait_ns": 30}
    select = 1 << PortCounters.SELECT.index("rcv_pkts")
    asked = PortCounters(port_select=1, counter_select=select)
    lab.agent.receive(MadAddress(5), pm_mad(2, 0x12, asked.pack()).pack())
    assert (lab.counters(1).rcv_pkts, lab.counters(1).xmit_pkts) == (0, 20)
    lab.hardware[1]["rcv_packets"] = 15
    assert lab.counters(1).rcv_pkts == 5
    assert lab.net.wait(lab.client.extended_of(lab.to, 1)).rcv_pkts == 15
    lab.net.wait(lab.client.clear(lab.to, 1))
    assert (lab.counters(1).xmit_pkts, lab.counters(1).xmit_wait) == (0, 0)
    lab.net.wait(lab.client.clear_extended(lab.to, ALL_PORTS))
    assert lab.net.wait(lab.client.extended_of(lab.to, 1)).rcv_pkts == 0
    lab.hardware[1] = {"rcv_packets": 2}  # the hardware was reset
    assert lab.counters(1).rcv_pkts == 2


def test_other_requests_are_refused() -> None:
    lab = Counting()
    answers: list[Mad] = []
    agent = PerformanceAgent(lambda to, data: answers.append(Mad.unpack(data)), (1,), lambda port: {})
    for fields, status in (
        ({"class_version": 2}, 0x0004),
        ({"method": 0x7A}, 0x0008),
        ({"attribute_id": 0x99}, 0x000C),
        ({"method": 0x15}, 0x000C),
    ):
        agent.receive(MadAddress(5), replace(pm_mad(1, 0x12, PortCounters(0, 1).pack()), **fields).pack())
        assert answers.pop().status == status
    assert lab.net.wait(lab.client.counters_of(lab.to, 1)).port_select == 1


# --- I/O units --------------------------------------------------------------------------------------------------

DISK = IOControllerProfile(guid=0xD15C, vendor_id=0x123456, device_id=7, id_string=b"disk")
NIC = IOControllerProfile(guid=0x21C, vendor_id=0x123456, device_id=8, id_string=b"ethernet")


@pytest.mark.parametrize("kind", [IOUnitInfo, IOControllerProfile, Ownership], ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_attributes_round_trip(kind: Any, data: st.DataObject) -> None:
    value = data.draw(layouts(kind))
    assert len(value.pack()) == kind.SIZE <= 192
    assert kind.unpack(value.pack()) == value


@given(st.integers(1, 255), st.sets(st.integers(1, 255)))
def test_slots(slots: int, present: set[int]) -> None:
    info = IOUnitInfo(max_controllers=slots, controllers=IOUnitInfo.packed(present, slots))
    assert info.present == sorted(slot for slot in present if slot <= slots)


class Fabric(SaNet):
    """A subnet with an I/O unit at h4, and a configuration manager at the subnet manager's port."""

    def __init__(self) -> None:
        super().__init__(redundant())
        self.agents: dict[int, list[ClassAgent]] = {}
        self.classes: dict[tuple[int, int], Callable[[MadAddress, bytes], None]] = {}
        self.io = self.lid("h4")
        port = self.port("h4")
        port.info = replace(
            port.info, capability_mask=port.info.capability_mask | DEVICE_MANAGEMENT_CAPABILITY
        )
        self.unit = IOUnit(lambda to, data: self.carry(self.io, to.lid, data), {1: DISK, 3: NIC})
        self.store = MemoryStore()
        self.cfm = self.make_cfm()
        self.cfm.add(DISK.guid)
        self.cfm.add(NIC.guid)

    def make_cfm(self) -> ConfigurationManager:
        made = ConfigurationManager(
            lambda to, data: self.carry(self.sa_lid, to.lid, data), lambda: self.subnet, self.store
        )
        self.agents[self.sa_lid] = [made]
        self.agents[self.io] = [self.unit]
        return made

    def arrive(self, source: int, dest: int, data: bytes) -> None:
        if data[1] == 3:
            super().arrive(source, dest, data)
            return
        if data[3] & 0x80:
            self.classes[dest, data[1]](MadAddress(source), data)
            return
        for agent in self.agents.get(dest, []):
            if agent.management_class == data[1]:
                agent.receive(MadAddress(source), data)

    def class_client(self, kind: Any, name: str) -> Any:
        lid = self.lid(name)
        made = kind(lambda to, data: self.carry(lid, to.lid, data), self.clock, Random(lid))
        self.classes[lid, kind.management_class] = made.receive
        return made


def test_an_io_unit_tells_what_it_has() -> None:
    net = Fabric()
    client: DeviceManagementClient = net.class_client(DeviceManagementClient, "h1")
    to = MadAddress(net.io)
    assert net.wait(client.controllers(to)) == {1: replace(DISK, id_string=DISK.id_string.ljust(64, b"\0")),
                                                3: replace(NIC, id_string=NIC.id_string.ljust(64, b"\0"))}  # fmt: skip
    before = net.wait(client.unit(to)).change_id
    net.unit.remove(1)
    assert net.wait(client.unit(to)).change_id != before
    for slot, status in ((1, 0x0100), (0, 0x001C), (17, 0x001C)):
        with pytest.raises(ManagementError) as caught:
            net.wait(client.controller(to, slot))
        assert caught.value.status == status
    for slot in (0, 3, 17):
        with pytest.raises(InvalidAttributeError, match="slot"):
            net.unit.install(slot, DISK)
    with pytest.raises(ManagementTimeout):
        net.wait(client.unit(MadAddress(net.lid("h3"))))


# --- the configuration manager ----------------------------------------------------------------------------------


@pytest.mark.requirement("SUB-13")
def test_ownership_of_controllers() -> None:
    """Host 1 claims alone, host 2's claim is refused; shared, both attach; what is released is free."""
    net = Fabric()
    clients = {name: net.class_client(ConfigurationClient, name) for name in ("h1", "h2", "h3")}
    to = MadAddress(net.sa_lid)
    host = {name: net.port(name).node.system_guid for name in clients}

    def claim(name: str, mode: OwnershipMode, guid: int = DISK.guid, who: str = "") -> int:
        try:
            net.wait(clients[name].claim(to, guid, host[who or name], mode))
        except ManagementError as error:
            return error.status
        return 0

    def release(name: str) -> int:
        try:
            net.wait(clients[name].release(to, DISK.guid, host[name]))
        except ManagementError as error:
            return error.status
        return 0

    alone, shared, owned = OwnershipMode.EXCLUSIVE, OwnershipMode.SHARED, ConfigurationStatus.OWNED
    assert claim("h1", alone) == 0
    assert claim("h1", alone) == 0  # asked again: its answer was lost
    assert claim("h2", alone) == owned
    assert claim("h2", shared) == owned
    assert net.wait(clients["h2"].ownership(to, DISK.guid)).holder_guids == [host["h1"]]
    assert release("h2") == ConfigurationStatus.NOT_OWNER
    assert release("h1") == 0
    assert claim("h2", shared) == claim("h3", shared) == 0
    assert claim("h1", alone) == owned
    assert claim("h2", alone) == owned  # it has company
    assert net.wait(clients["h1"].ownership(to, DISK.guid)).holder_guids == [host["h2"], host["h3"]]
    assert release("h3") == 0
    assert claim("h2", alone) == 0
    assert claim("h1", shared, who="h2") == ConfigurationStatus.NO_SUCH_HOST
    assert claim("h1", shared, guid=99) == ConfigurationStatus.NO_CONTROLLER
    assert claim("h1", OwnershipMode.NONE, guid=NIC.guid) == owned
    net.cfm = net.make_cfm()  # started again on the same database
    assert net.cfm.holders(DISK.guid) == (alone, [host["h2"]])
    assert claim("h1", shared) == owned
    net.replace_subnet(absent={"h2"})
    net.cfm.changed()
    assert net.cfm.holders(DISK.guid) == (OwnershipMode.NONE, [])
    assert claim("h1", alone) == 0
    net.cfm.remove(DISK.guid)
    assert claim("h1", alone) == ConfigurationStatus.NO_CONTROLLER


# --- the bus driver ---------------------------------------------------------------------------------------------


@dataclass
class Port:
    number: int
    guid: int
    lid: int = 0
    lmc: int = 0
    state: int = 1


class Loaded:
    """A driver that notes its life."""

    life: list[tuple[str, int]] = []

    def __init__(self, bus: BusDriver, found: PlugAndPlayObject) -> None:
        self.found = found
        self.info = bus.IbaBdGetLocalEndPointInfoByPdo(found) if found.port is not None else None
        self.life.append(("load", found.guid))

    def unload(self) -> None:
        self.life.append(("unload", self.found.guid))


@pytest.fixture(autouse=True)
def _no_drivers() -> None:
    Loaded.life = []


@pytest.mark.requirement("SUB-10")
def test_a_driver_learns_its_port() -> None:
    bus = BusDriver(1)
    port = Port(2, 0xAB, lid=8, lmc=2, state=4)
    bus.register(ObjectKind.PORT, 5, 6, Loaded)
    bus.add_adapter(5, 6, [port])
    driver = bus.objects[0].driver
    assert isinstance(driver, Loaded)
    assert driver.info is not None
    assert (driver.info.port_number, driver.info.port_guid, driver.info.lid, driver.info.lid_mask) == (
        2,
        0xAB,
        8,
        3,
    )
    stale = bus.objects[0]
    bus.remove_adapter([port])
    with pytest.raises(InvalidStateError, match="stale"):
        bus.get_local_endpoint_info_by_pdo(stale)
    bus.add_adapter(5, 6, [port])
    with pytest.raises(InvalidStateError, match="stale"):
        bus.get_local_endpoint_info_by_pdo(stale)
    controller = PlugAndPlayObject(ObjectKind.CONTROLLER, 1, 2, 3)
    with pytest.raises(InvalidStateError, match="stale"):
        bus.get_local_endpoint_info_by_pdo(controller)


@pytest.mark.requirement("SUB-12")
def test_drivers_come_and_go_with_their_ports() -> None:
    """An instance for each active port; of an unknown id none: its object stays unclaimed."""
    bus = BusDriver(1)
    one, two, other = Port(1, 0xA1, lid=3, state=4), Port(2, 0xA2), Port(1, 0xB1, lid=9, state=4)
    bus.add_adapter(5, 6, [one, two])
    bus.add_adapter(5, 7, [other])
    assert Loaded.life == []
    bus.register(ObjectKind.PORT, 5, 6, Loaded)
    assert Loaded.life == [("load", 0xA1)]
    two.state, two.lid = 4, 4
    bus.port_changed(two)
    bus.port_changed(two)
    assert Loaded.life[1:] == [("load", 0xA2)]
    one.state = 1
    bus.port_changed(one)
    assert Loaded.life[2:] == [("unload", 0xA1)]
    one.state = 4
    bus.port_changed(one)
    assert Loaded.life[3:] == [("load", 0xA1)]
    assert [found.driver is None for found in bus.objects] == [False, False, True]
    with pytest.raises(InvalidStateError, match="registered"):
        bus.register(ObjectKind.PORT, 5, 6, Loaded)
    with pytest.raises(InvalidAttributeError, match="already"):
        bus.add_adapter(5, 6, [one])
    bus.unregister(ObjectKind.PORT, 5, 6)
    assert Loaded.life[4:] == [("unload", 0xA1), ("unload", 0xA2)]
    bus.port_changed(Port(1, 0xFFFF))
    bus.close()
    assert bus.counters == {"loaded": 3, "unloaded": 3}


@pytest.mark.requirement("SUB-12")
def test_controllers_of_the_subnet_become_objects() -> None:
    """Two hosts look for the same disk: the first has it, the second when the first has let it go."""
    net = Fabric()

    def bus_of(name: str) -> BusDriver:
        return BusDriver(
            net.port(name).node.system_guid,
            sa=net.client(name),
            devices=net.class_client(DeviceManagementClient, name),
            configuration=net.class_client(ConfigurationClient, name),
            manager=MadAddress(net.sa_lid),
        )

    one, two = bus_of("h1"), bus_of("h2")
    for bus in (one, two):
        bus.register(ObjectKind.CONTROLLER, DISK.vendor_id, DISK.device_id, Loaded)
    one.watch()
    net.run()
    assert sorted(found.guid for found in one.objects) == sorted([DISK.guid, NIC.guid])
    assert Loaded.life == [("load", DISK.guid)]
    unclaimed = next(found for found in one.objects if found.guid == NIC.guid)
    assert unclaimed.driver is None
    assert net.wait(two.rescan()) == 2
    net.run()
    assert (two.counters["refused"], two.counters["loaded"]) == (1, 0)
    one.unregister(ObjectKind.CONTROLLER, DISK.vendor_id, DISK.device_id)
    net.run()
    assert Loaded.life[1:] == [("unload", DISK.guid)]
    net.wait(two.rescan())
    net.run()
    assert Loaded.life[2:] == [("load", DISK.guid)]
    net.unit.remove(1)
    assert net.wait(two.rescan()) == 1
    assert Loaded.life[3:] == [("unload", DISK.guid)]
    net.replace_subnet(absent={"h4"})
    net.run()  # h1 is told, and looks
    assert one.objects == []
    assert unclaimed.stale


@pytest.mark.parametrize("gone", ["driver", "controller"])
def test_a_claim_that_is_granted_too_late_is_given_back(gone: str) -> None:
    """The driver is unregistered, or the bus closed, while the claim is on its way."""
    net = Fabric()
    bus = BusDriver(
        net.port("h1").node.system_guid,
        sa=net.client("h1"),
        devices=net.class_client(DeviceManagementClient, "h1"),
        configuration=net.class_client(ConfigurationClient, "h1"),
        manager=MadAddress(net.sa_lid),
    )
    bus.register(ObjectKind.CONTROLLER, DISK.vendor_id, DISK.device_id, Loaded)
    assert net.wait(bus.rescan()) == 2  # the claim is sent, and not answered yet
    if gone == "driver":
        bus.unregister(ObjectKind.CONTROLLER, DISK.vendor_id, DISK.device_id)
    else:
        bus.close()
    net.run(1_500)
    assert net.cfm.holders(DISK.guid)[0] is OwnershipMode.EXCLUSIVE
    net.run()
    assert Loaded.life == []
    assert net.cfm.holders(DISK.guid) == (OwnershipMode.NONE, [])


# --- any bytes --------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(0, 255), st.integers(0, 0x1F), st.binary(min_size=256, max_size=256)),
        max_size=30,
    )
)
def test_any_datagram_is_answered_or_counted(datagrams: list[tuple[int, int, bytes]]) -> None:
    net = Fabric()
    answers: list[bytes] = []
    agents: list[ClassAgent] = [
        PerformanceAgent(lambda to, data: answers.append(data), (1, 2), lambda port: {}),
        IOUnit(lambda to, data: answers.append(data), {1: DISK}),
        ConfigurationManager(lambda to, data: answers.append(data), lambda: net.subnet),
    ]
    for method, attribute, raw in datagrams:
        for agent in agents:
            data = bytearray(raw)
            data[0:4] = bytes((1, agent.management_class, agent.class_version, method))
            data[16:18] = attribute.to_bytes(2, "big")
            agent.receive(MadAddress(3), bytes(data))
            agent.receive(MadAddress(3), raw)
            agent.receive(MadAddress(3), raw[: raw[0]])
    for agent in agents:
        drops = sum(n for name, n in agent.counters.items() if name.startswith("dropped."))
        assert agent.counters["received"] == agent.counters["answered"] + drops == 3 * len(datagrams)
    assert len(answers) == sum(agent.counters["answered"] for agent in agents)
