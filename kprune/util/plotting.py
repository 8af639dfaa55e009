"""Figures drawn with matplotlib objects rather than pyplot, so that no display or global state is needed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .checks import check_path
from .tables import Printed
from .whole import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOTAL, KEPT, GONE, TEXT = "#d5dbe3", "#2f6db5", "#c62828", "#333333"
LINES = ("#8a94a3", "#d9730d", "#2a9d8f", "#8e5bb5", "#2f6db5", "#c62828", "#b8860b", "#333333")
_STYLES = ("-", "--", "-.", ":")
_LABEL_WIDTH = 42
FILE_TYPES = (".png", ".svg", ".pdf")


def written(path: str | os.PathLike[str] | None, make: Callable[[], Figure]) -> Figure:
    """Draw a figure with `make` and write it to `path`, if given; check the file extension of `path` before drawing."""
    if path is not None:
        check_path("path", path)
        if os.path.splitext(path)[1].lower() not in FILE_TYPES:
            raise ValueError(f"`path` must end in .png, .svg or .pdf. Received: path={os.fspath(path)!r}")
    figure = make()
    if path is not None:
        write_whole(path, figure.savefig)
    return figure


def new_axes(width: float, height: float, dpi: int = 144) -> tuple[Figure, Any]:
    """Create a figure of the given size in inches, and its axes; the first call imports matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    return figure, figure.add_subplot()


class Drawable(Printed):
    """A report with a figure, which subclasses draw in `_draw`."""

    def _draw(self) -> Figure:
        raise NotImplementedError

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the figure that the class describes.

        Args:
            path: where to write it, if anywhere: .png, .svg or .pdf.

        Returns:
            The `matplotlib.figure.Figure`. No display is needed and no state of pyplot is touched.

        Raises:
            ValueError: the path ends in something else.
        """
        return written(path, self._draw)


def plain_axes(axes: Any) -> None:
    """Style the axes with two spines and a light grid; call after all drawing, when the scales are set."""
    from matplotlib.ticker import NullFormatter

    for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
        if axis.get_scale() == "log":
            # Matplotlib's own would write 6 x 10^-1 between the decades, whatever the unit.
            axis.set_minor_formatter(axis.get_major_formatter() if high < 20 * low else NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)


def percent() -> Any:
    """Return a tick formatter for fractions in plain percent; matplotlib's own formatter writes 0.001 as 0%."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{100 * value:.3g}%")


def line_of(name: str, known: Sequence[str]) -> dict[str, str]:
    """Return the color and style of the line `name`, which depend only on its position in `known`.

    >>> line_of("snip", ["random", "snip"])
    {'color': '#d9730d', 'linestyle': '-'}
    """
    place = list(known).index(name)
    return {"color": LINES[place % len(LINES)], "linestyle": _STYLES[place // len(LINES) % len(_STYLES)]}


def short_paths(paths: list[str]) -> list[str]:
    """Return the paths without their common folders, with long ones shortened in the middle.

    >>> short_paths(["net/conv1/kernel", "net/conv2/kernel"])
    ['conv1/kernel', 'conv2/kernel']
    """
    parts = [path.split("/") for path in paths]
    folders = zip(*(part[:-2] for part in parts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, folders))
    short = ["/".join(part[shared:]) for part in parts]
    half = (_LABEL_WIDTH - 3) // 2
    return [path if len(path) <= _LABEL_WIDTH else f"{path[:half]}...{path[-half:]}" for path in short]
