"""The report on the kept entries of each weight and on the multiply-adds that pruning saves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..flops import kernel_uses
from ..masks import (
    DEFAULT_WEIGHTS,
    KNOWN_WEIGHTS,
    Library,
    check_leaks,
    followers,
    library_of,
    masked_weights,
    unique_paths,
)
from ..masks.built import check_built
from ..masks.layout import layout_in
from ..util.tables import Printed, new_table, printable, table_lines
from . import quantized


@dataclass(frozen=True)
class Row:
    """The kept entries and the multiply-adds of one weight.

    Attributes:
        path: its unique name in the model, as in `kprune.masked_weights`.
        layer: class name of the layer that owns it.
        shape: its shape (Keras's: kernels HWIO, dense in x out).
        size: number of entries.
        zeros: number of pruned entries; in a model without masks, of entries that are 0.
        flops: multiply-adds for one example if nothing were pruned; None if not known.
        effective_flops: multiply-adds for one example by the kept entries only; None if not known.
        dead_channels: number of output channels (of a recurrent kernel: of its gates) whose every weight is zero.
    """

    path: str
    layer: str
    shape: tuple[int, ...]
    size: int
    zeros: int
    flops: int | None
    effective_flops: int | None
    dead_channels: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return self.zeros / self.size if self.size else 0.0

    @property
    def density(self) -> float:
        """Fraction of kept entries: 1 - sparsity."""
        return 1 - self.sparsity

    @property
    def collapsed(self) -> bool:
        """Whether every entry is pruned."""
        return 0 < self.size == self.zeros

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-serializable values."""
        extra = {"sparsity": self.sparsity, "density": self.density, "collapsed": self.collapsed}
        return {**asdict(self), "shape": list(self.shape), **extra}


@dataclass(frozen=True)
class Summary(Printed):
    """The result of `kprune.summary`, with totals over the rows; `print(summary)` shows a table.

    Attributes:
        rows: one `Row` per weight, in model order.
        masked: whether the zeros are those of masks (otherwise they are counted in the weights themselves).
        other_size: number of all other parameters: biases, normalization, kernels without a row.
        other_flops: multiply-adds for one example by kernels without a row; None if not known.
        note: why multiply-adds are not known, or "".
        followers: path -> (pruned entries, entries) of each bias, gamma and beta that is masked with its channels; they
            count among the other parameters, and in no total.
        quantized: paths of the rows of a masked model whose zeros are those of a kernel that was quantized.
    """

    rows: tuple[Row, ...]
    masked: bool
    other_size: int
    other_flops: int | None
    note: str = ""
    followers: dict[str, tuple[int, int]] = field(default_factory=dict)
    quantized: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of entries."""
        return sum(row.size for row in self.rows)

    @property
    def zeros(self) -> int:
        """Number of zeros."""
        return sum(row.zeros for row in self.rows)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return self.zeros / self.size if self.size else 0.0

    @property
    def sparsity_of_all(self) -> float:
        """The rows' zeros as a fraction of all parameters of the model, including those without a row."""
        total = self.size + self.other_size
        return self.zeros / total if total else 0.0

    @property
    def density(self) -> float:
        """Fraction of kept entries: 1 - sparsity."""
        return 1 - self.sparsity

    @property
    def compression(self) -> float:
        """The compression ratio, 1 / density; infinite if nothing is kept."""
        return self.size / (self.size - self.zeros) if self.size > self.zeros else float("inf") if self.size else 1.0

    @property
    def flops(self) -> int | None:
        """Multiply-adds per example if nothing were pruned; None if unknown for any row."""
        return _sum_known(row.flops for row in self.rows)

    @property
    def effective_flops(self) -> int | None:
        """Multiply-adds per example of the kept entries only; None if unknown for any row."""
        return _sum_known(row.effective_flops for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the rows and totals as JSON-serializable values; an infinite compression becomes None."""
        totals = ("size", "zeros", "sparsity", "sparsity_of_all", "density", "flops", "effective_flops")
        return {
            "rows": [row.to_dict() for row in self.rows],
            **{name: getattr(self, name) for name in totals},
            "compression": self.compression if np.isfinite(self.compression) else None,
            "masked": self.masked,
            "other_size": self.other_size,
            "other_flops": self.other_flops,
            "note": self.note,
            "followers": {path: list(counts) for path, counts in self.followers.items()},
            "quantized": list(self.quantized),
        }

    def __str__(self) -> str:
        table = new_table(show_footer=True)
        totals = _cells(self.size, self.zeros, self.flops, self.effective_flops)
        for header, footer in zip(("weight", "layer", "shape"), ("total", "", ""), strict=True):
            table.add_column(header, footer)
        for header, footer in zip(("size", "zeros", "sparsity", "mult-adds", "of these left"), totals, strict=True):
            table.add_column(header, footer, justify="right")
        table.add_column("", f"{self.compression:.4g}x compression")
        for row in self.rows:
            dead = f"{row.dead_channels} dead channel{'s' * (row.dead_channels != 1)}" if row.dead_channels else ""
            numbers = _cells(row.size, row.zeros, row.flops, row.effective_flops)
            shape = " x ".join(map(str, row.shape))
            table.add_row(row.path, row.layer, shape, *numbers, "COLLAPSED" if row.collapsed else dead)
        lines = [
            *table_lines(table),
            f"zeros are counted in the {'masks' if self.masked else 'weights themselves (no masks)'}"
            f"{' and in the quantized kernels themselves' if self.quantized else ''}; "
            "mult-adds are multiply-adds for one example",
            f"other parameters: {self.other_size:,}, with {_count(self.other_flops)} mult-adds; "
            f"{percentage(self.zeros, self.size + self.other_size)} of all {self.size + self.other_size:,} parameters "
            "are pruned",
        ]
        if self.followers:
            zeros, size = (sum(counts) for counts in zip(*self.followers.values(), strict=True))
            lines.append(
                f"pruned with their channels: {zeros:,} of {size:,} entries of biases and normalization layers"
            )
        return "\n".join([*lines, *([f"multiply-adds unknown: {printable(self.note)}"] if self.note else [])])


def summary(model: Any) -> Summary:
    """Count the kept entries of each masked or quantized weight of a model, or of each kernel if there are no masks.

    Kernels that were quantized keep their zeros, not their masks.

    sparsity = zeros / size; density = 1 - sparsity; compression = 1 / density.
    flops = uses x size and effective_flops = uses x kept entries, where `uses` is how often an entry is multiplied for
    one example: positions of a dense layer's output, pixels of a convolution's, time steps of a recurrent layer; see
    `kprune.flops`. Products of activations, as in attention, have no weights and are not counted. The model runs
    once on shapes only; nothing in it changes.

    Args:
        model: a built Keras 3 or tf_keras model, masked or plain: stripped, for example, or loaded from a file.

    Returns:
        `Summary`: `rows`, totals, `to_dict()`; its str is a table. Multiply-adds are None ("?") where an input's
        shape is not fixed, or a layer is not one of Keras's own kinds.

    Raises:
        ValueError: not a model of either Keras, or one that is not built.
        RuntimeError: training has given pruned entries values.

    >>> import keras, kprune
    >>> conv = keras.layers.Conv2D(4, 3, padding="same", name="conv")
    >>> model = keras.Sequential([keras.Input((5, 5, 2)), conv], name="net")
    >>> _ = kprune.prune(model, "magnitude", sparsity=0.75)
    >>> report = kprune.summary(model)
    >>> report.size, report.zeros, report.sparsity, report.compression
    (72, 54, 0.75, 4.0)
    >>> report.flops, report.effective_flops  # 5 * 5 pixels x (72, 18) weights
    (1800, 450)
    """
    return summary_of(model)


def summary_of(model: Any, known_uses: tuple[dict[int, int | None], str] | None = None) -> Summary:
    """Return the `summary` of a model; `known_uses` is what `kernel_uses` returned for it earlier."""
    masked = masked_weights(model)
    check_built(model)
    check_leaks(model, masked)
    uses, note = known_uses or kernel_uses(model)
    owned: dict[int, tuple[Any, Any]] = {}
    library = library_of(model)
    for layer, v in library.owned_weights(model):
        owned.setdefault(id(v), (layer, v))
    inside = {id(w.variable) for w in masked}
    kernels = [
        (layer, v)
        for layer, v in owned.values()
        if id(v) not in inside and is_default(library, layer, v) and (not masked or quantized.holds_integers(v))
    ]
    paths = unique_paths([*(w.path for w in masked), *(library.weight_path(v) for _, v in kernels)])[len(masked) :]
    listed = [
        *((w.path, w.variable, w.kept()) for w in masked),
        *((path, v, quantized.kept(layer, v)) for path, (layer, v) in zip(paths, kernels, strict=True)),
    ]
    if masked and kernels:
        order = list(owned)
        listed.sort(key=lambda one: order.index(id(one[1])))
    rows = []
    for path, v, kept in listed:
        layer, _ = owned[id(v)]
        rows.append(_row(path, layer, v, kept, uses.get(id(v))))
    inside = {id(v) for _, v, _ in listed}
    others = [(layer, v) for layer, v in owned.values() if id(v) not in inside]
    other_flops = _sum_known(
        None if (times := uses.get(id(v))) is None else times * size_of(v)
        for layer, v in others
        if library.weight_name(layer, v) in KNOWN_WEIGHTS and len(v.shape) > 1
    )
    if not note and (unknown := sorted({row.layer for row in rows if row.flops is None})):
        note = f"kprune cannot tell how often a kernel of {', '.join(unknown)} is used"
    follow = {f.path: (f.size - int(f.kept().sum()), f.size) for f in followers(model)}
    other_size = sum(size_of(v) for _, v in others)
    return Summary(tuple(rows), bool(masked), other_size, other_flops, note, follow, tuple(paths if masked else ()))


def weight_paths(model: Any) -> list[tuple[str, Any]]:
    """List each weight of a built model once, as a tuple of its path in `summary` and its variable."""
    library = library_of(model)
    owned = {id(v): v for _, v in library.owned_weights(model)}
    return [(library.weight_path(v), v) for v in owned.values()]


def is_default(library: Library, layer: Any, v: Any) -> bool:
    """Return whether a weight is of a kind that `kprune.mask` masks by default, even if this one is frozen."""
    # Whether a weight trains says nothing about its zeros.
    if library.weight_name(layer, v) not in DEFAULT_WEIGHTS:
        return False
    return library.holds_kernel(layer, v) or quantized.is_packed(layer, v)


def _row(path: str, layer: Any, variable: Any, kept: np.ndarray, uses: int | None) -> Row:
    n_kept = int(np.count_nonzero(kept))
    whole = variable if kept.shape == tuple(variable.shape) else kept  # a 4-bit kernel is packed
    outputs = layout_in(layer, whole).canonical(kept)
    return Row(
        path=path,
        layer=type(layer).__name__.removeprefix("Masked"),
        shape=tuple(int(d) for d in kept.shape),
        size=kept.size,
        zeros=kept.size - n_kept,
        flops=None if uses is None else uses * kept.size,
        effective_flops=None if uses is None else uses * n_kept,
        dead_channels=int(np.count_nonzero(~outputs.any(axis=tuple(range(outputs.ndim - 1))))),
    )


def size_of(v: Any) -> int:
    """Return the number of entries of a variable."""
    return math.prod(int(d) for d in v.shape)


def _sum_known(numbers: Iterable[int | None]) -> int | None:
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total


def _cells(size: int, zeros: int, flops: int | None, left: int | None) -> list[str]:
    return [f"{size:,}", f"{zeros:,}", percentage(zeros, size), _count(flops), _count(left)]


def percentage(zeros: int, size: int) -> str:
    """Format the sparsity, rounded down so that "100.00%" never appears if any entry is kept."""
    return f"{10_000 * zeros // size / 100 if size else 0.0:.2f}%"


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"
