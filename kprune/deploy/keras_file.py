"""Write and load the `.keras` file of a stripped model, with plain layers and no optimizer slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..masks import library_of
from .sample import Sample


def write(model: Any, file: Path, batch: Sample) -> None:
    """Write the model to the file without the optimizer's slots."""
    # The optimizer's slots are twice the weights, and of use to nobody who does not go on with this very training.
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        model.optimizer = None
    try:
        model.save(str(file))
    finally:
        if optimizer is not None:
            model.optimizer = optimizer


def load(file: Path, model: Any) -> Any:
    """Load the model in the file with the same Keras as `model`, and give it the seed states of `model`."""
    library = library_of(model)
    try:
        loaded = library.package.models.load_model(str(file), compile=False)
    except TypeError as error:
        raise ValueError(
            "Export: the .keras file of this model cannot be loaded, so nothing was written. Decorate custom classes "
            f"with @{library.package.__name__}.saving.register_keras_serializable(), or export with "
            'format="saved_model". '
            f"Cause: {' '.join(str(error).split())[:100]} ... Received: model={model.name!r}"
        ) from error
    # A layer of the user's own may make its seed anew when it is loaded; to be compared, both draw from one.
    for mine, theirs in zip(library.seed_states(model), library.seed_states(loaded), strict=False):
        theirs.assign(mine)
    return loaded
