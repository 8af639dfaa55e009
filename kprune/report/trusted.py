"""Decide which names in a `.keras` file's config.json may be loaded, before any of it is run.

Keras builds a model by looking up names that the file holds and calling what it finds. tf_keras imports any module
for that, takes any exported function for a layer and calls it with the file's arguments, and hands any symbol of
TensorFlow to its operation layers. So each name is looked up here first, among what is imported already, and must be a
part of a model. (What the two look up, and where, was read in Keras 3.13 to 3.15, tf_keras 2.20 to 2.21, tfmot 0.8.1.)
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

from ..masks.masked_layers import Masked
from ..masks.spec import SPEC
from .operations import is_operation, is_pure

# Deeper than any model's config; Python's own limit of recursion is 1,000 calls.
_DEPTH = 200
# Spaces of a library's public names in which Keras looks for a name that comes without its module.
_SPACES = (
    "activations",
    "constraints",
    "initializers",
    "losses",
    "metrics",
    "optimizers",
    "regularizers",
    "layers",
    "models",
    "optimizers.schedules",
    "mixed_precision",
    "dtype_policies",
    "quantizers",
)
# The base classes of all that a model is made of, by their public names; each library has most of them.
_PARTS = (
    "layers.Layer",
    "Operation",
    "initializers.Initializer",
    "regularizers.Regularizer",
    "constraints.Constraint",
    "losses.Loss",
    "metrics.Metric",
    "optimizers.Optimizer",
    "optimizers.legacy.Optimizer",
    "optimizers.schedules.LearningRateSchedule",
    "mixed_precision.Policy",
    "dtype_policies.DTypePolicy",
    "dtype_policies.DTypePolicyMap",
    "quantizers.Quantizer",
    "quantizers.QuantizationConfig",
    "random.SeedGenerator",
    "layers.InputSpec",
)
_TFMOT_PARTS = (
    "sparsity.keras.PruningSchedule",
    "quantization.keras.QuantizeConfig",
    "quantization.keras.quantizers.Quantizer",
)
_LIBRARIES = {"keras", "tf_keras", "tensorflow_model_optimization", "kprune"}
# Parts of a model all the same, but they run what the file holds or names, or read other files.
_REFUSED = {
    "Lambda": "contains arbitrary code",
    "TorchModuleWrapper": "contains a pickled object",
    "JaxLayer": "contains arbitrary code",
    "TFSMLayer": "runs another SavedModel",
    "ReloadedLayer": "runs another SavedModel",
    "TensorFlowOpLayer": "can run any TensorFlow operation",
    "ModuleWrapper": "can call any method",
    "_RNNCellWrapper": "may contain arbitrary code",
    "_RNNCellWrapperV1": "may contain arbitrary code",
    "_BaseFeaturesLayer": "reads other files",
    "FeatureSpace": "reads other files",
}
# Arguments of which a layer makes a list as long as they say.
_LENGTHS = ("num_oov_indices", "ngrams")
_MOST_LISTED = 2**16
# Characters of an operation's arguments, which are a few axes and sizes; some take the square of their number.
_MOST_ARGUMENTS = 2**14
# Values, not objects to look up: Keras's own marks for them in a config.
_VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__", "__tuple__"}
_DTYPE = re.compile(r"(bool|string|u?int(4|8|16|32|64)|b?float(16|32|64)|float8_\w+|complex(64|128))")


class _Refused(Exception):
    """An error that says why a name may not be loaded."""


def check_config(config: Any, library: Any) -> None:
    """Reject a config.json that names anything but parts of a model, without importing or calling what it names.

    Args:
        config: what JSON made of the file's config.json.
        library: `keras` or `tf_keras`, whichever is to load it. What the user has registered there counts as known.

    Raises:
        ValueError: says where in the config, which name, and why.

    >>> import keras
    >>> check_config({"module": "keras.layers", "class_name": "Dense", "config": {"units": 3}}, keras)
    >>> check_config({"module": "os", "class_name": "function", "config": "system"}, keras)
    Traceback (most recent call last):
    ...
    ValueError: at the top of config.json, 'os.system' cannot be part of a model
    """
    if not isinstance(config, dict) or "class_name" not in config:
        raise ValueError("config.json does not describe a model")
    parts = tuple(_public(library, _PARTS)) + tuple(
        _public(sys.modules.get("tensorflow_model_optimization"), _TFMOT_PARTS)
    )
    # A place is (the place around it, a key), which those within share: whole paths would take gigabytes.
    open_nodes: list[tuple[Any, Any, int]] = [(config, None, 0)]
    while open_nodes:
        node, place, depth = open_nodes.pop()
        try:
            if depth > _DEPTH:
                raise _Refused(f"objects are nested more than {_DEPTH} levels deep")
            if isinstance(node, dict):
                for entry in _entries(node):
                    _check_entry(entry, library, parts)
        except _Refused as refusal:
            shown = f"in config.json, at {'.'.join(_last_keys(place))}" if place else "at the top of config.json"
            raise ValueError(f"{shown}, {refusal}") from None
        if isinstance(node, dict | list):
            children = node.items() if isinstance(node, dict) else enumerate(node)
            open_nodes += [
                (child, (place, str(key)[:60]), depth + 1) for key, child in children if isinstance(child, dict | list)
            ]


def _last_keys(place: Any) -> list[str]:
    keys: list[str] = []
    while place and len(keys) < 12:
        place, key = place
        keys.insert(0, key)
    return keys


def _entries(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the objects that Keras would create from a dict, excluding nested objects."""
    if "class_name" in node:
        yield node
    if isinstance(node.get(SPEC), dict):  # a masked layer's config holds the class that it is without masks
        yield {**node[SPEC], "config": node}


def _check_entry(entry: dict[str, Any], library: Any, parts: tuple[type, ...]) -> None:
    name, module, config = entry.get("class_name"), entry.get("module"), entry.get("config")
    registered = entry.get("registered_name")
    if not isinstance(name, str) or not isinstance(module, str | None) or not isinstance(registered, str | None):
        raise _Refused("class_name, module or registered_name is not a string")
    if name in _VALUES or (name == "TensorShape" and "items" in entry):
        dtype = config.get("dtype") if isinstance(config, dict) else None
        if name in ("__tensor__", "__numpy__") and not _DTYPE.fullmatch(str(dtype)):
            raise _Refused(f"{name} has an unknown dtype")
        return
    is_function = name == "function"
    if is_function:
        if not isinstance(config, str):
            raise _Refused("a function has no name")
        name = config
    shown = repr(f"{module}.{name}" if module else name)
    if name in _REFUSED:  # some layers of tf_keras look theirs up by this name alone
        raise _Refused(f"a {name!r} layer {_REFUSED[name]}")
    # Keras asks for what the user has registered by this key first, and for nothing else if it is there.
    key = name if is_function else entry.get("registered_name", name)
    own = library.saving.get_registered_object(key) if key else None
    if own is not None:
        found = [own]
        if inspect.isclass(own) and not issubclass(own, Masked) and name not in (key, own.__name__):
            raise _Refused(f"{shown} is registered under the name of another class, {key!r}")
    else:
        found = _lookup(name, module, is_function, library)
    if not found:
        raise _Refused(
            f"{shown} is unknown. A custom class or function must be imported and registered with "
            f"`{library.__name__}.saving.register_keras_serializable()` before the model is loaded"
        )
    if own is None and registered not in (None, name):
        # Keras asks for this name, too, where it does not find the other.
        found += _lookup(registered, module, is_function, library)
    for thing in found:
        if is_function:
            allowed = inspect.isroutine(thing) and (
                own is not None or thing in _functions(library) or is_operation(thing)
            )
            allowed &= "inbound_nodes" not in entry  # where it would be called with the file's arguments
        else:
            # Every masked class goes by the registered name of their base.
            allowed = (thing is Masked and library.__name__ == "keras") or _is_part(thing, parts, own is not None)
        if not allowed:
            raise _Refused(f"{shown} cannot be part of a model")
        if not is_function:
            _check_arguments(thing, config, shown)
    nodes = entry.get("inbound_nodes")
    if isinstance(nodes, list) and not all(_has_tensor(node) for node in nodes):
        raise _Refused(
            f"{shown} is called on constants only, without an input of the model"
        )  # no Keras writes that; it would compute at once


def _has_tensor(node: Any) -> bool:
    """Return whether a functional model's inbound node takes a layer's output, as written by Keras 3 or tf_keras.

    Only where they look for one: what they take for a constant may hold what looks like one elsewhere.
    """
    if isinstance(node, dict) and "args" in node:
        return _has_keras_tensor([node.get("args"), node.get("kwargs")])
    return isinstance(node, list) and _has_listed_tensor(node)


def _has_keras_tensor(value: Any) -> bool:
    if isinstance(value, dict) and "class_name" in value and value["class_name"] != "__tuple__":
        return value["class_name"] == "__keras_tensor__"
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_has_keras_tensor, within))


def _has_listed_tensor(value: Any) -> bool:
    """Return whether a value contains a tensor as tf_keras writes it: [layer, node, tensor], perhaps with arguments."""
    if isinstance(value, list) and len(value) in (3, 4) and isinstance(value[0], str):
        return value[0] != "_CONSTANT_VALUE" or _has_listed_tensor(value[3:])
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_has_listed_tensor, within))


def _lookup(name: str, module: str | None, is_function: bool, library: Any) -> list[Any]:
    """Return everything that Keras might find under this name, wherever it looks, without importing anything."""
    homes: list[Any] = []
    if module is None or (module == "builtins" and is_function):
        homes = [
            *_public(library, _SPACES),
            *_public(sys.modules.get("tensorflow_model_optimization"), ("sparsity.keras",)),
        ]
    else:
        root, _, path = module.partition(".")
        if root in ("keras", "tf_keras"):
            homes += _public(library, (path,)) if path else [library]
            module = library.__name__ + module[len(root) :]
        homes.append(sys.modules.get(module))
    found = [vars(home).get(name) for home in homes if home is not None]
    return [thing for thing in found if thing is not None]


def _public(home: Any, paths: tuple[str, ...]) -> Iterator[Any]:
    """Yield the objects with these dotted names, except those that this version of the library lacks."""
    for path in paths:
        thing = home
        for word in path.split("."):
            thing = vars(thing).get(word) if inspect.ismodule(thing) else None
        if thing is not None:
            yield thing


def _functions(library: Any) -> list[Any]:
    """Return the library's activation, loss and metric functions, and Keras 3's tensor operations."""
    spaces = _public(library, ("activations", "losses", "metrics", "initializers", "ops"))
    tools = {"get", "serialize", "deserialize"}
    return [f for space in spaces for name, f in vars(space).items() if inspect.isroutine(f) and name not in tools]


def _is_part(thing: Any, parts: tuple[type, ...], own: bool) -> bool:
    if not inspect.isclass(thing) or not issubclass(thing, parts):
        return False
    if not own and thing.__module__.partition(".")[0] not in _LIBRARIES:
        return False
    for base in set(thing.__mro__) - {b for part in parts for b in part.__mro__}:  # on JAX each Layer is a "JaxLayer"
        if base.__name__ in _REFUSED and base.__module__.partition(".")[0] in _LIBRARIES:
            raise _Refused(f"a {thing.__name__!r} layer {_REFUSED[base.__name__]}")
    return True


def _check_arguments(thing: type, config: Any, shown: str) -> None:
    """Reject a layer's arguments if they name a forbidden operation, read another file, or exceed a size limit."""
    names, config = {base.__name__ for base in thing.__mro__}, config if isinstance(config, dict) else {}
    if "TFOpLambda" in names and not is_pure(config.get("function")):
        raise _Refused(f"{shown} runs {config.get('function')!r}, which is not a pure operation")
    if "ClassMethod" in names and (config.get("cls_symbol") != "RaggedTensor" or not _is_ragged(config, "method_name")):
        raise _Refused(
            f"{shown} calls {config.get('cls_symbol')!r}.{config.get('method_name')!r}, which is not allowed"
        )
    if "InstanceProperty" in names and not _is_ragged(config, "attr_name"):
        raise _Refused(f"{shown} reads the attribute {config.get('attr_name')!r}, which is not allowed")
    if isinstance(config.get("vocabulary"), str) and names & {"IndexLookup", "TextVectorization"}:
        raise _Refused(f"{shown} reads its vocabulary from another file, {config['vocabulary']!r}")
    for name in _LENGTHS:
        if isinstance(config.get(name), int | float) and config[name] > _MOST_LISTED:
            raise _Refused(f"{shown} has {name}={config[name]:,}, more than the limit of {_MOST_LISTED:,}")
    if "Operation" in names and "Layer" not in names and len(str(config)) > _MOST_ARGUMENTS:
        raise _Refused(f"the arguments of {shown} are longer than the limit of {_MOST_ARGUMENTS:,} characters")


def _is_ragged(config: dict[str, Any], key: str) -> bool:
    return is_pure(f"RaggedTensor.{config.get(key)}")
