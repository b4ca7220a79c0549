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

from verbena.lan.port import EthernetPort, LanPort, PortEvent
from verbena.runtime.interfaces import BURST, TURN, Interface, InterfaceReader, InterfaceUser
from verbena.runtime.tap import Tap
from verbena.runtime.tap_lane import TapLane

SMALL = 1000
AT_ONCE_BYTES = 128 << 10
"""Three large frames: what a port's send queue holds, and a link carries before anybody could wait for it."""


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
        self._starved = False
        self._lane: TapLane | None = None
        port.attach(self._write_all, self._changed)
        if isinstance(port, LanPort) and isinstance(interface, Tap) and offload >= interface.offload:
            self._lane = port.sink = TapLane(interface.fileno(), interface.offload, interface.counters)
        interface.set_carrier(port.link)
        self._readdress()
        assert self._reader is not None
        self._reader.add(self)

    def _pass_on(self) -> bool:
        """Hand the port what the system has sent, a burst at a time."""
        most = 1  # the first goes on at once; if there are more by then, they come together
        fabric = self._fabric
        for _ in range(TURN):
            if not self._open:
                break
            if fabric is not None:
                fabric.attend()
            try:
                more = self._short_way() if self._lane is not None and not self._rest else self._burst(most)
            finally:
                if fabric is not None:
                    fabric.attended()
            if self._rest or self._starved:
                self._starved = False
                self.counters["tx.stopped"] += 1
                return False
            if not more:
                break
            most = BURST
        return True

    def _burst(self, most: int) -> bool:
        """Read some frames, and send them; False if there is, as far as is known, nothing more to read."""
        frames = self._rest or self._read(most)
        if not frames:
            return False
        taken = self.port.send_frames(frames)
        self._rest = frames[taken:]
        # Whether there is more behind a small one, the reader hears as soon.
        return most > 1 or len(frames[0]) >= SMALL

    def _short_way(self) -> bool:
        """The same without copies, as far as that goes."""
        lane, port = self._lane, self.port
        assert lane is not None
        assert isinstance(port, LanPort)
        express = port.express
        if express is None:
            return self._burst(BURST)
        if lane.read(express, BURST, AT_ONCE_BYTES):
            express.kick()
        if lane.closed:
            return self._burst(BURST)
        if lane.left is not None:
            frames = self._frames_of(*lane.left)
            self._rest = frames[port.send_frames(frames) :]
        self._starved = lane.starved
        return not lane.drained

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
        if self._lane is not None:
            self._lane.close()
        self._stop()
