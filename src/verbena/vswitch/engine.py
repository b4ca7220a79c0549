"""The switch's core as Python calls it: settings, frames in and out, counters, ports that vanish.

Numbers in, numbers out: what they mean to people (names, configuration, signals, watchdogs) is in `switch`.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.vswitch.core import SwitchCore
from verbena.vswitch.tables import CAUSE_NAMES

if cython.compiled:
    from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
    from cython.cimports.verbena.vswitch.tables import *
else:
    from verbena.vswitch.tables import *


class SwitchEngine(SwitchCore):
    """A switch core with its settings and counters."""

    def queue(self, port, outgoing, cls):
        if cython.compiled:
            return (self.outputs if outgoing else self.inputs) + port * CLASSES + cls
        return (self.outputs if outgoing else self.inputs)[port * CLASSES + cls]

    def port(self, number):
        if cython.compiled:
            return self.ports + number
        return self.ports[number]

    # --- settings ---------------------------------------------------------------------------------------------

    def set_port(self, port, up, default_cls=0, pvid=1, tags=False, vlans=(1,)):
        """What a port is like.  pvid: VLAN of its untagged frames; tags: does it send all frames tagged?"""
        p = self.port(port)
        i: cython.int
        p.up, p.dead, p.default_cls, p.pvid, p.tags = up, False, default_cls, pvid, tags
        for i in range(512):
            p.allowed[i] = 0
        for vlan in vlans:
            p.allowed[vlan >> 3] |= 1 << (vlan & 7)

    def reset_port(self, port):
        """Zero counters and empty outputs for a new tenant of the number."""
        p = self.port(port)
        i: cython.int
        p.rx_frames = p.rx_octets = p.tx_frames = p.tx_octets = p.copies = 0
        p.producer_slept = p.producer_woken = p.consumer_slept = p.consumer_woken = 0
        p.consumer_sleeps, p.producer_sleeps, p.closed, p.filled, p.next_cls = False, 0, 0, 0, 0
        for i in range(CAUSES):
            p.causes[i] = 0
        for i in range(2 * CLASSES):
            q = self.queue(port, i >= CLASSES, i & 7)
            q.entered = q.left = q.stops = q.starts = q.drops = q.marks = 0
            q.frames = q.octets = q.peak_frames = q.peak_octets = 0
            q.stopped, q.credits, q.head = False, UNLIMITED, NOBODY

    def is_empty(self, port):
        """Is nothing left in its input queues?"""
        return all([self.inputs[port * CLASSES + i].frames == 0 for i in range(CLASSES)])

    def set_physical(self, port):
        """The port that every address leads to which is not in the table; -1: there is none."""
        self.physical = port

    def set_queue(self, port, outgoing, cls, lossless, frames, octets, mark_octets=0):
        """Marks of a queue.  frames, octets: (low, high, room).  Takes effect at once, also on what is queued."""
        q = self.queue(port, outgoing, cls)
        q.lossless = lossless
        q.low_frames, q.high_frames, q.room_frames = frames
        q.low_octets, q.high_octets, q.room_octets = octets
        q.mark_octets = mark_octets
        self.reconsider(port, cls)

    def reconsider(self, port, cls):
        """Marks were changed, or a port opened: say stop or start where that is so now."""
        q = self.queue(port, False, cls)
        o = self.queue(port, True, cls)
        i: cython.int
        if q.lossless and not q.stopped and (q.frames >= q.high_frames or q.octets >= q.high_octets):
            q.stopped = True
            q.stops += 1
            self.note(STOP, port, cls, 0)
        elif q.stopped and not (q.lossless and (q.frames > q.low_frames or q.octets > q.low_octets)):
            q.stopped = False
            q.starts += 1
            self.note(START, port, cls, 0)
            if (self.ports[port].producer_sleeps >> cls) & 1:
                self.ports[port].producer_sleeps &= ~(1 << cls)
                self.ports[port].producer_woken += 1
                self.note(WAKE_PRODUCER, port, cls, 0)
        full: cython.bint = o.frames >= o.high_frames or o.octets >= o.high_octets
        if o.lossless and not o.stopped and full:
            o.stopped = True
            o.stops += 1
        elif o.stopped and not (o.lossless and (o.frames > o.low_frames or o.octets > o.low_octets)):
            o.stopped = False
            o.starts += 1
        for i in range(self.capacity):
            if self.outputs[i * CLASSES + cls].waiting:
                self.serve(i, cls)

    def set_credits(self, out, cls, credits, more=False):
        """A flow-control signal (step 201): so many frames may go to this output; -1: as many as its marks allow."""
        o = self.queue(out, True, cls)
        self.step(IN_SIGNAL, out, cls, credits)
        o.credits = o.credits + credits if more and o.credits > 0 else credits
        self.serve(out, cls)

    def set_closed(self, out, mask):
        """The classes that the consumer of a port may not be given now: its peer has paused them."""
        p = self.port(out)
        p.closed = mask
        if p.consumer_sleeps and p.filled & ~mask:
            self.wake_consumer(out)

    def set_dead(self, out, dead):
        """A dead output is emptied, and takes everything and drops it; one that came back to life starts anew."""
        cls: cython.int
        self.ports[out].dead = dead
        for cls in range(CLASSES):
            if dead:
                self.purge_output(out, cls, DEAD_OUTPUT)
            self.serve(out, cls)

    # --- frames -----------------------------------------------------------------------------------------------

    def offer(self, port, data, length=0, patient=True, direct=False):
        """A frame from a producer: FULL (sleep until woken), QUEUED, CONTROL, DROPPED.

        length: of a frame whose payload is not carried along, its true length.  See `SwitchCore.enter`.
        """
        data = bytes(data)
        size: cython.uint = len(data)
        if cython.compiled:
            return self.enter(
                port,
                cython.cast(cython.p_uchar, PyBytes_AS_STRING(data)),
                size,
                length or size,
                patient,
                direct,
            )
        return self.enter(port, data, size, length or size, patient, direct)

    def refuse_control(self, port):
        """Count a control frame that is not for this switch: it is never forwarded (IEEE 802.1Q, 8.6.3)."""
        self.refuse(port, 0, RESERVED)

    def frame_of(self, s, out):
        """A frame's bytes, as this port sends them."""
        change: cython.int = self.change_of_tag(s, out)
        if cython.compiled:
            data: bytes = PyBytes_FromStringAndSize(cython.NULL, self.slots[s].stored + change)
            self.give(s, out, cython.cast(cython.p_uchar, PyBytes_AS_STRING(data)))
            return data
        slot = self.slots[s]
        if change < 0:
            return slot.data[:12] + slot.data[16:]
        if change > 0:
            tag = bytes((0x81, 0, slot.cls << 5 | slot.vlan >> 8, slot.vlan & 0xFF))
            return slot.data[:12] + tag + slot.data[12:]
        return slot.data

    def receive(self, out, sleep=True):
        """The next frame for a consumer: (bytes, true length, class, marked, port it came from, number); None: none.

        sleep: without a frame, the consumer counts as asleep, and is woken by a frame.
        """
        s: cython.int = self.take_or_sleep(out) if sleep else self.take(out)
        if s == NOBODY:
            return None
        data = self.frame_of(s, out)
        length: cython.longlong = self.slots[s].length
        cls: cython.int = self.slots[s].cls
        result = (data, length, cls, bool(self.slots[s].marked), self.slots[s].source, self.slots[s].ident)
        self.release(s)
        return result

    # --- ports that vanish ------------------------------------------------------------------------------------

    def forget_port(self, port):
        """A port vanishes: what is queued for it is dropped and counted; what came from it goes on."""
        cls: cython.int
        i: cython.int
        self.ports[port].up = False
        self.ports[port].producer_sleeps = 0
        self.ports[port].consumer_sleeps = False
        for cls in range(CLASSES):
            self.purge_output(port, cls, PORT_GONE)
            for i in range(self.capacity):
                if self.inputs[i * CLASSES + cls].frames:
                    self.purge_line(i, cls, self.line_of(i, cls, port), port, PORT_GONE)
                    if self.voq:
                        self.purge_line(i, cls, self.line_of(i, cls, FLOOD), port, PORT_GONE)
            for i in range(self.capacity):
                if self.outputs[i * CLASSES + cls].waiting:
                    self.serve(i, cls)

    def purge_output(self, out, cls, cause):
        """Drop what an output queue holds."""
        o = self.queue(out, True, cls)
        s: cython.int
        while o.head != NOBODY:
            s = o.head
            o.head = self.slots[s].next
            self.lost(out, cls, cause, self.slots[s].ident)
            self.release(s)
        o.frames = o.octets = 0
        o.stopped = False
        self.ports[out].filled &= ~(1 << cls)

    def purge_line(self, port, cls, line, out, cause):
        """Drop the frames of a line that are for this output."""
        s: cython.int = self.line_head[line]
        last: cython.int = NOBODY
        following: cython.int
        gone: cython.bint
        while s != NOBODY:
            following = self.slots[s].next
            gone = self.slots[s].out == out
            if self.slots[s].out == FLOOD and (self.slots[s].pending >> out) & 1:
                self.slots[s].pending &= ~bit(out)
                gone = self.slots[s].pending == 0
                if not gone:
                    # the others still get theirs; this copy is none
                    self.ports[port].copies += 1
                    self.lost(out, cls, cause, self.slots[s].ident)
            if not gone:
                last = s
            else:
                if last == NOBODY:
                    self.line_head[line] = following
                else:
                    self.slots[last].next = following
                self.lost(out, cls, cause, self.slots[s].ident)
                self.leave_input(port, cls, self.slots[s].length, self.slots[s].ident)
                self.release(s)
            s = following
        self.line_tail[line] = last
        self.announce(port, cls, line)

    # --- counters ---------------------------------------------------------------------------------------------

    def queue_state(self, port, outgoing, cls):
        """A queue's marks, occupancy and counters, by name."""
        q = self.queue(port, outgoing, cls)
        return {
            "frames": q.frames,
            "bytes": q.octets,
            "high_frames": q.high_frames,
            "low_frames": q.low_frames,
            "room_frames": q.room_frames,
            "high_bytes": q.high_octets,
            "low_bytes": q.low_octets,
            "room_bytes": q.room_octets,
            "lossless": bool(q.lossless),
            "stopped": bool(q.stopped),
            "credits": q.credits,
            "entered": q.entered,
            "left": q.left,
            "stops": q.stops,
            "starts": q.starts,
            "drops": q.drops,
            "marks": q.marks,
            "peak_frames": q.peak_frames,
            "peak_bytes": q.peak_octets,
        }

    def occupancy(self, port, outgoing, cls):
        """(frames, bytes, stopped) of a queue."""
        q = self.queue(port, outgoing, cls)
        return q.frames, q.octets, bool(q.stopped)

    def port_state(self, port):
        """A port's counters, by name; drops by their cause."""
        p = self.port(port)
        i: cython.int
        state = {
            "up": bool(p.up),
            "dead": bool(p.dead),
            "rx_frames": p.rx_frames,
            "rx_bytes": p.rx_octets,
            "tx_frames": p.tx_frames,
            "tx_bytes": p.tx_octets,
            "copies": p.copies,
            "producer_slept": p.producer_slept,
            "producer_woken": p.producer_woken,
            "consumer_slept": p.consumer_slept,
            "consumer_woken": p.consumer_woken,
        }
        for i in range(CAUSES):
            if p.causes[i]:
                state["drop." + CAUSE_NAMES[i]] = p.causes[i]
        return state
