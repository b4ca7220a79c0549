"""A small network, and questions to one agent of it, for the tests beside this file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from management.sm_net import Net
from verbena.fabric.topology import Topology
from verbena.management.agent import SubnetManagementAgent
from verbena.wire.mad import Method
from verbena.wire.smp import AttributeId, Smp, directed_smp
from verbena.wire.smp_attributes import (
    PortInfo,
)

A = AttributeId
SECOND = 1_000_000_000
KEY = 0x1234_5678_9ABC_DEF0


def net() -> Net:
    topology = Topology()
    topology.add_host("h1", 2)
    topology.add_host("h2")
    topology.add_switch("s1", 20)
    topology.add_router("r1")
    topology.connect("h1", "s1")
    topology.connect("h2", "s1")
    topology.connect("r1", "s1")
    return Net(topology)


def request(
    agent: SubnetManagementAgent,
    attribute: int,
    modifier: int = 0,
    data: bytes | None = None,
    *,
    port: int = 1,
    mkey: int = 0,
    method: int | None = None,
) -> Smp | None:
    """What an agent answers to a SubnGet, or with `data` to a SubnSet."""
    how = method if method is not None else Method.GET if data is None else Method.SET
    mad = directed_smp(how, attribute, modifier, (1,), data=data or b"", mkey=mkey, transaction_id=77)
    answer = agent.receive(mad, port)
    return None if answer is None else Smp.unpack(answer)


def ok(
    agent: SubnetManagementAgent, attribute: int, modifier: int = 0, data: bytes | None = None, **more: Any
) -> Any:
    answer = request(agent, attribute, modifier, data, **more)
    assert answer is not None
    assert (answer.status, answer.method, answer.direction) == (0, Method.GET_RESPONSE, True)
    assert (answer.transaction_id, answer.attribute_id, answer.attribute_modifier) == (
        77,
        attribute,
        modifier,
    )
    return answer.attribute()


def snapshot(agent: SubnetManagementAgent) -> list[Any]:
    """Everything that can be read, counters of violations aside."""
    ports = [replace(agent.port_info(p), mkey_violations=0) for p in agent.profile.port_numbers]
    tables = agent.tables
    return [
        ports,
        [tables.pkeys(p) for p in agent.profile.port_numbers],
        [tables.guids(p) for p in agent.profile.port_numbers],
        [tables.output_port(lid) for lid in range(200)],
        [tables.multicast_ports(0xC000 + i) for i in range(64)],
        [tables.get_arbitration(p, 1) for p in agent.profile.port_numbers],
    ]


def settings_of(info: PortInfo, **changes: Any) -> bytes:
    """A SubnSet(PortInfo) that changes only what is named; a port without LIDs gets some."""
    return replace(
        info, **{"lid": info.lid or 7, "master_sm_lid": info.master_sm_lid or 1, "port_state": 0,
                 "port_physical_state": 0, **changes}
    ).pack()  # fmt: skip
