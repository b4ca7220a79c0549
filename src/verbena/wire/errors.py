"""What the wire layer raises.

`DecodeError` is the one exception that bytes from outside can cause; its `reason` is a short, stable word
that a receive path counts drops under.  `EncodeError` is the caller's mistake: a value that its field cannot
hold.
"""

from __future__ import annotations

from verbena.errors import VerbenaError


class DecodeError(VerbenaError):
    """Bytes that are not what they should be.

    `reason` is one of: "short" (bytes are missing), "length" (lengths contradict each other), "opcode",
    "version" (of a link, network, transport or management header), "header" (a field has a forbidden value),
    "crc" (a flit's error check fails), "file" (not a capture file, or a damaged one).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EncodeError(VerbenaError, ValueError):
    """A value does not fit into its field, or the parts of a packet do not fit together."""
