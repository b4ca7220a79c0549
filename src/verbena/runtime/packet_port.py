"""A port of a virtual switch that is an interface with a cable of its own: the physical network, through AF_PACKET.

**Flow control on the cable.**  When an input queue says stop, a pause frame goes out (802.1Qbb for its class, or
802.3x), renewed while the queue is full and ended when it is not; pause frames that come, from a port that may send
them, stop its output, class by class.  Where the cable's other end, or the card itself, does not obey, the kernel
drops what finds no room in the socket's buffer; `counters` tell it as the kernel's.

**Out.**  A frame that the card's queue has no room for is kept and offered again, whether the kernel said so (EAGAIN)
or dropped it and told us (ENOBUFS).
"""

from __future__ import annotations

import errno
import time

from verbena.errors import InvalidAttributeError
from verbena.runtime.packet_socket import PacketInterface
from verbena.runtime.poll_port import PollPort
from verbena.vswitch.kinds import CLASSES
from verbena.vswitch.signals import watch
from verbena.vswitch.signals_pause import PauseGranter, PauseThrottle
from verbena.vswitch.switch import SwitchPort
from verbena.wire.errors import DecodeError
from verbena.wire.offload import PLAIN, finish
from verbena.wire.pause import is_mac_control

SIGNALS = ("none", "pfc", "pause")
FULL = (errno.EAGAIN, errno.ENOBUFS)
RETRY_NS = 1_000_000


class PacketPort(PollPort):
    """interface: is closed with the port.  trailer: frames in the switch have a ``virtio_net_hdr`` behind them.

    signal: ``pfc``, ``pause`` or ``none``.  rate_bps: of the cable: what a quantum of 512 bits lasts.
    """

    def __init__(
        self,
        interface: PacketInterface,
        *,
        trailer: bool = False,
        signal: str = "none",
        rate_bps: float = 10e9,
        source: bytes = bytes(6),
    ) -> None:
        if signal not in SIGNALS:
            raise InvalidAttributeError(f"signal = {signal!r}: one of {', '.join(SIGNALS)}")
        super().__init__(trailer)
        self.interface = interface
        self._signal, self._rate, self._source = signal, rate_bps, source
        self._held: list[bytes] = []
        self._late: list[tuple[bytes, bytes]] = []
        self._missed = 0
        self._retry = False
        self.throttle: PauseThrottle | None = None
        self.granter: PauseGranter | None = None
        self.watch(interface.fileno(), True)

    def attach(self, port: SwitchPort) -> None:
        super().attach(port)
        clock = port.switch.clock
        if self._signal == "none" or clock is None:
            return
        by_class = self._signal == "pfc"
        self.granter = PauseGranter(self._say, clock, self._rate, by_class=by_class, source=self._source)
        self.throttle = PauseThrottle(clock, self._rate, by_class=by_class)
        self.throttle.on_open = self._obey
        watch(port, self.granter)
        port.on_control = self._heard

    # --- signals ----------------------------------------------------------------------------------------------

    def _say(self, message: bytes) -> None:
        """A pause frame goes ahead of all data; where the cable takes none, it is renewed soon."""
        number = self.interface.send(message, PLAIN)
        if number:
            self.tally["signals_refused"] += 1

    def _heard(self, message: bytes) -> None:
        assert self.throttle is not None
        message = message[: -len(PLAIN)] if self.trailer else message
        if not is_mac_control(message):
            self.tally["reserved"] += 1  # such as LLDP: between neighbours, never forwarded
            return
        self.throttle.hear(message)
        self._obey()

    def _obey(self) -> None:
        throttle = self.throttle
        if throttle is not None and self.port.open:
            self.port.pause(sum(1 << c for c in range(CLASSES) if not throttle.may_send(c, 0)))

    # --- frames -----------------------------------------------------------------------------------------------

    def feed(self, most: int) -> int:
        moved = 0
        while moved < most:
            if not self._held and not self._read():
                break
            if not self.offer(self._held[0]):
                break
            del self._held[0]
            moved += 1
        self._rewatch()
        return moved

    def _read(self) -> bool:
        """The next frame from the cable, cut and completed where the switch's other ports want that."""
        while (found := self.interface.read()) is not None:
            view, header = found
            if self.trailer:
                self._held = [bytes(view) + header]
                return True
            try:
                self._held = finish(bytes(view), header)
            except DecodeError:
                self.tally["bad_offload"] += 1
                continue
            return True
        return False

    def drain(self, most: int) -> int:
        moved = 0
        self._retry = False
        engine, number = self.port.switch.engine, self.port.number
        while moved < most:
            if not self._late:
                found = engine.receive(number, False)
                if found is None:
                    break
                self._late = self._outgoing(found[0])
                moved += 1
            if not self._send():
                break
        self._rewatch()
        return moved

    def _outgoing(self, data: bytes) -> list[tuple[bytes, bytes]]:
        if not self.trailer:
            return [(data, PLAIN)]
        if self.interface.offload:
            return [(data[: -len(PLAIN)], data[-len(PLAIN) :])]
        return [(piece, PLAIN) for piece in self.completed(data)]

    def _send(self) -> bool:
        while self._late:
            number = self.interface.send(*self._late[0])
            if number in FULL:
                self.tally["waited"] += 1
                self._wait(number)
                return False
            if number:
                self.interface.refuse(number)
            del self._late[0]
        return True

    def _wait(self, number: int) -> None:
        """EAGAIN: the socket becomes writable.  ENOBUFS: nobody tells when there is room again."""
        self._retry = number == errno.EAGAIN
        clock = self.port.switch.clock
        if number == errno.ENOBUFS:
            if clock is not None:
                clock.call_at(clock.now() + RETRY_NS, lambda: None)
            else:
                time.sleep(RETRY_NS / 1e9)

    # --- the rest ---------------------------------------------------------------------------------------------

    def _rewatch(self) -> None:
        if not self.closed:
            self.watch(self.interface.fileno(), not self._held, self._retry)

    def counters(self) -> dict[str, int]:
        self._missed += self.interface.missed()
        found = {"kernel.dropped_to_switch": self._missed}
        if self.granter is not None and self.throttle is not None:
            found["signals_sent"] = self.granter.said
            found["signals_heard"] = self.throttle.heard
            found["signals_malformed"] = self.throttle.malformed
        return found | dict(self.interface.counters) | dict(self.tally)

    def close(self) -> None:
        super().close()
        if self.granter is not None:
            for priority in range(CLASSES):
                if self.granter.stopped >> priority & 1:
                    self.granter.start(priority)
        self.interface.close()
