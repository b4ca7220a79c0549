"""Fabric files for tests: small ones, at addresses that no other test uses."""

from __future__ import annotations

import os
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NET = f"127.{64 + os.getpid() % 128}.{os.getpid() // 128 % 256}"

HOSTS = f"""
name: test
hosts:
  - name: a
    adapters:
      - name: a0
        address: {{real: {NET}.1, virtual: 10.0.0.1}}
  - name: b
    adapters:
      - name: b0
        address: {{real: {NET}.2, virtual: 10.0.0.2}}
        mtu: 1024
"""
FILE = "  - {kind: file-transfer, name: file, from: a0, to: b0, bytes: 100001, message_bytes: 30000}\n"
SMALL = """
  - {kind: ping-pong, name: ping, client: b0, server: a0, bytes: 1500, iterations: 20}
  - {kind: atomic-counter, name: counter, server: a0, clients: [b0, b0], operations: 40, add: 7}
  - {kind: ud-burst, name: burst, from: b0, to: a0, datagrams: 100, bytes: 100, receive_buffers: 128}
"""
ALL = HOSTS + "workloads:\n" + FILE + SMALL
FAULTS = (
    "wire: {faults: {loss: 0.02, duplication: 0.02, reordering: 0.02, corruption: 0.02, delay: 0.02, "
    "delay_ns: 20000}}\n"
)


def write(folder: Path, text: str = ALL, name: str = "fabric.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)
