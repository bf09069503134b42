"""What measuring costs: training with and without the thermometer, paired and interleaved.

Run from the checkout::

    python benchmarks/overhead.py
    python benchmarks/overhead.py --nets tanh --rounds 10 --arms control order_parameter

Prints a table, writes JSON, and ends with status 1 if a run measured nothing or too little, or if
the minibatch order parameter at every step costs more than the goal. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from machine import machine
from pytorch_lightning.loggers import TensorBoardLogger
from relay import Relay, Stopwatch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torch_thermo as tt
from torch_thermo.callbacks import At, PlasticityOrderParameter, Thermometer
from torch_thermo.store import Run
from torch_thermo.systems import VGG, TanhMLP

BATCH = 32
# Lightning logs every 50 steps by default, and with it the callback writes what it has kept: each
# block holds one such step.
BLOCK = 50
CLOCKS = ("wall", "cpu")
MINIBATCH = "order_parameter_minibatch"


Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Net:
    """A net to train: how it is made, its loss, its data, and how many steps a run takes.

    Short runs (``steps``) for what happens at every step, long ones (``plan_steps``) for the plan,
    whose measurements are few.
    """

    title: str
    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    data: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    steps: int
    plan_steps: int


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).sum(1).mean()


def _hinge(output: Tensor, target: Tensor) -> Tensor:
    return torch.relu(1 - target * output).mean()


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(0, 2, shape, generator=generator) - 1


def _small_conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )


# Noise for data: the time of a step does not depend on what the numbers mean.
NETS = {
    "tanh": Net(
        "tanh 784-40-20-10",
        TanhMLP,
        _squared_error,
        lambda g: (torch.rand(BATCH * 100, 784, generator=g), _signs((BATCH * 100, 10), g)),
        steps=2000,
        plan_steps=10000,
    ),
    "conv": Net(
        "conv 16-32, BatchNorm",
        _small_conv,
        nn.functional.cross_entropy,
        lambda g: (
            torch.rand(BATCH * 50, 1, 28, 28, generator=g),
            torch.randint(0, 10, (BATCH * 50,), generator=g),
        ),
        steps=400,
        plan_steps=2000,
    ),
    "vgg": Net(
        "VGG, 10 layers",
        VGG,
        _hinge,
        lambda g: (torch.rand(BATCH * 50, 1, 32, 32, generator=g), _signs((BATCH * 50,), g)),
        steps=400,
        plan_steps=2000,
    ),
}

# Leaves the minibatch order parameter alone of what the callback measures.
NEVER = At(steps=[2**62], end=False)

# What is attached. "control" is the bare run a second time: its ratio shows what the machine's own
# noise makes of 1. "empty" is a callback without a line of code: what Lightning takes for one.
ARMS: dict[str, Callable[[], list[pl.Callback]]] = {
    "bare": list,
    "control": list,
    "empty": lambda: [pl.Callback()],
    "order_parameter": lambda: [PlasticityOrderParameter(schedule=NEVER, probe=1)],
    "thermometer": lambda: [Thermometer()],
}
MEASURING = ("order_parameter", "thermometer")
PLAN = "thermometer"


class _Task(pl.LightningModule):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.model = net.model()
        self.criterion = net.loss

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


@dataclass(frozen=True)
class Sample:
    """One training run; seconds by both clocks (wall, processor).

    Attributes:
        total: (2,), from the start of the training to its end.
        blocks: (n, 2), of each BLOCK steps.
        measured: {observable: measurements stored}.
        seconds: {observable: seconds}, as the run itself accounts for them.
    """

    total: Times
    blocks: Times
    measured: dict[str, int]
    seconds: dict[str, float]


def train(net: Net, arm: str, steps: int, relay: Relay) -> Sample:
    """Train once, in turns with others, and count what was measured.

    All start from the same weights and see the same batches.

    Raises:
        RuntimeError: the run took another number of steps, or stored another number of
            measurements of the minibatch order parameter than it took steps.
    """
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        TensorDataset(*net.data(generator)), BATCH, shuffle=True, generator=generator
    )
    watch = Stopwatch(relay, arm, BLOCK)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=TensorBoardLogger(folder, name=None, version=""),
            callbacks=[watch, *ARMS[arm](), watch.last],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(_Task(net), loader)
        if trainer.global_step != steps:
            raise RuntimeError(f"{arm}: took {trainer.global_step} steps, not {steps}")
        measured, seconds = _stored(folder, arm, steps) if arm in MEASURING else ({}, {})
    return Sample(np.array(watch.total), np.array(watch.blocks), measured, seconds)


def _stored(folder: str, arm: str, steps: int) -> tuple[dict[str, int], dict[str, float]]:
    run = tt.load_run(folder)
    series = run.series(f"{MINIBATCH}/value")
    # Step t is the gradient at the weights after t updates, read before update t + 1.
    if series.steps.tolist() != list(range(steps)) or not np.isfinite(series.values).all():
        raise RuntimeError(
            f"{arm}: {np.isfinite(series.values).sum()} finite measurements of {MINIBATCH} at "
            f"{len(series)} steps, in a run of {steps} steps"
        )
    measured = {name: _measurements(run, name) for name in run.observables}
    return measured, {name: float(s) for name, s in run.meta["seconds"]["measuring"].items()}


def _measurements(run: Run, observable: str) -> int:
    names = [name for name in run.names if name.split("/")[0] == observable]
    return len({step for name in names for step in run.series(name).steps.tolist()})


@dataclass(frozen=True)
class Ratio:
    """Median of the paired ratios, with to without, and its 95 % bootstrap interval over pairs.

    Of the pairs, not of all times on either side: both times of a pair saw the same machine.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, bare: Times, attached: Times, resamples: int = 2000) -> Ratio:
        """Compare paired times: entry i of both was taken within the same cycle of turns."""
        ratios = attached / bare
        chosen = np.random.default_rng(0).integers(len(ratios), size=(resamples, len(ratios)))
        low, high = np.quantile(np.median(ratios[chosen], axis=1), [0.025, 0.975])
        return cls(float(np.median(ratios)), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def compare(name: str, arms: list[str], rounds: int, steps: int) -> dict[str, Any]:
    """Train a net with every arm, interleaved; times, ratios and counts as plain values."""
    net = NETS[name]
    samples: dict[str, list[Sample]] = {arm: [] for arm in arms}
    for number in range(rounds):
        relay = Relay(arms, seed=number)
        found = relay.run(functools.partial(_runner, net=net, steps=steps, relay=relay))
        for arm, sample in found.items():
            samples[arm].append(sample)
    return {
        "net": name,
        "title": net.title,
        "parameters": sum(p.numel() for p in net.model().parameters()),
        "batch": BATCH,
        "steps": steps,
        "arms": {arm: _summary(samples["bare"], runs, steps) for arm, runs in samples.items()},
    }


def _runner(arm: str, net: Net, steps: int, relay: Relay) -> Sample:
    return train(net, arm, steps, relay)


def _summary(bare: list[Sample], runs: list[Sample], steps: int) -> dict[str, Any]:
    row: dict[str, Any] = {"measured": runs[0].measured}
    for clock, name in enumerate(CLOCKS):
        # The median block is blind to what happens once, at the start or the end or when something
        # rare is due: the price of a step. The total sees all.
        step = [np.concatenate([s.blocks[:, clock] for s in arm]) / BLOCK for arm in (bare, runs)]
        total = [np.array([s.total[clock] for s in arm]) for arm in (bare, runs)]
        row[f"{name}_seconds_a_step"] = step[1].tolist()
        row[f"{name}_seconds"] = total[1].tolist()
        row[f"{name}_step_ratio"] = vars(Ratio.of(step[0], step[1]))
        row[f"{name}_ratio"] = vars(Ratio.of(total[0], total[1]))
    row["measuring_seconds"] = {
        name: float(np.median([run.seconds[name] for run in runs])) for name in runs[0].seconds
    }
    return row


def overhead_table(results: list[dict[str, Any]]) -> Table:
    """One row a net and arm."""
    table = Table(title="with / without: median of the paired ratios [95 %]")
    for column in ("net", "attached"):
        table.add_column(column, no_wrap=True)
    for column in ("steps", "ms/step", "step, wall", "step, CPU", "run, wall", "measured"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        for arm, row in result["arms"].items():
            ratios = [
                str(Ratio(**row[name])) if arm != "bare" else "1"
                for name in ("wall_step_ratio", "cpu_step_ratio", "wall_ratio")
            ]
            table.add_row(
                result["net"],
                arm,
                str(result["steps"]),
                f"{1e3 * np.median(row['wall_seconds_a_step']):.3f}",
                *ratios,
                str(sum(row["measured"].values())),
            )
        table.add_section()
    return table


def breakdown_table(results: list[dict[str, Any]]) -> Table:
    """Where the default plan's time goes: one row a net and observable."""
    table = Table(title="the default plan, by observable")
    for column in ("net", "observable"):
        table.add_column(column, no_wrap=True)
    for column in ("measured", "seconds", "ms each", "of training"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        row = result["arms"].get(PLAN)
        if row is None:
            continue
        training = np.median(result["arms"]["bare"]["wall_seconds"])
        for name in sorted({*row["measured"], *row["measuring_seconds"]}):
            count, seconds = row["measured"].get(name), row["measuring_seconds"].get(name)
            table.add_row(
                result["net"],
                name,
                str(count) if count is not None else "",
                f"{seconds:.3f}" if seconds is not None else "",
                f"{1e3 * seconds / count:.1f}" if count and seconds is not None else "",
                f"{seconds / training:.1%}" if seconds is not None else "",
            )
        table.add_section()
    return table


def verdicts(results: list[dict[str, Any]], goal: float, clock: str) -> list[dict[str, Any]]:
    """Whether the minibatch order parameter meets the goal on each net, beyond the noise."""
    found = []
    for result in results:
        row = result["arms"].get("order_parameter")
        if row is not None:
            ratio = Ratio(**row[f"{clock}_step_ratio"])
            word = "met" if ratio.high <= goal else "missed" if ratio.low > goal else "undecided"
            found.append({"net": result["net"], **vars(ratio), "goal": goal, "verdict": word})
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    attached = [arm for arm in ARMS if arm != "bare"]
    parser.add_argument("--arms", nargs="+", choices=attached, default=attached)
    parser.add_argument("--rounds", type=int, default=4, help="runs of each arm")
    parser.add_argument("--plan-rounds", type=int, default=1, help=f"runs of {PLAN}")
    parser.add_argument("--steps", type=int, help="steps of a run (default: by net)")
    parser.add_argument("--plan-steps", type=int, help=f"steps of a run of {PLAN}")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--goal", type=float, default=1.03, help="largest ratio that passes")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="for the verdict")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/overhead.json"))
    options = parser.parse_args(arguments)
    blocks = 3 * BLOCK
    least = {"rounds": 1, "plan_rounds": 1, "steps": blocks, "plan_steps": blocks, "threads": 1}
    for name, bound in least.items():
        if (number := getattr(options, name)) is not None and number < bound:
            parser.error(f"--{name.replace('_', '-')} must be at least {bound}, got {number}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; the exit status is 0 only if all was measured and the goal is met."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    # Both names: whichever was imported last writes for both.
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")

    # Wide enough for the tables where the output is no terminal.
    # The minibatch value alone is asked for: that the rest is not due is no news here.
    warnings.filterwarnings("ignore", message=".*never measured order_parameter")

    # Wide enough for the tables where the output is no terminal.
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    results = []
    try:
        for name in options.nets:
            net = NETS[name]
            arms = ["bare", *(arm for arm in options.arms if arm != PLAN)]
            if len(arms) > 1:
                console.print(f"{net.title}: {', '.join(arms)}, {options.rounds} rounds")
                results.append(compare(name, arms, options.rounds, options.steps or net.steps))
            if PLAN in options.arms:
                console.print(f"{net.title}: bare, {PLAN}, {options.plan_rounds} rounds")
                steps = options.plan_steps or net.plan_steps
                results.append(compare(name, ["bare", PLAN], options.plan_rounds, steps))
    except RuntimeError as error:
        console.print(f"error: {error}")
        return 1
    found = verdicts(results, options.goal, options.clock)
    console.print(overhead_table(results))
    if PLAN in options.arms:
        console.print(breakdown_table(results))
    for entry in found:
        ratio = Ratio(entry["value"], entry["low"], entry["high"])
        console.print(f"{entry['net']}: {ratio}, goal {entry['goal']:g}: {entry['verdict']}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(), "clock": options.clock, "nets": results, "verdicts": found}
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {options.json}")
    return 0 if all(entry["verdict"] == "met" for entry in found) else 1


if __name__ == "__main__":
    sys.exit(main())
