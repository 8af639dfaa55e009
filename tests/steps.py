"""The train step that a fit traces: how often, and what in it a TPU could not run."""

import contextlib
import re

import keras
import numpy as np
import pytest
from helpers import EachBatch

import kprune
import kprune.masks.types
import kprune.updates
from kprune.masks.keras3 import pull
from kprune.masks.pulls import is_pulled

# A host's function is a custom call on a CPU, and on a TPU values that are sent to the host and received from it.
HOST_CALLS = re.compile(r"stablehlo\.(custom_call(?: @[\w.$]+)?|send|recv|infeed|outfeed)\b")
TENSORS = re.compile(r"tensor<([^>]*)>")


def violations(module):
    """What in a StableHLO module is no computation for a TPU, each once: float64, dynamic shapes, calls of the host."""
    types = set(TENSORS.findall(module))
    found = {f"float64: {t}" for t in types if re.search(r"(^|x|<)f64$", t)}
    found |= {f"dynamic shape: {t}" for t in types if "?" in t}
    found |= {f"host call: {call}" for call in HOST_CALLS.findall(module)}
    return sorted(found)


def conv_net(*extra, library=keras):
    """8 x 8 x 1 -> 10 logits, with batch normalization and dropout; `extra` layers before the last."""
    layers = library.layers
    return library.Sequential(
        [
            library.Input((8, 8, 1)),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.2),
            *extra,
            layers.Dense(10),
        ]
    )


def images(n=64):
    """Random float32 images for `conv_net` and their int32 classes."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 8, 8, 1)).astype("float32"), rng.integers(0, 10, n).astype("int32")


def compiled(model, library=keras, **arguments):
    """The model, compiled to learn the classes of `images`."""
    loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(library.optimizers.Adam(0.01), loss, metrics=["accuracy"], **arguments)
    return model


class TracedSteps:
    """Watches how a model's train step is traced.

    Args:
        model: of either Keras, before its first fit.

    Attributes:
        step: the model's own step, with the optimizer that it had as it was traced last; of a model of Keras 3 that was
            pulled then, pulled (see kprune/masks/pulls.py).
        arguments: for each trace the shapes and dtypes of what the step was given.
        counts: the number of traces so far at the end of each batch.
        count: the callback that counts, to be given to the fit, of either Keras.
    """

    def __init__(self, model):
        self.model, self.own, self.optimizer, self.pulled = model, model.train_step, None, False
        self.arguments, self.counts = [], []
        self.count = EachBatch(lambda _: self.counts.append(len(self.arguments)))

        def train_step(*arguments):
            self.arguments.append(keras.tree.map_structure(_spec, arguments, none_is_leaf=False))
            self.optimizer, self.pulled = model.optimizer, is_pulled(model)
            return self.own(*arguments)

        model.train_step = train_step

    def step(self, *arguments):
        if self.pulled and not is_pulled(self.model):  # as it is no more after a fit
            pull(self.model)
        now, self.model.optimizer = self.model.optimizer, self.optimizer
        try:
            with getattr(self.optimizer, "stepping", contextlib.nullcontext)():
                return self.own(*arguments)
        finally:
            self.model.optimizer = now

    def lowered(self):
        """The StableHLO module of the step that was traced last."""
        return lowered(self.step, *self.arguments[-1])


@contextlib.contextmanager
def updates_on_device():
    """Masks are updated by compiled programs, as on accelerators; yields their names, one for each trace."""
    traces = []

    def counted(name):
        function = getattr(kprune.updates, name)
        return lambda *given: (traces.append(name), function(*given))[1]

    with pytest.MonkeyPatch.context() as patch:
        for place in (kprune.updates, kprune.masks.types):
            patch.setattr(place, "on_host", lambda variables: False)
        for name in ("_given", "_look", "_count", "_written"):
            patch.setattr(kprune.updates, name, counted(name))
        kprune.updates._programs.cache_clear()
        yield traces
    kprune.updates._programs.cache_clear()


class MoreZeros(EachBatch):
    """Prunes a random fifth of what is left at each batch end."""

    def __init__(self):
        super().__init__(lambda model: kprune.prune(model, "random", 1 - 0.8 ** (self.calls + 1), verbose=False))


def lowered(function, *arguments, platform="tpu"):
    """The StableHLO module of a function of specs; on TensorFlow always as for a CPU."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def flat(*tensors):
        return function(*tf.nest.pack_sequence_as(arguments, tensors))

    return flat.experimental_get_compiler_ir(*tf.nest.flatten(arguments))(stage="stablehlo")


def bool_inputs(module):
    """The types of the bool inputs of a StableHLO module: of masks, in a train step of images."""
    signature = re.search(r"func\.func (?:public )?@main\((.*?)\) ->", module, re.DOTALL)[1]
    return re.findall(r"%arg\d+: tensor<([^>]*i1)>", signature)


def _spec(tensor):
    if keras.backend.backend() == "jax":
        import jax

        return jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
    import tensorflow as tf

    return tf.TensorSpec(tensor.shape, tensor.dtype)
