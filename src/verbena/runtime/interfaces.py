"""Interfaces of the operating system as this process sees them: what they can do, and a thread that reads one."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from verbena.errors import VerbenaError
from verbena.lan.port import OffloadFrame
from verbena.wire.errors import DecodeError
from verbena.wire.offload import PLAIN, OffloadFlag, OffloadHeader, finish

log = logging.getLogger("verbena")

BURST = 32
BURST_BYTES = 256 << 10
AWAKE_NS = 25_000
"""How long a reader looks for more before it sleeps: to be woken on an idle processor takes longer than an answer."""
TURN = 4  # bursts of one interface, then it is the others' turn
SMALLEST_FRAME = 14
NOTHING = OffloadHeader(OffloadFlag.DATA_VALID).pack()
GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Interface(Protocol):
    """What of the operating system frames come from and go to: a TAP device, or an interface with a cable of its own.

    offload: do frames come and go with a virtio_net_hdr?  `read` returns a frame, which lasts until the next call, and
    its header; `write` takes both.  `counters`: tx is what the system sends, rx what it receives.
    """

    name: str
    mtu: int
    offload: bool
    counters: Counter[str]

    def read(self) -> tuple[memoryview, bytes] | None: ...
    def write(self, frame: bytes, header: bytes = PLAIN) -> bool: ...
    def set_mac(self, mac: bytes) -> None: ...
    def set_carrier(self, on: bool) -> None: ...
    def forget_neighbour(self, mac: bytes) -> None: ...
    def fileno(self) -> int: ...


class InterfaceReader:
    """A thread that reads several interfaces, for their users, and does what takes time for them."""

    def __init__(self, name: str = "verbena interfaces") -> None:
        self._users: dict[int, InterfaceUser] = {}
        self._wanted: deque[InterfaceUser] = deque()
        self._poller = select.poll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller.register(self._wake_fd, select.POLLIN)
        self._round = threading.RLock()  # held while users are served
        self._open = True
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, user: InterfaceUser) -> None:
        """Read a user's interface from now on."""
        with self._round:
            descriptor = user.interface.fileno()
            self._users[descriptor] = user
            self._poller.register(descriptor, select.POLLIN)
        self.wake(user)

    def remove(self, user: InterfaceUser) -> None:
        """No longer; when this returns, the thread has nothing to do with it any more."""
        with self._round:
            descriptor = user.interface.fileno()
            if self._users.pop(descriptor, None) is not None:
                with contextlib.suppress(KeyError):
                    self._poller.unregister(descriptor)

    def wake(self, user: InterfaceUser) -> None:
        """Have the thread look after a user, from any thread."""
        self._wanted.append(user)
        if self._open:
            os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        while self._open:
            found = self._poll()
            with self._round:
                for descriptor, events in found:
                    if descriptor == self._wake_fd:
                        with contextlib.suppress(BlockingIOError):
                            os.eventfd_read(self._wake_fd)
                    elif (user := self._users.get(descriptor)) is not None:
                        if events & GONE and not events & select.POLLIN:
                            user.lost()
                            self.remove(user)
                        else:
                            self._serve(descriptor, user)
                while self._wanted:
                    user = self._wanted.popleft()
                    descriptor = user.interface.fileno()
                    if self._users.get(descriptor) is user:
                        self._serve(descriptor, user)

    def _poll(self) -> list[tuple[int, int]]:
        """What can be read, once something can."""
        poll = self._poller.poll
        end = time.perf_counter_ns() + AWAKE_NS
        while time.perf_counter_ns() < end:
            if found := poll(0):
                return found
        return poll()

    def _serve(self, descriptor: int, user: InterfaceUser) -> None:
        """Let a user read; while it cannot hand on what it has read, nothing more is."""
        reading = user.serve()
        if reading != user.reading:
            user.reading = reading
            self._poller.modify(descriptor, select.POLLIN if reading else 0)

    def close(self) -> None:
        """End the thread, whose users must have been removed."""
        if not self._open:
            return
        self._open = False
        os.eventfd_write(self._wake_fd, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        os.close(self._wake_fd)


class InterfaceUser:
    """Whoever reads an interface, in bursts, and writes to it, from any thread.

    offload: what is read is passed on as it is, with its header; if not, checksums and segmentation are done here.
    reader: the thread that reads; None: one of its own.
    """

    def __init__(self, interface: Interface, offload: bool, reader: InterfaceReader | None = None) -> None:
        self.interface = interface
        self.counters = interface.counters
        self.reading = True
        self._offload = offload
        self._chores: deque[Callable[[], None]] = deque()
        self._guard = threading.Lock()
        self._open = True
        self._own = InterfaceReader(f"verbena {interface.name}") if reader is None else None
        self._reader = reader or self._own
        assert self._reader is not None

    def _pass_on(self) -> bool:
        """Read, and hand on what was read; False: whoever takes it is full, and reading has to wait."""
        raise NotImplementedError

    def serve(self) -> bool:
        """Called by the reader: do what there is to do, then `_pass_on`."""
        while self._chores and self._open:
            self._guarded(self._chores.popleft())
        return self._guarded(self._pass_on) if self._open else True

    def lost(self) -> None:
        """Somebody has removed the interface: nothing more is read."""
        self.counters["lost"] += 1
        log.warning("interface %s is gone", self.interface.name)

    def _guarded(self, function: Callable[[], bool | None]) -> bool:
        try:
            return function() is not False
        except VerbenaError as error:
            self.counters["failed"] += 1
            log.warning("interface %s: %s", self.interface.name, error)
        except Exception:
            self.counters["failed"] += 1
            log.exception("interface %s", self.interface.name)
        return True

    def _do(self, *chores: Callable[[], None]) -> None:
        """Let the reader's thread do something; and look whether there is room again."""
        self._chores.extend(chores)
        if self._open and self._reader is not None:
            self._reader.wake(self)

    # --- reading ------------------------------------------------------------------------------------------

    def _read(self, most: int = BURST) -> list[bytes]:
        frames: list[bytes] = []
        size = 0
        read = self.interface.read
        while len(frames) < most and size < BURST_BYTES and (found := read()) is not None:
            view, header = found
            if len(view) < SMALLEST_FRAME:
                self.counters["drop.tx.runt"] += 1
                continue
            size += len(view)
            self._take(view, header, frames)
        self.counters["tx.frames"] += len(frames)
        self.counters["tx.bytes"] += size
        return frames

    def _frames_of(self, frame: bytes, header: bytes | None) -> list[bytes]:
        """One frame that was read elsewhere, its header or None if it is finished: as `_read` returns it."""
        frames: list[bytes] = []
        self._take(memoryview(frame), header or PLAIN, frames)
        self.counters["tx.frames"] += len(frames)
        self.counters["tx.bytes"] += len(frame)
        return frames

    def _take(self, view: memoryview, header: bytes, frames: list[bytes]) -> None:
        if header in (PLAIN, NOTHING):
            frames.append(bytes(view))
        elif self._offload:
            frames.append(OffloadFrame(cast(bytes, view), header))  # copied once: any buffer will do
        else:
            try:
                frames += finish(bytes(view), header)
            except DecodeError:
                self.counters["drop.tx.offload"] += 1

    # --- writing ------------------------------------------------------------------------------------------

    def _write_all(self, frames: Sequence[bytes]) -> None:
        with self._guard:  # the descriptor must not be closed, and used by somebody else, meanwhile
            if self._open:
                for frame in frames:
                    self._write(frame)

    def _write(self, frame: bytes) -> None:
        interface, counters = self.interface, self.counters
        if not isinstance(frame, OffloadFrame):
            written = interface.write(frame)
        elif interface.offload:
            written = interface.write(frame, frame.header)
        else:
            try:
                written = True
                for piece in finish(frame, frame.header):
                    written &= interface.write(piece)
            except DecodeError:
                counters["drop.rx.offload"] += 1
                return
        if written:
            counters["rx.frames"] += 1
            counters["rx.bytes"] += len(frame)

    # --- the end ------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Nothing is read and written any more."""
        with self._guard:
            self._open = False
        if self._reader is not None:
            self._reader.remove(self)
        self._reader = None
        if self._own is not None:
            self._own.close()
