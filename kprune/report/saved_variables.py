"""Read the variables of a SavedModel from its checkpoint, without loading or running anything.

`tf.saved_model.load` runs what a file holds as initializers, so it is no way to look into a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from absl import logging

from ..masks import unique_paths
from .checkpoint_index import check_index

# TensorFlow copies and serves a SavedModel with this folder in it, and never looks into it.
_PATHS = ("assets.extra", "kprune.json")
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "VARIABLE_VALUE"
# What TensorFlow saves beside a model's own variables: of training, and the number of checkpoints.
_BESIDE = ("optimizer/", "keras_api/", "save_counter/", "_all_variables/")
_MOST_JSON = 2**23
_DAMAGED = f"{'/'.join(_PATHS)} is damaged, or was written by a later version of kprune"
NONE: Mapping[str, tuple[int, tuple[int, ...]]] = MappingProxyType({})


class SavedVariables:
    """A SavedModel's variables, listed by weight path if kprune exported the model, and by variable name otherwise.

    Attributes:
        shapes: path -> shape, in the model's order; variables of strings are left out.
    """

    shapes: dict[str, tuple[int, ...]]

    def __init__(self, folder: Path):
        import tensorflow as tf

        prefix = folder / "variables" / "variables"
        if not prefix.with_suffix(".index").is_file():
            raise ValueError("it has no variables")
        check_index(prefix.with_suffix(".index"))
        self._reader = tf.train.load_checkpoint(str(prefix))
        shapes, dtypes = self._reader.get_variable_to_shape_map(), self._reader.get_variable_to_dtype_map()
        numbers = {key for key, dtype in dtypes.items() if dtype.size and dtype != tf.string}
        needed = sum(math.prod(shapes[key]) * dtypes[key].size for key in numbers)
        files = list(prefix.parent.glob("variables.data-*"))
        if odd := [file.name for file in files if not file.is_file()]:  # TensorFlow would wait for a pipe
            raise ValueError(f"{odd[0]!r:.80} is not a file")
        held = sum(file.stat().st_size for file in files)
        if needed > held:
            raise ValueError(f"its variables take {needed:,} bytes, but its data files contain only {held:,}")
        names = {key: name for key, name in self._names(shapes).items() if key in numbers}
        known = _read_paths(folder)
        if unknown := known.keys() - shapes.keys():
            raise ValueError(
                f"{'/'.join(_PATHS)} names variables that the SavedModel does not have, such as {min(unknown)!r:.80}"
            )
        self._packed = _read_packed(folder, shapes, dtypes)
        if known:  # which leaves out what is no weight, such as the states of seeds
            names = {key: known[key] for key in names if key in known}
        paths = unique_paths(names.values())
        self._keys = dict(zip(paths, names, strict=True))
        self.shapes = {path: tuple(shapes[key]) for path, key in self._keys.items()}
        for path, (_, _, shape) in self._packed.items():
            self.shapes[path] = shape

    def value(self, path: str) -> np.ndarray:
        """Return the variable's value, unpacked if `kprune.export` packed it."""
        if path not in self._packed:
            return self._reader.get_tensor(self._keys[path])
        bits, values, shape = self._packed[path]
        size = math.prod(shape)
        kept = np.unpackbits(self._reader.get_tensor(bits), count=size).astype(bool)
        stored = self._reader.get_tensor(values)
        if np.count_nonzero(kept) != stored.size:
            raise ValueError(
                f"the packed kernel {path!r:.80} has {stored.size:,} values, but its bitmap marks a different number "
                "of entries"
            )
        value = np.zeros(size, stored.dtype)
        value[kept] = stored
        return value.reshape(shape)

    def _names(self, shapes: Iterable[str]) -> dict[str, str]:
        """Map checkpoint keys to variable names, limited to the model's own variables if TensorFlow lists them."""
        # Not in TensorFlow's public interface, but what its files have been made of since 2.0.
        from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

        if _GRAPH not in shapes:
            return {key: key for key in sorted(shapes)}  # TensorFlow 1 saved variables by their names
        nodes = TrackableObjectGraph.FromString(self._reader.get_tensor(_GRAPH)).nodes
        listed = [child.node_id for child in nodes[0].children if child.local_name == "variables"]
        # Keras lists a model's variables under this name, numbered.
        children = nodes[listed[0]].children if listed else ()
        numbered = sorted((int(child.local_name), child.node_id) for child in children if child.local_name.isdecimal())
        slots = {slot.slot_variable_node_id for node in nodes for slot in node.slot_variables}
        chosen = [i for _, i in numbered] or [i for i in range(len(nodes)) if i not in slots]
        names = {}
        for attribute in (attribute for i in dict.fromkeys(chosen) for attribute in nodes[i].attributes):
            key = attribute.checkpoint_key
            if attribute.name == _VALUE and (numbered or not key.startswith(_BESIDE)):
                names[key] = attribute.full_name.partition(":")[0] or key.removesuffix(f"/.ATTRIBUTES/{_VALUE}")
        return names


def write_paths(
    folder: Path, weights: Iterable[tuple[str, np.ndarray]], packed: Mapping[str, tuple[int, tuple[int, ...]]] = NONE
) -> None:
    """Record in a newly exported SavedModel the path that each weight has in the model.

    Args:
        folder: the SavedModel's.
        weights: the path and the value of each weight. A variable of the SavedModel is the first of its value that is
            left; TensorFlow's own names ("kernel", on JAX) are no paths.
        packed: path -> which of the lists "bits" and "values" holds the kernel, and its shape.
    """
    saved = SavedVariables(folder)
    left, found = list(weights), {}
    for name, key in saved._keys.items():
        value = saved.value(name)
        for i, (path, weight) in enumerate(left):
            if weight.shape == value.shape and weight.astype(value.dtype).tobytes() == value.tobytes():
                found[key] = path
                del left[i]
                break
    if left:
        logging.warning(
            "kprune: the SavedModel has no variable for %s, so reports on it show the SavedModel's own variable names.",
            left[0][0],
        )
        return
    file = folder.joinpath(*_PATHS)
    file.parent.mkdir(exist_ok=True)
    # Format 1, which kprune 0.1.0 reads, knows no packed kernels.
    known = {"format": 2, "weights": found, "packed": packed} if packed else {"format": 1, "weights": found}
    file.write_text(json.dumps(known, indent=1))


def _read_paths(folder: Path) -> dict[str, str]:
    known = _read_json(folder)
    weights = known.get("weights") if known else {}
    if not isinstance(weights, dict) or not all(isinstance(path, str) for path in weights.values()):
        raise ValueError(_DAMAGED)
    return weights


def _read_packed(
    folder: Path, shapes: Mapping[str, list[int]], dtypes: Mapping[str, Any]
) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    """Read and check the packed kernels; map each path to the keys of its bits and values and to its shape."""
    packed = _read_json(folder).get("packed", {})
    found, taken = {}, set()
    for path, entry in packed.items() if isinstance(packed, dict) else [("", None)]:
        number, shape = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if type(number) is not int or not isinstance(shape, list) or len(shape) > 32 or not all(map(_is_size, shape)):
            raise ValueError(_DAMAGED)
        bits, values = (f"{name}/{number}/.ATTRIBUTES/{_VALUE}" for name in ("bits", "values"))
        if number in taken:  # each takes 32 times what it has on the disk
            raise ValueError(f"{'/'.join(_PATHS)} names a packed kernel twice, the second time as {path!r:.80}")
        taken.add(number)
        if any(key in dtypes and not fits(dtypes[key]) for key, fits in ((bits, _is_byte), (values, _is_float))):
            raise ValueError(f"the packed kernel {path!r:.80} does not consist of a bitmap and floats")
        if shapes.get(bits) != [(math.prod(shape) + 7) // 8] or len(shapes.get(values, [])) != 1:
            raise ValueError(f"the bitmap of the packed kernel {path!r:.80} does not match its shape {shape!r:.80}")
        found[path] = bits, values, tuple(shape)
    return found


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_byte(dtype: Any) -> bool:
    return bool(dtype.name == "uint8")


def _is_float(dtype: Any) -> bool:
    return bool(dtype.is_floating)


def _read_json(folder: Path) -> dict[str, Any]:
    file = folder.joinpath(*_PATHS)
    if not file.is_file():
        return {}
    if file.stat().st_size > _MOST_JSON:
        raise ValueError(f"{'/'.join(_PATHS)} is {file.stat().st_size:,} bytes, more than the limit of {_MOST_JSON:,}")
    known: Any = json.loads(file.read_bytes())
    if not isinstance(known, dict) or known.get("format") not in (1, 2):
        raise ValueError(_DAMAGED)
    return known
