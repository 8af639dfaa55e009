"""A VGG-11 on scikit-learn's digits: dense, then with SynFlow at 90 % and at 99 % sparsity. `make demo` runs it.

    python examples/demo.py [--docs]

Leaves the 99 % model as a SavedModel and .keras file and a figure in out/; with --docs the figure in docs/ too.
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

EPOCHS, RATE, SEED = 15, 2e-3, 0
SPARSITIES = {"dense": 0.0, "SynFlow 90 %": 0.9, "SynFlow 99 %": 0.99}
COLORS = {"dense": "#8a94a3", "SynFlow 90 %": "#2f6db5", "SynFlow 99 %": "#d9730d"}
ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out"


def train(data, sparsity):
    """The network trained at that sparsity, and its test accuracy after each epoch. Seed and epochs are the same."""
    keras.utils.set_random_seed(SEED)
    model = kprune.models.vgg_11(data.input_shape, data.classes, width=0.5)
    steps = EPOCHS * -(-len(data.train[0]) // data.batch_size)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(RATE, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    callbacks = [kprune.callbacks.SynFlow(sparsity, verbose=0)] if sparsity else []
    history = model.fit(**data.fit_kwargs(), epochs=EPOCHS, callbacks=callbacks, verbose=0)
    return model, history.history["val_accuracy"]


def draw(accuracy, summaries):
    """Left: test accuracy by epoch. Right: what is left of each layer."""
    figure = Figure(figsize=(11, 4.6), dpi=144, layout="constrained")
    figure.suptitle("VGG-11 at half width on 8x8 digits: dense, and pruned by SynFlow before training")
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


def main():
    """Trains the three, prints what came of them, exports the sparsest."""
    start = time.perf_counter()
    data = kprune.data.load("digits")
    accuracy, summaries, exports = {}, {}, {}
    for name, sparsity in SPARSITIES.items():
        begin = time.perf_counter()
        model, accuracy[name] = train(data, sparsity)
        summaries[name] = kprune.summary(model)
        print(f"{name}: {EPOCHS} epochs in {time.perf_counter() - begin:.0f} s", flush=True)
        if name != "SynFlow 90 %":
            folder = OUT / ("dense" if name == "dense" else "sparse")
            exports[name] = kprune.export(model, folder, overwrite=True)

    sparsest = list(SPARSITIES)[-1]
    print(f"\n{sparsest}, layer by layer\n\n{summaries[sparsest]}\n")
    print(f"{'':14}{'test accuracy':>14}{'weights left':>14}{'compression':>13}{'mult-adds left':>16}")
    for name, summary in summaries.items():
        numbers = f"{summary.size - summary.zeros:>14,}{summary.compression:>12.4g}x{summary.effective_flops:>16,}"
        print(f"{name:14}{accuracy[name][-1]:>14.2%}{numbers}")
    print("\nSavedModel, reloaded and checked against the trained model")
    for name, export in exports.items():
        files = f"{export.saved_model_bytes:>12,} bytes, zipped {export.zipped_bytes:>10,}"
        print(f"{name:14}{files}  {export.saved_model.relative_to(ROOT)}/ (and .keras)")

    figure = draw(accuracy, summaries)
    OUT.mkdir(exist_ok=True)
    figure.savefig(OUT / "demo.png")
    if "--docs" in sys.argv[1:]:
        (ROOT / "docs").mkdir(exist_ok=True)
        shutil.copy(OUT / "demo.png", ROOT / "docs" / "demo.png")
    print(f"\nfigure: out/demo.png; {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
