"""Hosts at a virtual switch, in virtual time: the place where workloads run, lossy or lossless.

Each host has a card with a queue and a link to the switch, and one back.  **Lossless**: the switch stops the hosts by
priority flow control when its input queues fill, because the output that their frames are for is full.  **Lossy**: what
finds no room in an output's buffer is dropped.  The buffer has the same size both ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verbena.clock import Clock
from verbena.errors import InvalidAttributeError
from verbena.vswitch.config import Marks, PortConfig, SwitchConfig
from verbena.vswitch.link import Link, Meeting
from verbena.vswitch.queue import FrameQueue, Item
from verbena.vswitch.switch import VirtualSwitch
from verbena.vswitch.tcp import ACK, Receiver, Sender, unpack_segment

MAX_FRAME = 1522
UDP_KIND = 2
CARD_FRAMES = 64


class Host:
    """A station with a card; the `tcp.Stack` of the flows that end here."""

    def __init__(self, cluster: Cluster, name: str, number: int) -> None:
        self.name = name
        self.mac = bytes((2, 0x76, 0, 0, number >> 8, number & 0xFF))
        self.card = FrameQueue(name, Marks(CARD_FRAMES // 2, CARD_FRAMES, CARD_FRAMES))
        self.card.on_room = self._room
        self.senders: dict[int, Sender] = {}
        self.receivers: dict[int, Receiver] = {}
        self.on_datagram: Callable[[int, int], None] = lambda _flow, _length: None
        self.waiting: list[Callable[[], None]] = []
        self._cluster = cluster

    def transmit(self, peer: str, body: bytes, length: int) -> bool:
        head = self._cluster.hosts[peer].mac + self.mac + b"\x08\x00"
        return self.card.send(Item(head + body, max(length, 60)))

    def _room(self, _: int) -> None:
        for receiver in list(self.receivers.values()):
            receiver.more()
        for sender in list(self.senders.values()):
            sender.more()
        waiting, self.waiting = self.waiting, []
        for function in waiting:
            function()

    def arrived(self, item: Item) -> None:
        """A frame came up the link."""
        if item.data[18] == UDP_KIND:
            self.on_datagram(int.from_bytes(item.data[14:18], "big"), item.length)
            return
        flow, kind, seq, length, flag, ranges = unpack_segment(item.data[14:])
        if kind == ACK:
            if flow in self.senders:
                self.senders[flow].acknowledged(seq, flag, ranges, length)
        elif flow in self.receivers:
            self.receivers[flow].arrived(seq, length, item.marked)


class Cluster:
    """hosts: names.  rates: of each host's link, bit/s.  buffer_bytes: of each output; input_bytes: of each input.

    mark_bytes: outputs longer than this mark frames (for DCTCP).  signal: what stops hosts in a lossless cluster.
    """

    def __init__(
        self,
        clock: Clock,
        hosts: list[str],
        rates: dict[str, float],
        *,
        lossless: bool,
        buffer_bytes: int = 65_536,
        input_bytes: int = 65_536,
        delay_ns: int = 10_000,
        mark_bytes: int = 0,
        signal: str = "pfc",
    ) -> None:
        if buffer_bytes < 4 * MAX_FRAME:
            raise InvalidAttributeError(
                f"buffer_bytes = {buffer_bytes}: at least four frames, {4 * MAX_FRAME}"
            )
        self.clock, self.lossless, self.delay_ns = clock, lossless, delay_ns
        classes = frozenset({0}) if lossless else frozenset()
        self.switch = VirtualSwitch(SwitchConfig(lossless=classes, ports=len(hosts)), clock)
        self.hosts: dict[str, Host] = {}
        self.links: list[Link] = []
        self._flows = 0
        frames = max(buffer_bytes, input_bytes) // 60 + 2
        # One more frame may come when the queue is just below its mark.
        high = buffer_bytes - MAX_FRAME if lossless else buffer_bytes
        output = Marks(frames, frames + 1, frames + 1, high // 2, high, buffer_bytes)
        input = Marks(frames, frames + 1, frames + 1, room_bytes=input_bytes)
        for number, name in enumerate(hosts):
            host = self.hosts[name] = Host(self, name, number + 1)
            port = self.switch.add_port(
                PortConfig(name, (host.mac,), input=input, output=output, mark_bytes=mark_bytes)
            )
            rate = rates[name]
            if lossless:
                meeting = Meeting(
                    clock,
                    host.card,
                    port,
                    signal,
                    rate_bps=rate,
                    delay_ns=delay_ns,
                    buffer_bytes=self._input(input_bytes, rate, delay_ns),
                )
                self.links.append(meeting.link)
            else:
                self.links.append(Link(clock, host.card, self._into(port), rate_bps=rate, delay_ns=delay_ns))
            down = Link(clock, port, host.arrived, rate_bps=rate, delay_ns=delay_ns)
            self.links.append(down)
        for link in self.links:
            link.kick()

    @staticmethod
    def _input(input_bytes: int, rate: float, delay_ns: int) -> int:
        """The input's buffer with room for what is on a link of this delay."""
        return input_bytes + int(rate * 2 * delay_ns / 8e9)

    @staticmethod
    def _into(port: Any) -> Callable[[Item], object]:
        return lambda item: port.arrive(item.data, item.length)

    def rtt_ns(self) -> int:
        """Of an empty path: four links."""
        return 4 * self.delay_ns + 50_000

    def tcp(
        self,
        source: str,
        destination: str,
        size: int,
        *,
        congestion: str,
        min_rto_ns: int,
        probes: bool = True,
        room: int = 1 << 22,
        on_done: Callable[[Sender], None],
    ) -> Sender:
        """A flow that is ready to `start`; on_done: the receiver has all of it."""
        self._flows += 1
        flow = self._flows
        from_host, to_host = self.hosts[source], self.hosts[destination]

        def finished() -> None:
            from_host.senders.pop(flow, None)
            to_host.receivers.pop(flow, None)

        sender = Sender(
            self.clock,
            from_host,
            flow,
            destination,
            size,
            congestion=congestion,
            min_rto_ns=min_rto_ns,
            rtt_ns=self.rtt_ns(),
            probes=probes,
            window=room,
            on_done=finished,
        )
        from_host.senders[flow] = sender
        to_host.receivers[flow] = Receiver(to_host, flow, source, size, lambda: on_done(sender), room)
        return sender

    def datagram(self, source: str, destination: str, flow: int, length: int) -> bool:
        """Send a UDP datagram; False: the card is full."""
        body = flow.to_bytes(4, "big") + bytes((UDP_KIND,))
        return self.hosts[source].transmit(destination, body, length)

    def lost(self) -> dict[str, int]:
        """Frames lost, by place."""
        return self.switch.losses()
