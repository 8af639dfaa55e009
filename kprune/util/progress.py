"""Progress bars, controlled by Keras's argument `verbose`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


def check_verbose(verbose: Any) -> None:
    """Raise ValueError unless `verbose` is 0 (silent), 1 or "auto" (a progress bar), or 2 (one line at the end).

    >>> check_verbose("auto")
    """
    if not ((isinstance(verbose, str) and verbose == "auto") or (isinstance(verbose, int) and verbose in (0, 1, 2))):
        raise ValueError(f'`verbose` must be 0, 1, 2 or "auto". Received: verbose={verbose!r}')


@contextmanager
def progress(
    what: str, total: int, verbose: Any, *, unit: str = "it", done: int = 0, delay: float = 0
) -> Iterator[Any]:
    """Yield a progress bar, shown if `verbose` is 1 or "auto"; if `verbose` is 2, print one line at the end.

    Args:
        what: what goes on.
        total: number of steps, of which `done` are done already.
        verbose: 0, 1, 2 or "auto", as in Keras.
        unit: what a step is.
        delay: seconds before the bar shows: one that would flash by stays off the screen.

    >>> with progress("rounds", 3, verbose=0) as bar:
    ...     for _ in range(3): _ = bar.update()
    """
    start, shown = time.perf_counter(), verbose in (1, "auto")
    with tqdm(desc=what, total=total, initial=done, unit=unit, delay=delay, disable=not shown) as bar:
        yield bar
    if verbose == 2:
        print(f"{what}: {total} of {total} {unit} in {time.perf_counter() - start:.1f} s")
