"""What two processes of a fabric tell each other before their links: who joins, and what it needs to know.

Over a TCP connection, in lines of JSON.  A host's process sends one line, the fabric's process answers with one, and
the connection stays open as long as both live: its end is a process' end.

hello: ``{"verbena": "fabric", "version": 1, "node": name, "port": its UDP port}``
welcome: ``{"version": 1, "node": {...}, "ports": {"1": {...}}, "options": {...}, "times": {...}, "port": UDP port}``
refusal: ``{"version": 1, "refused": sentence}``
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from verbena.errors import SystemLimitError, VerbenaError
from verbena.fabric.assembly import FabricOptions
from verbena.fabric.rates import LinkRate
from verbena.fabric.topology import Link, Node, NodeKind, PortId, Topology
from verbena.runtime.link_end import LinkTimes

VERSION = 1
LONGEST_LINE = 1 << 20
HELLO_BYTES = 4096


class HelloError(SystemLimitError):
    """The two processes do not fit together; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Who joins.  node: its name.  port: of its UDP socket."""

    node: str
    port: int

    def encode(self) -> bytes:
        return encode({"verbena": "fabric", "version": VERSION, "node": self.node, "port": self.port})

    @classmethod
    def decode(cls, line: bytes) -> Hello:
        """Raises `HelloError`."""
        message = decode(line)
        if message.get("verbena") != "fabric":
            raise HelloError("this is a fabric's port: a host that joins says so")
        check_version(message)
        node, port = message.get("node"), message.get("port")
        if not isinstance(node, str) or not isinstance(port, int) or not 1 <= port <= 65_535:
            raise HelloError("a host that joins tells its node's name and its UDP port, 1 to 65535")
        return cls(node, port)


def encode(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise HelloError("what came is no line of JSON: is this a fabric's port?")
    return message


def check_version(message: Mapping[str, Any]) -> None:
    if message.get("version") != VERSION:
        raise HelloError(
            f"the other process speaks version {message.get('version')!r} of this protocol, this one {VERSION}: "
            "use the same release in both"
        )


def refusal(sentence: str) -> bytes:
    return encode({"version": VERSION, "refused": sentence})


# --- the welcome ------------------------------------------------------------------------------------------------


def describe(node: Node) -> dict[str, Any]:
    """A node, as the other process builds it."""
    return {
        "name": node.name,
        "kind": node.kind.name,
        "ports": node.ports,
        "guid": node.guid,
        "host": node.host,
        "description": node.description,
        "system_guid": node.system_guid,
        "vendor_id": node.vendor_id,
        "device_id": node.device_id,
        "port_guids": {str(port): guid for port, guid in node.port_guids.items()},
    }


def welcome(
    topology: Topology,
    name: str,
    tokens: Mapping[int, int],
    options: FabricOptions,
    times: LinkTimes,
    port: int,
) -> bytes:
    """What a host needs to know.  tokens: of its ports that have a cable.  port: of the fabric's UDP socket."""
    ports = {}
    for number, token in tokens.items():
        link = topology.at[PortId(name, number)]
        peer = link.other(PortId(name, number))
        ports[str(number)] = {
            "token": f"{token:016x}",
            "peer": describe(topology.nodes[peer.node]),
            "peer_port": peer.port,
            "rate": str(link.rate),
            "delay_ns": link.delay_ns,
            "bit_error_rate": link.bit_error_rate,
        }
    return encode(
        {
            "version": VERSION,
            "node": describe(topology.nodes[name]),
            "ports": ports,
            "options": {name: getattr(options, name) for name in ("lanes", "buffer_bytes", "mtu")},
            "times": {field.name: getattr(times, field.name) for field in fields(times)},
            "port": port,
        }
    )


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a host was told: its own node and its neighbours as a topology, tokens by its port, and so on."""

    topology: Topology
    name: str
    tokens: dict[int, int]
    options: FabricOptions
    times: LinkTimes
    port: int

    @classmethod
    def decode(cls, line: bytes) -> Welcome:
        """Raises `HelloError`: with the other side's sentence, if it refused."""
        message = decode(line)
        check_version(message)
        if "refused" in message:
            raise HelloError(str(message["refused"]))
        try:
            topology = Topology()
            name = _add(topology, message["node"]).name
            tokens = {}
            for number, told in message["ports"].items():
                tokens[int(number)] = int(told["token"], 16)
                _join(topology, PortId(name, int(number)), told)
            options = FabricOptions(**message["options"])
            times = LinkTimes(**message["times"])
            return cls(topology, name, tokens, options, times, int(message["port"]))
        except (KeyError, TypeError, ValueError, AttributeError, VerbenaError) as error:
            raise HelloError(f"the fabric's description of this host makes no sense: {error!r}") from None


def _add(topology: Topology, told: Mapping[str, Any]) -> Node:
    if told["name"] in topology.nodes:
        return topology.nodes[told["name"]]
    node = topology.add(
        told["name"],
        NodeKind[told["kind"]],
        told["ports"],
        guid=told["guid"],
        host=told["host"],
        description=told["description"],
        system_guid=told["system_guid"],
        port_guids={int(port): guid for port, guid in told["port_guids"].items()},
    )
    node.vendor_id, node.device_id = told["vendor_id"], told["device_id"]
    return node


def _join(topology: Topology, here: PortId, told: Mapping[str, Any]) -> Link:
    peer = _add(topology, told["peer"])
    return topology.connect(
        here,
        PortId(peer.name, told["peer_port"]),
        rate=LinkRate.parse(told["rate"]),
        delay_ns=told["delay_ns"],
        bit_error_rate=told["bit_error_rate"],
    )


# --- lines over a socket ----------------------------------------------------------------------------------------


def ask(address: tuple[str, int], node: str, port: int, timeout: float) -> tuple[socket.socket, Welcome]:
    """Join at an address; returns the connection, and the welcome.  Raises `HelloError`, `SystemLimitError`."""
    where = f"{address[0]}:{address[1]}"
    try:
        sock = socket.create_connection(address, timeout)
    except OSError as error:
        raise SystemLimitError(f"no fabric listens at {where}: {error.strerror or error}") from None
    try:
        sock.sendall(Hello(node, port).encode())
        line = b""
        while not line.endswith(b"\n"):
            part = sock.recv(65_536)
            if not part or len(line) > LONGEST_LINE:
                raise HelloError(f"what listens at {where} is no fabric: it does not answer as one")
            line += part
        found = Welcome.decode(line)
        sock.settimeout(None)
        return sock, found
    except OSError as error:
        sock.close()
        raise SystemLimitError(f"the fabric at {where} does not answer: {error.strerror or error}") from None
    except BaseException:
        sock.close()
        raise
