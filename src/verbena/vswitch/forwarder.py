"""The forwarder of the document's Algorithm 1: what moves frames from input queues to output queues.

**Fairness**: each output serves the inputs that have something for it by deficit round robin (Shreedhar and Varghese,
1995) with a quantum of one longest frame: equal shares in bytes, whatever the sizes.

**Head-of-line blocking**: with virtual output queues a frame for a full output delays no frame for another one.
Without, it delays those behind it in its input queue.  A group frame is copied to each output as that one has room, and
leaves the input when all have it.

**Lossy classes** say no stop: a frame that finds no room is dropped and counted, at the input or at the output.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.vswitch.tables import SwitchTables

if cython.compiled:
    from cython.cimports.verbena.vswitch.tables import *
else:
    from verbena.vswitch.tables import *


class SwitchForwarder(SwitchTables):
    """Lines of frames in, output queues out.

    push: does a produced frame start the forwarder at once?  If not, only consumers do, and are woken to do it.
    """

    def __init__(self, capacity, max_frame=1522, voq=True, vlans=False, table_size=8192):
        SwitchTables.__init__(self, capacity, max_frame, voq, vlans, table_size)
        self.push = True
        self.todo = 0
        self.serving = False
        self.current = NOBODY

    def line_up(self, port, cls, s):
        """Into the input queue; say stop if that fills it; start the forwarder (push)."""
        q = (
            cython.address(self.inputs[port * CLASSES + cls])
            if cython.compiled
            else self.inputs[port * CLASSES + cls]
        )
        slot = cython.address(self.slots[s]) if cython.compiled else self.slots[s]
        out: cython.int = slot.out
        i: cython.int
        ident: cython.longlong = slot.ident
        mask: cython.ulonglong = slot.pending
        line: cython.int = self.line_of(port, cls, out)
        slot.next = NOBODY
        q.frames += 1
        q.octets += slot.length
        q.entered += 1
        q.peak_frames = q.frames if q.frames > q.peak_frames else q.peak_frames
        q.peak_octets = q.octets if q.octets > q.peak_octets else q.peak_octets
        self.step(IN_QUEUED, port, cls, ident)
        if q.lossless and not q.stopped:
            if q.frames >= q.high_frames or q.octets >= q.high_octets:
                q.stopped = True
                q.stops += 1
                self.step(IN_ABOVE_STOP, port, cls, ident)
                self.note(STOP, port, cls, ident)
            else:
                self.step(IN_BELOW_STOP, port, cls, ident)
        if self.line_head[line] == NOBODY:
            self.line_head[line] = self.line_tail[line] = s
            self.announce(port, cls, line)
        else:
            self.slots[self.line_tail[line]].next = s
            self.line_tail[line] = s
        if out != FLOOD:
            self.start(out, cls)
            return
        while mask:
            i = lowest(mask)
            mask &= mask - 1
            self.start(i, cls)

    def start(self, out, cls):
        """Start the forwarder for an output, or have its consumer do it."""
        if self.push:
            self.serve(out, cls)
        elif self.ports[out].consumer_sleeps:
            self.wake_consumer(out)

    # --- forwarder --------------------------------------------------------------------------------------------

    def line_of(self, port, cls, out):
        return (port * CLASSES + cls) * (MOST_PORTS + 1) + (out if self.voq else 0)

    def announce(self, port, cls, line):
        """A line has a new head: tell the outputs that it is for."""
        s: cython.int = self.line_head[line]
        mask: cython.ulonglong
        i: cython.int
        if s == NOBODY:
            return
        mask = self.slots[s].pending if self.slots[s].out == FLOOD else bit(self.slots[s].out)
        while mask:
            i = lowest(mask)
            mask &= mask - 1
            self.outputs[i * CLASSES + cls].waiting |= bit(port)
            if i != self.current:
                self.todo |= bit(i)

    def candidate(self, port, cls, out):
        """The line of an input whose head may go to this output, the older one of two; -1: there is none."""
        line: cython.int = self.line_of(port, cls, out)
        s: cython.int = self.line_head[line]
        g: cython.int
        if s != NOBODY and self.slots[s].out != out:
            s = s if self.slots[s].out == FLOOD and (self.slots[s].pending >> out) & 1 else NOBODY
        if self.voq:
            g = self.line_head[self.line_of(port, cls, FLOOD)]
            if g != NOBODY and (self.slots[g].pending >> out) & 1:
                if s == NOBODY or self.slots[g].ident < self.slots[s].ident:
                    return self.line_of(port, cls, FLOOD)
        return line if s != NOBODY else NOBODY

    def serves(self, out, o):
        """May frames move to this output now?  A dead or vanished one takes all, and drops it."""
        if self.ports[out].dead or not self.ports[out].up:
            return True
        return o.credits != 0 and not (o.lossless and o.stopped)

    def serve(self, out, cls):
        """Move what can be moved to an output, and to those whose turn that brings."""
        i: cython.int
        self.todo |= bit(out)
        if self.serving:
            return
        self.serving = True
        while self.todo:
            i = lowest(self.todo)
            self.todo &= self.todo - 1
            self.serve_one(i, cls)
        self.serving = False

    def serve_one(self, out, cls):
        """Deficit round robin over the inputs that have something for this output."""
        o = (
            cython.address(self.outputs[out * CLASSES + cls])
            if cython.compiled
            else self.outputs[out * CLASSES + cls]
        )
        i: cython.int
        line: cython.int
        later: cython.ulonglong
        length: cython.longlong
        self.current = out
        while o.waiting:
            later = (o.waiting >> o.turn) << o.turn
            i = lowest(later) if later else lowest(o.waiting)
            if i != o.turn:
                o.turn = i
                o.in_turn = False
            line = self.candidate(i, cls, out)
            if line == NOBODY:
                o.waiting &= ~bit(i)
                o.deficit[i] = 0
                o.turn = (i + 1) % MOST_PORTS
                o.in_turn = False
                continue
            if not self.serves(out, o):
                self.step(IN_OUTPUT_FULL, i, cls, self.slots[self.line_head[line]].ident)
                break
            if not o.in_turn:
                o.deficit[i] += self.max_frame
                o.in_turn = True
            length = self.slots[self.line_head[line]].length
            if length > o.deficit[i]:
                o.turn = (i + 1) % MOST_PORTS
                o.in_turn = False
                continue
            o.deficit[i] -= length
            self.move(i, cls, out, line)
        self.current = NOBODY

    def move(self, port, cls, out, line):
        """The head of a line goes to an output; a group frame that others still wait for, as a copy."""
        s: cython.int = self.line_head[line]
        n: cython.int
        length: cython.uint = self.slots[s].length
        ident: cython.longlong = self.slots[s].ident
        self.step(IN_OUTPUT_ROOM, port, cls, ident)
        if self.slots[s].out == FLOOD:
            self.slots[s].pending &= ~bit(out)
            if self.slots[s].pending:
                n = self.allocate()
                self.fill(n, self.slots[s].data, self.slots[s].stored)
                slot = cython.address(self.slots[n]) if cython.compiled else self.slots[n]
                slot.length, slot.cls, slot.source, slot.out = length, cls, port, FLOOD
                slot.vlan, slot.tagged = self.slots[s].vlan, self.slots[s].tagged
                slot.marked, slot.pending, slot.ident = False, 0, ident
                self.ports[port].copies += 1
                self.put_out(out, cls, n)
                return
        self.line_head[line] = self.slots[s].next
        self.announce(port, cls, line)
        self.put_out(out, cls, s)
        self.leave_input(port, cls, length, ident)

    def leave_input(self, port, cls, length, ident):
        """A frame left an input queue: below its low mark it says start, and wakes its producer."""
        q = (
            cython.address(self.inputs[port * CLASSES + cls])
            if cython.compiled
            else self.inputs[port * CLASSES + cls]
        )
        q.frames -= 1
        q.octets -= length
        q.left += 1
        if not q.stopped:
            return
        if q.frames > q.low_frames or q.octets > q.low_octets:
            self.step(IN_ABOVE_RESTART, port, cls, ident)
            return
        q.stopped = False
        q.starts += 1
        self.step(IN_BELOW_RESTART, port, cls, ident)
        self.note(START, port, cls, ident)
        if (self.ports[port].producer_sleeps >> cls) & 1:
            self.ports[port].producer_sleeps &= ~(1 << cls)
            self.ports[port].producer_woken += 1
            self.note(WAKE_PRODUCER, port, cls, ident)

    def put_out(self, out, cls, s):
        """Into an output queue, which closes itself at its high mark and wakes its consumer."""
        p = cython.address(self.ports[out]) if cython.compiled else self.ports[out]
        o = (
            cython.address(self.outputs[out * CLASSES + cls])
            if cython.compiled
            else self.outputs[out * CLASSES + cls]
        )
        slot = cython.address(self.slots[s]) if cython.compiled else self.slots[s]
        if p.dead or not p.up:
            self.lost(out, cls, DEAD_OUTPUT if p.up else PORT_GONE, slot.ident)
            self.release(s)
            return
        if o.frames >= o.room_frames or o.octets + slot.length > o.room_octets:
            o.drops += 1
            self.lost(out, cls, OUTPUT_FULL, slot.ident)
            self.release(s)
            return
        if o.mark_octets and o.octets + slot.length > o.mark_octets:
            slot.marked = True
            o.marks += 1
        slot.next = NOBODY
        if o.head == NOBODY:
            o.head = o.tail = s
        else:
            self.slots[o.tail].next = s
            o.tail = s
        o.frames += 1
        o.octets += slot.length
        o.entered += 1
        o.peak_frames = o.frames if o.frames > o.peak_frames else o.peak_frames
        o.peak_octets = o.octets if o.octets > o.peak_octets else o.peak_octets
        p.filled |= 1 << cls
        if o.credits > 0:
            o.credits -= 1
        if self.traced:
            self.note(IN_MOVED, out, cls, slot.ident)
        if o.lossless and not o.stopped and (o.frames >= o.high_frames or o.octets >= o.high_octets):
            o.stopped = True
            o.stops += 1
        if p.consumer_sleeps and not (p.closed >> cls) & 1:
            self.wake_consumer(out)

    def wake_consumer(self, out):
        self.ports[out].consumer_sleeps = False
        self.ports[out].consumer_woken += 1
        self.note(WAKE_CONSUMER, out, 0, 0)
