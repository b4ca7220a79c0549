"""The general services interface of a node: queue pair 1 for what answers even if no program has opened the node.

Performance management, subnet administration and other agents take datagrams of their management class here
(IBA vol. 1, 13.5.1); everything else on queue pair 1 is left to the node's adapter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from verbena.clock import Clock
from verbena.management.datagrams import MadAddress
from verbena.wire import DETH, GRH, LRH, NativePacket, TransportPacket
from verbena.wire.errors import DecodeError
from verbena.wire.headers import BTH
from verbena.wire.mad import GSI_QKEY, GSI_QP, MAD_SIZE, ManagementClass, Method
from verbena.wire.opcodes import Opcode
from verbena.wire.packet import decode_infiniband

if TYPE_CHECKING:
    from random import Random

RESPONSE = 0x80
TRAP_REPRESS = 0x07
Receiver = Callable[[MadAddress, bytes], None]


class GeneralServicesInterface:
    """Queue pair 1 of a node.

    transmit(port, packet): puts a packet, LRH to ICRC, on the fabric.  lid(port), gid(port): a port's base LID and GID;
    owns(port, lid): is that one of its LIDs?  leftover(port, packet): takes what was sent to the node itself and nobody
    here serves.  `counters` names what was dropped and why.
    """

    def __init__(
        self,
        transmit: Callable[[int, bytes], None],
        lid: Callable[[int], int],
        gid: Callable[[int], bytes],
        owns: Callable[[int, int], bool],
        clock: Clock,
        random: Random,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._transmit = transmit
        self._lid = lid
        self._gid = gid
        self._owns = owns
        self._clock = clock
        self._psn = random.getrandbits(24)
        self.leftover: Callable[[int, bytes], None] = lambda port, packet: None
        self._requests: dict[int, Receiver] = {}
        self._responses: dict[int, Receiver] = {}
        self.port = 1
        """The port by which the last datagram came in."""

    def serve(self, management_class: int, receive: Receiver) -> None:
        """Give requests of a management class to `receive`."""
        self._requests[management_class] = receive

    def expect(self, management_class: int, receive: Receiver) -> None:
        """Give responses of a management class to `receive`."""
        self._responses[management_class] = receive

    def forget(self, management_class: int) -> None:
        """Leave a management class to the adapter again."""
        self._requests.pop(management_class, None)
        self._responses.pop(management_class, None)

    def request(self, source: MadAddress, mad: bytes) -> None:
        """A request that the node's own adapter has sent to itself."""
        receiver = self._requests.get(mad[1])
        if receiver is None:
            self.counters["drop.class"] += 1
        else:
            self.port = 1
            receiver(source, mad)

    def receive(self, packet: bytes, port: int) -> bool:
        """A packet, LRH to VCRC, that came in at a port; False: it is for somebody else.  Never raises."""
        start = 48 if packet[1] & 3 == 3 else 8
        mad_at = start + BTH.SIZE + DETH.SIZE
        if len(packet) <= mad_at + 3 or int.from_bytes(packet[start + 5 : start + 8], "big") != GSI_QP:
            return False
        kind, method = packet[mad_at + 1], packet[mad_at + 3]
        # Reports of subnet administration are for its clients, be they on the administration's own host.
        report = kind == ManagementClass.SUBN_ADM and method == Method.REPORT
        is_response = method & RESPONSE or method == TRAP_REPRESS or report
        table = self._responses if is_response else self._requests
        receiver = table.get(kind)
        if receiver is None:
            return False
        try:
            found = decode_infiniband(packet)
        except DecodeError as error:
            self.counters[f"drop.{error.reason}"] += 1
            return True
        reason = self._wrong(found)
        if reason:
            self.counters[f"drop.{reason}"] += 1
            return True
        assert isinstance(found, NativePacket)
        deth = found.transport.get(DETH) or DETH()
        source = MadAddress(
            lid=found.lrh.slid,
            qpn=deth.src_qp,
            sl=found.lrh.sl,
            path_bits=max(found.lrh.dlid - self._lid(port), 0) if found.lrh.dlid < 0xC000 else 0,
            gid=None if found.grh is None else found.grh.sgid,
            pkey=found.transport.bth.pkey,
        )
        self.port = port
        self.counters["received"] += 1
        receiver(source, found.transport.payload)
        return True

    @staticmethod
    def _wrong(packet: object) -> str:
        if not isinstance(packet, NativePacket) or packet.transport.bth.opcode != Opcode.UD_SEND_ONLY:
            return "opcode"
        if not packet.icrc_ok:
            return "icrc"
        deth = packet.transport.get(DETH)
        if deth is None or deth.qkey != GSI_QKEY:
            return "qkey"
        return "" if len(packet.transport.payload) == MAD_SIZE else "length"

    def send(self, to: MadAddress, mad: bytes) -> None:
        """Send a datagram, by the port at which the last one came in."""
        self.send_from(self.port, to, mad)

    def send_from(self, port: int, to: MadAddress, mad: bytes) -> None:
        """Send a datagram by a port."""
        self._psn = (self._psn + 1) & 0xFFFFFF
        grh = None if to.gid is None else GRH(sgid=self._gid(port), dgid=to.gid)
        packet = NativePacket(
            LRH(sl=to.sl, slid=self._lid(port) + to.path_bits, dlid=to.lid),
            grh,
            TransportPacket(
                BTH(opcode=Opcode.UD_SEND_ONLY, pkey=to.pkey, dest_qp=to.qpn, psn=self._psn),
                (DETH(qkey=GSI_QKEY, src_qp=GSI_QP),),
                mad,
            ),
        ).sealed()
        self.counters["sent"] += 1
        if self._owns(port, to.lid):
            # Later, so that nobody is called from within a call of its own.
            self._clock.call_at(self._clock.now(), lambda: self._loop(port, packet.encode()))
        else:
            self._transmit(port, packet.encode()[:-2])

    def _loop(self, port: int, packet: bytes) -> None:
        if not self.receive(packet, port):
            self.leftover(port, packet)
