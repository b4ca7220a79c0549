"""The sockets-direct layer of a host: who listens, who connects, who is moved where and why.

It stands between applications on one side and, on the other, the protocol stack's two interfaces and the user-mode
drivers of the RDMA cards.  What opens TCP connections is handed in (`Network`), so that it runs in virtual and in real
time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from verbena.clock import Clock, Timer
from verbena.errors import InvalidAttributeError, ResourceError
from verbena.team.offload.channel import Channel
from verbena.team.offload.moves import Mover
from verbena.team.offload.policy import ConnectionParameters, Policy, default_policy
from verbena.team.offload.rdma import RdmaCard, RdmaChannel, UserModeDriver
from verbena.team.offload.record import Claim, Greeting, Kind, Record, RefuseReason
from verbena.team.offload.session import Session
from verbena.team.offload.states import OffloadConfig, Path, SessionState
from verbena.team.trace import PathTrace
from verbena.wire.errors import DecodeError

if TYPE_CHECKING:
    from random import Random

EVENTS = 10_000
STRANGERS = 1_024
Address = tuple[bytes, int]


class Network(Protocol):
    """Opens TCP connections, and takes them.

    address: of this host's interface for UPLOAD or TEAM, 4 bytes; zeros: it has none.  is_up: can it be used now?
    """

    def address(self, path: Path) -> bytes: ...
    def is_up(self, path: Path) -> bool: ...
    def dial(self, path: Path, to: Address) -> Channel: ...


class SocketsDirect:
    """The layer.

    policy: decides for each connection which path it should be on; may be replaced at any time.  sessions: all
    connections, by identity.  events: (when, identity, text).  counters: ``move.*``, ``path.*``, ``offer.*``,
    ``peer.violation``, drops by reason.
    """

    def __init__(
        self,
        clock: Clock,
        random: Random,
        network: Network,
        trace: PathTrace,
        config: OffloadConfig | None = None,
        policy: Policy = default_policy,
    ) -> None:
        self.clock = clock
        self.config = config or OffloadConfig()
        self.policy = policy
        self.counters: Counter[str] = Counter()
        self.sessions: dict[bytes, Session] = {}
        self.events: deque[tuple[int, bytes, str]] = deque(maxlen=EVENTS)
        self.on_event: Callable[[int, bytes, str], None] = lambda when, identity, text: None
        self.drivers: dict[str, UserModeDriver] = {}
        self.active_card: str | None = None
        self._random = random
        self._network = network
        self._trace = trace
        self._listeners: dict[int, Callable[[Session], None]] = {}
        self._strangers: dict[int, Channel] = {}
        self._timer: Timer | None = None
        self._open = True

    # --- applications -------------------------------------------------------------------------------------

    def listen(self, port: int, accept: Callable[[Session], None]) -> None:
        """Take connections to a port; raises `InvalidAttributeError` if it is taken."""
        if port in self._listeners:
            raise InvalidAttributeError(f"port {port} is taken")
        self._listeners[port] = accept

    def unlisten(self, port: int) -> None:
        """No longer."""
        self._listeners.pop(port, None)

    def connect(self, address: bytes, port: int, path: Path = Path.UPLOAD) -> Session:
        """Open a connection; its `on_change` tells how that ends.

        address: of the peer's interface for the path that it begins on: R-virtual's for UPLOAD (the rule), T-virtual's
        for TEAM.  Where this host has no RDMA card, it begins on TEAM, at the same address.
        """
        session = self._make(self.nonce() + self.nonce(), self.nonce() + self.nonce(), leads=True)
        channel = self._network.dial(path, (address, self.config.service_port))
        greeting = self._greeting(session, port)

        session.begin(channel, greeting)
        return session

    def _make(self, identity: bytes, token: bytes, leads: bool) -> Session:
        session = Session(self, self.clock, self.config, self.counters, identity, token, leads)
        self.sessions[identity] = session
        self._wake()
        return session

    def _greeting(self, session: Session, wanted: int) -> Greeting:
        return Greeting(
            session.identity,
            session.token,
            self._network.address(Path.UPLOAD),
            self._network.address(Path.TEAM),
            self.config.service_port,
            wanted,
            bool(self.drivers),
        )

    def nonce(self) -> bytes:
        """Eight bytes that nobody guesses."""
        return self._random.getrandbits(64).to_bytes(8, "big")

    # --- TCP connections that come ------------------------------------------------------------------------

    def arrived(self, channel: Channel) -> None:
        """A TCP connection to the service port was made: its first record says what it is for."""
        if len(self._strangers) >= STRANGERS or not self._open:
            self.counters["drop.stranger.many"] += 1
            channel.abort()
            return
        self._strangers[id(channel)] = channel
        channel.on_record = partial(self._first, channel)
        channel.on_down = lambda why: self._gone(channel)
        when = self.clock.now() + self.config.move_ns * 10
        self.clock.call_at(when, lambda: self._too_late(channel))

    def _gone(self, channel: Channel) -> None:
        self._strangers.pop(id(channel), None)

    def _too_late(self, channel: Channel) -> None:
        if self._strangers.pop(id(channel), None) is not None:
            self.counters["drop.stranger.silent"] += 1
            channel.abort()

    def _first(self, channel: Channel, record: Record) -> None:
        self._strangers.pop(id(channel), None)
        try:
            if record.kind is Kind.HELLO:
                self._hello(channel, record)
            elif record.kind in (Kind.JOIN, Kind.RESUME):
                self._claim(channel, record)
            else:
                raise DecodeError("opcode", "not a first record")
        except DecodeError as error:
            self.counters[f"drop.stranger.{error.reason}"] += 1
            channel.abort()

    def _hello(self, channel: Channel, record: Record) -> None:
        greeting = Greeting.unpack(record.body)
        accept = self._listeners.get(greeting.wanted)
        if accept is None or greeting.session in self.sessions:
            self.counters["refused.no_listener"] += 1
            self._refuse(channel, RefuseReason.NO_LISTENER)
            return
        if len(self.sessions) >= self.config.most_connections:
            self.counters["refused.no_resources"] += 1
            self._refuse(channel, RefuseReason.NO_RESOURCES)
            return
        session = self._make(greeting.session, greeting.token, leads=False)
        session.take_ack(record)
        session.greet(channel, Kind.WELCOME, self._greeting(session, greeting.wanted), greeting)
        accept(session)

    def _claim(self, channel: Channel, record: Record) -> None:
        claim = Claim.unpack(record.body)
        session = self.sessions.get(claim.session)
        if session is None or session.token != claim.token:
            self.counters["drop.stranger.claim"] += 1
            self._refuse(channel, RefuseReason.UNKNOWN)
        elif record.kind is Kind.JOIN:
            if not session.joined(channel, claim):
                self._refuse(channel, RefuseReason.BUSY)
        elif session.state is SessionState.CLOSED:
            if session.error is not None:
                self._refuse(channel, RefuseReason.UNKNOWN)
            else:  # the peer has not heard the last acknowledgement
                answer = Record(Kind.RESUMED, epoch=record.epoch + 1, ack=session.rx.expected)
                channel.send(answer)
        elif not session.resumed_by_peer(channel, record):
            self._refuse(channel, RefuseReason.BUSY)

    @staticmethod
    def _refuse(channel: Channel, reason: RefuseReason) -> None:
        channel.send(Record(Kind.REFUSE, value=int(reason)))
        channel.close()

    # --- what sessions ask --------------------------------------------------------------------------------

    def dial(self, path: Path, session: Mover) -> Channel | None:
        """A TCP connection to the session's peer; None where there is no such path."""
        peer = session.peer
        if peer is None or path not in self.ways(session):
            return None
        address = peer.upload if path is Path.UPLOAD else peer.team
        return self._network.dial(path, (address, peer.port))

    def ways(self, session: Mover) -> list[Path]:
        """The paths through the stack that exist at both ends, and are up at this one; the best first."""
        peer = session.peer
        found = []
        for path in (Path.UPLOAD, Path.TEAM):
            theirs = b"" if peer is None else peer.upload if path is Path.UPLOAD else peer.team
            if any(theirs) and any(self._network.address(path)) and self._network.is_up(path):
                found.append(path)
        return found

    def user_driver(self) -> UserModeDriver | None:
        """The user-mode driver of the card that offloads now."""
        driver = self.drivers.get(self.active_card or "")
        return driver if driver is not None and driver.card.is_up else None

    def mtu(self) -> int:
        """The path MTU that queue pairs are offered with, bytes."""
        driver = self.user_driver()
        return 1024 if driver is None else driver.card.context.query_port().active_mtu

    def may_offload(self, session: Mover) -> RefuseReason | None:
        """Why a peer's offer is refused; None: it is not."""
        if self.user_driver() is None:
            return RefuseReason.NO_RDMA
        parameters = self.parameters(session)
        if parameters.queue_pairs >= parameters.most_queue_pairs:
            return RefuseReason.NO_RESOURCES
        if session.pinned not in (None, Path.OFFLOAD):
            return RefuseReason.POLICY
        return None

    def lost_card(self) -> bool:
        """Has this host no RDMA card now?"""
        return self.user_driver() is None

    def event(self, session: Mover, text: str) -> None:
        """Note what happens to a connection."""
        now = self.clock.now()
        self.events.append((now, session.identity, text))
        self.on_event(now, session.identity, text)

    def finished(self, session: Session) -> None:
        """A connection has ended; it still answers for a while."""

        def forget() -> None:
            session.release()
            self.sessions.pop(session.identity, None)

        self.clock.call_at(self.clock.now() + self.config.linger_ns, forget)

    # --- cards --------------------------------------------------------------------------------------------

    def add_card(self, card: RdmaCard) -> None:
        """An RDMA card is there."""
        if card.name in self.drivers:
            raise InvalidAttributeError(f"{card.name} is there already")
        self.drivers[card.name] = UserModeDriver(card, self.clock, self._trace)
        self.active_card = self.active_card or card.name

    def cards_changed(self, usable: dict[str, bool], active: str | None) -> None:
        """The intermediate driver tells which RDMA cards are usable, and which one carries the upload path."""
        self.active_card = active
        for name, driver in list(self.drivers.items()):
            card = driver.card
            card.is_up = usable.get(name, False)
            if not card.is_up:
                for channel in list(card.channels.values()):
                    channel.fail(f"{name} is down")
        if active is None and not self._network.is_up(Path.UPLOAD):
            for session in list(self.sessions.values()):
                if (
                    session.is_open
                    and session.path is Path.UPLOAD
                    and session.state is not SessionState.OPENING
                ):
                    session.fail("no RDMA card is left")

    def remove_card(self, name: str) -> None:
        """An RDMA card is taken out: its connections go on elsewhere."""
        driver = self.drivers.pop(name, None)
        if driver is not None:
            driver.card.is_up = False
            for channel in list(driver.card.channels.values()):
                channel.fail(f"{name} was removed")

    # --- policy -------------------------------------------------------------------------------------------

    def parameters(self, session: Mover) -> ConnectionParameters:
        """What the policy looks at."""
        now = self.clock.now()
        driver = self.user_driver()
        ways = self.ways(session)
        return ConnectionParameters(
            path=session.path,
            bytes_sent=session.tx.following,
            bytes_received=session.rx.expected,
            rate_bps=8 * session.meter.rate(now),
            age_ns=now - session.opened_ns,
            idle_ns=now - session.active_ns,
            since_move_ns=now - session.moved_ns,
            queue_pairs=0 if driver is None else len(driver.card.channels),
            most_queue_pairs=self.config.most_queue_pairs,
            upload_possible=Path.UPLOAD in ways,
            offload_possible=driver is not None and session.peer is not None and bool(session.peer.has_rdma),
            pinned=session.pinned,
        )

    def evaluate(self, session: Session) -> None:
        """Ask the policy, and begin to move if it says so."""
        if not session.may_move or session.path is None or (not session.leads and session.pinned is None):
            return
        wanted = self.policy(self.parameters(session))
        # A connection on the team goes back to the card by way of the stack.
        if wanted is Path.OFFLOAD and session.path is Path.TEAM and Path.UPLOAD in self.ways(session):
            wanted = Path.UPLOAD
        if wanted is not session.path:
            session.move(wanted)

    def _wake(self) -> None:
        if self._timer is None and self._open:
            self._timer = self.clock.call_at(self.clock.now() + self.config.evaluate_ns, self._tick)

    def _tick(self) -> None:
        self._timer = None
        for session in list(self.sessions.values()):
            if session.is_open:
                session.tick()
            if session.is_open:
                self.evaluate(session)
        if self.sessions:
            self._wake()

    # --- the administrator --------------------------------------------------------------------------------

    def session(self, identity: str) -> Session:
        """The connection whose identity begins with these hexadecimal digits; raises `InvalidAttributeError`."""
        found = [
            s for key, s in self.sessions.items() if key.hex().startswith(identity.lower()) and s.is_open
        ]
        if len(found) != 1:
            raise InvalidAttributeError(
                f"{len(found)} connections begin with {identity!r}: `status` lists them"
            )
        return found[0]

    def pin(self, session: Session, path: Path | None) -> None:
        """Want a path for a connection, whatever the policy says; None: as the policy says."""
        if path is Path.OFFLOAD and self.user_driver() is None:
            raise ResourceError("there is no RDMA card to offload to")
        session.pinned = path
        if path is not None and session.may_move:
            self.evaluate(session)

    def offloaded(self) -> list[RdmaChannel]:
        """The channels of all cards."""
        return [channel for d in self.drivers.values() for channel in d.card.channels.values()]

    def close(self) -> None:
        """Break everything off."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        for session in list(self.sessions.values()):
            if session.is_open:
                session.abort()
            session.release()
        for channel in list(self._strangers.values()):
            channel.abort()
