"""Reads the golden files of tests/golden (see its README.md) and rebuilds their networks in Keras."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np

FOLDER = Path(__file__).parent / "golden"
NAMES = ("mlp3", "convbn", "resnet20_w8")


@dataclass(frozen=True, eq=False)
class Golden:
    """One network of the SynFlow authors' code, with what that code computed on it.

    Attributes:
        meta: The file's JSON: `graph` (nodes), `masked` (ids of the prunable layers, in order), `runs`, ...
        arrays: Every other array of the file, by key.
    """

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def x(self) -> np.ndarray:
        """The batch of inputs, float32 NHWC."""
        return self.arrays["x"].astype(np.float32)

    @property
    def y(self) -> np.ndarray:
        """Class ids of the batch, int32 of shape `(n,)`."""
        return self.arrays["y"]

    def weights(self, layer: str) -> dict[str, np.ndarray]:
        """A layer's weights by name, in the order of the layer's `get_weights()`."""
        names = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
        keys = {name: f"k/{layer}/{name}" for name in names}
        return {name: self.arrays[key] for name, key in keys.items() if key in self.arrays}

    def scores(self, name: str) -> dict[str, np.ndarray]:
        """Scores of a criterion such as `"synflow_r0"`: layer id -> array of the kernel's shape."""
        return {layer: self.arrays[f"score/{name}/{layer}"] for layer in self.masked()}

    def masked(self, run: str = "") -> list[str]:
        """Ids of the layers that a run such as `"mag_global/c1"` prunes, in the order of its masks."""
        return self.meta["runs"].get(run, {}).get("masked", self.meta["masked"])

    def masks(self, run: str) -> dict[str, np.ndarray]:
        """Masks that a run such as `"synflow_exp100_global/c2"` ended with, at density 10 ** -2.

        Returns:
            Layer id -> bool array of the kernel's shape, True = kept.
        """
        shapes = {layer: self.arrays[f"k/{layer}/kernel"].shape for layer in self.masked(run)}
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        bits = np.unpackbits(self.arrays[f"mask/{run}"], count=sum(sizes)).astype(bool)
        parts = np.split(bits, np.cumsum(sizes)[:-1])
        return {layer: part.reshape(shapes[layer]) for layer, part in zip(shapes, parts, strict=True)}


def load(name: str) -> Golden:
    """Reads one golden file.

    Args:
        name: One of `NAMES`.
    """
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    return Golden(json.loads(str(arrays.pop("meta"))), arrays)


def build(golden: Golden, library: ModuleType) -> Any:
    """Builds the network of a golden file, with its weights.

    Args:
        golden: What `load` returned.
        library: `keras` (any backend) or `tf_keras`.

    Returns:
        A Functional model from images to logits; `model.get_layer(id).kernel` finds a kernel by its id.
    """
    tensors = {"input": library.Input(tuple(golden.meta["input_shape_hwc"]))}
    for node in golden.meta["graph"]:
        inputs = [tensors[name] for name in node["in"]]
        # PyTorch pads both sides alike; Keras's "same" does not where the stride is 2.
        if node.get("pad"):
            inputs = [library.layers.ZeroPadding2D(node["pad"], name=f"{node['id']}_pad")(inputs[0])]
        tensors[node["id"]] = _layer(node, library.layers)(inputs if node["op"] == "Add" else inputs[0])
    model = library.Model(tensors["input"], tensors[golden.meta["graph"][-1]["id"]], name=golden.meta["case"])
    for node in golden.meta["graph"]:
        model.get_layer(node["id"]).set_weights(list(golden.weights(node["id"]).values()))
    return model


def _layer(node: dict[str, Any], layers: Any) -> Any:
    name, bias, units = node["id"], node.get("bias"), node.get("kernel_shape", [0])[-1]
    match node["op"]:
        case "Conv2D":
            size = node["kernel_shape"][:2]
            return layers.Conv2D(units, size, node["stride"], padding="valid", use_bias=bias, name=name)
        case "Dense":
            return layers.Dense(units, use_bias=bias, name=name)
        case "BatchNorm":
            return layers.BatchNormalization(epsilon=node["eps"], name=name)
        case "MaxPool":
            return layers.MaxPooling2D(node["size"], node["stride"], name=name)
        case "AvgPool":
            return layers.AveragePooling2D(node["size"], node["stride"], name=name)
        case "ReLU" | "Flatten" | "Add":
            return getattr(layers, node["op"])(name=name)
    raise ValueError(f"Unknown op. Received: node={node!r}")


@contextmanager
def float64() -> Iterator[None]:
    """Inside, what Keras makes is float64."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
