from verbena.runtime.virtual_time import VirtualTime
from verbena.runtime.virtual_ethernet import VirtualCard, VirtualSwitch
from verbena.team.config import TeamConfig
from verbena.team.driver import IntermediateDriver
from verbena.team.trace import PathTrace
def test_x():
    t=VirtualTime(); sw=VirtualSwitch(t.clock, lacp=True)
    tr=PathTrace(t.clock); d=IntermediateDriver(t.clock, TeamConfig(lacp=True), tr, b"\x02\0\0\0\0\x01")
    cards=[VirtualCard(t.clock,f"nic{i}",bytes([2,0,0,0,1,i])) for i in range(3)]
    for c in cards:
        sw.plug(c); d.add(c)
    t.run_for(5_000_000_000)
    print([e.text for e in d.events]); print(d.members, d.counters, d.members[0].counters)
    assert all(m.is_usable for m in d.members)
    cards[0].set_link(False)
    t.run_for(1000); assert len(d.usable)==2
