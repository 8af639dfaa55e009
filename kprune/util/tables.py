"""Tables as plain text, for terminals, logs and files of any encoding."""

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
    """A report whose str is a table in plain text; notebooks show it, too.

    >>> class Report(Printed):
    ...     def __str__(self): return "method  accuracy <= 1"
    >>> Report()._repr_html_()
    '<pre>method  accuracy &lt;= 1</pre>'
    """

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def new_table(**settings: Any) -> Table:
    """An empty `rich.table.Table` with the lines that kprune's tables have; `settings` are rich's."""
    return Table(box=_LINES, pad_edge=False, **settings)


def table_lines(table: Table) -> list[str]:
    """The lines of a table, as wide as needed regardless of the terminal: a log or a file has no width.

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
