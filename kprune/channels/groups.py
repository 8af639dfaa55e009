"""Channel groups: the entries of all weights that make, carry and read one channel, pruned together or not at all."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import logging

from ..masks import Masks, masked_weights
from .graph import WHOLE
from .trace import channel_graph

Place = tuple[str, int, tuple[int, ...]]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of one or more layers that must stay or go together.

    Attributes:
        members: (path, axis, indices) in masked weights: filters, what reads them, their partners.
        followers: the same in weights that are never pruned for themselves: bias, gamma, beta, statistics.
    """

    members: tuple[Place, ...]
    followers: tuple[Place, ...]


class ChannelGroups:
    """The channel groups of a masked model that can be pruned.

    A group can be pruned if nothing in it must stay whole (a model's inputs and outputs, layers that no rule
    describes) and all kernels that make or read its channels are masked.

    Args:
        model: a masked model of either Keras.

    Attributes:
        labels: path of a masked weight -> (axis, int array: each index's group, -1 of none).
        followers: the same of weights of which only followers are part.
        axes: id of any weight with channels -> (axis, int array) as in `labels`.
        layers: for each layer that makes channels, int array of their groups.
        n: the number of groups.

    Raises:
        ValueError: the model's graph is not known, or it has no group that can be pruned.
    """

    def __init__(self, model: Any):
        graph = channel_graph(model)
        weights = masked_weights(model)
        paths = {id(weight.variable): weight.path for weight in weights}
        self._shapes = {weight.path: weight.shape for weight in weights}
        made: set[int] = set()
        excluded = {WHOLE}
        for slot in graph.slots:
            if slot.role != "along":
                (made if id(slot.variable) in paths else excluded).update(graph.roots(slot.atoms).tolist())
        numbers = {root: number for number, root in enumerate(sorted(made - excluded))}
        if not numbers:
            barriers = ", ".join(f"{name} ({reason})" for name, reason in list(graph.barriers.items())[:4])
            needy = f" or to a layer that needs all of its channels: {barriers}" if barriers else ""
            raise ValueError(
                f"The model has no channel groups that can be pruned, because every channel leads to an output{needy}. "
                f"Use groups=None. Received: model={model.name!r}"
            )

        def numbered(atoms: np.ndarray) -> np.ndarray:
            return np.array([numbers.get(root, -1) for root in graph.roots(atoms).tolist()], int)

        self.n = len(numbers)
        self.labels: dict[str, list[tuple[int, np.ndarray]]] = {path: [] for path in paths.values()}
        self.followers: dict[str, list[tuple[int, np.ndarray]]] = defaultdict(list)
        self.axes: dict[int, list[tuple[int, np.ndarray]]] = defaultdict(list)
        self._makers: dict[int, set[str]] = defaultdict(set)
        for slot in graph.slots:
            found, path = numbered(slot.atoms), paths.get(id(slot.variable))
            self.axes[id(slot.variable)].append((slot.axis, found))
            if path is None:
                self.followers[_path(slot.variable)].append((slot.axis, found))
                continue
            self.labels[path].append((slot.axis, found))
            if slot.role == "out":
                for number in found[found >= 0].tolist():
                    self._makers[number].add(path)
        self.layers = [numbered(size.atoms) for size in graph.sizes if size.own]

    def listed(self) -> list[ChannelGroup]:
        """Return each group with its members and followers."""
        places: list[tuple[list[Place], list[Place]]] = [([], []) for _ in range(self.n)]
        for position, labels in enumerate((self.labels, self.followers)):
            for path, axes in labels.items():
                for axis, found in axes:
                    for number in np.unique(found[found >= 0]).tolist():
                        indices = tuple(np.flatnonzero(found == number).tolist())
                        places[number][position].append((path, axis, indices))
        return [ChannelGroup(tuple(members), tuple(followers)) for members, followers in places]

    def pooled(self, scores: dict[str, np.ndarray], masks: Masks) -> tuple[np.ndarray, np.ndarray]:
        """Return each group's score, which is the mean over its unpruned members, and the number of those members."""
        sums, counts = np.zeros(self.n), np.zeros(self.n, int)
        for path, axes in self.labels.items():
            kept = masks[path]
            score = np.where(kept, scores[path], 0.0)
            for axis, found in axes:
                others = tuple(a for a in range(kept.ndim) if a != axis)
                member = found >= 0
                np.add.at(sums, found[member], score.sum(axis=others, dtype=np.float64)[member])
                np.add.at(counts, found[member], kept.sum(axis=others)[member])
        return np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf), counts

    def masked(self, keep: np.ndarray, masks: Masks) -> Masks:
        """Return the masks after pruning the groups for which `keep` (a bool array, one entry per group) is False."""
        made = {}
        for path, axes in self.labels.items():
            mask = masks[path]
            for axis, found in axes:
                shape = [1] * mask.ndim
                shape[axis] = -1
                mask = mask & ((found < 0) | keep[found]).reshape(shape)
            made[path] = mask
        return made

    def cut(
        self, scores: dict[str, np.ndarray], masks: Masks, paths: list[str], zeros: int, divisible_by: int = 1
    ) -> Masks:
        """Return the masks after removing the groups with the lowest scores; among ties, earlier groups go first.

        As many groups go as leave at most `zeros` zeros in the weights of these paths; while less than a group is too
        much, none goes, so that a model that is pruned again to the same sparsity stays as it is. A layer keeps a
        channel at least, and a multiple of `divisible_by` of those it has, or all.

        Args:
            scores: path -> float array; higher = keep.
            masks: path -> bool array: what can be kept.
            paths: the weights that are counted; a group can go if all that makes its channels is among them.
            zeros: the number of zeros.
            divisible_by: at least 1.
        """
        counts, order, kept = self._ranked(scores, masks, paths, divisible_by)

        def without(n: int) -> Masks:
            return self.masked(kept(n), masks)

        def count(made: Masks) -> int:
            return sum(int(np.count_nonzero(~made[path])) for path in paths)

        if not len(order) or zeros - count(masks) < counts.max():
            return masks
        low, high = 0, len(order)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if count(without(middle)) <= zeros else (low, middle - 1)
        if low == len(order):
            logging.warning(
                "kprune: pruning whole channel groups gives only %d of the %d zeros requested: each layer keeps at "
                "least %d channel(s), and channels that lead to outputs are never pruned. Request a lower sparsity.",
                count(without(low)),
                zeros,
                divisible_by,
            )
        return without(low)

    def cut_to(
        self,
        scores: dict[str, np.ndarray],
        masks: Masks,
        paths: list[str],
        cost: Callable[[np.ndarray], int],
        most: int,
        divisible_by: int = 1,
    ) -> Masks:
        """Remove as few groups as possible, in the order of `cut`, to make `cost(groups that stay)` at most `most`."""
        counts, order, kept = self._ranked(scores, masks, paths, divisible_by)

        def left(n: int) -> int:
            return cost(kept(n) & (counts > 0))

        if left(0) <= most:
            return masks
        low, high = 1, len(order)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if left(middle) <= most else (middle + 1, high)
        return self.masked(kept(low), masks)

    def least(self, paths: list[str], divisible_by: int = 1) -> np.ndarray:
        """Mark in a bool array the groups that stay after as many as possible are removed from the unpruned model."""
        masks = {path: np.ones(shape, bool) for path, shape in self._shapes.items()}
        _, order, kept = self._ranked(masks, masks, paths, divisible_by)
        return kept(len(order))

    def _ranked(
        self, scores: dict[str, np.ndarray], masks: Masks, paths: list[str], divisible_by: int
    ) -> tuple[np.ndarray, np.ndarray, Callable[[int], np.ndarray]]:
        """Return each group's unpruned entry count, removable groups by score, and a function that marks those kept."""
        means, counts = self.pooled(scores, masks)
        within = np.array([self._makers[number] <= {*paths} for number in range(self.n)])
        candidates = np.flatnonzero(within & (counts > 0))
        order = candidates[np.argsort(means[candidates], kind="stable")]

        def kept(n: int) -> np.ndarray:
            keep = np.ones(self.n, bool)
            keep[order[:n]] = False
            self._fill_up(keep, counts > 0, means, divisible_by)
            return keep

        return counts, order, kept

    def _fill_up(self, keep: np.ndarray, living: np.ndarray, means: np.ndarray, divisor: int) -> None:
        changed = True
        while changed:
            changed = False
            for found in self.layers:
                member = np.unique(found[found >= 0])
                gone = member[~keep[member] & living[member]]
                for number in gone[np.argsort(-means[gone], kind="stable")]:
                    count = int(((found < 0) | (keep & living)[found]).sum())
                    if count and count % divisor == 0:
                        break
                    keep[number] = changed = True


def groups_of(model: Any) -> list[ChannelGroup]:
    """Return the channel groups of a masked model that `PruningConfig(groups="channels")` prunes.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")])
    >>> _ = kprune.mask(model)
    >>> [(path.split("/", 1)[1], axis, indices) for path, axis, indices in groups_of(model)[0].members]
    [('a/kernel', 1, (0,)), ('b/kernel', 0, (0,))]
    """
    return ChannelGroups(model).listed()


def divisor_of(groups: str | None) -> int | None:
    """Return the number that must divide the channel count: 1 for "channels", 8 for "channels:8", None for None.

    >>> divisor_of("channels:8")
    8
    """
    if groups is None:
        return None
    found = re.fullmatch(r"channels(?::([1-9]\d*))?", groups) if isinstance(groups, str) else None
    if not found:
        raise ValueError(
            '`groups` must be None, "channels", or "channels:N", which keeps a multiple of N channels (for example '
            '"channels:8"). Received: '
            f"groups={groups!r}"
        )
    return int(found[1] or 1)


def _path(variable: Any) -> str:
    return variable.path if hasattr(variable, "path") else str(variable.name).partition(":")[0]


__all__ = ["ChannelGroup", "ChannelGroups", "divisor_of", "groups_of"]
