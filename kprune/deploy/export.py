"""Export a sparse model to plain files, each reopened and compared with the model before it is put in place."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from absl import logging

from ..masks import masked_weights, plain
from ..runtime.distribution import is_chief
from ..util.checks import check_flag, check_path, check_strings
from ..util.temporary import temporary_beside
from ..util.whole import sync
from . import card as cards
from .card import Card
from .compare import check_outputs, difference
from .exported import Export
from .formats import FORMATS, Opened, zeros_of
from .sample import Sample, from_reset_states, predict, sample
from .shrink import shrink as shrunk

DEFAULT = ("saved_model", "keras")
_CARDS = (".card.json", ".card.md")


def export(
    model: Any,
    path: str | os.PathLike[str],
    format: str | Sequence[str] = DEFAULT,
    *,
    inputs: Any = None,
    data: Any = None,
    representative: Any = None,
    shrink: bool = False,
    overwrite: bool = False,
    verbose: int | str = "auto",
) -> Export:
    """Write the stripped model in one or more formats, reopen each file, and check its predictions.

    Every file loads without kprune. The model itself stays as it is: masks, seeds and states included. Files appear
    under their names only once all have been checked; if anything fails, what was there stays. Beside them lies the
    card, `path.card.json` and `path.card.md`: bytes, zipped bytes, zeros counted in the file itself, and latency,
    beside those of the same network without zeros. Of several processes that train together all call this; the chief's
    files stay.

    Args:
        model: a model of either Keras, masked or not.
        path: the SavedModel's folder; other files get the same name with an ending.
        format: one of these, or several.
            "saved_model": `path/`, each variable once, `serve` and "serving_default" are `model(..., training=False)`.
            "saved_model_packed": `path.packed/`, the same with a bit for each weight and the values of those that are
            not 0, which TensorFlow unpacks once as it loads the file.
            "keras": `path.keras`, without the optimizer's slots.
            "litert": `path.tflite`, for phones and small devices.
            "litert_sparse": `path.sparse.tflite`, whose kernels hold only what is not 0, wherever LiteRT has a kernel
            that computes so: Dense layers and convolutions.
            "litert_int8": `path.int8.tflite`, which computes in 8-bit integers; it takes `representative`.
            "onnx": `path.onnx`, for ONNX Runtime, of Keras 3 models.
            "openvino": `path.xml` and `path.bin`, for OpenVINO, of Keras 3 models.
        inputs: inputs to compare the predictions on, as `model.predict` takes them; by default two random examples.
        data: `(x, y)` to measure each file's accuracy on: inputs, and integer or one-hot labels.
        representative: inputs such as the model will see, as `model.predict` takes them, 100 or so: "litert_int8" takes
            its ranges from them, and is compared on the first 32.
        shrink: first remove the channels that zeros have killed, as `kprune.shrink` does: then files are faster, too.
        overwrite: replace what is there.
        verbose: 0 prints nothing; otherwise the card is printed.

    Returns:
        `Export`: the files, the card, and how well they agree.

    Raises:
        ValueError: `path` is no path, or a file exists and `overwrite` is False, or a format is not known, or the
            model's input shape is not known or not fixed and no `inputs` are given.
        OSError: the files cannot be written (no space left ...).
        RuntimeError: a file predicts something else, or holds fewer zeros than the model; or a format's converter or
            runtime cannot take the model.
        ImportError: a format needs a package that is not installed: all but "keras" TensorFlow, on every backend, those
            of LiteRT, ONNX and OpenVINO the extras `kprune[litert]`, `kprune[onnx]` and `kprune[openvino]`.

    >>> import keras, kprune, tempfile
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> _ = kprune.prune(model, "magnitude", sparsity=0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = kprune.export(model, f"{folder}/sparse", verbose=0)
    >>> exported.keras_file.name, exported.card.entry("keras").zeros
    ('sparse.keras', 6)
    """
    masked_weights(model)  # raises for what is no model
    check_path("path", path)
    check_flag("shrink", shrink)
    names = _checked(format)
    with contextlib.ExitStack() as stack:
        target = pathlib.Path(path)
        if not is_chief():
            target = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), target.name)
        goals = _goals(target, names)
        _refuse_existing([*_files(goals), *_cards(target)], overwrite, target)
        for name in names:
            FORMATS[name].check(name, model)
        batch = replace(sample(model, inputs), representative=_representative(model, names, representative))
        labeled = None if data is None else _labeled(model, data)
        stack.enter_context(from_reset_states(model))
        smaller = shrunk(model, inputs=batch.arguments.get(""), keep_masks=False) if shrink else None
        result = _export(model, smaller, target, goals, batch, labeled)
    if verbose != 0 and is_chief():
        print(result.card)
    return result


def _checked(format: str | Sequence[str]) -> tuple[str, ...]:
    names = check_strings("format", format)
    if not names or len(set(names)) < len(names) or not set(names) <= set(FORMATS):
        raise ValueError(f"`format` must be one or more of {', '.join(FORMATS)}. Received: format={format!r}")
    return names


def targets(path: str | os.PathLike[str], format: str | Sequence[str] = DEFAULT) -> list[pathlib.Path]:
    """Return all files that `export` writes for these arguments.

    >>> [file.name for file in targets("out/net", "keras")]
    ['net.keras', 'net.card.json', 'net.card.md']
    """
    target = pathlib.Path(path)
    return [*_files(_goals(target, _checked(format))), *_cards(target)]


def _goals(target: pathlib.Path, formats: Sequence[str]) -> dict[str, pathlib.Path]:
    return {name: target.with_name(target.name + FORMATS[name].suffix) for name in formats}


def _files(goals: dict[str, pathlib.Path]) -> list[pathlib.Path]:
    return [file for name, path in goals.items() for file in FORMATS[name].files(path)]


def _cards(target: pathlib.Path) -> list[pathlib.Path]:
    return [target.with_name(target.name + suffix) for suffix in _CARDS]


def _refuse_existing(files: list[pathlib.Path], overwrite: bool, target: pathlib.Path) -> None:
    if not overwrite and (existing := [str(file) for file in files if file.exists()]):
        verb = "exists" if len(existing) == 1 else "exist"
        raise ValueError(
            f"{', '.join(existing)} {verb}; pass overwrite=True to replace existing files. Received: "
            f"path={str(target)!r}"
        )


def _representative(model: Any, names: Sequence[str], given: Any) -> Sample | None:
    quantized = [name for name in names if FORMATS[name].quantized]
    if bool(quantized) != (given is not None):
        raise ValueError(
            "`representative` must contain typical model inputs for format='litert_int8', and must be None for all "
            f"other formats. Received: format={tuple(names)!r}, representative={type(given)}"
        )
    return None if given is None else sample(model, given)


def _labeled(model: Any, data: Any) -> tuple[Sample, np.ndarray]:
    if not isinstance(data, tuple) or len(data) != 2:
        raise ValueError(f"`data` must be a tuple (x, y). Received: data={type(data)}")
    batch, labels = sample(model, data[0]), np.asarray(data[1])
    if labels.ndim > 1:
        labels = labels.argmax(-1) if labels.shape[-1] > 1 else labels[..., 0]
    if labels.ndim != 1 or len(labels) != len(batch.arrays[0]):
        raise ValueError(
            f"`data` must contain one class label per example. Received: examples={len(batch.arrays[0])}, "
            f"y.shape={np.shape(data[1])}"
        )
    return batch, labels


def _export(
    model: Any,
    smaller: Any,
    target: pathlib.Path,
    goals: dict[str, pathlib.Path],
    batch: Sample,
    labeled: tuple[Sample, np.ndarray] | None,
) -> Export:
    expected, again = predict(model, batch), predict(model, batch)
    steady = difference(again, expected) == 0.0
    if not steady:
        logging.warning(
            "kprune.export: the model's predictions differ between calls, even with the same seeds and states, so "
            "the exported files were loaded and run, but their predictions could not be compared with the model's."
        )
    with _os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = temporary_beside(target).name
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as name:
            folder = pathlib.Path(name)
            with plain(model) as stripped:
                worst = check_outputs("the stripped model", predict(stripped, batch), expected, 0.0, steady, "")
                written = stripped if smaller is None else smaller
                zeros, size = zeros_of(written)
                work = cards.work(written, stripped)
                made = {name: folder / f"sparse{FORMATS[name].suffix}" for name in goals}
                for format, file in made.items():
                    FORMATS[format].write(written, file, batch)
                bases = {format: folder / f"dense{FORMATS[format].suffix}" for format in _bases(goals)}
                with cards.filled(stripped) as dense:
                    for format, file in bases.items():
                        FORMATS[format].write(dense, file, batch)
            opened: dict[tuple[str, str], Opened] = {}
            memory: dict[tuple[str, str], int | None] = {}
            differences: dict[str, float] = {}
            for format, file in made.items():
                form = FORMATS[format]
                given = form.compared_on(batch)
                found, actual, memory[format, "sparse"] = form.opened(file, model, given)
                wanted = expected if given is batch else predict(model, given)
                differences[format] = check_outputs(form.title, actual, wanted, form.allowed(model), steady, form.hint)
                if found.lost(zeros, size):
                    raise RuntimeError(
                        f"Export: {form.title} has fewer zeros than the model, so nothing was written. Found: "
                        f"zeros={found.zeros:,}, model_zeros={zeros:,}"
                    )
                opened[format, "sparse"] = found
            for format, file in bases.items():
                opened[format, "dense"], _, memory[format, "dense"] = FORMATS[format].opened(file, model, batch)
            worst = max([worst, *differences.values()])
            paths = {(f, "sparse"): p for f, p in made.items()} | {(f, "dense"): p for f, p in bases.items()}
            measured: dict[tuple[str, str], dict[str, Any]] = {key: {"memory": m} for key, m in memory.items()}
            for format, largest in differences.items() if steady else ():
                measured[format, "sparse"]["difference"] = largest
            card = _card(opened, paths, batch, labeled, work, measured)
            moves = dict(zip(_files(made), _files(goals), strict=True))
            result = Export(goals, card, worst if steady else float("nan"))
            for goal, text in zip(
                _cards(target), (json.dumps(result.to_dict(), indent=1), card.to_markdown()), strict=True
            ):
                source = folder / f"sparse{goal.name.removeprefix(target.name)}"
                source.write_text(text)
                moves[source] = goal
            _move(moves)
    return result


def _bases(formats: Sequence[str] | dict[str, Any]) -> list[str]:
    """Return the formats in which the dense network is written for comparison."""
    return list(dict.fromkeys(cards.family(format) for format in formats))


def _card(
    opened: dict[tuple[str, str], Opened],
    paths: dict[tuple[str, str], pathlib.Path],
    batch: Sample,
    labeled: tuple[Sample, np.ndarray] | None,
    work: dict[str, Any],
    measured: dict[tuple[str, str], dict[str, Any]],
) -> Card:
    one = batch.first(1)
    timed: dict[Any, Any] = {key: functools.partial(o.run, one) for key, o in opened.items() if FORMATS[key[0]].timed}
    times = cards.measure(timed)
    entries = []
    sparse = [format for format, network in opened if network == "sparse"]
    # Each file after the dense one that it is held against.
    ordered = [key for format in sparse for key in ((cards.family(format), "dense"), (format, "sparse"))]
    for key in dict.fromkeys(ordered):
        milliseconds, spread = times.get(key, (None, None))
        accuracy = None
        if labeled is not None and key[1] == "sparse":
            accuracy = _accuracy(opened[key], *labeled)
        files = FORMATS[key[0]].files(paths[key])
        size, zipped = cards.size_of(files), cards.zipped_size(files, files[0].with_name("archive.zip"))
        found = opened[key]
        entries.append(
            cards.Entry(*key, size, zipped, found.zeros, found.size, milliseconds, spread, accuracy, **measured[key])
        )
    return Card(tuple(entries), **work, batch=len(one.arrays[0]), machine=cards.machine())


def _accuracy(opened: Opened, x: Sample, labels: np.ndarray) -> float:
    outputs = opened.run(x)[0]
    if outputs.shape[-1] > 1:
        return float(np.mean(outputs.argmax(-1) == labels))
    # One output for two classes: a probability, or a logit.
    middle = 0.5 if outputs.min() >= 0 and outputs.max() <= 1 else 0.0
    return float(np.mean((outputs[..., 0] > middle) == labels))


@contextlib.contextmanager
def _os_errors(target: pathlib.Path) -> Iterator[None]:
    """Turn any library's error about writing a file in this context into an OSError that names `target`."""
    tf = sys.modules.get("tensorflow")
    numbers: dict[type[Exception], int] = {}
    if tf is not None:
        numbers = {
            tf.errors.ResourceExhaustedError: errno.ENOSPC,
            tf.errors.OutOfRangeError: errno.EFBIG,
            tf.errors.PermissionDeniedError: errno.EACCES,
        }
    try:
        yield
    except (OSError, *numbers) as error:  # type: ignore[misc]
        number = numbers.get(type(error)) or getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error)
        raise OSError(number or errno.EIO, f"The export was not written: {reason}", str(target)) from error


def _move(goals: dict[pathlib.Path, pathlib.Path]) -> None:
    """Rename each source to its target; if one rename fails, restore what was there before."""
    for source in goals:
        for path in (source, *source.rglob("*")):
            sync(path)
    moved: list[tuple[pathlib.Path, pathlib.Path]] = []
    try:
        for source, goal in goals.items():
            old = source.with_name(f"old-{source.name}")
            whole = goal.is_file() and source.is_file()
            if whole:  # the new one takes its place in one step, so that at any moment there is a file
                _keep(goal, old)
                moved.append((old, goal))
            for there, then in ((goal, old), (source, goal))[whole:]:
                if there.exists():
                    there.replace(then)
                    moved.append((then, there))
    except BaseException:
        for then, there in reversed(moved):
            then.replace(there)
            then.unlink(missing_ok=True)  # two names of one file, of which `replace` leaves both
        raise
    for folder in {goal.parent for goal in goals.values()}:
        sync(folder)


def _keep(file: pathlib.Path, name: pathlib.Path) -> None:
    """Give a file a second name with a hard link, or copy the file if the file system has no hard links."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copy2(file, name)
