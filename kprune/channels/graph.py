"""The channels of a model: atoms, the weights whose axes they index, and the layers that mix them.

An atom is one channel of one tensor; a union-find ties the atoms that have to stay or go together: the two sides of an
addition, what goes into a normalization and what comes out. The classes that result are the model's channel groups.
Atom 0 stands for all that must stay whole: inputs, outputs, and whatever a layer does that no rule describes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..runtime.distribution import to_numpy

Shape = tuple[int | None, ...] | None
WHOLE = 0  # the atom of what must stay whole
OTHER_AXIS = "it uses a different axis for its channels"


@dataclass(eq=False)
class Tensor:
    """An input or output of a layer.

    Attributes:
        shape: with the batch, None where a size is not fixed; None if nothing is known.
        axis: the axis of the channels, from 0.
        atoms: int array, the atom of each channel; None if all of the tensor must stay whole.
    """

    shape: Shape = None
    axis: int = -1
    atoms: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Slot:
    """A weight's axis that is indexed by channels.

    Attributes:
        layer, variable: the weight, and the layer that holds it.
        axis: the axis, from 0.
        atoms: int array, the atom of each index.
        role: "out" of an axis that makes channels, "in" of one that reads them, "along" of what goes with each (bias,
            gamma, depthwise kernel).
    """

    layer: Any
    variable: Any
    axis: int
    atoms: np.ndarray
    role: str


@dataclass(frozen=True, eq=False)
class Mixer:
    """A product that mixes channels: out_j = sum_i in_i * w_ij + b_j, at each position.

    Attributes:
        layer: the layer.
        given: the tensor that it reads; None of a state of its own (recurrent) or of a table (embedding).
        made: the tensor that it makes.
        incoming, outgoing: int arrays, the atoms of the rows and of the columns.
        weights: function of the values of weights -> two arrays (in, out): whether any weight at any position is not
            zero (bool), and the sum over all positions (float64).
        kernel: the only weight that rows and columns index, with `rows` its axis of the inputs; None if there are more.
        bias: the layer's bias, or None.
        foldable: whether a constant input can be added to the bias, made if there is none.
        border: whether positions outside of the input, which are zero, take part.
        constant: whether an output without any varying input is a constant: not of a recurrent state.
    """

    layer: Any
    given: Tensor | None
    made: Tensor
    incoming: np.ndarray
    outgoing: np.ndarray
    weights: Callable[[Callable[[Any], np.ndarray]], tuple[np.ndarray, np.ndarray]]
    kernel: Any = None
    rows: int = 0
    bias: Any = None
    foldable: bool = True
    border: bool = False
    constant: bool = True


@dataclass(frozen=True, eq=False)
class Call:
    """A layer call that is not a `Mixer`; `kind` says what happens to constants (see `kprune.channels.constants`)."""

    kind: str
    layer: Any
    given: list[Tensor]
    made: Tensor


@dataclass(frozen=True, eq=False)
class Size:
    """An entry of a layer's config that counts channels: `config[key]` is the number of atoms that stay.

    With `axis`, `config[key]` is a shape, and the entry is that axis of it. `own` channels are those that the layer
    makes, of which it must keep some.
    """

    layer: Any
    key: str
    atoms: np.ndarray
    axis: int | None = None
    own: bool = True


@dataclass(eq=False)
class ChannelGraph:
    """The channels of a model, as returned by `channel_graph`.

    Attributes:
        slots, mixers, calls, sizes: what the layers have entered, in the order in which they are called.
        order: mixers and calls together in that order.
        barriers: names of the layers that no rule describes, with the reason.
        configs: id of a layer -> its part of the model's config, to be changed when a smaller model is made.
        config: the model's config.
    """

    config: dict[str, Any] = field(default_factory=dict)
    configs: dict[int, dict[str, Any]] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    order: list[Mixer | Call] = field(default_factory=list)
    barriers: dict[str, str] = field(default_factory=dict)
    _parents: list[int] = field(default_factory=lambda: [WHOLE])
    _atoms_of: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    @property
    def mixers(self) -> list[Mixer]:
        """The calls that mix channels."""
        return [entry for entry in self.order if isinstance(entry, Mixer)]

    @property
    def atoms(self) -> int:
        """The number of atoms."""
        return len(self._parents)

    def new(self, n: int) -> np.ndarray:
        """Create `n` new atoms, tied to no others."""
        first = len(self._parents)
        self._parents.extend(range(first, first + n))
        return np.arange(first, first + n)

    def find(self, atom: int) -> int:
        """Return the atom that represents all atoms tied to this one."""
        while self._parents[atom] != atom:
            self._parents[atom] = atom = self._parents[self._parents[atom]]
        return atom

    def roots(self, atoms: np.ndarray) -> np.ndarray:
        """Return the representative of each atom, as `find` does."""
        return np.array([self.find(int(atom)) for atom in atoms], int)

    def tie(self, one: np.ndarray, other: np.ndarray) -> None:
        """Tie the atoms that are at the same index in two arrays to each other, so that they stay or go together."""
        for a, b in zip(one, other, strict=True):
            low, high = sorted((self.find(int(a)), self.find(int(b))))  # WHOLE, the lowest, stays the root
            self._parents[high] = low

    def keep_whole(self, tensor: Tensor) -> None:
        """Require all channels of the tensor to stay."""
        if tensor.atoms is not None:
            self.tie(tensor.atoms, np.zeros_like(tensor.atoms))

    def read(self, tensor: Tensor, axis: int, size: int) -> np.ndarray | None:
        """Return the atoms of a tensor for a layer that uses `axis` (from 0, or from the end) as the channel axis.

        None if the tensor has its channels along another axis.
        """
        if tensor.atoms is None or tensor.shape is None:
            return np.zeros(size, int)
        return tensor.atoms if axis % len(tensor.shape) == tensor.axis else None

    def slot(self, layer: Any, variable: Any, axis: int, atoms: np.ndarray, role: str) -> None:
        """Record that channels index an axis of a weight, and tie the atoms that calls of the same layer share."""
        if variable is None:
            return
        axis %= len(variable.shape)
        known = self._atoms_of.setdefault((id(variable), axis), atoms)
        if known is not atoms:
            self.tie(known, atoms)
        else:
            self.slots.append(Slot(layer, variable, axis, atoms, role))


def reader(masks: dict[int, np.ndarray]) -> Callable[[Any], np.ndarray]:
    """Return a function that reads each weight once, as its layer does: where(mask, w, 0), in float64.

    Args:
        masks: id of a masked variable -> bool array, True = kept.
    """
    known: dict[int, np.ndarray] = {}

    def read(variable: Any) -> np.ndarray:
        if id(variable) not in known:
            value = to_numpy(variable).astype(np.float64)
            known[id(variable)] = np.where(masks[id(variable)], value, 0.0) if id(variable) in masks else value
        return known[id(variable)]

    return read
