"""A port of a virtual switch at the end of a reliable connection through a fabric: InfiniBand's credits as its signal.

Frames travel as SENDs.  A receive buffer is posted again only when the switch has taken the frame that was in it;
without one, the far adapter hears "receiver not ready" and waits (IBA vol. 1, 9.7.5.2.8).  Its port posts no more sends
than it has slots, so the far switch's output queue fills and stops those who send to it.  On the way every link has the
credits of its lanes (7.9).  So nothing is dropped between two switches, and the producer feels a blocked consumer.

Works in any time: `run` is an asyncio program, everything else happens in callbacks.
"""

from __future__ import annotations

from collections import deque

from verbena.errors import CompletionStatus, InvalidAttributeError
from verbena.runtime.pairs import Side
from verbena.transport.work import RecvRequest, WorkRequest
from verbena.vswitch.switch import SwitchPort

RECEIVE = 1 << 16
"""Work request identifiers from here on are receive slots."""


class FabricPort:
    """Joins `port` to a connected queue pair (or one that will be: then call `start` when it is).

    slots: frames in flight each way.  slot_bytes: room for a frame.  The side's memory holds 2 x slots of them.
    """

    def __init__(self, port: SwitchPort, side: Side, *, slots: int = 32, slot_bytes: int = 2048) -> None:
        if slots < 1 or len(side.mr.buf) < 2 * slots * slot_bytes:
            raise InvalidAttributeError(
                f"{slots} slots of {slot_bytes} bytes each way need {2 * slots * slot_bytes} bytes of memory"
            )
        self.sent = self.received = self.lost = 0
        self.closed = False
        self._port, self._side, self._slots, self._size = port, side, slots, slot_bytes
        self._free = list(range(slots))
        self._arrived: deque[tuple[int, int]] = deque()
        port.on_room = lambda _: self._deliver()
        port.on_frames = self._pump

    def start(self) -> None:
        """Post the receive buffers, and send what waits."""
        for slot in range(self._slots):
            self._post(slot)
        self._pump()

    async def run(self) -> None:
        """Serve completions until the connection ends."""
        async for entry in self._side.cq:
            if entry.status != CompletionStatus.SUCCESS:
                # What was in flight may or may not have arrived; it is counted, and nothing more is tried.
                self.lost += entry.wr_id < RECEIVE
                self.closed = True
                if len(self._free) + self.lost >= self._slots:
                    return
            elif entry.wr_id >= RECEIVE:
                self._arrived.append((entry.wr_id - RECEIVE, entry.byte_len))
                self._deliver()
            else:
                self._free.append(entry.wr_id)
                self._pump()

    def _post(self, slot: int) -> None:
        place = (self._slots + slot) * self._size
        self._side.qp.post_recv(RecvRequest(RECEIVE + slot, [self._side.mr.sge(place, self._size)]))

    def _deliver(self) -> None:
        """Frames that came go into the switch; a slot is posted again when its frame was taken."""
        while self._arrived:
            slot, length = self._arrived[0]
            place = (self._slots + slot) * self._size
            if not self._port.send(bytes(self._side.mr.buf[place : place + length])):
                return
            self._arrived.popleft()
            self.received += 1
            if not self.closed:
                self._post(slot)

    def _pump(self) -> None:
        """Frames of the switch's output go out while there are slots."""
        while self._free and not self.closed:
            found = self._port.receive()
            if found is None:
                return
            slot = self._free.pop()
            place = slot * self._size
            self._side.mr.buf[place : place + len(found.data)] = found.data
            self.sent += 1
            self._side.qp.post_send(WorkRequest(slot, sg_list=[self._side.mr.sge(place, len(found.data))]))
