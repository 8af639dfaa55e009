"""The golden networks, rebuilt, compute what the authors' did.

Not compared: `t/`, the weights of `k/` in PyTorch's layout, and what `meta` says of the authors' float32 runs against
their float64 runs.
"""

import keras
import numpy as np
import pytest
from golden_networks import NAMES, build, load


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_losses_agree_with_the_reference_in_both_modes(name):
    golden = load(name)
    model = build(golden, keras)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for mode in ("eval", "train"):
        logits = keras.ops.convert_to_numpy(model(golden.x, training=mode == "train"))
        expected = golden.arrays[f"logits_{mode}"]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        assert float(loss(golden.y, logits)) == pytest.approx(golden.meta[f"loss_{mode}"], rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_flow_through_absolute_values_agrees_with_the_reference(name):
    golden = load(name)
    model = build(golden, keras)
    model.set_weights([np.abs(weight) for weight in model.get_weights()])
    ones = np.ones((1, *golden.meta["input_shape_hwc"]))
    logits = keras.ops.convert_to_numpy(model(ones, training=False))[0]
    np.testing.assert_allclose(logits, golden.arrays["abs_ones_logits"], rtol=1e-4)
    assert logits.sum() == pytest.approx(golden.meta["synflow_R0"], rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_found_by_id(name):
    golden = load(name)
    model = build(golden, keras)
    kernels = {layer: model.get_layer(layer).kernel for layer in golden.masked()}
    for layer, kernel in kernels.items():
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(kernel), golden.weights(layer)["kernel"])
    assert sum(int(np.prod(kernel.shape)) for kernel in kernels.values()) == golden.meta["prunable_total"]


@pytest.mark.parametrize("name", NAMES)
def test_masks_and_scores_are_read_whole(name):
    golden = load(name)
    for run, facts in golden.meta["runs"].items():
        assert [int(mask.sum()) for mask in golden.masks(run).values()] == facts["layer_remaining"]
    for layer, score in golden.scores("synflow_r0").items():
        assert score.shape == golden.weights(layer)["kernel"].shape
