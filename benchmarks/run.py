"""``make bench``: run the benchmarks, print a table, write ``bench.json``.

Each figure stands beside a baseline that was measured in the same run, where there is one.  ``--only GROUP`` (or
``GROUP.NAME``) runs a part.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import endpoint
import fabric_real
import handlers
import lan_tap
import routing
import topology
import vswitch_tap
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import fabric
import lan
import memory
import team
import vswitch
from verbena import _pure

GROUPS = {
    "endpoint": endpoint.BENCHMARKS,
    "fabric": fabric.BENCHMARKS | routing.BENCHMARKS | fabric_real.BENCHMARKS,
    "handlers": handlers.BENCHMARKS,
    "memory": memory.BENCHMARKS,
    "lan": lan_tap.BENCHMARKS | lan.BENCHMARKS,
    "team": team.BENCHMARKS,
    "topology": topology.BENCHMARKS,
    "vswitch": vswitch.BENCHMARKS | vswitch_tap.BENCHMARKS,
}


def chosen(only: str) -> list[tuple[str, Any]]:
    """The benchmarks that `only` names; all for an empty string."""
    everything = [(f"{g}.{n}", f) for g, members in GROUPS.items() for n, f in members.items()]
    return [(n, f) for n, f in everything if not only or n == only or n.startswith(only + ".")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help=f"a group ({', '.join(GROUPS)}) or one benchmark")
    parser.add_argument("--output", default="bench.json", type=Path)
    options = parser.parse_args()
    work = chosen(options.only)
    if not work:
        print(f"no benchmark is called {options.only!r}; groups: {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    console = Console()
    rows: list[dict[str, Any]] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(work))
        for name, function in work:
            progress.update(task, description=name)
            result = function()
            rows += result if isinstance(result, list) else [result]
            progress.advance(task)
    table = Table(title=f"Verbena, {'compiled' if _pure.compiled() else 'uncompiled'}")
    for heading in ("benchmark", "value", "unit", "baseline", "ratio"):
        table.add_column(heading, justify="left" if heading in ("benchmark", "unit") else "right")
    for r in rows:
        base = "" if r["baseline"] is None else f"{r['baseline']:.3g}"
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        table.add_row(r["name"], f"{r['value']:.3g}", r["unit"], base, ratio)
    console.print(table)
    results = {r["name"]: {k: r[k] for k in ("value", "unit", "baseline", "ratio")} for r in rows}
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
