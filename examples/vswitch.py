"""A lossless virtual switch: three producers at full speed, one slow consumer, nothing lost; then a trace."""

import threading

from verbena.runtime.shm_port import card_pair
from verbena.runtime.vswitch_loop import SwitchLoop
from verbena.vswitch.config import Marks, PortConfig
from verbena.vswitch.switch import VirtualSwitch

FRAMES = 2_000


def mac(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number))


def frame(source: int, destination: int, number: int) -> bytes:
    return (mac(destination) + mac(source) + b"\x08\x00" + number.to_bytes(4, "big")).ljust(1000, b"\0")


def produce(card, source):
    card.send_all(
        [frame(source, 9, number) for number in range(FRAMES)]
    )  # waits while the switch takes no more


# A switch in this process; its ports are shared-memory cards, which other processes could have as well.
marks = Marks(low=16, high=32, room=40)
with SwitchLoop() as loop:
    cards = {}
    for number in (1, 2, 3, 9):
        driver, cards[number] = card_pair(ring_bytes=1 << 16)
        loop.add(driver, PortConfig(f"vm{number}", (mac(number),), input=marks, output=marks))
    for source in (1, 2, 3):
        threading.Thread(target=produce, args=(cards[source], source)).start()
    last = {1: -1, 2: -1, 3: -1}
    received = 0
    while received < 3 * FRAMES and cards[9].wait_frames(timeout=10):
        for data in cards[9].receive_many(20):
            source, number = data[11], int.from_bytes(data[14:18], "big")
            assert number == last[source] + 1, "out of order"
            last[source] = number
            received += 1
    status = loop.status()["ports"]
    lossless = loop.switch.losses() == {}
print(f"{received} frames came, in order; lossless: {lossless}")
print("producers were stopped:", all(status[f"vm{n}"]["input"][0]["stops"] > 0 for n in (1, 2, 3)))

# Step by step: an output that stops at 2 frames, an input that stops at 2 and starts again at 1.
switch = VirtualSwitch(trace=True)
a = switch.add_port(PortConfig("a", (mac(1),), input=Marks(1, 2, 4)))
b = switch.add_port(PortConfig("b", (mac(9),), output=Marks(1, 2, 2)))
a.on_stop = lambda priority: print("-> stop a")
a.on_start = lambda priority: print("-> start a")
for number in range(4):
    a.send(frame(1, 9, number))
print("a fifth frame is taken:", a.send(frame(1, 9, 4)))
switch.trace.clear()
b.receive()
for step in switch.trace:
    print(step)
