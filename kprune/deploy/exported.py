"""The result of an export: the files, the card, and how closely the files agree with the model."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from .card import Card


@dataclass(frozen=True)
class Export:
    """The result of `kprune.export`; `print` shows the files, and `.card` shows what they gain.

    Attributes:
        files: format -> the file, or a SavedModel's folder.
        card: sizes and latency beside those of the dense network.
        difference: largest |output of a reopened file - the model's|, relative to the largest |output|; NaN for a
            model that draws random numbers which no seed of its layers decides.
    """

    files: dict[str, pathlib.Path]
    card: Card
    difference: float

    @property
    def saved_model(self) -> pathlib.Path:
        """The SavedModel's folder."""
        return self._file("saved_model")

    @property
    def keras_file(self) -> pathlib.Path:
        """The `.keras` file."""
        return self._file("keras")

    @property
    def saved_model_bytes(self) -> int:
        """The SavedModel's size in bytes."""
        return self.card.entry("saved_model").bytes

    @property
    def keras_bytes(self) -> int:
        """The `.keras` file's size in bytes."""
        return self.card.entry("keras").bytes

    @property
    def zipped_bytes(self) -> int:
        """The size in bytes of the SavedModel as a zip archive, which is its download size."""
        return self.card.entry("saved_model").zipped

    def to_dict(self) -> dict[str, Any]:
        """Return the files, the difference and the card as JSON-serializable values."""
        known = None if np.isnan(self.difference) else self.difference
        return {"files": {f: str(p) for f, p in self.files.items()}, "difference": known, "card": self.card.to_dict()}

    def to_markdown(self) -> str:
        """Return the card as a Markdown table."""
        return self.card.to_markdown()

    def _repr_html_(self) -> str:
        return self.card._repr_html_()

    def __str__(self) -> str:
        files = (f"{name} {path} ({self.card.entry(name).bytes:,} bytes)" for name, path in self.files.items())
        return f"{', '.join(files)}; largest relative difference after reopening: {self.difference:.1e}"

    def _file(self, format: str) -> pathlib.Path:
        if format not in self.files:
            raise ValueError(
                f"The export has no file in this format; its formats are {', '.join(self.files)}. Received: "
                f"format={format!r}"
            )
        return self.files[format]
