"""The lines of an `ibnetdiscover` dump, taken one by one and turned into records of nodes; nothing is compared yet."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from verbena.errors import FabricFileError
from verbena.fabric.addressing import PERMISSIVE
from verbena.fabric.topology import NodeKind, TopologyError

LONGEST_LINE = 4096
_KINDS = {
    "Switch": NodeKind.SWITCH,
    "Ca": NodeKind.CA,
    "Hca": NodeKind.CA,
    "Rt": NodeKind.ROUTER,
    "Router": NodeKind.ROUTER,
}
LETTERS = {"S": NodeKind.SWITCH, "H": NodeKind.CA, "R": NodeKind.ROUTER}
_GUID_KEYS = {"switchguid": NodeKind.SWITCH, "caguid": NodeKind.CA, "rtguid": NodeKind.ROUTER}

_KEYS = ("vendid", "devid", "sysimgguid", *_GUID_KEYS)
_HEADER = re.compile(
    r'(Switch|Ca|Hca|Rt|Router)\s+(\d{1,3})\s+"([SHR])-(?:0x)?([0-9a-f]{16})"\s+#\s*"(.*)"\s*(.*)',
    re.I | re.S,
)
_PORT_ZERO = re.compile(r"(base|enhanced) port 0 lid (\d{1,5}) lmc (\d)")
_PORT = re.compile(
    r"\[(\d{1,3})\](?:\[ext (\d+)\])?(?:\((?:0x)?([0-9a-f]{1,16})\))?\s+"
    r'"([SHR])-(?:0x)?([0-9a-f]{16})"\[(\d{1,3})\](?:\[ext \d+\])?\s*(?:\((?:0x)?([0-9a-f]{1,16})\))?\s*'
    r'#\s*(?:lid (\d{1,5}) lmc (\d)\s+)?"(.*)"\s+lid (\d{1,5})\s+(\d{1,2}x|\?\?) ?(\w{2,6}|\?\?\?)'
    r"(?:\s+\w+=\S+)*(?: slot \d+| \(scp\))?",
    re.I | re.S,
)
_KEY = re.compile(
    r"(\w+)=(?:0x)?([0-9a-f]{1,16})(?:\((?:0x)?([0-9a-f]{1,16})\))?\s*(?:#\s*(.*))?", re.I | re.S
)
_OTHER_KEY = re.compile(r"(?!vendid|devid|sysimgguid|switchguid|caguid|rtguid)\w+=.*", re.I | re.S)
_CHASSIS = re.compile(r"Chassis (\d+)(?: \(guid 0x[0-9a-f]+\))?", re.I)
_LOGGED = re.compile(r"\S+\.c:\d+; ")  # libibnetdisc: src/query_smp.c:228; umad (...) bad status 110
_NOISE = ("ibwarn:", "ibpanic:", "iberror:", "DR path", "->", "Hostname:", "Non-Chassis Nodes")


class DumpError(TopologyError, FabricFileError):
    """A dump that is cut off or contradicts itself; the message names the line and the element."""


@dataclass(slots=True)
class End:
    """A port's line: what it says of its own port (guid 0: nothing), of the peer, and of the link."""

    line: int
    kind: NodeKind
    peer: int
    peer_port: int
    guid: int
    peer_guid: int
    lid: int
    lmc: int
    peer_lid: int
    width: str
    speed: str


@dataclass(slots=True)
class Record:
    """A node as the dump has it."""

    line: int
    kind: NodeKind
    ports: int
    guid: int
    description: str
    keys: dict[str, int]
    enhanced: bool = False
    lid: int = 0
    lmc: int = 0
    chassis: int = 0
    ends: dict[int, End] = field(default_factory=dict)
    name: str = ""

    def __str__(self) -> str:
        return f'{self.kind.name} "{self.description}" {self.guid:#018x}'

    def same(self, other: Record) -> bool:
        """Is it the same node, told once more?"""
        return (self.kind, self.ports, self.guid, self.lid, self.lmc, self.ends.keys()) == (
            (other.kind, other.ports, other.guid, other.lid, other.lmc, other.ends.keys())
        ) and all(
            (end.peer, end.peer_port) == (other.ends[port].peer, other.ends[port].peer_port)
            for port, end in self.ends.items()
        )


class Reader:
    """Lines to records; each line alone."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self._again: list[Record] = []  # told a second time, in a chassis
        self._keys: dict[str, int] = {}
        self._keys_line = 0
        self._record: Record | None = None
        self._chassis = 0
        self._line = 0

    def take(self, lines: Iterable[str]) -> None:
        for number, raw in enumerate(lines, 1):
            self._line = number
            if len(raw) > LONGEST_LINE:
                raise DumpError(
                    f"it is longer than {LONGEST_LINE} characters, as no line of a dump is", number
                )
            line = raw.strip(" \t\r\n\f\v\ufeff")
            if not line or line[0] == "#":
                continue
            if line[0] == "[":
                self._port(line)
            elif line.startswith(("Switch", "Ca\t", "Ca ", "Rt", "Hca", "Router")):
                self._header(line)
            elif (found := _KEY.fullmatch(line)) is not None:
                self._key(found)
            elif _OTHER_KEY.fullmatch(line) is not None:
                continue
            elif (chassis := _CHASSIS.fullmatch(line)) is not None:
                self._chassis = int(chassis[1])
            elif not line.startswith(_NOISE) and _LOGGED.match(line) is None:
                raise self._wrong("it is no line of an ibnetdiscover dump", line)
            elif line.startswith("Non-Chassis"):
                self._chassis = 0

    def finish(self, both_ends: bool = True) -> dict[int, Record]:
        if self._keys:
            raise DumpError(
                "the file is cut off: these numbers belong to a node that is not there", self._keys_line
            )
        if not self.records:
            raise DumpError("there is no node in the file: it is no ibnetdiscover dump, or it is cut off")
        last = next(reversed(self.records.values()))
        if both_ends and not last.ends:
            raise DumpError(f"{last}: the file is cut off: no port is listed", last.line)
        for record in self._again:
            if not record.same(self.records[record.guid]):
                raise _duplicate(record, self.records[record.guid])
        return self.records

    def _wrong(self, why: str, line: str) -> DumpError:
        shown = line if len(line) <= 60 else line[:57] + "..."
        return DumpError(f"{why}: {shown!r}", self._line)

    def _key(self, found: re.Match[str]) -> None:
        key, value = found[1].lower(), int(found[2], 16)
        if key in self._keys:
            raise DumpError(f"{key} once more: the node before it is missing", self._line)
        if not self._keys:
            self._keys_line = self._line
        self._record = None
        if key not in _KEYS:
            return  # a vendor's own
        self._keys[key] = value
        if found[3] is not None:
            self._keys["portguid"] = int(found[3], 16)

    def _header(self, line: str) -> None:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise self._wrong("the line of a node is cut off or malformed", line)
        kind, guid = _KINDS[found[1].capitalize()], int(found[4], 16)
        record = Record(
            self._line, kind, int(found[2]), guid, _readable(found[5]), self._keys, chassis=self._chassis
        )
        self._keys = {}
        if LETTERS[found[3].upper()] is not kind:
            raise self._wrong(f"{record} cannot be called {found[3]}-", line)
        for key, other in _GUID_KEYS.items():
            if key in record.keys and (other is not kind or record.keys[key] != guid):
                raise DumpError(f"{record}: it has {key} {record.keys[key]:#x} before it", self._line)
        if kind is NodeKind.SWITCH:
            zero = _PORT_ZERO.fullmatch(found[6])
            if zero is None:
                raise self._wrong(f"{record}: there must follow: base port 0 lid N lmc N", line)
            record.enhanced = zero[1].lower() == "enhanced"
            record.lid, record.lmc = _lid(zero[2]), int(zero[3])
        elif found[6] not in ("", "(scp)"):
            raise self._wrong(f"{record}: nothing may follow its description", line)
        self._record = record
        if guid not in self.records:
            self.records[guid] = record
        elif record.chassis and self.records[guid].chassis == record.chassis:
            self._again.append(record)
        else:
            raise _duplicate(record, self.records[guid])

    def _port(self, line: str) -> None:
        record = self._record
        if record is None:
            raise self._wrong("a port without a node before it", line)
        found = _PORT.fullmatch(line)
        if found is None:
            raise self._wrong(f"{record}: the line of a port is cut off or malformed", line)
        port = int(found[1])
        if not 1 <= port <= record.ports:
            raise DumpError(f"{record}: port {port}, and it has ports 1 to {record.ports}", self._line)
        if port in record.ends:
            before = record.ends[port].line
            raise DumpError(f"{record}: port {port} is in line {before} already", self._line)
        is_switch = record.kind is NodeKind.SWITCH
        if is_switch == (found[8] is not None):
            what = "no LID of its own" if is_switch else "its own LID and LMC"
            raise self._wrong(f"{record}: port {port} of a {record.kind.name} tells {what}", line)
        record.ends[port] = End(
            self._line,
            LETTERS[found[4].upper()],
            int(found[5], 16),
            int(found[6]),
            int(found[3] or "0", 16),
            int(found[7] or "0", 16),
            _lid(found[8] or "0"),
            int(found[9] or "0"),
            _lid(found[11]),
            found[12],
            found[13].upper(),
        )


def _readable(description: str) -> str:
    """A description with blanks for control characters, which the tool does not print either."""
    return "".join(letter if letter.isprintable() else " " for letter in description)


def _lid(text: str) -> int:
    """A LID; what a port that has none shows is 0, or the permissive LID."""
    lid = int(text)
    return 0 if lid == PERMISSIVE else lid


def _duplicate(record: Record, before: Record) -> DumpError:
    return DumpError(f"{record}: the GUID is that of {before.kind.name} in line {before.line}", record.line)
