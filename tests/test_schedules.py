"""Schedules: their values by hand, tfmot's values step by step, and what holds of every schedule at every frequency."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from helpers import steady
from hypothesis import given, settings
from hypothesis import strategies as st

import kprune
from kprune import schedules
from kprune.schedules import (
    Constant,
    Cosine,
    Exponential,
    Geometric,
    Linear,
    OneCycle,
    PerLayer,
    PolynomialDecay,
    Schedule,
    as_schedule,
)
from kprune.util.ranking import zeros_for

pytestmark = pytest.mark.one_session
steady = settings(steady, max_examples=200)
GOOD = dict(initial_sparsity=0.2, final_sparsity=0.8, begin_step=10, end_step=50)


@pytest.fixture
def tfmot():
    """Imported late: tfmot has effects on `tf.keras`."""
    import tensorflow_model_optimization as tfmot

    return tfmot.sparsity.keras


def updates(schedule, until):
    """The steps at which a callback that looks at every step updates the masks."""
    return sorted({step for t in range(until + 1) if (step := schedule.last_due(t)) is not None})


def test_constant_by_hand():
    schedule = Constant(0.8, begin_step=3)
    assert [schedule(t) for t in (0, 2, 3, 4, 1000)] == [0.0, 0.0, 0.8, 0.8, 0.8]
    assert [schedule.last_due(t) for t in (0, 2, 3, 4, 1000)] == [None, None, 3, 3, 3]
    assert Constant(0.5)(0) == 0.5


def test_polynomial_by_hand():
    schedule = PolynomialDecay(0.2, 0.8, begin_step=10, end_step=50)  # power 3
    # .8 - .6 * (1 - p)^3 at p = 0, 1/4, 1/2, 3/4: (1 - p)^3 = 1, 27/64, 1/8, 1/64
    expected = {9: 0.0, 10: 0.2, 20: 0.546875, 30: 0.725, 40: 0.790625, 50: 0.8, 51: 0.8, 10**9: 0.8}
    assert {t: schedule(t) for t in expected} == pytest.approx(expected, abs=1e-12)
    linear = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=8, power=1)
    assert [linear(t) for t in range(9)] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    root = PolynomialDecay(0.0, 0.6, begin_step=0, end_step=4, power=0.5)
    assert root(3) == pytest.approx(0.3)  # .6 - .6 * (1/4)^.5


def test_exponential_by_hand():
    schedule = Exponential(0.0, 0.9999, begin_step=100, end_step=500)
    # density 10^(-4p)
    assert [schedule(t) for t in (99, 100, 200, 300, 400, 500)] == pytest.approx([0, 0, 0.9, 0.99, 0.999, 0.9999])
    half = Exponential(0.5, 0.875, begin_step=0, end_step=2)
    assert half(1) == pytest.approx(0.75)  # density 1/2 -> 1/4 -> 1/8


def test_linear_by_hand():
    schedule = Linear(0.2, 0.8, begin_step=10, end_step=50)
    assert [schedule(t) for t in (9, 10, 20, 40, 50, 99)] == pytest.approx([0, 0.2, 0.35, 0.65, 0.8, 0.8])


def test_cosine_by_hand():
    schedule = Cosine(0.2, 0.8, begin_step=0, end_step=12)
    # cos(pi p) at p = 0, 1/6, 1/4, 1/3, 1/2, 2/3: 1, sqrt(3)/2, sqrt(2)/2, 1/2, 0, -1/2
    expected = {0: 0.2, 2: 0.5 - 0.15 * 3**0.5, 3: 0.5 - 0.15 * 2**0.5, 4: 0.35, 6: 0.5, 8: 0.65, 12: 0.8}
    assert {t: schedule(t) for t in expected} == pytest.approx(expected, abs=1e-12)


def test_one_cycle_by_hand():
    schedule = OneCycle(0.1, 0.9, begin_step=0, end_step=2, alpha=4 * math.log(2), beta=2 * math.log(2))
    # exp(beta - alpha p) = 4, 1, 1/4 at p = 0, 1/2, 1: shares 5/4 / (5, 2, 5/4)
    assert [schedule(t) for t in (0, 1, 2)] == pytest.approx([0.1 + 0.8 / 4, 0.1 + 0.8 * 5 / 8, 0.9])
    default = OneCycle(0.0, 1 - 1e-9, begin_step=0, end_step=14)
    assert default(0) == pytest.approx((1 + math.exp(-9)) / (1 + math.exp(5)))
    assert default(5) == pytest.approx((1 + math.exp(-9)) / 2)  # p = beta / alpha
    rises = np.diff([default(t) for t in range(15)])
    assert rises.argmax() in (4, 5)
    for beta in (-1e4, 1e4):  # neither overflows
        extreme = OneCycle(0.1, 0.9, 0, 10, beta=beta)
        assert 0.1 <= extreme(0) <= extreme(5) <= extreme(10) == 0.9


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("alpha", "beta") for value in (math.nan, math.inf, "3", None, True)]
    + [("alpha", 0), ("alpha", -1.0)],
)
def test_bad_one_cycles(name, value):
    with pytest.raises(ValueError) as error:
        OneCycle(**GOOD, **{name: value})
    assert_names(str(error.value), name, value)


def test_geometric_by_hand():
    schedule = Geometric(0.5, begin_step=10, end_step=25, frequency=5)
    assert updates(schedule, 40) == [10, 15, 20, 25]
    expected = {9: 0.0, 10: 0.5, 14: 0.5, 15: 0.75, 20: 0.875, 24: 0.875, 25: 0.9375, 99: 0.9375}
    assert {t: schedule(t) for t in expected} == expected
    assert (schedule.rate, schedule.initial_sparsity, schedule.final_sparsity) == (0.5, 0.5, 0.9375)
    short = Geometric(0.5, begin_step=10, end_step=21, frequency=5)  # the last update comes after one step
    assert updates(short, 40) == [10, 15, 20, 21] and short(20) == 0.875 and short(21) == 0.9375
    assert Geometric(0.2, 0, 200).final_sparsity == 0.488  # 1 - .8^3, and not .48799999999999993
    assert Geometric(0.3, 7, 7, frequency=3).final_sparsity == 0.3
    assert Geometric(0.0, 0, 100, frequency=10).final_sparsity == 0.0


@steady
@given(st.floats(0.001, 0.6), st.integers(0, 30), st.integers(0, 60), st.integers(1, 20))
def test_each_geometric_update_prunes_the_same_share(rate, begin, steps, frequency):
    try:
        schedule = Geometric(rate, begin, begin + steps, frequency=frequency)
    except ValueError as error:  # all 61 updates of .6 leave less than 1e-12
        assert "would prune all weights" in str(error) and (1 - rate) ** (1 + steps / frequency) < 1e-11
        return
    densities = [1.0, *(1 - schedule(step) for step in updates(schedule, begin + steps))]
    for before, after in itertools.pairwise(densities):
        assert after == pytest.approx(before * (1 - rate), abs=2e-12)


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, math.nan, "0.5", None, True])
def test_bad_rates(value):
    with pytest.raises(ValueError) as error:
        Geometric(value, 0, 10)
    assert_names(str(error.value), "rate", value)


def test_a_geometric_that_would_leave_nothing():
    with pytest.raises(ValueError, match=r"Received: rate=0.9, begin_step=0, end_step=15, frequency=1$"):
        Geometric(0.9, 0, 15, frequency=1)


@pytest.mark.parametrize(("name", "value"), [("begin_step", -1), ("end_step", 9), ("frequency", 0), ("end_step", 1.5)])
def test_bad_geometric_steps(name, value):
    with pytest.raises(ValueError) as error:
        Geometric(**{"rate": 0.5, "begin_step": 10, "end_step": 50, name: value})
    assert_names(str(error.value), name, value)


def test_last_due_by_hand():
    schedule = PolynomialDecay(0.0, 0.8, begin_step=2, end_step=11, frequency=4)
    assert updates(schedule, 30) == [2, 6, 10, 11]
    steps = [None, None, 2, 2, 2, 2, 6, 6, 6, 6, 10, 11, 11]
    assert [schedule.last_due(t) for t in range(13)] == steps
    rare = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=50)  # tfmot's silent no-op: frequency 100 of 50 steps
    assert updates(rare, 99) == [0, 50]
    assert rare(50) == 0.8
    at_once = Exponential(0.1, 0.8, begin_step=7, end_step=7)
    assert updates(at_once, 20) == [7]
    assert [at_once(t) for t in (6, 7, 8)] == [0.0, 0.8, 0.8]


def test_the_first_update_is_exactly_the_initial_sparsity_in_counts():
    for initial in (0.1, 0.3, 0.57, 0.7):
        for cls in (PolynomialDecay, Exponential, Linear, Cosine):
            schedule = cls(initial, 0.9, begin_step=5, end_step=45)
            assert zeros_for(1000, schedule(5)) == round(1000 * initial)


# Hypothesis


@st.composite
def any_schedule(draw):
    low, high = sorted([draw(st.floats(0, 0.9999)), draw(st.floats(0, 0.9999))])
    begin = draw(st.integers(0, 50))
    end = begin + draw(st.integers(0, 200))
    frequency = draw(st.integers(1, 300))
    kind = draw(
        st.sampled_from(["constant", "polynomial", "exponential", "linear", "cosine", "one_cycle", "geometric"])
    )
    if kind == "constant":
        return Constant(high, begin)
    if kind == "polynomial":
        return PolynomialDecay(low, high, begin, end, frequency=frequency, power=draw(st.floats(0.1, 10)))
    if kind == "one_cycle":
        shape = dict(alpha=draw(st.floats(0.01, 100)), beta=draw(st.floats(-100, 100)))
        return OneCycle(low, high, begin, end, frequency=frequency, **shape)
    if kind == "geometric":
        return Geometric(draw(st.floats(0, 0.1)), begin, end, frequency=frequency)
    return schedules.SCHEDULES.get(kind)(low, high, begin, end, frequency=frequency)


@steady
@given(any_schedule())
def test_monotone_and_within_its_bounds(schedule):
    values = [schedule(t) for t in range(schedule.begin_step, schedule.end_step + 3)]
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(values))
    assert min(values) >= schedule.initial_sparsity - 1e-12
    assert max(values) <= schedule.final_sparsity + 1e-12
    assert all(schedule(t) == 0.0 for t in range(schedule.begin_step))


@steady
@given(any_schedule())
def test_the_last_update_is_the_final_sparsity_at_any_frequency(schedule):
    assert schedule(schedule.end_step) == schedule.final_sparsity
    steps = updates(schedule, schedule.end_step + 2 * schedule.frequency)
    assert steps[0] == schedule.begin_step and steps[-1] == schedule.end_step
    assert schedule(steps[-1]) == schedule.final_sparsity
    gaps = np.diff(steps)
    assert all(gaps[:-1] == schedule.frequency) and (gaps <= schedule.frequency).all()


@steady
@given(any_schedule(), st.integers(0, 400))
def test_the_next_update_is_the_first_one_after(schedule, step):
    later = [t for t in range(schedule.end_step + 1) if schedule.due(t) and t > step]
    assert schedule.next_due(step) == min(later, default=None)


@steady
@given(any_schedule(), st.integers(0, 300))
def test_last_due_is_the_latest_one(schedule, step):
    latest = schedule.last_due(step)
    past = [t for t in updates(schedule, 400) if t <= step]
    assert latest == (past[-1] if past else None)
    if latest is not None:
        assert schedule.last_due(latest) == latest


# tfmot


TFMOT = [
    dict(initial_sparsity=0.0, final_sparsity=0.8, begin_step=0, end_step=200),
    dict(initial_sparsity=0.3, final_sparsity=0.7, begin_step=17, end_step=217, frequency=10, power=1),
    dict(initial_sparsity=0.5, final_sparsity=0.99, begin_step=5, end_step=104, frequency=7, power=4),
]


@pytest.mark.parametrize("config", TFMOT)
def test_polynomial_decay_is_tfmots_formula(tfmot, config):
    ours, theirs = PolynomialDecay(**config), tfmot.PolynomialDecay(**config)
    for step in range(config["begin_step"], config["end_step"] + 20):
        assert ours(step) == pytest.approx(float(theirs(step)[1]), abs=1e-6)


@pytest.mark.parametrize("config", TFMOT)
def test_a_tfmot_polynomial_decay_is_read_step_by_step(tfmot, config):
    theirs = tfmot.PolynomialDecay(**config)
    schedule = as_schedule(theirs)
    assert isinstance(schedule, Schedule)
    begin, end = config["begin_step"], config["end_step"]
    assert (schedule.begin_step, schedule.end_step) == (begin, end)
    assert schedule.frequency == config.get("frequency", 100)
    for step in range(begin, end + 20):
        assert schedule(step) == pytest.approx(float(theirs(step)[1]), abs=2e-7)
    assert all(schedule(step) == 0.0 for step in range(begin))
    # tfmot's update steps are ours, but for the one at the end, which tfmot may leave out.
    turns = [step for step in range(end + 20) if bool(theirs(step)[0])]
    assert sorted({*turns, end}) == updates(schedule, end + 20)


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.57, 0.7, 0.8, 0.9, 0.95, 0.99])
def test_a_tfmot_schedule_lands_on_the_sparsity_it_was_given(tfmot, sparsity):
    # float32(.7) is .699999988: of 100,000 weights that would be 69,999.
    decay = as_schedule(tfmot.PolynomialDecay(0.05, sparsity, 0, 50))
    constant = as_schedule(tfmot.ConstantSparsity(sparsity, 4))
    for size in (100, 1000, 100_000, 10_000_000):
        exact = round(size * sparsity)
        assert zeros_for(size, decay(50)) == exact
        assert zeros_for(size, constant(4)) == exact
        assert all(zeros_for(size, decay(step)) <= exact for step in range(40, 50))


@pytest.mark.parametrize("end", [-1, 30, 99])
def test_a_tfmot_constant_sparsity_prunes_once_at_its_begin(tfmot, end):
    theirs = tfmot.ConstantSparsity(0.5, begin_step=12, end_step=end, frequency=4)
    schedule = as_schedule(theirs)
    assert [schedule(t) for t in (0, 11, 12, 13, 500)] == [0.0, 0.0, 0.5, 0.5, 0.5]
    assert updates(schedule, 200) == [12]
    for step in range(12, 60):
        assert schedule(step) == float(theirs(step)[1])


def test_a_users_own_tfmot_schedule(tfmot):
    class Steps(tfmot.PruningSchedule):
        """Half of the final sparsity up to the middle, then all of it."""

        begin_step, end_step, frequency = 10, 20, 5

        def __call__(self, step):
            import tensorflow as tf

            return self._should_prune_in_step(step, 10, 20, 5), tf.where(step < 15, 0.25, 0.5)

        def get_config(self):
            return {}

    schedule = as_schedule(Steps())
    assert [schedule(t) for t in (9, 10, 14, 15, 20, 21)] == [0.0, 0.25, 0.25, 0.5, 0.5, 0.5]
    assert updates(schedule, 40) == [10, 15, 20]


def test_ours_is_passed_through():
    schedule = Constant(0.5)
    assert as_schedule(schedule) is schedule


# By name, and as what JSON can hold


def held(schedule):
    return json.loads(json.dumps(schedules.serialize(schedule)))


def test_a_schedule_is_found_by_name():
    assert schedules.get("polynomial") is PolynomialDecay and schedules.get("one_cycle") is OneCycle
    assert schedules.get(Constant(0.5)) == schedules.get(held(Constant(0.5))) == Constant(0.5)
    with pytest.raises(ValueError, match=r"pass one of 'constant', .*Received: schedule='polynomal'$"):
        schedules.get("polynomal")


@steady
@given(any_schedule())
def test_what_is_serialized_comes_back(schedule):
    assert schedules.deserialize(held(schedule)) == schedule


def test_the_config_of_a_group_by_hand():
    schedule = PerLayer({"conv": Constant(0.5), "": Geometric(0.2, 0, np.int64(4), frequency=2)})
    assert held(schedule) == {
        "class_name": "per_layer",
        "config": {
            "schedules": {
                "conv": {"class_name": "constant", "config": {"sparsity": 0.5, "begin_step": 0}},
                "": {
                    "class_name": "geometric",
                    "config": {"rate": 0.2, "begin_step": 0, "end_step": 4, "frequency": 2},
                },
            }
        },
    }
    assert schedules.deserialize(held(schedule)) == schedule


def test_tfmots_come_back(tfmot):
    schedule = as_schedule(tfmot.PolynomialDecay(0.2, 0.7, 2, 9, power=2, frequency=3))
    again = schedules.deserialize(held(tfmot.PolynomialDecay(0.2, 0.7, 2, 9, power=2, frequency=3)))
    assert [again(t) for t in range(12)] == [schedule(t) for t in range(12)]
    assert updates(again, 12) == updates(schedule, 12) == [2, 5, 8, 9]

    class Own(tfmot.ConstantSparsity):
        pass

    with pytest.raises(ValueError, match=r"Received: schedule=Own$"):
        schedules.serialize(Own(0.5, 0))


def test_a_schedule_of_ones_own_is_saved_once_it_is_registered():
    @dataclasses.dataclass(frozen=True)
    class Late(Schedule):
        late: float = 0.5

        def at(self, progress):
            return self.final_sparsity if progress > self.late else self.initial_sparsity

    schedule = Late(0.1, 0.6, 0, 10, 0.3)
    with pytest.raises(ValueError, match=r"can be saved only if it is registered.*Received: schedule=.*Late\("):
        schedules.serialize(schedule)
    schedules.SCHEDULES.register("late")(Late)
    try:
        assert schedules.deserialize(held(schedule)) == schedule
    finally:
        del schedules.SCHEDULES._entries["late"]


def test_an_argument_that_is_not_kept_is_said():
    class Forgets(Constant):
        def __init__(self, tenths):
            super().__init__(tenths / 10)

    with pytest.raises(ValueError, match=r"Received: argument='tenths'$"):
        Forgets(5).get_config()


@pytest.mark.parametrize(
    "config",
    [
        {},
        "constant",
        {"class_name": "constant"},
        {"class_name": "constant", "config": 3},
        {"class_name": "constant", "config": {"sparsity": 1.5}},
        {"class_name": "constant", "config": {"percent": 50}},
        {"class_name": "per_layer", "config": {"schedules": 3}},
        {"class_name": "tfmot", "config": {"schedule": {"class_name": "prune_scope", "config": {}}}},
        {"class_name": "print", "config": {}},
        {"class_name": ["constant"], "config": {}},
    ],
)
def test_a_bad_config_is_refused(config):
    with pytest.raises(ValueError, match="Received: "):
        schedules.deserialize(config)


# Bad arguments


NOT_SPARSITIES = [-0.1, 1.0, 1, 1.5, math.nan, math.inf, "0.5", None, True, [0.5]]
NOT_STEPS = [-1, 30.5, math.nan, "10", None]
BAD = [
    *(("initial_sparsity", value) for value in NOT_SPARSITIES),
    *(("final_sparsity", value) for value in NOT_SPARSITIES),
    *(("begin_step", value) for value in [*NOT_STEPS, 51]),
    *(("end_step", value) for value in [*NOT_STEPS, 9]),
    *(("frequency", value) for value in [*NOT_STEPS, 0]),
]


def assert_names(message, name, value):
    """The message ends "Received: ... name=value ..."."""
    told, _, received = message.rpartition("Received: ")
    assert told, message
    assert f"{name}={value}" in received or f"{name}={value!r}" in received, message


@pytest.mark.parametrize("cls", [PolynomialDecay, Exponential, Linear, Cosine, OneCycle])
@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_arguments(cls, name, value):
    cls(**GOOD)
    with pytest.raises(ValueError) as error:
        cls(**{**GOOD, name: value})
    assert_names(str(error.value), name, value)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "3", None])
def test_bad_powers(value):
    with pytest.raises(ValueError) as error:
        PolynomialDecay(**GOOD, power=value)
    assert_names(str(error.value), "power", value)


@pytest.mark.parametrize("value", NOT_SPARSITIES)
def test_bad_constant_sparsities(value):
    with pytest.raises(ValueError) as error:
        Constant(value)
    assert_names(str(error.value), "sparsity", value)


@pytest.mark.parametrize("value", NOT_STEPS)
def test_bad_constant_steps(value):
    with pytest.raises(ValueError) as error:
        Constant(0.5, begin_step=value)
    assert_names(str(error.value), "begin_step", value)


def test_a_falling_schedule_is_refused():
    with pytest.raises(ValueError, match=r"must not decrease.*Received: initial_sparsity=0.8, final_sparsity=0.2$"):
        PolynomialDecay(0.8, 0.2, 0, 10)


@pytest.mark.parametrize("value", ["polynomial", 0.5, None, PolynomialDecay, round])
def test_what_is_not_a_schedule(value):
    with pytest.raises(ValueError) as error:
        as_schedule(value)
    assert_names(str(error.value), "schedule", value)
    assert all(name in str(error.value) for name in schedules.SCHEDULES)


def test_numbers_of_numpy_are_numbers():
    schedule = PolynomialDecay(np.float64(0.2), np.float64(0.8), np.int64(10), np.int64(50), frequency=np.int64(5))
    assert schedule == PolynomialDecay(0.2, 0.8, 10, 50, frequency=5)
    assert updates(schedule, 60)[:3] == [10, 15, 20]


def test_a_schedule_does_not_change():
    schedule = Constant(0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.final_sparsity = 0.6
    assert schedule == Constant(0.5) and schedule != Constant(0.6)


# PerLayer


def test_per_layer_by_hand():
    one = Linear(0.0, 0.5, begin_step=10, end_step=20, frequency=4)
    other = Constant(0.9, begin_step=15)
    schedule = PerLayer({"conv": one, "dense|head": other})
    assert schedule(9) == {"conv": 0.0, "dense|head": 0.0}
    assert schedule(15) == {"conv": 0.25, "dense|head": 0.9}
    assert schedule(99) == {"conv": 0.5, "dense|head": 0.9}
    assert updates(schedule, 40) == [10, 14, 15, 18, 20]
    assert [schedule.next_due(step) for step in (0, 10, 14, 15, 18, 20)] == [10, 14, 15, 18, 20, None]
    assert schedule.due(14) and schedule.due(15) and not schedule.due(16)
    assert isinstance(schedule, Schedule) and schedule.final_sparsity == {"conv": 0.5, "dense|head": 0.9}
    assert (schedule.begin_step, schedule.end_step) == (10, 20)
    assert schedule.last_due(9) is None
    # At step 15 only the second updates: the first still has what it got at step 14.
    assert schedule.applied(15) == {"conv": pytest.approx(0.2), "dense|head": 0.9}
    assert schedule.applied(9) == {"conv": 0.0, "dense|head": 0.0}
    assert as_schedule(schedule) is schedule
    assert schedule == PerLayer({"conv": one, "dense|head": other}) != PerLayer({"conv": other, "dense|head": other})


def test_a_per_layer_does_not_change_with_the_dict_it_was_given():
    given = {"a": Constant(0.5)}
    schedule = PerLayer(given)
    given["b"] = Constant(0.6)
    assert list(schedule.schedules) == ["a"]


def test_a_per_layer_of_tfmots(tfmot):
    schedule = PerLayer({"a": tfmot.PolynomialDecay(0.2, 0.7, 2, 9, frequency=3), "b": Constant(0.5)})
    assert updates(schedule, 20) == [0, 2, 5, 8, 9]
    assert schedule(9) == {"a": 0.7, "b": 0.5}


@steady
@given(st.lists(any_schedule(), min_size=1, max_size=3), st.integers(0, 300))
def test_a_per_layer_updates_when_a_member_does(members, step):
    schedule = PerLayer({str(i): member for i, member in enumerate(members)})
    assert updates(schedule, 300) == sorted({t for member in members for t in updates(member, 300)})
    assert schedule(step) == {str(i): member(step) for i, member in enumerate(members)}
    latest = schedule.last_due(step)
    if latest is not None:  # nothing happens between its updates
        assert schedule.applied(step) == schedule.applied(latest)
    # A member's masks follow what it would do by itself.
    assert schedule.applied(step) == {str(i): member.applied(step) for i, member in enumerate(members)}


@pytest.mark.parametrize(
    ("value", "received"),
    [
        ({}, "schedules={}"),
        (Constant(0.5), "schedules=Constant"),
        ([("a", Constant(0.5))], "schedules=[('a'"),
        ({"(": Constant(0.5)}, "expression='('"),
        ({3: Constant(0.5)}, "expression=3"),
        ({"a": 0.5}, "schedule=0.5"),
        ({"a": PerLayer({"b": Constant(0.5)})}, "schedule=PerLayer"),
    ],
)
def test_bad_per_layers(value, received):
    with pytest.raises(ValueError) as error:
        PerLayer(value)
    assert f"Received: {received}" in str(error.value)


def test_every_expression_of_a_per_layer_has_to_be_found():
    schedule = PerLayer({"conv": Constant(0.5), "^dense": Constant(0.6)})
    schedule.check(["net/conv1/kernel", "dense/kernel"])
    with pytest.raises(
        ValueError, match=r"matches none of these weights: net/conv1/kernel, net/dense/kernel\. Received: .*'\^dense'$"
    ):
        schedule.check(iter(["net/conv1/kernel", "net/dense/kernel"]))


# The figure


def lines(figure):
    """Label -> [(step, sparsity)] of the corners, as drawn."""
    (axes,) = figure.axes
    assert axes.get_xlabel() == "optimizer step" and axes.get_ylabel() == "sparsity"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [line.get_label() for line in axes.lines]
    assert all(line.get_drawstyle() == "steps-post" for line in axes.lines)
    return {line.get_label(): [(int(x), float(y)) for x, y in line.get_xydata()] for line in axes.lines}


def test_the_figure_shows_what_is_applied(tmp_path):
    schedule = Linear(0.0, 0.8, begin_step=10, end_step=40, frequency=20)
    figure = kprune.plot_schedule(schedule, tmp_path / "schedule.png")
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")
    corners = [(0, 0), (10, 0), (30, pytest.approx(1.6 / 3)), (40, 0.8), (44, 0.8)]
    assert lines(figure) == {"Linear": corners}
    assert lines(kprune.plot_schedule(schedule, steps=35)) == {"Linear": [*corners[:3], (35, corners[2][1])]}
    assert lines(kprune.plot_schedule(schedule, steps=5)) == {"Linear": [(0, 0), (5, 0)]}


def test_the_figure_of_several_schedules():
    one, other = Constant(0.5), Constant(0.6, 5)
    assert list(lines(kprune.plot_schedule([one, other, Linear(0, 0.3, 0, 2)]))) == ["Constant", "Constant_2", "Linear"]
    layered = PerLayer({"conv": one, "head": other})
    assert lines(kprune.plot_schedule(layered, steps=6)) == {
        "'conv'": [(0, 0), (0, 0.5), (6, 0.5)],
        "'head'": [(0, 0), (5, 0.6), (6, 0.6)],
    }
    assert list(lines(kprune.plot_schedule({"all": one, "some": layered}))) == ["all", "some: 'conv'", "some: 'head'"]


def test_the_figure_of_tfmots(tfmot):
    figure = kprune.plot_schedule(tfmot.PolynomialDecay(0.0, 0.8, 0, 50, power=1), steps=60)
    assert lines(figure) == {"tfmot's PolynomialDecay": [(0, 0), (0, 0), (50, 0.8), (60, 0.8)]}


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(any_schedule(), st.integers(1, 300))
def test_the_figure_is_right_at_every_step(schedule, steps):
    (corners,) = lines(kprune.plot_schedule({"it": schedule}, steps=steps)).values()
    for step in range(steps + 1):
        assert [y for x, y in corners if x <= step][-1] == schedule.applied(step)


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ((Constant(0.5), "a.jpeg"), "path='a.jpeg'"),
        ((Constant(0.5), None, 0), "steps=0"),
        ((Constant(0.5), None, 1.5), "steps=1.5"),
        ((0.5,), "schedule=0.5"),
        (([],), "schedules=[]"),
        (({},), "schedules={}"),
    ],
)
def test_bad_figures(arguments, received):
    with pytest.raises(ValueError) as error:
        kprune.plot_schedule(*arguments)
    assert str(error.value).endswith(f"Received: {received}")
