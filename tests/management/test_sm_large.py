"""A subnet of more than a thousand nodes: everything is found, addressed, routed and activated."""

from __future__ import annotations

from random import Random

import pytest

from management.sm_net import Net, cables, found_cables, manager_on, settle
from verbena.fabric.topology import PortId, Topology
from verbena.management.subnet_manager import SubnetManagerConfig


def fat_tree(k: int) -> Topology:
    """Three levels of k-port switches, k^3 / 4 adapters."""
    half = k // 2
    topology = Topology()
    for pod in range(k):
        for i in range(half):
            topology.add_switch(f"edge{pod}.{i}", k, guid=0x100_0000 + (pod * half + i))
            topology.add_switch(f"agg{pod}.{i}", k, guid=0x200_0000 + (pod * half + i))
    for core in range(half * half):
        topology.add_switch(f"core{core}", k, guid=0x300_0000 + core)
    for pod in range(k):
        for i in range(half):
            for j in range(half):
                name = f"h{pod}.{i}.{j}"
                topology.add_host(name, guid=0x400_0000 + 2 * ((pod * half + i) * half + j))
                topology.connect(name, PortId(f"edge{pod}.{i}", 1 + j))
                topology.connect(PortId(f"edge{pod}.{i}", 1 + half + j), PortId(f"agg{pod}.{j}", 1 + i))
                topology.connect(
                    PortId(f"agg{pod}.{i}", 1 + half + j), PortId(f"core{i * half + j}", 1 + pod)
                )
    return topology


@pytest.mark.slow
@pytest.mark.requirement("SUB-01", "SUB-02", "SUB-05")
def test_a_fat_tree_of_1024_hosts(seed: int) -> None:
    topology = fat_tree(16)
    net = Net(topology)
    manager = manager_on(net, "h0.0.0", SubnetManagerConfig(window=128))
    settle(net, manager)
    assert manager.subnet is not None
    assert len(manager.subnet.nodes) == len(topology.nodes) == 1024 + 320
    assert found_cables(manager) == cables(topology)
    ends = net.end_ports()
    lids = {net.agents[end.node].lid(end.port) for end in ends}
    assert len(lids) == 1024
    random = Random(seed)
    for _ in range(2000):
        source, target = random.sample(ends, 2)
        path = net.data_path(source, net.agents[target.node].lid(target.port))
        assert path is not None
        assert len(path) <= 7  # up and down again: at most five switches
    # One cable fails: few blocks change, and all is well again.
    blocks = manager.statistics.lft_blocks
    net.pull(PortId("edge3.2", 9))
    net.run(1_000_000_000)
    assert manager.statistics.lft_blocks - blocks < blocks // 4
    for _ in range(500):
        source, target = random.sample(ends, 2)
        assert net.data_path(source, net.agents[target.node].lid(target.port)) is not None
