"""The board: where the parts of a workload tell one another what the fabric cannot (queue pair numbers, keys).

In virtual time it is a dictionary; in real time each host's process has a copy, kept alike by the parent process
(`real`).  A topic is written once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from verbena.adapter.attributes import Endpoint
from verbena.adapter.gid import Gid

Value = Any  # what JSON can hold


class Board:
    """Topics and their values.  `publish` is told of each topic that is written here."""

    def __init__(self, publish: Callable[[str, Value], None] | None = None) -> None:
        self._values: dict[str, Value] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._publish = publish

    def write(self, topic: str, value: Value) -> None:
        """Write a topic, for everyone."""
        if self._publish is not None:
            self._publish(topic, value)
        self.take(topic, value)

    def take(self, topic: str, value: Value) -> None:
        """A topic that somebody wrote."""
        self._values[topic] = value
        for future in self._waiting.pop(topic, []):
            if not future.done():
                future.set_result(None)

    def has(self, topic: str) -> bool:
        return topic in self._values

    async def read(self, topic: str) -> Value:
        """A topic's value, as soon as it is written."""
        if topic not in self._values:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(topic, []).append(future)
            await future
        return self._values[topic]


def endpoint_to_data(endpoint: Endpoint) -> list[Any]:
    """An endpoint as a list that JSON can hold."""
    return [endpoint.gid.raw.hex(), endpoint.qp_num, endpoint.psn, endpoint.lid]


def endpoint_from_data(data: Value) -> Endpoint:
    gid, qp_num, psn, lid = data
    return Endpoint(Gid(bytes.fromhex(gid)), int(qp_num), int(psn), int(lid))
