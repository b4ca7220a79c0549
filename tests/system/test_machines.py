"""Virtual machines on a virtual switch, whose physical port is a team, whose members are cards of an emulated LAN."""

from __future__ import annotations

from random import Random

import pytest

from machines_lab import OWN_VLAN, UPLOAD_VLAN, Machine, Site
from system.world import FAST, MS
from team_lab import StackStream as Stream
from team_lab import Transfer
from verbena.team.frames import take_tag
from verbena.team.offload.states import Path
from verbena.team.stack.host import HostStack, Interface

SIZE = 1_500_000 if FAST else 120_000


def end(of: Machine) -> tuple[HostStack, Interface]:
    return of.stack, of.interface


@pytest.mark.requirement("SYS-04")
def test_machines_reach_machines_and_an_ethernet_while_members_fail(seed: int) -> None:
    """All in one run: byte-exact streams by switch, team, LAN, fabric and bridge; members fail; no frame is missing."""
    site = Site(seed=seed)
    a, b, outside = site.a, site.b, (site.outside, site.outside_interface)
    data = Random(seed)
    received: list[Transfer] = []
    b.host.sockets.listen(7000, lambda session: received.append(Transfer(session, b"")))
    session = a.host.sockets.connect(b.host.paths[Path.UPLOAD].packed, 7000)
    site.until(lambda: session.is_established, 1000)
    a.host.sockets.pin(session, Path.OFFLOAD)
    site.until(lambda: session.path is Path.OFFLOAD, 1000)
    managed = data.randbytes(SIZE)
    sent = 0

    def write() -> None:  # little by little, so that it is on its way all the time
        nonlocal sent
        sent += session.write(managed[sent : sent + SIZE // 400])
        if sent < SIZE:
            site.clock.call_at(site.now + MS, write)

    write()
    streams = [
        Stream(end(a.machines[0]), outside, data.randbytes(SIZE), 80),
        Stream(outside, end(b.machines[0]), data.randbytes(SIZE), 80),
        Stream(end(a.machines[1]), end(b.machines[1]), data.randbytes(SIZE), 80),
        Stream(end(a.machines[0]), end(a.machines[1]), data.randbytes(SIZE // 4), 81),
    ]
    site.until(lambda: all(len(stream.got) > SIZE // 20 for stream in streams))
    homes = {station.home.name for station in a.driver.stations.table.values()}
    assert homes == {"lan0", "lan1"}, "each machine has its home on another member"

    before = [len(stream.got) for stream in streams]
    pulled = site.pull("a[2]")
    site.until(lambda: a.driver.members[1].state.name == "DOWN", 50)
    assert {station.home.name for station in a.driver.stations.table.values()} == {"lan0"}
    site.until(lambda: all(len(s.got) > n or s.done for s, n in zip(streams, before, strict=True)))
    site.plug(pulled)
    site.until(lambda: a.driver.members[1].is_usable)
    pulled = site.pull("b[1]")  # its RDMA card: the offloaded connection goes on over the team
    site.until(lambda: not b.driver.members[0].is_usable, 50)
    site.until(lambda: session.path is Path.TEAM, 1000)
    site.until(lambda: all(stream.done for stream in streams))
    site.plug(pulled)
    site.until(lambda: b.driver.members[0].is_usable)
    site.until(lambda: received[0].received == managed)
    assert [bytes(stream.got) for stream in streams] == [stream.data for stream in streams]
    assert session.bytes_by_path[Path.OFFLOAD]
    assert session.bytes_by_path[Path.TEAM]
    site.settle(1000 * MS)
    for server in (a, b):
        server.check_conservation()
    site.check_laws()


def heard(site: Site, machine: Machine) -> list[bytes]:
    """The datagrams that the Ethernet's host gets from a machine which sends one."""
    got: list[bytes] = []
    site.outside.open_udp(9, lambda data, peer: got.append(data))
    machine.stack.send_udp(9, (site.outside_interface.address, 9), b"hello")
    site.settle(1100 * MS)
    return got


@pytest.mark.requirement("SYS-04")
def test_without_any_member_nothing_leaves_the_server_and_its_machines_go_on(seed: int) -> None:
    """There is no way past the team: with both cables out the switch's machines reach each other, and nobody else."""
    site = Site(seed=seed)
    a = site.a
    assert heard(site, a.machines[0]) == [b"hello"]
    links = [site.pull(f"a[{port}]") for port in (1, 2)]
    site.until(lambda: not a.driver.usable, 50)
    assert not a.driver.team.cards[0].is_up
    assert heard(site, a.machines[0]) == []
    assert a.driver.team.cards[0].counters["drop.tx.down"] > 0
    local = Stream(end(a.machines[0]), end(a.machines[1]), bytes(range(256)) * 400)
    site.until(lambda: local.done, 100)
    assert local.got == local.data
    for link in links:
        site.plug(link)
    site.until(lambda: len(a.driver.usable) == 2)
    site.settle(100 * MS)
    assert heard(site, a.machines[0]) == [b"hello"]
    for server in (a, site.b):
        server.check_conservation()
    site.check_laws()


@pytest.mark.requirement("SYS-04")
def test_a_team_that_is_not_for_machines_hands_up_none_of_their_frames(seed: int) -> None:
    """Without `bridged`, what comes for a machine's address is somebody else's: machines cannot be reached."""
    site = Site(seed=seed, bridged=False)
    assert heard(site, site.a.machines[0]) == []
    assert sum(member.counters["drop.rx.other"] for member in site.a.driver.members)
    got: list[bytes] = []
    site.a.machines[0].stack.open_udp(9, lambda data, peer: got.append(data))
    site.outside.send_udp(9, (site.a.machines[0].interface.address, 9), b"hello")
    site.settle(1100 * MS)
    assert got == []
    for server in (site.a, site.b):
        server.check_conservation()


@pytest.mark.requirement("SYS-04")
def test_without_the_bridge_machines_reach_the_other_server_only(seed: int) -> None:
    site = Site(seed=seed, bridge=False)
    a, b = site.a, site.b
    stream = Stream(end(a.machines[0]), end(b.machines[1]), bytes(range(256)) * 100)
    site.until(lambda: stream.done, 500)
    assert stream.got == stream.data
    assert heard(site, a.machines[0]) == []
    site.check_laws()


def test_machines_are_kept_out_of_the_vlans_of_their_server(seed: int) -> None:
    """The server's own interface and R-virtual share the cards with the machines, and no frame."""
    site = Site(seed=seed)
    a, b = site.a, site.b
    seen: list[bytes] = []
    for card in a.node.cards:
        card.tap = lambda frame, outbound: seen.append(bytes(frame))
    got: list[bytes] = []
    b.host.stack.open_udp(9, lambda data, peer: got.append(data))
    a.host.stack.send_udp(9, (b.host.interfaces[OWN_VLAN].address, 9), b"own")
    machine = a.machines[0]
    machine.stack.send_udp(9, (b.machines[0].interface.address, 9), b"machine")
    for vlan in (OWN_VLAN, UPLOAD_VLAN):
        tagged = b"\xff" * 6 + machine.mac + b"\x81\x00" + vlan.to_bytes(2, "big") + b"\x08\x00" + bytes(46)
        machine.stack.transmit(machine.interface, tagged)
    site.settle(50 * MS)
    assert got == [b"own"]
    assert a.driver.team.cards[0].counters["drop.tx.tagged"] == 2
    by_vlan = {take_tag(frame).vlan for frame in seen if frame[6:12] == machine.mac}
    assert by_vlan == {0}
    assert OWN_VLAN in {take_tag(frame).vlan for frame in seen}
    for server in (a, b):
        server.check_conservation()
