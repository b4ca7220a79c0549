# C types of fabric/configuration.py.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

from verbena.fabric.sources cimport Sources
from verbena.fabric.tables cimport Node, Port

cdef class Configuration(Sources):
    cdef Node *_switch_at(self, node) except NULL
