"""What is sent: packets of the software above, and sources that make packets by themselves, for load.

A source is an open loop: packets are due at times that do not depend on what the fabric takes, and wait without limit
in front of a port that is slower.  They are made late: only a few lie in the port's send queue, the others exist as a
time until these have left.  A packet's latency counts from when it was due.

Each source has its own stream of random numbers (module `chance`): what one sends does not depend on the others.
"""

from __future__ import annotations

from array import array
from itertools import pairwise

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError
from verbena.fabric.chance import mixed
from verbena.fabric.flits import Flits

if cython.compiled:
    from cython.cimports.verbena.fabric.chance import GAMMA, MASK64, exponential, scramble
    from cython.cimports.verbena.fabric.tables import *
else:
    from verbena._declarations import declarations
    from verbena.fabric.chance import GAMMA, MASK64, exponential, scramble
    from verbena.fabric.tables import *

    globals().update(declarations(__file__))

LARGEST_GAP_NS = 100_000_000
MOST_GROUPS = 4096
PROCESSES = {"periodic": PERIODIC, "poisson": POISSON, "bursty": BURSTY}


def _is_size(size, limit):
    """Whole words from LRH to ICRC, and the VCRC."""
    return 22 <= size <= limit and size % 4 == VCRC_BYTES


class Sources(Flits):
    """The fabric with its sources."""

    def __init__(self, flits, seed):
        super().__init__(flits, seed)
        self.seed = mixed(seed & 0xFFFFFFFFFFFFFFFF)
        self._kept = []
        self._tables = {}

    # --- packets into send queues ---------------------------------------------------------------------------

    @cython.final
    def lane_for(self, port, sl):
        """The lane of a service level; -1: the port has none for it."""
        lane: cython.int = port.sl2vl[sl & 15]
        if lane >= port.lanes:
            return -1
        return lane

    @cython.final
    def queue_packet(self, port, p):
        """A packet that was made here joins its lane's send queue."""
        self.line_up(port.lane[p.lane].outbox, p)

    @cython.final
    def make_phantom(self, s, size, dlid, sl):
        """A packet that is only a length, due at the source's time."""
        port = s.port
        lane: cython.int = self.lane_for(port, sl)
        p = self.new_packet()
        self.injected += 1
        self.offered += 1
        s.made += 1
        p.source = s
        p.born_ps = s.next_ps
        p.entered_ps = self.now_ps
        p.size, p.blocks = size, (size + BLOCK - 1) // BLOCK
        p.dlid, p.sl, p.phantom = dlid, sl, True
        if lane < 0:
            self.drop(port, p, DROP_LANE)
            return
        p.lane = lane
        s.queued += 1
        if self.flits:
            self.dress(p)
        self.queue_packet(port, p)

    # --- sources --------------------------------------------------------------------------------------------

    @cython.final
    def choose(self, s):
        """The place of the next packet's destination in the list; not the port itself, if there is another."""
        tries: cython.int
        at: cython.int = 0
        if s.cyclic or s.process == FROM_TRACE:
            at = s.at
            s.at += 1
            if s.at >= s.count and s.process != FROM_TRACE:
                s.at = 0
            if s.process != FROM_TRACE and s.dlid[at] == s.port.lid and s.count > 1:
                at = s.at
                s.at = s.at + 1 if s.at + 1 < s.count else 0
            return at
        for tries in range(16):
            at = cython.cast(
                cython.int, ((self.random_word(s) >> 32) * cython.cast(cython.ulonglong, s.count)) >> 32
            )
            if s.dlid[at] != s.port.lid:
                break
        return at

    @cython.final
    def random_word(self, s):
        s.random = (s.random + GAMMA) & MASK64
        return scramble(s.random)

    @cython.final
    def gap(self, s):
        """From one packet of a source to its next, in ps."""
        if s.process == PERIODIC:
            return s.mean_gap_ps
        if s.process == BURSTY:
            s.in_burst += 1
            if s.in_burst < s.burst:
                return 0
            s.in_burst = 0
            return (s.mean_gap_ps * s.burst * exponential(self.random_word(s))) >> 20
        return (s.mean_gap_ps * exponential(self.random_word(s))) >> 20

    @cython.final
    def produce(self, s):
        """Make what is due, as far as there is room for it; come back when there is more to do."""
        at: cython.int
        s.scheduled = False
        s.waiting = False
        while s.left != 0 and (s.stop_ps < 0 or s.next_ps <= s.stop_ps):
            if s.next_ps > self.now_ps:
                s.scheduled = True
                e = self.schedule(s.next_ps, EVENT_SOURCE, s.port)
                e.what = s
                return
            if s.queued >= AHEAD:
                s.waiting = True
                return
            at = self.choose(s)
            if s.left > 0:
                s.left -= 1
            if s.process == FROM_TRACE:
                self.make_phantom(s, s.sizes[at], s.dlid[at], s.sl[at])
                if s.left != 0:
                    s.next_ps = s.time[s.at]
            else:
                self.make_phantom(s, s.size, s.dlid[at], s.sl[at])
                s.next_ps += self.gap(s)

    # --- for the software above -----------------------------------------------------------------------------

    def _use_table(self, s, destinations):
        """Destinations as two arrays; the same tuple given for many sources is kept once."""
        lids: cython.const[cython.ushort][::1]
        levels: cython.const[cython.uchar][::1]
        found = self._tables.get(id(destinations))
        if found is None:
            pairs = list(destinations)
            if not pairs or any(not 0 < d < 0x10000 or not 0 <= sl < 16 for d, sl in pairs):
                raise InvalidAttributeError("destinations are [(LID, service level)], at least one")
            found = (array("H", [d for d, _ in pairs]), array("B", [sl for _, sl in pairs]))
            self._kept.append((destinations, found))
            if isinstance(destinations, tuple):
                self._tables[id(destinations)] = found
        if cython.compiled:
            lids = found[0]
            levels = found[1]
            s.dlid = cython.address(lids[0])
            s.sl = cython.address(levels[0])
        else:
            s.dlid, s.sl = found
        s.count = len(found[0])

    def add_source(
        self,
        port,
        *,
        mean_gap_ns,
        process="poisson",
        burst=1,
        size=4158,
        destinations,
        order="uniform",
        start_ns=0,
        stop_ns=-1,
        packets=-1,
        group=-1,
    ):
        """Let a port send packets of `size` bytes (LRH to VCRC) by itself, one every `mean_gap_ns` on average.

        `process`: "periodic", "poisson", or "bursty": `burst` packets at once, bursts at exponential intervals.
        `destinations`: [(LID, service level)], chosen by `order`: "uniform" or "cyclic"; the port's own LID is passed
        over.  Many sources of the same destinations share one table if they are given the same tuple.  The first packet
        is due at `start_ns` (poisson, bursty: one gap after it), none after `stop_ns`, and no more than `packets`; -1
        means without end.  `group`: a number from 0 to 4095; the latencies of the sources of a group are also counted
        together (`group_histogram`).  Returns the source's number.  Raises `InvalidAttributeError`.
        """
        if process not in PROCESSES or order not in ("uniform", "cyclic"):
            raise InvalidAttributeError(
                f"a source is {', '.join(PROCESSES)} and uniform or cyclic, not {process!r} and {order!r}"
            )
        if not 0 < mean_gap_ns * burst <= LARGEST_GAP_NS or burst < 1:
            raise InvalidAttributeError(
                "between two packets, or bursts, of a source are at most 100 ms on average"
            )
        limit = self.port_at(port).max_size
        if not _is_size(size, limit):
            raise InvalidAttributeError(
                f"{size} is no packet's size: words of 4 bytes and the VCRC, 22 to {limit}"
            )
        at: cython.int = self._make_source(port)
        s = self.sources[at]
        s.random = mixed(self.seed ^ mixed(at + 1))
        s.process, s.cyclic = PROCESSES[process], order == "cyclic"
        s.mean_gap_ps, s.burst, s.size = round(mean_gap_ns * 1000), burst, size
        s.stop_ps, s.left = (stop_ns * 1000 if stop_ns >= 0 else -1), packets
        self._join_group(s, group)
        self._use_table(s, destinations)
        s.next_ps = max(start_ns * 1000, self.now_ps)
        if s.process != PERIODIC:
            s.in_burst = s.burst
            s.next_ps += self.gap(s)
        self.produce(s)
        return at

    def _join_group(self, s, group):
        if not -1 <= group < MOST_GROUPS:
            raise InvalidAttributeError(
                f"a group of sources is {group}; it must be from 0 to {MOST_GROUPS - 1}"
            )
        self._use_group(group)
        s.group = group

    def add_trace(self, port, entries, group=-1):
        """Let a port send what a trace says: [(time_ns, size, LID, service level)], in the order of the times.

        `group`: as of `add_source`.  Returns the source's number.  Raises `InvalidAttributeError`.
        """
        entries = list(entries)
        limit = self.port_at(port).max_size
        if not entries:
            raise InvalidAttributeError("the trace is empty")
        if any(b[0] < a[0] for a, b in pairwise(entries)):
            raise InvalidAttributeError("the entries of a trace must be in the order of their times")
        if any(not _is_size(e[1], limit) for e in entries):
            raise InvalidAttributeError(f"a packet's size is words of 4 bytes and the VCRC, 22 to {limit}")
        times: cython.const[int64_t][::1]
        sizes: cython.const[int32_t][::1]
        at: cython.int = self._make_source(port)
        s = self.sources[at]
        self._use_table(s, [(e[2], e[3]) for e in entries])
        columns = (array("q", [e[0] * 1000 for e in entries]), array("i", [e[1] for e in entries]))
        self._kept.append(columns)
        if cython.compiled:
            times = columns[0]
            sizes = columns[1]
            s.time = cython.address(times[0])
            s.sizes = cython.address(sizes[0])
        else:
            s.time, s.sizes = columns
        s.process, s.stop_ps, s.left = FROM_TRACE, -1, len(entries)
        self._join_group(s, group)
        s.next_ps = s.time[0]
        self.produce(s)
        return at
