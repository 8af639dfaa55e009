"""Data sets by name, for the command line and the examples."""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

from ..runtime.distribution import local_rows, replicas
from .batches import balanced_sample

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _Download:
    """One data set of `keras.datasets`, and where Keras looks for its files."""

    classes: int
    origin: str
    folder: str
    files: dict[str, str]  # name in Keras's cache -> name at the origin


_STORAGE = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_IDX = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
_CIFAR10 = {"cifar-10-batches-py-target_archive": "cifar-10-python.tar.gz"}
_CIFAR100 = {"cifar-100-python-target_archive": "cifar-100-python.tar.gz"}
_DOWNLOADS = {
    "mnist": _Download(10, _STORAGE, "datasets", {"mnist.npz": "mnist.npz"}),
    "fashion_mnist": _Download(10, _STORAGE, "datasets/fashion-mnist", {file: file for file in _IDX}),
    "cifar10": _Download(10, _TORONTO, "datasets", _CIFAR10),
    "cifar100": _Download(100, _TORONTO, "datasets", _CIFAR100),
}

NAMES = ("digits", *_DOWNLOADS, "imagenet")
"""The names that `load` takes."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set split into a training and a test part.

    Attributes:
        name: One of `NAMES`.
        train: The training part. Either `(x, y)`, with `x` float32 of shape `(n, *input_shape)` in [0, 1]
            and `y` int32 class ids of shape `(n,)`, or, for `"imagenet"`, a `tf.data.Dataset` of such
            pairs in batches.
        test: The test part, in the same form.
        input_shape: `(height, width, channels)` of one image.
        classes: Number of classes; class ids run from 0 to `classes - 1`.
        batch_size: Examples per step.

    Example:
        >>> data = load("digits", batch_size=32)
        >>> sorted(data.fit_kwargs())
        ['batch_size', 'validation_data', 'x', 'y']
        >>> sorted(data.evaluate_kwargs())
        ['batch_size', 'x', 'y']
    """

    name: str
    train: Arrays | Iterable
    test: Arrays | Iterable
    input_shape: tuple[int, int, int]
    classes: int
    batch_size: int

    def fit_kwargs(self) -> dict[str, Any]:
        """The data arguments of `model.fit`: train on `train`, validate on `test`.

        Returns:
            `model.fit(**data.fit_kwargs(), epochs=2)` does the right thing for arrays and for batches. Of several
            processes that train together on JAX, each is given its own part of the arrays and of each batch.
        """
        inputs, test = self._inputs(self.train), self._inputs(self.test)
        # Batches come shuffled; Keras would warn that it does not shuffle them again.
        shuffle = {} if "y" in inputs else {"shuffle": False}
        return {**inputs, **shuffle, "validation_data": (test["x"], test["y"]) if "y" in test else test["x"]}

    def evaluate_kwargs(self) -> dict[str, Any]:
        """The data arguments of `model.evaluate` on `test`.

        Returns:
            `model.evaluate(**data.evaluate_kwargs())` does the right thing for arrays and for batches.
        """
        return self._inputs(self.test)

    def divisible(self) -> "Dataset":
        """The data set without the last few examples that the devices of `keras.distribution` cannot share.

        JAX divides each batch evenly among them, the last of an epoch, too. Without a distribution, and on TensorFlow,
        which can divide unevenly, it is the data set itself.

        Raises:
            ValueError: the batch size cannot be divided, or the data do not come as arrays.

        Example:
            >>> data = load("digits")
            >>> data.divisible() is data
            True
        """
        devices = replicas()
        if devices == 1:
            return self
        if not isinstance(self.train, tuple) or not isinstance(self.test, tuple):
            raise ValueError(
                f"Only arrays can be divided among {devices} devices, not folders. Received: data={self.name!r}"
            )
        if self.batch_size % devices:
            raise ValueError(
                f"`batch_size` must be a multiple of the {devices} devices. Received: batch_size={self.batch_size}"
            )

        def cut(x: np.ndarray, y: np.ndarray) -> Arrays:
            left = len(x) % devices
            if left:
                logging.warning(
                    "%s: left out %d of %d examples to divide the rest evenly among %d devices.",
                    self.name,
                    left,
                    len(x),
                    devices,
                )
            return x[: len(x) - left], y[: len(x) - left]

        return replace(self, train=cut(*self.train), test=cut(*self.test))

    def sample(self, per_class: int = 10, seed: int = 0) -> Arrays:
        """Training examples, the same number per class, for the criteria that need data.

        Args:
            per_class: Examples of each class; all of those of a class that has fewer.
            seed: Of the draw from arrays. Batches come shuffled: of these, the first examples of each class are taken.

        Returns:
            `(x, y)` as `kprune.balanced_sample` returns them. Give them to a criterion with `batches=None`: they may
            be more than one batch.

        Raises:
            ValueError: `per_class` is below 1.

        Example:
            >>> x, y = load("digits").sample(per_class=2)
            >>> x.shape, y[:4].tolist()
            ((20, 8, 8, 1), [0, 0, 1, 1])
        """
        if isinstance(self.train, tuple):
            x, y = self.train
            return balanced_sample(x, y, per_class, seed)
        if per_class < 1:
            raise ValueError(f"`per_class` must be an integer >= 1. Received: per_class={per_class!r}")
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


def load(
    name: str,
    *,
    directory: str | os.PathLike | None = None,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Dataset:
    """Loads a data set by its name.

    `"digits"` comes with scikit-learn (1437 training and 360 test images of 8x8 pixels, always the same
    split). `"mnist"`, `"fashion_mnist"`, `"cifar10"` and `"cifar100"` come through `keras.datasets`, which
    downloads a missing file into `$KERAS_HOME` or `~/.keras`. `"imagenet"` reads any folder of RGB images
    laid out as `train/<class>/*` and `val/<class>/*` (or `test/`), batch by batch.

    Args:
        name: One of `NAMES`.
        directory: For `"imagenet"` only: the folder that holds `train/` and `val/` or `test/`.
        image_size: For `"imagenet"` only: `(height, width)` in pixels; every image is resized to it.
        batch_size: Examples per step, at least 1.
        seed: For `"imagenet"` only: seed of the order of the training images.

    Returns:
        A `Dataset`: images in [0, 1] as float32 with channels last, class ids as int32.

    Raises:
        ValueError: An unknown name, a missing or superfluous argument, or a directory laid out otherwise.
        ImportError: `"digits"` without scikit-learn.
        OSError: A download that fails, or a cached file that cannot be read.

    Example:
        >>> data = load("digits")
        >>> x, y = data.train
        >>> x.shape, x.dtype.name, y.shape, y.dtype.name
        ((1437, 8, 8, 1), 'float32', (1437,), 'int32')
        >>> data.input_shape, data.classes
        ((8, 8, 1), 10)
    """
    if name not in NAMES:
        raise ValueError(f"`name` must be one of {', '.join(map(repr, NAMES))}. Received: name={name!r}")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be >= 1. Received: batch_size={batch_size!r}")
    if name == "imagenet":
        return _images(name, directory, image_size, batch_size, seed)
    for argument, value in {"directory": directory, "image_size": image_size}.items():
        if value is not None:
            raise ValueError(f"`{argument}` is only for 'imagenet'. Received: {argument}={value!r}")
    train, test, classes = _digits() if name == "digits" else _downloaded(name)
    return Dataset(name, train, test, train[0].shape[1:], classes, batch_size)


def _digits() -> tuple[Arrays, Arrays, int]:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        message = "The data set 'digits' comes with scikit-learn, which is not installed: pip install kprune[demo]"
        raise ImportError(message) from error
    images, labels = load_digits(return_X_y=True)
    x = _scaled(images.reshape(-1, 8, 8), 16)
    parts = train_test_split(x, labels.astype(np.int32), test_size=0.2, random_state=0, stratify=labels)
    x_train, x_test, y_train, y_test = parts
    return (x_train, y_train), (x_test, y_test), 10


def _downloaded(name: str) -> tuple[Arrays, Arrays, int]:
    spec = _DOWNLOADS[name]
    paths = [_keras_home() / spec.folder / file for file in spec.files]
    cached = {path for path in paths if path.exists()}
    try:
        parts = getattr(keras.datasets, name).load_data()
    except Exception as error:  # a bare Exception is what Keras raises for a failed download
        raise OSError(_explain(name, paths, cached, error)) from error
    train, test = ((_scaled(images, 255), labels.reshape(-1).astype(np.int32)) for images, labels in parts)
    return train, test, spec.classes


def _scaled(images: np.ndarray, maximum: int) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., np.newaxis]
    elif keras.config.image_data_format() == "channels_first":
        images = np.moveaxis(images, 1, -1)
    return np.divide(images, maximum, dtype=np.float32)


def _keras_home() -> Path:
    # Keras has no public way to ask for this folder, and falls back to /tmp where it cannot write.
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    return home if os.access(home, os.W_OK) else Path("/tmp/.keras")


def _explain(name: str, paths: list[Path], cached: set[Path], error: Exception) -> str:
    spec = _DOWNLOADS[name]
    reason = f"{type(error).__name__}: {error}" if type(error) is not Exception else str(error)
    reason = reason.strip().rstrip(".")
    # Keras leaves nothing behind where a download failed, so a file that is there was not readable.
    missing = [path for path in paths if not path.exists()]
    if not missing:
        suspects = [path for path in paths if path.suffix == ".gz" and _is_damaged_idx(path)] or paths
        files = ", ".join(map(str, suspects))
        return f"Could not read {name} from {files}: {reason}. Delete a damaged file to download it again."
    removed = [str(path) for path in missing if path in cached]
    note = f" (Keras removed {', '.join(removed)}: damaged, its checksum was wrong)" if removed else ""
    wanted = ", ".join(
        spec.files[path.name] + (f" (renamed to {path.name})" if spec.files[path.name] != path.name else "")
        for path in missing
    )
    return (
        f"Could not download {name}{note}: {reason}. Put {wanted} from {spec.origin} into "
        f"{missing[0].parent}, or use --dataset=digits, which needs no download."
    )


def _is_damaged_idx(path: Path) -> bool:
    """Whether a gzipped idx file ends early: 4 bytes of type and rank, the sizes, then one byte per item."""
    try:
        content = gzip.decompress(path.read_bytes())
        rank = content[3]
        sizes = struct.unpack_from(f">{rank}I", content, 4)
    except (OSError, EOFError, zlib.error, IndexError, struct.error):
        return True
    return len(content) != 4 + 4 * rank + math.prod(sizes)


def _images(
    name: str,
    directory: str | os.PathLike | None,
    image_size: tuple[int, int] | None,
    batch_size: int,
    seed: int,
) -> Dataset:
    if directory is None:
        raise ValueError(f"{name!r} needs `directory`, a folder that holds train/ and val/. Received: directory=None")
    if image_size is None or len(image_size) != 2 or min(image_size) < 1:
        raise ValueError(f"{name!r} needs `image_size`, (height, width) in pixels. Received: image_size={image_size!r}")
    root = Path(directory)
    train_folder = root / "train"
    test_folder = root / "val" if (root / "val").is_dir() else root / "test"
    if not (train_folder.is_dir() and test_folder.is_dir()):
        raise ValueError(f"`directory` must hold train/, and val/ or test/. Received: directory='{root}'")
    classes = _class_names(train_folder)
    # A class folder missing on one side would shift the class ids of the other.
    if not classes or _class_names(test_folder) != classes:
        raise ValueError(
            f"train/ and {test_folder.name}/ must hold the same class folders. Received: directory='{root}'"
        )

    def batches(folder: Path, shuffle: bool) -> Any:
        images = keras.utils.image_dataset_from_directory(
            folder, class_names=classes, image_size=tuple(image_size), batch_size=batch_size,
            shuffle=shuffle, seed=seed, data_format="channels_last", verbose=False,
        )  # fmt: skip
        return images.map(lambda x, y: (x / 255.0, y)).prefetch(2)

    train, test = batches(train_folder, True), batches(test_folder, False)
    return Dataset(name, train, test, (*image_size, 3), len(classes), batch_size)


def _class_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


__all__ = ["NAMES", "Dataset", "load"]
