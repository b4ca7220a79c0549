"""Link events in real time: they come first, and none is missed for good."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from verbena.runtime.namespaces import inside
from verbena.runtime.real_loop import RealLoop
from verbena.runtime.team_ports import LinkWatch

PATIENT = 20


@pytest.fixture
def loop() -> Iterator[RealLoop]:
    made = RealLoop()
    yield made
    made.close()


def until(ready: object) -> None:
    end = time.monotonic() + PATIENT
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


@pytest.mark.parametrize("urgent", [0, 1, 2])
def test_what_is_to_come_first_does(loop: RealLoop, urgent: int) -> None:
    """Three descriptors are ready when the loop looks, whatever their order: the urgent one is served first."""
    pipes = [os.pipe() for _ in range(3)]
    called: list[int] = []

    def serve(number: int) -> None:
        os.read(pipes[number][0], 10)
        called.append(number)

    for number, (read, _) in enumerate(pipes):
        loop.watch(read, lambda number=number: serve(number), first=number == urgent)
    time.sleep(0.05)

    def all_at_once() -> None:  # in the loop's thread, so that it looks when all are ready
        for _, write in pipes:
            os.write(write, b"x")

    loop.call_soon(all_at_once)
    until(lambda: len(called) == 3)
    assert called[0] == urgent
    for read, write in pipes:
        loop.watch(read, None)
        os.close(write)
        os.close(read)


@pytest.mark.network("netns")
def test_links_are_asked_for_when_the_kernel_could_not_tell(loop: RealLoop) -> None:
    """The watch's queue overflows while it cannot look; the last change is heard of all the same."""
    name = f"vlinks{os.getpid()}"

    def ip(*command: str) -> None:
        subprocess.run(["ip", *command], check=True, capture_output=True)

    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "add", "w0", "type", "veth", "peer", "name", "w1")
        for each in ("w0", "w1"):
            ip("-n", name, "link", "set", each, "up")
        watch = inside(name, lambda: LinkWatch(loop))
        index = inside(name, lambda: socket.if_nametoindex("w0"))
        heard: list[bool] = []
        asked: list[int] = []
        ask = watch._ask
        watch._ask = lambda: (asked.append(len(heard)), ask())  # type: ignore[method-assign]
        with loop.lock:
            watch.listeners[index] = heard.append
            watch._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            for number in range(40):
                ip("-n", name, "link", "set", "w1", "mtu", str(1400 + number))
            ip("-n", name, "link", "set", "w0", "down")
        until(lambda: asked)
        until(lambda: heard and heard[-1] is False)
        assert asked[0] < len(heard)
        with loop.lock:
            watch.close()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)
