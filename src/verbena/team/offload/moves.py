"""The part of a connection that moves it from a path that works to another one, as it is asked to.

The new channel is made and tried (CONFIRM, CONFIRMED) while data go on on the old one; SWITCH is the last record there
in one direction, SWITCHED in the other; then a new epoch begins on the new channel.  The side that opened the
connection leads; the other one may ask.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from verbena.adapter.attributes import Endpoint
from verbena.adapter.gid import Gid
from verbena.clock import Clock
from verbena.errors import VerbenaError
from verbena.team.offload.channel import Channel
from verbena.team.offload.pump import Pump
from verbena.team.offload.rdma import RdmaChannel
from verbena.team.offload.record import Claim, Greeting, Kind, QueuePairInfo, Record, RefuseReason
from verbena.team.offload.states import OffloadConfig, Path, SessionEvent, SessionState
from verbena.wire.errors import DecodeError

if TYPE_CHECKING:
    from verbena.team.offload.manager import SocketsDirect

EARLY = 256
"""Records of the coming epoch that wait for the old path's last one."""


class Mover(Pump):
    """A connection as far as planned moves go.  leads: this side opened it.

    pinned: the path that the administrator wants, or None.
    """

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

    # --- what the rest of the connection does ---------------------------------------------------------------

    def adopt(self, channel: Channel) -> None:
        """Listen to a channel's records."""
        raise NotImplementedError

    def fail(self, why: str) -> None:
        """The path does not work any more."""
        raise NotImplementedError

    def act(self, record: Record) -> None:
        """Do what a record of the present epoch says."""
        raise NotImplementedError

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
                self.act(record)

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
