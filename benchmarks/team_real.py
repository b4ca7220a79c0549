"""Programs that the benchmarks of teams run inside network namespaces.

``relay INTERFACE ADDRESS``: a TAP device and a packet socket, joined without a team.  ``sink ADDRESS``: takes TCP
streams, and answers datagrams.  ``stream ADDRESS SECONDS``: prints megabits a second.  ``probe ADDRESS SECONDS``: sends
1,000 datagrams a second for so long, from the first answer on, and prints in milliseconds: the longest time without an
answer around the moment at which the kernel told of a link that went down, and, as the median of several, in spans as
long before it; and how long after that moment the first answer came.
"""

from __future__ import annotations

import itertools
import socket
import statistics
import sys
import threading
import time

from verbena.runtime.real_loop import RealLoop
from verbena.runtime.tap import Tap
from verbena.runtime.team_ports import LinkWatch, PacketPort
from verbena.team.frames import OffloadFrame
from verbena.wire.offload import PLAIN

PORT = 9000
BEFORE, AFTER = 0.02, 0.05
"""Seconds around the event that count as the fail-over: the kernel drops frames before it tells, and whatever the team
does, it does soon."""


def relay(interface: str, address: str) -> None:
    loop = RealLoop(urgent=True)  # as a team has it
    port = PacketPort(loop, LinkWatch(loop), interface)
    tap = Tap("bare", mac=bytes((2,)) + port.mac[1:], addresses=[address])

    def down() -> None:
        for _ in range(64):
            read = tap.read()
            if read is None:
                return
            frame, header = bytes(read[0]), read[1]
            port.transmit(frame if header == PLAIN else OffloadFrame(frame, header))

    port.attach(lambda frame: tap.write(frame, getattr(frame, "header", PLAIN)), lambda up: None)
    loop.watch(tap.fileno(), down)
    print("ready", flush=True)
    threading.Event().wait()


def sink(address: str) -> None:
    server = socket.create_server((address, PORT))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((address, PORT))

    def answer() -> None:
        while True:
            data, peer = datagrams.recvfrom(2048)
            datagrams.sendto(data, peer)

    threading.Thread(target=answer, daemon=True).start()
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        total = 0
        begun = time.perf_counter()
        while data := connection.recv(1 << 20):
            total += len(data)
        connection.close()
        print(8e-6 * total / (time.perf_counter() - begun), flush=True)


def stream(address: str, seconds: float) -> None:
    connection = socket.create_connection((address, PORT))
    data = bytes(1 << 18)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        connection.sendall(data)
    connection.close()


def _longest(heard: list[float], since: float, until: float) -> float:
    """The longest time without an answer that has any part in a span of time."""
    pairs = itertools.pairwise(heard)
    return max((b - a for a, b in pairs if b > since and a < until), default=until - since)


def _watch(downs: list[float]) -> None:
    """Note when a link of this namespace goes down."""
    loop = RealLoop()
    watch = LinkWatch(loop)
    for index, _ in socket.if_nameindex():
        watch.listeners[index] = lambda up: None if up else downs.append(time.perf_counter())


def probe(address: str, seconds: float) -> None:
    downs: list[float] = []
    _watch(downs)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((address, PORT))
    sock.settimeout(0.0005)
    heard: list[float] = []
    begun = following = time.perf_counter()
    while not heard or time.perf_counter() - begun < seconds:
        if time.perf_counter() >= following:
            following += 0.001
            try:
                sock.send(b"?")
            except OSError:
                continue
        try:
            sock.recv(64)
        except OSError:
            continue
        heard.append(time.perf_counter())
        if len(heard) == 1:
            begun = heard[0]
            print("ready", flush=True)
    down = downs[0]
    outage = _longest([*heard, time.perf_counter()], down - BEFORE, down + AFTER)
    span, quiet, at = BEFORE + AFTER, [], begun
    while at + span < down - BEFORE:
        quiet.append(_longest(heard, at, at + span))
        at += span
    first = min(at for at in heard if at > down) - down
    print(1e3 * outage, 1e3 * statistics.median(quiet), 1e3 * first, flush=True)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "relay":
        relay(*arguments)
    elif what == "sink":
        sink(*arguments)
    else:
        {"stream": stream, "probe": probe}[what](arguments[0], float(arguments[1]))
