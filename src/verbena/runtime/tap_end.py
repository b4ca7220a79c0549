"""Joins an Ethernet port, such as a LAN's card, to the operating system: what one sends, the other receives.

A reader's thread takes what the system sends, in bursts, and hands it to the port; when the port takes no more, it
stops reading until there is room, so that the system's own queue fills, and its senders notice.  What the port
receives is written to the system by whoever delivers it; where the fabric is in this process, that is the same thread:
to wake another for every frame would take longer than the frame's way.

The interface follows the card: its cable is pulled while the card's link is down, it gets the card's address, and the
system announces that to its neighbours; when a channel has aged, what was resolved to its peer is forgotten.
"""

from __future__ import annotations

from typing import Protocol

from verbena.lan.port import EthernetPort, PortEvent
from verbena.runtime.interfaces import BURST, TURN, Interface, InterfaceReader, InterfaceUser

SMALL = 1000


class Attendable(Protocol):
    """What carries the frames, as `real_fabric.RealFabric`."""

    def attend(self) -> None: ...
    def attended(self) -> None: ...


class InterfaceEnd(InterfaceUser):
    """A port and an interface, joined until `close`.

    offload: does the port take frames whose checksums and segmentation are still to be done?  If not, that happens
    here.  fabric: carries the frames, in this process.  `counters`: the interface's: what crossed and what was dropped.
    """

    def __init__(
        self,
        port: EthernetPort,
        interface: Interface,
        *,
        offload: bool = False,
        fabric: Attendable | None = None,
        reader: InterfaceReader | None = None,
    ) -> None:
        super().__init__(interface, offload, reader)
        self.port = port
        self._fabric = fabric
        self._rest: list[bytes] = []
        port.attach(self._write_all, self._changed)
        interface.set_carrier(port.link)
        self._readdress()
        assert self._reader is not None
        self._reader.add(self)

    def _pass_on(self) -> bool:
        """Hand the port what the system has sent, a burst at a time."""
        most = 1  # the first goes on at once; if there are more by then, they come together
        for _ in range(TURN):
            if not self._open:
                break
            frames = self._rest or self._read(most)
            if not frames:
                break
            is_alone = most == 1 and len(frames[0]) < SMALL
            most = BURST
            if self._fabric is None:
                taken = self.port.send_frames(frames)
            else:
                self._fabric.attend()
                try:
                    taken = self.port.send_frames(frames)
                finally:
                    self._fabric.attended()
            self._rest = frames[taken:]
            if self._rest:
                self.counters["tx.stopped"] += 1
                return False
            if is_alone:
                break  # whether there are more, the reader hears as soon
        return True

    def _changed(self, event: PortEvent, detail: bytes) -> None:
        """Called by the port, perhaps with locks held: what takes time, the thread does."""
        interface = self.interface
        if event is PortEvent.AGED:
            self._do(lambda: interface.forget_neighbour(detail))
        elif event in (PortEvent.LINK_UP, PortEvent.LINK_DOWN):
            self._do(self._readdress, lambda: interface.set_carrier(self.port.link))
        elif event is PortEvent.ADDRESS:
            self._do(self._readdress)
        else:
            self._do()

    def _readdress(self) -> None:
        if any(self.port.mac):
            self.interface.set_mac(self.port.mac)

    def close(self) -> None:
        """Part them.  The interface stays; its owner closes it."""
        self.port.detach()
        self._stop()
