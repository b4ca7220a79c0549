"""`verbena perf write|read|send|atomic --bw|--lat [HOST]`: how fast an operation is between two ends.

The tables are laid out like those of perftest (`ib_write_bw`, `ib_read_lat`, …); the exchange over TCP is Verbena's
own, lines of JSON: the client says which test, both give their queue pairs and regions, then each size is one run.
The server does what the client asks for.  How a run goes: `perf_runs`.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from verbena.adapter.attributes import Endpoint
from verbena.adapter.gid import Gid
from verbena.cli import rendezvous
from verbena.cli.perf_runs import Bandwidth, End, Latency, Plan, run_client, run_server
from verbena.errors import ConnectError, VerbenaError
from verbena.runtime.udp import open_device
from verbena.verbs.context import Context

PROTOCOL = "verbena perf 1"
LONGEST_LINE = 1 << 20
LARGEST_BUFFER = 1 << 30
MOST_QUEUE_PAIRS = 1024
DEEPEST = 4096
SWEEP = [1 << n for n in range(1, 24)]
TITLES = {"write": "RDMA WRITE", "read": "RDMA READ", "send": "SEND", "atomic": "fetch-and-add"}
RULE = "-" * 103


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says.  listener: an open socket's descriptor to accept the client on."""

    operation: str | None = None
    latency: bool = False
    host: str | None = None
    local: bool = False
    size: int | None = None
    sweep: bool = False
    iterations: int = 1000
    port: int = 18515
    address: str | None = None
    mtu: int | None = None
    queue_pairs: int = 1
    depth: int = 128
    persistent: bool = False
    listener: int | None = None


def perf(options: Options) -> int:
    """Run one end, or with `local` both.  Raises `VerbenaError` with one sentence."""
    if options.local:
        return _local(options)
    if options.host is None:
        return _server(options)
    with rendezvous.connect(options.host, options.port, rendezvous.CONNECT_TIMEOUT) as sock:
        return _client(options, sock)


def _local(options: Options) -> int:
    """Both ends on this machine, the server as a process of its own."""
    with rendezvous.listen(0, "127.0.0.2") as listener:
        port = listener.getsockname()[1]
        listener.set_inheritable(True)
        command = [sys.executable, "-m", "verbena.cli.main", "perf", "--listener", str(listener.fileno())]
        # What goes wrong there comes back over the connection.
        server = subprocess.Popen(
            [*command, "-d", "127.0.0.2"],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        with rendezvous.connect("127.0.0.2", port, rendezvous.CONNECT_TIMEOUT) as sock:
            own = Options(**{**_fields(options), "address": options.address or "127.0.0.1"})
            status = _client(own, sock)
        server.wait(5)
        return status
    except subprocess.TimeoutExpired:
        return 0
    finally:
        server.kill()
        server.wait()


def _fields(options: Options) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__slots__}


# --- the exchange -----------------------------------------------------------------------------------------------


class _Channel:
    """Lines of JSON over TCP.  An ``error`` line of the peer raises `ConnectError`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb")

    def send(self, **message: Any) -> None:
        rendezvous.send(self._sock, json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float | None = rendezvous.CONNECT_TIMEOUT) -> dict[str, Any]:
        """The next line; timeout None: while a run lasts, whose end only the peer knows."""
        self._sock.settimeout(timeout)
        try:
            line = self._file.readline(LONGEST_LINE)
        except TimeoutError:
            raise ConnectError("the peer keeps silent") from None
        except OSError:
            line = b""
        if not line:
            raise ConnectError("the peer closed the TCP connection before the test was over")
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise ConnectError(f"the peer speaks something else than {PROTOCOL}: {line[:24]!r}…")
        if "error" in message:
            raise ConnectError(f"the peer says: {str(message['error'])[:500]}")
        return message


def _number(message: dict[str, Any], name: str, low: int, high: int) -> int:
    value = message.get(name)
    if not isinstance(value, int) or not low <= value <= high:
        raise ConnectError(f"the peer sent {name} = {value!r}, where {low} to {high} is right")
    return value


def _plan(message: dict[str, Any]) -> Plan:
    """The test that a client asks for."""
    if message.get("protocol") != PROTOCOL:
        raise ConnectError(f"the peer speaks {message.get('protocol')!r}, this end {PROTOCOL}")
    if message.get("operation") not in TITLES:
        raise ConnectError(f"the peer asks for an unknown operation, {message.get('operation')!r}")
    return Plan(
        operation=message["operation"],
        latency=bool(message.get("latency")),
        largest=_number(message, "largest", 1, LARGEST_BUFFER),
        queue_pairs=_number(message, "queue_pairs", 1, MOST_QUEUE_PAIRS),
        depth=_number(message, "depth", 1, DEEPEST),
        mtu=_number(message, "mtu", 256, 4096),
    )


def _introduction(end: End) -> dict[str, Any]:
    """What the peer needs to reach this end."""
    return {
        "gid": end.gid.raw.hex(),
        "queue_pairs_at": [[e.qp_num, e.psn] for e in end.endpoints],
        "region": end.region.addr,
        "key": end.region.rkey,
    }


def _gid(message: dict[str, Any]) -> Gid:
    try:
        return Gid(bytes.fromhex(message["gid"]))
    except (KeyError, TypeError, ValueError):
        raise ConnectError("the peer sent no GID") from None


def _meet(end: End, message: dict[str, Any]) -> None:
    """Connect to the peer that introduced itself."""
    gid = _gid(message)
    listed = message.get("queue_pairs_at")
    if not isinstance(listed, list) or len(listed) != len(end.endpoints):
        raise ConnectError("the peer sent another number of queue pairs")
    peers = []
    for item in listed:
        if not isinstance(item, list) or len(item) != 2:
            raise ConnectError("the peer sent a queue pair without its number and PSN")
        pair = dict(zip(("qp_num", "psn"), item, strict=True))
        peers.append(Endpoint(gid, _number(pair, "qp_num", 2, 0xFFFFFF), _number(pair, "psn", 0, 0xFFFFFF)))
    top = (1 << 64) - 1
    end.connect(peers, _number(message, "region", 0, top), _number(message, "key", 0, 0xFFFFFFFF))


# --- client -----------------------------------------------------------------------------------------------------


def _client(options: Options, sock: socket.socket) -> int:
    assert options.operation is not None
    sizes = _sizes(options)
    channel = _Channel(sock)
    with rendezvous.open_client(sock, options.address) as context:
        active = context.query_port(1).active_mtu
        plan = Plan(
            options.operation,
            options.latency,
            max(sizes),
            options.queue_pairs,
            options.depth,
            min(options.mtu or active, active),
        )
        end = End(context, plan)
        channel.send(
            protocol=PROTOCOL,
            operation=plan.operation,
            latency=plan.latency,
            largest=plan.largest,
            queue_pairs=plan.queue_pairs,
            depth=plan.depth,
            mtu=plan.mtu,
            **_introduction(end),
        )
        answer = channel.receive()
        end.plan.mtu = _number(answer, "mtu", 256, plan.mtu)
        _meet(end, answer)
        _print_head(plan, end, _gid(answer))
        for size in sizes:
            end.prepare(size)
            channel.send(size=size, iterations=options.iterations)
            channel.receive()
            _print_row(size, options.iterations, run_client(end, size, options.iterations))
            channel.send(done=True)
            channel.receive()
        channel.send(bye=True)
    print(RULE, flush=True)
    return 0


def _sizes(options: Options) -> list[int]:
    if options.operation == "atomic":
        return [8]
    if options.sweep:
        return SWEEP
    return [options.size or (2 if options.latency else 65_536)]


def _print_head(plan: Plan, end: End, remote: Gid) -> None:
    print(RULE)
    print(f"{TITLES[plan.operation] + (' latency' if plan.latency else ' bandwidth'):^103}".rstrip())
    pairs = "1 queue pair" if plan.queue_pairs == 1 else f"{plan.queue_pairs} queue pairs"
    depth = "" if plan.latency else f" of depth {plan.depth}"
    print(f" {end.gid.ip} to {remote.ip}, RC, {pairs}{depth}, path MTU {plan.mtu}")
    print(RULE)
    if plan.latency:
        print(
            f" {'#bytes':<8} {'#iterations':<11} {'t_min[usec]':>12} {'t_max[usec]':>12} {'t_typical[usec]':>16}"
            f" {'t_avg[usec]':>12} {'99%[usec]':>12} {'99.9%[usec]':>12}"
        )
    else:
        print(
            f" {'#bytes':<10} {'#iterations':<12} {'BW peak[MiB/sec]':>18} {'BW average[MiB/sec]':>22}"
            f" {'MsgRate[Mpps]':>18}"
        )


def _print_row(size: int, iterations: int, result: Bandwidth | Latency) -> None:
    if isinstance(result, Bandwidth):
        peak, average = result.peak * size / (1 << 20), result.average * size / (1 << 20)
        rate = result.average / 1e6
        print(f" {size:<10} {iterations:<12} {peak:>18.2f} {average:>22.2f} {rate:>18.6f}", flush=True)
        return
    times = sorted(result.times_us)
    top = len(times) - 1
    typical, p99, p999 = (times[min(top, math.ceil(top * part))] for part in (0.5, 0.99, 0.999))
    average = sum(times) / len(times)
    print(
        f" {size:<8} {iterations:<11} {times[0]:>12.2f} {times[-1]:>12.2f} {typical:>16.2f} {average:>12.2f}"
        f" {p99:>12.2f} {p999:>12.2f}",
        flush=True,
    )


# --- server -----------------------------------------------------------------------------------------------------


def _server(options: Options) -> int:
    opened = None if options.address is None or options.listener is not None else open_device(options.address)
    try:
        with _listener(options) as listener:
            print(f"waiting for a client on TCP port {listener.getsockname()[1]}", flush=True)
            while True:
                with rendezvous.accept(listener, rendezvous.CONNECT_TIMEOUT) as sock:
                    try:
                        _serve(options, sock, opened)
                    except VerbenaError as error:
                        if not options.persistent:
                            raise
                        print(f"verbena perf: {error}", file=sys.stderr)
                if not options.persistent:
                    return 0
    finally:
        if opened is not None:
            opened.close()


def _listener(options: Options) -> socket.socket:
    if options.listener is None:
        return rendezvous.listen(options.port)
    try:
        return socket.socket(fileno=options.listener)
    except OSError:
        raise ConnectError(f"descriptor {options.listener} is no listening socket") from None


def _serve(options: Options, sock: socket.socket, opened: Context | None) -> None:
    """One client's tests; what goes wrong is told to the client, too."""
    channel = _Channel(sock)
    try:
        hello = channel.receive()
        plan = _plan(hello)
        context = opened
        if context is None and options.address is not None:
            context = open_device(options.address)
        elif context is None:
            context = rendezvous.open_server(sock, _gid(hello))
        try:
            _run_all(context, plan, channel, hello, rendezvous.peer_address(sock))
        finally:
            if context is not opened:
                context.close()
    except VerbenaError as error:
        with contextlib.suppress(ConnectError):
            channel.send(error=str(error))
        raise


def _run_all(context: Context, plan: Plan, channel: _Channel, hello: dict[str, Any], peer: str) -> None:
    plan.mtu = min(plan.mtu, context.query_port(1).active_mtu)
    with End(context, plan) as end:
        _meet(end, hello)
        channel.send(mtu=plan.mtu, **_introduction(end))
        while "bye" not in (message := channel.receive()):
            size = _number(message, "size", 1, plan.largest)
            iterations = _number(message, "iterations", 1, 1 << 40)
            print(f"{TITLES[plan.operation]} for {peer}: {iterations} x {size} bytes", flush=True)
            end.prepare(size)
            channel.send(ready=True)
            run_server(end, size, iterations)
            channel.receive(None)
            channel.send(ok=True)
