"""The subnet management interface of every node: what becomes of a directed-route packet (IBA vol. 1, 14.2.2).

A directed-route packet carries its way with it: a list of output ports (the initial path), the list of the ports by
which it came (the return path, written by the switches it crosses), a hop pointer and a hop count; the direction bit
says which of the two lists is followed.  A switch handles it without any table, so that it works before there are
addresses.  As it changes the packet, it makes its checks anew: the ICRC (7.8.1) and the VCRC (7.8.2).

A node's software need not care: it sends a request with hop pointer 0 and a response with the pointer as it received
it; the interface moves the pointer on when the packet leaves the node, and when it arrives at its end.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.fabric.arbitration import Arbitration

if cython.compiled:
    from cython.cimports.verbena.fabric.tables import *
    from cython.cimports.verbena.wire.kernels import crc32
else:
    from verbena._declarations import declarations
    from verbena.fabric.tables import *
    from verbena.wire.kernels import crc32

    globals().update(declarations(__file__))
    _vcrc_table = [[0] * 256 for _ in range(8)]
    _fold_by = [0] * 6
    _folds = _folds_wide = False


def _make_vcrc_table():
    """Eight tables, so that eight bytes are taken at a time: table k is table 0 after k more zero bytes."""
    i: cython.int
    k: cython.int
    value: cython.uint
    for i in range(256):
        value = i
        for k in range(8):
            value = (value >> 1) ^ (0xD008 if value & 1 else 0)  # 0x100B, bits reversed
        _vcrc_table[0][i] = value
    for k in range(1, 8):
        for i in range(256):
            value = _vcrc_table[k - 1][i]
            _vcrc_table[k][i] = (value >> 8) ^ _vcrc_table[0][value & 0xFF]


def _make_fold_constants():
    """x to the power of how far a half of 16 bytes is folded, less 1 (the bits are reversed), by the polynomial."""
    i: cython.int
    for i, power in enumerate((512 + 63, 512 - 1, 128 + 63, 128 - 1, 2048 + 63, 2048 - 1)):
        value = 1
        for _ in range(power):
            value = value << 1 ^ (0x1100B if value & 0x8000 else 0)
        _fold_by[i] = int(f"{value:064b}"[::-1], 2)


_make_vcrc_table()
_make_fold_constants()
if cython.compiled:
    _folds = can_fold()
    _folds_wide = _folds and can_fold_wide()


def vcrc16(b, n):
    """The CRC-16 of n bytes, as it stands in a packet's last two bytes, lower byte first."""
    if cython.compiled:
        if _folds and n >= FEWEST_FOLDED:
            folded: cython.uchar[16]
            whole: cython.size_t = n & ~cython.cast(cython.size_t, FOLD_STEP - 1)
            if _folds_wide:
                fold_wide(b, whole, 0xFFFF, _fold_by, folded)
            else:
                fold(b, whole, 0xFFFF, _fold_by, folded)
            return vcrc_over(b + whole, n - whole, vcrc_over(folded, FOLDED, 0)) ^ 0xFFFF
    return vcrc_over(b, n, 0xFFFF) ^ 0xFFFF


def vcrc_over(b, n, crc):
    """The CRC continued over n bytes, without the complement at its end."""
    i: cython.size_t = 0
    while i + 8 <= n:
        crc ^= b[i] | (cython.cast(cython.uint, b[i + 1]) << 8)
        crc = (
            _vcrc_table[7][crc & 0xFF]
            ^ _vcrc_table[6][crc >> 8]
            ^ _vcrc_table[5][b[i + 2]]
            ^ _vcrc_table[4][b[i + 3]]
            ^ _vcrc_table[3][b[i + 4]]
            ^ _vcrc_table[2][b[i + 5]]
            ^ _vcrc_table[1][b[i + 6]]
            ^ _vcrc_table[0][b[i + 7]]
        )
        i += 8
    while i < n:
        crc = (crc >> 8) ^ _vcrc_table[0][(crc ^ b[i]) & 0xFF]
        i += 1
    return crc


def seal_vcrc(b, size):
    """Write the VCRC into the last two of a packet's `size` bytes."""
    crc: cython.uint = vcrc16(b, size - 2)
    b[size - 2] = crc & 0xFF
    b[size - 1] = crc >> 8


def vcrc_right(b, size):
    """Does the VCRC in the last two bytes fit the rest?"""
    crc: cython.uint = vcrc16(b, size - 2)
    return b[size - 2] == (crc & 0xFF) and b[size - 1] == (crc >> 8)


def seal_icrc(b, size):
    """Write the ICRC of a local packet (LRH, BTH, ..., ICRC, VCRC: `size` bytes) in its place."""
    first: cython.uchar = b[0]
    resv8a: cython.uchar = b[12]
    crc: cython.uint
    b[0] = first | 0xF0
    b[12] = 0xFF
    crc = crc32(0, b, 0, size - 6)
    b[0] = first
    b[12] = resv8a
    b[size - 6] = crc & 0xFF
    b[size - 5] = (crc >> 8) & 0xFF
    b[size - 4] = (crc >> 16) & 0xFF
    b[size - 3] = crc >> 24


class Smi(Arbitration):
    """Directed routes through the nodes of the fabric."""

    def is_directed(self, p):
        """Is it a well-formed directed-route packet, sent to the permissive LID?"""
        if p.lane != VL15 or p.dlid != PERMISSIVE or p.size != SMP_SIZE or not p.data:
            return False
        return p.data[MAD_AT + 1] == DIRECTED_ROUTE and (p.data[1] & 3) == 2

    def smi_forward(self, node, in_port, p):
        """What a switch does with it: the number of the port it leaves by; 0: it has arrived; `SMI_DROP`."""
        b = p.data
        pointer: cython.int = b[HOP_POINTER]
        count: cython.int = b[HOP_COUNT]
        out: cython.int
        if count > LARGEST_HOP:
            return SMI_DROP
        if not b[MAD_AT + 4] & 0x80:  # on its way out
            if in_port == 0:  # from this switch's own software
                if pointer != 0 or count == 0:
                    return SMI_DROP if count else 0
            elif pointer == 0 or pointer > count:
                return SMI_DROP
            else:
                b[RETURN_PATH + pointer] = in_port
            pointer += 1
            out = b[INITIAL_PATH + pointer] if pointer <= count else 0
        else:  # on its way back
            if in_port == 0:
                if pointer != count + 1 or count == 0:
                    return SMI_DROP if count else 0
            elif pointer < 2 or pointer > count:
                # Pointer 1 is the sender's own hop: it ends here, at the requester, if that is this switch.
                if pointer != 1:
                    return SMI_DROP
                b[HOP_POINTER] = 0
                self.reseal(p)
                return 0
            pointer -= 1
            out = b[RETURN_PATH + pointer] if pointer >= 1 else 0
        if out > node.ports:
            return SMI_DROP
        b[HOP_POINTER] = pointer
        self.reseal(p)
        return out

    def reseal(self, p):
        seal_icrc(p.data, p.size)
        seal_vcrc(p.data, p.size)

    def smi_leave(self, p):
        """An endnode sends it: move its pointer on.  True: it has no way to go, and is for the node itself."""
        b = p.data
        if b[HOP_COUNT] == 0:
            return True
        if not b[MAD_AT + 4] & 0x80:
            if b[HOP_POINTER] == 0:
                b[HOP_POINTER] = 1
                seal_icrc(b, p.size)
        elif b[HOP_POINTER] == b[HOP_COUNT] + 1:
            b[HOP_POINTER] = b[HOP_COUNT]
            seal_icrc(b, p.size)
        return False

    def smi_arrive(self, port, p):
        """It reached an endnode: move its pointer on; a request learns the port by which it came in."""
        b = p.data
        if not b[MAD_AT + 4] & 0x80:
            if b[HOP_POINTER] == b[HOP_COUNT] and b[HOP_COUNT] and b[HOP_COUNT] <= LARGEST_HOP:
                b[RETURN_PATH + b[HOP_POINTER]] = port.number
                b[HOP_POINTER] += 1
                self.reseal(p)
        elif b[HOP_POINTER] == 1:
            b[HOP_POINTER] = 0
            self.reseal(p)
