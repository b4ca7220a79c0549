"""What all tests share: markers, the seed of randomized tests, and the Hypothesis profiles.

Markers:

* ``requirement("VRB-01", ...)``: rows of docs/requirements that the test checks;
* ``loopback``: uses real sockets on loopback addresses;
* ``network("netns", "tap", "raw")``: needs these rights on the machine's network (none named: "netns"), and is
  skipped where they are missing;
* ``slow``: takes more than a few seconds;
* ``compiled``: programs, most of them in real time, which uncompiled do the same in much more time: left out of the
  run with ``VERBENA_PURE=1``.  The tests of each package compare what is compiled with its plain twin, and some of
  these programs run both ways: ``compiled(False)`` takes a test out of its module's mark.

Tests marked ``loopback`` or ``network`` run one after another, in one worker.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from verbena import _pure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import requirements

hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

ONE_WORKER = "real-network"
MARKERS = (
    "requirement(*ids): rows of docs/requirements that this test checks",
    "loopback: uses real sockets on loopback addresses; runs in one worker",
    "network(*rights): needs rights on the machine's network: netns (default), tap, raw; runs in one worker",
    "slow: takes more than a few seconds",
    "compiled(only=True): long programs, left out where VERBENA_PURE is set",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=None, help="the seed of randomized tests, to replay a failure"
    )


def pytest_configure(config: pytest.Config) -> None:
    # A background job starts with the interrupt ignored, and so would the programs that tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    plain = _pure.plain_modules()
    terminalreporter.write_line(
        f"verbena ran uncompiled: {', '.join(plain)}" if plain else "verbena ran compiled"
    )


# --- markers ----------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("VERBENA_PURE"):
        left_out = [item for item in items if compiled_only(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not compiled_only(item)]
    for item in items:
        if item.get_closest_marker("network") or item.get_closest_marker("loopback"):
            item.add_marker(pytest.mark.xdist_group(ONE_WORKER))


def compiled_only(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("compiled")
    return mark is not None and mark.args != (False,)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("requirement"):
        for row in mark.args:
            if row not in known_rows():
                pytest.fail(f"docs/requirements has no row {row!r}", pytrace=False)
    for mark in item.iter_markers("network"):
        for right in mark.args or ("netns",):
            missing = missing_right(right)
            if missing:
                pytest.skip(missing)


@functools.cache
def known_rows() -> frozenset[str]:
    """The ids of docs/requirements."""
    return frozenset(requirements.load_rows())


@functools.cache
def missing_right(right: str) -> str | None:
    """Why this process cannot use the network in that way, or None if it can."""
    if right == "netns":
        if shutil.which("ip") is None:
            return "needs the program ip (package iproute2)"
        name = f"verbena-probe-{os.getpid()}"
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
        if made.returncode:
            return f"needs the right to make network namespaces ({made.stderr.strip()})"
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        return None
    if right == "tap":
        try:
            with open("/dev/net/tun", "r+b", buffering=0):
                return None
        except OSError as error:
            return f"needs TAP devices (/dev/net/tun: {error.strerror})"
    if right == "raw":
        try:
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
            return None
        except OSError as error:
            return f"needs raw sockets ({error.strerror})"
    raise pytest.UsageError(f"unknown right {right!r}: netns, tap and raw are known")


# --- seeds ------------------------------------------------------------------------------------------------------


def plain_id(item: pytest.Item) -> str:
    """The test's id without the group that pytest-xdist appends to it."""
    return item.nodeid.removesuffix("@" + ONE_WORKER)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of a randomized test: the same in every run, another for every test; --seed replaces it."""
    given = request.config.getoption("--seed")
    return zlib.crc32(plain_id(request.node).encode()) if given is None else given


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
    report = yield
    used = getattr(item, "funcargs", {}).get("seed")
    if used is not None and report.failed:
        report.sections.append(("seed", f"seed {used}; replay with: pytest '{plain_id(item)}' --seed {used}"))
    return report
