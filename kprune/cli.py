"""The command line: `kprune train` trains a sparse network, `kprune inspect` says what is left of a saved one.

Each command has flags of its own (an absl `FlagValues`), so its help shows what it takes and nothing else.
"""

from __future__ import annotations

import importlib
import json
import logging as standard
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported, if it is not yet

from absl import flags, logging

from . import data, models
from ._version import __version__
from .options import Command, Option
from .scopes import SCOPES

METHODS = ("dense", "synflow", "magnitude", "random", "gradual")
_RATES = {"adam": 1e-3, "adamw": 1e-3, "sgd": 0.05}
_FIGURES = (".png", ".svg", ".pdf")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after `kprune`; those of the process by default.

    Returns:
        The exit status: 0, 1 after an error (one line on stderr), 2 if the words make no sense, 130 after Ctrl-C.

    >>> from kprune import cli
    >>> cli.main(["--version"])
    kprune 0.1.0
    0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        return _refuse(_overview())
    if words[0] in ("--help", "-h", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"kprune {__version__}")
        return 0
    if words[0] not in COMMANDS:
        return _refuse(f"kprune: unknown command {words[0]!r}; there are {', '.join(COMMANDS)} (see kprune --help)")
    command = COMMANDS[words[0]]
    if {"--help", "-h"} & set(words[1:]):
        print(command.help, end="")
        return 0
    try:
        values, arguments = command.parse(words[1:])
    except flags.Error as error:
        return _refuse(f"kprune {command.name}: {error} (see kprune {command.name} --help)")
    _set_up_logging(values.verbose)
    try:
        if values.plot:  # before the work, so that a folder that cannot be made is known at once
            Path(values.plot).parent.mkdir(parents=True, exist_ok=True)
        command.run(values, arguments)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if values.debug:
            traceback.print_exc()
        return _refuse(f"kprune: error: {' '.join(str(error).split())}", 1)
    except KeyboardInterrupt:
        return _refuse("kprune: interrupted", 130)
    return 0


def _refuse(message: str, status: int = 2) -> int:
    print(message, file=sys.stderr)
    return status


def train(values: Any, arguments: list[str]) -> None:
    """`kprune train`: build a network, train it sparse, report, export.

    Args:
        values: the flags of the command, as attributes.
        arguments: none.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: as the library raises them; what can be checked is checked
            before the training.
    """
    from . import export, mask, plot_sparsity, summary

    target = Path(values.export_dir, "model") if values.export_dir else None
    for file in (target, target.with_name("model.keras")) if target and not values.overwrite else ():
        if file.exists():
            raise ValueError(f"{file} exists; add --overwrite. Received: export_dir={values.export_dir!r}")
    image_size = None if values.image_size is None else (values.image_size, values.image_size)
    dataset = data.load(
        values.dataset, directory=values.data_dir, image_size=image_size, batch_size=values.batch_size, seed=values.seed
    )
    library = importlib.import_module(values.library)
    library.utils.set_random_seed(values.seed)
    network = models.get(values.model)(dataset.input_shape, dataset.classes, values.width, library=library)
    size = f"{network.count_params():,} parameters"
    if values.library == "tf_keras" and values.method != "dense":
        network = mask(network).model
    steps = values.epochs * _steps_per_epoch(dataset)
    network.compile(
        optimizer=_optimizer(library, values, steps),
        loss=library.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    how = "dense" if values.method == "dense" else f"{values.method} to sparsity {values.sparsity:.6g}"
    images = f"{'x'.join(map(str, dataset.input_shape))}, {dataset.classes} classes"
    print(f"{values.model} ({size}) on {values.dataset} ({images}): {how}, {steps} steps")
    fitted = network.fit(
        **dataset.fit_kwargs(),
        epochs=values.epochs,
        callbacks=_callbacks(values, steps),
        verbose=1 if sys.stdout.isatty() else 2,  # a bar on a terminal, a line for each epoch in a file
    )
    accuracy = fitted.history["val_accuracy"]
    best = max(accuracy)
    print(f"\n{summary(network)}")
    print(f"\ntest accuracy: last {accuracy[-1]:.2%}, best {best:.2%} (epoch {accuracy.index(best) + 1})")
    if values.plot:
        plot_sparsity(network, values.plot)
        print(f"figure: {values.plot}")
    if target:
        written = export(network, target, overwrite=values.overwrite)
        print(f"exported and checked: {written}")


def inspect(values: Any, arguments: list[str]) -> None:
    """`kprune inspect`: the report of a saved model.

    Args:
        values: the flags of the command, as attributes.
        arguments: the model's path.

    Raises:
        ValueError, OSError, ImportError: the path holds no model, or one that cannot be loaded.
    """
    from .report import plot_sparsity
    from .saved import read

    report = read(arguments[0])
    if values.plot:
        plot_sparsity(report, values.plot)
    if values.json:
        print(json.dumps({"model": arguments[0], **report.to_dict()}, indent=2))
    else:
        print(report)
        if values.plot:
            print(f"figure: {values.plot}")


def _steps_per_epoch(dataset: data.Dataset) -> int:
    if isinstance(dataset.train, tuple):
        return math.ceil(len(dataset.train[0]) / dataset.batch_size)
    return len(dataset.train)  # type: ignore[arg-type]  # a tf.data.Dataset of files knows its length


def _optimizer(library: Any, values: Any, steps: int) -> Any:
    rate = _RATES[values.optimizer] if values.learning_rate is None else values.learning_rate
    if values.decay == "cosine":
        rate = library.optimizers.schedules.CosineDecay(rate, steps)
    if values.optimizer == "sgd":
        return library.optimizers.SGD(rate, momentum=0.9)
    return {"adam": library.optimizers.Adam, "adamw": library.optimizers.AdamW}[values.optimizer](rate)


def _callbacks(values: Any, steps: int) -> list[Any]:
    from .callbacks import GradualPruning, PruneAtInit, SparsityLogger
    from .schedules import PolynomialDecay

    if values.method == "dense":
        return []
    options: dict[str, Any] = {"scope": values.scope, "seed": values.seed}
    pruning: Any
    if values.method == "gradual":
        end = max(1, 3 * steps // 4)
        schedule = PolynomialDecay(0.0, values.sparsity, begin_step=0, end_step=end, frequency=max(1, end // 50))
        pruning = GradualPruning(schedule, rounds=values.rounds or 1, **options)
    else:
        pruning = PruneAtInit(values.method, values.sparsity, rounds=values.rounds, **options)
    return [pruning, SparsityLogger(table=values.verbose)]


def _set_up_logging(verbose: bool) -> None:
    """absl's log on stderr, without its dates and line numbers; TensorFlow's own only if it is an error."""
    flags.FLAGS.mark_as_parsed()  # or absl warns that it logs too early
    standard.getLogger("tensorflow").setLevel(standard.ERROR)
    logging.get_absl_logger().addFilter(_is_worth_showing)
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(standard.Formatter("%(levelname)s: %(message)s"))
    logging.set_verbosity(logging.INFO if verbose else logging.WARNING)


def _is_worth_showing(record: standard.LogRecord) -> bool:
    # Loading what JAX exported, TensorFlow warns of missing gradients, which nothing asks for.
    return record.levelno >= standard.ERROR or f"{os.sep}tensorflow{os.sep}" not in record.pathname


def _overview() -> str:
    commands = "\n".join(f"  kprune {c.name:<9}{c.summary}\n{'':18}{c.example}\n" for c in COMMANDS.values())
    return (
        "kprune trains sparse neural networks with Keras and says what is left of them.\n\n"
        f"{commands}\n`kprune COMMAND --help` lists the flags of a command, `kprune --version` the version.\n"
        "Sparsity is the fraction of zeros: 0.9 keeps one weight in ten."
    )


def _at_least(least: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value >= least, f"must be at least {least}"


_POSITIVE = (lambda value: value > 0, "must be above 0")
_SPARSITY = (lambda value: 0 <= value < 1, "must be at least 0 and below 1")
_FIGURE = (lambda value: Path(value).suffix.lower() in _FIGURES, f"must end in {', '.join(_FIGURES)}")
_COMMON = (
    Option("verbose", False, "log more", bool),
    Option("debug", False, "after an error, show where it came from", bool),
)

_TRAIN = Command(
    "train",
    "Train a network sparse, report what is left of it, export it.",
    "",
    "kprune train --model=vgg-11 --dataset=digits --method=synflow --sparsity=0.9 --export_dir=out",
    (
        Option("model", "conv-4", "network; the names are below", tuple(models.MODELS)),
        Option("dataset", "digits", "data set; the names are below", data.NAMES),
        Option("method", "synflow", "how to prune: see below", METHODS),
        Option("sparsity", 0.9, "fraction of zeros to prune to", float, _SPARSITY),
        Option("epochs", 15, "passes over the training images", int, _at_least(1)),
        Option("export_dir", None, "folder for the trained model, as SavedModel and .keras; none is written without"),
        Option("overwrite", False, "replace a model that is there already", bool),
        Option("plot", None, "file for a figure of what is left: .png, .svg or .pdf", str, _FIGURE),
        Option("width", 1.0, "multiplies the network's channels and units", float, _POSITIVE),
        Option("batch_size", 64, "images per step", int, _at_least(1)),
        Option("optimizer", "adam", "adam, adamw, or sgd (with momentum 0.9)", tuple(_RATES)),
        Option("learning_rate", None, "learning rate [0.001; for sgd 0.05]", float, _POSITIVE),
        Option("decay", "cosine", "how the learning rate falls: cosine (to 0 at the end) or none", ("cosine", "none")),
        Option("rounds", None, "rounds of scoring and pruning [100 for synflow, else 1]", int, _at_least(1)),
        Option("scope", "global", f"how the layers share the sparsity: {', '.join(SCOPES)}", tuple(SCOPES)),
        Option("seed", 0, "of initial weights, order of images, random pruning", int, _at_least(0)),
        Option("data_dir", None, "for imagenet: folder with train/CLASS/* and val/CLASS/*"),
        Option("image_size", None, "for imagenet: height and width in pixels", int, _at_least(1)),
        Option("library", "keras", "keras (Keras 3) or tf_keras (Keras 2, tfmot's wrappers)", ("keras", "tf_keras")),
        *_COMMON,
    ),
    f"Methods:  dense      prune nothing\n"
    f"          synflow    before training, what carries least synaptic flow (needs no data)\n"
    f"          magnitude  before training, the smallest weights\n"
    f"          random     before training, any weights\n"
    f"          gradual    during training, the smallest weights, step by step until 3/4 of the steps\n"
    f"Models:   {', '.join(tuple(models.MODELS)[:9])},\n          {', '.join(tuple(models.MODELS)[9:])}\n"
    f"Data:     {', '.join(data.NAMES)}\n"
    f"          (digits needs no download; imagenet is any folder of images)",
    train,
)
_INSPECT = Command(
    "inspect",
    "Show what is left of a saved model, weight by weight.",
    "MODEL",
    "kprune inspect out/model.keras",
    (
        Option("json", False, "print JSON in place of the table", bool),
        Option("plot", None, "file for a figure: .png, .svg or .pdf", str, _FIGURE),
        *_COMMON,
    ),
    "MODEL is a .keras file (of Keras 3 or tf_keras, masked or plain) or a SavedModel's folder.",
    inspect,
)
COMMANDS = {command.name: command for command in (_TRAIN, _INSPECT)}
"""The subcommands by name."""

if __name__ == "__main__":
    sys.exit(main())
