"""The subnet management interface: queue pair 0 of a node (IBA vol. 1, 14.2.2).

`step` carries a directed-route SMP one step on; `SubnetManagementInterface` is where a node's packets on lane 15 come
in: it takes them apart, hands each SMP to the node's agent or to the subnet manager that runs on the node, and sends
what these answer.  Switches forward directed routes themselves; what comes here from a switch's port 0 has arrived.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from verbena.clock import Clock
from verbena.management.agent import SubnetManagementAgent
from verbena.wire.errors import DecodeError
from verbena.wire.layout import Buffer
from verbena.wire.mad import ManagementClass, Method
from verbena.wire.smp import MAX_HOPS, PERMISSIVE_LID, AttributeId, parse_smp_packet, smp_packet
from verbena.wire.smp_attributes import PortCapability

LOCAL = 0
DISCARD = -1
BY_LID = -2
_INITIAL, _RETURN = 128, 192

Receiver = Callable[[bytes, int], None]
"""An SMP, and the LID that it came from (0xFFFF: a directed route)."""


class SmpPort(Protocol):
    """What a subnet manager needs of the port that it runs on."""

    def send(self, mad: bytes, *, path: tuple[int, ...] | None, dlid: int | None) -> None:
        """Send an SMP, or an answer, by its directed route, or to a LID; nothing comes back within the call."""

    def set_receiver(self, receive: Receiver) -> None:
        """Who gets what is meant for a subnet manager."""


def step(mad: bytearray, in_port: int, is_switch: bool) -> int:
    """Carry a directed-route SMP one step on, changing hop pointer and return path (14.2.2.2 and 14.2.2.4).

    in_port: where it came in, 0 if it starts at this node.  Returns the port to leave by; `LOCAL`: it has arrived;
    `BY_LID`: its directed part has ended, and it goes on to DrDLID, or back to DrSLID; `DISCARD`.
    """
    pointer, count = mad[6], mad[7]
    if count > MAX_HOPS or pointer > count + 1:
        return DISCARD
    if mad[4] & 0x80:
        return _step_back(mad, pointer, count, is_switch)
    permissive = mad[34] == mad[35] == 0xFF
    if pointer == count + 1:
        return LOCAL
    if pointer == count:
        if count:
            mad[_RETURN + pointer] = in_port
        mad[6] = pointer + 1
        return LOCAL if permissive else BY_LID if is_switch else DISCARD
    if pointer == 0:
        if in_port:
            return DISCARD  # says that it starts here, but came over a link
    else:
        if not is_switch:
            return DISCARD
        mad[_RETURN + pointer] = in_port
    mad[6] = pointer + 1
    return mad[_INITIAL + pointer + 1] or DISCARD


def _step_back(mad: bytearray, pointer: int, count: int, is_switch: bool) -> int:
    permissive = mad[32] == mad[33] == 0xFF
    if pointer == 0:
        return LOCAL
    if pointer == 1:
        mad[6] = 0
        return LOCAL if permissive else BY_LID if is_switch else DISCARD
    if pointer <= count and not is_switch:
        return DISCARD
    mad[6] = pointer - 1
    return mad[_RETURN + pointer - 1] or DISCARD


class SubnetManagementInterface:
    """Queue pair 0 of one node.

    transmit(port, packet): puts a packet (LRH ... ICRC) on the wire; a switch's leave by port 0, and find their way
    from there.  `counters` names what was dropped and why.
    """

    def __init__(
        self, agent: SubnetManagementAgent, transmit: Callable[[int, bytes], None], clock: Clock
    ) -> None:
        self.agent = agent
        self.counters: Counter[str] = Counter()
        self._transmit = transmit
        self._clock = clock
        self._is_switch = agent.profile.is_switch
        self._manager: Receiver | None = None
        self._manager_port = 1
        agent.send = self._send_from

    # --- for a subnet manager on this node ----------------------------------------------------------------------

    def attach(self, port: int = 1) -> SmpPort:
        """The way out for a subnet manager that runs on this node, at `port` (of a switch: always 0)."""
        self._manager_port = 0 if self._is_switch else port
        self.agent.set_capability(PortCapability.SM, True, self._manager_port)
        return self

    @property
    def manager_port(self) -> int:
        return self._manager_port

    def set_receiver(self, receive: Receiver) -> None:
        """See `SmpPort`."""
        self._manager = receive

    def detach(self) -> None:
        """The subnet manager of this node is gone."""
        self._manager = None
        self.agent.set_capability(PortCapability.SM, False, self._manager_port)

    def send(self, mad: bytes, *, path: tuple[int, ...] | None, dlid: int | None) -> None:
        """See `SmpPort`."""
        if path is not None:
            self._start_route(mad)
        else:
            self._send_from(self._manager_port, mad, PERMISSIVE_LID if dlid is None else dlid, 0)

    # --- packets ------------------------------------------------------------------------------------------------

    def receive(self, packet: Buffer, in_port: int) -> None:
        """A packet on lane 15, with or without its VCRC, that came in by `in_port`.  Never raises."""
        try:
            slid, dlid, level, mad = parse_smp_packet(packet)
        except DecodeError as error:
            self.counters[f"drop.{error.reason}"] += 1
            return
        kind = mad[1]
        if kind == ManagementClass.SUBN_DIRECTED_ROUTE:
            if slid != PERMISSIVE_LID or dlid != PERMISSIVE_LID:
                self.counters["drop.lid"] += 1  # no directed route with LID-routed ends leads to here
                return
            moved = bytearray(mad)
            if step(moved, in_port, self._is_switch) != LOCAL:
                self.counters["drop.route"] += 1
                return
            self._deliver(bytes(moved), in_port, slid, dlid, level)
        elif kind == ManagementClass.SUBN_LID_ROUTED:
            self._deliver(mad, in_port, slid, dlid, level)
        else:
            self.counters["drop.class"] += 1

    def _deliver(self, mad: bytes, in_port: int, slid: int, dlid: int, level: int) -> None:
        method = mad[3]
        for_manager = method in (Method.GET_RESPONSE, Method.TRAP) or (
            method in (Method.GET, Method.SET)
            and mad[16:18] == bytes((0, AttributeId.SM_INFO))
            and self._manager is not None
        )
        if for_manager:
            if self._manager is None:
                self.counters["drop.no_manager"] += 1
            else:
                self._manager(mad, slid)
            return
        answer = self.agent.receive(mad, in_port)
        if answer is None:
            return
        if answer[1] == ManagementClass.SUBN_DIRECTED_ROUTE:
            self._start_route(answer)
        else:
            self._send_lid(in_port, answer, dlid, slid, level)

    def _start_route(self, mad: bytes) -> None:
        """An SMP that starts here: a request from hop 0, or an answer from the end of its route."""
        local = mad[7] == 0
        if self._is_switch and not local:
            self._transmit(0, smp_packet(mad))  # the switch takes the first step
            return
        moved = bytearray(mad)
        port = step(moved, 0, self._is_switch)
        if port > 0:
            self._transmit(port, smp_packet(moved))
        elif port == LOCAL:
            self._loop_back(bytes(moved), PERMISSIVE_LID, PERMISSIVE_LID, 0)
        else:
            self.counters["drop.route"] += 1

    def _send_from(self, port: int, mad: bytes, dlid: int, level: int) -> None:
        self._send_lid(port, mad, self.agent.lid(port), dlid, level)

    def _send_lid(self, port: int, mad: bytes, slid: int, dlid: int, level: int) -> None:
        if self.agent.owns(port, dlid):
            self._loop_back(mad, slid, dlid, level)
        else:
            self._transmit(0 if self._is_switch else port, smp_packet(mad, slid, dlid, level))

    def _loop_back(self, mad: bytes, slid: int, dlid: int, level: int) -> None:
        """To this node itself; later, so that nobody is called from within a call of its own."""
        self._clock.call_at(
            self._clock.now(), lambda: self._deliver(mad, self._manager_port, slid, dlid, level)
        )
