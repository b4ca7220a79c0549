"""A managed connection: one byte stream whose path changes (document 004, paragraphs 20 and 29 to 33).

The side that opened the connection leads.  A planned move: the new channel is made and tried (CONFIRM, CONFIRMED) while
data go on on the old one; SWITCH is the last record there in one direction, SWITCHED in the other; then a new epoch
begins on the new channel.  After a failure either side asks to resume, on any path that works (RESUME, RESUMED): both
say what they expect next, and a new epoch begins there.  Data of another epoch are never taken, so that a connection is
never on two paths at once.
"""

from __future__ import annotations

from verbena.errors import ConnectionLost, ConnectionRefused, ConnectionTimeout
from verbena.team.offload.channel import Channel
from verbena.team.offload.moves import Mover
from verbena.team.offload.record import Claim, Greeting, Kind, Record, RefuseReason
from verbena.team.offload.states import PASSING, SessionEvent, SessionState
from verbena.wire.errors import DecodeError


class Session(Mover):
    """One end."""

    # --- opening ------------------------------------------------------------------------------------------

    def adopt(self, channel: Channel) -> None:
        """Listen to a channel's records."""
        channel.on_record = lambda record: self._record(channel, record)
        channel.on_down = lambda why: self._channel_down(channel, why)
        channel.on_room = self._roomy

    def _roomy(self) -> None:
        if self.state in PASSING:
            self.pump()

    def begin(self, channel: Channel, greeting: Greeting) -> None:
        """Open the connection on a channel that is being made."""
        self.channel, self.path = channel, channel.path
        self.adopt(channel)
        channel.on_up = lambda: self.greet(channel, Kind.HELLO, greeting, None)
        if channel.is_up:
            channel.on_up()

    def greet(self, channel: Channel, kind: Kind, greeting: Greeting, peer: Greeting | None) -> None:
        """Say HELLO or WELCOME on the first channel."""
        self.channel = self._base = channel
        self.path = channel.path
        self.adopt(channel)
        self.say(kind, body=greeting.pack())
        if peer is not None:
            self.peer = peer
            self._opened()

    def _opened(self) -> None:
        self.apply(SessionEvent.OPENED)
        self.heard_ns = self.clock.now()
        self.manager.event(self, f"opened on {self.path.name}")
        self.pump()
        self.on_change()

    def _welcomed(self, record: Record) -> None:
        try:
            self.peer = Greeting.unpack(record.body)
        except DecodeError:
            self.break_off("answers without saying who it is")
            return
        self._opened()

    # --- records ------------------------------------------------------------------------------------------

    def _record(self, channel: Channel, record: Record) -> None:
        if not self.is_open:
            return
        self.heard_ns = self.clock.now()
        if channel is self._attempt_channel:
            self._attempt_answer(channel, record)
        elif channel is self._candidate and record.kind in (Kind.CONFIRM, Kind.CONFIRMED, Kind.REFUSE):
            self._tried(channel, record)
        elif channel is self._candidate and record.epoch == self.epoch + 1:
            self._early.append(record)  # the old path's last record is still to come
        elif channel is not self.channel:
            self.counters["drop.record.path"] += 1
        elif self.state is SessionState.OPENING:
            self._opening(record)
        elif record.epoch != self.epoch and record.kind not in (Kind.SWITCH, Kind.SWITCHED, Kind.RESUME):
            self.counters["drop.record.epoch"] += 1
        else:
            self.act(record)
            self._after()

    def _opening(self, record: Record) -> None:
        self.take_ack(record)
        if record.kind is Kind.WELCOME:
            self._welcomed(record)
        elif record.kind is Kind.REFUSE:
            full = record.value == RefuseReason.NO_RESOURCES
            why = (
                "the peer has room for no more connections" if full else "the peer has nobody listening there"
            )
            self.end(ConnectionRefused(why, record.value))
        else:
            self.break_off(f"begins with {record.kind.name}")

    def act(self, record: Record) -> None:
        kind = record.kind
        if kind in (Kind.RESUME, Kind.RESUMED):
            if kind is Kind.RESUME:
                self.resumed_by_peer(self.channel, record)  # type: ignore[arg-type]
            return
        self.take_ack(record)
        if not self.is_open:
            return
        self._let_old_go()
        if kind in (Kind.DATA, Kind.FIN):
            self.take_data(record)
        elif kind is Kind.RESET:
            self.end(ConnectionLost("the peer has broken off the connection"))
        elif kind is Kind.PING:
            self.acknowledge()
        elif kind is Kind.OFFER:
            self._offered(record)
        elif kind in (Kind.ACCEPT, Kind.REFUSE):
            self._answered(record)
        elif kind is Kind.ASK and self.leads:
            self._asked(record)
        elif kind is Kind.SWITCH:
            self._switch_asked(record)
        elif kind is Kind.SWITCHED:
            self._switch_answered(record)
        elif kind is not Kind.ACK:
            self.counters["drop.record.kind"] += 1

    def _after(self) -> None:
        """What a record has changed."""
        if self.is_open:
            if self.tx.done and self.rx.ended:
                self._finish()
            self.pump()
        self.on_change()

    def _finish(self) -> None:
        self.apply(SessionEvent.END)
        self.say(Kind.ACK)
        self.stop_ack()
        self.manager.finished(self)

    # --- failures -----------------------------------------------------------------------------------------

    def _channel_down(self, channel: Channel, why: str) -> None:
        if not self.is_open:
            return
        if channel is self._attempt_channel:
            self._attempt_failed()
        elif channel is self._candidate and self.state is SessionState.PREPARING:
            if channel is self._base:
                self._base = None
            self._abandon(f"the new path failed: {why}")
        elif channel is self.channel or channel is self._candidate:
            if self.state is SessionState.OPENING:
                self.end(ConnectionLost(f"the connection was not made: {why}"))
            else:
                self.fail(why)
        elif channel is self._base:
            self._base = None

    def fail(self, why: str) -> None:
        """The path does not work any more: resume on another one."""
        if self.state not in (*PASSING, SessionState.SWITCHING):
            return
        self.apply(SessionEvent.FAIL)
        self.counters["path.failed"] += 1
        self.manager.event(self, f"{self.path.name} failed: {why}")
        self._since = self.clock.now()
        self._deadline = self._since + self.config.give_up_ns
        self._drop_all()
        self._next_path = None
        if self.leads or self.manager.lost_card():
            self._try()
        else:  # the other side is likely to know already
            self._attempt_until = self._since + self.config.attempt_ns // 2

    def _drop_all(self) -> None:
        channels = {id(c): c for c in (self.channel, self._base, self._candidate, self._leaving) if c}
        self.channel = self._base = self._candidate = self._leaving = self._target = None
        self._early.clear()
        for channel in channels.values():
            channel.abort()

    def _try(self) -> None:
        """One attempt to resume, on the path that is the most likely to work."""
        paths = self.manager.ways(self)
        if self._next_path in paths:
            path = self._next_path
        elif paths:
            path = paths[self._attempt % len(paths)]
        else:
            path = None
        self._next_path = None
        self._attempt += 1
        self._attempt_until = self.clock.now() + self.config.attempt_ns
        channel = None if path is None else self.manager.dial(path, self)
        self._attempt_channel = channel
        if channel is None:
            return
        self.adopt(channel)

        def up() -> None:
            claim = Claim(self.identity, self.token, self._nonce.ljust(8, b"\0"))
            self.say(Kind.RESUME, channel, body=claim.pack(), value=self._attempt)

        channel.on_up = up
        if channel.is_up:
            up()

    def _attempt_failed(self) -> None:
        channel, self._attempt_channel = self._attempt_channel, None
        if channel is not None:
            channel.abort()

    def _attempt_answer(self, channel: Channel, record: Record) -> None:
        if record.kind is not Kind.RESUMED or record.epoch <= self.epoch:
            self._attempt_failed()
            if record.kind is Kind.REFUSE and record.value == RefuseReason.UNKNOWN:
                self.end(ConnectionLost("the peer no longer knows the connection"))
            return
        self._attempt_channel = None
        self._resume(channel, record, record.epoch)

    def resumed_by_peer(self, channel: Channel, record: Record) -> bool:
        """The peer asks to resume, on this channel; False if it has to ask again."""
        if self.state is SessionState.OPENING or record.value <= self._their_attempt:
            return False
        if record.ack < self.tx.base:
            # Said before what the peer has acknowledged since: this side's own attempt came first.
            self.counters["drop.record.late"] += 1
            return False
        if self.state is SessionState.RECOVERING and self._attempt_channel is not None and self.leads:
            # Both ask: this side's attempt counts, but the peer has shown which path works.
            self._attempt_failed()
            self._next_path = channel.path
            self._attempt_until = self.clock.now()
            return False
        self._their_attempt = record.value
        self._attempt_failed()
        if self.state is not SessionState.RECOVERING:
            self._since = self.clock.now()
        if channel is self.channel or channel is self._base:
            self.channel = self._base = None
        self._drop_all()
        self.adopt(channel)
        epoch = max(self.epoch, record.epoch) + 1
        self.say(Kind.RESUMED, channel, epoch=epoch)
        self._resume(channel, record, epoch)
        return True

    def _resume(self, channel: Channel, record: Record, epoch: int) -> None:
        self.apply(SessionEvent.RESUMED)
        if not self.tx.rewind(record.ack):
            self.break_off(f"resumes at {record.ack}, where it cannot be")
            return
        self._limit = max(self._limit, record.limit)
        self.epoch = epoch - 1
        self.counters["path.resumed"] += 1
        self._enter(channel)
        self.stall_ns = max(self.stall_ns, self.clock.now() - self._since)
        self.acknowledge()
        self._after()

    # --- time, and the end --------------------------------------------------------------------------------

    def tick(self) -> None:
        """Called every now and then."""
        now = self.clock.now()
        if self.state is SessionState.OPENING and now - self.opened_ns > self.config.give_up_ns:
            self.end(ConnectionTimeout("the peer does not answer"))
        elif self.state is SessionState.RECOVERING:
            if now >= self._deadline:
                self.end(ConnectionTimeout("no path to the peer has worked for too long"))
            elif now >= self._attempt_until:
                self._attempt_failed()
                self._try()
        elif self.state is SessionState.PREPARING and now >= self._deadline:
            self._abandon("the new path did not work in time")
        elif self.state is SessionState.SWITCHING and now - self._since > self.config.stall_ns:
            self.fail("the peer does not switch")
        elif self.state in PASSING:
            self._check_silence(now)

    def _check_silence(self, now: int) -> None:
        waiting = self.tx.following > self.tx.base
        limit = self.config.stall_ns if waiting else self.config.keepalive_ns
        silent = now - max(self.heard_ns, self.moved_ns)
        if silent > limit + (0 if waiting else self.config.stall_ns):
            self.fail("nothing is heard from the peer")
        elif silent > limit // 2 and now - self._pinged_ns > limit // 2:
            self._pinged_ns = now
            self.say(Kind.PING)

    def abort(self) -> None:
        """Break it off; the peer is told."""
        self.say(Kind.RESET)
        self.end(ConnectionLost("this end has broken off the connection"))

    def end(self, error: Exception | None) -> None:
        if not self.is_open:
            return
        self.apply(SessionEvent.END)
        self.error = error
        self.stop_ack()
        self._attempt_failed()
        self.manager.event(self, f"ended: {error}")
        self.manager.finished(self)
        self.on_change()

    def release(self) -> None:
        """Let its channels go, after it has ended."""
        channels = {id(c): c for c in (self.channel, self._base, self._candidate, self._leaving) if c}
        self.channel = self._base = self._candidate = self._leaving = None
        for channel in channels.values():
            channel.close()
