"""The subnet, for programs: ask its administration and wait for the answer, in a call or in a coroutine.

A thin layer over `management.sa_client` and `management.name_service`: each question gives a `Reply`, which is waited
for with `reply.get(timeout)` or awaited.  What is received and timed happens under the adapter's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar
from weakref import WeakSet

from verbena.clock import Clock, Timer
from verbena.errors import ClosedError, InvalidAttributeError, ManagementError, ManagementTimeout
from verbena.management.datagrams import MadAddress, Pending
from verbena.management.name_service import DeviceType, NameService, PathKind, VendorDevice
from verbena.management.sa_client import SaClient
from verbena.verbs.gsi import ANY_PORT, GeneralServices
from verbena.verbs.signal import Signal
from verbena.wire import ManagementClass
from verbena.wire.notice import ALL_TRAPS, GmpNotice
from verbena.wire.sa import Record
from verbena.wire.sa_nodes import NodeRecord, PortInfoRecord
from verbena.wire.sa_records import LinkRecord, MCMemberRecord, PathRecord, ServiceRecord

if TYPE_CHECKING:
    from verbena.verbs.context import Context

T = TypeVar("T")
R = TypeVar("R", bound=Record)
MOST_NOTICES = 4096
"""Notices that wait for their program; beyond it the oldest are forgotten, and counted."""


class LockedClock:
    """A clock whose calls happen under a lock."""

    def __init__(self, clock: Clock, lock: Any) -> None:
        self._clock = clock
        self._lock = lock

    def now(self) -> int:
        return self._clock.now()

    def call_at(self, when_ns: int, function: Callable[[], None]) -> Timer:
        def locked() -> None:
            with self._lock:
                function()

        return self._clock.call_at(when_ns, locked)


class Reply(Generic[T]):
    """An answer of the subnet's administration, there or on its way."""

    def __init__(self, service: SubnetService, pending: Pending[T]) -> None:
        self._service = service
        self._pending = pending
        self._signal = service.new_signal()
        pending.when_done(lambda _: self._signal.notify())

    @property
    def done(self) -> bool:
        return self._pending.done

    def _ready(self) -> bool:
        return self._pending.done or not self._service.open

    def _result(self) -> T:
        if not self._pending.done:
            raise ClosedError("the context was closed before the subnet's administration answered")
        return self._pending.result()

    def get(self, timeout: float | None = None) -> T:
        """The answer, waiting for it.

        Raises `ManagementTimeout` after `timeout` seconds, or when nobody answers; `NotFound` and `ManagementError`
        for what the administration refuses; `ClosedError` when the context is closed.
        """
        if not self._signal.block(self._ready, timeout):
            raise ManagementTimeout("the subnet's administration has not answered in this time")
        return self._result()

    async def _wait(self) -> T:
        await self._signal.until(self._ready)
        return self._result()

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()


class Notices:
    """Notices that a program has asked for.  Made by `SubnetService.notices`; a context manager."""

    def __init__(self, service: SubnetService, trap_number: int) -> None:
        self.forgotten = 0
        self._service = service
        self._signal = service.new_signal()
        self._waiting: deque[GmpNotice] = deque()
        self._open = True
        with service.lock:
            self._subscription = service.client.subscribe(self._arrived, trap_number)
        self.accepted: Reply[None] = Reply(service, self._subscription.accepted)
        """Done when the subscription is made."""

    def _arrived(self, notice: GmpNotice) -> None:
        if len(self._waiting) >= MOST_NOTICES:
            self._waiting.popleft()
            self.forgotten += 1
        self._waiting.append(notice)
        self._signal.notify()

    def _ready(self) -> bool:
        return bool(self._waiting) or not self._open or not self._service.open

    def get(self, timeout: float | None = None) -> GmpNotice:
        """The oldest notice, waiting for one; raises `ManagementTimeout` after `timeout` seconds."""
        if not self._signal.block(self._ready, timeout):
            raise ManagementTimeout("no notice came in this time")
        return self._next()

    def _next(self) -> GmpNotice:
        if not self._waiting:
            raise ClosedError("these notices were cancelled, or the context closed")
        return self._waiting.popleft()

    async def __aiter__(self) -> AsyncIterator[GmpNotice]:
        while True:
            await self._signal.until(self._ready)
            if not self._waiting:
                return
            yield self._waiting.popleft()

    def close(self) -> None:
        """No more notices."""
        if self._open:
            self._open = False
            with self._service.lock:
                self._subscription.cancel()
            self._signal.notify()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SubnetService:
    """The subnet behind a port of an adapter.  Made by `Context.subnet` and `Context.subnet_at`."""

    def __init__(self, context: Context, gsi: GeneralServices, number: int = 1) -> None:
        adapter = context.adapter
        if adapter.native is None:
            raise InvalidAttributeError(
                "this adapter is on Ethernet: only an InfiniBand subnet is administered"
            )
        self.context = context
        self.lock: Any = adapter.engine
        self.open = True
        self._port = adapter.native.port(number)
        self._signals: WeakSet[Signal] = WeakSet()
        clock = LockedClock(adapter.clock, adapter.engine)
        self.client = SaClient(gsi.send, clock, adapter.random, self._administration())
        self.names = NameService(self.client)
        port = ANY_PORT if number == 1 else number
        gsi.serve(ManagementClass.SUBN_ADM, self._receive, responses=True, port=port)
        context.on_close(self.close)

    def _administration(self) -> MadAddress:
        """Where the master is, as it has told the port."""
        return MadAddress(self._port.sm_lid, sl=self._port.sm_sl, port=self._port.number)

    def _receive(self, source: MadAddress, mad: bytes) -> None:
        with self.lock:
            self.client.receive(source, mad)

    def new_signal(self) -> Signal:
        made = Signal(self.context.driver)
        self._signals.add(made)
        return made

    def close(self) -> None:
        """Give up all questions; those who wait are told."""
        with self.lock:
            self.open = False
            self.client.close()
        for signal in list(self._signals):
            signal.notify()

    def _ask(self, question: Callable[[], Pending[T]]) -> Reply[T]:
        with self.lock:
            if not self.open:
                raise ClosedError("the context is closed")
            self.master_changed()
            if not self.client.sa.lid:
                pending: Pending[T] = Pending()
                pending.fail(ManagementError("no subnet manager has configured this port yet: it has no LID"))
            else:
                pending = question()
            return Reply(self, pending)

    def master_changed(self) -> None:
        """If another subnet manager is the master now: ask that one, and subscribe to its notices."""
        with self.lock:
            here = self._administration()
            if here != self.client.sa and self.open:
                self.client.sa = here
                if here.lid:
                    self.client.renew_subscriptions()

    # --- records --------------------------------------------------------------------------------------------------

    def get_table(
        self, kind: type[R], template: R | None = None, names: tuple[str, ...] = ()
    ) -> Reply[list[R]]:
        """All records of a kind that agree with `template` in the components named."""
        return self._ask(lambda: self.client.get_table(kind, template, names))

    def nodes(self) -> Reply[list[NodeRecord]]:
        return self._ask(self.client.nodes)

    def ports(self) -> Reply[list[PortInfoRecord]]:
        return self._ask(self.client.ports)

    def links(self) -> Reply[list[LinkRecord]]:
        return self._ask(self.client.links)

    def paths(self, **components: Any) -> Reply[list[PathRecord]]:
        """The paths with these components, such as ``sgid`` and ``dgid``, ``slid`` and ``dlid``, ``pkey``."""
        return self._ask(lambda: self.client.paths(**components))

    def path(self, **components: Any) -> Reply[PathRecord]:
        """The best of these paths; fails with `NotFound`."""
        return self._ask(lambda: self.client.path(**components))

    def remember_paths(self) -> Reply[None]:
        """Keep answers to path queries until a notice says that they may be wrong."""
        return self._ask(self.client.remember_paths)

    def join(
        self, mgid: bytes, join_state: int = 1, *, port_gid: bytes = b"", **components: Any
    ) -> Reply[MCMemberRecord]:
        """Join a multicast group, by default with this port; see `SaClient.join`."""
        gid = port_gid or self._gid()
        return self._ask(lambda: self.client.join(mgid, gid, join_state, **components))

    def leave(self, mgid: bytes, join_state: int = 1, *, port_gid: bytes = b"") -> Reply[MCMemberRecord]:
        """Leave a multicast group."""
        gid = port_gid or self._gid()
        return self._ask(lambda: self.client.leave(mgid, gid, join_state))

    def register(self, record: ServiceRecord) -> Reply[ServiceRecord]:
        """Register a service, or renew its lease; a GID of zeros is this port's."""
        named = record if any(record.gid) else replace(record, gid=self._gid())
        return self._ask(lambda: self.client.register(named))

    def unregister(self, record: ServiceRecord) -> Reply[ServiceRecord]:
        """Remove a service."""
        return self._ask(lambda: self.client.unregister(record))

    def services(self, name: str) -> Reply[list[ServiceRecord]]:
        """Who offers the service of a name."""
        return self._ask(lambda: self.client.services(name.encode()))

    def notices(self, trap_number: int = ALL_TRAPS) -> Notices:
        """Subscribe to the notices of a number, or to all."""
        return Notices(self, trap_number)

    def _gid(self) -> bytes:
        return bytes(self._port.gids[0].raw)

    # --- names ----------------------------------------------------------------------------------------------------

    def platform_guids(self, device_type: DeviceType | VendorDevice | str) -> Reply[list[int]]:
        """The platforms of a device type; see `NameService.platform_guids`."""
        return self._ask(lambda: self.names.platform_guids(device_type))

    def port_guids(self, platform_guid: int) -> Reply[list[int]]:
        """The ports of a platform; fails with `NotFound`."""
        return self._ask(lambda: self.names.port_guids(platform_guid))

    def lids(self, port_guid: int) -> Reply[list[int]]:
        """The LIDs of a port; fails with `NotFound`."""
        return self._ask(lambda: self.names.lids(port_guid))

    def path_by_port_lids(
        self, source_lid: int, dest_lid: int, kind: PathKind = PathKind.PRIMARY
    ) -> Reply[PathRecord | None]:
        """The primary or the secondary path between two ports; None if there is none."""
        return self._ask(lambda: self.names.path_by_port_lids(source_lid, dest_lid, kind))

    def nodes_of_host(self, name: str) -> Reply[list[int]]:
        """The GUIDs of a host's adapters; fails with `NotFound`."""
        return self._ask(lambda: self.names.nodes_of_host(name))

    IbaNsGetPlatformGuidListByDeviceType = platform_guids
    IbaNsGetPortGuidListByPlatformGuid = port_guids
    IbaNsGetLidListByPortGuid = lids
    IbaSnGetPathByPortLids = path_by_port_lids
