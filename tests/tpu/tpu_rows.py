"""What the tests of all roads compile beside the steps of the callbacks."""

from steps import conv_net, images

import kprune


def _in_bfloat16(library):
    library.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        return conv_net(library=library)
    finally:
        library.mixed_precision.set_global_policy("float32")


# name -> how to make it with either Keras
MODELS = {
    "conv net, mixed_bfloat16": _in_bfloat16,
    "LeNet-300-100": lambda library: kprune.models.lenet_300_100((8, 8, 1), 10, library=library),
    "ResNet-20, a quarter as wide": lambda library: kprune.models.resnet_20((8, 8, 1), 10, width=0.25, library=library),
}


def prune_by(model, criterion):
    """Prunes half of a masked model by any criterion, in one round."""
    tracker = kprune.PruningConfig(criterion).tracker()
    if tracker is not None:
        tracker.arrays = [weight.value() for weight in kprune.masked_weights(model)]
    masks = kprune.prune(model, criterion, 0.5, rounds=1, verbose=0, data=images(8), trackers=tracker)
    assert sum(int(mask.sum()) for mask in masks.values()) == sum(mask.size for mask in masks.values()) // 2
