"""A host's program in a process of its own, told by its test what to do: lines of JSON in, lines of JSON out."""

from __future__ import annotations

import hashlib
import json
import sys
from random import Random
from typing import Any

import verbena
from verbena import Endpoint, Gid, QPState, QPType, RecvRequest, VerbenaError, WorkRequest, WROpcode
from verbena.runtime.pairs import Side, make_side
from verbena.verbs.queue_pair import ALL_REMOTE


class Program:
    """What a test can ask for; each method's result is sent back."""

    ctx: verbena.Context
    side: Side

    def open(self, name: str, at: str, timeout: float = 30.0) -> dict[str, Any]:
        self.ctx = verbena.open_fabric_device(name, at, timeout=timeout)
        return self.port()

    def port(self) -> dict[str, Any]:
        port = self.ctx.query_port()
        return {"state": port.state, "lid": port.lid, "gid": str(self.ctx.gids[0].ip)}

    def make(self, service: str, memory: int = 1 << 20) -> dict[str, Any]:
        self.side = make_side(self.ctx, QPType[service], memory)
        point = self.side.qp.endpoint
        return {
            "gid": point.gid.raw.hex(),
            "qp_num": point.qp_num,
            "psn": point.psn,
            "lid": point.lid,
            "addr": self.side.mr.addr,
            "rkey": self.side.mr.rkey,
        }

    def connect(self, there: dict[str, Any], timeout: int = 18) -> None:
        """timeout: exponent of 4.096 us."""
        self.there = there
        remote = Endpoint(Gid(bytes.fromhex(there["gid"])), there["qp_num"], there["psn"], there["lid"])
        self.side.qp.connect(remote, timeout=timeout)

    def activate(self) -> None:
        self.side.qp.activate()

    def fill(self, seed: int, size: int, at: int = 0) -> str:
        data = Random(seed).randbytes(size)
        self.side.mr.buf[at : at + size] = data
        return hashlib.sha256(data).hexdigest()

    def digest(self, size: int, at: int = 0) -> str:
        return hashlib.sha256(self.side.mr.buf[at : at + size]).hexdigest()

    def receive(self, count: int, size: int) -> None:
        for i in range(count):
            self.side.qp.post_recv(RecvRequest(i, [self.side.mr.sge(i * size, size)]))

    def post(self, operation: str, size: int = 8, count: int = 1, **more: Any) -> None:
        """Post requests; those that read put it behind the first half of the region."""
        opcode = WROpcode[operation]
        for i in range(count):
            at = 0 if opcode in (WROpcode.SEND, WROpcode.RDMA_WRITE) else len(self.side.mr.buf) // 2
            request = WorkRequest(i, opcode, [self.side.mr.sge(at, size)], **more)
            if opcode is not WROpcode.SEND:
                request.remote_addr, request.rkey = self.there["addr"], self.there["rkey"]
            self.side.qp.post_send(request)

    def send_to(self, there: dict[str, Any], size: int) -> None:
        """A datagram."""
        handle = self.side.pd.create_ah(
            verbena.AddressVector(Gid(bytes.fromhex(there["gid"])), dlid=there["lid"])
        )
        request = WorkRequest(
            0, WROpcode.SEND, [self.side.mr.sge(0, size)], ah=handle, remote_qpn=there["qp_num"]
        )
        request.remote_qkey = self.side.qp.query().qkey
        self.side.qp.post_send(request)

    def wait(self, count: int = 1, timeout: float = 30.0) -> list[str]:
        """The statuses of that many completions; fewer when the time is over."""
        found: list[str] = []
        while len(found) < count:
            entries = self.side.cq.wait(timeout, count - len(found))
            if not entries:
                break
            found += [entry.status.name for entry in entries]
        return found

    def value(self, at: int) -> int:
        return int.from_bytes(self.side.mr.buf[at : at + 8], sys.byteorder)

    def event(self, timeout: float = 30.0) -> str | None:
        event = self.ctx.get_async_event(timeout)
        return None if event is None else event.type.name

    def counters(self) -> dict[str, int]:
        return self.ctx.counters()

    def listen_once(self, port: int) -> str:
        """Take a connection, and one message on it, which is sent back."""
        with self.ctx.listen(port) as listener:
            print(json.dumps({"listening": port}), flush=True)
            request = listener.get_request(30)
            self.initialize()
            self.side.qp.post_recv(RecvRequest(1, [self.side.mr.sge(0, 64)]))
            connection = request.accept(self.side.qp)
            (entry,) = self.side.cq.wait(30)
            self.side.qp.post_send(WorkRequest(2, WROpcode.SEND, [self.side.mr.sge(0, entry.byte_len)]))
            connection.wait_disconnected(30)
        return entry.status.name

    def initialize(self) -> None:
        """So that receive requests can be posted before the connection is made."""
        self.side.qp.modify(QPState.INIT, port_num=1, pkey_index=0, access_flags=ALL_REMOTE)

    def call(self, host: str, port: int, text: str) -> str:
        """Connect by name, send a text, and return what comes back."""
        self.initialize()
        self.side.qp.post_recv(RecvRequest(1, [self.side.mr.sge(64, 64)]))
        connection = self.ctx.connect(host, port, self.side.qp, timeout=30)
        self.side.mr.buf[: len(text)] = text.encode()
        self.side.qp.post_send(WorkRequest(2, WROpcode.SEND, [self.side.mr.sge(0, len(text))]))
        entries: list[Any] = []
        while len(entries) < 2:
            entries += self.side.cq.wait(30)
        connection.disconnect()
        return bytes(self.side.mr.buf[64 : 64 + len(text)]).decode()

    def nodes(self) -> list[str]:
        """What the subnet's administration knows."""
        return sorted(
            record.description.text.rstrip(b"\0").decode() for record in self.ctx.subnet.nodes().get(10)
        )

    def close(self) -> None:
        self.ctx.close()


def main() -> None:
    program = Program()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"result": getattr(program, asked.pop("do"))(**asked)}
        except VerbenaError as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
