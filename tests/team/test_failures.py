"""Failures: how long they last, to the nanosecond, and peers that do what they must not."""

from __future__ import annotations

import pytest

from team_lab import PORT, TEAM_VLAN, Lab, Stream, connect
from verbena.errors import ConnectionLost, ConnectionRefused, ConnectionTimeout, ResourceError
from verbena.team.balance import Mode
from verbena.team.offload.policy import ConnectionParameters, default_policy
from verbena.team.offload.record import Kind, QueuePairInfo, Record
from verbena.team.offload.session import Session
from verbena.team.offload.states import MILLISECOND, OffloadConfig, Path, SessionState

FAST = OffloadConfig(
    stall_ns=20 * MILLISECOND, attempt_ns=5 * MILLISECOND, evaluate_ns=MILLISECOND, tcp_in_flight=1 << 14
)


def pin(session: Session, path: Path | None) -> None:
    session.manager.pin(session, path)


def offloaded(lab: Lab, size: int = 2_000_000) -> tuple:
    near, far = connect(lab, there=lab.random.randbytes(size))
    pin(near.session, Path.OFFLOAD)
    lab.until(lambda: near.session.path is Path.OFFLOAD)
    return near, far


def outage(lab: Lab, silent: bool) -> tuple[int, int]:
    """How long a probe of 1,000 datagrams a second, from outside to the team, finds nobody; and a round trip."""
    a, b = lab.hosts
    got: list[int] = []
    a.stack.open_udp(9, lambda data, peer: got.append(int.from_bytes(data, "big")))
    address = a.interfaces[TEAM_VLAN].address
    b.stack.send_udp(9, (address, 9), bytes(8))
    lab.run(3)
    sent = got.pop()
    receiver = a.driver.receiver
    assert receiver is not None
    card = lab.cards[0][receiver.name]

    def probe(left: int) -> None:
        b.stack.send_udp(9, (address, 9), lab.net.now.to_bytes(8, "big"))
        if left:
            lab.clock.call_at(lab.net.now + MILLISECOND, lambda: probe(left - 1))

    probe(600)
    lab.run(100.1)
    assert len(got) == 101
    failed = lab.net.now
    if silent:
        card.silent = True
    else:
        card.set_link(False)
    lab.run(600)
    after = [when for when in got if when > failed]
    assert len(got) + round((after[0] - failed) / MILLISECOND) >= 600
    assert sent == 0
    return after[0] - failed, 4 * 1_000 + 4 * 1_000


@pytest.mark.requirement("TEM-03")
def test_the_outage_at_a_link_event_is_less_than_one_interval_of_the_probe(seed: int) -> None:
    lab = Lab(seed)
    lab.host(nics=2, rnics=0, rdma_vlan=None)
    lab.host(nics=1, rnics=0, rdma_vlan=None)
    lab.run(5)
    took, _ = outage(lab, silent=False)
    assert took <= MILLISECOND


@pytest.mark.requirement("TEM-03")
@pytest.mark.parametrize("kind", ["heartbeat", "arp", "nd"])
def test_the_outage_at_a_silent_failure_is_bounded_by_the_detection_time(kind: str, seed: int) -> None:
    lab = Lab(seed)
    probes = {
        "heartbeat": {"heartbeat_key": b"shared secret"},
        "arp": {"arp_targets": (f"10.{TEAM_VLAN}.0.2",), "probe_vlan": TEAM_VLAN},
        "nd": {"nd_targets": ("fe80::1",)},
    }[kind]
    lab.host(nics=2, rnics=0, rdma_vlan=None, probe_interval_ns=10 * MILLISECOND, probe_misses=3, **probes)
    more = {"heartbeat_key": b"shared secret"} if kind == "heartbeat" else {}
    lab.host(nics=1, rnics=0, rdma_vlan=None, **more)
    if kind == "nd":
        answer_solicitations(lab)
    lab.run(35)
    assert len(lab.hosts[0].driver.usable) == 2
    took, round_trip = outage(lab, silent=True)
    assert 2 * 10 * MILLISECOND < took <= (3 + 1) * 10 * MILLISECOND + round_trip + MILLISECOND
    assert lab.hosts[0].driver.counters["probe.lost"] == 1


def answer_solicitations(lab: Lab) -> None:
    """A neighbour at fe80::1 that speaks IPv6, on the switch."""
    from verbena.runtime.virtual_ethernet import VirtualCard
    from verbena.wire.ip import IPv6, upper_layer_checksum

    card = VirtualCard(lab.clock, "six", bytes.fromhex("020000000666"))
    lab.switch.plug(card)
    own = bytes.fromhex("fe800000000000000000000000000001")

    def receive(frame: bytes) -> None:
        if frame[12:14] != b"\x86\xdd" or frame[54] != 135 or frame[62:78] != own:
            return
        asker = IPv6.unpack(frame, 14)
        assert upper_layer_checksum(asker, 58, frame[54:]) == 0
        message = b"\x88\0\0\0\x60\0\0\0" + own + b"\x02\x01" + card.mac
        ip = IPv6(payload_length=32, next_header=58, hop_limit=255, src=own, dst=asker.src)
        summed = upper_layer_checksum(ip, 58, message).to_bytes(2, "big")
        card.transmit(frame[6:12] + card.mac + b"\x86\xdd" + ip.pack() + message[:2] + summed + message[4:])

    card.attach(receive, lambda up: None)


@pytest.mark.requirement("TEM-20")
def test_offloaded_connections_outlive_their_card_and_return(seed: int) -> None:
    lab = Lab(seed, rate_bps=200e6)
    a, b = lab.host(offload=FAST), lab.host(offload=FAST)
    lab.run(5)
    near, far = offloaded(lab)
    legacy = Stream(lab, lab.random.randbytes(200_000))
    lab.run(2)
    # Another card's failure leaves it alone.
    moves = near.session.moves
    lab.cards[0]["nic0"].set_link(False)
    lab.run(2)
    assert near.session.path is Path.OFFLOAD
    assert near.session.moves == moves
    lab.cards[0]["nic0"].set_link(True)
    # Its own does not.
    lab.cards[0]["rnic0"].set_link(False)
    failed = lab.net.now
    lab.until(lambda: near.session.path is Path.TEAM, 50)
    assert lab.net.now - failed < 5 * MILLISECOND
    got = len(far.received)
    lab.until(lambda: len(far.received) > got + 10_000)
    lab.cards[0]["rnic0"].set_link(True)
    lab.until(lambda: near.session.path is Path.OFFLOAD, 200)
    assert near.session.pinned is Path.OFFLOAD
    lab.until(lambda: len(far.received) == len(near.data) and legacy.done)
    assert far.received == near.data
    assert a.sockets.counters["path.failed"] + b.sockets.counters["path.failed"] >= 1


@pytest.mark.requirement("TEM-20")
def test_the_peer_s_card_fails_and_this_side_is_told(seed: int) -> None:
    """The other end dials back over the team: nobody waits for retries."""
    lab = Lab(seed, rate_bps=200e6)
    lab.host(offload=FAST), lab.host(offload=FAST)
    lab.run(5)
    near, far = offloaded(lab)
    lab.cards[1]["rnic0"].set_link(False)
    lab.until(lambda: near.session.path is Path.TEAM, 5)
    lab.until(lambda: len(far.received) == len(near.data))
    assert far.received == near.data


@pytest.mark.requirement("TEM-20")
def test_a_second_rdma_card_takes_over(seed: int) -> None:
    lab = Lab(seed, rate_bps=200e6)
    a, _b = lab.host(rnics=2, offload=FAST), lab.host(rnics=2, offload=FAST)
    lab.run(5)
    near, far = offloaded(lab)
    assert len(a.rdma["rnic0"].channels) == 1
    lab.cards[0]["rnic0"].set_link(False)
    assert a.driver.rdma_miniport.is_up
    assert a.driver.upload_member.name == "rnic1"
    lab.until(lambda: near.session.path is Path.OFFLOAD and len(a.rdma["rnic1"].channels) == 1, 100)
    lab.until(lambda: len(far.received) == len(near.data))
    assert far.received == near.data
    assert Path.TEAM not in near.session.bytes_by_path


@pytest.mark.requirement("TEM-20")
@pytest.mark.parametrize("delay_us", range(0, 240, 12))
def test_the_card_fails_in_the_middle_of_a_hand_over(delay_us: int, seed: int) -> None:
    lab = Lab(seed, rate_bps=1e9)
    settings = OffloadConfig(tcp_in_flight=1 << 14, evaluate_ns=MILLISECOND)
    lab.host(offload=settings), lab.host(offload=settings)
    lab.run(5)
    near, far = connect(lab, there=lab.random.randbytes(400_000), here=lab.random.randbytes(300_000))
    pin(near.session, Path.OFFLOAD)
    lab.run(delay_us / 1000)
    host = delay_us // 12 % 2
    lab.cards[host]["rnic0"].set_link(False)
    lab.run(30)
    lab.cards[host]["rnic0"].set_link(True)
    lab.until(lambda: len(far.received) == len(near.data) and len(near.received) == len(far.data))
    assert far.received == near.data
    assert near.received == far.data
    assert near.session.error is None


def test_a_resumption_that_comes_late_changes_nothing(seed: int) -> None:
    """An attempt whose record was under way while the other side's own attempt was the first to work."""
    lab = Lab(seed)
    for _ in range(2):
        lab.host(nics=1, rnics=1, offload=FAST)
    lab.run(20)
    near, far = connect(lab, here=lab.random.randbytes(400_000), there=lab.random.randbytes(400_000))
    lab.until(lambda: far.session.tx.base > 100_000)
    path = far.session.path
    late = Record(Kind.RESUME, epoch=far.session.epoch, ack=1000, limit=1 << 20, value=1)
    assert far.session.channel is not None
    assert not far.session.resumed_by_peer(far.session.channel, late)
    assert lab.hosts[1].sockets.counters["drop.record.late"] == 1
    assert far.session.path is path
    lab.until(lambda: len(far.received) == len(near.data) and len(near.received) == len(far.data))
    assert (far.received, near.received) == (near.data, far.data)
    assert lab.hosts[1].sockets.counters["path.resumed"] == 0


def test_no_path_at_all_ends_with_an_error_and_not_in_silence(seed: int) -> None:
    lab = Lab(seed, rate_bps=200e6)
    settings = OffloadConfig(give_up_ns=200 * MILLISECOND, stall_ns=20 * MILLISECOND)
    lab.host(offload=settings), lab.host(offload=settings)
    lab.run(5)
    near, far = offloaded(lab)
    for card in lab.cards[0].values():
        card.silent = True
    lab.until(lambda: near.session.error is not None and far.session.error is not None, 1000)
    for session in (near.session, far.session):
        assert isinstance(session.error, ConnectionTimeout)
        assert "no path to the peer has worked" in str(session.error)
        with pytest.raises(ConnectionTimeout):
            session.write(b"more")
    with pytest.raises(ConnectionTimeout):
        near.session.read()
    lab.run(2000)
    assert not lab.hosts[0].sockets.sessions, "nothing is left"


def test_nobody_listens(seed: int) -> None:
    lab = Lab(seed)
    a, b = lab.host(), lab.host()
    lab.run(5)
    session = a.sockets.connect(b.paths[Path.UPLOAD].packed, PORT)
    lab.until(lambda: session.error is not None, 100)
    assert isinstance(session.error, ConnectionRefused)
    assert b.sockets.counters["refused.no_listener"] == 1


def test_a_host_without_room_for_a_connection_refuses_it(seed: int) -> None:
    lab = Lab(seed)
    a, b = lab.host(), lab.host(offload=OffloadConfig(most_connections=1))
    lab.run(5)
    near, _far = connect(lab, near=_Quiet, far=_Quiet)
    session = a.sockets.connect(b.paths[Path.UPLOAD].packed, PORT)
    lab.until(lambda: session.error is not None, 100)
    assert str(session.error) == "the peer has room for no more connections"
    assert b.sockets.counters["refused.no_resources"] == 1
    assert near.session.error is None


# --- peers that misbehave ----------------------------------------------------------------------------------------


def misbehave(lab: Lab, what: str, session: Session) -> None:
    """Host 1 says something that it must not, on the connection's present path."""
    epoch, ack = session.epoch, session.rx.expected
    records = {
        "gap": Record(Kind.DATA, epoch, session.tx.following + 5, ack, 1 << 20, b"a gap"),
        "beyond": Record(Kind.DATA, epoch, session.tx.following, ack, 1 << 20, bytes(70_000)),
        "ack": Record(Kind.ACK, epoch, 0, ack + 1_000_000_000, 1 << 20),
        "end": Record(Kind.FIN, epoch, session.tx.following + 9, ack, 1 << 20),
    }
    assert session.channel is not None
    session.channel.send(records[what])


@pytest.mark.parametrize("what", ["gap", "beyond", "ack", "end"])
@pytest.mark.parametrize("path", [Path.UPLOAD, Path.OFFLOAD])
def test_a_peer_that_breaks_the_rules_is_broken_off(what: str, path: Path, seed: int) -> None:
    lab = Lab(seed)
    settings = OffloadConfig(receive_buffer=65_536, slot_size=1 << 17, slots=2)
    a, _b = lab.host(offload=settings), lab.host(offload=settings)
    lab.run(5)
    near, far = connect(lab, there=b"hello" * 1000, here=b"x")
    near.session.tx.closed = False
    lab.run(2)
    if path is Path.OFFLOAD:
        near, far = connect(lab, near=lambda s: _Quiet(s), far=lambda s: _Quiet(s))
        pin(near.session, Path.OFFLOAD)
        lab.until(lambda: near.session.path is Path.OFFLOAD, 100)
        lab.run(1)
    else:
        near, far = connect(lab, near=lambda s: _Quiet(s), far=lambda s: _Quiet(s))
        pin(near.session, Path.UPLOAD)
    misbehave(lab, what, far.session)
    lab.run(5)
    assert isinstance(near.session.error, ConnectionLost)
    assert a.sockets.counters["peer.violation"] == 1
    assert "the peer" in str(near.session.error)
    assert len(str(near.session.error).splitlines()) == 1
    assert isinstance(far.session.error, ConnectionLost)
    other, there = connect(lab, there=b"others go on")
    lab.until(lambda: there.received == b"others go on", 100)
    assert other.session.error is None


class _Quiet:
    """A program that says nothing, and keeps its connection."""

    def __init__(self, session: Session) -> None:
        self.session = session


@pytest.mark.requirement("TEM-14")
@pytest.mark.parametrize("how", ["silent", "elsewhere", "nonsense", "wrong nonce"])
def test_a_peer_that_offers_offload_and_then_misbehaves(
    how: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue pair leads nowhere, or what comes over it does not know the connection: all stays as it was."""
    lab = Lab(seed, rate_bps=1e9)
    settings = OffloadConfig(move_ns=20 * MILLISECOND)
    a, b = lab.host(offload=settings), lab.host(offload=settings)
    lab.run(5)
    near, far = connect(lab, there=lab.random.randbytes(3_000_000))
    right = Session._info

    def wrong(self: Session, channel: object) -> QueuePairInfo:
        info = right(self, channel)  # type: ignore[arg-type]
        if self.leads:
            return info
        if how == "elsewhere":
            return QueuePairInfo(info.gid[:15] + b"\xee", info.qp_num, info.psn, 0, info.mtu, info.nonce)
        if how == "nonsense":
            return QueuePairInfo(bytes(16), 0, 0, 0, 7, bytes(8))
        return QueuePairInfo(info.gid, info.qp_num ^ 0x55, info.psn, 0, info.mtu, info.nonce)

    if how == "wrong nonce":
        monkeypatch.setattr(Session, "_claims", lambda self, record: self.leads)
    else:
        monkeypatch.setattr(Session, "_info", wrong)
    pin(near.session, Path.OFFLOAD)
    lab.until(lambda: a.sockets.counters["move.abandoned"] >= 1, 100)
    assert near.session.path is Path.UPLOAD
    assert near.session.error is None
    pin(near.session, Path.UPLOAD)
    lab.until(lambda: len(far.received) == len(near.data))
    assert far.received == near.data
    lab.run(50)
    assert not a.rdma["rnic0"].channels, "no queue pair is left over"
    assert not b.rdma["rnic0"].channels


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\n\r\n" + bytes(40),
        Record(Kind.DATA, body=b"x").pack(),
        Record(Kind.HELLO, body=b"?").pack(),
    ]
    + [Record(kind, body=bytes(40)).pack() for kind in (Kind.JOIN, Kind.RESUME)],
)
def test_strangers_at_the_service_port_are_dropped_and_counted(first: bytes, seed: int) -> None:
    lab = Lab(seed)
    a, b = lab.host(), lab.host()
    lab.run(5)
    near, far = connect(lab, near=_Quiet, far=_Quiet)
    interface = a.interfaces[TEAM_VLAN]
    stranger = a.stack.connect(interface, (b.interfaces[TEAM_VLAN].address, b.sockets.config.service_port))
    lab.run(1)
    stranger.write(first)
    lab.run(3)
    if stranger.readable:
        stranger.read()
    assert stranger.at_end or stranger.error is not None
    assert len(b.sockets.sessions) == 1
    assert sum(n for name, n in b.sockets.counters.items() if name.startswith("drop.")) <= 1
    silent = a.stack.connect(interface, (b.interfaces[TEAM_VLAN].address, b.sockets.config.service_port))
    lab.run(1500)
    assert b.sockets.counters["drop.stranger.silent"] == 1
    assert silent.error is not None
    assert near.session.error is None
    assert far.session.state is SessionState.ESTABLISHED


@pytest.mark.requirement("TEM-15")
def test_busy_connections_are_offloaded_and_idle_ones_uploaded(seed: int) -> None:
    lab = Lab(seed, rate_bps=1e9)
    a, _b = lab.host(), lab.host()
    lab.run(5)
    near, far = connect(lab, near=_Quiet, far=_Quiet)
    session = near.session
    lab.run(100)
    assert session.path is Path.UPLOAD
    far.session.on_change = lambda: far.session.read()
    for _ in range(80):
        session.write(bytes(session.room))
        lab.run(1)
    assert session.path is Path.OFFLOAD
    lab.run(400)
    assert session.path is Path.UPLOAD, "idle"
    assert a.sockets.counters["move.abandoned"] == 0


@pytest.mark.requirement("TEM-15")
def test_the_policy_is_a_plain_function_that_can_be_replaced(seed: int) -> None:
    seen: list[ConnectionParameters] = []

    def always(of: ConnectionParameters) -> Path:
        seen.append(of)
        return Path.OFFLOAD if of.offload_possible else Path.UPLOAD

    lab = Lab(seed)
    lab.host(policy=always), lab.host()
    lab.run(5)
    near, _far = connect(lab, near=_Quiet, far=_Quiet)
    lab.run(50)
    assert near.session.path is Path.OFFLOAD
    assert seen[0].path is Path.UPLOAD
    near.session.manager.policy = lambda of: Path.UPLOAD
    lab.run(50)
    assert near.session.path is Path.UPLOAD


def test_the_default_policy_under_pressure() -> None:
    idle = ConnectionParameters(Path.OFFLOAD, 1 << 20, 0, 1e6, 10**9, 0, 10**9, 95, 100, True, True)
    assert default_policy(idle) is Path.UPLOAD, "the card is short of queue pairs"
    roomy = ConnectionParameters(Path.OFFLOAD, 1 << 20, 0, 1e6, 10**9, 0, 10**9, 5, 100, True, True)
    assert default_policy(roomy) is Path.OFFLOAD
    away = ConnectionParameters(Path.OFFLOAD, 1 << 20, 0, 1e9, 10**9, 0, 10**9, 5, 100, False, False)
    assert default_policy(away) is Path.TEAM


def test_the_administrator_and_what_cannot_be(seed: int) -> None:
    lab = Lab(seed)
    a, b = lab.host(rnics=0), lab.host()
    lab.run(5)
    assert not a.driver.rdma_miniport.is_up
    session = a.sockets.connect(b.paths[Path.TEAM].packed, PORT, Path.TEAM)
    lab.run(5)
    with pytest.raises(ResourceError, match="no RDMA card"):
        a.sockets.pin(session, Path.OFFLOAD)


def test_the_accepting_side_may_ask_for_another_path(seed: int) -> None:
    lab = Lab(seed)
    a, b = lab.host(), lab.host()
    lab.run(5)
    near, far = connect(lab, near=_Quiet, far=_Quiet)
    b.sockets.pin(far.session, Path.OFFLOAD)
    pin(near.session, None)
    near.session.manager.policy = lambda of: of.path
    lab.until(lambda: near.session.path is Path.OFFLOAD, 100)
    lab.run(1)
    b.sockets.pin(far.session, Path.UPLOAD)
    lab.until(lambda: near.session.path is Path.UPLOAD, 200)
    assert a.sockets.counters["move.upload"] == 1


def test_round_robin_keeps_the_stream_exact(seed: int) -> None:
    lab = Lab(seed)
    lab.host(nics=4, rnics=0, rdma_vlan=None, mode=Mode.ROUND_ROBIN)
    lab.host(nics=1, rnics=0, rdma_vlan=None)
    lab.run(5)
    stream = Stream(lab, lab.random.randbytes(300_000))
    lab.until(lambda: stream.done)
