"""What the trainings of the paper's nets cost: steps a second, by the ways to take them.

Run from the checkout::

    python benchmarks/vanchurin_training.py
    python benchmarks/vanchurin_training.py --data mnist --epochs 5

Prints a table, writes JSON, and ends with status 1 if a goal is missed. See README.md in this
folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor

from torch_thermo.papers.vanchurin.online import OnlineTrainer
from torch_thermo.papers.vanchurin.recipe import BUDGETS, NETS, Digits, Recipe, load_digits, recipe
from torch_thermo.papers.vanchurin.training import BatchedTrainer

GOALS = {
    ("online, compiled", "deep"): 1.2e5,
    ("online, compiled", "shallow"): 9e4,
    ("5 seeds together", "deep"): 4e3,
    ("5 seeds together", "shallow"): 3.2e3,
}
"""Steps a second on one core, those of all seeds counted: 10,000 epochs of the paper in ten
minutes, the quick training of both nets in two."""

PLAIN_STEPS = 300


def orders(seeds: int, samples: int) -> Tensor:
    """(seeds, samples): an order each."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(samples, generator=generator) for _ in range(seeds)])


def online(chosen: Recipe, digits: Digits) -> tuple[Callable[[], object], int]:
    """An epoch of the compiled loop, and its steps."""
    tensors = [weight.detach() for weight in chosen.network(0).parameters()]
    trainer = OnlineTrainer(tensors[::2], tensors[1::2], digits.inputs, digits.targets, 0.01)
    order = orders(1, len(digits))[0]
    return lambda: trainer.epoch(order), len(digits)


def together(chosen: Recipe, digits: Digits) -> tuple[Callable[[], object], int]:
    """An epoch of all seeds of the quick budget in batched matrices, and the steps of all."""
    seeds = BUDGETS["quick"].seeds
    networks = [dict(chosen.network(seed).named_parameters()) for seed in seeds]
    trainer = BatchedTrainer(networks, digits.inputs, digits.targets, 32, 0.1)
    order = orders(len(seeds), len(digits))
    return lambda: trainer.epoch(order), len(seeds) * -(-len(digits) // 32)


def plain(batch: int, dtype: torch.dtype) -> Callable[..., tuple[Callable[[], object], int]]:
    """Some steps of one seed by torch's modules and optimizer, and how many."""

    def case(chosen: Recipe, digits: Digits) -> tuple[Callable[[], object], int]:
        network = chosen.network(0).to(dtype)
        inputs, targets = digits.inputs.to(dtype), digits.targets.to(dtype)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        batches = orders(1, len(digits))[0].split(batch)
        taken = [batches[k % len(batches)] for k in range(PLAIN_STEPS)]

        def steps() -> None:
            for rows in taken:
                optimizer.zero_grad()
                errors = network(inputs[rows]) - targets[rows]
                (0.5 * errors.square().sum(1).mean()).backward()
                optimizer.step()

        return steps, PLAIN_STEPS

    return case


CASES = {
    "online, compiled": online,
    "online, torch": plain(1, torch.float64),
    "5 seeds together": together,
    "one seed, torch": plain(32, torch.float32),
}


def measure(digits: Digits, epochs: int) -> list[dict[str, Any]]:
    """Time each way with each net; one row each."""
    rows = []
    for name, case in CASES.items():
        for net in NETS:
            run, steps = case(recipe("quick", net, digits), digits)
            run()  # compiles, and warms up
            seconds = []
            for _ in range(epochs):
                start = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - start)
            row = {"way": name, "net": net, "seconds": seconds, "steps": steps}
            row["rate"] = steps / min(seconds)
            row["goal"] = GOALS.get((name, net))
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """One row a way and net."""
    found = Table(title="steps a second")
    for column in ("way", "net"):
        found.add_column(column, no_wrap=True)
    for column in ("steps / s", "goal"):
        found.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        goal = f"{row['goal']:,.0f}" if row["goal"] else ""
        found.add_row(row["way"], row["net"], f"{row['rate']:,.0f}", goal)
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist5k", help="mnist5k, mnist or a FILE.npz")
    parser.add_argument("--epochs", type=int, default=5, help="timed, after one that is not")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/vanchurin.json"))
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the cases; the exit status is 0 only if all goals are met."""
    options = parse(arguments)
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    digits = load_digits(options.data)
    rows = measure(digits, options.epochs)
    console.print(table(rows))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    console.print(f"written to {options.json}")
    missed = [row for row in rows if row["goal"] and row["rate"] < row["goal"]]
    for row in missed:
        console.print(f"missed: {row['way']}, {row['net']}, goal {row['goal']:g} steps a second")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
