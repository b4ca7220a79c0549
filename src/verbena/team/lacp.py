"""Link aggregation control: the state machines of one port, as tables (IEEE 802.1AX-2014, 6.4.12 to 6.4.16).

The receive machine keeps what the partner says; the mux machine (coupled control, figure 6-22) attaches the port and
lets frames pass; periodic transmission and the limit of three data units a second are timers.  A `LacpPort` touches no
card: it is given a way to send and a clock.

One thing is stricter than the standard: while a partner is heard, data units that name another system are dropped and
counted instead of replacing it (6.4.13, recordPDU): nobody who can put a frame on the link takes it out of the team.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto

from verbena.clock import Clock, Timer
from verbena.wire.errors import DecodeError
from verbena.wire.lacp import Lacpdu, LacpInfo, LacpState

SECOND = 1_000_000_000
MOST_IN_A_SECOND = 3


@dataclass(frozen=True, slots=True)
class LacpTimes:
    """The protocol's times, in nanoseconds (6.4.4)."""

    fast_periodic: int = 1 * SECOND
    slow_periodic: int = 30 * SECOND
    short_timeout: int = 3 * SECOND
    long_timeout: int = 90 * SECOND
    aggregate_wait: int = 2 * SECOND
    transmit_window: int = 1 * SECOND

    def divided(self, by: int) -> LacpTimes:
        """All of them faster by a factor; both ends need the same."""
        return LacpTimes(*(getattr(self, name) // by for name in self.__slots__))


class ReceiveState(Enum):
    """The receive machine's (figure 6-18)."""

    PORT_DISABLED = auto()
    EXPIRED = auto()
    DEFAULTED = auto()
    CURRENT = auto()


class ReceiveEvent(Enum):
    LINK_UP = auto()
    LINK_DOWN = auto()
    PDU = auto()
    TIMEOUT = auto()


class MuxState(Enum):
    """The mux machine's (figure 6-22)."""

    DETACHED = auto()
    WAITING = auto()
    ATTACHED = auto()
    COLLECTING_DISTRIBUTING = auto()


class MuxEvent(Enum):
    SELECTED = auto()
    UNSELECTED = auto()
    READY = auto()
    IN_SYNC = auto()
    OUT_OF_SYNC = auto()


_R, _RE, _M, _ME = ReceiveState, ReceiveEvent, MuxState, MuxEvent

RECEIVE: dict[tuple[ReceiveState, ReceiveEvent], ReceiveState] = {
    (_R.PORT_DISABLED, _RE.LINK_UP): _R.EXPIRED,
    (_R.EXPIRED, _RE.PDU): _R.CURRENT,
    (_R.EXPIRED, _RE.TIMEOUT): _R.DEFAULTED,
    (_R.DEFAULTED, _RE.PDU): _R.CURRENT,
    (_R.CURRENT, _RE.PDU): _R.CURRENT,
    (_R.CURRENT, _RE.TIMEOUT): _R.EXPIRED,
    **{(state, _RE.LINK_DOWN): _R.PORT_DISABLED for state in _R},
}
"""What has no row is ignored."""

MUX: dict[tuple[MuxState, MuxEvent], MuxState] = {
    (_M.DETACHED, _ME.SELECTED): _M.WAITING,
    (_M.WAITING, _ME.READY): _M.ATTACHED,
    (_M.ATTACHED, _ME.IN_SYNC): _M.COLLECTING_DISTRIBUTING,
    (_M.COLLECTING_DISTRIBUTING, _ME.OUT_OF_SYNC): _M.ATTACHED,
    **{(state, _ME.UNSELECTED): _M.DETACHED for state in _M},
}


class LacpPort:
    """One link's end.

    system: the address of the aggregating system; port: its number, from 1; key: ports with the same key may be
    aggregated.  send: takes a data unit.  changed: called when `distributing` or `partner` changes.  counters:
    ``lacp.tx``, ``lacp.rx``, ``drop.lacp.<reason>``.
    """

    def __init__(
        self,
        clock: Clock,
        system: bytes,
        port: int,
        key: int,
        send: Callable[[Lacpdu], None],
        changed: Callable[[LacpPort], None],
        counters: Counter[str],
        *,
        times: LacpTimes | None = None,
        active: bool = True,
        fast: bool = True,
    ) -> None:
        self.times = LacpTimes() if times is None else times
        state = LacpState.AGGREGATION
        state |= (LacpState.ACTIVITY if active else 0) | (LacpState.TIMEOUT if fast else 0)
        self.actor = LacpInfo(system=system, key=key, port=port, state=state)
        self.partner = LacpInfo()
        self.receive_state = ReceiveState.PORT_DISABLED
        self.mux_state = MuxState.DETACHED
        self.selected = False
        self.enabled = True
        """May it be selected?  The administrator's."""
        self.counters = counters
        self._clock = clock
        self._send = send
        self._changed = changed
        self._current: Timer | None = None
        self._periodic: Timer | None = None
        self._wait: Timer | None = None
        self._later: Timer | None = None
        self._sent: list[int] = []
        self._period_ns = 0

    # --- what is seen from outside ------------------------------------------------------------------------

    @property
    def distributing(self) -> bool:
        """May frames be sent and taken?"""
        return self.mux_state is MuxState.COLLECTING_DISTRIBUTING

    @property
    def is_individual(self) -> bool:
        """There is no partner to aggregate with."""
        aggregates = self.partner.state & LacpState.AGGREGATION
        return self.receive_state in (ReceiveState.DEFAULTED, ReceiveState.PORT_DISABLED) or not aggregates

    @property
    def group(self) -> tuple[int, bytes, int]:
        """Links with the same partner system and key may be one aggregation."""
        return self.partner.system_priority, self.partner.system, self.partner.key

    def link(self, up: bool) -> None:
        """The link came or went."""
        self._receive(ReceiveEvent.LINK_UP if up else ReceiveEvent.LINK_DOWN)

    def receive(self, payload: bytes) -> None:
        """The payload of a slow-protocols frame came in, from the subtype on."""
        if self.receive_state is ReceiveState.PORT_DISABLED:
            self.counters["drop.lacp.disabled"] += 1
            return
        try:
            pdu = Lacpdu.parse(payload)
        except DecodeError as error:
            self.counters[f"drop.lacp.{error.reason}"] += 1
            return
        if pdu.actor.system == self.actor.system:
            self.counters["drop.lacp.own"] += 1
            return
        if not any(pdu.actor.system) or pdu.actor.system[0] & 1 or not pdu.actor.port:
            self.counters["drop.lacp.header"] += 1
            return
        if self.receive_state is ReceiveState.CURRENT and (
            (pdu.actor.system, pdu.actor.port) != (self.partner.system, self.partner.port)
        ):
            self.counters["drop.lacp.other_system"] += 1
            return
        self.counters["lacp.rx"] += 1
        self._record(pdu)
        self._receive(ReceiveEvent.PDU)
        self._set_sync()
        self._changed(self)

    def select(self, selected: bool) -> None:
        """The selection logic takes the port into its aggregation, or out of it."""
        if selected == self.selected:
            return
        self.selected = selected
        self._mux(MuxEvent.SELECTED if selected else MuxEvent.UNSELECTED)

    def stop(self) -> None:
        """No more timers."""
        for timer in (self._current, self._periodic, self._wait, self._later):
            if timer is not None:
                timer.cancel()

    # --- the receive machine ------------------------------------------------------------------------------

    def _receive(self, event: ReceiveEvent) -> None:
        following = RECEIVE.get((self.receive_state, event))
        if following is None:
            return
        self.receive_state = following
        if self._current is not None:
            self._current.cancel()
            self._current = None
        if following is ReceiveState.PORT_DISABLED:
            self._set_partner(replace(self.partner, state=self.partner.state & ~LacpState.SYNCHRONIZATION))
            self._stop_periodic()
        elif following is ReceiveState.EXPIRED:
            state = self.partner.state & ~LacpState.SYNCHRONIZATION | LacpState.TIMEOUT
            self._set_partner(replace(self.partner, state=state))
            self._set_actor(LacpState.EXPIRED, True)
            self._run(self.times.short_timeout)
            self._need_to_transmit()
        elif following is ReceiveState.DEFAULTED:
            self._set_partner(LacpInfo())
            self._set_actor(LacpState.EXPIRED, False)
            self._set_actor(LacpState.DEFAULTED, True)
        else:
            self._set_actor(LacpState.EXPIRED | LacpState.DEFAULTED, False)
            short = self.actor.state & LacpState.TIMEOUT
            self._run(self.times.short_timeout if short else self.times.long_timeout)
        if event is not ReceiveEvent.PDU:
            self._set_sync()
            self._changed(self)
        self._set_periodic()

    def _run(self, after: int) -> None:
        clock = self._clock
        self._current = clock.call_at(clock.now() + after, lambda: self._receive(ReceiveEvent.TIMEOUT))

    def _record(self, pdu: Lacpdu) -> None:
        """recordPDU and update_NTT (6.4.9)."""
        told = pdu.partner
        knows_us = (told.system, told.port, told.key, told.system_priority) == (
            self.actor.system,
            self.actor.port,
            self.actor.key,
            self.actor.system_priority,
        )
        in_sync = pdu.actor.state & LacpState.SYNCHRONIZATION and (
            knows_us or not pdu.actor.state & LacpState.AGGREGATION
        )
        state = pdu.actor.state & ~LacpState.SYNCHRONIZATION
        self.partner = replace(pdu.actor, state=state | (LacpState.SYNCHRONIZATION if in_sync else 0))
        seen = LacpState.ACTIVITY | LacpState.TIMEOUT | LacpState.SYNCHRONIZATION | LacpState.AGGREGATION
        if not knows_us or told.state & seen != self.actor.state & seen:
            self._need_to_transmit()

    def _set_partner(self, partner: LacpInfo) -> None:
        self.partner = partner

    def _set_actor(self, bits: int, on: bool) -> None:
        state = self.actor.state | bits if on else self.actor.state & ~bits
        self.actor = replace(self.actor, state=state)

    # --- the mux machine ----------------------------------------------------------------------------------

    def _mux(self, event: MuxEvent) -> None:
        following = MUX.get((self.mux_state, event))
        if following is None or following is self.mux_state:
            return
        before = self.distributing
        self.mux_state = following
        attached = following in (MuxState.ATTACHED, MuxState.COLLECTING_DISTRIBUTING)
        self._set_actor(LacpState.SYNCHRONIZATION, attached)
        passing = following is MuxState.COLLECTING_DISTRIBUTING
        self._set_actor(LacpState.COLLECTING | LacpState.DISTRIBUTING, passing)
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
        if following is MuxState.WAITING:
            wait = self._clock.now() + self.times.aggregate_wait
            self._wait = self._clock.call_at(wait, lambda: self._mux(MuxEvent.READY))
        else:
            self._need_to_transmit()
        if following is MuxState.ATTACHED:
            self._set_sync()
        if before != self.distributing:
            self._changed(self)

    def _set_sync(self) -> None:
        in_sync = self.partner.state & LacpState.SYNCHRONIZATION
        self._mux(MuxEvent.IN_SYNC if in_sync else MuxEvent.OUT_OF_SYNC)

    # --- transmission -------------------------------------------------------------------------------------

    def _stop_periodic(self) -> None:
        if self._periodic is not None:
            self._periodic.cancel()
            self._periodic = None

    def _set_periodic(self) -> None:
        """The periodic machine (6.4.14): nothing is sent where both ends are passive."""
        either = (self.actor.state | self.partner.state) & LacpState.ACTIVITY
        if self.receive_state is ReceiveState.PORT_DISABLED or not either:
            self._stop_periodic()
            return
        fast = self.partner.state & LacpState.TIMEOUT
        after = self.times.fast_periodic if fast else self.times.slow_periodic
        if self._periodic is None or after != self._period_ns:
            # What comes in does not put off what goes out: else two ends that are alike would silence each other.
            self._stop_periodic()
            self._period_ns = after
            self._periodic = self._clock.call_at(self._clock.now() + after, self._period)

    def _period(self) -> None:
        self._periodic = None
        self._need_to_transmit()
        self._set_periodic()

    def _need_to_transmit(self) -> None:
        """Send, but no more than three in a second (6.4.16)."""
        if self.receive_state is ReceiveState.PORT_DISABLED or self._later is not None:
            return
        now = self._clock.now()
        self._sent = [at for at in self._sent if now - at < self.times.transmit_window]
        first = self._sent[0] + self.times.transmit_window if len(self._sent) >= MOST_IN_A_SECOND else now
        # Not at once: what changes within the same event goes out as one.
        self._later = self._clock.call_at(first, self._transmit)

    def _transmit(self) -> None:
        self._later = None
        if self.receive_state is ReceiveState.PORT_DISABLED:
            return
        self._sent.append(self._clock.now())
        self.counters["lacp.tx"] += 1
        self._send(Lacpdu(self.actor, self.partner))


class Aggregator:
    """The selection logic (6.4.15): of all links, those with the one partner that has the most of them are aggregated.

    alone: where no partner speaks the protocol, one link with a carrier is used by itself (`alone` is that port).
    """

    def __init__(self) -> None:
        self.ports: list[LacpPort] = []
        self.alone: LacpPort | None = None

    def choose(self) -> None:
        """Look at all ports again."""
        groups: dict[tuple[int, bytes, int], list[LacpPort]] = {}
        for port in self.ports:
            usable = port.enabled and port.receive_state is not ReceiveState.PORT_DISABLED
            if usable and not port.is_individual:
                groups.setdefault(port.group, []).append(port)
        best: list[LacpPort] = []
        for members in groups.values():
            stays = any(port.selected for port in best)
            better = len(members) > len(best)
            if better or (len(members) == len(best) and not stays and any(p.selected for p in members)):
                best = members
        for port in self.ports:
            if port not in best:
                port.select(False)
        for port in best:
            port.select(True)
        defaulted = [p for p in self.ports if p.enabled and p.receive_state is ReceiveState.DEFAULTED]
        self.alone = defaulted[0] if defaulted and not groups else None

    def may_carry(self, port: LacpPort) -> bool:
        """May the team's frames go by this port?"""
        return port.distributing or port is self.alone
