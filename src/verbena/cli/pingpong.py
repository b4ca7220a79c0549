"""`verbena pingpong rc|uc|ud [HOST]`: SEND to and fro, with another Verbena or with rdma-core's example programs.

The out-of-band exchange, the options, the defaults and the output are those of `ibv_rc_pingpong`, `ibv_uc_pingpong`
and `ibv_ud_pingpong` (rdma-core, libibverbs/examples): over TCP the client sends its LID, queue pair number, packet
sequence number and GID as text, the server answers with its own, the client says "done".
"""

from __future__ import annotations

import mmap
import re
import select
import socket
import time
from dataclasses import dataclass
from typing import Any

from verbena.adapter.attributes import AddressVector, Endpoint
from verbena.adapter.gid import Gid
from verbena.cli import rendezvous
from verbena.errors import (
    CompletionError,
    CompletionStatus,
    ConnectError,
    ConnectionLost,
    ConnectionTimeout,
    InvalidAttributeError,
    VerbenaError,
)
from verbena.memory.access import Access
from verbena.runtime.udp import open_device
from verbena.transport.kinds import QPState, QPType
from verbena.transport.work import RecvRequest, WorkRequest
from verbena.verbs.context import Context

ADDRESS_BYTES = len("0000:000000:000000:00000000000000000000000000000000") + 1  # with the final NUL, as in C
ADDRESS = re.compile(rb"([0-9a-f]{1,4}):([0-9a-f]{1,6}):([0-9a-f]{1,6}):([0-9a-f]{32})\0*", re.IGNORECASE)
DONE = b"done\0"
QKEY = 0x11111111
GRH = 40  # bytes in front of a received datagram (IBA vol. 1, 11.4.1.2)
FILL = 0x7B
RECV, SEND = 1, 2  # work request numbers
HINTS = {
    CompletionStatus.RETRY_EXC_ERR: "the peer does not acknowledge: it is gone, or packets do not reach it",
    CompletionStatus.RNR_RETRY_EXC_ERR: "the peer posts no receive buffers",
    CompletionStatus.REM_INV_REQ_ERR: "the peer refuses the message: give both ends the same -s",
    CompletionStatus.REM_OP_ERR: "the peer cannot take the message: give both ends the same -s",
    CompletionStatus.WR_FLUSH_ERR: "the connection failed: give both ends the same -m and -s",
    CompletionStatus.LOC_LEN_ERR: "the peer's message is longer: give both ends the same -s",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; names and defaults as in rdma-core.  timeout: seconds without a message."""

    service: QPType
    host: str | None = None
    port: int = 18515
    size: int | None = None
    mtu: int = 1024
    iterations: int = 1000
    depth: int = 500
    gid_index: int = 0
    events: bool = False
    check: bool = False
    address: str | None = None
    timeout: float = 10.0


def pingpong(options: Options) -> int:
    """Run one end, and print the result.  Raises `VerbenaError` with one sentence."""
    return _client(options) if options.host is not None else _server(options)


def _client(options: Options) -> int:
    assert options.host is not None
    with (
        rendezvous.connect(options.host, options.port, options.timeout) as sock,
        rendezvous.open_client(sock, options.address) as context,
    ):
        end = _End(options, context)
        rendezvous.send(sock, format_address(end.local))
        # The C programs close when they cannot use a GID, and say why only at their end.
        closed = f"the server closed the connection: does it reach {end.local.gid}? if not, choose with -d"
        remote = parse_address(rendezvous.receive(sock, ADDRESS_BYTES, closed))
        end.connect(remote)
        rendezvous.send(sock, DONE)
        sock.close()
        return end.run()


def _server(options: Options) -> int:
    opened = None if options.address is None else open_device(options.address)
    end = None
    try:
        if opened is not None:
            end = _End(options, opened)
        with rendezvous.listen(options.port) as listener:
            print(f"  waiting for a client on TCP port {options.port}", flush=True)
            sock = rendezvous.accept(listener, options.timeout)
        with sock:
            remote = parse_address(rendezvous.receive(sock, ADDRESS_BYTES))
            if end is None:
                opened = rendezvous.open_server(sock, remote.gid)
                end = _End(options, opened)
            end.connect(remote)
            rendezvous.send(sock, format_address(end.local))
            _await_done(sock)
        return end.run()
    finally:
        if opened is not None:
            opened.close()


def _await_done(sock: socket.socket) -> None:
    # The C client writes "done" and closes at once; with data unread it may look like a reset.  It has our address.
    try:
        rendezvous.receive(sock, len(DONE))
    except ConnectionTimeout:
        raise ConnectionTimeout("the client did not confirm that it has this end's address") from None


# --- the text exchange ------------------------------------------------------------------------------------------


def format_address(endpoint: Endpoint) -> bytes:
    """LID:QPN:PSN:GID in hexadecimal, with the final NUL."""
    return b"%04x:%06x:%06x:%s\0" % (
        endpoint.lid,
        endpoint.qp_num,
        endpoint.psn,
        endpoint.gid.raw.hex().encode(),
    )


def parse_address(data: bytes) -> Endpoint:
    """The peer's endpoint; raises `ConnectError` for anything else than an address with a GID."""
    match = ADDRESS.fullmatch(data)
    if match is None:
        raise ConnectError(f"the peer speaks something else than pingpong: {data[:24]!r}…")
    lid, qpn, psn = (int(match[n], 16) for n in (1, 2, 3))
    gid = Gid(bytes.fromhex(match[4].decode()))
    if not any(gid.raw):
        raise ConnectError("the peer gave no GID, which RoCE needs: start it with -g INDEX")
    return Endpoint(gid, qpn, psn, lid)


def _line(name: str, endpoint: Endpoint, separator: str = ",") -> str:
    return (
        f"  {name + ' address:':15} LID {endpoint.lid:#06x}, QPN {endpoint.qp_num:#08x}, "
        f"PSN {endpoint.psn:#08x}{separator} GID {endpoint.gid}"
    )


# --- one end ----------------------------------------------------------------------------------------------------


class _End:
    """A queue pair with its buffers, which are posted before the peer learns of it."""

    def __init__(self, options: Options, context: Context) -> None:
        self.options = options
        self.is_datagram = options.service is QPType.UD
        self.size = _size(options, context)
        self._front = GRH if self.is_datagram else 0
        self._message = _message(self.size, options.check)
        self._pd = context.alloc_pd()
        self._out = self._pd.reg_mr(bytearray(self._message))
        # A datagram may be longer than ours: rdma-core's default size has changed over the years.
        room = max(self.size, context.query_port(1).active_mtu) if self.is_datagram else self.size
        self._in = self._pd.alloc_mr(self._front + room)
        self._cq = context.create_cq(options.depth + 1)
        self._qp = self._pd.create_qp(options.service, self._cq, max_send_wr=1, max_recv_wr=options.depth)
        own = self._qp.endpoint
        gid = context.query_gid(1, options.gid_index)
        self.local = Endpoint(gid, own.qp_num, own.psn, context.query_port(1).lid)
        if self.is_datagram:
            self._qp.activate(QKEY)
        else:
            self._qp.modify(QPState.INIT, port_num=1, pkey_index=0, access_flags=Access.NONE)
        self._recv = RecvRequest(RECV, [self._in.sge()])
        self._qp.post_recv_many([self._recv] * options.depth)
        # As in C, a server sends back what it received; with -c that was compared, and is the same.
        echoes = options.host is None and not options.check
        source = self._in.sge(self._front, self.size) if echoes else self._out.sge()
        self._send = WorkRequest(SEND, sg_list=[source])
        print(_line("local", self.local, ":" if self.is_datagram else ","), flush=True)

    def connect(self, remote: Endpoint) -> None:
        """Make ready to send to the peer."""
        print(_line("remote", remote), flush=True)
        if self.is_datagram:
            self._send.ah = self._pd.create_ah(AddressVector(remote.gid))
            self._send.remote_qpn = remote.qp_num
            self._send.remote_qkey = QKEY
        else:
            self._qp.connect(remote, mtu=self.options.mtu, access=Access.NONE, max_rd_atomic=1)

    def run(self) -> int:
        """All exchanges, then the result.  Each end sends when its last message has left and one has arrived."""
        wanted = self.options.iterations
        sent = received = 0
        posted = self.options.depth
        pending = RECV
        start = time.perf_counter()
        if self.options.host is not None:
            self._qp.post_send(self._send)
            pending |= SEND
        while received < wanted or sent < wanted:
            entries = self._completions()
            if not entries:
                raise self._silence(received)
            for entry in entries:
                self._check_status(entry)
                if entry.wr_id == SEND:
                    sent += 1
                else:
                    received += 1
                    posted -= 1
                    if self.options.check:
                        self._compare(entry.byte_len - self._front)
                    if posted <= 1:
                        self._qp.post_recv_many([self._recv] * (self.options.depth - posted))
                        posted = self.options.depth
                pending &= ~entry.wr_id
                if sent < wanted and not pending:
                    self._qp.post_send(self._send)
                    pending = RECV | SEND
        self._print_result(time.perf_counter() - start)
        return 0

    def _completions(self) -> list[Any]:
        """The next completions; none after the time in which nothing came."""
        if not self.options.events:
            return self._cq.wait(self.options.timeout, 2)
        while not (entries := self._cq.poll(2)):
            self._cq.req_notify()
            if entries := self._cq.poll(2):
                break
            if not select.select([self._cq], [], [], self.options.timeout)[0]:
                return []
            self._cq.clear_event()
        return entries

    def _check_status(self, entry: Any) -> None:
        if entry.status is not CompletionStatus.SUCCESS:
            what = "send" if entry.wr_id == SEND else "receive"
            hint = HINTS.get(entry.status, "the connection failed")
            raise CompletionError(f"a {what} ended with {entry.status.name}: {hint}", entry)

    def _silence(self, received: int) -> ConnectionLost:
        """What it means that nothing came."""
        done = f"nothing arrived for {self.options.timeout:g} s, after {received} of {self.options.iterations} messages"
        if self.options.service is QPType.RC:
            return ConnectionLost(f"{done}: the peer is gone, or was started with another -n")
        name = self.options.service.name
        return ConnectionLost(
            f"{done}: the peer is gone, or a message was lost, which {name} does not send again"
        )

    def _compare(self, length: int) -> None:
        """Is what arrived what the peer's -c sends?  Wiped after that, so that the next message has to arrive."""
        data = self._in.buf[self._front : self._front + self.size]
        if length != self.size:
            raise VerbenaError(f"a message of {length} bytes arrived: give both ends the same -s")
        if bytes(data) != self._message:
            page = mmap.PAGESIZE
            wrong = [
                at // page
                for at in range(0, self.size, page)
                if data[at : at + page] != self._message[at : at + page]
            ]
            raise VerbenaError(
                f"invalid data in page {wrong[0]} ({len(wrong)} of {-(-self.size // page)}): "
                "start both ends with -c if the peer is not"
            )
        data[:] = bytes(self.size)

    def _print_result(self, seconds: float) -> None:
        moved = 2 * self.size * self.options.iterations
        rate = moved * 8 / seconds / 1e6
        print(f"{moved} bytes in {seconds:.2f} seconds = {rate:.2f} Mbit/sec")
        per = seconds * 1e6 / self.options.iterations
        print(f"{self.options.iterations} iters in {seconds:.2f} seconds = {per:.2f} usec/iter", flush=True)


def _size(options: Options, context: Context) -> int:
    """The size of a message; raises `InvalidAttributeError` for a datagram that does not fit the port's MTU."""
    if options.service is not QPType.UD:
        return 4096 if options.size is None else options.size
    mtu = context.query_port(1).active_mtu
    if options.size is None:
        return min(1024, mtu)
    if options.size > mtu:
        raise InvalidAttributeError(
            f"-s {options.size}: a datagram is one packet, of {mtu} bytes at most here"
        )
    return options.size


def _message(size: int, check: bool) -> bytes:
    """What rdma-core sends: one value all over, with -c another where a page begins."""
    message = bytearray([FILL]) * size
    if check:
        message[:: mmap.PAGESIZE] = bytes(len(range(0, size, mmap.PAGESIZE)))
    return bytes(message)
