from team_lab import *
from verbena.team.offload.states import Path
import time
def test_offload(seed):
    lab=Lab(seed); a=lab.host(); b=lab.host(); lab.run(1)
    data=lab.random.randbytes(3_000_000)
    w=time.time()
    x,y=connect(lab,there=data)
    try:
        lab.until(lambda: len(y.received)==len(data), 5000)
    finally:
        print(time.time()-w, lab.net.now, a.sockets.counters,b.sockets.counters)
        for e in a.sockets.events: print(e[0],e[2])
        for e in b.sockets.events: print('b',e[0],e[2])
        print(x.session.bytes_by_path, x.session.state, x.session.stall_ns, a.stack.counters)
    assert y.received==data
