"""The subnet manager's memory: what goes in comes out, whole or not at all, for other processes, too."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from management.sm_net import Net, manager_on, redundant_topology, settle
from verbena.management.store import StoredEvent, StoredLink, StoredNode, StoredPort, StoredTopology
from verbena.management.subnet_manager import SubnetManagerConfig
from verbena.runtime.topology_store import APPLICATION_ID, SqliteTopologyStore, StoreError

GUIDS = st.integers(1, 2**64 - 1)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@st.composite
def topologies(draw: st.DrawFn) -> StoredTopology:
    guids = draw(st.lists(GUIDS, unique=True, max_size=5))
    small = st.integers(0, 255)
    nodes = [
        StoredNode(
            guid, draw(st.integers(1, 3)), draw(TEXTS), draw(small), draw(GUIDS), draw(small), draw(small)
        )
        for guid in sorted(guids)
    ]
    ports = [
        StoredPort(guid, number, draw(GUIDS), draw(st.integers(0, 0xBFFF)), 0, 4, 5, "4xEDR")
        for guid in sorted(guids)
        for number in range(2)
    ]
    links = [StoredLink(guid, 1, draw(st.sampled_from(guids)), 2) for guid in sorted(guids)]
    return StoredTopology(tuple(nodes), tuple(ports), tuple(links))


@given(topologies(), st.dictionaries(GUIDS, st.integers(0, 7), max_size=5))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_goes_in_comes_out(tmp_path: Path, topology: StoredTopology, lmcs: dict[int, int]) -> None:
    lids = {guid: (256 * (1 + at), lmc) for at, (guid, lmc) in enumerate(lmcs.items())}
    with SqliteTopologyStore(tmp_path / "store") as store:
        store.save(topology, lids)
        assert store.load_topology() == topology
    with SqliteTopologyStore(tmp_path / "store") as store:
        assert store.load_topology() == topology
        assert store.load_lids() == lids


def test_a_new_store_is_empty(tmp_path: Path) -> None:
    with SqliteTopologyStore(tmp_path / "store") as store:
        assert store.load_topology() == StoredTopology()
        assert store.load_lids() == {}
        assert store.load_events() == []
        assert store.load_configuration() == {}


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    node = StoredNode(1, 1, "h", 1, 1, 0, 0)
    with SqliteTopologyStore(tmp_path / "store") as store:
        store.save(StoredTopology((node,)), {1: (5, 0)})
        with pytest.raises(StoreError, match="cannot be written"):
            store.save(StoredTopology(), {1: (5, 0), 2: (5, 0)})  # one LID twice
        assert store.load_topology().nodes == (node,)
        assert store.load_lids() == {1: (5, 0)}


def test_events_and_configuration(tmp_path: Path) -> None:
    events = [StoredEvent(at, "trap", 2**64 - 1, at, 128, f"number {at}") for at in range(10)]
    with SqliteTopologyStore(tmp_path / "store") as store:
        store.add_events(events[:4])
        store.add_events([])
        store.add_events(events[4:])
        assert store.load_events() == events
        assert store.load_events(3) == events[-3:]
        store.save_configuration({"engine": "ftree", "lmc": "1"})
        store.save_configuration({"engine": "minhop"})
        assert store.load_configuration() == {"engine": "minhop"}


def test_what_is_no_store_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database " * 100)
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE t (x)")
    with SqliteTopologyStore(tmp_path / "later"):
        pass
    with sqlite3.connect(tmp_path / "later") as later:
        later.execute("PRAGMA user_version = 99")
    for name, why in (
        ("text", "is no topology store"),
        ("other", "another program"),
        ("later", "version 99"),
        ("there/is/no/folder", "cannot be opened"),
    ):
        before = (tmp_path / name).read_bytes() if (tmp_path / name).exists() else b""
        with pytest.raises(StoreError, match=why) as caught:
            SqliteTopologyStore(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert before == ((tmp_path / name).read_bytes() if (tmp_path / name).exists() else b"")
    with pytest.raises(StoreError):
        SqliteTopologyStore(tmp_path / "absent", read_only=True)


READER = """
import sys
from verbena.runtime.topology_store import SqliteTopologyStore
with SqliteTopologyStore(sys.argv[1], read_only=True) as store:
    print(sorted(node.name for node in store.load_topology().nodes))
"""


@pytest.mark.requirement("SUB-03")
def test_a_restarted_manager_knows_the_subnet_and_others_can_read_it(tmp_path: Path) -> None:
    topology = redundant_topology()
    lids = {}
    with SqliteTopologyStore(tmp_path / "store") as store:
        net = Net(topology)
        first = manager_on(net, "h1", SubnetManagerConfig(first_lid=100), store=store)
        settle(net, first)
        assert first.subnet is not None
        lids = {port.guid: port.lid for port in first.subnet.end_ports()}
        assert min(lids.values()) == 100
        first.stop()
        assert store.load_configuration()["first_lid"] == "100"
        assert any(event.kind == "port in service" for event in store.load_events())

        # Another process reads while this one has the file open.
        result = subprocess.run(
            [sys.executable, "-c", READER, str(tmp_path / "store")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.strip() == str(sorted(topology.nodes))

    with SqliteTopologyStore(tmp_path / "store") as store:
        kept = store.load_topology()
        assert {node.name for node in kept.nodes} == set(topology.nodes)
        assert len(kept.links) == len(topology.links)
        net = Net(topology)  # everything was switched off: the ports remember nothing
        again = manager_on(net, "h1", SubnetManagerConfig(), store=store)
        settle(net, again)
        assert again.subnet is not None
        assert {port.guid: port.lid for port in again.subnet.end_ports()} == lids
        assert store.load_topology() == kept
        identity = sqlite3.connect(tmp_path / "store").execute("PRAGMA application_id").fetchone()[0]
        assert identity == APPLICATION_ID
