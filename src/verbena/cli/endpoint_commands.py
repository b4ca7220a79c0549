"""Commands with two ends, which exchange data and measure: pingpong, perf, rping."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

LARGEST_MESSAGE = (1 << 31) - 1


class Service(StrEnum):
    """Transport services that pingpong speaks."""

    rc = "rc"
    uc = "uc"
    ud = "ud"


class Mtu(StrEnum):
    """Path MTUs (IBA vol. 1, 9.6.3)."""

    m256 = "256"
    m512 = "512"
    m1024 = "1024"
    m2048 = "2048"
    m4096 = "4096"


class Operation(StrEnum):
    """Operations that perf measures."""

    write = "write"
    read = "read"
    send = "send"
    atomic = "atomic"


Port = Annotated[int, typer.Option("-p", "--port", min=1, max=65535, help="TCP port of the server.")]
Address = Annotated[
    str | None,
    typer.Option("-d", "--address", help="Local IP address; by default the one that routes to the peer."),
]
Iterations = Annotated[int, typer.Option("-n", "--iters", min=1, help="Number of exchanges.")]
Seconds = Annotated[
    float, typer.Option("--timeout", min=0.1, help="Give up when nothing arrives for so many seconds.")
]
Host = Annotated[str | None, typer.Argument(help="Server to connect to; without it, be the server.")]


def pingpong(
    service: Annotated[Service, typer.Argument(help="Transport service.", show_default=False)],
    host: Host = None,
    port: Port = 18515,
    address: Address = None,
    size: Annotated[
        int | None,
        typer.Option(
            "-s",
            "--size",
            min=0,
            max=LARGEST_MESSAGE,
            help="Bytes of a message (default 4096; ud 1024).",
        ),
    ] = None,
    mtu: Annotated[Mtu, typer.Option("-m", "--mtu", help="Path MTU (rc, uc).")] = Mtu.m1024,
    rx_depth: Annotated[
        int, typer.Option("-r", "--rx-depth", min=1, max=16384, help="Receive buffers to post at a time.")
    ] = 500,
    iters: Iterations = 1000,
    gid_idx: Annotated[int, typer.Option("-g", "--gid-idx", min=0, help="Index of the local GID.")] = 0,
    events: Annotated[
        bool, typer.Option("-e", "--events", help="Sleep until a completion event (default: poll first).")
    ] = False,
    chk: Annotated[
        bool, typer.Option("-c", "--chk", help="Compare what arrives; both ends need it.")
    ] = False,
    timeout: Seconds = 10.0,
) -> int:
    """Messages to and fro, also with ibv_*_pingpong.

    Without HOST, wait for a client.  The peer may be ibv_rc_pingpong, ibv_uc_pingpong or ibv_ud_pingpong.
    """
    from verbena.cli.pingpong import Options
    from verbena.cli.pingpong import pingpong as run_pingpong
    from verbena.transport.kinds import QPType

    return run_pingpong(
        Options(
            service=QPType[service.value.upper()],
            host=host,
            port=port,
            size=size,
            mtu=int(mtu.value),
            iterations=iters,
            depth=rx_depth,
            gid_index=gid_idx,
            events=events,
            check=chk,
            address=address,
            timeout=timeout,
        )
    )


def perf(
    operation: Annotated[
        Operation | None, typer.Argument(help="What to measure (a server does what clients ask for).")
    ] = None,
    host: Host = None,
    bw: Annotated[
        bool, typer.Option("--bw", help="Bandwidth: many messages at a time (the default).")
    ] = False,
    lat: Annotated[bool, typer.Option("--lat", help="Latency: one message at a time.")] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Both ends, as two processes on 127.0.0.1 and 127.0.0.2.")
    ] = False,
    size: Annotated[
        int | None,
        typer.Option("-s", "--size", min=1, max=1 << 30, help="Bytes of a message (default 65536; --lat 2)."),
    ] = None,
    sweep: Annotated[bool, typer.Option("-a", "--all", help="All sizes from 2 to 2^23.")] = False,
    iters: Iterations = 1000,
    port: Port = 18515,
    address: Address = None,
    mtu: Annotated[Mtu | None, typer.Option("-m", "--mtu", help="Path MTU (default: the port's).")] = None,
    qp: Annotated[int, typer.Option("-q", "--qp", min=1, max=1024, help="Number of queue pairs (--bw).")] = 1,
    depth: Annotated[
        int,
        typer.Option("-t", "--depth", min=1, max=4096, help="Outstanding messages of a queue pair (--bw)."),
    ] = 128,
    persistent: Annotated[
        bool, typer.Option("-P", "--persistent", help="Be a server for one client after the other.")
    ] = False,
    listener: Annotated[int | None, typer.Option("--listener", hidden=True)] = None,
) -> int:
    """Measure RDMA operations between two ends.

    Without HOST, be the server, which does what its client asks for; --local runs both ends here.
    """
    from verbena.cli.perf import Options
    from verbena.cli.perf import perf as run_perf

    if bw and lat:
        raise typer.BadParameter("--bw and --lat exclude each other")
    if (host is not None or local) and operation is None:
        raise typer.BadParameter("say what to measure: write, read, send or atomic")
    if host is not None and local:
        raise typer.BadParameter("--local runs both ends here: give no HOST")
    if lat and qp > 1:
        raise typer.BadParameter("--lat uses one queue pair")
    return run_perf(
        Options(
            operation=None if operation is None else operation.value,
            latency=lat,
            host=host,
            local=local,
            size=size,
            sweep=sweep,
            iterations=iters,
            port=port,
            address=address,
            mtu=None if mtu is None else int(mtu.value),
            queue_pairs=qp,
            depth=depth,
            persistent=persistent,
            listener=listener,
        )
    )


def rping(
    server: Annotated[bool, typer.Option("-s", "--server", help="Be the server.")] = False,
    client: Annotated[bool, typer.Option("-c", "--client", help="Be the client.")] = False,
    address: Annotated[
        str | None,
        typer.Option("-a", "--server-address", help="Address of the server; there, the one to listen at."),
    ] = None,
    port: Annotated[int, typer.Option("-p", "--port", min=1, max=65535, help="Port of the server.")] = 7174,
    count: Annotated[
        int, typer.Option("-C", "--count", min=0, help="Number of pings; 0: until interrupted.")
    ] = 0,
    size: Annotated[int, typer.Option("-S", "--size", help="Bytes of a ping.")] = 64,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the data.")] = False,
    validate: Annotated[bool, typer.Option("-V", "--validate", help="Compare what comes back.")] = False,
    persistent: Annotated[
        bool, typer.Option("-P", "--persistent", help="Be a server for one client after the other.")
    ] = False,
    local: Annotated[
        str | None,
        typer.Option(
            "-d", "--address", help="The client's own address; by default the one that routes there."
        ),
    ] = None,
) -> int:
    """Ping by RDMA READ and WRITE, also with rping.

    The connection is made by the connection manager; the peer may be the rping of librdmacm.
    """
    if server == client:
        raise typer.BadParameter("say either -s (server) or -c (client)")
    if address is None:
        if client:
            raise typer.BadParameter("name the server's address with -a")
        address = local or "0.0.0.0"
    from verbena.cli.rping import rping as run_rping

    return run_rping(server, client, address, port, count or None, size, verbose, validate, persistent, local)


COMMANDS = (pingpong, perf, rping)
