"""The adapter's table of memory regions: which keys open which bytes to whom.

A region is a Python buffer that was registered: its bytes have an I/O virtual address, handed out by the table (not
the process's pointer, which never leaves it), a local key for work requests and a remote key for peers.  Every
access is checked here, byte for byte: key, protection domain, range, rights (IBA vol. 1, 10.6.3; the rights are those
of 10.6.3.1).  A key is an index of 24 bits and a tag of 8, drawn when the index is first used and another one at each
further registration, so that a key kept after its region was closed opens nothing (until 128 regions later, under the
same index).

`find_local` and `find_remote` are the one door through which the transport reaches memory: address translation and
memory windows extend them.
"""

from __future__ import annotations

import contextlib

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError, ResourceError

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, free
else:
    from verbena._declarations import declarations

    globals().update(declarations(__file__))

FIRST_ADDRESS = 0x1000_0000
ALIGNMENT = 0x1000
KNOWN_RIGHTS = 31


class RegionTable:
    """All the regions of one adapter.  `capacity` regions at most; `random` draws the keys' tags.

    Addresses are handed out in order from `FIRST_ADDRESS`, so that a run can be repeated to the byte.
    """

    def __init__(self, capacity, random):
        self.capacity = capacity
        self.count = 0
        self._random = random
        self._views = {}
        self._tags = {}
        self._free = list(range(capacity, 0, -1))
        self._next_address = FIRST_ADDRESS
        if cython.compiled:
            self.regions = cython.cast(
                cython.pointer(cython.pointer(Region)),
                calloc(capacity + 1, cython.sizeof(cython.pointer(Region))),
            )
            if not self.regions:
                raise MemoryError
        else:
            self.regions = [None] * (capacity + 1)

    def __dealloc__(self):
        i: cython.int
        if cython.compiled and self.regions:
            for i in range(self.capacity + 1):
                free(self.regions[i])
            free(self.regions)

    def register(self, buffer, domain, access, address=None):
        """Register a contiguous buffer; returns (index, address, length, local key, remote key).

        The buffer stays exported (a bytearray cannot be resized) until `deregister`.
        """
        view = memoryview(buffer)
        if not view.c_contiguous:
            raise InvalidAttributeError(
                "the buffer must be contiguous: register a copy, or a contiguous slice"
            )
        if view.nbytes:
            view = view.cast("B")
        if access & ~KNOWN_RIGHTS:
            raise InvalidAttributeError(f"unknown access rights {access:#x}: combine members of Access")
        if access & (REMOTE_WRITE | REMOTE_ATOMIC) and not access & LOCAL_WRITE:
            raise InvalidAttributeError(
                "REMOTE_WRITE and REMOTE_ATOMIC need LOCAL_WRITE, too (IBA vol. 1, 10.6.3.1)"
            )
        if access & LOCAL_WRITE and view.readonly:
            raise InvalidAttributeError("write rights on a read-only buffer: register a writable one")
        length = view.nbytes
        if address is None:
            address = self._next_address
            self._next_address += (length + 2 * ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        elif not 0 <= address <= (1 << 64) - length:
            raise InvalidAttributeError("the region's addresses must fit into 64 bits")
        if not self._free:
            raise ResourceError(f"all {self.capacity} memory regions of the adapter are in use: close one")
        index = self._free.pop()
        # The two keys of a region differ in the tag's top bit.
        tag = self._tags.get(index, -1)
        tag = self._random.randrange(256) if tag < 0 else (tag + 1) & 0xFF
        self._tags[index] = tag
        self._fill(index, view, domain, access, address, length, tag)
        self._views[index] = view
        self.count += 1
        return (index, address, length, index << 8 | tag, index << 8 | (tag ^ 0x80))

    def _fill(self, index: cython.uint, view, domain, access, address, length, tag):
        if cython.compiled:
            if not self.regions[index]:
                self.regions[index] = cython.cast(cython.pointer(Region), calloc(1, cython.sizeof(Region)))
                if not self.regions[index]:
                    raise MemoryError
            octets: cython.const[cython.uchar][::1]
            self.regions[index].base = cython.NULL
            if length:
                octets = view
                self.regions[index].base = cython.cast(
                    cython.pointer(cython.uchar), cython.address(octets[0])
                )
        else:
            self.regions[index] = Region()
            self.regions[index].base = view
        r: cython.pointer(Region) = self.regions[index]
        r.address = address
        r.length = length
        r.local_key = index << 8 | tag
        r.remote_key = index << 8 | (tag ^ 0x80)
        r.domain = domain
        r.access = access
        r.live = True

    def deregister(self, index):
        """Forget a region: from now on its keys open nothing, and its buffer is free."""
        if index not in self._views:
            raise InvalidAttributeError("this memory region is not registered")
        at: cython.uint = index
        self.regions[at].live = False
        view = self._views.pop(index)
        self.count -= 1
        self._free.insert(0, index)
        with contextlib.suppress(BufferError):  # looked into by somebody else; it goes with him
            view.release()

    def find_local(self, domain, key, address, length, access):
        """The region a work request may use, or nothing: key, domain, whole range and rights must fit."""
        return self.find(domain, key, False, address, length, access)

    def find_remote(self, domain, key, address, length, access):
        """The region a peer's request may use, or nothing; `domain` is that of the queue pair it came by."""
        return self.find(domain, key, True, address, length, access)

    def find(self, domain, key, remote, address, length, access):
        """What both ask: a region that the key opens, with the rights, around the whole range."""
        r = self.opened(domain, key, remote)
        if (
            r
            and not access & ~r.access
            and address >= r.address
            and length <= r.length
            and address - r.address <= r.length - length
        ):
            return r
        if cython.compiled:
            return cython.NULL
        else:
            return None

    def opened(self, domain, key, remote):
        """The region that a local or remote key opens in a domain, or nothing."""
        i: cython.uint = key >> 8
        if i <= self.capacity:
            r = self.regions[i]
            if r and r.live and key == (r.remote_key if remote else r.local_key) and r.domain == domain:
                return r
        if cython.compiled:
            return cython.NULL
        else:
            return None

    def invalidate(self, domain, key):
        """Close a region to its remote key (SEND with invalidate: IBA vol. 1, 9.4.1.1.3); False if the key opens none.

        The region stays registered and its local key valid.
        """
        r = self.opened(domain, key, True)
        if not r:
            return False
        r.remote_key = 0
        return True
