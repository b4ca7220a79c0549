"""Directed-route packets through switches that have no tables yet (IBA vol. 1, 14.2.2)."""

from __future__ import annotations

from random import Random

import pytest

from fabric.core.nets import Net, packet
from verbena import wire


def smp(path: list[int]) -> bytes:
    """A directed-route Get, LRH to ICRC, along a list of output ports."""
    mad = bytearray(256)
    mad[0:4] = bytes([1, 0x81, 1, 1])
    mad[7] = len(path)
    mad[128 + 1 : 128 + 1 + len(path)] = bytes(path)
    bth = wire.BTH(opcode=0x64, dest_qp=0).pack() + wire.DETH().pack()
    lrh = wire.LRH(vl=15, dlid=0xFFFF, slid=0xFFFF, packet_length=(8 + 20 + 256 + 4) // 4).pack()
    body = bth + bytes(mad)
    return lrh + body + wire.native_icrc(lrh, body).to_bytes(4, "big")


@pytest.mark.parametrize("flits", [False, True])
@pytest.mark.parametrize("hops", [1, 2, 3])
def test_there_and_back(flits: bool, hops: int) -> None:
    net = Net(flits=flits)
    one, two = net.switch(), net.switch()
    net.host(one)
    net.host(two)
    net.link(one, two)
    net.core.reports()
    host, far = net.hosts
    target = {1: net.core.port(one, 0), 2: net.core.port(two, 0), 3: far}[hops]
    assert net.core.inject(host, smp([1, 2, 1][:hops]))
    ((_, port, there, in_port, *_),) = net.settle()
    assert (port, in_port) == (target, {1: 1, 2: 2, 3: 1}[hops])
    mad = there[28:-6]
    assert mad[6] == hops + 1
    assert list(mad[193 : 193 + hops]) == [1, 2, 1][:hops]
    assert there[-6:-2] == wire.native_icrc(there[:8], there[8:-6]).to_bytes(4, "big")
    assert there[-2:] == wire.vcrc(there[:-2]).to_bytes(2, "big")
    answer = bytearray(there[:-2])
    answer[28 + 3] = 0x81
    answer[28 + 4] |= 0x80
    net.core.inject(port, answer)
    ((_, back_at, back, *_),) = net.settle()
    assert back_at == host
    assert back[28 + 6] == 0
    assert net.balanced()


def test_the_variant_crc_of_every_size() -> None:
    """Of short packets it comes from tables, of long ones from folding 64 or 256 bytes at a time: always the same."""
    net = Net()
    one = net.switch()
    net.host(one)
    net.host(one)
    net.route()
    net.activate()
    random = Random(7)
    for size in (*range(0, 1400, 4), *range(1400, 4097, 100)):
        whole = packet(2, random.randbytes(size))
        assert net.core.inject(net.hosts[0], whole)
        (delivery,) = net.settle()
        got = delivery[2]
        assert got[:-2] == whole
        assert got[-2:] == wire.vcrc(whole).to_bytes(2, "big")


def test_a_way_that_does_not_exist_is_counted() -> None:
    net = Net()
    one = net.switch()
    net.host(one)
    net.core.inject(net.hosts[0], smp([1, 9]))
    assert net.settle() == []
    assert net.drops(one) == {"drop_smi": 1}
