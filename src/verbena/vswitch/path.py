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
from dataclasses import dataclass, replace

from verbena.clock import Clock
from verbena.vswitch.config import Marks, PortConfig, SwitchConfig
from verbena.vswitch.link import Link
from verbena.vswitch.path_machine import MTU, NUMBERS, POINTS, Machine, Mover, PathConfig, machine_mac
from verbena.vswitch.queue import FrameQueue, Item
from verbena.vswitch.signals import watch
from verbena.vswitch.signals_pause import PauseGranter, PauseThrottle, pfc_marks
from verbena.vswitch.switch import SwitchPort, VirtualSwitch
from verbena.wire.errors import DecodeError
from verbena.wire.ip import PROTOCOL_UDP, UDP, Ethernet, IPv4
from verbena.wire.vxlan import Endpoint, decapsulate, encapsulate

MAX_FRAME = 1522
VNI = 0x2A
NEAR = Endpoint(bytes.fromhex("027600000a01"), bytes((10, 0, 0, 1)))
FAR = Endpoint(bytes.fromhex("027600000a02"), bytes((10, 0, 0, 2)))


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
        """Did each socket's frames come in the order in which they were sent?"""
        for numbers in self.received.values():
            for socket in range(self.config.sockets):
                own = [n for n in numbers if n // NUMBERS == socket]
                if own != sorted(own):
                    return False
        return True

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
