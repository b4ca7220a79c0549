"""Captures of a fabric: what passes its ports, in a file that Wireshark opens.

Native packets stand in ERF records (`wire.erf`), one interface of the file for each port, named as the port is
written: ``s1[3]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from verbena.errors import InvalidStateError
from verbena.fabric.assembly import Assembly
from verbena.fabric.topology import PortId
from verbena.wire import LinkType, PcapngWriter, wrap_erf


class FabricCapture:
    """Writes the packets that leave and enter some ports to a pcapng file, until it is closed; a context manager.

    A packet's time is that of its last byte at the port, in simulated nanoseconds; in real time, since the epoch, when
    the core put it on the cable or got the last of its flits.  A port can be in one capture at a time.  epoch_ns: what
    the core's zero means.  done: called at the end with this capture; it hands over what is left.
    """

    def __init__(
        self,
        assembly: Assembly,
        path: Path | str,
        ports: Sequence[PortId],
        done: Callable[[FabricCapture], None],
        epoch_ns: int = 0,
    ) -> None:
        self.ports = tuple(ports)
        self._done = done
        self._epoch_ns = epoch_ns
        self._file: BinaryIO | None = Path(path).open("wb")  # noqa: SIM115  (closed by `close`)
        self._writer = PcapngWriter(self._file)
        self._interfaces = {
            assembly.ports[port]: self._writer.add_interface(str(port), LinkType.ERF) for port in self.ports
        }
        self.packets = 0

    def take(self, taken: Sequence[tuple[int, int, bool, bytes]]) -> None:
        """Write those of the tapped packets (`FabricCore.take_taps`) that passed this capture's ports."""
        if self._file is None:
            raise InvalidStateError("the capture is closed")
        for time_ns, port, outbound, packet in taken:
            if port in self._interfaces:
                when = time_ns + self._epoch_ns
                self._writer.write(wrap_erf(packet, when), when, self._interfaces[port], outbound=outbound)
                self.packets += 1

    def close(self) -> None:
        """Write what is left, and end the file."""
        if self._file is None:
            return
        self._done(self)
        self._file.close()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Captures:
    """The captures of a fabric that run at the same time.

    held: the lock to hold around what is asked of the core; needed in real time.
    """

    def __init__(
        self, assembly: Assembly, held: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._assembly = assembly
        self._held = held
        self._running: list[FabricCapture] = []

    def __bool__(self) -> bool:
        """Does one run?"""
        return bool(self._running)

    def start(self, path: Path | str, ports: Sequence[PortId], epoch_ns: int = 0) -> FabricCapture:
        """Begin one.  Raises `InvalidStateError` for a port that is being captured already."""
        with self._held():
            self.flush()
            for port in ports:
                if any(port in running.ports for running in self._running):
                    raise InvalidStateError(f"{port} is being captured already")
            made = FabricCapture(self._assembly, path, ports, self._end, epoch_ns)
            self._running.append(made)
            self._tap(made, True)
        return made

    def flush(self) -> None:
        """Write what has been captured up to now, in the order of time.  With the core's lock held."""
        taken = sorted(self._assembly.core.take_taps(), key=lambda each: each[0])
        for running in self._running:
            running.take(taken)

    def close(self) -> None:
        """End all that run."""
        for running in list(self._running):
            running.close()

    def _tap(self, capture: FabricCapture, wanted: bool) -> None:
        for port in capture.ports:
            self._assembly.core.tap(self._assembly.ports[port], wanted)

    def _end(self, capture: FabricCapture) -> None:
        with self._held():
            self.flush()
            self._running.remove(capture)
            self._tap(capture, False)
