"""Service records: who offers what, registered for as long as its lease lasts (IBA vol. 1, 15.2.5.14).

A service is known by its number, its port and its partition.  It is registered by that port (or a trusted request), and
changed only by those who know its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from verbena.clock import Clock, Timer
from verbena.management.sa_request import Denied, SaRequest, Store
from verbena.management.subnet_view import SubnetIndex, in_partition, pkeys_of
from verbena.wire.errors import DecodeError
from verbena.wire.sa import SaStatus, matches
from verbena.wire.sa_records import FOREVER, ServiceRecord

KIND = "service"
MOST_SERVICES = 16_384
MOST_OF_A_PORT = 256
SECOND = 1_000_000_000
Key = tuple[int, bytes, int]


@dataclass(slots=True)
class _Service:
    record: ServiceRecord
    ends_ns: int | None


def _key(record: ServiceRecord) -> Key:
    return record.service_id, record.gid, record.pkey


def _packed(key: Key) -> bytes:
    return key[0].to_bytes(8, "big") + key[1] + key[2].to_bytes(2, "big")


class Services:
    """The services of one subnet.  `lost`: services in the store that could not be read."""

    def __init__(self, index: SubnetIndex, clock: Clock, store: Store) -> None:
        self._index = index
        self._clock = clock
        self._store = store
        self._services: dict[Key, _Service] = {}
        self._timer: Timer | None = None
        self.lost = 0
        for _, raw in store.load(KIND):
            try:
                self._put(ServiceRecord.unpack(raw))
            except DecodeError:
                self.lost += 1
        self._watch()

    def __len__(self) -> int:
        return len(self._services)

    def find(self, request: SaRequest) -> Iterator[ServiceRecord]:
        """The services that match, without their keys if the request is not trusted."""
        names = tuple(name for name in request.names if name != "lease")
        for service in list(self._services.values()):
            record = service.record
            if request.trusted or in_partition(request.pkeys, record.pkey):
                shown = self._as_shown(service, request.trusted)
                if matches(shown, request.template, names):
                    yield shown

    def _as_shown(self, service: _Service, trusted: bool) -> ServiceRecord:
        lease = FOREVER
        if service.ends_ns is not None:
            lease = max(0, -(-(service.ends_ns - self._clock.now()) // SECOND))
        return replace(service.record, lease=lease, key=service.record.key if trusted else bytes(16))

    def register(self, request: SaRequest) -> ServiceRecord:
        """Add a service, or renew it; raises `Denied`."""
        record = self._checked(request)
        if "lease" not in request.names:
            record = replace(record, lease=FOREVER)
        if record.lease == 0:
            raise Denied(SaStatus.REQUEST_INVALID)
        old = self._services.get(_key(record))
        if old is not None:
            self._check_key(old.record, record, request)
        elif (
            len(self._services) >= MOST_SERVICES
            or sum(key[1] == record.gid for key in self._services) >= MOST_OF_A_PORT
        ):
            raise Denied(SaStatus.NO_RESOURCES)
        self._put(record)
        self._store.save(KIND, _packed(_key(record)), record.pack())
        self._watch()
        return record

    def unregister(self, request: SaRequest) -> ServiceRecord:
        """Remove a service; raises `Denied`."""
        wanted = self._checked(request)
        old = self._services.get(_key(wanted))
        if old is None:
            raise Denied(SaStatus.NO_RECORDS)
        self._check_key(old.record, wanted, request)
        self._remove(_key(wanted))
        return replace(old.record, key=bytes(16))

    def _checked(self, request: SaRequest) -> ServiceRecord:
        record = request.template
        assert isinstance(record, ServiceRecord)
        if not {"service_id", "gid", "pkey"} <= set(request.names):
            raise Denied(SaStatus.INSUFFICIENT_COMPONENTS)
        end = self._index.by_gid(record.gid)
        if end is None:
            raise Denied(SaStatus.INVALID_GID)
        if not in_partition(pkeys_of(end), record.pkey):
            raise Denied(SaStatus.REQUEST_INVALID)
        if not request.trusted and end.guid != request.end.guid:
            raise Denied(SaStatus.DENIED)
        return record

    @staticmethod
    def _check_key(old: ServiceRecord, new: ServiceRecord, request: SaRequest) -> None:
        if not request.trusted and any(old.key) and old.key != new.key:
            raise Denied(SaStatus.DENIED)

    def _put(self, record: ServiceRecord) -> None:
        ends = None if record.lease == FOREVER else self._clock.now() + record.lease * SECOND
        self._services[_key(record)] = _Service(record, ends)

    def _remove(self, key: Key) -> None:
        del self._services[key]
        self._store.remove(KIND, _packed(key))

    def drop_port(self, gid: bytes) -> None:
        """A port has left the subnet: its services have, too."""
        for key in [key for key in self._services if key[1] == gid]:
            self._remove(key)

    def _watch(self) -> None:
        """Ring when the next lease ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ends = [service.ends_ns for service in self._services.values() if service.ends_ns is not None]
        if ends:
            self._timer = self._clock.call_at(min(ends), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._clock.now()
        for key, service in list(self._services.items()):
            if service.ends_ns is not None and service.ends_ns <= now:
                self._remove(key)
        self._watch()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
