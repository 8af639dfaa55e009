"""Every mask of the golden files (see tests/golden/README.md), made anew by `kprune.prune`.

What the authors' loop does and `rounds` does not is a scope here: in round r the sparsity asked of a scope is
1 - final ** (r / rounds), from which it finds r and goes by a schedule of its own.
"""

import functools
import math
from dataclasses import dataclass

import keras
import numpy as np
import pytest
from golden_networks import NAMES, Golden, build, load

import kprune
from kprune.criteria import CRITERIA, Context, grasp, snip, synflow
from kprune.scopes import global_scope, zeros_for


def linear(final, scores, sparsity):
    """The global scope, where each round prunes as many weights as the others."""
    share = math.log(1 - sparsity) / math.log(final)
    return global_scope(scores, (1 - final) * share)


@dataclass(frozen=True)
class Run:
    """How `kprune.prune` is asked for the masks of a run."""

    criterion: object
    rounds: int = 1
    scope: object = "global"


RUNS = {
    "synflow_exp100_global_denseclf": Run("synflow", 100),
    "synflow_exp10_global": Run("synflow", 10),
    "synflow_one_shot_global": Run("synflow"),
    "synflow_lin100_global": Run("synflow", 100, linear),
    "synflow_exp100_local": Run("synflow", 100, "layerwise"),
    "mag_global": Run("magnitude"),
    "mag_local": Run("magnitude", scope="layerwise"),
    "snip_eval_global": Run("snip"),
    "snip_train_global": Run(functools.partial(snip, training=True)),
    "grasp_eval_global": Run("grasp"),
    "grasp_train_global": Run(functools.partial(grasp, training=True)),
}
# These two are followed round by round.
FOLLOWED = ("synflow_exp100_global", "synflow_exp100_global_f64")
# How many weights their code prunes beyond its target: live ones of score 0 fall with those that are pruned already.
OVERPRUNED = {
    ("mlp3", "synflow_exp100_local/c2"): 5,
    ("convbn", "synflow_exp100_global/c3"): 7,
    ("convbn", "synflow_exp100_global_f64/c3"): 7,
    ("resnet20_w8", "synflow_exp100_local/c2"): 12,
    ("resnet20_w8", "synflow_exp100_local/c3"): 4,
}
# The entries that may differ, as a share of what remains, where the softmax of resnet20_w8 saturates: float32 leaves
# the authors' own scores up to 8e-5 (SNIP) and 2e-3 (GraSP) of the largest from those of float64.
SATURATED = 0.01
MASKS = {name: [key.removeprefix("mask/") for key in load(name).arrays if key.startswith("mask/")] for name in NAMES}


def keys_of(name: str, run: str) -> list[str]:
    return [key for key in MASKS[name] if key.split("/")[0] == run]


def test_every_mask_is_made_anew():
    for name in NAMES:
        assert sorted(MASKS[name]) == sorted(key for run in [*RUNS, *FOLLOWED] for key in keys_of(name, run))
    # Each is there for three densities, but for that of the dense classifier.
    assert [len(MASKS[name]) for name in NAMES] == [10 * 3 + 2, 12 * 3, 12 * 3]


def pruned(golden: Golden, key: str, criterion: object, **arguments) -> dict[str, np.ndarray]:
    """Masks by layer, at the density of the key."""
    model = build(golden, keras)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    # What a run leaves dense, the classifier of one, is not masked.
    kprune.mask(model, filters=[f"(^|/){layer}/kernel$" for layer in golden.masked(key)])
    data = (golden.x, golden.y)
    masks = kprune.prune(model, criterion, 1 - density(key), data=data, verbose=False, **arguments)
    return {path.split("/")[-2]: mask for path, mask in masks.items()}


def density(key: str) -> float:
    return 10.0 ** -int(key[-1])


def joined(masks: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([mask.ravel() for mask in masks.values()])


def assert_the_authors(golden: Golden, name: str, key: str, masks: dict[str, np.ndarray], close: float = 0.0) -> None:
    """The masks are those of the key; `close` is the share of what remains by which they may differ."""
    assert list(masks) == golden.masked(key)
    ours, theirs = joined(masks), joined(golden.masks(key))
    beyond = OVERPRUNED.get((name, key), 0)
    assert np.count_nonzero(ours) == np.count_nonzero(theirs) + beyond, key
    if beyond:
        assert ours[theirs].all(), key
    else:
        assert np.count_nonzero(ours != theirs) <= close * np.count_nonzero(theirs), key


def remembered(criterion: object):
    """Scores as the criterion does, once: in a single round each density cuts the same scores."""
    made = []

    def scores(context: Context):
        if not made:
            made.append(CRITERIA.get(criterion)(context))
        return made[0]

    return scores


@pytest.mark.parametrize(("name", "run"), [(name, run) for name in NAMES for run in RUNS if keys_of(name, run)])
def test_masks_equal_the_authors(name, run):
    golden, how = load(name), RUNS[run]
    criterion = remembered(how.criterion) if how.rounds == 1 else how.criterion
    for key in keys_of(name, run):
        scope = functools.partial(linear, density(key)) if how.scope is linear else how.scope
        masks = pruned(golden, key, criterion, rounds=how.rounds, scope=scope)
        loss = run.startswith(("snip", "grasp"))
        assert_the_authors(golden, name, key, masks, SATURATED if name == "resnet20_w8" and loss else 0.0)
        if how.scope != "layerwise":
            assert np.count_nonzero(~joined(masks)) == zeros_for(joined(masks).size, 1 - density(key))


@pytest.mark.parametrize("c", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_each_of_100_rounds_of_synflow_equals_the_authors(name, c):
    golden, key = load(name), f"synflow_exp100_global/c{c}"
    threshold, remaining, gap = (
        golden.arrays[f"traj/{key}/{what}"] for what in ("threshold", "layer_remaining", "rel_gap_f64")
    )
    rounds = []

    def watched(context: Context):
        scores = synflow(context)
        rounds.append((list(context.masks.values()), np.sort(np.concatenate([s.ravel() for s in scores.values()]))))
        return scores

    masks = pruned(golden, key, watched, rounds=100)
    kept = [[int(mask.sum()) for mask in before] for before, _ in rounds] + [[int(m.sum()) for m in masks.values()]]
    # The last score that a round cuts, and the first one above it.
    ranked = [scores for _, scores in rounds]
    cuts = [zeros_for(scores.size, 1 - density(key) ** (r / 100)) for r, scores in enumerate(ranked, 1)]
    cut = np.array([scores[n - 1] for scores, n in zip(ranked, cuts, strict=True)])
    above = np.array([scores[np.searchsorted(scores, t, "right")] for scores, t in zip(ranked, cut, strict=True)])

    # Their float32 run of c2 parts from their float64 run in this round, at two scores that are 2e-7 apart; and in
    # its last two rounds that of c3 cuts live weights of score 0.
    until = {("resnet20_w8", 2): 35, ("convbn", 3): 98}.get((name, c), 100)
    np.testing.assert_array_equal(kept[1 : until + 1], remaining[:until])
    np.testing.assert_allclose(cut[:until], threshold[:until], rtol=1e-5)
    np.testing.assert_allclose((above - cut) / above, gap, atol=1e-6)
    assert_the_authors(golden, name, f"synflow_exp100_global_f64/c{c}", masks)
    # 186 entries apart, as their own two runs are.
    assert_the_authors(golden, name, key, masks, 186 / 680 if (name, c) == ("resnet20_w8", 2) else 0.0)
