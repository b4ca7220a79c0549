"""The name service and the subnet manager's interface for drivers (document 000:104, 122): who is there, and how to
get there.

The documents' calls are here under their own names, each the same as a function in this house's style:

======================================== ===========================
`IbaNsGetPlatformGuidListByDeviceType`   `NameService.platform_guids`
`IbaNsGetPortGuidListByPlatformGuid`     `NameService.port_guids`
`IbaNsGetLidListByPortGuid`              `NameService.lids`
`IbaSnGetPathByPortLids`                 `NameService.path_by_port_lids`
======================================== ===========================

A platform is what one system image GUID names: a host with all its adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, TypeVar

from verbena.errors import ManagementError, NotFound
from verbena.fabric.topology import NodeKind
from verbena.management.datagrams import Pending, then
from verbena.management.path_choice import PathChooser
from verbena.management.sa_client import SaClient
from verbena.wire.notice import GmpNotice
from verbena.wire.sa import SaStatus
from verbena.wire.sa_nodes import LidIdentifier, NodeRecord, PortIdentifier, PortInfoRecord
from verbena.wire.sa_records import PathRecord, ServiceRecord
from verbena.wire.smp_attributes import NodeInfo, PortState, Trap

T = TypeVar("T")
U = TypeVar("U")


class DeviceType(Enum):
    """Kinds of platforms that every subnet has; others are the names of services that platforms have registered."""

    HOST = NodeKind.CA
    SWITCH = NodeKind.SWITCH
    ROUTER = NodeKind.ROUTER


class VendorDevice(NamedTuple):
    """Platforms by the vendor's and device's ids in NodeInfo."""

    vendor_id: int
    device_id: int


class PathKind(Enum):
    """Which path between two ports is wanted."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


def _host(node: NodeRecord) -> str:
    """The name of the host, or package of switches, that a node says it belongs to."""
    text = str(node.description)
    return text.split(" ", 1)[0] if node.info.node_type == NodeKind.CA else text


def chain(pending: Pending[T], next_step: Callable[[T], Pending[U]]) -> Pending[U]:
    """What `next_step` asks for when it has an answer."""
    made: Pending[U] = Pending()

    def settle(found: Pending[U]) -> None:
        if found.error is not None:
            made.fail(found.error)
        else:
            made.resolve(found.result())

    def done(found: Pending[T]) -> None:
        if found.error is not None:
            made.fail(found.error)
            return
        try:
            following = next_step(found.result())
        except ManagementError as error:
            made.fail(error)
            return
        following.when_done(settle)

    pending.when_done(done)
    return made


def ready(value: T) -> Pending[T]:
    """An answer that is there."""
    made: Pending[T] = Pending()
    made.resolve(value)
    return made


class NameService:
    """Looks platforms, ports, LIDs and paths up, through a client of subnet administration."""

    def __init__(self, client: SaClient) -> None:
        self._client = client
        self._chooser = PathChooser(client)

    # --- platforms and ports ------------------------------------------------------------------------------------

    def platform_guids(self, device_type: DeviceType | VendorDevice | str) -> Pending[list[int]]:
        """The platforms of a device type, in the order of their GUIDs; an unknown type has none.

        A name, such as "IBLAN", means: those that have registered a service of that name with subnet administration.
        """
        if isinstance(device_type, str):
            return chain(self._client.services(device_type.encode()), self._platforms_of_services)
        if isinstance(device_type, DeviceType):
            template = NodeRecord(info=NodeInfo(node_type=device_type.value))
            found = self._client.get_table(NodeRecord, template, ("info.node_type",))
        else:
            template = NodeRecord(
                info=NodeInfo(vendor_id=device_type.vendor_id, device_id=device_type.device_id)
            )
            found = self._client.get_table(NodeRecord, template, ("info.vendor_id", "info.device_id"))
        return then(found, _platforms)

    def _platforms_of_services(self, services: list[ServiceRecord]) -> Pending[list[int]]:
        if not services:
            return ready([])
        guids = {int.from_bytes(service.gid[8:], "big") for service in services}
        return then(
            self._client.nodes(), lambda nodes: _platforms([n for n in nodes if n.info.port_guid in guids])
        )

    def port_guids(self, platform_guid: int) -> Pending[list[int]]:
        """The ports of a platform, in the order of their GUIDs.  Fails with `NotFound` for an unknown platform."""
        template = NodeRecord(info=NodeInfo(system_image_guid=platform_guid))

        def ports(nodes: list[NodeRecord]) -> list[int]:
            if not nodes:
                raise NotFound(f"no platform has the GUID {platform_guid:#018x}", SaStatus.NO_RECORDS)
            return sorted({node.info.port_guid for node in nodes})

        return then(self._client.get_table(NodeRecord, template, ("info.system_image_guid",)), ports)

    def lids(self, port_guid: int) -> Pending[list[int]]:
        """The LIDs of a port, 2^LMC of them; empty if it is not active.

        Fails with `NotFound` for a GUID that no port with a LID has.
        """
        return then(chain(self._port(port_guid), self._port_info), _active_lids)

    def _port(self, port_guid: int) -> Pending[NodeRecord]:
        template = NodeRecord(info=NodeInfo(port_guid=port_guid))

        def first(nodes: list[NodeRecord]) -> NodeRecord:
            if not nodes:
                raise NotFound(f"no port with a LID has the GUID {port_guid:#018x}", SaStatus.NO_RECORDS)
            return nodes[0]

        return then(self._client.get_table(NodeRecord, template, ("info.port_guid",)), first)

    def _port_info(self, node: NodeRecord) -> Pending[PortInfoRecord]:
        template = PortInfoRecord(PortIdentifier(node.lid, node.info.local_port_num))
        return self._client.get(PortInfoRecord, template, ("id.lid", "id.port"))

    def nodes_of_host(self, name: str) -> Pending[list[int]]:
        """The GUIDs of a host's adapters, or of the switches of a package.  Fails with `NotFound`."""

        def named(nodes: list[NodeRecord]) -> list[int]:
            found = [node for node in nodes if _host(node) == name]
            hosts = [node for node in found if node.info.node_type != NodeKind.SWITCH] or found
            if not hosts:
                raise NotFound(f"no host is called {name!r}", SaStatus.NO_RECORDS)
            return sorted({node.info.node_guid for node in hosts})

        return then(self._client.nodes(), named)

    # --- paths --------------------------------------------------------------------------------------------------

    def path_by_port_lids(
        self, source_lid: int, dest_lid: int, kind: PathKind = PathKind.PRIMARY
    ) -> Pending[PathRecord | None]:
        """The primary path between two ports, or a secondary one that shares no link between switches with it.

        None if there is no such path.  Fails with `NotFound` for a LID that nobody has.
        """

        def both(_: NodeRecord) -> Pending[PathRecord | None]:
            return chain(self._node_at(dest_lid), lambda _: self._between(source_lid, dest_lid, kind))

        return chain(self._node_at(source_lid), both)

    def _node_at(self, lid: int) -> Pending[NodeRecord]:
        if not 1 <= lid <= 0xBFFF:
            raise NotFound(f"LID {lid} is not a unicast LID: 1 to {0xBFFF}")
        return self._client.get(NodeRecord, NodeRecord(LidIdentifier(lid)), ("id.lid",))

    def _between(self, source_lid: int, dest_lid: int, kind: PathKind) -> Pending[PathRecord | None]:
        exact = self._client.paths(slid=source_lid, dlid=dest_lid)

        def chosen(primaries: list[PathRecord]) -> Pending[PathRecord | None]:
            if kind is PathKind.PRIMARY or not primaries:
                return ready(primaries[0] if primaries else None)
            primary = primaries[0]
            others = self._client.paths(sgid=primary.sgid, dgid=primary.dgid)

            def disjoint(paths: list[PathRecord]) -> Pending[PathRecord | None]:
                ways = {(path.slid, path.dlid) for path in paths}
                if ways <= {(primary.slid, primary.dlid)}:  # there is no other: no need to read any tables
                    return ready(None)
                return self._chooser.disjoint(primary, paths)

            return chain(others, disjoint)

        return chain(exact, chosen)

    # --- events -------------------------------------------------------------------------------------------------

    def watch(self, come: Callable[[bytes], None], gone: Callable[[bytes], None]) -> Pending[None]:
        """Let `come` and `gone` be called with the GID of each port that comes into service, or leaves it.

        Within a round trip of the subnet manager's noticing it.  Done when both subscriptions are made; who polls
        `platform_guids` instead sees the same at its next poll.
        """

        def told(notice: GmpNotice) -> None:
            self._chooser.forget()
            (come if notice.trap == Trap.GID_IN_SERVICE else gone)(notice.gid)

        first = self._client.subscribe(told, Trap.GID_IN_SERVICE)
        second = self._client.subscribe(told, Trap.GID_OUT_OF_SERVICE)
        return chain(first.accepted, lambda _: second.accepted)

    IbaNsGetPlatformGuidListByDeviceType = platform_guids
    IbaNsGetPortGuidListByPlatformGuid = port_guids
    IbaNsGetLidListByPortGuid = lids
    IbaSnGetPathByPortLids = path_by_port_lids


def _platforms(nodes: list[NodeRecord]) -> list[int]:
    return sorted({node.info.system_image_guid or node.info.node_guid for node in nodes})


def _active_lids(record: PortInfoRecord) -> list[int]:
    info = record.info
    is_switch = record.id.port == 0
    if not is_switch and info.port_state != PortState.ACTIVE:
        return []
    return list(range(info.lid, info.lid + (1 << info.lmc)))
