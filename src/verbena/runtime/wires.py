"""Wires: whatever carries bursts of packets between adapters, and wires that wrap wires.

A burst is what an adapter hands out and takes in at once: packets of one size (the last may be shorter) to one
destination.  Its packets are RoCEv2's UDP payloads, from the base transport header to the invariant CRC.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import IO

from verbena.clock import Clock
from verbena.errors import InvalidAttributeError
from verbena.wire import UDP, IPv4, IPv6, LinkType, PcapngWriter
from verbena.wire.opcodes import OPCODES

MAPPED = b"\0" * 10 + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Burst:
    """Packets on their way.

    data: the packets, one behind the other, each `segment` bytes but the last.  source, destination: GIDs of 16
    bytes.  port: UDP destination port; source_port the sender's.  first_ident: IPv4 identification of the first
    packet; the others count up from it.
    """

    data: bytes
    segment: int
    source: bytes
    destination: bytes
    port: int = 4791
    source_port: int = 4791
    traffic_class: int = 0
    hop_limit: int = 64
    first_ident: int = 0

    def __len__(self) -> int:
        """Packets in it; a datagram without a byte is one, too."""
        return max(1, -(-len(self.data) // max(1, self.segment)))

    def packets(self) -> Iterator[Burst]:
        """Each packet as a burst of its own."""
        for i, at in enumerate(range(0, max(1, len(self.data)), max(1, self.segment))):
            part = self.data[at : at + self.segment]
            yield replace(self, data=part, segment=len(part), first_ident=self.first_ident + i)

    def with_data(self, data: bytes) -> Burst:
        """The same with another packet in it."""
        return replace(self, data=data, segment=len(data))


Receiver = Callable[[Burst], None]


class Wire(ABC):
    """What adapters are attached to.

    mtu: largest RoCE path MTU that fits, in bytes.  rate_bps: bits a second; 0 = as fast as it goes.
    """

    mtu: int = 4096
    rate_bps: float = 0.0
    splits = False  # does it handle packets one by one?

    def __init__(self) -> None:
        self.receiver: Receiver = lambda burst: None

    def set_receiver(self, receiver: Receiver) -> None:
        """Who gets the bursts that come in."""
        self.receiver = receiver

    @abstractmethod
    def send(self, burst: Burst) -> None:
        """Send a burst; never waits."""

    def close(self) -> None:  # noqa: B027 - a wire that holds nothing has nothing to close
        """No more bursts."""


class WrappedWire(Wire):
    """A wire around another one; sees what goes out and what comes in."""

    def __init__(self, inner: Wire) -> None:
        super().__init__()
        self.inner = inner
        self.mtu = inner.mtu
        self.rate_bps = inner.rate_bps
        self.splits = self.splits or inner.splits
        inner.set_receiver(self._arrived)

    def send(self, burst: Burst) -> None:
        self.inner.send(burst)

    def _arrived(self, burst: Burst) -> None:
        self.receiver(burst)

    def close(self) -> None:
        self.inner.close()


class PcapTap(WrappedWire):
    """Writes every packet, with the IP and UDP headers that it travels in, to a pcapng file (raw IP).

    file: opened for writing in binary.  Both directions are written by default.
    """

    def __init__(
        self,
        inner: Wire,
        file: IO[bytes],
        clock: Clock,
        *,
        name: str = "verbena",
        incoming: bool = True,
        epoch_ns: int = 0,
    ) -> None:
        super().__init__(inner)
        self._file = file
        self._writer = PcapngWriter(file)
        self._interface = self._writer.add_interface(name, LinkType.RAW)
        self._clock = clock
        self._incoming = incoming
        self._epoch_ns = epoch_ns
        self.written = 0

    def _write(self, burst: Burst) -> None:
        now = self._clock.now() + self._epoch_ns
        for packet in burst.packets():
            self._writer.write(ip_packet(packet), now, interface=self._interface)
            self.written += 1

    def send(self, burst: Burst) -> None:
        self._write(burst)
        self.inner.send(burst)

    def _arrived(self, burst: Burst) -> None:
        if self._incoming:
            self._write(burst)
        self.receiver(burst)

    def close(self) -> None:
        self.inner.close()
        self._file.flush()


def ip_packet(burst: Burst) -> bytes:
    """A burst of one packet with its UDP and IP headers, as it is on a network."""
    udp = UDP(burst.source_port, burst.port, 8 + len(burst.data), 0)
    if burst.source[:12] == MAPPED:
        ip4 = IPv4(
            src=burst.source[12:],
            dst=burst.destination[12:],
            tos=burst.traffic_class,
            total_length=28 + len(burst.data),
            identification=burst.first_ident & 0xFFFF,
            ttl=burst.hop_limit,
        )
        return ip4.pack() + udp.pack() + burst.data
    ip6 = IPv6(src=burst.source, dst=burst.destination, payload_length=8 + len(burst.data))
    return ip6.pack() + udp.pack() + burst.data


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities, from 0 to 1, of what may happen to a packet; delay_ns is added at most when it is delayed."""

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    corruption: float = 0.0
    delay: float = 0.0
    delay_ns: int = 1_000_000

    def __post_init__(self) -> None:
        for name in ("loss", "duplication", "reordering", "corruption", "delay"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise InvalidAttributeError(f"{name} = {value}: a probability from 0 to 1")
        if self.delay_ns < 0:
            raise InvalidAttributeError(f"delay_ns = {self.delay_ns}: 0 or more")


class FaultInjector(WrappedWire):
    """Loses, doubles, reorders, damages and delays packets, in the outgoing direction.

    What it does follows from `random` alone, so that a run can be repeated.  `counters` tells what it did;
    ``sent + duplicated == passed + lost + held``.
    """

    splits = True

    def __init__(self, inner: Wire, faults: Faults, random: Random, clock: Clock) -> None:
        super().__init__(inner)
        self.faults = faults
        self._random = random
        self._clock = clock
        self._held: Burst | None = None
        self.counters = dict.fromkeys(
            ("sent", "passed", "lost", "duplicated", "reordered", "damaged", "delayed"), 0
        )

    @property
    def held(self) -> int:
        """Packets kept back for reordering (0 or 1)."""
        return 0 if self._held is None else 1

    def send(self, burst: Burst) -> None:
        for packet in burst.packets():
            self.counters["sent"] += 1
            self._one(packet)

    def _one(self, packet: Burst) -> None:
        chance, faults = self._random.random, self.faults
        if chance() < faults.loss:
            self.counters["lost"] += 1
            return
        if chance() < faults.corruption:
            self.counters["damaged"] += 1
            damaged = bytearray(packet.data)
            damaged[self._random.randrange(len(damaged))] ^= 1 << self._random.randrange(8)
            packet = packet.with_data(bytes(damaged))
        if chance() < faults.duplication:
            self.counters["duplicated"] += 1
            self._pass(packet)
        if self._held is None and chance() < faults.reordering:
            self.counters["reordered"] += 1
            self._held = packet
            self._clock.call_at(self._clock.now() + faults.delay_ns, self._release)
            return
        self._pass(packet)
        self._release()

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._pass(held)

    def _pass(self, packet: Burst) -> None:
        if self._random.random() < self.faults.delay:
            self.counters["delayed"] += 1
            wait = self._random.randrange(self.faults.delay_ns + 1)
            self._clock.call_at(self._clock.now() + wait, lambda: self._deliver(packet))
        else:
            self._deliver(packet)

    def _deliver(self, packet: Burst) -> None:
        self.counters["passed"] += 1
        self.inner.send(packet)


class Tracer(WrappedWire):
    """Hands a line of text for each packet to `write`: time, direction, addresses, operation, queue pair, number."""

    def __init__(self, inner: Wire, write: Callable[[str], object], clock: Clock) -> None:
        super().__init__(inner)
        self._write = write
        self._clock = clock

    def _line(self, direction: str, burst: Burst) -> None:
        for packet in burst.packets():
            data = packet.data
            info = OPCODES.get(data[0]) if data else None
            name = info.name if info else f"opcode {data[0]:#04x}" if data else "empty"
            where = ""
            if len(data) >= 12:
                where = f" qp {int.from_bytes(data[5:8], 'big'):#x} psn {int.from_bytes(data[9:12], 'big')}"
            self._write(f"{self._clock.now() / 1e9:.9f} {direction} {name}{where} {len(data)} bytes")

    def send(self, burst: Burst) -> None:
        self._line("->", burst)
        self.inner.send(burst)

    def _arrived(self, burst: Burst) -> None:
        self._line("<-", burst)
        self.receiver(burst)
