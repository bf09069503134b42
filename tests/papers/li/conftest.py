from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.papers.li.stored_runs import EPOCHS, write_run
from tests.papers.li.support import LittleRecipe, pictures, seconds
from torch_thermo.papers.li.recipe import Budget
from torch_thermo.papers.li.training import train
from torch_thermo.store import Run


@dataclass(frozen=True)
class Measured:
    """A training of one epoch with everything measured, which takes longest of all here."""

    out: Path
    budget: Budget
    recipe: LittleRecipe
    run: Run
    warned: tuple[str, ...]

    @property
    def data(self) -> Path:
        return self.out / "pictures.npz"


@pytest.fixture(scope="session")
def measured(tmp_path_factory) -> Measured:
    out = tmp_path_factory.mktemp("measured")
    budget = replace(seconds(epochs=1), seeds=(0,))
    found = pictures(out)
    recipe = LittleRecipe("vgg", budget, len(found), 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train(out, recipe, found, seed=0)
    return Measured(out, budget, recipe, run, tuple(str(one.message) for one in caught))


@pytest.fixture
def make(tmp_path):
    """Runs of some seeds with some measurements changed."""
    made = []

    def runs(seeds: int = 1, net: str = "vgg", without=(), epochs=EPOCHS, **changes):
        given = {name.replace("__", "/"): value for name, value in changes.items()}
        made.append(None)
        return [
            write_run(tmp_path / f"{len(made)}_{seed}", net, seed, epochs, given, without)
            for seed in range(seeds)
        ]

    return runs
