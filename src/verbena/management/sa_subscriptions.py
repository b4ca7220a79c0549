"""Subscriptions to notices, and the reports that are sent to the subscribers (IBA vol. 1, 13.4.8.3, 13.4.11, 15.4.5).

A report is repeated until it is answered.  Subscriptions are kept in the store, and end with their subscriber's port.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from verbena.clock import Clock, Timer
from verbena.management.datagrams import MadAddress, Send
from verbena.management.sa_request import Denied, SaRequest, Store
from verbena.management.subnet_view import SubnetIndex, in_partition, pkeys_of, share_partition
from verbena.wire import GSI_QP
from verbena.wire.errors import DecodeError
from verbena.wire.notice import ALL_LIDS, ALL_PRODUCERS, ALL_TRAPS, ALL_TYPES, GmpNotice, InformInfo
from verbena.wire.rmpp import RmppMad
from verbena.wire.sa import SaHeader, SaMethod, SaStatus, matches, sa_mad, sa_message
from verbena.wire.sa_nodes import InformInfoRecord, NoticeRecord, NumberIdentifier, SubscriberIdentifier
from verbena.wire.smp_attributes import Trap

if TYPE_CHECKING:
    from random import Random

KIND = "subscription"
MOST_SUBSCRIPTIONS = 16_384
MOST_OF_A_PORT = 64
MOST_WAITING = 256
"""Reports to one subscriber that wait for their answers; beyond it the newest are lost, and counted."""
REPORT_NS = 250_000_000
REPORT_TRIES = 5
LOG = 1024
"""Notices that can be read back."""
SECOND = 1_000_000_000
ABOUT_GIDS = {Trap.GID_IN_SERVICE, Trap.GID_OUT_OF_SERVICE, Trap.MCG_CREATED, Trap.MCG_DELETED}


@dataclass(eq=False, slots=True)
class _Subscription:
    id: SubscriberIdentifier
    info: InformInfo
    qpn: int
    trusted: bool = False
    waiting: int = 0

    def wants(self, notice: GmpNotice) -> bool:
        """Whether a notice is one of those that were asked for."""
        info = self.info
        if any(info.gid):
            if info.gid != notice.issuer_gid:
                return False
        elif info.lid_begin != ALL_LIDS and not (
            info.lid_begin <= notice.issuer_lid <= max(info.lid_begin, info.lid_end)
        ):
            return False
        return (
            bool(info.is_generic) == notice.generic
            and info.type in (ALL_TYPES, notice.type)
            and info.trap_number in (ALL_TRAPS, notice.trap)
            and info.producer_type in (ALL_PRODUCERS, notice.producer)
        )


@dataclass(eq=False, slots=True)
class _Report:
    subscription: _Subscription
    to: MadAddress
    data: bytes
    tries: int = REPORT_TRIES
    timer: Timer | None = field(default=None)


class Subscriptions:
    """The subscriptions of one subnet, and the log of its notices.

    `counters`: reports sent, answered, and lost (given up, or never sent for want of room).
    """

    def __init__(self, index: SubnetIndex, clock: Clock, random: Random, send: Send, store: Store) -> None:
        self.counters: Counter[str] = Counter()
        self._index = index
        self._clock = clock
        self._random = random
        self._send = send
        self._store = store
        self._subscriptions: dict[tuple[bytes, int], _Subscription] = {}
        self._reports: dict[int, _Report] = {}
        self._log: deque[NoticeRecord] = deque(maxlen=LOG)
        self._number = 0
        for key, raw in store.load(KIND):
            self._restore(key, raw)

    def __len__(self) -> int:
        return len(self._subscriptions)

    def _restore(self, key: bytes, raw: bytes) -> None:
        try:
            record = InformInfoRecord.unpack(raw)
        except DecodeError:
            self.counters["store.unreadable"] += 1
            return
        rest = raw[InformInfoRecord.SIZE :]
        qpn, trusted = int.from_bytes(rest[:4], "big") or GSI_QP, rest[4:5] == b"\1"
        self._subscriptions[record.id.gid, record.id.enum] = _Subscription(
            record.id, record.info, qpn, trusted
        )

    # --- requests -----------------------------------------------------------------------------------------------

    def set(self, request: SaRequest) -> InformInfo:
        """Subscribe, or unsubscribe; raises `Denied`."""
        info = request.template
        assert isinstance(info, InformInfo)
        if info.subscribe > 1 or info.is_generic > 1:
            raise Denied(SaStatus.REQUEST_INVALID)
        gid = self._index.gid(request.end)
        wanted = _same(info)
        own = [s for (who, _), s in self._subscriptions.items() if who == gid]
        found = next((s for s in own if _same(s.info) == wanted), None)
        if not info.subscribe:
            if found is None:
                raise Denied(SaStatus.REQUEST_INVALID)
            self._drop(found)
            return info
        if not request.trusted and (info.trap_number in range(256, 260) or info.type == 2):
            raise Denied(SaStatus.DENIED)  # who broke which key is not everybody's business
        if found is None:
            if len(self._subscriptions) >= MOST_SUBSCRIPTIONS or len(own) >= MOST_OF_A_PORT:
                raise Denied(SaStatus.NO_RESOURCES)
            taken = {s.id.enum for s in own}
            enum = next(number for number in range(1, 0x10000) if number not in taken)
            found = _Subscription(SubscriberIdentifier(gid, enum), info, request.source.qpn)
            self._subscriptions[gid, enum] = found
        found.qpn, found.trusted = request.source.qpn, request.trusted
        rest = found.qpn.to_bytes(4, "big") + bytes([found.trusted])
        raw = InformInfoRecord(found.id, found.info).pack() + rest
        self._store.save(KIND, gid + found.id.enum.to_bytes(2, "big"), raw)
        return info

    def _drop(self, subscription: _Subscription) -> None:
        key = subscription.id.gid, subscription.id.enum
        self._subscriptions.pop(key, None)
        self._store.remove(KIND, key[0] + key[1].to_bytes(2, "big"))
        for number, report in list(self._reports.items()):
            if report.subscription is subscription:
                self._end(number)

    def find(self, request: SaRequest) -> Iterator[InformInfoRecord]:
        """The subscriptions that match: an untrusted request sees its own."""
        own = self._index.gid(request.end)
        for subscription in list(self._subscriptions.values()):
            if request.trusted or subscription.id.gid == own:
                record = InformInfoRecord(subscription.id, subscription.info)
                if matches(record, request.template, request.names):
                    yield record

    def log(self, request: SaRequest) -> Iterator[NoticeRecord]:
        """The notices that match, and may be seen."""
        for record in list(self._log):
            seen = self._may_see(request.pkeys, request.trusted, record.notice, None)
            if seen and matches(record, request.template, request.names):
                yield record

    # --- notices ------------------------------------------------------------------------------------------------

    def publish(self, notice: GmpNotice, pkeys: list[int] | None = None) -> None:
        """Report a notice to all who asked for it.

        pkeys: of the port, or [the partition] of the group, that it is about; only members hear of it.
        """
        self._number += 1
        number = NumberIdentifier(self._number & 0xFFFFFFFF, self._clock.now() // SECOND & 0xFFFFFFFF)
        self._log.append(NoticeRecord(number, notice))
        index = self._index
        for subscription in list(self._subscriptions.values()):
            if not subscription.wants(notice):
                continue
            end = index.by_gid(subscription.id.gid)
            if end is None or not self._may_see(list(pkeys_of(end)), subscription.trusted, notice, pkeys):
                continue
            if subscription.waiting >= MOST_WAITING:
                self.counters["reports.lost"] += 1
                continue
            self._report(subscription, MadAddress(end.lid, subscription.qpn), notice)

    def _may_see(self, own: list[int], trusted: bool, notice: GmpNotice, pkeys: list[int] | None) -> bool:
        if trusted:
            return True
        if notice.generic and notice.trap in range(256, 260):
            return False
        if notice.trap not in ABOUT_GIDS:
            return True
        if pkeys is None:  # what is long past: by the port that has the GID now
            end = self._index.by_gid(notice.gid)
            return end is None or bool(share_partition(own, pkeys_of(end)))
        if notice.trap in (Trap.MCG_CREATED, Trap.MCG_DELETED):
            return any(in_partition(own, pkey) for pkey in pkeys)
        return bool(share_partition(own, pkeys))

    def _report(self, subscription: _Subscription, to: MadAddress, notice: GmpNotice) -> None:
        number = self._random.getrandbits(64)
        while number in self._reports:
            number = self._random.getrandbits(64)
        mad = sa_mad(SaMethod.REPORT, notice.ATTRIBUTE_ID, transaction_id=number)
        data = sa_message(mad, SaHeader(), notice).pack()
        subscription.waiting += 1
        self._reports[number] = _Report(subscription, to, data)
        self._try(number)

    def _try(self, number: int) -> None:
        report = self._reports.get(number)
        if report is None:
            return
        if report.tries == 0:
            self.counters["reports.lost"] += 1
            self._end(number)
            return
        report.tries -= 1
        self.counters["reports.sent"] += 1
        report.timer = self._clock.call_at(self._clock.now() + REPORT_NS, lambda: self._try(number))
        self._send(report.to, report.data)

    def answered(self, source: MadAddress, mad: RmppMad) -> bool:
        """A ReportResp; False if it answers no report."""
        report = self._reports.get(mad.transaction_id)
        if report is None or report.to.lid != source.lid:
            return False
        self.counters["reports.answered"] += 1
        self._end(mad.transaction_id)
        return True

    def _end(self, number: int) -> None:
        report = self._reports.pop(number)
        report.subscription.waiting -= 1
        if report.timer is not None:
            report.timer.cancel()

    def drop_port(self, gid: bytes) -> None:
        """A port has left the subnet: its subscriptions end."""
        for subscription in [s for (who, _), s in self._subscriptions.items() if who == gid]:
            self._drop(subscription)

    def close(self) -> None:
        for number in list(self._reports):
            self._end(number)


def _same(info: InformInfo) -> tuple[object, ...]:
    """What tells one subscription of a port from another."""
    return (
        *(info.gid, info.lid_begin, info.lid_end, info.is_generic, info.type, info.trap_number),
        info.producer_type,
    )
