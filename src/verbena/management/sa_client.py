"""A client of subnet administration: queries, registrations, subscriptions, and a memory of paths.

Everything returns a `Pending`; nothing blocks.  `verbs.subnet` is the face for programs that wait.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from verbena.clock import Clock
from verbena.errors import ManagementError, NotFound
from verbena.management.datagrams import MadAddress, Pending, Send, then
from verbena.management.transactions import TIMEOUT_NS, TRIES, Answer, Transactions
from verbena.wire import MAD_SIZE, ManagementClass
from verbena.wire.errors import DecodeError
from verbena.wire.notice import ALL_TRAPS, ClassPortInfo, GmpNotice, InformInfo
from verbena.wire.rmpp import RmppMad
from verbena.wire.sa import (
    SA_HEADER,
    Packable,
    Record,
    SaHeader,
    SaMethod,
    SaStatus,
    component_mask,
    sa_mad,
    sa_message,
    sa_records,
)
from verbena.wire.sa_nodes import NodeRecord, PortInfoRecord
from verbena.wire.sa_records import LinkRecord, MCMemberRecord, PathRecord, ServiceRecord
from verbena.wire.smp_attributes import Trap

if TYPE_CHECKING:
    from random import Random

R = TypeVar("R", bound=Record)
MOST_PATHS = 65_536
"""Answers to path queries that are remembered."""
Watcher = Callable[[GmpNotice], None]
PathKey = tuple[tuple[str, Any], ...]


class Subscription:
    """Notices that a client has asked for.  `cancel` ends it."""

    def __init__(self, client: SaClient, info: InformInfo, watcher: Watcher) -> None:
        self.info = info
        self.watcher = watcher
        self.accepted: Pending[None] = Pending()
        """Done when subnet administration has taken it."""
        self._client = client

    def wants(self, notice: GmpNotice) -> bool:
        return self.info.trap_number in (ALL_TRAPS, notice.trap)

    def cancel(self) -> Pending[None]:
        """No more notices."""
        return self._client.unsubscribe(self)


class SaClient:
    """Asks the subnet administration of a subnet.

    send: where datagrams go out.  sa: its address; may be set anew when the master has changed.  sm_key: for trusted
    requests.  `counters` tells what came, was dropped, and how often a path was remembered.
    """

    def __init__(
        self,
        send: Send,
        clock: Clock,
        random: Random,
        sa: MadAddress,
        *,
        sm_key: int = 0,
        timeout_ns: int = TIMEOUT_NS,
        tries: int = TRIES,
    ) -> None:
        self.sa = sa
        self.sm_key = sm_key
        self._send = send
        self._timeout_ns = timeout_ns
        self._tries = tries
        self._requests = Transactions(
            send, clock, random, management_class=ManagementClass.SUBN_ADM, header_size=SA_HEADER
        )
        self._counters: Counter[str] = Counter()
        self._subscriptions: list[Subscription] = []
        self._reported: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._paths: OrderedDict[PathKey, list[PathRecord]] = OrderedDict()
        self._remember = False

    @property
    def counters(self) -> Counter[str]:
        return self._counters + self._requests.counters

    # --- datagrams ------------------------------------------------------------------------------------------------

    def receive(self, source: MadAddress, data: bytes) -> None:
        """A datagram of this class that came here: an answer, or a report."""
        if len(data) == MAD_SIZE and data[1] == ManagementClass.SUBN_ADM and data[3] == SaMethod.REPORT:
            self._report(source, RmppMad.unpack(data))
        else:
            self._requests.receive(source, data)

    def _report(self, source: MadAddress, mad: RmppMad) -> None:
        if source.lid != self.sa.lid or mad.base_version != 1 or mad.attribute_id != GmpNotice.ATTRIBUTE_ID:
            self._counters["dropped.report"] += 1
            return
        self._send(source, replace(mad, method=SaMethod.REPORT_RESPONSE).pack())
        number = (source.lid, mad.transaction_id)
        if number in self._reported:  # our answer was lost
            self._counters["reports.repeated"] += 1
            return
        self._reported[number] = None
        while len(self._reported) > 1024:
            self._reported.popitem(last=False)
        self._counters["reports"] += 1
        self.notice(GmpNotice.unpack(mad.data, SA_HEADER))

    def notice(self, notice: GmpNotice) -> None:
        """Something has happened: forget the paths that it may touch, and tell who asked for it."""
        if notice.trap in (Trap.GID_OUT_OF_SERVICE, Trap.GID_IN_SERVICE):
            for key in [key for key, paths in self._paths.items() if _touches(key, paths, notice.gid)]:
                del self._paths[key]
        elif notice.trap == Trap.LINK_STATE:
            self._paths.clear()  # any path may go another way now
        for subscription in [each for each in self._subscriptions if each.wants(notice)]:
            subscription.watcher(notice)

    # --- queries --------------------------------------------------------------------------------------------------

    def _request(
        self, method: SaMethod, attribute_id: int, body: Packable | None, mask: int = 0
    ) -> Pending[Answer]:
        header = SaHeader(sm_key=self.sm_key, component_mask=mask)
        mad = sa_message(sa_mad(method, attribute_id), header, body)
        return then(
            self._requests.request(self.sa, mad, timeout_ns=self._timeout_ns, tries=self._tries), _checked
        )

    def get_table(
        self, kind: type[R], template: R | None = None, names: tuple[str, ...] = ()
    ) -> Pending[list[R]]:
        """All records that agree with `template` in the components named."""
        mask = component_mask(kind, *names)
        answer = self._request(SaMethod.GET_TABLE, kind.ATTRIBUTE_ID, template, mask)
        return then(answer, lambda found: _records(kind, found))

    def get(self, kind: type[R], template: R | None = None, names: tuple[str, ...] = ()) -> Pending[R]:
        """The one record that agrees.  Fails with `NotFound`; with `ManagementError` if there are several."""
        answer = self._request(SaMethod.GET, kind.ATTRIBUTE_ID, template, component_mask(kind, *names))
        return then(answer, lambda found: kind.unpack(found.data))

    def set(self, template: R, names: tuple[str, ...]) -> Pending[R]:
        """Make or change a record."""
        return self._change(SaMethod.SET, template, names)

    def delete(self, template: R, names: tuple[str, ...]) -> Pending[R]:
        """Remove a record."""
        return self._change(SaMethod.DELETE, template, names)

    def _change(self, method: SaMethod, template: R, names: tuple[str, ...]) -> Pending[R]:
        kind = type(template)
        answer = self._request(method, kind.ATTRIBUTE_ID, template, component_mask(kind, *names))
        return then(answer, lambda found: kind.unpack(found.data))

    def class_port_info(self) -> Pending[ClassPortInfo]:
        """What this subnet administration can do."""
        answer = self._request(SaMethod.GET, ClassPortInfo.ATTRIBUTE_ID, None)
        return then(answer, lambda found: ClassPortInfo.unpack(found.data))

    def nodes(self) -> Pending[list[NodeRecord]]:
        return self.get_table(NodeRecord)

    def ports(self) -> Pending[list[PortInfoRecord]]:
        return self.get_table(PortInfoRecord)

    def links(self) -> Pending[list[LinkRecord]]:
        return self.get_table(LinkRecord)

    # --- paths ----------------------------------------------------------------------------------------------------

    def paths(self, **components: Any) -> Pending[list[PathRecord]]:
        """The paths that have these components, such as ``sgid`` and ``dgid``, or ``slid`` and ``dlid``.

        Once `remember_paths` was called, from memory where it is known.
        """
        template = PathRecord(**components)
        key = tuple(sorted(components.items()))
        if (known := self._paths.get(key)) is not None:
            self._counters["paths.remembered"] += 1
            self._paths.move_to_end(key)
            found: Pending[list[PathRecord]] = Pending()
            found.resolve(list(known))
            return found
        pending = self.get_table(PathRecord, template, tuple(components))
        if self._remember:
            pending.when_done(lambda done: self._keep(key, done))
        return pending

    def path(self, **components: Any) -> Pending[PathRecord]:
        """The best of these paths; fails with `NotFound` if there is none."""
        return then(self.paths(**components), _first_path)

    def _keep(self, key: PathKey, done: Pending[list[PathRecord]]) -> None:
        if done.error is None and done.result():
            self._paths[key] = list(done.result())
            while len(self._paths) > MOST_PATHS:
                self._paths.popitem(last=False)

    def remember_paths(self) -> Pending[None]:
        """Keep answers to path queries, until a notice says that they may be wrong; subscribes to these notices."""
        kinds = (Trap.GID_OUT_OF_SERVICE, Trap.GID_IN_SERVICE, Trap.LINK_STATE)
        subscriptions = [self.subscribe(lambda notice: None, trap) for trap in kinds]
        made: Pending[None] = Pending()

        def check(_: Pending[None]) -> None:
            failed = next((s.accepted.error for s in subscriptions if s.accepted.error is not None), None)
            if failed is not None:
                made.fail(failed)
            elif all(s.accepted.done for s in subscriptions):
                self._remember = True
                made.resolve(None)

        for subscription in subscriptions:
            subscription.accepted.when_done(check)
        return made

    def forget_paths(self) -> None:
        """Forget all paths; they are remembered again from now on."""
        self._paths.clear()

    # --- groups, services, notices --------------------------------------------------------------------------------

    def join(
        self, mgid: bytes, port_gid: bytes, join_state: int = 1, **components: Any
    ) -> Pending[MCMemberRecord]:
        """Join a multicast group; with the components that a new one needs, it is made if it is not there."""
        record = MCMemberRecord(mgid=mgid, port_gid=port_gid, join_state=join_state, **components)
        return self.set(record, ("mgid", "port_gid", "join_state", *components))

    def leave(self, mgid: bytes, port_gid: bytes, join_state: int = 1) -> Pending[MCMemberRecord]:
        """Leave a multicast group."""
        record = MCMemberRecord(mgid=mgid, port_gid=port_gid, join_state=join_state)
        return self.delete(record, ("mgid", "port_gid", "join_state"))

    def register(self, record: ServiceRecord) -> Pending[ServiceRecord]:
        """Register a service, or renew its lease."""
        names = ("service_id", "gid", "pkey", "lease", "key", "name")
        return self.set(record, names)

    def unregister(self, record: ServiceRecord) -> Pending[ServiceRecord]:
        """Remove a service."""
        return self.delete(record, ("service_id", "gid", "pkey", "key"))

    def services(self, name: bytes) -> Pending[list[ServiceRecord]]:
        """Who offers the service of a name."""
        return self.get_table(ServiceRecord, ServiceRecord(name=name.ljust(64, b"\0")), ("name",))

    def subscribe(self, watcher: Watcher, trap_number: int = ALL_TRAPS) -> Subscription:
        """Let `watcher` be called with each notice of a number, or with all."""
        made = Subscription(self, InformInfo(trap_number=trap_number), watcher)
        self._subscriptions.append(made)

        def done(answer: Pending[Answer]) -> None:
            if answer.error is None:
                made.accepted.resolve(None)
            else:
                if made in self._subscriptions:
                    self._subscriptions.remove(made)
                made.accepted.fail(answer.error)

        self._request(SaMethod.SET, InformInfo.ATTRIBUTE_ID, made.info).when_done(done)
        return made

    def unsubscribe(self, subscription: Subscription) -> Pending[None]:
        """End a subscription; the last one of its kind also at subnet administration."""
        ended: Pending[None] = Pending()
        if subscription not in self._subscriptions:
            ended.resolve(None)
            return ended
        self._subscriptions.remove(subscription)
        if any(other.info == subscription.info for other in self._subscriptions):
            ended.resolve(None)
            return ended
        info = replace(subscription.info, subscribe=0)
        return then(self._request(SaMethod.SET, InformInfo.ATTRIBUTE_ID, info), lambda _: None)

    def renew_subscriptions(self) -> None:
        """Ask for all subscriptions again: another manager is the master (client reregistration, 14.4.11)."""
        for subscription in self._subscriptions:
            self._request(SaMethod.SET, InformInfo.ATTRIBUTE_ID, subscription.info)
        self.forget_paths()

    def close(self) -> None:
        """Give up all requests; subscriptions stay known to subnet administration."""
        self._requests.close()
        self._subscriptions.clear()
        self._paths.clear()


def _checked(answer: Answer) -> Answer:
    """Raises what an answer's status says."""
    status = answer.mad.status
    if status == SaStatus.NO_RECORDS:
        raise NotFound("subnet administration has no such record", status)
    if status:
        try:
            name = SaStatus(status).name
        except ValueError:
            name = "unsupported, or malformed"
        raise ManagementError(
            f"subnet administration refused attribute {answer.mad.attribute_id:#06x}: {name} ({status:#06x})",
            status,
        )
    return answer


def _records(kind: type[R], answer: Answer) -> list[R]:
    try:
        offset = SaHeader.unpack(answer.mad.data).attribute_offset
        return list(sa_records(kind, answer.data, offset))  # type: ignore[arg-type]
    except DecodeError as error:
        raise ManagementError(f"the answer of subnet administration is malformed: {error}") from None


def _first_path(paths: list[PathRecord]) -> PathRecord:
    if not paths:
        raise NotFound("there is no such path", SaStatus.NO_RECORDS)
    return paths[0]


def _touches(key: PathKey, paths: list[PathRecord], gid: bytes) -> bool:
    ends = {end for path in paths for end in (path.sgid, path.dgid)}
    return gid in ends or not {"sgid", "dgid", "slid", "dlid"} & {name for name, _ in key}
