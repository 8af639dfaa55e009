"""The network of a lottery comparison, with its training runs for the levels of lotteries and controls."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..controls import reinitialize, shuffled
from ..data import Dataset
from ..data.rewindable import RewindableBatches
from ..lottery.levels import Lottery, State, density, rewind_point
from ..lottery.rewind import RewindPoint, restore, snapshot
from ..lottery.ticket import Ticket
from ..masks import is_tf_keras, mask_for_pruning, masked_weights
from ..runtime.files import understanding
from .find_ticket import watch
from .runs import accuracies, early_stop

CONTROLS = ("reinitialize", "shuffle")


class LotteryNetwork:
    """The network of one seed, which all lotteries and controls train in turn so that it is compiled only once.

    Args:
        model: a compiled Keras 3 model, or a tf_keras one that `kprune.mask` returned.
        data: arrays to train and test on.
        epochs: of a whole training.
        seed: of the order of the examples and the controls' draws.
        folder: for the states and tickets of the lotteries.
        keep: is given the mode, the mode whose masks it has, the level and the numbers of each training.

    Raises:
        ValueError: the model is of tf_keras and has no masks, or has nothing to mask.
    """

    def __init__(
        self,
        model: Any,
        data: Dataset,
        epochs: int,
        seed: int,
        folder: Path,
        keep: Callable[[str, str, int, dict[str, Any]], None],
    ):
        mask_for_pruning(model)
        self.model, self.data, self.epochs, self.seed, self.folder, self.keep = model, data, epochs, seed, folder, keep
        self.begin = snapshot(model)
        self.dense = {weight.path: np.ones(weight.shape, bool) for weight in masked_weights(model)}

    def draw(self, mode: str, lottery: Lottery) -> None:
        """Run a lottery, starting at its first unfinished level."""
        folder = self.folder / mode
        restore(self.model, self.dense, self.begin)
        state = State.load(folder, lottery, self.model)
        for level in lottery.run(self.model, state):
            result = self._fit(level.initial_epoch, watch(lottery, state))
            self.keep(mode, mode, level.number, result)
            state.end(level, result, folder, lottery, self.model)
        with understanding(str(folder)):
            for result in state.results:  # a row may have been deleted
                self.keep(mode, mode, result["level"], result)

    def control(self, mode: str, masks_of: str, level: int, point: RewindPoint) -> None:
        """Train the control for a finished level of a lottery."""
        masks = Ticket.load(self.folder / masks_of / f"level-{level}.npz").masks
        draws = self.seed + 1000 * level
        begin, first = self.begin, 0
        if mode == "shuffle":
            masks, begin = shuffled(masks, draws), rewind_point(self.folder / masks_of)
            first = point.in_epochs(self.epochs, len(self._batches()))
        restore(self.model, masks, begin)
        if mode == "reinitialize":
            reinitialize(self.model, draws, weights="all")
        self.keep(mode, masks_of, level, self._fit(first, []))

    def _fit(self, initial_epoch: int, callbacks: list[Any]) -> dict[str, Any]:
        start, batches = time.perf_counter(), self._batches()
        keras_2 = is_tf_keras(self.model)
        data = {"x": batches.to_tf_data(), "steps_per_epoch": len(batches)} if keras_2 else {"x": batches}
        fitted = self.model.fit(
            **data,
            epochs=self.epochs,
            initial_epoch=initial_epoch,
            shuffle=False,
            callbacks=callbacks,
            validation_data=self.data.test,
            validation_batch_size=self.data.batch_size,
            verbose=0,
        )
        accuracy, best = accuracies(fitted.history)
        seconds = round(time.perf_counter() - start, 2)
        kept = density(masked_weights(self.model))
        epochs, early_accuracy = early_stop(fitted.history)
        early = {"early_stop": (initial_epoch + epochs) * len(batches), "early_accuracy": early_accuracy}
        curve = [round(float(value), 6) for value in fitted.history["val_accuracy"]]
        return {"density": kept, "accuracy": accuracy, "best": best, "seconds": seconds, **early, "curve": curve}

    def _batches(self) -> RewindableBatches:
        x, y = self.data.train
        return RewindableBatches(x, y, self.data.batch_size, self.model, self.seed)
