"""Tables of many training runs, with the CSV files that store them and the checks of their arguments."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TextIO, TypeVar

import numpy as np

from ..runtime.files import check_regular, write
from ..runtime.locks import Lock
from ..util.checks import check_path
from ..util.plotting import Drawable


class Run(Protocol):
    """A finished training run, which is a dataclass of strings, numbers and tuples of numbers."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def seed(self) -> int:
        """The seed of the run's initial weights and of its other random choices."""

    @property
    def key(self) -> Hashable:
        """The value that distinguishes this run from the other runs of its table."""


AnyRun = TypeVar("AnyRun", bound=Run)


@dataclass(frozen=True)
class RunsReport(Drawable, Generic[AnyRun]):
    """The base class of reports on many training runs, which are stored in `cells`."""

    cells: tuple[AnyRun, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in order."""
        return tuple(dict.fromkeys(cell.seed for cell in self.cells))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-serializable values."""
        return asdict(self)


_CONVERT: dict[str, Callable[[str], Any]] = {
    **{"str": str, "int": int, "float": float},
    "int | None": lambda text: int(text) if text else None,
    "float | None": lambda text: float(text) if text else None,
    "tuple[float, ...] | None": lambda text: tuple(map(float, text.split())) if text else None,
}
# What a column's numbers lie between; those of the other columns are at least 0.
_RANGES = {
    **dict.fromkeys(("accuracy", "best", "early_accuracy", "curve", "sparsity", "density"), (0.0, 1.0)),
    "compression": (1.0, math.inf),
    "value": (-math.inf, math.inf),
}
_MOST_ROWS = 100_000
_MOST_CHARACTERS = 2**20


class RunTable(Generic[AnyRun]):
    """The finished runs, and the CSV file that stores them along with their settings.

    Args:
        path: the file, which is read if it is there; None for none. `with table:` this process owns it (`Lock`), and
            what others have added until then is read. One of an earlier version may lack columns that have defaults.
        kind: the dataclass of a run.
        own: settings that all runs have in common, name -> value.
        others: further ones, of the user.

    Attributes:
        cells: key -> run.
        settings: name -> value, those of the user first.

    Raises:
        ValueError: a setting has the name of another column; or the file is no such table, was made with other
            settings, or is damaged.
        OSError: the file cannot be read; by `with`: another process owns it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        kind: type[AnyRun],
        own: dict[str, Any],
        others: dict[str, Any] | None,
    ):
        if path is not None:
            check_path("path", path)
        if others is not None and not isinstance(others, dict):
            raise ValueError(
                f"`settings` must be a dict that maps names to values, or None. Received: settings={others!r}"
            )
        self.path = None if path is None else Path(path)
        self.kind = kind
        self._convert = {field.name: _CONVERT[str(field.type)] for field in fields(kind)}
        for name in others or ():
            if name in own or name in self._convert:
                raise ValueError(
                    f"The table already has a column with this name: rename the setting. Received: settings={name!r}"
                )
        self.settings = {**(others or {}), **own}
        self._written = {name: "" if value is None else str(value) for name, value in self.settings.items()}
        self.columns = [*self._written, *self._convert]
        self.cells: dict[Hashable, AnyRun] = {}
        self._lock = None if path is None else Lock(path)
        self._read()

    def __enter__(self) -> RunTable[AnyRun]:
        if self._lock is not None:
            self._lock.acquire()
            try:
                self._read()
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.release()

    def add(self, cell: AnyRun) -> None:
        """Store a finished run in the table and in its file, which is replaced atomically.

        Raises:
            ValueError: a number is one that no run has, such as an accuracy of 7.
        """
        for name in self._convert:
            _number(name, getattr(cell, name))
        self.cells[cell.key] = cell
        if self.path is None:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        for cell in self.cells.values():
            values = asdict(cell)
            lists = {name: " ".join(map(str, value)) for name, value in values.items() if isinstance(value, tuple)}
            writer.writerow({**self._written, **values, **lists})
        write(self.path, text.getvalue().encode())

    def _read(self) -> None:
        if self.path is None or not self.path.exists():
            return
        received = f"Received: path={str(self.path)!r}"
        cells: dict[Hashable, AnyRun] = {}
        check_regular(self.path)
        try:
            with open(self.path, newline="", encoding="utf-8") as file:
                # Row by row: a file of a few MB may hold millions that are no runs.
                reader = csv.DictReader(_lines(file))
                self._check_columns(list(reader.fieldnames or ()), received)
                for number, row in enumerate(reader, start=1):
                    cell = self._cell(number, row, received)
                    if cell.key in cells or number > _MOST_ROWS:
                        odd = (
                            "it repeats an earlier run"
                            if cell.key in cells
                            else f"it exceeds the limit of {_MOST_ROWS:,} runs"
                        )
                        raise ValueError(f"Row {number} of the file is damaged ({odd}); delete this row. {received}")
                    cells[cell.key] = cell
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"The file is not a CSV file: {error}. Move the file, or choose another path. {received}"
            ) from error
        self.cells = cells

    def _check_columns(self, columns: list[str], received: str) -> None:
        optional = {field.name for field in fields(self.kind) if field.default is not MISSING}
        if [name for name in self.columns if name in columns or name not in optional] != columns:
            raise ValueError(
                f"A file with different columns already exists at this path; the columns must be "
                f"{', '.join(self.columns)}. Move the file, or choose another path. {received}"
            )

    def _cell(self, number: int, row: dict[str, str], received: str) -> AnyRun:
        other = [
            f"{name}={row[name]!s:.80} in the file, {now} now"
            for name, now in self._written.items()
            if row[name] != now
        ]
        if other:
            raise ValueError(
                f"The file was written with different settings: {'; '.join(other)}. Move the file, or choose another "
                f"path. {received}"
            )
        try:
            if None in row:
                raise ValueError("it has more cells than the header")
            known = {name: convert for name, convert in self._convert.items() if name in row}
            return self.kind(**{name: _number(name, convert(row[name])) for name, convert in known.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Row {number} of the file is damaged ({error!s:.200}); delete this row to repeat its run. {received}"
            ) from None


def _lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file; raise csv.Error for an overlong line without reading all of it."""
    while line := file.readline(_MOST_CHARACTERS + 1):
        if len(line) > _MOST_CHARACTERS:
            raise csv.Error(f"a line is longer than {_MOST_CHARACTERS:,} characters")
        yield line


def _number(name: str, value: Any) -> Any:
    """Return the value; raise ValueError if it is out of range for this column."""
    least, most = _RANGES.get(name, (0.0, math.inf))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not (math.isfinite(number) and least <= number <= most):
            between = f"be finite and at least {least:g}" if most == math.inf else f"be between {least:g} and {most:g}"
            raise ValueError(f"{name} must {between}, not {number}")
    return value


def check_each_once(name: str, values: Sequence[Any]) -> None:
    """Raise ValueError if there are no values or if any value occurs twice."""
    try:
        right = (
            not isinstance(values, str | bytes)
            and isinstance(values, Collection)
            and 0 < len(values) == len(set(values))
        )
    except TypeError:  # an array of none, or entries that cannot be told apart
        right = False
    if not right:
        raise ValueError(
            f"`{name}` must contain at least one entry and no duplicates. Received: {name}={values!r:.200}"
        )


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ValueError unless the seeds are integers >= 0 without duplicates."""
    check_each_once("seeds", seeds)
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"Each seed must be an integer >= 0. Received: seed={seed!r}")


def check_epochs(epochs: int) -> None:
    """Raise ValueError unless `epochs` is an integer >= 1."""
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise ValueError(f"`epochs` must be an integer >= 1. Received: epochs={epochs!r}")


def accuracies(history: dict[str, list[float]]) -> tuple[float, float]:
    """Return the last and the highest test accuracy in a training history; raise ValueError if it has none."""
    if "val_accuracy" not in history:
        raise ValueError(f"`build` must compile the model with metrics=['accuracy']. Received: metrics={list(history)}")
    found = history["val_accuracy"]
    if not all(0 <= value <= 1 for value in found):
        raise ValueError(f"An accuracy must be between 0 and 1. Received: val_accuracy={found}")
    return round(float(found[-1]), 6), round(float(max(found)), 6)


def early_stop(history: dict[str, list[float]]) -> tuple[int, float]:
    """Return the epoch with the lowest test loss in a training history, and the test accuracy after that epoch."""
    losses = np.nan_to_num(history["val_loss"], nan=np.inf)
    return int(np.argmin(losses)) + 1, round(float(history["val_accuracy"][np.argmin(losses)]), 6)


def band(
    axes: Any, at: Sequence[float], columns: Sequence[Sequence[Any]], name: str = "accuracy", **line: Any
) -> list[float]:
    """Plot and return the means of a field over the columns of runs, with a shaded band from minimum to maximum."""
    values = [[getattr(run, name) for run in column] for column in columns]
    means = [float(np.mean(column)) for column in values]
    axes.fill_between(at, list(map(min, values)), list(map(max, values)), color=line["color"], alpha=0.15, lw=0)
    axes.plot(at, means, linewidth=1.8, **line)
    return means


def runs_drawn(report: Any) -> str:
    """Describe what was trained, for how long, and with how many seeds."""
    seeds = len(report.seeds)
    drawn = "1 seed" if seeds == 1 else f"mean and range of {seeds} seeds"
    trained = " on ".join(str(report.settings[name]) for name in ("model", "dataset") if name in report.settings)
    return f"{trained}, {report.settings['epochs']} epochs, {drawn}"
