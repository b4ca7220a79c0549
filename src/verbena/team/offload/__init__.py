"""Sockets direct: connections that move between protocol stack, RDMA card and team (document 004)."""
