"""Data of one's own: an .npz of arrays, a .csv, a folder of images."""

import zipfile

import keras
import numpy as np
import pytest

from kprune import data


def arrays(n=6, shape=(4, 3), dtype="uint8"):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2 * n, *shape)).astype(dtype)
    y = np.arange(2 * n, dtype="uint8") % 3
    return {"x_train": x[:n], "y_train": y[:n], "x_test": x[n:], "y_test": y[n:]}


def saved(tmp_path, **changed):
    np.savez(tmp_path / "own.npz", **{k: v for k, v in {**arrays(), **changed}.items() if v is not None})
    return tmp_path / "own.npz"


def test_images_in_an_npz(tmp_path):
    given = arrays()
    found = data.load(str(saved(tmp_path)), batch_size=2)
    assert (found.name, found.input_shape, found.classes, found.batch_size) == ("own.npz", (4, 3, 1), 3, 2)
    for part, (x, y) in (("train", found.train), ("test", found.test)):
        assert (x.dtype, y.dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(x[..., 0], given[f"x_{part}"] / np.float32(255))
        np.testing.assert_array_equal(y, given[f"y_{part}"])


def test_what_is_not_uint8_is_taken_as_it_is(tmp_path):
    given = arrays(dtype="float64", shape=(5,))
    found = data.load(saved(tmp_path, **given, extra=np.zeros(3)))
    assert found.input_shape == (5,) and found.train[0].dtype == np.float32
    np.testing.assert_array_equal(found.train[0], given["x_train"])
    assert data.load(saved(tmp_path, **arrays(dtype="int64", shape=(5, 2)))).input_shape == (5, 2)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"y_test": None}, r"it is missing y_test \(found: x_train, y_train, x_test\)"),
        ({"x_train": np.zeros((0, 4, 3)), "y_train": np.zeros(0)}, "x_train has no examples"),
        ({"y_train": np.eye(6)}, r"must contain one class id per example.* dtype float64 and shape \(6, 6\).*argmax"),
        (
            {"y_train": np.array([0, 1, -1, 0, 1, -2])},
            "y_train must contain integers from 0 to 1,000,000, .* contains -1",
        ),
        ({"y_train": np.full(6, 0.5)}, "y_train must contain integers from 0 to 1,000,000, but it contains 0.5"),
        ({"y_train": np.full(6, 1000001)}, "y_train must contain integers from 0 to 1,000,000, .* contains 1000001"),
        ({"y_train": np.full(6, np.inf, "float16")}, "y_train must contain integers .*, but it contains inf"),
        ({"y_train": np.arange(5)}, "x_train has 6 examples but y_train has 5"),
        ({"x_test": np.zeros((6, 4, 4), "uint8")}, r"shape \(4, 3, 1\) in x_train but \(4, 4, 1\) in x_test"),
        ({"x_test": np.full((6, 4, 3), np.nan)}, "x_test contains values that are NaN"),
        ({"x_test": np.array(["a"] * 6)}, "x_test must be a numeric array .*, but it has dtype <U1"),
        ({"x_test": np.array([None] * 6)}, "x_test contains Python objects: save arrays of numbers"),
    ],
)
def test_what_an_npz_lacks_is_said(tmp_path, changed, says):
    with pytest.raises(ValueError, match=rf"cannot be used as a dataset: .*{says}.*\. Received: name='.*own.npz'$"):
        data.load(saved(tmp_path, **changed))


def test_an_archive_with_a_file_that_is_no_array(tmp_path):
    path = saved(tmp_path, x_test=None)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x_test", "1,2")
    with pytest.raises(
        ValueError, match=r"cannot be used as a dataset: x_test is not an array: write .* with np\.savez\. Received"
    ):
        data.load(path)


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "own.npz").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"as a dataset: it is not an \.npz file, or it is damaged\. Received"):
        data.load(tmp_path / "own.npz")
    with pytest.raises(OSError, match=r"No such file: 'gone\.csv'"):
        data.load("gone.csv", target="y")
    with pytest.raises(ValueError, match=r"folder of images; did you mean 'fashion_mnist'\? Received"):
        data.load("fashion-mnist")
    with pytest.raises(ValueError, match=r"`target` applies only to a .csv file. Received: target='y'"):
        data.load(saved(tmp_path), target="y")


def table(tmp_path, text):
    (tmp_path / "own.csv").write_text(text, encoding="utf-8-sig")
    return tmp_path / "own.csv"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv(tmp_path, delimiter):
    rows = ["kind,width,height", *(f"{'ab'[i % 2]},{i},{i / 2}" for i in range(20))]
    found = data.load(table(tmp_path, "\n".join(rows).replace(",", delimiter)), target="kind")
    assert (found.input_shape, found.classes, len(found.train[1]), len(found.test[1])) == ((2,), 2, 16, 4)
    assert np.bincount(found.test[1]).tolist() == [2, 2]
    for x, y in (found.train, found.test):
        np.testing.assert_array_equal(x[:, 1], x[:, 0] / 2)
        np.testing.assert_array_equal(y, x[:, 0] % 2)
    assert sorted([*found.train[0][:, 0], *found.test[0][:, 0]]) == list(range(20))


def test_integers_are_classes_in_their_order(tmp_path):
    found = data.load(table(tmp_path, "x,y\n" + "\n".join(f"{i},{(2, 10, 100)[i % 3]}" for i in range(15))), target="y")
    np.testing.assert_array_equal(found.train[1], found.train[0][:, 0] % 3)


@pytest.mark.parametrize(
    ("text", "target", "says"),
    [
        ("a,b\n1,2\n", None, "the file has the columns a, b. Received: target=None"),
        (
            "width,kind\n1,2\n",
            "kinds",
            r"the file has the columns width, kind; did you mean 'kind'\? Received: target='kinds'",
        ),
        ("", "y", "the file has no columns"),
        ("x,y\n1\n", "y", "Line 2 has 1 cells, but the header has 2"),
        ("x,y\n1,0\ntall,1\n", "y", "line 3 has 'tall' in column 'x'.*Received: name="),
        ("x,y\n,0\n2,1\n", "y", "line 2 has '' in column 'x'"),
        ("\nx,y\n1,0\n\n\ntall,1\n", "y", "line 6 has 'tall' in column 'x'"),
        ('x,y\n1,"a\nb"\n2\n', "y", "Line 4 has 1 cells, but the header has 2"),
        ("x,y\n1,0.5\n2,1\n", "y", "The target column must contain a class"),
        ("x,y\n1,a\n2,\n", "y", "The target column must contain a class"),
        ("x,y\n1,a\n2,a\n", "y", "at least two different classes"),
        ("x,y\n1,a\n2,b\n", "y", "enough rows to hold out a test set"),
        ("y\na\nb\na\nb\n", "y", "must have at least one column besides"),
    ],
)
def test_what_a_csv_lacks_is_said(tmp_path, text, target, says):
    with pytest.raises(ValueError, match=says):
        data.load(table(tmp_path, text), target=target)


def test_a_folder_without_a_split_has_one(tmp_path, capsys):
    pytest.importorskip("tensorflow")
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(5):
            keras.utils.save_img(tmp_path / name / f"{i}.png", np.full((4, 4, 3), 20 * i + 100 * number), scale=False)
    found = data.load(tmp_path, image_size=(4, 4), batch_size=3, seed=1)
    assert (found.name, found.input_shape, found.classes) == (tmp_path.name, (4, 4, 3), 2)
    assert capsys.readouterr().out == ""  # what the command line prints may be JSON

    def pixels(part):
        return sorted(round(float(image.max()) * 255) for batch, _ in part for image in np.asarray(batch))

    assert len(pixels(found.train)) == 8 and len(pixels(found.test)) == 2
    everything = sorted(pixels(found.train) + pixels(found.test))
    assert everything == sorted(20 * i + 100 * number for i in range(5) for number in range(2))
    again = data.load(tmp_path, image_size=(4, 4), seed=2)
    assert pixels(again.test) == pixels(found.test)
    with pytest.raises(ValueError, match=r"needs `image_size`, \(height, width\) in pixels"):
        data.load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must contain one subfolder per class"):
        data.load(tmp_path / "empty", image_size=(4, 4))
