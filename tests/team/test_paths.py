"""The paths of document 004, Fig. 3, as frames, messages and calls really took them."""

from __future__ import annotations

import itertools

import pytest

from team_lab import TEAM_VLAN, Lab, Stream, connect
from verbena.errors import InvalidStateError, ResourceError
from verbena.team.balance import Mode
from verbena.team.host import TeamHost
from verbena.team.offload.record import Kind, Record
from verbena.team.offload.session import Session
from verbena.team.offload.states import MILLISECOND, OffloadConfig, Path
from verbena.team.trace import Journey, Layer
from verbena.transport.kinds import QPState
from verbena.wire.ip import ROCE_PORT

L = Layer
LEGACY = [L.STACK, L.T_VIRTUAL, L.INTERMEDIATE_DRIVER, L.PHYSICAL_MINIPORT, L.NDIS_MINIPORT, L.CARD]
ADDITIONAL = [*LEGACY[:-1], L.BUS_DRIVER, L.RDMA_CARD]
UPLOAD = [L.STACK, L.R_VIRTUAL, *ADDITIONAL[2:]]
OFFLOAD = [L.SWITCH_LAYER, L.USER_DRIVER, L.RDMA_CARD]
SET_UP = [L.PROXY, L.BUS_DRIVER, L.RDMA_CARD]


def kinds(journeys: list[Journey]) -> dict[str, set[tuple[Layer, ...]]]:
    """Which ways were gone, by direction."""
    found: dict[str, set[tuple[Layer, ...]]] = {}
    for journey in journeys:
        found.setdefault(journey.direction, set()).add(tuple(journey.layers))
    return found


def there_and_back(way: list[Layer]) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    return tuple(way), tuple(reversed(way))


def pin(session: Session, path: Path) -> None:
    """What the administrator does."""
    session.manager.pin(session, path)


def offloaded(lab: Lab, size: int = 3_000_000) -> tuple:
    """A connection that is on the offload path."""
    near, far = connect(lab, there=lab.random.randbytes(size))
    pin(near.session, Path.OFFLOAD)
    lab.until(lambda: near.session.path is Path.OFFLOAD)
    return near, far


@pytest.mark.requirement("TEM-09", "TEM-10")
def test_the_two_team_paths_at_once_in_both_directions(seed: int) -> None:
    lab = Lab(seed)
    a, b = lab.host(nics=1, mode=Mode.ROUND_ROBIN), lab.host(nics=1, mode=Mode.ROUND_ROBIN)
    lab.run(5)
    a.trace.on = True
    streams = [Stream(lab, lab.random.randbytes(50_000)), Stream(lab, lab.random.randbytes(50_000), a=1, b=0)]
    lab.until(lambda: all(stream.done for stream in streams))
    # What comes in by the card that does not receive is not a way to the stack: b receives by its first card too.
    lab.cards[0]["nic0"].set_link(False)
    more = Stream(lab, lab.random.randbytes(50_000))
    lab.until(lambda: more.done)
    seen = kinds(a.trace.take())
    for way in (LEGACY, ADDITIONAL):
        out, back = there_and_back(way)
        assert out in seen["out"]
        assert back in seen["in"]
    allowed = {tuple(LEGACY), tuple(ADDITIONAL)}
    assert seen["out"] <= allowed, "no other way"
    numbers = {
        name for journey in b.trace.take() for layer, name in journey.hops if layer is L.PHYSICAL_MINIPORT
    }
    assert not numbers, "a trace that is off notes nothing"


@pytest.mark.requirement("TEM-11")
def test_the_upload_path(seed: int) -> None:
    lab = Lab(seed)
    a = lab.host()
    lab.host()
    lab.run(400)  # the announcements are over
    a.trace.on = True
    near, far = connect(lab, there=lab.random.randbytes(100_000))
    pin(near.session, Path.UPLOAD)
    lab.until(lambda: far.received == near.data)
    seen = kinds(a.trace.take())
    out, back = there_and_back(UPLOAD)
    assert seen["out"] == {out}
    assert back in seen["in"]
    up_to_stack = {way for way in seen["in"] if L.STACK in way}
    assert up_to_stack == {back}


@pytest.mark.requirement("TEM-12", "SYS-03")
def test_the_offload_path_passes_neither_stack_nor_driver(seed: int) -> None:
    lab = Lab(seed)
    a, b = lab.host(), lab.host()
    lab.run(400)
    near, far = offloaded(lab)
    lab.run(0.3)
    frames: list[bytes] = []
    lab.cards[0]["rnic0"].watch = lambda direction, frame: frames.append(frame)
    before = [(dict(h.stack.counters), dict(h.driver.counters)) for h in (a, b)]
    a.trace.take()
    a.trace.on = b.trace.on = True
    got = len(far.received)
    lab.until(lambda: len(far.received) > got + 500_000)
    assert kinds(a.trace.take())["out"] == {tuple(OFFLOAD)}
    assert kinds(b.trace.take())["in"] == {tuple(reversed(OFFLOAD))}
    assert [(dict(h.stack.counters), dict(h.driver.counters)) for h in (a, b)] == before
    # It is a queue pair of the fabric, whose completions come by its handler, and RoCEv2 on the card's cable.
    rdma = a.rdma["rnic0"]
    (channel,) = rdma.channels.values()
    assert channel.pair.state is QPState.RTS
    assert channel.queue.handler == rdma.handler
    assert rdma.context.query_device().name == "rnic0"
    assert len(frames) > 300
    assert all(frame[36:38] == ROCE_PORT.to_bytes(2, "big") for frame in frames)
    lab.until(lambda: far.received == near.data)


@pytest.mark.requirement("TEM-13", "TEM-14")
def test_set_up_and_tear_down_go_by_the_proxy_in_this_order(seed: int) -> None:
    lab = Lab(seed)
    a = lab.host()
    lab.host()
    lab.run(5)
    a.trace.on = True
    near, far = offloaded(lab)
    pin(near.session, Path.UPLOAD)
    lab.until(lambda: near.session.path is Path.UPLOAD)
    lab.run(2)
    driver = a.sockets.drivers["rnic0"]
    steps = [step for _, step in driver.proxy.log]
    assert steps == ["user: call proxy", "proxy: create", "proxy: connect", "proxy: inform", "proxy: destroy"]
    times = [when for when, _ in driver.proxy.log]
    assert times == sorted(times)
    seen = kinds(a.trace.take())
    assert seen["set-up"] == {tuple(SET_UP)}
    assert seen["tear-down"] == {tuple(SET_UP)}
    assert driver.card.bus.counters["proxy"] == 3
    lab.until(lambda: far.received == near.data)


@pytest.mark.requirement("TEM-14")
def test_no_data_before_the_proxy_has_answered(seed: int) -> None:
    lab = Lab(seed)
    a = lab.host()
    lab.run(5)
    channel = a.sockets.drivers["rnic0"].open()
    with pytest.raises(InvalidStateError, match="has not connected this queue pair yet"):
        channel.send(Record(Kind.DATA, body=b"too early"))
    assert not channel.is_up
    assert channel.room == 0


@pytest.mark.requirement("TEM-14")
@pytest.mark.parametrize("side", [0, 1])
def test_a_card_without_room_leaves_the_connection_on_the_upload_path(side: int, seed: int) -> None:
    """Descriptors are exhausted, at one end or the other."""
    lab = Lab(seed, rate_bps=1e9)
    little, much = OffloadConfig(most_queue_pairs=1), OffloadConfig()
    for host in range(2):
        lab.host(offload=little if host == side else much)
    lab.run(5)
    first, _ = offloaded(lab)
    near, far = connect(lab, there=lab.random.randbytes(500_000))
    pin(near.session, Path.OFFLOAD)
    lab.until(lambda: far.received == near.data)
    assert near.session.path is Path.UPLOAD
    assert lab.hosts[0].sockets.counters["move.abandoned"] >= 1
    refused = lab.hosts[side].sockets
    assert refused.counters["offer.refused" if side else "offload.no_resources"] >= 1
    driver = refused.drivers["rnic0"]
    with pytest.raises(ResourceError, match="no more than 1 queue pairs"):
        driver.open()
    assert first.session.path is Path.OFFLOAD


@pytest.mark.requirement("TEM-17")
@pytest.mark.parametrize("over_team", [False, True])
def test_managed_traffic_may_use_the_team_by_choice(over_team: bool, seed: int) -> None:
    lab = Lab(seed)
    settings = {"upload_over_team": over_team, "mode": Mode.LAYER34}
    a = lab.host(nics=2, **settings)
    lab.host(nics=2, **settings)
    lab.run(5)
    pairs = [connect(lab, there=lab.random.randbytes(20_000)) for _ in range(20)]
    for near, far in pairs:
        pin(near.session, Path.UPLOAD)
        lab.until(lambda near=near, far=far: far.received == near.data)
    sent = {m.name: m.counters["tx.upload"] for m in a.driver.members}
    assert sent["rnic0"] > 0
    assert all(sent.values()) is over_team
    assert (sent["nic0"] == 0) is not over_team


@pytest.mark.requirement("TEM-18")
@pytest.mark.parametrize("dedicated", [False, True])
def test_the_upload_path_has_paths_of_its_own_or_shares(dedicated: bool, seed: int) -> None:
    lab = Lab(seed)
    a = lab.host(dedicated_paths=dedicated)
    lab.host(dedicated_paths=dedicated)
    lab.run(5)
    stream = Stream(lab, lab.random.randbytes(20_000))
    near, far = connect(lab, there=lab.random.randbytes(20_000))
    pin(near.session, Path.UPLOAD)
    lab.until(lambda: far.received == near.data and stream.done)
    counters = a.driver.counters
    assert counters["stack.upload"] > 10
    assert counters["path.220"] == (counters["stack.upload"] if dedicated else 0)
    assert counters["path.200"] == counters["stack.team"] + (0 if dedicated else counters["stack.upload"])


@pytest.mark.requirement("TEM-21")
def test_all_four_paths_loaded_at_once(seed: int) -> None:
    lab = Lab(seed, rate_bps=1e9)
    a, b = lab.host(nics=2), lab.host(nics=2)
    lab.run(400)
    a.trace.on = b.trace.on = True
    near, far = offloaded(lab, 1_500_000)
    uploaded, other = connect(lab, there=lab.random.randbytes(300_000))
    pin(uploaded.session, Path.UPLOAD)
    streams = [Stream(lab, lab.random.randbytes(100_000), port=80 + i) for i in range(8)]
    lab.until(lambda: all(s.done for s in streams) and far.received == near.data)
    lab.until(lambda: other.received == uploaded.data)
    journeys = a.trace.take()
    assert {tuple(LEGACY), tuple(ADDITIONAL), tuple(UPLOAD), tuple(OFFLOAD)} <= kinds(journeys)["out"]
    spans = {}
    for way in (LEGACY, ADDITIONAL, UPLOAD, OFFLOAD):
        times = [j.when_ns for j in journeys if j.direction == "out" and j.layers == way]
        spans[tuple(way)] = (min(times), max(times))
    for one, another in itertools.combinations(spans.values(), 2):
        assert max(one[0], another[0]) < min(one[1], another[1]), "one after the other, not at once"


def switching(host: TeamHost) -> int:
    return host.driver.counters["stack.upload"] + host.driver.counters["stack.team"]


@pytest.mark.requirement("TEM-15")
def test_a_connection_is_never_on_two_paths_at_once(seed: int) -> None:
    """Of one hundred moves: after each, bytes leave by the new path only."""
    lab = Lab(seed, rate_bps=200e6)
    settings = OffloadConfig(tcp_in_flight=1 << 15, slots=4, slot_size=4096)
    a, _b = lab.host(offload=settings), lab.host(offload=settings)
    lab.run(400)
    near, far = connect(lab, there=lab.random.randbytes(6_000_000))
    session = near.session
    wanted = itertools.cycle((Path.OFFLOAD, Path.UPLOAD))
    for _ in range(100):
        pin(session, next(wanted))
        lab.until(lambda: session.path is session.pinned)
        lab.run(0.15)
        counted = dict(session.bytes_by_path)
        rdma, stack = a.rdma["rnic0"].counters["offload.tx.bytes"], a.stack.counters["tx"]
        lab.run(0.1)
        moved = {path for path, count in session.bytes_by_path.items() if count != counted.get(path, 0)}
        assert moved <= {session.path}
        if session.path is Path.OFFLOAD:
            assert a.stack.counters["tx"] == stack
        else:
            assert a.rdma["rnic0"].counters["offload.tx.bytes"] == rdma
    assert session.moves >= 100
    assert session.stall_ns < 10 * MILLISECOND
    lab.until(lambda: len(far.received) == len(near.data))
    assert far.received == near.data
    assert switching(a) > 0
    assert TEAM_VLAN in a.interfaces
