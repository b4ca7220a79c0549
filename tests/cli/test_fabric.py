"""`verbena fabric`, and fabric files in real time: processes for the switches and for each host."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from cli.processes import end, read_until, start, verbena
from verbena import open_fabric_device
from verbena.wire import LinkType, read_capture

pytestmark = [pytest.mark.loopback, pytest.mark.compiled]

FILE = """
name: small
hosts:
  - {name: anna, adapters: [{name: anna0}]}
  - {name: bert, adapters: [{name: bert0}]}
  - {name: carl, adapters: [{name: carl0}]}
fabric:
  switches: [{name: s1, ports: 4}, {name: s2, ports: 4}]
  links:
    - {from: anna0, to: s1}
    - {from: bert0, to: s2}
    - {from: carl0, to: s2}
    - {from: "s1[3]", to: "s2[3]"}
    - {from: "s1[4]", to: "s2[4]"}
  changes:
    - {at_us: 50000, pull: "s1[3]"}
    - {at_us: 400000, plug: "s1[3]"}
    - {at_us: 500000, pull: "s1[4]"}
workloads:
  - {kind: file-transfer, name: file, from: anna0, to: bert0, bytes: SIZE}
"""


def written(folder: Path, size: str = "4 MiB") -> Path:
    path = folder / "small.yaml"
    path.write_text(FILE.replace("SIZE", size))
    return path


@pytest.mark.requirement("SYS-01")
def test_a_fabric_file_in_real_time(tmp_path: Path) -> None:
    """A process for the switches, one for each host that works; cables are pulled meanwhile; every byte arrives."""
    out = tmp_path / "out"
    ended = verbena("run", written(tmp_path), "--time", "real", "--out", out, "--no-capture")
    assert ended.status == 0, ended.err
    assert "SHA-256 equal" in ended.out
    counters = json.loads((out / "counters.json").read_text())
    assert set(counters) == {"anna0", "bert0"}
    assert not list(out.glob("*.log"))


def test_a_run_in_real_time_is_captured(tmp_path: Path) -> None:
    """What each host sent, in one file in the order of time, as many packets as the report says."""
    out = tmp_path / "out"
    ended = verbena("run", written(tmp_path, "1 MiB"), "--time", "real", "--out", out)
    assert ended.status == 0, ended.err
    with (out / "capture.pcapng").open("rb") as file:
        packets = list(read_capture(file))
    assert {packet.interface for packet in packets} == {"anna0[1]", "bert0[1]"}
    assert all(packet.link_type == LinkType.ERF for packet in packets)
    times = [packet.time_ns for packet in packets]
    assert times == sorted(times)
    assert abs(times[-1] - time.time_ns()) < 3600 * 10**9
    told = json.loads((out / "report.json").read_text())["capture"]
    assert len(packets) == told["packets"] > 2 * (1 << 20) / 4096


def test_the_fabrics_process_is_killed(tmp_path: Path) -> None:
    process = start(
        "run", written(tmp_path, "1 GiB"), "--time", "real", "--out", tmp_path / "out", "--no-capture"
    )
    limit = time.monotonic() + 30
    while True:
        assert time.monotonic() < limit
        children = psutil.Process(process.pid).children()
        found = [child for child in children if "verbena.scenario.fabric_real" in child.cmdline()]
        if found and len(children) == 3:
            break
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(found[0].pid, signal.SIGKILL)
    ended = end(process)
    assert ended.status == 1
    assert ended.sentence.startswith(
        f"verbena run: the fabric (process {found[0].pid}) was killed by SIGKILL"
    )
    assert not any(child.is_running() for child in children)


def test_a_fabric_that_others_join(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    capture = tmp_path / "s2.pcapng"
    at_port = ("-w", capture, "--port", "s2[2]")
    process = start("fabric", written(tmp_path), "--listen", f"127.0.0.1:{port}", *at_port)
    so_far = read_until(process, "hosts: ")
    ctx = open_fabric_device("carl0", f"127.0.0.1:{port}")
    with ctx:
        names = [record.description.text.rstrip(b"\0") for record in ctx.subnet.nodes().get(10)]
        assert sorted(names) == [b"carl carl0", b"s1", b"s2"]
        second = verbena("fabric", written(tmp_path), "--listen", f"127.0.0.1:{port}")
        assert second.status == 1
        assert (
            second.sentence
            == f"verbena fabric: TCP 127.0.0.1 port {port} cannot be had: Address already in use"
        )
        time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    ended = end(process, so_far)
    assert ended.status == 0
    assert f"listening at 127.0.0.1:{port}: 2 switches, 3 hosts that may join" in ended.out
    assert "1 of 3 hosts joined, 1 links up, subnet manager on s1" in ended.out
    with capture.open("rb") as file:
        packets = list(read_capture(file))
    assert len(packets) > 10  # those that brought carl0 up, and its question
    assert {packet.interface for packet in packets} == {"s2[2]"}


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ((), 2, "give either FILE or --generate"),
        (("--generate", "star hosts=2", "--listen", "nowhere"), 1, "'nowhere' is no address"),
        (("--generate", "heap hosts=2"), 1, "heap"),
        (("/nowhere.yaml",), 1, "/nowhere.yaml"),
        (("--generate", "star hosts=2", "-w", "/nowhere/x.pcapng"), 1, "/nowhere/x.pcapng"),
        (("--generate", "star hosts=2", "-w", "x.pcapng", "--port", "s9"), 1, "write for example s1[3]"),
        (("--generate", "star hosts=2", "-w", "x.pcapng", "--port", "h0[1]"), 1, "no port h0[1]"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...], status: int, sentence: str) -> None:
    ended = verbena("fabric", *arguments)
    assert ended.status == status
    assert sentence in ended.sentence
