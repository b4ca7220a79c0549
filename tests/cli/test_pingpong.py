"""`verbena pingpong`: two real processes over loopback addresses, and what they say when something is wrong."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator

import pytest

from cli.processes import Ended, end, free_port, read_until, server, start, two_addresses, verbena
from verbena.adapter.attributes import Endpoint
from verbena.adapter.gid import Gid
from verbena.cli.pingpong import ADDRESS_BYTES, format_address, parse_address
from verbena.errors import ConnectError

pytestmark = pytest.mark.compiled

# What ibv_rc_pingpong sent: tests/golden/rc_pingpong.pcap.
FROM_C = b"0000:000011:245a78:00000000000000000000ffff0a4d0003\0"
RESULT = re.compile(
    r"(\d+) bytes in \d+\.\d\d seconds = \d+\.\d\d Mbit/sec\n"
    r"(\d+) iters in \d+\.\d\d seconds = \d+\.\d\d usec/iter\n\Z"
)


def both(service: str, *options: object, prefix: tuple[str, ...] = ()) -> tuple[Ended, Ended]:
    """Server and client with the same options, to their end."""
    here, there = two_addresses()
    port = free_port()
    with server("pingpong", service, "-d", here, "-p", port, *options, prefix=prefix) as (process, printed):
        client = verbena("pingpong", service, here, "-d", there, "-p", port, *options, prefix=prefix)
        return end(process, printed), client


def results(*ends: Ended) -> list[tuple[int, int]]:
    """Bytes and iterations that each end reports."""
    found = []
    for ended in ends:
        assert ended.status == 0, ended.err
        match = RESULT.search(ended.out)
        assert match, ended.out
        found.append((int(match[1]), int(match[2])))
    return found


# --- the exchange of addresses ----------------------------------------------------------------------------------


def test_the_address_is_that_of_the_c_program() -> None:
    endpoint = parse_address(FROM_C)
    assert endpoint == Endpoint(Gid.from_ip("10.77.0.3"), 0x11, 0x245A78, 0)
    assert format_address(endpoint) == FROM_C
    assert len(FROM_C) == ADDRESS_BYTES


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\n", "something else than pingpong"),
        (FROM_C.replace(b":", b"-"), "something else"),
        (FROM_C[:-4] + b"\0\0\0\0", "something else"),
        (FROM_C.replace(b"000011", b"+00011"), "something else"),
        (b"\xff" * ADDRESS_BYTES, "something else"),
        (FROM_C.replace(b"ffff0a4d0003", b"000000000000"), "no GID"),
    ],
)
def test_what_is_no_address(data: bytes, said: str) -> None:
    with pytest.raises(ConnectError, match=said):
        parse_address(data)


# --- exchanges --------------------------------------------------------------------------------------------------


@pytest.mark.loopback
@pytest.mark.parametrize("service", ["rc", "uc"])
@pytest.mark.parametrize("size", [0, 1, 4096, 6000, 100_000])
def test_sizes(service: str, size: int) -> None:
    assert results(*both(service, "-s", size, "-n", 20, "-c")) == [(2 * 20 * size, 20)] * 2


@pytest.mark.loopback
@pytest.mark.parametrize("mtu", [256, 512, 2048, 4096])
def test_path_mtus(mtu: int) -> None:
    assert results(*both("rc", "-s", 6001, "-m", mtu, "-n", 20, "-c")) == [(2 * 20 * 6001, 20)] * 2


@pytest.mark.loopback
@pytest.mark.parametrize("size", [0, 1, 1024, 4096])
def test_datagrams(size: int) -> None:
    assert results(*both("ud", "-s", size, "-n", 20, "-c")) == [(2 * 20 * size, 20)] * 2


@pytest.mark.compiled(False)
@pytest.mark.loopback
@pytest.mark.parametrize("service", ["rc", "uc", "ud"])
def test_events_and_a_single_receive_buffer(service: str) -> None:
    size = 1024 if service == "ud" else 4096  # the defaults
    assert results(*both(service, "-e", "-r", 2, "-n", 30)) == [(2 * 30 * size, 30)] * 2


@pytest.mark.compiled(False)
@pytest.mark.loopback
def test_it_prints_what_the_c_program_prints() -> None:
    one, other = both("rc", "-n", 5)
    name = r"LID 0x0000, QPN 0x[0-9a-f]{6}, PSN 0x[0-9a-f]{6}, GID ::ffff:127\.[0-9.]+"
    for ended in (one, other):
        assert re.search(rf"^  local address:  {name}$", ended.out, re.MULTILINE)
        assert re.search(rf"^  remote address: {name}$", ended.out, re.MULTILINE)
        assert ended.err in ("", ended.err if "uncompiled" in ended.err else "")
    local = re.search(r"local address: +(.*)", one.out)
    remote = re.search(r"remote address: +(.*)", other.out)
    assert local
    assert remote
    assert local[1] == remote[1]


@pytest.mark.loopback
def test_addresses_are_found_where_none_is_given() -> None:
    here, _ = two_addresses()
    port = free_port()
    with server("pingpong", "rc", "-p", port, "-n", 5) as (process, printed):
        client = verbena("pingpong", "rc", here, "-p", port, "-n", 5)
        ended = end(process, printed)
    assert results(ended, client) == [(2 * 5 * 4096, 5)] * 2
    assert "local address:  LID 0x0000" in ended.out
    assert f"GID ::ffff:{here}" in ended.out


@pytest.fixture
def namespace() -> Iterator[tuple[str, ...]]:
    """A network namespace with two IPv6 addresses; the command prefix that runs something in it."""
    name = f"verbena-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        for address in ("fd00::1/128", "fd00::2/128"):
            subprocess.run(["ip", "-n", name, "address", "add", address, "dev", "lo", "nodad"], check=True)
        yield ("ip", "netns", "exec", name)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.network("netns")
@pytest.mark.parametrize("service", ["rc", "uc", "ud"])
def test_ipv6(service: str, namespace: tuple[str, ...]) -> None:
    options = ("-p", 18515, "-n", 20, "-s", 3000, "-c")
    with server("pingpong", service, *options, prefix=namespace) as (process, printed):
        client = verbena("pingpong", service, "fd00::1", "-d", "fd00::2", *options, prefix=namespace)
        ended = end(process, printed)
    assert results(ended, client) == [(2 * 20 * 3000, 20)] * 2
    assert "GID fd00::1" in ended.out


# --- what goes wrong --------------------------------------------------------------------------------------------


def failed(ended: Ended, *said: str) -> None:
    assert ended.status == 1, ended
    assert ended.sentence.startswith("verbena pingpong: ")
    for text in said:
        assert text in ended.sentence


@pytest.mark.loopback
def test_nobody_listens() -> None:
    failed(verbena("pingpong", "rc", "127.0.0.1", "-p", free_port()), "nobody listens at 127.0.0.1 port")


def test_a_host_that_is_none() -> None:
    failed(verbena("pingpong", "rc", "host..invalid"), "'host..invalid' cannot be resolved")


def test_an_address_that_is_not_local() -> None:
    failed(verbena("pingpong", "rc", "-d", "192.0.2.1"), "192.0.2.1", "not one of this machine's")
    failed(verbena("pingpong", "rc", "-d", "here"), "'here' is no IP address")


@pytest.mark.loopback
def test_a_port_that_is_in_use() -> None:
    with socket.create_server(("0.0.0.0", 0)) as sock:
        port = sock.getsockname()[1]
        failed(verbena("pingpong", "rc", "-p", port), f"TCP port {port} is in use")


@pytest.mark.loopback
def test_an_address_that_is_in_use() -> None:
    here, _ = two_addresses()
    with server("pingpong", "rc", "-d", here, "-p", free_port()):
        failed(verbena("pingpong", "rc", "-d", here), f"UDP {here} port 4791 is in use")


@pytest.mark.loopback
def test_a_datagram_that_is_too_long() -> None:
    here, _ = two_addresses()
    failed(verbena("pingpong", "ud", "-d", here, "-s", 4097), "-s 4097", "4096 bytes at most")


@pytest.mark.loopback
def test_a_gid_index_that_is_none() -> None:
    here, _ = two_addresses()
    failed(verbena("pingpong", "rc", "-d", here, "-g", 9), "GID index 9")


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"hello, is this a web server? it does not look like one to me", "something else than pingpong"),
        (FROM_C[:20], "closed the TCP connection"),
        (b"", "closed the TCP connection"),
    ],
)
def test_a_client_that_speaks_something_else(sent: bytes, said: str) -> None:
    here, _ = two_addresses()
    port = free_port()
    with (
        server("pingpong", "rc", "-d", here, "-p", port) as (process, printed),
        socket.create_connection((here, port)) as sock,
    ):
        sock.sendall(sent)
        with contextlib.suppress(OSError):  # the server may have closed already
            sock.shutdown(socket.SHUT_WR)
        failed(end(process, printed), said)


@pytest.mark.loopback
def test_a_client_that_keeps_silent() -> None:
    here, _ = two_addresses()
    port = free_port()
    with (
        server("pingpong", "rc", "-d", here, "-p", port, "--timeout", 0.3) as (process, printed),
        socket.create_connection((here, port)),
    ):
        failed(end(process, printed), "keeps silent")


@pytest.mark.loopback
def test_a_server_that_cannot_use_the_address() -> None:
    """As rdma-core's does when the GIDs are of different IP versions."""
    _, there = two_addresses()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = start("pingpong", "rc", "127.0.0.1", "-d", there, "-p", listener.getsockname()[1])
        sock, _ = listener.accept()
        with sock:
            assert parse_address(sock.recv(ADDRESS_BYTES, socket.MSG_WAITALL)).gid == Gid.from_ip(there)
        failed(end(client), f"does it reach ::ffff:{there}?")


@pytest.mark.loopback
@pytest.mark.parametrize("service", ["rc", "uc", "ud"])
def test_a_peer_that_is_killed(service: str) -> None:
    """Whether it dies between two messages or within one, the other end ends, too, and says why."""
    here, there = two_addresses()
    port = free_port()
    options = ("-p", port, "-n", 100_000_000, "--timeout", 1)
    with server("pingpong", service, "-d", here, *options) as (process, printed):
        client = start("pingpong", service, here, "-d", there, *options)
        try:
            read_until(client, "remote address")
            time.sleep(0.3)  # any time will do: both are busy until then
        finally:
            client.kill()
            client.communicate()
        ended = end(process, printed)
    failed(ended)
    assert re.search("nothing arrived for 1 s, after|does not acknowledge", ended.sentence)


@pytest.mark.loopback
def test_ends_that_disagree() -> None:
    here, there = two_addresses()
    port = free_port()
    with server("pingpong", "uc", "-d", here, "-p", port, "-c", "--timeout", 1) as (process, printed):
        client = start("pingpong", "uc", here, "-d", there, "-p", port, "--timeout", 1)
        failed(end(process, printed), "invalid data in page 0", "-c")
        failed(end(client), "nothing arrived", "UC does not send again")


@pytest.mark.loopback
def test_an_interrupt_is_quiet() -> None:
    here, _ = two_addresses()
    with server("pingpong", "rc", "-d", here, "-p", free_port()) as (process, printed):
        process.send_signal(signal.SIGINT)
        ended = end(process, printed)
    assert ended.status == 130
    assert "Traceback" not in ended.err
    assert "Interrupt" not in ended.err
