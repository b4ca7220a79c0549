"""`verbena perf`: every test between two real processes, and servers that meet bad clients."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import pytest

from cli.processes import Ended, end, free_port, server, two_addresses, verbena
from verbena.cli.perf_runs import PEAK_PARTS, _peak

pytestmark = pytest.mark.compiled

HELLO: dict[str, Any] = {
    "protocol": "verbena perf 1",
    "operation": "write",
    "latency": False,
    "largest": 64,
    "queue_pairs": 1,
    "depth": 8,
    "mtu": 1024,
    "gid": "00000000000000000000ffff7f000001",
    "queue_pairs_at": [[17, 5]],
    "region": 4096,
    "key": 77,
}


def rows(ended: Ended) -> list[list[float]]:
    """The numbers of the table."""
    assert ended.status == 0, ended.err
    return [
        [float(cell) for cell in line.split()]
        for line in ended.out.splitlines()
        if re.match(r" \d+ +\d+ ", line)
    ]


def both(*options: object) -> tuple[Ended, Ended]:
    here, there = two_addresses()
    port = free_port()
    with server("perf", "-d", here, "-p", port) as (process, printed):
        client = verbena("perf", *options, "-d", there, "-p", port, here)
        return end(process, printed), client


@pytest.mark.loopback
@pytest.mark.parametrize("operation", ["write", "read", "send", "atomic"])
def test_bandwidth(operation: str) -> None:
    one, other = both(operation, "--bw", "-n", 50, "-s", 10_000, "-t", 16)
    assert one.status == 0, one.err
    size = 8 if operation == "atomic" else 10_000
    ((size_told, iterations, peak, average, rate),) = rows(other)
    assert (size_told, iterations) == (size, 50)
    assert 0 < average <= peak * 1.01
    assert rate >= 0
    assert f"50 x {size} bytes" in one.out


@pytest.mark.loopback
@pytest.mark.parametrize("operation", ["write", "read", "send", "atomic"])
def test_latency(operation: str) -> None:
    one, other = both(operation, "--lat", "-n", 50)
    assert one.status == 0, one.err
    ((size, iterations, least, most, typical, average, p99, p999),) = rows(other)
    assert (size, iterations) == (8 if operation == "atomic" else 2, 50)
    assert 0 < least <= typical <= p99 <= p999 <= most
    assert least <= average <= most


@pytest.mark.loopback
def test_several_queue_pairs_and_sizes() -> None:
    _, other = both("send", "-a", "-n", 3, "-q", 3, "-t", 4, "-m", 512)
    assert [row[0] for row in rows(other)] == [2.0**n for n in range(1, 24)]
    assert "3 queue pairs of depth 4, path MTU 512" in other.out


@pytest.mark.loopback
def test_both_ends_here() -> None:
    ended = verbena("perf", "write", "--local", "-n", 20)
    assert rows(ended)[0][:2] == [65_536, 20]
    assert "127.0.0.1 to 127.0.0.2" in ended.out


@pytest.mark.loopback
def test_a_server_that_stays() -> None:
    here, there = two_addresses()
    port = free_port()
    with server("perf", "-P", "-d", here, "-p", port) as (process, _):
        with socket.create_connection((here, port)) as sock:
            sock.sendall(b"nonsense\n")
            assert b"something else" in sock.makefile("rb").readline()
        for operation in ("write", "read"):
            rows(verbena("perf", operation, "-n", 5, "-d", there, "-p", port, here))
        assert process.poll() is None


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": "verbena perf 9"}, "this end verbena perf 1"),
        ({"operation": "erase"}, "unknown operation, 'erase'"),
        ({"largest": 1 << 40}, "largest = "),
        ({"largest": "big"}, "largest = 'big'"),
        ({"queue_pairs": 1 << 20}, "queue_pairs = "),
        ({"depth": 0}, "depth = 0"),
        ({"mtu": 1}, "mtu = 1"),
        ({"mtu": 1000}, "1000"),
        ({"gid": "xyz"}, "no GID"),
        ({"queue_pairs_at": []}, "another number of queue pairs"),
        ({"queue_pairs_at": [17]}, "without its number and PSN"),
        ({"queue_pairs_at": [[1 << 24, 0]]}, "qp_num = "),
        ({"key": -1}, "key = -1"),
    ],
)
def test_a_client_that_asks_for_nonsense(change: dict[str, Any], said: str) -> None:
    here, _ = two_addresses()
    port = free_port()
    with server("perf", "-d", here, "-p", port) as (process, printed):
        with socket.create_connection((here, port)) as sock:
            sock.sendall(json.dumps(HELLO | change).encode() + b"\n")
            answer = json.loads(sock.makefile("rb").readline())
        ended = end(process, printed)
    assert said in answer["error"]
    assert ended.status == 1
    assert said in ended.sentence


@pytest.mark.loopback
def test_a_client_that_goes_away() -> None:
    here, _ = two_addresses()
    port = free_port()
    with server("perf", "-d", here, "-p", port) as (process, printed):
        with socket.create_connection((here, port)) as sock:
            sock.sendall(json.dumps(HELLO).encode() + b"\n")
            assert "region" in json.loads(sock.makefile("rb").readline())
        ended = end(process, printed)
    assert ended.status == 1
    assert "closed the TCP connection" in ended.sentence


@pytest.mark.loopback
def test_nobody_listens() -> None:
    ended = verbena("perf", "read", "127.0.0.1", "-p", free_port())
    assert ended.status == 1
    assert "nobody listens" in ended.sentence


def test_the_peak_is_that_of_the_best_part() -> None:
    steady = [(float(n), n) for n in range(10 * PEAK_PARTS + 1)]
    assert _peak(steady) == pytest.approx(1.0)
    burst = [(at if n <= 50 else at - (n - 50) / 2, n) for at, n in steady]
    assert _peak(burst) == pytest.approx(2.0)
