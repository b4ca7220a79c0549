"""The cables that leave a process: which are plugged in, and whose peers are known."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from verbena.fabric.assembly import Assembly
from verbena.fabric.topology import Link, PortId
from verbena.runtime.core_loop import Cable, CoreLoop
from verbena.runtime.link_end import LinkEnd, LinkTimes, State

_last_session = 0


def new_session() -> int:
    """Greater than all before, also than those of an earlier process (unless the machine's clock was set back)."""
    global _last_session
    _last_session = max(_last_session + 1, time.time_ns())
    return _last_session


class ExternalCables:
    """Implements `fabric.assembly.Outside`.  All calls, once the loop runs, with the core's lock held.

    A cable carries flits while it is plugged in, and a process that has the other end is attached to it.
    """

    def __init__(self, times: LinkTimes) -> None:
        self.times = times
        self.links: dict[PortId, Link] = {}
        self.cables: dict[PortId, Cable] = {}
        self._loop: CoreLoop
        self._assembly: Assembly

    def begin(self, loop: CoreLoop, assembly: Assembly) -> None:
        """What the cables are for."""
        self._loop = loop
        self._assembly = assembly

    def plugged(self, port: PortId, link: Link) -> None:
        self.links[port] = link
        if port in self.cables:
            self.cables[port].end.plug(self._loop.clock.now())

    def pulled(self, port: PortId, link: Link) -> None:
        self.links.pop(port, None)
        if port in self.cables:
            self.cables[port].end.unplug(self._loop.clock.now())

    def attach(self, port: PortId, token: int, address: Any) -> None:
        """The other end of a port's cable is in the process at that address."""
        self.detach([port])
        number, core, times = self._assembly.ports[port], self._assembly.core, self.times

        def up() -> None:
            link = self.links[port]
            core.make_external(
                number,
                link.rate.bps,
                link.bit_error_rate,
                ack_ns=times.ack_ns,
                replay_ns=times.replay_ns,
                ask_ns=times.ask_ns,
            )

        end = LinkEnd(
            token,
            times,
            new_session,
            lambda datagram: self._loop.send_datagram(datagram, address),
            up,
            lambda: core.disconnect(number),
        )
        cable = self.cables[port] = Cable(number, end, address)
        self._loop.add_cable(cable)
        if port in self.links:
            end.plug(self._loop.clock.now())

    def detach(self, ports: Iterable[PortId]) -> None:
        """That process is gone."""
        for port in ports:
            cable = self.cables.pop(port, None)
            if cable is not None:
                cable.end.unplug(self._loop.clock.now())
                self._loop.remove_cable(cable)

    def is_up(self, port: PortId) -> bool:
        cable = self.cables.get(port)
        return cable is not None and cable.end.state is State.UP

    def counters(self) -> dict[str, int]:
        """What all ends counted."""
        total: Counter[str] = Counter()
        for cable in self.cables.values():
            total.update(cable.end.counters)
        return dict(total)
