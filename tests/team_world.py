"""Two hosts in network namespaces, cables between them, and a team of real time in each."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENT = 40


def ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True, capture_output=True)


class World:
    """Veth pairs ``a0`` - ``b0``, … join two namespaces; all of a side's ends are members of its team (LACP).

    members: how many.  rdma: so many of them, the last ones, are RDMA cards, whose adapters have addresses of networks
    of their own.  proxies: a program's connection to port 8000 of host a's loopback goes on to port 9000 of host b's.
    """

    def __init__(
        self, folder: Path, members: int = 3, rdma: int = 1, *, proxies: bool = False, more: str = ""
    ) -> None:
        self.folder = folder
        self.members = members
        self.names = [f"vteam{os.getpid()}x{members}{end}" for end in "ab"]
        self.programs: list[subprocess.Popen[str]] = []
        self.cables: list[subprocess.Popen[str]] = []
        try:
            self._lay(rdma)
            for number, end in enumerate("ab"):
                self._configure(number, end, rdma, proxies, more)
                self.team(number)
            self.until(lambda: all(self.active(end) == members for end in "ab"))
        except BaseException:
            self.close()
            raise

    def _lay(self, rdma: int) -> None:
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            batch = ["ip", "-n", name, "-force", "-batch", "-"]
            self.cables.append(
                subprocess.Popen(batch, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            )
        a, b = self.names
        for i in range(self.members):
            ip("link", "add", f"a{i}", "netns", a, "type", "veth", "peer", "name", f"b{i}", "netns", b)
            for number, end in enumerate("ab"):
                ip("-n", self.names[number], "link", "set", f"{end}{i}", "up")
                if i >= self.members - rdma:
                    ip(
                        "-n",
                        self.names[number],
                        "addr",
                        "add",
                        f"10.99.{i}.{number + 1}/24",
                        "dev",
                        f"{end}{i}",
                    )

    def _configure(self, number: int, end: str, rdma: int, proxies: bool, more: str) -> None:
        names = [f"{end}{i}" for i in range(self.members)]
        adapters = {f"{end}{i}": f"10.99.{i}.{number + 1}" for i in range(self.members - rdma, self.members)}
        text = {
            "name": f"t{end}",
            "members": names,
            "lacp": True,
            "vlans": {10: f"10.10.0.{number + 1}/24", 11: f"10.11.0.{number + 1}/24"},
        }
        if rdma:
            text["rdma"] = {"vlan": 20, "address": f"10.20.0.{number + 1}/24", "adapters": adapters}
        if proxies:
            via = {"listen": "127.0.0.1:8000", "via": "10.20.0.2:7000"}
            text["proxies"] = [via if end == "a" else {"accept": 7000, "to": "127.0.0.1:9000"}]
        lines = [
            f"{key}: {json.dumps(value).replace(chr(34), '') if key == 'vlans' else json.dumps(value)}"
            for key, value in text.items()
        ]
        (self.folder / f"{end}.yaml").write_text("\n".join([*lines, more, ""]))

    def team(self, number: int) -> None:
        """Run the team of a host."""
        end = "ab"[number]
        file, control = str(self.folder / f"{end}.yaml"), str(self.folder / f"{end}.sock")
        self.start(number, sys.executable, "-m", "verbena.cli.main", "team", "up", file, "-q", "-c", control)

    def start(self, number: int, *command: str) -> subprocess.Popen[str]:
        program = subprocess.Popen(
            ["ip", "netns", "exec", self.names[number], *command], stdout=subprocess.DEVNULL, text=True
        )
        self.programs.append(program)
        return program

    def ask(self, end: str, what: str, name: str = "") -> dict[str, Any]:
        """What the team of a host says to a request."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENT)
            connection.connect(str(self.folder / f"{end}.sock"))
            connection.sendall(json.dumps({"what": what, "name": name}).encode() + b"\n")
            found: dict[str, Any] = json.loads(connection.makefile().readline())
            return found

    def active(self, end: str) -> int:
        """How many of a team's members carry frames."""
        try:
            return sum(member["state"] == "ACTIVE" for member in self.ask(end, "status")["members"])
        except (OSError, ValueError):
            return 0

    def path(self, end: str = "a") -> str:
        """The path that the connection is on; "" while it changes."""
        found = [c for c in self.ask(end, "status")["connections"] if c["state"] != "CLOSED"]
        return found[0]["path"] if found and found[0]["state"] == "ESTABLISHED" else ""

    @staticmethod
    def until(ready: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENT
        while not ready():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.05)

    def link(self, end: str, number: int, up: bool) -> None:
        """Plug a cable in, or pull it, at one end; soon."""
        cable = self.cables["ab".index(end)]
        assert cable.stdin is not None
        cable.stdin.write(f"link set {end}{number} {'up' if up else 'down'}\n")
        cable.stdin.flush()

    def close(self) -> None:
        for program in self.programs:
            program.send_signal(signal.SIGTERM)
        for program in self.programs:
            program.wait(PATIENT)
        for cable in self.cables:
            assert cable.stdin is not None
            cable.stdin.close()
            cable.wait(PATIENT)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
