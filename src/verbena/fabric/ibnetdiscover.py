"""Topologies from and to the text that `ibnetdiscover` of infiniband-diags prints.

`read` takes the lines of such a dump, also of `ibnetdiscover -g` (chassis) and `-f` (full port attributes), with the
warnings, debug output, indentation and line ends that dumps are found with.  It refuses, with the line and the element,
what is cut off or contradicts itself: real dumps tell every link from both ends.  `write` prints a topology as the tool
does; `read` of it gives the same topology.

The format: infiniband-diags, ibnetdiscover(8), "Topology file format".  It carries no delays and no error rates.  What
a reader has to know besides:

* a description may hold anything printable, quotes too; the last quote of the line ends it;
* with ``-g`` the spines and line cards of a chassis stand in the file twice, the second time as "Chassis Switches";
* one end may not know its width (``??``) or speed (``???``), and may take FDR10, a vendor's own speed, for QDR;
* adapters of newer make have the GUID of their first port for their own.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable

from verbena.errors import InvalidAttributeError
from verbena.fabric.addressing import AddressError, LidSpace, subnets
from verbena.fabric.ibnetdiscover_lines import LETTERS, DumpError, End, Reader, Record
from verbena.fabric.ibnetdiscover_text import write
from verbena.fabric.rates import LANE_BPS, LinkRate, Speed
from verbena.fabric.topology import Node, NodeKind, PortId, Topology, TopologyError

__all__ = ["DumpError", "read", "write"]

_SPARE_GUID = 0x02_76_62_7F_00_00_00_00  # locally administered, for ports whose GUID is not told
_ADAPTER = re.compile(r"(\S+) (?:HCA-\d+|[a-z]+[a-z0-9]*_?\d+)(?: \(.*\))?")
_CHIP = re.compile(r"MF0;([^:;]+):\S+")


def read(
    lines: Iterable[str],
    *,
    name: str = "fabric",
    both_ends: bool = True,
    warn: Callable[[str], None] | None = None,
) -> Topology:
    """The topology that a dump tells, with its LIDs.  Raises `DumpError`.

    lines: with or without line ends; they are taken one by one, so that a dump may be large.  both_ends: refuse a link
    that only one of its ends lists, which the tool never prints (it means that the file is cut off); if False, take it.
    warn: is called with a sentence for what a real fabric runs with all the same.
    """
    reader = Reader()
    reader.take(lines)
    records = reader.finish(both_ends)
    checker = _Checker(records, both_ends, warn or (lambda sentence: None))
    return checker.topology(name)


class _Checker:
    """Records to a topology; what they say of each other must agree."""

    def __init__(self, records: dict[int, Record], both_ends: bool, warn: Callable[[str], None]) -> None:
        self._records = records
        self._both_ends = both_ends
        self._warn = warn

    def topology(self, name: str) -> Topology:
        topology = Topology(name)
        links = []
        for record in self._records.values():
            for port, end in record.ends.items():
                back = self._link(record, port, end)
                if back is None or end.line < back.line:  # each link once, from its first line
                    links.append(
                        (end.line, record, port, end, self._rate(f"{record} port {port}", end, back))
                    )
        self._name()
        guids = self._port_guids()
        for record in self._records.values():
            self._add(topology, record, guids[record.guid])
        links.sort(key=lambda link: link[0])
        for number, record, port, end, rate in links:
            far = PortId(self._records[end.peer].name, end.peer_port)
            if end.peer_port not in self._records[end.peer].ends and end.peer_lid:
                peer = topology.nodes[far.node]
                peer.set_lid(far.port, end.peer_lid, peer.lid(far.port)[1])
            try:
                topology.connect(PortId(record.name, port), far, rate=rate)
            except TopologyError as error:
                raise DumpError(str(error), number) from None
        self._lids(topology)
        return topology

    def _link(self, record: Record, port: int, end: End) -> End | None:
        """Check a port's line against the peer's, and return that."""
        what = f"{record} port {port}"
        peer = self._records.get(end.peer)
        if peer is None:
            raise DumpError(
                f"{what}: it leads to {end.kind.name} {end.peer:#018x}, which is not in the file (cut off?)",
                end.line,
            )
        if peer.kind is not end.kind:
            raise DumpError(
                f"{what}: it leads to {end.kind.name} {end.peer:#018x}, which is {peer}", end.line
            )
        if not 1 <= end.peer_port <= peer.ports:
            raise DumpError(
                f"{what}: it leads to port {end.peer_port} of {peer}, which has {peer.ports} ports", end.line
            )
        if peer is record and end.peer_port == port:
            raise DumpError(f"{what}: it leads to itself", end.line)
        back = peer.ends.get(end.peer_port)
        if back is None:
            sentence = f"{what}: {peer} does not list the link at its port {end.peer_port}"
            if self._both_ends:
                raise DumpError(f"{sentence} (cut off?)", end.line)
            self._warn(f"line {end.line}: {sentence}")
        elif (back.peer, back.peer_port) != (record.guid, port):
            raise DumpError(
                f"{what}: it leads to port {end.peer_port} of {peer}, which line {back.line} has connected elsewhere",
                end.line,
            )
        self._agree(what, end, peer, back)
        return back

    def _agree(self, what: str, end: End, peer: Record, back: End | None) -> None:
        lid = peer.lid if peer.kind is NodeKind.SWITCH else back.lid if back is not None else end.peer_lid
        if end.peer_lid != lid:
            raise DumpError(
                f"{what}: it has LID {end.peer_lid} at the other end, and {peer} has LID {lid}", end.line
            )
        if back is not None and back.guid and end.peer_guid and end.peer_guid != back.guid:
            raise DumpError(
                f"{what}: port GUID {end.peer_guid:#x} at the other end, and line {back.line} has {back.guid:#x}",
                end.line,
            )

    def _rate(self, what: str, end: End, back: End | None) -> LinkRate:
        ends = (end,) if back is None else (end, back)
        widths = {side.width for side in ends} - {"??"}
        speeds = {side.speed for side in ends} - {"???"}
        if speeds == {Speed.QDR.name, Speed.FDR10.name}:
            speeds = {Speed.FDR10.name}
        if len(widths) > 1 or len(speeds) > 1:
            return self._slower(what, end, ends)
        if not widths or not speeds:
            self._warn(f"line {end.line}: {what}: neither end tells the rate; it is taken for {LinkRate()}")
            return LinkRate()
        try:
            return LinkRate.parse(widths.pop() + speeds.pop())
        except InvalidAttributeError as error:
            raise DumpError(f"{what}: {error}", end.line) from None

    def _slower(self, what: str, end: End, ends: tuple[End, ...]) -> LinkRate:
        """What both ends of a link can do that tell different rates: it was trained anew while the tool looked."""
        try:
            widths = [LinkRate.parse(f"{side.width}SDR").width for side in ends if side.width != "??"]
            speeds = [LinkRate.parse(f"4x{side.speed}").speed for side in ends if side.speed != "???"]
        except InvalidAttributeError as error:
            raise DumpError(f"{what}: {error}", end.line) from None
        rate = LinkRate(
            min(widths, key=lambda width: width.lanes, default=LinkRate().width),
            min(speeds, key=lambda speed: LANE_BPS[speed], default=LinkRate().speed),
        )
        told = " at one end, ".join(f"{side.width}{side.speed}" for side in ends)
        self._warn(f"line {end.line}: {what}: the link is {told} at the other; it is taken for {rate}")
        return rate

    def _name(self) -> None:
        """A name for each node: its description where that is its own, else what the dump calls it in links."""
        times = Counter(record.description.strip() for record in self._records.values())
        letters = {kind: letter for letter, kind in LETTERS.items()}
        taken = set()
        for record in self._records.values():
            record.name = record.description.strip()
            if not record.name or times[record.name] > 1 or record.name in taken:
                record.name = f"{letters[record.kind]}-{record.guid:016x}"
            taken.add(record.name)

    def _port_guids(self) -> dict[int, dict[int, int]]:
        """Of each node: the GUIDs of its ports.  A dump tells those of connected ports; the others' are made up."""
        found: dict[int, dict[int, int]] = {guid: {} for guid in self._records}
        owners: dict[int, tuple[int, int]] = {guid: (guid, 0) for guid in self._records}
        for record in self._records.values():
            for port, end in record.ends.items():
                for node, number, guid in (
                    (record, port, end.guid),
                    (self._records[end.peer], end.peer_port, end.peer_guid),
                ):
                    if guid and node.kind is not NodeKind.SWITCH:
                        owner = owners.setdefault(guid, (node.guid, number))
                        if owner not in ((node.guid, number), (node.guid, 0)):
                            raise DumpError(
                                f"{node} port {number}: its GUID {guid:#x} is another's", end.line
                            )
                        found[node.guid][number] = guid
        spare = itertools.count(_SPARE_GUID)
        for record in self._records.values():
            if record.kind is not NodeKind.SWITCH:
                mine = found[record.guid]
                for port in range(1, record.ports + 1):
                    if port not in mine:
                        guid = record.guid + port
                        while guid in owners or guid >= 1 << 64:
                            guid = next(spare)
                        owners[guid], mine[port] = (record.guid, port), guid
        return found

    def _add(self, topology: Topology, record: Record, guids: dict[int, int]) -> None:
        usual = {port: guid for port, guid in guids.items() if guid != record.guid + port}
        try:
            node = topology.add(
                record.name,
                record.kind,
                record.ports,
                guid=record.guid,
                host=_host(record),
                description=record.description,
                system_guid=record.keys.get("sysimgguid", 0),
                port_guids=usual,
            )
        except TopologyError as error:
            raise DumpError(str(error), record.line) from None
        node.vendor_id, node.device_id = record.keys.get("vendid", 0), record.keys.get("devid", 0)
        if record.kind is NodeKind.SWITCH:
            node.set_lid(0, record.lid, record.lmc)
        for port, end in record.ends.items():
            if record.kind is not NodeKind.SWITCH and end.lid:
                node.set_lid(port, end.lid, end.lmc)
        if record.enhanced:
            node.extras["enhanced_port_0"] = True
        if record.chassis:
            node.extras["chassis"] = record.chassis

    def _lids(self, topology: Topology) -> None:
        """Refuse LIDs that cannot be, and two alike in one subnet."""
        records = {record.name: record for record in self._records.values()}
        for ports in subnets(topology):
            space = LidSpace()
            for port in ports:
                node: Node = topology.nodes[port.node]
                base, lmc = node.lid(port.port)
                if not base:
                    continue
                try:
                    space.keep(str(port), base, lmc)
                except AddressError as error:
                    record = records[port.node]
                    line = record.ends[port.port].line if port.port else record.line
                    raise DumpError(str(error), line) from None


def _host(record: Record) -> str | None:
    """The host's or package's name out of a description, as Linux and switch makers write them; None: its own."""
    pattern = _CHIP if record.kind is NodeKind.SWITCH else _ADAPTER
    found = pattern.fullmatch(record.description.strip())
    return None if found is None else found[1]
