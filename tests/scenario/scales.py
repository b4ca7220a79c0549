"""Simulations for tests: from a fabric file's text to what was measured."""

from __future__ import annotations

from pathlib import Path

from verbena.scenario.fabric_schema import Traffic
from verbena.scenario.fabric_topology import build_topology
from verbena.scenario.load import parse_fabric
from verbena.scenario.measured import Measured
from verbena.scenario.simulation import Simulation

HEADERS = 26  # LRH, BTH, ICRC, VCRC
HOSTS = "{name: %s, adapters: [{name: %s%s}]}"


def wire(payload: int) -> int:
    """Bytes that a packet with so much payload occupies on a link."""
    size = HEADERS + payload
    return size + -(-size // 80) * 12


def simulation(fabric: str, traffic: str, seed: int = 0, more: str = "") -> Simulation:
    """fabric: the value of the key `fabric`.  traffic: the keys of the workload.  more: lines of the file."""
    text = f"name: t\nseed: {seed}\nfabric: {fabric}\n{more}workloads:\n  - {{kind: traffic, name: t, {traffic}}}\n"
    read = parse_fabric(text, "t.yaml")
    (spec,) = read.workloads
    assert read.fabric is not None
    assert isinstance(spec, Traffic)
    return Simulation(build_topology(read), read.fabric, spec, read.seed, Path())


def run(fabric: str, traffic: str, seed: int = 0, more: str = "") -> Measured:
    """The same, run; its balance must come out even, whatever it is about."""
    found = simulation(fabric, traffic, seed, more).run()
    for what, left, right in found.balance:
        assert left == right, what
    return found
