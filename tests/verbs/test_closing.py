"""Objects that are closed while other threads use them, or wait for them; adapters in the child of a fork."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import verbena
from lab import RC, UD, Lab
from verbena import (
    Access,
    ClosedError,
    Gid,
    InvalidAttributeError,
    QPState,
    RecvRequest,
    VerbError,
    WorkRequest,
)
from verbena.runtime.pairs import Side, connect_sides, make_side

A, B = "127.0.72.1", "127.0.72.2"
PATIENCE = 30.0


@pytest.mark.parametrize(
    ("kind", "name", "more"),
    [
        ("qp", "get_state", ()),
        ("qp", "set_state", (1,)),
        ("qp", "attributes", ()),
        ("qp", "set_attribute", ("qkey", 1)),
        ("qp", "set_responder", (4,)),
        ("qp", "recv_queue_of", ()),
        ("qp", "clear", ()),
        ("qp", "fail_qp", ()),
        ("qp", "drain", ()),
        ("qp", "resume", ()),
        ("qp", "free_qp", ()),
        ("qp", "post_send", (WorkRequest(),)),
        ("qp", "post_recv", (RecvRequest(),)),
        ("qp", "set_stripes", ([],)),
        ("qp", "clear_ee", ()),
        ("qp", "free_ee", ()),
        ("qp", "context_line", ()),
        ("qp", "lend", (1,)),
        ("cq", "pending", ()),
        ("cq", "arm", (False,)),
        ("cq", "cq_overrun", ()),
        ("cq", "cq_users", ()),
        ("cq", "free_cq", ()),
        ("queue", "queue_depth", ()),
        ("queue", "arm_limit", (1,)),
        ("queue", "post_shared", (RecvRequest(),)),
        ("queue", "free_recv_queue", ()),
        ("path", "path_destination", ()),
        ("path", "path_source", ()),
        ("path", "set_path_usable", (True,)),
        ("path", "hold_path", ()),
        ("path", "free_path", ()),
    ],
)
def test_no_index_of_a_closed_object_is_followed(kind: str, name: str, more: tuple[Any, ...]) -> None:
    engine = Lab().adapter().adapter.engine
    places = {"qp": 20, "cq": 0, "queue": 0, "path": 0}
    for index in (places[kind], -1, 1 << 24):
        with pytest.raises(ClosedError, match="closed in the meantime"):
            getattr(engine, name)(index, *more)


def test_a_queue_pair_is_not_made_on_a_completion_queue_that_is_being_closed() -> None:
    ctx = Lab().adapter()
    pd, cq = ctx.alloc_pd(), ctx.create_cq(4)
    ctx.adapter.engine.free_cq(cq.index)  # as another thread would, between the look and the call
    for _ in range(3):
        with pytest.raises(ClosedError):
            pd.create_qp(RC, cq)
    assert not pd.members


USES: dict[str, Callable[[dict[str, Any]], object]] = {
    "state": lambda now: now["qp"].state,
    "query": lambda now: now["qp"].query(),
    "modify": lambda now: now["qp"].modify(QPState.ERR),
    "repr": lambda now: repr(now["qp"]),
    "close the queue pair": lambda now: now["qp"].close(),
    "req_notify": lambda now: now["cq"].req_notify(),
    "len": lambda now: len(now["cq"]),
    "overrun": lambda now: now["cq"].overrun,
    "wait": lambda now: now["cq"].wait(0.001),
    "create_qp": lambda now: now["pd"].create_qp(RC, now["cq"]).close(),
    "limit": lambda now: now["srq"].modify(limit=3),
    "datagram": lambda now: now["ud"].post_send(
        WorkRequest(ah=now["ah"], remote_qpn=1, remote_qkey=1, flags=0)
    ),
}


@pytest.mark.loopback
@pytest.mark.parametrize("use", USES)
def test_closing_while_another_thread_uses_it(use: str) -> None:
    with verbena.open_device(A) as ctx:
        pd = ctx.alloc_pd()
        dead_end = ctx.create_cq(4096)
        ud = pd.create_qp(UD, dead_end)
        ud.activate()
        now: dict[str, Any] = {"pd": pd, "ud": ud}
        wrong: list[BaseException] = []
        stop = False

        def renew() -> None:
            cq = ctx.create_cq(4)
            ah = pd.create_ah(verbena.AddressVector(gid=Gid.from_ip(B)))
            now.update(cq=cq, qp=pd.create_qp(RC, cq), srq=pd.create_srq(4), ah=ah)

        def loop() -> None:
            while not stop:
                try:
                    USES[use](now)
                except VerbError:
                    pass
                except BaseException as error:
                    wrong.append(error)
                    return

        renew()
        thread = threading.Thread(target=loop)
        thread.start()
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            old = dict(now)
            for name in ("qp", "srq", "ah"):
                old[name].close()
            try:
                old["cq"].close()
            except VerbError:  # a queue pair of the other thread still completes there
                assert use == "create_qp"
            renew()
        stop = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert wrong == []


def ends() -> tuple[Side, Side]:
    one, two = (verbena.open_device(address) for address in (A, B))
    a, b = make_side(one, RC), make_side(two, RC)
    connect_sides(a, b)
    return a, b


@pytest.mark.loopback
@pytest.mark.parametrize("what", ["wait", "get_event", "get_async_event"])
def test_closing_the_adapter_ends_every_wait(what: str) -> None:
    ctx = verbena.open_device(A)
    cq = ctx.create_cq(4)
    call = {"wait": cq.wait, "get_event": cq.get_event, "get_async_event": ctx.get_async_event}[what]
    found: list[BaseException] = []

    def wait() -> None:
        try:
            call()
        except ClosedError as error:
            found.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    ctx.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert found
    ctx.driver.kick()  # harmless: the descriptors may be somebody else's by now
    ctx.driver.progress()


@pytest.mark.loopback
def test_closing_the_adapter_ends_every_await() -> None:
    ctx = verbena.open_device(A)
    cq = ctx.create_cq(4)

    async def main() -> list[object]:
        waits = [asyncio.create_task(cq.completions()), asyncio.create_task(ctx.async_event())]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(ctx.close)
        async with asyncio.timeout(PATIENCE):
            return list(await asyncio.gather(*waits, return_exceptions=True))

    assert [type(result) for result in asyncio.run(main())] == [ClosedError, ClosedError]


@pytest.mark.loopback
def test_in_the_child_of_a_fork_everything_is_closed_and_the_parent_goes_on() -> None:
    a, b = ends()
    a.ctx.listen(0)
    stop = False

    def traffic() -> None:  # the lock is held, most of the time, by a thread that the child has not
        while not stop:
            a.qp.post_send(WorkRequest(opcode=0, sg_list=[a.mr.sge()], remote_addr=b.mr.addr, rkey=b.mr.rkey))
            a.cq.wait(PATIENCE)[0].raise_for_status()

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if not child:
                status = 1
                try:
                    refused = 0
                    for use in (
                        lambda: a.qp.state,
                        lambda: a.qp.post_send(WorkRequest()),
                        a.cq.poll,
                        a.mr.sge,
                        a.ctx.counters,
                        lambda: a.ctx.connect(B, 1, a.qp),
                    ):
                        try:
                            use()
                        except ClosedError:
                            refused += 1
                    repr(a.qp)
                    for item in (a.qp, a.cq, a.mr, a.pd, a.ctx):
                        item.close()
                    status = 0 if refused == 6 else 2
                finally:
                    os._exit(status)
            end = time.monotonic() + PATIENCE
            while True:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() > end:
                    os.kill(child, 9)
                    os.waitpid(child, 0)
                    pytest.fail("the child of a fork hangs")
                time.sleep(0.005)
            assert status == 0
    finally:
        stop = True
        thread.join(PATIENCE)
        a.ctx.close()
        b.ctx.close()


@pytest.mark.parametrize("timeout", ["1", float("nan"), [1]])
def test_a_timeout_that_is_none_is_refused(timeout: Any) -> None:
    ctx = Lab().adapter()
    cq = ctx.create_cq(4)
    for call in (cq.wait, cq.get_event, ctx.get_async_event):
        with pytest.raises(InvalidAttributeError, match=r"timeout = .*: seconds, or None"):
            call(timeout)


def test_wrong_arguments_are_named() -> None:
    ctx = Lab().adapter()
    pd, cq = ctx.alloc_pd(), ctx.create_cq(4)
    qp, mr = pd.create_qp(RC, cq), pd.alloc_mr(100)
    everything = memoryview(bytearray(8))
    everything.release()
    calls: dict[str, Callable[[], object]] = {
        "an IP address is a string, not a NoneType": lambda: Gid.from_ip(None),  # type: ignore[arg-type]
        "state = 'RTS': one of QPState's RESET": lambda: qp.modify("RTS"),  # type: ignore[arg-type]
        "remote: the peer's Endpoint is needed": lambda: qp.connect(None),  # type: ignore[arg-type]
        "srq: a SharedReceiveQueue is needed, not int": lambda: pd.create_qp(RC, cq, srq=5),  # type: ignore[arg-type]
        "access = 'rw': combine members of Access": lambda: pd.reg_mr(bytearray(8), "rw"),  # type: ignore[arg-type]
        "iova = 1.5: a 64-bit address, or None": lambda: pd.reg_mr(bytearray(8), iova=1.5),  # type: ignore[arg-type]
        "gives no access to its bytes": lambda: pd.reg_mr(everything),
        "offset = 0.5, length = None: numbers of bytes": lambda: mr.sge(0.5),  # type: ignore[arg-type]
        "n = 'a': a number of entries": lambda: cq.poll("a"),  # type: ignore[arg-type]
        r"completion handler \[\] is not registered": lambda: ctx.create_cq(4, []),  # type: ignore[arg-type]
        "swap must be an integer, not 1.5": lambda: WorkRequest(swap=1.5),  # type: ignore[arg-type]
        "imm_data = 4294967296 does not fit into 32": lambda: WorkRequest(imm_data=1 << 32),
        "addr must be an integer, not 0.5": lambda: verbena.ScatterGatherEntry(0.5),  # type: ignore[arg-type]
        "wr_id = -1 does not fit into 64": lambda: RecvRequest(-1),
    }
    for message, call in calls.items():
        with pytest.raises(InvalidAttributeError, match=message):
            call()
    assert qp.state is QPState.RESET
    mr.close()
    with pytest.raises(ClosedError):
        mr.sge()


def test_an_array_of_python_objects_is_no_memory_for_peers() -> None:
    numpy = pytest.importorskip("numpy")
    pd = Lab().adapter().alloc_pd()
    with pytest.raises(InvalidAttributeError, match="Python objects"):
        pd.reg_mr(numpy.zeros(4, object), Access.LOCAL_WRITE)


def test_integers_of_other_kinds_are_integers() -> None:
    class Five:
        def __index__(self) -> int:
            return 5

    request = WorkRequest(wr_id=Five(), remote_addr=Five(), rkey=Five())  # type: ignore[arg-type]
    assert (request.wr_id, request.remote_addr, request.rkey) == (5, 5, 5)
