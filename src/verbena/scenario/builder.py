"""Builds what a fabric file declares, adapters with taps and faults on their wires, and runs the workloads on it."""

from __future__ import annotations

import asyncio
import mmap
import os
import stat
import time
from contextlib import ExitStack
from pathlib import Path
from random import Random

from verbena.clock import Clock
from verbena.errors import InvalidAttributeError, SystemLimitError, VerbenaError
from verbena.fabric.topology import PortId
from verbena.runtime.fabric import Fabric
from verbena.runtime.join import open_fabric_device
from verbena.runtime.udp import open_device
from verbena.runtime.virtual import VirtualNetwork
from verbena.runtime.wires import FaultInjector, Faults, Wire
from verbena.scenario.board import Board
from verbena.scenario.capture import Recorder
from verbena.scenario.fabric_run import make_fabric, routing_warnings, schedule_changes
from verbena.scenario.fabric_schema import Traffic
from verbena.scenario.outcome import Watcher
from verbena.scenario.part import Part
from verbena.scenario.programs import Role, roles
from verbena.scenario.schema import Adapter, FabricFile
from verbena.scenario.workloads import Seen
from verbena.transport.kinds import AckPolicy
from verbena.verbs.context import Context

Data = bytes | memoryview


def open_input(path: str) -> Data:
    """The contents of a file, mapped.  Raises `SystemLimitError` with what is wrong."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SystemLimitError(f"{path} cannot be sent: it is no regular file")
            if not status.st_size:
                return b""
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise SystemLimitError(f"{path} cannot be read: {error.strerror or error}") from None


def working_adapters(fabric: FabricFile) -> set[str]:
    """The adapters that are opened: on a fabric, which may have thousands, those that a workload names."""
    if fabric.fabric is None:
        return set(fabric.adapters())
    return {role.adapter for spec in fabric.workloads for role in roles(spec)}


def working_hosts(fabric: FabricFile) -> list[str]:
    """The hosts that have such adapters."""
    wanted = working_adapters(fabric)
    return [host.name for host in fabric.hosts if any(each.name in wanted for each in host.adapters)]


class Stage:
    """The adapters of some hosts, and the roles of the workloads that run there.  A context manager.

    hosts: one of them in real time, all in virtual time.  data: the file to transfer, if it is not to be made up.
    folder: where the fabric file is.  at: in real time, where the file's fabric listens.
    """

    def __init__(
        self,
        fabric: FabricFile,
        hosts: list[str],
        board: Board,
        watcher: Watcher,
        *,
        real: bool,
        recorder: Recorder | None = None,
        data: Data | None = None,
        folder: Path = Path(),
        at: str = "",
    ) -> None:
        self.fabric = fabric
        self.hosts = hosts
        self.board = board
        self.contexts: dict[str, Context] = {}
        self.injectors: dict[str, FaultInjector] = {}
        self.net: VirtualNetwork | Fabric | None = None
        self._watcher = watcher
        self._recorder = recorder
        self._data = data
        self._opening = ""
        self._at = at
        if fabric.fabric is not None and not real:
            self.net = make_fabric(fabric, folder)
        elif not real:
            wire = fabric.wire
            self.net = VirtualNetwork(
                fabric.seed, delay_ns=wire.delay_ns, rate_bps=wire.rate_bps, wrap=self._wrap
            )
        self._open = ExitStack()
        self._before: dict[str, dict[str, int]] = {}
        self._tapped = recorder is not None and fabric.workloads[0].capture
        if recorder is not None and fabric.fabric is not None:
            recorder.on = self._tapped
        self._open_adapters()
        if isinstance(self.net, Fabric):
            self.net.tap = self._show
        self.warnings = routing_warnings(self.net) if isinstance(self.net, Fabric) else []

    def _open_adapters(self) -> None:
        try:
            wanted = working_adapters(self.fabric)
            for host in self.fabric.hosts:
                for adapter in host.adapters if host.name in self.hosts else ():
                    if adapter.name not in wanted:
                        continue
                    self.contexts[adapter.name] = self._open.enter_context(self._adapter(adapter))
        except BaseException:
            self._open.close()
            raise

    def _show(self, port: PortId, packet: bytes) -> None:
        """A packet that a fabric's host sends: captured once the adapters are open, not as the fabric comes up."""
        if self._recorder is not None and port.node in self.contexts:
            now = self.net.now if isinstance(self.net, Fabric) else time.monotonic_ns()
            self._recorder.take_native(port, packet, now)

    def _set_capture(self, wanted: bool) -> None:
        """Capture or not, from now on.  Without a tap around its wire, an adapter is driven by compiled code: in real
        time the adapters are opened anew for that."""
        if self._recorder is None or wanted == self._tapped:
            return
        self._tapped = self._recorder.on = wanted
        if self.net is None and self.fabric.fabric is None and not self.fabric.wire.faults.any:
            self._before = self.counters()
            self._open.close()
            self._open_adapters()

    def _wrap(self, wire: Wire, clock: Clock, random: Random) -> Wire:
        """The tap is above the faults: it sees what the adapter sends."""
        faults = self.fabric.wire.faults
        if faults.any:
            chosen = Faults(**faults.model_dump())
            wire = self.injectors[self._opening] = FaultInjector(wire, chosen, random, clock)
        if self._recorder is None:
            return wire
        return self._recorder.tap(wire, clock, self._opening)

    def _adapter(self, adapter: Adapter) -> Context:
        self._opening = adapter.name
        policy = AckPolicy(adapter.ack_policy)
        if isinstance(self.net, Fabric):
            return self.net.open_device(adapter.name, ack_policy=policy)
        if self.fabric.fabric is not None:
            tap = None if self._recorder is None else self._show
            return open_fabric_device(adapter.name, self._at, ack_policy=policy, tap=tap)
        assert adapter.address is not None
        if self.net is not None:
            return self.net.open_device(adapter.address.virtual, mtu=adapter.mtu, ack_policy=policy)
        wrapped = self._tapped or self.fabric.wire.faults.any
        try:
            return open_device(
                adapter.address.real,
                udp_port=self.fabric.wire.udp_port,
                name=adapter.name,
                mtu=adapter.mtu,
                ack_policy=policy,
                wrap=self._wrap if wrapped else None,
            )
        except (InvalidAttributeError, SystemLimitError) as error:
            raise SystemLimitError(f"adapter {adapter.name}: {error}") from None

    def counters(self) -> dict[str, dict[str, int]]:
        """What each adapter counted, and what was done to its packets on purpose."""
        found: dict[str, dict[str, int]] = {}
        for name, context in self.contexts.items():
            before = self._before.get(name, {})
            found[name] = {key: value + before.get(key, 0) for key, value in context.counters().items()}
        for name, injector in self.injectors.items():
            found[name] |= {f"faults.{key}": value for key, value in injector.counters.items()}
        return found

    # --- running ------------------------------------------------------------------------------------------

    async def run(self) -> list[dict[str, Seen]]:
        """All workloads, one after the other; of each, what the roles here saw."""
        seen = []
        if isinstance(self.net, Fabric):
            schedule_changes(self.net, self.fabric)
        for number, spec in enumerate(self.fabric.workloads):
            if isinstance(spec, Traffic):
                continue
            here = [role for role in roles(spec) if role.adapter in self.contexts]
            self._watcher.started(number, spec.name)
            self._set_capture(spec.capture)
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = {role.name: group.create_task(self._role(number, role)) for role in here}
            except BaseExceptionGroup as error:
                raise _first(error, spec.name) from None
            seen.append({name: task.result() for name, task in tasks.items()})
            for host in self.hosts:
                self.board.write(f"{number}/end {host}", True)
            for name in working_hosts(self.fabric):
                await self.board.read(f"{number}/end {name}")
            self._watcher.finished(number)
        return seen

    async def _role(self, number: int, role: Role) -> Seen:
        injector = self.injectors.get(role.adapter)
        part = Part(
            ctx=self.contexts[role.adapter],
            fabric=self.fabric,
            topic=str(number),
            board=self.board,
            progress=lambda *how: self._watcher.progress(number, *how),
            faults=lambda: {} if injector is None else dict(injector.counters),
            real=self.net is None,
            data=self._data,
        )
        return await role.program(part)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _first(error: BaseExceptionGroup[BaseException], name: str) -> BaseException:
    """The first of several errors; Verbena's own with the workload's name."""
    found: BaseException = error
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return VerbenaError(f"workload {name}: {found}") if isinstance(found, VerbenaError) else found
