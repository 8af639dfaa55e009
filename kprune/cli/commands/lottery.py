"""`kprune lottery`: compare lottery tickets, ways to rewind, and controls."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras

from ... import data
from ...experiments.lottery_runs import MODES, run_lotteries
from ...lottery.rewind import RENAMED, RewindPoint
from ..options import Command, Option
from . import common

# With the lottery's own, all flags that decide the outcome.
_SETTINGS = ("model", "width", "optimizer", "weight_decay", "decay")


def run(values: Any, arguments: list[str]) -> None:
    """Run `kprune lottery`, which writes accuracy by density and by epoch to a CSV file, figures and a table.

    Args:
        values: the flags of the command, as attributes.
        arguments: none.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: as the library raises them; what can be checked is checked
            before the training.
    """
    if "none" in values.modes and values.decay == "cosine":
        raise ValueError(
            "Mode 'none' continues with the last learning rate, which is 0 after cosine decay: use --decay=step. "
            f"Received: decay={values.decay!r}, modes={','.join(values.modes)!r}"
        )
    # None leaves the optimizer's own: AdamW has one.
    shrinking = {} if values.weight_decay is None else {"weight_decay": values.weight_decay}
    dataset = data.load(values.dataset, target=values.target, batch_size=values.batch_size)
    table = Path(values.out_dir, "lottery.csv")
    figure = values.plot or table.with_suffix(".png")
    report = run_lotteries(
        lambda seed: common.new_network(values, dataset, seed, True, values.library, **shrinking),
        dataset,
        values.modes,
        values.levels,
        values.rate,
        values.rewind_to,
        range(values.seeds),
        values.epochs,
        criterion=values.criterion,
        scope=values.scope,
        rounds=values.rounds,
        path=table,
        settings={
            **{name: getattr(values, name) for name in _SETTINGS},
            "learning_rate": common.learning_rate(values),
            "backend": keras.backend.backend() if values.library == "keras" else values.library,
        },
    )
    report.plot(figure)
    training = Path(figure).with_stem(f"{Path(figure).stem}-training")
    if report.knows_curves:  # which an older table that goes on does not hold
        report.plot_training(training)
        print(f"{report}\nfigure of training: {training}")
    else:
        print(report)
    print(f"table: {table}\nfigure: {figure}")


def _is_point(word: str) -> bool:
    try:
        RewindPoint.of(word)
    except ValueError:
        return False
    return True


_POINT = (
    _is_point,
    'must be "init", a fraction of the training such as 0.1, "epoch:2", or a number of steps such as 100',
)
_RENAMED = ", ".join(f'"{then}" is now called "{now}"' for then, now in RENAMED.items())
_MODES = (common.each(MODES)[0], f"must be one or more of {', '.join(MODES)}, without duplicates ({_RENAMED})")
_CRITERIA = common.criteria("data", "training")
_DECAY = "fraction of each weight to subtract per step, scaled by the learning rate"
# The order of data is rewound, too, which is known of arrays alone.
_ARRAYS = tuple(name for name in data.NAMES if name != "imagenet")
_CHANGED: dict[str, dict[str, Any]] = {"dataset": {"check": common.ARRAYS}, "decay": {"default": "step"}}


def _training_options() -> tuple[Option, ...]:
    options = common.training_options("lenet-300-100", 1.0, 20)
    return tuple(
        dataclasses.replace(option, **_CHANGED.get(option.name, {}))
        for option in options
        if option.name not in ("data_dir", "image_size")
    )


LOTTERY = Command(
    "lottery",
    "Find lottery tickets level by level, and compare rewinding modes and controls.",
    "",
    "kprune lottery --model=lenet-300-100 --dataset=digits --modes=init,reinitialize,shuffle --out_dir=out",
    (
        Option("modes", "init,weights,reinitialize,shuffle", "modes to compare, described below", list, _MODES),
        Option("levels", 8, "number of times to prune", int, common.at_least(1)),
        Option("rate", 0.4, "fraction of the remaining weights to prune each time", float, common.FRACTION),
        Option(
            "rewind_to",
            "epoch:1",
            "point to rewind to: a fraction of training (0.1), an epoch (epoch:2) or a step (100)",
            str,
            _POINT,
            "POINT",
        ),
        Option("criterion", "magnitude", "criterion to prune by, listed below", _CRITERIA),
        Option("seeds", 3, "number of training runs per mode and level, with seeds 0, 1, ...", int, common.at_least(1)),
        *_training_options(),
        Option("weight_decay", None, f"{_DECAY} [0; for adamw 0.004]", float, common.at_least(0)),
        common.LIBRARY,
        Option("out_dir", "out", "folder for lottery.csv and lottery-levels/ (a later run resumes from them)"),
        Option(
            "plot",
            None,
            "file for the figure; a second figure, NAME-training, shows training curves [OUT_DIR/lottery.png]",
            str,
            common.FIGURE,
        ),
        *common.LOGGING,
    ),
    "Modes:    init           rewind everything to the start of training\n"
    "          weights        rewind everything to the point given by --rewind_to\n"
    "          learning_rate  rewind the optimizer and its learning rate to that point; keep the trained weights\n"
    "          none           rewind nothing; train at the last learning rate "
    "for as many epochs as the mode 'weights' does\n"
    "          reinitialize   control: fresh weights with the masks of mode 'init', "
    "or of 'weights' if 'init' is not used\n"
    "          shuffle        control: the rewound weights of that mode, with each of its masks shuffled\n"
    f"Criteria: {', '.join(_CRITERIA)}\n"
    f"{common.MODEL_NOTES}\nData:     {', '.join(_ARRAYS)}, or your own:\n{common.OWN_DATA_NOTES}",
    run,
)
