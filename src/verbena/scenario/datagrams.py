"""The datagram workload: a burst that may lose packets, each of which must have been counted.

    sent + doubled = received + dropped, by reason

where the fault injector at the sender's wire counts what it doubled and lost, the sender's adapter what it could not
send, and the receiver's adapter what it dropped.
"""

from __future__ import annotations

import asyncio

from verbena.adapter.attributes import AddressVector
from verbena.memory.access import Access
from verbena.scenario.board import endpoint_from_data, endpoint_to_data
from verbena.scenario.outcome import Outcome, Row, rate
from verbena.scenario.part import Part
from verbena.scenario.schema import UdBurst
from verbena.scenario.workloads import Seen, ball, number_of
from verbena.transport.kinds import QPType, WROpcode
from verbena.transport.work import RecvRequest, WorkRequest

GRH = 40
QKEY = 0x5EED
BATCH = 64
QUIET_ROUNDS = 5
NOT_OURS = ("drop.stale_response",)  # answers of earlier connections


def drops(counters: dict[str, int]) -> dict[str, int]:
    """The counted drops, by reason."""
    return {
        name: value for name, value in counters.items() if name.startswith("drop.") and name not in NOT_OURS
    }


def difference(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    """What was added to counters, where something was."""
    return {name: value - before.get(name, 0) for name, value in now.items() if value != before.get(name, 0)}


async def burst_source(part: Part, spec: UdBurst) -> Seen:
    """Sends numbered datagrams."""
    async with part.side(QPType.UD, BATCH) as side:
        memory = side.pd.alloc_mr(BATCH * spec.bytes)
        side.qp.activate(QKEY)
        peer = endpoint_from_data(await part.read("endpoint"))
        handle = side.pd.create_ah(AddressVector(peer.gid, dlid=peer.lid))
        await asyncio.sleep(part.settle_s)
        refused, faults = drops(part.ctx.counters()), part.faults()
        start, done, posted = part.now(), 0, 0
        while done < spec.datagrams:
            batch = []
            while posted - done < BATCH and posted < spec.datagrams:
                at = posted % BATCH * spec.bytes
                memory.buf[at : at + spec.bytes] = ball(posted, spec.bytes)
                request = WorkRequest(posted, WROpcode.SEND, [memory.sge(at, spec.bytes)], ah=handle)
                request.remote_qpn, request.remote_qkey = peer.qp_num, QKEY
                batch.append(request)
                posted += 1
            side.qp.post_send_many(batch)
            done += len(await part.completions(side.cq))
            part.progress("datagrams", done, spec.datagrams, "datagrams")
        took = part.now() - start
        await asyncio.sleep(part.settle_s)
        lost = difference(drops(part.ctx.counters()), refused)
        injected = difference(part.faults(), faults)
        doubled = injected.get("duplicated", 0)
        if injected.get("lost"):
            lost["faults.lost"] = injected["lost"]
        on_their_way = spec.datagrams + doubled - sum(lost.values())
        part.write("sent", on_their_way)
        await part.read("seen")
    return {"ns": took, "doubled": doubled, "lost": lost}


async def burst_sink(part: Part, spec: UdBurst) -> Seen:
    """Counts what comes, and compares every byte."""
    size = GRH + spec.bytes
    received, wrong = 0, 0
    different: set[int] = set()
    async with part.side(QPType.UD, spec.receive_buffers) as side:
        memory = side.pd.alloc_mr(spec.receive_buffers * size, Access.LOCAL_WRITE)
        side.qp.activate(QKEY)
        posts = [RecvRequest(at, [memory.sge(at * size, size)]) for at in range(spec.receive_buffers)]
        side.qp.post_recv_many(posts)
        await asyncio.sleep(part.settle_s)
        before = drops(part.ctx.counters())
        part.write("endpoint", endpoint_to_data(side.qp.endpoint))
        quiet = 0
        while quiet < QUIET_ROUNDS:
            for entry in await part.completions_within(side.cq, part.settle_s):
                quiet = 0
                start = entry.wr_id * size + GRH
                content = bytes(memory.buf[start : start + spec.bytes])
                number = number_of(content)
                wrong += entry.byte_len != size or content != ball(number, spec.bytes)
                received += 1
                different.add(number)
                side.qp.post_recv(posts[entry.wr_id])
            lost = difference(drops(part.ctx.counters()), before)
            if part.has("sent"):
                if received + sum(lost.values()) >= await part.read("sent"):
                    break
                quiet += 1
        part.write("seen", True)
    return {"received": received, "different": len(different), "wrong": wrong, "dropped": lost}


def judge_burst(spec: UdBurst, seen: dict[str, Seen]) -> Outcome:
    source, sink = seen["source"], seen["sink"]
    reasons = dict(source["lost"])
    for name, value in sink["dropped"].items():
        reasons[name] = reasons.get(name, 0) + value
    missing = spec.datagrams + source["doubled"] - sink["received"] - sum(reasons.values())
    sums = f"{spec.datagrams} sent"
    if source["doubled"]:
        sums += f" + {source['doubled']} doubled"
    sums += f" = {sink['received']} received"
    sums += "".join(f" + {value} {name}" for name, value in sorted(reasons.items()))
    if sink["wrong"]:
        verdict = f"{sink['wrong']} datagrams arrived with wrong bytes"
    elif missing:
        verdict = f"{missing} datagrams are missing and not counted: {sums} + ?"
    else:
        verdict = sums
    rows = [
        Row(
            "UD SEND",
            spec.datagrams * spec.bytes,
            source["ns"],
            rate(spec.datagrams, source["ns"], "dgram/s"),
        )
    ]
    facts = {"sent": spec.datagrams, "received": sink["received"], "different": sink["different"]}
    facts |= {"doubled": source["doubled"], "dropped": reasons}
    return Outcome(spec.name, spec.kind, not sink["wrong"] and not missing, verdict, rows, facts)
