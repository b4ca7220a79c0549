"""The team: one interface over several cards, balancing, fail-over, VLAN groups, cards that come and go."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from team_lab import TEAM_VLAN, UPLOAD_VLAN, Lab, Stream, connect
from verbena.errors import InvalidAttributeError, NotFound
from verbena.runtime.virtual_ethernet import VirtualCard, VirtualSwitch
from verbena.team.balance import Mode
from verbena.team.config import TeamConfig
from verbena.team.frames import add_tag, take_tag
from verbena.team.member import MemberState
from verbena.team.offload.states import MILLISECOND, Path

SIZE = 400_000


def frames_of(card: VirtualCard, lab: Lab) -> list[tuple[int, str, bytes]]:
    """Everything that passes a card from now on."""
    seen: list[tuple[int, str, bytes]] = []
    card.watch = lambda direction, frame: seen.append((lab.net.now, direction, frame))
    return seen


def tx(lab: Lab, host: int = 0, what: str = "tx.team") -> dict[str, int]:
    return {m.name: m.counters[what] for m in lab.hosts[host].driver.members}


def send_flows(lab: Lab, flows: int, rounds: int, pause: float = 0.05) -> list[tuple[int, bytes]]:
    """UDP datagrams of many flows from host 0 to host 1, numbered; what arrived, in order."""
    got: list[tuple[int, bytes]] = []
    for port in range(flows):
        lab.hosts[1].stack.open_udp(9000 + port, lambda data, peer, port=port: got.append((port, data)))
    there = lab.hosts[1].interfaces[TEAM_VLAN].address
    for number in range(rounds):
        for port in range(flows):
            payload = number.to_bytes(4, "big") + bytes(400)
            lab.hosts[0].stack.send_udp(5000 + port, (there, 9000 + port), payload)
        lab.run(pause)
    lab.run(1)
    return got


@pytest.mark.requirement("TEM-01")
def test_a_team_of_three_of_four_cards_is_one_interface(seed: int) -> None:
    lab = Lab(seed)
    host = lab.host(nics=3, rnics=0, rdma_vlan=None)
    lab.host(nics=1, rnics=0, rdma_vlan=None)
    fourth = lab.card(0, "nic3")
    seen = frames_of(fourth, lab)
    lab.run(5)
    stream = Stream(lab, lab.random.randbytes(SIZE))
    lab.until(lambda: stream.done)
    assert [interface.port.name for interface in host.stack.interfaces] == [f"T-virtual.{TEAM_VLAN}"]
    assert len(host.driver.usable) == 3
    assert fourth.counters["tx"] == 0
    assert not [frame for _, direction, frame in seen if direction == "out"]


@pytest.mark.requirement("TEM-02")
@pytest.mark.parametrize("mode", [Mode.LAYER34, Mode.LEAST_LOAD, Mode.MONITORED_FLOW])
def test_many_flows_spread_and_each_stays_in_order(mode: Mode, seed: int) -> None:
    lab = Lab(seed)
    lab.host(nics=3, rnics=0, rdma_vlan=None, mode=mode)
    lab.host(nics=1, rnics=0, rdma_vlan=None)
    lab.run(5)
    got = send_flows(lab, 60, 20)
    used = tx(lab)
    assert len(got) == 1200
    assert min(used.values()) > 0.15 * sum(used.values()), used
    for flow in range(60):
        numbers = [data[:4] for port, data in got if port == flow]
        assert numbers == sorted(numbers)


@pytest.mark.requirement("TEM-02")
def test_layer_2_takes_one_member_for_a_pair_and_several_for_many(seed: int) -> None:
    lab = Lab(seed)
    lab.host(nics=4, rnics=0, rdma_vlan=None, mode=Mode.LAYER2)
    for _ in range(8):
        lab.host(nics=1, rnics=0, rdma_vlan=None)
    lab.run(5)
    before = tx(lab)
    got = send_flows(lab, 20, 2)
    assert len(got) == 40
    # Many flows to one neighbour are one conversation of layer 2.
    assert sum(tx(lab)[name] > count + 3 for name, count in before.items()) == 1
    stack = lab.hosts[0].stack
    for other in range(2, 9):
        for _ in range(5):
            stack.send_udp(1, (lab.hosts[other].interfaces[TEAM_VLAN].address, 9), b"to each")
    lab.run(5)
    assert sum(count > 5 for count in tx(lab).values()) >= 2


def test_round_robin_spreads_one_flow_evenly(seed: int) -> None:
    lab = Lab(seed)
    lab.host(nics=4, rnics=0, rdma_vlan=None, mode=Mode.ROUND_ROBIN)
    lab.host(nics=1, rnics=0, rdma_vlan=None)
    lab.run(5)
    before = tx(lab)
    assert len(send_flows(lab, 1, 100)) == 100
    used = [tx(lab)[name] - before[name] for name in before]
    assert max(used) - min(used) <= 4, used


def test_a_new_flow_avoids_the_card_that_the_upload_path_loads(seed: int) -> None:
    """The load of the upload path counts in the team's decisions (document 004, paragraph 24)."""
    lab = Lab(seed, rate_bps=1e9)
    host = lab.host(nics=1, rnics=1, mode=Mode.LEAST_LOAD)
    lab.host(nics=1, rnics=1)
    lab.run(5)
    near, _far = connect(lab, there=lab.random.randbytes(3_000_000))
    near.session.pinned = near.session.path
    lab.run(5)
    rnic = host.driver.member("rnic0")
    assert rnic.meter.rate(lab.net.now) > 10 * host.driver.member("nic0").meter.rate(lab.net.now)
    before = Counter(tx(lab))
    send_flows(lab, 10, 1)
    used = Counter(tx(lab)) - before
    assert used["nic0"] >= 10, used
    assert not used["rnic0"]


@pytest.mark.requirement("TEM-03", "TEM-07")
@pytest.mark.parametrize("rnics", [0, 1])
def test_a_killed_card_s_flows_go_on_over_the_others(rnics: int, seed: int) -> None:
    lab = Lab(seed, rate_bps=1e9)
    host = lab.host(nics=3 - rnics, rnics=rnics)
    lab.host(nics=2, rnics=0)
    changes: list[bool] = []
    lab.run(5)
    interface = host.interfaces[TEAM_VLAN]
    interface.on_link = changes.append
    streams = [Stream(lab, lab.random.randbytes(SIZE // 4), port=80 + i) for i in range(20)]
    lab.run(2)
    before = tx(lab)
    assert all(before.values()), "every card carries something"
    lab.cards[0]["nic0"].set_link(False)
    lab.until(lambda: all(stream.done for stream in streams))
    after = tx(lab)
    assert after["nic0"] == before["nic0"]
    assert sum(after[name] > before[name] for name in after) == 2, "its load is spread over the rest"
    assert not changes, "the stack has noticed nothing"
    for name in lab.cards[0]:
        lab.cards[0][name].set_link(False)
    assert changes == [False]
    dropped = interface.port.counters["drop.tx.down"]
    host.stack.send_udp(1, (lab.hosts[1].interfaces[TEAM_VLAN].address, 9), b"nobody hears it")
    assert interface.port.counters["drop.tx.down"] == dropped + 1
    lab.cards[0]["nic1" if rnics == 0 else "rnic0"].set_link(True)
    assert changes == [False, True]


@pytest.mark.requirement("TEM-04", "TEM-06", "TEM-07")
def test_vlans_over_one_team_are_isolated(seed: int) -> None:
    lab = Lab(seed)
    a = lab.host(nics=2, rnics=1, vlans=(10, 11))
    b = lab.host(nics=1, rnics=1, vlans=(10, 11))
    lab.run(5)
    got: Counter[str] = Counter()
    b.stack.open_udp(9, lambda data, peer: got.update([peer[0]]))
    for vlan in (10, 11):
        a.stack.send_udp(9, (b.interfaces[vlan].address, 9), b"x")
    lab.run(2)
    assert got == {"10.10.0.1": 1, "10.11.0.1": 1}
    for vlan in (10, 11):
        assert b.driver.team.cards[vlan].counters["rx"] >= 1
    # The same addresses in another VLAN reach nobody, and a VLAN that is not configured is dropped.
    seen = {vlan: card.counters["rx"] for vlan, card in b.driver.team.cards.items()}
    upload = b.driver.rdma_miniport
    assert upload is not None
    before = upload.counters["rx"]
    target, source = b.driver.mac, bytes.fromhex("020000000099")
    for vlan in (12, 0):
        lab.cards[0]["nic0"].transmit(add_tag(target + source + b"\x08\x00" + bytes(60), vlan))
    lab.run(2)
    assert {vlan: card.counters["rx"] for vlan, card in b.driver.team.cards.items()} == seen
    assert upload.counters["rx"] == before
    assert sum(m.counters["drop.rx.vlan"] for m in b.driver.members) >= 2


@pytest.mark.requirement("TEM-05", "TEM-16", "TEM-08", "TEM-06")
def test_the_driver_sees_stack_and_upload_path_and_not_what_is_offloaded(seed: int) -> None:
    lab = Lab(seed, rate_bps=1e9)
    a, b = lab.host(), lab.host()
    watched = {name: frames_of(card, lab) for name, card in lab.cards[0].items()}
    lab.run(5)
    stream = Stream(lab, lab.random.randbytes(SIZE))
    lab.until(lambda: stream.done)
    counters = a.driver.counters
    assert counters["stack.team"] > 0
    assert counters["stack.upload"] == 0
    near, far = connect(lab, there=lab.random.randbytes(2_000_000))
    near.session.pinned = near.session.path
    lab.run(1)
    assert counters["stack.upload"] > 0
    assert counters["path.220"] == counters["stack.upload"]
    near.session.pinned = Path.OFFLOAD
    lab.until(lambda: near.session.path is Path.OFFLOAD)
    lab.run(0.2)
    drivers = [Counter(host.driver.counters) for host in (a, b)]
    members = [Counter(m.counters) for m in a.driver.members]
    rdma = a.rdma["rnic0"].counters["offload.tx.bytes"]
    lab.until(lambda: a.rdma["rnic0"].counters["offload.tx.bytes"] > rdma + 300_000)
    assert [Counter(host.driver.counters) for host in (a, b)] == drivers
    assert [Counter(m.counters) for m in a.driver.members] == members
    lab.until(lambda: len(far.received) == 2_000_000)
    assert far.received == near.data
    # Managed connections, offloaded or not, appear on the RDMA card only; the team's VLAN on all of them.
    for name, seen in watched.items():
        vlans = {take_tag(frame).vlan for _, direction, frame in seen if direction == "out"}
        assert (UPLOAD_VLAN in vlans) is (name == "rnic0"), name


@pytest.mark.requirement("TEM-08")
def test_upload_traffic_elsewhere_is_refused(seed: int) -> None:
    """R-virtual's VLAN is dedicated: neither the team's frames on it, nor its frames on an ordinary card."""
    lab = Lab(seed)
    a = lab.host()
    lab.run(5)
    upload = a.driver.rdma_miniport
    assert upload is not None
    with pytest.raises(InvalidAttributeError, match="dedicated to the RDMA miniport"):
        a.driver.team.add(UPLOAD_VLAN)
    before = upload.counters["rx"]
    frame = add_tag(upload.mac + bytes.fromhex("020000000099") + b"\x08\x00" + bytes(60), UPLOAD_VLAN)
    lab.cards[0]["nic0"].deliver(frame)
    assert upload.counters["rx"] == before
    assert a.driver.member("nic0").counters["drop.rx.upload_elsewhere"] == 1
    lab.cards[0]["rnic0"].deliver(frame)
    assert upload.counters["rx"] == before + 1
    assert not upload.transmit(add_tag(frame, TEAM_VLAN)), "a tag of the stack's own"
    assert upload.counters["drop.tx.tagged"] == 1


@pytest.mark.requirement("TEM-19")
def test_an_rdma_card_joins_and_leaves_a_running_team(seed: int) -> None:
    lab = Lab(seed, rate_bps=1e9)
    a = lab.host(nics=2, rnics=0)
    lab.host(nics=2, rnics=0)
    lab.run(5)
    streams = [Stream(lab, lab.random.randbytes(SIZE), port=80 + i) for i in range(8)]
    lab.run(2)
    lab.rnic(0, "rnic0")
    lab.rnic(1, "rnic0")
    lab.run(5)
    assert tx(lab)["rnic0"] > 0, "it takes its share"
    assert a.driver.rdma_miniport.is_up
    near, far = connect(lab, there=lab.random.randbytes(300_000))
    a.remove("rnic0")
    assert not a.driver.rdma_miniport.is_up
    lab.until(lambda: all(stream.done for stream in streams))
    lab.until(lambda: len(far.received) == 300_000)
    assert far.received == near.data
    assert [m.name for m in a.driver.members] == ["nic0", "nic1"]


def test_active_backup_uses_one_and_preempts_by_choice(seed: int) -> None:
    for preempt in (False, True):
        lab = Lab(seed)
        a = lab.host(nics=2, rnics=0, rdma_vlan=None, mode=Mode.ACTIVE_BACKUP, preempt=preempt)
        lab.host(nics=1, rnics=0, rdma_vlan=None)
        lab.run(5)
        send_flows(lab, 10, 1)
        assert tx(lab)["nic1"] == 0
        lab.cards[0]["nic0"].set_link(False)
        before = tx(lab)["nic0"]
        assert len(send_flows(lab, 10, 1)) == 10
        assert tx(lab)["nic0"] == before
        lab.cards[0]["nic0"].set_link(True)
        assert a.driver.receiver is not None
        assert a.driver.receiver.name == ("nic0" if preempt else "nic1")


def test_switches_learn_at_once_where_the_team_is(seed: int) -> None:
    """After a fail-over frames from outside arrive without the team sending anything of its own first."""
    lab = Lab(seed)
    a = lab.host(nics=2, rnics=0, rdma_vlan=None)
    b = lab.host(nics=1, rnics=0, rdma_vlan=None)
    lab.run(5)
    send_flows(lab, 1, 1)
    got: list[int] = []
    a.stack.open_udp(9, lambda data, peer: got.append(lab.net.now))
    receiver = a.driver.receiver
    assert receiver is not None
    lab.cards[0][receiver.name].set_link(False)
    failed = lab.net.now
    lab.run(0.02)
    b.stack.send_udp(9, (a.interfaces[TEAM_VLAN].address, 9), b"?")
    lab.run(1)
    assert len(got) == 1
    assert got[0] - failed < 100_000


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"vlans": (10, 10)}, "twice"),
        ({"vlans": (20,), "rdma_vlan": 20}, "dedicated"),
        ({"vlans": (4095,)}, "1 to 4094"),
        ({"vlans": ()}, "at least one"),
        ({"mtu": 10}, "mtu"),
        ({"mac": b"\xff" * 6}, "individual"),
        ({"mode": "layer2"}, "one of"),
        ({"lacp": True, "mode": Mode.ACTIVE_BACKUP}, "active-backup"),
        ({"heartbeat_key": b"short"}, "heartbeat key"),
        ({"arp_targets": ("fe80::1",)}, "IPv4"),
        ({"probe_misses": 0}, "1 or more"),
    ],
)
def test_wrong_settings_are_refused_with_one_sentence(settings: dict[str, Any], what: str, seed: int) -> None:
    lab = Lab(seed)
    with pytest.raises(InvalidAttributeError, match=what) as told:
        lab.host(0, 0, **settings)
    assert len(str(told.value).splitlines()) == 1


def test_cards_that_do_not_fit_and_the_last_one(seed: int) -> None:
    lab = Lab(seed)
    a = lab.host(nics=1, rnics=0, rdma_vlan=None)
    lab.run(5)
    with pytest.raises(InvalidAttributeError, match="MTU of 1400, the team of 1500"):
        a.add(lab.card(0, "small", mtu=1400))
    assert a.driver.counters["refused.mtu"] == 1
    with pytest.raises(InvalidAttributeError, match="already"):
        a.add(lab.cards[0]["nic0"])
    assert a.driver.counters["refused.twice"] == 1
    with pytest.raises(NotFound, match="no member nic7: it has nic0"):
        a.driver.fail("nic7")
    a.add(lab.card(0, "jumbo", mtu=9000))  # more than the team's is no harm
    a.remove("jumbo")
    card = a.interfaces[TEAM_VLAN].port
    assert card.is_up
    a.remove("nic0")
    assert not card.is_up
    assert a.driver.counters["last_member_removed"] == 1
    assert not card.transmit(bytes(64))
    a.add(lab.cards[0]["nic0"])
    assert card.is_up
    assert a.driver.member("nic0").state is MemberState.ACTIVE


def test_a_flooded_copy_reaches_the_stack_once(seed: int) -> None:
    lab = Lab(seed)
    a = lab.host(nics=4, rnics=0, rdma_vlan=None)
    b = lab.host(nics=1, rnics=0, rdma_vlan=None)
    lab.run(5)
    before = a.driver.team.cards[TEAM_VLAN].counters["rx"]
    copies = sum(m.counters["drop.rx.duplicate"] for m in a.driver.members)
    b.stack.send_udp(9, (a.interfaces[TEAM_VLAN].address, 9), b"first an ARP request, to everybody")
    lab.run(5)
    # The request, and then the datagram.
    assert a.driver.team.cards[TEAM_VLAN].counters["rx"] - before == 2
    assert sum(m.counters["drop.rx.duplicate"] for m in a.driver.members) == copies + 3


def test_ten_members_and_a_static_aggregation(seed: int) -> None:
    lab = Lab(seed)
    lab.host(nics=10, rnics=0, rdma_vlan=None, aggregated=True)
    lab.host(nics=1, rnics=0, rdma_vlan=None)
    ports = lab.switch.ports[:10]
    lab.switch.lag(*ports)
    lab.run(5)
    streams = [Stream(lab, lab.random.randbytes(30_000), port=80 + i) for i in range(40)]
    lab.run(0.05)
    for name in ("nic3", "nic7", "nic1"):
        lab.cards[0][name].set_link(False)
        lab.run(0.1)
    lab.until(lambda: all(stream.done for stream in streams))
    received = [m.counters["rx.team"] for m in lab.hosts[0].driver.members]
    assert sum(count > 0 for count in received) >= 5, "any member may receive"


def test_team_config_is_a_value() -> None:
    assert TeamConfig() == TeamConfig()
    assert TeamConfig(arp_targets=("10.0.0.1",)).probes
    assert not TeamConfig().probes


def test_a_switch_floods_learns_and_forgets(seed: int) -> None:
    lab = Lab(seed)
    switch = VirtualSwitch(lab.clock)
    cards = [VirtualCard(lab.clock, f"c{i}", bytes([2, 0, 0, 0, 0, i])) for i in range(3)]
    got: list[tuple[int, bytes]] = []
    for i, card in enumerate(cards):
        switch.plug(card)
        card.attach(lambda frame, i=i: got.append((i, frame)), lambda up: None)
    frame = cards[1].mac + cards[0].mac + b"\x88\xb5" + bytes(50)
    cards[0].transmit(frame)
    lab.run(1)
    assert sorted(i for i, _ in got) == [1, 2]
    cards[1].transmit(cards[0].mac + cards[1].mac + b"\x88\xb5" + bytes(50))
    lab.run(1)
    cards[0].transmit(frame)
    lab.run(1)
    assert [i for i, _ in got[2:]] == [0, 1]
    cards[1].set_link(False)
    cards[0].transmit(frame)
    lab.run(1)
    assert [i for i, _ in got[4:]] == [2], "its address is forgotten, and flooded"
    assert MILLISECOND == 1_000_000
