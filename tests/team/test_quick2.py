from random import Random
from verbena.runtime.virtual_time import VirtualTime
from verbena.runtime.virtual_ethernet import VirtualCard, VirtualSwitch
from verbena.team.stack.host import HostStack
import pytest, time
@pytest.mark.parametrize("loss",[0,0.02])
def test_tcp(loss):
    t=VirtualTime(); sw=VirtualSwitch(t.clock)
    r=Random(1); hosts=[]
    for i in range(2):
        c=VirtualCard(t.clock,f"n{i}",bytes([2,0,0,0,0,i+1])); sw.plug(c)
        if loss:
            orig=c.transmit
            c.transmit=lambda f,orig=orig: r.random()<loss or orig(f)
        s=HostStack(t.clock,Random(i)); s.bind(c,f"10.0.0.{i+1}/24"); hosts.append(s)
    a,b=hosts; got=bytearray(); N=1_000_000 if not loss else 300_000; data=r.randbytes(N); st=[0]; done=[]
    def acc(conn,peer):
        def ch():
            got.extend(conn.read())
            if conn.at_end and not done: done.append(t.now); conn.close()
        conn.on_change=ch; ch()
    b.listen(b.interfaces[0],80,acc)
    conn=a.connect(a.interfaces[0],("10.0.0.2",80))
    def pump():
        if st[0]<N:
            if conn.room: st[0]+=conn.write(data[st[0]:st[0]+conn.room])
            if st[0]==N: conn.close()
    conn.on_change=pump
    w=time.time(); t.run_until_idle(); print(loss, time.time()-w, done, a.counters,b.counters, conn.state, conn.error)
    assert got==data and conn.error is None
