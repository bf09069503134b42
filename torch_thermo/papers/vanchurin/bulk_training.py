"""Training on the bulk loss beside training on the boundary loss: courses and flat directions.

The paper proposes the bulk loss as what a network should minimise, and expects fewer flat
directions of it (V. Vanchurin, *Towards a theory of machine learning*, sec. 3). Here the same
network takes the same steps on the same digits in the same order, on one loss and on the other.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torch_thermo.data import ImageData, as_flat, load, sign_targets
from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import bulk_boundary_loss
from torch_thermo.observables.bulk_loss import BulkLoss
from torch_thermo.observables.hessian_spectrum import hessian_spectrum
from torch_thermo.papers.progress import Progress
from torch_thermo.papers.recipes import SquaredError
from torch_thermo.papers.threads import one_thread
from torch_thermo.papers.vanchurin.snapshots import Checkpoint
from torch_thermo.risk import Risk
from torch_thermo.spectra import LanczosRun
from torch_thermo.store import Run, Store, load_run
from torch_thermo.systems import TanhMLP

__all__ = ["BUDGETS", "OBJECTIVES", "Budget", "Flatness", "bulk_training", "flatness"]

OBJECTIVES = ("boundary", "bulk")
"""What is minimised."""

HIDDEN = (40, 20)
"""The hidden layers of the paper's deep net."""

FLAT = 1e-2
"""Of the largest |eigenvalue| of the Hessian: directions of less curvature count as flat.

At a thousandth 120 Lanczos steps do not tell how many there are; at a hundredth 60 do, to about a
tenth.
"""

# of the data, what MNIST-5k has in its two parts
_TRAIN, _TEST = 4000, 1000
# examples of the bulk loss and the Hessians, and starts of the measured (not the trained) bulk loss
_EXAMPLES = 256
_STARTS = 6
# of the Hessians' spectra
_STEPS, _PROBES = 60, 4
# an eigenvalue known to this part of itself is counted once, not by the probe's weight
_KNOWN = 1e-2


@dataclass(frozen=True)
class Budget:
    """How long and how often both losses are trained on; plain SGD.

    Attributes:
        batch: samples a step.
        rate: learning rate.
        seeds: of the weights and of the order of the samples.
        epochs: passes over the training samples.
        starts: of the search for each sample's minimum in a step.
    """

    batch: int
    rate: float
    seeds: tuple[int, ...]
    epochs: int
    starts: int


BUDGETS = {
    "quick": Budget(32, 0.1, (0, 1, 2), 8, 1),
    "paper": Budget(32, 0.1, (0, 1, 2, 3, 4), 128, 2),
}
"""``quick``: where most is learned; ``paper``: until few samples are left to learn."""


def bulk_training(
    out: str | Path,
    budget: str = "quick",
    data: str | Path = "mnist5k",
    epochs: int | None = None,
    progress: Progress | None = None,
) -> dict[str, list[Run]]:
    """Train on either loss, measure after each epoch, and return the stored runs.

    A tanh network 784-40-20-10 of float32 on 4,000 digits (pixels in [0, 1], targets +-1); both
    trainings of a seed begin at the same weights and take the same batches. Stored at
    step = updates:

    - ``accuracy``: train and test (of 1,000 other digits);
    - ``bulk_exact``: `BulkBoundary.summary` of 256 training digits, method "exact", 6 starts;
    - ``bulk_hessian`` and, where it is trained on, ``boundary_hessian``, after 0, 1, 2, 4, 8, ...
      epochs: `Flatness` of the Hessian of the risk of those digits in all weights, in float64;
      arrays nodes and weights of its spectral measure;
    - ``search``: converged, the share of an epoch's searches for a minimum that converged.

    On one thread. What was broken off is taken up after its last whole epoch.

    Args:
        out: folder of all runs: ``<out>/<budget>/bulk_training/<loss>/seed<k>/``.
        budget: "quick" (3 seeds, 8 epochs) or "paper" (5 seeds, 128 epochs).
        data: see `torch_thermo.data.load`.
        epochs: None takes the budget's. Fewer than are trained already changes nothing.
        progress: told what is done, how much of it, and of how much.

    Returns:
        {loss: its runs, one a seed}.

    Raises:
        ValueError: an unknown budget, ``epochs`` below 1, data that are not usable, or a folder
            that holds a training of other data or settings.
        FileNotFoundError, ModuleNotFoundError, OSError: the data are missing.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget must be {' or '.join(BUDGETS)}, got {budget!r}")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    plan = BUDGETS[budget]
    last = plan.epochs if epochs is None else epochs
    digits = _Digits(load(data, seed=0).subset(_TRAIN, _TEST, seed=0))
    folder = Path(out) / budget / "bulk_training"
    runs: dict[str, list[Run]] = {objective: [] for objective in OBJECTIVES}
    total, done = len(plan.seeds) * len(OBJECTIVES) * last, 0
    with one_thread():
        for seed in plan.seeds:
            for objective in OBJECTIVES:
                training = _Training(plan, objective, seed, digits, folder)
                while training.epoch < last:
                    training.advance()
                    if progress is not None:
                        what = f"training on the {objective} loss, seed {seed}"
                        progress(what, done + training.epoch, total)
                done += last
                runs[objective].append(load_run(training.store.path))
    return runs


class _Digits:
    """Both parts of the data as the network takes them.

    Args:
        images: the data.
    """

    def __init__(self, images: ImageData) -> None:
        self.name, self.classes = images.name, images.classes
        self.inputs = as_flat(images.train_images)
        self.labels = images.train_labels
        self.targets = sign_targets(images.train_labels, images.classes)
        self.test_inputs = as_flat(images.test_images)
        self.test_labels = images.test_labels

    @property
    def fingerprint(self) -> int:
        """A checksum, by which a resumed training knows its data again."""
        return zlib.crc32(self.labels.numpy().tobytes(), zlib.crc32(self.inputs.numpy().tobytes()))


class _Training:
    """One network on one loss; begins, or goes on after the last whole epoch.

    Args:
        plan: how it is trained.
        objective: "boundary" or "bulk".
        seed: of weights and order.
        digits: the data.
        folder: of all of a budget's trainings.
    """

    def __init__(
        self, plan: Budget, objective: str, seed: int, digits: _Digits, folder: Path
    ) -> None:
        self._plan, self._digits, self._objective = plan, digits, objective
        self._folder = folder / objective / f"seed{seed}"
        self._setting: dict[str, Any] = {
            "loss": objective,
            "seed": seed,
            "batch": plan.batch,
            "lr": plan.rate,
            "starts": plan.starts,
            "data": digits.name,
            "fingerprint": digits.fingerprint,
        }
        sizes = (digits.inputs.shape[1], *HIDDEN, digits.classes)
        self._model = TanhMLP(sizes, seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._steps_per_epoch = -(-len(digits.labels) // plan.batch)
        self.epoch = 0
        checkpoint = Checkpoint.load(self._folder, self._setting)
        if checkpoint is not None:
            self.epoch = checkpoint.epoch
            self._model.load_state_dict(checkpoint.weights)
            self._generator.set_state(checkpoint.generator)
        self.store = Store.open(self._folder / "thermo", resume_after=self._step)
        self.store.write_meta(
            {
                **self._setting,
                "net": "-".join(map(str, sizes)),
                "samples": len(digits.labels),
                "examples": _EXAMPLES,
                "steps_per_epoch": self._steps_per_epoch,
            }
        )
        if checkpoint is None:
            self._measure()
            self._keep()

    def advance(self) -> None:
        """Take the steps of an epoch, measure, and keep the weights."""
        digits, model = self._digits, self._model
        loss = _loss(self._objective, model, self._plan.starts)
        optimizer = torch.optim.SGD(model.parameters(), lr=self._plan.rate)
        order = torch.randperm(len(digits.labels), generator=self._generator)
        converged = []
        for chosen in order.split(self._plan.batch):
            optimizer.zero_grad()
            loss(model, (digits.inputs[chosen], digits.targets[chosen])).backward()
            optimizer.step()
            if isinstance(loss, _Bulk):
                converged.append(loss.converged)
        self.epoch += 1
        if converged:
            self._store("search", {"converged": float(torch.cat(converged).double().mean())})
        self._measure()
        self._keep()

    def _keep(self) -> None:
        weights = {name: weight.clone() for name, weight in self._model.state_dict().items()}
        state = self._generator.get_state()
        Checkpoint(self.epoch, weights, state, self._setting).save(self._folder)

    def _measure(self) -> None:
        """Measure the weights as they are, in float64."""
        digits = self._digits
        model = copy.deepcopy(self._model).double()
        with torch.no_grad():
            parts = {
                "train": (digits.inputs, digits.labels),
                "test": (digits.test_inputs, digits.test_labels),
            }
            right = {k: model(x.double()).argmax(1) == labels for k, (x, labels) in parts.items()}
        self._store("accuracy", {k: float(found.double().mean()) for k, found in right.items()})
        batch = digits.inputs[:_EXAMPLES].double(), digits.targets[:_EXAMPLES].double()
        network = Network.from_module(model, batch[0])
        found = bulk_boundary_loss(network, *batch, method="exact", starts=_STARTS)
        self._store("bulk_exact", found.summary())
        # 0, 1, 2, 4, 8, ...: the same for every length, so that a training can be prolonged
        if self.epoch & (self.epoch - 1):
            return
        for objective in sorted({"bulk", self._objective}):
            risk = Risk.from_closure(model, _loss(objective, model, self._plan.starts), [batch])
            run = hessian_spectrum(risk, steps=_STEPS, probes=_PROBES).run
            arrays = {"nodes": run.ritz.numpy(), "weights": run.weights.numpy()}
            self.store.save_arrays(f"{objective}_hessian", self._step, arrays)
            self._store(f"{objective}_hessian", asdict(flatness(run, risk.numel)))

    @property
    def _step(self) -> int:
        return self.epoch * self._steps_per_epoch

    def _store(self, observable: str, scalars: Mapping[str, float]) -> None:
        self.store.append(observable, self._step, self.epoch, scalars)


class _Bulk:
    """The bulk loss of a batch, and which of its searches for a minimum converged."""

    def __init__(self, model: nn.Module, starts: int) -> None:
        self._loss = BulkLoss(model, starts=starts)

    def __call__(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        loss: Tensor = self._loss(*batch)
        return loss

    @property
    def converged(self) -> Tensor:
        assert self._loss.last is not None
        return self._loss.last.converged


def _boundary(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    inputs, targets = batch
    loss: Tensor = SquaredError()(model(inputs), targets)
    return loss


def _loss(objective: str, model: nn.Module, starts: int) -> Callable[[nn.Module, Any], Tensor]:
    """The mean loss of a batch as a function of model and batch."""
    return _Bulk(model, starts) if objective == "bulk" else _boundary


@dataclass(frozen=True)
class Flatness:
    """How many directions of weight space a risk is curved in, of n.

    All but the first and the last two are the same for any multiple of the risk.

    Attributes:
        largest: the largest |eigenvalue| of the Hessian H.
        directions: how many eigenvalues exceed `FLAT` times that, in absolute value.
        participation: ``(tr H)^2 / tr H^2``, the number of directions if all were curved alike.
        flat: ``1 - directions / n``, the share of flat directions.
        trace: tr H.
        squares: tr H^2.
    """

    largest: float
    directions: float
    participation: float
    flat: float
    trace: float
    squares: float


def flatness(run: LanczosRun, dimension: int) -> Flatness:
    """Count curved directions from a Lanczos run of random starts.

    A probe's quadrature gives an eigenvalue the weight of its own start vector, 1/n only in the
    mean, and the few large ones carry all the noise of the sums. So those that every probe has
    found (residual bound below a hundredth of them, counted from the largest |eigenvalue| down)
    count once; the others by their weight times n, averaged over the probes.

    Args:
        run: of (n, n).
        dimension: n.
    """
    nodes = run.ritz.nan_to_num(0.0)
    order = nodes.abs().argsort(dim=1, descending=True)
    nodes, bounds = nodes.gather(1, order), run.residuals.nan_to_num(torch.inf).gather(1, order)
    counts = dimension * run.weights.gather(1, order)
    known = (bounds <= _KNOWN * nodes.abs()).long().cumprod(1).sum(1).min()
    counts[:, : int(known)] = 1.0
    counts = counts / len(counts)
    largest = float(nodes.abs().max())
    directions = float(counts[nodes.abs() > FLAT * largest].sum())
    trace, squares = float((counts * nodes).sum()), float((counts * nodes.square()).sum())
    return Flatness(
        largest=largest,
        directions=directions,
        participation=trace**2 / squares if squares else math.nan,
        flat=1 - directions / dimension,
        trace=trace,
        squares=squares,
    )
