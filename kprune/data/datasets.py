"""Datasets for the command line and the examples, loaded by name."""

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from ..util.checks import check_integer, did_you_mean
from .dataset import Arrays, Dataset
from .own import from_csv, from_folder, from_npz, scaled


@dataclass(frozen=True)
class _Download:
    """One dataset of `keras.datasets`, and where Keras looks for its files."""

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


def load(
    name: str,
    *,
    directory: str | os.PathLike | None = None,
    image_size: tuple[int, int] | None = None,
    target: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Dataset:
    """Load a dataset by name, or your own dataset from a file or folder.

    `"digits"` comes with scikit-learn (1437 training and 360 test images of 8x8 pixels, always the same
    split). `"mnist"`, `"fashion_mnist"`, `"cifar10"` and `"cifar100"` come through `keras.datasets`, which
    downloads a missing file into `$KERAS_HOME` or `~/.keras`. `"imagenet"` reads any folder of RGB images
    laid out as `train/<class>/*` and `val/<class>/*` (or `test/`), batch by batch.

    Of your own, with classes to tell apart:

    - `"file.npz"` holds x_train, y_train, x_test and y_test. `y` are class ids from 0 on. uint8 is divided by 255, and
      uint8 of shape (n, height, width) are images of one channel; all else is taken as it is.
    - `"file.csv"` has a header and a column `target`; its different values, sorted, are the classes. The other columns
      must be numbers, and are taken as they are. A fifth of each class is the test part, always the same one.
    - a folder is that of `"imagenet"`, or holds `<class>/*` alone: then a fifth is the test part, always the same one.

    Args:
        name: One of `NAMES`, or the path of a file or folder.
        directory: For `"imagenet"` only: the folder that holds `train/` and `val/` or `test/`.
        image_size: For folders of images only: `(height, width)` in pixels; every image is resized to it.
        target: For a `.csv` only: the name of the column that holds the classes.
        batch_size: Examples per step, at least 1.
        seed: For folders of images only: seed of the order of the training images.

    Returns:
        A `Dataset`: float32 (images in [0, 1], channels last), class ids as int32.

    Raises:
        ValueError: An unknown name, a missing or superfluous argument, a directory laid out otherwise, or a file that
            holds something else; it says what.
        ImportError: `"digits"` without scikit-learn, or a folder without TensorFlow, which reads images.
        OSError: A download that fails, or a file that is not there or cannot be read.

    Example:
        >>> data = load("digits")
        >>> x, y = data.train
        >>> x.shape, x.dtype.name, y.shape, y.dtype.name
        ((1437, 8, 8, 1), 'float32', (1437,), 'int32')
        >>> data.input_shape, data.classes
        ((8, 8, 1), 10)
    """
    check_integer("batch_size", batch_size, 1)
    kind = kind_of(name)
    for argument, value, kinds in (
        ("directory", directory, ("imagenet",)),
        ("image_size", image_size, ("imagenet", "folder")),
        ("target", target, (".csv",)),
    ):
        if value is not None and kind not in kinds:
            raise ValueError(f"`{argument}` applies only to {_WORDS[kinds[-1]]}. Received: {argument}={value!r}")
    if kind == "imagenet":
        return from_folder(directory, name, image_size, batch_size, seed)
    if kind == "folder":
        return from_folder(name, None, image_size, batch_size, seed)
    if kind == ".npz":
        return from_npz(name, batch_size)
    if kind == ".csv":
        return from_csv(name, target, batch_size)
    train, test, classes = _digits() if name == "digits" else _downloaded(name)
    return Dataset(name, train, test, train[0].shape[1:], classes, batch_size)


_WORDS = {"imagenet": "'imagenet'", "folder": "'imagenet' and folders of images", ".csv": "a .csv file"}


def kind_of(name: str) -> str:
    """Return one of `NAMES`, or ".npz", ".csv" or "folder" for the user's own data, without reading the data.

    Raises:
        ValueError: it is none of them.
        OSError: the file is not there.

    Example:
        >>> kind_of("mnist")
        'mnist'
    """
    if name in NAMES:
        return name
    if isinstance(name, str | os.PathLike) and "\0" not in os.fspath(name):
        suffix = Path(name).suffix.lower()
        if suffix in (".npz", ".csv"):
            if not Path(name).is_file():
                raise OSError(f"No such file: {os.fspath(name)!r}")
            return suffix
        if Path(name).is_dir():
            return "folder"
        if len(Path(name).parts) > 1:  # no name of a dataset, but a path
            raise OSError(f"No such file or folder: {os.fspath(name)!r}")
    known = ", ".join(map(repr, NAMES))
    raise ValueError(
        f"`name` must be one of {known}, or the path to an .npz file, a .csv file or a folder of images"
        f"{did_you_mean(name, NAMES)} Received: name={name!r}"
    )


def _digits() -> tuple[Arrays, Arrays, int]:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        message = "The dataset 'digits' comes with scikit-learn, which is not installed: pip install scikit-learn"
        raise ImportError(message) from error
    images, labels = load_digits(return_X_y=True)
    x = scaled(images.reshape(-1, 8, 8), 16)
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
    train, test = ((scaled(images, 255), labels.reshape(-1).astype(np.int32)) for images, labels in parts)
    return train, test, spec.classes


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
    note = f" (Keras removed {', '.join(removed)} because the checksum did not match)" if removed else ""
    wanted = ", ".join(
        spec.files[path.name] + (f" (renamed to {path.name})" if spec.files[path.name] != path.name else "")
        for path in missing
    )
    return (
        f"Could not download {name}{note}: {reason}. Download {wanted} from {spec.origin} into {missing[0].parent} "
        "by hand, or use --dataset=digits, which needs no download."
    )


def _is_damaged_idx(path: Path) -> bool:
    """Whether a gzipped idx file cannot be read, or does not have the length that its header declares."""
    try:
        content = gzip.decompress(path.read_bytes())
        rank = content[3]
        sizes = struct.unpack_from(f">{rank}I", content, 4)
    except (OSError, EOFError, zlib.error, IndexError, struct.error):
        return True
    return len(content) != 4 + 4 * rank + math.prod(sizes)


__all__ = ["NAMES", "load"]
