# C types of vswitch/engine.py.
from libc.stdint cimport int32_t

from verbena.vswitch.core cimport SwitchCore
from verbena.vswitch.tables cimport Port, Queue

cdef class SwitchEngine(SwitchCore):
    cdef Port *port(self, int number) noexcept nogil
    cdef Queue *queue(self, int port, bint outgoing, int cls) noexcept nogil
    cdef void purge_output(self, int out, int cls, int cause) noexcept nogil
    cdef void purge_line(self, int port, int cls, int32_t line, int out, int cause) noexcept nogil
    cdef void reconsider(self, int port, int cls) noexcept nogil
