"""The whole path from socket to socket, in virtual time: every queue that the document names (002:88-96), each with its
threshold, and flow control that can be switched off at each place where two of them meet.

On the sending server, for each virtual machine: the application's send call, the socket's TX buffer, the queueing
discipline, the virtual card's TX ring, the hypervisor, then the virtual switch's input queue, its output queue for the
physical port, and the bridge that encapsulates (VXLAN) into the physical card.  A link with priority flow control.  On
the receiving server: the physical card, the bridge, the switch's input and output queues, the hypervisor, the virtual
card's RX ring, the interrupt that moves packets to the sockets by port, the socket's RX buffer, and the application.

`Path.losses` says at which place frames were lost; `loss_table` repeats the run with each control switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from verbena.clock import Clock
from verbena.errors import InvalidAttributeError
from verbena.vswitch.config import Marks, PortConfig, SwitchConfig
from verbena.vswitch.link import Link
from verbena.vswitch.queue import FrameQueue, Item
from verbena.vswitch.signals import watch
from verbena.vswitch.signals_pause import PauseGranter, PauseThrottle, pfc_marks
from verbena.vswitch.switch import SwitchPort, VirtualSwitch
from verbena.wire.errors import DecodeError
from verbena.wire.ip import ETHERTYPE_IPV4, PROTOCOL_UDP, UDP, Ethernet, IPv4, internet_checksum
from verbena.wire.vxlan import Endpoint, decapsulate, encapsulate

MTU = 1514
MAX_FRAME = 1522
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
VNI = 0x2A
NEAR = Endpoint(bytes.fromhex("027600000a01"), bytes((10, 0, 0, 1)))
FAR = Endpoint(bytes.fromhex("027600000a02"), bytes((10, 0, 0, 2)))


@dataclass(frozen=True, slots=True)
class PathConfig:
    """machines: sending virtual machines.  frames: that each sends, of `length` bytes.

    send_gap_ns: between two send calls of a machine; read_gap_ns: between two reads; asleep_ns: the reader sleeps so
    long at first.  rate_bps: of the physical link.  service_ns: what each software stage needs for a frame.  off:
    meeting points without flow control.
    """

    machines: int = 3
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
        if min(self.machines, self.frames, self.send_gap_ns, self.read_gap_ns, self.ring_frames) < 1:
            raise InvalidAttributeError("machines, frames, gaps and ring_frames are 1 or more")


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


class Machine:
    """A sending virtual machine: application, socket, discipline, card, and the hypervisor's mover."""

    def __init__(self, clock: Clock, config: PathConfig, number: int, port: SwitchPort) -> None:
        self.sent = self.blocked = 0
        self._clock, self._config, self._number = clock, config, number
        on = {name: name not in config.off for name in POINTS}
        size = config.socket_bytes
        many = size // 60 + 2
        threshold = Marks(many, many + 1, many + 1, size - 2 * MTU, size - MTU, size)
        ring = config.ring_frames * MTU
        self.socket = FrameQueue("send call", threshold, controlled=on["send call"])
        # The discipline holds all that the socket can (002:94); without that, what it was: a few frames.
        few = Marks(config.ring_frames - 1, config.ring_frames, config.ring_frames + 1)
        self.discipline = FrameQueue(
            "queueing discipline",
            threshold if on["queueing discipline"] else few,
            controlled=on["queueing discipline"],
        )
        self.card = FrameQueue(
            "card TX ring",
            Marks(many, many + 1, many + 1, ring // 2, ring - MTU, ring),
            controlled=on["card TX ring"],
        )
        service = config.service_ns
        self.movers = [
            Mover(clock, self.socket, self.discipline.send, service),
            Mover(clock, self.discipline, self.card.send, service),
            Mover(clock, self.card, lambda item: port.send(item.data, item.length), service),
        ]
        self.socket.on_room = self._woken
        self.discipline.on_room = self.movers[0].kick
        self.card.on_room = self.movers[1].kick
        port.on_room = self.movers[2].kick
        self._due = False

    def start(self) -> None:
        """The application calls send, and again after its gap; a full socket makes it wait."""
        self._due = False
        if self.sent >= self._config.frames:
            return
        data = datagram(self._number, 9000, self.sent, self._config.length)
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

    def stages(self) -> list[FrameQueue]:
        return [self.socket, self.discipline, self.card]


class Path:
    """Both servers and what joins them.  Run it by `start` and letting the clock go on until it is idle."""

    def __init__(self, clock: Clock, config: PathConfig) -> None:
        self.config = config
        self.received: dict[int, list[int]] = {n: [] for n in range(1, config.machines + 1)}
        self.filtered = self.bad_outer = 0
        self._clock = clock
        on = {name: name not in config.off for name in POINTS}
        frames = config.switch_frames
        self._marks = Marks(frames // 2, frames, frames + config.machines + 2)
        self.near = self._switch(config.machines + 1, on["switch input"], on["switch output"])
        self.far = self._switch(2, on["far switch input"], on["far switch output"])
        physical = self._port(self.near, "physical", (), True, on["switch input"], on["switch output"])
        self.machines = [
            Machine(
                clock,
                config,
                n,
                self._port(
                    self.near, f"vm{n}", (machine_mac(n),), False, on["switch input"], on["switch output"]
                ),
            )
            for n in range(1, config.machines + 1)
        ]
        far_in, far_out = on["far switch input"], on["far switch output"]
        self._far_physical = self._port(self.far, "physical", (), True, far_in, far_out)
        receiver = self._port(self.far, "receiver", (machine_mac(200),), False, far_in, far_out)
        self._wire(physical, on)
        self._receiving(receiver, on)

    def _switch(self, ports: int, input: bool, output: bool) -> VirtualSwitch:
        return VirtualSwitch(SwitchConfig(ports=ports, max_frame=MAX_FRAME))

    def _port(
        self,
        switch: VirtualSwitch,
        name: str,
        macs: Iterable[bytes],
        physical: bool,
        input: bool,
        output: bool,
    ) -> SwitchPort:
        port = switch.add_port(
            PortConfig(name, tuple(macs), input=self._marks, output=self._marks), physical=physical
        )
        for outgoing, on in ((False, input), (True, output)):
            switch.engine.set_queue(port.number, outgoing, 0, on, self._marks.frames, self._marks.octets)
        return port

    def _wire(self, physical: SwitchPort, on: dict[str, bool]) -> None:
        """Bridge, physical cards, and the link between them."""
        clock, config = self._clock, self.config
        ring = config.ring_frames
        rate = config.rate_bps
        self.card_tx = FrameQueue(
            "physical card TX", Marks(ring // 2, ring, ring + 1), controlled=on["physical card TX"]
        )
        marks = pfc_marks(64 * MTU, rate, config.cable_m, MAX_FRAME + 54)
        self.card_rx = FrameQueue("physical link", marks, controlled=on["physical link"])
        out = Mover(clock, physical, self._encapsulate, config.service_ns)
        self.card_tx.on_room = out.kick
        throttle = PauseThrottle(clock, rate)
        self.link = Link(
            clock,
            self.card_tx,
            self.card_rx.arrive,
            rate_bps=rate,
            delay_ns=int(config.cable_m * 5),
            throttle=throttle,
        )
        if on["physical link"]:
            watch(self.card_rx, PauseGranter(self.link.signal, clock, rate, source=FAR.mac))
        into = Mover(clock, self.card_rx, self._decapsulate, config.service_ns)
        self._far_physical.on_room = into.kick
        self.movers = [out, into]

    def _encapsulate(self, item: Item) -> bool:
        outer = encapsulate(item.data, VNI, NEAR, FAR, item.priority)
        return self.card_tx.send(Item(outer, len(outer), item.priority))

    def _decapsulate(self, item: Item) -> bool:
        """The bridge at the far server: a bad outer frame is counted, and goes no further."""
        try:
            vni, inner = decapsulate(item.data, FAR)
        except DecodeError:
            self.bad_outer += 1
            return True
        if vni != VNI:
            self.bad_outer += 1
            return True
        return self._far_physical.send(inner)

    def _receiving(self, receiver: SwitchPort, on: dict[str, bool]) -> None:
        config = self.config
        ring, size = config.ring_frames, config.socket_bytes
        many = size // 60 + 2
        self.card = FrameQueue(
            "card RX ring", Marks(ring // 2, ring, ring + 1), controlled=on["card RX ring"]
        )
        self.socket = FrameQueue(
            "socket RX buffer",
            Marks(many, many + 1, many + 1, size // 2, size - MTU, size),
            controlled=on["socket RX buffer"],
        )
        up = Mover(self._clock, receiver, self.card.send, config.service_ns)
        soft = Mover(self._clock, self.card, self._to_socket, config.service_ns)
        self.card.on_room = up.kick
        self.socket.on_room = soft.kick
        self.movers += [up, soft]
        self.socket.on_frames = self._readable
        self._reading = False

    def _to_socket(self, item: Item) -> bool:
        """The soft interrupt: to the socket by port; without one, filtered; paused when the socket is nearly full."""
        frame = Ethernet.unpack(item.data)
        ip = IPv4.unpack(item.data, frame.size)
        udp = UDP.unpack(item.data, frame.size + IPv4.SIZE)
        if ip.protocol != PROTOCOL_UDP or udp.dst_port != 9000:
            self.filtered += 1
            return True
        return self.socket.send(item)

    def _readable(self) -> None:
        if not self._reading:
            self._reading = True
            first = max(self._clock.now() + self.config.read_gap_ns, self.config.asleep_ns)
            self._clock.call_at(first, self._read)

    def _read(self) -> None:
        self._reading = False
        item = self.socket.receive()
        if item is not None:
            number = int.from_bytes(item.data[42:46], "big")
            self.received[item.data[11]].append(number)
            self._readable()

    def start(self) -> None:
        """All applications begin."""
        for mover in (*self.movers, *(m for machine in self.machines for m in machine.movers)):
            mover.kick()
        self.link.kick()
        self._read()
        for machine in self.machines:
            self._clock.call_at(self._clock.now(), machine.start)

    # --- what happened ------------------------------------------------------------------------------------------

    def losses(self) -> dict[str, int]:
        """Frames lost at each meeting point, in the order of the way; all are named."""
        found = dict.fromkeys(POINTS, 0)
        queues = [q for m in self.machines for q in m.stages()]
        for queue in [*queues, self.card_tx, self.card_rx, self.card, self.socket]:
            found[queue.name] += queue.counts.dropped
        for switch, prefix in ((self.near, ""), (self.far, "far ")):
            for place, count in switch.losses().items():
                inside = "switch output" if place.endswith("output_full") else "switch input"
                found[prefix + inside] += count
        return found

    @property
    def sent(self) -> int:
        """Frames that the applications sent."""
        return sum(machine.sent for machine in self.machines)

    @property
    def delivered(self) -> int:
        """Frames that the application read."""
        return sum(len(numbers) for numbers in self.received.values())

    def in_order(self) -> bool:
        """Did each machine's frames come in the order in which they were sent?"""
        return all(numbers == sorted(numbers) for numbers in self.received.values())

    def blocked(self) -> int:
        """Send calls that had to wait."""
        return sum(machine.blocked for machine in self.machines)


@dataclass(frozen=True, slots=True)
class LossRow:
    """A run with some controls switched off: where frames were lost."""

    off: tuple[str, ...]
    sent: int
    delivered: int
    blocked: int
    lost: dict[str, int]


def loss_table(
    config: PathConfig, run: Callable[[Callable[[Clock], Path]], Path], points: Iterable[str] = POINTS
) -> list[LossRow]:
    """All controls on; each one off by itself; all off.

    run: makes a clock, builds a path with it, starts it and lets time pass until nothing happens any more.
    """
    rows = []
    cases: list[tuple[str, ...]] = [(), *((point,) for point in points), POINTS]
    for off in cases:
        path = run(lambda clock, off=off: Path(clock, _without(config, off)))  # type: ignore[misc]
        lost = {place: count for place, count in path.losses().items() if count}
        rows.append(LossRow(off, path.sent, path.delivered, path.blocked(), lost))
    return rows


def _without(config: PathConfig, off: Iterable[str]) -> PathConfig:
    return replace(config, off=frozenset(off))
