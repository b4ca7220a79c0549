"""The intermediate driver: between the protocol stack and the cards, in the data path and in the control path.

Document 004, paragraphs 22 to 28 and 33.  Above it are the two virtual miniports; below it one branch of drivers for
each card.  It chooses the member that a frame leaves by, decides which frames the stack sees, watches the members, and
tells the network where the team is when that changes.  What is offloaded does not pass here.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from verbena.clock import Clock
from verbena.errors import InvalidAttributeError, NotFound
from verbena.team.announce import Snoop, announcements
from verbena.team.balance import balancer_for
from verbena.team.card import Branch, BusDriver, EthernetPort
from verbena.team.config import TeamConfig
from verbena.team.frames import Flow, add_tag, flow_of, take_tag, with_source
from verbena.team.heartbeat import ETHERTYPE as HEARTBEAT_TYPE
from verbena.team.heartbeat import HeartbeatService
from verbena.team.lacp import Aggregator, LacpPort
from verbena.team.member import Member, MemberEvent, MemberState
from verbena.team.miniport import RdmaMiniport, TeamMiniport, VirtualCard
from verbena.team.passages import Passages
from verbena.team.probing import ArpProbe, HeartbeatProbe, NeighbourProbe, Probe, ProbeMonitor
from verbena.team.stations import Stations
from verbena.team.trace import Layer, PathTrace
from verbena.wire.ip import ETHERTYPE_ARP
from verbena.wire.lacp import ETHERTYPE_SLOW, SLOW_PROTOCOLS_GROUP, Lacpdu

GRACE_NS = 10_000_000
"""How long the member that received before may still hand up what was on its way when another took over."""
EVENTS = 1_000


@dataclass(frozen=True, slots=True)
class TeamEvent:
    """Something that happened to the team; `text` is for people."""

    when_ns: int
    kind: str
    member: str
    text: str


class IntermediateDriver:
    """A team.

    trace: notes the layers that frames pass.  team: T-virtual; rdma_miniport: R-virtual, if the configuration has one.
    counters: what is counted for the team as a whole: ``stack.team`` and ``stack.upload`` (frames by where the stack
    gave them), ``path.200`` and ``path.220`` (by which path they came), drops by reason.  stations: those behind the
    virtual cards, where they have homes of their own (`TeamConfig.bridged`, without aggregation).
    """

    def __init__(self, clock: Clock, config: TeamConfig, trace: PathTrace, mac: bytes) -> None:
        self.config = config
        self.clock = clock
        self.trace = trace
        self.mac = config.mac or bytes((mac[0] & 0xFE | 2, mac[1] ^ 0x80)) + mac[2:]
        self.members: list[Member] = []
        self.counters: Counter[str] = Counter()
        self.events: deque[TeamEvent] = deque(maxlen=EVENTS)
        self.on_event: Callable[[TeamEvent], None] = lambda event: None
        self.on_members: Callable[[], None] = lambda: None
        self._balancer = balancer_for(config.mode, config.load_interval_ns)
        self._upload_balancer = balancer_for(config.mode, config.load_interval_ns)
        self._usable: list[Member] = []
        self._order: list[Member] = []
        self._receiver: Member | None = None
        self._before: tuple[Member | None, int] = (None, 0)
        self._upload: Member | None = None
        self._had_upload = False
        self._numbers = 0
        self._announcing = 0
        self._aggregator = Aggregator()
        self._ports: dict[Member, LacpPort] = {}
        self.stations = Stations(self.counters) if config.bridged and not config.one_link else None
        self.rdma_miniport: RdmaMiniport | None = None
        self.team = TeamMiniport(self, self.mac, config.mtu, trace)
        if config.rdma_vlan is not None:
            address = self.mac[:1] + bytes((self.mac[1] ^ 0x40,)) + self.mac[2:]
            self.rdma_miniport = RdmaMiniport(self, config.rdma_vlan, address, config.mtu, trace)
        for vlan in config.vlans:
            self.team.add(vlan)
        self.passages = Passages(self)
        self.heartbeat = (
            HeartbeatService(config.heartbeat_key, self.mac, self.counters) if config.heartbeat_key else None
        )
        self.monitor = ProbeMonitor(
            clock,
            self._probes(),
            config.probe_interval_ns,
            config.probe_misses,
            lambda: self.members,
            self._verdict,
            self.counters,
        )
        self.monitor.start()

    def _probes(self) -> list[Probe]:
        config = self.config
        probes: list[Probe] = []
        if config.arp_targets:
            probes.append(ArpProbe(config.arp_targets, config.probe_vlan))
        if config.nd_targets:
            probes.append(NeighbourProbe(config.nd_targets, config.probe_vlan))
        if self.heartbeat is not None:
            probes.append(HeartbeatProbe(self.heartbeat))
        return probes

    # --- members ------------------------------------------------------------------------------------------

    def add(self, card: EthernetPort, *, bus: BusDriver | None = None, priority: int = 0) -> Member:
        """Take a card into the team; traffic goes on meanwhile.  bus: of an RDMA card.

        Raises `InvalidAttributeError` for a name or an address that is in the team already, and for an MTU that is
        less than the team's.
        """
        # A card whose link has never been up may have no address yet.
        if any(m.name == card.name or m.card.mac == card.mac != bytes(6) for m in self.members):
            self.counters["refused.twice"] += 1
            raise InvalidAttributeError(f"{card.name} ({card.mac.hex(':')}) is in the team already")
        if card.mtu < self.config.mtu:
            self.counters["refused.mtu"] += 1
            raise InvalidAttributeError(
                f"{card.name} has an MTU of {card.mtu}, the team of {self.config.mtu}:"
                " raise the card's, or lower the team's"
            )
        self._numbers += 1
        branch = Branch(card, self._numbers, self.trace, bus)
        member = Member(branch, priority, self.config.load_interval_ns)
        self.members.append(member)
        self.passages.forget()
        card.attach(partial(self._received, member), partial(self._link_changed, member))
        if hasattr(card, "on_view"):
            card.on_view = partial(self.passages.up, member)
        if self.config.lacp:
            self._add_port(member)
        self._tell("added", member, f"{member.name} joins the team")
        if card.is_up:
            self._link_changed(member, True)
        return member

    def _add_port(self, member: Member) -> None:
        def send(pdu: Lacpdu) -> None:
            member.branch.transmit(pdu.frame(member.card.mac))

        port = LacpPort(
            self.clock,
            self.mac,
            self._numbers,
            1,
            send,
            lambda _: self._select(),
            member.counters,
            times=self.config.lacp_times,
        )
        self._ports[member] = port
        self._aggregator.ports.append(port)

    def member(self, name: str) -> Member:
        """The member of that name; raises `NotFound`."""
        for member in self.members:
            if member.name == name:
                return member
        raise NotFound(
            f"the team has no member {name}: it has {', '.join(m.name for m in self.members) or 'none'}"
        )

    def remove(self, name: str) -> None:
        """Let a card go; its load goes to the others.  The last one, too: then the virtual cards have no link."""
        member = self.member(name)
        member.card.detach()
        self.members.remove(member)
        self.monitor.forget(member)
        port = self._ports.pop(member, None)
        if port is not None:
            self._aggregator.ports.remove(port)
            port.stop()
        if not self.members:
            self.counters["last_member_removed"] += 1
        self._apply(member, MemberEvent.REMOVE)
        if port is not None:
            self._select()

    def fail(self, name: str) -> None:
        """The administrator takes a member out of use."""
        member = self.member(name)
        self._apply(member, MemberEvent.DISABLE)
        self._enable_port(member, False)

    def _enable_port(self, member: Member, enabled: bool) -> None:
        """The partner is to know, too."""
        port = self._ports.get(member)
        if port is not None and port.enabled != enabled:
            port.enabled = enabled
            self._select()

    def recover(self, name: str) -> None:
        """The administrator lets a member in again."""
        member = self.member(name)
        self._apply(member, MemberEvent.ENABLE)
        if member.card.is_up and member.state is MemberState.DOWN:
            self._link_changed(member, True)
        self._enable_port(member, True)

    def _link_changed(self, member: Member, up: bool) -> None:
        self._apply(member, MemberEvent.LINK_UP if up else MemberEvent.LINK_DOWN)
        port = self._ports.get(member)
        if port is not None:
            port.link(up)
        elif member.state is MemberState.JOINING:
            if self.config.probes:
                self.monitor.begin(member)
            else:
                self._apply(member, MemberEvent.PROVED)

    def _verdict(self, member: Member, proved: bool) -> None:
        if not proved and member.state in (MemberState.ACTIVE, MemberState.JOINING):
            self.counters["probe.lost"] += 1
        if member not in self._ports:
            self._apply(member, MemberEvent.PROVED if proved else MemberEvent.LOST)

    def _select(self) -> None:
        """Something of the aggregation has changed."""
        self._aggregator.choose()
        for member, port in list(self._ports.items()):
            may = self._aggregator.may_carry(port)
            if may != member.is_usable and member.state is not MemberState.REMOVED:
                self._apply(member, MemberEvent.PROVED if may else MemberEvent.LOST)

    def _apply(self, member: Member, event: MemberEvent) -> None:
        before = member.state
        if not member.apply(event):
            return
        self._tell(member.state.name.lower(), member, f"{member.name}: {before.name} -> {member.state.name}")
        if before is MemberState.ACTIVE or member.state in (MemberState.ACTIVE, MemberState.REMOVED):
            self._rearrange()

    def _tell(self, kind: str, member: Member | None, text: str) -> None:
        event = TeamEvent(self.clock.now(), kind, member.name if member else "", text)
        self.events.append(event)
        self.on_event(event)

    # --- who carries what ---------------------------------------------------------------------------------

    def _rearrange(self) -> None:
        """The set of usable members has changed."""
        self.passages.forget()
        self._usable = [member for member in self.members if member.is_usable]
        ranked = sorted(self._usable, key=lambda member: member.priority)
        old, backup = self._receiver, self.config.mode.value == "active-backup"
        keep = old is not None and old.is_usable and not (backup and self.config.preempt)
        self._receiver = old if keep else (ranked[0] if ranked else None)
        self._order = [self._receiver] if backup and self._receiver else self._usable
        if old is not self._receiver and old is not None:
            self._before = (old, self.clock.now())
        rdma = [member for member in ranked if member.branch.is_rdma]
        if self._upload is not None and self._upload not in rdma:
            self._upload = None
        if self._upload is None and (rdma or self._had_upload):
            self._upload = rdma[0] if rdma else None
            self._had_upload = self._upload is not None
            where = "no card" if self._upload is None else self._upload.name
            self._tell("upload", self._upload, f"the upload path is on {where}")
        if self.stations is not None:
            self.stations.arrange(self._order, self.clock.now())
        self._announce()
        self.team.set_link(bool(self._usable))
        if self.rdma_miniport is not None:
            over_team = self.config.upload_over_team and bool(self._usable)
            self.rdma_miniport.set_link(bool(rdma) or over_team)
        self.on_members()

    @property
    def usable(self) -> list[Member]:
        """Members that carry frames."""
        return list(self._usable)

    @property
    def receiver(self) -> Member | None:
        """The member that the network sends to, where the switch knows nothing of the team; the active one."""
        return self._receiver

    @property
    def upload_member(self) -> Member | None:
        """The RDMA card that carries the upload path, and offloaded connections."""
        return self._upload

    def _announce(self) -> None:
        """Tell the network where the virtual cards are, now and a few times more (a switch may not forward yet)."""
        self._announcing += 1
        self._announce_again(self._announcing, self.config.announcements)

    def _announce_again(self, series: int, left: int) -> None:
        if series != self._announcing or left == 0 or not self._usable:
            return
        if self._receiver is not None:
            for card in self.team.cards.values():
                self._announce_card(card, self._receiver)
        upload = self._upload or (self._receiver if self.config.upload_over_team else None)
        if self.rdma_miniport is not None and upload is not None:
            self._announce_card(self.rdma_miniport, upload)
        if self.stations is not None:
            for (vlan, mac), station in self.stations.moved.items():
                station.sent_ns = self.clock.now()  # for what comes back by the other members
                self._announce_at(station.home, vlan, mac, Snoop())
            if left == 1:
                self.stations.moved.clear()
        again = partial(self._announce_again, series, left - 1)
        self.clock.call_at(self.clock.now() + self.config.announce_interval_ns, again)

    def _announce_card(self, card: VirtualCard, member: Member) -> None:
        self._announce_at(member, card.vlan, card.mac, card.known)

    def _announce_at(self, member: Member, vlan: int, mac: bytes, known: Snoop) -> None:
        for frame in announcements(mac, known):
            self.counters["announced"] += 1
            member.count("tx.announce", len(frame), self.clock.now())
            member.branch.transmit(add_tag(frame, vlan))

    # --- down ---------------------------------------------------------------------------------------------

    @property
    def cards(self) -> list[VirtualCard]:
        """All virtual cards, R-virtual's last."""
        rdma = self.rdma_miniport
        return [*self.team.cards.values(), *([rdma] if rdma is not None else [])]

    def count_stack(self, card: VirtualCard) -> None:
        """The stack has given a frame to a virtual card."""
        counters = self.counters
        if card is self.rdma_miniport:
            counters["stack.upload"] += 1
            counters["path.220" if self.config.dedicated_paths else "path.200"] += 1
        else:
            counters["stack.team"] += 1
            counters["path.200"] += 1

    def choose(self, card: VirtualCard, flow: Flow | bytes, size: int) -> Member | None:
        """The member that a frame of this flow leaves by; None, and counted, if there is none.

        flow: or the frame, of which it is found out if it matters.
        """
        if card is not self.rdma_miniport:
            members, balancer = self._order, self._balancer
        elif self.config.upload_over_team and self._usable:  # else by the RDMA card only
            members, balancer = self._usable, self._upload_balancer
        else:
            if self._upload is None:
                self.counters["drop.tx.no_rdma_card"] += 1
            return self._upload
        if len(members) > 1 or (members and balancer.remembers):
            known = flow if isinstance(flow, Flow) else flow_of(flow, card.vlan)
            return balancer.choose(known, size, members, self.clock.now())
        if not members:
            self.counters["drop.tx.no_member"] += 1
            return None
        return members[0]

    def send(self, card: VirtualCard, frame: bytes) -> bool:
        """A frame from T-virtual or R-virtual."""
        self.trace.hop(Layer.INTERMEDIATE_DRIVER)
        self.count_stack(card)
        what = "tx.upload" if card is self.rdma_miniport else "tx.team"
        now = self.clock.now()
        if self.stations is not None and what == "tx.team" and frame[6:12] != self.mac and self._order:
            member = self.stations.sends((card.vlan, frame[6:12]), self._order, now)
            return self._give(member, card, frame, what, now)
        chosen = self.choose(card, frame, len(frame))
        if chosen is None:
            return False
        member = chosen
        source = self.source_for(member, card, frame[6:12])
        if source != frame[6:12]:
            home = self._home(card)
            if frame[12] << 8 | frame[13] == ETHERTYPE_ARP and home is not None:
                member = home
            else:
                frame = with_source(frame, source)
        return self._give(member, card, frame, what, now)

    def _home(self, card: VirtualCard) -> Member | None:
        """Where the network sends what is for a virtual card, if it knows nothing of the team."""
        return self._receiver if card is not self.rdma_miniport else self._upload or self._receiver

    def source_for(self, member: Member, card: VirtualCard, source: bytes) -> bytes:
        """The address that a frame from `source` leaves a member with."""
        # A switch that knows nothing of the team shall not see one address at several ports.
        return source if self.config.one_link or member is self._home(card) else member.card.mac

    @staticmethod
    def _give(member: Member, card: VirtualCard, frame: bytes, what: str, now: int) -> bool:
        member.count(what, len(frame), now)
        if member.branch.transmit(add_tag(frame, card.vlan)):
            return True
        member.counters["drop.tx.card"] += 1
        return False

    # --- up -----------------------------------------------------------------------------------------------

    def _received(self, member: Member, frame: bytes) -> None:
        if self.trace.on:
            with self.trace.journey("in", len(frame)):
                self._take(member, frame)
        else:
            self._take(member, frame)

    def _take(self, member: Member, frame: bytes) -> None:
        member.branch.trace_received()
        self.trace.hop(Layer.INTERMEDIATE_DRIVER)
        why = self._sort(member, frame)
        if why:
            member.counters[f"drop.rx.{why}"] += 1

    def _sort(self, member: Member, frame: bytes) -> str:
        """Find out whose frame it is; returns why it is dropped, if it is."""
        if len(frame) < 14:
            return "short"
        kind = frame[12] << 8 | frame[13]
        if kind == ETHERTYPE_SLOW:
            return self._slow(member, frame)
        if kind == HEARTBEAT_TYPE:  # also those of this team's other members, which count
            return "" if self.heartbeat is not None and self.monitor.saw(member, 0, frame) else "heartbeat"
        vlan, plain = take_tag(frame)
        if len(plain) < 14:
            return "short"
        if self.is_own(plain[6:12], vlan):
            return "own"
        if self.monitor.saw(member, vlan, plain):
            return ""
        if member.state is not MemberState.ACTIVE:
            return "inactive"
        rdma = self.rdma_miniport
        if rdma is not None and vlan == rdma.vlan:
            return self._up_upload(member, rdma, plain)
        card = self.team.cards.get(vlan)
        if card is None:
            return "vlan"
        if not plain[0] & 1 and plain[:6] != self.mac and not self.config.bridged:
            return "other"
        if not self.config.one_link and not self._receives(member, vlan, plain):
            return "duplicate"
        member.count("rx.team", len(plain), self.clock.now())
        card.hand_up(plain)
        return ""

    def card_for(self, member: Member, vlan: int, destination: bytes) -> VirtualCard | None:
        """The card that gets whatever a member receives for one address; None: that has to be looked at each time."""
        rdma, one_link = self.rdma_miniport, self.config.one_link
        if rdma is not None and vlan == rdma.vlan:
            anywhere = self.config.upload_over_team and one_link
            home = self._upload or (self._receiver if self.config.upload_over_team else None)
            return rdma if destination == rdma.mac and (anywhere or member is home) else None
        if self.stations is not None or destination != self.mac:
            return None
        return self.team.cards.get(vlan) if one_link or member is self._receiver else None

    def is_own(self, source: bytes, vlan: int) -> bool:
        """Sent by this team itself or a station behind it, and come back by another member."""
        if self.stations is not None and self.stations.came_back((vlan, source), self.clock.now()):
            return True
        if source == self.mac or (self.rdma_miniport is not None and source == self.rdma_miniport.mac):
            return True
        return source in [member.card.mac for member in self.members]

    def _receives(self, member: Member, vlan: int, frame: bytes) -> bool:
        """Is this the one member that such a frame is taken from, or did it go there until just now?"""
        home, (before, when) = self._receiver, self._before
        station = None if self.stations is None else self.stations.table.get((vlan, frame[:6]))
        if station is not None:
            home, before, when = station.home, station.before, station.moved_ns
        if member is home:
            return True
        return member is before and not frame[0] & 1 and self.clock.now() - when <= GRACE_NS

    def _up_upload(self, member: Member, rdma: RdmaMiniport, frame: bytes) -> str:
        anywhere = self.config.upload_over_team and self.config.one_link
        home = self._upload or (self._receiver if self.config.upload_over_team else None)
        if not frame[0] & 1 and frame[:6] != rdma.mac:
            return "other"
        if not anywhere and member is not home:
            return "upload_elsewhere"
        member.count("rx.upload", len(frame), self.clock.now())
        rdma.hand_up(frame)
        return ""

    def _slow(self, member: Member, frame: bytes) -> str:
        port = self._ports.get(member)
        if port is None or frame[:6] != SLOW_PROTOCOLS_GROUP:
            return "slow_protocol"
        port.receive(frame[14:])
        return ""

    def close(self) -> None:
        """Let all cards go, and stop."""
        self.monitor.stop()
        self._announcing += 1
        for port in self._ports.values():
            port.stop()
        for member in self.members:
            member.card.detach()
