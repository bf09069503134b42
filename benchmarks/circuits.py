"""What circuits cost on a 12-layer VGG: exact sums and shares, and sampled paths a second.

Run from the checkout::

    python benchmarks/circuits.py
    python benchmarks/circuits.py --examples 1 128 --repeats 10 --clock cpu

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
from statistics import median
from typing import Any

import torch
from machine import machine
from rich.console import Console
from rich.table import Table

from torch_thermo.network import Network
from torch_thermo.observables.circuits import circuit_sums, layer_marginals, sample_circuits
from torch_thermo.systems import VGG

TRANSFORMS = ("[w != 0]", "sign w", "abs w", "w", "w^2")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
GOALS = {"sums": 0.1, "tables": 0.11, "rate": 3.5e5}
"""Seconds an example and transform; seconds an example; paths a second. On one core."""


def pruned_vgg(share: float) -> VGG:
    """The 12-layer VGG for CIFAR-10 with a share of the weights of each layer exactly 0."""
    model = VGG(12, 3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(torch.rand(weight.shape, generator=generator) >= share)
    return model


class Stopwatch:
    """Times calls by one clock; the first of `repeats` + 1, that warms up, is left out."""

    def __init__(self, clock: str, repeats: int) -> None:
        self.clock = CLOCKS[clock]
        self.repeats = repeats

    def __call__(self, call: Callable[[], object]) -> list[float]:
        """Return the seconds of each repetition."""
        found = []
        for _ in range(self.repeats + 1):
            start = self.clock()
            call()
            found.append(self.clock() - start)
        return found[1:]


def sums_rows(network: Network, inputs: torch.Tensor, seconds: Stopwatch) -> list[dict[str, Any]]:
    """Exact sums: all transforms of one call, over examples and transforms."""
    parts = len(inputs) * len(TRANSFORMS)
    times = seconds(lambda: circuit_sums(network, inputs, moments=(2,)))
    row = {"examples": len(inputs), "times": times, "value": median(times) / parts}
    return [{"what": "sums", "unit": "s an example and transform", **row}]


def marginals_rows(
    network: Network, inputs: torch.Tensor, seconds: Stopwatch
) -> list[dict[str, Any]]:
    """Shares of paths and of mass through each operation and channel."""
    times = seconds(lambda: layer_marginals(network, inputs))
    row = {"examples": len(inputs), "times": times, "value": median(times) / len(inputs)}
    return [{"what": "marginals", "unit": "s an example", **row}]


def sampling_rows(
    network: Network, inputs: torch.Tensor, paths: int, seconds: Stopwatch
) -> list[dict[str, Any]]:
    """The sampler: one path an example for what a table costs; then many paths of one example.

    Then circuits of order 2 of these paths, and the paths drawn again with where they run.
    """
    few = seconds(lambda: sample_circuits(network, inputs, len(inputs)))
    one = seconds(lambda: sample_circuits(network, inputs[:1], 1))
    many = seconds(lambda: sample_circuits(network, inputs[:1], paths))
    rate = (paths - 1) / (median(many) - median(one))
    drawn = sample_circuits(network, inputs[:1], paths)
    order = seconds(lambda: drawn.order(2))
    kept = seconds(lambda: sample_circuits(network, inputs[:1], paths, keep_paths=True))
    kept_rate = (paths - 1) / (median(kept) - median(one))
    single = {"unit": "paths a second", "examples": 1}
    tables = {"examples": len(inputs), "times": few, "value": median(few) / len(inputs)}
    return [
        {"what": "tables", "unit": "s an example", **tables},
        {"what": "rate", **single, "times": many, "value": rate},
        {"what": "order 2", **single, "times": order, "value": paths / median(order)},
        {"what": "kept", **single, "times": kept, "value": kept_rate},
    ]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows; goals are set for the network without zeros."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(max(*options.examples, 8), 3, 32, 32, generator=generator)
    seconds = Stopwatch(options.clock, options.repeats)
    rows = []
    for share in options.pruned:
        network = Network.from_module(pruned_vgg(share), inputs[:1])
        found = sampling_rows(network, inputs[:8], options.paths, seconds)
        for examples in options.examples:
            found += sums_rows(network, inputs[:examples], seconds)
        found += marginals_rows(network, inputs[:8], seconds)
        for row in found:
            goal = GOALS.get(row["what"]) if share == 0 else None
            rows.append({"pruned": share, "goal": goal, "met": _met(row, goal), **row})
    return rows


def _met(row: dict[str, Any], goal: float | None) -> bool | None:
    if goal is None:
        return None
    return bool(row["value"] >= goal if row["what"] == "rate" else row["value"] <= goal)


def table(rows: list[dict[str, Any]]) -> Table:
    """One row a measurement."""
    found = Table(title="circuits of the 12-layer VGG")
    for column in ("zeros", "what"):
        found.add_column(column, no_wrap=True)
    for column in ("examples", "value", "goal", "met"):
        found.add_column(column, justify="right", no_wrap=True)
    found.add_column("unit", no_wrap=True)
    for row in rows:
        found.add_row(
            f"{row['pruned']:.0%}",
            row["what"],
            str(row["examples"]),
            f"{row['value']:.3g}",
            "" if row["goal"] is None else f"{row['goal']:.3g}",
            {None: "", True: "yes", False: "no"}[row["met"]],
            row["unit"],
        )
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, nargs="+", default=[1, 16], help="of the sums")
    parser.add_argument("--pruned", type=float, nargs="+", default=[0.0, 0.5, 0.95])
    parser.add_argument("--paths", type=int, default=350_000, help="drawn for the rate")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median counts")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/circuits.json"))
    options = parser.parse_args(arguments)
    for name in ("examples", "paths", "repeats", "threads"):
        least = 2 if name == "paths" else 1
        given = getattr(options, name)
        if min(given if isinstance(given, list) else [given]) < least:
            parser.error(f"--{name} must be at least {least}, got {given}")
    if not all(0 <= share < 1 for share in options.pruned):
        parser.error(f"--pruned must be in [0, 1), got {options.pruned}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure; the exit status is 0 only if every goal is met."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    rows = measure(options)
    # Wide enough for the table where the output is no terminal.
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    console.print(table(rows))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps({"machine": machine(), "clock": options.clock, "rows": rows}, indent=2) + "\n"
    )
    console.print(f"written to {options.json}")
    return 1 if any(row["met"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
