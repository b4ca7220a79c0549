"""The progress loop of an adapter on a UDP socket, in C: see `udp_plain.PlainLoop` for the same in Python.

Nothing in here touches a Python object while it works, so that RDMA WRITE, READ and atomics to this process complete
while its Python code computes, sleeps or holds the interpreter lock.

Two threads may drive it: the program's own (posting, polling, waiting) and a background thread.  Whoever drives holds
the engine's lock.  While the program drives, the background thread keeps away from the socket, so that a packet wakes
one thread, not two; it looks again every `PARK_NS`.
"""

from libc.errno cimport EAGAIN, EINVAL, EIO, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from verbena.transport.engine cimport Engine
from verbena.transport.tables cimport BURST_BYTES, DROP_TX_NO_ROUTE, LOOPED_PACKETS, Path

import os

from cpython.exc cimport PyErr_CheckSignals

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *t)
    int nanosleep(const timespec *wanted, timespec *left)
    int CLOCK_MONOTONIC

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    short POLLIN
    short POLLOUT
    int poll(pollfd *fds, unsigned long n, int timeout)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<unistd.h>" nogil:
    long write(int fd, const void *data, size_t n)
    long read(int fd, void *data, size_t n)

cdef extern from "<netinet/in.h>" nogil:
    ctypedef unsigned int socklen_t
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        uint16_t sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    uint16_t htons(uint16_t v)
    uint16_t ntohs(uint16_t v)
    int AF_INET
    int AF_INET6
    int IPPROTO_IP
    int IPPROTO_IPV6
    int IP_TOS
    int IP_TTL
    int IPV6_TCLASS
    int IPV6_HOPLIMIT

cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr *CMSG_FIRSTHDR(msghdr *m)
    cmsghdr *CMSG_NXTHDR(msghdr *m, cmsghdr *c)
    uint8_t *CMSG_DATA(cmsghdr *c)
    size_t CMSG_LEN(size_t n)
    size_t CMSG_SPACE(size_t n)
    long recvmsg(int fd, msghdr *m, int flags)
    long sendmsg(int fd, const msghdr *m, int flags)
    int MSG_DONTWAIT

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

cdef enum:
    SOL_UDP = 17
    UDP_SEGMENT = 103
    UDP_GRO = 104
    RX_BYTES = 65_536
    CONTROL = 256
    SMALL = 512  # a burst so short is one of a latency-bound exchange
    PARK_NS = 200_000  # how long the background thread stays away from a socket that the program drives
    SPIN_NS = 50_000  # how long to poll before sleeping, in a wait and, after a burst, in the background
    ALONE_NS = 5_000  # how long of that without offering the processor to others, the peer perhaps
    LONGEST_SLEEP_MS = 100
    LONGEST_LEAVE_NS = 500_000_000  # how long `close` waits for waits to end


cdef inline uint64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t> t.tv_sec * 1_000_000_000 + <uint64_t> t.tv_nsec


cdef class UdpLoop:
    """Drives one engine on one bound, non-blocking UDP socket.

    wake_fd, report_fd: eventfds; the first ends a sleep of the background thread, the second tells the service thread
    that the engine has reports.
    """

    cdef Engine engine
    cdef int fd, wake_fd, report_fd
    cdef bint is_ip6, stop, closed, deferred, told
    cdef int waiting
    cdef uint64_t driven_ns, sleeping_until
    cdef uint32_t port
    cdef uint8_t *rx
    cdef uint8_t *tx
    cdef uint8_t own[16]
    cdef uint64_t *counters

    def __cinit__(self, Engine engine, int fd, int wake_fd, int report_fd, bint is_ip6,
                  uint32_t port, bytes own):
        cdef int i
        self.engine = engine
        self.counters = engine.counters
        self.fd, self.wake_fd, self.report_fd = fd, wake_fd, report_fd
        self.is_ip6, self.port = is_ip6, port
        self.rx = <uint8_t *> malloc(RX_BYTES)
        self.tx = <uint8_t *> malloc(RX_BYTES)
        if not self.rx or not self.tx:
            raise MemoryError
        for i in range(16):
            self.own[i] = own[i]

    def __dealloc__(self):
        free(self.rx)
        free(self.tx)

    # --- one pass -----------------------------------------------------------------------------------------

    cdef bint receive(self, size_t *size) noexcept nogil:
        """Take one burst from the socket; False when there is none."""
        cdef msghdr m
        cdef iovec part
        cdef sockaddr_in6 name
        cdef sockaddr_in *name4 = <sockaddr_in *> &name
        cdef uint8_t control[CONTROL]
        cdef uint8_t source[16]
        cdef cmsghdr *c
        cdef size_t segment = 0
        cdef int value
        cdef long n
        cdef uint32_t port
        memset(&m, 0, sizeof(m))
        part.iov_base, part.iov_len = self.rx, RX_BYTES
        m.msg_name, m.msg_namelen = &name, sizeof(name)
        m.msg_iov, m.msg_iovlen = &part, 1
        m.msg_control, m.msg_controllen = control, CONTROL
        n = recvmsg(self.fd, &m, MSG_DONTWAIT)
        if n < 0:
            return False
        c = CMSG_FIRSTHDR(&m)
        while c:
            if c.cmsg_level == SOL_UDP and c.cmsg_type == UDP_GRO:
                memcpy(&value, CMSG_DATA(c), sizeof(int))
                segment = value
            c = CMSG_NXTHDR(&m, c)
        if name.sin6_family == AF_INET:
            memset(source, 0, 10)
            source[10] = source[11] = 0xFF
            memcpy(source + 12, &name4.sin_addr, 4)
            port = ntohs(name4.sin_port)
        else:
            memcpy(source, &name.sin6_addr, 16)
            port = ntohs(name.sin6_port)
        size[0] += n
        self.engine.take_burst(self.rx, n, segment, source, port, 0, now_ns())
        self.interrupt()  # at once: consumers wake up while answers are sent
        return True

    cdef void put_int(self, msghdr *m, uint8_t *control, int level, int kind, int value) noexcept nogil:
        cdef cmsghdr *c = <cmsghdr *> (control + m.msg_controllen)
        c.cmsg_level, c.cmsg_type, c.cmsg_len = level, kind, CMSG_LEN(sizeof(int))
        memcpy(CMSG_DATA(c), &value, sizeof(int))
        m.msg_controllen += CMSG_SPACE(sizeof(int))

    cdef void send(self, size_t n) noexcept nogil:
        """Send the burst in `tx`; what the kernel refuses is counted, and lost like any other packet."""
        cdef msghdr m
        cdef iovec part
        cdef sockaddr_in6 name
        cdef sockaddr_in *name4 = <sockaddr_in *> &name
        cdef uint8_t control[CONTROL]
        cdef cmsghdr *c
        cdef pollfd p
        cdef uint16_t segment
        cdef Path *path = self.engine.paths[self.engine.burst_path]
        memset(&m, 0, sizeof(m))
        memset(&name, 0, sizeof(name))
        memset(control, 0, CONTROL)
        if self.is_ip6:
            name.sin6_family = AF_INET6
            name.sin6_port = htons(self.port)
            memcpy(&name.sin6_addr, path.remote, 16)
            m.msg_namelen = sizeof(sockaddr_in6)
        else:
            name4.sin_family = AF_INET
            name4.sin_port = htons(self.port)
            memcpy(&name4.sin_addr, path.remote + 12, 4)
            m.msg_namelen = sizeof(sockaddr_in)
        m.msg_name = &name
        part.iov_base, part.iov_len = self.tx, n
        m.msg_iov, m.msg_iovlen = &part, 1
        m.msg_control = control
        if self.engine.burst_packets > 1:
            segment = self.engine.burst_segment
            c = <cmsghdr *> control
            c.cmsg_level, c.cmsg_type, c.cmsg_len = SOL_UDP, UDP_SEGMENT, CMSG_LEN(2)
            memcpy(CMSG_DATA(c), &segment, 2)
            m.msg_controllen = CMSG_SPACE(2)
        if path.traffic_class:
            self.put_int(&m, control, IPPROTO_IPV6 if self.is_ip6 else IPPROTO_IP,
                         IPV6_TCLASS if self.is_ip6 else IP_TOS, path.traffic_class)
        if path.hop_limit != 64:
            self.put_int(&m, control, IPPROTO_IPV6 if self.is_ip6 else IPPROTO_IP,
                         IPV6_HOPLIMIT if self.is_ip6 else IP_TTL, path.hop_limit)
        if m.msg_controllen == 0:
            m.msg_control = NULL
        if sendmsg(self.fd, &m, MSG_DONTWAIT) >= 0:
            return
        if errno == EAGAIN:
            p.fd, p.events, p.revents = self.fd, POLLOUT, 0
            poll(&p, 1, 1)
            if sendmsg(self.fd, &m, MSG_DONTWAIT) >= 0:
                return
        elif self.engine.burst_packets > 1 and (errno == EIO or errno == EINVAL):
            # A device that cannot take bursts: from now on packet by packet (all with identification 0).
            self.engine.burst_limit = 1
        self.counters[DROP_TX_NO_ROUTE] += self.engine.burst_packets

    cdef void transmit(self, uint64_t now) noexcept nogil:
        cdef size_t n
        while True:
            n = self.engine.make_burst(self.tx, BURST_BYTES, now)
            if n == 0:
                return
            if self.engine.paths[self.engine.burst_path].loopback:
                self.counters[LOOPED_PACKETS] += self.engine.burst_packets
                self.engine.take_burst(self.tx, n, self.engine.burst_segment, self.own, self.port, 0, now)
            else:
                self.send(n)

    cdef int drive(self, bint by_program) noexcept nogil:
        """Receive what is there, serve the timers, send what is due; returns the bursts received.

        The answer to a single short burst may wait for the program's next call: a program that exchanges small
        messages then sends its own message first.
        """
        cdef uint64_t now = now_ns()
        cdef size_t size = 0
        cdef int bursts = 0
        pthread_mutex_lock(<pthread_mutex_t *> &self.engine.mutex)
        if self.closed:
            pthread_mutex_unlock(<pthread_mutex_t *> &self.engine.mutex)
            return 0
        while bursts < 8 and self.receive(&size):
            bursts += 1
            if by_program and size <= SMALL:
                break
        self.engine.run_timers(now)
        if by_program and bursts == 1 and size <= SMALL and not self.deferred:
            self.deferred = True
        else:
            self.deferred = False
            self.transmit(now)
        self.finish(now)
        return bursts

    cdef void interrupt(self) noexcept nogil:
        """Make the vectors' writes: an eventfd stands for the address that an interrupt is written to."""
        cdef uint64_t one = 1
        cdef int cq, place = self.engine.next_message()
        cdef uint64_t now = now_ns() if place >= 0 else 0
        while place >= 0:
            # Events are as old as their entries, not as the packets that brought them.
            cq = self.engine.vectors[place].first_cq
            while cq >= 0:
                if self.engine.cqs[cq].event_ns == self.engine.now_ns:
                    self.engine.cqs[cq].event_ns = now
                cq = self.engine.cqs[cq].next_event
            if self.engine.vectors[place].descriptor >= 0:
                write(self.engine.vectors[place].descriptor, &one, 8)
                self.told = True
            place = self.engine.next_message()

    cdef void finish(self, uint64_t now) noexcept nogil:
        """Tell those who have to know, and let go of the lock: after it, `close` may have closed the descriptors."""
        cdef uint64_t one = 1
        cdef uint64_t earliest = self.engine.earliest()
        self.interrupt()
        if self.engine.report_head != self.engine.report_tail:
            write(self.report_fd, &one, 8)
        if earliest and earliest < self.sleeping_until:
            write(self.wake_fd, &one, 8)
        pthread_mutex_unlock(<pthread_mutex_t *> &self.engine.mutex)

    cdef int sleep_ms(self, uint64_t now, uint64_t deadline) noexcept nogil:
        """How long to sleep at most, in milliseconds rounded up; deadline 0 = none."""
        cdef uint64_t until = self.engine.earliest()
        if until == 0 or (deadline and deadline < until):
            until = deadline
        if until == 0:
            return LONGEST_SLEEP_MS
        if until <= now:
            return 0
        return <int> min(LONGEST_SLEEP_MS, (until - now + 999_999) // 1_000_000)

    # --- the background thread ----------------------------------------------------------------------------

    def run(self):
        """Drive until `end`; the body of the background thread."""
        with nogil:
            self.loop()

    cdef void loop(self) noexcept nogil:
        cdef pollfd p[2]
        cdef uint64_t now, active = 0
        cdef timespec nap
        p[0].fd, p[0].events = self.fd, POLLIN
        p[1].fd, p[1].events = self.wake_fd, POLLIN
        while not self.stop:
            now = now_ns()
            if self.waiting or now - self.driven_ns < PARK_NS:
                nap.tv_sec, nap.tv_nsec = 0, PARK_NS
                nanosleep(&nap, NULL)
                continue
            if now - active >= SPIN_NS:
                self.sleep(p, now)
                if self.waiting or now_ns() - self.driven_ns < PARK_NS:
                    continue
            elif now - active >= ALONE_NS:
                sched_yield()
            self.told = False
            if self.drive(False):
                # Who was woken needs a processor: there may be no other one than this thread's.
                active = 0 if self.told else now_ns()

    cdef void sleep(self, pollfd *p, uint64_t now) noexcept nogil:
        """Sleep until a packet comes, a timer is over, or `wake_fd` is written to."""
        cdef uint64_t drained
        cdef int ms = self.sleep_ms(now, 0)
        if ms:
            self.sleeping_until = now + <uint64_t> ms * 1_000_000
            p[0].revents = p[1].revents = 0
            poll(p, 2, ms)
            self.sleeping_until = 0
            if p[1].revents:
                read(self.wake_fd, &drained, 8)

    def end(self):
        """Make `run` return."""
        self.stop = True
        os.eventfd_write(self.wake_fd, 1)

    def close(self):
        """Touch the descriptors no more: returns when no call of the program uses them.  `run` has returned.

        A wait that is still there after all that time is the caller's own, interrupted by a signal's handler.
        """
        cdef timespec nap
        cdef uint64_t deadline = now_ns() + LONGEST_LEAVE_NS
        with nogil:
            pthread_mutex_lock(<pthread_mutex_t *> &self.engine.mutex)
            self.closed = True
            pthread_mutex_unlock(<pthread_mutex_t *> &self.engine.mutex)
        while self.waiting and now_ns() < deadline:
            with nogil:
                nap.tv_sec, nap.tv_nsec = 0, PARK_NS
                nanosleep(&nap, NULL)

    def abandon(self):
        """`close` in the child of a fork, where no other thread exists."""
        self.stop = self.closed = True

    # --- the program's calls ------------------------------------------------------------------------------

    def kick(self):
        """Send what was posted.  Who only posts, as handlers do, leaves receiving to the background thread."""
        cdef uint64_t now
        with nogil:
            now = now_ns()
            pthread_mutex_lock(<pthread_mutex_t *> &self.engine.mutex)
            if self.closed:
                pthread_mutex_unlock(<pthread_mutex_t *> &self.engine.mutex)
            else:
                self.deferred = False
                self.transmit(now)
                self.finish(now)

    def progress(self):
        """Receive, serve timers, send: once, without waiting."""
        with nogil:
            self.driven_ns = now_ns()
            self.drive(True)

    cdef bint has_entries(self, int index) noexcept nogil:
        """Has a completion queue entries, or was it closed?  Either ends a wait."""
        cdef bint found
        pthread_mutex_lock(<pthread_mutex_t *> &self.engine.mutex)
        found = self.engine.cqs[index] == NULL or self.engine.cqs[index].head != self.engine.cqs[index].tail
        pthread_mutex_unlock(<pthread_mutex_t *> &self.engine.mutex)
        return found

    def wait_cq(self, int index, int64_t timeout_ns):
        """Drive until a completion queue has entries, or the time (negative: none) is over."""
        cdef uint64_t start = now_ns()
        cdef uint64_t deadline = start + timeout_ns if timeout_ns >= 0 else 0
        cdef uint64_t now = start
        cdef pollfd p
        cdef int ms
        cdef bint found = False
        self.waiting += 1
        try:
            while True:
                with nogil:
                    while True:
                        self.driven_ns = now
                        self.drive(now - start < SPIN_NS)
                        found = self.has_entries(index)
                        now = now_ns()
                        if found or self.closed or (deadline and now >= deadline):
                            break
                        if now - start < SPIN_NS:
                            if now - start >= ALONE_NS:
                                sched_yield()
                        else:
                            p.fd, p.events, p.revents = self.fd, POLLIN, 0
                            ms = self.sleep_ms(now, deadline)
                            if ms and poll(&p, 1, ms) <= 0:
                                now = now_ns()
                                break
                            now = now_ns()
                if found or self.closed or (deadline and now >= deadline):
                    return found
                PyErr_CheckSignals()
        finally:
            self.waiting -= 1
