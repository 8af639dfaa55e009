"""`kprune.run_lotteries`: each run against a training by hand, a killed comparison, what is refused, the report."""

import csv
import dataclasses
import json
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
from helpers import CHEAP, built

import kprune
from kprune.experiments.lottery_report import _COLORS
from kprune.experiments.lottery_runs import MODES, LotteryRun, LotteryRuns, run_lotteries
from kprune.experiments.runs import early_stop
from kprune.lottery.rewind import restore, rewind

DIGITS = kprune.data.load("digits")
DOCS = pathlib.Path(__file__).parents[1] / "docs"
SMALL = dataclasses.replace(DIGITS, train=tuple(part[:256] for part in DIGITS.train))
STEPS = 4  # an epoch of 256 images in batches of 64
RATE = [0.02, 0.002]  # before and after the second of three epochs


def build(seed):
    """2320 prunable weights in three kernels, and a learning rate that falls after two epochs."""
    keras.utils.set_random_seed(seed)
    model = kprune.models.lenet_300_100((8, 8, 1), width=0.1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([2 * STEPS - 1], RATE)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], **CHEAP)
    return built(model)


def run(**arguments):
    usual = dict(modes=["init"], levels=1, rate=0.5, rewind_to="epoch:1", seeds=[0], epochs=3, verbose=False)
    return run_lotteries(**{"build": build, "data": SMALL, **usual, **arguments})


def refuse_to_build(seed):
    raise AssertionError("nothing is to be trained")


def without_seconds(cells):
    return [dataclasses.replace(cell, seconds=0.0) for cell in cells]


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class Record(keras.callbacks.Callback):
    """What each fit began with, and at which rates it trained."""

    def __init__(self):
        super().__init__()
        self.fits = []

    def on_train_begin(self, logs=None):
        weights = kprune.masked_weights(self.model)
        begin = {"masks": [w.kept() for w in weights], "values": [w.value() for w in weights]}
        self.fits.append({**begin, "steps": [int(self.model.optimizer.iterations)], "rates": [], "batches": []})

    def on_epoch_begin(self, epoch, logs=None):
        self.fits[-1]["rates"].append(round(float(self.model.optimizer.learning_rate), 6))

    def on_train_end(self, logs=None):
        self.fits[-1]["steps"].append(int(self.model.optimizer.iterations))


@pytest.fixture
def record(monkeypatch):
    """Sees every fit of the networks that `build` makes."""
    found, fit = Record(), keras.Model.fit

    def spy(self, *arguments, callbacks=(), **options):
        return fit(self, *arguments, callbacks=[*callbacks, found], **options)

    monkeypatch.setattr(keras.Model, "fit", spy)
    return found


# What it trains


def by_hand(seed, epochs=3, initial_epoch=0, model=None, callbacks=()):
    model = build(seed) if model is None else model
    batches = kprune.RewindableBatches(*SMALL.train, 64, model, seed)
    fitted = model.fit(
        batches,
        epochs=epochs,
        initial_epoch=initial_epoch,
        shuffle=False,
        callbacks=list(callbacks),
        validation_data=SMALL.test,
        validation_batch_size=64,
        verbose=0,
    )
    return model, [round(value, 6) for value in fitted.history["val_accuracy"]]


def test_each_mode_is_a_training_by_hand():
    report = run(modes=["init", "weights", "learning_rate", "none"], seeds=[3])
    assert [(c.mode, c.masks_of, c.level, c.seed, c.density) for c in report.cells] == [
        ("dense", "dense", 0, 3, 1.0),
        *((mode, mode, 1, 3, 0.5) for mode in ("init", "weights", "learning_rate", "none")),
    ]
    model = build(3)
    start, early = kprune.snapshot(model), kprune.callbacks.TakeSnapshot("epoch:1")
    _, dense = by_hand(3, model=model, callbacks=[early])
    assert (report.cells[0].accuracy, report.cells[0].best) == (dense[-1], max(dense))
    trained, full = kprune.snapshot(model), {w.path: w.kept() for w in kprune.masked_weights(model)}
    to = {"init": (start, "weights"), "weights": (early.snapshot, "weights")}
    to |= {"learning_rate": (early.snapshot, "learning_rate"), "none": (early.snapshot, "none")}
    for cell in report.cells[1:]:
        restore(model, full, trained)
        kprune.prune(model, "magnitude", 0.5, verbose=False)
        rewind(model, *to[cell.mode])
        _, accuracy = by_hand(3, initial_epoch=0 if cell.mode == "init" else 1, model=model)
        assert (cell.accuracy, cell.best) == (accuracy[-1], max(accuracy))
        first = 3 - len(accuracy)
        assert cell.early_accuracy == accuracy[cell.early_stop // STEPS - 1 - first]
        assert cell.curve == tuple(accuracy)
        assert cell.seconds > 0
    assert report.chance == 0.1


def test_where_each_fit_begins(record):
    run(modes=MODES, rate=0.75)
    dense, init, *others = record.fits[:2] + record.fits[3::2][:3] + record.fits[8:]
    again, learning, fine, fresh, mixed = others
    assert len(record.fits) == 10
    (full,) = {mask.all() for mask in dense["masks"]}
    assert full
    assert [fit["steps"] for fit in (init, again, learning, fine, fresh, mixed)] == [
        *([0, 12], [4, 12], [4, 12], [12, 20], [0, 12], [0, 12])
    ]
    low, high = RATE[1], RATE[0]
    assert (init["rates"], again["rates"]) == ([high, high, low], [high, low])
    assert (learning["rates"], fine["rates"]) == ([high, low], [low, low])
    for i, mask in enumerate(init["masks"]):
        np.testing.assert_array_equal(init["values"][i], np.where(mask, dense["values"][i], 0))
        # Other weights, as many of them, in the same places.
        np.testing.assert_array_equal(fresh["masks"][i], mask)
        assert (fresh["values"][i] != init["values"][i])[mask].all()
        assert 0.5 < fresh["values"][i][mask].std() / init["values"][i][mask].std() < 2
        # The same weights, as many of them, in other places.
        assert mixed["masks"][i].sum() == mask.sum() and (mixed["masks"][i] != mask).any()
        np.testing.assert_array_equal(mixed["values"][i], np.where(mixed["masks"][i], dense["values"][i], 0))


def test_controls_of_a_rewound_ticket_begin_where_it_does(record):
    report = run(modes=["weights", "shuffle", "reinitialize"])
    assert [cell.masks_of for cell in report.cells] == ["dense", "weights", "weights", "weights"]
    _, ticket, mixed, fresh = record.fits
    assert [fit["steps"] for fit in (ticket, mixed, fresh)] == [[4, 12], [4, 12], [0, 12]]
    for i, mask in enumerate(ticket["masks"]):
        both = mask & mixed["masks"][i]
        assert both.any() and (mixed["masks"][i] != mask).any()
        np.testing.assert_array_equal(mixed["values"][i][both], ticket["values"][i][both])
        np.testing.assert_array_equal(fresh["masks"][i], mask)


def test_controls_draw_anew_at_each_level_and_for_each_seed(record):
    run(modes=["init", "reinitialize"], levels=2, seeds=[0, 1])
    first, second, other, last = (record.fits[i]["values"][0] for i in (3, 4, 8, 9))
    for one, two in ((first, second), (first, other), (second, last)):
        both = (one != 0) & (two != 0)
        assert both.any() and (one != two)[both].all()


@pytest.mark.parametrize("criterion", ["snip", "large_init"])
def test_criteria_that_need_more(criterion):
    assert run(criterion=criterion).cells[1].density == 0.5


# The file


SETTINGS = ["dataset", "batch_size", "epochs", "levels", "rate", "rewind_to", "criterion", "scope", "rounds"]
RESULTS = ["mode", "masks_of", "level", "seed", "density", "accuracy", "best", "seconds"]
RESULTS += ["early_stop", "early_accuracy", "curve"]


def test_the_file(tmp_path):
    path = tmp_path / "new" / "cells.csv"
    report = run(modes=["init", "shuffle"], path=path, settings={"model": "lenet, small", "decay": None})
    assert path.read_text().splitlines()[0] == ",".join(["model", "decay", *SETTINGS, *RESULTS])
    for row, cell in zip(rows(path), report.cells, strict=True):
        assert row == {
            **{"model": "lenet, small", "decay": "", "dataset": "digits", "batch_size": "64", "epochs": "3"},
            **{"levels": "1", "rate": "0.5", "rewind_to": "epoch:1", "criterion": "magnitude", "scope": ""},
            **{"rounds": ""},
            **{name: str(value) for name, value in dataclasses.asdict(cell).items()},
            "curve": " ".join(map(str, cell.curve)),
        }
    assert sorted(file.name for file in path.parent.iterdir()) == ["cells-levels", "cells.csv"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "cells.csv"
    return path, run(path=path, modes=["init", "shuffle"], levels=2)


@pytest.fixture
def finished(trained, tmp_path):
    """A file of a ticket and a control of two levels, and its report."""
    path, report = trained
    shutil.copytree(path.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "cells.csv", report


class Killed(BaseException):
    pass


LARGE = dict(modes=["init", "weights", "shuffle", "reinitialize"], levels=2, epochs=2)


@pytest.fixture(scope="module")
def whole():
    return run(**LARGE)


# In the first lottery, the second, a control; before the first row: see the next test.
@pytest.mark.parametrize("at", [1, pytest.param(4, marks=pytest.mark.slow), 8])
def test_a_comparison_that_is_killed_goes_on_where_it_stopped(tmp_path, monkeypatch, whole, at):
    path, fit, calls = tmp_path / "cells.csv", keras.Model.fit, []

    def killed(self, *arguments, **options):
        if len(calls) == at:
            raise Killed
        calls.append(self)
        return fit(self, *arguments, **options)

    monkeypatch.setattr(keras.Model, "fit", killed)
    with pytest.raises(Killed):
        run(path=path, **LARGE)
    before = path.read_text() if at else ""
    at = 10**9
    report = run(path=path, **LARGE)
    assert len(calls) == 10  # nothing that was finished is trained again
    assert path.read_text().startswith(before)
    assert without_seconds(report.cells) == without_seconds(whole.cells)
    assert len(rows(path)) == len(whole.cells) == 9


def test_a_comparison_that_was_killed_before_its_first_row_leaves_no_settings_behind(tmp_path, monkeypatch):
    def with_rate(rate):
        def build_with_rate(seed):
            model = build(seed)
            model.compile(keras.optimizers.SGD(rate), model.loss, metrics=["accuracy"], **CHEAP)
            return model

        return build_with_rate

    def killed(self, *arguments, **options):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(keras.Model, "fit", killed)
        run(build=with_rate(0.0), path=tmp_path / "cells.csv")
    report, fresh = (run(build=with_rate(0.5), path=path) for path in (tmp_path / "cells.csv", None))
    assert without_seconds(report.cells) == without_seconds(fresh.cells)


@pytest.mark.slow
def test_a_finished_file_is_only_read_and_a_larger_comparison_goes_on_with_it(finished):
    path, first = finished
    before = path.read_bytes()
    assert run(build=refuse_to_build, path=path, modes=["init", "shuffle"], levels=2) == first
    part = run(build=refuse_to_build, path=path, levels=2)
    assert part.cells == tuple(cell for cell in first.cells if cell.mode != "shuffle")
    assert path.read_bytes() == before
    larger = run(path=path, levels=2, modes=["none", "init", "reinitialize"])
    assert path.read_bytes().startswith(before)
    assert without_seconds(larger.cells) == without_seconds(run(levels=2, modes=["none", "init", "reinitialize"]).cells)


def test_a_row_that_was_deleted_comes_back(finished):
    path, first = finished
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], *lines[5:]]))  # without level 2 of the ticket and level 1 of the control
    again = run(path=path, modes=["init", "shuffle"], levels=2)
    assert without_seconds(again.cells) == without_seconds(first.cells)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(epochs=2), r"different settings: epochs=3 in the file, 2 now\. .*Received: path='.*cells.csv'$"),
        (dict(levels=1, rate=0.4), r"levels=2 in the file, 1 now; rate=0.5 in the file, 0.4 now"),
        (dict(rewind_to="epoch:2"), r"rewind_to=epoch:1 in the file, epoch:2 now"),
        (
            dict(criterion="random", scope="erk"),
            r"criterion=magnitude in the file, random now; scope= in the file, erk now",
        ),
        (dict(settings={"pace": 1}), r"the columns must be pace, dataset, .*Received: path='.*cells.csv'$"),
    ],
)
def test_a_file_of_another_comparison_is_refused(finished, arguments, message):
    path, _ = finished
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        run(**{"build": refuse_to_build, "path": path, "levels": 2, **arguments})
    assert path.read_bytes() == before


def test_levels_without_their_file_are_refused(finished):
    path, _ = finished
    path.unlink()
    with pytest.raises(ValueError, match=r"cells-levels contains levels of runs .*Received: path='.*cells.csv'$"):
        run(build=refuse_to_build, path=path, levels=2, epochs=2)
    assert not path.exists()


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(modes=["init", "shufle"]), r"Received: mode='shufle'$"),
        (dict(modes=["dense"]), r"Received: mode='dense'$"),
        (dict(modes=["rewind"]), r"'rewind' is now called 'weights'\. Received: mode='rewind'$"),
        (dict(modes=["finetune"]), r"'finetune' is now called 'none'\. Received: mode='finetune'$"),
        (dict(modes="init"), r"Received: modes='init'$"),
        (dict(modes=[]), r"Received: modes=\[\]$"),
        (dict(modes=["init", "init"]), r"Received: modes=\['init', 'init'\]$"),
        (
            dict(modes=["shuffle", "none"]),
            r"because they reuse the masks of that mode. Received: modes=\['shuffle', 'none'\]$",
        ),
        (dict(modes=["weights", "init"], rewind_to="init"), r"Received: modes=.*, rewind_to='init'$"),
        (dict(modes=["weights", "init"], rewind_to=0.0), r"Received: modes=.*, rewind_to=0.0$"),
        (dict(rewind_to="begin"), r"Received: rewind_to='begin'$"),
        (dict(modes=["none"], rewind_to="epoch:3"), r"before the end of a level \(batch 12\)"),
        (dict(levels=0), r"Received: levels=0$"),
        (dict(rate=1.0), r"Received: rate=1.0$"),
        (dict(seeds=[0, 0]), r"Received: seeds=\[0, 0\]$"),
        (dict(seeds=[-1]), r"Received: seed=-1$"),
        (dict(epochs=0), r"Received: epochs=0$"),
        (dict(criterion="magnitud"), r"Received: criterion='magnitud'$"),
        (dict(criterion="synflo"), r"Received: criterion='synflo'$"),
        (dict(seeds=2), r"Received: seeds=2$"),
        (dict(modes=None), r"Received: modes=None$"),
        (dict(settings=5), r"Received: settings=5$"),
        (dict(scope="globe"), r"Received: scope='globe'$"),
        (dict(rounds=0), r"Received: rounds=0$"),
        (dict(settings={"level": 3}), r"Received: settings='level'$"),
        (dict(data=dataclasses.replace(SMALL, train=[SMALL.train])), r"Received: data='digits'$"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(**{"build": refuse_to_build, "path": tmp_path / "new" / "cells.csv", **arguments})
    assert list(tmp_path.iterdir()) == []


# The report


def cell(mode, level, seed, accuracy, masks_of=None):
    return LotteryRun(mode, masks_of or mode, level, seed, 0.1**level, accuracy, accuracy, 1.0)


REPORT = LotteryRuns(
    (
        *(cell("dense", 0, seed, accuracy) for seed, accuracy in ((0, 0.98), (1, 0.96))),
        *(cell("init", level, seed, 0.9 - 0.2 * level + 0.1 * seed) for seed in (0, 1) for level in (1, 2)),
        *(cell("shuffle", level, seed, 0.5 / level, "init") for seed in (0, 1) for level in (1, 2)),
    ),
    ("init", "shuffle"),
    0.1,
    {"model": "lenet", "dataset": "digits", "epochs": 3},
)


def test_the_table():
    assert str(REPORT).splitlines() == [
        " level   density          init       shuffle",
        " -------------------------------------------",
        "     0   100.00%   97.0 +- 1.0   97.0 +- 1.0",
        "     1    10.00%   75.0 +- 5.0   50.0 +- 0.0",
        "     2     1.00%   55.0 +- 5.0   25.0 +- 0.0",
        "test accuracy after the last epoch, in percent, mean +- half the range of 2 seeds; "
        "level 0 is the dense network",
    ]
    one = dataclasses.replace(REPORT, cells=tuple(c for c in REPORT.cells if c.seed == 0))
    assert str(one).splitlines()[3] == "     1    10.00%   70.0      50.0"
    assert str(one).endswith("in percent, 1 seed; level 0 is the dense network")


def test_the_report_as_a_dict():
    report = json.loads(json.dumps(REPORT.to_dict()))
    assert list(report) == ["cells", "modes", "chance", "settings"]
    assert report["cells"][0]["accuracy"] == 0.98 and report["modes"] == ["init", "shuffle"]
    assert (REPORT.levels, REPORT.seeds) == ((0, 1, 2), (0, 1))


def test_the_figure(tmp_path):
    figure = REPORT.plot(tmp_path / "lottery.png")
    assert (tmp_path / "lottery.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.xaxis_inverted()
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["init"].get_xydata(), [[1, 0.97], [0.1, 0.75], [0.01, 0.55]])
    np.testing.assert_allclose(lines["shuffle"].get_xydata(), [[1, 0.97], [0.1, 0.5], [0.01, 0.25]])
    np.testing.assert_allclose(lines["dense"].get_ydata(), 0.97)
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.5, 0.98)
    assert figure.get_suptitle() == "lottery tickets: lenet on digits, 3 epochs, mean and range of 2 seeds"
    with pytest.raises(ValueError, match=r"Received: path='lottery.jpeg'$"):
        REPORT.plot("lottery.jpeg")


def with_early_stops(report):
    stops = [dataclasses.replace(c, early_stop=40 * (c.level + c.seed), early_accuracy=0.5) for c in report.cells]
    return dataclasses.replace(report, cells=tuple(stops))


def test_early_stops_have_a_table_and_two_panels_of_their_own():
    report = with_early_stops(REPORT)
    assert str(report).splitlines()[:7] == [*str(REPORT).splitlines(), ""]
    assert str(report).splitlines()[7:] == [
        " level   density        init     shuffle",
        " ---------------------------------------",
        "     0   100.00%    20 +- 20    20 +- 20",
        "     1    10.00%    60 +- 20    60 +- 20",
        "     2     1.00%   100 +- 20   100 +- 20",
        "batches to the lowest test loss, mean +- half the range of 2 seeds",
    ]
    _, accuracy, stop = report.plot().axes
    lines = {line.get_label(): line for line in stop.lines}
    np.testing.assert_allclose(lines["init"].get_xydata(), [[1, 20], [0.1, 60], [0.01, 100]])
    assert {line.get_ydata()[0] for line in accuracy.lines} == {0.5}


def test_the_training_is_drawn_by_density_and_by_mode(tmp_path):
    curves = {cell.key: (0.25, cell.accuracy) if cell.level else (0.1, 0.25, cell.accuracy) for cell in REPORT.cells}
    report = dataclasses.replace(REPORT, cells=tuple(dataclasses.replace(c, curve=curves[c.key]) for c in REPORT.cells))
    by_density, by_mode = report.plot_training(tmp_path / "training.svg").axes
    assert (tmp_path / "training.svg").stat().st_size > 0
    lines = {line.get_label(): line for line in by_density.lines}
    assert list(lines) == ["dense", "10.0%", "1.0%"]
    np.testing.assert_allclose(lines["dense"].get_xydata(), [[1, 0.1], [2, 0.25], [3, 0.97]])
    np.testing.assert_allclose(lines["1.0%"].get_xydata(), [[2, 0.25], [3, 0.55]])  # rewound to epoch 1
    lines = {line.get_label(): line.get_ydata()[-1] for line in by_mode.lines}
    assert lines == pytest.approx({"dense": 0.97, "init": 0.75, "shuffle": 0.5}) and "10.0%" in by_mode.get_title()
    with pytest.raises(
        ValueError, match=r"did not record training curves, .*Repeat the runs with a new file to record their curves\.$"
    ):
        REPORT.plot_training()


def test_a_mode_keeps_its_color_whichever_others_are_drawn():
    def colors(report):
        return {line.get_label(): line.get_color() for line in report.plot().axes[0].lines}

    alone = dataclasses.replace(REPORT, modes=("shuffle",))
    assert colors(alone)["shuffle"] == colors(REPORT)["shuffle"] != colors(REPORT)["init"]
    assert len({_COLORS[mode] for mode in MODES}) == len(MODES)


def test_an_early_stop_is_the_epoch_of_the_lowest_test_loss():
    history = {"val_loss": [3.0, np.nan, 1.0, 2.0], "val_accuracy": [0.1, 0.2, 0.3, 0.4]}
    assert early_stop(history) == (3, 0.3)


PAGE = (DOCS / "lottery.md").read_text()


def lotteries_in_the_docs():
    """(lines of the command, file, rows of the table) for each table of docs/lottery.md."""
    found = re.findall(r"    kprune lottery (.*?)\n\n(\|.*?)\n\n.*?\((?:lottery/)([\w-]+)\.(?:png|csv)\)", PAGE, re.S)
    return [pytest.param(*parts, id=parts[2]) for parts in found]


def _curve(text):
    return tuple(map(float, text.split()))


def read_report(name):
    """The report of a file of the docs, and its rows."""
    read = rows(DOCS / "lottery" / f"{name}.csv")
    kinds = {
        field.name: {"str": str, "int": int, "float": float, "tuple[float,": _curve}[field.type.split()[0]]
        for field in dataclasses.fields(LotteryRun)
    }
    cells = tuple(LotteryRun(**{key: kind(row[key]) for key, kind in kinds.items() if key in row}) for row in read)
    return LotteryRuns(cells, tuple(dict.fromkeys(cell.mode for cell in cells if cell.level)), 0.1, {}), read


@pytest.mark.parametrize(("command", "table", "name"), lotteries_in_the_docs())
def test_the_docs_show_what_their_files_hold(command, table, name):
    report, read = read_report(name)
    printed, *early = (block.splitlines() for block in str(report).replace("+-", "±").split("\n\n"))
    for block in early:  # the table of early stops
        cells = [re.split(r"  +", line.strip()) for line in (block[0], *block[2:-1])]
        rows_of = ["| " + " | ".join(row) + " |" for row in cells]
        assert "\n".join([rows_of[0], "| " + " | ".join(["---:"] * len(cells[0])) + " |", *rows_of[1:]]) in PAGE
    shown = [re.split(r" *\| *", line.strip("| ")) for line in table.splitlines()]
    assert [shown[0], *shown[2:]] == [re.split(r"  +", line.strip()) for line in (printed[0], *printed[2:-1])]
    # And the command is the one that made the file.
    settings = {key: value for key, value in re.findall(r"--(\w+)=(\S+)", command) if key in read[0]}
    assert "model" in settings and {key: read[0][key] for key in settings} == settings
    seeds = int(re.search(r"--seeds=(\d+)|$", command)[1] or 3)
    assert sorted(cell.seed for cell in report.cells if cell.mode == "dense") == list(range(seeds))


def test_the_docs_margins_are_those_of_their_file():
    report, _ = read_report("lenet-300-100-short")
    margins = {f"{report.densities[level]:.0%}": report.margin("init", level) for level in report.levels[1:]}
    shown = re.findall(r"([+-][\d.]+) ± ([\d.]+) at (\d+) %", (DOCS / "lottery.md").read_text())
    assert len(shown) == 3
    for mean, error, density in shown:
        found = margins[f"{density}%"]
        assert (mean, error) == (f"{100 * found[0]:+.2f}", f"{100 * found[1]:.2f}")


def test_a_margin_is_the_mean_of_differences_seed_by_seed():
    def run(mode, level, seed, accuracy):
        return LotteryRun(mode, mode, level, seed, 0.5, accuracy, accuracy, 1.0)

    dense = [run("dense", 0, seed, accuracy) for seed, accuracy in enumerate([0.5, 0.7, 0.9])]
    init = [run("init", 1, seed, accuracy) for seed, accuracy in enumerate([0.6, 0.9, 0.9])]
    report = LotteryRuns((*dense, *init), ("init",), 0.1, {})
    # Differences 0.1, 0.2, 0: their standard deviation is 0.1.
    assert report.margin("init", 1) == pytest.approx((0.1, 0.1 / 3**0.5))
    assert report.margin("init", 1, over="init") == (0.0, 0.0)
    mean, error = LotteryRuns((dense[0], init[0]), ("init",), 0.1, {}).margin("init", 1)
    assert mean == pytest.approx(0.1) and np.isnan(error)
