"""The tables of docs/tpu.md, from the rows that the tests of this folder noted: `python tpu_table.py ROWS.jsonl`."""

import json
import pathlib
import sys

from tpu_compiler import TOPOLOGIES, versions


def tables(rows):
    """Markdown: for each road a table of method x topology."""
    lines = [f"Compiled with {versions()}."]
    for road in sorted({row["road"] for row in rows}):
        cells = {(row["method"], row["topology"]): row for row in rows if row["road"] == road}
        lines += ["", f"### {road}", "", f"| | {' | '.join(TOPOLOGIES)} |", f"|---|{'---|' * len(TOPOLOGIES)}"]
        for method in sorted({method for method, _ in cells}, key=_order):
            found = [cells.get((method, topology)) for topology in TOPOLOGIES]
            lines.append(f"| {method} | {' | '.join(map(_cell, found))} |")
    return "\n".join(lines) + "\n"


def _order(method):
    """Callbacks, then models, then criteria."""
    return method.startswith("scores"), not method.isidentifier(), method


def _cell(row):
    if row is None:
        return "-"
    reduces = f", {row['all_reduces']} all-reduce" if row["all_reduces"] else ""
    return f"{row['seconds']:.1f} s, {row['hbm'] / 2**20:.2f} MiB{reduces}"


if __name__ == "__main__":
    print(tables([json.loads(line) for line in pathlib.Path(sys.argv[1]).read_text().splitlines()]), end="")
