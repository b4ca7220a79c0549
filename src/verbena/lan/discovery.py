"""Who else is there: the name service and the subnet driver asked in the order of figure 5 (document 000:104, 122).

The calls go by the documents' names, and are logged, so that the order of a driver's initialization can be read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, NamedTuple

from verbena.errors import NotFound
from verbena.lan.config import SECOND, LanConfig
from verbena.lan.steps import Steps
from verbena.management.datagrams import Pending
from verbena.management.name_service import PathKind
from verbena.management.sa_client import Subscription
from verbena.verbs.subnet import SubnetService
from verbena.wire.notice import GmpNotice
from verbena.wire.sa_nodes import LidIdentifier, NodeRecord
from verbena.wire.sa_records import PathRecord, ServiceRecord
from verbena.wire.smp_attributes import Trap

MOST_CALLS = 4096
LEASE_ROUNDS = 4
"""A registration lasts for so many looks at the list: a node that has gone is forgotten after that."""


def _tell(told: Callable[[bytes], None], notice: GmpNotice) -> None:
    told(notice.gid)


class Found(NamedTuple):
    """A port that may have a driver of this LAN."""

    platform: int
    port_guid: int
    lid: int
    lids: int


class Paths(NamedTuple):
    """The ways to a port, as subnet administration tells them."""

    primary: PathRecord | None
    secondary: PathRecord | None


class Directory:
    """Questions of one card to subnet administration.

    `calls`: the names of the documents' calls that were made, oldest first, with their arguments.
    """

    def __init__(self, subnet: SubnetService, config: LanConfig, port_gid: bytes) -> None:
        self.calls: deque[tuple[str, tuple[Any, ...]]] = deque(maxlen=MOST_CALLS)
        self.platforms: list[int] = []
        self.subnet = subnet
        self._config = config
        self._gid = port_gid
        self._watching: list[Subscription] = []

    def call(self, name: str, *arguments: Any) -> Pending[Any]:
        """One of the named calls; its answer comes later."""
        self.calls.append((name, arguments))
        self.subnet.master_changed()
        answer: Pending[Any] = getattr(self.subnet.names, name)(*arguments)
        return answer

    def look(self, own: range, found: list[Found], wanted: Callable[[list[int]], list[int]] = list) -> Steps:
        """Append to `found` the ports of the platforms that have this LAN; raises `ManagementError`.

        own: the LIDs of this card's port, which is left out.  wanted: which platforms are asked for their ports.
        """
        self.platforms = yield self.call("IbaNsGetPlatformGuidListByDeviceType", self._config.service_name)
        for platform in wanted(self.platforms):
            try:
                ports = yield self.call("IbaNsGetPortGuidListByPlatformGuid", platform)
            except NotFound:
                continue  # it has left meanwhile
            for port_guid in ports:
                try:
                    lids = yield self.call("IbaNsGetLidListByPortGuid", port_guid)
                except NotFound:
                    continue
                if lids and lids[0] not in own:
                    found.append(Found(platform, port_guid, lids[0], len(lids)))

    def paths(self, own_lid: int, lid: int, answer: Callable[[Paths], None]) -> Steps:
        """Tell `answer` the primary and the secondary path to a LID; raises `ManagementError`, `NotFound`."""
        primary = yield self.call("IbaSnGetPathByPortLids", own_lid, lid, PathKind.PRIMARY)
        secondary = yield self.call("IbaSnGetPathByPortLids", own_lid, lid, PathKind.SECONDARY)
        answer(Paths(primary, secondary))

    def paths_if_there(self, own_lid: int, lid: int, answer: Callable[[Paths], None]) -> Steps:
        """`paths`, which says nothing of a LID that nobody has any more."""
        try:
            yield from self.paths(own_lid, lid, answer)
        except NotFound:
            return

    def platform_of(self, lid: int) -> Generator[Pending[Any], Any, int]:
        """The platform whose port has a LID; raises `ManagementError`, `NotFound`."""
        node: NodeRecord = yield self.subnet.client.get(
            NodeRecord, NodeRecord(LidIdentifier(lid)), ("id.lid",)
        )
        return node.info.system_image_guid or node.info.node_guid

    def watch(self, come: Callable[[bytes], None], gone: Callable[[bytes], None]) -> None:
        """Events: ports that come into service, and that leave it; until `close`."""
        for trap, told in ((Trap.GID_IN_SERVICE, come), (Trap.GID_OUT_OF_SERVICE, gone)):
            tell = partial(_tell, told)
            self._watching.append(self.subnet.client.subscribe(tell, trap))

    def close(self) -> None:
        """No more events."""
        for subscription in self._watching:
            subscription.cancel()
        self._watching.clear()

    def register(self) -> Pending[ServiceRecord]:
        """Be found under the LAN's name, for a while."""
        seconds = max(2, LEASE_ROUNDS * self._config.query_interval_ns // SECOND)
        return self.subnet.client.register(
            self._record(seconds if self._config.query_interval_ns else 0xFFFFFFFF)
        )

    def unregister(self) -> Pending[ServiceRecord]:
        """Be found no more."""
        return self.subnet.client.unregister(self._record(0xFFFFFFFF))

    def _record(self, lease: int) -> ServiceRecord:
        name = self._config.service_name.encode()
        return ServiceRecord(
            service_id=self._config.service_id, gid=self._gid, pkey=0xFFFF, lease=lease, name=name
        )
