"""The alive paths of the small networks, as the oracle finds them and as a sample tells them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable
from functools import cache

from tests.observables.circuits.cases import Case, case, output_of
from tests.observables.circuits.oracle import Path, enumerate_paths

# most of the others leave a residual network with next to no path
_SEEDS = {"residual": 10}


@cache
def drawn_case(name: str, pruned: float = 0.0) -> Case:
    """Return the network of that name and one example."""
    return case(name, examples=1, pruned=pruned, seed=_SEEDS.get(name, 43))


@cache
def alive_paths(name: str, pruned: float = 0.0) -> dict[Hashable, Path]:
    """Return its alive paths, by the units they pass."""
    small = drawn_case(name, pruned)
    every = enumerate_paths(small.model, small.inputs[0], output_of(name) or 0)
    found = {frozenset(p.visits) | {p.start}: p for p in every if p.alive}
    assert len(found) == sum(p.alive for p in every)
    return found


def path_keys(sample) -> list[Hashable]:
    """Return what tells each of the sampled paths, as the keys of `alive_paths`."""
    names = sample.paths.names
    return [
        frozenset((name, unit) for name, unit in zip(names, units, strict=True) if unit >= 0)
        | {None if start < 0 else start}
        for units, start in zip(
            sample.paths.units.tolist(), sample.paths.starts.tolist(), strict=True
        )
    ]


def subsets(paths: Iterable[tuple[Hashable, Path]], order: int) -> set[Hashable]:
    """Return all pairs of a path and `order` of its weighted modules."""
    return {
        (key, chosen)
        for key, p in paths
        for chosen in itertools.combinations(sorted(p.uses), order)
    }


def deviations(drawn: Iterable[Hashable], cells: Iterable[Hashable]) -> float:
    """Return chi-square over cells that are equally likely, in its standard deviations.

    Raises:
        AssertionError: something is drawn that is no cell.
    """
    found, expected = Counter(drawn), set(cells)
    assert set(found) <= expected
    freedom = len(expected) - 1
    if not freedom:
        return 0.0
    mean = found.total() / len(expected)
    statistic = sum((found[cell] - mean) ** 2 / mean for cell in expected)
    return (statistic - freedom) / math.sqrt(2 * freedom)
