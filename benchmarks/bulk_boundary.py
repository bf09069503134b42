"""What bulk and boundary loss cost: seconds for the 6,000 samples of the paper's net, by method.

Run from the checkout::

    python benchmarks/bulk_boundary.py
    python benchmarks/bulk_boundary.py --repeats 20 --samples 1000

Prints a table, writes JSON, and ends with status 1 if a goal is missed or an example does not
converge. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import bulk_boundary_loss
from torch_thermo.systems import VGG, TanhMLP

CLASSES = 10
GOALS = {"linear": 0.5, "logit": 1.5, "exact": 16.0}
"""Seconds for 6,000 samples of the tanh net with the squared error, on one core, 6 starts."""


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum(1).mean()


def _hinge(output: Tensor, target: Tensor) -> Tensor:
    return torch.relu(1 - target * output).mean()


@dataclass(frozen=True)
class Case:
    """A net, its loss, and what it is measured on.

    Attributes:
        title: for the table.
        model: builds the net.
        loss_fn: None for the paper's squared error.
        shape: of one input.
        targets: from class labels.
        samples: measured at once; None: as many as `--samples` says.
        exact: whether the method "exact" is timed too.
        epochs: of training before.
        goals: {method: seconds}.
    """

    title: str
    model: Callable[[], nn.Module]
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None
    shape: tuple[int, ...]
    targets: Callable[[Tensor], Tensor]
    samples: int | None = None
    exact: bool = True
    epochs: int = 0
    goals: bool = False


def _one_hot_signs(labels: Tensor) -> Tensor:
    return 2.0 * F.one_hot(labels, CLASSES) - 1


def _halves(labels: Tensor) -> Tensor:
    return torch.where(labels < CLASSES // 2, -1.0, 1.0)


def _tanh(title: str, **options: Any) -> Case:
    return Case(f"tanh 784-40-20-10, {title}", TanhMLP, shape=(784,), **options)


CASES = [
    _tanh("squared error, new", loss_fn=None, targets=_one_hot_signs, goals=True),
    _tanh("squared error, trained", loss_fn=None, targets=_one_hot_signs, epochs=10, goals=True),
    _tanh("cross entropy, trained", loss_fn=F.cross_entropy, targets=lambda y: y, epochs=10),
    Case(
        *("VGG of 10 layers, hinge", VGG, _hinge, (1, 32, 32), _halves),
        samples=128,
        exact=False,
    ),
]


def clouds(shape: tuple[int, ...], samples: int) -> tuple[Tensor, Tensor]:
    """Inputs of one overlapping cloud a class, that are learned in part, and their labels."""
    generator = torch.Generator().manual_seed(0)
    centres = 0.12 * torch.randn(CLASSES, *shape, generator=generator)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    return centres[labels] + torch.randn(samples, *shape, generator=generator), labels


def train(model: nn.Module, case: Case, inputs: Tensor, targets: Tensor) -> None:
    """Plain SGD, batches of 32, learning rate .1."""
    loss_fn = case.loss_fn or _squared_error
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(case.epochs):
        for batch in torch.randperm(len(inputs), generator=generator).split(32):
            optimizer.zero_grad()
            loss_fn(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()


def measure(case: Case, samples: int, repeats: int) -> list[dict[str, Any]]:
    """Time the methods; one row each. The exact one is slow enough to be timed once."""
    count = case.samples or samples
    inputs, labels = clouds(case.shape, count)
    targets = case.targets(labels)
    model = case.model()
    train(model, case, inputs, targets)
    network = Network.from_module(model, inputs[:2])
    rows = []
    for method, goal in GOALS.items():
        if method == "exact" and not case.exact:
            continue
        seconds = []
        for _ in range(2 if method == "exact" else repeats + 1):
            start = time.perf_counter()
            found = bulk_boundary_loss(network, inputs, targets, case.loss_fn, method)
            seconds.append(time.perf_counter() - start)
        rows.append(
            {
                "net": case.title,
                "method": method,
                "samples": count,
                "seconds": seconds[1:],
                "first": seconds[0],
                "goal": goal * samples / 6000 if case.goals else None,
                "boundary": found.boundary_mean,
                "bulk": found.bulk_mean,
                "converged": found.converged_share,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """One row a net and method."""
    found = Table(title="bulk and boundary loss")
    for column in ("net", "method"):
        found.add_column(column, no_wrap=True)
    for column in ("samples", "seconds", "best", "goal", "boundary", "bulk", "converged"):
        found.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        found.add_row(
            row["net"],
            row["method"],
            str(row["samples"]),
            f"{np.median(row['seconds']):.3f}",
            f"{min(row['seconds']):.3f}",
            f"{row['goal']:g}" if row["goal"] else "",
            f"{row['boundary']:.4g}",
            f"{row['bulk']:.4g}",
            f"{row['converged']:.1%}",
        )
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=6000, help="of the tanh net")
    parser.add_argument("--repeats", type=int, default=7, help="timed, after one that is not")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/bulk_boundary.json"))
    options = parser.parse_args(arguments)
    for name in ("samples", "repeats", "threads"):
        if (number := getattr(options, name)) < 1:
            parser.error(f"--{name} must be at least 1, got {number}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the cases; the exit status is 0 only if all goals are met and all examples converged."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    rows = [row for case in CASES for row in measure(case, options.samples, options.repeats)]
    console.print(table(rows))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    console.print(f"written to {options.json}")
    missed = [row for row in rows if row["goal"] and np.median(row["seconds"]) > row["goal"]]
    astray = [row for row in rows if row["converged"] < 1]
    for row in missed:
        console.print(f"missed: {row['net']}, {row['method']}, goal {row['goal']:g} s")
    for row in astray:
        console.print(f"{row['net']}, {row['method']}: {row['converged']:.2%} converged")
    return 1 if missed or astray else 0


if __name__ == "__main__":
    sys.exit(main())
