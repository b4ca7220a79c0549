"""Two virtual switches joined by a reliable connection through a simulated InfiniBand fabric."""

from __future__ import annotations

import asyncio

import pytest

from verbena import Fabric, QPType
from verbena.errors import InvalidAttributeError
from verbena.runtime.pairs import make_side
from verbena.runtime.vswitch_fabric import FabricPort
from verbena.vswitch.config import Marks, PortConfig
from verbena.vswitch.switch import SwitchPort, VirtualSwitch
from vswitch.lab import frame, mac, number_of

MARKS = Marks(4, 8, 10)
FRAMES = 300


def server(machine: int) -> tuple[VirtualSwitch, SwitchPort, SwitchPort]:
    """A switch with a virtual machine and the way to the fabric."""
    switch = VirtualSwitch()
    port = switch.add_port(PortConfig("vm", (mac(machine),), input=MARKS, output=MARKS))
    return switch, port, switch.add_port(PortConfig("fabric", input=MARKS, output=MARKS), physical=True)


@pytest.mark.requirement("VSW-12", "VSW-13")
def test_a_blocked_machine_blocks_its_sender_through_the_fabric_and_nothing_is_lost() -> None:
    fabric = Fabric.generate("star hosts=2", seed=1)
    fabric.start()
    a, b = (fabric.open_device(f"h{n}") for n in range(2))
    near, vm_a, out_a = server(1)
    far, vm_b, out_b = server(2)

    async def program() -> None:
        side_a, side_b = (make_side(ctx, QPType.RC, 2 * 8 * 2048) for ctx in (a, b))
        side_a.qp.connect(side_b.qp.endpoint)
        side_b.qp.connect(side_a.qp.endpoint)
        ends = [FabricPort(out_a, side_a, slots=8), FabricPort(out_b, side_b, slots=8)]
        for end in ends:
            end.start()
        tasks = [asyncio.create_task(end.run()) for end in ends]
        room = asyncio.Event()
        vm_a.on_room = lambda _: room.set()
        sent = 0

        async def produce() -> None:
            nonlocal sent
            while sent < FRAMES:
                if vm_a.send(frame(1, 2, sent, 200)):
                    sent += 1
                else:
                    room.clear()
                    await room.wait()

        producing = asyncio.create_task(produce())
        await asyncio.sleep(0.05)  # simulated: the machine at b reads nothing
        assert sent < 80, "the sender waits, on the other server"
        assert vm_a.stopped()
        got: list[int] = []
        while len(got) < FRAMES:
            found = vm_b.receive()
            if found is None:
                await asyncio.sleep(0.0001)
            else:
                got.append(number_of(found.data))
        assert got == list(range(FRAMES))
        await producing
        vm_b.send(frame(2, 1, 77))
        await asyncio.sleep(0.001)
        answer = vm_a.receive()
        assert answer is not None
        assert number_of(answer.data) == 77
        assert [(end.sent, end.received, end.lost) for end in ends] == [(FRAMES, 1, 0), (1, FRAMES, 0)]
        for task in tasks:
            task.cancel()

    fabric.run(program())
    assert near.losses() == far.losses() == {}
    assert len(set(near.balance())) == len(set(far.balance())) == 1
    assert fabric.core.statistics()["dropped"] == 0


def test_too_little_memory_is_refused() -> None:
    fabric = Fabric.generate("star hosts=2", seed=1)
    fabric.start()
    side = make_side(fabric.open_device("h0"), QPType.RC, 4096)
    with pytest.raises(InvalidAttributeError, match="bytes of memory"):
        FabricPort(server(1)[2], side)


@pytest.mark.requirement("SYS-05")
def test_another_lane_goes_on_while_one_machine_is_blocked() -> None:
    """Machines 1 and 4 on one server, 2 and 3 on the other; 2 never reads.  1 waits; 4 to 3 has a lane of its own."""
    fabric = Fabric.generate("star hosts=2", seed=2)
    fabric.start()
    a, b = (fabric.open_device(f"h{n}") for n in range(2))
    near, vm_1, slow_a = server(1)
    far, vm_2, slow_b = server(2)
    vm_4 = near.add_port(PortConfig("vm 4", (mac(4),), input=MARKS, output=MARKS))
    vm_3 = far.add_port(PortConfig("vm 3", (mac(3),), input=MARKS, output=MARKS))
    fast_a = near.add_port(PortConfig("other lane", (mac(3),), input=MARKS, output=MARKS))
    fast_b = far.add_port(PortConfig("other lane", (mac(4),), input=MARKS, output=MARKS))

    async def program() -> None:
        tasks = []
        for lane, ports in enumerate(((slow_a, slow_b), (fast_a, fast_b))):
            sides = [make_side(ctx, QPType.RC, 2 * 8 * 2048) for ctx in (a, b)]
            sides[0].qp.connect(sides[1].qp.endpoint, sl=lane)
            sides[1].qp.connect(sides[0].qp.endpoint, sl=lane)
            ends = [FabricPort(port, side, slots=8) for port, side in zip(ports, sides, strict=True)]
            for end in ends:
                end.start()
                tasks.append(asyncio.create_task(end.run()))
        blocked = 0
        while vm_1.send(frame(1, 2, blocked, 500)):
            blocked += 1
        await asyncio.sleep(0.01)
        while vm_1.send(frame(1, 2, blocked, 500)):
            blocked += 1
        await asyncio.sleep(0.01)
        assert vm_1.stopped()
        got: list[int] = []
        sent = 0
        while len(got) < 100:
            while sent < 100 and vm_4.send(frame(4, 3, sent, 500)):
                sent += 1
            await asyncio.sleep(0.0001)
            while (found := vm_3.receive()) is not None:
                got.append(number_of(found.data))
        assert got == list(range(100))
        assert vm_1.stopped(), "and all that time 1 waited"
        arrived = 0
        while arrived < blocked:
            if vm_2.receive() is None:
                await asyncio.sleep(0.001)
            else:
                arrived += 1
        assert not vm_1.stopped()
        for task in tasks:
            task.cancel()

    fabric.run(program())
    assert near.losses() == far.losses() == {}
    assert fabric.core.statistics()["dropped"] == 0
