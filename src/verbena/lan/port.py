"""A virtual network card: what stands on top of it sends and receives Ethernet frames (document 000:76).

A card belongs to a port of an adapter for as long as the node runs; the driver behind it comes and goes with the port's
state and LID.  A TAP device, the built-in host, a bridge or the intermediate driver attaches to it; so does whatever
else speaks Ethernet, such as a team's or a virtual switch's port.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Protocol

from verbena.errors import InvalidStateError
from verbena.lan.express import Express, FrameSink
from verbena.lan.message import Role


class PortEvent(Enum):
    """What becomes of a card."""

    LINK_UP = auto()
    LINK_DOWN = auto()
    ADDRESS = auto()
    """It has another address: tell the neighbours, by a gratuitous ARP and an unsolicited neighbour advertisement."""
    ROOM = auto()
    """It takes frames again, after it took fewer than it was given."""
    AGED = auto()
    """The channel to an address has aged: forget what was resolved to it.  The detail is that address."""


class OffloadFrame(bytes):
    """A frame whose checksum or segmentation is still to be done, as its virtio_net_hdr (10 bytes) says."""

    header: bytes

    def __new__(cls, frame: bytes, header: bytes) -> OffloadFrame:
        made = super().__new__(cls, frame)
        made.header = header
        return made


Receive = Callable[[list[bytes]], None]
Changed = Callable[[PortEvent, bytes], None]
Tap = Callable[[bytes, bool], None]


class EthernetPort(Protocol):
    """Anything that frames go out by and come in from: a card, several that are one, an ordinary Ethernet's port.

    mac: 6 octets.  mtu: the largest payload behind the Ethernet header (and its tags), bytes.  link: is it up?
    """

    @property
    def mac(self) -> bytes: ...
    @property
    def mtu(self) -> int: ...
    @property
    def link(self) -> bool: ...

    def send_frames(self, frames: Sequence[bytes]) -> int:
        """Send a burst; returns how many were taken (sent, or dropped and counted).  The rest may be sent again
        after `PortEvent.ROOM`."""

    def attach(self, receive: Receive, changed: Changed) -> None:
        """Let frames go to `receive`, in bursts, and what happens to `changed`; raises `InvalidStateError` if taken."""

    def detach(self) -> None:
        """No longer."""


class Upper:
    """The upper side of a port: who is attached, and gets what comes.

    tap: is shown each frame that passes, and whether it goes out; None: nobody looks.
    """

    def __init__(self) -> None:
        self.tap: Tap | None = None
        self._receive: Receive | None = None
        self._changed: Changed | None = None

    def attach(self, receive: Receive, changed: Changed) -> None:
        """Implements `EthernetPort.attach`."""
        if self._receive is not None:
            raise InvalidStateError("something is attached to this port already: detach it first")
        self._receive, self._changed = receive, changed

    def detach(self) -> None:
        """Implements `EthernetPort.detach`."""
        self._receive = self._changed = None

    def deliver(self, frames: list[bytes]) -> bool:
        """Hand a burst up; False where nobody takes it."""
        if self.tap is not None:
            self.show(frames, outbound=False)
        if self._receive is None:
            return False
        self._receive(frames)
        return True

    def show(self, frames: Sequence[bytes], *, outbound: bool) -> None:
        """Show frames to the tap."""
        if self.tap is not None:
            for frame in frames:
                self.tap(frame, outbound)

    def tell(self, event: PortEvent, detail: bytes = b"") -> None:
        if self._changed is not None:
            self._changed(event, detail)


class CardDriver(Protocol):
    """The driver behind a card, as the card sees it."""

    @property
    def mac(self) -> bytes: ...
    @property
    def own_mac(self) -> bytes: ...
    @property
    def express(self) -> Express | None: ...

    def send_frames(self, frames: Sequence[bytes]) -> int: ...

    def announce(self) -> None:
        """Tell the peers that this node is something else now."""


class LanPort(Upper):
    """The card of one port of an adapter.  Implements `EthernetPort`.

    `counters`: of this card, through all its drivers: ``tx.*``, ``rx.*``, ``drop.tx.<reason>``, ``drop.rx.<reason>``.
    role: BRIDGE where a bridge is attached: frames of and to other addresses pass.  shared_lid: the LID in the address
    of the card that this one is a part of; 0: it is a card of its own.  `become` sets both.  sink: where who is
    attached takes the frames of `express`, beside those that he receives as all others do; None: all come in that way.
    """

    def __init__(self, number: int, mtu: int) -> None:
        super().__init__()
        self.number = number
        self.counters: Counter[str] = Counter()
        self._mtu = mtu
        self.last_error = ""
        self.role = Role.NONE
        self.shared_lid = 0
        self.sink: FrameSink | None = None
        self._mac = bytes(6)
        self._driver: CardDriver | None = None

    @property
    def mac(self) -> bytes:
        """Its address now; the last one while it is down, zeros before it has had any."""
        return self._mac if self._driver is None else self._driver.mac

    @property
    def own_mac(self) -> bytes:
        """The address that its port's LID makes, also while it shares another."""
        return self._mac

    @property
    def mtu(self) -> int:
        return self._mtu

    @property
    def link(self) -> bool:
        return self._driver is not None

    @property
    def express(self) -> Express | None:
        """The short way of frames to one peer, for who reads and writes a device; None while the card is down."""
        return None if self._driver is None else self._driver.express

    def detach(self) -> None:
        """Implements `EthernetPort.detach`."""
        self.sink = None
        super().detach()

    @property
    def driver(self) -> CardDriver | None:
        """The driver that is loaded, once it is through with its initialization."""
        return self._driver

    def send_frames(self, frames: Sequence[bytes]) -> int:
        """Implements `EthernetPort.send_frames`; while the link is down, everything is taken, dropped and counted."""
        if self._driver is None:
            self.counters["drop.tx.link_down"] += len(frames)
            return len(frames)
        taken = self._driver.send_frames(frames)
        if self.tap is not None:
            self.show(frames[:taken], outbound=True)
        return taken

    def transmit(self, frame: bytes) -> bool:
        """Send one frame; False where it was not taken, and may be sent again after `PortEvent.ROOM`."""
        return self.send_frames((frame,)) == 1

    def become(self, role: Role, shared_lid: int = 0) -> None:
        """Be a bridge's card, a part of another card, or (NONE, 0) a card of its own; the peers are told."""
        self.role, self.shared_lid = role, shared_lid
        if self._driver is not None:
            self._driver.announce()

    def came_up(self, driver: CardDriver) -> None:
        """A driver is ready."""
        self._driver = driver
        moved = any(self._mac) and self._mac != driver.own_mac
        self._mac = driver.own_mac
        self.tell(PortEvent.LINK_UP)
        if moved:
            self.tell(PortEvent.ADDRESS, self._mac)

    def has_room(self) -> None:
        """Messages are free again."""
        self.tell(PortEvent.ROOM)

    def went_down(self) -> None:
        """It is unloaded."""
        if self._driver is not None:
            self._driver = None
            self.tell(PortEvent.LINK_DOWN)

    def __repr__(self) -> str:
        return f"<LanPort {self.number} {self._mac.hex(':')} {'up' if self.link else 'down'}>"
