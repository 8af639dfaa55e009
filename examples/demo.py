"""A wide convolutional network on scikit-learn's digits: dense, with few of its channels, and with SynFlow at 99 %.

    python examples/demo.py [--docs]

`make demo` runs it. It leaves the network without its channels in two formats and a figure in out/; with --docs the
figure in docs/ too. Exit status 1 if that network is not half as large and clearly faster than the dense one, and as
good.
"""

import os
import shutil
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, PercentFormatter

import kprune

# So wide that a batch of one image takes longer to compute than to call.
EPOCHS, RATE, SEED, CHANNELS = 6, 2e-3, 0, (224, 224, 448, 448)
BUDGET = {"flops": 0.2}
CALLBACKS = {
    "dense": lambda: [],
    "channels": lambda: [kprune.callbacks.SynFlow(groups="channels", budget=BUDGET, rounds=20, verbose=0)],
    "SynFlow 99 %": lambda: [kprune.callbacks.SynFlow(0.99, rounds=20, verbose=0)],
}
COLORS = {"dense": "#8a94a3", "channels": "#2f6db5", "SynFlow 99 %": "#d9730d"}
EXPORTED, FORMATS = "channels", ("saved_model", "keras")
ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out"


def network(data):
    """Four convolutions with normalization, pooling between the pairs, and one dense layer."""
    x = given = keras.Input(data.input_shape)
    for number, channels in enumerate(CHANNELS, 1):
        x = keras.layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9, name=f"norm{number}")(x))
        if number == 2:
            x = keras.layers.MaxPooling2D()(x)
    logits = keras.layers.Dense(data.classes, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(given, logits)


def train(data, callbacks):
    """The network trained with these, and its test accuracy after each epoch. Seed and epochs are the same."""
    keras.utils.set_random_seed(SEED)
    model = network(data)
    steps = EPOCHS * -(-len(data.train[0]) // data.batch_size)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(RATE, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(**data.fit_kwargs(), epochs=EPOCHS, callbacks=callbacks, verbose=0)
    return model, history.history["val_accuracy"]


def draw(accuracy, summaries):
    """Left: test accuracy by epoch. Right: what is left of each layer."""
    figure = Figure(figsize=(11, 4.6), dpi=144, layout="constrained")
    figure.suptitle(
        "A wide network on 8x8 digits: dense, and pruned by SynFlow before training, whole channels or weights"
    )
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    for name, values in accuracy.items():
        label = f"{name}: {values[-1]:.1%}"
        left.plot(range(1, EPOCHS + 1), values, color=COLORS[name], linewidth=2, label=label, marker="o", markersize=4)
    left.set(xlabel="epoch", ylabel="test accuracy", xlim=(0.6, EPOCHS + 0.4), ylim=(0.8, 1.0))
    left.xaxis.set_major_locator(MultipleLocator(2, offset=1))
    left.yaxis.set_major_locator(MultipleLocator(0.05))
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.legend(loc="lower right", frameon=False, title="after the last epoch", alignment="left")

    rows = summaries["dense"].rows
    at, place = range(len(rows)), ("axes fraction", "data")
    kept = {name: [row.size - row.zeros for row in summary.rows] for name, summary in summaries.items()}
    right.hlines(
        at, [min(numbers) for numbers in zip(*kept.values(), strict=True)], kept["dense"], color="#dfe3e8", lw=5
    )
    for column, (name, summary) in enumerate(summaries.items()):
        right.scatter(kept[name], at, s=46, color=COLORS[name], zorder=2)
        if column:  # the dense network has no sparsity to write
            style = {"color": COLORS[name], "fontsize": 9, "ha": "right", "va": "center_baseline"}
            for y, row in enumerate(summary.rows):
                right.annotate(f"{row.sparsity:.1%}", (1 + 0.11 * column, y), xycoords=place, **style)
    right.annotate("sparsity", (1.22, -1), xycoords=place, fontsize=9, ha="right", va="center_baseline")
    right.set(xscale="log", xlabel="weights left in each layer")
    right.set_yticks(at, [row.path.split("/")[-2] for row in rows])
    right.set_ylim(len(rows) - 0.4, -1.4)
    for axes, grid in ((left, "y"), (right, "x")):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis=grid, color="#ececec", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


def gained(dense, sparse):
    """The exit status: 0 if the SavedModel is as small, as fast and as good as it must be, against dense."""
    small = sparse.entry("saved_model")
    whole = sparse.dense_of(small)  # of the same layers: their files took turns when they were timed
    numbers = {
        "bytes, of dense": (small.bytes / whole.bytes, 0.5),
        "latency, of dense": (small.milliseconds / whole.milliseconds, 0.7),
        "error of dense": (1 - dense.entry("saved_model").accuracy, 0.05),  # else the next line says nothing
        "accuracy, below dense": (dense.entry("saved_model").accuracy - small.accuracy, 0.01),
    }
    print("\nthe SavedModel against that of the dense network")
    for what, (number, most) in numbers.items():
        print(f"{what:22}{number:8.3f}, must be at most {most}: {'yes' if number <= most else 'NO'}")
    return int(any(number > most for number, most in numbers.values()))


def main():
    """Trains the three, prints what came of them, exports two; its exit status says whether that paid."""
    start = time.perf_counter()
    data = kprune.data.load("digits")
    accuracy, summaries, exports = {}, {}, {}
    for name, callbacks in CALLBACKS.items():
        begin = time.perf_counter()
        model, accuracy[name] = train(data, callbacks())
        summaries[name] = kprune.summary(model)
        print(f"{name}: {EPOCHS} epochs in {time.perf_counter() - begin:.0f} s", flush=True)
        if name in ("dense", EXPORTED):
            folder, sparse = OUT / ("dense" if name == "dense" else "sparse"), name != "dense"
            formats = FORMATS if sparse else FORMATS[:1]
            exports[name] = kprune.export(
                model, folder, formats, data=data.test, shrink=sparse, overwrite=True, verbose=0
            )

    sparsest = list(CALLBACKS)[-1]
    print(f"\n{sparsest}, layer by layer\n\n{summaries[sparsest]}\n")
    print(f"{'':14}{'test accuracy':>14}{'weights left':>14}{'compression':>13}{'mult-adds left':>16}")
    for name, summary in summaries.items():
        numbers = f"{summary.size - summary.zeros:>14,}{summary.compression:>12.4g}x{summary.effective_flops:>16,}"
        print(f"{name:14}{accuracy[name][-1]:>14.2%}{numbers}")
    card = exports[EXPORTED].card
    print(f"\n{EXPORTED}: without those that were pruned, in out/sparse: files opened again and compared\n\n{card}")

    figure = draw(accuracy, summaries)
    OUT.mkdir(exist_ok=True)
    figure.savefig(OUT / "demo.png")
    if "--docs" in sys.argv[1:]:
        (ROOT / "docs").mkdir(exist_ok=True)
        shutil.copy(OUT / "demo.png", ROOT / "docs" / "demo.png")
    print(f"\nfigure: out/demo.png; {time.perf_counter() - start:.0f} s in all")
    return gained(exports["dense"].card, card)


if __name__ == "__main__":
    sys.exit(main())
