"""Several subnet managers on one subnet: who is master, who stands by (IBA vol. 1, 14.4.1).

The table of states is `election`'s; here is what goes over the wire: SubnGet(SMInfo) to the managers that a sweep has
found, the standby's polls, the hand-over, and the answers to the others' questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from verbena.clock import Clock, Timer
from verbena.management.smi import SmpPort
from verbena.management.subnet import Subnet, SubnetPort
from verbena.management.subnet_manager.election import CONTROLS, TRANSITIONS, SmInput, is_above
from verbena.management.subnet_manager.smp_client import Question, SmpClient, ask
from verbena.wire.mad import MadStatus, ManagementClass, Method
from verbena.wire.smp import DATA_OFFSET, AttributeId
from verbena.wire.smp_attributes import PortCapability, PortInfo, SmControl, SMInfo, SmState

if TYPE_CHECKING:
    from verbena.management.subnet_manager.manager import SubnetManager


def _role(info: SMInfo) -> tuple[int, int, int] | None:
    """What counts of another manager; None for one that is not active."""
    return None if info.state == SmState.NOT_ACTIVE else (info.guid, info.priority, info.state)


class Roles:
    """The role of one subnet manager."""

    def __init__(self, manager: SubnetManager, client: SmpClient, port: SmpPort, clock: Clock) -> None:
        self.state = SmState.NOT_ACTIVE
        self._manager = manager
        self._client = client
        self._port = port
        self._clock = clock
        self._acts = 0
        self._others: dict[int, tuple[SubnetPort, SMInfo]] = {}
        self._ports: list[SubnetPort] = []
        self._above: SubnetPort | None = None
        self._handing_over = False
        self._offered: set[int] = set()  # GUIDs of masters whose part was taken before they were met
        self._missed = 0
        self._timer: Timer | None = None

    def begin(self) -> None:
        """The manager starts, or starts again."""
        self.state = SmState.DISCOVERING
        self._above, self._handing_over = None, False
        self._offered.clear()

    def end(self) -> None:
        """The manager stops."""
        self.stop()
        self.state = SmState.NOT_ACTIVE

    def stop(self) -> None:
        """Poll no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _happens(self, what: SmInput) -> bool:
        """Take the table's step; False if there is none."""
        after = TRANSITIONS.get((self.state, what))
        if after is None:
            return False
        before, self.state = self.state, after
        if after is SmState.MASTER and before is not SmState.MASTER:
            self.stop()
            self._manager.become_master()
        if before is SmState.MASTER and after is not SmState.MASTER:
            self._manager.step_down()
        return True

    def _info(self) -> SMInfo:
        config = self._manager.config
        return SMInfo(self._manager.guid, config.sm_key, self._acts, config.priority, self.state)

    # --- during a sweep -----------------------------------------------------------------------------------------

    def meet(self, subnet: Subnet, own: SubnetPort, then: Callable[[], None]) -> None:
        """Ask all managers that were found who they are; then decide, and call `then`."""
        self._others = {}
        ports = [
            port
            for port in subnet.end_ports()
            if port is not own and port.info.capability_mask & PortCapability.SM
        ]
        self._ports = ports
        questions = [ask(AttributeId.SM_INFO, 0, port.path, partial(self._met, port)) for port in ports]
        self._client.feed(iter(questions), partial(self._decide, then))

    def _met(self, port: SubnetPort, status: int | None, data: bytes) -> None:
        if status == 0:
            info = SMInfo.unpack(data)
            if _role(info) is not None:
                self._others[info.guid] = (port, info)

    def _decide(self, then: Callable[[], None]) -> None:
        config, guid = self._manager.config, self._manager.guid
        masters = [port for port, info in self._others.values() if info.state == SmState.MASTER]
        above = [
            (info.priority, -info.guid, port)
            for port, info in self._others.values()
            if is_above(info, config.priority, guid)
        ]
        best = max(above, key=lambda one: one[:2], default=None)
        if self.state is SmState.DISCOVERING:
            if masters or best is not None:
                self._above = masters[0] if masters else best[2] if best is not None else None
                self._happens(SmInput.SOMEBODY_ABOVE)
            else:
                self._happens(SmInput.NOBODY_ABOVE)
        self._handing_over = self.state is SmState.MASTER and best is not None
        self._above = best[2] if self._handing_over and best is not None else self._above
        then()

    def swept(self) -> None:
        """A sweep of the master is through: now it may hand over, and knows who has handed over to it."""
        offered, self._offered = self._offered, set()
        if self.state is SmState.MASTER:
            for port in filter(None, map(self._find, sorted(offered))):
                self._command(port, SmControl.ACKNOWLEDGE)
        above = self._above
        if self._handing_over and above is not None and self.state is SmState.MASTER:
            self._handing_over = False
            self._command(above, SmControl.HANDOVER)

    def _command(self, port: SubnetPort, control: SmControl) -> None:
        self._acts += 1
        self._client.put(
            Question(
                Method.SET,
                AttributeId.SM_INFO,
                control,
                port.path,
                self._info().pack(),
                lambda status, data: None,
            )
        )

    def questions(self) -> Iterator[Question]:
        """For a light sweep: have the other managers changed, or do some answer that did not?"""
        known = {port.guid: _role(info) for port, info in self._others.values()}
        for port in self._ports:
            yield ask(AttributeId.SM_INFO, 0, port.path, partial(self._still, port, known.get(port.guid)))

    def _still(
        self, port: SubnetPort, known: tuple[int, int, int] | None, status: int | None, data: bytes
    ) -> None:
        info = SMInfo.unpack(data) if status == 0 else None
        now = None if info is None else _role(info)
        if now != known:
            self._manager.sweep_soon()
        elif info is not None and now is not None and self.state is SmState.MASTER:
            config, guid = self._manager.config, self._manager.guid
            if is_above(info, config.priority, guid):  # it was handed over to, and nothing came of it
                self._command(port, SmControl.HANDOVER)

    # --- standing by --------------------------------------------------------------------------------------------

    def stand_by(self) -> None:
        """Poll the master from now on."""
        self.stop()
        if self.state is SmState.STANDBY:
            self._missed = 0
            self._poll_later()

    def _poll_later(self) -> None:
        interval = self._manager.config.poll_interval_ns
        self._timer = self._clock.call_at(self._clock.now() + interval, self._poll)

    def _poll(self) -> None:
        """The master's LID stands in this port's PortInfo, once there is a master."""
        self._timer = None
        if self.state is SmState.STANDBY:
            self._client.put(ask(AttributeId.PORT_INFO, 0, b"", self._own_port))

    def _own_port(self, status: int | None, data: bytes) -> None:
        if self.state is not SmState.STANDBY:
            return
        info = PortInfo.unpack(data) if status == 0 else PortInfo()
        lid = info.master_sm_lid
        if lid and lid != info.lid:
            self._client.put(Question(Method.GET, AttributeId.SM_INFO, 0, None, b"", self._polled, lid))
        elif self._above is not None:
            self._client.put(ask(AttributeId.SM_INFO, 0, self._above.path, self._polled))
        else:
            self._polled(None, b"")

    def _polled(self, status: int | None, data: bytes) -> None:
        if self.state is not SmState.STANDBY or self._timer is not None:
            return
        alive = status == 0 and SMInfo.unpack(data).state in (SmState.MASTER, SmState.DISCOVERING)
        self._missed = 0 if alive else self._missed + 1
        if self._missed < self._manager.config.poll_tries:
            self._poll_later()
        elif self._happens(SmInput.MASTER_SILENT):
            self._manager.sweep()

    # --- what others ask ----------------------------------------------------------------------------------------

    def answer(self, mad: bytes, slid: int) -> None:
        """SubnGet(SMInfo) and SubnSet(SMInfo)."""
        status = MadStatus.OK
        control = None
        if mad[3] == Method.SET:
            asked = SMInfo.unpack(mad, DATA_OFFSET)
            modifier = int.from_bytes(mad[20:24], "big")
            control = CONTROLS.get(modifier)
            key = self._manager.config.sm_key
            if control is None or (key and asked.sm_key != key) or (self.state, control) not in TRANSITIONS:
                status, control = MadStatus.INVALID_VALUE, None
        self._acts += 1
        answer = bytearray(mad)
        directed = mad[1] == ManagementClass.SUBN_DIRECTED_ROUTE
        answer[3], answer[4], answer[5] = Method.GET_RESPONSE, 0x80 if directed else 0, status
        if control is not None:
            self._happens(control)
        answer[DATA_OFFSET : DATA_OFFSET + 64] = self._info().pack().ljust(64, b"\0")
        self._port.send(bytes(answer), path=() if directed else None, dlid=None if directed else slid)
        if control is not None:
            self._obey(control, SMInfo.unpack(mad, DATA_OFFSET))

    def _obey(self, control: SmInput, sender: SMInfo) -> None:
        if control is SmInput.HANDOVER:
            known = self._others.get(sender.guid)
            port = known[0] if known is not None else self._find(sender.guid)
            if port is not None:
                self._command(port, SmControl.ACKNOWLEDGE)
            else:
                self._offered.add(sender.guid)
            self._manager.sweep()
        elif control is SmInput.DISCOVER:
            self.stop()
            self._manager.sweep()
        elif self.state is SmState.STANDBY:
            self.stand_by()
        else:
            self.stop()

    def _find(self, guid: int) -> SubnetPort | None:
        subnet = self._manager.subnet
        return None if subnet is None else subnet.ports_by_guid.get(guid)
