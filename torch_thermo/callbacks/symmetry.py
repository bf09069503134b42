"""What the two symmetry callbacks share: the tests of all entries and of each layer's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from torch_thermo.callbacks.moment import Measurement
from torch_thermo.dashboard import histogram_arrays, layer_histograms
from torch_thermo.symmetry import SymmetryTest, symmetry_test

#: entries that are ordered by size, of each layer and of all: on ten million of them ordering all
#: takes 4 s of a core, these .02 s; they resolve a Butler's D or an asymmetry of half a percent
RANKED = 100_000


def stored_scalars(test: SymmetryTest) -> dict[str, float]:
    """Return what is stored of a test, under the names that every symmetry callback uses."""
    low, high = test.interval
    return {
        "n": float(test.n),
        "sign_balance": test.sign_balance,
        "low": low,
        "high": high,
        "butler": test.butler,
        "butler_p": test.butler_p,
        "odd_moment": test.odd_moment,
        "w_sym": test.w_sym,
        "w_sym_null": test.w_sym_null,
    }


def symmetries(layers: Iterable[tuple[str, Tensor]], seed: int) -> Measurement:
    """Return the symmetry of all entries and of each layer's, with their histograms.

    Args:
        layers: name and real entries of each, of any shape.
        seed: of the choice of entries where there are more than `RANKED`.

    Raises:
        FloatingPointError: a layer holds NaN or infinity.
    """
    entries: dict[str, Tensor] = {}
    tests: dict[str, SymmetryTest] = {}
    for name, values in layers:
        entries[name] = values.detach().reshape(-1)
        try:
            tests[name] = symmetry_test(entries[name], seed, RANKED)
        except ValueError as error:
            raise FloatingPointError(f"{name} is not finite") from error
    # layers may lie on several devices
    together = [flat.to(next(iter(entries.values())).device) for flat in entries.values()]
    pooled = torch.cat(together) if together else torch.zeros(0)
    scalars = stored_scalars(symmetry_test(pooled, seed, RANKED))
    for name, layer in tests.items():
        scalars[f"layer/{name}"] = layer.sign_balance
        scalars[f"w_sym/{name}"] = layer.w_sym
        scalars[f"w_sym_null/{name}"] = layer.w_sym_null
    arrays = {**histogram_arrays(pooled), **layer_histograms(entries)}
    return Measurement(scalars, arrays, ("histogram", "ridgeline"))
