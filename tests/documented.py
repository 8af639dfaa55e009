"""The Python blocks of the documentation: `python documented.py FILE.md ...` runs them in one session, in order.

A block that ```text follows must print that: as in a doctest, "..." stands for anything.
"""

from __future__ import annotations

import contextlib
import doctest
import gc
import io
import pathlib
import re
import sys
from typing import Any, NamedTuple

import keras
from conftest import optimizations

BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n*```text\n(?P<shown>.*?)```)?", flags=re.DOTALL)
LOOSELY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """One block of a page.

    Attributes:
        page: the file that it stands in.
        line: of the page, the one before the block's first.
        code: what it runs.
        shown: what the page says that it prints; None if it does not.
    """

    page: pathlib.Path
    line: int
    code: str
    shown: str | None

    def run(self, session: dict[str, Any]) -> None:
        """Run it with the names of the session; AssertionError if it prints something else than shown."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            # So that a traceback names the line of the page.
            exec(compile("\n" * self.line + self.code, str(self.page), "exec"), session)
        if self.shown is not None and not doctest.OutputChecker().check_output(self.shown, printed.getvalue(), LOOSELY):
            raise AssertionError(
                f"{self.page}, line {self.line}: shown\n{self.shown}\nbut printed\n{printed.getvalue()}"
            )


def blocks(page: pathlib.Path) -> list[Block]:
    """The Python blocks of a page."""
    text = page.read_text()
    return [
        Block(page, text[: found.start("code")].count("\n"), found["code"], found["shown"])
        for found in BLOCK.finditer(text)
    ]


if __name__ == "__main__":
    session: dict[str, Any] = {"__name__": "__main__"}
    with optimizations(keras.backend.backend(), on=False):
        for name in sys.argv[1:]:
            # Keras collects garbage where a page quantizes: what the pages before it made is not looked at again.
            gc.freeze()
            for block in blocks(pathlib.Path(name)):
                block.run(session)
            print(f"{name}: ran")
