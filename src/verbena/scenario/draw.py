"""A picture of a topology, as SVG: `matplotlib`, the extra `plot`, draws it.

Links are coloured by the speed of a lane and as thick as they have lanes; switches are squares, adapters circles,
routers diamonds.  Names are left out where they would not be readable.
"""

from __future__ import annotations

import importlib
import io
import logging
from typing import Any

from verbena.errors import SystemLimitError
from verbena.fabric.rates import LinkRate, Speed
from verbena.fabric.topology import Link, NodeKind, Topology
from verbena.scenario.layout import Layout, lay_out

NO_MATPLOTLIB = "drawing needs matplotlib, which is not installed: pip install 'verbena[plot]'"
NAMED_NODES, NAMED_SWITCHES = 160, 80  # with more, names would lie on top of each other

_COLOURS = {
    Speed.SDR: "#9e9e9e",
    Speed.DDR: "#8d6e63",
    Speed.QDR: "#c0a000",
    Speed.FDR10: "#ef8a17",
    Speed.FDR: "#e4572e",
    Speed.EDR: "#2e86ab",
    Speed.HDR: "#3f8f3f",
    Speed.NDR: "#7b3fa0",
}
_MARKS = {
    NodeKind.SWITCH: ("s", "#33415c", "switch"),
    NodeKind.CA: ("o", "#5c9ead", "adapter"),
    NodeKind.ROUTER: ("D", "#d1495b", "router"),
}


def draw(topology: Topology) -> bytes:
    """The picture, as an SVG document; the same topology gives the same bytes.

    Raises `SystemLimitError` where there is no matplotlib.
    """
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
        collections: Any = importlib.import_module("matplotlib.collections")
        matplotlib: Any = importlib.import_module("matplotlib")
    except ImportError:
        raise SystemLimitError(NO_MATPLOTLIB) from None
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    layout = lay_out(topology)
    width, height, thin = _size(layout)
    figure = figures.Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    if layout.circles:
        sizes = [2 * radius for _, _, radius in layout.circles]
        axes.add_collection(
            collections.EllipseCollection(
                sizes,
                sizes,
                [0] * len(sizes),
                units="xy",
                offsets=[(x, y) for x, y, _ in layout.circles],
                offset_transform=axes.transData,
                facecolors="#eef2f6",
                zorder=0,
            )
        )
    _draw_links(axes, collections, topology, layout, thin)
    _draw_nodes(axes, topology, layout, thin)
    _draw_names(axes, topology, layout)
    axes.set_title(_title(topology), loc="left", parse_math=False)
    if topology.nodes:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.06)
    axes.set_axis_off()
    output = io.BytesIO()
    # Without a date and with fixed identifiers, the same topology gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "verbena", "svg.fonttype": "none"}):
        figure.savefig(output, format="svg", metadata={"Date": None})
    return output.getvalue()


def _title(topology: Topology) -> str:
    words = {NodeKind.CA: "adapter", NodeKind.SWITCH: "switch", NodeKind.ROUTER: "router"}
    counts = [
        counted(len(topology.of_kind(kind)), word) for kind, word in words.items() if topology.of_kind(kind)
    ]
    return f"{_printable(topology.name, 60)}: {', '.join([*counts, counted(len(topology.links), 'link')])}"


def _printable(text: str, most: int) -> str:
    """A text that XML can hold, of so many characters at most."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def counted(number: int, word: str) -> str:
    """`3 switches`, `1 link`."""
    plural = "es" if word.endswith("ch") else "s"
    return f"{number:,} {word}{'' if number == 1 else plural}"


def _size(layout: Layout) -> tuple[float, float, float]:
    """Inches, and a factor that thins marks and lines of crowded pictures."""
    places = list(layout.at.values()) or [(0.0, 0.0)]
    spans = [max(p[axis] for p in places) - min(p[axis] for p in places) + 1 for axis in (0, 1)]
    longest = min(24.0, max(6.0, 1.2 * max(spans)))
    width, height = (max(4.0, longest * span / max(spans)) for span in spans)
    thin = min(1.0, max(0.15, 1.1 * longest / max(*spans, len(places) ** 0.5)))
    return width + 2.0, height + 0.5, thin


def _draw_links(axes: Any, collections: Any, topology: Topology, layout: Layout, thin: float) -> None:
    by_rate: dict[LinkRate, list[list[tuple[float, float]]]] = {}
    for number, link in enumerate(topology.links):
        by_rate.setdefault(link.rate, []).append(_path(layout, link, layout.curved.get(number, 0.0)))
    for rate in sorted(by_rate, key=lambda rate: rate.bps):
        lines = collections.LineCollection(
            by_rate[rate],
            colors=_COLOURS[rate.speed],
            linewidths=thin * (0.7 + 0.3 * rate.width.lanes),
            alpha=0.75,
            zorder=1,
            label=f"{rate} ({counted(len(by_rate[rate]), 'link')})",
        )
        axes.add_collection(lines)


def _path(layout: Layout, link: Link, bend: float) -> list[tuple[float, float]]:
    """A link's way: a straight line, or an arc whose middle is `bend` of its length aside."""
    (x0, y0), (x1, y1) = layout.at[link.a.node], layout.at[link.b.node]
    if not bend:
        return [(x0, y0), (x1, y1)]
    aside = -2 * bend * (y1 - y0), 2 * bend * (x1 - x0)
    middle = (x0 + x1) / 2 + aside[0], (y0 + y1) / 2 + aside[1]
    way = []
    for step in range(13):
        t = step / 12
        a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t * t
        way.append((a * x0 + b * middle[0] + c * x1, a * y0 + b * middle[1] + c * y1))
    return way


def _draw_nodes(axes: Any, topology: Topology, layout: Layout, thin: float) -> None:
    for kind, (mark, colour, word) in _MARKS.items():
        nodes = topology.of_kind(kind)
        if nodes:
            size = (110 if kind is NodeKind.SWITCH else 55) * thin
            axes.scatter(
                [layout.at[node.name][0] for node in nodes],
                [layout.at[node.name][1] for node in nodes],
                s=size,
                marker=mark,
                c=colour,
                linewidths=0,
                zorder=2,
                label=f"{word} ({len(nodes):,})",
            )


def _draw_names(axes: Any, topology: Topology, layout: Layout) -> None:
    everyone = len(topology.nodes) <= NAMED_NODES
    if not everyone and len(topology.switches) > NAMED_SWITCHES:
        return
    crowded = layout.shape == "levels" and len(topology.hosts) > 12
    for node in topology.nodes.values():
        switch = node.kind is NodeKind.SWITCH
        if everyone or switch:
            name = _printable(node.name, 24)
            upright = crowded and not switch
            axes.annotate(
                name,
                layout.at[node.name],
                xytext=(0, -7) if not switch else (0, 7),
                textcoords="offset points",
                ha="center",
                va="bottom" if switch else "top",
                rotation=90 if upright else 0,
                fontsize=8 if len(topology.nodes) <= 60 else 6,
                zorder=3,
                parse_math=False,
            )
