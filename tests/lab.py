"""A laboratory in virtual time: adapters whose wires are recorded and disturbed, and the laws that must hold in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random
from typing import Any

import verbena
from verbena import Context, FaultInjector, Faults, QPType, VirtualNetwork, WorkRequest, WROpcode
from verbena.runtime.pairs import Side, connect_sides, make_side
from verbena.runtime.wires import Burst, Wire, WrappedWire, ip_packet
from verbena.transport.tables import COUNTERS
from verbena.wire.crc import roce_icrc
from verbena.wire.opcodes import OPCODES

RC, UC, UD = QPType.RC, QPType.UC, QPType.UD
SERVICES = (RC, UC, UD)
ETHERNET_SERVICES = (*SERVICES, QPType.RD)  # raw datagrams are for InfiniBand ports only
MTUS = (256, 512, 1024, 2048, 4096)
# What an adapter counts about work that is no packet of its own receive path.
NOT_RECEIVED = {"drop.cq_overflow", "drop.tx_no_route", "drop.tx_port_down", "drop.rx_socket"}
DROPS = tuple(name for name in COUNTERS if name.startswith("drop.") and name not in NOT_RECEIVED)


class Packet:
    """One packet that a wire saw: when, and the fields that tests ask for."""

    def __init__(self, when: int, burst: Burst) -> None:
        self.when = when
        self.data = burst.data
        self.burst = burst
        self.code = burst.data[0]
        self.name = OPCODES[self.code].name if self.code in OPCODES else f"{self.code:#x}"
        self.qpn = int.from_bytes(burst.data[5:8], "big")
        self.psn = int.from_bytes(burst.data[9:12], "big")
        self.asks = bool(burst.data[8] & 0x80)

    @property
    def syndrome(self) -> int:
        return self.data[12]

    @property
    def is_answer(self) -> bool:
        return 13 <= self.code & 0x1F <= 18

    def __repr__(self) -> str:
        return f"<{self.when} {self.name} qp {self.qpn:#x} psn {self.psn} {len(self.data)} bytes>"


class Recorder(WrappedWire):
    """Remembers what goes out; `gate`, if set, says of each packet what goes on instead (a list of packets)."""

    splits = True

    def __init__(self, inner: Wire, clock: Any) -> None:
        super().__init__(inner)
        self.clock = clock
        self.out: list[Packet] = []
        self.gate: Callable[[Packet], list[bytes]] | None = None
        self.digest = hashlib.sha256()

    def send(self, burst: Burst) -> None:
        for one in burst.packets():
            packet = Packet(self.clock.now(), one)
            self.digest.update(b"%d %d " % (packet.when, one.first_ident) + one.destination + one.data)
            self.out.append(packet)
            if self.gate is None:
                self.inner.send(one)
            else:
                for data in self.gate(packet):
                    self.inner.send(one.with_data(data))

    def requests(self) -> list[Packet]:
        return [p for p in self.out if not p.is_answer]

    def answers(self) -> list[Packet]:
        return [p for p in self.out if p.is_answer]


class Lab:
    """A virtual network; `taps` has a `Recorder` and `faults` a `FaultInjector` for each adapter, in order."""

    def __init__(
        self, seed: int = 0, faults: Faults | None = None, record: bool = True, **network: Any
    ) -> None:
        self.taps: list[Recorder] = []
        self.faults: list[FaultInjector] = []
        self.contexts: list[Context] = []
        self._disturb = faults
        self._record = record
        self.net = VirtualNetwork(seed, wrap=self._wrap, **network)

    def _wrap(self, wire: Wire, clock: Any, random: Random) -> Wire:
        if self._disturb is not None:
            wire = FaultInjector(wire, self._disturb, random, clock)
            self.faults.append(wire)
        if self._record:
            wire = Recorder(wire, clock)
            self.taps.append(wire)
        return wire

    def adapter(self, address: str = "", **options: Any) -> Context:
        ctx = self.net.open_device(address or f"10.0.0.{len(self.contexts) + 1}", **options)
        self.contexts.append(ctx)
        return ctx

    def pair(
        self,
        service: QPType = RC,
        *,
        mtu: int = 0,
        memory: int = 1 << 16,
        sizes: Any = None,
        **attributes: Any,
    ) -> tuple[Side, Side]:
        """Two connected ends; `attributes` are those of `QueuePair.connect`."""
        while len(self.contexts) < 2:
            self.adapter()
        ends = [make_side(ctx, service, memory, **(sizes or {})) for ctx in self.contexts[:2]]
        if service is not UD and mtu:
            attributes["mtu"] = mtu
        connect_sides(*ends, **attributes)
        return ends[0], ends[1]

    def settle(self) -> None:
        self.net.run_until_idle()

    def digest(self) -> str:
        """Of every packet sent, and when."""
        return " ".join(tap.digest.hexdigest() for tap in self.taps)

    def check_laws(self, injected: int = 0) -> None:
        """Nothing is lost in silence; to be called when nothing is on its way.

        injected: packets that a test fed to receivers by itself.
        """
        received = 0
        for ctx in self.contexts:
            check_received(ctx.counters())
            received += ctx.counters()["rx.packets"]
        sent = sum(ctx.counters()["tx.packets"] for ctx in self.contexts)
        for fault in self.faults:
            c = fault.counters
            assert c["sent"] + c["duplicated"] == c["passed"] + c["lost"] + fault.held, c
        doubled = sum(f.counters["duplicated"] for f in self.faults)
        lost = sum(f.counters["lost"] + f.held for f in self.faults)
        lost += sum(wire.unreachable for wire in self.net.wires.values())
        if all(tap.gate is None for tap in self.taps):
            assert sent + doubled + injected == received + lost


def check_received(c: dict[str, int]) -> None:
    """Every packet received is accounted for once, under one name."""
    known = c["rx.accepted"] + c["rx.duplicate"] + c["rx.out_of_sequence"] + c["rx.congestion_notification"]
    dropped = {name: c[name] for name in DROPS if c[name]}
    arrived = c["rx.packets"] + c["rx.replicated"]
    assert arrived == known + sum(dropped.values()), (arrived, known, dropped)


def drops(ctx: Context) -> dict[str, int]:
    """The drops that happened, by reason."""
    return {name: n for name, n in ctx.counters().items() if name.startswith("drop.") and n}


def drops_unexplained(counters: dict[str, int]) -> dict[str, int]:
    """The drops that a real, lossless wire does not explain.

    A machine that pauses lets timers expire; the request is repeated, and of its two answers one comes too late.
    """
    repeated = counters["timeouts"] or counters["tx.retransmitted"]
    return {
        name: count
        for name, count in counters.items()
        if name.startswith("drop.") and count and not (repeated and name == "drop.stale_response")
    }


def pattern(n: int, seed: int = 1) -> bytes:
    """Bytes in which every place looks different."""
    return Random(seed).randbytes(n)


def take(cq: verbena.CompletionQueue, n: int) -> list[verbena.CompletionQueueEntry]:
    """Exactly n entries, letting time pass for them."""
    found: list[verbena.CompletionQueueEntry] = []
    while len(found) < n:
        found += cq.wait(n=n - len(found))
    return found


def statuses(entries: list[verbena.CompletionQueueEntry]) -> list[tuple[int, str]]:
    return [(e.wr_id, e.status.name) for e in entries]


def write(
    side: Side, there: Side, n: int, wr_id: int = 0, at: int = 0, to: int = 0, **more: Any
) -> WorkRequest:
    """An RDMA WRITE of n bytes from one end's region into the other's."""
    return WorkRequest(
        wr_id,
        WROpcode.RDMA_WRITE,
        [side.mr.sge(at, n)],
        remote_addr=there.mr.addr + to,
        rkey=there.mr.rkey,
        **more,
    )


def read(
    side: Side, there: Side, n: int, wr_id: int = 0, at: int = 0, to: int = 0, **more: Any
) -> WorkRequest:
    """An RDMA READ of n bytes, from `to` of the other end's region to `at` of this one's."""
    return WorkRequest(
        wr_id,
        WROpcode.RDMA_READ,
        [side.mr.sge(at, n)],
        remote_addr=there.mr.addr + to,
        rkey=there.mr.rkey,
        **more,
    )


def fetch_add(side: Side, there: Side, add: int, wr_id: int = 0, at: int = 0, to: int = 0) -> WorkRequest:
    return WorkRequest(
        wr_id,
        WROpcode.ATOMIC_FETCH_AND_ADD,
        [side.mr.sge(at, 8)],
        remote_addr=there.mr.addr + to,
        rkey=there.mr.rkey,
        compare_add=add,
    )


def sealed(packet: bytes, source: bytes, destination: bytes, ident: int = 0, port: int = 4791) -> bytes:
    """A packet with the invariant CRC that it should have between these GIDs (the last four bytes are replaced)."""
    burst = Burst(packet, len(packet), source, destination, port, port, first_ident=ident)
    headers = ip_packet(burst)[: -len(packet)]
    return packet[:-4] + roce_icrc(headers, packet[:-4]).to_bytes(4, "big")


def sending(side: Side, n: int, wr_id: int = 0, **more: object) -> WorkRequest:
    """A SEND of the first n bytes of the side's region."""
    return WorkRequest(wr_id, WROpcode.SEND, [side.mr.sge(0, n)], **more)
