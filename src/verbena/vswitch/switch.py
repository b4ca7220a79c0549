"""The virtual switch: ports by name, its table of addresses, its settings at run time, and who is told what.

One port for each virtual machine and one for the physical network, each with an input (TX) and an output (RX) queue for
every priority class (document 002:98).  Whoever has a port is a *producer* (calls `SwitchPort.send` or `arrive`) and a
*consumer* (calls `receive`); the switch calls back:

* ``on_room(priority)``: a producer whose `send` was refused may try again;
* ``on_frames()``: a consumer that got nothing has something;
* ``on_stop(priority)``, ``on_start(priority)``: the input queue reached its high or low mark: what a flow-control
  signal to the producer is made from.  Each is called once for each crossing, whatever the data queues hold;
* ``on_control(frame)``: a MAC control frame came (pause), and this port may send them.

Callbacks run when the operation that caused them is done, never inside the core, and may call the port again.

The controller's part (a program that sets queues, thresholds and table entries, document 002:68) are `set_marks`,
`set_lossless`, `add_entry`, `remove_entry`, `grant`, `set_physical`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from verbena.clock import Clock
from verbena.errors import ClosedError, InvalidAttributeError, ResourceError
from verbena.vswitch.config import Marks, PortConfig, SwitchConfig
from verbena.vswitch.engine import SwitchEngine
from verbena.vswitch.kinds import CLASSES, NOBODY, EventKind, Outcome, Step, Traced
from verbena.vswitch.tables import CAUSE_NAMES

MOST_TRACED = 1_000_000


class Delivered(NamedTuple):
    """A frame for a consumer.  length: its true one; marked: congestion was experienced; source: port it came from."""

    data: bytes
    length: int
    priority: int
    marked: bool
    source: int
    number: int


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


class SwitchPort:
    """A port of a switch, made by `VirtualSwitch.add_port`.  number: its place, used again when it is gone."""

    def __init__(self, switch: VirtualSwitch, number: int, config: PortConfig) -> None:
        self.switch = switch
        self.number = number
        self.config = config
        self.open = True
        self.paused = 0
        self.pauses = 0
        self.on_room: Callable[[int], None] = _ignore
        self.on_frames: Callable[[], None] = _ignore
        self.on_stop: Callable[[int], None] = _ignore
        self.on_start: Callable[[int], None] = _ignore
        self.on_control: Callable[[bytes], None] = _ignore

    @property
    def name(self) -> str:
        return self.config.name

    def _check(self) -> None:
        if not self.open:
            raise ClosedError(f"port {self.name} was removed from its switch")

    def send(self, frame: bytes, length: int = 0, *, direct: bool = False) -> bool:
        """Offer a frame.  False: no room; it was not taken, and ``on_room`` will be called.

        True says that it was dealt with: queued, or dropped and counted if nobody may have it.  length: the true length
        of a frame whose payload is left out.  direct: marked for forwarding, straight to the check of the output.
        """
        self._check()
        outcome = self.switch.engine.offer(self.number, frame, length, True, direct)
        if outcome == Outcome.CONTROL:
            self._control(frame)
        self.switch.dispatch()
        return bool(outcome != Outcome.FULL)

    def arrive(self, frame: bytes, length: int = 0) -> Outcome:
        """A frame that is here already, from a producer that cannot be asked to wait: hardware, or one on its way.

        It goes into the room above the high mark; without room it is dropped and counted.
        """
        self._check()
        outcome = Outcome(self.switch.engine.offer(self.number, frame, length, False, False))
        if outcome == Outcome.CONTROL:
            self._control(frame)
        self.switch.dispatch()
        return outcome

    def _control(self, frame: bytes) -> None:
        if self.config.may_pause:
            self.on_control(frame)
        else:
            self.switch.engine.refuse_control(self.number)

    def receive(self, *, sleep: bool = True) -> Delivered | None:
        """The next frame; None: there is none, and ``on_frames`` will be called (unless told not to `sleep`)."""
        self._check()
        found = self.switch.engine.receive(self.number, sleep)
        self.switch.dispatch()
        return None if found is None else Delivered(*found)

    def pause(self, classes: int) -> None:
        """The peer takes no frames of these classes now (a mask); 0: it takes all."""
        self._check()
        self.pauses += (classes & ~self.paused).bit_count()
        self.paused = classes
        self.switch.engine.set_closed(self.number, classes)
        self.switch.dispatch()

    def stopped(self, priority: int = 0) -> bool:
        """Has the input queue of a class said stop?"""
        return bool(self.switch.engine.occupancy(self.number, False, priority)[2])

    def occupancy(self, priority: int = 0, *, outgoing: bool) -> tuple[int, int]:
        """(frames, bytes) in a queue."""
        frames, octets, _ = self.switch.engine.occupancy(self.number, outgoing, priority)
        return frames, octets

    def state(self) -> dict[str, Any]:
        """Counters, and the queues of all classes in use."""
        engine = self.switch.engine
        found: dict[str, Any] = {"name": self.name, "pauses": self.pauses, "paused": self.paused}
        found |= engine.port_state(self.number)
        for kind, outgoing in (("input", False), ("output", True)):
            queues = {c: engine.queue_state(self.number, outgoing, c) for c in range(CLASSES)}
            found[kind] = {c: q for c, q in queues.items() if q["entered"] or q["drops"] or q["stops"]}
        return found


class VirtualSwitch:
    """A switch.  clock: for the age of learned addresses.  trace: write down every step of the flow charts."""

    def __init__(
        self, config: SwitchConfig | None = None, clock: Clock | None = None, *, trace: bool = False
    ) -> None:
        self.config = config or SwitchConfig()
        self.clock = clock
        self.engine = SwitchEngine(
            self.config.ports, self.config.max_frame, self.config.voq, self.config.vlans
        )
        self.engine.learning = self.config.learning
        self.engine.most_learned = self.config.most_learned
        self.engine.bypass = self.config.bypass
        self.engine.traced = trace
        self.lossless = self.config.lossless
        self.ports: dict[str, SwitchPort] = {}
        self.trace: deque[Traced] = deque(maxlen=MOST_TRACED)
        self.gone: dict[str, dict[str, Any]] = {}
        self._by_number: list[SwitchPort | None] = [None] * self.config.ports
        self.watchers: list[Callable[[], None]] = []
        self._past = (0, 0)
        self._dispatching = False

    # --- ports ------------------------------------------------------------------------------------------------

    def add_port(self, config: PortConfig, *, physical: bool = False) -> SwitchPort:
        """A new port.  physical: every address that is not in the table is behind it.

        Raises `ResourceError` when all ports are taken, `InvalidAttributeError` for a name that is.
        """
        if config.name in self.ports:
            raise InvalidAttributeError(f"the switch has a port {config.name} already")
        free = [n for n, port in enumerate(self._by_number) if port is None and self.engine.is_empty(n)]
        if not free:
            raise ResourceError(f"the switch has all its {self.config.ports} ports")
        number = free[0]
        port = SwitchPort(self, number, config)
        came, went = self._count(number)
        self._past = (self._past[0] + came, self._past[1] + went)
        self.engine.reset_port(number)
        self._by_number[number] = self.ports[config.name] = port
        self.engine.set_port(number, True, config.priority, config.pvid, config.tagged, tuple(config.vlans))
        for priority in range(CLASSES):
            self._apply(port, priority)
        for mac in config.macs:
            self.add_entry(mac, config.name, vlan=config.pvid if self.config.vlans else 0)
        if physical:
            self.set_physical(config.name)
        return port

    def _apply(self, port: SwitchPort, priority: int) -> None:
        for outgoing in (False, True):
            marks = port.config.marks(priority, outgoing)
            self.engine.set_queue(
                port.number,
                outgoing,
                priority,
                priority in self.lossless,
                marks.frames,
                marks.octets,
                port.config.mark_bytes if outgoing else 0,
            )

    def remove_port(self, name: str) -> None:
        """A port vanishes: its addresses leave the table, what is queued for it is dropped and counted.

        What came from it before goes on to where it belongs.
        """
        port = self._port(name)
        port.open = False
        self.engine.set_entries([e for e in self.engine.entries() if e[2] != port.number])
        if self.engine.physical == port.number:
            self.engine.set_physical(NOBODY)
        self.engine.forget_port(port.number)
        self.gone[name] = port.state()
        del self.ports[name]
        self._by_number[port.number] = None
        self.dispatch()

    def _port(self, name: str) -> SwitchPort:
        if name not in self.ports:
            raise InvalidAttributeError(
                f"the switch has no port {name}; it has {', '.join(self.ports) or 'none'}"
            )
        return self.ports[name]

    # --- the controller's part ----------------------------------------------------------------------------------

    def set_physical(self, name: str | None) -> None:
        """The port that leads to every address which is not in the table; None: such frames go to all ports."""
        self.engine.set_physical(NOBODY if name is None else self._port(name).number)

    def set_marks(
        self, name: str, priority: int, *, input: Marks | None = None, output: Marks | None = None
    ) -> None:
        """Other thresholds, from now on; nothing that is queued is lost."""
        port = self._port(name)
        old = (port.config.marks(priority, False), port.config.marks(priority, True))
        pair = (input or old[0], output or old[1])
        port.config = replace(port.config, by_class={**port.config.by_class, priority: pair})
        self._apply(port, priority)
        self.dispatch()

    def set_lossless(self, classes: frozenset[int]) -> None:
        """Which classes are never dropped for want of room, from now on."""
        self.lossless = SwitchConfig(lossless=classes).lossless
        for port in self.ports.values():
            for priority in range(CLASSES):
                self._apply(port, priority)
        self.dispatch()

    def add_entry(self, mac: bytes, name: str, vlan: int = 0) -> None:
        """An address is behind this port."""
        self.engine.keep(vlan, int.from_bytes(mac, "big"), self._port(name).number)

    def remove_entry(self, mac: bytes, vlan: int = 0) -> None:
        """Forget an address."""
        key = (vlan, int.from_bytes(mac, "big"))
        self.engine.set_entries([e for e in self.engine.entries() if (e[0], e[1]) != key])

    def grant(self, name: str, priority: int, frames: int | None) -> None:
        """A credit signal (step 201): so many more frames may go to this output; None: as its marks allow."""
        self.engine.set_credits(
            self._port(name).number, priority, NOBODY if frames is None else frames, frames is not None
        )
        self.dispatch()

    def table(self) -> list[tuple[int, bytes, str, bool]]:
        """(VLAN, address, port, kept) of every entry, in order."""
        found = []
        for vlan, mac, number, kept, _ in self.engine.entries():
            port = self._by_number[number]
            found.append((vlan, mac.to_bytes(6, "big"), port.name if port else "?", kept))
        return sorted(found)

    def age(self) -> int:
        """Forget learned addresses whose last frame is too long ago; returns how many.  Call it now and then."""
        if self.clock is None:
            raise InvalidAttributeError("a switch that ages addresses needs a clock")
        now = self.engine.now = self.clock.now()
        entries = self.engine.entries()
        kept = [e for e in entries if e[3] or e[4] + self.config.aging_ns > now]
        if len(kept) != len(entries):
            self.engine.set_entries(kept)
        return len(entries) - len(kept)

    # --- events -------------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Tell producers, consumers and signals what happened."""
        if self.clock is not None:
            self.engine.now = self.clock.now()
        if self._dispatching or not (self.engine.pending() or self.watchers):
            return
        self._dispatching = True
        try:
            while self.engine.pending():
                for kind, number, priority, frame in self.engine.events():
                    if kind >= Step.IN_SIGNAL:
                        self.trace.append(Traced(Step(kind), number, priority, frame))
                    elif (port := self._by_number[number]) is not None:
                        self._tell(port, kind, priority)
            for watcher in self.watchers:
                watcher()
        finally:
            self._dispatching = False

    @staticmethod
    def _tell(port: SwitchPort, kind: int, priority: int) -> None:
        if kind == EventKind.STOP:
            port.on_stop(priority)
        elif kind == EventKind.START:
            port.on_start(priority)
        elif kind == EventKind.WAKE_PRODUCER:
            port.on_room(priority)
        elif kind == EventKind.WAKE_CONSUMER:
            port.on_frames()

    # --- what happened ------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Ports with their queues, thresholds, pauses, sleeps and losses; those that are gone, too."""
        return {
            "ports": {name: port.state() for name, port in self.ports.items()},
            "gone": self.gone,
            "addresses": len(self.engine.entries()),
            "addresses_refused": self.engine.table_full,
        }

    def losses(self) -> dict[str, int]:
        """Frames that were lost for want of room, by place: what a lossless class must never have."""
        places = ("input_full", "overrun", "output_full")
        found: dict[str, int] = {}
        for name, state in [*self._states()]:
            for cause in places:
                if count := state.get("drop." + cause, 0):
                    found[f"{name}: {cause}"] = count
        return found

    def _states(self) -> list[tuple[str, dict[str, Any]]]:
        return [*((n, p.state()) for n, p in self.ports.items()), *self.gone.items()]

    def balance(self) -> tuple[int, int]:
        """(frames that came + copies made of group frames, frames delivered + dropped + queued): always equal."""
        came, went = self._past
        for number in range(self.config.ports):
            more = self._count(number)
            came, went = came + more[0], went + more[1]
            for priority in range(CLASSES):
                went += self.engine.occupancy(number, False, priority)[0]
                went += self.engine.occupancy(number, True, priority)[0]
        return came, went

    def _count(self, number: int) -> tuple[int, int]:
        """(came and copied, delivered and dropped) by a port's counters."""
        state = self.engine.port_state(number)
        dropped = sum(state.get("drop." + cause, 0) for cause in CAUSE_NAMES)
        return state["rx_frames"] + state["copies"], state["tx_frames"] + dropped
