"""Connections that move to their alternate path (IBA vol. 1, 17.2.8), and the paths that packets may come by.

A connection is *armed* when both sides have been given an alternate path; the MigReq bit of the BTH tells, which is
clear from then on.  It migrates when retries are exhausted, when its port fails, or when the program wants it; its
packets then carry the bit again, and by the new path, which makes the other side follow.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.transport.ports import Ports

if cython.compiled:
    from cython.cimports.verbena.transport.completer import go_back
    from cython.cimports.verbena.transport.ports import KEEP_TIMEOUT, PORT_ACTIVE
    from cython.cimports.verbena.transport.route import ROUTE_BYTES
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import same
else:
    from verbena.transport.completer import go_back
    from verbena.transport.ports import KEEP_TIMEOUT, PORT_ACTIVE
    from verbena.transport.route import ROUTE_BYTES
    from verbena.transport.tables import *
    from verbena.wire.kernels import same


class Migration(Ports):
    """An engine whose connections may have an alternate path."""

    if not cython.compiled:
        rx_front, rx_dlid, rx_migrated, rx_multicast = 0, 0, False, False

    def matches(self, path, b):
        """Did the packet come the way that a path leads (IBA vol. 1, 9.6.1.5)?

        By its LIDs within the subnet; from another subnet by its GIDs, because any router may have brought it.
        """
        if path < 0 or self.paths[path].port != self.rx_number or self.paths[path].front != self.rx_front:
            return False
        if self.rx_front == ROUTE_BYTES:
            return same(b, 16, self.paths[path].remote, 0, 16) and same(b, 32, self.paths[path].own, 0, 16)
        return self.rx_slid == self.paths[path].dlid and self.rx_dlid == self.paths[path].slid

    def from_peer(self, q, b):
        if q.mig_state == MIG_ARMED and self.rx_migrated:
            # The peer has migrated and asks the same of this side.
            if self.matches(q.alt_path, b) and self.migrate(q):
                return True
            if not q.mig_refused:
                q.mig_refused = True  # once: whoever sends these may go on for ever
                self.report(REPORT_ASYNC, ASYNC_PATH_MIG_ERR, q.index)
            return False
        if not self.matches(q.path, b):
            return q.stripes != 0 and self.by_other_path(q, b)
        if q.mig_state == MIG_REARM and not self.rx_migrated:
            q.mig_state = MIG_ARMED  # both sides have an alternate path
        return True

    def by_other_path(self, q, b):
        i: cython.int
        for i in range(1, q.stripes):
            if self.matches(q.stripe[i], b):
                return True
        return False

    def migrate(self, q):
        if q.mig_state != MIG_ARMED or q.alt_path < 0:
            return False
        if self.ports[self.paths[q.alt_path].port].state != PORT_ACTIVE:
            return False
        if q.held:
            self.let_go(q, q.held_port)
        self.paths[q.path].users -= 1  # `make_path` reclaims it
        q.path, q.alt_path = q.alt_path, -1
        q.pkey, q.port = q.alt_pkey, self.paths[q.path].port
        if q.alt_timeout_ns != KEEP_TIMEOUT:
            q.timeout_ns = q.alt_timeout_ns
        q.mig_state = MIG_MIGRATED
        q.retries_left = q.retry_count
        self.counters[PATH_MIGRATIONS] += 1
        self.report(REPORT_ASYNC, ASYNC_PATH_MIG, q.index)
        self.enlist(q)
        return True

    def migrate_qp(self, index):
        """Migrate because the program wants it; False when the queue pair is not armed or the other port is down."""
        at: cython.int = index
        self.acquire()
        q = self.qp_at(at)
        done = bool(self.migrate(q))
        if done:
            self.send_again(q)
        self.release()
        return done

    def port_failed(self, number):
        """What can goes on by its other paths, or by its alternate path."""
        i: cython.int
        for i in range(self.max_qp):
            q = self.qps[i]
            if not q or q.path < 0 or (q.state != RTR and q.state != RTS and q.state != SQD):
                continue
            if q.stripes:
                if self.uses_port(q, number):
                    self.send_again(q)
            elif self.paths[q.path].port == number and self.migrate(q):
                self.send_again(q)

    def uses_port(self, q, number):
        """Does one of the paths of a striped connection leave from a port?"""
        i: cython.int
        for i in range(q.stripes):
            if self.paths[q.stripe[i]].port == number:
                return True
        return False

    def send_again(self, q):
        """What the old path may have lost need not wait for the timer."""
        if q.reliable and q.una_psn != q.send_psn:
            go_back(self, q)

    def right_partition(self, q, pkey):
        """As for every adapter; queue pair 1 takes any partition of its port (IBA vol. 1, 10.9.8)."""
        i: cython.uint
        own: cython.uint = q.pkey
        if q.qpn == 1:
            for i in range(self.ports[self.rx_number].pkey_count):
                if same_partition(self.ports[self.rx_number].pkeys[i], pkey):
                    return True
            return False
        if self.rx_migrated and q.mig_state == MIG_ARMED:
            own = q.alt_pkey
        return same_partition(own, pkey)


def same_partition(own, pkey):
    """Same partition, not that of no key, and not limited members both (IBA vol. 1, 10.9.3)."""
    return (pkey & 0x7FFF) == (own & 0x7FFF) and (own & 0x7FFF) != 0 and ((pkey | own) & 0x8000) != 0
