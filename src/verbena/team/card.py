"""What a team is made of: anything that sends and receives Ethernet frames, and the layers of driver above it.

The document's Fig. 3 has, from the intermediate driver down, a physical miniport, an NDIS miniport, and for the RDMA
card also a virtual bus driver, which the kernel-mode proxy uses, too.  `Branch` is that chain for one card.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from verbena.team.frames import OffloadFrame
from verbena.team.trace import Layer, PathTrace
from verbena.wire.errors import DecodeError
from verbena.wire.offload import PLAIN, finish

Receive = Callable[[bytes], None]
ReceiveView = Callable[[int, memoryview, bytes], bool]
"""VLAN of the tag (0: none), the frame without it, its virtio_net_hdr; False: hand it up as `Receive` has it."""
LinkChanged = Callable[[bool], None]


class EthernetPort(Protocol):
    """Anything that can be a team's member: a simulated card, a TAP device, a packet socket, a LAN-emulation card.

    mac: 6 octets.  mtu: the largest payload behind the header and its tags, bytes.  rate_bps: bits a second, 0 where
    it is not known.  is_up: has it a link?  A port hands up every frame that it receives, whoever it is for.
    """

    name: str

    @property
    def mac(self) -> bytes: ...
    @property
    def mtu(self) -> int: ...
    @property
    def rate_bps(self) -> float: ...
    @property
    def is_up(self) -> bool: ...

    def transmit(self, frame: bytes) -> bool:
        """Send a frame; False if the port dropped (and counted) it.  Never waits, never raises."""

    def attach(self, receive: Receive, changed: LinkChanged) -> None:
        """Let frames go to `receive` and link events to `changed`."""

    def detach(self) -> None:
        """No longer."""


class Upper:
    """The upper side of a port: who is attached, and gets what comes."""

    def __init__(self) -> None:
        self._receive: Receive | None = None
        self._changed: LinkChanged | None = None
        self.on_view: ReceiveView | None = None
        """For a port that reads into a buffer of its own: whom it shows frames there before it makes copies of them."""

    def attach(self, receive: Receive, changed: LinkChanged) -> None:
        """Implements `EthernetPort.attach`."""
        self._receive, self._changed = receive, changed

    def detach(self) -> None:
        """Implements `EthernetPort.detach`."""
        self._receive = self._changed = self.on_view = None

    def deliver(self, frame: bytes) -> bool:
        """Hand a frame up; False where nobody takes it."""
        if self._receive is None:
            return False
        self._receive(frame)
        return True

    def tell(self, up: bool) -> None:
        """Tell of a link that came or went."""
        if self._changed is not None:
            self._changed(up)


class BurstPort(Protocol):
    """A port that takes and hands up frames in bursts, as LAN-emulation cards do."""

    @property
    def mac(self) -> bytes: ...
    @property
    def mtu(self) -> int: ...
    @property
    def link(self) -> bool: ...

    def send_frames(self, frames: Sequence[bytes]) -> int: ...
    def attach(
        self, receive: Callable[[list[bytes]], None], changed: Callable[[Any, bytes], None]
    ) -> None: ...
    def detach(self) -> None: ...


class BurstMember(Upper):
    """A `BurstPort` as an `EthernetPort`.

    queue: so many frames wait while the port takes none; what comes beyond is dropped.  `counters`: ``tx``, ``rx``
    (frames that the port took, and handed up), ``drop.tx.full``, ``drop.tx.down`` (waiting when the link went),
    ``drop.rx.unbound`` and, for what was still to be cut, drops by reason.
    """

    def __init__(self, name: str, port: BurstPort, rate_bps: float = 0.0, *, queue: int = 0) -> None:
        super().__init__()
        self.name = name
        self.port = port
        self.rate_bps = rate_bps
        self.counters: Counter[str] = Counter()
        self._queue = queue
        self._waiting: deque[bytes] = deque()
        port.attach(self._received, self._happened)

    @property
    def waiting(self) -> int:
        """Frames that wait for the port."""
        return len(self._waiting)

    @property
    def mac(self) -> bytes:
        return self.port.mac

    @property
    def mtu(self) -> int:
        return self.port.mtu

    @property
    def is_up(self) -> bool:
        return self.port.link

    def _received(self, frames: list[bytes]) -> None:
        for frame in frames:
            self.counters["rx"] += 1
            if not self.deliver(bytes(frame)):
                self.counters["drop.rx.unbound"] += 1

    def _happened(self, event: Any, detail: bytes) -> None:
        if event.name == "ROOM":
            self._flush()
        elif event.name == "LINK_UP":
            self.tell(True)
        elif event.name == "LINK_DOWN":
            self.counters["drop.tx.down"] += len(self._waiting)
            self._waiting.clear()
            self.tell(False)

    def _flush(self) -> None:
        """Send what waits, as far as there is room."""
        waiting = self._waiting
        while waiting:
            frame = waiting.popleft()
            if not self.port.send_frames((frame,)):
                waiting.appendleft(frame)
                return
            self.counters["tx"] += 1

    def transmit(self, frame: bytes) -> bool:
        """Implements `EthernetPort.transmit`."""
        header = getattr(frame, "header", None)
        try:
            frames = [frame] if header is None else finish(bytes(frame), header)
        except DecodeError as error:
            self.counters[f"drop.tx.{error.reason}"] += 1
            return False
        taken = 0 if self._waiting else self.port.send_frames(frames)
        self.counters["tx"] += taken
        room = self._queue - len(self._waiting)
        self._waiting.extend(frames[taken : taken + room])
        left = max(0, len(frames) - taken - room)
        self.counters["drop.tx.full"] += left
        return not left


class BusDriver:
    """The virtual bus driver: by it the NDIS miniport and the kernel-mode proxy share an RDMA card.

    `counters`: ``ethernet.tx`` and ``ethernet.rx``, frames of the miniport; ``proxy``, calls of the proxy.
    """

    def __init__(self, card: EthernetPort, trace: PathTrace) -> None:
        self.card = card
        self.trace = trace
        self.counters: Counter[str] = Counter()

    def transmit(self, frame: bytes) -> bool:
        """A frame of the NDIS miniport's."""
        self.counters["ethernet.tx"] += 1
        self.trace.hop(Layer.BUS_DRIVER)
        self.trace.hop(Layer.RDMA_CARD, self.card.name)
        return self.card.transmit(frame)

    def call(self) -> None:
        """The proxy asks the card for something: to make, connect or destroy a queue pair."""
        self.counters["proxy"] += 1
        self.trace.hop(Layer.BUS_DRIVER)
        self.trace.hop(Layer.RDMA_CARD, self.card.name)


class Branch:
    """The drivers of one card, from the physical miniport down.  bus: of an RDMA card; None: an ordinary one."""

    def __init__(
        self, card: EthernetPort, number: int, trace: PathTrace, bus: BusDriver | None = None
    ) -> None:
        self.card = card
        self.number = number
        self.bus = bus
        self.trace = trace
        self._in_parts: Callable[[bytes, memoryview, bytes], bool] | None
        self._in_parts = getattr(card, "transmit_parts", None)

    @property
    def is_rdma(self) -> bool:
        return self.bus is not None

    def transmit(self, frame: bytes) -> bool:
        """A frame of the intermediate driver's."""
        trace = self.trace
        if trace.on:
            trace.hop(Layer.PHYSICAL_MINIPORT, f"PA {self.number}")
            trace.hop(Layer.NDIS_MINIPORT)
        if self.bus is not None:
            return self.bus.transmit(frame)
        if trace.on:
            trace.hop(Layer.CARD, self.card.name)
        return self.card.transmit(frame)

    def transmit_parts(self, front: bytes, rest: memoryview, header: bytes) -> bool:
        """The same without a trace, for a frame in two parts with its virtio_net_hdr."""
        if self.bus is not None:
            self.bus.counters["ethernet.tx"] += 1
        if self._in_parts is not None:
            return self._in_parts(front, rest, header)
        frame = b"".join((front, rest))
        return self.card.transmit(frame if header == PLAIN else OffloadFrame(frame, header))

    def trace_received(self) -> None:
        """Note the layers that a frame from the card has come through."""
        trace = self.trace
        if self.bus is not None:
            self.bus.counters["ethernet.rx"] += 1
        if not trace.on:
            return
        trace.hop(Layer.RDMA_CARD if self.is_rdma else Layer.CARD, self.card.name)
        if self.is_rdma:
            trace.hop(Layer.BUS_DRIVER)
        trace.hop(Layer.NDIS_MINIPORT)
        trace.hop(Layer.PHYSICAL_MINIPORT, f"PA {self.number}")
