"""Formats that LANs are made of: ARP, Ethernet frames, service id resolution."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena.clock import Clock
from verbena.errors import ManagementTimeout, NotFound
from verbena.management.datagrams import MadAddress
from verbena.management.service_resolution import DatagramService, ServiceResolver, refusal
from verbena.runtime.virtual_time import VirtualClock
from verbena.wire import Mad
from verbena.wire.arp import ArpOperation, ArpPacket
from verbena.wire.cm import cm_mad
from verbena.wire.errors import DecodeError
from verbena.wire.ethernet import ethertype, is_group, mac_text, parse_mac, payload_offset
from verbena.wire.sidr import SidrRep, SidrReq, SidrStatus, sidr_message

six, four = st.binary(min_size=6, max_size=6), st.binary(min_size=4, max_size=4)


@given(st.sampled_from(ArpOperation), six, four, six, four)
def test_arp(operation: ArpOperation, a: bytes, b: bytes, c: bytes, d: bytes) -> None:
    made = ArpPacket(operation=operation, sender_mac=a, sender_ip=b, target_mac=c, target_ip=d)
    frame = made.frame(c, a)
    assert len(frame) == 14 + 28
    assert ArpPacket.parse(frame[14:] + bytes(18)) == made
    assert (frame[:6], frame[6:12], ethertype(frame)) == (c, a, 0x0806)


@pytest.mark.parametrize("change", [(1, 6), (2, 0x86), (4, 8), (5, 16)])
def test_arp_of_other_networks(change: tuple[int, int]) -> None:
    raw = bytearray(ArpPacket().pack())
    raw[change[0]] = change[1]
    with pytest.raises(DecodeError):
        ArpPacket.parse(bytes(raw))
    with pytest.raises(DecodeError):
        ArpPacket.parse(bytes(raw[:27]))


@given(six)
def test_addresses_as_text(mac: bytes) -> None:
    assert parse_mac(mac_text(mac)) == mac
    assert is_group(mac) == bool(mac[0] & 1)


@pytest.mark.parametrize("text", ["", "02:76:62:00:00", "02:76:62:00:00:0g", "02:76:62:00:00:001"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(DecodeError):
        parse_mac(text)


@given(st.integers(0, 3), st.integers(0, 0xFFFF), st.binary(max_size=20))
def test_where_the_payload_begins(tags: int, kind: int, rest: bytes) -> None:
    kind = 0x0800 if kind in (0x8100, 0x88A8, 0x9100) else kind
    frame = bytes(12) + b"\x81\x00\x00\x05" * tags + kind.to_bytes(2, "big") + rest
    if tags <= 2:
        assert payload_offset(frame) == 14 + 4 * tags
        assert ethertype(frame) == kind
    else:
        assert payload_offset(frame) == 22  # what is tagged deeper is payload
    for length in range(14):
        with pytest.raises(DecodeError):
            payload_offset(frame[:length])


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=136), st.sampled_from(SidrStatus)
)
def test_service_id_resolution(number: int, service: int, private: bytes, status: SidrStatus) -> None:
    request = SidrReq(request_id=number, service_id=service, private_data=private)
    reply = SidrRep(request_id=number, status=status, qpn=number & 0xFFFFFF, qkey=7, service_id=service)
    for message in (request, reply):
        mad = cm_mad(message, 5)
        found = sidr_message(Mad.unpack(mad.pack()))
        assert found is not None
        assert found.pack() == message.pack()


class Pair:
    """Two resolvers with nothing between them but a clock; `lost`: how many messages do not arrive."""

    def __init__(self, lost: int = 0) -> None:
        self.clock: Clock = VirtualClock()
        self.lost = lost
        self.offered: dict[int, DatagramService] = {}
        self.asked: list[bytes] = []
        self.a = ServiceResolver(self._to_b, self.clock, Random(1))
        self.b = ServiceResolver(self._to_a, self.clock, Random(2), self._answer)

    def _answer(self, service: int, source: MadAddress, private: bytes) -> DatagramService | None:
        self.asked.append(private)
        return self.offered.get(service)

    def _later(self, resolver: ServiceResolver, lid: int, data: bytes) -> None:
        if self.lost:
            self.lost -= 1
            return

        def arrive() -> None:
            if not resolver.receive(MadAddress(lid), data) and resolver is self.b:
                refused = refusal(data)
                assert refused is not None
                self._to_a(MadAddress(1), refused)

        self.clock.call_at(self.clock.now() + 10, arrive)

    def _to_b(self, to: MadAddress, data: bytes) -> None:
        self._later(self.b, 1, data)

    def _to_a(self, to: MadAddress, data: bytes) -> None:
        self._later(self.a, 2, data)

    def run(self) -> None:
        while self.clock.step():  # type: ignore[attr-defined]
            pass


@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_a_queue_pair_is_found_though_messages_are_lost(lost: int) -> None:
    pair = Pair(lost)
    pair.offered[9] = DatagramService(0x123, 0x456, b"about me")
    answer = pair.a.resolve(MadAddress(2), 9, b"about the asker")
    pair.run()
    found = answer.result()
    assert (found.qpn, found.qkey, found.private_data[:8]) == (0x123, 0x456, b"about me")
    assert pair.asked[0][:15] == b"about the asker"
    assert pair.a.counters["asked"] == lost + 1


def test_nobody_there_and_nobody_answers() -> None:
    pair = Pair()
    none = pair.a.resolve(MadAddress(2), 9)
    pair.run()
    with pytest.raises(NotFound):
        none.result()
    pair.lost = 1000
    silent = pair.a.resolve(MadAddress(2), 9)
    pair.run()
    with pytest.raises(ManagementTimeout):
        silent.result()
    assert pair.clock.now() >= 4 * 100_000_000


def test_forged_answers_are_dropped() -> None:
    pair = Pair(lost=1000)
    pending = pair.a.resolve(MadAddress(2), 9)
    request = next(iter(pair.a._questions.values())).request
    forged = cm_mad(SidrRep(request_id=request.request_id, qpn=66, service_id=9)).pack()
    assert pair.a.receive(MadAddress(3), forged)  # from another LID than was asked
    other = cm_mad(SidrRep(request_id=request.request_id, qpn=66, service_id=8)).pack()
    assert pair.a.receive(MadAddress(2), other)
    assert not pair.a.receive(MadAddress(2), cm_mad(SidrRep(request_id=0, qpn=66, service_id=9)).pack())
    assert pair.a.counters["dropped.source"] == 2
    assert not pending.done
    assert pair.a.receive(MadAddress(2), forged)
    assert pending.result().qpn == 66
    pair.a.close()
