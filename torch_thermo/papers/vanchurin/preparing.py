"""The trainings and measurements that all of the paper's figures share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch_thermo.papers.folders import check_out
from torch_thermo.papers.progress import Progress
from torch_thermo.papers.threads import one_thread
from torch_thermo.papers.vanchurin.measuring import measure
from torch_thermo.papers.vanchurin.recipe import load_digits, recipe
from torch_thermo.papers.vanchurin.training import train
from torch_thermo.store import Run

__all__ = ["PIXELS", "prepare"]

PIXELS = 784
"""Of the paper's images: the sizes of its nets and its numbers, as C_834, are of these."""


def prepare(
    out: str | Path,
    budget: str = "quick",
    data: str | Path = "mnist",
    nets: Sequence[str] = ("deep", "shallow"),
    epochs: int | None = None,
    progress: Progress | None = None,
) -> dict[str, list[Run]]:
    """Train what is not trained, measure what is not measured, and return the stored runs.

    On one thread. What was broken off is taken up where it stood; what is there is left as it is.

    Args:
        out: folder of all runs: ``<out>/<budget>/<net>/seed<k>/``.
        budget: "quick" (5 seeds, batches of 32) or "paper" (one seed, batches of one, by numba).
        data: see `torch_thermo.data.load`; 6,000 samples are taken, of ``mnist5k`` all 5,000.
            Images of 784 pixels.
        nets: "deep", "shallow" or both.
        epochs: None takes the budget's. Fewer than are trained already changes nothing.
        progress: told what is done, how much of it, and of how much.

    Returns:
        {net: its runs, one a seed}.

    Raises:
        ValueError: an unknown budget or net, no net, ``epochs`` below 1, data that are not usable,
            images of another size, or a folder that holds a training of other data or settings.
        NotADirectoryError: ``out`` is a file, or lies below one.
        FileNotFoundError, ModuleNotFoundError, OSError: the data or numba are missing.
    """
    out = check_out(out)
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if not nets:
        raise ValueError("nets must name at least one of deep and shallow, got none")
    digits = load_digits(data)
    if digits.inputs.shape[1] != PIXELS:
        found = digits.inputs.shape[1]
        raise ValueError(f"the paper's nets take images of {PIXELS} pixels, got {found} of {data}")
    recipes = [recipe(budget, net, digits) for net in nets]
    with one_thread():
        for one in recipes:
            train(out, one, digits, epochs, progress)
        return {one.net: measure(out, one, digits, progress) for one in recipes}
