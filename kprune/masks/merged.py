"""Support for LoRA and quantization in masked layers; both change the kernels of layers that are already built.

`layer.enable_lora(rank)` freezes the kernel W and makes the layer read W + s A B, of which every entry trains. A masked
layer reads where(mask, W + s A B, 0): in its call, and wherever its `kernel` is read or saved.

`quantize("int8")` or `("int4")` makes the kernel a variable of integers, which no longer trains. A masked layer is
quantized as it is read: its zeros stay exactly 0, its masks go. Other modes, which train on or calibrate, are refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
from absl import logging
from keras import ops

KEEP_ZEROS = ("int8", "int4")
READ_MERGED = ("kernel", "embeddings")  # the properties of Keras's layers that add LoRA's product


def merged_properties(cls: type, mask_of: Callable[[Any, str], Any]) -> dict[str, property]:
    """Return the properties through which a masked subclass of `cls` reads its merged weights under their masks.

    Args:
        cls: the plain class.
        mask_of: (layer, name of a weight) -> its mask, or None.
    """

    def masked(name: str, plain: property) -> property:
        def read(layer: Any) -> Any:
            value = plain.__get__(layer)
            mask = mask_of(layer, name) if getattr(layer, "lora_enabled", False) else None
            return value if mask is None else ops.where(mask.value, value, ops.zeros((), value.dtype))

        return property(read, doc=plain.__doc__)

    found = {name: getattr(cls, name, None) for name in READ_MERGED}
    return {name: masked(name, plain) for name, plain in found.items() if isinstance(plain, property)}


def factors(layer: Any) -> list[Any]:
    """Return a layer's LoRA factors B; when they are 0, the layer reads only its kernel."""
    if not getattr(layer, "lora_enabled", False):
        return []
    return [v for v in layer.weights if v.name.startswith("lora_") and v.name.endswith("_b")]


def merge(layer: Any, variables: list[Any]) -> None:
    """Merge LoRA into a layer's weights, and set the factors B to 0."""
    lora_b = factors(layer)
    for v in variables if lora_b else ():
        if v.name in READ_MERGED:
            v.assign(ops.cast(getattr(layer, v.name), v.dtype))
    for b in lora_b:
        b.assign(ops.zeros(b.shape, b.dtype))


def quantize_unmasked(layer: Any, plain_class: type, unmask: Callable[[], None]) -> Callable[..., None]:
    """Return a `quantize` method for a masked layer that quantizes the masked weights and removes the masks.

    Args:
        layer: the masked layer. Keras gives each layer a `quantize` of its own when it is made.
        plain_class: its class without masks.
        unmask: writes the zeros and takes the masks away; called once it is known that the layer can be quantized.
    """

    @functools.wraps(layer.quantize)
    def quantize(mode: Any = None, *args: Any, **kwargs: Any) -> None:
        config = kwargs.get("config")
        name = mode or getattr(config, "mode", None)
        if plain_class.quantize is not keras.layers.Layer.quantize:  # type: ignore[attr-defined]
            if name not in KEEP_ZEROS:
                raise ValueError(
                    f"A masked layer can be quantized only to {' or '.join(KEEP_ZEROS)}, which keep its zeros. For "
                    "other modes, call kprune.strip(model) first. GPTQ may then turn zeros into other values, because "
                    "it spreads each column's rounding errors over the columns after it; kprune.summary counts the "
                    f"zeros that remain. Received: mode={name!r}"
                )
            unmask()
            logging.info("kprune: %s was quantized. Its zeros were kept, but its masks were removed.", layer.path)
        original(mode, *args, **kwargs)

    original = layer.quantize
    return quantize
