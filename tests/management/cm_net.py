"""Connection managers on a toy network, for the tests beside this file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from random import Random
from typing import Any

from verbena.adapter.gid import Gid
from verbena.management.communication import Communication, Event
from verbena.management.connection_manager import ConnectionManager
from verbena.management.negotiation import Offer
from verbena.runtime.virtual_time import VirtualClock
from verbena.wire import CmMessage, IpCmHeader, Mad, cm_message, service_id

SERVICE = service_id(7174)
A, B, C = (Gid.from_ip(f"10.77.0.{last}").raw for last in (2, 3, 4))
DELAY_NS = 1_000


class Net:
    """Managers by GID.  `filter` decides what becomes of a message: how often it arrives, and how much later."""

    def __init__(self, seed: int = 0) -> None:
        self.clock = VirtualClock()
        self.random = Random(seed)
        self.managers: dict[bytes, ConnectionManager] = {}
        self.sent: list[tuple[bytes, CmMessage, int]] = []
        self.filter: Callable[[CmMessage], list[int]] = lambda message: [0]

    def add(self, gid: bytes, **more: Any) -> ConnectionManager:
        made = self.managers[gid] = ConnectionManager(
            gid,
            int.from_bytes(gid[-4:], "big"),
            more.pop("mtu", 4096),
            clock=self.clock,
            random=Random(self.random.random()),
            send=lambda remote, data: self._send(gid, remote, data),
            lock=contextlib.nullcontext(),
            **more,
        )
        return made

    def _send(self, source: bytes, remote: bytes, data: bytes) -> None:
        mad = Mad.unpack(data)
        message = cm_message(mad)
        self.sent.append((source, message, mad.transaction_id))
        for later in self.filter(message):
            when = self.clock.now() + DELAY_NS + later
            self.clock.call_at(when, lambda: self._arrive(source, remote, data))

    def _arrive(self, source: bytes, remote: bytes, data: bytes) -> None:
        if manager := self.managers.get(remote):
            manager.receive(source, data)

    def names(self, source: bytes | None = None) -> list[str]:
        return [type(message).__name__ for who, message, _ in self.sent if source in (None, who)]

    def run(self, duration_ns: int | None = None) -> None:
        """Until nothing happens any more, or for that long."""
        end = None if duration_ns is None else self.clock.now() + duration_ns
        while (at := self.clock.next_time()) is not None and (end is None or at <= end):
            self.clock.step()
        if end is not None:
            self.clock.advance(end)


class Program:
    """What stands above a manager: remembers what it was told, and does what a program must."""

    def __init__(self, manager: ConnectionManager, accepts: bool = True, qpn: int = 0x20) -> None:
        self.manager = manager
        self.accepts = accepts
        self.offer = Offer(qpn=qpn, psn=100 + qpn)
        self.requests: list[Communication] = []
        self.events: list[tuple[Communication, Event]] = []

    def on_request(self, comm: Communication) -> None:
        self.requests.append(comm)
        if self.accepts:
            self.manager.accept(comm, self.offer, self.on_event, b"welcome")

    def on_event(self, comm: Communication, event: Event) -> None:
        self.events.append((comm, event))
        if event is Event.REPLIED:
            self.manager.ready(comm)
        elif event is Event.DISCONNECTED:
            self.manager.release(comm)

    @property
    def kinds(self) -> list[Event]:
        return [event for _, event in self.events]

    def connect(self, remote: bytes, service: int = SERVICE, **more: Any) -> Communication:
        source, destination = (str(Gid(gid).ip) for gid in (self.manager.gid, remote))
        header = IpCmHeader.of(source, destination, 40_000).pack()
        offer = more.pop("offer", self.offer)
        return self.manager.connect(remote, service, offer, self.on_event, header + b"hello")


def pair(seed: int = 0, *, accepts: bool = True, backlog: int = 16) -> tuple[Net, Program, Program]:
    """A client at A and a server at B that listens."""
    net = Net(seed)
    client, server = Program(net.add(A)), Program(net.add(B), accepts, qpn=0x30)
    server.manager.listen(SERVICE, backlog, server.on_request)
    return net, client, server
