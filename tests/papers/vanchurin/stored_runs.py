"""Runs as the trainings of the paper leave them, with spectra and losses that are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from torch_thermo.store import Run, Store, load_run

SIZES = {"deep": [784, 40, 20, 10], "shallow": [784, 60, 10]}
STEPS_PER_EPOCH = 10
EPOCHS = (0, 1, 3, 10, 30, 100)


def spectrum(dynamical: Sequence[float], neurons: int = 854) -> np.ndarray:
    """Log eigenvalues, descending: those given, and 0 for the rest."""
    logs = np.zeros(neurons)
    logs[: len(dynamical)] = dynamical
    return np.sort(logs)[::-1].copy()


def moving(epoch: float, seed: int = 0) -> np.ndarray:
    """A spectrum that widens while the net is trained, with det G = 1."""
    rng = np.random.default_rng(seed)
    logs = (1.0 + 0.2 * np.log1p(epoch)) * rng.normal(size=110)
    return spectrum(logs - logs.mean())


def write_run(
    path: Path,
    net: str = "deep",
    seed: int = 0,
    logs: Callable[[float], np.ndarray] | None = None,
    bulk: Callable[[float], float] = lambda epoch: 2.0 / (1.0 + epoch),
    ratio: float = 0.3,
    epochs: Sequence[int] = EPOCHS,
) -> Run:
    store = Store.open(path / "thermo")
    store.write_meta(
        {
            "net": net,
            "sizes": SIZES[net],
            "samples": 50,
            "data": "digits",
            "batch": 5,
            "lr": 0.1,
            "seed": seed,
            "epochs": epochs[-1],
            "steps_per_epoch": STEPS_PER_EPOCH,
        }
    )
    for epoch in epochs:
        step = epoch * STEPS_PER_EPOCH
        row = logs(epoch) if logs is not None else moving(epoch, seed)
        store.save_arrays("propagator_spectrum", step, {"log_eigenvalues": row})
        powers = {f"mu{n}": float((row**n).sum()) for n in (2, 3)}
        store.append("propagator_spectrum", step, epoch, powers)
        u = bulk(epoch)
        losses = u * np.random.default_rng(epoch).exponential(size=50)
        losses *= u / losses.mean()
        for name in ("bulk_boundary", "bulk_exact"):
            store.save_arrays(name, step, {"bulk": losses, "boundary": losses / ratio})
            scalars = {"bulk": u, "boundary": u / ratio, "ratio": ratio}
            scalars |= {"bulk_median": 0.5 * u, "boundary_median": 0.4 * u / ratio}
            store.append(name, step, epoch, scalars)
    return load_run(path)
