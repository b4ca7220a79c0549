"""A part of a workload: what one role has in its hands, where it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from verbena.memory.process import Process
from verbena.scenario.board import Board, Value, endpoint_from_data, endpoint_to_data
from verbena.scenario.host_memory import ScenarioMemory
from verbena.scenario.schema import FabricFile
from verbena.transport.kinds import QPState, QPType
from verbena.verbs.completion import CompletionQueue
from verbena.verbs.context import Context
from verbena.verbs.memory import ProtectionDomain
from verbena.verbs.queue_pair import ALL_REMOTE, QueuePair

# In real time a program first waits this long itself, before it lets asyncio wake it: that takes several threads.
BLOCK_S = 0.001
# Exponents of 4.096 us (IBA vol. 1, 9.7.6.1.3): 67 ms where packets get lost, 0.5 s where only a busy machine is late.
TIMEOUT_WITH_FAULTS = 14
TIMEOUT = 17

Progress = Callable[[str, int, int, str], None]
Faults = Callable[[], dict[str, int]]


@dataclass(slots=True)
class Side:
    """A queue pair with what belongs to it."""

    pd: ProtectionDomain
    cq: CompletionQueue
    qp: QueuePair


@dataclass(slots=True)
class Part:
    """What one role of a workload works with.

    ctx: its adapter.  progress: tell how far it is (phase, done, total, unit).  faults: what the fault injector at this
    adapter's wire did so far.  data: the file to transfer, or None.  memory: the host's, if it has a modelled one.
    look: note what the host's tables say now.  settle_s: after that time nothing old is on its way any more.
    """

    ctx: Context
    fabric: FabricFile
    topic: str
    board: Board
    progress: Progress
    faults: Faults
    real: bool
    data: bytes | memoryview | None = None
    memory: ScenarioMemory | None = None
    look: Callable[[], None] = lambda: None

    def write(self, topic: str, value: Value) -> None:
        self.board.write(f"{self.topic}/{topic}", value)

    def has(self, topic: str) -> bool:
        return self.board.has(f"{self.topic}/{topic}")

    async def read(self, topic: str) -> Value:
        return await self.board.read(f"{self.topic}/{topic}")

    def now(self) -> int:
        return self.ctx.driver.clock.now()

    @property
    def host_memory(self) -> ScenarioMemory:
        """The host's modelled memory, which it has."""
        assert self.memory is not None
        return self.memory

    def process(self, name: str) -> Process:
        """A process of the host."""
        return self.host_memory.process(name)

    @property
    def settle_s(self) -> float:
        wire = self.fabric.wire
        late = 2 * wire.faults.delay_ns if wire.faults.any else 0
        return (0.02 * 1e9 if self.real else 10 * wire.delay_ns + late + 1_000_000) / 1e9 + late / 1e9

    async def completions(self, cq: CompletionQueue, n: int = 64) -> list[Any]:
        """At least one completion entry; raises `CompletionError` for one that failed."""
        found = cq.wait(BLOCK_S, n) if self.real else cq.poll(n)
        if not found:
            found = await cq.completions(n)
        for entry in found:
            entry.raise_for_status()
        return found

    async def completions_within(self, cq: CompletionQueue, seconds: float) -> list[Any]:
        """The same, but none when that much time has passed."""
        try:
            return await asyncio.wait_for(self.completions(cq), seconds)
        except TimeoutError:
            return []

    @asynccontextmanager
    async def side(
        self, qp_type: QPType, depth: int, *, process: Process | None = None, **sizes: Any
    ) -> AsyncIterator[Side]:
        """A queue pair of its own, closed at the end; a connected one takes receive requests at once.

        process: whose it is, on a host with modelled memory.
        """
        pd = self.ctx.alloc_pd() if process is None else self.ctx.alloc_pd(process)
        cq = self.ctx.create_cq(2 * depth + 64)
        try:
            qp = pd.create_qp(qp_type, cq, max_send_wr=depth, max_recv_wr=depth, **sizes)
            if qp_type is not QPType.UD:
                qp.modify(QPState.INIT, port_num=1, pkey_index=0, access_flags=ALL_REMOTE)
            yield Side(pd, cq, qp)
        finally:
            pd.__exit__()  # with all that is in it
            cq.close()

    async def connect(self, side: Side, own: str, peer: str, mtu: int) -> None:
        """Exchange endpoints with the peer's role, by hand, and connect."""
        self.write(f"endpoint {own}", endpoint_to_data(side.qp.endpoint))
        remote = endpoint_from_data(await self.read(f"endpoint {peer}"))
        lossy = self.fabric.wire.faults.any
        side.qp.connect(remote, mtu=mtu, timeout=TIMEOUT_WITH_FAULTS if lossy else TIMEOUT)
        # A request that reaches a queue pair before it can receive is only repeated after a timeout.
        self.write(f"ready {own}", True)
        await self.read(f"ready {peer}")

    def path_mtu(self, *names: str) -> int:
        """The path MTU between adapters: the smaller one's."""
        adapters = self.fabric.adapters()
        return min(adapters[name].mtu for name in names)
