"""Compare the predictions of two networks."""

from __future__ import annotations

import numpy as np


def difference(actual: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Return the largest difference relative to the largest output, or infinity if non-float values differ."""
    worst = 0.0
    numbers = [e for e in expected if e.dtype.kind in "fV" and e.size]
    scale = max([float(np.nanmax(np.abs(e.astype(np.float64)), initial=0.0)) for e in numbers], default=0.0) or 1.0
    for a, e in zip(actual, expected, strict=True):
        if a.shape != e.shape:
            return float("inf")
        if e.dtype.kind not in "fV":
            worst = max(worst, 0.0 if np.array_equal(a, e) else float("inf"))
            continue
        a, e = a.astype(np.float64), e.astype(np.float64)
        different = ~((a == e) | (np.isnan(a) & np.isnan(e)))
        found = np.abs(a[different] - e[different]).max(initial=0.0) / scale
        worst = max(worst, float("inf") if np.isnan(found) else float(found))
    return worst


def check_outputs(
    what: str, actual: list[np.ndarray], expected: list[np.ndarray], tolerance: float, steady: bool, hint: str
) -> float:
    """Return the difference; raise RuntimeError if a deterministic model's difference exceeds the tolerance."""
    worst = difference(actual, expected)
    if steady and not worst <= tolerance:
        raise RuntimeError(
            f"Export: {what} and the masked model produce different outputs, so nothing was written. {hint} "
            f"Found: relative difference={worst:.3g}, tolerance={tolerance}"
        )
    return worst
