"""What kprune.export writes for TensorFlow, run by its C API in a program that has neither Python nor kprune in it."""

import pathlib
import shutil
import subprocess

import keras
import pytest
from keras import layers

import kprune

pytestmark = pytest.mark.slow_on_jax

tf = pytest.importorskip("tensorflow")
SOURCE = pathlib.Path(__file__).with_name("saved_model_client.c")
HOME = pathlib.Path(tf.__file__).parent
COMPILER = shutil.which("gcc") or shutil.which("cc")
LIBRARIES = sorted(HOME.glob("libtensorflow_*.so.2"))


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    if COMPILER is None or len(LIBRARIES) < 2 or not (HOME / "include" / "tensorflow" / "c" / "c_api.h").is_file():
        pytest.skip("needs a C compiler, and a TensorFlow with headers and shared libraries")
    program = tmp_path_factory.mktemp("client") / "client"
    words = [COMPILER, SOURCE, f"-I{HOME / 'include'}", *LIBRARIES, f"-Wl,-rpath,{HOME}", "-o", program]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    return program


@pytest.mark.parametrize("shrink", [False, True])
def test_the_c_api_computes_the_same_bits(shrink, client, tmp_path, rng):
    hidden = [layers.Dense(256, "relu", name="wide"), layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((128,)), *hidden, layers.Dense(3)])
    kprune.prune(model, "magnitude", {"wide": 0.5}, pattern="channel", verbose=0)
    kprune.prune(model, "magnitude", 0.9, verbose=0)
    done = kprune.export(model, tmp_path / "net", ["saved_model", "saved_model_packed"], shrink=shrink, verbose=0)
    x = rng.normal(size=(5, 128)).astype("float32")
    x.tofile(tmp_path / "x")
    for format, folder in done.files.items():
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            signature = tf.compat.v1.saved_model.load(session, ["serve"], str(folder)).signature_def["serving_default"]
        [given], [made] = signature.inputs.values(), signature.outputs.values()
        operations = [name.partition(":")[0] for name in (given.name, made.name)]
        words = [client, folder, *operations, tmp_path / "x", tmp_path / format, *x.shape]
        ran = subprocess.run(list(map(str, words)), capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        loaded = tf.saved_model.load(str(folder))
        assert (tmp_path / format).read_bytes() == loaded.serve(tf.constant(x)).numpy().tobytes()
    assert (tmp_path / "saved_model").read_bytes() == (tmp_path / "saved_model_packed").read_bytes()
