"""What several commands share: the flags of a training, and the network and data that they select."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ... import data, models
from ...criteria import CRITERIA
from ...masks import mask
from ...scopes import SCOPES
from ...util.plotting import FILE_TYPES
from ...util.registry import trait
from ..options import Option

_RATES = {"adam": 1e-3, "adamw": 1e-3, "sgd": 0.05}
_DECAYS = "cosine (to 0), step (to 1/10 at 1/2, 1/100 at 3/4), none"

Check = tuple[Callable[[Any], bool], str]


def at_least(least: int) -> Check:
    """Check of a flag: it must not be below a number."""
    return lambda value: value >= least, f"must be at least {least}"


def each(words: Iterable[str]) -> Check:
    """Check of a list flag: it must hold one or more of these words, each once."""
    known = tuple(words)
    return (
        lambda value: 0 < len(value) == len(set(value)) and set(value) <= set(known),
        f"must be one or more of {', '.join(known)}, each once",
    )


def numbers(convert: Callable[[str], float], test: Callable[[float], bool], message: str) -> Check:
    """Check of a list flag: it must hold numbers, each once."""

    def right(value: list[str]) -> bool:
        try:
            found = [convert(word) for word in value]
        except (ValueError, OverflowError):
            return False
        return 0 < len(found) == len(set(found)) and all(map(test, found))

    return right, message


def criteria(*given: str) -> tuple[str, ...]:
    """The names of the criteria that need nothing but what is given, of "data" and "training" (to watch)."""

    def needs(name: str) -> set[str]:
        criterion = CRITERIA.get(name)
        watches = trait(criterion, "tracker", None) is not None
        return {*trait(criterion, "needs", ()), *(("training",) if watches else ())}

    return tuple(name for name in CRITERIA if needs(name) <= set(given))


POSITIVE = (lambda value: value > 0, "must be above 0")
SPARSITY = (lambda value: 0 <= value < 1, "must be at least 0 and below 1")
SPARSITIES = numbers(float, SPARSITY[0], "must be numbers of at least 0 and below 1, each once")
FIGURE = (lambda value: Path(value).suffix.lower() in FILE_TYPES, f"must end in {', '.join(FILE_TYPES)}")
LOGGING = (
    Option("verbose", False, "log more", bool),
    Option("debug", False, "show the traceback of an error", bool),
)
DATA = (
    Option("dataset", "digits", "data set, listed below", data.NAMES),
    Option("batch_size", 64, "images per step", int, at_least(1)),
    Option("data_dir", None, "for imagenet: folder with train/CLASS/* and val/CLASS/*"),
    Option("image_size", None, "for imagenet: height and width in pixels", int, at_least(1)),
)
LIBRARY = Option("library", "keras", "keras (Keras 3) or tf_keras (Keras 2, tfmot's wrappers)", ("keras", "tf_keras"))
DATA_NOTES = (
    f"Data:     {', '.join(data.NAMES)}\n          (digits needs no download; imagenet is any folder of images)"
)
MODEL_NOTES = f"Models:   {', '.join(tuple(models.MODELS)[:9])},\n          {', '.join(tuple(models.MODELS)[9:])}"
NETWORK_NOTES = f"{MODEL_NOTES}\n{DATA_NOTES}"


def training_options(
    model: str, width: float, epochs: int, rate: float | None = None, scope: str | None = "global"
) -> tuple[Option, ...]:
    """The flags of a training, with these defaults; None is the optimizer's own rate, and the pattern's own scope."""
    usual = "" if rate else " [0.001; for sgd 0.05]"
    return (
        Option("model", model, "network, listed below", tuple(models.MODELS)),
        Option("width", width, "factor on the network's channels and units", float, POSITIVE),
        *DATA,
        Option("epochs", epochs, "passes over the training images", int, at_least(1)),
        Option("optimizer", "adam", "adam, adamw, or sgd (with momentum 0.9)", tuple(_RATES)),
        Option("learning_rate", rate, f"learning rate{usual}", float, POSITIVE),
        Option("decay", "cosine", f"how the learning rate decays: {_DECAYS}", ("cosine", "step", "none")),
        Option("rounds", None, "rounds of scoring and pruning [the method's default: 100 or 1]", int, at_least(1)),
        Option("scope", scope, f"how the layers share the sparsity: {', '.join(SCOPES)}", tuple(SCOPES)),
    )


def load_data(values: Any, seed: int) -> data.Dataset:
    """The data set that the flags name."""
    size = None if values.image_size is None else (values.image_size, values.image_size)
    return data.load(
        values.dataset, directory=values.data_dir, image_size=size, batch_size=values.batch_size, seed=seed
    )


def new_network(
    values: Any, dataset: data.Dataset, seed: int, masked: bool, library_name: str = "keras", **optimizer: Any
) -> Any:
    """The network that the flags name, compiled; in tfmot's wrappers if it is from tf_keras and will be masked.

    Further arguments are the optimizer's, beside those that the flags name.
    """
    library = importlib.import_module(library_name)
    library.utils.set_random_seed(seed)
    network = models.get(values.model)(dataset.input_shape, dataset.classes, values.width, library=library)
    if library_name == "tf_keras" and masked:
        network = mask(network).model
    compile_for_classes(network, library, _optimizer(library, values, count_steps(values, dataset), **optimizer))
    return network


def compile_for_classes(network: Any, library: Any, optimizer: Any = "sgd") -> None:
    """Compile a network that returns logits for accuracy."""
    network.compile(
        optimizer=optimizer,
        loss=library.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def count_steps(values: Any, dataset: data.Dataset) -> int:
    """The optimizer steps of the training."""
    if isinstance(dataset.train, tuple):
        return values.epochs * math.ceil(len(dataset.train[0]) / dataset.batch_size)
    return values.epochs * len(dataset.train)  # type: ignore[arg-type]  # a tf.data.Dataset of files knows its length


def learning_rate(values: Any) -> float:
    """The learning rate before it falls."""
    return _RATES[values.optimizer] if values.learning_rate is None else values.learning_rate


def _optimizer(library: Any, values: Any, steps: int, **others: Any) -> Any:
    rate: Any = learning_rate(values)
    if values.decay == "cosine":
        rate = library.optimizers.schedules.CosineDecay(rate, steps)
    elif values.decay == "step":
        rates = [rate, rate / 10, rate / 100]
        rate = library.optimizers.schedules.PiecewiseConstantDecay([steps // 2, 3 * steps // 4], rates)
    if values.optimizer == "sgd":
        return library.optimizers.SGD(rate, momentum=0.9, **others)
    return {"adam": library.optimizers.Adam, "adamw": library.optimizers.AdamW}[values.optimizer](rate, **others)
