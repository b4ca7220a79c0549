"""What subnet administration keeps, in an SQLite file: groups, services, subscriptions, ownership of controllers.

One table, `registration` (kind, key, value); values are the records as they travel.  The file is in write-ahead-log
mode: other processes may read it while the administration writes.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import TracebackType

from verbena.runtime.topology_store import StoreError

APPLICATION_ID = 0x56524252  # "VRBR"
VERSION = 1


class SqliteRegistrationStore:
    """A `verbena.management.sa_request.Store` in a file.

    Raises `StoreError` for a file that is not one, or is of a later version than this program knows.  May be used by
    any thread, one at a time.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        try:
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} cannot be opened as a registration store: {error}") from None
        try:
            self._open()
        except sqlite3.Error as error:
            self._db.close()
            raise StoreError(f"{self._path} is no registration store: {error}") from None
        except StoreError:
            self._db.close()
            raise

    def _open(self) -> None:
        def number(question: str) -> int:
            return int(self._db.execute(question).fetchone()[0])

        identity, version = number("PRAGMA application_id"), number("PRAGMA user_version")
        if not identity and not number("SELECT count(*) FROM sqlite_master"):
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                self._db.execute(
                    "CREATE TABLE registration (kind TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,"
                    " PRIMARY KEY (kind, key)) STRICT, WITHOUT ROWID"
                )
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")
        elif identity != APPLICATION_ID:
            raise StoreError(f"{self._path} is no registration store: it is a database of another program")
        elif version != VERSION:
            raise StoreError(
                f"{self._path} is a registration store of version {version}; this program knows {VERSION}"
            )
        self._db.execute("PRAGMA busy_timeout = 10000")

    def load(self, kind: str) -> list[tuple[bytes, bytes]]:
        """All keys and values of a kind, in the order of the keys."""
        rows = self._run("SELECT key, value FROM registration WHERE kind = ? ORDER BY key", kind)
        return [(bytes(key), bytes(value)) for key, value in rows]

    def save(self, kind: str, key: bytes, value: bytes) -> None:
        """Keep a value, in place of the one before."""
        self._run("INSERT OR REPLACE INTO registration VALUES (?, ?, ?)", kind, key, value)

    def remove(self, kind: str, key: bytes) -> None:
        """Forget a value; nothing if there is none."""
        self._run("DELETE FROM registration WHERE kind = ? AND key = ?", kind, key)

    def _run(self, statement: str, *values: object) -> list[tuple[bytes, bytes]]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from None

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._db.close()

    def __enter__(self) -> SqliteRegistrationStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
