# C types of transport/contexts.py.
from verbena.transport.tables cimport Tables

cdef class Contexts(Tables):
    pass
