"""Sockets direct: stream connections that move between the protocol stack, the RDMA card and the team (document 004)."""
