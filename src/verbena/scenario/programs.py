"""Which roles each kind of workload has, on which adapters, and who judges it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from verbena.scenario import datagrams, ring_buffer, workloads
from verbena.scenario.fabric_schema import Traffic
from verbena.scenario.memory_schema import RingBuffer
from verbena.scenario.outcome import Outcome
from verbena.scenario.part import Part
from verbena.scenario.schema import AtomicCounter, FileTransfer, PingPong, UdBurst, Workload
from verbena.scenario.workloads import Seen


@dataclass(frozen=True, slots=True)
class Role:
    """A part in a workload: its name, its adapter, its program."""

    name: str
    adapter: str
    program: Callable[[Part], Awaitable[Seen]]


Played = FileTransfer | PingPong | AtomicCounter | UdBurst | RingBuffer


def roles(spec: Workload) -> list[Role]:
    """The roles of a workload."""
    match spec:
        case FileTransfer():
            return [
                Role("sink", spec.to, lambda part: workloads.file_sink(part, spec)),
                Role("source", spec.source, lambda part: workloads.file_source(part, spec)),
            ]
        case PingPong():
            return [
                Role("server", spec.server, lambda part: workloads.pong(part, spec)),
                Role("client", spec.client, lambda part: workloads.ping(part, spec)),
            ]
        case AtomicCounter():
            server = Role("server", spec.server, lambda part: workloads.counter_server(part, spec))
            return [server, *(_client(spec, at) for at in range(len(spec.clients)))]
        case UdBurst():
            return [
                Role("sink", spec.to, lambda part: datagrams.burst_sink(part, spec)),
                Role("source", spec.source, lambda part: datagrams.burst_source(part, spec)),
            ]
        case RingBuffer():
            consumer = Role("consumer", spec.consumer, lambda part: ring_buffer.consumer(part, spec))
            return [consumer, *(_producer(spec, at) for at in range(len(spec.producers)))]
        case Traffic():
            return []  # its packets have no bytes, and come from the fabric's own sources: see `simulation`


def _client(spec: AtomicCounter, at: int) -> Role:
    return Role(f"client {at}", spec.clients[at], lambda part: workloads.counter_client(part, spec, at))


def _producer(spec: RingBuffer, at: int) -> Role:
    return Role(f"producer {at}", spec.producers[at], lambda part: ring_buffer.producer(part, spec, at))


def judge(spec: Played, seen: dict[str, Seen]) -> Outcome:
    """How a workload ended, from what its roles saw."""
    match spec:
        case FileTransfer():
            return workloads.judge_file(spec, seen)
        case PingPong():
            return workloads.judge_ping(spec, seen)
        case AtomicCounter():
            return workloads.judge_counter(spec, seen)
        case UdBurst():
            return datagrams.judge_burst(spec, seen)
        case RingBuffer():
            return ring_buffer.judge(spec, seen)
