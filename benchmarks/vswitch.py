"""Benchmarks of the virtual switch: frames a second and losses between processes, and what losslessness saves.

Rate: a producer, the switch and a consumer are processes of their own; frames of 64 bytes go in batches of 256 through
two shared-memory cards.  Baseline: the same producer and consumer at the two ends of one bare ring of the same size.
Both in turn, several times; the ratio is that of the medians.

Loss: three producers at full speed, one with a shared-memory card and two with QEMU's stream socket; one consumer, with
a card for frames of 64 bytes and a stream socket for those of 1,470; every frame's number is checked.

Partition-aggregate: in virtual time; 16 workers answer 64 KB each into a 1 Gb/s port with 64 KB of buffer, cubic,
minimum retransmission timeout 200 ms, 20 queries a run, several runs.
"""

from __future__ import annotations

import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable
from random import Random
from typing import Any

from endpoint import row

from verbena.runtime.shm_port import VirtualCard, bare_pair, card_pair
from verbena.runtime.stream_port import LENGTH, StreamPort
from verbena.runtime.virtual_time import VirtualTime
from verbena.runtime.vswitch_loop import PortDriver, SwitchLoop
from verbena.vswitch.cluster import Cluster
from verbena.vswitch.config import Marks, PortConfig
from verbena.vswitch.workloads import PartitionAggregate, Times

BATCH = 256
RATE_FRAMES = 4_000_000
LOSS_FRAMES = 10_002_432  # 3 producers x 2 sizes x a whole number of batches
REPEATS = 5
RING = 1 << 21
MARKS = Marks(8192, 16384, 16640)
CONSUMER = 9


def _mac(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number))


def _batch(source: int, size: int) -> list[bytes]:
    """Frames numbered 0 to 255."""
    head = _mac(CONSUMER) + _mac(source) + b"\x08\x00"
    return [(head + bytes((number,))).ljust(size, b"\0") for number in range(BATCH)]


def _produce(card: VirtualCard, source: int, size: int, frames: int) -> None:
    batch = _batch(source, size)
    for _ in range(frames // BATCH):
        card.send_all(batch)


def _produce_stream(sock: socket.socket, source: int, size: int, frames: int) -> None:
    """The same, as QEMU sends them: each behind its length."""
    data = b"".join(LENGTH.pack(size) + each for each in _batch(source, size))
    for _ in range(frames // BATCH):
        sock.sendall(data)


def _consume(card: VirtualCard, frames: int, following: list[int] | None = None) -> int:
    """Read so many frames, or what there is; returns how many came.  following: check the order from each source."""
    count = 0
    while count < frames:
        found = card.receive_many(4096)
        if not found and not card.wait_frames(5):
            break
        count += len(found)
        if following is not None:
            for data in found:
                _check(data[11], data[14], following)
    return count


def _consume_stream(sock: socket.socket, frames: int, following: list[int]) -> int:
    """The same from a stream socket."""
    count = 0
    sock.settimeout(5)
    left = b""
    while count < frames:
        try:
            part = sock.recv(1 << 20)
        except TimeoutError:
            break
        data, at = left + part, 0
        while at + LENGTH.size <= len(data):
            end = at + LENGTH.size + LENGTH.unpack_from(data, at)[0]
            if end > len(data):
                break
            _check(data[at + LENGTH.size + 11], data[at + LENGTH.size + 14], following)
            count, at = count + 1, end
        left = data[at:]
    return count


def _check(source: int, number: int, following: list[int]) -> None:
    if number != following[source]:
        raise RuntimeError(f"source {source}: frame {number} instead of {following[source]}")
    following[source] = number + 1 & 0xFF


def _serve(ports: dict[int, PortDriver]) -> None:
    loop = SwitchLoop()
    for number, port in ports.items():
        loop.add(port, PortConfig(f"p{number}", (_mac(number),), input=MARKS, output=MARKS))
    loop.run()


def _stream_pair() -> tuple[StreamPort, socket.socket]:
    ours, theirs = socket.socketpair()
    return StreamPort(ours), theirs


def _through_switch(
    size: int, frames: int, streams: tuple[int, ...] = (), sources: int = 1
) -> tuple[float, int]:
    """(seconds, frames that came) for producers in processes of their own.

    streams: those of the producers 1, 2, ... and of the consumer that have a stream socket instead of a card.  The
    order is checked where there is more than one source.
    """
    fork = multiprocessing.get_context("fork")
    numbers = (*range(1, sources + 1), CONSUMER)
    pairs = {n: _stream_pair() if n in streams else card_pair(RING) for n in numbers}
    switch = fork.Process(target=_serve, args=({n: port for n, (port, _) in pairs.items()},), daemon=True)
    producers = [
        fork.Process(
            target=_produce_stream if n in streams else _produce,
            args=(pairs[n][1], n, size, frames // sources),
            daemon=True,
        )
        for n in range(1, sources + 1)
    ]
    switch.start()
    begun = time.perf_counter()
    for producer in producers:
        producer.start()
    end = pairs[CONSUMER][1]
    if isinstance(end, socket.socket):
        came = _consume_stream(end, frames, [0] * 16)
    else:
        came = _consume(end, frames, [0] * 16 if sources > 1 else None)
    taken = time.perf_counter() - begun
    for producer in producers:
        producer.join(30)
    switch.kill()
    switch.join()
    return taken, came


def _bare(size: int, frames: int) -> float:
    """Seconds for the same frames through one ring, from card to card."""
    fork = multiprocessing.get_context("fork")
    card, reader = bare_pair(RING)
    producer = fork.Process(target=_produce, args=(card, 1, size, frames), daemon=True)
    begun = time.perf_counter()
    producer.start()
    came = _consume(reader, frames)
    taken = time.perf_counter() - begun
    producer.join(30)
    if came != frames:
        raise RuntimeError(f"the bare ring lost {frames - came} frames")
    return taken


def shm_rate() -> dict[str, Any]:
    frames = RATE_FRAMES // BATCH * BATCH
    rates: list[float] = []
    bare: list[float] = []
    for _ in range(REPEATS):
        bare.append(frames / _bare(64, frames))
        taken, came = _through_switch(64, frames)
        rates.append(came / taken)
    return row(
        "vswitch.shm_rate", statistics.median(rates) / 1e6, "M frames/s", statistics.median(bare) / 1e6
    )


def loss() -> dict[str, Any]:
    """Frames lost, beside the number that was sent."""
    lost = 0
    for size, streams in ((64, (2, 3)), (1470, (2, 3, CONSUMER))):
        frames = LOSS_FRAMES // 2
        lost += frames - _through_switch(size, frames, streams, sources=3)[1]
    return row("vswitch.loss", lost, "frames", LOSS_FRAMES)


def _queries(lossless: bool, seed: int) -> Times:
    run = VirtualTime()
    workers = [f"worker{n}" for n in range(16)]
    rates = dict.fromkeys(workers, 10e9) | {"aggregator": 1e9}
    cluster = Cluster(run.clock, ["aggregator", *workers], rates, lossless=lossless, buffer_bytes=65_536)
    work = PartitionAggregate(
        cluster, Random(seed), "aggregator", workers, response_bytes=65_536, min_rto_ns=200_000_000
    )
    work.start()
    run.run_until_idle()
    return work.times


def pa_speedup() -> list[dict[str, Any]]:
    means = {
        lossless: [Times.mean(_queries(lossless, seed).queries_ns) / 1e6 for seed in range(REPEATS)]
        for lossless in (True, False)
    }
    lossy, lossless = statistics.mean(means[False]), statistics.mean(means[True])
    return [
        row("vswitch.pa_speedup", lossy / lossless, "x, minimum RTO 200 ms", 1.0),
        row("vswitch.pa_lossy", lossy, "ms a query", None),
        row("vswitch.pa_lossless", lossless, "ms a query", None),
    ]


BENCHMARKS: dict[str, Callable[[], Any]] = {"shm_rate": shm_rate, "loss": loss, "pa_speedup": pa_speedup}
