"""Two completion handlers on one adapter: messages between processes, and a storage protocol that floods it."""

from verbena import (
    HandlerResources,
    ProcessorCosts,
    Processors,
    QPType,
    RecvRequest,
    VirtualNetwork,
    WorkRequest,
)
from verbena.runtime.pairs import make_side

COSTS = ProcessorCosts(interrupt_ns=1_500, dispatch_ns=400, entry_ns=150)
ROUNDS = 500
IPC, BLOCK = 64, 4096  # bytes of a message


class Consumer:
    """A consumer of the node, with a handler, a completion queue and a queue pair of its own, and its peer."""

    def __init__(self, node, peer, work_ns, **binding):
        self.node, self.peer, self.work_ns = node, peer, work_ns
        self.received = 0
        (self.handler,) = node.ctx.set_completion_handler(self.on_event, **binding)
        self.cq = node.ctx.create_cq(1024, handler=self.handler)
        self.qp = node.pd.create_qp(QPType.RC, node.cq, self.cq, max_recv_wr=1024)
        self.far = peer.pd.create_qp(QPType.RC, peer.cq, max_send_wr=1024)
        here, there = self.qp.endpoint, self.far.endpoint
        self.qp.connect(there)
        self.far.connect(here)
        self.cq.req_notify()

    def on_event(self, cq):
        cq.req_notify()  # ask first, then take what is there: nothing is missed
        for entry in cq.poll(1):
            self.received += entry.ok
            self.node.ctx.work(self.work_ns)
        return True  # if there is more, call again, when others have had their turn

    def send(self, length):
        self.peer.cq.poll(64)
        self.qp.post_recv(RecvRequest(0, [self.node.mr.sge(0, 4096)]))
        self.far.post_send(WorkRequest(0, sg_list=[self.peer.mr.sge(0, length)]))


def run(title, ipc, storage):
    net = VirtualNetwork()
    host = Processors(net.clock, 2, COSTS)
    node = make_side(net.open_device("10.3.0.2", processors=host), QPType.RC)  # node 302
    peers = [make_side(net.open_device(f"10.3.3.{i}"), QPType.RC) for i in (30, 40)]  # nodes 330, 340
    consumers = [
        Consumer(node, peers[0], 500, **ipc),  # handler 1: a message between processes
        Consumer(node, peers[1], 20_000, **storage),  # handler 2: a block, checked and written
    ]
    for _ in range(ROUNDS):
        consumers[0].send(IPC)
        consumers[1].send(BLOCK)
        consumers[1].send(BLOCK)  # more than a processor can do
        net.run_for(30_000)
    net.run_until_idle()
    print(title)
    for name, consumer in zip(("IPC", "storage"), consumers, strict=True):
        figures = node.ctx.completion_handler(consumer.handler).figures
        waits = [(figures.waits.percentile(p) or 0) / 1000 for p in (50, 99, 100)]
        print(
            f"  handler {consumer.handler}, {name:8}{consumer.received:5} messages, "
            "waited (median, 99 %, longest) {:6.1f} {:6.1f} {:6.1f} us".format(*waits)
        )


run(
    "one processor, IPC first",
    {"processor": 0, "priority": 7},
    {"processor": 0, "resources": HandlerResources(entries=1024, event_slots=1)},
)
run("a processor each", {"processor": 0}, {"processor": 1})
