"""The trainings that all of the paper's figures share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from torch_thermo.papers.folders import check_out
from torch_thermo.papers.li.recipe import BUDGETS, load_pictures, recipe
from torch_thermo.papers.li.training import train
from torch_thermo.papers.progress import Progress
from torch_thermo.papers.threads import one_thread
from torch_thermo.store import Run

__all__ = ["prepare"]


def prepare(
    out: str | Path,
    budget: str = "quick",
    data: str | Path = "cifar10",
    nets: Sequence[str] = ("vgg",),
    seeds: Sequence[int] | None = None,
    epochs: int | None = None,
    progress: Progress | None = None,
) -> dict[str, list[Run]]:
    """Train what is not trained, measuring on the way, and return the stored runs.

    On one thread. What was broken off is taken up where it stood; what is there is left as it is.

    Args:
        out: folder of all papers: ``<out>/li/<budget>/<net>/seed<k>/``.
        budget: "quick" (3 seeds, VGG of 10 layers, 40 epochs) or "paper" (one seed, 12 layers, 300
            epochs, needs CUDA).
        data: see `load_pictures`.
        nets: of "vgg" (hinge loss), "vgg-ce" (cross entropy) and "resnet" (biases and BatchNorm,
            cross entropy).
        seeds: None takes the budget's.
        epochs: None takes the budget's. Fewer than are trained already changes nothing.
        progress: told what is done, how much of it, and of how much.

    Returns:
        {net: its runs, one a seed}.

    Raises:
        ValueError: an unknown budget or net, no net or seed, ``epochs`` below 1, data that are not
            usable, or a folder that holds a training of other data or settings.
        RuntimeError: the budget needs CUDA, and there is none.
        NotADirectoryError: ``out`` is a file, or lies below one.
        FileNotFoundError, ModuleNotFoundError, OSError: the data are missing.
    """
    out = check_out(out)
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if not nets:
        raise ValueError("nets must name at least one of vgg, vgg-ce and resnet, got none")
    plan = BUDGETS.get(budget)
    if plan is None:
        raise ValueError(f"budget must be {' or '.join(BUDGETS)}, got {budget!r}")
    if plan.accelerator == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"the {budget} budget needs CUDA, and torch sees no such device; "
            "--budget quick runs on a CPU"
        )
    chosen = plan.seeds if seeds is None else tuple(seeds)
    if not chosen or min(chosen) < 0:
        raise ValueError(f"seeds must be whole numbers from 0 on, got {list(chosen)}")
    pictures = load_pictures(data, plan.samples)
    recipes = [recipe(budget, net, pictures) for net in nets]
    with one_thread():
        return {
            one.net: [train(out, one, pictures, seed, epochs, progress) for seed in chosen]
            for one in recipes
        }
