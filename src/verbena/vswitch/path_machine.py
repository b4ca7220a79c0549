"""The sending side of the path from socket to socket: its settings, and a virtual machine with all of its queues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from verbena.clock import Clock
from verbena.errors import InvalidAttributeError
from verbena.vswitch.config import Marks
from verbena.vswitch.queue import FrameQueue, Item
from verbena.vswitch.switch import SwitchPort
from verbena.wire.ip import ETHERTYPE_IPV4, UDP, Ethernet, IPv4, internet_checksum

MTU = 1514
NUMBERS = 1_000_000
"""Each socket's frames are numbered from a multiple of this on."""
POINTS = (
    "send call",
    "queueing discipline",
    "card TX ring",
    "switch input",
    "switch output",
    "physical card TX",
    "physical link",
    "far switch input",
    "far switch output",
    "card RX ring",
    "socket RX buffer",
)
"""The meeting points, each named after the queue that is entered there, in the order of the way."""


@dataclass(frozen=True, slots=True)
class PathConfig:
    """machines: sending virtual machines.  sockets: of each.  frames: that each socket sends, of `length` bytes.

    send_gap_ns: between two send calls of a machine; read_gap_ns: between two reads; asleep_ns: the reader sleeps so
    long at first.  rate_bps: of the physical link.  service_ns: what each software stage needs for a frame.  off:
    meeting points without flow control.
    """

    machines: int = 3
    sockets: int = 1
    frames: int = 1000
    length: int = 1000
    send_gap_ns: int = 1_000
    read_gap_ns: int = 5_000
    asleep_ns: int = 0
    rate_bps: float = 10e9
    cable_m: float = 20
    service_ns: int = 300
    socket_bytes: int = 32_768
    ring_frames: int = 32
    switch_frames: int = 64
    off: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        unknown = self.off - set(POINTS)
        if unknown:
            raise InvalidAttributeError(
                f"no meeting point is called {sorted(unknown)[0]!r}: {', '.join(POINTS)}"
            )
        if not 60 <= self.length <= MTU:
            raise InvalidAttributeError(f"length = {self.length}: 60 to {MTU} bytes")
        if (
            min(
                self.machines, self.sockets, self.frames, self.send_gap_ns, self.read_gap_ns, self.ring_frames
            )
            < 1
        ):
            raise InvalidAttributeError("machines, sockets, frames, gaps and ring_frames are 1 or more")


def datagram(source: int, port: int, number: int, length: int) -> bytes:
    """An Ethernet frame with a UDP datagram from sending machine `source` to the receiving machine's `port`."""
    ip_length = length - 14
    udp = UDP(4000 + source, port, ip_length - IPv4.SIZE).pack()
    ip = IPv4(total_length=ip_length, src=bytes((192, 168, 0, source)), dst=bytes((192, 168, 0, 200))).pack()
    ip = ip[:10] + internet_checksum(ip).to_bytes(2, "big") + ip[12:]
    head = Ethernet(machine_mac(200), machine_mac(source), (), ETHERTYPE_IPV4).pack()
    return (head + ip + udp + number.to_bytes(4, "big")).ljust(length, b"\0")


def machine_mac(number: int) -> bytes:
    """The address of a virtual machine's card."""
    return bytes((2, 0x76, 0, 0, 1, number))


class Mover:
    """Takes from a source what the target has room for, a frame each `service_ns`; waits when there is none.

    offer: called with a frame; False: no room, try again after `kick`.
    """

    def __init__(self, clock: Clock, source: Any, offer: Callable[[Item], bool], service_ns: int) -> None:
        self._clock, self._source, self._offer, self._service = clock, source, offer, service_ns
        self._hand: Item | None = None
        self._busy = False
        self.waits = 0
        source.on_frames = self.kick

    def kick(self, _: int = 0) -> None:
        """There may be something to do: a frame came, or there is room."""
        if self._busy:
            return
        if self._hand is None:
            found = self._source.receive()
            if found is None:
                return
            self._hand = Item(found.data, found.length, found.priority)
        self._busy = True
        self._clock.call_at(self._clock.now() + self._service, self._move)

    def _move(self) -> None:
        self._busy = False
        if self._hand is None:
            return
        if self._offer(self._hand):
            self._hand = None
            self.kick()
        else:
            self.waits += 1


class Application:
    """Calls send on a socket of its own, and again after its gap; a full socket makes it wait.

    It numbers its frames from `first` on.
    """

    def __init__(self, clock: Clock, config: PathConfig, machine: int, first: int) -> None:
        self.sent = self.blocked = 0
        size = config.socket_bytes
        self.socket = FrameQueue("send call", socket_marks(size), controlled="send call" not in config.off)
        self.socket.on_room = self._woken
        self._clock, self._config, self._machine, self._first = clock, config, machine, first
        self._due = False

    def start(self) -> None:
        """Call send."""
        self._due = False
        if self.sent >= self._config.frames:
            return
        data = datagram(self._machine, 9000, self._first + self.sent, self._config.length)
        if not self.socket.send(Item(data, len(data))):
            self.blocked += 1
            return
        self.sent += 1
        self._due = True
        self._clock.call_at(self._clock.now() + self._config.send_gap_ns, self.start)

    def _woken(self, _: int) -> None:
        if not self._due:
            self._due = True
            self._clock.call_at(self._clock.now(), self.start)


def socket_marks(size: int) -> Marks:
    """Of a TX buffer of so many bytes: stopped one MTU below its maximum."""
    frames = size // 60 + 2
    return Marks(frames, frames + 1, frames + 1, size - 2 * MTU, size - MTU, size)


class Machine:
    """A sending virtual machine: applications with their sockets, discipline, card, and the hypervisor's mover."""

    def __init__(self, clock: Clock, config: PathConfig, number: int, port: SwitchPort) -> None:
        self.applications = [Application(clock, config, number, s * NUMBERS) for s in range(config.sockets)]
        size = config.socket_bytes
        # The discipline holds all that the sockets can (002:94); without that, what it was: a few frames.
        few = Marks(config.ring_frames - 1, config.ring_frames, config.ring_frames + 1)
        on = "queueing discipline" not in config.off
        self.discipline = FrameQueue(
            "queueing discipline", socket_marks(config.sockets * size) if on else few, controlled=on
        )
        ring = config.ring_frames * MTU
        many = ring // 60 + 2
        self.card = FrameQueue(
            "card TX ring",
            Marks(many, many + 1, many + 1, ring // 2, ring - MTU, ring),
            controlled="card TX ring" not in config.off,
        )
        service = config.service_ns
        sockets = [Mover(clock, a.socket, self.discipline.send, service) for a in self.applications]
        down = Mover(clock, self.discipline, self.card.send, service)
        out = Mover(clock, self.card, lambda item: port.send(item.data, item.length), service)
        self.movers = [*sockets, down, out]
        self.discipline.on_room = lambda _: self._sockets(sockets)
        self.card.on_room = down.kick
        port.on_room = out.kick

    @staticmethod
    def _sockets(movers: list[Mover]) -> None:
        for mover in movers:
            mover.kick()

    def start(self) -> None:
        """All its applications begin."""
        for application in self.applications:
            application.start()

    @property
    def sent(self) -> int:
        return sum(application.sent for application in self.applications)

    @property
    def blocked(self) -> int:
        return sum(application.blocked for application in self.applications)

    def stages(self) -> list[FrameQueue]:
        """Its queues, from the first socket on."""
        return [*(application.socket for application in self.applications), self.discipline, self.card]
