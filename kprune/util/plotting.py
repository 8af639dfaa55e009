"""Figures, drawn on matplotlib objects: no pyplot, so no display, no global state, nothing to close."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .checks import check_path
from .tables import Printed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOTAL, KEPT, GONE, TEXT = "#d5dbe3", "#2f6db5", "#c62828", "#333333"
LINES = ("#8a94a3", "#d9730d", "#2a9d8f", "#8e5bb5", "#2f6db5", "#c62828", "#b8860b", "#333333")
_LABEL_WIDTH = 42
FILE_TYPES = (".png", ".svg", ".pdf")


def written(path: str | os.PathLike[str] | None, make: Callable[[], Figure]) -> Figure:
    """The figure that `make` draws, written to `path` if given; ValueError first if `path` has another ending."""
    if path is not None:
        check_path("path", path)
        if os.path.splitext(path)[1].lower() not in FILE_TYPES:
            raise ValueError(f"`path` must end in .png, .svg or .pdf. Received: path={os.fspath(path)!r}")
    figure = make()
    if path is not None:
        figure.savefig(path)
    return figure


def new_axes(width: float, height: float, dpi: int = 144) -> tuple[Figure, Any]:
    """A figure of so many inches and its axes; matplotlib is imported when the first one is drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    return figure, figure.add_subplot()


class Drawable(Printed):
    """A report with a figure; a subclass says by `_draw` what it shows."""

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
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)


def short_paths(paths: list[str]) -> list[str]:
    """The paths without the folders that all share, the middle of long ones cut out.

    >>> short_paths(["net/conv1/kernel", "net/conv2/kernel"])
    ['conv1/kernel', 'conv2/kernel']
    """
    parts = [path.split("/") for path in paths]
    folders = zip(*(part[:-2] for part in parts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, folders))
    short = ["/".join(part[shared:]) for part in parts]
    half = (_LABEL_WIDTH - 3) // 2
    return [path if len(path) <= _LABEL_WIDTH else f"{path[:half]}...{path[-half:]}" for path in short]
