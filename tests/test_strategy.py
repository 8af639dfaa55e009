"""auto_strategy finds what this machine has, and says what to install for what it has not; `--strategy` uses it."""

import contextlib
import json
import pathlib
import socket
from importlib import metadata

import keras
import numpy as np
import pytest
from helpers import CHEAP, data, mlp, new_process

import kprune
from kprune.runtime import strategy as strategies

BACKEND = keras.backend.backend()
ON_DEVICES = pathlib.Path(__file__).with_name("on_devices.py")
REMEDY = {
    "jax": r"JAX found no TPU\. .*pip install 'jax\[tpu\]==\d.*Received: strategy='{}', jax=.*, platform=cpu, libtpu=",
    "tensorflow": r"TensorFlow found no TPU\. .*--no-deps tensorflow-tpu==2\.20\.0 \"libtpu<0\.0\.32\".*"
    r"Received: strategy='{}', tensorflow=2.*, tensorflow-tpu=None, libtpu=",
}


def plug_in(folder, vendor="0x1ae0", device="0x0063"):
    """What Linux shows of a PCI device; by default a TPU v5e."""
    slot = folder / "0000:00:05.0"
    slot.mkdir(parents=True)
    (slot / "vendor").write_text(vendor + "\n")
    (slot / "device").write_text(device + "\n")
    return folder


class Nowhere:
    """No strategy at all."""

    scope = contextlib.nullcontext


def trained(strategy):
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = mlp()
        model.compile("adam", "mse", **CHEAP)
        x, y = data()
        model.fit(x, y, epochs=2, verbose=0, callbacks=[kprune.callbacks.SynFlow(0.8, rounds=5, verbose=False)])
    return model


def traces(callback):
    """How often the train step had been traced by the end of each step."""
    traced, after = [], []

    class Traced(keras.layers.Layer):
        def call(self, x):
            traced.append(1)
            return x

    with kprune.auto_strategy("none", verbose=False).scope():
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6), Traced(), keras.layers.Dense(3)])
        model.compile("adam", "mse", jit_compile=True)
        count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs=None: after.append(len(traced)))
        x, y = data()
        model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[*callback, count])
    return after


@pytest.mark.skipif(BACKEND != "jax", reason="TensorFlow traces once: tests/test_training.py")
def test_masks_compile_nothing_that_the_fit_would_not_compile_without_them():
    # On one device of a JAX mesh, Keras's own fit traces again once its weights are what a step has returned.
    plain = traces([])
    schedule = kprune.schedules.PolynomialDecay(0.1, 0.8, 0, 10, frequency=1)
    for callback in (
        kprune.callbacks.GradualPruning(schedule, "random"),
        kprune.callbacks.LotteryTicket(levels=2, rate=0.4, epochs_per_level=1, rewind_to=1),
    ):
        assert max(traces([callback])) <= max(plain)


@pytest.mark.parametrize("name", ["auto", "none", "mirrored"])
def test_on_one_device_a_fit_is_what_it_is_without_a_strategy(name, capsys):
    strategy = kprune.auto_strategy(name)
    line = capsys.readouterr().out
    assert line.startswith(f"strategy {'none' if name == 'auto' else name}: ") and line.endswith(f"1 cpu ({BACKEND})\n")
    model = trained(strategy)
    alone = trained(Nowhere())
    assert kprune.summary(model).sparsity == pytest.approx(0.8, abs=0.01)
    for one, other in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for one, other in zip(kprune.masked_weights(model), kprune.masked_weights(alone), strict=True):
        np.testing.assert_array_equal(one.kept(), other.kept())


def test_the_strategy_is_of_the_library_that_will_use_it(capsys):
    kprune.auto_strategy(library=pytest.importorskip("tf_keras"))
    assert capsys.readouterr().out == "strategy none: 1 cpu (tensorflow)\n"
    kprune.auto_strategy(verbose=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["tpu", "auto"])
def test_a_tpu_that_cannot_be_reached_is_an_error_that_says_what_to_install(name, tmp_path, monkeypatch):
    monkeypatch.setattr(strategies, "_PCI", plug_in(tmp_path))
    with pytest.raises(ValueError, match=REMEDY[BACKEND].format(name)):
        kprune.auto_strategy(name)
    assert kprune.auto_strategy("none") is not None


def test_another_device_of_that_maker_is_no_tpu(tmp_path, monkeypatch):
    monkeypatch.setattr(strategies, "_PCI", plug_in(tmp_path, device="0x0042"))  # a network card
    kprune.auto_strategy()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="about TensorFlow's packages")
@pytest.mark.parametrize("libtpu", ["0.0.31", "0.0.32", "0.0.42.1"])
def test_tensorflow_is_asked_for_its_tpu_only_if_the_packages_fit(libtpu, monkeypatch):
    import tensorflow as tf

    asked = []
    real = tf.tpu.experimental.initialize_tpu_system
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", lambda c: asked.append(c) or real(c))
    there = {"tensorflow": "2.20.0", "tensorflow-tpu": "2.20.0", "libtpu": libtpu}
    monkeypatch.setattr(metadata, "version", there.__getitem__)
    with pytest.raises(ValueError, match=f"found no TPU.*tensorflow-tpu=2.20.0, libtpu={libtpu}"):
        kprune.auto_strategy("tpu")
    assert len(asked) == (libtpu == "0.0.31")


def test_wrong_words_are_answered_with_the_right_ones():
    with pytest.raises(ValueError, match=r"auto, tpu, mirrored, multiworker, none\. Received: strategy='gpu'"):
        kprune.auto_strategy("gpu")
    with pytest.raises(ValueError, match=r"Received: library=None$"):
        kprune.auto_strategy(library=None)
    variable = {"jax": "KERAS_DISTRIBUTION_JOB_ADDRESSES", "tensorflow": "TF_CONFIG"}[BACKEND]
    with pytest.raises(ValueError, match=f"{variable}.*Received: strategy='multiworker'"):
        kprune.auto_strategy("multiworker")


WORKER = "import kprune; kprune.auto_strategy()"


def test_workers_are_found_by_the_environment(monkeypatch):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    if BACKEND == "tensorflow":
        config = {"cluster": {"worker": [address]}, "task": {"type": "worker", "index": 0}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    else:
        for name, value in {"JOB_ADDRESSES": address, "NUM_PROCESSES": "1", "PROCESS_ID": "0"}.items():
            monkeypatch.setenv(f"KERAS_DISTRIBUTION_{name}", value)
    ran = new_process("-c", WORKER)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert (
        ran.stdout.startswith("strategy multiworker: ")
        and f"1 {'cpu' if BACKEND == 'jax' else 'device'} (" in ran.stdout
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="about TensorFlow's strategy")
@pytest.mark.parametrize("name", ["auto", "multiworker"])
def test_where_keras_cannot_fit_it_is_said_at_once(name, monkeypatch):
    cluster = {"worker": ["localhost:1", "localhost:2"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}}))
    with pytest.raises(ValueError, match=rf"Use a tf_keras model.*strategy='{name}', workers=2"):
        kprune.auto_strategy(name)


def test_the_command_line_trains_on_all_devices(tmp_path):
    """JAX has "auto" use CPU devices that someone made; TensorFlow's logical ones have to be asked for."""
    words = ["--model=lenet-300-100", "--width=0.1", "--epochs=2", f"--export_dir={tmp_path}/out"]
    ran = new_process(ON_DEVICES, 4, "train", *words, f"--strategy={'auto' if BACKEND == 'jax' else 'mirrored'}")
    assert ran.returncode == 0, ran.stderr[-2000:]
    name = {"jax": "DataParallel", "tensorflow": "MirroredStrategy"}[BACKEND]
    assert f"strategy mirrored: {name} on 4 cpus ({BACKEND})\n" in ran.stdout
    assert ("dropped 1 of 1437 examples" in ran.stderr) == (BACKEND == "jax")
    assert "10x compression" in ran.stdout and "largest relative difference" in ran.stdout


@pytest.mark.parametrize(("devices", "rows"), [(1, 1437), (2, 1436), (4, 1436), (5, 1435)])
def test_data_are_cut_to_what_the_devices_can_share(monkeypatch, devices, rows):
    monkeypatch.setattr("kprune.data.dataset.replicas", lambda: devices)
    digits = kprune.data.load("digits", batch_size=20)
    data = digits.divisible()
    assert (len(data.train[0]), data is digits) == (rows, devices == 1)


def test_data_are_cut_for_the_devices_and_dealt_to_the_processes(monkeypatch):
    monkeypatch.setattr("kprune.data.dataset.replicas", lambda: 4)
    monkeypatch.setattr(
        "kprune.data.dataset.local_rows", lambda size: slice(size // 2, size)
    )  # the second of two processes
    digits = kprune.data.load("digits", batch_size=64)
    data = digits.divisible()
    np.testing.assert_array_equal(data.train[0], digits.train[0][:1436])
    fed = data.fit_kwargs()
    np.testing.assert_array_equal(fed["x"], digits.train[0][1:1436:2])
    np.testing.assert_array_equal(fed["validation_data"][1], digits.test[1][1::2])
    assert (len(fed["y"]), len(fed["validation_data"][0]), fed["batch_size"]) == (718, 180, 32)
    with pytest.raises(ValueError, match=r"multiple of the number of devices, 4\. Received: batch_size=30"):
        kprune.data.load("digits", batch_size=30).divisible()
