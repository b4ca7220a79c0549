# C types of transport/end_to_end.py.
from verbena.transport.core cimport Core

cdef class EndToEnd(Core):
    pass
