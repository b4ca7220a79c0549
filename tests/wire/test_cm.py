"""Management datagrams and the messages of the connection manager."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena import wire
from wire.samples import CM_MESSAGES, layouts, request

PRIVATE_DATA = {
    wire.REQ: 92,
    wire.MRA: 222,
    wire.REJ: 148,
    wire.REP: 196,
    wire.RTU: 224,
    wire.DREQ: 220,
    wire.DREP: 224,
}


@pytest.mark.parametrize("kind", CM_MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_messages_round_trip_through_a_mad(kind: type[wire.CmMessage], data: st.DataObject) -> None:
    message = data.draw(layouts(kind))
    assert isinstance(message, kind)
    mad = wire.cm_mad(message, transaction_id=data.draw(st.integers(0, 2**64 - 1)))
    raw = mad.pack()
    assert len(raw) == wire.MAD_SIZE
    assert wire.Mad.unpack(raw) == mad
    assert wire.cm_message(wire.Mad.unpack(raw)) == message


@pytest.mark.parametrize("kind", CM_MESSAGES, ids=lambda kind: kind.__name__)
@given(raw=st.binary(min_size=232, max_size=232))
def test_every_bit_of_a_message_is_kept(kind: type[wire.CmMessage], raw: bytes) -> None:
    assert kind.SIZE == 232
    assert kind.unpack(raw).pack() == raw


@pytest.mark.parametrize("kind", CM_MESSAGES, ids=lambda kind: kind.__name__)
def test_private_data_is_filled_up_and_limited(kind: type[wire.CmMessage]) -> None:
    size = PRIVATE_DATA[kind]
    assert kind.unpack(kind(private_data=b"abc").pack()).private_data == b"abc" + bytes(size - 3)
    kind(private_data=bytes(size)).pack()
    with pytest.raises(wire.EncodeError, match=f"at most {size}"):
        kind(private_data=bytes(size + 1)).pack()


def test_what_is_no_message() -> None:
    mad = wire.cm_mad(wire.RTU(1, 2))
    for wrong, reason in (
        ({"management_class": 3}, "header"),
        ({"method": 1}, "header"),
        ({"class_version": 1}, "version"),
        ({"attribute_id": 0x99}, "opcode"),
    ):
        values = {name: getattr(mad, name) for name in mad.__dataclass_fields__} | wrong
        with pytest.raises(wire.DecodeError) as caught:
            wire.cm_message(wire.Mad(**values))
        assert caught.value.reason == reason


def test_service_ids_are_those_of_librdmacm() -> None:
    assert wire.service_id(7174) == 0x0000000001061C06
    assert wire.service_port(0x0000000001061C06) == 7174
    assert wire.service_port(0x0000000001111C06) is None
    with pytest.raises(wire.EncodeError, match="from 0 to 65535"):
        wire.service_id(65536)


@pytest.mark.parametrize(("source", "destination"), [("10.0.0.1", "10.0.0.2"), ("fe80::1", "2001:db8::2")])
def test_ip_addresses_in_private_data(source: str, destination: str) -> None:
    header = wire.IpCmHeader.of(source, destination, 4000)
    assert wire.IpCmHeader.SIZE == 36
    read = wire.IpCmHeader.unpack(header.pack() + b"consumer's")
    assert (str(read.source), str(read.destination), read.src_port) == (source, destination, 4000)
    assert read.pack()[0] == 0
    assert read.pack()[1] >> 4 == (6 if ":" in source else 4)


def test_ip_addresses_of_two_kinds_or_none() -> None:
    with pytest.raises(wire.EncodeError, match="same IP version"):
        wire.IpCmHeader.of("10.0.0.1", "::1", 1)
    with pytest.raises(wire.DecodeError, match="IP version 0"):
        _ = wire.IpCmHeader.unpack(bytes(36)).source


def test_a_request_is_laid_out_as_linux_does() -> None:
    raw = request().pack()
    assert raw[8:16].hex() == "0000000001061c06"
    assert raw[32:36].hex() == "00001100"
    assert raw[44:52].hex() == "00006307ffff5700"
    assert raw[140 + 36 : 140 + 41] == b"hello"
