"""A managed connection: one byte stream whose path changes (document 004, paragraphs 20 and 29 to 33).

The side that opened the connection leads.  A planned move: the new channel is made and tried (CONFIRM, CONFIRMED) while
data go on on the old one; SWITCH is the last record there in one direction, SWITCHED in the other; then a new epoch
begins on the new channel.  After a failure either side asks to resume, on any path that works (RESUME, RESUMED): both
say what they expect next, and a new epoch begins there.  Data of another epoch are never taken, so that a connection is
never on two paths at once.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from verbena.adapter.attributes import Endpoint
from verbena.adapter.gid import Gid
from verbena.clock import Clock
from verbena.errors import ConnectionLost, ConnectionRefused, ConnectionTimeout, VerbenaError
from verbena.team.offload.channel import Channel
from verbena.team.offload.pump import Pump
from verbena.team.offload.rdma import RdmaChannel
from verbena.team.offload.record import Claim, Greeting, Kind, QueuePairInfo, Record, RefuseReason
from verbena.team.offload.states import PASSING, OffloadConfig, Path, SessionEvent, SessionState
from verbena.wire.errors import DecodeError

if TYPE_CHECKING:
    from verbena.team.offload.manager import SocketsDirect

EARLY = 256
"""Records of the coming epoch that wait for the old path's last one."""


class Session(Pump):
    """One end.  leads: this side opened it.  pinned: the path that the administrator wants, or None."""

    def __init__(
        self,
        manager: SocketsDirect,
        clock: Clock,
        config: OffloadConfig,
        counters: Counter[str],
        identity: bytes,
        token: bytes,
        leads: bool,
    ) -> None:
        super().__init__(clock, config, counters)
        self.manager = manager
        self.identity = identity
        self.token = token
        self.leads = leads
        self.peer: Greeting | None = None
        self.pinned: Path | None = None
        self.asked: Path | None = None
        self.moved_ns = self.opened_ns
        self.moves = 0
        self.failures = 0
        self.stall_ns = 0
        """The longest time for which a change of path has held up the stream."""
        self._base: Channel | None = None
        self._candidate: Channel | None = None
        self._target: Path | None = None
        self._nonce = b""
        self._deadline = 0
        self._held_until = 0
        self._early: deque[Record] = deque(maxlen=EARLY)
        self._leaving: Channel | None = None
        self._since = 0
        self._attempt = 0
        self._their_attempt = 0
        self._attempt_channel: Channel | None = None
        self._attempt_until = 0
        self._next_path: Path | None = None
        self._pinged_ns = 0

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
            self._act(record)
            self._after()

    def _opening(self, record: Record) -> None:
        self.take_ack(record)
        if record.kind is Kind.WELCOME:
            self._welcomed(record)
        elif record.kind is Kind.REFUSE:
            self.end(ConnectionRefused("the peer has nobody listening there", record.value))
        else:
            self.break_off(f"begins with {record.kind.name}")

    def _act(self, record: Record) -> None:
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

    # --- a planned move -----------------------------------------------------------------------------------

    @property
    def may_move(self) -> bool:
        return self.state is SessionState.ESTABLISHED and self.clock.now() >= self._held_until

    def move(self, target: Path) -> bool:
        """Begin to move to another path; False where that is not possible now."""
        if target is self.path or self.state is not SessionState.ESTABLISHED or self.tx.done:
            return False
        if not self.leads:
            self.say(Kind.ASK, value=int(target))
            return True
        self.apply(SessionEvent.PREPARE)
        self._target = target
        self._deadline = self.clock.now() + self.config.move_ns
        self._nonce = self.manager.nonce()
        self.counters[f"move.{target.name.lower()}"] += 1
        if target is Path.OFFLOAD:
            self._offer()
        elif self._base is not None and self._base.is_up and self._base.path is target:
            self._candidate = self._base
            self._begin_switch()
        else:
            self._dial(target)
        return True

    def _asked(self, record: Record) -> None:
        try:
            self.asked = Path(record.value)
        except ValueError:
            self.counters["drop.record.value"] += 1
            return
        if self.may_move:
            self.move(self.asked)

    def _dial(self, target: Path) -> None:
        channel = self.manager.dial(target, self)
        if channel is None:
            self._abandon(f"there is no way to {target.name}")
            return
        self._candidate = channel
        self.adopt(channel)

        def up() -> None:
            claim = Claim(self.identity, self.token, self._nonce)
            self.say(Kind.JOIN, channel, body=claim.pack(), epoch=self.epoch + 1)

        channel.on_up = up
        if channel.is_up:
            up()

    def _offer(self) -> None:
        channel = self._make_pair()
        if channel is None:
            self._abandon("the card has no queue pair for it")
            return
        self.say(Kind.OFFER, body=self._info(channel).pack())

    def _make_pair(self) -> RdmaChannel | None:
        driver = self.manager.user_driver()
        if driver is None:
            return None
        try:
            channel = driver.open()
        except VerbenaError:
            self.counters["offload.no_resources"] += 1
            return None
        self._candidate = channel
        self.adopt(channel)
        return channel

    def _info(self, channel: RdmaChannel) -> QueuePairInfo:
        here = channel.endpoint
        return QueuePairInfo(here.gid.raw, here.qp_num, here.psn, here.lid, self.manager.mtu(), self._nonce)

    def _offered(self, record: Record) -> None:
        """The leading side wants to offload."""
        reason = self.manager.may_offload(self)
        if self.leads or self.state is not SessionState.ESTABLISHED:
            reason = RefuseReason.BUSY
        try:
            info = QueuePairInfo.unpack(record.body)
        except DecodeError as error:
            self.counters[f"drop.record.{error.reason}"] += 1
            return
        channel = None if reason else self._make_pair()
        if channel is None:
            self.counters["offer.refused"] += 1
            self.say(Kind.REFUSE, value=int(reason or RefuseReason.NO_RESOURCES))
            return
        self.apply(SessionEvent.PREPARE)
        self._target = Path.OFFLOAD
        self._nonce = info.nonce
        self._deadline = self.clock.now() + self.config.move_ns
        if self._connect_pair(channel, info):
            self.say(Kind.ACCEPT, body=self._info(channel).pack())
        else:
            self.say(Kind.REFUSE, value=int(RefuseReason.NO_RESOURCES))
            self._abandon("the offered queue pair cannot be connected to")

    def _connect_pair(self, channel: RdmaChannel, info: QueuePairInfo) -> bool:
        endpoint = Endpoint(Gid(info.gid), info.qp_num & 0xFFFFFF, info.psn & 0xFFFFFF, info.lid)
        mtu = min(self.manager.mtu(), info.mtu)
        try:
            channel.driver.proxy.connect(channel, endpoint, mtu)
        except VerbenaError:
            self.counters["offer.bad_endpoint"] += 1
            return False
        return True

    def _answered(self, record: Record) -> None:
        """The peer's answer to an offer."""
        channel = self._candidate
        if self.state is not SessionState.PREPARING or not self.leads or self._target is not Path.OFFLOAD:
            self.counters["drop.record.kind"] += 1
            return
        if record.kind is Kind.REFUSE or not isinstance(channel, RdmaChannel) or channel.is_up:
            self._abandon("the peer refuses")
            return
        try:
            info = QueuePairInfo.unpack(record.body)
        except DecodeError:
            self._abandon("the peer's answer is none")
            return
        if not self._connect_pair(channel, info):
            self._abandon("the peer's queue pair cannot be connected to")
            return
        claim = Claim(self.identity, self.token, self._nonce)
        self.say(Kind.CONFIRM, channel, body=claim.pack(), epoch=self.epoch + 1)

    def _claims(self, record: Record) -> bool:
        try:
            claim = Claim.unpack(record.body)
        except DecodeError:
            return False
        return claim == Claim(self.identity, self.token, self._nonce)

    def _tried(self, channel: Channel, record: Record) -> None:
        """A first record on the new channel."""
        if self.state is not SessionState.PREPARING or not self._claims(record):
            self.counters["drop.record.claim"] += 1
            self._abandon("the peer does not know this connection")
        elif record.kind is Kind.CONFIRM and not self.leads:
            self.say(Kind.CONFIRMED, channel, body=record.body, epoch=self.epoch + 1)
        elif record.kind is Kind.CONFIRMED and self.leads:
            self._begin_switch()
        else:
            self._abandon("the peer refuses")

    def joined(self, channel: Channel, claim: Claim) -> bool:
        """The leading side has opened a further TCP connection, to move to; False: not now."""
        if self.leads or self.state is not SessionState.ESTABLISHED or claim.token != self.token:
            return False
        self.apply(SessionEvent.PREPARE)
        self._candidate, self._target, self._nonce = channel, channel.path, claim.nonce
        self._deadline = self.clock.now() + self.config.move_ns
        self.adopt(channel)
        self.say(Kind.CONFIRMED, channel, body=claim.pack(), epoch=self.epoch + 1)
        return True

    def _abandon(self, why: str) -> None:
        """Stay on the old path."""
        if self.state is not SessionState.PREPARING:
            return
        self.apply(SessionEvent.GIVE_UP)
        self.failures += 1
        hold = self.config.hold_ns << min(self.failures, 10)
        self._held_until = self.clock.now() + hold
        self.counters["move.abandoned"] += 1
        self.manager.event(self, f"stays on {self.path.name}: {why}")
        self._drop_candidate()
        self.pump()

    def _drop_candidate(self) -> None:
        candidate, self._candidate, self._target = self._candidate, None, None
        self._early.clear()
        if candidate is not None and candidate is not self._base and candidate is not self.channel:
            candidate.close()

    def _begin_switch(self) -> None:
        """Nothing more on the old path, from this side."""
        assert self._target is not None
        self.say(Kind.SWITCH, value=int(self._target), epoch=self.epoch + 1)
        self.apply(SessionEvent.SWITCH)
        self._since = self.clock.now()

    def _switch_asked(self, record: Record) -> None:
        """The peer has sent its last record on the old path: so does this side, and goes on on the new one."""
        target = self._candidate
        if target is None and self._base is not None and self._base.path == record.value:
            target = self._base
        right = record.epoch == self.epoch + 1 and not self.leads and target is not None
        if not right or target is None or target.path != record.value or not target.is_up:
            self.counters["drop.record.switch"] += 1
            self.fail("the peer switches to a path that there is not")
            return
        if self.state is SessionState.ESTABLISHED:
            self.apply(SessionEvent.PREPARE)
        self.say(Kind.SWITCHED, value=record.value, epoch=self.epoch + 1)
        self._switch_to(target)

    def _switch_answered(self, record: Record) -> None:
        if self.state is not SessionState.SWITCHING or record.epoch != self.epoch + 1:
            self.counters["drop.record.switch"] += 1
            return
        assert self._candidate is not None
        self.stall_ns = max(self.stall_ns, self.clock.now() - self._since)
        self._switch_to(self._candidate)
        self.acknowledge()
        self._let_old_go()

    def _switch_to(self, channel: Channel) -> None:
        old = self.channel
        self.apply(SessionEvent.SWITCHED)
        self._leaving = old
        self._enter(channel)
        self.failures = 0
        early = list(self._early)
        self._early.clear()
        for record in early:
            if self.is_open and channel is self.channel:
                self._act(record)

    def _enter(self, channel: Channel) -> None:
        """A new epoch begins, on a channel."""
        self.channel = channel
        self.path = channel.path
        self.epoch += 1
        if self.path is not Path.OFFLOAD:
            if self._base is not channel and self._base is not self._leaving and self._base is not None:
                self._base.close()
            self._base = channel
        self._candidate = self._target = None
        self.moves += 1
        self.moved_ns = self.clock.now()
        self.manager.event(self, f"is on {self.path.name} now")

    def _let_old_go(self) -> None:
        """The peer is on the new path, too: nothing more comes on the old one."""
        old, self._leaving = self._leaving, None
        if old is not None and old is not self._base and old is not self.channel:
            old.close()

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
