"""What reports that can be drawn share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawable:
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
        from .plotting import written

        return written(path, self._draw)
