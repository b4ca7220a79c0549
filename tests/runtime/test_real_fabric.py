"""A fabric in real time: hosts in processes of their own, switches in another, real datagrams between them."""

from __future__ import annotations

import asyncio
import json
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from cli.processes import read_until, start
from real_lab import Relay, RemoteError, RemoteHost, address, hosts, pair, served, star
from verbena import (
    FabricServer,
    LinkTimes,
    QPType,
    RecvRequest,
    SystemLimitError,
    Topology,
    WorkRequest,
    WROpcode,
    _pure,
    open_fabric_device,
)
from verbena.fabric.topology import PortId
from verbena.runtime.link_end import HEADER, MAGIC, VERSION
from verbena.runtime.pairs import connect_sides, make_side
from verbena.verbs.queue_pair import ALL_REMOTE

pytestmark = pytest.mark.loopback
# Uncompiled, every flit of a message costs each of the three processes some tenths of a millisecond.
HALF = 1 << 19  # of the hosts' regions: what is read goes behind it
LARGE = 1 << 20 if _pure.compiled() else 1 << 16


@contextmanager
def command(*arguments: object) -> Iterator[tuple[object, str]]:
    """`verbena fabric` as a process; it, and where it listens."""
    process = start("fabric", *arguments, "--listen", "127.0.0.1:0")
    try:
        said = read_until(process, "that may join")
        yield process, said.split("listening at ")[1].split(": ")[0]
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, (out, err)


def eventually(condition: object, limit: float = 20.0) -> None:
    end = time.monotonic() + limit
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


# --- the services -----------------------------------------------------------------------------------------------


@pytest.mark.requirement("SYS-01")
def test_three_processes_two_hosts_and_a_switch(tmp_path: object) -> None:
    """RC writes, reads and atomics, UD datagrams, a connection by name: as on any other adapter."""
    with command("--generate", "star hosts=2") as (_, at), hosts("h0", "h1", at=at) as (a, b):
        ends = pair(a, b)
        sent = a.fill(seed=1, size=LARGE)
        a.post(operation="RDMA_WRITE", size=LARGE)
        assert a.wait() == ["SUCCESS"]
        assert b.digest(size=LARGE) == sent
        b.fill(seed=2, size=LARGE)
        a.post(operation="RDMA_READ", size=LARGE // 2)
        assert a.wait() == ["SUCCESS"]
        assert a.digest(size=LARGE // 2, at=HALF) == b.digest(size=LARGE // 2)
        before = b.value(at=0)
        a.post(operation="ATOMIC_FETCH_AND_ADD", count=5, compare_add=3)
        assert a.wait(count=5) == ["SUCCESS"] * 5
        assert b.value(at=0) == (before + 15) % (1 << 64)
        b.receive(count=4, size=5000)
        a.post(operation="SEND", size=5000, count=4)
        assert b.wait(count=4) == ["SUCCESS"] * 4
        assert a.wait(count=4) == ["SUCCESS"] * 4
        assert ends[0]["lid"] != ends[1]["lid"]
        assert a.counters()["tx.retransmitted"] == 0


def test_datagrams() -> None:
    with served() as server, hosts("h1", "h2", at=address(server)) as (a, b):
        ends = [host.make(service="UD") for host in (a, b)]
        for host in (a, b):
            host.activate()
        b.receive(count=1, size=2048)
        a.fill(seed=3, size=1024)
        a.send_to(there=ends[1], size=1024)
        assert a.wait() == ["SUCCESS"]
        assert b.wait() == ["SUCCESS"]


def test_a_connection_by_name_and_the_subnet() -> None:
    with served() as server, hosts("h1", "h2", at=address(server)) as (a, b):
        assert a.nodes() == ["h1", "h2", "s1"]
        a.make(service="RC")
        b.make(service="RC")
        b.ask("listen_once", port=7000)
        assert b.line() == {"listening": 7000}
        assert a.call(host="h2", port=7000, text="hello") == "hello"
        assert b.answer() == "SUCCESS"
        a.make(service="RC")
        with pytest.raises(RemoteError, match="NotFound"):
            a.call(host="h7", port=7000, text="hello")


def test_a_host_beside_the_switch_and_one_that_leaves_and_comes_back() -> None:
    """The subnet manager may run on a host, in the fabric's process; who has left can join again, as somebody new."""
    topology = star(2)
    with FabricServer(topology, managers=["h1"]) as server:
        server.start()
        assert server.managers["h1"].is_master
        with server.open_device("h1") as here:
            for _ in range(2):
                with hosts("h2", at=address(server)) as (b,):
                    assert b.nodes() == ["h1", "h2", "s1"]
                    with pytest.raises(RemoteError, match="in the fabric's own process"):
                        RemoteHost().open(name="h1", at=address(server))
                    b.close()
                eventually(lambda: not server.joined)
            assert here.query_port().state == "ACTIVE"


def test_descriptors_coroutines_handlers_and_threads() -> None:
    """All ways to hear of a completion, and several threads on one adapter, while another drives it."""
    with served() as server:
        at = address(server)
        with open_fabric_device("h1", at) as one, open_fabric_device("h2", at) as two:
            handled: list[int] = []
            (handler,) = two.set_completion_handler(lambda cq: handled.append(len(cq.poll())))
            a, b = make_side(one, QPType.RC), make_side(two, QPType.RC)
            connect_sides(a, b, timeout=18)
            for i in range(64):
                b.qp.post_recv(RecvRequest(i, [b.mr.sge(0, 64)]))
            send = WorkRequest(1, WROpcode.SEND, [a.mr.sge(0, 64)])

            b.cq.req_notify()
            descriptor = b.cq.fileno()
            a.qp.post_send(send)
            assert select.select([descriptor], [], [], 30)[0]
            assert b.cq.get_event(30)
            assert len(b.cq.wait(30)) == 1

            async def awaited() -> int:
                a.qp.post_send(send)
                return len(await b.cq)

            assert asyncio.run(awaited()) == 1

            threads = [threading.Thread(target=a.qp.post_send, args=(send,)) for _ in range(30)]
            for thread in threads:
                thread.start()
            found = 0
            while found < 30:
                arrived = b.cq.wait(30)
                assert arrived
                found += len(arrived)
            for thread in threads:
                thread.join()

            cq = two.create_cq(16, handler=handler)
            pd = two.alloc_pd()
            other, far = pd.create_qp(QPType.RC, cq), make_side(one, QPType.RC)
            there, here = far.qp.endpoint, other.endpoint
            other.connect(there)
            far.qp.connect(here)
            other.post_recv(RecvRequest(1, [pd.alloc_mr(64, ALL_REMOTE).sge(0, 64)]))
            cq.req_notify()
            far.qp.post_send(WorkRequest(1, WROpcode.SEND, [far.mr.sge(0, 64)]))
            eventually(lambda: handled == [1])


# --- links that carry datagrams ---------------------------------------------------------------------------------


def mistreat(random: Random) -> list[float]:
    """One in ten lost, one in twenty doubled, one in twenty late."""
    drawn = random.random()
    if drawn < 0.10:
        return []
    if drawn < 0.15:
        return [0.0, 0.0]
    return [random.uniform(0.001, 0.005)] if drawn < 0.20 else [0.0]


@pytest.mark.requirement("LNK-12")
def test_what_datagrams_suffer_is_repaired_by_the_links(seed: int) -> None:
    """Lost, doubled, overtaken datagrams: the link layer repairs all, the transport sends nothing again."""
    with served() as server:
        relay = Relay(server.address, mistreat, seed)
        try:
            with hosts("h1", "h2", at=relay.at) as (a, b):
                pair(a, b, timeout=20)
                sent = a.fill(seed=seed % 1000, size=LARGE // 2)
                for _ in range(4):
                    a.post(operation="RDMA_WRITE", size=LARGE // 2)
                    assert a.wait() == ["SUCCESS"]
                a.post(operation="RDMA_READ", size=LARGE // 8)
                assert a.wait() == ["SUCCESS"]
                assert b.digest(size=LARGE // 2) == sent
                assert a.counters()["tx.retransmitted"] == b.counters()["tx.retransmitted"] == 0
                with server.loop.held():
                    ports = [server.core.port_counters(cable.port) for cable in server.cables.cables.values()]
                assert sum(port["flit_retries"] for port in ports) > 0
                assert sum(port["sequence_errors"] for port in ports) > 0
                assert all(port["link_downed"] == 0 for port in ports)
            assert all(relay.counts.values()), relay.counts
        finally:
            relay.close()


def test_the_switches_process_stands_still_for_a_while() -> None:
    with command("--generate", "star hosts=2") as (process, at), hosts("h0", "h1", at=at) as (a, b):
        pair(a, b, timeout=19)
        sent = a.fill(seed=5, size=LARGE)
        a.post(operation="RDMA_WRITE", size=LARGE, count=8)
        process.send_signal(signal.SIGSTOP)  # type: ignore[attr-defined]
        time.sleep(1.0)
        process.send_signal(signal.SIGCONT)  # type: ignore[attr-defined]
        assert a.wait(count=8) == ["SUCCESS"] * 8
        assert b.digest(size=LARGE) == sent
        assert a.port()["state"] == b.port()["state"] == "ACTIVE"


def test_it_stands_still_for_so_long_that_the_links_go_down() -> None:
    times = LinkTimes(silence_ns=600_000_000)
    topology = star(2)
    with served(topology, times) as server, hosts("h1", "h2", at=address(server)) as (a, b):
        with server.loop.lock:  # as if the process was stopped
            assert a.event() == "PORT_ERR"
            assert b.event() == "PORT_ERR"
            assert a.port()["state"] == "DOWN"
        eventually(lambda: a.port()["state"] == b.port()["state"] == "ACTIVE")
        pair(a, b)
        a.fill(seed=6, size=1000)
        a.post(operation="RDMA_WRITE", size=1000)
        assert a.wait() == ["SUCCESS"]


def test_a_peer_is_killed() -> None:
    with served() as server, hosts("h1", "h2", at=address(server)) as (a, b):
        pair(a, b, timeout=13)
        a.post(operation="RDMA_WRITE", size=1000)
        assert a.wait() == ["SUCCESS"]
        b.signal(signal.SIGKILL)
        eventually(lambda: "h2" not in server.joined)
        a.post(operation="RDMA_WRITE", size=1000, count=3)
        statuses = a.wait(count=3)
        assert statuses[0] == "RETRY_EXC_ERR"
        assert statuses[1:] == ["WR_FLUSH_ERR"] * 2
        with hosts("h2", at=address(server)) as (again,):
            a.make(service="RC")
            pair(a, again)
            sent = a.fill(seed=7, size=9999)
            a.post(operation="RDMA_WRITE", size=9999)
            assert a.wait() == ["SUCCESS"]
            assert again.digest(size=9999) == sent


def test_a_cable_between_switches_is_pulled_and_traffic_takes_the_other() -> None:
    topology = star(2, switches=2)
    with served(topology) as server, hosts("h1", "h2", at=address(server)) as (a, b):
        pair(a, b, timeout=16)
        sent = a.fill(seed=8, size=LARGE)
        cables = [link for link in topology.links if link.a.node[0] == link.b.node[0] == "s"]
        for link in cables:
            a.post(operation="RDMA_WRITE", size=LARGE, count=4)
            server.pull(link.a)
            assert a.wait(count=4) == ["SUCCESS"] * 4
            server.plug(link)
            eventually(lambda: server.settled)
        assert b.digest(size=LARGE) == sent


def test_a_hosts_cable_is_pulled_and_plugged() -> None:
    topology = star(2)
    with served(topology) as server, hosts("h1", "h2", at=address(server)) as (a, b):
        link = server.pull(PortId("h2", 1))
        assert b.event() == "PORT_ERR"
        assert b.port()["state"] == "DOWN"
        server.plug(link)
        events = []
        while "PORT_ACTIVE" not in events:
            events.append(b.event())
        pair(a, b)
        a.post(operation="RDMA_WRITE", size=1000)
        assert a.wait() == ["SUCCESS"]


def test_the_fabric_ends_and_another_listens_in_its_place() -> None:
    with served() as first:
        where = first.address
        running = hosts("h1", "h2", at=address(first))
        a, b = running.__enter__()
    try:
        assert a.event() == "PORT_ERR"
        with FabricServer(star(), where) as second:
            second.start()
            eventually(lambda: len(second.joined) == 2)
            eventually(lambda: a.port()["state"] == b.port()["state"] == "ACTIVE")
            pair(a, b)
            a.post(operation="RDMA_WRITE", size=1000)
            assert a.wait() == ["SUCCESS"]
    finally:
        running.__exit__(None, None, None)


# --- who is not let in ------------------------------------------------------------------------------------------


def test_who_cannot_join_is_told_why() -> None:
    with served() as server:
        at = address(server)
        with pytest.raises(SystemLimitError, match="'h9' is no host of this fabric: its hosts are h1, h2"):
            open_fabric_device("h9", at)
        with pytest.raises(SystemLimitError, match="'s1' is no host"):
            open_fabric_device("s1", at)
        with (
            open_fabric_device("h1", at),
            pytest.raises(SystemLimitError, match="in use: h1 has joined from another process"),
        ):
            open_fabric_device("h1", at)
        eventually(lambda: not server.joined)
        open_fabric_device("h1", at).close()
        free = socket.create_server(("127.0.0.1", 0))
        nobody = free.getsockname()[1]
        free.close()
        with pytest.raises(SystemLimitError, match="no fabric listens at"):
            open_fabric_device("h1", f"127.0.0.1:{nobody}")


def say(server: FabricServer, line: bytes) -> dict[str, object]:
    """Say something at a fabric's port, and hear the answer."""
    with socket.create_connection(server.address, 10) as sock:
        sock.sendall(line)
        answer = sock.makefile("rb").readline()
    return json.loads(answer) if answer else {}  # type: ignore[no-any-return]


def test_other_versions_and_garbage_are_refused() -> None:
    with served() as server:
        hello = {"verbena": "fabric", "version": 2, "node": "h1", "port": 5}
        assert "version 2 of this protocol, this one 1" in str(
            say(server, json.dumps(hello).encode() + b"\n")
        )
        hello |= {"version": 1, "port": 0}
        assert "UDP port, 1 to 65535" in str(say(server, json.dumps(hello).encode() + b"\n"))
        for line in (
            b"GET / HTTP/1.1\r\n",
            b"[1]\n",
            b'{"verbena": "else"}\n',
            b"[" * 4000 + b"\n",
            b"\xff\n",
        ):
            assert "refused" in say(server, line)
        assert say(server, b"x" * 5000) == {}
        assert server.refused["hello"] == 7
        assert server.refused["garbage"] == 1
        with open_fabric_device("h1", address(server)) as ctx:
            assert ctx.query_port().state == "ACTIVE"


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"hello\n", "no line of JSON"),
        (b'{"version": 7}\n', "version 7"),
        (b'{"version": 1, "refused": "not today"}\n', "not today"),
        (b'{"version": 1, "node": {}}\n', "makes no sense"),
        (b"", "does not answer as one"),
    ],
)
def test_what_listens_is_no_fabric(answer: bytes, sentence: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)
                sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(SystemLimitError, match=sentence):
            open_fabric_device("h1", f"127.0.0.1:{listener.getsockname()[1]}", timeout=10)
        thread.join()


def test_hostile_datagrams_are_dropped_and_counted(seed: int) -> None:
    random = Random(seed)
    with served() as server, hosts("h1", "h2", at=address(server)) as (a, b):
        pair(a, b)
        tokens = [cable.end.token for cable in server.cables.cables.values()]
        sent = a.fill(seed=9, size=LARGE)
        a.post(operation="RDMA_WRITE", size=LARGE, count=4)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(200):
                stranger.sendto(random.randbytes(random.randrange(200)), server.address)
                header = HEADER.pack(
                    MAGIC,
                    VERSION,
                    random.randrange(5),
                    0,
                    random.choice(tokens),
                    1 << 62,
                    random.getrandbits(63),
                    random.getrandbits(64),
                )
                stranger.sendto(header + random.randbytes(100), server.address)
        assert a.wait(count=4) == ["SUCCESS"] * 4
        assert b.digest(size=LARGE) == sent
        eventually(lambda: server.loop.counters["drop.rx_sender"] == 200)
        assert server.loop.counters["drop.rx_garbage"] == 200
        assert server.cables.counters()["ups"] == 2


def test_two_hosts_without_a_switch_cannot_be_joined() -> None:
    topology = Topology()
    topology.add_host("h1")
    topology.add_host("h2")
    topology.connect("h1", "h2")
    with pytest.raises(SystemLimitError, match="put a switch between them"):
        FabricServer(topology)
