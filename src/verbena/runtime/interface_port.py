"""An interface of the operating system as an Ethernet port: what a bridge has on its Ethernet side.

What is sent by the port the system, or the cable behind the interface, receives, and the other way round.  A bridge
stands for others, so frames cross with whatever addresses they have.
"""

from __future__ import annotations

from collections.abc import Sequence

from verbena.lan.port import Upper
from verbena.runtime.interfaces import TURN, Interface, InterfaceReader, InterfaceUser


class InterfacePort(Upper, InterfaceUser):
    """Implements `lan.port.EthernetPort` with an interface, until `close`.

    mac: six octets; a bridge needs none of its own.  offload: does whoever is attached take frames whose checksums and
    segmentation are still to be done?
    """

    def __init__(
        self,
        interface: Interface,
        mac: bytes = bytes(6),
        *,
        offload: bool = False,
        reader: InterfaceReader | None = None,
    ) -> None:
        Upper.__init__(self)
        InterfaceUser.__init__(self, interface, offload, reader)
        self._mac = mac
        interface.set_carrier(True)
        assert self._reader is not None
        self._reader.add(self)

    @property
    def mac(self) -> bytes:
        return self._mac

    @property
    def mtu(self) -> int:
        return self.interface.mtu

    @property
    def link(self) -> bool:
        return self._open

    def send_frames(self, frames: Sequence[bytes]) -> int:
        """Implements `EthernetPort.send_frames`: everything is taken; what the system refuses is counted."""
        self._write_all(frames)
        return len(frames)

    def _pass_on(self) -> bool:
        for _ in range(TURN):
            if not self._open or not (frames := self._read()):
                break
            if not self.deliver(frames):
                self.counters["drop.tx.nobody"] += len(frames)
        return True

    def close(self) -> None:
        """No longer.  The interface stays; its owner closes it."""
        self._stop()
