"""Tables of the commands that show what runs."""

from __future__ import annotations

from rich.table import Table


def titled(title: str, *headings: str) -> Table:
    """An empty table; what is too long for a column is folded, not cut."""
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
