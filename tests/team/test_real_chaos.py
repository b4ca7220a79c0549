"""Byte-exact streams in real time, while cables, members and connections are failed, mended, moved, removed and added.

A few events by default; ``VERBENA_CHAOS_EVENTS=2000`` in the environment makes more of them, ``--seed`` others.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

from team_world import PATIENT, World
from verbena.runtime.namespaces import inside
from verbena.runtime.tap import missing_permission

EVENTS = int(os.environ.get("VERBENA_CHAOS_EVENTS", "40"))
PIECE = 1 << 15
QUIET = 120
"""Seconds for which a stream may stand still: TCP itself waits long after it has lost the same segment often."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if missing_permission():
        pytest.skip(str(missing_permission()))
    made = World(tmp_path_factory.mktemp("chaos"), 4, 2, proxies=True)
    try:
        yield made
    finally:
        made.close()


class Duplex:
    """A TCP connection of plain programs, with a stream of its own in each direction, until told to end."""

    def __init__(self, world: World, server: tuple[str, int], client: tuple[str, int], seed: int) -> None:
        listener = inside(world.names[1], lambda: socket.create_server(server))
        self.near = inside(world.names[0], lambda: socket.create_connection(client, PATIENT))
        listener.settimeout(PATIENT)
        self.far, _ = listener.accept()
        listener.close()
        self.ending = threading.Event()
        self.sent, self.got = [b"", b""], [b"", b""]
        self.counts = [0, 0]
        self.wrong: list[BaseException] = []
        self.threads = []
        for which, (out, come) in enumerate(((self.near, self.far), (self.far, self.near))):
            out.settimeout(QUIET)
            for function, sock in ((self._write, out), (self._read, come)):
                thread = threading.Thread(target=self._run, args=(function, which, sock, seed + which))
                thread.start()
                self.threads.append(thread)

    def _run(self, function: object, *arguments: object) -> None:
        try:
            function(*arguments)  # type: ignore[operator]
        except OSError as error:
            self.wrong.append(error)

    def _write(self, which: int, sock: socket.socket, seed: int) -> None:
        random, digest = Random(seed), hashlib.sha256()
        while not self.ending.is_set():
            data = random.randbytes(PIECE)
            digest.update(data)
            sock.sendall(data)
            time.sleep(0.002)
        sock.shutdown(socket.SHUT_WR)
        self.sent[which] = digest.digest()

    def _read(self, which: int, sock: socket.socket, seed: int) -> None:
        random, digest = Random(seed), hashlib.sha256()
        expected = bytearray()
        while data := sock.recv(1 << 16):
            digest.update(data)
            while len(expected) < len(data):
                expected += random.randbytes(PIECE)
            # At once, so that it is known where in the stream something is wrong.
            if expected[: len(data)] != data:
                raise OSError(f"wrong bytes behind {self.counts[which]}")
            del expected[: len(data)]
            self.counts[which] += len(data)
        self.got[which] = digest.digest()

    def finish(self) -> None:
        self.ending.set()
        for thread in self.threads:
            thread.join(QUIET)
            assert not thread.is_alive(), "a stream has not come to its end"
        self.near.close(), self.far.close()
        assert not self.wrong, self.wrong
        assert self.sent == self.got


class Chaos:
    """One random event at a time, at one of two hosts."""

    def __init__(self, world: World, random: Random) -> None:
        self.world = world
        self.random = random
        self.done: Counter[str] = Counter()

    def one(self) -> None:
        what = self.random.choice(
            ("pull", "pull", "plug", "plug", "fail", "recover", "recover", "remove", "add", "add")
            + ("offload", "offload", "upload", "release")
        )
        end = self.random.choice("ab")
        if getattr(self, what)(end, self.random.randrange(self.world.members)):
            self.done[what] += 1

    def members(self, end: str) -> dict[str, str]:
        return {member["name"]: member["state"] for member in self.world.ask(end, "status")["members"]}

    def pull(self, end: str, number: int) -> bool:
        self.world.link(end, number, False)
        return True

    def plug(self, end: str, number: int) -> bool:
        for other in range(self.world.members):
            self.world.link(end, other, True)
        return True

    def fail(self, end: str, number: int) -> bool:
        return "error" not in self.world.ask(end, "fail", f"{end}{number}")

    def recover(self, end: str, number: int) -> bool:
        return all("error" not in self.world.ask(end, "recover", name) for name in self.members(end))

    def remove(self, end: str, number: int) -> bool:
        return "error" not in self.world.ask(end, "remove", f"{end}{number}")

    def add(self, end: str, number: int) -> bool:
        there = self.members(end)
        missing = [f"{end}{i}" for i in range(self.world.members) if f"{end}{i}" not in there]
        return all("error" not in self.world.ask(end, "add", name) for name in missing)

    def move(self, what: str) -> bool:
        return "error" not in self.world.ask("a", what)  # the one connection that there is

    def offload(self, end: str, number: int) -> bool:
        return self.move("offload")

    def upload(self, end: str, number: int) -> bool:
        return self.move("upload")

    def release(self, end: str, number: int) -> bool:
        return self.move("release")

    def mend(self) -> None:
        """Everything as it was in the beginning."""
        for end in "ab":
            for what in (self.plug, self.add, self.recover):
                what(end, 0)
        self.world.until(lambda: all(self.world.active(end) == self.world.members for end in "ab"))


@pytest.mark.network("netns", "tap", "raw")
@pytest.mark.skipif(os.environ.get("VERBENA_PURE", "") not in ("", "0"), reason="the same uncompiled")
@pytest.mark.requirement("TEM-03", "TEM-15", "TEM-19", "TEM-20")
def test_streams_survive_random_events(world: World, seed: int) -> None:
    managed = Duplex(world, ("127.0.0.1", 9000), ("127.0.0.1", 8000), seed)
    plain = Duplex(world, ("10.10.0.2", 9001), ("10.10.0.2", 9001), seed + 2)
    chaos = Chaos(world, Random(seed))
    paths: Counter[str] = Counter()
    begun = time.monotonic()
    try:
        for number in range(EVENTS):
            chaos.one()
            time.sleep(chaos.random.choice((0.0, 0.005, 0.02, 0.06)))
            if number % 5 == 0:
                paths[world.path()] += 1
            if number % 20 == 19:
                chaos.mend()
            assert not managed.wrong, managed.wrong
            assert not plain.wrong, plain.wrong
    finally:
        chaos.mend()
        connections = world.ask("a", "status")["connections"]
        for stream in (managed, plain):
            stream.finish()
    took = time.monotonic() - begun
    print(f"{sum(chaos.done.values())} events in {took:.0f} s: {dict(chaos.done)}; paths seen {dict(paths)}")
    print(f"bytes: {managed.counts} managed, {plain.counts} by the team; {connections}")
    assert chaos.done["pull"]
    assert all(managed.counts)
    assert all(plain.counts)
    if EVENTS >= 200:
        assert {"UPLOAD", "OFFLOAD", "TEAM"} <= set(paths)
        assert connections[0]["moves"] > EVENTS // 40
