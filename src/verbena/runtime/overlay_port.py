"""A port of a virtual switch that ends in another host's switch: VXLAN over UDP, with flow control between the two.

The datagrams are those of RFC 7348, so that captures show what is in them; besides data they carry the credits that
each switch grants the other (`wire.overlay`, `overlay_credits`).  What arrives is always granted, so it has room here;
the window is chosen so that it has room in the socket's buffer as well.  What the network or the kernel loses all the
same is told as theirs: nothing is sent again.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import struct
from collections import deque

from verbena.errors import InvalidAttributeError
from verbena.runtime.overlay_credits import CreditLedger
from verbena.runtime.poll_port import PollPort
from verbena.runtime.udp_socket import bound
from verbena.vswitch.kinds import CLASSES
from verbena.vswitch.switch import SwitchPort
from verbena.wire.errors import DecodeError
from verbena.wire.offload import PLAIN
from verbena.wire.overlay import OverlayCredits, is_credits
from verbena.wire.vxlan import LARGEST_VNI, VxlanHeader

SO_MEMINFO = 55
SK_MEMINFO_DROPS = 8
LARGEST_DATAGRAM = 65_535
TELL_NS = 100_000_000
"""How often credits are told while nothing happens, so that a lost message costs no more."""
URGE_NS = 10_000_000
"""How often while this side may not send."""
DEAD_NS = 3_000_000_000
LARGEST_WINDOW = 512
READS = 1024


class OverlayPort(PollPort):
    """local, peer: (IPv4 or IPv6 address, UDP port), both of one kind, in the form that `ipaddress` writes them in.

    vni: of the tunnel.  max_frame: bytes of the longest inner frame.

    trailer: frames in the switch have a ``virtio_net_hdr`` behind them; on the overlay they are cut and completed.
    Raises `SystemLimitError` where the local address cannot be had.
    """

    def __init__(
        self,
        local: tuple[str, int],
        peer: tuple[str, int],
        *,
        vni: int,
        max_frame: int = 1522,
        trailer: bool = False,
    ) -> None:
        if not 0 <= vni <= LARGEST_VNI:
            raise InvalidAttributeError(f"vni = {vni}: 0 to {LARGEST_VNI}")
        if (":" in local[0]) != (":" in peer[0]):
            raise InvalidAttributeError(
                f"{local[0]} and {peer[0]}: both are IPv4 addresses, or both IPv6 ones"
            )
        super().__init__(trailer)
        self.vni, self.local, self.peer = vni, local, peer
        self._header = VxlanHeader(vni=vni).pack()
        self._sock = bound(local)
        self.ledger = CreditLedger(secrets.randbelow((1 << 32) - 1) + 1, self._window(max_frame))
        self._buffer = bytearray(LARGEST_DATAGRAM + 1)
        self._view = memoryview(self._buffer)
        self._held: list[deque[bytes]] = [deque() for _ in range(CLASSES)]
        self._late: list[deque[bytes]] = [deque() for _ in range(CLASSES)]
        self._tell = True
        self._blocked = self._alive = False
        self._heard = 0
        self.watch(self._sock.fileno(), True)

    def _window(self, max_frame: int) -> int:
        """Frames of each class that the socket's buffer holds, with what the kernel needs beside them."""
        granted = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        return max(1, min(LARGEST_WINDOW, granted // (CLASSES * (2 * max_frame + 1024))))

    def attach(self, port: SwitchPort) -> None:
        super().attach(port)
        port.pause(self.ledger.closed)
        clock = port.switch.clock
        if clock is None:
            raise InvalidAttributeError("a switch with an overlay needs a clock")
        self._heard = clock.now()
        self._tick()

    # --- time -------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Tell the peer where we are; it may not have heard."""
        clock = self.port.switch.clock
        if self.closed or clock is None:
            return
        self._say()
        if self._alive and clock.now() - self._heard > DEAD_NS:
            self._alive = False
            self.tally["peer_silent"] += 1
        waits = self.ledger.closed and any(self.port.occupancy(c, outgoing=True)[0] for c in range(CLASSES))
        clock.call_at(clock.now() + (URGE_NS if waits else TELL_NS), self._tick)

    def _say(self) -> None:
        self._tell = False
        number = self._transmit(self.ledger.say().pack())
        if number:
            self._tell = True

    # --- in ---------------------------------------------------------------------------------------------------

    def feed(self, most: int) -> int:
        moved = self._offer_held()
        for _ in range(READS):
            try:
                size, (host, *_) = self._sock.recvfrom_into(self._buffer)
            except BlockingIOError:
                break
            except OSError:
                continue  # what an ICMP message told of an earlier datagram
            self._datagram(size, host)
        moved += self._offer_held()
        if self._tell:
            self._say()
        return moved

    def _datagram(self, size: int, host: str) -> None:
        if host != self.peer[0]:
            self.tally["foreign"] += 1
            return
        try:
            header = VxlanHeader.unpack(self._view[:size])
        except DecodeError:
            self.tally["malformed"] += 1
            return
        if not header.instance or size < VxlanHeader.SIZE + 14:
            self.tally["malformed"] += 1
        elif header.vni != self.vni:
            self.tally["other_vni"] += 1
        elif is_credits(self._view[VxlanHeader.SIZE : size]):
            self._credits(self._view[VxlanHeader.SIZE : size])
        else:
            frame = bytes(self._view[VxlanHeader.SIZE : size])
            priority = self._class_of(frame)
            if self.ledger.receive(priority):
                self._held[priority].append(frame + PLAIN if self.trailer else frame)
            else:
                self.tally["not_granted"] += 1

    def _class_of(self, frame: bytes) -> int:
        """The class whose credit it takes: both switches must see the same, so by the tag alone, else the lowest."""
        return frame[14] >> 5 if frame[12:14] == b"\x81\x00" and len(frame) >= 18 else 0

    def _credits(self, frame: memoryview) -> None:
        try:
            message = OverlayCredits.unpack(frame)
        except DecodeError:
            self.tally["malformed"] += 1
            return
        clock = self.port.switch.clock
        self._heard = clock.now() if clock is not None else 0
        self._alive = True
        begins = message.session != self.ledger.peer
        if begins:
            for held in self._held:
                self.tally["peer_restarted"] += len(held)
                held.clear()
        self._tell |= self.ledger.hear(message)
        self._obey()

    def _offer_held(self) -> int:
        moved = 0
        for priority, held in enumerate(self._held):
            while held and self.offer(held[0]):
                held.popleft()
                moved += 1
                self._tell |= self.ledger.take(priority)
        return moved

    # --- out --------------------------------------------------------------------------------------------------

    def drain(self, most: int) -> int:
        moved = 0
        self._blocked = False
        engine, number = self.port.switch.engine, self.port.number
        while moved < most and self._send():
            if sum(map(len, self._late)) > LARGEST_WINDOW:
                break
            found = engine.receive(number, False)
            if found is None:
                break
            moved += 1
            for frame in self.completed(found[0]):
                self._late[self._class_of(frame)].append(frame)
        self._obey()
        self.watch(self._sock.fileno(), True, self._blocked)
        return moved

    def _send(self) -> bool:
        """What waits goes, as far as it may.  False: the socket takes no more."""
        for priority, late in enumerate(self._late):
            while late and self.ledger.may_send(priority):
                number = self._transmit(late[0])
                if number in (errno.EAGAIN, errno.ENOBUFS):
                    self._blocked = True
                    return False
                late.popleft()
                if number:
                    self.tally["refused_by_kernel"] += 1
                else:
                    self.ledger.send(priority)
            if late:
                self._obey()
        return True

    def _obey(self) -> None:
        """Let the output queues wait whose classes have no credit."""
        waiting = sum(1 << c for c in range(CLASSES) if self._late[c])
        if self.port.paused != self.ledger.closed | waiting:
            self.port.pause(self.ledger.closed | waiting)

    def _transmit(self, inner: bytes) -> int:
        """0, or the number of the error."""
        try:
            self._sock.sendmsg((self._header, inner), (), 0, self.peer)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    # --- the rest ---------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        kernel = 0
        with contextlib.suppress(OSError, struct.error):
            told = self._sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 64)
            kernel = struct.unpack_from("=9I", told)[SK_MEMINFO_DROPS]
        return {
            "kernel.dropped_to_switch": kernel,
            "lost_on_the_way": self.ledger.lost,
            "window_frames": self.ledger.window,
            "waiting_frames": sum(map(len, self._held)),
            "peer_alive": int(self._alive),
        } | dict(self.tally)

    def close(self) -> None:
        super().close()
        self._sock.close()
