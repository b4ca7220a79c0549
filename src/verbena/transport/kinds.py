"""The field's enumerations: services, states, operations, flags, events.  Values are those of Linux' verbs."""

from __future__ import annotations

from enum import Enum, IntEnum, IntFlag


class QPType(IntEnum):
    """Transport service of a queue pair; values are the upper three bits of its packets' operation codes.

    RAW_IPV6 and RAW_ETHERTYPE are raw datagrams, which have none (IBA vol. 1, 9.8.4).
    """

    RC = 0
    UC = 1
    RD = 2
    UD = 3
    RAW_IPV6 = 8
    RAW_ETHERTYPE = 9


class QPState(IntEnum):
    """States of a queue pair (IBA vol. 1, 10.3.1)."""

    RESET = 0
    INIT = 1
    RTR = 2
    RTS = 3
    SQD = 4
    SQE = 5
    ERR = 6


class WROpcode(IntEnum):
    """What a send work request asks for (IBA vol. 1, 11.4.1.1); DELAY is Verbena's own (document 003:485)."""

    RDMA_WRITE = 0
    RDMA_WRITE_WITH_IMM = 1
    SEND = 2
    SEND_WITH_IMM = 3
    RDMA_READ = 4
    ATOMIC_CMP_AND_SWP = 5
    ATOMIC_FETCH_AND_ADD = 6
    LOCAL_INV = 7
    BIND_MW = 8
    SEND_WITH_INV = 9
    REG_MR = 32
    DELAY = 64


class SendFlags(IntFlag):
    """FENCE waits for earlier READs and atomics; SIGNALED asks for a completion entry; SOLICITED raises the
    receiver's solicited event; INLINE copies the data when it is posted."""

    NONE = 0
    FENCE = 1
    SIGNALED = 2
    SOLICITED = 4
    INLINE = 8


class CompletionOpcode(IntEnum):
    """What has completed.  Only meaningful where the status is SUCCESS."""

    SEND = 0
    RDMA_WRITE = 1
    RDMA_READ = 2
    COMP_SWAP = 3
    FETCH_ADD = 4
    BIND_MW = 5
    LOCAL_INV = 6
    REG_MR = 10
    DELAY = 64
    RECV = 128
    RECV_RDMA_WITH_IMM = 129


class CompletionFlags(IntFlag):
    """GRH: the buffer begins with 40 bytes of global route header; WITH_IMM: `imm_data` is valid; WITH_INV: a
    remote key was invalidated."""

    NONE = 0
    GRH = 1
    WITH_IMM = 2
    WITH_INV = 8


class AsyncEventType(IntEnum):
    """Asynchronous events (IBA vol. 1, 11.6.3).

    HANDLER_ERR, a completion handler raised, HANDLER_STUCK, one has not returned for long, and PAGE_FAULT, that of
    document 003:882, are Verbena's own.
    """

    CQ_ERR = 0
    QP_FATAL = 1
    QP_REQ_ERR = 2
    QP_ACCESS_ERR = 3
    COMM_EST = 4
    SQ_DRAINED = 5
    PATH_MIG = 6
    PATH_MIG_ERR = 7
    PORT_ACTIVE = 9
    PORT_ERR = 10
    LID_CHANGE = 11
    PKEY_CHANGE = 12
    SM_CHANGE = 13
    SRQ_LIMIT_REACHED = 15
    QP_LAST_WQE_REACHED = 16
    GID_CHANGE = 18
    HANDLER_ERR = 64
    HANDLER_STUCK = 65
    PAGE_FAULT = 66


class Notify(IntEnum):
    """Which entry raises an event that was asked for: the next error, the next solicited one or error, the next one
    (IBA vol. 1, 11.4.2.2; document 001, block 414)."""

    ERROR = 1
    SOLICITED = 2
    ANY = 3


class PathMigrationState(IntEnum):
    """Where a connection stands with its alternate path (IBA vol. 1, 17.2.8.1): MIGRATED, it has none, or none that is
    armed; REARM, it waits for the peer to be so, too; ARMED, it migrates when it must."""

    MIGRATED = 0
    REARM = 1
    ARMED = 2


class AckPolicy(Enum):
    """How a responder acknowledges: each request packet (document 003), or several at once (IBA vol. 1, 9.7.5.1.2)."""

    PER_PACKET = "per-packet"
    COALESCED = "coalesced"
