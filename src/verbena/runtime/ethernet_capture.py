"""Captures of a LAN's Ethernet side: the frames of its cards, in a file that Wireshark opens.

The fabric's side of the same traffic is captured by `FabricBase.capture`; with one clock behind both, the two files can
be merged (``mergecap``), and show each frame beside the packets that carried it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from verbena.clock import Clock
from verbena.errors import InvalidStateError
from verbena.lan.port import Upper
from verbena.wire import LinkType, PcapngWriter


class EthernetCapture:
    """Writes what passes some ports to a pcapng file, one interface for each, until it is closed; a context manager.

    ports: by the names that the interfaces get.  epoch_ns: what the clock's zero means, in nanoseconds since 1970.
    Raises `InvalidStateError` for a port that is being captured already.
    """

    def __init__(self, path: Path | str, ports: Mapping[str, Upper], clock: Clock, epoch_ns: int = 0) -> None:
        for name, port in ports.items():
            if port.tap is not None:
                raise InvalidStateError(f"{name} is being captured already")
        self.packets = 0
        self._clock = clock
        self._epoch_ns = epoch_ns
        self._ports = list(ports.values())
        self._file: BinaryIO | None = Path(path).open("wb")  # noqa: SIM115  (closed by `close`)
        self._writer = PcapngWriter(self._file)
        for name, port in ports.items():
            port.tap = partial(self._write, self._writer.add_interface(name, LinkType.ETHERNET))

    def _write(self, interface: int, frame: bytes, outbound: bool) -> None:
        when = self._clock.now() + self._epoch_ns
        self._writer.write(frame, when, interface, outbound=outbound)
        self.packets += 1

    def close(self) -> None:
        """End the file."""
        if self._file is None:
            return
        for port in self._ports:
            port.tap = None
        self._file.close()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
