"""The training flags that several commands share, and the network and data that these flags select."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ... import data, models
from ...criteria import CRITERIA
from ...masks import mask, masked_weights
from ...patterns import PATTERNS
from ...scopes import SCOPES
from ...util.checks import did_you_mean
from ...util.plotting import FILE_TYPES
from ...util.registry import trait
from .. import own
from ..options import Option

_RATES = {"adam": 1e-3, "adamw": 1e-3, "sgd": 0.05}
_DECAYS = "cosine (to 0), step (x 0.1 at 1/2 and at 3/4 of training), none"

Check = tuple[Callable[[Any], bool], str | Callable[[Any], str]]


def at_least(least: int) -> Check:
    """Return a flag check that requires a value of at least `least`."""
    return lambda value: value >= least, f"must be at least {least}"


def each(words: Iterable[str]) -> Check:
    """Return a flag check that requires a list of one or more of these words, without duplicates."""
    known = tuple(words)

    def says(value: list[str]) -> str:
        unknown = [word for word in value if word not in known]
        hint = did_you_mean(unknown[0], known).rstrip(".") if unknown else ""
        return f"must be one or more of {', '.join(known)}, without duplicates{hint}"

    return lambda value: 0 < len(value) == len(set(value)) and set(value) <= set(known), says


def _fraction(says: str) -> Callable[[Any], str]:
    """Return a function that writes a fraction flag's error text, with a hint if the value may be a percentage."""

    def message(value: Any) -> str:
        try:
            numbers = [float(word) for word in (value if isinstance(value, list) else [value])]
        except ValueError:
            return says
        percent = [number for number in numbers if 1 <= number <= 100]
        hint = f"; {percent[0]:g} % is {percent[0] / 100:g}" if percent and percent[0] > 1 else ""
        return says + hint

    return message


def numbers(convert: Callable[[str], float], test: Callable[[float], bool], message: Any) -> Check:
    """Return a flag check that requires a list of numbers, without duplicates."""

    def right(value: list[str]) -> bool:
        try:
            found = [convert(word) for word in value]
        except (ValueError, OverflowError):
            return False
        return 0 < len(found) == len(set(found)) and all(map(test, found))

    return right, message


def criteria(*given: str) -> tuple[str, ...]:
    """Return the names of the criteria that need nothing beyond `given` ("data", "training", both or neither)."""

    def needs(name: str) -> set[str]:
        criterion = CRITERIA.get(name)
        watches = trait(criterion, "tracker", None) is not None
        # The loss is at hand: the models of these commands are compiled.
        return {*trait(criterion, "needs", ()), *(("training",) if watches else ())} - {"loss"}

    return tuple(name for name in CRITERIA if needs(name) <= set(given))


POSITIVE = (lambda value: value > 0, "must be above 0")
SPARSITY = (lambda value: 0 <= value < 1, _fraction("must be at least 0 and below 1"))
SPARSITIES = numbers(float, SPARSITY[0], _fraction("must be numbers >= 0 and < 1, without duplicates"))
FRACTION = (lambda value: 0 < value < 1, _fraction("must be above 0 and below 1"))


def _is_pattern(name: str) -> bool:
    try:
        PATTERNS.get(name)
    except ValueError:
        return False
    return True


PATTERN = Option(
    "pattern",
    "unstructured",
    "pattern of the zeros, such as unstructured, channel, 2:4 or 4x4",
    str,
    (_is_pattern, f"must be one of {', '.join(PATTERNS)}, an n:m pattern such as 1:4, or tiles such as 4x4"),
    "NAME",
)
FIGURE = (lambda value: Path(value).suffix.lower() in FILE_TYPES, f"must end in {', '.join(FILE_TYPES)}")
MODEL = (
    lambda value: own.is_own(value) or value in models.MODELS,
    lambda value: (
        f"must be {own.EXPECTED}; the model names are {', '.join(models.MODELS)}"
        f"{did_you_mean(value.replace('_', '-'), models.MODELS).rstrip('.')}"
    ),
)
LOGGING = (
    Option("verbose", False, "log more", bool),
    Option("debug", False, "show the traceback of an error", bool),
)


def _dataset(kinds: tuple[str, ...], says: str) -> Check:
    """Return a flag check that accepts only datasets of these kinds; its error text lists the valid values."""

    def test(value: str) -> bool:
        try:
            return data.kind_of(value) in kinds
        except OSError:
            return True  # that there is no such file is said by what opens it
        except ValueError:
            return False

    names = tuple(name for name in data.NAMES if name in kinds)
    return test, lambda value: f"must be {', '.join(names)}, {says}{did_you_mean(value, names).rstrip('.')}"


_OF_FILES = (".npz", ".csv")
ANY_DATA = _dataset(
    (*data.NAMES, *_OF_FILES, "folder"), "or the path to an .npz file, a .csv file or a folder of images"
)
ARRAYS = _dataset((*(n for n in data.NAMES if n != "imagenet"), *_OF_FILES), "or the path to an .npz or .csv file")
DATA = (
    Option("dataset", "digits", "name of a dataset, or your own data; see below", str, ANY_DATA, "DATA"),
    Option("target", None, "for a .csv file: the column that contains the classes", str, word="COLUMN"),
    Option("batch_size", 64, "number of examples per training step", int, at_least(1)),
    Option("data_dir", None, "for imagenet: folder that contains train/CLASS/* and val/CLASS/*"),
    Option("image_size", None, "for folders of images: height and width in pixels", int, at_least(1)),
)
LIBRARY = Option(
    "library", "keras", "keras (Keras 3) or tf_keras (Keras 2 with tfmot's wrappers)", ("keras", "tf_keras")
)
OWN_DATA_NOTES = (
    "          file.npz: x_train, y_train, x_test and y_test (y: integer class ids; uint8 inputs are divided by 255)\n"
    "          file.csv: numeric columns and a --target column of classes; a fifth of the rows is used for testing"
)
DATA_NOTES = (
    f"Data:     {', '.join(data.NAMES)}\n"
    "          (digits needs no download; imagenet can be any folder of images), or your own:\n"
    f"{OWN_DATA_NOTES}\n"
    "          a folder of images: train/CLASS/* and val/CLASS/*, or CLASS/*, of which a fifth is used for testing"
)
MODEL_NOTES = (
    f"Models:   {', '.join(tuple(models.MODELS)[:9])},\n          {', '.join(tuple(models.MODELS)[9:])},\n          "
    "or your own: a .keras file, from whose weights each training run starts; or module:function, which is\n          "
    "called with whichever of input_shape, classes, seed, width and library it accepts. A model that is already\n"
    "          compiled with metrics=['accuracy'] is trained as is; any other model is compiled for classification\n"
    "          with the optimizer that the flags select."
)
NETWORK_NOTES = f"{MODEL_NOTES}\n{DATA_NOTES}"


def training_options(
    model: str, width: float, epochs: int, rate: float | None = None, scope: str | None = "global"
) -> tuple[Option, ...]:
    """Return the training flags with these defaults; None means the default of the optimizer or of the pattern."""
    usual = "" if rate else " [0.001; for sgd 0.05]"
    return (
        Option("model", model, "name of a model, a .keras file or module:function; see below", str, MODEL, "MODEL"),
        Option("width", width, "multiplier for the number of channels and units", float, POSITIVE),
        *DATA,
        Option("epochs", epochs, "number of passes over the training data", int, at_least(1)),
        Option("optimizer", "adam", "adam, adamw, or sgd (with momentum 0.9)", tuple(_RATES)),
        Option("learning_rate", rate, f"learning rate{usual}", float, POSITIVE),
        Option("decay", "cosine", f"learning rate decay: {_DECAYS}", ("cosine", "step", "none")),
        Option("rounds", None, "number of scoring and pruning rounds [100 or 1, by method]", int, at_least(1)),
        Option("scope", scope, f"how the sparsity is split among layers: {', '.join(SCOPES)}", tuple(SCOPES)),
    )


def load_data(values: Any, seed: int) -> data.Dataset:
    """Load the dataset selected by the flags."""
    size = None if values.image_size is None else (values.image_size, values.image_size)
    return data.load(
        values.dataset,
        directory=values.data_dir,
        image_size=size,
        target=values.target,
        batch_size=values.batch_size,
        seed=seed,
    )


def check_new(files: Iterable[Path], received: str) -> None:
    """Raise ValueError, ending with `received`, if one of these files exists."""
    existing = [str(file) for file in files if file.exists()]
    if existing:
        verb = "exists" if len(existing) == 1 else "exist"
        raise ValueError(
            f"{', '.join(existing)} already {verb}. To replace existing files, add --overwrite. {received}"
        )


def new_network(
    values: Any,
    dataset: data.Dataset,
    seed: int,
    masked: bool,
    library_name: str = "keras",
    *,
    model: str | None = None,
    **optimizer: Any,
) -> Any:
    """Build and compile the network selected by the flags; wrap a tf_keras model with tfmot if it will be masked.

    `model` stands for the flag of that name where a command has none. Further arguments are the optimizer's, beside
    those that the flags name.
    """
    library = importlib.import_module(library_name)
    library.utils.set_random_seed(seed)
    model = values.model if model is None else model
    is_own = own.is_own(model)
    if is_own:
        network = own.build(model, dataset, seed, values.width, library)
    else:
        network = models.get(model)(dataset.input_shape, dataset.classes, values.width, library=library)
    probabilities = is_own and own.gives_probabilities(network, dataset)
    compiled = is_own and own.comes_compiled(values, model, network, dataset)
    if library_name == "tf_keras" and masked and not masked_weights(network):
        if compiled:
            raise ValueError(
                "tfmot's wrappers cannot be added to a compiled model: the function must return an uncompiled model, "
                f"or call kprune.mask and compile the result. Received: model={model!r}"
            )
        network = mask(network).model
    if not compiled:
        how = _optimizer(library, values, count_steps(values, dataset), **optimizer)
        compile_for_classes(network, library, how, from_logits=not probabilities)
    return network


def compile_for_classes(network: Any, library: Any, optimizer: Any = "sgd", from_logits: bool = True) -> None:
    """Compile a classifier, a network that returns one number per class, with accuracy as its metric."""
    network.compile(
        optimizer=optimizer,
        loss=library.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
        metrics=["accuracy"],
    )


def count_steps(values: Any, dataset: data.Dataset) -> int:
    """Return the number of optimizer steps in a training run."""
    if isinstance(dataset.train, tuple):
        return values.epochs * math.ceil(len(dataset.train[0]) / dataset.batch_size)
    return values.epochs * len(dataset.train)  # type: ignore[arg-type]  # a tf.data.Dataset of files knows its length


def learning_rate(values: Any) -> float:
    """Return the learning rate before it decays."""
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
