"""``verbena proxy``: unmodified TCP programs over connections that can be offloaded.

One end takes TCP connections at `listen` and opens a managed one to the peer's node for each; the other end takes those
at a port, and opens a TCP connection to the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from concurrent.futures import Future

from verbena.errors import InvalidAttributeError, SystemLimitError, VerbenaError
from verbena.runtime.direct import DirectNode
from verbena.runtime.direct_streams import open_connection, start_server

PIECE = 1 << 18
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def endpoint(text: str, what: str) -> tuple[str, int]:
    """``ADDRESS:PORT``; raises `InvalidAttributeError`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise InvalidAttributeError(f"{what} {text!r}: ADDRESS:PORT is right, such as 10.0.0.2:7000")
    return host, int(port)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    count = 0
    while data := await reader.read(PIECE):
        writer.write(data)
        await writer.drain()
        count += len(data)
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()
    return count


async def join(one: Ends, other: Ends, quiet: bool) -> None:
    """Copy in both directions until both have ended."""
    session = one[1].get_extra_info("session") or other[1].get_extra_info("session")
    name = session.identity.hex()[:8]
    if not quiet:
        print(f"{name} open", flush=True)
    try:
        counts = await asyncio.gather(_copy(one[0], other[1]), _copy(other[0], one[1]))
        if not quiet:
            ways = ", ".join(f"{p.name.lower()} {n}" for p, n in session.bytes_by_path.items())
            print(f"{name} closed: {sum(counts)} bytes; sent by path: {ways or 'none'}", flush=True)
    except (OSError, VerbenaError) as error:
        print(f"{name} lost: {error}", file=sys.stderr, flush=True)
    finally:
        for writer in (one[1], other[1]):
            writer.close()


async def serve(
    node: DirectNode,
    listen: str | None,
    via: str | None,
    accept: int | None,
    to: str | None,
    quiet: bool,
    began: Future[None] | None = None,
) -> None:
    """Run until cancelled.  began: is done as soon as connections are taken."""
    waiting: list[object] = []
    if listen is not None and via is not None:
        peer = endpoint(via, "--via")

        async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                other = await open_connection(node, *peer)
            except (OSError, VerbenaError) as error:
                print(f"{via}: {error}", file=sys.stderr, flush=True)
                writer.close()
                return
            await join((reader, writer), other, quiet)

        host, port = endpoint(listen, "--listen")
        try:
            waiting.append(await asyncio.start_server(taken, host, port))
        except OSError as error:
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise SystemLimitError(f"{listen} cannot be listened at: {why}") from None
    if accept is not None and to is not None:
        program = endpoint(to, "--to")

        async def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                other = await asyncio.open_connection(*program)
            except OSError as error:
                print(f"{to}: {error.strerror}", file=sys.stderr, flush=True)
                writer.transport.abort()
                return
            await join((reader, writer), other, quiet)

        waiting.append(await start_server(node, came, accept))
    if not waiting:
        raise SystemLimitError("nothing to do: give --listen with --via, --accept with --to, or both")
    if began is not None:
        began.set_result(None)
    if not quiet:
        print("ready", flush=True)
    await asyncio.Event().wait()


def proxy(
    upload: str,
    team: str,
    rdma: list[str],
    listen: str | None,
    via: str | None,
    accept: int | None,
    to: str | None,
    quiet: bool,
) -> int:
    """Run until interrupted."""
    if (listen is None) != (via is None) or (accept is None) != (to is None):
        raise InvalidAttributeError("--listen goes with --via, and --accept with --to")
    with DirectNode(upload, team, rdma) as node, contextlib.suppress(asyncio.CancelledError):
        asyncio.run(serve(node, listen, via, accept, to, quiet))
    return 0
