"""SynFlow on one network of each family of keras.applications: scored, or refused by which layer or operation.

    python benchmarks/applications.py            # prints the table of docs/at_initialization.md, in a few minutes

Random weights and small images, two rounds to a sparsity of 0.9. What a network needs to be scored does not depend on
its weights, and no pretrained ones are downloaded.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

import kprune

# Name, and the smallest images that the family takes.
NETWORKS = {
    **{"VGG16": 32, "ResNet50": 32, "ResNet50V2": 32, "MobileNet": 32, "MobileNetV2": 32, "MobileNetV3Small": 32},
    **{"MobileNetV3Large": 32, "DenseNet121": 32, "EfficientNetB0": 32, "EfficientNetV2B0": 32, "ConvNeXtTiny": 32},
    **{"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75, "NASNetMobile": 32},
}


def row(name: str) -> str:
    """The line of the table for a network."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    size = NETWORKS[name]
    network = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=10)
    try:
        masks = kprune.prune(network, "synflow", 0.9, rounds=2, verbose=False)
    except ValueError as error:
        return f"| {name} | refused | {str(error).partition('Received: ')[2]} |"
    empty = sum(not mask.any() for mask in masks.values())
    return f"| {name} | scored | {kprune.summary(network).sparsity:.3f} sparse, {empty} of {len(masks)} weights empty |"


def main() -> None:
    """Print the table, line by line as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NETWORKS), metavar="NETWORK", help="all by default")
    names = parser.parse_args().names
    if unknown := set(names) - set(NETWORKS):
        parser.error(f"unknown networks: {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    print("| network | SynFlow | what is left, or what is not supported |\n| --- | --- | --- |", flush=True)
    for name in names:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
