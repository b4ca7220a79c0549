"""Teams of network cards that keep their RDMA card (document 004)."""
