"""Sockets direct in real time: sockets, asyncio streams and unmodified programs over connections that move."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest

from verbena.errors import (
    ConnectionLost,
    ConnectionRefused,
    InvalidAttributeError,
    InvalidStateError,
    ResourceError,
)
from verbena.runtime.direct import REAL, DirectNode, DirectSocket
from verbena.runtime.direct_streams import open_connection, start_server
from verbena.runtime.real_loop import RealLoop
from verbena.team.offload.policy import ConnectionParameters
from verbena.team.offload.states import MILLISECOND, Path, SessionEvent, SessionState

pytestmark = [pytest.mark.loopback, pytest.mark.compiled]
NET = f"127.{80 + os.getpid() % 40}"
SETTINGS = replace(
    REAL, slot_size=1 << 14, send_buffer=1 << 18, receive_buffer=1 << 18, tcp_in_flight=1 << 16
)
PATIENT = 60


def stay(of: ConnectionParameters) -> Path:
    """Only the administrator moves connections; without a card they go to the team, and come back."""
    if not of.upload_possible:
        return Path.TEAM
    return of.pinned or (Path.UPLOAD if of.path is Path.TEAM else of.path)


@pytest.fixture
def nodes() -> Iterator[tuple[DirectNode, DirectNode]]:
    with contextlib.ExitStack() as stack:
        yield tuple(  # type: ignore[misc]
            stack.enter_context(
                DirectNode(
                    f"{NET}.1.{i}",
                    f"{NET}.2.{i}",
                    [f"{NET}.3.{i}", f"{NET}.4.{i}"],
                    config=SETTINGS,
                    policy=stay,
                )
            )
            for i in (1, 2)
        )


def joined(nodes: tuple[DirectNode, DirectNode], port: int = 7000) -> tuple[DirectSocket, DirectSocket]:
    server = nodes[1].create_server(port)
    near = nodes[0].create_connection((f"{NET}.1.2", port), PATIENT)
    far, peer = server.accept()
    server.close()
    assert peer[0] == f"{NET}.1.1"
    for sock in (near, far):
        sock.settimeout(PATIENT)
    return near, far


def on_path(node: DirectNode, sock: DirectSocket, path: Path) -> None:
    """Move it there, and wait until it is."""
    session = sock.session
    assert session is not None
    node.pin(session, path)
    with sock._changed:
        assert (
            sock._changed.wait_for(
                lambda: session.path is path and session.state is SessionState.ESTABLISHED, PATIENT
            )
            or session.path is path
        )


def test_bytes_both_ways_while_the_connection_moves_and_cards_fail(
    nodes: tuple[DirectNode, DirectNode], seed: int
) -> None:
    random = Random(seed)
    near, far = joined(nodes)
    assert near.session is not None
    size = 24 << 20
    data = [random.randbytes(size) for _ in range(2)]
    got: list[bytes] = [b"", b""]

    def write(which: int, sock: DirectSocket) -> None:
        sock.sendall(data[which])
        sock.shutdown(socket.SHUT_WR)

    def read(which: int, sock: DirectSocket) -> None:
        digest, total = hashlib.sha256(), 0
        while piece := sock.recv(1 << 16):
            digest.update(piece)
            total += len(piece)
        got[which] = digest.digest() + total.to_bytes(8, "big")

    threads = [
        threading.Thread(target=function, args=(which, sock))
        for function, which, sock in ((write, 0, near), (read, 0, far), (write, 1, far), (read, 1, near))
    ]
    for thread in threads:
        thread.start()
    failed: set[tuple[int, str]] = set()
    while any(thread.is_alive() for thread in threads):
        step = random.randrange(5)
        if step < 3:
            with contextlib.suppress(Exception):
                nodes[0].pin(near.session, random.choice((Path.OFFLOAD, Path.UPLOAD)))
        elif step == 3 and len(failed) < 3:
            which, name = random.randrange(2), random.choice(("rnic0", "rnic1"))
            nodes[which].fail(name)
            failed.add((which, name))
        else:
            for which, name in failed:
                nodes[which].recover(name)
            failed.clear()
        threads[1].join(random.random() * 0.03)
    for which in range(2):
        assert got[which] == hashlib.sha256(data[which]).digest() + size.to_bytes(8, "big")
    assert near.session.moves >= 5
    assert near.session.bytes_by_path[Path.OFFLOAD] > 0
    near.close(), far.close()


@pytest.mark.requirement("TEM-20")
@pytest.mark.parametrize("failing", (0, 1))
@pytest.mark.parametrize("state", (SessionState.PREPARING, SessionState.SWITCHING, SessionState.ESTABLISHED))
def test_the_card_fails_in_the_middle_of_a_hand_over(
    nodes: tuple[DirectNode, DirectNode], state: SessionState, failing: int, seed: int
) -> None:
    """The moment that the leading side enters a state on its way to the card, and back, one of the two cards fails."""
    random = Random(seed)
    near, far = joined(nodes)
    session = near.session
    assert session is not None
    data = random.randbytes(12 << 20)
    target: list[Path] = []
    hit: list[SessionState] = []
    apply = session.apply

    def applied(event: SessionEvent) -> None:
        apply(event)
        if target and session.state is state:
            target.clear()
            hit.append(session.state)
            nodes[failing].loop.call_soon(lambda: nodes[failing].fail("rnic0"))

    session.apply = applied  # type: ignore[method-assign]
    got = bytearray()

    def read() -> None:
        while piece := far.recv(1 << 16):
            got.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    for turn, path in enumerate((Path.OFFLOAD, Path.UPLOAD) * 2):
        part = memoryview(data)[(turn * len(data)) // 4 : ((turn + 1) * len(data)) // 4]
        near.sendall(part[: len(part) // 2])
        on_path(nodes[0], near, Path.UPLOAD if path is Path.OFFLOAD else Path.OFFLOAD)
        target.append(path)
        with contextlib.suppress(ResourceError):
            nodes[0].pin(session, path)
        near.sendall(part[len(part) // 2 :])
        with near._changed:
            assert near._changed.wait_for(lambda turn=turn: len(hit) > turn, PATIENT)  # type: ignore[misc]
        nodes[failing].recover("rnic0")
    near.shutdown(socket.SHUT_WR)
    reader.join(PATIENT)
    assert not reader.is_alive()
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    assert len(hit) == 4
    near.close(), far.close()


def test_each_path_and_the_second_card(nodes: tuple[DirectNode, DirectNode]) -> None:
    near, far = joined(nodes)
    a = nodes[0]
    assert near.session is not None
    on_path(a, near, Path.OFFLOAD)
    near.sendall(b"by the card")
    assert far.recv(100) == b"by the card"
    sent = a.sockets.drivers["rnic0"].card.counters["offload.tx"]
    assert sent >= 1
    a.fail("rnic0")
    near.sendall(b"by the other one")
    assert far.recv(100) == b"by the other one"
    on_path(a, near, Path.OFFLOAD)
    near.sendall(b"again")
    assert far.recv(100) == b"again"
    assert a.sockets.drivers["rnic1"].card.counters["offload.tx"] >= 1
    a.fail("rnic1")
    near.sendall(b"by the team")
    assert far.recv(100) == b"by the team"
    with near._changed:
        assert near._changed.wait_for(lambda: near.session.path is Path.TEAM, PATIENT)
    a.recover("rnic0")
    with near._changed:
        near._changed.wait_for(lambda: near.session.path is not Path.TEAM, PATIENT)
    with pytest.raises(InvalidAttributeError, match="there is no card rnic9"):
        a.fail("rnic9")


def test_the_socket_s_interface(nodes: tuple[DirectNode, DirectNode]) -> None:
    a, _b = nodes
    with pytest.raises(ConnectionRefused):
        a.create_connection((f"{NET}.1.2", 7001), PATIENT)
    loose = a.socket()
    with pytest.raises(InvalidStateError, match="not connected"):
        loose.recv(1)
    near, far = joined(nodes)
    near.setblocking(False)
    with pytest.raises(BlockingIOError):
        near.recv(1)
    near.settimeout(0.01)
    with pytest.raises(TimeoutError):
        near.recv(1)
    near.settimeout(PATIENT)
    far.sendall(memoryview(b"into"))
    buffer = bytearray(10)
    assert near.recv_into(buffer) == 4
    assert buffer[:4] == b"into"
    far.shutdown(socket.SHUT_WR)
    assert near.recv(10) == b""
    assert near.send(b"") == 0
    near.sendall(b"the other way is still open")
    assert far.recv(100).startswith(b"the other")
    assert near.getsockname()[0] == f"{NET}.1.1"
    with pytest.raises(InvalidStateError, match="in use already"):
        near.connect((f"{NET}.1.2", 7000))


def test_asyncio_streams(nodes: tuple[DirectNode, DirectNode], seed: int) -> None:
    data = Random(seed).randbytes(3 << 20)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def main() -> bytes:
        async with await start_server(nodes[1], serve, 7002):
            reader, writer = await open_connection(nodes[0], f"{NET}.1.2", 7002)
            session = writer.get_extra_info("session")

            async def write() -> None:
                for at in range(0, len(data), 1 << 17):
                    writer.write(data[at : at + (1 << 17)])
                    await writer.drain()
                    nodes[0].pin(session, (Path.OFFLOAD, Path.UPLOAD)[at >> 17 & 1])
                writer.write_eof()

            writing = asyncio.create_task(write())
            got = await asyncio.wait_for(reader.read(), PATIENT)
            await writing
            writer.close()
            return got

    assert asyncio.run(main()) == data


def test_unmodified_programs_by_the_proxy(seed: int) -> None:
    """A plain TCP server and a plain TCP client; between them a proxy at each end, each in a process of its own."""
    data = Random(seed).randbytes(2 << 20)
    server = socket.create_server((f"{NET}.9.2", 0))
    server.settimeout(PATIENT)
    port = server.getsockname()[1]
    free = socket.create_server((f"{NET}.9.1", 0))
    listen = free.getsockname()[1]
    free.close()

    def proxy(number: int, *options: str) -> subprocess.Popen[str]:
        addresses = [
            "--upload",
            f"{NET}.5.{number}",
            "--team",
            f"{NET}.6.{number}",
            "--rdma",
            f"{NET}.7.{number}",
        ]
        command = [sys.executable, "-m", "verbena.cli.main", "proxy", *addresses, *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    ends = [
        proxy(1, "--listen", f"{NET}.9.1:{listen}", "--via", f"{NET}.5.2:7000"),
        proxy(2, "--accept", "7000", "--to", f"{NET}.9.2:{port}"),
    ]
    try:
        for end in ends:
            assert end.stdout is not None
            assert end.stdout.readline() == "ready\n"
        client = socket.create_connection((f"{NET}.9.1", listen), PATIENT)
        taken, _ = server.accept()
        taken.settimeout(PATIENT)
        writer = threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
        writer.start()
        got = b""
        while piece := taken.recv(1 << 20):
            got += piece
        taken.sendall(b"thanks")
        taken.close()
        assert client.recv(10) == b"thanks"
        assert got == data
        writer.join()
        client.close()
        assert ends[0].stdout is not None
        lines = [ends[0].stdout.readline() for _ in range(2)]
        assert f"closed: {len(data) + 6} bytes" in lines[1], lines
    finally:
        server.close()
        for end in ends:
            end.send_signal(signal.SIGINT)
            assert end.wait(PATIENT) in (0, 130)
            end.stdout.close()


def test_a_descriptor_that_was_closed_is_not_called_for() -> None:
    """Both of its events, and another descriptor's, are there at once; the first call ends them all."""
    loop = RealLoop()
    pairs = [socket.socketpair() for _ in range(3)]
    called: list[int] = []
    done = threading.Event()

    def come(number: int) -> None:
        called.append(number)
        for sock, _ in pairs:
            loop.watch(sock.fileno(), None)
        done.set()

    with loop.lock:
        for number, (sock, other) in enumerate(pairs):
            other.send(b"x")
            loop.watch(sock.fileno(), lambda number=number: come(number), lambda number=number: come(number))  # type: ignore[misc]
    assert done.wait(PATIENT)
    done.clear()
    loop.call_soon(done.set)
    assert done.wait(PATIENT)
    assert len(called) == 1
    loop.close()
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_an_address_that_is_gone_ends_in_an_error(nodes: tuple[DirectNode, DirectNode]) -> None:
    nodes[1].create_server(7003)
    nodes[0]._addresses[Path.UPLOAD] = "192.0.2.77"
    with pytest.raises(ConnectionLost, match="the connection was not made"):
        nodes[0].create_connection((f"{NET}.1.2", 7003), PATIENT)


def test_settings_are_values() -> None:
    assert REAL.stall_ns > 1000 * MILLISECOND
