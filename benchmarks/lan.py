"""Benchmarks of LAN emulation in virtual time, on one core.

``lan.resolve_1000``: a thousand hosts, each of which wants the hardware address of each other one: 999,000 addresses.
The fabric has eight switches with 125 hosts each and four spines; its LAN uses the fabric's multicast, nodes are found
when something comes from them.  Measured is the time from the first question until every host's table is
complete; every table is then compared with the truth.  It is the process's own time, which is wall time where nothing
else runs: so what else runs on the machine counts as little as possible.

A host that hears another's question notes the sender if it wants to know that address (RFC 826, "merge"), and asks a
hundred questions a second at most, so that about a thousand broadcasts do for all; a thousand hosts hear each of them,
and each reception goes all the way: packets with their bytes and checksums through the switches, the adapter, the
verbs, the driver, the host's ARP.  Bringing up the fabric and the LAN is a figure of its own (``lan.start_1000``).
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from endpoint import row

from verbena.adapter.attributes import DeviceAttributes
from verbena.lan import LanConfig, LanNode
from verbena.lan.host import Host
from verbena.runtime.fabric import Fabric

HOSTS = 1000
SHAPE = "xgft down=125,8 up=1,4"
MS = 1_000_000
CONFIG = LanConfig(
    discovery="lazy",
    policy="limited",
    max_channels=4,
    query_interval_ns=0,
    storm_rate=0,  # this is a storm, and wanted
    datagram_receives=16,
    frame_receives=8,
    send_messages=8,
    send_depth=16,
)
ADAPTER = DeviceAttributes(max_qp=16, max_cq=16, max_ah=HOSTS + 64, max_srq=4, max_mr=32)
ASKING = {"most_asking": 1, "gap_ns": 10 * MS}


def start() -> tuple[Fabric, list[LanNode]]:
    """The fabric, and the LAN's nodes, one after the other."""
    fabric = Fabric.generate(SHAPE, flits=False)
    nodes = []
    for host in fabric.topology.hosts:
        nodes.append(LanNode(fabric.open_device(host.name, limits=ADAPTER), config=CONFIG))
        fabric.run_for(MS)
    fabric.run_for(100 * MS)
    if not all(node.card.link for node in nodes):
        raise RuntimeError("the LAN did not come up")
    return fabric, nodes


def resolve(fabric: Fabric, hosts: list[Host]) -> None:
    """Every host resolves every other one's address."""
    for place, host in enumerate(hosts):
        for other in hosts[place + 1 :] + hosts[:place]:
            host.neighbours.want(other.ip)
    while any(host.neighbours.unresolved for host in hosts):
        fabric.run_for(MS)


def measure() -> dict[str, float]:
    began = time.process_time()
    fabric, nodes = start()
    started = time.process_time()
    hosts = [
        Host(node.card, fabric.clock, f"10.0.{n >> 8}.{n & 255}/16", neighbours=ASKING)
        for n, node in enumerate(nodes, 1)
    ]
    gc.collect()
    gc.freeze()  # what the LAN consists of lives to the end
    before = sum(host.port.counters["rx.frames"] for host in hosts)
    ready = time.process_time()
    resolve(fabric, hosts)
    done = time.process_time()
    truth = {host.ip: host.port.mac for host in hosts}
    for host in hosts:
        if host.neighbours.entries() != {ip: mac for ip, mac in truth.items() if ip != host.ip}:
            raise RuntimeError(f"the table of {host.ip.hex()} is wrong")
    frames = sum(host.port.counters["rx.frames"] for host in hosts) - before
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "start": started - began,
        "resolve": done - ready,
        "frame": (done - ready) / frames * 1e6,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 20),
    }


@functools.cache
def alone() -> dict[str, float]:
    """Measured in a process of its own, whose memory no other benchmark has used."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure)


def _figure(name: str, key: str, unit: str) -> Callable[[], dict[str, Any]]:
    return lambda: row(name, alone()[key], unit, None)


BENCHMARKS: dict[str, Callable[[], Any]] = {
    "resolve_1000": _figure("lan.resolve_1000", "resolve", "s"),
    "resolve_1000_frame": _figure("lan.resolve_1000_frame", "frame", "us a frame heard"),
    "resolve_1000_memory": _figure("lan.resolve_1000_memory", "memory", "MiB"),
    "start_1000": _figure("lan.start_1000", "start", "s"),
}
