"""What the propagator's spectrum costs: of the paper's nets exactly, of a VGG matrix-free.

Run from the checkout::

    python benchmarks/propagator.py                # the 854-neuron nets and nets of 1,600 neurons
    python benchmarks/propagator.py --vgg          # a VGG of 253,441 neurons, ten minutes

Prints tables, writes JSON, and ends with status 1 if a goal is missed. See README.md here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from torch_thermo.network import Network
from torch_thermo.observables.propagator_spectrum import propagator_spectrum
from torch_thermo.systems import VGG, TanhMLP

EXACT_GOAL = 5e-3
"""Seconds for the spectrum of a net of 854 neurons, 128 examples, on one core."""
SMALL_GOALS = {"mu2": 0.002, "mu3": 0.01}
"""Relative error of 64 probes of 30 steps on nets of 1,600 neurons."""
VGG_GOALS = {"mu2": 0.03, "mu3": 0.10, "seconds": 120.0, "GiB": 2e9 / 2**30}


class Convolutional(nn.Module):
    """1,576 neurons: two convolutions, max-pool, average pool, two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
            *(nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 1, 16, 16)`` to ``(B, 10)``."""
        output: Tensor = self.layers(x)
        return output


class Residual(nn.Module):
    """1,674 neurons: four convolutions with two skip connections, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 1, 16, 16)`` to ``(B, 10)``."""
        x = self.pool(torch.relu(self.stem(x)))
        x = torch.relu(self.first(x) + x)
        x = torch.relu(self.down(x))
        x = torch.tanh(self.second(x) + x)
        output: Tensor = self.out(x.flatten(1))
        return output


def seeded(model: nn.Module, gain: float = 1.0) -> nn.Module:
    """The model with normal weights of variance gain^2 / fan_in, and no biases."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        fan = parameter[0].numel()
        drawn = torch.randn(parameter.shape, generator=generator) * gain / fan**0.5
        parameter.data = drawn if parameter.dim() > 1 else torch.zeros_like(drawn)
    return model


def exact_rows(repeats: int) -> list[dict[str, Any]]:
    """Time the exact spectra of the paper's nets."""
    rows = []
    for sizes in ((784, 40, 20, 10), (784, 60, 10)):
        for samples in (128, 6000):
            x = torch.rand(samples, 784, generator=torch.Generator().manual_seed(0))
            network = Network.from_module(TanhMLP(sizes), x[:2])
            seconds = []
            for _ in range(repeats + 1):
                start = time.perf_counter()
                found = propagator_spectrum(network, x)
                seconds.append(time.perf_counter() - start)
            rows.append(
                {
                    "net": "-".join(map(str, sizes)),
                    "samples": samples,
                    "seconds": seconds[1:],
                    "goal": EXACT_GOAL if samples == 128 else None,
                    "log_det": found.mu(1).value,
                    "mu2": found.mu(2).value,
                    "mu3": found.mu(3).value,
                }
            )
    return rows


def small_rows() -> list[dict[str, Any]]:
    """Compare matrix-free estimates with exact spectra."""
    rows = []
    x = torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    for model, gain in (
        (Convolutional, 1.0),
        (Convolutional, 2.0),
        (Residual, 1.0),
        (Residual, 2.0),
    ):
        network = Network.from_module(seeded(model(), gain), x)
        exact = propagator_spectrum(network, x, exact=True)
        for probes, steps in ((64, 30), (8, 24), (2, 16)):
            start = time.perf_counter()
            found = propagator_spectrum(network, x, exact=False, probes=probes, steps=steps)
            row: dict[str, Any] = {
                "net": f"{model.__name__} x {gain:g}",
                "probes": probes,
                "steps": steps,
                "seconds": time.perf_counter() - start,
                "goals": (probes, steps) == (64, 30),
            }
            for n in (2, 3):
                truth, estimate = exact.mu(n).value, found.mu(n)
                row[f"mu{n}"] = truth
                row[f"error{n}"] = (estimate.value - truth) / abs(truth)
                row[f"stderr{n}"] = estimate.stderr / abs(truth)
            rows.append(row)
    return rows


def trained(model: VGG, steps: int) -> None:
    """Fit bright and dark halves: SGD with momentum on the hinge loss, for weights that learned."""
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=3e-3, momentum=0.9)
    for _ in range(steps):
        y = torch.randint(0, 2, (16,), generator=generator) * 2.0 - 1.0
        x = torch.randn(16, 3, 32, 32, generator=generator)
        x[:, :, :16] += 0.5 * y[:, None, None, None]
        optimizer.zero_grad()
        torch.relu(1 - y * model(x)).mean().backward()
        optimizer.step()


def _measure_vgg(
    weights: str, probes: int, steps: int, seed: int, threads: int, queue: Any
) -> None:
    """In a process of its own, for its peak memory."""
    torch.set_num_threads(threads)
    model = VGG(12, 3)
    model.load_state_dict(torch.load(weights))
    x = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network = Network.from_module(model, x[:2])
    start, used = time.perf_counter(), time.process_time()
    found = propagator_spectrum(network, x, probes=probes, steps=steps, seed=seed)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    row = {"neurons": network.neurons, "probes": probes, "steps": steps, "seconds": seconds}
    row["cpu"] = cpu
    queue.put(row | {"GiB": peak} | found.summary())


def vgg_rows(train_steps: int, threads: int) -> list[dict[str, Any]]:
    """Measure a VGG at its start and after training, by default and by a larger run."""
    context = multiprocessing.get_context("spawn")
    model = VGG(12, 3)
    rows = []
    for title, fit in (("new", 0), ("trained", train_steps)):
        trained(model, fit)
        for probes, steps, seed in ((8, 24, 0), (2, 16, 0), (8, 36, 1)):
            with tempfile.TemporaryDirectory() as folder:
                weights = f"{folder}/weights.pt"
                torch.save(model.state_dict(), weights)
                queue = context.Queue()
                arguments = (weights, probes, steps, seed, threads, queue)
                child = context.Process(target=_measure_vgg, args=arguments)
                child.start()
                rows.append({"net": f"VGG-12, {title}"} | queue.get())
                child.join()
    return rows


def table(title: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> Table:
    """One row a measurement; columns by key with their format."""
    found = Table(title=title)
    for column in columns:
        found.add_column(column, justify="left" if column == "net" else "right", no_wrap=True)
    for row in rows:
        values = {**row, "seconds": float(np.median(row["seconds"]))}
        found.add_row(*(format(values[key], spec) for key, spec in columns.items()))
    return found


def misses(rows: list[dict[str, Any]]) -> list[str]:
    """Say which goals are missed."""
    found = []
    for row in rows:
        name = f"{row['net']}, {row.get('samples', row.get('probes'))}"
        if row.get("goal") and np.median(row["seconds"]) > row["goal"]:
            found.append(f"{name}: {np.median(row['seconds']):.4f} s")
        if row.get("goals"):
            for n in (2, 3):
                if abs(row[f"error{n}"]) > SMALL_GOALS[f"mu{n}"]:
                    found.append(f"{name}: mu{n} is off by {row[f'error{n}']:.2%}")
    vgg = [row for row in rows if "GiB" in row]
    for row in vgg:
        truth = next(r for r in vgg if r["net"] == row["net"] and r["steps"] == 36)
        if (row["probes"], row["steps"]) == (8, 24):
            found += [
                f"{row['net']}: {key} {row[key]:.3g}"
                for key in ("seconds", "GiB")
                if row[key] > VGG_GOALS[key]
            ]
        for key in ("mu2", "mu3"):
            error = abs(row[key] - truth[key]) / abs(truth[key])
            if error > VGG_GOALS[key]:
                found.append(f"{row['net']}, {row['probes']} probes: {key} is off by {error:.2%}")
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vgg", action="store_true", help="measure the VGG, and nothing else")
    parser.add_argument("--train-steps", type=int, default=40, help="of the VGG, batches of 16")
    parser.add_argument("--repeats", type=int, default=31, help="timed, after one that is not")
    parser.add_argument("--threads", type=int, help="torch's threads: 1, with --vgg 2")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/propagator.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the cases; the exit status is 0 only if all goals are met."""
    options = parse(arguments)
    threads = options.threads or (2 if options.vgg else 1)
    torch.set_num_threads(threads)
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    if options.vgg:
        rows = vgg_rows(options.train_steps, threads)
        numbers = dict.fromkeys(("mu2", "mu2_stderr", "mu3", "mu3_stderr", "log_det"), ".5g")
        columns = {
            "net": "",
            "probes": "",
            "steps": "",
            "seconds": ".1f",
            "cpu": ".1f",
            "GiB": ".2f",
        } | numbers
        console.print(table("matrix-free", rows, columns))
    else:
        exact, small = exact_rows(options.repeats), small_rows()
        rows = exact + small
        columns = {"net": "", "samples": "", "seconds": ".5f", "log_det": ".0e"}
        console.print(table("exact", exact, columns | {"mu2": ".2f", "mu3": ".2f"}))
        columns = {"net": "", "probes": "", "steps": "", "seconds": ".2f"}
        numbers = dict.fromkeys(("error2", "stderr2", "error3", "stderr3"), ".3%")
        console.print(table("matrix-free", small, columns | numbers))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    console.print(f"written to {options.json}")
    missed = misses(rows)
    for line in missed:
        console.print(f"missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
