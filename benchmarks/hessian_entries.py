"""How many example products the stored Hessian entries save on recomputing each minibatch.

Run from the checkout::

    python benchmarks/hessian_entries.py
    python benchmarks/hessian_entries.py --depth 12 --images 64 --columns 4 --recomputed 1

Prints a table, writes JSON, and ends with status 1 if the goal is missed. See README.md in this
folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor

import torch_thermo as tt
from torch_thermo.observables import HessianEntries, hessian_entries
from torch_thermo.systems import VGG

GOAL = 50.0
"""Times fewer example products than by recomputing each minibatch."""


def hinge(output: Tensor, target: Tensor) -> Tensor:
    """The paper's loss."""
    return (1 - output * target).clamp(min=0).mean()


class Recomputed:
    """Entries of minibatches from products with each minibatch's own Hessian, counted.

    Only active examples are differentiated there too: it is the same operator.

    Attributes:
        products: example products made.
        seconds: that they took.
    """

    def __init__(self, model: VGG, inputs: Tensor, targets: Tensor) -> None:
        self.model, self.inputs, self.targets = model, inputs, targets
        self.products = 0
        self.seconds = 0.0

    def entries(self, drawn: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
        """Return (C, R) entries of the minibatch of these examples."""
        start = time.perf_counter()
        batch = (self.inputs[drawn], self.targets[drawn])
        with torch.no_grad():
            active = int((self.model(batch[0]) * batch[1] < 1).sum())
        operator = tt.FunctionalHessianOperator(tt.Risk(self.model, hinge, [batch]))
        found = []
        for column in columns:
            unit = torch.zeros(operator.shape[0])
            unit[column] = 1
            found.append((operator @ unit)[rows].double())
        self.products += active * len(columns)
        self.seconds += time.perf_counter() - start
        return torch.stack(found)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The store's products against those of all minibatches, of which a few are recomputed."""
    generator = torch.Generator().manual_seed(0)
    model = VGG(options.depth, 3)
    inputs = torch.randn(options.images, 3, 32, 32, generator=generator)
    targets = torch.randn(options.images, generator=generator).sign()
    risk = tt.Risk(model, hinge, list(zip(inputs.split(128), targets.split(128), strict=True)))
    start = time.perf_counter()
    store = hessian_entries(risk, options.columns, options.rows)
    measuring = time.perf_counter() - start
    start = time.perf_counter()
    means = store.minibatch_means(options.batch, options.replicates)
    drawing = time.perf_counter() - start
    other = Recomputed(model, inputs, targets)
    error = compared(store, means, other, options)
    # what the few took, for all
    whole = other.products / options.recomputed * options.replicates
    return {
        "parameters": risk.numel,
        "active": len(store.entries),
        "products": store.products,
        "products_recomputed": whole,
        "ratio": whole / store.products,
        "error": error,
        "seconds": measuring + drawing,
        "seconds_recomputed": other.seconds / options.recomputed * options.replicates,
        "milliseconds_a_product": 1e3 * measuring / store.products,
    }


def compared(
    store: HessianEntries, means: Tensor, other: Recomputed, options: argparse.Namespace
) -> float:
    """Recompute the first minibatches; the largest difference, over the largest entry."""
    # as minibatch_means draws them
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(store.samples, (options.replicates, options.batch), generator=generator)
    found = torch.stack(
        [other.entries(drawn[k], store.columns, store.rows) for k in range(options.recomputed)]
    )
    return float((found - means[: options.recomputed]).abs().max() / means.abs().max())


def table(row: dict[str, Any], options: argparse.Namespace) -> Table:
    """The store beside the recomputation."""
    title = (
        f"{options.columns} x {options.rows} entries of the {options.depth}-layer VGG "
        f"({row['parameters']:,} parameters), {options.replicates} minibatches of "
        f"{options.batch} from {options.images} examples, {row['active']} active"
    )
    found = Table(title=title)
    for column in ("", "from the store", "recomputed", "ratio"):
        found.add_column(column, justify="right" if column else "left", no_wrap=True)
    pairs = (("example products", "products", "{:,.0f}"), ("seconds", "seconds", "{:.3g}"))
    for name, key, form in pairs:
        one, two = row[key], row[f"{key}_recomputed"]
        found.add_row(name, form.format(one), form.format(two), f"{two / one:.3g}")
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, choices=(10, 12), default=10)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--batch", type=int, default=128, help="examples of a minibatch")
    parser.add_argument("--replicates", type=int, default=1000, help="minibatches")
    parser.add_argument("--recomputed", type=int, default=3, help="of them, for the comparison")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/hessian_entries.json"))
    options = parser.parse_args(arguments)
    for name in ("images", "columns", "rows", "batch", "replicates", "recomputed", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.recomputed > options.replicates:
        parser.error(f"--recomputed must be at most --replicates, got {options.recomputed}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure; the exit status is 0 only if both agree and the goal is met."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    row = measure(options)
    met = row["ratio"] >= GOAL and row["error"] < 1e-4
    # wide enough for the table where the output is no terminal
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    console.print(table(row, options))
    console.print(
        f"the {options.recomputed} recomputed differ by {row['error']:.1e} of the largest entry; "
        f"{row['milliseconds_a_product']:.2f} ms a product; goal: {GOAL:g} times fewer products, "
        + ("met" if met else "MISSED")
    )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": machine(), **row, "met": met}, indent=2) + "\n")
    console.print(f"written to {options.json}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
