"""A dataset for training and testing, as arrays or as batches."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from absl import logging

from ..runtime.distribution import local_rows, replicas
from ..util.checks import check_integer
from .batches import balanced_sample

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset split into a training and a test part.

    Attributes:
        name: One of `kprune.data.NAMES`, or the name of the file or folder.
        train: The training part. Either `(x, y)`, with `x` float32 of shape `(n, *input_shape)`, images in [0, 1],
            and `y` int32 class ids of shape `(n,)`, or, for folders of images, a `tf.data.Dataset` of such
            pairs in batches.
        test: The test part, in the same form.
        input_shape: Of one example; `(height, width, channels)` of an image.
        classes: Number of classes; class ids run from 0 to `classes - 1`.
        batch_size: Examples per step.

    Example:
        >>> import kprune
        >>> data = kprune.data.load("digits", batch_size=32)
        >>> sorted(data.fit_kwargs())
        ['batch_size', 'validation_data', 'x', 'y']
        >>> sorted(data.evaluate_kwargs())
        ['batch_size', 'x', 'y']
    """

    name: str
    train: Arrays | Iterable
    test: Arrays | Iterable
    input_shape: tuple[int, ...]
    classes: int
    batch_size: int

    def fit_kwargs(self) -> dict[str, Any]:
        """Return the data arguments of `model.fit`, to train on `train` and validate on `test`.

        Returns:
            `model.fit(**data.fit_kwargs(), epochs=2)` does the right thing for arrays and for batches. Of several
            processes that train together on JAX, each is given its own part of the arrays and of each batch.
        """
        inputs, test = self._inputs(self.train), self._inputs(self.test)
        # Batches come shuffled; Keras would warn that it does not shuffle them again.
        shuffle = {} if "y" in inputs else {"shuffle": False}
        return {**inputs, **shuffle, "validation_data": (test["x"], test["y"]) if "y" in test else test["x"]}

    def evaluate_kwargs(self) -> dict[str, Any]:
        """Return the data arguments of `model.evaluate` for `test`.

        Returns:
            `model.evaluate(**data.evaluate_kwargs())` does the right thing for arrays and for batches.
        """
        return self._inputs(self.test)

    def divisible(self) -> "Dataset":
        """Return the dataset without its last few examples, so that the training devices share the rest evenly.

        JAX divides each batch evenly among them, the last of an epoch, too. Without a distribution, and on TensorFlow,
        which can divide unevenly, it is the dataset itself.

        Raises:
            ValueError: the batch size cannot be divided, or the data do not come as arrays.

        Example:
            >>> import kprune
            >>> data = kprune.data.load("digits")
            >>> data.divisible() is data
            True
        """
        devices = replicas()
        if devices == 1:
            return self
        if not isinstance(self.train, tuple) or not isinstance(self.test, tuple):
            raise ValueError(
                f"Data read from a folder cannot be divided among {devices} devices; only arrays can. Received: "
                f"data={self.name!r}"
            )
        if self.batch_size % devices:
            raise ValueError(
                f"`batch_size` must be a multiple of the number of devices, {devices}. Received: "
                f"batch_size={self.batch_size}"
            )

        def cut(x: np.ndarray, y: np.ndarray) -> Arrays:
            left = len(x) % devices
            if left:
                logging.warning(
                    "%s: dropped %d of %d examples so that the rest divide evenly among %d devices.",
                    self.name,
                    left,
                    len(x),
                    devices,
                )
            return x[: len(x) - left], y[: len(x) - left]

        return replace(self, train=cut(*self.train), test=cut(*self.test))

    def sample(self, per_class: int = 10, seed: int = 0) -> Arrays:
        """Return a class-balanced sample of the training examples, for criteria that need data.

        Args:
            per_class: Examples of each class; all of those of a class that has fewer.
            seed: Of the draw from arrays. Batches come shuffled: of these, the first examples of each class are taken.

        Returns:
            `(x, y)` as `kprune.balanced_sample` returns them. Give them to a criterion with `batches=None`: they may
            be more than one batch.

        Raises:
            ValueError: `per_class` is not an integer >= 1.

        Example:
            >>> import kprune
            >>> x, y = kprune.data.load("digits").sample(per_class=2)
            >>> x.shape, y[:4].tolist()
            ((20, 8, 8, 1), [0, 0, 1, 1])
        """
        if isinstance(self.train, tuple):
            x, y = self.train
            return balanced_sample(x, y, per_class, seed)
        check_integer("per_class", per_class, 1)
        missing = np.full(self.classes, per_class)
        images, labels = [], []
        for x, y in self.train:
            for image, label in zip(np.asarray(x), np.asarray(y), strict=True):
                if missing[label] > 0:
                    missing[label] -= 1
                    images.append(image)
                    labels.append(label)
            if not missing.any():
                break
        return balanced_sample(np.stack(images), np.stack(labels), per_class, seed)

    def _inputs(self, part: Arrays | Iterable) -> dict[str, Any]:
        if isinstance(part, tuple):
            rows = local_rows(self.batch_size)
            share = rows.stop - rows.start
            x, y = (array[rows.start // share :: self.batch_size // share] for array in part)
            return {"x": x, "y": y, "batch_size": share}
        # Keras 2 refuses a batch_size next to data that comes in batches.
        return {"x": part}
