"""The subnet manager's memory in an SQLite file: topology, LIDs, events, configuration (document 000:80, 104).

Any process may open the file and read it while a manager writes: it is in write-ahead-log mode, each call of a
`TopologyStore` is one transaction, and the tables are plain: `node`, `port`, `link`, `lid`, `event`, `configuration`.
GUIDs are 16 hexadecimal digits, because SQLite's integers have a sign.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from verbena.errors import VerbenaError
from verbena.management.store import StoredEvent, StoredLink, StoredNode, StoredPort, StoredTopology

APPLICATION_ID = 0x56524253  # "VRBS"
VERSION = 1
KEPT_EVENTS = 100_000

_SCHEMA = """
CREATE TABLE node (guid TEXT PRIMARY KEY, kind INTEGER NOT NULL, name TEXT NOT NULL, ports INTEGER NOT NULL,
    system_guid TEXT NOT NULL, vendor_id INTEGER NOT NULL, device_id INTEGER NOT NULL) STRICT;
CREATE TABLE port (node_guid TEXT NOT NULL REFERENCES node (guid), number INTEGER NOT NULL, guid TEXT NOT NULL,
    lid INTEGER NOT NULL, lmc INTEGER NOT NULL, state INTEGER NOT NULL, mtu_code INTEGER NOT NULL, rate TEXT NOT NULL,
    PRIMARY KEY (node_guid, number)) STRICT;
CREATE TABLE link (a_guid TEXT NOT NULL, a_port INTEGER NOT NULL, b_guid TEXT NOT NULL, b_port INTEGER NOT NULL,
    PRIMARY KEY (a_guid, a_port)) STRICT;
CREATE TABLE lid (port_guid TEXT PRIMARY KEY, lid INTEGER NOT NULL UNIQUE, lmc INTEGER NOT NULL) STRICT;
CREATE TABLE event (number INTEGER PRIMARY KEY AUTOINCREMENT, time_ns INTEGER NOT NULL, kind TEXT NOT NULL,
    guid TEXT NOT NULL, lid INTEGER NOT NULL, trap INTEGER NOT NULL, text TEXT NOT NULL) STRICT;
CREATE TABLE configuration (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""


class StoreError(VerbenaError):
    """The file is no topology store, or cannot be read or written."""


def _text(guid: int) -> str:
    return f"{guid:016x}"


class SqliteTopologyStore:
    """A `verbena.management.store.TopologyStore` in a file.

    read_only: for a reader beside the manager; writing raises `StoreError`.  Raises `StoreError` for a file that is not
    a topology store, or one of a later version than this program knows.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self._path = str(path)
        try:
            target = f"{Path(path).absolute().as_uri()}?mode=ro" if read_only else str(path)
            self._db = sqlite3.connect(target, uri=read_only, isolation_level=None)
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} cannot be opened as a topology store: {error}") from None
        try:
            self._open(read_only)
        except sqlite3.Error as error:
            self._db.close()
            raise StoreError(f"{self._path} is no topology store: {error}") from None
        except StoreError:
            self._db.close()
            raise

    def _open(self, read_only: bool) -> None:
        identity = self._number("PRAGMA application_id")
        version = self._number("PRAGMA user_version")
        empty = not self._number("SELECT count(*) FROM sqlite_master")
        if empty and not identity and not read_only:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                for statement in _SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")
        elif identity != APPLICATION_ID:
            raise StoreError(f"{self._path} is no topology store: it is a database of another program")
        elif version != VERSION:
            raise StoreError(
                f"{self._path} is a topology store of version {version}; this program knows {VERSION}"
            )
        self._db.execute("PRAGMA busy_timeout = 10000")
        self._db.execute("PRAGMA foreign_keys = ON")

    def _number(self, question: str) -> int:
        return int(self._db.execute(question).fetchone()[0])

    def close(self) -> None:
        """Write back the log, and close the file; closing twice is harmless."""
        self._db.close()

    def __enter__(self) -> SqliteTopologyStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, *work: tuple[str, Iterable[Sequence[object]]]) -> None:
        """All of it, or nothing."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                for statement, rows in work:
                    self._db.executemany(statement, rows)
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} cannot be written: {error}") from None

    def _read(self, question: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(question, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} cannot be read: {error}") from None

    # --- topology -----------------------------------------------------------------------------------------------

    def save(self, topology: StoredTopology, lids: Mapping[int, tuple[int, int]]) -> None:
        """See `TopologyStore`."""
        nothing: list[tuple[object, ...]] = [()]
        self._write(
            ("DELETE FROM link", nothing),
            ("DELETE FROM port", nothing),
            ("DELETE FROM node", nothing),
            ("DELETE FROM lid", nothing),
            (
                "INSERT INTO node VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (_text(n.guid), n.kind, n.name, n.ports, _text(n.system_guid), *n[5:])
                    for n in topology.nodes
                ],
            ),
            (
                "INSERT INTO port VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(_text(p.node_guid), p.number, _text(p.guid), *p[3:]) for p in topology.ports],
            ),
            (
                "INSERT INTO link VALUES (?, ?, ?, ?)",
                [(_text(x.a_guid), x.a_port, _text(x.b_guid), x.b_port) for x in topology.links],
            ),
            ("INSERT INTO lid VALUES (?, ?, ?)", [(_text(guid), *given) for guid, given in lids.items()]),
        )

    def load_topology(self) -> StoredTopology:
        """See `TopologyStore`."""
        self._read("BEGIN")
        try:
            nodes = [
                StoredNode(int(row[0], 16), row[1], row[2], row[3], int(row[4], 16), row[5], row[6])
                for row in self._read("SELECT * FROM node ORDER BY guid")
            ]
            ports = [
                StoredPort(int(row[0], 16), row[1], int(row[2], 16), *row[3:])
                for row in self._read("SELECT * FROM port ORDER BY node_guid, number")
            ]
            links = [
                StoredLink(int(row[0], 16), row[1], int(row[2], 16), row[3])
                for row in self._read("SELECT * FROM link ORDER BY a_guid, a_port")
            ]
        finally:
            self._read("COMMIT")
        return StoredTopology(tuple(nodes), tuple(ports), tuple(links))

    def load_lids(self) -> dict[int, tuple[int, int]]:
        """See `TopologyStore`."""
        rows = self._read("SELECT port_guid, lid, lmc FROM lid ORDER BY lid")
        return {int(guid, 16): (lid, lmc) for guid, lid, lmc in rows}

    # --- events and configuration -------------------------------------------------------------------------------

    def add_events(self, events: Iterable[StoredEvent]) -> None:
        """See `TopologyStore`; the oldest beyond `KEPT_EVENTS` are forgotten."""
        rows = [(e.time_ns, e.kind, _text(e.guid), e.lid, e.trap, e.text) for e in events]
        if rows:
            self._write(
                ("INSERT INTO event (time_ns, kind, guid, lid, trap, text) VALUES (?, ?, ?, ?, ?, ?)", rows),
                ("DELETE FROM event WHERE number <= (SELECT max(number) FROM event) - ?", [(KEPT_EVENTS,)]),
            )

    def load_events(self, newest: int = 1000) -> list[StoredEvent]:
        """See `TopologyStore`."""
        rows = self._read(
            "SELECT time_ns, kind, guid, lid, trap, text FROM event ORDER BY number DESC LIMIT ?", newest
        )
        return [StoredEvent(row[0], row[1], int(row[2], 16), *row[3:]) for row in reversed(rows)]

    def save_configuration(self, settings: Mapping[str, str]) -> None:
        """See `TopologyStore`."""
        self._write(
            ("DELETE FROM configuration", [()]),
            ("INSERT INTO configuration VALUES (?, ?)", list(settings.items())),
        )

    def load_configuration(self) -> dict[str, str]:
        """See `TopologyStore`."""
        return dict(self._read("SELECT name, value FROM configuration"))
