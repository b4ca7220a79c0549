"""rping: its protocol in virtual time, beside the golden capture of Linux' own; the command on loopback."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import verbena
from verbena import Burst, Context, QPState, QPType, RecvRequest, VirtualNetwork, WorkRequest, wire
from verbena.cli import rping
from verbena.cli.rping import Options, Session, as_text, ping, ping_text, serve
from verbena.runtime.wires import Wire, WrappedWire
from verbena.wire.opcodes import OPCODES

GOLDEN = Path(__file__).parent.parent / "golden" / "rping.pcap"
SERVER, CLIENT = "10.77.0.2", "10.77.0.3"
PORT = 7174


class Recorder(WrappedWire):
    """Notes the name of each packet that goes out, and its length without headers."""

    def __init__(self, inner: Wire, notes: list[tuple[str, int]]) -> None:
        super().__init__(inner)
        self.notes = notes

    def send(self, burst: Burst) -> None:
        for packet in burst.packets():
            self.notes.append((OPCODES[packet.data[0]].name, len(packet.data)))
        self.inner.send(burst)


def play(
    options: Options, *, server_options: Options | None = None, clients: int = 1
) -> tuple[list[str], list[str], list[tuple[str, int]], int]:
    """What client and server print, the packets, and how many pings came back."""
    notes: list[tuple[str, int]] = []
    net = VirtualNetwork(wrap=lambda wire, clock, random: Recorder(wire, notes))
    here, there = net.open_device(CLIENT), net.open_device(SERVER)
    at_client: list[str] = []
    at_server: list[str] = []

    async def main() -> int:
        serving = asyncio.create_task(
            serve([there], PORT, server_options or options, at_server.append, persistent=clients > 1)
        )
        await asyncio.sleep(0)
        counts = await asyncio.gather(
            *(ping(here, SERVER, PORT, options, at_client.append) for _ in range(clients))
        )
        if clients == 1:
            await serving
        else:
            serving.cancel()
        return sum(counts)

    count = net.run(main())
    return at_client, at_server, notes, count


def test_data_of_a_ping_is_as_in_linux() -> None:
    assert ping_text(0, 64) == b"rdma-ping-0: ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqr\0"
    assert ping_text(1, 64)[:20] == b"rdma-ping-1: BCDEFGH"
    assert ping_text(57, 26) == b"rdma-ping-57: zABCDEFGHIJ\0"
    assert ping_text(58, 26)[14:16] == b"AB"
    assert len(ping_text(123_456_789, 26)) == 26
    assert as_text(ping_text(0, 26)) == "rdma-ping-0: ABCDEFGHIJKL"


def test_packets_are_those_of_the_golden_capture() -> None:
    def without_acks(names: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        return [entry for entry in names if entry[0] != "RC ACKNOWLEDGE"]

    golden = []
    for captured in wire.read_capture(GOLDEN.read_bytes()):
        packet = wire.decode(captured.data, captured.link_type)
        if isinstance(packet, wire.RocePacket):
            golden.append((packet.transport.info.name, packet.udp.length - 8))
    _, _, notes, count = play(Options(count=3))
    assert count == 3
    assert without_acks(notes) == without_acks(golden)


def test_a_server_at_several_adapters_takes_whoever_comes_first() -> None:
    net = VirtualNetwork()
    here = net.open_device(CLIENT)
    there = [net.open_device(address) for address in ("10.77.1.1", SERVER, "10.77.1.2")]
    heard: list[str] = []

    async def main() -> int:
        serving = asyncio.create_task(serve(there, PORT, Options(verbose=True), heard.append))
        await asyncio.sleep(0)
        count = await ping(here, SERVER, PORT, Options(count=2), lambda line: None)
        await serving
        return count

    assert net.run(main()) == len(heard) == 2


@pytest.mark.parametrize("size", [26, 64, 65, 1000, 4097, 65_535])
def test_what_comes_back_is_what_was_sent(size: int) -> None:
    at_client, at_server, _, count = play(
        Options(count=4, size=size, verbose=True, validate=True), server_options=Options(verbose=True)
    )
    assert count == 4
    texts = [as_text(ping_text(number, size)) for number in range(4)]
    assert at_client == [f"ping data: {text}" for text in texts]
    assert at_server == [f"server ping data: {text}" for text in texts]


def test_a_persistent_server_serves_several_clients_at_once() -> None:
    at_client, at_server, _, count = play(Options(count=5, verbose=True, validate=True), clients=4)
    assert count == len(at_client) == len(at_server) == 20


def with_client(act: Callable[[Session, verbena.Connection], None]) -> BaseException | None:
    """What a server raises at a client that does `act` once it is connected."""
    net = VirtualNetwork()
    here, there = net.open_device(CLIENT), net.open_device(SERVER)

    async def main() -> BaseException | None:
        serving = asyncio.create_task(serve([there], PORT, Options(), lambda line: None))
        await asyncio.sleep(0)
        session = Session(here, 64)
        connection = await here.connect_async(SERVER, PORT, session.qp)
        act(session, connection)
        (result,) = await asyncio.gather(serving, return_exceptions=True)
        return result

    return net.run(main())


def send(session: Session, data: bytes) -> None:
    session.source.buf[: len(data)] = data
    session.qp.post_send(WorkRequest(sg_list=[session.source.sge(0, len(data))]))


def test_a_client_that_leaves_at_once_is_no_failure() -> None:
    assert with_client(lambda session, connection: connection.disconnect()) is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"short", "sent 5 bytes where rping sends 16"),
        (rping.INFO.pack(0, 0, 1 << 31), "offers 2147483648 bytes"),
        (rping.INFO.pack(1, 2, 64), "REM_ACCESS_ERR"),
    ],
)
def test_a_client_that_does_not_speak_rping(data: bytes, says: str) -> None:
    error = with_client(lambda session, connection: send(session, data))
    assert isinstance(error, verbena.VerbenaError)
    assert says in str(error)


def test_changed_data_is_found() -> None:
    net = VirtualNetwork()
    here, there = net.open_device(CLIENT), net.open_device(SERVER)

    async def false_server(ctx: Context) -> None:
        with ctx.listen(PORT) as listener:
            request = await listener.request()
            pd, cq = ctx.alloc_pd(), ctx.create_cq(16)
            qp, mr = pd.create_qp(QPType.RC, cq), pd.alloc_mr(64)
            qp.modify(QPState.INIT, port_num=1, pkey_index=0, access_flags=0)
            for _ in range(2):
                qp.post_recv(RecvRequest(0, [mr.sge(0, 16)]))
            await request.accept_async(qp)
            for _ in range(2):  # go ahead, and done: without having put anything there
                await cq
                qp.post_send(WorkRequest(1, sg_list=[mr.sge(0, 16)]))
                await cq
            await asyncio.sleep(1)

    async def main() -> None:
        serving = asyncio.create_task(false_server(there))
        await asyncio.sleep(0)
        with pytest.raises(rping.DataMismatch, match="ping 0 came back changed"):
            await ping(here, SERVER, PORT, Options(count=1, validate=True), lambda line: None)
        await serving

    net.run(main())


# --- the command ------------------------------------------------------------------------------------------------

COMMAND = """
import sys
from verbena.cli.rping import rping
sys.exit(rping(**eval(sys.argv[1])))
"""


def start(**arguments: object) -> subprocess.Popen[str]:
    given = {"server": False, "client": False, "address": "127.0.7.1", "port": 7175, **arguments}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, repr(given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.loopback
def test_the_command_between_two_processes() -> None:
    server = start(server=True, verbose=True, address="127.0.7.1")
    options = {"count": 3, "size": 100, "verbose": True, "validate": True, "local": "127.0.7.2"}
    for _ in range(50):  # until the server is there: nobody answers before
        client = start(client=True, **options)
        status, out, err = end(client)
        if status == 0:
            break
        assert "not answer" in err or "nobody listens" in err
    assert status == 0, err
    assert out == "".join(f"ping data: {as_text(ping_text(number, 100))}\n" for number in range(3))
    status, out, err = end(server)
    assert (status, out.count("server ping data: rdma-ping-")) == (0, 3), err


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ({}, 2, "say either -s (server) or -c (client)"),
        ({"server": True, "client": True}, 2, "say either -s (server) or -c (client)"),
        ({"client": True, "size": 25}, 2, "size 25: 26 to 65535 bytes"),
        ({"client": True, "count": -1}, 2, "count -1"),
        ({"server": True, "address": "192.0.2.1"}, 1, "not one of this machine's"),
        ({"client": True, "address": "no.such.name.invalid"}, 1, "no.such.name.invalid: "),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    arguments: dict[str, object], status: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    given = {"server": False, "client": False, "address": "127.0.7.1", **arguments}
    assert rping.rping(**given) == status  # type: ignore[arg-type]
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if "uncompiled" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("verbena rping: ")
    assert says in lines[0]


@pytest.mark.loopback
def test_the_unspecified_address_stands_for_every_one() -> None:
    contexts = rping.open_here("0.0.0.0")
    try:
        assert len({str(ctx.query_gid()) for ctx in contexts}) == len(contexts) > 0
        with pytest.raises(verbena.SystemLimitError, match="in use"):
            rping.open_here("0.0.0.0")
    finally:
        for ctx in contexts:
            ctx.close()


@pytest.mark.loopback
def test_nobody_listens(capfd: pytest.CaptureFixture[str]) -> None:
    with verbena.open_device("127.0.7.3") as there:
        there.listen(1)
        status = rping.rping(False, True, "127.0.7.3", 7175, local="127.0.7.4")
    assert status == 1
    assert "nobody listens at 127.0.7.3 port 7175" in capfd.readouterr().err
