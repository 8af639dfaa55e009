import keras
import numpy as np
import pytest
from golden_networks import NAMES, build, load


@pytest.mark.parametrize("name", NAMES)
def test_logits_agree_with_the_reference(name):
    golden = load(name)
    model = build(golden, keras)
    logits = keras.ops.convert_to_numpy(model(golden.x, training=False))
    expected = golden.arrays["logits_eval"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


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
