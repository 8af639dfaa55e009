"""Data whose order follows the optimizer's step count, so that it is rewound and resumed with the model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from ..runtime.distribution import local_rows
from ..runtime.optimizers import batches_taken
from ..util.checks import check_integer


class RewindableBatches(keras.utils.PyDataset):
    """Batches of arrays in a random order that is determined by the optimizer's state.

    When it has taken t batches (as many as steps, unless it accumulates gradients), the next is that of place t mod n
    in the order of pass t // n, n = ceil(len(x) / batch_size); the order of a pass is drawn from the seed and its
    number. So after a rewind, and in a process that goes on from a backup, the data come as they came the first time
    from there on. Give `fit` of a Keras 3 model the object itself and `shuffle=False`; `fit` of a tf_keras model its
    `to_tf_data()`.

    Args:
        x: array, first axis = samples; or a list or dict of some.
        y: array of as many samples.
        batch_size: samples per batch; the last batch of a pass may be smaller. Under `keras.distribution` that is the
            batch of all devices, which have to share it evenly, the last one too. Of several processes each gives its
            own part: the distribution is to be made with `auto_shard_dataset=False`.
        model: the compiled model that is trained with them.
        seed: of the orders.

    Raises:
        ValueError: an argument is wrong; or, when used, batches are asked for in another order (`fit` shuffles, or ends
            its epochs elsewhere because of `steps_per_epoch`).

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> batches = kprune.RewindableBatches(np.ones((10, 2)), np.ones((10, 1)), batch_size=4, model=model, seed=1)
    >>> _ = model.fit(batches, epochs=2, shuffle=False, verbose=0)
    >>> len(batches)
    3
    """

    def __init__(self, x: Any, y: Any, batch_size: int, model: Any, seed: int = 0):
        super().__init__()
        shapes = [getattr(array, "shape", None) for array in keras.tree.flatten((x, y))]
        sizes = {shape[0] for shape in shapes if shape}
        if not all(shapes) or len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                "`x` and `y` must be arrays with the same number of examples, at least one (`x` may also be a list or "
                f"dict of arrays). Received: shapes={shapes[:4]}"
            )
        check_integer("batch_size", batch_size, 1)
        check_integer("seed", seed, 0)
        if getattr(model, "optimizer", None) is None:
            raise ValueError(
                "The model must be compiled first, because the order of the batches follows its optimizer's step "
                f"count. Received: model={model!r}"
            )
        self.arrays, self.size, self.batch_size, self.model, self.seed = (x, y), sizes.pop(), batch_size, model, seed
        self.on_epoch_begin()

    def __len__(self) -> int:
        return math.ceil(self.size / self.batch_size)

    def on_epoch_begin(self) -> None:
        """Start an epoch at the optimizer's current step; Keras calls this before the batches of the epoch."""
        # Not in __getitem__: in the JAX trainer the optimizer cannot be read while an epoch runs.
        self._begin, self._next = batches_taken(self.model.optimizer), 0

    def __getitem__(self, index: int) -> Any:
        if index not in (0, self._next):
            raise ValueError(
                "All batches must be read in order in each epoch: call fit with shuffle=False and without "
                f"steps_per_epoch. Received: index={index}"
            )
        self._next = index + 1
        return self.after(self._begin + index)

    def after(self, taken: int) -> Any:
        """Return the batch that follows the first `taken` batches, as (x, y)."""
        turn, place = divmod(taken, len(self))
        order = np.random.default_rng([self.seed, turn]).permutation(self.size)
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        chosen = chosen[local_rows(len(chosen))]
        return keras.tree.map_structure(lambda array: array[chosen], self.arrays)

    def to_tf_data(self) -> Any:
        """Return endless batches from the model's current position, for one `fit` call of a tf_keras model.

        tf_keras does not tell its data when an epoch begins. So the dataset begins at the step where the optimizer is
        when this is called, as suits each level of `kprune.find_ticket`; a rewind inside that `fit` (`LotteryTicket`),
        or a backup that it restores, does not take it along.

        Returns:
            A `tf.data.Dataset`, for `fit(dataset, steps_per_epoch=len(batches))`.

        >>> import keras, kprune
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> batches = kprune.RewindableBatches(np.ones((10, 2)), np.ones((10, 1)), batch_size=4, model=model)
        >>> [len(x) for x, _ in batches.to_tf_data().take(5)]
        [4, 4, 2, 4, 4]
        """
        import tensorflow as tf

        begin, arrays = (
            batches_taken(self.model.optimizer),
            keras.tree.lists_to_tuples(self.arrays),
        )  # a list would be one tensor

        def batches() -> Iterator[Any]:
            for taken in itertools.count(begin):
                yield keras.tree.lists_to_tuples(self.after(taken))

        signature = keras.tree.map_structure(lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), arrays)
        return tf.data.Dataset.from_generator(batches, output_signature=signature)
