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


def printable(text: str) -> str:
    """Escape unprintable characters as `repr` does, so that a terminal does not run them as commands; keep line breaks.

    >>> print(printable("dense" + chr(27) + "[31m") == "dense" + chr(92) + "x1b[31m")
    True
    """
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


class _Plain(Table):
    """A table that keeps each cell on one line, because layer names come from files and may contain line breaks."""

    def add_row(self, *cells: Any, **settings: Any) -> None:
        super().add_row(*(_one_line(cell) if isinstance(cell, str) else cell for cell in cells), **settings)


def _one_line(cell: str) -> str:
    return printable(cell).replace("\n", "\\n")


class Printed:
    """A report whose str is a plain-text table, which notebooks display as well.

    >>> class Report(Printed):
    ...     def __str__(self): return "method  accuracy <= 1"
    >>> Report()._repr_html_()
    '<pre>method  accuracy &lt;= 1</pre>'
    """

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def new_table(**settings: Any) -> Table:
    """Return an empty `rich.table.Table` in kprune's style; `settings` are passed to rich."""
    return _Plain(box=_LINES, pad_edge=False, **settings)


def table_lines(table: Table) -> list[str]:
    """Return the lines of a table at full length, because logs and files do not have a terminal's width.

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
