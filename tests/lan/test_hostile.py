"""What bad input gets: dropped, counted by reason, memory bounded, the rest of the LAN unaffected."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lan.lan_lab import BROADCAST, MS, SECOND, SMALL, Lan, ethernet, star, total
from verbena import AddressVector, SendFlags, WorkRequest, WROpcode
from verbena.lan import LanConfig
from verbena.lan.datagrams import QKEY
from verbena.lan.message import HEADER, HEADER_SIZE, VERSION, Flags, Kind, NodeInfo, parse_header
from verbena.lan.reassembly import Reassembly
from verbena.management.datagrams import MadAddress
from verbena.transport.kinds import QPType
from verbena.wire.cm import DREQ, REJ, REQ, RejectReason, TransportService, cm_mad
from verbena.wire.errors import DecodeError


class Rogue:
    """A program on a host, with a datagram queue pair and the LAN's Q_Key, that sends what it likes."""

    def __init__(self, lan: Lan, name: str) -> None:
        self.lan = lan
        self.name = name
        context = lan.device(name, limits=SMALL)
        pd, cq = context.alloc_pd(), context.create_cq(4096)
        self.qp = pd.create_qp(QPType.UD, cq, max_send_wr=2048, max_recv_wr=1)
        self.qp.activate(qkey=QKEY)
        self.region = pd.alloc_mr(8192)
        self.pd = pd
        self.handles: dict[int, Any] = {}

    def say(self, to: str, message: bytes) -> None:
        """A datagram to a card's queue pair."""
        lid = self.lan.lid(to)
        handle = self.handles.get(lid)
        if handle is None:
            handle = self.handles[lid] = self.pd.create_ah(AddressVector(dlid=lid, port_num=1))
        self.region.buf[: len(message)] = message
        qpn = self.lan.driver(to).station.services.datagram_qp.qp_num
        request = WorkRequest(
            1,
            WROpcode.SEND,
            [self.region.sge(0, len(message))],
            SendFlags.SIGNALED,
            ah=handle,
            remote_qpn=qpn,
            remote_qkey=QKEY,
        )
        self.qp.post_send(request)
        self.lan.settle(20_000)

    def message(self, body: bytes, *, kind: int = Kind.FRAME, lid: int | None = None, **more: int) -> bytes:
        fields = {"flags": 0, "number": 1, "length": len(body), "offset": 0, "version": VERSION, **more}
        return (
            HEADER.pack(
                fields["version"] << 4 | kind,
                fields["flags"],
                self.lan.lid(self.name) if lid is None else lid,
                fields["number"],
                fields["length"],
                fields["offset"],
            )
            + body
        )


def as_driver(lan: Lan, name: str, to: str, frame: bytes, flags: int = 0, lid: int | None = None) -> None:
    """A driver gone bad: sends a frame from its own queue pair without asking its checks."""
    station = lan.driver(name).station
    message = station.services.make(station.lid if lid is None else lid, frame, flags)
    station.services.send_datagrams(message, [station.peers.at(lan.lid(to)).way])
    lan.settle(MS)


def test_what_the_card_does_not_send() -> None:
    lan = star(2)
    card = lan.card("h0")
    own, other = card.mac, lan.mac("h1")
    for frame in (b"", bytes(13), other + own):
        assert card.transmit(frame)
    assert card.transmit(ethernet(other, own, 1515))
    assert card.transmit(
        other + own + b"\x81\x00\x00\x01"
    )  # a tag, and nothing behind it: a frame without payload
    assert card.transmit(ethernet(other, b"\x01" + own[1:]))
    assert card.transmit(ethernet(other, other))
    assert card.transmit(ethernet(BROADCAST, bytes.fromhex("005056000001")))
    assert lan.drops("h0") == {
        "drop.tx.runt": 3,
        "drop.tx.too_long": 1,
        "drop.tx.group_source": 1,
        "drop.tx.forged_source": 2,
    }
    assert [len(frame) for frame in lan.heard()["h1"]] == [16]


def test_forged_sources_and_claims() -> None:
    lan = star(3)
    h0, h1, h2 = (lan.mac(name) for name in ("h0", "h1", "h2"))
    as_driver(lan, "h0", "h1", ethernet(h1, h2))  # h2's address
    as_driver(lan, "h0", "h1", ethernet(h1, bytes.fromhex("005056000001")))  # a foreign one
    assert lan.drops("h1") == {"drop.rx.forged_source": 2}
    as_driver(lan, "h0", "h1", ethernet(h1, bytes.fromhex("005056000001")), Flags.BRIDGED)
    assert lan.drops("h1")["drop.rx.no_bridge"] == 1  # h0 never said that it was a bridge
    as_driver(lan, "h0", "h1", ethernet(h1, h2), Flags.BRIDGED)
    assert lan.drops("h1")["drop.rx.forged_source"] == 3
    as_driver(lan, "h0", "h1", ethernet(h1, h2), lid=lan.lid("h2"))
    assert lan.drops("h1")["drop.rx.claimed_lid"] == 1
    as_driver(lan, "h0", "h1", bytes(13))
    as_driver(lan, "h0", "h1", ethernet(h1, h0, 1515))
    as_driver(lan, "h0", "h1", ethernet(h1, b"\x03" + h0[1:]))
    assert lan.drops("h1")["drop.rx.runt"] == 1
    assert lan.drops("h1")["drop.rx.too_long"] == 1
    assert lan.drops("h1")["drop.rx.group_source"] == 1
    assert not any(lan.heard().values())
    assert lan.driver("h1").station.foreign.entries() == {}
    assert lan.reaches("h0", "h1")
    assert lan.reaches("h2", "h1")


def test_a_node_that_claims_anothers_lid() -> None:
    """h0 says that its card is h2's: nobody believes it, and h2's frames still go to h2."""
    lan = star(3)
    driver = lan.driver("h0")
    info = driver.station.describe()
    lie = NodeInfo(1, 0, lan.lid("h2"), info.mtu, bytes(8), info.port_guid)
    driver.station.services.send_control(
        driver.station.lid, Kind.HELLO, lie.pack(), [driver.station.peers.at(lan.lid("h1")).way]
    )
    lan.settle(MS)
    assert lan.drops("h1") == {"drop.rx.claimed_lid": 1}
    assert lan.reaches("h1", "h2")
    assert lan.reaches("h1", "h0")
    stolen = NodeInfo(1, 0, lan.lid("h0"), info.mtu, bytes(8), lan.driver("h2").station.describe().port_guid)
    driver.station.services.send_control(
        driver.station.lid, Kind.HELLO, stolen.pack(), [driver.station.peers.at(lan.lid("h1")).way]
    )
    lan.settle(5 * MS)
    assert lan.drops("h1")["drop.rx.claimed_port"] == 1  # h2's port is where it was
    assert lan.reaches("h1", "h2")
    rogue = Rogue(lan, "h0")
    rogue.say("h1", rogue.message(ethernet(lan.mac("h1"), lan.mac("h0"))))
    assert lan.drops("h1")["drop.rx.other_queue_pair"] == 1  # h0's card has another queue pair
    rogue.say("h1", rogue.message(lie.pack(), kind=Kind.HELLO, lid=lan.lid("h2")))
    assert lan.drops("h1")["drop.rx.claimed_lid"] == 2


def test_a_connection_request_in_anothers_name() -> None:
    """h0, who knows h2's LID, GID, queue pair and identifiers, asks h1 in its name for a channel, and to end one."""
    lan = star(3)
    assert lan.reaches("h2", "h1")
    station = lan.driver("h1").station
    friend = station.peers.at(lan.lid("h2"))
    assert friend.channel is not None
    asked = next(comm for channel, comm in station.channels._comms.items() if channel is friend.channel)
    rogue = lan.driver("h0").station.channels
    channel = friend.channel
    there = lan.driver("h2").station
    theirs = next(iter(there.channels._comms.values()))
    request = REQ(
        local_comm_id=77,
        service_id=station.config.service_id,
        local_ca_guid=lan.device("h2").adapter.limits.node_guid,
        local_qpn=there.peers.at(lan.lid("h1")).channel.qp.qp_num,
        transport_service=TransportService.UC,
        path_mtu=5,
        srq=True,
        primary_local_lid=lan.lid("h2"),
        primary_remote_lid=lan.lid("h1"),
        primary_local_gid=friend.gid,
        primary_remote_gid=station.gid,
        primary_subnet_local=True,
    )
    for message in (
        request,
        replace(request, primary_local_lid=lan.lid("h0")),
        DREQ(theirs.local_id, asked.local_id, channel.qp.qp_num),
        REJ(theirs.local_id, asked.local_id, reason=RejectReason.STALE_CONNECTION),
    ):
        rogue._gsi.send(MadAddress(lan.lid("h1")), cm_mad(message).pack())
        lan.settle(MS)
    drops = lan.drops("h1")
    assert (drops["drop.rx.claimed_lid"], drops["drop.rx.claimed_port"]) == (1, 1)
    lan.settle(SECOND)
    assert friend.channel is channel
    assert not channel.closed
    assert lan.reaches("h1", "h2")
    assert lan.reaches("h2", "h1")
    assert lan.reaches("h0", "h1")


def test_malformed_messages_by_the_hundred(seed: int) -> None:
    """Random bytes, and valid messages with bits turned: no exception, no state left, others unaffected."""
    lan = star(3)
    rogue = Rogue(lan, "h2")
    random = Random(seed)
    good = [
        rogue.message(ethernet(lan.mac("h1"), lan.mac("h2"))),
        rogue.message(bytes(100), length=400, offset=200),
        rogue.message(lan.driver("h2").station.describe().pack(), kind=Kind.HELLO),
        rogue.message(bytes(13), kind=Kind.PROBE),
        rogue.message(bytes(13), kind=Kind.PROBE_REPLY),
        rogue.message(bytes(36), kind=Kind.BYE),
    ]
    for number in range(300):
        if number % 2:
            message = random.randbytes(random.choice((0, 1, 15, 16, 17, 60, 256)))
        else:
            spoiled = bytearray(random.choice(good))
            for _ in range(random.randint(1, 6)):
                spoiled[random.randrange(len(spoiled))] ^= 1 << random.randrange(8)
            message = bytes(spoiled)
        rogue.say("h1", message)
    lan.settle(SECOND)
    counters = lan.card("h1").counters
    assert counters["drop.rx.internal"] == 0
    assert total(counters, "drop.rx.malformed") > 50
    assert len(lan.driver("h1").receiver.reassembly) == 0
    assert len(lan.driver("h1").station.peers) <= 4
    lan.heard()
    frame = lan.send("h0", "h1")
    assert frame in lan.heard()["h1"]


def test_a_broadcast_storm_is_held_back() -> None:
    """One node floods: the others take so much a second, and hear everybody else as before."""
    lan = Lan("star hosts=4", lan=LanConfig(storm_rate=1000, storm_burst=50, fabric_multicast="off"))
    lan.join()
    for burst in range(20):
        for number in range(20):
            lan.send("h0", BROADCAST, seed=burst * 20 + number)
        if burst == 10:
            frame = lan.send("h3", "h1", 200)
            other = lan.send("h2", BROADCAST, 200)
        lan.settle(MS)
    heard = lan.heard()
    assert frame in heard["h1"]
    assert other in heard["h1"]
    of_storm = len(heard["h1"]) - 2
    assert 50 <= of_storm <= 50 + 25
    assert lan.drops("h1")["drop.rx.storm"] == 400 - of_storm
    lan.settle(SECOND)
    calm = lan.send("h0", BROADCAST)
    assert lan.heard()["h2"] == [calm]


def test_fragments_that_never_complete() -> None:
    """Many first fragments: a few are kept for each sender, and only for a while."""
    lan = Lan("star hosts=3", lan=LanConfig(mtu=65535, reassembly_bytes=200_000, reassembly_per_sender=4))
    lan.join("h0", "h1")
    rogue = Rogue(lan, "h2")
    reassembly = lan.driver("h1").receiver.reassembly
    for number in range(100):
        rogue.say("h1", rogue.message(bytes(100), number=number, length=60_000))
        assert len(reassembly) <= 3
        assert reassembly.bytes_held <= 200_000
    rogue.say("h1", rogue.message(bytes(100), number=1000, length=0xFFFFFF))
    assert lan.drops("h1")["drop.rx.reassembly.length"] == 1
    assert total(lan.card("h1").counters, "drop.rx.reassembly.memory") >= 97
    frame = lan.send("h0", BROADCAST, 9000)
    assert lan.heard()["h1"] == [frame]
    lan.settle(SECOND)
    assert len(reassembly) == reassembly.bytes_held == 0


def test_too_many_neighbours() -> None:
    lan = Lan("star hosts=5", lan=LanConfig(most_peers=2))
    lan.join()
    for name in lan.lan_nodes:
        assert len(lan.driver(name).station.peers) <= 2
    assert lan.card("h4").counters["peers.refused"] >= 1


def test_who_stands_on_a_card_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    """An exception of whoever is given the frames is logged, counted, and ends nothing."""
    lan = star(2)
    card = lan.card("h1")
    card.detach()
    heard: list[bytes] = []

    def take(frames: list[bytes]) -> None:
        heard.extend(frames)
        if len(heard) == 1:
            raise RuntimeError("the program above fails")

    card.attach(take, lambda event, detail: None)
    for _ in range(3):
        lan.send("h0", "h1")
        lan.settle(MS)
    assert len(heard) == 3
    assert card.counters["drop.rx.internal"] == 1
    assert "a message could not be handled" in caplog.text


# --- the header and the reassembly, by themselves ---------------------------------------------------------------


@given(st.binary(max_size=80))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    try:
        kind, flags, lid, number, length, offset = parse_header(data)
    except DecodeError:
        return
    assert data[:HEADER_SIZE] == HEADER.pack(VERSION << 4 | kind, flags, lid, number, length, offset)
    assert offset + len(data) - HEADER_SIZE <= length


pieces = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 90), st.integers(1, 40)), max_size=60
)


class Model:
    """The plainest reassembly: bytes by position; a message that contradicts itself is forgotten."""

    def __init__(self, per_sender: int) -> None:
        self.open: dict[tuple[int, int], dict[int, int]] = {}
        self.pieces: dict[tuple[int, int], set[tuple[int, int]]] = {}
        self.per_sender = per_sender

    def forget(self, key: tuple[int, int]) -> None:
        del self.open[key], self.pieces[key]

    def add(self, sender: int, number: int, length: int, offset: int, piece: bytes) -> bytes | None:
        key = (sender, number)
        if key not in self.open:
            mine = [k for k in self.open if k[0] == sender]
            if len(mine) >= self.per_sender:
                self.forget(mine[0])
            self.open[key], self.pieces[key] = {}, set()
        if (offset, len(piece)) in self.pieces[key]:
            return None
        places = range(offset, offset + len(piece))
        if not piece or offset + len(piece) > length or any(at in self.open[key] for at in places):
            self.forget(key)
            return None
        self.pieces[key].add((offset, len(piece)))
        self.open[key].update(zip(places, piece, strict=True))
        if len(self.open[key]) < length:
            return None
        whole = bytes(self.open[key][at] for at in range(length))
        self.forget(key)
        return whole


@given(pieces)
def test_reassembly_does_as_the_model(parts: list[tuple[int, int, int, int]]) -> None:
    """Fragments in any order, doubled, overlapping, of several messages and senders at once."""
    counters: Counter[str] = Counter()
    real = Reassembly(most_bytes=10_000, per_sender=2, timeout_ns=1000, largest=100, counters=counters)
    model = Model(2)
    for sender, number, offset, size in parts:
        piece = bytes((sender * 50 + number * 10 + at) & 0xFF for at in range(offset, offset + size))
        assert real.add(sender, number, 100, offset, 0, piece, 0) == model.add(
            sender, number, 100, offset, piece
        )
        assert len(real) == len(model.open)
        assert real.bytes_held == 100 * len(real)
    assert real.expire(999) == (1000 if model.open else None)
    assert real.expire(1000) is None
    assert len(real) == real.bytes_held == 0


@given(st.permutations(range(7)), st.integers(1, 7))
def test_a_message_in_any_order_of_its_fragments(order: list[int], size: int) -> None:
    whole = bytes(range(7 * size))
    real = Reassembly(most_bytes=1000, per_sender=1, timeout_ns=1, largest=100, counters=Counter())
    results = [real.add(1, 1, len(whole), n * size, 0, whole[n * size : (n + 1) * size], 0) for n in order]
    assert results == [None] * 6 + [whole]


@pytest.mark.parametrize(
    "change",
    [{"mtu": 575}, {"mtu": 65536}, {"service": "RD"}, {"policy": "no"}, {"number": 256}, {"settle_ns": -1}],
)
def test_what_cannot_be_chosen(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        LanConfig(**change)
