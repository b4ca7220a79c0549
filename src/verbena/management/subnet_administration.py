"""Subnet administration: the queries, registers and subscriptions of a subnet (IBA vol. 1, chapter 15).

It stands beside the master subnet manager, and reads its model.  Datagrams of the class go in by `receive`, and out by
the `send` it was given; time is the `Clock`'s.  What is wrong with a request is said in the answer's status; what is no
request at all is dropped, and counted.

A request that carries the manager's key (SM_Key) is trusted: it sees everything.  One with another key is dropped
(15.4.1.1); one without sees what is in its port's partitions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from verbena.clock import Clock
from verbena.management.datagrams import MadAddress, Send
from verbena.management.names import NodeNames
from verbena.management.rmpp import RESPONSE_BIT, RmppSender
from verbena.management.sa_multicast import Multicast, Tree
from verbena.management.sa_paths import PathFinder, PathQuery
from verbena.management.sa_request import Denied, MemoryStore, SaRequest, Store
from verbena.management.sa_services import Services
from verbena.management.sa_subscriptions import Subscriptions
from verbena.management.sa_tables import SubnetTables
from verbena.management.subnet import Subnet
from verbena.management.subnet_view import SubnetDetails, SubnetIndex, pkeys_of
from verbena.wire import MAD_SIZE, MadStatus, ManagementClass, Method
from verbena.wire.errors import DecodeError
from verbena.wire.notice import ClassPortInfo, GmpNotice, InformInfo
from verbena.wire.rmpp import RmppMad, RmppStatus, RmppType
from verbena.wire.sa import (
    SA_CLASS_VERSION,
    SA_HEADER,
    Packable,
    Record,
    SaCapability,
    SaHeader,
    SaMethod,
    SaStatus,
    named_components,
    offset_of,
    sa_message,
    sa_table,
)
from verbena.wire.sa_nodes import RECORDS, InformInfoRecord, NoticeRecord
from verbena.wire.sa_records import MCMemberRecord, PathRecord, ServiceRecord
from verbena.wire.smp_attributes import Notice, Trap

if TYPE_CHECKING:
    from random import Random

MOST_TRANSFERS = 1024
"""Multi-packet answers under way; beyond it requests are answered with "no resources"."""
MOST_OF_A_PORT = 16
MOST_RECORDS = 262_144
"""Records in one answer."""
REQUESTS = {SaMethod.GET, SaMethod.GET_TABLE, SaMethod.SET, SaMethod.DELETE}
UNANSWERED = {Method.SEND, Method.TRAP, Method.REPORT, Method.TRAP_REPRESS}
LISTED = (PathRecord, MCMemberRecord, ServiceRecord, InformInfoRecord, NoticeRecord)
Session = tuple[int, int, int]


class SubnetAdministration:
    """The server.

    get_subnet: the subnet manager's present picture.  send: how answers and reports go out.  sm_key: makes a request
    trusted; 0: none is.  store: what outlives this object (groups, services, subscriptions).  multicast: whether groups
    can be made at all.  names: of the hosts, by default kept here.  mlids: room in the switches' tables.  on_tree: told
    of each group whose members have changed.  active: only the master's is; the others drop all requests.
    `counters`: of datagrams received, ``received == answered + accepted + all dropped.*``.
    """

    def __init__(
        self,
        get_subnet: Callable[[], Subnet],
        send: Send,
        clock: Clock,
        random: Random,
        *,
        sm_key: int = 0,
        store: Store | None = None,
        details: SubnetDetails | None = None,
        names: NodeNames | None = None,
        multicast: bool = True,
        mlids: int = 1024,
        on_tree: Callable[[Tree], None] = lambda tree: None,
    ) -> None:
        self.active = True
        self.sm_key = sm_key
        self._counters: Counter[str] = Counter()
        self._send = send
        self._clock = clock
        kept = MemoryStore() if store is None else store
        self._index = SubnetIndex(get_subnet, details)
        self._own_names = names is None
        self.names = NodeNames() if names is None else names
        if self._own_names:
            self.names.update(get_subnet())
        self._tables = SubnetTables(self._index, self.names)
        self._paths = PathFinder(self._index)
        self._services = Services(self._index, clock, kept)
        self.subscriptions = Subscriptions(self._index, clock, random, send, kept)
        self.multicast: Multicast | None = None
        if multicast:
            self.multicast = Multicast(
                self._index, kept, mlids=mlids, on_tree=on_tree, on_group=self._group_changed
            )
        self._transfers: dict[Session, RmppSender] = {}
        self._present: dict[bytes, list[int]] = {}
        self._here: set[bytes] = self._ports()

    @property
    def counters(self) -> Counter[str]:
        """What was received, answered, dropped and reported."""
        return self._counters + self.subscriptions.counters

    @property
    def transfers(self) -> int:
        """Multi-packet answers under way."""
        return len(self._transfers)

    # --- what the subnet manager tells ----------------------------------------------------------------------------

    def _ports(self) -> set[bytes]:
        """The GIDs of the ports in service; remembers their partitions."""
        ports = [port for port in self._index.ends if port.node.is_switch or port.state == 4]
        found = {self._index.gid(port): list(pkeys_of(port)) for port in ports}
        self._present |= found
        return set(found)

    def changed(self) -> None:
        """The subnet manager has a newer picture: report who has come and who has gone (traps 64 and 65)."""
        if self._own_names:
            self.names.update(self._index.subnet)
        here = self._ports()
        for gid in sorted(here - self._here):
            self._report(Trap.GID_IN_SERVICE, gid, self._present[gid])
        for gid in sorted(self._here - here):
            if self.multicast is not None:
                self.multicast.drop_port(gid)
            self._services.drop_port(gid)
            self.subscriptions.drop_port(gid)
            self._report(Trap.GID_OUT_OF_SERVICE, gid, self._present.pop(gid))
        self._here = here

    def trap(self, notice: Notice, issuer_gid: bytes = bytes(16)) -> None:
        """The subnet manager has received a trap: pass it on to those who asked for it."""
        self.subscriptions.publish(GmpNotice.of(notice, issuer_gid))

    def _group_changed(self, mgid: bytes, begins: bool) -> None:
        assert self.multicast is not None
        group = self.multicast.groups.get(mgid)
        pkeys = [group.record.pkey] if group is not None else None
        self._report(Trap.MCG_CREATED if begins else Trap.MCG_DELETED, mgid, pkeys)

    def _report(self, trap: int, gid: bytes, pkeys: list[int] | None) -> None:
        subnet = self._index.subnet
        master = subnet.port_of_lid(subnet.sm_lid)
        issuer = self._index.gid(master) if master is not None else bytes(16)
        self.subscriptions.publish(GmpNotice.about_gid(trap, gid, subnet.sm_lid, issuer), pkeys)

    # --- datagrams ------------------------------------------------------------------------------------------------

    def receive(self, source: MadAddress, data: bytes) -> None:
        """A datagram of this class, of any content."""
        self._counters["received"] += 1
        self._counters[self._take(source, data)] += 1

    def _take(self, source: MadAddress, data: bytes) -> str:
        """Handle a datagram; returns the name of its counter."""
        if len(data) != MAD_SIZE:
            return "dropped.length"
        mad = RmppMad.unpack(data)
        if mad.base_version != 1 or mad.management_class != ManagementClass.SUBN_ADM:
            return "dropped.class"
        if not self.active:
            return "dropped.not_master"
        if mad.method == SaMethod.REPORT_RESPONSE:
            return "accepted" if self.subscriptions.answered(source, mad) else "dropped.report"
        if mad.is_rmpp:
            return self._take_rmpp(source, mad)
        if mad.method & RESPONSE_BIT or mad.method in UNANSWERED:
            return "dropped.method"
        try:
            request = self._parse(source, mad)
            if isinstance(request, str):
                return request
            self._serve(request)
        except Denied as denied:
            header = SaHeader.unpack(mad.data)
            self._answer(source, replace(mad, status=denied.status), replace(header, sm_key=0), None)
        return "answered"

    def _take_rmpp(self, source: MadAddress, mad: RmppMad) -> str:
        """What a receiver says of an answer that is under way; nothing else is sent to us in several datagrams."""
        transfer = self._transfers.get(_session(source, mad))
        if transfer is None or mad.rmpp_type == RmppType.DATA or mad.method & RESPONSE_BIT:
            return "dropped.rmpp"
        transfer.receive(mad)
        return "accepted"

    def _parse(self, source: MadAddress, mad: RmppMad) -> SaRequest | str:
        """The request in a datagram, or the counter that it is dropped under; raises `Denied`."""
        if mad.class_version != SA_CLASS_VERSION:
            raise Denied(MadStatus.BAD_VERSION)
        if mad.method not in REQUESTS:
            raise Denied(MadStatus.UNSUPPORTED_METHOD)
        header = SaHeader.unpack(mad.data)
        if header.sm_key and (not self.sm_key or header.sm_key != self.sm_key):
            return "dropped.sm_key"
        end = self._index.by_lid(source.lid)
        if end is None:
            return "dropped.source"
        if _session(source, mad) in self._transfers:
            return "dropped.repeated"  # it is being answered
        kind = _kind(mad)
        try:
            template = kind.unpack(mad.data, SA_HEADER)
        except DecodeError:  # an attribute that is longer than a datagram: none of ours
            raise Denied(MadStatus.UNSUPPORTED_METHOD_ATTRIBUTE) from None
        names: tuple[str, ...] = ()
        if mad.attribute_id in RECORDS:
            named = named_components(RECORDS[mad.attribute_id], header.component_mask)
            if named is None:
                raise Denied(SaStatus.REQUEST_INVALID)
            names = named
        return SaRequest(source, mad, header, end, bool(header.sm_key), template, names)

    # --- requests -------------------------------------------------------------------------------------------------

    def _serve(self, request: SaRequest) -> None:
        """Answer a request; raises `Denied`."""
        attribute, method = request.mad.attribute_id, request.mad.method
        kind = RECORDS.get(attribute)
        if attribute == ClassPortInfo.ATTRIBUTE_ID and method == SaMethod.GET:
            self._answer(request.source, request.mad, request.header, self._class_port_info())
        elif attribute == InformInfo.ATTRIBUTE_ID and method == SaMethod.SET:
            self._answer(request.source, request.mad, request.header, self.subscriptions.set(request))
        elif kind is not None and method in (SaMethod.GET, SaMethod.GET_TABLE):
            self._read(request, kind)
        elif kind is ServiceRecord or kind is MCMemberRecord:
            self._write(request, kind)
        else:
            raise Denied(MadStatus.UNSUPPORTED_METHOD_ATTRIBUTE)

    def _write(self, request: SaRequest, kind: type[Record]) -> None:
        is_set = request.mad.method == SaMethod.SET
        made: Record
        if kind is ServiceRecord:
            made = self._services.register(request) if is_set else self._services.unregister(request)
        else:
            groups = self._groups()
            made = groups.join(request) if is_set else groups.leave(request)
        header = replace(request.header, attribute_offset=offset_of(kind))
        self._answer(request.source, request.mad, header, made)

    def _groups(self) -> Multicast:
        if self.multicast is None:
            raise Denied(MadStatus.UNSUPPORTED_METHOD_ATTRIBUTE)
        return self.multicast

    def _read(self, request: SaRequest, kind: type[Record]) -> None:
        if kind not in self._tables.kinds and kind not in LISTED:
            raise Denied(MadStatus.UNSUPPORTED_METHOD_ATTRIBUTE)
        found = self._find(request, kind)
        if request.mad.method == SaMethod.GET_TABLE:
            records = [record.pack() for record in islice(found, MOST_RECORDS + 1)]
            if len(records) > MOST_RECORDS:
                raise Denied(SaStatus.NO_RESOURCES)
            self._answer_table(request, kind, records)
            return
        first = list(islice(found, 2))
        if not first:
            raise Denied(SaStatus.NO_RECORDS)
        if len(first) > 1 and kind is not PathRecord:  # of several paths, the first is as good as any
            raise Denied(SaStatus.TOO_MANY_RECORDS)
        header = replace(request.header, attribute_offset=offset_of(kind))
        self._answer(request.source, request.mad, header, first[0])

    def _find(self, request: SaRequest, kind: type[Record]) -> Iterable[Record]:
        if kind is PathRecord:
            assert isinstance(request.template, PathRecord)
            return self._paths.find(PathQuery(request.template, frozenset(request.names)), request.visible)
        if kind is MCMemberRecord:
            return self._groups().find(request)
        if kind is ServiceRecord:
            return self._services.find(request)
        if kind is InformInfoRecord:
            return self.subscriptions.find(request)
        if kind is NoticeRecord:
            return self.subscriptions.log(request)
        return self._tables.find(kind, request)

    def _class_port_info(self) -> ClassPortInfo:
        able = SaCapability.OPTIONAL_RECORDS
        if self.multicast is not None:
            able |= SaCapability.MULTICAST
        return ClassPortInfo(class_version=SA_CLASS_VERSION, capability_mask=able)

    # --- answers --------------------------------------------------------------------------------------------------

    def _answer(self, to: MadAddress, mad: RmppMad, header: SaHeader, record: Packable | None) -> None:
        """One datagram with a record, or a status and none."""
        method = SaMethod.GET_RESPONSE if mad.method == SaMethod.SET else mad.method | RESPONSE_BIT
        answer = replace(mad, method=method, rmpp_version=0, rmpp_type=0, response_time=0, rmpp_status=0)
        self._send(to, sa_message(answer, header, record).pack())

    def _answer_table(self, request: SaRequest, kind: type[Record], records: list[bytes]) -> None:
        """A transfer, of one segment at least."""
        session = _session(request.source, request.mad)
        own = sum(key[:2] == session[:2] for key in self._transfers)
        if len(self._transfers) >= MOST_TRANSFERS or own >= MOST_OF_A_PORT:
            raise Denied(SaStatus.NO_RESOURCES)
        answer = replace(request.mad, method=SaMethod.GET_TABLE_RESPONSE, status=0)

        def done(status: RmppStatus) -> None:
            self._transfers.pop(session, None)
            self._counters["transfers.done" if status is RmppStatus.NORMAL else "transfers.failed"] += 1

        transfer = RmppSender(
            sa_table(answer, kind, records, request.header.sm_key),
            clock=self._clock,
            emit=lambda mad: self._send(request.source, mad.pack()),
            done=done,
        )
        self._transfers[session] = transfer
        transfer.start()

    def close(self) -> None:
        """End all transfers and timers; what is in the store stays there."""
        self.active = False
        for transfer in self._transfers.values():
            transfer.close()
        self._transfers.clear()
        self._services.close()
        self.subscriptions.close()


def _session(source: MadAddress, mad: RmppMad) -> Session:
    return source.lid, source.qpn, mad.transaction_id


def _kind(mad: RmppMad) -> type[Record] | type[ClassPortInfo] | type[InformInfo]:
    """The attribute of a request; raises `Denied` for one that there is none of."""
    if mad.attribute_id == ClassPortInfo.ATTRIBUTE_ID:
        return ClassPortInfo
    if mad.attribute_id == InformInfo.ATTRIBUTE_ID:
        return InformInfo
    kind = RECORDS.get(mad.attribute_id)
    if kind is None:
        raise Denied(MadStatus.UNSUPPORTED_METHOD_ATTRIBUTE)
    return kind
