"""Ethernet frames as a LAN's ends and bridges see them: addresses, tags, what kind of payload (IEEE 802.3, 802.1Q).

A frame is plain bytes from the destination address on, without its check sequence.  These functions look into it and
copy nothing.
"""

from __future__ import annotations

from verbena.wire.errors import DecodeError
from verbena.wire.ip import VLAN_ETHERTYPES
from verbena.wire.layout import Buffer

MAC_SIZE = 6
HEADER_SIZE = 14
TAG_SIZE = 4
MOST_TAGS = 2
"""A customer's tag inside a provider's (IEEE 802.1ad); what is tagged deeper counts the rest as payload."""
SMALLEST_FRAME = 60
"""What a link pads frames to, without the check sequence."""
LARGEST_LENGTH = 1500
"""Type/length values up to here are the length of an 802.2 payload (IEEE 802.3, 3.2.6)."""
FIRST_ETHERTYPE = 0x0600

BROADCAST = b"\xff" * MAC_SIZE
GROUP_BIT = 0x01
"""I/G, the first bit of an address on the wire: the least significant of its first octet."""
LOCAL_BIT = 0x02
"""U/L: the address was given by whoever runs the network, not by the vendor."""
STP_GROUP = bytes.fromhex("0180c2000000")


def parse_mac(text: str) -> bytes:
    """Six octets from ``02:76:62:00:00:01``, also with dashes; raises `DecodeError`."""
    parts = text.replace("-", ":").split(":")
    if len(parts) != MAC_SIZE or not all(1 <= len(part) <= 2 for part in parts):
        raise DecodeError("header", f"{text!r} is no Ethernet address: six octets such as 02:76:62:00:00:01")
    try:
        return bytes(int(part, 16) for part in parts)
    except ValueError:
        raise DecodeError("header", f"{text!r} is no Ethernet address: its octets are hexadecimal") from None


def mac_text(mac: Buffer) -> str:
    """``02:76:62:00:00:01``."""
    return bytes(mac).hex(":")


def is_group(mac: Buffer) -> bool:
    """Broadcast or multicast: is the I/G bit set?"""
    return bool(mac[0] & GROUP_BIT)


def payload_offset(frame: Buffer) -> int:
    """Where the payload begins, behind at most `MOST_TAGS` tags; raises `DecodeError` for a frame that ends before."""
    at = HEADER_SIZE
    for _ in range(MOST_TAGS):
        if len(frame) < at:
            break
        if frame[at - 2] << 8 | frame[at - 1] not in VLAN_ETHERTYPES:
            return at
        at += TAG_SIZE
    if len(frame) < at:
        raise DecodeError("short", f"an Ethernet frame of {len(frame)} bytes ends within its header")
    return at


def ethertype(frame: Buffer) -> int:
    """The type of the payload behind all tags, or the length of an 802.2 one; raises `DecodeError`."""
    at = payload_offset(frame)
    return frame[at - 2] << 8 | frame[at - 1]
