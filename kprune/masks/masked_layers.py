"""Masked Keras 3 layers, made in place from any built layer.

A layer that owns a masked weight becomes an instance of a subclass of its own class, of the same name: its `call` runs
the parent's inside a `keras.StatelessScope` in which each masked weight w reads `where(mask, w, 0)`. The gradient at a
pruned weight is then exactly zero, under every optimizer and compiler, and changing a mask never retraces.

Layers between a masked one and the model that build their sublayers themselves (MultiHeadAttention, layers and models
of the user's own) take the class too, only to save and load which of their weights are masked.

Keras has no public way to reach a layer's own sublayers or to add state to a built layer: `_flatten_layers`,
`_tracker` and `_layers` are used here and nowhere else (checked with Keras 3.13.2 and 3.15.1; tests/test_layers.py).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from ..runtime.distribution import to_numpy
from .behind import Behind
from .below import all_layers, states, sublayers
from .merged import merge, merged_properties, quantize_unmasked
from .spec import SPEC, Pending, plain_layer, registered_while_alive, spec_of
from .store import MaskStore, check_names, source_of, token_of
from .types import FOLLOWS
from .variables import protect, release


class MaskedRegularizer(keras.regularizers.Regularizer):
    """A weight regularizer that sees the masked weight, so that its gradient at a pruned entry is zero."""

    def __init__(self, regularizer: Any, mask: Any, behind: Behind):
        self.regularizer, self.mask, self.behind = regularizer, mask, behind

    def __call__(self, weight: Any) -> Any:
        return self.regularizer(self.behind.read(ops.convert_to_tensor(weight), self.mask))


@keras.saving.register_keras_serializable("kprune")
class Masked:
    """The base class that `kprune.mask` adds to every masked layer; it is never instantiated directly."""

    mask_store: MaskStore | None = None

    def get_config(self) -> dict[str, Any]:
        with _plain_class(self):
            plain = keras.saving.serialize_keras_object(self)
        spec = {key: plain[key] for key in ("module", "class_name", "registered_name")}
        masked, weights = _masked_ids(self), self.weights  # type: ignore[attr-defined]
        positions = [i for i, v in enumerate(weights) if id(v) in masked]
        followers = [i for i in positions if getattr(weights[i], FOLLOWS, False)]
        known = spec_of(positions, len(weights), followers, _behind(self))
        if type(self).__name__ == _plain(type(self)).__name__:
            known["source"] = token_of(self)
        else:  # as version 0.1.0 named it
            del known["format"]
        registered_while_alive(self, Masked)
        return {**plain["config"], SPEC: {**spec, **known}}

    @classmethod
    def from_config(cls, config: dict[str, Any], **kwargs: Any) -> Any:
        layer, pending = plain_layer(config)
        _mask_once_built(layer, pending, masked_class if config[SPEC].get("format", 1) > 1 else _masked_class_of_0_1_0)
        return layer

    def load_own_variables(self, store: Any) -> None:
        try:
            super().load_own_variables(store)  # type: ignore[misc]
        except ValueError:
            check_names(store)
            raise
        # The name of 0.1.0 has served; what is saved from here on is named as it is today.
        self.__class__ = masked_class(_plain(type(self)))

    def build_from_config(self, config: dict[str, Any]) -> None:
        super().build_from_config(config)  # type: ignore[misc]
        attach_pending(self)


# Each lives as long as its layers do, and with it the class that it masks, which may be one of a function's own.
_CLASSES: weakref.WeakValueDictionary[tuple[type, str], type] = weakref.WeakValueDictionary()


def masked_class(cls: type) -> type:
    """Return the masked subclass of a Keras layer class, created once and under the name of that class."""
    return _named_class(cls, cls.__name__)


def _masked_class_of_0_1_0(cls: type) -> type:
    """Return the masked class under its old name, so that weights are found in .keras files of version 0.1.0."""
    return _named_class(cls, f"Masked{cls.__name__}")


def _named_class(cls: type, name: str) -> type:
    masked = _CLASSES.get((cls, name))
    if masked is None:
        masked = _CLASSES[cls, name] = _make_masked_class(cls, name)
    return masked


def _plain(masked: type) -> type:
    """Return the class from which a masked class was made."""
    return masked.__mro__[2]


def plain_type(layer: Any) -> type:
    """Return the layer's class, or the plain class if the layer is masked."""
    return _plain(type(layer)) if isinstance(layer, Masked) else type(layer)


def _make_masked_class(cls: type, class_name: str) -> type:
    # A `tf.function` keeps what it finds outside when it is traced: the masked values of that one call.
    untraced = getattr(cls.call, "python_function", None)  # type: ignore[attr-defined]

    class MaskedLayer(Masked, cls):
        load_own_variables = Masked.load_own_variables  # HGQ2 0.2.0 refuses a class that only inherits it

        @functools.wraps(cls.call)  # type: ignore[attr-defined]  # Keras reads the signature of `call`
        def call(self, *args: Any, **kwargs: Any) -> Any:
            store = self.mask_store
            if store is None:
                outputs = super().call(*args, **kwargs)
                attach_pending(self)
                return outputs
            with _masked_scope(self, store):
                return untraced(self, *args, **kwargs) if untraced else super().call(*args, **kwargs)

    for name, merged in merged_properties(cls, _mask_of).items():
        setattr(MaskedLayer, name, merged)
    MaskedLayer.__name__ = MaskedLayer.__qualname__ = class_name
    MaskedLayer.__doc__ = cls.__doc__
    return MaskedLayer


def _mask_of(layer: Any, name: str) -> Any:
    """Return the mask of the layer's weight with this name, or None."""
    store = layer.mask_store
    found = [] if store is None else [m for v, m in zip(store.masked, store.masks, strict=True) if v.name == name]
    return found[0] if found else None


@contextmanager
def _masked_scope(layer: Any, store: MaskStore) -> Iterator[None]:
    """Let the layer read its weights through their masks in a `with` block, and keep state updates made there."""
    masks = {id(v): mask for v, mask in zip(store.masked, store.masks, strict=True)}
    scope = keras.StatelessScope(collect_losses=True)
    values = []
    for v in [*layer.variables, *states(layer)]:
        value = v.value
        values.append((v, value))
        # `add_update` sets the value as it is; the scope's constructor would cast it to the variable's dtype.
        scope.add_update((v, store.behind.read(value, masks[id(v)]) if id(v) in masks else value))
    with scope:
        yield
    for v, old in values:
        new = scope.get_current_value(v)
        if new is not old and id(v) not in masks:
            v.assign(new)
    if scope.losses:  # what the call gave to `add_loss`; from here it reaches the layer, or the trainer's own scope
        layer.add_loss(scope.losses)


def is_masked(layer: Any) -> bool:
    """Whether the layer itself owns masked weights."""
    return isinstance(layer, Masked) and layer.mask_store is not None


def own_weights(layer: Any) -> list[Any]:
    """Return the weights that this layer can mask: its own and, for an RNN layer, those of its cells.

    A cell is called once per time step inside the RNN layer's loop, where masking would be repeated at each step.
    """
    if isinstance(layer, keras.layers.RNN):
        return list(layer.weights)
    below = {id(v) for sub in sublayers(layer) for v in sub.weights}
    return [v for v in layer.weights if id(v) not in below]


def _masks_below(layer: Any) -> dict[int, Any]:
    """Return the masks of the layer and of all layers below it, keyed by weight id; a tied weight has one mask."""
    stores = [sub.mask_store for sub in all_layers(layer) if is_masked(sub)]
    return {id(v): mask for store in stores for v, mask in zip(store.masked, store.masks, strict=True)}


def attach(layer: Any, variables: list[Any], behind: Behind, initial: dict[int, Any] | None = None) -> None:
    """Mask `variables` (weights of the layer or of layers below it) in place; existing masks stay as they are.

    `initial` has the values of new masks, by the id of the weight, where these do not keep all.
    """
    wanted, masks = {id(v) for v in variables}, _masks_below(layer)
    visited: dict[int, bool] = {}

    def visit(current: Any) -> bool:
        """Mask the wanted weights at and below `current`, and return whether anything there is masked."""
        if id(current) in visited:
            return visited[id(current)]
        visited[id(current)] = False
        own = [v for v in own_weights(current) if id(v) in wanted]
        if own:
            _add_masks(current, own, masks, behind, initial or {})
        below = [visit(sub) for sub in sublayers(current) if not isinstance(current, keras.layers.RNN)]
        if any(below) and not isinstance(current, Masked) and not _keras_container(current):
            current.__class__ = masked_class(type(current))
        visited[id(current)] = is_masked(current) or any(below)
        return visited[id(current)]

    visit(layer)


def _keras_container(layer: Any) -> bool:
    """Whether the layer is Keras's own Sequential or Functional, which save their layers' configs themselves."""
    return isinstance(layer, keras.Model) and type(layer).__module__.startswith("keras.")


def _add_masks(
    layer: Any, variables: list[Any], masks: dict[int, Any], behind: Behind, initial: dict[int, Any]
) -> None:
    if is_masked(layer):
        known = {id(v) for v in layer.mask_store.masked}
        wanted = known | {id(v) for v in variables}
        if wanted == known:
            return
        # A wider second `mask()`: one store per layer keeps the file format simple, so it is made anew.
        behind = layer.mask_store.behind
        _remove_store(layer)
        variables = [v for v in own_weights(layer) if id(v) in wanted]
    store = MaskStore(name="mask_store")
    store.add(variables, masks, behind, initial)
    with unlocked(layer):
        layer.mask_store = store
        # One by one: Keras on TensorFlow never forgets the name of a tracked list, which an export would look for.
        for i, state in enumerate(store.states):
            setattr(layer, f"mask_state_{i}", state)
    if not isinstance(layer, Masked):
        layer.__class__ = masked_class(type(layer))
    layer.quantize = quantize_unmasked(layer, _plain(type(layer)), functools.partial(_unmask, layer))
    for v, mask in zip(store.masked, store.masks, strict=True):
        masks[id(v)] = mask
        if not behind.latent:
            protect(v, mask)
        if v.regularizer is not None and not isinstance(v.regularizer, MaskedRegularizer):
            v.regularizer = MaskedRegularizer(v.regularizer, mask, behind)


def _remove_store(layer: Any) -> None:
    store = layer.mask_store
    for v in store.masked:
        release(v)
        if isinstance(v.regularizer, MaskedRegularizer):
            v.regularizer = v.regularizer.regularizer
    with unlocked(layer):
        for i, state in enumerate(store.states):
            layer._tracker.untrack(state)
            delattr(layer, f"mask_state_{i}")
        del layer.mask_store
    layer.quantize = layer.quantize.__wrapped__


def _unmask(layer: Any) -> None:
    """Remove the masks of one layer, and set its weights to the masked values that it computes with."""
    layer.mask_store.enforce()
    merge(layer, layer.mask_store.masked)
    _remove_store(layer)
    layer.__class__ = _plain(type(layer))


def detach(layer: Any) -> None:
    """Undo `attach` for the layer and all layers below it: remove their stores, restore classes and regularizers.

    The weights keep the values that they have stored.
    """
    for current in all_layers(layer):
        if is_masked(current):
            _remove_store(current)
        if isinstance(current, Masked):
            current.__class__ = _plain(type(current))


@contextmanager
def _plain_class(layer: Any) -> Iterator[None]:
    masked = type(layer)
    layer.__class__ = _plain(masked)
    try:
        yield
    finally:
        layer.__class__ = masked


@contextmanager
def unlocked(layer: Any) -> Iterator[None]:
    """Let a built layer accept new state in a `with` block, as Keras does for LoRA and quantization."""
    locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        yield
    finally:
        if locked:
            layer._tracker.lock()


def _masked_ids(layer: Any) -> set[int]:
    return {id(v) for sub in all_layers(layer) if is_masked(sub) for v in sub.mask_store.masked}


def _behind(layer: Any) -> Behind:
    stores = (sub.mask_store for sub in all_layers(layer) if is_masked(sub))
    return next((store.behind for store in stores), Behind())


def _mask_once_built(layer: Any, pending: Pending, named: Callable[[type], type]) -> None:
    """Mask the weights at `pending.positions` once the layer has `pending.expected` weights."""
    layer.__class__ = named(type(layer))
    source = source_of(pending.source)
    if source is not None and len(source.weights) == pending.expected:  # read now: a build may be inside of a graph
        masks = _masks_below(source)
        pending.initial = {i: to_numpy(masks[id(v)]) for i, v in enumerate(source.weights) if id(v) in masks}
    build = pending.build = layer.build
    object.__setattr__(layer, "_pending_masks", pending)

    @functools.wraps(build)  # Keras reads the signature of `build`
    def build_and_mask(*args: Any, **kwargs: Any) -> None:
        build(*args, **kwargs)
        attach_pending(layer)

    layer.build = build_and_mask
    attach_pending(layer)


def attach_pending(layer: Any) -> None:
    """Mask the weights that a loaded config names once all exist: after `build`, or the first call if there is none."""
    if "_pending_masks" not in vars(layer):
        return
    pending: Pending = vars(layer)["_pending_masks"]
    weights = layer.weights
    if len(weights) == pending.expected:
        object.__delattr__(layer, "_pending_masks")
        object.__setattr__(layer, "build", pending.build)
        initial = {id(weights[i]): mask for i, mask in pending.initial.items()}
        attach(layer, [weights[i] for i in pending.positions], pending.behind, initial)
        for i in pending.followers:
            setattr(weights[i], FOLLOWS, True)
        for sub in filter(is_masked, all_layers(layer) if initial else ()):
            sub.mask_store.settle()  # a clone that is given no weights trains those it was initialized with
