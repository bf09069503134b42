"""Measure the snapshots of a training: a pass that takes up what is missing."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy.typing as npt
import torch

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import Method, bulk_boundary_loss
from torch_thermo.observables.propagator_spectrum import propagator_spectrum
from torch_thermo.papers.progress import Progress
from torch_thermo.papers.vanchurin.recipe import Digits, Recipe, snapshot_epochs
from torch_thermo.papers.vanchurin.snapshots import load_snapshot, snapshots
from torch_thermo.store import Run, Store, load_run
from torch_thermo.store.files import read_entries

__all__ = ["EXACT_SAMPLES", "MEASURED_AS", "measure"]

EXACT_SAMPLES = 500
"""The exact bulk loss is measured on so many samples, the first."""

MEASURED_AS = {"accuracy": 1, "propagator_spectrum": 1, "bulk_boundary": 1, "bulk_exact": 1}
"""How each observable is measured, counted: one more whenever its stored numbers would change.

What is stored under another number, or under none, is measured anew.
"""

# Snapshots a decade, besides the first and the last. Nearly all the time goes into the bulk loss.
_BULK_PER_DECADE = 5
_EXACT_PER_DECADE = 2


class _Found(NamedTuple):
    scalars: Mapping[str, float]
    arrays: Mapping[str, npt.ArrayLike]


def measure(
    out: Path, recipe: Recipe, digits: Digits, progress: Progress | None = None
) -> list[Run]:
    """Measure what is not measured yet of a net's snapshots.

    Into ``thermo/`` beside them go, at step = updates,

    - ``accuracy``: train, the share of the samples whose largest output is that of their label;
    - ``propagator_spectrum``: `PropagatorSpectrum.summary` at the mean state over all samples, and
      log_eigenvalues (N,), descending;
    - ``bulk_boundary``: `BulkBoundary.summary` of all samples, method "logit", and bulk, boundary
      and converged of each; of the first seed at every snapshot, of the others at 5 a decade;
    - ``bulk_exact``: the same by method "exact" of the first 500 samples; the first seed, 2 a
      decade.

    All in float64. Each is stored when it is measured: the pass can be broken off, and the store
    can be read meanwhile. What was measured in another way than `MEASURED_AS` says is deleted and
    measured anew.

    Args:
        out: the folder of all budgets.
        recipe: what was trained.
        digits: what it was trained on.
        progress: told of each snapshot.

    Returns:
        The stored runs, one a seed.

    Raises:
        FileNotFoundError: a seed has no snapshots.
        ValueError: a snapshot is damaged.
    """
    seeds = recipe.budget.seeds
    kept = {seed: snapshots(recipe.folder(out, seed)) for seed in seeds}
    for seed, files in kept.items():
        if not files:
            raise FileNotFoundError(f"no snapshots in {recipe.folder(out, seed)}: train first")
    done, total = 0, sum(map(len, kept.values()))
    for seed, files in kept.items():
        store = _store(recipe, digits, seed, recipe.folder(out, seed), max(files))
        due = _due(recipe, seed, list(files))
        stored = {name: set(read_entries(store.path, name).rows) for name in due}
        for epoch, path in files.items():
            step = epoch * recipe.steps_per_epoch
            missing = [name for name in due if epoch in due[name] and step not in stored[name]]
            if missing:
                network = _network(path, recipe, digits)
                for name in missing:
                    found = _MEASURE[name](network, digits)
                    if found.arrays:
                        store.save_arrays(name, step, found.arrays)
                    # the row comes last: it says that all is there
                    store.append(name, step, epoch, found.scalars)
            done += 1
            if progress is not None:
                progress(f"measuring the {recipe.net} net", done, total)
    return [load_run(recipe.folder(out, seed)) for seed in seeds]


def _due(recipe: Recipe, seed: int, epochs: list[int]) -> dict[str, set[int]]:
    """{observable: the epochs it is due at}."""
    all_of_them, last = set(epochs), epochs[-1]
    some = set(snapshot_epochs(max(last, 1), _BULK_PER_DECADE))
    few = set(snapshot_epochs(max(last, 1), _EXACT_PER_DECADE))
    first = seed == recipe.budget.seeds[0]
    return {
        "accuracy": all_of_them,
        "propagator_spectrum": all_of_them,
        "bulk_boundary": all_of_them if first else some,
        "bulk_exact": few if first else set(),
    }


def _store(recipe: Recipe, digits: Digits, seed: int, folder: Path, epochs: int) -> Store:
    """The store of a seed without what is out of date; one of another training is moved aside."""
    setting = recipe.setting(digits, seed)
    run_id = f"{zlib.crc32(json.dumps(setting).encode()):08x}"
    store = Store.open(folder / "thermo", run_id)
    measured_as = store.meta.get("measured_as", {})
    for name in sorted({*store.observables, *measured_as}):
        if measured_as.get(name) != MEASURED_AS.get(name):
            # the lines first: arrays without them are not read, and the number comes last
            (store.path / f"{name}.jsonl").unlink(missing_ok=True)
            shutil.rmtree(store.path / name, ignore_errors=True)
    extent = {"epochs": epochs, "steps": epochs * recipe.steps_per_epoch}
    meta = (
        setting
        | extent
        | {
            "net": recipe.net,
            "budget": recipe.budget.name,
            "lr": recipe.budget.rate,
            "steps_per_epoch": recipe.steps_per_epoch,
            "measured_as": dict(MEASURED_AS),
        }
    )
    if store.meta != meta:
        store.write_meta(meta)
    return store


def _network(path: Path, recipe: Recipe, digits: Digits) -> Network:
    module = recipe.network(seed=0).double()
    module.load_state_dict(load_snapshot(path))
    return Network.from_module(module, digits.inputs[:1])


def _accuracy(network: Network, digits: Digits) -> _Found:
    with torch.no_grad():
        outputs = network.states(digits.inputs)[0][-1]
    right = outputs.argmax(1) == digits.labels
    return _Found({"train": float(right.double().mean())}, {})


def _propagator(network: Network, digits: Digits) -> _Found:
    found = propagator_spectrum(network, digits.inputs)
    return _Found(found.summary(), {"log_eigenvalues": found.log_eigenvalues.numpy()})


def _bulk(network: Network, digits: Digits, method: Method, samples: int | None) -> _Found:
    inputs, targets = digits.inputs[:samples], digits.targets[:samples]
    found = bulk_boundary_loss(network, inputs, targets, method=method)
    arrays = {name: getattr(found, name).numpy() for name in ("bulk", "boundary", "converged")}
    return _Found(found.summary(), arrays)


_MEASURE: dict[str, Callable[[Network, Digits], _Found]] = {
    "accuracy": _accuracy,
    "propagator_spectrum": _propagator,
    "bulk_boundary": lambda network, digits: _bulk(network, digits, "logit", None),
    "bulk_exact": lambda network, digits: _bulk(network, digits, "exact", EXACT_SAMPLES),
}
