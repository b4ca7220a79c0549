#!/usr/bin/env python3
"""Two virtual machines with Linux, a network namespace and a program on one lossless switch: do they reach one another,
and where do frames wait when three producers send at full speed to a program that reads slowly?

    examples/vswitch/guests/build.sh                       # once: the guest, in runs/guest
    python examples/vswitch/guests/check.py [FOLDER]       # as root

Exit status 1 if a frame of a machine was lost, or its own queues did not fill.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verbena.runtime.shm_port import VirtualCard, open_card

MACHINES = {"vm1": "10.73.0.1", "vm2": "10.73.0.2"}
BOX, READER = "10.73.0.3", "10.73.0.9"
READER_MAC = "02:00:00:00:00:09"
PORT, BYTES = 9_000, 1_000
HEADERS = 42
SWITCH = """
name: {name}
vswitch:
  live:
    ports:
      - {{name: vm1, kind: qemu, listen: {folder}/vm1.sock, macs: ["52:54:00:00:00:01"]}}
      - {{name: vm2, kind: qemu, listen: {folder}/vm2.sock, macs: ["52:54:00:00:00:02"]}}
      - {{name: box, kind: tap, interface: eth0, namespace: {name}-box, addresses: [10.73.0.3/24]}}
      - {{name: reader, kind: card, listen: {folder}/card.sock, macs: ["{mac}"]}}
"""
BOOT_S, ANSWER_S = 240, 120


class Guest:
    """A virtual machine whose first process runs the lines that its serial port gets (see ``init``)."""

    def __init__(self, image: Path, number: int, sock: str, qdisc: str = "pfifo_fast") -> None:
        line = f"console=ttyS0 quiet panic=-1 address=10.73.0.{number}/24 qdisc={qdisc}"
        stream = f"stream,id=n0,server=off,addr.type=unix,addr.path={sock}"
        device = f"virtio-net-pci,netdev=n0,mac=52:54:00:00:00:{number:02x}"
        self.name = f"vm{number}"
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "128", "-nodefaults", "-no-reboot"]
            + ["-display", "none", "-monitor", "none", "-serial", "stdio", "-append", line]
            + ["-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd.gz")]
            + ["-netdev", stream, "-device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._said = bytearray()

    def _until(self, pattern: str, limit: float) -> str:
        """What it says until a line that matches; raises `RuntimeError` if that does not come in time."""
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        lines: list[str] = []
        try:
            assert self.process.stdout is not None
            while data := self.process.stdout.readline():
                lines.append(data.decode(errors="replace").strip("\r\n"))
                if re.match(pattern, lines[-1]):
                    return "\n".join(lines)
        finally:
            timer.cancel()
        raise RuntimeError(f"{self.name} said nothing more within {limit} s: {lines[-10:]}")

    def booted(self) -> str:
        """Wait until it is; its kernel's release."""
        return self._until("=ready= ", BOOT_S).rpartition(" ")[2]

    def run(self, command: str, limit: float = ANSWER_S) -> str:
        """Run a line; what it printed.  Raises `RuntimeError` if it failed."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        *said, status = self._until("=status= ", limit).split("\n")
        if status != "=status= 0":
            raise RuntimeError(f"{self.name}: {command}: {status} {said}")
        return "\n".join(said)

    def queues(self) -> dict[str, int]:
        """Of its card: frames that wait in the queueing discipline, what that dropped, what the card dropped."""
        told = json.loads(self.run("tc -s -j qdisc show dev eth0"))[0]
        card = json.loads(self.run("ip -s -j link show dev eth0"))[0]["stats64"]["tx"]
        return {
            "waiting": told["qlen"],
            "requeues": told["requeues"],
            "dropped": told["drops"],
            "card_dropped": card["dropped"],
            "card_sent": card["packets"],
        }

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass
class Flood:
    """What a flood came to.  At the slow moment: `waiting` frames in each machine's own queue, `stopped` ports."""

    sent: dict[str, int] = field(default_factory=dict)
    waited: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    came: Counter[str] = field(default_factory=Counter)
    out_of_order: int = 0
    waiting: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    kernel: dict[str, int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Did each machine's queue fill, and did every frame of each come?  (A TAP device's loss is its kernel's.)"""
        return all(
            self.came[name] == self.sent[name] and self.waiting[name] and not self.dropped[name]
            for name in MACHINES
        ) and not (self.out_of_order or self.losses)


def verbena(*words: str) -> list[str]:
    return [sys.executable, "-m", "verbena.cli.main", "vswitch", *words]


class Bench:
    """The switch with its ports, both machines booted."""

    def __init__(self, image: Path, folder: Path, stack: ExitStack, qdisc: str) -> None:
        self.image, self.name = image, f"guests-{os.getpid()}"
        file = folder / "switch.yaml"
        file.write_text(SWITCH.format(name=self.name, folder=folder, mac=READER_MAC))
        switch = subprocess.Popen(verbena("up", str(file)), stdout=subprocess.PIPE, text=True)
        stack.callback(switch.wait)
        stack.callback(switch.terminate)
        assert switch.stdout is not None
        while "Ctrl-C ends it" not in (line := switch.stdout.readline()):
            if not line:
                raise RuntimeError("the switch did not come up")
        threading.Thread(target=switch.stdout.read, daemon=True).start()
        begun = time.monotonic()
        self.guests = {
            name: Guest(image, number, str(folder / f"{name}.sock"), qdisc)
            for number, name in enumerate(MACHINES, 1)
        }
        for guest in self.guests.values():
            stack.callback(guest.end)
        self.kernels = [guest.booted() for guest in self.guests.values()]
        self.boot_s = time.monotonic() - begun
        self.card: VirtualCard = open_card(str(folder / "card.sock"))
        stack.callback(self.card.close)
        neighbour = f"ip neigh replace {READER} lladdr {READER_MAC} dev eth0 nud permanent"
        for guest in self.guests.values():
            guest.run(neighbour)
        subprocess.run(self.inside(*neighbour.split()), check=True)

    def inside(self, *command: str) -> list[str]:
        """A command in the namespace."""
        return ["ip", "netns", "exec", f"{self.name}-box", *command]

    def command(self, where: str, command: str) -> str:
        """In a machine, or the namespace; what it printed."""
        if where in self.guests:
            return self.guests[where].run(command)
        return subprocess.run(
            self.inside(*command.split()), capture_output=True, text=True, check=True
        ).stdout

    def socket_drops(self, where: str) -> int:
        """Datagrams that its sockets had no room for: the last hop, which is behind the switch."""
        heads, values = re.findall(r"^Udp: (.*)$", self.command(where, "cat /proc/net/snmp"), re.MULTILINE)
        return int(dict(zip(heads.split(), values.split(), strict=True))["RcvbufErrors"])

    def status(self) -> dict[str, Any]:
        done = subprocess.run(verbena("status", self.name, "--json"), capture_output=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def pings(self) -> Iterator[tuple[str, bool]]:
        """Each pair: did all answers come?"""
        for here, guest in self.guests.items():
            for there, address in (*MACHINES.items(), ("box", BOX)):
                if there != here:
                    yield f"{here} to {there}", " 0% packet loss" in guest.run(f"ping -c 3 {address}")

    def speeds(self, seconds: int) -> Iterator[tuple[str, str]]:
        """TCP, and UDP at 20 Mb/s, between the machines and the namespace, as iperf3 tells it."""
        if "iperf3" not in self.guests["vm1"].run("ls /tools"):
            return
        for name in MACHINES:
            self.guests[name].run("iperf3 -s -D")
        subprocess.run(self.inside("iperf3", "-s", "-D", "-I", f"/run/{self.name}.pid"), check=True)
        try:
            for here, there in (("vm1", "vm2"), ("vm2", "box"), ("box", "vm1")):
                for kind, more in (("TCP", ""), ("UDP", "-u -b 20M -l 1400")):
                    command = f"iperf3 -J -c {MACHINES.get(there, BOX)} -t {seconds} {more}"
                    before = self.socket_drops(there)
                    end = json.loads(self.command(here, command))["end"]
                    if kind == "TCP":
                        told = f"{end['sum_received']['bits_per_second'] / 1e6:.0f} Mb/s received"
                        told += f", {end['sum_sent']['retransmits']} sent again"
                    else:
                        told = f"{end['sum']['packets']:,} datagrams, {end['sum']['lost_packets']} lost"
                        told += f", {self.socket_drops(there) - before} of them by the receiving socket"
                    yield f"{kind} {here} to {there}", told
        finally:
            pid = Path(f"/run/{self.name}.pid")
            os.kill(int(pid.read_text().strip("\0\n")), 15)
            pid.unlink(missing_ok=True)

    def flood(self, count: int, sockets: int = 4, slow_s: float = 4.0) -> Flood:
        """Each of three producers sends `count` datagrams by each of its sockets; the program first reads slowly."""
        found = Flood()
        command = f"flood {READER} {PORT} {BYTES} {count} {sockets}"
        for guest in self.guests.values():
            guest.run(f"{command} >/tmp/flood &")
        box = subprocess.Popen(
            self.inside(str(self.image / "flood"), *command.split()[1:]), stdout=subprocess.PIPE, text=True
        )
        following: Counter[tuple[str, int]] = Counter()
        sampler = threading.Thread(target=self._sample, args=(found, slow_s))
        sampler.start()
        while sampler.is_alive():
            self._read(1, following, found)
            time.sleep(0.005)
        # Now as fast as it can, until nothing has come for a while and all have sent.
        while self.card.wait_frames(3) or box.poll() is None:
            self._read(4096, following, found)
        said = {name: guest.run("wait; cat /tmp/flood") for name, guest in self.guests.items()}
        said["box"] = box.communicate()[0]
        while self.card.wait_frames(3):
            self._read(4096, following, found)
        for name, text in said.items():
            told = re.findall(r"sender \d+: (\d+) sent, (\d+) waited, (\d+) refused", text)
            for total, at in ((found.sent, 0), (found.waited, 1), (found.refused, 2)):
                total[name] = sum(int(each[at]) for each in told)
        for name, guest in self.guests.items():
            queues = guest.queues()
            found.dropped[name] = queues["dropped"] + queues["card_dropped"]
        status = self.status()
        found.losses, found.kernel = status["losses"], status["kernel_losses"]
        return found

    def _sample(self, found: Flood, slow_s: float) -> None:
        """Look at the queues after the program has read slowly for a while."""
        time.sleep(slow_s)
        for name, guest in self.guests.items():
            found.waiting[name] = guest.queues()["waiting"]
        for port in self.status()["ports"]:
            if any(queue["stopped"] for queue in (port["state"] or {}).get("input", {}).values()):
                found.stopped.append(port["name"])

    def _read(self, most: int, following: Counter[tuple[str, int]], found: Flood) -> None:
        for frame in self.card.receive_many(most):
            if len(frame) != HEADERS + BYTES:
                continue  # ARP and the like
            source = {1: "vm1", 2: "vm2"}.get(frame[29], "box")
            sender = (source, frame[HEADERS])
            number = int.from_bytes(frame[HEADERS + 1 : HEADERS + 5], "big")
            found.out_of_order += number < following[sender]
            following[sender] = number + 1
            found.came[source] += 1


@contextmanager
def bench(image: Path, qdisc: str = "pfifo_fast") -> Iterator[Bench]:
    """Everything up while the context lasts."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield Bench(image, folder, stack, qdisc)


def tell(found: Flood) -> None:
    print(f"{'':5}{'sent':>9}{'came':>9}{'sends that waited':>19}{'in own queue':>14}{'dropped there':>15}")
    for name in (*MACHINES, "box"):
        row = f"{name:5}{found.sent[name]:>9,}{found.came[name]:>9,}{found.waited[name]:>19,}"
        if name in MACHINES:
            row += f"{found.waiting[name]:>14,}{found.dropped[name]:>15,}"
        print(row)
    print(f"inputs of the switch that were stopped: {', '.join(found.stopped) or 'none'}")
    print(f"out of order: {found.out_of_order}; lost in the switch: {sum(found.losses.values())}; ", end="")
    kernel = ", ".join(f"{place} {number:,}" for place, number in found.kernel.items())
    print(f"dropped by the kernel: {kernel or 0}")


def main() -> int:
    image = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/guest")
    if not (image / "initrd.gz").exists():
        print(f"there is no guest in {image}: examples/vswitch/guests/build.sh builds one", file=sys.stderr)
        return 1
    with bench(image) as made:
        print(f"two machines with Linux {made.kernels[0]} booted in {made.boot_s:.0f} s")
        for pair, came in made.pings():
            print(f"ping {pair}: {'all answers came' if came else 'answers are missing'}")
        for what, told in made.speeds(3):
            print(f"{what}: {told}")
        print("three producers at full speed, a program that reads 200 frames/s, then all:")
        found = made.flood(20_000)
        tell(found)
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main())
