"""The contract of the schedules: alone, in a fit, and with each pattern."""

import itertools
import json

import keras
import numpy as np
import pytest
from contract_models import assert_all_equal, count_zeros
from contract_rows import ALL_PATTERNS, SCHEDULE_ROWS, STRUCTURED
from helpers import CHEAP, EachBatch, built, data, mlp
from test_prune import zeros

import kprune
from kprune import schedules
from kprune.schedules import SCHEDULES, as_schedule
from kprune.util.ranking import zeros_for

pytestmark = pytest.mark.one_session


@pytest.mark.once
@pytest.mark.parametrize("name", SCHEDULE_ROWS)
def test_schedule(name):
    schedule = SCHEDULE_ROWS[name](0.8, 7)
    assert isinstance(schedule, SCHEDULES.get(name)) and isinstance(schedule, schedules.Schedule)
    assert as_schedule(schedule) is schedule
    values = [schedule(step) for step in range(20)]
    assert all(0 <= a <= b <= 0.8 for a, b in itertools.pairwise(values))
    assert values[0] == 0.0 and values[7:] == [0.8] * 13
    assert schedule.last_due(0) is None and schedule.last_due(100) == schedule.end_step == 7
    due = [step for step in range(20) if schedule.due(step)]
    assert [schedule.next_due(step) for step in [-1, *due]] == [*due, None]
    assert schedule == SCHEDULE_ROWS[name](0.8, 7) != SCHEDULE_ROWS[name](0.7, 7)
    assert schedules.deserialize(json.loads(json.dumps(schedules.serialize(schedule)))) == schedule


@pytest.mark.parametrize("name", SCHEDULE_ROWS)
def test_a_schedule_in_a_fit_lands_on_its_final_sparsity(name):
    schedule = SCHEDULE_ROWS[name](0.8, 7)
    callback = kprune.callbacks.GradualPruning(schedule)
    # After the n-th batch n steps are taken.
    due = [schedule.last_due(step) for step in range(1, 11)]
    expected = [0 if step is None else zeros_for(276, schedule(step)) for step in due]
    assert expected[-1] == 220
    for _ in range(2):  # the second model starts from nothing, also where the schedule has a single update
        model = mlp()
        model.compile("sgd", "mse", **CHEAP)
        built(model)
        seen = []
        watch = EachBatch(lambda model, seen=seen: seen.append(zeros(model)))
        model.fit(*data(n=80), batch_size=8, verbose=0, callbacks=[callback, watch])
        assert seen == expected


@pytest.mark.parametrize("pattern", STRUCTURED)
def test_schedules_and_patterns_together(pattern):
    model = mlp()
    kprune.mask(model)
    model.compile("sgd", "mse", **CHEAP)
    built(model)
    dense = model.get_weights()
    weights = kprune.masked_weights(model)
    for name, row in SCHEDULE_ROWS.items():
        kprune.set_masks(model, {w.path: np.ones(w.shape, bool) for w in weights})
        model.set_weights(dense)
        model.optimizer.iterations.assign(0)
        schedule, seen = row(0.8, 7), []
        watch = EachBatch(lambda model, seen=seen: seen.append([int(w.kept().sum()) for w in weights]))
        callbacks = [kprune.callbacks.GradualPruning(schedule, pattern=pattern, scope="layerwise"), watch]
        model.fit(*data(n=80), batch_size=8, verbose=0, callbacks=callbacks)
        due = [schedule.last_due(step) for step in range(1, 11)]
        assert len(seen) == len(due)
        for counts, step in zip(seen, due, strict=True):
            asked = [w.size - (0 if step is None else zeros_for(w.size, schedule(step))) for w in weights]
            most = [n + ALL_PATTERNS[pattern].block(w.shape) - 1 for n, w in zip(asked, weights, strict=True)]
            assert all(a <= n <= m for a, n, m in zip(asked, counts, most, strict=True)), (name, step)
        assert all(ALL_PATTERNS[pattern].holds(w.kept()) for w in weights), name


@pytest.mark.parametrize("pattern", ALL_PATTERNS)
def test_a_resumed_fit_has_the_masks_that_it_had(pattern):
    model, masks = mlp(), []
    model.compile("adam", "mse", **CHEAP)
    built(model)
    for _ in range(3):  # each ends some steps after an update, so the weights have moved since
        callback = kprune.callbacks.GradualPruning(schedules.Linear(0.1, 0.8, 1, 28, frequency=7), pattern=pattern)
        begin = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: masks.append({w.path: w.kept() for w in kprune.masked_weights(model)})
        )
        model.fit(*data(n=80), batch_size=8, verbose=0, callbacks=[callback, begin])
        masks.append({w.path: w.kept() for w in kprune.masked_weights(model)})
    _, *pairs = masks
    for ended, resumed in zip(pairs[::2], pairs[1::2], strict=False):
        assert_all_equal(ended, resumed)
    assert count_zeros(masks[1]) < count_zeros(masks[3]) < count_zeros(masks[5])
