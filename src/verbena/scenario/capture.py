"""The capture file: what each adapter sent, in the order of time, up to a number of packets for each adapter.

A packet stands in it once, as its sender made it, before any fault could happen to it: what was sent again stands there
again.  In real time each host writes its own file, and `merge` makes one of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from verbena.clock import Clock
from verbena.fabric.topology import PortId
from verbena.runtime.wires import Burst, Wire, WrappedWire, ip_packet
from verbena.wire import CapturedPacket, DecodeError, LinkType, PcapngWriter, read_capture
from verbena.wire.crc import VCRC_SIZE, vcrc
from verbena.wire.erf import wrap_erf


class Recorder:
    """A capture file being written.  packets: the most for each adapter; epoch_ns: what clocks' zero means."""

    def __init__(self, path: Path, packets: int, epoch_ns: int = 0) -> None:
        self._file: IO[bytes] = path.open("wb")
        self._writer = PcapngWriter(self._file)
        self._epoch_ns = epoch_ns
        self._packets = packets
        self._interfaces: dict[str, int] = {}
        self._room: dict[int, int] = {}
        self.on = True
        self.written = 0
        self.left_out = 0

    def tap(self, inner: Wire, clock: Clock, name: str) -> Tap:
        """A wire around another, whose outgoing packets are written."""
        if name not in self._interfaces:
            number = self._interfaces[name] = self._writer.add_interface(name, LinkType.RAW)
            self._room[number] = self._packets
        return Tap(inner, clock, self, self._interfaces[name])

    def take(self, burst: Burst, now: int, interface: int) -> None:
        """Write a burst's packets, as long as there is room for them."""
        if not self.on:
            return
        room = self._room[interface]
        for at, packet in enumerate(burst.packets() if room else ()):
            if at == room:
                break
            self._writer.write(ip_packet(packet), now + self._epoch_ns, interface=interface)
        fitting = min(room, len(burst))
        self._room[interface] -= fitting
        self.written += fitting
        self.left_out += len(burst) - fitting

    def take_native(self, port: PortId, packet: bytes, now: int) -> None:
        """Write a packet, given from LRH to ICRC, that left a port of a fabric."""
        name = str(port)
        if not self.on:
            return
        if name not in self._interfaces:
            number = self._interfaces[name] = self._writer.add_interface(name, LinkType.ERF)
            self._room[number] = self._packets
        interface = self._interfaces[name]
        if not self._room[interface]:
            self.left_out += 1
            return
        when = now + self._epoch_ns
        whole = packet + vcrc(packet).to_bytes(VCRC_SIZE, "big")
        self._writer.write(wrap_erf(whole, when), when, interface=interface)
        self._room[interface] -= 1
        self.written += 1

    def close(self) -> None:
        self._file.close()


class Tap(WrappedWire):
    """Shows a recorder what is sent."""

    def __init__(self, inner: Wire, clock: Clock, recorder: Recorder, interface: int) -> None:
        super().__init__(inner)
        self._clock = clock
        self._recorder = recorder
        self._interface = interface

    def send(self, burst: Burst) -> None:
        self._recorder.take(burst, self._clock.now(), self._interface)
        self.inner.send(burst)


def merge(parts: list[Path], into: Path) -> int:
    """Join capture files by time; returns the number of packets.  A damaged end of a part is left out."""

    def packets(path: Path) -> Iterator[CapturedPacket]:
        with path.open("rb") as file:
            try:
                yield from read_capture(file)
            except DecodeError:
                return

    count = 0
    interfaces: dict[str, int] = {}
    with into.open("wb") as file:
        writer = PcapngWriter(file)
        for packet in heapq.merge(*map(packets, parts), key=lambda packet: packet.time_ns):
            if packet.interface not in interfaces:
                kind = LinkType(packet.link_type)
                interfaces[packet.interface] = writer.add_interface(packet.interface, kind)
            writer.write(packet.data, packet.time_ns, interface=interfaces[packet.interface])
            count += 1
    return count
