"""Lossless virtual switches: thresholds, the dual push-pull forwarder, flow-control signals, whole paths."""
