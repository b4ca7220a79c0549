"""Whose turn it is: the line of queue pairs that want to send, and the heap of those that wait for a time.

Both cost nothing for a queue pair that is idle.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.transport.contexts import Contexts


class Schedule(Contexts):
    """The tables of one adapter, with the order in which its queue pairs are served."""

    def enlist(self, q):
        """Put a queue pair at the end of the line of those that want to send; at most once."""
        if not q.ready:
            q.ready = True
            self.ready[self.ready_tail & (self.ready_size - 1)] = q.index
            self.ready_tail += 1

    def next_ready(self):
        """The queue pair whose turn it is to send; it leaves the line."""
        if self.ready_head != self.ready_tail:
            q = self.qps[self.ready[self.ready_head & (self.ready_size - 1)]]
            self.ready_head += 1
            q.ready = False
            return q
        if cython.compiled:
            return cython.NULL
        else:
            return None

    def schedule(self, q, when):
        """See to it that `next_due` gives this queue pair at `when` at the latest.

        A timer that moves to later is not moved in the heap: it comes up early, and is put back.
        """
        if q.timed:
            if q.heap_ns <= when:
                return
            self.unschedule(q)
        q.timed, q.heap_ns = True, when
        self.due_count += 1
        self.sift_up(self.due_count - 1, when, q.index)

    def unschedule(self, q):
        """Take a queue pair out of the heap."""
        i: cython.uint
        if not q.timed:
            return
        q.timed = False
        for i in range(self.due_count):
            if self.due[i].index == q.index:
                self.due_count -= 1
                if i != self.due_count:
                    when: cython.ulonglong = self.due[self.due_count].when
                    index: cython.int = self.due[self.due_count].index
                    if i > 0 and self.due[(i - 1) >> 1].when > when:
                        self.sift_up(i, when, index)
                    else:
                        self.sift_down(i, when, index)
                return

    def sift_up(self, i, when, index):
        up: cython.uint
        while i > 0:
            up = (i - 1) >> 1
            if self.due[up].when <= when:
                break
            self.due[i].when = self.due[up].when
            self.due[i].index = self.due[up].index
            i = up
        self.due[i].when = when
        self.due[i].index = index

    def sift_down(self, i, when, index):
        child: cython.uint
        while True:
            child = 2 * i + 1
            if child >= self.due_count:
                break
            if child + 1 < self.due_count and self.due[child + 1].when < self.due[child].when:
                child += 1
            if when <= self.due[child].when:
                break
            self.due[i].when = self.due[child].when
            self.due[i].index = self.due[child].index
            i = child
        self.due[i].when = when
        self.due[i].index = index

    def next_due(self, now):
        """The queue pair whose timer is over, taken out of the heap; nothing when none is."""
        if self.due_count > 0 and self.due[0].when <= now:
            q = self.qps[self.due[0].index]
            q.timed = False
            self.due_count -= 1
            if self.due_count > 0:
                self.sift_down(0, self.due[self.due_count].when, self.due[self.due_count].index)
            return q
        if cython.compiled:
            return cython.NULL
        else:
            return None

    def earliest(self):
        """When `next_due` must be asked next; 0 = no timer runs."""
        return self.due[0].when if self.due_count > 0 else 0

    def forget(self, q):
        kept: cython.uint
        i: cython.uint
        self.unschedule(q)
        if q.ready:
            kept = self.ready_head
            i = self.ready_head
            while i != self.ready_tail:
                if self.ready[i & (self.ready_size - 1)] != q.index:
                    self.ready[kept & (self.ready_size - 1)] = self.ready[i & (self.ready_size - 1)]
                    kept += 1
                i += 1
            self.ready_tail = kept
            q.ready = False
