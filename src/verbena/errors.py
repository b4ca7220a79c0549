"""Every exception and every completion status of Verbena, in one place.

Two families, after the question "who is wrong?":

* a `VerbError` says that *you* misused a verb: it is raised at once, by the call, and says what was wrong and
  what would be right;
* what the *peer* or the network did wrong never raises out of the receive path: it is a counted drop, a NAK, a
  completion with a `CompletionStatus`, or an asynchronous event.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class VerbenaError(Exception):
    """The root of all exceptions that Verbena raises on purpose."""


class VerbError(VerbenaError):
    """A verb was called wrongly; nothing was changed by the call."""


class InvalidStateError(VerbError):
    """The object's state does not allow this verb (IBA vol. 1, 10.3.1 for queue pairs)."""


class PortStateError(InvalidStateError):
    """The port is not ACTIVE, or has no LID: nothing can be sent through it (IBA vol. 1, 7.2)."""


class InvalidAttributeError(VerbError, ValueError):
    """An argument is out of its range, of the wrong kind, or does not fit the others."""


class PrivilegeError(InvalidAttributeError):
    """Only a kernel process may do this: a user process has effective addresses, and no others (document 003:762)."""


class ResourceError(VerbError):
    """A limit of the adapter is reached: no more queue pairs, regions, queue entries, keys."""


class QueueFullError(ResourceError):
    """The work queue holds as many work requests as it was created for."""


class ClosedError(VerbError):
    """The object, or the adapter that it belongs to, was closed."""


class AddressFault(VerbenaError):
    """A process's own load or store, or a driver's translation for it, was refused; nothing was read or written."""


class SegmentFault(AddressFault):
    """No valid entry of the process's segment table, or beyond the segment's end (document 003, figure 14)."""


class ProtectionFault(AddressFault):
    """Segment or page protection does not allow this access (document 003, figures 14 and 16)."""


class PageFault(AddressFault):
    """The page is not in physical memory, and could not be brought in."""


class BackingStoreError(VerbenaError):
    """The store of pages that are not in memory could not read or write one."""


class BackingStoreFullError(BackingStoreError):
    """The store of pages has no room for another one."""


class ConnectError(VerbenaError):
    """A connection could not be made or was lost (IBA vol. 1, chapter 12)."""


class ConnectionRefused(ConnectError):
    """The peer answered with REJ.  `reason` is its code, `private_data` what came with it."""

    def __init__(self, message: str, reason: int = 0, private_data: bytes = b"") -> None:
        super().__init__(message)
        self.reason = reason
        self.private_data = private_data


class ConnectionTimeout(ConnectError, TimeoutError):
    """The peer did not answer within the time and the retries that the connection manager allows."""


class ConnectionLost(ConnectError):
    """The peer disconnected, or the queue pair under the connection failed."""


class ManagementError(VerbenaError):
    """A management request failed.  `status` is the answer's MAD:Status (IBA vol. 1, 13.4.7), 0 if there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ManagementTimeout(ManagementError, TimeoutError):
    """No answer came, in all the tries."""


class NotFound(ManagementError, LookupError):
    """The subnet has no such node, port, path, group or service."""


class CompletionError(VerbenaError):
    """A work request ended with another status than success; `completion` is its queue entry."""

    def __init__(self, message: str, completion: Any) -> None:
        super().__init__(message)
        self.completion = completion


class SystemLimitError(VerbenaError):
    """The machine does not allow it: a port in use, a missing permission, a missing program."""


class DeadlockError(VerbenaError):
    """In virtual time everybody waits and nothing is scheduled: the wait could never end."""


class FabricFileError(VerbenaError):
    """A fabric file is wrong; the message names the line."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.line = line


class CompletionStatus(IntEnum):
    """How a work request ended (IBA vol. 1, 11.6.2; values as in Linux' `enum ibv_wc_status`)."""

    SUCCESS = 0
    LOC_LEN_ERR = 1
    LOC_QP_OP_ERR = 2
    LOC_EEC_OP_ERR = 3
    LOC_PROT_ERR = 4
    WR_FLUSH_ERR = 5
    MW_BIND_ERR = 6
    BAD_RESP_ERR = 7
    LOC_ACCESS_ERR = 8
    REM_INV_REQ_ERR = 9
    REM_ACCESS_ERR = 10
    REM_OP_ERR = 11
    RETRY_EXC_ERR = 12
    RNR_RETRY_EXC_ERR = 13
    LOC_RDD_VIOL_ERR = 14
    REM_INV_RD_REQ_ERR = 15
    REM_ABORT_ERR = 16
    INV_EECN_ERR = 17
    INV_EEC_STATE_ERR = 18
    FATAL_ERR = 19
    RESP_TIMEOUT_ERR = 20
    GENERAL_ERR = 21
