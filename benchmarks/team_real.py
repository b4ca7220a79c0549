"""Programs that the benchmarks of teams run inside network namespaces.

``relay INTERFACE ADDRESS``: a TAP device and a packet socket, joined without a team.  ``sink ADDRESS``: takes TCP
streams, and answers datagrams.  ``stream ADDRESS SECONDS``: prints megabits a second.  ``probe ADDRESS SECONDS``: sends
1,000 datagrams a second, and prints the longest time without an answer in the last second and before, in milliseconds;
its time begins with the first answer.
"""

from __future__ import annotations

import itertools
import socket
import sys
import threading
import time

from verbena.runtime.real_loop import RealLoop
from verbena.runtime.tap import Tap
from verbena.runtime.team_ports import LinkWatch, PacketPort
from verbena.team.frames import OffloadFrame
from verbena.wire.offload import PLAIN

PORT = 9000
LAST = 1.2


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


def probe(address: str, seconds: float) -> None:
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
    pairs = list(itertools.pairwise([*heard, time.perf_counter()]))
    quiet = max(b - a for a, b in pairs if b - begun < seconds - LAST)
    rest = max(b - a for a, b in pairs if b - begun >= seconds - LAST)
    print(1e3 * rest, 1e3 * quiet, flush=True)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "relay":
        relay(*arguments)
    elif what == "sink":
        sink(*arguments)
    else:
        {"stream": stream, "probe": probe}[what](arguments[0], float(arguments[1]))
