"""The configuration manager (CFM): which host holds which I/O controller, alone or with others (document 000:108).

Its database (CMDB) is read and written by datagrams.  A host is known by its system image GUID, and believed only if
the datagram comes from one of its ports.  Who leaves the subnet loses what it held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from verbena.management.class_agent import DELETE, UNSUPPORTED, ClassAgent, ClassClient, Refusal
from verbena.management.datagrams import MadAddress, Pending, Send
from verbena.management.sa_request import MemoryStore, Store
from verbena.management.subnet import Subnet
from verbena.wire import Method
from verbena.wire.dm import CONFIGURATION_CLASS, ConfigurationStatus, Ownership, OwnershipMode
from verbena.wire.errors import DecodeError
from verbena.wire.layout import Layout
from verbena.wire.notice import ClassPortInfo

KIND = "ownership"


@dataclass(slots=True)
class _Held:
    mode: OwnershipMode = OwnershipMode.NONE
    hosts: list[int] = field(default_factory=list)


class ConfigurationManager(ClassAgent):
    """The database, and its agent.

    get_subnet: the subnet manager's present picture.  store: keeps the database.  `add` and `remove` say which
    controllers there are.
    """

    management_class = CONFIGURATION_CLASS

    def __init__(self, send: Send, get_subnet: Callable[[], Subnet], store: Store | None = None) -> None:
        super().__init__(send)
        self._get_subnet = get_subnet
        self._store = MemoryStore() if store is None else store
        self._held: dict[int, _Held] = {}
        for _, raw in self._store.load(KIND):
            try:
                record = Ownership.unpack(raw)
                self._held[record.controller_guid] = _Held(OwnershipMode(record.mode), record.holder_guids)
            except (DecodeError, ValueError):
                self.counters["store.unreadable"] += 1

    def add(self, controller_guid: int) -> None:
        """There is a controller; it keeps its holders if it is known."""
        self._held.setdefault(controller_guid, _Held())
        self._keep(controller_guid)

    def remove(self, controller_guid: int) -> None:
        """A controller is there no more."""
        if self._held.pop(controller_guid, None) is not None:
            self._store.remove(KIND, controller_guid.to_bytes(8, "big"))

    def changed(self) -> None:
        """The subnet manager has a newer picture: release what those hold who have left."""
        present = {(node.system_guid or node.guid) for node in self._get_subnet().nodes.values()}
        for guid, held in self._held.items():
            for host in [host for host in held.hosts if host not in present]:
                self._release(guid, held, host)

    def holders(self, controller_guid: int) -> tuple[OwnershipMode, list[int]]:
        """How, and by which hosts, a controller is held."""
        held = self._held.get(controller_guid, _Held())
        return held.mode, list(held.hosts)

    def handle(
        self, source: MadAddress, method: int, attribute_id: int, modifier: int, body: bytes
    ) -> Layout:
        """Get, Set (claim) and Delete (release) of an ownership."""
        if attribute_id == ClassPortInfo.ATTRIBUTE_ID and method == Method.GET:
            return ClassPortInfo(class_version=self.class_version)
        if attribute_id != Ownership.ATTRIBUTE_ID:
            raise UNSUPPORTED
        asked = Ownership.unpack(body)
        held = self._held.get(asked.controller_guid)
        if held is None:
            raise Refusal(ConfigurationStatus.NO_CONTROLLER)
        if method != Method.GET:
            port = self._get_subnet().port_of_lid(source.lid)
            if port is None or (port.node.system_guid or port.node.guid) != asked.host_guid:
                raise Refusal(ConfigurationStatus.NO_SUCH_HOST)
            if method == DELETE:
                if asked.host_guid not in held.hosts:
                    raise Refusal(ConfigurationStatus.NOT_OWNER)
                self._release(asked.controller_guid, held, asked.host_guid)
            else:
                self._claim(held, asked)
                self._keep(asked.controller_guid)
        return self._record(asked.controller_guid, held, asked.host_guid)

    @staticmethod
    def _claim(held: _Held, asked: Ownership) -> None:
        if asked.mode not in (OwnershipMode.EXCLUSIVE, OwnershipMode.SHARED):
            raise Refusal(ConfigurationStatus.OWNED)
        mode = OwnershipMode(asked.mode)
        others = [host for host in held.hosts if host != asked.host_guid]
        if others and (mode is OwnershipMode.EXCLUSIVE or held.mode is OwnershipMode.EXCLUSIVE):
            raise Refusal(ConfigurationStatus.OWNED)
        if len(others) >= Ownership.MOST_HOLDERS:
            raise Refusal(ConfigurationStatus.OWNED)
        held.mode = mode
        held.hosts = [*others, asked.host_guid]

    def _release(self, guid: int, held: _Held, host: int) -> None:
        held.hosts.remove(host)
        if not held.hosts:
            held.mode = OwnershipMode.NONE
        self._keep(guid)

    def _keep(self, guid: int) -> None:
        self._store.save(KIND, guid.to_bytes(8, "big"), self._record(guid, self._held[guid], 0).pack())

    @staticmethod
    def _record(guid: int, held: _Held, host: int) -> Ownership:
        holders = b"".join(holder.to_bytes(8, "big") for holder in held.hosts)
        return Ownership(guid, host, held.mode, len(held.hosts), holders=holders)


class ConfigurationClient(ClassClient):
    """Claims controllers for a host."""

    management_class = CONFIGURATION_CLASS

    def ownership(self, to: MadAddress, controller_guid: int) -> Pending[Ownership]:
        """Who holds a controller."""
        return self.ask(to, Method.GET, Ownership.ATTRIBUTE_ID, Ownership, Ownership(controller_guid))

    def claim(
        self, to: MadAddress, controller_guid: int, host_guid: int, mode: OwnershipMode
    ) -> Pending[Ownership]:
        """Hold a controller.  Fails with `ManagementError` and `ConfigurationStatus.OWNED` if another host does."""
        asked = Ownership(controller_guid, host_guid, mode)
        return self.ask(to, Method.SET, Ownership.ATTRIBUTE_ID, Ownership, asked)

    def release(self, to: MadAddress, controller_guid: int, host_guid: int) -> Pending[Ownership]:
        """Hold a controller no longer."""
        asked = Ownership(controller_guid, host_guid)
        return self.ask(to, DELETE, Ownership.ATTRIBUTE_ID, Ownership, asked)
