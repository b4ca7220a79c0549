"""A large file between two hosts, while cards are pulled one after the other and the connection changes its path."""

import hashlib
import itertools
import random
import sys

from verbena.runtime.virtual_ethernet import VirtualCard, VirtualSwitch
from verbena.runtime.virtual_roce import EthernetNetwork
from verbena.team.config import TeamConfig
from verbena.team.host import TeamHost
from verbena.team.offload.states import OffloadConfig, Path
from verbena.team.stack.tcp_states import TcpOptions

MILLISECOND = 1_000_000
SIZE = 18 << 20
CARDS = ("nic0", "nic1", "rnic0", "rnic1")

net = EthernetNetwork(seed=4)
switch = VirtualSwitch(net.clock, rate_bps=1e9)
cards = {}


def host(number: int) -> TeamHost:
    """Two ordinary cards and two RDMA cards, in one team; VLAN 10 for the team, VLAN 20 for R-virtual."""
    made = TeamHost(
        net.clock,
        random.Random(number),
        TeamConfig(vlans=(10,), rdma_vlan=20),
        mac=bytes((0, 0x10, 0x18, number, 0, 0)),
        addresses={10: f"10.10.0.{number}/24"},
        upload_address=f"10.20.0.{number}/24",
        offload=OffloadConfig(tcp_in_flight=1 << 15, evaluate_ns=MILLISECOND),
        tcp=TcpOptions(least_rto_ns=2 * MILLISECOND),
    )
    for place, name in enumerate(CARDS):
        card = VirtualCard(net.clock, name, bytes((0, 0x10, 0x18, number, 1, place)), rate_bps=1e9)
        switch.plug(card)
        cards[number, name] = card
        rdma = name.startswith("rnic")
        made.add(card, context=net.open_rdma(card, f"10.99.{number}.{place + 1}") if rdma else None)
    return made


a, b = host(1), host(2)
net.run_for(5 * MILLISECOND)
data = random.Random(7).randbytes(SIZE)
received, sent, samples = bytearray(), 0, []


def accept(session):
    session.on_change = lambda: received.extend(session.read() if session.readable else b"")


def write():
    global sent
    while sent < SIZE and session.error is None and session.room:
        sent += session.write(data[sent : sent + session.room])
    if sent == SIZE:
        session.close_writing()


def sample():
    samples.append((net.now / 1e6, session.bytes_by_path.copy()))
    net.clock.call_at(net.now + MILLISECOND, sample)


b.sockets.listen(7000, accept)
session = a.sockets.connect(b.paths[Path.UPLOAD].packed, 7000)
session.on_change = write
sample()

# Ten times to the card and back; meanwhile one card after the other loses its cable for six milliseconds.
for turn in range(10):
    for path in (Path.OFFLOAD, Path.UPLOAD):
        a.sockets.pin(session, path)
        net.run_for(5 * MILLISECOND)
    pulled = cards[1 + turn % 2, CARDS[turn % 4]]
    pulled.set_link(False)
    net.run_for(3 * MILLISECOND)
    print(
        f"{net.now / 1e6:5.0f} ms: {'ab'[turn % 2]}.{pulled.name} is pulled, {session.path.name.lower()} path"
    )
    pulled.set_link(True)
    net.run_for(1 * MILLISECOND)
# At last all RDMA cards at once: what is left is the team.
for number in (1, 2):
    for name in ("rnic0", "rnic1"):
        cards[number, name].set_link(False)
net.run_for(10 * MILLISECOND)
print(f"{net.now / 1e6:5.0f} ms: no RDMA card, {session.path.name.lower()} path")
for card in cards.values():
    card.set_link(True)
a.sockets.pin(session, None)
while len(received) < SIZE:
    net.run_for(MILLISECOND)

same = hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
print(f"{len(received)} bytes at {net.now / 1e6:.0f} ms, checksum right: {same}")
print(f"{session.moves} changes of path, the longest stall {session.stall_ns / 1e6:.3f} ms")
print("by path:", ", ".join(f"{p.name.lower()} {n / 1e6:.1f} MB" for p, n in session.bytes_by_path.items()))
print("moved by choice:", {k: n for k, n in sorted(a.sockets.counters.items()) if k.startswith("move.")})

if len(sys.argv) > 1:  # throughput by path over time
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for path in Path:
        rates = [(n[path] - m[path]) * 8e-6 for (_, m), (_, n) in itertools.pairwise(samples)]
        axes.step([at for at, _ in samples[1:]], rates, label=path.name.lower())
    axes.set_xlabel("time, ms")
    axes.set_ylabel("throughput, Gb/s")
    axes.legend(frameon=False)
    figure.savefig(sys.argv[1])
