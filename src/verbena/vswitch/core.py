"""The two ends of the switch's core: admission of what producers offer, delivery to consumers.

A producer *offers* a frame: if its input queue has said stop, the producer sleeps; else the frame is queued and the
forwarder is started, which moves what it can to the outputs (*push*).  A consumer *takes* a frame; when its output is
empty, it starts the forwarder itself (*pull*), and sleeps only if that brings nothing (document 002:100).  Who sleeps
is woken once, and only when there is something to do.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.vswitch.forwarder import SwitchForwarder

if cython.compiled:
    from cython.cimports.libc.string import memcpy
    from cython.cimports.verbena.vswitch.tables import *
else:
    from verbena.vswitch.tables import *


class SwitchCore(SwitchForwarder):
    """The data path of a switch.  Not for threads: one drives it at a time."""

    # --- admission --------------------------------------------------------------------------------------------

    def member(self, port, vlan):
        """Is the port in this VLAN?"""
        return not self.vlans or (self.ports[port].allowed[vlan >> 3] >> (vlan & 7)) & 1

    def refuse(self, port, cls, cause):
        """Drop a frame that just came."""
        self.ports[port].rx_frames += 1
        self.ident += 1
        self.lost(port, cls, cause, self.ident)
        return DROPPED

    def enter(self, port, data, stored, length, patient, direct):
        """A frame comes to a port: FULL, QUEUED, CONTROL or DROPPED.

        patient: the producer can wait; else the frame is on its way already, and goes into what room there is.  direct:
        marked for forwarding: it goes straight to the check of the output.
        """
        p = cython.address(self.ports[port]) if cython.compiled else self.ports[port]
        cls: cython.int = p.default_cls
        vlan: cython.int = p.pvid
        behind: cython.uint = 14
        tagged: cython.bint = False
        kind: cython.uint
        if not p.up:
            return self.refuse(port, cls, PORT_DOWN)
        if stored < 14 or length < stored:
            return self.refuse(port, cls, SHORT)
        if length > self.max_frame:
            return self.refuse(port, cls, LONG)
        kind = (data[12] << 8) | data[13]
        if kind == 0x8100:
            if stored < 18:
                return self.refuse(port, cls, SHORT)
            tagged = True
            behind = 18
            cls = data[14] >> 5
            if ((data[14] & 15) << 8) | data[15]:
                vlan = ((data[14] & 15) << 8) | data[15]
            kind = (data[16] << 8) | data[17]
        if kind <= 1500 and behind + kind > length:
            return self.refuse(port, cls, LENGTH)
        if (
            data[0] == 0x01
            and data[1] == 0x80
            and data[2] == 0xC2
            and (data[3] | data[4]) == 0
            and data[5] < 16
        ):
            return CONTROL
        if not self.vlans:
            vlan = 0
        elif vlan == 4095 or not self.member(port, vlan):
            return self.refuse(port, cls, VLAN)
        q = (
            cython.address(self.inputs[port * CLASSES + cls])
            if cython.compiled
            else self.inputs[port * CLASSES + cls]
        )
        tight: cython.bint = q.frames >= q.room_frames or q.octets + length > q.room_octets
        if q.lossless and patient and (q.stopped or tight):
            if not (p.producer_sleeps >> cls) & 1:
                p.producer_sleeps |= 1 << cls
                p.producer_slept += 1
            return FULL
        if tight:
            q.drops += 1
            return self.refuse(port, cls, OVERRUN if q.lossless else INPUT_FULL)
        return self.admit(port, cls, data, stored, length, direct, vlan, tagged)

    def destination(self, port, data, vlan):
        """The port that an address leads to; FLOOD; or, below -1, why to none."""
        key: cython.ulonglong = cython.cast(cython.ulonglong, vlan) << 48
        at: cython.longlong
        i: cython.int
        if data[0] & 1:
            return FLOOD
        for i in range(6):
            key |= cython.cast(cython.ulonglong, data[i]) << (40 - 8 * i)
        at = self.find(key)
        if at >= 0 and self.where[at] != NOBODY:
            return self.where[at] if self.where[at] != port else -2 - HAIRPIN
        if self.physical == NOBODY or (self.learning and port == self.physical):
            return FLOOD
        # The physical network holds every address that is not local (document 002:94).
        return self.physical if port != self.physical else -2 - FOREIGN

    def everyone(self, port, vlan):
        """The ports that a group frame goes to."""
        out: cython.int
        mask: cython.ulonglong = 0
        for out in range(self.capacity):
            if out != port and self.ports[out].up and self.member(out, vlan):
                mask |= bit(out)
        return mask

    def admit(self, port, cls, data, stored, length, direct, vlan, tagged):
        p = cython.address(self.ports[port]) if cython.compiled else self.ports[port]
        source: cython.ulonglong = cython.cast(cython.ulonglong, vlan) << 48
        i: cython.int
        s: cython.int
        out: cython.int
        mask: cython.ulonglong = 0
        if self.learning and not data[6] & 1:
            for i in range(6):
                source |= cython.cast(cython.ulonglong, data[6 + i]) << (40 - 8 * i)
            self.learn(source, port)
        out = self.destination(port, data, vlan)
        if out < 0:
            return self.refuse(port, cls, -2 - out)
        if out == FLOOD:
            mask = self.everyone(port, vlan)
            if not mask:
                return self.refuse(port, cls, UNWANTED)
        elif not self.ports[out].up:
            return self.refuse(port, cls, PORT_GONE)
        elif not self.member(out, vlan):
            return self.refuse(port, cls, VLAN)
        s = self.allocate()
        self.fill(s, data, stored)
        self.ident += 1
        slot = cython.address(self.slots[s]) if cython.compiled else self.slots[s]
        slot.length, slot.cls, slot.source, slot.out = length, cls, port, out
        slot.vlan, slot.tagged, slot.marked, slot.pending, slot.ident = vlan, tagged, False, mask, self.ident
        p.rx_frames += 1
        p.rx_octets += length
        if self.traced:
            self.note(IN_ARRIVED, port, cls, slot.ident)
        o = (
            cython.address(self.outputs[(out & 63) * CLASSES + cls])
            if cython.compiled
            else self.outputs[(out & 63) * CLASSES + cls]
        )
        if direct or self.bypass:
            self.step(IN_FOR_FORWARDING, port, cls, slot.ident)
            # never past a frame of its own flow, nor past inputs that wait for the output
            behind: cython.bint = self.line_head[self.line_of(port, cls, out)] != NOBODY
            if out != FLOOD and not behind and not o.waiting and self.serves(out, o):
                self.step(IN_OUTPUT_ROOM, port, cls, slot.ident)
                self.put_out(out, cls, s)
                return QUEUED
        elif self.traced:
            self.note(IN_FROM_PRODUCER, port, cls, slot.ident)
        if (
            self.push
            and not self.traced
            and out != FLOOD
            and not o.waiting
            and self.straight(port, cls, out, s)
        ):
            return QUEUED
        self.line_up(port, cls, s)
        return QUEUED

    def straight(self, port, cls, out, s):
        """Queue, forward and move in one step, where nothing is in the way: the same counters and turns, sooner."""
        q = (
            cython.address(self.inputs[port * CLASSES + cls])
            if cython.compiled
            else self.inputs[port * CLASSES + cls]
        )
        o = (
            cython.address(self.outputs[out * CLASSES + cls])
            if cython.compiled
            else self.outputs[out * CLASSES + cls]
        )
        frames: cython.longlong = q.frames + 1
        octets: cython.longlong = q.octets + self.slots[s].length
        if self.line_head[self.line_of(port, cls, out)] != NOBODY or not self.serves(out, o):
            return False
        if q.lossless and (frames >= q.high_frames or octets >= q.high_octets):
            return False
        q.entered += 1
        q.left += 1
        q.peak_frames = frames if frames > q.peak_frames else q.peak_frames
        q.peak_octets = octets if octets > q.peak_octets else q.peak_octets
        o.deficit[port] = 0
        o.turn = (port + 1) % MOST_PORTS
        o.in_turn = False
        self.put_out(out, cls, s)
        return True

    # --- delivery ---------------------------------------------------------------------------------------------

    def take(self, out):
        """The next frame of an output, or -1; classes take turns.  At the low mark the forwarder is woken."""
        p = cython.address(self.ports[out]) if cython.compiled else self.ports[out]
        cls: cython.int = p.next_cls
        s: cython.int
        ready: cython.int = p.filled & ~p.closed
        if not ready:
            return NOBODY
        cls = cls + lowest(ready >> cls) if ready >> cls else lowest(ready)
        p.next_cls = (cls + 1) & 7
        o = (
            cython.address(self.outputs[out * CLASSES + cls])
            if cython.compiled
            else self.outputs[out * CLASSES + cls]
        )
        s = o.head
        o.head = self.slots[s].next
        o.frames -= 1
        o.octets -= self.slots[s].length
        o.left += 1
        if not o.frames:
            p.filled &= ~(1 << cls)
        p.tx_frames += 1
        p.tx_octets += self.slots[s].length
        if self.traced:
            self.note(OUT_DEQUEUED, out, cls, self.slots[s].ident)
        if o.stopped:
            if o.frames <= o.low_frames and o.octets <= o.low_octets:
                o.stopped = False
                o.starts += 1
                self.step(OUT_BELOW_RESTART, out, cls, self.slots[s].ident)
                self.step(OUT_FORWARDER_WOKEN, out, cls, self.slots[s].ident)
                self.serve(out, cls)
            else:
                self.step(OUT_ABOVE_RESTART, out, cls, self.slots[s].ident)
        if self.traced:
            self.note(OUT_CONSUMED, out, cls, self.slots[s].ident)
        return s

    def pull(self, out):
        """The consumer starts the forwarder itself."""
        cls: cython.int
        self.step(OUT_PULL, out, 0, 0)
        for cls in range(CLASSES):
            if self.outputs[out * CLASSES + cls].waiting:
                self.serve(out, cls)

    def take_or_sleep(self, out):
        """The receiver of Algorithm 1: consume; or pull and consume; or sleep (-1)."""
        s: cython.int = self.take(out)
        if s == NOBODY:
            self.pull(out)
            s = self.take(out)
        if s == NOBODY and not self.ports[out].consumer_sleeps:
            self.ports[out].consumer_sleeps = True
            self.ports[out].consumer_slept += 1
            self.step(OUT_SLEEP, out, 0, 0)
        return s

    def change_of_tag(self, s, out):
        """Bytes that the frame grows or shrinks by at this port: a tag goes in (4), comes off (-4), or stays (0)."""
        wanted: cython.bint
        if not self.vlans:
            return 0
        wanted = self.ports[out].tags or self.slots[s].vlan != self.ports[out].pvid
        return 4 * (cython.cast(cython.int, wanted) - cython.cast(cython.int, self.slots[s].tagged))

    def give(self, s, out, target):
        """Write a frame as this port sends it; returns its size.  Room for 4 bytes more than it has, please."""
        slot = cython.address(self.slots[s])
        change: cython.int = self.change_of_tag(s, out)
        if change == 0:
            memcpy(target, slot.data, slot.stored)
        elif change < 0:
            memcpy(target, slot.data, 12)
            memcpy(target + 12, slot.data + 16, slot.stored - 16)
        else:
            memcpy(target, slot.data, 12)
            target[12], target[13] = 0x81, 0x00
            target[14] = (slot.cls << 5) | (slot.vlan >> 8)
            target[15] = slot.vlan & 0xFF
            memcpy(target + 16, slot.data + 12, slot.stored - 12)
        return slot.stored + change
