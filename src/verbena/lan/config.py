"""What can be chosen of a LAN's node.  All sizes and times have bounds; everything that waits is bounded by them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from verbena.errors import InvalidAttributeError
from verbena.lan.message import HEADER_SIZE, OFFLOAD_SIZE
from verbena.wire.ethernet import HEADER_SIZE as ETHERNET_HEADER
from verbena.wire.ethernet import MOST_TAGS, TAG_SIZE

MILLISECOND = 1_000_000
SECOND = 1_000_000_000
SMALLEST_MTU, LARGEST_MTU = 576, 65_535
LARGEST_SEGMENT = 65_535 + 40
"""The largest frame payload that waits for segmentation: an IPv6 packet with the largest payload length."""
CHOICES = {
    "service": ("UC", "RC"),
    "policy": ("keep", "age", "limited", "datagram"),
    "discovery": ("eager", "lazy"),
    "fabric_multicast": ("auto", "off"),
}
RANGES = {
    "mtu": (SMALLEST_MTU, LARGEST_MTU),
    "number": (0, 255),
    "max_channels": (0, 16_384),
    "send_messages": (4, 4096),
    "datagram_receives": (8, 16_384),
    "frame_receives": (8, 4096),
    "send_depth": (8, 16_384),
    "channel_depth": (2, 1024),
    "most_waiting": (1, 1024),
    "most_peers": (1, 49_151),
    "most_foreign": (0, 65_536),
    "reassembly_bytes": (65_535, 1 << 30),
    "reassembly_per_sender": (1, 64),
    "storm_rate": (0, 1_000_000_000),
    "storm_burst": (1, 1_000_000),
}


@dataclass(frozen=True, slots=True)
class LanConfig:
    """A LAN's node.  All nodes of a LAN need the same `mtu` and `number`.

    mtu: bytes behind the Ethernet header, for unicast and multicast alike.  number: the LAN's, the reserved octet of
    its addresses.  service: of channels.  policy: "keep" channels for ever; "age" them with the addresses that were
    resolved; "limited": at most max_channels of them, for who has most traffic; "datagram": none.  discovery: "eager"
    asks for all nodes and their paths at the start; "lazy" learns of a node when something comes from or goes to it,
    which needs fabric multicast for broadcasts.  fabric_multicast: "auto" uses it where the subnet has it.

    Times in nanoseconds.  query_interval_ns: between looks at the list of nodes.  hello_interval_ns: between a node's
    HELLOs, 0: only when it starts.  settle_ns: from a notice to the look that it causes.  channel_age_ns: without
    address resolution and traffic.  probe_interval_ns, probe_tries: how a silent path is noticed; fail-over takes
    (probe_tries + 1) intervals at most.  down_interval_ns: between attempts to reach who is down.  foreign_age_ns: of
    addresses behind bridges.  storm_rate, storm_burst: broadcasts and multicasts a second from one node (0: no limit).

    offload: frames may come with a virtio_net_hdr, checksums and segmentation still to be done.
    """

    mtu: int = 1500
    number: int = 0
    service: str = "UC"
    policy: str = "keep"
    max_channels: int = 1024
    discovery: str = "eager"
    fabric_multicast: str = "auto"
    query_interval_ns: int = 5 * SECOND
    hello_interval_ns: int = 0
    settle_ns: int = 10 * MILLISECOND
    channel_age_ns: int = 60 * SECOND
    probe_interval_ns: int = 20 * MILLISECOND
    probe_tries: int = 2
    down_interval_ns: int = 500 * MILLISECOND
    foreign_age_ns: int = 300 * SECOND
    sidr_timeout_ns: int = 100 * MILLISECOND
    reassembly_timeout_ns: int = 500 * MILLISECOND
    reassembly_bytes: int = 4 << 20
    reassembly_per_sender: int = 8
    storm_rate: int = 20_000
    storm_burst: int = 4_000
    send_messages: int = 64
    datagram_receives: int = 512
    frame_receives: int = 64
    send_depth: int = 512
    channel_depth: int = 32
    most_waiting: int = 32
    most_peers: int = 16_384
    most_foreign: int = 4_096
    offload: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InvalidAttributeError(f"{name} = {getattr(self, name)!r}: one of {', '.join(choices)}")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise InvalidAttributeError(f"{name} = {value!r}: {low} to {high}")
        for name in (field.name for field in fields(self)):
            if name.endswith("_ns") and not (
                isinstance(getattr(self, name), int) and getattr(self, name) >= 0
            ):
                raise InvalidAttributeError(f"{name} = {getattr(self, name)!r}: nanoseconds, 0 or more")

    @property
    def largest_frame(self) -> int:
        """The longest frame in bytes, with two tags; without a virtio_net_hdr."""
        payload = max(self.mtu, LARGEST_SEGMENT) if self.offload else self.mtu
        return ETHERNET_HEADER + MOST_TAGS * TAG_SIZE + payload

    @property
    def largest_message(self) -> int:
        """What a message pool's slot holds besides the headers of fragments."""
        return HEADER_SIZE + (OFFLOAD_SIZE if self.offload else 0) + self.largest_frame

    @property
    def service_name(self) -> str:
        """How nodes of this LAN are known to subnet administration."""
        return f"IBLAN-{self.number}" if self.number else "IBLAN"

    @property
    def service_id(self) -> int:
        """The number of the LAN's service at the connection manager."""
        return 0x1000_0000_4C41_4E00 | self.number
