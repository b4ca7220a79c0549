"""What the fabric simulator writes down: drops by reason, reports, traces, latencies.

Nothing is lost in silence: a packet leaves the fabric by being delivered or by `Ledger.drop`, which counts it at the
port where it happened, under its reason.  At any time ``injected + imported + replicated == delivered +
exported + dropped + inside`` (im- and exported: by external ports).
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.fabric.wheel import Wheel

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, free, realloc
    from cython.cimports.verbena.fabric.tables import *
    from cython.cimports.verbena.fabric.wheel import highest_bit
else:
    from verbena._declarations import declarations
    from verbena.fabric.tables import *
    from verbena.fabric.wheel import highest_bit

    globals().update(declarations(__file__))

COUNTER_NAMES = (
    "xmit_packets",
    "xmit_bytes",
    "rcv_packets",
    "rcv_bytes",
    "xmit_wait_ps",
    "delivered",
    "xmit_flits",
    "rcv_flits",
    "xmit_acks",
    "xmit_naks",
    "xmit_credits",
    "flit_retries",
    "replays",
    "flit_errors",
    "sequence_errors",
    "bit_errors",
    "sent_without_credit",
    "buffer_overrun",
    "link_recovered",
    "link_downed",
    "drop_lft",
    "drop_mft",
    "drop_pkey",
    "drop_hoq",
    "drop_lifetime",
    "drop_vl15",
    "drop_link_down",
    "drop_state",
    "drop_mtu",
    "drop_lane",
    "drop_vcrc",
    "drop_node",
    "drop_smi",
)
"""The counters of a port, in the order of the enum in ``tables.pxd``."""


class Ledger(Wheel):
    """The events of one fabric, and what is told about them."""

    def __init__(self, flits):
        super().__init__(flits)
        self.injected = self.replicated = self.delivered = self.dropped = 0
        self.imported = self.exported = 0
        self.offered = self.packet_hops = self.events = 0
        self.latency_sum = self.latency_max = self.delivered_bytes = 0
        self.latency_min = -1
        self.trace_mask = 0
        self.trace_count = self.trace_room = self.report_count = self.report_room = 0
        self.stop = False
        self.group_count = 0
        if cython.compiled:
            self.bins = cython.cast(cython.pointer(uint64_t), calloc(BINS, 8))
            if not self.bins:
                raise MemoryError
        else:
            self.bins = [0] * BINS
            self.group_bins = []
            self.traces, self.report_list = [], []
            self.delivered_first = self.delivered_last = None

    def __dealloc__(self):
        if cython.compiled:
            free(self.bins)
            free(self.group_bins)
            free(self.traces)
            free(self.report_list)

    @cython.final
    def trace(self, kind, port, lane, sequence, size, packet_id, detail, time):
        if not self.trace_mask & kind:
            return
        if cython.compiled:
            if self.trace_count == self.trace_room:
                self.trace_room = self.trace_room * 2 + 1024
                self.traces = cython.cast(
                    cython.pointer(Trace), realloc(self.traces, self.trace_room * cython.sizeof(Trace))
                )
                if not self.traces:
                    Py_FatalError("verbena: no memory left for the fabric's trace")
        else:
            self.traces.append(Trace())
        self.traces[self.trace_count].time_ps = time
        self.traces[self.trace_count].port = port.index
        self.traces[self.trace_count].kind = kind
        self.traces[self.trace_count].lane = lane
        self.traces[self.trace_count].sequence = sequence
        self.traces[self.trace_count].size = size
        self.traces[self.trace_count].packet_id = packet_id
        self.traces[self.trace_count].detail = detail
        self.trace_count += 1

    @cython.final
    def report(self, kind, port, detail):
        """Tell the software above; `run` returns after this nanosecond."""
        if cython.compiled:
            if self.report_count == self.report_room:
                self.report_room = self.report_room * 2 + 64
                self.report_list = cython.cast(
                    cython.pointer(Report),
                    realloc(self.report_list, self.report_room * cython.sizeof(Report)),
                )
                if not self.report_list:
                    Py_FatalError("verbena: no memory left for the fabric's reports")
        else:
            self.report_list.append(Report())
        self.report_list[self.report_count].kind = kind
        self.report_list[self.report_count].port = port.index
        self.report_list[self.report_count].detail = detail
        self.report_count += 1
        self.stop = True

    @cython.final
    def drop(self, port, p, reason):
        """The end of a packet that is not delivered."""
        port.counters[reason] += 1
        self.dropped += 1
        self.inside -= 1
        if p.source:
            p.source.dropped += 1
        if self.trace_mask & TRACE_DROP:
            self.trace(TRACE_DROP, port, p.lane, reason, p.size, p.id, 0, self.now_ps)
        self.release_packet(p)

    @cython.final
    def latency_bin(self, ps):
        """Sixteen bins for each doubling."""
        exponent: cython.int
        if ps < 16:
            return cython.cast(cython.int, ps) if ps > 0 else 0
        exponent = highest_bit(cython.cast(cython.ulonglong, ps))
        return (exponent - 3) * 16 + cython.cast(cython.int, (ps >> (exponent - 4)) & 15)

    @cython.final
    def measure(self, ps):
        """A packet took that long, from its making to its delivery."""
        self.bins[self.latency_bin(ps)] += 1
        self.latency_sum += ps
        if ps > self.latency_max:
            self.latency_max = ps
        if self.latency_min < 0 or ps < self.latency_min:
            self.latency_min = ps

    def measure_source(self, s, size, ps):
        """A source's packet was delivered."""
        s.delivered += 1
        s.delivered_bytes += size
        s.latency_sum += ps
        if ps > s.latency_max:
            s.latency_max = ps
        if s.group >= 0:
            self.group_bins[s.group * BINS + self.latency_bin(ps)] += 1

    def _use_group(self, group):
        """Let there be bins for that group of sources."""
        i: cython.int
        if group < self.group_count:
            return
        if cython.compiled:
            grown = cython.cast(
                cython.pointer(uint64_t),
                realloc(self.group_bins, (group + 1) * BINS * cython.sizeof(uint64_t)),
            )
            if not grown:
                raise MemoryError
            self.group_bins = grown
            for i in range(self.group_count * BINS, (group + 1) * BINS):
                self.group_bins[i] = 0
        else:
            self.group_bins += [0] * ((group + 1 - self.group_count) * BINS)
        self.group_count = group + 1

    # --- for the software above ---------------------------------------------------------------------------

    def reports(self):
        """What happened since the last call: [(kind, port, detail)].

        Kinds: LINK_UP, LINK_DOWN; ROOM (detail: the lanes, as bits, whose send queues have room again);
        PKEY_VIOLATION (detail: the packet's P_Key); FLITS_READY (an external port has flits to be taken).
        """
        result = [
            (self.report_list[i].kind, self.report_list[i].port, self.report_list[i].detail)
            for i in range(self.report_count)
        ]
        self.report_count = 0
        if not cython.compiled:
            self.report_list = []
        return result

    def trace_on(self, kinds):
        """Record these kinds (the sum of ``TRACE_*``) from now on; 0 stops it."""
        self.trace_mask = kinds

    def take_trace(self):
        """What was recorded: [(time_ps, port, kind, lane, sequence, size, packet id, detail)]; it is forgotten here.

        `detail`: a flit's kind (`wire.flit.FlitKind`).  A drop has its reason (the counter's number) in the place of
        the sequence number; a flit's size includes its header, a packet's is from LRH to VCRC.
        """
        result = [
            (
                self.traces[i].time_ps,
                self.traces[i].port,
                self.traces[i].kind,
                self.traces[i].lane,
                self.traces[i].sequence,
                self.traces[i].size,
                self.traces[i].packet_id,
                self.traces[i].detail,
            )
            for i in range(self.trace_count)
        ]
        self.trace_count = 0
        if not cython.compiled:
            self.traces = []
        return result

    def group_histogram(self, group):
        """Latencies of a group of sources: [(from, below, count)] in ps, as in `latency_histogram`."""
        first: cython.int = group * BINS
        if not 0 <= group < self.group_count:
            return []
        return [
            (_bin_edge(b), _bin_edge(b + 1), self.group_bins[first + b])
            for b in range(BINS)
            if self.group_bins[first + b]
        ]

    def latency_histogram(self):
        """What was delivered: ``count``, ``sum_ps``, ``min_ps``, ``max_ps``, and ``bins`` [(from, below, count)] in ps.

        A packet's time runs from its making (by a source: when it was due, however long it had to wait there) to the
        arrival of its last byte.  Bins are 1/16 of a doubling wide.
        """
        b: cython.int
        bins = []
        for b in range(BINS):
            if self.bins[b]:
                bins.append((_bin_edge(b), _bin_edge(b + 1), self.bins[b]))
        return {
            "count": sum(b[2] for b in bins),
            "sum_ps": self.latency_sum,
            "min_ps": max(self.latency_min, 0),
            "max_ps": self.latency_max,
            "bins": bins,
        }

    def clear_statistics(self):
        """Begin to measure anew: latencies, delivered bytes and packet-hops (the warm-up has passed)."""
        b: cython.int
        for b in range(BINS):
            self.bins[b] = 0
        for b in range(self.group_count * BINS):
            self.group_bins[b] = 0
        self.latency_sum = self.latency_max = self.delivered_bytes = self.packet_hops = 0
        self.latency_min = -1

    def statistics(self):
        """Totals by name: packets injected, replicated, delivered, dropped, inside, offered by sources, and so on."""
        return {
            "injected": self.injected,
            "replicated": self.replicated,
            "delivered": self.delivered,
            "dropped": self.dropped,
            "inside": self.inside,
            "offered": self.offered,
            "imported": self.imported,
            "exported": self.exported,
            "delivered_bytes": self.delivered_bytes,
            "packet_hops": self.packet_hops,
            "events": self.events,
        }


def _bin_edge(number):
    return number if number < 16 else (16 + number % 16) << (number // 16 - 1)
