"""Plain-text tables for terminals, logs and files in any encoding."""

from __future__ import annotations

import html
import io
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

# rich's SIMPLE in ASCII: a table that any terminal and any file's encoding can hold.
_LINES = box.Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)


class Printed:
    """A report whose str is a plain-text table; notebooks show it, too.

    >>> class Report(Printed):
    ...     def __str__(self): return "method  accuracy <= 1"
    >>> Report()._repr_html_()
    '<pre>method  accuracy &lt;= 1</pre>'
    """

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def new_table(**settings: Any) -> Table:
    """An empty `rich.table.Table` in kprune's style; `settings` are passed to rich."""
    return Table(box=_LINES, pad_edge=False, **settings)


def table_lines(table: Table) -> list[str]:
    """The lines of a table, as wide as needed whatever the terminal, as logs and files have no width.

    >>> table = new_table()
    >>> table.add_column("method"); table.add_column("accuracy", justify="right")
    >>> table.add_row("dense", "0.98")
    >>> table_lines(table)
    [' method   accuracy', ' -----------------', ' dense        0.98']
    """
    text = io.StringIO()
    plain: dict[str, Any] = dict.fromkeys(("markup", "emoji", "highlight", "force_terminal", "force_jupyter"), False)
    Console(file=text, width=10_000, color_system=None, **plain).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
