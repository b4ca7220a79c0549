"""A whole fabric in virtual time, with programs on its hosts, for the acceptance tests; and the laws it must keep."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lab import check_received, pattern
from verbena import Context, QPType, RecvRequest, WorkRequest, WROpcode, _pure
from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.fabric.assembly import FabricOptions
from verbena.fabric.generators import generate_from
from verbena.fabric.kinds import TraceKind
from verbena.fabric.topology import Link, PortId, Topology
from verbena.management.subnet_manager.config import SubnetManagerConfig
from verbena.runtime.fabric import Fabric
from verbena.runtime.pairs import Side, make_side
from verbena.wire import NativePacket, decode_infiniband

FAST = _pure.compiled()
"""Uncompiled, everything is some fifty times slower: the largest tests are smaller then."""
RC, UC, UD = QPType.RC, QPType.UC, QPType.UD
MS = 1_000_000
SECOND = 1000 * MS
QUIET = 10 * SECOND  # no sweep of a subnet manager begins before


@dataclass(frozen=True, slots=True)
class Hop:
    """A packet (or, with `sequence`, a flit) at a port."""

    time_ps: int
    port: PortId
    kind: TraceKind
    lane: int
    sequence: int
    size: int
    packet: int
    detail: int


class World(Fabric):
    """A `Fabric` that keeps its adapters, to examine them at the end."""

    def __init__(self, topology: Topology | str, **options: Any) -> None:
        made = generate_from(topology) if isinstance(topology, str) else topology
        self.adapters: dict[str, list[ChannelAdapter]] = defaultdict(list)
        self.managed: Counter[str] = Counter()
        super().__init__(made, **options)

    def open_device(self, name: str, **options: Any) -> Context:
        context = super().open_device(name, **options)
        self.adapters[name].append(context._checked())
        self._count_management(name)
        return context

    def _count_management(self, name: str) -> None:
        """Count what the node's own services take, which its adapter never sees."""
        services = self.nodes[name].services
        receive = services.receive

        def counted(packet: bytes, port: int) -> bool:
            taken = receive(packet, port)
            self.managed[name] += taken
            return taken

        leftover = services.leftover

        def left(port: int, packet: bytes) -> None:
            self.managed[name] -= 1  # the adapter counts one that did not come in by a link
            leftover(port, packet)

        services.receive = counted  # type: ignore[method-assign]
        services.leftover = left
        self._delivered_before = getattr(self, "_delivered_before", {})
        self._delivered_before.setdefault(name, self._data_received(name))

    def _data_received(self, name: str) -> int:
        """Packets on data lanes that the core has handed to the node."""
        received = 0
        for number in range(1, self.topology.nodes[name].ports + 1):
            counters = self.core.port_counters(self.assembly.ports[PortId(name, number)])
            received -= counters["drop_vcrc"]
            received += sum(c["rcv_packets"] for lane, c in counters["lanes"].items() if lane != 15)
        return received

    # --- programs -----------------------------------------------------------------------------------------

    def side(
        self, name: str, service: QPType = RC, memory: int = 1 << 16, *, device: Any = None, **sizes: Any
    ) -> Side:
        """A queue pair, its completion queue and a region on a host, which is opened if it is not yet."""
        return make_side(self.device(name, **(device or {})), service, memory, **sizes)

    def device(self, name: str, **options: Any) -> Context:
        if name not in self._drivers:
            self._contexts = getattr(self, "_contexts", {})
            self._contexts[name] = self.open_device(name, **options)
        return self._contexts[name]

    def pair(
        self,
        a: str,
        b: str,
        service: QPType = RC,
        memory: int = 1 << 16,
        *,
        device: Any = None,
        back: Any = None,
        **attributes: Any,
    ) -> tuple[Side, Side]:
        """Connected ends on two hosts.  attributes: as of `QueuePair.connect`; back: those of b where they differ."""
        ends = self.side(a, service, memory, device=device), self.side(b, service, memory, device=device)
        self.connect(*ends, back=back, **attributes)
        return ends

    @staticmethod
    def connect(a: Side, b: Side, *, back: Any = None, **attributes: Any) -> None:
        if a.qp.type is UD:
            a.qp.activate()
            b.qp.activate()
            return
        there, here = b.qp.endpoint, a.qp.endpoint
        a.qp.connect(there, **attributes)
        b.qp.connect(here, **{**attributes, **(back or {})})

    def settle(self, duration_ns: int = 20 * MS) -> None:
        """Let what is on its way arrive."""
        self.run_for(duration_ns)

    # --- traces -------------------------------------------------------------------------------------------

    def trace(self, kinds: TraceKind = TraceKind.SEND) -> None:
        self.core.take_trace()
        self.core.trace_on(int(kinds))

    def hops(self, *, data: bool = True) -> list[Hop]:
        """What was traced since the last call; data: without lane 15."""
        found = []
        for time, port, kind, lane, sequence, size, packet, detail in self.core.take_trace():
            hop = Hop(time, self.assembly.ids[port], TraceKind(kind), lane, sequence, size, packet, detail)
            if lane != 15 or not data:
                found.append(hop)
        return found

    def ways(self, hops: Iterable[Hop] | None = None) -> dict[int, list[PortId]]:
        """The ports by which each packet left, in order."""
        found: dict[int, list[PortId]] = defaultdict(list)
        for hop in self.hops() if hops is None else hops:
            if hop.kind is TraceKind.SEND:
                found[hop.packet].append(hop.port)
        return dict(found)

    # --- counters -----------------------------------------------------------------------------------------

    def counter(self, name: str) -> dict[str, int]:
        """A counter of all ports where it is not 0, by the port's name."""
        found = {}
        for number, port in self.assembly.ids.items():
            if value := self.core.port_counters(number)[name]:
                found[str(port)] = value
        return found

    def dropped(self) -> dict[str, int]:
        """Every packet that any element of the fabric dropped: by port and reason."""
        found = {}
        for number, port in self.assembly.ids.items():
            for name, value in self.core.port_counters(number).items():
                if name.startswith("drop_") and value:
                    found[f"{port} {name}"] = value
        return found

    def check_laws(self) -> None:
        """Nothing is lost in silence: not in the fabric, not in the adapters, and no credit was overdrawn."""
        s = self.core.statistics()
        came = s["injected"] + s["replicated"] + s["imported"]
        assert came == s["delivered"] + s["dropped"] + s["inside"] + s["exported"], s
        assert s["inside"] >= 0
        assert sum(self.dropped().values()) == s["dropped"], (self.dropped(), s)
        assert not self.counter("sent_without_credit")
        assert not self.counter("buffer_overrun")
        for name, adapters in self.adapters.items():
            taken = self.managed[name]
            for adapter in adapters:
                c = adapter.engine.read_counters()
                check_received(c)
                taken += c["rx.packets"] - c["looped.packets"]
            if len(adapters) == 1 and name in self._drivers:
                received = self._data_received(name) - self._delivered_before[name]
                assert taken == received or (s["inside"] and taken < received), (name, taken, received)


def star(hosts: int, **options: Any) -> World:
    return World(f"star hosts={hosts}", **options)


def write(a: Side, b: Side, n: int, *, seed: int = 1, wr_id: int = 0, at: int = 0) -> bytes:
    """Begin an RDMA WRITE of n bytes that look different everywhere, to the same place there; returns the bytes."""
    data = pattern(n, seed)
    a.mr.buf[at : at + n] = data
    request = WorkRequest(wr_id, WROpcode.RDMA_WRITE, [a.mr.sge(at, n)])
    request.remote_addr, request.rkey = b.mr.addr + at, b.mr.rkey
    a.qp.post_send(request)
    return data


def finish(side: Side, n: int = 1, timeout: float = 10) -> list[str]:
    """The statuses of the next n completions."""
    found: list[str] = []
    while len(found) < n:
        entries = side.cq.wait(timeout, n - len(found))
        assert entries, f"{n - len(found)} of {n} completions are missing"
        found += [entry.status.name for entry in entries]
    return found


def exchange(a: Side, b: Side, text: bytes = b"a message", timeout: float = 1) -> None:
    """A message from one end to the other, and its arrival."""
    b.qp.post_recv(RecvRequest(7, [b.mr.sge(0, 256)]))
    a.mr.buf[: len(text)] = text
    a.qp.post_send(WorkRequest(1, WROpcode.SEND, [a.mr.sge(0, len(text))]))
    assert finish(a, 1, timeout) == ["SUCCESS"]
    (got,) = b.cq.wait(timeout)
    assert got.ok
    assert bytes(b.mr.buf[: got.byte_len]) == text


def decoded(packet: bytes) -> NativePacket:
    found = decode_infiniband(packet)
    assert isinstance(found, NativePacket)
    assert found.icrc_ok
    return found


__all__ = [
    "FAST",
    "MS",
    "QUIET",
    "RC",
    "SECOND",
    "UC",
    "UD",
    "FabricOptions",
    "Hop",
    "Link",
    "PortId",
    "SubnetManagerConfig",
    "TraceKind",
    "World",
    "decoded",
    "exchange",
    "finish",
    "star",
    "write",
]
