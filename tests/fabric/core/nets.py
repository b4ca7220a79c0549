"""Small fabrics for the tests of the simulator, and packets to send through them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from verbena import wire
from verbena.fabric.core import FabricCore
from verbena.fabric.kinds import PortState

ENDNODE, SWITCH = 0, 1
GBPS = 1_000_000_000
RATE = 100 * GBPS


def packet(dlid: int, payload: bytes = b"", *, sl: int = 0, slid: int = 1, pkey: int = 0xFFFF) -> bytes:
    """A UD SEND packet, LRH to ICRC."""
    pad = -len(payload) % 4
    deth = wire.DETH(qkey=1, src_qp=5).pack()
    bth = wire.BTH(opcode=0x64, pad_count=pad, pkey=pkey, dest_qp=9).pack()
    body = bth + deth + payload + bytes(pad)
    words = (8 + len(body) + 4) // 4
    lrh = wire.LRH(sl=sl, dlid=dlid, slid=slid, packet_length=words).pack()
    return lrh + body + wire.native_icrc(lrh, body).to_bytes(4, "big")


class Net:
    """A fabric in the making: hosts with LIDs 1, 2, ... in the order of their adding, switches, cables."""

    def __init__(self, *, flits: bool = False, seed: int = 1) -> None:
        self.core: Any = FabricCore(seed, flits=flits)
        self.hosts: list[int] = []
        self.switches: list[int] = []
        self.cables: list[tuple[int, int]] = []

    def switch(self, **options: Any) -> int:
        options.setdefault("latency_ns", 150)
        self.switches.append(self.core.add_node(SWITCH, **options))
        return self.switches[-1]

    def endpoint(self, **options: Any) -> int:
        """A host's port without a cable."""
        port: int = self.core.add_port(self.core.add_node(ENDNODE), **options)
        self.hosts.append(port)
        self.core.set_lids(port, len(self.hosts), 0)
        return port

    def host(
        self,
        switch: int,
        *,
        rate: int = RATE,
        delay: int = 100,
        ber: float = 0.0,
        **options: Any,
    ) -> int:
        """A host with a cable to a switch; returns its port."""
        port = self.endpoint(**options)
        self.join(port, self.core.add_port(switch, **options), rate, delay, ber)
        return port

    def link(
        self,
        a: int,
        b: int,
        *,
        rate: int = RATE,
        delay: int = 100,
        ber: float = 0.0,
        **options: Any,
    ) -> tuple[int, int]:
        """A cable between two switches; returns the ports."""
        ends = (self.core.add_port(a, **options), self.core.add_port(b, **options))
        self.join(*ends, rate, delay, ber)
        return ends

    def join(self, a: int, b: int, rate: int = RATE, delay: int = 100, ber: float = 0.0) -> None:
        self.core.connect(a, b, rate, delay, ber)
        self.cables.append((a, b))

    def activate(self) -> None:
        for cable in self.cables:
            for port in cable:
                if self.core.port_state(port) == PortState.INIT:
                    self.core.set_state(port, PortState.ACTIVE)

    def route(self) -> None:
        """Shortest paths, the first found, into all forwarding tables; activates the ports; forgets the reports."""
        core = self.core
        node_cables: dict[int, list[tuple[int, int]]] = {}
        for a, b in self.cables:
            node_cables.setdefault(core.node_of(a), []).append((a, b))
            node_cables.setdefault(core.node_of(b), []).append((b, a))
        tables = {s: bytearray([255]) * (len(self.hosts) + 1) for s in self.switches}
        for lid, host in enumerate(self.hosts, 1):
            line, seen = deque([core.node_of(host)]), {core.node_of(host)}
            while line:
                for near, far in node_cables.get(line.popleft(), []):
                    node = core.node_of(far)
                    if node not in seen:
                        seen.add(node)
                        line.append(node)
                        if node in tables:
                            tables[node][lid] = core.port_number(far)
                    del near
        for switch, table in tables.items():
            core.set_lft(switch, 0, table)
        self.activate()
        core.reports()

    def run(self, until: int) -> list[Any]:
        """Run to a time, however often something becomes visible; returns all deliveries."""
        found: list[Any] = []
        while True:
            self.core.run(until)
            found += self.core.deliveries()
            if self.core.now >= until:
                return found

    def settle(self, limit: int = 100_000_000) -> list[Any]:
        """Run until nothing is scheduled."""
        found: list[Any] = []
        while 0 <= self.core.next_time() <= limit:
            self.core.run(self.core.next_time())
            found += self.core.deliveries()
        return found

    def balanced(self) -> bool:
        s = self.core.statistics()
        came = s["injected"] + s["replicated"] + s["imported"]
        return bool(came == s["delivered"] + s["dropped"] + s["inside"] + s["exported"])

    def drops(self, node: int) -> dict[str, int]:
        counters = self.core.node_counters(node)
        return {name: n for name, n in counters.items() if name.startswith("drop") and n}


def star(count: int, *, flits: bool = False, switch: dict[str, Any] | None = None, **options: Any) -> Net:
    """Hosts around one switch, routed and active."""
    net = Net(flits=flits)
    node = net.switch(**(switch or {}))
    for _ in range(count):
        net.host(node, **options)
    net.route()
    return net


def chain(lengths: Sequence[int], *, flits: bool = False, **options: Any) -> Net:
    """A row of switches with so many hosts at each, routed and active."""
    net = Net(flits=flits)
    row = [net.switch() for _ in lengths]
    for switch, hosts in zip(row, lengths, strict=True):
        for _ in range(hosts):
            net.host(switch, **options)
    for a, b in pairwise(row):
        net.link(a, b, **options)
    net.route()
    return net


def ring(count: int, hosts_each: int = 1, *, flits: bool = False, **options: Any) -> tuple[Net, list[int]]:
    """Switches in a circle; everything goes clockwise.  Hosts are numbered switch by switch."""
    net = Net(flits=flits)
    row = [net.switch() for _ in range(count)]
    for switch in row:
        for _ in range(hosts_each):
            net.host(switch, **options)
    onward = {}
    for i, switch in enumerate(row):
        onward[switch] = net.core.port_number(net.link(switch, row[(i + 1) % count], **options)[0])
    net.activate()
    for i, switch in enumerate(row):
        table = bytearray([255]) + bytes(
            lid % hosts_each + 1 if lid // hosts_each == i else onward[switch]
            for lid in range(len(net.hosts))
        )
        net.core.set_lft(switch, 0, table)
    net.core.reports()
    return net, row
