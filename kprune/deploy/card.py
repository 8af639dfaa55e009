"""The export card, which compares a sparse network's files with those of the same network without zeros."""

from __future__ import annotations

import html
import platform
import statistics
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..report.summary import percentage, summary, weight_paths
from ..runtime.distribution import to_numpy
from ..util.tables import new_table, table_lines
from .formats import FORMATS

_ROUNDS = 15
# Above this fraction of dense, a file gains nothing.
_GAIN = 0.95


@dataclass(frozen=True)
class Entry:
    """One exported file on a card: its size, latency, memory and accuracy.

    Attributes:
        format: its format.
        network: "sparse", or "dense": the same network with random values in place of its zeros, in the plain form of
            that format.
        bytes, zipped: its size on disk, and as a zip archive, which is what a download takes.
        zeros, size: exact zeros in the file's tensors of rank 2 or more, dequantized, and the entries of these; None in
            files of other runtimes that hold 4-bit integers.
        milliseconds: latency of one example on this machine, median of rounds in which all files took turns; None for
            a format without a runtime of its own.
        spread: the 10th and the 90th percentile of these.
        accuracy: fraction of `data` that the file classifies as labeled; None without data, and for a dense network,
            which was never trained.
        memory: bytes by which the process grew at most while it opened the file and ran it once; None where the system
            does not say.
        difference: largest |output - the model's|, relative to the largest |output|; None for a dense network, and
            for a model that is random.
    """

    format: str
    network: str
    bytes: int
    zipped: int
    zeros: int | None
    size: int | None
    milliseconds: float | None = None
    spread: tuple[float, float] | None = None
    accuracy: float | None = None
    memory: int | None = None
    difference: float | None = None


@dataclass(frozen=True)
class Card:
    """A report on what each exported file gains; `print(card)` shows it as a table.

    Attributes:
        entries: the files, each dense one before the sparse ones that are held against it.
        parameters, dense_parameters: parameters that are not zero, and all parameters of the dense network.
        flops, dense_flops: multiply-adds for one example by kept weights, and by all; None where not known.
        batch: examples in the batch whose latency was measured.
        machine: where it was measured.
    """

    entries: tuple[Entry, ...]
    parameters: int
    dense_parameters: int
    flops: int | None
    dense_flops: int | None
    batch: int
    machine: str

    def entry(self, format: str, network: str = "sparse") -> Entry:
        """Return the entry of one file; raise ValueError if there is none."""
        for entry in self.entries:
            if (entry.format, entry.network) == (format, network):
                return entry
        known = ", ".join(f"{entry.network} {entry.format}" for entry in self.entries)
        raise ValueError(
            f"The card has no entry for this format and network; its entries are {known}. Received: "
            f"format={format!r}, network={network!r}"
        )

    def dense_of(self, entry: Entry) -> Entry:
        """Return the dense network's entry for the plain form of the given entry's format."""
        own = [e for e in self.entries if e.network == "dense" and e.format == family(entry.format)]
        return own[0]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, and each ratio to the dense network, as JSON-serializable values."""
        return {
            "format": 1,
            "entries": [{**asdict(entry), **self._ratios(entry)} for entry in self.entries],
            **{key: value for key, value in asdict(self).items() if key != "entries"},
        }

    def to_markdown(self) -> str:
        """Return the table in Markdown, with the notes below it."""
        head, rows = self._cells()
        lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
        return "\n".join([*lines, "", *self._notes()]) + "\n"

    def _repr_html_(self) -> str:
        head, rows = self._cells()
        lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in cells) for cells in (head, *rows)]
        notes = "<br>".join(map(html.escape, self._notes()))
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table><p>{notes}</p>"

    def __str__(self) -> str:
        head, rows = self._cells()
        table = new_table()
        for i, name in enumerate(head):
            table.add_column(name, justify="left" if i < 2 else "right")
        for cells in rows:
            table.add_row(*cells)
        return "\n".join([*table_lines(table), *self._notes()])

    def _ratios(self, entry: Entry) -> dict[str, float | None]:
        dense = self.dense_of(entry)
        times = entry.milliseconds, dense.milliseconds
        return {
            "bytes_of_dense": entry.bytes / dense.bytes,
            "zipped_of_dense": entry.zipped / dense.zipped,
            "latency_of_dense": None if None in times else times[0] / times[1],  # type: ignore[operator]
        }

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        head = ["format", "network", "bytes", "zipped", "of dense", "zeros", "ms", "10-90 %", "of dense"]
        head += ["memory", "differs by", "accuracy"]
        rows = []
        for e in self.entries:
            ratios = self._ratios(e)
            latency = ratios["latency_of_dense"]
            rows.append(
                [
                    e.format,
                    e.network,
                    f"{e.bytes:,}",
                    f"{e.zipped:,}",
                    f"{ratios['bytes_of_dense']:.2f}, zipped {ratios['zipped_of_dense']:.2f}",
                    "-" if e.zeros is None or e.size is None else percentage(e.zeros, e.size),
                    "-" if e.milliseconds is None else f"{e.milliseconds:.3g}",
                    "-" if e.spread is None else f"{e.spread[0]:.3g}-{e.spread[1]:.3g}",
                    "-" if latency is None else f"{latency:.2f}",
                    "-" if e.memory is None else f"{e.memory / 1e6:.1f} MB",
                    "-" if e.difference is None else f"{e.difference:.0e}" if e.difference else "0",
                    "-" if e.accuracy is None else f"{e.accuracy:.2%}",
                ]
            )
        return head, rows

    def _notes(self) -> list[str]:
        flops = "not known" if self.flops is None else f"{self.flops:,} of {self.dense_flops:,}"
        return [
            f"nonzero parameters: {self.parameters:,} of {self.dense_parameters:,}; multiply-adds: {flops}",
            f"ms: latency of a batch of {self.batch} on {self.machine}, with measurements of the files interleaved",
            *(note for entry in self.entries if entry.network == "sparse" for note in self._shortfalls(entry)),
        ]

    def _shortfalls(self, entry: Entry) -> Iterator[str]:
        """Yield a note for each measure in which the file gains nothing, with the reason where it is known."""
        ratios = self._ratios(entry)
        if entry.zeros == 0 and entry.size == self.dense_of(entry).size:
            return
        form = FORMATS[entry.format]
        if ratios["bytes_of_dense"] > _GAIN:  # type: ignore[operator]
            yield f"{entry.format}: as large as the dense file, because {form.why_no_smaller}"
        if (ratios["latency_of_dense"] or 0.0) > _GAIN:
            yield f"{entry.format}: as slow as the dense file" + (
                form.why_no_faster and f", because {form.why_no_faster}"
            )


@contextmanager
def filled(model: Any) -> Iterator[Any]:
    """Replace each kernel's zeros with random values of the same spread as its other values; restore them on exit."""
    rng = np.random.default_rng(0)
    before = []
    try:
        for _, v in weight_paths(model):
            value = to_numpy(v)
            if value.ndim > 1 and value.dtype.kind != "i" and not value.all():
                before.append((v, value))
                kept = value[value != 0].astype("float64")
                noise = rng.normal(0.0, kept.std() if kept.size > 1 else 0.05, value.shape).astype(value.dtype)
                v.assign(np.where(value == 0, noise, value))
        yield model
    finally:
        for v, value in before:
            v.assign(value)


def measure(runs: dict[Any, Callable[[], Any]]) -> dict[Any, tuple[float, tuple[float, float]]]:
    """Measure the median latency of each function in ms, and its 10th and 90th percentiles, in interleaved rounds."""
    order = np.random.default_rng(0)
    times: dict[Any, list[float]] = {key: [] for key in runs}
    keys = list(runs)
    for _ in range(2 + _ROUNDS):
        for i in order.permutation(len(keys)):
            start = time.perf_counter()
            runs[keys[i]]()
            times[keys[i]].append(1000 * (time.perf_counter() - start))
    kept = {key: found[2:] for key, found in times.items()}
    return {
        key: (statistics.median(found), (float(np.percentile(found, 10)), float(np.percentile(found, 90))))
        for key, found in kept.items()
    }


def size_of(paths: list[Path]) -> int:
    """Return the total size in bytes of the given files and of all files in the given folders."""
    return sum(file.stat().st_size for path in paths for file in _files(path))


def zipped_size(paths: list[Path], archive: Path) -> int:
    """Write a zip archive of these files and folders to `archive`, and return its size in bytes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for path in paths:
            for file in _files(path):
                zipped.write(file, file.relative_to(path.parent))
    return archive.stat().st_size


def work(model: Any, dense: Any) -> dict[str, int | None]:
    """Count the parameters and multiply-adds of a stripped and a dense model, and return them as fields of `Card`."""
    kept, whole = _counted(model), _counted(dense)
    return {"parameters": kept[0], "dense_parameters": whole[1], "flops": kept[2], "dense_flops": whole[3]}


def _counted(model: Any) -> tuple[int, int, int | None, int | None]:
    """Count nonzero parameters, all parameters, multiply-adds of kept weights, and all multiply-adds."""
    report, values = summary(model), [to_numpy(v) for _, v in weight_paths(model)]
    total = sum(value.size for value in values)
    zeros = sum(int(np.count_nonzero(value == 0)) for value in values if value.ndim > 1)
    if report.flops is None or report.effective_flops is None or report.other_flops is None:
        return total - zeros, total, None, None
    return total - zeros, total, report.effective_flops + report.other_flops, report.flops + report.other_flops


def machine() -> str:
    """Return a description of the machine on which latency is measured."""
    return f"{platform.machine()} {platform.system()}"


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def family(format: str) -> str:
    """Return the plain form of `format`, in which the dense network is exported for comparison."""
    return {"saved_model_packed": "saved_model", "litert_sparse": "litert", "litert_int8": "litert"}.get(format, format)
