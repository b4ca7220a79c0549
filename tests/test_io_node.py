"""The I/O node of examples/io_node.py: the steps of an operation, refusals, and the array under it (003:471)."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import Lab
from scenario.fabrics import NET
from verbena import Access, QPState

PATH = Path(__file__).resolve().parents[1] / "examples" / "io_node.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("io_node", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


io_node = _load()
BLOCK, READ, WRITE = io_node.BLOCK, io_node.READ, io_node.WRITE


def run(lab: Lab, folder: Path, program) -> None:
    """`program(host, node, array)` on two adapters of a lab, while the node serves."""

    async def main() -> None:
        array = io_node.Raid5([folder / f"disk{i}" for i in range(3)])
        host, node = io_node.Host(lab.adapter()), io_node.IoNode(lab.adapter(), array)
        host.connect(node)
        node.connect(host)
        serving = asyncio.create_task(node.serve())
        await program(host, node, array)
        serving.cancel()
        array.close()

    lab.net.run(main())


def steps(lab: Lab) -> list[tuple[str, str]]:
    """Who sent what, in order of time, acknowledgements left out and packets of one message taken together."""
    packets = [
        (packet.when, who, packet.name)
        for who, tap in zip(("host", "node"), lab.taps, strict=True)
        for packet in tap.out
        if "ACKNOWLEDGE" not in packet.name.upper()
    ]
    kinds = [(who, name.upper()) for _, who, name in sorted(packets)]
    short = [(who, " ".join(w for w in name.replace("_", " ").split() if w in WORDS)) for who, name in kinds]
    return [key for key, _ in groupby(short)]


WORDS = {"SEND", "READ", "REQUEST", "RESPONSE", "WRITE"}


@pytest.mark.requirement("NOD-18")
def test_a_disk_write_has_three_steps(tmp_path: Path) -> None:
    lab = Lab()
    text = bytes(i % 251 for i in range(3 * BLOCK))

    async def program(host, node, array) -> None:
        data = host.pd.reg_mr(bytearray(text), Access.REMOTE_READ)
        assert await host.command(WRITE, 4, 3, data.addr, data.rkey) == "good"
        assert b"".join(array.read(4 + i) for i in range(3)) == text

    run(lab, tmp_path, program)
    seen = steps(lab)
    assert seen[0] == ("host", "SEND"), "the command"
    assert seen[-1] == ("node", "SEND"), "the completion message"
    between = set(seen[1:-1])
    assert between == {("node", "READ REQUEST"), ("host", "READ RESPONSE")}, "the node reads by itself"
    assert seen[1] == ("node", "READ REQUEST")
    assert seen[-2] == ("host", "READ RESPONSE")


@pytest.mark.requirement("NOD-18")
@pytest.mark.parametrize("how", ["no right", "closed", "never told"])
def test_a_withheld_key_is_refused_and_that_is_reported(tmp_path: Path, how: str) -> None:
    lab = Lab()

    async def program(host, node, array) -> None:
        before = bytes(array.read(2))
        data = host.pd.reg_mr(
            bytearray(b"x" * BLOCK), Access.LOCAL_WRITE if how == "no right" else Access.REMOTE_READ
        )
        key = data.rkey ^ (0xFF00 if how == "never told" else 0)
        if how == "closed":
            data.close()
        assert await host.command(WRITE, 2, 1, data.addr, key) == "no access to the buffer"
        assert array.read(2) == before, "nothing was stored"
        assert node.data.state is QPState.RTS
        good = host.pd.reg_mr(bytearray(b"y" * BLOCK), Access.REMOTE_READ)
        assert await host.command(WRITE, 2, 1, good.addr, good.rkey) == "good", "and it goes on"
        assert array.read(2) == b"y" * BLOCK

    run(lab, tmp_path, program)
    naks = [p for p in lab.taps[0].out if p.name.upper().endswith("ACKNOWLEDGE") and p.syndrome >> 5 == 3]
    assert [p.syndrome & 31 for p in naks] == [2], "one NAK: remote access error"
    assert lab.contexts[0].counters()["tx.naks"] == 1


def test_a_disk_read_writes_into_the_host(tmp_path: Path) -> None:
    lab = Lab()

    async def program(host, node, array) -> None:
        array.write(9, b"\x5a" * BLOCK)
        array.fail(0)
        buffer = host.pd.alloc_mr(2 * BLOCK, Access.LOCAL_WRITE | Access.REMOTE_WRITE)
        assert await host.command(READ, 9, 1, buffer.addr + BLOCK, buffer.rkey) == "good"
        assert bytes(buffer.buf) == bytes(BLOCK) + b"\x5a" * BLOCK
        readonly = host.pd.alloc_mr(BLOCK, Access.REMOTE_READ)
        assert await host.command(READ, 9, 1, readonly.addr, readonly.rkey) == "no access to the buffer"
        assert not any(readonly.buf)

    run(lab, tmp_path, program)


@pytest.mark.parametrize(
    "message", [b"", b"x", bytes(24), bytes(23), bytes(28), b"\xff" * 24, b"\0\0\0\1\1" + bytes(19)]
)
def test_a_command_that_is_none(tmp_path: Path, message: bytes) -> None:
    async def program(host, node, array) -> None:
        host.say(message)
        assert io_node.REPLY.unpack(await host.hear())[1] == 2

    run(Lab(), tmp_path, program)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 20), st.binary(min_size=1, max_size=4)),
            st.tuples(st.just("fail"), st.integers(0, 3), st.just(b"")),
            st.tuples(st.just("rebuild"), st.just(0), st.just(b"")),
        ),
        max_size=25,
    )
)
@settings(max_examples=60, deadline=None)
def test_the_array_keeps_every_block_while_one_disk_at_most_is_lost(script: list) -> None:
    with tempfile.TemporaryDirectory() as name:
        array = io_node.Raid5([Path(name) / f"disk{i}" for i in range(4)])
        written: dict[int, bytes] = {}
        lost = None
        for kind, number, data in script:
            if kind == "write":
                written[number] = (data * BLOCK)[:BLOCK]
                array.write(number, written[number])
            elif kind == "fail" and lost is None:
                array.fail(number)
                lost = number
                assert not (Path(name) / f"disk{number}").exists()
            elif kind == "rebuild" and lost is not None:
                array.rebuild(lost)
                lost = None
            for block in range(22):
                assert array.read(block) == written.get(block, bytes(BLOCK))
        if lost is None:
            array.fail(0)
        array.fail(1 if lost != 1 else 2)
        with pytest.raises(OSError, match="two disks"):
            [array.read(block) for block in range(4)]
        array.close()


@pytest.mark.loopback
@pytest.mark.requirement("NOD-18")
def test_over_sockets_it_prints_the_same() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, str(PATH), *addresses], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        for addresses in ([], [f"{NET}.13", f"{NET}.14"])
    ]
    assert outputs[0] == outputs[1]
    assert "REM_ACCESS_ERR" in outputs[0]
