"""The records that show a subnet manager's model: nodes, ports, links, tables (IBA vol. 1, 15.2.5.2 to 15.2.5.18).

Of an untrusted request they show what is in a partition of the asker's (15.4.1.1), and no keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from verbena.management.names import NodeNames, UnknownNameError, host_name
from verbena.management.sa_request import Denied, SaRequest
from verbena.management.subnet import SubnetNode, SubnetPort
from verbena.management.subnet_view import SubnetIndex, pkeys_of, share_partition
from verbena.wire.sa import Record, SaStatus, component, matches
from verbena.wire.sa_nodes import (
    LidIdentifier,
    NodeRecord,
    PortIdentifier,
    PortInfoRecord,
    SMInfoRecord,
    SwitchInfoRecord,
)
from verbena.wire.sa_records import (
    GUIDInfoRecord,
    LinearForwardingTableRecord,
    LinkRecord,
    MulticastForwardingTableRecord,
    PKeyTableRecord,
    SLtoVLMappingTableRecord,
    VLArbitrationRecord,
)
from verbena.wire.smp_attributes import (
    GUID_BLOCK,
    PKEY_BLOCK,
    NodeDescription,
    PKeyTable,
)


def shown_name(names: NodeNames, node: SubnetNode) -> str:
    """A node's description; empty if it claims the name of another host, or package (document 003:567)."""
    name = host_name(node)
    if not name:
        return node.name
    try:
        return node.name if node.guid in names.resolve(name) else ""
    except UnknownNameError:  # it has come since the last sweep
        return node.name


Make = Callable[[SubnetPort, SaRequest], Iterator[Record]]


class SubnetTables:
    """The tables of one subnet, by kind of record."""

    def __init__(self, index: SubnetIndex, names: NodeNames) -> None:
        self._index = index
        self._names = names
        self._makers: dict[type[Record], Make] = {
            NodeRecord: self._nodes,
            PortInfoRecord: self._ports,
            SwitchInfoRecord: self._switches,
            LinearForwardingTableRecord: self._forwarding,
            MulticastForwardingTableRecord: self._multicast,
            LinkRecord: self._links,
            GUIDInfoRecord: self._guids,
            PKeyTableRecord: self._pkeys,
            SLtoVLMappingTableRecord: self._lanes,
            VLArbitrationRecord: self._arbitration,
        }

    @property
    def kinds(self) -> set[type[Record]]:
        """The records that `find` makes."""
        return {*self._makers, SMInfoRecord}

    def find(self, kind: type[Record], request: SaRequest) -> Iterator[Record]:
        """All records that match; raises `Denied` for what is shown to trusted requests only."""
        index = self._index
        if kind is PKeyTableRecord and not request.trusted:
            raise Denied(SaStatus.DENIED)
        if kind is SMInfoRecord:
            yield from (r for r in self._managers(request) if matches(r, request.template, request.names))
            return
        make = self._makers[kind]
        lid_name = {NodeRecord: "id.lid", PortInfoRecord: "id.lid", SwitchInfoRecord: "id.lid"}.get(
            kind, "lid"
        )
        lid_name = "from_lid" if kind is LinkRecord else lid_name
        ends, names = index.ends, request.names
        if lid_name in names:  # any LID of a port stands for the port
            lid = component(request.template, lid_name)
            end = index.by_lid(lid)
            ends = [] if end is None else [end]
            names = tuple(name for name in names if name != lid_name)
        visible = request.visible
        for end in ends:
            if visible is None or end is request.end or share_partition(visible, pkeys_of(end)):
                yield from (
                    record for record in make(end, request) if matches(record, request.template, names)
                )

    def _nodes(self, end: SubnetPort, _: SaRequest) -> Iterator[Record]:
        info = replace(end.node.info, port_guid=end.guid, local_port_num=end.number)
        yield NodeRecord(LidIdentifier(end.lid), info, NodeDescription.of(shown_name(self._names, end.node)))

    def _ports(self, end: SubnetPort, request: SaRequest) -> Iterator[Record]:
        ports = end.node.ports.values() if end.node.is_switch else [end]
        for port in ports:
            info = port.info if request.trusted else replace(port.info, mkey=0)
            yield PortInfoRecord(PortIdentifier(end.lid, port.number), info)

    def _switches(self, end: SubnetPort, _: SaRequest) -> Iterator[Record]:
        if end.node.switch_info is not None:
            yield SwitchInfoRecord(LidIdentifier(end.lid), end.node.switch_info)

    def _forwarding(self, end: SubnetPort, _: SaRequest) -> Iterator[Record]:
        if end.node.is_switch:
            for block, ports in sorted(end.node.lft.items()):
                yield LinearForwardingTableRecord(end.lid, block, ports=bytes(ports))

    def _multicast(self, end: SubnetPort, _: SaRequest) -> Iterator[Record]:
        if end.node.is_switch:
            for (block, position), masks in sorted(end.node.mft.items()):
                if any(masks):
                    yield MulticastForwardingTableRecord(end.lid, position, block=block, masks=bytes(masks))

    def _links(self, end: SubnetPort, request: SaRequest) -> Iterator[Record]:
        for port in end.node.ports.values() if end.node.is_switch else [end]:
            far = port.peer
            if far is None or not far.lid:
                continue
            far_end = far if far.is_end else far.node.ports[0]
            if request.trusted or share_partition(request.pkeys, pkeys_of(far_end)):
                yield LinkRecord(end.lid, port.number, far.number, far.lid)

    def _guids(self, end: SubnetPort, _: SaRequest) -> Iterator[Record]:
        guids = list(self._index.details.guids(end))
        for at in range(0, len(guids), GUID_BLOCK):
            yield GUIDInfoRecord(end.lid, at // GUID_BLOCK, 0, 0, *guids[at : at + GUID_BLOCK])

    def _pkeys(self, end: SubnetPort, _: SaRequest) -> Iterator[Record]:
        keys = list(pkeys_of(end))
        for at in range(0, len(keys), PKEY_BLOCK):
            table = PKeyTable(tuple(keys[at : at + PKEY_BLOCK])).pack()
            yield PKeyTableRecord(end.lid, at // PKEY_BLOCK, end.number, table=table)

    def _lanes(self, end: SubnetPort, _: SaRequest) -> Iterator[Record]:
        # Packets keep their lane in a switch: only ports where they enter the subnet have a table.
        if lanes := self._index.details.lanes(end):
            yield SLtoVLMappingTableRecord(end.lid, 0, end.number, table=lanes)

    def _arbitration(self, end: SubnetPort, _: SaRequest) -> Iterator[Record]:
        ports = end.node.ports.values() if end.node.is_switch else [end]
        for port in ports:
            for block, table in sorted(self._index.details.arbitration(port).items()):
                yield VLArbitrationRecord(end.lid, port.number, block, table=table)

    def _managers(self, request: SaRequest) -> Iterator[Record]:
        for lid, info in self._index.details.managers():
            end = self._index.by_lid(lid)
            if end is None:
                continue
            if request.trusted:
                yield SMInfoRecord(LidIdentifier(lid), info)
            elif share_partition(request.pkeys, pkeys_of(end)):
                yield SMInfoRecord(LidIdentifier(lid), replace(info, sm_key=0))
