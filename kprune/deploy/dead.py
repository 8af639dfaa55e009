"""Find the channels that can be removed from a model, and the new weights that compensate for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..channels import ChannelGraph, Mixer, constants
from ..channels.graph import WHOLE

Read = Callable[[Any], np.ndarray]


@dataclass(eq=False)
class Plan:
    """A plan of which channels of a graph stay, and of the weights that change.

    Attributes:
        graph: the model's channels.
        living: bool array, one entry per atom.
        values: id of a weight -> its new value before the cut (float64), where that changes.
        new_biases: id of a layer without a bias -> the bias that it needs (float64), before the cut.
    """

    graph: ChannelGraph
    living: np.ndarray
    values: dict[int, np.ndarray] = field(default_factory=dict)
    new_biases: dict[int, np.ndarray] = field(default_factory=dict)

    def stays(self, atoms: np.ndarray) -> np.ndarray:
        """Return, for each of these atoms, whether it is kept."""
        return self.living[self.graph.roots(atoms)]

    def cut(self, variable: Any, value: np.ndarray) -> np.ndarray:
        """Cut the removed channels out of an array that has the same shape as the weight."""
        for slot in self._slots()[id(variable)]:
            value = np.compress(self.stays(slot.atoms), value, axis=slot.axis)
        return value

    def new_value(self, variable: Any, read: Read) -> np.ndarray:
        """Return the weight's value in the smaller model."""
        return self.cut(variable, self.values.get(id(variable), read(variable)))

    def _slots(self) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = defaultdict(list)
        for slot in self.graph.slots:
            found[id(slot.variable)].append(slot)
        return found


@dataclass(eq=False)
class _Reading:
    """A product in a layer, with its inputs, its outputs, and the values of the inputs that are constant in all calls.

    Attributes:
        mixer: the product.
        rows, columns: the atoms (roots) of its inputs and outputs.
        value: float64 array, the constant that each input is, NaN where it varies or differs from call to call.
        border: whether a constant does not hold at all positions.
        used, sums: see `Mixer.weights`.
    """

    mixer: Mixer
    rows: np.ndarray
    columns: np.ndarray
    value: np.ndarray
    border: bool
    used: np.ndarray
    sums: np.ndarray

    def needed(self) -> np.ndarray:
        """Return a mask of the inputs (rows) that each output (column) needs, except constants moved into the bias."""
        folds = (self.value == 0) | (~np.isnan(self.value) & self.mixer.foldable & (not self.border))
        return self.used & ~folds[:, None]


def plan(graph: ChannelGraph, read: Read, divisible_by: int = 1) -> Plan:
    """Plan what can be removed without changing what the model computes.

    A channel lives if the model's outputs need it: it is found from them against the direction of the data.

    Args:
        graph: the channels of a plain model.
        read: the values of its weights: see `kprune.channels.graph.reader`.
        divisible_by: each layer keeps a multiple of this many channels, or all.
    """
    readings = _readings(graph, read)
    needed, living = _living(graph, readings, divisible_by)
    merged = _merged(readings, needed)
    for gone in merged:
        living[gone] = False
    # Each layer had enough before: what fills it up is one of those that have just gone.
    _fill_up(graph, living, divisible_by, among=np.isin(np.arange(graph.atoms), list(merged)))
    made = Plan(graph, living)
    _fold(made, readings, read, {gone: stays for gone, stays in merged.items() if not living[gone]})
    return made


def _readings(graph: ChannelGraph, read: Read) -> list[_Reading]:
    known = constants(graph, read)
    calls: dict[tuple[int, int, bool], list[Mixer]] = defaultdict(list)
    for mixer in graph.mixers:
        # A recurrent layer has two products: of what it is given, and of its own state.
        calls[id(mixer.layer), id(mixer.kernel), mixer.given is None].append(mixer)
    readings = []
    for mixers in calls.values():
        first = mixers[0]
        found = [known.get(id(mixer.given)) for mixer in mixers]
        value = np.full(len(first.incoming), np.nan)
        if all(found):
            values = np.array([one.value for one in found if one])
            value = np.where((values == values[0]).all(axis=0), values[0], np.nan)
        border = any(mixer.border for mixer in mixers) or any(one.border for one in found if one)
        rows, columns = graph.roots(first.incoming), graph.roots(first.outgoing)
        readings.append(_Reading(first, rows, columns, value, border, *first.weights(read)))
    return readings


def _living(graph: ChannelGraph, readings: list[_Reading], divisor: int) -> tuple[np.ndarray, np.ndarray]:
    """Return masks of the needed atoms and of the atoms that stay, which include any kept only to fill up a layer.

    What fills up a layer needs its own inputs only if its value is read: then it is a constant that is not folded.
    """
    needed = np.zeros(graph.atoms, bool)
    needed[WHOLE] = True
    while True:
        _spread(needed, readings)
        living = needed.copy()
        _fill_up(graph, living, divisor, among=~living)
        read = np.zeros(graph.atoms, bool)
        for reading in readings:
            read[reading.rows[reading.used[:, needed[reading.columns]].any(axis=1)]] = True
        if not (more := living & read & ~needed).any():
            return needed, living
        needed |= more


def _spread(needed: np.ndarray, readings: list[_Reading]) -> None:
    """Mark everything that the needed atoms depend on as needed, too."""
    edges = [reading.needed() for reading in readings]
    before = -1
    while before != (before := int(needed.sum())):
        for reading, uses in zip(reversed(readings), reversed(edges), strict=True):
            needed[reading.rows[uses[:, needed[reading.columns]].any(axis=1)]] = True


def _merged(readings: list[_Reading], living: np.ndarray) -> dict[int, int]:
    """Map each constant channel to remove to the constant channel that replaces it, both given as atoms."""
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, reading in enumerate(readings):
        for row, atom in enumerate(reading.rows):
            if atom != WHOLE and living[atom]:
                places[int(atom)].append((number, row))
    alike: dict[tuple[int, ...], dict[int, np.ndarray]] = defaultdict(dict)
    for atom, found in places.items():
        numbers = tuple(number for number, _ in found)
        values = np.array([readings[number].value[row] for number, row in found])
        simple = all(readings[number].mixer.kernel is not None for number in numbers)
        if simple and len({*numbers}) == len(numbers) and not np.isnan(values).any():
            alike[numbers][atom] = values
    merged: dict[int, int] = {}
    for group in alike.values():
        stays = max(group, key=lambda atom: np.abs(group[atom]).min())
        if (group[stays] != 0).all():
            merged |= {atom: stays for atom in group if atom != stays}
    return merged


def _fill_up(graph: ChannelGraph, living: np.ndarray, divisor: int, among: np.ndarray) -> None:
    """Keep atoms of `among` until each layer has a nonzero multiple of `divisor` atoms, or all of its atoms."""
    layers = [graph.roots(size.atoms) for size in graph.sizes if size.own]
    changed = True
    while changed:
        changed = False
        for atoms in layers:
            while (count := int(living[atoms].sum())) < len(atoms) and (count == 0 or count % divisor):
                living[atoms[among[atoms] & ~living[atoms]][0]] = changed = True


def _fold(made: Plan, readings: list[_Reading], read: Read, merged: dict[int, int]) -> None:
    """Move the constants of removed channels into the biases or into the channels that replace them."""
    for reading in readings:
        mixer, living = reading.mixer, made.living[reading.rows]
        others = np.isin(reading.rows, list(merged))
        gone = ~living & ~others & ~np.isnan(reading.value) & (reading.value != 0)
        if gone.any() and mixer.foldable and not reading.border:
            extra = reading.value[gone] @ reading.sums[gone]
            if mixer.bias is not None:
                made.values[id(mixer.bias)] = read(mixer.bias) + extra
            elif extra[made.living[reading.columns]].any():
                made.new_biases[id(mixer.layer)] = extra
        if others.any():
            kernel = np.moveaxis(read(mixer.kernel), mixer.rows, 0).copy()
            position = {int(atom): row for row, atom in enumerate(reading.rows)}
            for row in np.flatnonzero(others):
                stays = position[merged[int(reading.rows[row])]]
                kernel[stays] += kernel[row] * (reading.value[row] / reading.value[stays])
            made.values[id(mixer.kernel)] = np.moveaxis(kernel, 0, mixer.rows)


__all__ = ["Plan", "plan"]
