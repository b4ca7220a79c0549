"""Hosts with teams, on simulated Ethernet, for the tests of teams."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from verbena.runtime.virtual_ethernet import VirtualCard, VirtualSwitch
from verbena.runtime.virtual_roce import EthernetNetwork
from verbena.team.config import TeamConfig
from verbena.team.host import TeamHost
from verbena.team.offload.session import Session
from verbena.team.offload.states import MILLISECOND, OffloadConfig, Path
from verbena.team.stack.host import HostStack, Interface
from verbena.team.stack.tcp_states import TcpOptions

TEAM_VLAN, UPLOAD_VLAN = 10, 20
PORT = 7000


class Lab:
    """Hosts on one switch.  Host i has cards ``nic0``, … and RDMA cards ``rnic0``, …; seed: of everything random."""

    def __init__(self, seed: int = 0, *, rate_bps: float = 10e9, **switch: Any) -> None:
        self.net = EthernetNetwork(seed)
        self.clock = self.net.clock
        self.rate_bps = rate_bps
        self.switch = VirtualSwitch(self.clock, rate_bps=rate_bps, **switch)
        self.random = Random(seed)
        self.hosts: list[TeamHost] = []
        self.cards: list[dict[str, VirtualCard]] = []

    def card(self, host: int, name: str, **settings: Any) -> VirtualCard:
        """A card, on the switch."""
        number = sum(map(len, self.cards)) + 1
        mac = bytes((0, 0x10, 0x18, host, 0, number))
        card = VirtualCard(self.clock, name, mac, **{"rate_bps": self.rate_bps, **settings})
        self.switch.plug(card)
        self.cards[host][name] = card
        return card

    def host(
        self, nics: int = 2, rnics: int = 1, offload: OffloadConfig | None = None, **more: Any
    ) -> TeamHost:
        """One more host, whose cards are in its team."""
        number = len(self.hosts)
        self.cards.append({})
        settings = {"policy": more.pop("policy")} if "policy" in more else {}
        team = TeamConfig(**{"vlans": (TEAM_VLAN,), "rdma_vlan": UPLOAD_VLAN, **more})
        made = TeamHost(
            self.clock,
            Random(self.random.getrandbits(32)),
            team,
            mac=bytes((0, 0x10, 0x18, number, 0xFF, 0)),
            addresses={vlan: f"10.{vlan}.0.{number + 1}/24" for vlan in team.vlans},
            upload_address=f"10.20.0.{number + 1}/24" if team.rdma_vlan is not None else None,
            offload=offload,
            tcp=TcpOptions(least_rto_ns=20 * MILLISECOND),
            **settings,
        )
        self.hosts.append(made)
        for i in range(nics):
            made.add(self.card(number, f"nic{i}"))
        for i in range(rnics):
            self.rnic(number, f"rnic{i}")
        return made

    def rnic(self, host: int, name: str) -> VirtualCard:
        """One more RDMA card, in the host's team."""
        card = self.card(host, name)
        address = f"10.99.{host}.{len(self.cards[host])}"
        self.hosts[host].add(card, context=self.net.open_rdma(card, address))
        return card

    def run(self, milliseconds: float) -> None:
        self.net.run_for(round(milliseconds * MILLISECOND))

    def until(self, ready: Callable[[], Any], milliseconds: float = 60_000) -> None:
        """Let time pass until it is so; fails if it never is."""
        end = self.net.now + round(milliseconds * MILLISECOND)
        while not ready():
            following = self.clock.next_time()
            assert following is not None
            assert following <= end, "it did not happen in time"
            self.clock.step(end)


class Transfer:
    """Bytes from one program to another over a managed connection; `read` is what the other one got."""

    def __init__(self, session: Session, data: bytes) -> None:
        self.session = session
        self.data = data
        self.sent = 0
        self.received = bytearray()
        session.on_change = self.pump
        self.pump()

    def pump(self) -> None:
        while self.sent < len(self.data) and self.session.error is None and self.session.room:
            self.sent += self.session.write(self.data[self.sent : self.sent + self.session.room])
        if self.sent == len(self.data):
            self.session.close_writing()
        if self.session.readable:
            self.received += self.session.read()


def connect(
    lab: Lab,
    there: bytes = b"",
    here: bytes = b"",
    a: int = 0,
    b: int = 1,
    near: Callable[[Session], Any] | None = None,
    far: Callable[[Session], Any] | None = None,
) -> tuple[Any, Any]:
    """A connection from host a to host b; there: what a's program sends, here: what b's does."""
    make_near = near or (lambda session: Transfer(session, there))
    make_far = far or (lambda session: Transfer(session, here))
    accepted: list[Any] = []
    lab.hosts[b].sockets.unlisten(PORT)
    lab.hosts[b].sockets.listen(PORT, lambda session: accepted.append(make_far(session)))
    upload = Path.UPLOAD if Path.UPLOAD in lab.hosts[b].paths else Path.TEAM
    session = lab.hosts[a].sockets.connect(lab.hosts[b].paths[upload].packed, PORT, upload)
    made = make_near(session)
    lab.until(lambda: accepted and session.is_established, 2000)
    return made, accepted[0]


class StackStream:
    """Bytes from one stack to another by TCP.  got: what arrived."""

    def __init__(
        self,
        here: tuple[HostStack, Interface],
        there: tuple[HostStack, Interface],
        data: bytes,
        port: int = 80,
    ) -> None:
        self.data, self.sent, self.got, self.ended = data, 0, bytearray(), False
        stack, far = there
        if (far.packed, port) in stack._listeners:
            stack.unlisten(far, port)
        stack.listen(far, port, self._accept)
        self.connection = here[0].connect(here[1], (far.address, port))
        self.connection.on_change = self._pump

    def _pump(self) -> None:
        connection = self.connection
        while self.sent < len(self.data) and connection.error is None and connection.room:
            self.sent += connection.write(self.data[self.sent : self.sent + connection.room])
        if self.sent == len(self.data) and connection.is_open:
            connection.close()

    def _accept(self, connection: Any, peer: object) -> None:
        def come() -> None:
            if connection.readable:
                self.got += connection.read()
            if connection.at_end and not self.ended:
                self.ended = True
                connection.close()

        connection.on_change = come
        come()

    @property
    def done(self) -> bool:
        return self.ended and self.got == self.data


class Stream(StackStream):
    """Between two hosts of a lab, over plain TCP by T-virtual: legacy traffic."""

    def __init__(
        self, lab: Lab, data: bytes, a: int = 0, b: int = 1, vlan: int = TEAM_VLAN, port: int = 80
    ) -> None:
        ends = ((lab.hosts[n].stack, lab.hosts[n].interfaces[vlan]) for n in (a, b))
        super().__init__(*ends, data, port)
