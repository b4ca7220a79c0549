"""Records: what the switch layers of two hosts say to each other, on every path the same.

A record has a header of 40 bytes and a body.  On TCP they follow one another, on a queue pair each is one message.
Offsets count the bytes of the stream since its beginning, as 64-bit numbers; the end of the stream counts as one more.
An epoch is the time between two changes of path: data are valid in their own epoch only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from verbena.wire.errors import DecodeError
from verbena.wire.layout import Layout, raw, uint

MAGIC = 0x5644
VERSION = 1
LARGEST_BODY = 1 << 20


class Kind(IntEnum):
    """What a record says."""

    HELLO = 1
    """A new connection: who, and where else it can be reached."""
    WELCOME = 2
    DATA = 3
    ACK = 4
    FIN = 5
    RESET = 6
    OFFER = 7
    """To offload: the sender's queue pair."""
    ACCEPT = 8
    REFUSE = 9
    CONFIRM = 10
    """The first record on a new path; it shows that the path works."""
    CONFIRMED = 11
    JOIN = 12
    """The first record on a further TCP connection, which the connection may move to."""
    SWITCH = 13
    """The last record on the old path."""
    SWITCHED = 14
    RESUME = 15
    """After a failure: on this path, from these offsets."""
    RESUMED = 16
    ASK = 17
    """The side that did not open the connection wishes for another path."""
    PING = 18


class RefuseReason(IntEnum):
    """Why an offer, a connection or a resumption was refused."""

    NO_LISTENER = 1
    NO_RESOURCES = 2
    POLICY = 3
    NO_RDMA = 4
    BUSY = 5
    UNKNOWN = 6


@dataclass(frozen=True, slots=True)
class RecordHead(Layout):
    """The header.

    offset: of the body's first byte in the stream (DATA), of the end (FIN).  ack: the next offset that is expected.
    limit: up to which the sender of this record has room.  length: of the body.
    """

    magic: int = uint(16, MAGIC, at=0)
    version: int = uint(8, VERSION, at=2)
    kind: int = uint(8, at=3)
    epoch: int = uint(32, at=4)
    offset: int = uint(64, at=8)
    ack: int = uint(64, at=16)
    limit: int = uint(64, at=24)
    length: int = uint(32, at=32)
    value: int = uint(32, at=36)


HEAD = RecordHead.SIZE


@dataclass(frozen=True, slots=True)
class Record:
    """A record; the fields are those of `RecordHead`.  value: path, reason or attempt, as the kind has it."""

    kind: Kind
    epoch: int = 0
    offset: int = 0
    ack: int = 0
    limit: int = 0
    body: bytes | memoryview = b""
    value: int = 0

    def head(self) -> bytes:
        """The header, which the body follows."""
        head = RecordHead(
            kind=self.kind,
            epoch=self.epoch,
            offset=self.offset,
            ack=self.ack,
            limit=self.limit,
            length=len(self.body),
            value=self.value,
        )
        return head.pack()

    def pack(self) -> bytes:
        """Header and body."""
        return self.head() + self.body

    @classmethod
    def parse(cls, message: bytes | memoryview) -> Record:
        """A message of exactly one record; raises `DecodeError`."""
        head = RecordHead.unpack(message)
        if head.magic != MAGIC or head.version != VERSION:
            raise DecodeError("header", f"a record of version {head.version} with mark {head.magic:#06x}")
        if head.length > LARGEST_BODY or len(message) != HEAD + head.length:
            raise DecodeError("length", f"a record of {head.length} bytes in a message of {len(message)}")
        try:
            kind = Kind(head.kind)
        except ValueError:
            raise DecodeError("opcode", f"a record of kind {head.kind}") from None
        body = bytes(message[HEAD:])
        return cls(kind, head.epoch, head.offset, head.ack, head.limit, body, head.value)


class RecordReader:
    """Cuts what a TCP connection gives into records."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Record]:
        """The records that are complete now; raises `DecodeError` for what is none, after which nothing else comes."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= HEAD:
                length = int.from_bytes(buffer[at + 32 : at + 36], "big")
                if buffer[at : at + 2] != b"VD" or length > LARGEST_BODY:
                    raise DecodeError("header", "this is no record")
                if len(buffer) - at < HEAD + length:
                    break
                with memoryview(buffer) as view, view[at : at + HEAD + length] as one:
                    record = Record.parse(one)
                at += HEAD + length
                yield record
        finally:
            del buffer[:at]


@dataclass(frozen=True, slots=True)
class Greeting(Layout):
    """Body of HELLO and WELCOME.

    session, token: 16 bytes; who knows both may resume the connection.  upload, team: IPv4 addresses of the sender's
    R-virtual and T-virtual interfaces, zeros where it has none; port: of its service; wanted: the port that the
    connection is for.
    """

    session: bytes = raw(16, at=0)
    token: bytes = raw(16, at=16)
    upload: bytes = raw(4, at=32)
    team: bytes = raw(4, at=36)
    port: int = uint(16, at=40)
    wanted: int = uint(16, at=42)
    has_rdma: int = uint(8, at=44)
    reserved: bytes = raw(3, at=45)


@dataclass(frozen=True, slots=True)
class Claim(Layout):
    """Body of JOIN and RESUME: which connection, and the proof that one may speak for it."""

    session: bytes = raw(16, at=0)
    token: bytes = raw(16, at=16)
    nonce: bytes = raw(8, at=32)


@dataclass(frozen=True, slots=True)
class QueuePairInfo(Layout):
    """Body of OFFER and ACCEPT: a queue pair, and the nonce that the first message over it has to show."""

    gid: bytes = raw(16, at=0)
    qp_num: int = uint(32, at=16)
    psn: int = uint(32, at=20)
    lid: int = uint(16, at=24)
    mtu: int = uint(16, at=26)
    nonce: bytes = raw(8, at=28)
