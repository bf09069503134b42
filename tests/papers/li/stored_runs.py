"""Runs as the trainings of the paper leave them, with measurements that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torch_thermo.dashboard import histogram_arrays, layer_histograms
from torch_thermo.store import Run, Store, load_run

STEPS_PER_EPOCH = 10
EPOCHS = (0, 1, 3, 10, 20, 40)
LAYERS = ("network.features.0.weight", "network.features.3.weight", "network.classifier.0.weight")
SAMPLES = 1000  # of the probe

Given = Mapping[str, Any]


def risk_at(epoch: float) -> float:
    """Falls from 1; 0 at the last epoch."""
    return 0.0 if epoch >= EPOCHS[-1] else float(np.exp(-epoch / 8.0))


def measurements(epoch: int, seed: int, net: str) -> dict[str, dict[str, float]]:
    """All scalars at an epoch."""
    risk = risk_at(epoch)
    p = round(SAMPLES * risk) / SAMPLES
    size, order = risk * (1.0 + 0.01 * seed), 0.5 * risk**1.5
    found = {
        "training": {
            "train_risk": risk, "test_risk": 0.3 + risk, "train_accuracy": 1.0 - 0.5 * risk,
            "test_accuracy": 0.9 - 0.4 * risk, "eta": 0.02,
        },
        "order_parameter": {"value": order, "scaled": 0.02 * order, "risk": risk},
        "circuit_symmetry": {
            "positive": 1.0 - 0.5 * risk, "mass_asymmetry": 1e-4 * (1.0 - risk),
            "sign_balance": 1e-6,
        },
        "hessian_extremes": {
            "lambda_max": size, "lambda_min": -0.9 * size, "residual_min": 1e-4 * size,
            "residual_max": 1e-4 * size,
        },
        "phase": {
            "code": 1.0 if risk > 0 else 0.0, "risk": risk, "order_parameter": order,
        },
        "hessian_entries": {
            "samples": float(SAMPLES), "active_share": p,
            "bound": np.sqrt(p / (1.0 - p)) if p < 1 else np.inf, "silent_share": 0.6,
            "share_below": 0.99 if p else np.nan, "share_below_moving": 0.96 + 0.03 * (epoch > 1)
            if p else np.nan, "share_below_active": 0.95 - 0.01 * epoch if p else np.nan,
            "correlation_active": 0.1 + 0.002 * epoch if p else np.nan,
            "correlation_active_null": 0.03 if p else np.nan,
            "correlated_share": 0.3 if p else np.nan,
            "correlated_share_active": 0.1 + 0.001 * epoch if p else np.nan,
        },
    }  # fmt: skip
    whole = 0.1 if net == "vgg" else 0.8
    for name, odd in (("functional", 0.05), ("hessian", whole)):
        found[f"{name}_density"] = {
            "odd3": odd, "odd3_stderr": 0.02, "lambda_max": size, "lambda_min": -0.9 * size,
        }  # fmt: skip
    for order in range(3):
        name = f"circuit_sample_order{order}" if order else "circuit_sample"
        found[name] = {"n": 2e4, "w_sym": 0.05, "w_sym_null": 0.04, "sign_balance": 0.002}
    for name, excess in (("weight", 0.001 * epoch), ("gradient", 0.02)):
        floor = 0.01
        one = {"w_sym": floor + excess, "w_sym_null": floor, "odd_moment": 0.01 * epoch}
        one["sign_balance"] = 0.001 * epoch
        for number, layer in enumerate(LAYERS):
            last = name == "gradient" and number == len(LAYERS) - 1
            one[f"w_sym/{layer}"] = 0.9 if last else floor + excess * (1 + number)
            one[f"w_sym_null/{layer}"] = floor
        found[f"{name}_symmetry"] = one
    return found


def arrays_of(epoch: int, seed: int, risk: float) -> dict[str, dict[str, Any]]:
    """All arrays at an epoch."""
    import torch

    rng = np.random.default_rng([epoch, seed])
    generator = torch.Generator().manual_seed(1000 * epoch + seed)
    found: dict[str, dict[str, Any]] = {}
    for name, size in (("weight_symmetry", 0.05), ("gradient_symmetry", risk)):
        entries = {layer: size * torch.randn(400, generator=generator) for layer in LAYERS}
        found[name] = histogram_arrays(torch.cat(list(entries.values())))
        found[name] |= layer_histograms(entries)
    for order in range(3):
        logs = torch.randn(5000, generator=generator) * (2.0 + order)
        name = f"circuit_sample_order{order}" if order else "circuit_sample"
        found[name] = histogram_arrays(logs, floor=-24.0 + order)
    nodes = risk * np.linspace(-1.0, 1.0, 11)
    for name in ("hessian_density", "functional_density"):
        found[name] = {
            "nodes": np.stack([nodes, nodes]), "weights": np.full((2, 11), 1 / 11),
            "dimension": np.int64(1000),
        }  # fmt: skip
    found["circuit_symmetry"] = {"alive": np.ones(128)}
    k = 12 if risk else 0
    values = rng.normal(size=(50, k)) + rng.normal(size=(50, 1))
    matrix = np.corrcoef(values.T).reshape(k, k) if k else np.zeros((0, 0))
    means = 0.05 * rng.normal(size=(4, 32)) if risk else np.full((4, 32), np.nan)
    found["hessian_entries"] = {
        "columns": np.arange(4), "rows": np.arange(32), "z_1": means, "z_active": 3 * means,
        "correlation_active": matrix, "null_quantiles_active": np.array([0.1, 0.28, 0.36, 0.45]),
    }  # fmt: skip
    return found


def write_run(
    path: Path,
    net: str = "vgg",
    seed: int = 0,
    epochs: Sequence[int] = EPOCHS,
    changes: Given | None = None,
    without: Sequence[str] = (),
) -> Run:
    """Write a run and read it.

    Args:
        path: of the seed's folder.
        net: of the recipe.
        seed: of the run.
        epochs: that were measured.
        changes: {"observable/quantity": a number, or a function of the epoch} instead.
        without: observables that were not measured.
    """
    store = Store.open(path / "thermo")
    store.write_meta(
        {
            "net": net, "seed": seed, "depth": 10, "title": "bias-free VGG", "parameters": 160856,
            "data": "pictures", "classes": ["airplane", "automobile"], "samples": 320,
            "held_out": 90,
            "note": "images recompressed as JPEG", "batch": 32, "lr": 0.02, "epochs": epochs[-1],
            "steps_per_epoch": STEPS_PER_EPOCH, "budget": "quick", "fingerprint": 1,
        }
    )  # fmt: skip
    changed = dict(changes or {})
    for epoch in epochs:
        step = epoch * STEPS_PER_EPOCH
        for observable, scalars in measurements(epoch, seed, net).items():
            if observable in without:
                continue
            row = dict(scalars)
            for name, value in changed.items():
                if name.startswith(f"{observable}/"):
                    row[name.partition("/")[2]] = value(epoch) if callable(value) else value
            store.append(observable, step, epoch, row)
        for observable, arrays in arrays_of(epoch, seed, risk_at(epoch)).items():
            if observable not in without:
                store.save_arrays(observable, step, arrays)
    return load_run(path / "thermo")
