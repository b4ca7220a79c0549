"""The shared-memory virtual card: a port of a virtual switch for a program in any process of this machine.

Two rings lie in a memory file that the switch made: TX from the card to the switch, RX from the switch to the card
(`shm_ring`).  Two event descriptors wake a side that sleeps: the switch's loop, or the program.  All three come to the
program over a socket (``SCM_RIGHTS``); when it closes its end, or dies, the port is gone.

The card never drops.  When the switch takes no more, its TX ring fills, and `VirtualCard.send` says so or waits; when
the program does not read, its RX ring fills, then the switch's output queue, then the inputs of those who send to it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Sequence

from verbena.errors import ClosedError, InvalidAttributeError, SystemLimitError
from verbena.runtime.shm_ring import HEADER, Ring
from verbena.vswitch.switch import SwitchPort

DEFAULT_RING_BYTES = 1 << 18
_HELLO = struct.Struct("<8sQQ")
_MAGIC = b"vb-card1"
SPIN_NS = 5_000


class _Shared:
    """The memory with its two rings, mapped into this process."""

    def __init__(self, descriptor: int, ring_bytes: int) -> None:
        self.descriptor = descriptor
        self.memory = mmap.mmap(descriptor, 2 * (HEADER + ring_bytes))
        view = memoryview(self.memory)
        self.tx = Ring(view[: HEADER + ring_bytes])
        self.rx = Ring(view[HEADER + ring_bytes :])
        view.release()

    def close(self) -> None:
        self.tx.release()
        self.rx.release()
        os.close(self.descriptor)
        # A view that somebody still holds keeps the mapping; it goes with the process.
        with contextlib.suppress(BufferError):
            self.memory.close()


class ShmPort:
    """The switch's side, a `vswitch_loop.PortDriver`.  Made by `card_pair` or `CardListener.accept`."""

    def __init__(self, shared: _Shared, to_switch: int, to_card: int, control: socket.socket) -> None:
        self._shared, self._to_switch, self._to_card, self._control = shared, to_switch, to_card, control
        self._engine: object = None
        self._number = -1
        self._port: SwitchPort | None = None
        self._full = False
        self.closed = False
        control.setblocking(False)

    def attach(self, port: SwitchPort) -> None:
        self._port, self._number, self._engine = port, port.number, port.switch.engine

    def feed(self, most: int) -> int:
        ring = self._shared.tx
        blocked, controls = ring.blocked, ring.controls
        count: int = ring.feed(self._engine, self._number, most)
        self._full = ring.blocked != blocked
        if ring.controls != controls and self._port is not None:
            for frame in ring.pop_many(1):
                self._port.send(frame)
        self.closed = self.closed or ring.broken
        return count

    def drain(self, most: int) -> int:
        count: int = self._shared.rx.drain(self._engine, self._number, most)
        self.closed = self.closed or self._shared.rx.broken
        return count

    def flush(self) -> None:
        wake_reader = self._shared.rx.must_wake_consumer()
        if self._shared.tx.must_wake_producer() or wake_reader:
            os.eventfd_write(self._to_card, 1)

    def may_sleep(self) -> bool:
        if self._gone():
            self.closed = True
            return False
        if not self._full and not self._shared.tx.consumer_may_sleep():
            return False
        # Frames that wait for room in the RX ring: the card wakes us when there is some.
        return self._port is None or not self._waits() or bool(self._shared.rx.producer_may_sleep())

    def _waits(self) -> bool:
        assert self._port is not None
        return any(self._port.occupancy(c, outgoing=True)[0] for c in range(8))

    def _gone(self) -> bool:
        try:
            return self._control.recv(1) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def woken(self) -> None:
        self._shared.tx.awake()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._to_switch)

    def filenos(self) -> Sequence[int]:
        return (self._to_switch, self._control.fileno())

    def counters(self) -> dict[str, int]:
        return {"tx_ring_bytes": self._shared.tx.used(), "rx_ring_bytes": self._shared.rx.used()}

    def close(self) -> None:
        self._shared.rx.shut()
        self._shared.tx.shut()
        with contextlib.suppress(OSError):
            os.eventfd_write(self._to_card, 1)
        self._shared.close()
        os.close(self._to_switch)
        os.close(self._to_card)
        self._control.close()


class VirtualCard:
    """The program's side: frames in and out, as bytes from the destination address on, without check sequence.

    One thread sends and one receives, at most.  All waiting raises `ClosedError` when the switch has gone.
    """

    def __init__(self, shared: _Shared, to_switch: int, to_card: int, control: socket.socket) -> None:
        self._shared, self._to_switch, self._to_card, self._control = shared, to_switch, to_card, control
        self.slept = self.refused = 0
        self._poll = select.poll()
        self._poll.register(to_card, select.POLLIN)
        self._poll.register(control, select.POLLIN)
        self._largest = shared.tx.size // 2 - 16

    def __enter__(self) -> VirtualCard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Becomes readable after `receive` said None, when there is something: for select and asyncio."""
        return self._to_card

    def send(self, frame: bytes) -> bool:
        """False: the card's TX ring is full; the frame was not taken."""
        return self.send_many((frame,)) == 1

    def send_many(self, frames: Sequence[bytes], start: int = 0) -> int:
        """Send frames from number `start` on; returns how many were taken."""
        self._check()
        ring = self._shared.tx
        count: int = ring.push_many(frames, start)
        if count and ring.must_wake_consumer():
            os.eventfd_write(self._to_switch, 1)
        if count < len(frames) - start:
            self.refused += 1
            if len(frames[start + count]) > self._largest:
                raise InvalidAttributeError(
                    f"a frame of {len(frames[start + count])} bytes; this card's ring takes up to {self._largest}"
                )
        return count

    def send_all(self, frames: Sequence[bytes], timeout: float | None = None) -> int:
        """Send frames, waiting for room; returns how many were taken: all, unless the time was over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        sent = self.send_many(frames)
        while sent < len(frames):
            left = None if deadline is None else deadline - time.monotonic()
            if not self.wait_room(left):
                break
            sent += self.send_many(frames, sent)
        return sent

    def receive(self) -> bytes | None:
        """The next frame; None: there is none."""
        found = self.receive_many(1)
        return found[0] if found else None

    def receive_many(self, most: int = 256) -> list[bytes]:
        """Up to so many frames, that are there now."""
        ring = self._shared.rx
        if ring.memory is None or ring.is_empty():
            self._check()
            ring.consumer_may_sleep()
            return []
        found: list[bytes] = ring.pop_many(most)
        if ring.broken:
            raise ClosedError("the switch wrote into its ring what cannot be")
        if ring.must_wake_producer():
            os.eventfd_write(self._to_switch, 1)
        return found

    def _check(self) -> None:
        if self._shared.tx.memory is None or self._shared.tx.is_shut():
            raise ClosedError("the switch has closed this port")

    def wait_room(self, timeout: float | None = None) -> bool:
        """Sleep until the TX ring is half empty; False: the time was over."""
        self._check()
        return self._wait(self._shared.tx.producer_may_sleep, timeout)

    def wait_frames(self, timeout: float | None = None) -> bool:
        """Sleep until there is a frame; False: the time was over."""
        ring = self._shared.rx
        if ring.memory is None:
            self._check()
        until = time.monotonic_ns() + SPIN_NS
        while time.monotonic_ns() < until:
            if not ring.is_empty():
                return True
            os.sched_yield()  # who makes the frames may wait for this processor
        return self._wait(ring.consumer_may_sleep, timeout)

    def _wait(self, may_sleep: object, timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        assert callable(may_sleep)
        while may_sleep():
            self._check()
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self.slept += 1
            for descriptor, _ in self._poll.poll(None if left is None else left * 1000):
                if descriptor == self._to_card:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._to_card)
                elif self._control.recv(1) == b"":
                    raise ClosedError("the switch has gone")
        return True

    def close(self) -> None:
        """Unplug the card: the port is gone; what is in the TX ring still is read."""
        if self._shared.tx.memory is None:
            return
        self._shared.close()
        self._control.close()
        os.close(self._to_switch)
        os.close(self._to_card)


def _new(ring_bytes: int) -> tuple[int, int, int]:
    if ring_bytes < 1 << 12 or ring_bytes & (ring_bytes - 1):
        raise InvalidAttributeError(f"ring_bytes = {ring_bytes}: a power of two from 4096 on")
    memory = os.memfd_create("verbena-card", os.MFD_CLOEXEC)
    os.ftruncate(memory, 2 * (HEADER + ring_bytes))
    flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
    return memory, os.eventfd(0, flags), os.eventfd(0, flags)


def card_pair(ring_bytes: int = DEFAULT_RING_BYTES) -> tuple[ShmPort, VirtualCard]:
    """Both sides of a card, for threads of one process or a process and its child."""
    memory, to_switch, to_card = _new(ring_bytes)
    ours, theirs = socket.socketpair()
    port = ShmPort(_Shared(memory, ring_bytes), to_switch, to_card, ours)
    card = VirtualCard(_Shared(os.dup(memory), ring_bytes), os.dup(to_switch), os.dup(to_card), theirs)
    return port, card


def bare_pair(ring_bytes: int = DEFAULT_RING_BYTES) -> tuple[VirtualCard, VirtualCard]:
    """Two cards with nothing between them: what one sends, the other receives.  The measure for a switch."""
    memory, wake_first, wake_second = _new(ring_bytes)
    ours, theirs = socket.socketpair()
    there = _Shared(os.dup(memory), ring_bytes)
    there.tx, there.rx = there.rx, there.tx
    first = VirtualCard(_Shared(memory, ring_bytes), wake_second, wake_first, ours)
    return first, VirtualCard(there, os.dup(wake_first), os.dup(wake_second), theirs)


class CardListener:
    """Where programs get their cards: a Unix socket at `path`."""

    def __init__(self, path: str, ring_bytes: int = DEFAULT_RING_BYTES) -> None:
        self.path, self.ring_bytes = path, ring_bytes
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.bind(path)
        except OSError as error:
            self._socket.close()
            raise SystemLimitError(f"cannot listen at {path}: {error.strerror}") from None
        self._socket.listen()

    def fileno(self) -> int:
        """Becomes readable when a program wants a card."""
        return self._socket.fileno()

    def accept(self, timeout: float | None = None) -> ShmPort:
        """The next program's card; raises `TimeoutError`."""
        self._socket.settimeout(timeout)
        control, _ = self._socket.accept()
        memory, to_switch, to_card = _new(self.ring_bytes)
        hello = _HELLO.pack(_MAGIC, self.ring_bytes, 0)
        socket.send_fds(control, [hello], [memory, to_switch, to_card])
        return ShmPort(_Shared(memory, self.ring_bytes), to_switch, to_card, control)

    def close(self) -> None:
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def open_card(path: str, timeout: float = 10.0) -> VirtualCard:
    """Plug a card into the switch that listens at `path`.  Raises `SystemLimitError` when nobody does."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.settimeout(timeout)
    try:
        control.connect(path)
        hello, descriptors, _, _ = socket.recv_fds(control, _HELLO.size, 3)
    except OSError as error:
        control.close()
        raise SystemLimitError(f"no switch at {path}: {error.strerror or error}") from None
    if len(hello) != _HELLO.size or hello[:8] != _MAGIC or len(descriptors) != 3:
        control.close()
        for descriptor in descriptors:
            os.close(descriptor)
        raise SystemLimitError(f"who listens at {path} speaks another language than a virtual switch")
    control.settimeout(None)
    _, ring_bytes, _ = _HELLO.unpack(hello)
    memory, to_switch, to_card = descriptors
    return VirtualCard(_Shared(memory, ring_bytes), to_switch, to_card, control)
