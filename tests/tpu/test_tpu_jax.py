"""Keras 3 on JAX: what libtpu makes of the train step under each callback, and of what scores are computed from."""

import functools

import jax
import keras
import numpy as np
import pytest
from contract_rows import CALLBACK_ROWS
from steps import MoreZeros, TracedSteps, compiled, conv_net, images, violations
from test_tpu_safe import Computed, asking_the_host, wide
from tpu_compiler import TOPOLOGIES, compile_jax, tpu_devices
from tpu_rows import MODELS, prune_by

import kprune
import kprune.updates
from kprune.criteria import CRITERIA
from kprune.criteria.engines.precision import with_float64
from kprune.util.registry import trait

ROAD = "Keras 3 on JAX"


def fit(model, *callbacks, epochs=1):
    """Trains six steps an epoch; returns the traces of the step."""
    steps = TracedSteps(compiled(model))
    callbacks = [*callbacks, MoreZeros(), steps.count]
    model.fit(*images(96), batch_size=16, epochs=epochs, verbose=0, callbacks=callbacks)
    assert kprune.summary(model).sparsity > 0.7
    return steps


def compile_step(steps, topology):
    """The step that was traced last, under data parallelism over all devices of a topology."""
    return compile_jax(steps.step, steps.arguments[-1], topology, split=(1,), donate_argnums=0)


def check_step(steps, topology):
    program = compile_step(steps, topology)
    assert violations(program.module) == []
    assert bool(program.all_reduces) == (len(tpu_devices(topology)) > 1)
    return program


@pytest.mark.parametrize("name", kprune.callbacks.__all__)
def test_train_step(name, note):
    row, model = CALLBACK_ROWS[name], conv_net()
    kprune.mask(model, store="latent" if row.latent else None)
    steps = fit(model, row.make(0.8), epochs=row.epochs)
    assert steps.counts == [1] * 6 * row.epochs
    for topology in TOPOLOGIES:
        note(ROAD, name, topology, check_step(steps, topology))


@pytest.mark.parametrize("name", MODELS)
def test_model(name, note):
    model = MODELS[name](library=keras)
    kprune.mask(model)
    steps = fit(model)
    assert steps.counts == [1] * 6
    for topology in TOPOLOGIES:
        note(ROAD, name, topology, check_step(steps, topology))


class Jit:
    """Stands in for `jax.jit` while scores are computed: notes what is compiled for the host, and what is called.

    What is called, on the default device, is compiled for all topologies, too.
    """

    def __init__(self):
        self.jit, self.programs, self.hosts = jax.jit, {}, []

    def __call__(self, function, **options):
        jitted = self.jit(function, **options)
        if options:  # in the midst of compiling for a TPU
            return jitted

        def call(*arguments):
            for topology in TOPOLOGIES:
                self.programs.setdefault(topology, []).append(compile_jax(function, arguments, topology))
            return jitted(*arguments)

        def lower(*arguments):
            self.hosts.append((jax.config.jax_default_device, {a.dtype for a in jax.tree.leaves(arguments)}))
            return jitted.lower(*arguments)

        call.lower = lower
        return call


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_scoring(criterion, monkeypatch, note):
    model, jit = compiled(conv_net()), Jit()
    kprune.mask(model)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "jit", jit)
        prune_by(model, criterion)
    asks_the_loss = "loss" in trait(CRITERIA.get(criterion), "needs", ())
    assert set(jit.programs) == (set(TOPOLOGIES) if asks_the_loss else set())
    for topology, programs in jit.programs.items():
        assert all(violations(program.module) == [] for program in programs)
        note(ROAD, f"scores: {criterion}", topology, max(programs, key=lambda program: program.hbm))
    assert len(jit.hosts) == criterion.startswith("synflow")
    assert all(device == jax.devices("cpu")[0] and np.dtype("float64") in dtypes for device, dtypes in jit.hosts)


UPDATES = {
    "unstructured": ("unstructured", ()),
    "2:4": ("n_of_m", (2, 4)),
    "4x4": ("tiles", (4, 4)),
    "channel": ("tiles", (None, 1)),
}


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(("pattern", "split"), [("unstructured", False), *((pattern, True) for pattern in UPDATES)])
def test_mask_update(topology, pattern, split, note):
    """Weights that lie in parts on all devices are counted where they lie: numbers are added up, none is gathered."""
    spec = jax.ShapeDtypeStruct
    shapes, start, n_keep = [(32, 16), (64, 3, 3, 8)], spec((), "float32"), spec((2,), "int32")
    values, given = [(spec(shape, "float32"), spec(shape, "bool")) for shape in shapes], [()] * len(shapes)
    slots = [[spec(shape, "float32")] * 2 for shape in shapes]
    several = split and len(tpu_devices(topology)) > 1
    layouts = tuple((shape, tuple(range(len(shape))), shape) for shape in shapes)
    form = (keras.ops.absolute, *UPDATES[pattern], layouts)
    for name, function, arguments in [
        ("look", kprune.updates._look, (values, given)),
        ("count", kprune.updates._count, (values, given, spec((), "int32"))),
        ("write", kprune.updates._written, (values, given, slots, [[start] * 2] * 2, n_keep)),
    ]:
        function = functools.partial(function, form)
        split_arguments = (0, 2) if name == "write" else (0,)
        program = compile_jax(function, arguments, topology, split_arguments if split else (), out_shardings=None)
        assert violations(program.module) == []
        assert bool(program.all_reduces) == several
        assert "all-gather" not in program.hlo and "all-to-all" not in program.hlo
        if split:
            note(ROAD, f"mask update, {pattern}: {name}", topology, program)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("pattern", ["unstructured", "tiles"])
def test_the_sums_of_movement_stay_in_parts_as_they_are_ranked(topology, pattern, note):
    """They are float64, which a TPU emulates."""
    function = functools.partial(kprune.updates._given, (pattern, True))
    arguments = ([jax.ShapeDtypeStruct((64, 16), "float64")],)
    with with_float64():
        program = compile_jax(function, arguments, topology, (0,), out_shardings=None)
    assert all(found.startswith("float64: ") for found in violations(program.module))
    assert "all-gather" not in program.hlo and "all-to-all" not in program.hlo
    note(ROAD, f"mask update by movement, {pattern}: its sums", topology, program)


def step_with(function):
    """The traces of a fit of a masked model one of whose layers computes `function`."""
    model = conv_net(Computed(function))
    kprune.mask(model)
    return fit(model)


def test_libtpu_refuses_what_the_memory_cannot_hold():
    with pytest.raises(Exception, match="Ran out of memory on HBM"):
        compile_jax(lambda x: x + 1, (jax.ShapeDtypeStruct((6_000_000_000,), "float32"),), "v5e:1x1")


def test_libtpu_compiles_a_call_of_the_host_and_the_check_sees_it():
    program = compile_step(step_with(asking_the_host), "v5e:1x1")
    assert violations(program.module) == ["host call: recv", "host call: send"]


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")  # in the fit, which has none
def test_libtpu_compiles_float64_and_the_check_sees_it():
    steps = step_with(wide)
    with jax.enable_x64(True):
        program = compile_step(steps, "v5e:1x1")
    assert any(found.startswith("float64: ") for found in violations(program.module))


def test_a_step_whose_data_are_not_split_has_no_all_reduce():
    steps = step_with(lambda x: x)
    assert compile_jax(steps.step, steps.arguments[-1], "v5e:2x2").all_reduces == 0
