"""Frames over the LAN: unicast, broadcast, multicast, sizes, kinds, what is refused."""

from __future__ import annotations

import pytest

from lan.lan_lab import BROADCAST, MS, SECOND, SMALL, Lan, ethernet, star
from system.world import FabricOptions, PortId
from verbena.lan import LanAddress, LanConfig
from verbena.lan.datagrams import cut
from verbena.lan.message import HEADER_SIZE
from verbena.transport.kinds import QPType
from verbena.wire import Opcode, decode_infiniband
from verbena.wire.ethernet import HEADER_SIZE as ETHERNET

GROUP = bytes.fromhex("01005e000001")


def packets(lan: Lan, name: str) -> list[object]:
    """The transport's operation of each packet that left a host since the last call, with its first bytes."""
    port = lan.assembly.ports[PortId(name, 1)]
    found = [p for _, at, out, p in lan.core.take_taps() if at == port and out]
    return [decode_infiniband(p) for p in found]


def tap(lan: Lan, name: str) -> None:
    lan.core.tap(lan.assembly.ports[PortId(name, 1)], True)
    lan.core.take_taps()


@pytest.mark.requirement("LAN-01", "LAN-04", "LAN-07", "LAN-25")
def test_a_frame_arrives_as_it_was_sent_and_only_there() -> None:
    lan = star(4)
    for to in ("h1", "h2", "h3"):
        frame = lan.send("h0", to, 742, seed=3)
        heard = lan.heard()
        assert heard.pop(to) == [frame]
        assert not any(heard.values())
    frame = lan.send("h3", BROADCAST, 90)
    heard = lan.heard()
    assert not heard.pop("h3")
    assert all(frames == [frame] for frames in heard.values())
    frame = lan.send("h2", GROUP, 61)
    assert [name for name, frames in lan.heard().items() if frames == [frame]] == ["h0", "h1", "h3"]
    lan.check_laws()
    # It went by ordinary queue pairs, and the adapter counted it.
    assert {qp.type for qp in lan.device("h0").queue_pairs.values()} >= {QPType.UD, QPType.UC}


@pytest.mark.requirement("LAN-07")
def test_what_is_for_others_is_not_taken() -> None:
    """A node sends h1 a frame for h2: h1's filter drops it."""
    lan = star(3)
    driver = lan.driver("h0")
    peer = driver.station.peers.at(lan.lid("h1"))
    message = driver.station.services.make(lan.lid("h0"), ethernet(lan.mac("h2"), lan.mac("h0")), 0)
    driver.station.services.send_datagrams(message, [peer.way])
    assert not any(lan.heard().values())
    assert lan.drops("h1") == {"drop.rx.not_mine": 1}


@pytest.mark.requirement("LAN-04")
def test_an_address_that_nobody_has() -> None:
    lan = star(3)
    nobody = LanAddress(0x1234).pack()
    lan.send("h0", nobody)
    assert not any(lan.heard().values())
    assert lan.drops("h0") == {"drop.tx.no_such_lid": 1}
    gone = lan.mac("h2")
    lan.leave("h2")
    lan.send("h0", gone)
    lan.settle()
    assert lan.drops("h0") == {"drop.tx.no_such_lid": 2}
    lan.send("h0", BROADCAST)
    assert [name for name, frames in lan.heard().items() if frames] == ["h1"]
    lan.send("h0", bytes.fromhex("001122334455"))  # no LID inside, and there is no bridge
    lan.settle()
    assert lan.drops("h0")["drop.tx.no_destination"] == 1


@pytest.mark.requirement("LAN-02")
def test_any_protocol_passes_unread() -> None:
    lan = star(2)
    a, b = lan.mac("h0"), lan.mac("h1")
    ipx = b + a + (46).to_bytes(2, "big") + b"\xe0\xe0\x03" + bytes(range(43))  # 802.3 length and LLC
    raw_length = b + a + (20).to_bytes(2, "big") + b"\xff\xff" + bytes(range(44))  # Novell's, padded
    appletalk = b + a + bytes.fromhex("809b") + bytes(range(100))
    vlan = b + a + bytes.fromhex("8100 6005 88a8 0001 0800") + bytes(range(64))
    minimal = b + a + b"\x00\x00"
    frames = [ipx, raw_length, appletalk, vlan, minimal]
    for frame in frames:
        assert lan.card("h0").transmit(frame)
    assert lan.heard()["h1"] == frames


@pytest.mark.requirement("LAN-11", "LAN-12", "LAN-13")
@pytest.mark.parametrize("packet", [256, 1024, 4096])
@pytest.mark.parametrize("mtu", [576, 1500, 9000, 65535])
def test_one_mtu_for_all_kinds_of_frames(packet: int, mtu: int) -> None:
    """Unicast by datagrams, unicast by channel, broadcast, multicast: the MTU passes, one byte more is refused."""
    lan = Lan("star hosts=3", lan=LanConfig(mtu=mtu), options=FabricOptions(mtu=packet), flits=False)
    lan.join()
    largest = ETHERNET + mtu
    for round_ in range(2):  # first by datagrams, then by the channel
        frame = lan.send("h0", "h1", largest, seed=round_)
        assert lan.heard(3 * MS)["h1"] == [frame]
    assert lan.card("h0").counters["posts.channel"] == 1
    for to in (BROADCAST, GROUP):
        for size in sorted({60, *(min(packet - HEADER_SIZE + n, largest) for n in (0, 1)), largest}):
            frame = lan.send("h2", to, size)
            heard = lan.heard(3 * MS)
            assert heard["h0"] == heard["h1"] == [frame]
    tagged = bytearray(ethernet(BROADCAST, lan.mac("h2"), largest + 4))
    tagged[12:14] = b"\x81\x00"
    assert lan.card("h2").transmit(bytes(tagged))  # a tag is not payload
    assert lan.heard(3 * MS)["h0"] == [bytes(tagged)]
    before = dict(lan.drops("h2"))
    for to in (BROADCAST, lan.mac("h0")):
        lan.ears["h2"].send(to, largest + 1)
    assert not any(lan.heard().values())
    assert lan.drops("h2") == {**before, "drop.tx.too_long": 2}
    lan.check_laws()


@pytest.mark.requirement("LAN-12")
def test_unicast_by_unreliable_connections_broadcast_by_datagrams() -> None:
    lan = star(2)
    lan.send("h0", "h1")
    lan.heard()
    tap(lan, "h0")
    lan.send("h0", "h1", 400)
    lan.send("h0", BROADCAST, 400)
    lan.heard()
    kinds = [packet.transport.bth.opcode for packet in packets(lan, "h0")]
    assert Opcode.UC_SEND_ONLY in kinds
    assert Opcode.UD_SEND_ONLY in kinds
    assert all(Opcode(kind).name.startswith(("UC_", "UD_")) for kind in kinds)


def test_reliable_connections_by_choice() -> None:
    lan = star(2, lan=LanConfig(service="RC"))
    lan.send("h0", "h1")
    lan.heard()
    tap(lan, "h0")
    frame = lan.send("h0", "h1", 1400)
    assert lan.heard()["h1"] == [frame]
    kinds = {Opcode(p.transport.bth.opcode).name.split("_")[0] for p in packets(lan, "h0")}
    assert kinds == {"RC"}


@pytest.mark.requirement("LAN-08", "LAN-09")
def test_broadcast_in_software_from_one_buffer() -> None:
    """Four copies from one buffer, each node once, the sender and who is not of the LAN none."""
    lan = Lan("star hosts=6", lan=LanConfig(fabric_multicast="off"))
    lan.join("h0", "h1", "h2", "h3", "h4")
    outsider = lan.device("h5", limits=SMALL)
    services = lan.driver("h0").station.services
    taken, posts = services.messages.taken, lan.card("h0").counters["posts.datagram"]
    posted: list[object] = []
    original = services.datagram_qp.post_send_many

    class Recorder:
        def __getattr__(self, name: str) -> object:
            return getattr(original.__self__, name)

        def post_send_many(self, requests: list[object]) -> None:
            posted.extend(requests)
            assert services.messages.free == services.messages.count - 1  # in use until the last completion
            original(requests)

    services._sender.qp = Recorder()
    frame = lan.send("h0", BROADCAST, 200)
    services._sender.qp = services.datagram_qp
    received = outsider.counters()["rx.packets"]
    heard = lan.heard()
    assert [heard[f"h{n}"] for n in range(5)] == [[], *[[frame]] * 4]
    assert outsider.counters()["rx.packets"] == received
    assert services.messages.taken - taken == 1
    assert lan.card("h0").counters["posts.datagram"] - posts == 4
    assert len(posted) == 4
    assert len({(sge.addr, sge.length, sge.lkey) for request in posted for sge in request.sg_list}) == 1
    assert services.messages.free == services.messages.count


@pytest.mark.requirement("LAN-10")
@pytest.mark.parametrize("fabric_multicast", ["auto", "off"])
def test_multicast_once_each_by_the_fabric_or_in_software(fabric_multicast: str) -> None:
    lan = star(5, lan=LanConfig(fabric_multicast=fabric_multicast))
    posts = lan.card("h0").counters["posts.datagram"]
    for to in (GROUP, BROADCAST):
        frame = lan.send("h0", to, 300)
        heard = lan.heard()
        assert [heard[f"h{n}"] for n in range(5)] == [[], *[[frame]] * 4]
    assert lan.card("h0").counters["posts.datagram"] - posts == (2 if fabric_multicast == "auto" else 8)
    lan.check_laws()


@pytest.mark.requirement("LAN-13")
def test_a_lost_fragment_leaves_no_frame_and_no_state() -> None:
    """Of a 1,500-byte broadcast over 256-byte packets one fragment is lost, each in turn."""
    lan = Lan("star hosts=2", options=FabricOptions(mtu=256), lan=LanConfig(fabric_multicast="off"))
    lan.join()
    driver = lan.driver("h0")
    services = driver.station.services
    receiver = lan.driver("h1").receiver
    pieces = 0
    for lost in range(7):
        message = services.make(lan.lid("h0"), ethernet(BROADCAST, lan.mac("h0"), 1514), 0)
        fragments = cut(message, services.lead, 256 - HEADER_SIZE)
        pieces = len(fragments)
        way = driver.station.peers.at(lan.lid("h1")).way
        services._sender.add(message, [way], [f for n, f in enumerate(fragments) if n != lost])
        assert lan.heard()["h1"] == []
        assert len(receiver.reassembly) == lost + 1
    assert pieces == 7
    assert len(receiver.reassembly) == 7
    lan.settle(SECOND)
    assert len(receiver.reassembly) == receiver.reassembly.bytes_held == 0
    assert lan.drops("h1") == {"drop.rx.reassembly.timeout": 7}
    frame = lan.send("h0", BROADCAST, 1514)
    assert lan.heard()["h1"] == [frame]


@pytest.mark.requirement("LAN-14")
def test_pools_have_limits_and_press_back() -> None:
    """Many frames at once: some are taken, the rest when there is room; nothing is lost, the pools fill up again."""
    lan = star(2, lan=LanConfig(mtu=4000, send_messages=8, fabric_multicast="off"))
    card, ear = lan.card("h0"), lan.ears["h0"]
    frames = [ethernet(BROADCAST, card.mac, 4000, seed=n) for n in range(400)]
    taken = card.send_frames(frames)
    assert 8 <= taken < 400
    assert not card.transmit(frames[taken])
    services = lan.driver("h0").station.services
    assert services.messages.free == 0
    while taken < 400:
        lan.settle(100_000)
        taken += card.send_frames(frames[taken:])
    assert lan.heard(10 * MS)["h1"] == frames
    assert any(event.name == "ROOM" for event in ear.events)
    assert services.messages.free == services.messages.count == 8
    assert services.control.free == services.control.count
    assert not lan.drops("h0")
