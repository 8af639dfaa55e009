"""The network of a comparison of lotteries, and its trainings: levels of lotteries, and controls on their masks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..callbacks import TakeSnapshot
from ..controls import reinitialize, shuffled
from ..data import Dataset
from ..data.rewindable import RewindableBatches
from ..lottery.levels import density
from ..lottery.rewind import RewindPoint, Snapshot, restore, snapshot
from ..lottery.ticket import Ticket
from ..masks import is_tf_keras, mask_for_pruning, masked_weights
from ..runtime.files import pack, understanding, unpack, write
from .find_ticket import Level, find_ticket
from .runs import accuracies, early_stop

# mode -> what of the network is rewound; "init" to its initial state, the others to `rewind_to`.
REWINDS = {"init": "weights", "rewind": "weights", "learning_rate": "learning_rate", "finetune": "none"}
CONTROLS = ("reinitialize", "shuffle")
_POINT = "rewind-point.npz"


class LotteryNetwork:
    """The network of a seed, which all its lotteries and controls train in turn, so that it is compiled once.

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

    def draw(self, mode: str, rewind_to: str | int | float, **options: Any) -> None:
        """A lottery, from its first level that is not finished."""
        folder, point = self.folder / mode, "init" if mode == "init" else rewind_to

        def train(model: Any, level: Level) -> dict[str, float]:
            taker = TakeSnapshot(point)
            result = self._fit(level.initial_epoch, [*level.callbacks, *([] if level.number else [taker])])
            if taker.snapshot is not None:
                write(folder / _POINT, pack(taker.snapshot.to_arrays(), {}))
            self.keep(mode, mode, level.number, result)
            return result

        restore(self.model, self.dense, self.begin)
        ticket = find_ticket(
            self.model, train, rewind_to=point, rewind=REWINDS[mode], folder=folder, verbose=0, **options
        )
        with understanding(str(folder)):
            for result in ticket.about["results"]:  # a row may have been deleted
                self.keep(mode, mode, result["level"], result)

    def control(self, mode: str, masks_of: str, level: int, rewind_to: str | int | float) -> None:
        """The control of a level of a lottery that is finished."""
        masks = Ticket.load(self.folder / masks_of / f"level-{level}.npz").masks
        draws = self.seed + 1000 * level
        begin, first = self.begin, 0
        if mode == "shuffle":
            masks = shuffled(masks, draws)
            file = self.folder / masks_of / _POINT
            with understanding(str(file)):
                begin = Snapshot.from_arrays(unpack(file.read_bytes(), str(file))[0])
            if masks_of != "init":
                first = RewindPoint.of(rewind_to).in_epochs(self.epochs, len(self._batches()))
        restore(self.model, masks, begin)
        if mode == "reinitialize":
            reinitialize(self.model, draws, weights="all")
        self.keep(mode, masks_of, level, self._fit(first, []))

    def _fit(self, initial_epoch: int, callbacks: list[Any]) -> dict[str, float]:
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
        return {"density": kept, "accuracy": accuracy, "best": best, "seconds": seconds, **early}

    def _batches(self) -> RewindableBatches:
        x, y = self.data.train
        return RewindableBatches(x, y, self.data.batch_size, self.model, self.seed)
