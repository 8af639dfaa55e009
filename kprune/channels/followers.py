"""Biases and normalization parameters that are masked along with a pruned channel, so that it emits exactly 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from ..masks import mask_followers, masked_weights
from ..masks.following import follow_by
from .constants import channels_read
from .elementwise import is_elementwise
from .graph import Call, ChannelGraph, Mixer
from .trace import channel_graph

Kept = Callable[[Any, int], np.ndarray]
"""(weight, axis) -> whether any entry is kept at each index of the axis."""


def add_followers(model: Any) -> None:
    """Mask the bias, gamma and beta of each channel that the masks of a model can prune.

    A channel is pruned where all weights that lead to it are. Its bias is masked, and each gamma, beta and bias of a
    depthwise convolution behind it, up to what mixes channels; of a sum, where all its summands are pruned. So the
    channel emits 0, or what its activation makes of 0. A warning says where the graph is not known.
    """
    try:
        graph = channel_graph(model)
    except (NotImplementedError, TypeError, ValueError) as error:
        logging.warning(
            "kprune: cannot find the biases and normalization layers that belong to the pruned filters, so only "
            "the filters themselves are pruned. Reason: %s",
            error,
        )
        return
    masked = {id(weight.variable) for weight in masked_weights(model)}

    def if_all_were_pruned(variable: Any, axis: int) -> np.ndarray:
        return np.full(variable.shape[axis], id(variable) not in masked)

    mask_followers(model, [v for v, kept in _followers(graph, if_all_were_pruned) if not kept.all()])


@follow_by
def kept_followers(model: Any) -> dict[int, np.ndarray]:
    """Map the id of each follower in a masked model to its mask, which is derived from the kernels' masks."""
    masked = {id(weight.variable): weight for weight in masked_weights(model)}

    def kept(variable: Any, axis: int) -> np.ndarray:
        weight = masked.get(id(variable))
        return np.ones(variable.shape[axis], bool) if weight is None else weight.kept_along(axis)

    return {id(v): mask for v, mask in _followers(channel_graph(model), kept)}


def _followers(graph: ChannelGraph, kept: Kept) -> list[tuple[Any, np.ndarray]]:
    """Return (weight, mask) for each follower."""
    columns = _pruned_columns(graph, kept)
    pruned: dict[int, np.ndarray] = {}
    found: list[tuple[Any, int, np.ndarray]] = []
    for slot in graph.slots:
        if slot.role == "along" and id(slot.layer) in columns:
            found.append((slot.variable, slot.axis, columns[id(slot.layer)]))
    for entry in graph.order:
        if entry.made.atoms is None:
            continue
        made = _pruned(entry, columns, pruned)
        elementwise = is_elementwise(getattr(entry.layer, "activation", None))
        pruned[id(entry.made)] = made & elementwise
        if isinstance(entry, Call) and entry.kind in ("normalization", "depthwise"):
            names = ("gamma", "beta") if entry.kind == "normalization" else ("bias",)
            found += [(v, len(v.shape) - 1, made) for name in names if (v := getattr(entry.layer, name)) is not None]
    masks: dict[int, tuple[Any, np.ndarray]] = {}
    for v, axis, gone in found:
        shape = [1] * len(v.shape)
        shape[axis] = -1
        mask = np.broadcast_to(~gone.reshape(shape), tuple(v.shape))
        # What is called twice serves two channels: it stays as long as one of them does.
        masks[id(v)] = v, mask | masks[id(v)][1] if id(v) in masks else mask
    return list(masks.values())


def _pruned_columns(graph: ChannelGraph, kept: Kept) -> dict[int, np.ndarray]:
    """Map each layer's id to a bool array that marks the outputs whose incoming weights are all pruned."""
    columns: dict[int, np.ndarray] = {}
    for slot in graph.slots:
        if slot.role == "out":
            pruned = ~kept(slot.variable, slot.axis)
            columns[id(slot.layer)] = pruned & columns.get(id(slot.layer), pruned)
    return columns


def _pruned(entry: Mixer | Call, columns: dict[int, np.ndarray], known: dict[int, np.ndarray]) -> np.ndarray:
    """Return a bool array that marks the pruned output channels of a call."""
    size = len(entry.made.atoms)  # type: ignore[arg-type]
    if isinstance(entry, Mixer) or entry.kind == "embedding":
        return np.asarray(columns[id(entry.layer)].reshape(-1, size).all(axis=0))  # of a recurrent layer: of all gates
    given = [known.get(id(t), np.zeros(channels_read(entry, t), bool)) for t in entry.given]
    if entry.kind == "concatenate":
        return np.concatenate(given)
    if entry.kind == "tile":
        return np.tile(given[0], size // len(given[0]))
    if entry.kind == "depthwise":
        return np.repeat(given[0], size // len(given[0]))
    return np.asarray(np.all(given, axis=0))


__all__ = ["add_followers", "kept_followers"]
