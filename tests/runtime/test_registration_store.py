"""What subnet administration keeps in a file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from management.sa_net import SaNet, redundant
from verbena.runtime.registration_store import SqliteRegistrationStore
from verbena.runtime.topology_store import SqliteTopologyStore, StoreError
from verbena.wire.sa_records import ServiceRecord
from verbena.wire.smp_attributes import Trap

MGID = bytes.fromhex("ff12401bffff00000000000000000001")


def test_values_are_kept_replaced_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with SqliteRegistrationStore(path) as store:
        store.save("a", b"\0k", b"1")
        store.save("a", b"\0k", b"2")
        store.save("b", b"\0k", b"3")
        store.remove("a", b"none")
        assert store.load("a") == [(b"\0k", b"2")]
    with SqliteRegistrationStore(path) as store:
        assert store.load("b") == [(b"\0k", b"3")]
        store.remove("b", b"\0k")
        assert store.load("b") == []
        assert store.load("c") == []


@pytest.mark.requirement("SUB-03")
def test_subscriptions_groups_and_services_survive_in_a_file(tmp_path: Path) -> None:
    """The administration's process ends; the next one opens the file, and goes on."""
    path = tmp_path / "store"
    store = SqliteRegistrationStore(path)
    net = SaNet(redundant(), store=store)
    client = net.client("h1")
    told: list[int] = []
    net.wait(client.subscribe(lambda notice: told.append(notice.trap), Trap.GID_OUT_OF_SERVICE).accepted)
    group = {"pkey": 0xFFFF, "qkey": 1, "sl": 0, "flow_label": 0, "tclass": 0}
    mlid = net.wait(client.join(MGID, net.gid("h1"), **group)).mlid
    net.wait(client.register(ServiceRecord(7, net.gid("h1"), 0xFFFF, name=b"IBLAN")))
    net.sa.close()
    store.close()
    net.sa = net.make_sa(store=SqliteRegistrationStore(path))
    assert net.wait(net.client("h2").join(MGID, net.gid("h2"))).mlid == mlid
    assert len(net.wait(net.client("h2").services(b"IBLAN"))) == 1
    net.replace_subnet(absent={"h4"})
    net.run()
    assert told == [Trap.GID_OUT_OF_SERVICE]


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    text, other, later = (tmp_path / name for name in ("text", "other", "later"))
    text.write_text("no database, but long enough to be looked at as one" * 20)
    SqliteTopologyStore(other).close()
    SqliteRegistrationStore(later).close()
    with sqlite3.connect(later) as db:
        db.execute("PRAGMA user_version = 9")
    for path, why in ((text, "no registration store"), (other, "another program"), (later, "version 9")):
        with pytest.raises(StoreError, match=why):
            SqliteRegistrationStore(path)
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteRegistrationStore(tmp_path / "missing" / "store")
