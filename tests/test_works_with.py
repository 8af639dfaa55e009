"""Other libraries on sparse models: docs/works_with.md; each test is skipped where its package is missing."""

import keras
import numpy as np
import pytest
from keras import layers

import kprune


def small(units):
    return keras.Sequential([keras.Input((8,)), layers.Dense(units, "relu"), layers.Dense(2)])


@pytest.mark.skipif(not hasattr(keras, "distillation"), reason="Keras has no distillation yet")
def test_distiller():
    """The student is pruned, the teacher is frozen; on TensorFlow the distiller itself is built by its first step."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    distiller = keras.distillation.Distiller(
        teacher=small(16), student=small(4), distillation_losses=keras.distillation.LogitsDistillation()
    )
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    schedule = kprune.schedules.Linear(0.0, 0.75, begin_step=0, end_step=6, frequency=1)
    pruning = kprune.callbacks.GradualPruning(schedule)
    distiller.fit(x, (x[:, 0] > 0).astype(int), epochs=2, batch_size=16, verbose=0, callbacks=[pruning])
    assert [w.shape for w in kprune.masked_weights(distiller)] == [(8, 4), (4, 2)]
    assert kprune.summary(distiller.student).sparsity == 0.75 and not kprune.masked_weights(distiller.teacher)


def test_what_has_no_weights_is_still_refused():
    class Unbuilt(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.last = small(4), layers.Dense(2)

        def call(self, x):
            return self.last(self.inner(x))

    for model in (Unbuilt(), keras.Sequential([layers.Dense(2)]), keras.Sequential()):
        with pytest.raises(ValueError, match=r"no weights yet.*unbuilt layers="):
            kprune.mask(model)


def test_keras_tuner(tmp_path):
    keras_tuner = pytest.importorskip("keras_tuner")
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")

    class Hyper(keras_tuner.HyperModel):
        def build(self, hp):
            model = small(16)
            model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
            return model

        def fit(self, hp, model, *args, callbacks=None, **kwargs):
            schedule = kprune.schedules.Linear(0.0, hp.Fixed("sparsity", 0.75), begin_step=0, end_step=4, frequency=1)
            pruning = kprune.callbacks.GradualPruning(schedule)
            return model.fit(*args, callbacks=[pruning, *(callbacks or [])], **kwargs)

    tuner = keras_tuner.RandomSearch(Hyper(), "val_accuracy", max_trials=1, directory=tmp_path)
    tuner.search(x, (x[:, 0] > 0).astype(int), validation_split=0.25, epochs=2, batch_size=8, verbose=0)
    (best,) = tuner.get_best_models(1)
    zeros = [int((layer.kernel.numpy() == 0).sum()) for layer in best.layers]
    assert sum(zeros) == 120, "0.75 of 8 * 16 + 16 * 2"


def test_state_trees():
    """What Orbax saves; it needs each path once."""
    model = small(4)
    model.compile("adam", "mse")
    kprune.mask(model)
    tree = keras.tree.flatten(model.get_state_tree())
    assert len(tree) >= len(model.variables), "weights and masks among them"
