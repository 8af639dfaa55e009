"""One pruned fit with the kprune that is installed, and nothing of this checkout: `python -P one_fit.py`."""

import importlib.util
import pathlib
import sysconfig
import tempfile

import keras
import numpy as np

import kprune

installed = pathlib.Path(kprune.__file__)
assert installed.is_relative_to(sysconfig.get_path("purelib")), installed
for name in ("callbacks", "models", "tests"):
    assert importlib.util.find_spec(name) is None, f"{name} is installed at the top of site-packages"

rng = np.random.default_rng(0)
x = rng.normal(size=(256, 8)).astype("float32")
y = x[:, :2].sum(-1, keepdims=True)
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1)])
model.compile("adam", "mse")
schedule = kprune.schedules.Linear(0.5, 0.75, begin_step=8, end_step=24, frequency=8)
callbacks = [kprune.callbacks.SynFlow(0.5), kprune.callbacks.GradualPruning(schedule)]
model.fit(x, y, epochs=4, verbose=0, callbacks=callbacks)
assert kprune.summary(model).sparsity == 0.75, kprune.summary(model)

with tempfile.TemporaryDirectory() as folder:
    if importlib.util.find_spec("tensorflow") is None:
        file = pathlib.Path(folder, "sparse.keras")
        kprune.strip(model).save(file)
    else:
        file = kprune.export(model, pathlib.Path(folder, "sparse")).keras_file
    kernels = [layer.kernel for layer in keras.models.load_model(file, compile=False).layers]
zeros = sum(int((keras.ops.convert_to_numpy(kernel) == 0).sum()) for kernel in kernels)
assert zeros == 216, zeros  # 0.75 * (8 * 32 + 32 * 1)
print(f"kprune {kprune.__version__} on {keras.backend.backend()}: trained, pruned to 75 %, saved and loaded")
