"""`kprune.sensitivity` on a tf_keras model."""

import numpy as np
import pytest
from helpers import data
from tfk_helpers import masked_mlp, mlp, state

import kprune


def test_the_scan_prunes_each_weight_alone_and_leaves_the_model_as_it_was():
    model = masked_mlp("adam", half=False, metrics=["mae", "mse"])
    x, y = data()
    model.fit(x, y, verbose=0)
    kprune.prune(model, "random", 0.25, scope="layerwise", verbose=False)
    model.evaluate(x, y, verbose=0)
    before, metrics = state(model), [v.numpy() for metric in model.metrics for v in metric.variables]
    report = kprune.sensitivity(model, (x, y), (0.25, 0.75), verbose=False)
    assert state(model) == before
    for v, value in zip((v for metric in model.metrics for v in metric.variables), metrics, strict=True):
        assert v.numpy() == value
    assert report.metric in ("mae", "mean_absolute_error")
    assert report.dense == pytest.approx(np.mean(np.abs(model.predict(x, verbose=0) - y)), rel=1e-5)
    assert [row.values[0.25] for row in report.rows] == [report.dense] * 3
    seen = []

    def look(model):
        seen.append([int((w.value() == 0).sum()) for w in kprune.masked_weights(model)])
        error = np.mean(np.abs(model.predict(x, verbose=0) - y))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return error

    with pytest.raises(KeyboardInterrupt):
        kprune.sensitivity(model, look, (0.75,), verbose=False)
    assert seen == [[24, 36, 9], [72, 36, 9], [24, 108, 9], [24, 36, 27]]
    assert state(model) == before
    np.testing.assert_array_equal([w.kept().sum() for w in kprune.masked_weights(model)], [72, 108, 27])


def test_a_model_without_masks_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"kprune\.mask\(model\)\.model"):
        kprune.sensitivity(mlp(), lambda model: 0.5)
