"""A subnet manager on a node of a fabric, with the subnet administration beside it."""

from __future__ import annotations

from random import Random

from verbena.clock import Clock
from verbena.management.administration import administer
from verbena.management.smi import SmpPort
from verbena.management.store import TopologyStore
from verbena.management.subnet_administration import SubnetAdministration
from verbena.management.subnet_manager.config import SubnetManagerConfig
from verbena.management.subnet_manager.manager import SubnetManager
from verbena.runtime.fabric_node import FabricNode
from verbena.wire.mad import ManagementClass
from verbena.wire.smp_attributes import SmState


class Manager:
    """A node's subnet manager and its subnet administration.  port: of the node, where both speak."""

    def __init__(
        self,
        node: FabricNode,
        clock: Clock,
        config: SubnetManagerConfig,
        store: TopologyStore | None,
        seed: int,
        port: int,
    ) -> None:
        self.node = node
        self.config = config
        self.port = port
        self._clock = clock
        self._store = store
        self._random = Random(f"{seed} manager {node.name}")
        self.running = self._stopped = False
        self.subnet_manager = self._made()
        self.administration: SubnetAdministration
        self._serve()

    def _made(self) -> SubnetManager:
        way: SmpPort = self.node.interface.attach(self.port)
        guid = self.node.agent.profile.port_guid(self.port)
        return SubnetManager(
            way,
            guid,
            self._clock,
            self.config,
            port_number=self.port,
            store=self._store,
        )

    def start(self) -> None:
        """Begin to manage, or to stand by; after a stop, with nothing remembered but what is stored."""
        if self._stopped:
            self.subnet_manager = self._made()
            self._serve()
            self._stopped = False
        self.running = True
        self.node.link_listener = self._link_changed
        self.subnet_manager.start()

    def stop(self) -> None:
        """Fall silent at once."""
        self.running = False
        self.subnet_manager.stop()
        self.node.interface.detach()
        self.node.services.forget(ManagementClass.SUBN_ADM)
        self._stopped = True

    @property
    def is_master(self) -> bool:
        return self.running and self.subnet_manager.state is SmState.MASTER

    @property
    def settled(self) -> bool:
        """Standing by, or master with nothing left to do."""
        state = self.subnet_manager.state
        if state in (SmState.STANDBY, SmState.NOT_ACTIVE):
            return True
        return (
            state is SmState.MASTER
            and self.subnet_manager.is_settled
            and self.subnet_manager.subnet is not None
        )

    def _link_changed(self, port: int) -> None:
        """Nobody sends a trap for the manager's own cable: what was behind it is not in its picture any more."""
        if self.running and port == self.port and self.subnet_manager.state is SmState.MASTER:
            self.subnet_manager.sweep_soon()

    def _serve(self) -> None:
        """Put the subnet administration beside the manager, at queue pair 1 of its port."""
        services = self.node.services
        self.administration = administer(
            self.subnet_manager,
            lambda to, mad: services.send_from(self.port, to, mad),
            self._clock,
            self._random,
        )
        services.serve(ManagementClass.SUBN_ADM, self.administration.receive)
