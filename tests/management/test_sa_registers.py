"""What subnet administration registers: multicast groups, services, subscriptions; and what outlives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from management.sa_net import SaNet, redundant
from verbena.errors import ManagementError, NotFound
from verbena.management.datagrams import MadAddress
from verbena.management.sa_multicast import Tree
from verbena.management.sa_request import MemoryStore
from verbena.wire.notice import GmpNotice, InformInfo
from verbena.wire.sa import SaCapability, SaHeader, SaMethod, SaStatus, sa_mad
from verbena.wire.sa_nodes import InformInfoRecord, NoticeRecord
from verbena.wire.sa_records import RATE_CODE, JoinState, MCMemberRecord, Selector, ServiceRecord
from verbena.wire.smp_attributes import Notice, Trap

SECOND = 1_000_000_000
MGID = bytes.fromhex("ff12401bffff00000000000000000001")
NEW: dict[str, Any] = {"pkey": 0xFFFF, "qkey": 0xB1B, "sl": 0, "flow_label": 0, "tclass": 0}


def status_of(call: Callable[[], object]) -> int:
    with pytest.raises(ManagementError) as caught:
        call()
    return caught.value.status


def guids(net: SaNet, *names: str) -> frozenset[int]:
    return frozenset(net.port(name).guid for name in names)


# --- multicast --------------------------------------------------------------------------------------------------


def test_a_group_is_made_joined_left_and_ended() -> None:
    net = SaNet(redundant())
    one, two, three = (net.client(name) for name in ("h1", "h2", "h3"))
    watched: list[GmpNotice] = []
    for trap in (Trap.MCG_CREATED, Trap.MCG_DELETED):
        net.wait(three.subscribe(watched.append, trap).accepted)
    made = net.wait(one.join(MGID, net.gid("h1"), **NEW))
    assert (made.mlid, made.mgid, made.mtu, made.rate) == (0xC000, MGID, 5, RATE_CODE[100])
    joined = net.wait(two.join(MGID, net.gid("h2"), JoinState.SEND_ONLY))
    assert joined.mlid == made.mlid
    net.wait(three.join(MGID, net.gid("h3"), JoinState.NON_MEMBER))
    assert net.trees[-1] == Tree(0xC000, guids(net, "h1", "h3"), guids(net, "h1", "h2", "h3"))
    assert net.wait(two.join(MGID, net.gid("h2"), JoinState.FULL)).join_state == 5
    assert net.wait(one.leave(MGID, net.gid("h1"))).join_state == 0
    assert status_of(lambda: net.wait(one.leave(MGID, net.gid("h1")))) == SaStatus.REQUEST_INVALID
    net.wait(
        two.leave(MGID, net.gid("h2"), JoinState.FULL)
    )  # the last full member: the others do not hold it
    assert net.trees[-1] == Tree(0xC000, frozenset(), frozenset())
    assert net.wait(one.get_table(MCMemberRecord)) == []
    net.run(10_000_000)
    assert [(notice.trap, notice.gid) for notice in watched] == [(66, MGID), (67, MGID)]
    assert net.wait(one.join(bytes(16), net.gid("h1"), **NEW)).mlid == 0xC000  # free again
    assert net.balanced()


def test_groups_without_a_name_get_one() -> None:
    net = SaNet(redundant())
    client = net.client("h1")
    names = {net.wait(client.join(bytes(16), net.gid("h1"), **NEW)).mgid for _ in range(5)}
    assert len(names) == 5
    assert all(name[0] == 0xFF for name in names)
    mlids = {record.mlid for record in net.wait(client.get_table(MCMemberRecord))}
    assert mlids == {0xC000, 0xC001, 0xC002, 0xC003, 0xC004}


def test_joins_that_are_refused() -> None:
    net = SaNet(redundant(), mlids=1)
    net.set_pkeys("h4", 0x8007)
    one, two, four = (net.client(name) for name in ("h1", "h2", "h4"))
    join = two.join
    gid = net.gid("h2")

    def refused(call: Callable[[], Any]) -> int:
        return status_of(lambda: net.wait(call()))

    invalid, missing = SaStatus.REQUEST_INVALID, SaStatus.INSUFFICIENT_COMPONENTS
    assert refused(lambda: join(MGID, gid)) == missing  # nobody has made it
    assert refused(lambda: join(MGID, gid, JoinState.NON_MEMBER, **NEW)) == invalid
    assert refused(lambda: join(b"\xfe" + bytes(15), gid, **NEW)) == invalid  # no multicast address
    assert refused(lambda: join(MGID, gid, 8, **NEW)) == invalid
    assert refused(lambda: join(MGID, gid, **NEW | {"pkey": 0x8005})) == invalid
    assert refused(lambda: join(MGID, net.gid("h1"), **NEW)) == SaStatus.DENIED  # another's port
    assert refused(lambda: join(MGID, bytes(16), **NEW)) == SaStatus.INVALID_GID
    fast = {"rate": RATE_CODE[200], "rate_selector": Selector.EXACTLY}
    assert refused(lambda: join(MGID, gid, **NEW, **fast)) == invalid
    net.wait(one.join(MGID, net.gid("h1"), **NEW, mtu=4, mtu_selector=Selector.EXACTLY))
    other = bytes([*MGID[:15], 9])
    assert (
        refused(lambda: join(other, gid, **NEW)) == SaStatus.NO_RESOURCES
    )  # one multicast LID, and it is taken
    assert refused(lambda: join(MGID, gid, qkey=1)) == invalid
    assert refused(lambda: join(MGID, gid, mtu=5, mtu_selector=Selector.EXACTLY)) == invalid
    assert refused(lambda: four.join(MGID, net.gid("h4"))) == invalid  # not of the partition
    port = net.port("h2")
    port.info = replace(port.info, neighbor_mtu=3)
    assert refused(lambda: join(MGID, gid)) == invalid  # cannot receive the group's packets
    port.info = replace(port.info, neighbor_mtu=5)
    assert net.wait(join(MGID, gid, mtu=3, mtu_selector=Selector.GREATER)).mtu == 4
    assert len(net.trees) == 2


def test_members_are_shown_to_trusted_requests() -> None:
    net = SaNet(redundant())
    net.wait(net.client("h1").join(MGID, net.gid("h1"), **NEW))
    net.wait(net.client("h2").join(MGID, net.gid("h2")))
    plain = net.wait(net.client("h3").get_table(MCMemberRecord))
    assert [(record.mgid, record.port_gid, record.join_state) for record in plain] == [(MGID, bytes(16), 0)]
    trusted = net.wait(net.client("h3", trusted=True).get_table(MCMemberRecord))
    assert {record.port_gid for record in trusted} == {net.gid("h1"), net.gid("h2")}
    own = MCMemberRecord(mgid=MGID, port_gid=net.gid("h2"))
    assert net.wait(net.client("h2").get(MCMemberRecord, own, ("mgid", "port_gid"))).join_state == 1


@pytest.mark.requirement("TRN-22")
def test_without_multicast_the_service_is_refused_and_nothing_else() -> None:
    net = SaNet(redundant(), multicast=False)
    client = net.client("h1")
    assert not net.wait(client.class_port_info()).capability_mask & SaCapability.MULTICAST
    assert status_of(lambda: net.wait(client.join(MGID, net.gid("h1"), **NEW))) == 0x000C
    assert status_of(lambda: net.wait(client.leave(MGID, net.gid("h1")))) == 0x000C
    assert status_of(lambda: net.wait(client.get_table(MCMemberRecord))) == 0x000C
    assert len(net.wait(client.nodes())) == len(net.topology.nodes)
    assert net.wait(client.path(sgid=net.gid("h1"), dgid=net.gid("h2"))).dlid == net.lid("h2")
    net.replace_subnet(absent={"h2"})
    assert net.trees == []
    with_it = SaNet(redundant())
    assert with_it.wait(with_it.client("h1").class_port_info()).capability_mask & SaCapability.MULTICAST


class Groups(RuleBasedStateMachine):
    """Joins and leaves against a plain model: {group: {port: join state}}."""

    def __init__(self) -> None:
        super().__init__()
        self.net = SaNet(redundant())
        self.clients = {name: self.net.client(name) for name in ("h1", "h2", "h3", "h4")}
        self.model: dict[bytes, dict[str, int]] = {}

    names = st.sampled_from(["h1", "h2", "h3", "h4"])
    mgids = st.sampled_from([bytes([*MGID[:15], at]) for at in range(3)])
    states = st.integers(1, 7)

    @rule(name=names, mgid=mgids, state=states, new=st.booleans())
    def join(self, name: str, mgid: bytes, state: int, new: bool) -> None:
        pending = self.clients[name].join(mgid, self.net.gid(name), state, **(NEW if new else {}))
        members = self.model.get(mgid)
        if members is None and not (new and state & 1):
            assert status_of(lambda: self.net.wait(pending))
            return
        members = self.model.setdefault(mgid, {})
        members[name] = members.get(name, 0) | state
        assert self.net.wait(pending).join_state == members[name]

    @rule(name=names, mgid=mgids, state=states)
    def leave(self, name: str, mgid: bytes, state: int) -> None:
        pending = self.clients[name].leave(mgid, self.net.gid(name), state)
        members = self.model.get(mgid, {})
        if state & ~members.get(name, 0):
            assert status_of(lambda: self.net.wait(pending)) == SaStatus.REQUEST_INVALID
            return
        members[name] &= ~state
        assert self.net.wait(pending).join_state == members[name]
        if not members[name]:
            del members[name]
        if not any(value & 1 for value in members.values()):
            del self.model[mgid]

    @rule(name=names)
    def unplug(self, name: str) -> None:
        self.net.replace_subnet(absent={name})
        self.net.replace_subnet()
        for mgid, members in list(self.model.items()):
            if members.pop(name, None) and not any(value & 1 for value in members.values()):
                del self.model[mgid]

    @invariant()
    def agrees(self) -> None:
        assert self.net.sa.multicast is not None
        groups = self.net.sa.multicast.groups
        found = {
            mgid: {name: group.members[self.net.gid(name)].join_state for name in self.clients
                   if self.net.gid(name) in group.members}
            for mgid, group in groups.items()
        }  # fmt: skip
        assert found == self.model
        assert len({group.record.mlid for group in groups.values()}) == len(groups)
        built: dict[int, Tree] = {}
        for tree in self.net.trees:
            built[tree.mlid] = tree
        alive = {mlid: tree for mlid, tree in built.items() if tree.senders}
        assert alive == {tree.mlid: tree for tree in self.net.sa.multicast.trees()}


TestGroups = Groups.TestCase
TestGroups.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


# --- services ---------------------------------------------------------------------------------------------------


def service(net: SaNet, name: str, **more: Any) -> ServiceRecord:
    values = {"service_id": 7, "gid": net.gid(name), "pkey": 0xFFFF, "name": b"iblan"} | more
    return ServiceRecord(**values)


def test_services_are_registered_found_and_end_with_their_lease() -> None:
    net = SaNet(redundant())
    one, two = net.client("h1"), net.client("h2")
    net.wait(one.register(service(net, "h1", lease=10, data=b"hello")))
    net.wait(two.register(service(net, "h2")))
    found = net.wait(two.services(b"iblan"))
    assert {record.gid for record in found} == {net.gid("h1"), net.gid("h2")}
    assert next(record for record in found if record.gid == net.gid("h1")).data[:5] == b"hello"
    assert net.wait(two.services(b"other")) == []
    net.run(5 * SECOND)
    net.wait(one.register(service(net, "h1", lease=10)))
    net.run(8 * SECOND)
    assert len(net.wait(two.services(b"iblan"))) == 2
    assert {record.lease for record in net.wait(two.services(b"iblan"))} == {2, 0xFFFFFFFF}
    net.run(3 * SECOND)
    assert [record.gid for record in net.wait(two.services(b"iblan"))] == [net.gid("h2")]
    net.wait(two.unregister(service(net, "h2")))
    assert net.wait(two.services(b"iblan")) == []
    with pytest.raises(NotFound):
        net.wait(two.unregister(service(net, "h2")))


def test_services_that_are_refused() -> None:
    net = SaNet(redundant())
    one, two = net.client("h1"), net.client("h2")

    def refused(client: Any, record: ServiceRecord) -> int:
        return status_of(lambda: net.wait(client.register(record)))

    assert refused(two, service(net, "h1")) == SaStatus.DENIED
    assert refused(one, service(net, "h1", gid=bytes(16))) == SaStatus.INVALID_GID
    assert refused(one, service(net, "h1", pkey=0x8009)) == SaStatus.REQUEST_INVALID
    assert refused(one, service(net, "h1", lease=0)) == SaStatus.REQUEST_INVALID
    partial = one.set(service(net, "h1"), ("gid", "name"))
    assert status_of(lambda: net.wait(partial)) == SaStatus.INSUFFICIENT_COMPONENTS
    net.wait(one.register(service(net, "h1", key=b"k" * 16)))
    assert refused(one, service(net, "h1", key=b"x" * 16)) == SaStatus.DENIED
    assert net.wait(two.services(b"iblan"))[0].key == bytes(16)
    assert net.wait(net.client("h3", trusted=True).services(b"iblan"))[0].key == b"k" * 16
    wrong = one.unregister(service(net, "h1"))
    assert status_of(lambda: net.wait(wrong)) == SaStatus.DENIED
    for number in range(255):
        net.wait(one.register(service(net, "h1", service_id=100 + number)))
    assert refused(one, service(net, "h1", service_id=999)) == SaStatus.NO_RESOURCES


def test_services_go_with_their_port() -> None:
    net = SaNet(redundant())
    net.wait(net.client("h1").register(service(net, "h1")))
    net.replace_subnet(absent={"h1"})
    assert net.wait(net.client("h2").services(b"iblan")) == []


# --- subscriptions ----------------------------------------------------------------------------------------------


def test_reports_are_repeated_until_answered(seed: int) -> None:
    """On a bad network each notice is told once."""
    net = SaNet(redundant())
    client = net.client("h1")
    told: list[GmpNotice] = []
    net.wait(client.subscribe(told.append, Trap.GID_OUT_OF_SERVICE).accepted)
    random = Random(seed)
    net.fate = lambda data: (
        [] if random.random() < 0.3 else [random.randrange(1000)] * (1 + random.randrange(2))
    )
    for _ in range(10):
        net.replace_subnet(absent={"h2"})
        net.replace_subnet()
    net.run()
    assert [notice.gid for notice in told] == [net.gid("h2")] * 10
    assert net.sa.counters["reports.answered"] == 10
    assert net.balanced()


def test_a_subscriber_that_is_silent_holds_little(seed: int) -> None:
    net = SaNet(redundant())
    client = net.client("h1")
    net.wait(client.subscribe(lambda notice: None).accepted)
    net.fate = lambda data: []
    for _ in range(300):
        net.sa.trap(Notice(trap=128, issuer_lid=3, producer=2))
    assert net.sa.counters["reports.sent"] == 256
    net.run()
    assert net.sa.counters["reports.lost"] == 300
    assert net.clock.next_time() is None


def test_who_hears_of_what() -> None:
    net = SaNet(redundant())
    net.set_pkeys("h1", 0x8001)
    net.set_pkeys("h2", 0x8001)
    net.set_pkeys("h3", 0x8002)
    net.sa.changed()
    told: dict[str, list[int]] = {"h1": [], "h3": [], "h4": []}
    clients = {name: net.client(name) for name in ("h1", "h3")}
    for name, client in clients.items():
        net.wait(client.subscribe(lambda n, name=name: told[name].append(n.trap)).accepted)
    trusted = net.client("h4", trusted=True)
    net.wait(trusted.subscribe(lambda n: told["h4"].append(n.trap), Trap.BAD_PKEY).accepted)
    refused = clients["h1"].subscribe(lambda n: None, Trap.BAD_PKEY)
    assert status_of(lambda: net.wait(refused.accepted)) == SaStatus.DENIED
    net.replace_subnet(absent={"h2"})  # of h1's partition, not of h3's
    net.sa.trap(Notice(trap=128, producer=2))
    net.sa.trap(Notice(trap=257, type=2, producer=1))
    net.run()
    assert told == {"h1": [65, 128], "h3": [128], "h4": [257]}
    assert net.sa.counters["reports.lost"] == 0


def test_subscriptions_by_source_number_and_kind() -> None:
    net = SaNet(redundant())
    client = net.client("h1")

    def set_info(**fields: Any) -> None:
        net.wait(client._request(SaMethod.SET, 3, InformInfo(**fields)))

    set_info(lid_begin=5, lid_end=6, trap_number=128)
    set_info(lid_begin=9, trap_number=128, producer_type=2)
    records = net.wait(client.get_table(InformInfoRecord))
    assert [(r.id.enum, r.info.lid_begin) for r in records] == [(1, 5), (2, 9)]
    assert net.wait(net.client("h2").get_table(InformInfoRecord)) == []
    for lid, producer, number in (
        (5, 1, 128),
        (6, 2, 128),
        (7, 2, 128),
        (9, 2, 128),
        (9, 1, 128),
        (5, 1, 129),
    ):
        net.sa.trap(Notice(trap=number, issuer_lid=lid, producer=producer))
    net.run()
    assert net.sa.counters["reports.sent"] == 3
    set_info(lid_begin=5, lid_end=6, trap_number=128, subscribe=0)
    again = client._request(SaMethod.SET, 3, InformInfo(lid_begin=5, lid_end=6, trap_number=128, subscribe=0))
    assert status_of(lambda: net.wait(again)) == SaStatus.REQUEST_INVALID
    for number in range(100, 163):
        set_info(trap_number=number)
    full = client._request(SaMethod.SET, 3, InformInfo(trap_number=999))
    assert status_of(lambda: net.wait(full)) == SaStatus.NO_RESOURCES


def test_the_log_of_notices_is_read_by_any_node() -> None:
    net = SaNet(redundant())
    net.replace_subnet(absent={"h4"})
    net.replace_subnet()
    log = net.wait(net.client("h2").get_table(NoticeRecord))
    assert [(r.id.number, r.notice.trap, r.notice.gid) for r in log] == [
        (1, 65, net.gid("h4")),
        (2, 64, net.gid("h4")),
    ]


@pytest.mark.requirement("SUB-03")
def test_what_was_registered_outlives_the_server() -> None:
    """The administration is started again on the same store: groups, services, subscriptions are there."""
    store = MemoryStore()
    net = SaNet(redundant(), store=store)
    client = net.client("h1")
    told: list[int] = []
    net.wait(client.subscribe(lambda n: told.append(n.trap), Trap.GID_OUT_OF_SERVICE).accepted)
    made = net.wait(client.join(MGID, net.gid("h1"), **NEW))
    net.wait(client.register(service(net, "h1")))
    net.sa.close()
    net.sa = net.make_sa(store=store)
    assert net.wait(net.client("h2").services(b"iblan"))[0].gid == net.gid("h1")
    net.receivers[net.lid("h1")] = client.receive
    joined = net.wait(net.client("h3").join(MGID, net.gid("h3")))
    assert joined.mlid == made.mlid
    net.replace_subnet(absent={"h4"})
    net.run()
    assert told == [Trap.GID_OUT_OF_SERVICE]
    damaged = MemoryStore()
    for kind in ("subscription", "multicast", "service"):
        damaged.save(kind, b"x", b"torn")
    assert net.make_sa(store=damaged).counters["store.unreadable"] == 1


# --- any bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [0, 0x5EC2E7])
def test_any_request_is_answered_or_counted(key: int, seed: int) -> None:
    random = Random(f"{seed} {key}")
    net = SaNet(redundant())
    lid = net.lid("h1")
    for _ in range(3000):
        attribute = random.choice(
            [1, 2, 3, 0x11, 0x12, 0x31, 0x35, 0x38, 0xF3, 0xF4, random.randrange(0x10000)]
        )
        method = random.choice([1, 2, 6, 0x12, 0x15, 0x86, random.randrange(256)])
        mask = random.getrandbits(37) if random.random() < 0.5 else random.getrandbits(20)
        body = bytearray(random.randbytes(200))
        if random.random() < 0.5:
            body[:32] = MGID + net.gid("h1")
        header = SaHeader(sm_key=key, component_mask=mask)
        mad = sa_mad(method, attribute, transaction_id=random.getrandbits(3))
        if random.random() < 0.2:
            mad = replace(
                mad, rmpp_flags=1, rmpp_version=1, rmpp_type=random.randrange(6), data1=random.randrange(4)
            )
        net.sa.receive(
            MadAddress(random.choice([lid, lid, 99])), replace(mad, data=header.pack() + bytes(body)).pack()
        )
        if random.random() < 0.1:
            net.sa.receive(MadAddress(lid), random.randbytes(random.randrange(300)))
    net.run()
    assert net.balanced()
    assert net.sa.transfers == 0
    assert net.clock.next_time() is None or len(net.sa.subscriptions) > 0
