"""Verbena: an RDMA fabric in software.

The public API.  `open_device` gives an adapter on a UDP socket (RoCEv2), `VirtualNetwork` adapters in simulated time;
everything else is reached from the `Context` that they return.
"""

from verbena import _pure

if _pure.pure_wanted():
    _pure.install()

from verbena.adapter.address_spaces import KeyUse, PageError, RefusedAccess
from verbena.adapter.attributes import (
    HOST_ADAPTER,
    IO_ADAPTER,
    AdapterAttributes,
    AddressVector,
    ContextCounts,
    DeviceAttributes,
    EEAttributes,
    Endpoint,
    PortAttributes,
    QPAttributes,
    QPCapabilities,
)
from verbena.adapter.channel_adapter import AsyncEvent
from verbena.adapter.gid import Gid
from verbena.adapter.handlers import CompletionEvent, HandlerResources
from verbena.adapter.protection_options import AddressKind, ProtectionOptions
from verbena.errors import (
    AddressFault,
    BackingStoreError,
    ClosedError,
    CompletionError,
    CompletionStatus,
    ConnectError,
    ConnectionLost,
    ConnectionRefused,
    ConnectionTimeout,
    DeadlockError,
    FabricFileError,
    InvalidAttributeError,
    InvalidStateError,
    PageFault,
    PortStateError,
    PrivilegeError,
    ProtectionFault,
    QueueFullError,
    ResourceError,
    SegmentFault,
    SystemLimitError,
    VerbenaError,
    VerbError,
)
from verbena.fabric.assembly import FabricOptions
from verbena.fabric.rates import LinkRate
from verbena.fabric.topology import NodeKind, PortId, Topology, TopologyError
from verbena.management.subnet_manager.config import SubnetManagerConfig
from verbena.memory.access import Access
from verbena.memory.addresses import AddressFormat
from verbena.memory.process import Process
from verbena.memory.protection import Protection
from verbena.runtime.fabric import Fabric
from verbena.runtime.host_memory import HostMemory
from verbena.runtime.join import open_fabric_device
from verbena.runtime.link_end import LinkTimes
from verbena.runtime.listen import FabricServer
from verbena.runtime.memory_service import MemoryService
from verbena.runtime.memory_view import memory_view
from verbena.runtime.pairs import ConnectedPair, connected_pair
from verbena.runtime.processors import ProcessorCosts, Processors
from verbena.runtime.udp import open_device
from verbena.runtime.virtual import VirtualNetwork
from verbena.runtime.wires import Burst, FaultInjector, Faults, PcapTap, Tracer, Wire
from verbena.transport.kinds import (
    AckPolicy,
    AsyncEventType,
    CompletionFlags,
    CompletionOpcode,
    Notify,
    PathMigrationState,
    QPState,
    QPType,
    SendFlags,
    WROpcode,
)
from verbena.transport.local import BindInfo, FastRegistration
from verbena.transport.work import CompletionQueueEntry, RecvRequest, ScatterGatherEntry, WorkRequest
from verbena.verbs.cm import Listener
from verbena.verbs.completion import CompletionQueue
from verbena.verbs.connection import Connection, ConnectionRequest
from verbena.verbs.context import Context
from verbena.verbs.end_to_end import EndToEndContext, ReliableDatagramDomain
from verbena.verbs.handlers import CompletionHandler
from verbena.verbs.memory import AddressHandle, ProtectionDomain, SharedReceiveQueue
from verbena.verbs.process_domain import ProcessDomain, ProcessRegion
from verbena.verbs.protocols import ProtocolRegistration
from verbena.verbs.queue_pair import QueuePair
from verbena.verbs.regions import FastMemoryRegion, MemoryRegion, PagedRegion
from verbena.verbs.windows import MemoryWindow, WindowAttributes, WindowType

__version__ = "0.1.0"

__all__ = [
    "HOST_ADAPTER",
    "IO_ADAPTER",
    "Access",
    "AckPolicy",
    "AdapterAttributes",
    "AddressFault",
    "AddressFormat",
    "AddressHandle",
    "AddressKind",
    "AddressVector",
    "AsyncEvent",
    "AsyncEventType",
    "BackingStoreError",
    "BindInfo",
    "Burst",
    "ClosedError",
    "CompletionError",
    "CompletionEvent",
    "CompletionFlags",
    "CompletionHandler",
    "CompletionOpcode",
    "CompletionQueue",
    "CompletionQueueEntry",
    "CompletionStatus",
    "ConnectError",
    "ConnectedPair",
    "Connection",
    "ConnectionLost",
    "ConnectionRefused",
    "ConnectionRequest",
    "ConnectionTimeout",
    "Context",
    "ContextCounts",
    "DeadlockError",
    "DeviceAttributes",
    "EEAttributes",
    "EndToEndContext",
    "Endpoint",
    "Fabric",
    "FabricFileError",
    "FabricOptions",
    "FabricServer",
    "FastMemoryRegion",
    "FastRegistration",
    "FaultInjector",
    "Faults",
    "Gid",
    "HandlerResources",
    "HostMemory",
    "InvalidAttributeError",
    "InvalidStateError",
    "KeyUse",
    "LinkRate",
    "LinkTimes",
    "Listener",
    "MemoryRegion",
    "MemoryService",
    "MemoryWindow",
    "NodeKind",
    "Notify",
    "PageError",
    "PageFault",
    "PagedRegion",
    "PathMigrationState",
    "PcapTap",
    "PortAttributes",
    "PortId",
    "PortStateError",
    "PrivilegeError",
    "Process",
    "ProcessDomain",
    "ProcessRegion",
    "ProcessorCosts",
    "Processors",
    "Protection",
    "ProtectionDomain",
    "ProtectionFault",
    "ProtectionOptions",
    "ProtocolRegistration",
    "QPAttributes",
    "QPCapabilities",
    "QPState",
    "QPType",
    "QueueFullError",
    "QueuePair",
    "RecvRequest",
    "RefusedAccess",
    "ReliableDatagramDomain",
    "ResourceError",
    "ScatterGatherEntry",
    "SegmentFault",
    "SendFlags",
    "SharedReceiveQueue",
    "SubnetManagerConfig",
    "SystemLimitError",
    "Topology",
    "TopologyError",
    "Tracer",
    "VerbError",
    "VerbenaError",
    "VirtualNetwork",
    "WROpcode",
    "WindowAttributes",
    "WindowType",
    "Wire",
    "WorkRequest",
    "connected_pair",
    "memory_view",
    "open_device",
    "open_fabric_device",
]
