"""What the ports of a virtual switch to descriptors have in common: which of them are watched, and for what.

A port whose frames the switch does not take must not be woken by those that wait outside; one that waits for room
outside must.  So each port has an epoll descriptor of its own, which the switch's loop watches, and changes in it what
it waits for.
"""

from __future__ import annotations

import contextlib
import select
from collections import Counter
from collections.abc import Sequence

from verbena.vswitch.kinds import Outcome
from verbena.vswitch.switch import SwitchPort
from verbena.wire.errors import DecodeError
from verbena.wire.offload import PLAIN, finish


class PollPort:
    """A `vswitch_loop.PortDriver` but for `feed` and `drain`.  `tally`: what was dropped here, by cause.

    trailer: frames in the switch have a ``virtio_net_hdr`` behind them.
    """

    def __init__(self, trailer: bool = False) -> None:
        self.closed = False
        self.trailer = trailer
        self.tally: Counter[str] = Counter()
        self._port: SwitchPort | None = None
        self._epoll = select.epoll()
        self._watched: dict[int, int] = {}

    @property
    def port(self) -> SwitchPort:
        assert self._port is not None, "attach comes first"
        return self._port

    def attach(self, port: SwitchPort) -> None:
        self._port = port

    def watch(self, descriptor: int, reading: bool, writing: bool = False) -> None:
        """Wake the loop when this can be read, or written, from now on."""
        wanted = (select.EPOLLIN if reading else 0) | (select.EPOLLOUT if writing else 0)
        before = self._watched.get(descriptor, 0)
        if wanted == before:
            return
        if not wanted:
            # Not only masked: a socket whose peer has hung up would wake the loop all the same, again and again.
            self._epoll.unregister(descriptor)
        elif before:
            self._epoll.modify(descriptor, wanted)
        else:
            self._epoll.register(descriptor, wanted)
        self._watched[descriptor] = wanted

    def offer(self, frame: bytes) -> bool:
        """Into the switch; False: there is no room, and it must be offered again."""
        outcome = self.port.switch.engine.offer(self.port.number, frame, 0, True, False)
        if outcome == Outcome.CONTROL:
            return self.port.send(frame)
        return bool(outcome != Outcome.FULL)

    def completed(self, data: bytes) -> list[bytes]:
        """A frame of the switch for a place that knows no offload: cut, with its checksums."""
        if not self.trailer:
            return [data]
        try:
            return finish(data[: -len(PLAIN)], data[-len(PLAIN) :])
        except DecodeError:
            self.tally["bad_offload"] += 1
            return []

    def flush(self) -> None:
        """Nobody has to be woken: descriptors do that themselves."""

    def may_sleep(self) -> bool:
        return True

    def woken(self) -> None:
        """Nothing to do: what a descriptor has to tell, it tells again."""

    def filenos(self) -> Sequence[int]:
        return (self._epoll.fileno(),)

    def counters(self) -> dict[str, int]:
        return dict(self.tally)

    def close(self) -> None:
        self.closed = True
        with contextlib.suppress(OSError):
            self._epoll.close()
