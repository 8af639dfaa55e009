"""The user's own classification data: arrays in a file, a table, or a folder of images."""

import csv
import io
import os
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.lib.format import MAGIC_PREFIX

from ..util.checks import did_you_mean
from .dataset import Arrays, Dataset

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_MOST_CLASSES = 10**6


def scaled(images: np.ndarray, maximum: int) -> np.ndarray:
    """Convert images with values from 0 to `maximum` to float32 in [0, 1], with channels last."""
    if images.ndim == 3:
        images = images[..., np.newaxis]
    elif keras.config.image_data_format() == "channels_first":
        images = np.moveaxis(images, 1, -1)
    return np.divide(images, maximum, dtype=np.float32)


def from_npz(path: str | os.PathLike, batch_size: int) -> Dataset:
    """Load a dataset from an .npz file in the format described in `kprune.data.load`."""
    received = f"Received: name={os.fspath(path)!r}"
    try:
        with open(path, "rb") as opened:
            if not zipfile.is_zipfile(opened):
                raise ValueError("it is not an .npz file, or it is damaged")
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in _ARRAYS if name not in file]
            if missing:
                raise ValueError(f"it is missing {', '.join(missing)} (found: {', '.join(file) or 'no arrays'})")
            arrays = {name: _array(file, name) for name in _ARRAYS}
        x_train, x_test = (_inputs(name, arrays[name]) for name in ("x_train", "x_test"))
        y_train, y_test = (_class_ids(name, arrays[name]) for name in ("y_train", "y_test"))
        for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
            if not len(x):
                raise ValueError(f"x_{part} has no examples")
            if len(x) != len(y):
                raise ValueError(f"x_{part} has {len(x):,} examples but y_{part} has {len(y):,}")
        if x_train.shape[1:] != x_test.shape[1:]:
            raise ValueError(f"examples have shape {x_train.shape[1:]} in x_train but {x_test.shape[1:]} in x_test")
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"The file cannot be used as a dataset: {str(error).rstrip('.')}. {received}") from error
    classes = int(max(y_train.max(), y_test.max())) + 1
    return Dataset(Path(path).name, (x_train, y_train), (x_test, y_test), x_train.shape[1:], classes, batch_size)


def examples(path: str) -> np.ndarray:
    """Load the only array of an .npy or .npz file, which must be numeric, with one example per row."""
    try:
        with open(path, "rb") as opened:
            is_npy = opened.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX
        if is_npy:
            array = _read("it", lambda: np.load(path, allow_pickle=False))
        elif zipfile.is_zipfile(path):
            with np.load(path, allow_pickle=False) as file:
                if len(file.files) != 1:
                    names = f" ({', '.join(file.files)})" if file.files else ""
                    raise ValueError(f"it contains {len(file.files)} arrays{names}: save one")
                array = _array(file, file.files[0])
        else:
            raise ValueError("it is not an .npy or .npz file, or it is damaged: save the array with np.save")
        if array.dtype.kind not in "fiub" or not array.ndim or not len(array):
            raise ValueError(f"it contains an array of dtype {array.dtype} and shape {array.shape}")
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(
            f"The file must contain a single numeric array with one example per row. Cause: {str(error).rstrip('.')}. "
            f"Received: representative={path!r}"
        ) from error
    return array


def _array(file: Any, name: str) -> np.ndarray:
    return _read(name, lambda: file[name])


def _read(name: str, read: Callable[[], Any]) -> np.ndarray:
    """Return the result of `read`; raise ValueError if it is no array, or one of Python objects."""
    try:
        array = read()
    except ValueError as error:
        if "Object arrays" not in str(error):  # NumPy has no class for this error (checked with 2.4)
            raise
        raise ValueError(f"{name} contains Python objects: save arrays of numbers") from error
    if not isinstance(array, np.ndarray):  # NumPy gives the bytes of an archive's members that are not .npy files
        raise ValueError(f"{name} is not an array: write the file with np.savez")
    return array


def _inputs(name: str, x: np.ndarray) -> np.ndarray:
    if x.dtype.kind not in "fiub" or x.ndim < 2:
        raise ValueError(
            f"{name} must be a numeric array with one example per row, but it has dtype {x.dtype} and shape {x.shape}"
        )
    if x.dtype == np.uint8:
        return scaled(x, 255) if x.ndim == 3 else np.divide(x, 255, dtype=np.float32)
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError(f"{name} contains values that are NaN, infinite or too large for float32")
    return x


def _class_ids(name: str, y: np.ndarray) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "fiub":
        raise ValueError(
            f"{name} must contain one class id per example, but it has dtype {y.dtype} and shape {y.shape} (convert "
            "one-hot rows with y.argmax(axis=1))"
        )
    ids = y.astype(np.float64)
    wrong = y[~((ids >= 0) & (ids <= _MOST_CLASSES) & (ids == np.floor(ids)))]
    if wrong.size:
        raise ValueError(f"{name} must contain integers from 0 to {_MOST_CLASSES:,}, but it contains {wrong[0]}")
    return y.astype(np.int32)


def from_csv(path: str | os.PathLike, target: str | None, batch_size: int) -> Dataset:
    """Load a dataset from a .csv file in the format described in `kprune.data.load`."""
    received = f"Received: name={os.fspath(path)!r}"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)
            reader = csv.reader(file, delimiter=delimiter)
            # A row that goes over several lines has the number of its last one.
            (_, header), *rows = [(reader.line_num, row) for row in reader if row] or [(0, [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"The file is not a valid CSV file: {error}. {received}") from error
    columns = ", ".join(header[:20]) + (" ..." if len(header) > 20 else "")
    if target is None or target not in header:
        found = f"the columns {columns}" if columns else "no columns"
        hint = "." if target is None else did_you_mean(target, header)
        raise ValueError(
            f"`target` must name the column that contains the classes; the file has {found}{hint} "
            f"Received: target={target!r}"
        )
    place = header.index(target)
    for number, row in rows:
        if len(row) != len(header):
            raise ValueError(f"Line {number} has {len(row)} cells, but the header has {len(header)}. {received}")
    x = np.empty((len(rows), len(header) - 1), np.float32)
    for at, column in enumerate(i for i in range(len(header)) if i != place):
        x[:, at] = [_number(row[column], header[column], number, received) for number, row in rows]
    y, classes = _classes([row[place].strip() for _, row in rows], target, received)
    test = _a_fifth(y)
    if not x.shape[1] or not test.any():
        raise ValueError(
            "The file must have at least one column besides the target, and enough rows to hold out a test set. "
            f"{received}"
        )
    train = ~test
    return Dataset(Path(path).name, (x[train], y[train]), (x[test], y[test]), (x.shape[1],), classes, batch_size)


def _number(word: str, column: str, line: int, received: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = np.nan
    if not abs(value) <= np.finfo(np.float32).max:
        raise ValueError(
            f"All columns except the target must contain finite numbers, but line {line} has {word!r:.40} in column "
            f"{column!r}. Encode words as numbers and fill in missing values first. {received}"
        )
    return value


def _classes(words: list[str], target: str, received: str) -> tuple[np.ndarray, int]:
    """Return the class ids, numbered in the order of the sorted values, and the number of classes."""
    values: list[Any]
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = words
    known = sorted(set(values))
    if any(isinstance(value, float) and not value.is_integer() for value in known) or "" in known:
        raise ValueError(
            f"The target column must contain a class (a word or an integer) in every row. {received}, target={target!r}"
        )
    if len(known) < 2:
        raise ValueError(
            f"The target column must contain at least two different classes. {received}, target={target!r}"
        )
    ids = {value: number for number, value in enumerate(known)}
    return np.array([ids[value] for value in values], np.int32), len(known)


def _a_fifth(y: np.ndarray) -> np.ndarray:
    """Return a bool array that selects the same fifth of each class every time, to be held out for testing."""
    test, draw = np.zeros(len(y), bool), np.random.default_rng(0)
    for label in np.unique(y):
        members = draw.permutation(np.flatnonzero(y == label))
        test[members[: max(1, len(members) // 5) if len(members) > 1 else 0]] = True
    return test


def from_folder(
    directory: str | os.PathLike | None,
    name: str | None,
    image_size: tuple[int, int] | None,
    batch_size: int,
    seed: int,
) -> Dataset:
    """Load images from a folder laid out as in `kprune.data.load`; the dataset's name defaults to the folder's."""
    if directory is None:
        raise ValueError(
            f"{name!r} needs `directory`, a folder that contains train/ and val/. Received: directory=None"
        )
    root = Path(directory)
    if image_size is None or len(image_size) != 2 or min(image_size) < 1:
        raise ValueError(
            f"{name or root.name!r} needs `image_size`, (height, width) in pixels. Received: image_size={image_size!r}"
        )
    if not root.is_dir():
        raise ValueError(f"`directory` must be an existing folder. Received: directory='{root}'")
    train_folder = root / "train"
    test_folder = root / "val" if (root / "val").is_dir() else root / "test"
    split = name is None and not train_folder.is_dir()
    if split:
        train_folder = test_folder = root
    if not (train_folder.is_dir() and test_folder.is_dir()):
        raise ValueError(f"`directory` must contain train/ and either val/ or test/. Received: directory='{root}'")
    classes = _class_names(train_folder)
    # A class folder missing on one side would shift the class ids of the other.
    if not classes or _class_names(test_folder) != classes:
        raise ValueError(
            f"The folder must contain one subfolder per class. Received: directory='{root}'"
            if split
            else f"train/ and {test_folder.name}/ must contain the same class folders. Received: directory='{root}'"
        )

    def batches(folder: Path, train: bool) -> Any:
        part = {"validation_split": 0.2, "subset": "training" if train else "validation"} if split else {}
        with redirect_stdout(io.StringIO()):  # of a part, Keras prints how many files it has
            images = keras.utils.image_dataset_from_directory(
                folder, class_names=classes, image_size=tuple(image_size), batch_size=batch_size,
                shuffle=train or split, seed=0 if split else seed, data_format="channels_last", verbose=False, **part,
            )  # fmt: skip
        return images.map(lambda x, y: (x / 255.0, y)).prefetch(2)

    train, test = batches(train_folder, True), batches(test_folder, False)
    return Dataset(name or root.name, train, test, (*image_size, 3), len(classes), batch_size)


def _class_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


__all__ = ["Arrays", "from_csv", "from_folder", "from_npz", "scaled"]
