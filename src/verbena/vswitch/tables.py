"""What a switch's core is made of: frames, queues with thresholds, lines of frames, the table of addresses, the log.

Every port has, for each of eight priority classes, an input queue (TX: from the producer) and an output queue (RX: to
the consumer).  A queue has three marks, each in frames and in bytes: at *high* or above it says stop, at *low* or below
it says start again, and its *room* is what it can really hold: what lies between high and room is for what was on its
way when the stop was said (document 002:72, 002:84).  A frame lies in one slot from the moment it came in until the
consumer has it; moving it from an input to an output moves a number.

Frames in an input stand in *lines*: with virtual output queues one for each output and one for group frames, else one.

The table of addresses: (VLAN, address) -> port, open addressing, in C.  Entries that the configuration made are kept;
learned ones (IEEE 802.1Q, 8.7) are limited in number, so that a flood of invented addresses cannot push out anything.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, free, malloc, realloc
    from cython.cimports.libc.string import memcpy
else:
    from verbena._declarations import declarations

    globals().update(declarations(__file__))

    def bit(i):
        return 1 << i

    def lowest(mask):
        return (mask & -mask).bit_length() - 1


CAUSE_NAMES = (
    "short",
    "long",
    "length",
    "vlan",
    "reserved",
    "port_down",
    "input_full",
    "overrun",
    "output_full",
    "dead_output",
    "port_gone",
    "hairpin",
    "foreign",
    "unwanted",
)
"""Why a frame went no further, in the order of the enumeration in the .pxd."""


class SwitchTables:
    """Memory and tables of a switch core, for `capacity` ports.

    max_frame: bytes of the longest frame.  voq: virtual output queues.  vlans: do VLANs separate?  table_size: places
    of the address table, a power of two.
    """

    def __init__(self, capacity, max_frame=1522, voq=True, vlans=False, table_size=8192):
        if not 1 <= capacity <= MOST_PORTS:
            raise InvalidAttributeError(f"a switch has 1 to {MOST_PORTS} ports, not {capacity}")
        if not 60 <= max_frame <= 65_600:
            raise InvalidAttributeError(f"max_frame = {max_frame}: from 60 to 65600 bytes")
        if table_size < 16 or table_size & (table_size - 1):
            raise InvalidAttributeError(f"table_size = {table_size}: a power of two from 16 on")
        self.capacity = capacity
        self.max_frame = max_frame
        self.voq = voq
        self.vlans = vlans
        self.physical = NOBODY
        self.free_slot = NOBODY
        self.most_learned = table_size // 2
        self.table_size = table_size
        lines = capacity * CLASSES * (MOST_PORTS + 1)
        if cython.compiled:
            self.inputs = cython.cast(cython.pointer(Queue), calloc(capacity * CLASSES, cython.sizeof(Queue)))
            self.outputs = cython.cast(
                cython.pointer(Queue), calloc(capacity * CLASSES, cython.sizeof(Queue))
            )
            self.ports = cython.cast(cython.pointer(Port), calloc(capacity, cython.sizeof(Port)))
            self.line_head = cython.cast(cython.pointer(int32_t), malloc(lines * 4))
            self.line_tail = cython.cast(cython.pointer(int32_t), malloc(lines * 4))
            self.keys = cython.cast(cython.pointer(uint64_t), calloc(table_size, 8))
            self.where = cython.cast(cython.pointer(int8_t), malloc(table_size))
            self.kept = cython.cast(cython.pointer(uint8_t), calloc(table_size, 1))
            self.seen = cython.cast(cython.pointer(int64_t), calloc(table_size, 8))
            if not (self.inputs and self.outputs and self.ports and self.line_head and self.line_tail):
                raise MemoryError
            if not (self.keys and self.where and self.kept and self.seen):
                raise MemoryError
        else:
            self.inputs = [Queue() for _ in range(capacity * CLASSES)]
            self.outputs = [Queue() for _ in range(capacity * CLASSES)]
            self.ports = [Port() for _ in range(capacity)]
            self.line_head = [0] * lines
            self.line_tail = [0] * lines
            self.keys = [0] * table_size
            self.where = [0] * table_size
            self.kept = [0] * table_size
            self.seen = [0] * table_size
            self.slots = []
            self.log = []
            self.free_slot = NOBODY
            self.slot_count = self.log_count = self.log_room = self.ident = self.now = 0
            self.table_used = self.learned = self.table_full = self.missed_steps = 0
            self.learning = self.bypass = self.traced = False
        i: cython.int
        for i in range(lines):
            self.line_head[i] = NOBODY
        for i in range(table_size):
            self.where[i] = NOBODY
        for i in range(capacity * CLASSES):
            self.inputs[i].head = self.outputs[i].head = NOBODY
            self.outputs[i].credits = UNLIMITED

    def __dealloc__(self):
        i: cython.int
        if cython.compiled:
            for i in range(self.slot_count):
                free(self.slots[i].data)
            free(self.slots)
            free(self.inputs)
            free(self.outputs)
            free(self.ports)
            free(self.line_head)
            free(self.line_tail)
            free(self.log)
            free(self.keys)
            free(self.where)
            free(self.kept)
            free(self.seen)

    # --- slots ------------------------------------------------------------------------------------------------

    def allocate(self):
        """A free slot; more are made when all are in use.  What the queues hold limits their number."""
        s: cython.int
        i: cython.int
        grown: cython.int
        if self.free_slot == NOBODY:
            grown = 2 * self.slot_count if self.slot_count else 64
            if cython.compiled:
                self.slots = cython.cast(
                    cython.pointer(Slot), realloc(self.slots, grown * cython.sizeof(Slot))
                )
            else:
                self.slots += [Slot() for _ in range(grown - self.slot_count)]
            i = grown - 1
            while i >= self.slot_count:
                if cython.compiled:
                    self.slots[i].data = cython.NULL
                self.slots[i].room = 0
                self.slots[i].next = self.free_slot
                self.free_slot = i
                i -= 1
            self.slot_count = grown
        s = self.free_slot
        self.free_slot = self.slots[s].next
        return s

    def fill(self, s, data, stored):
        """Keep a frame's bytes in a slot."""
        if cython.compiled:
            if self.slots[s].room < stored:
                free(self.slots[s].data)
                self.slots[s].room = stored if stored > 2048 else 2048 if stored > 128 else 128
                self.slots[s].data = cython.cast(cython.pointer(uint8_t), malloc(self.slots[s].room))
            memcpy(self.slots[s].data, data, stored)
        else:
            self.slots[s].data = data
        self.slots[s].stored = stored

    def release(self, s):
        self.slots[s].next = self.free_slot
        self.free_slot = s

    # --- the log ----------------------------------------------------------------------------------------------

    def note(self, kind, port, cls, ident):
        """Write an event down for whoever drives the core; none of these is ever left out."""
        at: cython.longlong
        if cython.compiled:
            if self.log_count == self.log_room:
                self.log_room = 2 * self.log_room if self.log_room else 256
                self.log = cython.cast(cython.pointer(int64_t), realloc(self.log, self.log_room * 16))
            at = 2 * self.log_count
            self.log[at] = kind << 16 | port << 8 | cls
            self.log[at + 1] = ident
        else:
            self.log.append((kind, port, cls, ident))
        self.log_count += 1

    def step(self, kind, port, cls, ident):
        """Write a step of the flow charts down, if they are traced."""
        if self.traced:
            self.note(kind, port, cls, ident)

    def events(self):
        """What happened since the last call: (kind, port, class, number of the frame), in order."""
        if not self.log_count:
            return ()
        if cython.compiled:
            result = [
                (
                    self.log[2 * i] >> 16,
                    self.log[2 * i] >> 8 & 0xFF,
                    self.log[2 * i] & 0xFF,
                    self.log[2 * i + 1],
                )
                for i in range(self.log_count)
            ]
        else:
            result, self.log = self.log, []
        self.log_count = 0
        return result

    def pending(self):
        """Are there events that nobody has read?"""
        return self.log_count > 0

    def lost(self, port, cls, cause, ident):
        """Count a frame that goes no further."""
        self.ports[port].causes[cause] += 1
        if self.traced:
            self.note(DROP, port, cause, ident)

    # --- addresses --------------------------------------------------------------------------------------------

    def find(self, key):
        """The place of a key in the table, or the free place where it would stand; -1: full, and not there."""
        mask: cython.ulonglong = self.table_size - 1
        mixed: cython.ulonglong = key ^ (key >> 24)
        at: cython.ulonglong = (mixed ^ (mixed >> 13) ^ (mixed >> 7)) & mask
        i: cython.ulonglong
        for i in range(self.table_size):
            if self.where[at] == NOBODY or self.keys[at] == key:
                return at
            at = (at + 1) & mask
        return -1

    def learn(self, key, port):
        """A frame came from this address by this port (IEEE 802.1Q, 8.7); a flood of addresses ends at the limit."""
        at: cython.longlong = self.find(key)
        if at >= 0 and self.where[at] != NOBODY:
            if not self.kept[at]:
                self.where[at] = port
                self.seen[at] = self.now
            return
        if at < 0 or self.learned >= self.most_learned:
            self.table_full += 1
            return
        self.keys[at], self.where[at], self.kept[at], self.seen[at] = key, port, False, self.now
        self.learned += 1

    def entries(self):
        """The table: (VLAN, address as a number, port, kept, when last seen)."""
        return [
            (
                self.keys[i] >> 48,
                self.keys[i] & 0xFFFFFFFFFFFF,
                self.where[i],
                bool(self.kept[i]),
                self.seen[i],
            )
            for i in range(self.table_size)
            if self.where[i] != NOBODY
        ]

    def set_entries(self, entries):
        """Replace the whole table by such entries: how entries are taken out of it."""
        i: cython.int
        at: cython.longlong
        for i in range(self.table_size):
            self.where[i] = NOBODY
        self.learned = 0
        for vlan, mac, port, kept, seen in entries:
            at = self.find(vlan << 48 | mac)
            if at < 0:
                raise InvalidAttributeError("the table of addresses is full")
            self.keys[at] = vlan << 48 | mac
            self.where[at], self.kept[at], self.seen[at] = port, kept, seen
            self.learned += not kept

    def keep(self, vlan, mac, port):
        """An address that the configuration gives to a port; one that was learned elsewhere moves."""
        at: cython.longlong = self.find(vlan << 48 | mac)
        if at < 0 or (self.where[at] == NOBODY and len(self.entries()) >= self.table_size - 1):
            raise InvalidAttributeError(f"the table holds {self.table_size - 1} addresses, and is full")
        if self.where[at] != NOBODY and not self.kept[at]:
            self.learned -= 1
        self.keys[at] = vlan << 48 | mac
        self.where[at], self.kept[at], self.seen[at] = port, True, self.now

    def lookup(self, vlan, mac):
        """The port of an address; -1: not known."""
        at: cython.longlong = self.find(vlan << 48 | mac)
        return NOBODY if at < 0 else self.where[at]
